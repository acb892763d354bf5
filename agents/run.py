"""One training run on disk: what was asked, what it ran on, what it measured, where it can go on, how it ended.

    with Run.start(args) as run:                              # or Run.resume(run_dir, Args)
        while step < args.total_timesteps and not run.stop_signal:
            with run.timer("env"):
                ...
            run.progress(step)
            if log_due:
                run.log(step, {"losses/qf_loss": loss, **run.timer.read()})
            if save_due:
                run.save(step, {"agent": ..., "replay": ...})  # last in an iteration: what follows is not in it
        ...                                                    # save once more
        return run.finish("done" if step >= args.total_timesteps else "interrupted", run.stop_signal or "")

`finish` returns the exit status of the program: 0, or 75 after a signal ("saved; please start me again"). Whatever the
disk refuses is a `RunError` with a message of one line; a program prints it and exits with 2. The run stops then: what
it has saved stays as it is, and `--resume` goes on from there once there is room.

In the directory `{env_id}__{exp_name}__{seed}__{time}/`:

    config.json     every setting, resolved
    manifest.json   agent, versions, git revision, hardware, processes, command line; one entry more for each resume
    status.json     {"state": "running" | "done" | "interrupted" | "failed", "step", "why", ...}, replaced atomically.
                    "running" while nobody holds the lock means killed
    result.json     where a run is done: its last evaluation, frames, seconds
    .lock           held with flock for as long as a process writes here; probe it to learn whether a run is alive
    metrics.csv     exp_name,env_id,seed,metric,step,wall_s,value: one row per value, wall_s summed over resumes
    events.out.*    the same for TensorBoard, and the settings in its HParams and Text tabs
    checkpoints/step_000000300000/   {name}.pt, one per state, read with weights_only=True, and meta.json
"""

import errno
import fcntl
import math
import os
import re
import shutil
import signal
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from traceback import extract_tb
from types import TracebackType
from typing import IO, Any, Generic, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from agents.checkpoint import (
    A,
    Checkpoint,
    RunArgs,
    RunError,
    check_settings,
    clean_up,
    disk,
    newest_checkpoint,
    override_args,
    read_args,
    read_json,
    step_dirs,
    write_checkpoint,
    write_json,
)
from agents.manifest import manifest
from agents.metrics import MetricLog, to_floats
from agents.ranks import ALONE, RankError, Ranks

STOP_SIGNALS = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
)  # Slurm announces with USR*
ROOT = Path(__file__).resolve().parents[1]
EXIT_STATUS = {"done": 0, "failed": 1, "interrupted": os.EX_TEMPFAIL}
HEARTBEAT_S = 10.0
LAST_BIN = 1e19
"""TensorBoard's histograms end at 1e20, and values that are all beyond it are an error there"""


# ---- time ----------------------------------------------------------------------------------------------------------


