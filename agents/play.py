"""A policy at work: a table of its episodes and, if asked, a film of the first one.

    python agents/play.py runs/RUN_DIR                    # the newest good checkpoint, as the run evaluates itself
    python agents/play.py runs/RUN_DIR --video            # and an MP4 and a GIF in RUN_DIR/videos, in TensorBoard too
    python agents/play.py runs/RUN_DIR --policy random    # what the task gives without learning; or --policy zero
    python agents/play.py runs/RUN_DIR --step 80000 --episodes 100 --seed 7 --csv episodes.csv

Without more flags the episodes are those of the run's own evaluation, so the last checkpoint of a finished run earns
what its last evaluation says, to the last digit where the simulator promises equal rollouts on the same device.

Nothing in the run directory is changed but `videos/`, and a run that still trains may be played. A film is drawn by the
simulator that steps, from its own state, without a display: EnvPool (MuJoCo by EGL; Atari, Box2D, classic control and
others by its own painter), MuJoCo Warp and HumanoidBench (by MuJoCo), Gymnasium (what its task can draw), the torch
point mass, tasks whose observation is an image, and any `VecEnv` of your own that has `render`. Where none can, one
line says why.
"""

import csv
import importlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from gymnasium.spaces import Discrete
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

import envs
from agents import config
from agents.checkpoint import RunError, disk, read_args
from agents.episodes import evaluate, score_and_end
from agents.trained import RATES, agent_module, look_up, settings, trained_policy
from envs.base import Step, VecEnv, spawn_seeds
from envs.families import human_normalised
from envs.pictures import prepare_gl


@dataclass
class Args:
    """Play a policy: a table of returns, lengths and success, and a film."""

    run_dir: tyro.conf.Positional[str]
    """of a run: running, done, interrupted or failed"""
    policy: Literal["trained", "random", "zero"] = "trained"
    """whose actions: the run's, evenly drawn ones, or zeros (in games, action 0)"""
    step: int | None = None
    """frames after which the checkpoint was saved; the newest good one if none is given"""
    episodes: int | None = None
    """how many, one in each of as many environments; as many as the run evaluates if none is given"""
    seed: int | None = None
    """of the episodes; the run's own if none is given, and they begin as those of its evaluations do"""
    env_id: str | None = None
    """another task, with observations and actions of the same shapes"""
    backend: str | None = None
    """another simulator for the task: auto, or a name that `python -m envs` lists"""
    device: str = "auto"
    """where the policy lives: auto (the run's device where there is one here, else cpu), cpu, cuda, cuda:1"""
    max_steps: int | None = None
    """steps after which an episode is cut; the task's time limit if none is given, or 10,000"""
    csv: str | None = None
    """file to write the table to, one row per episode"""
    video: bool = False
    """film the first episode: RUN_DIR/videos/*.mp4 and *.gif, and the GIF in TensorBoard's Images tab"""
    video_seconds: float = 10.0
    """length of the film at most, in simulated time"""
    video_size: tuple[int, int] | None = None
    """width and height of a MuJoCo film; what the simulator prefers if none is given"""
    camera: int | None = None
    """number of the MuJoCo camera, -1 for the free one; one that shows the robot well if none is given"""


# ---- policies --------------------------------------------------------------------------------------------------------

Policy = Callable[[Tensor], Tensor]


def random_policy(env: VecEnv, seed: int) -> Policy:
    """Return a policy that draws actions evenly, from a stream of its own."""
    space, generator = env.action_space, torch.Generator(env.device).manual_seed(seed)
    if isinstance(space, Discrete):
        return lambda obs: torch.randint(int(space.n), (len(obs),), generator=generator, device=env.device)
    return lambda obs: 2 * torch.rand(len(obs), *space.shape, generator=generator, device=env.device) - 1


def zero_policy(env: VecEnv) -> Policy:
    """Return a policy that does nothing: the middle of every action's range, or action 0."""
    space = env.action_space
    if isinstance(space, Discrete):
        return lambda obs: torch.zeros(len(obs), dtype=torch.int64, device=env.device)
    return lambda obs: torch.zeros(len(obs), *space.shape, device=env.device)


# ---- episodes --------------------------------------------------------------------------------------------------------


