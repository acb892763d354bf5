"""A policy at work: a table of its episodes and, if asked, a film of the first one.

    python agents/play.py runs/RUN_DIR                    # the newest good checkpoint, as the run evaluates itself
    python agents/play.py runs/RUN_DIR --video            # and an MP4 and a GIF in RUN_DIR/videos, in TensorBoard too
    python agents/play.py runs/RUN_DIR --viewer           # in a window, where there is a display
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
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from gymnasium.spaces import Discrete
from torch import Tensor

import envs
from agents import config
from agents.checkpoint import RunError, disk, read_args
from agents.episodes import evaluate, score_and_end
from agents.film import Film, Filmed, drawable, steps_per_second, write_film
from agents.trained import agent_module, settings, trained_policy
from envs.base import Step, VecEnv, spawn_seeds
from envs.families import human_normalised
from envs.pictures import Viewer, prepare_gl, require_display


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

    viewer: bool = False
    """show the first episode in MuJoCo's viewer, at the speed of its clock; needs a display, and a --backend that gives
    out its model: gymnasium, mjwarp, humanoidbench"""


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

    def __init__(self, env: VecEnv, film: Film | None = None) -> None:
        self._env = env if film is None else Filmed(env, film)
        self.num_envs, self.device, self.max_episode_steps = env.num_envs, env.device, env.max_episode_steps
        self._rows: list[Tensor] = []
        self._reports_success = False

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Begin the episodes."""
        self._rows = []
        return self._env.reset(seed)

    def step(self, action: Tensor) -> Step:
        """Step, and note it."""
        step = self._env.step(action)
        score, ended = score_and_end(step)
        self._reports_success |= "success" in step.metrics
        success = step.metrics.get("success", torch.zeros_like(ended))
        self._rows.append(torch.stack([x.double() for x in (score, ended, step.truncated, ~step.valid, success)]))
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


# ---- viewer ----------------------------------------------------------------------------------------------------------


class Window:
    """The first episode in MuJoCo's viewer, step by step as its clock ticks; a closed window stops nothing else."""

    def __init__(self, env: VecEnv) -> None:
        self._env, self._step_s = env, 1 / steps_per_second(env)
        self._viewer: Viewer | None = Viewer(env.mujoco()[0])
        self._due = time.perf_counter()

    def shoot(self, obs: Tensor, critic_obs: Tensor) -> None:
        """Show the world as it is now, when it is time."""
        if self._viewer is None:
            return
        time.sleep(max(0.0, self._due - time.perf_counter()))
        self._due = (
            max(self._due, time.perf_counter() - 1.0) + self._step_s
        )  # what is slow is not caught up with for ever
        if not self._viewer.show(**self._env.mujoco()[1]):
            self.stop()

    def stop(self) -> None:
        """The episode is over."""
        if self._viewer is not None:
            self._viewer.close()
        self._viewer = None


# ---- the program -----------------------------------------------------------------------------------------------------


def play(args: Args) -> None:
    """Play and print.

    Raises:
        ValueError, RunError: bad input, one line.
    """
    if args.viewer:
        require_display()
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
    film = Film(env, args.video_seconds, args.video_size, args.camera, partial(elsewhere, env)) if args.video else None
    recorded = Recorded(Filmed(env, Window(env)) if args.viewer else env, film)
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
    build = partial(envs.make, now.env_id, count, seed, now.device, **{"backend": now.backend, **options})
    return drawable(build, args.video_size, args.camera) if args.video else build()


def elsewhere(env: VecEnv) -> list[str]:
    """Return the other backends that have a task, too."""
    return [name for name in envs.backends() if name != env.backend and env.task in envs.tasks(name)]


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
    config.program(main)