class Timer:
    """Where the time of a loop goes: `with timer("env"): ...`, and `read` at each log. Parts must not nest.

    Host time: work that a GPU still has queued counts where the host comes to wait for it.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Context that counts as `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def read(self) -> dict[str, float]:
        """Seconds per part since the last read, as `time/{name}`; with `time/other` they add up to the wall clock."""
        now = time.perf_counter()
        seconds = {f"time/{name}": part for name, part in self._seconds.items()}
        seconds["time/other"] = now - self._since - sum(seconds.values())
        for name in self._seconds:
            self._seconds[name] = 0.0
        self._since = now
        return seconds


class _Progress:
    """A line that says how far a run is: redrawn in place on a terminal; in a log file one per percent or 10 min."""

    def __init__(self, total: int, step: int, stream: IO[str]) -> None:
        self.total = total
        self.stream = stream
        self.tty = stream.isatty()
        self.period = 0.5 if self.tty else HEARTBEAT_S
        """seconds between two looks at the clock that matter"""
        self.last = (time.perf_counter(), step)
        self.recent: deque[tuple[float, int]] = deque([self.last], maxlen=20)
        self.drawn = False

    def rate(self, step: int, now: float) -> float:
        """Frames per second over the last looks."""
        then, step_then = self.recent[0]
        self.recent.append((now, step))
        return (step - step_then) / max(now - then, 1e-9)

    def due(self, step: int, now: float) -> bool:
        """Whether there is enough to say for another line."""
        then, step_then = self.last
        if not self.tty and step - step_then < self.total / 100 and now - then < 600:
            return False
        self.last = (now, step)
        return True

    def show(self, step: int, sps: float, episodic_return: float | None) -> None:
        """Draw the line."""
        left = (self.total - step) / sps if sps > 0 else math.inf
        line = f"{100 * step / max(self.total, 1):5.1f}%  {step:,}/{self.total:,} frames  {sps:,.0f} SPS"
        line += "" if episodic_return is None else f"  return {episodic_return:.1f}"
        line += f"  ETA {clock(left)}"
        self.stream.write(f"\r\x1b[K{line}" if self.tty else f"{line}\n")
        self.stream.flush()
        self.drawn = self.tty

    def clear(self) -> None:
        """Make room for another line on the terminal."""
        if self.drawn:
            self.stream.write("\r\x1b[K")
            self.drawn = False


def clock(seconds: float) -> str:
    """`3:25:45` or `12:07`; `-:--` for what is not finite."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def explain(error: Exception) -> str:
    """Return the one line for users about what has stopped a program.

    Raises:
        the error itself, if it is neither theirs nor a lack of memory.
    """
    text = str(error)
    signs = ("DefaultCPUAllocator", "bad_alloc", "Storage size calculation overflowed", "Overflow when unpacking")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in signs):
        wanted = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", text)
        size = f" ({wanted[1]} more were asked for)" if wanted else ""
        return f"out of memory{size}: choose fewer environments, a smaller batch or buffer, or narrower networks"
    if isinstance(error, (ValueError, RunError, RankError)):
        place = extract_tb(error.__traceback__)[-1:]
        ours = all(Path(frame.filename).is_relative_to(ROOT) for frame in place)
        where = "" if ours else f"  (raised in {place[0].filename}, line {place[0].lineno})"
        option = "  (--env-threads sets num_threads)" if "num_threads" in text else ""
        return f"{text}{option}{where}"
    raise error


def crossed(every: int, frames: int, num_envs: int) -> bool:
    """Return whether the last `num_envs` frames have reached a multiple of `every`; never for 0."""
    return every > 0 and frames // every > (frames - num_envs) // every


# ---- the run -------------------------------------------------------------------------------------------------------