class Episode(NamedTuple):
    """The first episode of one environment."""

    returned: float
    length: int
    end: str
    """terminated, time limit, unfinished, or spoilt by the simulator: such a one does not count"""
    success: bool | None
    """whether it succeeded at any step; None where the task does not say"""
    success_end: bool | None
    """whether it did at its last step"""


class Recorded(VecEnv):
    """Environments that note every step, so that there is a row for each episode beside the means of `evaluate`."""

    def __init__(self, env: VecEnv, film: "Film | None" = None) -> None:
        self._env = env
        self._film = film
        self.num_envs, self.device, self.max_episode_steps = env.num_envs, env.device, env.max_episode_steps
        self._rows: list[Tensor] = []
        self._reports_success = False
        self._views: tuple[Tensor, Tensor] | None = None

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Begin the episodes."""
        self._rows = []
        self._views = self._env.reset(seed)
        return self._views

    def step(self, action: Tensor) -> Step:
        """Step, note it, and film what is acted on."""
        if self._film and self._views:
            self._film.shoot(self._views[0][0], self._views[1][0])
        step = self._env.step(action)
        score, ended = score_and_end(step)
        self._reports_success |= "success" in step.metrics
        success = step.metrics.get("success", torch.zeros_like(ended))
        self._rows.append(torch.stack([x.double() for x in (score, ended, step.truncated, ~step.valid, success)]))
        self._views = step.obs, step.critic_obs
        if self._film and bool(ended[0]):
            self._film.stop()
        return step

    def episodes(self) -> list[Episode]:
        """Return the first episode of each environment since `reset`."""
        score, ended, cut, spoilt, success = torch.stack(self._rows, 1).cpu().numpy()  # [5, T, N]
        rows = []
        for i in range(self.num_envs):
            finished = bool(ended[:, i].any())
            length = int(ended[:, i].argmax()) + 1 if finished else len(ended)
            end = "unfinished" if not finished else "time limit" if cut[length - 1, i] else "terminated"
            rows.append(
                Episode(
                    float(score[:length, i].sum()),
                    length,
                    "spoilt" if spoilt[:length, i].any() else end,
                    bool(success[:length, i].any()) if self._reports_success else None,
                    bool(success[length - 1, i]) if self._reports_success else None,
                )
            )
        return rows


def table(episodes: Sequence[Episode], score: Mapping[str, float], task: str) -> str:
    """Return the episodes and their statistics as lines of text. Statistics are of the episodes that count."""
    tells = "success_rate" in score
    rows = [("episode", "return", "length", "end", *(["success", "at its end"] if tells else []))]
    for number, one in enumerate(episodes, 1):
        success = ["yes" if flag else "no" for flag in (one.success, one.success_end)] if tells else []
        rows.append((str(number), f"{one.returned:.2f}", str(one.length), one.end, *success))
    shares = [f"{score[name]:.0%}" for name in ("success_rate", "success_end")] if tells else []
    rows.append(("mean", f"{score['episodic_return']:.2f}", f"{score['episodic_length']:.1f}", "", *shares))
    lengths = np.array([one.length for one in episodes if one.end != "spoilt"], float)
    rows.append(("std", f"{score['episodic_return_std']:.2f}", f"{lengths.std() if len(lengths) else math.nan:.1f}"))
    normal = human_normalised(task, score["episodic_return"])
    if normal is not None and score["unfinished"] == 0:
        rows.append(("human", f"{normal:.3f}", "", "0 is a random player, 1 a professional"))
    widths = [max(len(row[k]) for row in rows[:-1] if k < len(row)) for k in range(len(rows[0]))]
    align = ("", ">", ">", "", "", "")
    return "\n".join("  ".join(f"{cell:{align[k]}{widths[k]}}" for k, cell in enumerate(row)).rstrip() for row in rows)


def write_csv(path: Path, common: Mapping[str, Any], episodes: Sequence[Episode]) -> None:
    """Write one row per episode.

    Raises:
        RunError: the disk refuses.
    """
    with disk(f"write {path}"), open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*common, "episode", "return", "length", "end", "success", "success_end"])
        for number, one in enumerate(episodes, 1):
            flags = ["" if flag is None else int(flag) for flag in (one.success, one.success_end)]
            writer.writerow([*common.values(), number, one.returned, one.length, one.end, *flags])


# ---- film ------------------------------------------------------------------------------------------------------------

SMOOTH = 30.0
"""frames per second that are enough"""

Draw = Callable[[Tensor, Tensor], np.ndarray]
"""obs and critic_obs of one environment -> its picture, uint8 [H, W, 3]"""


class CannotDraw(ValueError):
    """There is no picture of this task. One line, meant for users."""


def painter(env: VecEnv, args: Args) -> Draw:
    """Return what draws the first environment, as it is now.

    Raises:
        CannotDraw: nothing here can.
    """
    if getattr(env.render, "__func__", None) is not VecEnv.render:
        return lambda obs, critic_obs: env.render(0, args.video_size, args.camera)
    if env.backend == "torch" and env.task in ("PointMass-v0", "PointMassPrivileged-v0"):
        return lambda obs, critic_obs: draw_point_mass(critic_obs.cpu().numpy())
    if len(env.obs_space.shape) == 3:
        return lambda obs, critic_obs: draw_image(obs.cpu().numpy())
    raise CannotDraw("its state is a vector that nothing here knows how to draw; give its VecEnv a render(index)")


def draw_point_mass(state: np.ndarray, size: int = 240) -> np.ndarray:
    """Return the square of the point mass from position, velocity, goal: the goal a ring of the radius of success."""
    canvas = np.full((size, size, 3), 255, np.uint8)
    scale = size / 2.4  # walls at -1 and 1, and a margin
    y, x = (size / 2 - np.mgrid[:size, :size]) / scale
    x = -x
    position, velocity, goal = state[0:2], state[2:4], state[4:6]

    def paint(where: np.ndarray, colour: tuple[int, int, int]) -> None:
        canvas[where] = colour

    paint(np.maximum(abs(x), abs(y)) > 1.04, (225, 225, 225))
    away = np.hypot(x - goal[0], y - goal[1])
    paint(away < 0.1, (198, 239, 206))
    paint(abs(away - 0.1) < 0.012, (46, 139, 87))
    for share in np.linspace(0, 0.3, 40):
        at = position + share * velocity
        paint(np.hypot(x - at[0], y - at[1]) < 0.012, (120, 120, 120))
    paint(np.hypot(x - position[0], y - position[1]) < 0.05, (31, 119, 180))
    return canvas


def draw_image(obs: np.ndarray) -> np.ndarray:
    """Return an observation that is an image, enlarged: three channels are colours, of others the newest is shown."""
    if obs.shape[-1] != 3:
        obs = obs.transpose(1, 2, 0) if len(obs) == 3 else np.repeat(obs[-1][..., None], 3, -1)
    factor = max(1, 256 // obs.shape[0])
    return np.ascontiguousarray(obs.repeat(factor, 0).repeat(factor, 1))


def steps_per_second(env: VecEnv) -> float:
    """Return how fast the task's clock runs; 30 where nobody knows."""
    rate = look_up(RATES, env.task, 0.0)
    if env.backend == "envpool":
        control = env._pool.config.get("ctrl_dt", 0)  # type: ignore[attr-defined]
        rate = 1 / control if control else rate
    elif env.backend == "gymnasium":
        rate = env._vector.envs[0].metadata.get("render_fps") or rate  # type: ignore[attr-defined]
    return float(rate) or SMOOTH


