"""Films: an episode as pictures at the speed of the task's clock, as MP4, as GIF, and in TensorBoard.

    film = Film(env)
    evaluate(policy, Filmed(env, film), seed)
    write_film(film, run_dir / "videos", "eval-step-80000", 80_000)

A picture is drawn by the simulator that steps, from its own state, without a display; whoever makes the simulator calls
`envs.pictures.prepare_gl` before.
"""

import importlib
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.checkpoint import disk
from agents.episodes import score_and_end
from agents.trained import RATES, look_up
from envs.base import Step, VecEnv

SMOOTH = 30.0
"""frames per second that are enough"""

Draw = Callable[[Tensor, Tensor], np.ndarray]
"""obs and critic_obs of one environment -> its picture, uint8 [H, W, 3]"""


class CannotDraw(ValueError):
    """There is no picture of this task. One line, meant for users."""


def painter(env: VecEnv, size: tuple[int, int] | None = None, camera: int | None = None) -> Draw:
    """Return what draws the first environment, as it is now.

    Raises:
        CannotDraw: nothing here can.
    """
    if getattr(env.render, "__func__", None) is not VecEnv.render:
        return lambda obs, critic_obs: env.render(0, size, camera)
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
    """Pictures of one episode, at the speed of the task's clock.

    Args:
        env: whose first environment is filmed.
        seconds: of simulated time, at most.
        size: width and height in pixels, where the renderer leaves a choice.
        camera: its number, where there are several.
        others: the backends that have the task, too, for the line that says why there is no film.

    Raises:
        CannotDraw: nothing here can draw it.
    """

    def __init__(
        self,
        env: VecEnv,
        seconds: float = 10.0,
        size: tuple[int, int] | None = None,
        camera: int | None = None,
        others: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._env, self._others = env, others
        self._draw = self._guarded(painter, env, size, camera)
        rate = steps_per_second(env)
        self._every = math.ceil(rate / SMOOTH)
        self.fps = rate / self._every
        self._limit = max(1, round(seconds * self.fps))
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
            env, others = self._env, self._others()
            use = f"; try --backend {' or '.join(others)}" if others else ""
            why = " ".join(str(error).split()) or type(error).__name__
            raise CannotDraw(f"a film of {env.task} by {env.backend} is not possible: {why}{use}") from error


class Camera(Protocol):
    """What looks at an episode."""

    def shoot(self, obs: Tensor, critic_obs: Tensor) -> None:
        """Look at what is acted on next."""

    def stop(self) -> None:
        """The episode is over."""


class Filmed(VecEnv):
    """Environments of which a film takes pictures: of what is acted on, until the first episode of the first ends."""

    def __init__(self, env: VecEnv, film: Camera) -> None:
        self._env, self._film = env, film
        self.num_envs, self.device, self.max_episode_steps = env.num_envs, env.device, env.max_episode_steps
        self.task, self.backend = env.task, env.backend
        self._views: tuple[Tensor, Tensor] | None = None

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Begin the episodes."""
        self._views = self._env.reset(seed)
        return self._views

    def step(self, action: Tensor) -> Step:
        """Film what is acted on, and step."""
        if self._views:
            self._film.shoot(self._views[0][0], self._views[1][0])
        step = self._env.step(action)
        self._views = step.obs, step.critic_obs
        if bool(score_and_end(step)[1][0]):
            self._film.stop()
        return step


def drawable(make: Callable[..., VecEnv], size: tuple[int, int] | None = None, camera: int | None = None) -> VecEnv:
    """Return what `make` makes, able to draw: Gymnasium's tasks have to be told when they are made."""
    env = make()
    if env.backend != "gymnasium":
        return env
    env.close()
    options: dict[str, Any] = {"render_mode": "rgb_array"}
    if size is not None:
        options |= dict(zip(("width", "height"), size, strict=True))
    if camera is not None:
        options["camera_id"] = camera
    return make(backend="gymnasium", **options)


def rehearse(make: Callable[..., VecEnv], seed: int) -> VecEnv:
    """Return what `make` makes after it was drawn once, so that what cannot be filmed is refused before training.

    Raises:
        CannotDraw: the task, the simulator or the machine cannot draw, or an encoder is missing.
    """
    optional("imageio_ffmpeg", "imageio-ffmpeg")
    optional("PIL.Image", "pillow")
    env = drawable(make)
    obs, critic_obs = env.reset(seed)
    Film(env).shoot(obs[0], critic_obs[0])
    return env


@contextmanager
def filmed(env: VecEnv, wanted: bool, folder: Path, step: int, writer: Callable[[], SummaryWriter]) -> Iterator[VecEnv]:
    """Context of an evaluation: the environments to evaluate in. If wanted its first episode is filmed and written.

    Args:
        env: of the evaluation.
        wanted: whether there is to be a film; without one nothing happens.
        folder: of the MP4 and the GIF.
        step: environment frames so far, which name the files.
        writer: of the event file that gets the GIF, as the image `eval/episode`.

    Raises:
        CannotDraw, RunError: the renderer or the disk refuses.
    """
    if not wanted:
        yield env
        return
    film = Film(env)
    yield Filmed(env, film)
    write_film(film, folder, f"eval-step-{step}", step, writer())


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


def write_gif(path: Path, gif: bytes, frame: np.ndarray, step: int, writer: SummaryWriter | None = None) -> None:
    """Write a GIF, and an event that shows it in TensorBoard's Images tab, where it plays.

    Without the writer of a run the event goes into a file beside the GIF, in `videos/` and not in the run's own
    directory: a second event file there would end TensorBoard's interest in the one that a running agent writes.

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
        own = writer or SummaryWriter(str(path.parent))
        tag = "eval/episode" if writer else path.stem.rpartition("-step-")[0] or path.stem
        own._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
        own.flush()
        if writer is None:
            own.close()


def write_film(film: Film, folder: Path, name: str, step: int, writer: SummaryWriter | None = None) -> list[Path]:
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
                write_gif(path, gif_bytes(film.frames, film.fps), film.frames[0], step, writer)
        except CannotDraw as error:
            print(f"no {suffix.upper()}: {error}", file=sys.stderr)
        else:
            done.append(path)
    return done