class Run(Generic[A]):
    """One training run and its directory; see the top of this file. Made by `create` or `resume`, used as a context.

    Nothing is written but config, manifest and status until something is logged or saved, and no random number
    generator is touched: training is the same with logging on and off.
    """

    def __init__(
        self,
        run_dir: Path,
        args: A,
        lock: IO[str],
        presets: Sequence[str] = (),
        checkpoint: Checkpoint | None = None,
        keep: int = 2,
        quiet: bool = False,
    ) -> None:
        if keep < 1:
            raise ValueError(f"keep {keep}: at least 1 checkpoint has to stay")
        self.dir = run_dir
        self.args = args
        self.checkpoint = checkpoint
        """where the run goes on from; None where it starts"""
        self.ranks = ALONE
        self.stop_signal: str | None = None
        """name of the first signal that asked to save and exit"""
        self._asked = 0  # its number, as soon as it is there
        self._sigints = 0
        self.timer = Timer()
        self.step = checkpoint.step if checkpoint else 0
        self.keep = keep
        self.quiet = quiet
        self._lock = lock
        self._metrics = MetricLog(run_dir, args, presets)
        self._return: float | None = None
        self._diverged = ""
        self._ended = False
        self._signals: dict[signal.Signals, Any] = {}
        self._start = time.perf_counter() - (checkpoint.meta["wall_s"] if checkpoint else 0.0)
        self._last_sps = (self.step, self.wall_s)
        self._progress = _Progress(args.total_timesteps, self.step, sys.stderr)
        self._next_look = time.perf_counter() + self._progress.period
        self._next_heartbeat = time.perf_counter() + HEARTBEAT_S

    # ---- start ----

    @classmethod
    def start(
        cls,
        args: A,
        *,
        root: Path | str = "runs",
        run_dir: Path | str | None = None,
        presets: Sequence[str] = (),
        origin: Mapping[str, Any] | None = None,
        mutable: Collection[str] = ("total_timesteps",),
        keep: int = 2,
        quiet: bool = False,
        world: int = 1,
    ) -> Self:
        """Start a run in a new directory under `root`, or in `run_dir`; there, go on with the run that it holds.

        So the same command can be given again until the run is done. Arguments are those of `create` and `resume`.

        Raises:
            RunError: as they do; a run in `run_dir` that has other settings is refused.
        """
        if run_dir is not None and not str(run_dir).strip():
            raise RunError("the name of the run directory is empty")
        path = Path(run_dir or ".")
        if run_dir is None or not goes_on(path):
            return cls.create(args, root=root, run_dir=run_dir, presets=presets, origin=origin, keep=keep, quiet=quiet)
        settings = {
            name: value for name, value in asdict(args).items() if name not in ("run_dir", "run_root", "resume")
        }
        return cls.resume(path, type(args), overrides=settings, mutable=mutable, keep=keep, quiet=quiet, world=world)

    @classmethod
    def create(
        cls,
        args: A,
        *,
        root: Path | str = "runs",
        run_dir: Path | str | None = None,
        presets: Sequence[str] = (),
        origin: Mapping[str, Any] | None = None,
        keep: int = 2,
        quiet: bool = False,
    ) -> Self:
        """Start a run in a new directory under `root`, or in exactly `run_dir`.

        `run_dir` may exist if it holds no run, or one that was killed before its first checkpoint: that one is
        started afresh, since nothing of it can be continued.

        Args:
            args: resolved settings.
            root: where a new directory is made; its parents are made too.
            run_dir: for callers that must know the name beforehand.
            presets: their names, to be shown beside the settings.
            origin: what the manifest says about where its networks come from, if not from scratch.
            keep: number of checkpoints that stay.
            quiet: no progress line.

        Raises:
            RunError: the directory cannot be made, holds a run, or is in use.
        """
        with disk(f"make the run directory {run_dir or f'in {root}'}"):
            new = run_dir is None and not Path(root).exists()
            path = _new_dir(Path(root), args) if run_dir is None else Path(run_dir)
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        try:
            if _status(path).get("state") == "done" or step_dirs(path):
                raise RunError(f"{path} already holds a run; resume it, or choose another directory")
            with disk(f"write in {path}"):
                for old in [path / "metrics.csv", *path.glob("events.out.tfevents.*")]:
                    old.unlink(missing_ok=True)
                write_json(path / "config.json", asdict(args))
                source = {"init_from": dict(origin)} if origin else {}
                record = {
                    "agent": agent_name(type(args)),
                    **manifest(),
                    "presets": list(presets),
                    **source,
                    "resumes": [],
                }
                write_json(path / "manifest.json", record)
                run = cls(path, args, lock, presets, None, keep, quiet)
                run._write_status("running")
        except BaseException:
            lock.close()
            if run_dir is None:  # made here, and nothing is in it
                shutil.rmtree(path, ignore_errors=True)
                if new:
                    with suppress(OSError):  # another run has come in meanwhile
                        path.parent.rmdir()
            raise
        return run

    @classmethod
    def resume(
        cls,
        run_dir: Path | str,
        args_class: type[A],
        *,
        overrides: Mapping[str, Any] | None = None,
        mutable: Collection[str] = ("total_timesteps",),
        check: Callable[[A], A] | None = None,
        keep: int = 2,
        quiet: bool = False,
        world: int = 1,
    ) -> Self:
        """Go on with a run from its newest good checkpoint: `run.args`, `run.checkpoint.load(name, device)`.

        Metrics that were logged after that checkpoint are dropped, they will be measured again. Newer checkpoints
        that are damaged are renamed to `*.damaged`, with one line on stderr.

        Args:
            run_dir: of the run.
            args_class: dataclass that config.json fills. A field that the file lacks takes its default.
            overrides: settings that were given anew.
            mutable: the settings that may be.
            check: raises ValueError where a setting is not legal, before anything is changed.
            keep: number of checkpoints that stay.
            quiet: no progress line.
            world: number of processes that train; it must be that of the run.

        Raises:
            RunError: no run, no good checkpoint, already done, in use, or an override that is not allowed.
        """
        path = Path(run_dir)
        if not str(run_dir).strip() or not (path / "config.json").is_file():
            raise RunError(f"{str(run_dir)!r} holds no run: there is no config.json")
        with disk(f"lock {path}"):
            lock = _lock(path)
        try:
            record = read_json(path / "manifest.json")
            try:
                settings = read_args(path, args_class)
            except RunError as error:
                if (agent := record.get("agent")) not in (None, agent_name(args_class)):
                    raise RunError(f"{path} is a run of {agent}: resume it with agents/{agent}.py") from error
                raise
            args, changed = override_args(settings, overrides or {}, mutable)
            if not isinstance(record.get("resumes"), list):
                raise RunError(f"{path / 'manifest.json'} is damaged: it lacks the list of resumes")
            status = _status(path)
            if status.get("state") == "done" and status.get("step", 0) >= args.total_timesteps:
                raise RunError(f"{path} is done: {status['step']} of {args.total_timesteps} frames are trained")
            checkpoint, complaints = newest_checkpoint(path)
            check_settings(path, settings, checkpoint, mutable)
            if check is not None:
                check(args)
            if checkpoint.step > args.total_timesteps:
                raise RunError(
                    f"--total-timesteps {args.total_timesteps}: {checkpoint.step} frames are trained already"
                )
            saved = checkpoint.meta.get("ranks", 1)
            if saved != world:
                command = f"torchrun --standalone --nproc-per-node {saved}" if saved > 1 else "python"
                raise RunError(f"{path} is trained by {saved} processes, these are {world}: start it with {command}")
            with disk(f"write in {path}"):
                clean_up(checkpoint)
                record["resumes"].append({**manifest(), "step": checkpoint.step, "changed": changed})
                write_json(path / "manifest.json", record)
                write_json(path / "config.json", asdict(args))
                run = cls(path, args, lock, record.get("presets", ()), checkpoint, keep, quiet)
                run._write_status("running")
            short = run._metrics.rewind(checkpoint.step, checkpoint.meta["metrics_bytes"])
        except BaseException:
            lock.close()
            raise
        for complaint in complaints:
            run.note(f"{complaint}; going on from {checkpoint.path.name}")
        if short:
            run.note(f"{path / 'metrics.csv'} lacks {short} bytes that were written before {checkpoint.path.name}")
        return run

    def __enter__(self) -> Self:
        kept = {number for number in (signal.SIGHUP,) if signal.getsignal(number) == signal.SIG_IGN}  # by nohup
        self._signals = {n: signal.signal(n, self._on_signal) for n in STOP_SIGNALS if n not in kept}
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        try:
            with closing(self):
                if isinstance(error, KeyboardInterrupt):
                    self._write_status("interrupted", "SIGINT twice: stopped without saving")
                elif error is not None:
                    self._write_status("failed", " ".join(f"{type(error).__name__}: {error}".split()))
                elif not self._ended:
                    self._write_status("failed", "the program left the run without finish()")
        except RunError as refused:
            if error is None:
                raise
            if not isinstance(error, RunError):  # that one came first and goes up; it is the same disk
                self.note(str(refused))

    # ---- during ----

    @property
    def wall_s(self) -> float:
        """Seconds of training so far, over all resumes."""
        return time.perf_counter() - self._start

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard's writer, for histograms, figures and text. Scalars go through `log`."""
        return self._metrics.writer

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Write scalars to metrics.csv and TensorBoard; returns them as floats.

        Args:
            step: environment frames.
            metrics: tag -> number or tensor of one element. Tensors of one device are read together, with one wait.

        Raises:
            RunError: the disk refuses.
        """
        with self.timer("log"):
            values = to_floats(metrics)
            self._metrics.write(step, round(self.wall_s, 3), values)
        lost = [tag for tag, value in values.items() if tag.startswith("losses/") and not math.isfinite(value)]
        if lost and not self._diverged:
            self._diverged = f"diverged: {lost[0]} is {values[lost[0]]} at {step:,} frames"
            self.note(f"{self._diverged}; what follows says nothing")
        self.step = step
        self._return = values.get("charts/episodic_return", self._return)
        return values

    def show(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Show images [1 or 3, height, width], 0 to 1, and histograms of values [n], by tag, in TensorBoard alone.

        Values that are not finite are left out: they have no place on an axis. Those beyond its last bin are in it.

        Raises:
            RunError: the disk refuses.
        """
        with self.timer("log"), disk(f"write TensorBoard's events in {self.dir}"):
            for tag, picture in pictures.items():
                if picture.dim() == 3:
                    self.writer.add_image(tag, picture, step)
                elif len(finite := picture[picture.isfinite()]):
                    self.writer.add_histogram(tag, finite.clamp(-LAST_BIN, LAST_BIN), step)

    def sps(self, step: int) -> float:
        """Environment frames per second since the last call, whatever was logged between."""
        (last_step, last_wall_s), self._last_sps = self._last_sps, (step, self.wall_s)
        return (step - last_step) / max(self._last_sps[1] - last_wall_s, 1e-9)

    def progress(self, step: int) -> None:
        """Keep the progress line and status.json fresh. Call it in every iteration; it mostly does nothing."""
        self.step = step
        self._agree()
        now = time.perf_counter()
        if now < self._next_look:
            return
        self._next_look = now + self._progress.period
        sps = self._progress.rate(step, now)
        if not self.quiet and self._progress.due(step, now):
            self._progress.show(step, sps, self._return)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self._write_status("running", sps=round(sps, 1), episodic_return=self._return)

    def save(self, step: int, states: Mapping[str, Any]) -> Path:
        """Write a checkpoint, all or nothing, and delete the oldest beyond `keep`; returns its directory.

        A step is saved once: a second call for the same step does nothing. Log before you save, not after: a resumed
        run has what was logged before.

        Args:
            step: environment frames; the run goes on with the iteration after it.
            states: name -> tensors, dicts, lists, numbers and text; one file each.

        Raises:
            CheckpointError: the disk refuses. The checkpoints before it are intact.
            TypeError: a state holds what `torch.load(weights_only=True)` would refuse.
        """
        self.step = step
        done = step_dirs(self.dir)
        if self.ranks.tell(bool(done) and done[-1].name == f"step_{step:012d}"):
            return done[-1]
        self._compare(states)
        with self.timer("save"):
            # The size must be true after a power cut: a resumed run goes back to it.
            sizes = self.ranks.by_first(self._metrics.sync)
            meta = {
                "wall_s": self.wall_s,
                "metrics_bytes": sizes,
                "ranks": self.ranks.world,
                "settings": asdict(self.args),
            }
            return write_checkpoint(self.dir, step, states, meta, self.keep, self.ranks)

    def finish(self, state: str = "done", why: str = "", score: Mapping[str, float] | None = None) -> int:
        """Say how the run has ended, and leave result.json if it is done; returns the exit status for it.

        Args:
            state: done, interrupted (it can be resumed) or failed.
            why: for a reader of status.json, a signal's name for instance.
            score: the last evaluation, for result.json.

        A run whose losses are no numbers any more has failed, whatever it was about to say.
        """
        if state not in EXIT_STATUS:
            raise ValueError(f"state {state!r}: legal are {', '.join(EXIT_STATUS)}")
        if state == "done" and self._diverged:
            state, why = "failed", self._diverged
        if state == "done":
            self._metrics.end()
            with disk(f"write {self.dir / 'result.json'}"):
                write_json(
                    self.dir / "result.json",
                    {
                        "step": self.step,
                        "wall_s": self.wall_s,
                        "eval": {tag: value if math.isfinite(value) else None for tag, value in (score or {}).items()},
                    },
                )
        self._write_status(state, why)
        self._ended = True
        if not self.quiet:
            self.note(f"{state} after {self.step:,} frames in {clock(self.wall_s)}: {self.dir}")
        return EXIT_STATUS[state]

    def note(self, line: str) -> None:
        """Print a line on stderr without tearing the progress line."""
        self._progress.clear()
        print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Flush and release everything. Safe to call twice."""
        self._progress.clear()
        try:
            self._metrics.close()
        finally:
            self._lock.close()

    # ---- inside ----

    def _on_signal(self, number: int, _: Any) -> None:
        """Ask the loop to save and stop. Only a second SIGINT is impatient; a batch system repeats its signals."""
        self._sigints += number == signal.SIGINT
        if self._sigints > 1:
            raise KeyboardInterrupt
        self._asked = self._asked or number
        if self.ranks.world == 1:
            self._agree()
        again = "; once more to stop at once" if number == signal.SIGINT else ""
        line = f"\n{signal.Signals(number).name}: saving, then stopping{again}\n"
        os.write(2, line.encode())  # a signal may come in the middle of a print

    def _agree(self) -> None:
        """Stop for a signal. Several processes must do so in the same iteration, whichever of them has got it when."""
        if self.stop_signal is None:
            number = self.ranks.largest(self._asked)
            self.stop_signal = signal.Signals(number).name if number else None

    def _compare(self, states: Mapping[str, Any]) -> None:
        """See to it that all processes save the same networks.

        Raises:
            RankError: they do not: something is computed that is not shared.
        """
        if self.ranks.world > 1:
            for name, tensor in states["agent"]["modules"].items():
                if not self.ranks.same(tensor):
                    raise RankError(f"the processes of this training have come apart: {name} is not the same in all")

    def _write_status(self, state: str, why: str = "", **more: Any) -> None:
        """Replace status.json."""
        status = {
            "state": state,
            "step": self.step,
            "total_timesteps": self.args.total_timesteps,
            "why": why,
            "wall_s": round(self.wall_s, 3),
            "time": time.time(),
            "pid": os.getpid(),
            **{key: value if value is None or math.isfinite(value) else None for key, value in more.items()},
        }
        with disk(f"write {self.dir / 'status.json'}"):
            write_json(self.dir / "status.json", status)


class Follower(Run[A]):
    """What stands for the run in a process other than the first: the same loop, but nothing to say or to write."""

    def __init__(self, args: A, run_dir: Path, checkpoint: Checkpoint | None, ranks: Ranks) -> None:
        self.dir, self.args, self.ranks, self.keep, self.quiet = run_dir, args, ranks, 1, True
        self.checkpoint = checkpoint._replace(rank=ranks.rank) if checkpoint else None
        self.stop_signal, self._asked, self._sigints = None, 0, 0
        self.step = checkpoint.step if checkpoint else 0
        self.timer = Timer()

    def __exit__(self, *_: object) -> None:
        for number, handler in self._signals.items():
            signal.signal(number, handler)

    def log(self, step: int, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Nothing: the first process writes."""
        return {}

    def show(self, step: int, pictures: Mapping[str, Tensor]) -> None:
        """Nothing: the first process shows."""

    def sps(self, step: int) -> float:
        """Nothing: the first process knows."""
        return 0.0

    def progress(self, step: int) -> None:
        """Stop where all do."""
        self._agree()

    def save(self, step: int, states: Mapping[str, Any]) -> Path:
        """Write this process's own states."""
        final = self.dir / "checkpoints" / f"step_{step:012d}"
        if self.ranks.tell(False):
            return final
        self._compare(states)
        self.ranks.by_first(lambda: 0)
        return write_checkpoint(self.dir, step, states, {}, self.keep, self.ranks)

    def finish(self, state: str = "done", why: str = "", score: Mapping[str, float] | None = None) -> int:
        """Return the exit status."""
        return EXIT_STATUS[state]

    def note(self, line: str) -> None:
        """Nothing: the first process says it."""

    def _on_signal(self, number: int, _: Any) -> None:
        self._asked = self._asked or number