class Film:
    """Pictures of one episode, at the speed of the task's clock."""

    def __init__(self, env: VecEnv, args: Args) -> None:
        self._env = env
        self._draw = self._guarded(painter, env, args)
        rate = steps_per_second(env)
        self._every = math.ceil(rate / SMOOTH)
        self.fps = rate / self._every
        self._limit = max(1, round(args.video_seconds * self.fps))
        self.frames: list[np.ndarray] = []
        self._steps = 0
        self._over = False
        self._start = self._said = time.perf_counter()

    def shoot(self, obs: Tensor, critic_obs: Tensor) -> None:
        """Take a picture, if it is time for one."""
        if self._over:
            return
        if self._steps % self._every == 0:
            self.frames.append(self._guarded(self._picture, obs, critic_obs))
            self._over = len(self.frames) == self._limit
            now = time.perf_counter()
            if now - self._said > 15:  # without a GPU a frame may take seconds
                self._said = now
                each = (now - self._start) / len(self.frames)
                print(f"{len(self.frames)} of up to {self._limit} frames, {each:.1f} s each", file=sys.stderr)
        self._steps += 1

    def stop(self) -> None:
        """The episode is over."""
        self._over = True

    def _picture(self, obs: Tensor, critic_obs: Tensor) -> np.ndarray:
        picture = np.asarray(self._draw(obs, critic_obs))
        if picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8:
            raise CannotDraw(f"its renderer returned {picture.dtype} of shape {picture.shape}, no uint8 [H, W, 3]")
        height, width = (side - side % 2 for side in picture.shape[:2])  # video codecs want even sides
        return picture[:height, :width].copy()  # simulators draw into the same memory again

    def _guarded(self, function: Callable[..., Any], *given: Any) -> Any:
        """Call, and say what is not possible and what is instead."""
        try:
            return function(*given)
        except Exception as error:  # whatever a renderer raises
            env = self._env
            why = " ".join(str(error).split()) or type(error).__name__
            others = [name for name in envs.backends() if name != env.backend and env.task in envs.tasks(name)]
            use = f"; try --backend {' or '.join(others)}" if others else ""
            raise CannotDraw(f"--video of {env.task} by {env.backend} is not possible: {why}{use}") from error