def share_run(ranks: Ranks, start: Callable[[], Run[A]]) -> Run[A]:
    """Return the run that `start` starts or resumes in the first process, and what stands for it in the others."""
    run = ranks.by_first(start)
    found = ranks.tell(None if run is None else (run.args, run.dir, run.checkpoint))
    if run is None:
        assert found is not None
        return Follower(*found, ranks)
    run.ranks = ranks
    return run


def goes_on(run_dir: Path | str) -> bool:
    """Return whether a directory holds a run that `Run.start` would go on with."""
    return (Path(run_dir) / "config.json").is_file() and bool(step_dirs(Path(run_dir)))


def _new_dir(root: Path, args: RunArgs) -> Path:
    """Make a directory that nobody else has."""
    root.mkdir(parents=True, exist_ok=True)
    parts = (str(args.env_id), args.exp_name, str(args.seed), time.strftime("%Y%m%d-%H%M%S"))
    name = "__".join(re.sub(r"[^\w.-]+", "-", part, flags=re.ASCII) for part in parts)
    path = root / name
    for number in count(2):
        try:
            path.mkdir()
            break
        except FileExistsError:  # another run of the same second
            path = root / f"{name}-{number}"
    return path


def agent_name(args_class: type[Any]) -> str | None:
    """Return the name of the program that the settings are of, also where it is __main__."""
    source = getattr(sys.modules[args_class.__module__], "__file__", None)
    return Path(source).stem if source else None


def _status(run_dir: Path) -> dict[str, Any]:
    """What status.json says; nothing where it is missing or damaged, since the checkpoints tell more."""
    try:
        status = read_json(run_dir / "status.json")
    except RunError:
        return {}
    return status if isinstance(status.get("step"), int) else {}


def _lock(run_dir: Path) -> IO[str]:
    """Hold the directory until the file that is returned is closed, or this process dies.

    Tries for a moment: who asks whether a run is alive holds the lock while it looks.

    Raises:
        RunError: another process holds it.
    """
    file = open(run_dir / ".lock", "a+")  # noqa: SIM115  lives as long as the run
    try:
        for wait in (*9 * [0.02], None):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is None:
                    raise
                time.sleep(wait)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # NFS, Lustre without their lock service
            print(f"{run_dir}: no locks on this file system; let no two processes write there", file=sys.stderr)
            return file
        file.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise RunError(f"{run_dir} is in use by process {holder or 'unknown'}; wait for it, or stop it") from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file