def optional(module: str, install: str) -> Any:
    """Return a module that a film needs.

    Raises:
        CannotDraw: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CannotDraw(f"{module} is missing: pip install {install}") from error


def write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write a film that every browser plays.

    Raises:
        CannotDraw: there is no encoder.
        RunError: the disk refuses.
    """
    ffmpeg = optional("imageio_ffmpeg", "imageio-ffmpeg")
    height, width, _ = frames[0].shape
    part = path.with_name(f".{path.name}.part")
    with disk(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = ffmpeg.write_frames(
            str(part), (width, height), fps=fps, macro_block_size=2, quality=7, output_params=["-f", "mp4"]
        )
        stream.send(None)
        for frame in frames:
            stream.send(np.ascontiguousarray(frame))
        stream.close()
        os.replace(part, path)


def gif_bytes(frames: Sequence[np.ndarray], fps: float, width: int = 320, smooth: float = 15.0) -> bytes:
    """Return the film as a GIF: fewer and smaller frames, one palette for all of them.

    Raises:
        CannotDraw: Pillow is missing.
    """
    images = optional("PIL.Image", "pillow")
    every = math.ceil(fps / smooth)
    pictures = [images.fromarray(frame) for frame in frames[::every]]
    if pictures[0].width > width:
        size = (width, round(pictures[0].height * width / pictures[0].width))
        pictures = [picture.resize(size, images.Resampling.LANCZOS) for picture in pictures]
    width, height = (math.ceil(side / 4) for side in pictures[0].size)  # colours of the whole film, on one strip
    strip = images.new("RGB", (width, height * len(pictures)))
    for number, picture in enumerate(pictures):
        strip.paste(picture.resize((width, height), images.Resampling.NEAREST), (0, number * height))
    palette = strip.quantize(256)
    flat = [picture.quantize(palette=palette, dither=images.Dither.NONE) for picture in pictures]
    ends = [round(100 * every / fps * number) for number in range(len(flat) + 1)]  # a GIF counts hundredths of a second
    durations = [10 * (end - start) for start, end in pairwise(ends)]
    out = io.BytesIO()
    flat[0].save(out, "GIF", save_all=True, append_images=flat[1:], duration=durations, loop=0)
    return out.getvalue()


def write_gif(path: Path, gif: bytes, frame: np.ndarray, step: int) -> None:
    """Write a GIF, and an event beside it that shows it in TensorBoard's Images tab, where it plays.

    In `videos/` and not in the run's own directory: a second event file there would end TensorBoard's interest in the
    one that a running agent writes.

    Raises:
        RunError: the disk refuses.
    """
    height, width, channels = frame.shape
    image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=gif)
    with disk(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(gif)
        os.replace(part, path)
        writer = SummaryWriter(str(path.parent))
        tag = path.stem.rpartition("-step-")[0] or path.stem
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
        writer.close()


def write_film(film: Film, folder: Path, name: str, step: int) -> list[Path]:
    """Write what can be written of a film; returns the files. What cannot is one line on stderr.

    Raises:
        RunError: the disk refuses.
    """
    done = []
    for suffix in ("mp4", "gif"):
        path = folder / f"{name}.{suffix}"
        try:
            if suffix == "mp4":
                write_mp4(path, film.frames, film.fps)
            else:
                write_gif(path, gif_bytes(film.frames, film.fps), film.frames[0], step)
        except CannotDraw as error:
            print(f"no {suffix.upper()}: {error}", file=sys.stderr)
        else:
            done.append(path)
    return done


# ---- the program -----------------------------------------------------------------------------------------------------


def play(args: Args) -> None:
    """Play and print.

    Raises:
        ValueError, RunError: bad input, one line.
    """
    if args.video:
        prepare_gl()
    run_dir = Path(args.run_dir)
    module = agent_module(run_dir)
    trained = read_args(run_dir, module.Args)
    now = settings(trained, args.device, args.env_id, args.backend)
    seed = trained.seed if args.seed is None else args.seed
    count = trained.eval_envs if args.episodes is None else args.episodes

    # An evaluation of the run: the same starts, and the same stream for actions that are drawn.
    eval_seed = spawn_seeds(seed, 1, "evaluation")[0]
    step, agent = 0, None
    if args.policy == "trained":
        agent, step = trained_policy(module, now, run_dir, args.step)
    env = make(args, now, count, seed)
    policy: Policy = agent.act if agent is not None else zero_policy(env)
    if args.policy == "random":
        policy = random_policy(env, eval_seed)
    film = Film(env, args) if args.video else None
    recorded = Recorded(env, film)
    torch.manual_seed(eval_seed)
    score = evaluate(policy, recorded, eval_seed, args.max_steps)
    env.close()
    episodes = recorded.episodes()

    who = f"{module.__name__.rpartition('.')[2]} after {step:,} frames" if agent is not None else args.policy
    say = {
        "run": str(run_dir),
        "policy": who,
        "task": f"{env.task} by {env.backend}, {count} episodes, seed {seed}",
    }
    print("\n".join(f"{name:>8}  {value}" for name, value in say.items()))
    print(f"\n{table(episodes, score, env.task)}")
    if args.csv is not None:
        common = {"env_id": env.task, "policy": args.policy, "step": step, "seed": seed}
        write_csv(Path(args.csv), common, episodes)
    if film is not None and film.frames:
        task = "" if env.task == trained.env_id else f"-{''.join(c if c.isalnum() else '-' for c in env.task)}"
        name = f"{args.policy}{task}-seed-{seed}-step-{step}"
        for path in write_film(film, run_dir / "videos", name, step):
            print(f"   video  {path}")
        print(f"          {len(film.frames)} frames, {len(film.frames) / film.fps:.1f} s of simulated time")


def make(args: Args, now: Any, count: int, seed: int) -> VecEnv:
    """Return the environments to play in, able to draw if a film is wanted.

    Raises:
        ValueError: they cannot be made.
    """
    same = args.env_id is None and args.backend is None
    options: dict[str, Any] = {"num_threads": now.env_threads} if now.env_threads and same else {}
    env = envs.make(now.env_id, count, seed, now.device, now.backend, **options)
    if args.video and env.backend == "gymnasium":  # its tasks have to be told when they are made
        env.close()
        options["render_mode"] = "rgb_array"
        if args.video_size is not None:
            options |= dict(zip(("width", "height"), args.video_size, strict=True))
        if args.camera is not None:
            options["camera_id"] = args.camera
        env = envs.make(now.env_id, count, seed, now.device, "gymnasium", **options)
    return env


def main(argv: Sequence[str] | None = None) -> int:
    """Play as the command line asks; returns the exit status. Bad input is one line on stderr and status 2."""
    args = config.parse(Args, None, argv).args
    config.positive(args, "episodes", "max_steps", "video_seconds")
    for name in ("seed", "step"):
        value = getattr(args, name)
        config.require(value is None or value >= 0, f"--{name} {value}: must be 0 or above")
    config.require(args.step is None or args.policy == "trained", f"--step is of no use to --policy {args.policy}")
    folder = Path(args.csv or ".").parent
    config.require(folder.is_dir(), f"--csv {args.csv}: there is no directory {folder}")
    sides = args.video_size
    config.require(sides is None or all(64 <= side <= 4096 for side in sides), f"--video-size {sides}: 64 to 4096 each")
    try:
        play(args)
    except (ValueError, RunError) as error:
        config.fail(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
