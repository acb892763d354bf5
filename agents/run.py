"""One training run on disk: what was asked, what it ran on, what it measured, where it can go on, how it ended.

    with Run.create(args) as run:                             # or Run.resume(run_dir, Args)
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
    manifest.json   versions, git revision, hardware, command line; one entry more for each resume
    status.json     {"state": "running" | "done" | "interrupted" | "failed", "step", "why", ...}, replaced atomically.
                    "running" while nobody holds the lock means killed
    .lock           held with flock for as long as a process writes here; probe it to learn whether a run is alive
    metrics.csv     exp_name,env_id,seed,metric,step,wall_s,value: one row per value, wall_s summed over resumes
    events.out.*    the same for TensorBoard, and the settings in its HParams and Text tabs
    checkpoints/step_000000300000/   {name}.pt, one per state, read with weights_only=True, and meta.json
"""

import csv
import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, Generic, NamedTuple, Protocol, Self, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

SCHEMA = 1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # Slurm and submitit announce with USR*
EXIT_STATUS = {"done": 0, "failed": 1, "interrupted": os.EX_TEMPFAIL}
HEARTBEAT_S = 10.0
PACKAGES = (
    *("torch", "numpy", "tensordict", "gymnasium", "mujoco", "envpool", "tyro", "tensorboard"),
    *("mujoco-warp", "warp-lang", "mjlab", "ale-py"),
)


class RunError(RuntimeError):
    """The run directory cannot be used. One line, meant for users."""


class CheckpointError(RunError):
    """A checkpoint cannot be written or read; one that could not be written has left no trace. One line, too."""


class RunArgs(Protocol):
    """The settings that a run is known by; the agents' dataclasses have them and more."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    env_id: str
    exp_name: str
    seed: int
    total_timesteps: int


A = TypeVar("A", bound=RunArgs)


# ---- random number generators --------------------------------------------------------------------------------------


def rng_state() -> dict[str, Any]:
    """State of the global generators of Python, NumPy, torch and all its CUDA devices, as tensors and plain lists."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002  the global one
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Continue all generators from `rng_state`. States of CUDA devices that this machine lacks are left out."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"].cpu())  # map_location may have moved it
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, cuda in enumerate(state["cuda"][:devices]):
        torch.cuda.set_rng_state(cuda.cpu(), device)


# ---- time ----------------------------------------------------------------------------------------------------------


class _Part:
    """Adds up the time spent in its `with` blocks."""

    __slots__ = ("seconds", "start")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.start = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.start


class Timer:
    """Where the time of a loop goes: `with timer("env"): ...`, and `read` at each log. Parts must not nest.

    Host time: work that a GPU still has queued counts where the host comes to wait for it.
    """

    def __init__(self) -> None:
        self._parts: dict[str, _Part] = {}
        self._since = time.perf_counter()

    def __call__(self, name: str) -> _Part:
        """Context that counts as `name`."""
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = _Part()
        return part

    def read(self) -> dict[str, float]:
        """Seconds per part since the last read, as `time/{name}`; with `time/other` they add up to the wall clock."""
        now = time.perf_counter()
        seconds = {f"time/{name}": part.seconds for name, part in self._parts.items()}
        seconds["time/other"] = now - self._since - sum(seconds.values())
        for part in self._parts.values():
            part.seconds = 0.0
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


# ---- files ---------------------------------------------------------------------------------------------------------


@contextmanager
def _disk(what: str, error: type[RunError] = RunError, then: str = "") -> Iterator[None]:
    """Turn what the operating system refuses into one line for users."""
    try:
        yield
    except OSError as refused:
        raise error(f"cannot {what}: {refused.strerror or refused}{then}") from refused


def _sync_dir(path: Path) -> None:
    """Make renames inside a directory survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot, and need not
            raise
    finally:
        os.close(handle)


def _write_json(path: Path, content: Any) -> None:
    """Replace a file at once: a reader sees the old content or the new, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file.

    Raises:
        RunError: there is none, or not an object.
    """
    with _disk(f"read {path}"):
        text = path.read_text()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: not an object")
    return content


class _HashedFile:
    """A file for torch.save that knows the SHA-256 of what went in, and why a write failed."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "wb")  # noqa: SIM115  closed by _save_state
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of it."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error  # torch hides it behind a RuntimeError
            raise
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        """Hand it to the operating system."""
        self.file.flush()


def _save_state(path: Path, state: Any) -> str:
    """Write one state so that it survives a power cut; returns its SHA-256."""
    sink = _HashedFile(path)
    with sink.file:
        try:
            torch.save(state, sink)  # type: ignore[arg-type]  # copies from the device synchronously
        except RuntimeError as error:
            raise sink.error or error from error
        sink.flush()
        os.fsync(sink.file.fileno())
    return sink.sha256.hexdigest()


def _check_plain(value: Any, where: str) -> None:
    """Refuse, when it is saved, what could not be read back with weights_only=True.

    Raises:
        TypeError: something that is no tensor, plain container, number, text or None.
    """
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, where)
            _check_plain(item, f"{where}/{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}/{index}")
    elif not (isinstance(value, Tensor) or type(value) in (str, int, float, bool, type(None))):
        raise TypeError(f"{where} is a {type(value).__name__}; a checkpoint holds tensors, dicts, lists, numbers, text")


# ---- checkpoints ---------------------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """One good checkpoint: every file has the SHA-256 that was noted when it was written."""

    path: Path
    step: int
    meta: dict[str, Any]
    """step, wall_s, sha256 per file, metrics_bytes, schema"""

    def load(self, name: str, device: torch.device | str = "cpu") -> Any:
        """The state that was saved under this name, on a device.

        Raises:
            RunError: there is none of that name.
        """
        if not self.has(name):
            raise RunError(f"{self.path} has no {name}.pt, only {', '.join(self.meta['sha256'])}")
        with _disk(f"read {self.path}"):
            return torch.load(self.path / f"{name}.pt", map_location=device, weights_only=True)

    def has(self, name: str) -> bool:
        """Whether a state was saved under this name."""
        return f"{name}.pt" in self.meta["sha256"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint directory if every file in it is what was written.

    Raises:
        CheckpointError: it is damaged.
        RunError: it has the format of another version.
    """
    try:
        meta = _read_json(path / "meta.json")
        schema, step, sha256 = int(meta["schema"]), int(meta["step"]), dict(meta["sha256"])
    except RunError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: meta.json is not what was written ({error!r})") from error
    if schema != SCHEMA:
        raise RunError(f"{path} has format {schema}, this version reads {SCHEMA}: use the version that wrote it")
    for name, expected in sha256.items():
        with _disk(f"read {path / name}", CheckpointError), open(path / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise CheckpointError(f"{path} is damaged: {name} is not what was written")
    return Checkpoint(path, step, meta)


def read_args(run_dir: Path, args_class: type[A]) -> A:
    """The settings in config.json; a field that it lacks takes its default.

    Raises:
        RunError: there is none, or it sets what `args_class` does not know.
    """
    saved = _read_json(run_dir / "config.json")
    defaults = args_class()
    if unknown := sorted(saved.keys() - {f.name for f in fields(defaults)}):
        raise RunError(f"{run_dir / 'config.json'} was written by another version: it sets {', '.join(unknown)}")
    hints = get_type_hints(args_class)
    for name, value in saved.items():  # JSON knows neither tuples nor paths
        if isinstance(value, list) and not isinstance(getattr(defaults, name), list):
            saved[name] = tuple(value)
        elif isinstance(value, str) and Path in (hints[name], *get_args(hints[name])):
            saved[name] = Path(value)
    return replace(defaults, **saved)


def step_dirs(run_dir: Path) -> list[Path]:
    """Directories of the finished checkpoints of a run, oldest first, unverified."""
    return sorted(path for path in (run_dir / "checkpoints").glob("step_*") if re.fullmatch(r"step_\d+", path.name))


def newest_checkpoint(run_dir: Path) -> tuple[Checkpoint, list[str]]:
    """Return the newest checkpoint that is good, and one line about each newer one that is not.

    Raises:
        CheckpointError: there is none, or none is good.
        RunError: it has the format of another version.
    """
    complaints: list[str] = []
    for path in reversed(step_dirs(run_dir)):
        try:
            return open_checkpoint(path), complaints
        except CheckpointError as error:
            complaints.append(str(error))
    raise CheckpointError("; ".join([*complaints, f"{run_dir} has no checkpoint to go on from"]))


def _write_checkpoint(run_dir: Path, step: int, states: Mapping[str, Any], meta: Mapping[str, Any], keep: int) -> Path:
    """Write one checkpoint, all of it or nothing, then delete the oldest beyond `keep`.

    It is written beside its place, synchronised and renamed: after a kill at any moment the directories that are
    called `step_*` are complete.
    """
    root = run_dir / "checkpoints"
    final = root / f"step_{step:012d}"
    temporary = root / f".tmp-{final.name}"
    intact = "".join(f"; {path.name} is intact" for path in step_dirs(run_dir)[-1:])
    with _disk(f"write {final}", CheckpointError, intact):
        root.mkdir(exist_ok=True)
        _remove_leftovers(root)
        try:
            temporary.mkdir()
            sha256 = {f"{name}.pt": _save_state(temporary / f"{name}.pt", state) for name, state in states.items()}
            _write_json(temporary / "meta.json", {"schema": SCHEMA, "step": step, "sha256": sha256, **meta})
            _sync_dir(temporary)
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)  # the error on its way up is the one that matters
            raise
        _sync_dir(root)
    with _disk(f"delete old checkpoints in {root}", CheckpointError):
        for path in step_dirs(run_dir)[:-keep]:
            doomed = root / f".tmp-{path.name}"
            os.replace(path, doomed)  # renamed first: half-deleted must not look like a checkpoint
            shutil.rmtree(doomed)
    return final


def _remove_leftovers(root: Path) -> None:
    """Delete what a killed process has left half written or half deleted."""
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path)


# ---- what it ran on ------------------------------------------------------------------------------------------------


def manifest() -> dict[str, Any]:
    """Versions, git revision, hardware, torch's switches and the command line: all that a result depends on."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": sys.argv,
        "git": git_revision(Path(__file__).resolve().parent),
        "versions": versions,
        "hardware": {
            "platform": platform.platform(),
            "cpu": cpu_model(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
        },
        "torch": {
            "threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        },
    }


def git_revision(path: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a directory belongs to and whether files differ from it; None outside of git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(path), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, no commit yet
        return None


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


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
        lock: IO[str] | None,
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
        self.stop_signal: str | None = None
        """name of the first signal that asked to save and exit"""
        self._sigints = 0
        self.timer = Timer()
        self.step = checkpoint.step if checkpoint else 0
        self.keep = keep
        self.quiet = quiet
        self._presets = list(presets)
        self._lock = lock
        self._csv: IO[str] | None = None
        self._writer: SummaryWriter | None = None
        self._return: float | None = None
        self._ended = False
        self._signals: dict[signal.Signals, Any] = {}
        self._start = time.perf_counter() - (checkpoint.meta["wall_s"] if checkpoint else 0.0)
        self._last_log = (self.step, self.wall_s)
        self._progress = _Progress(args.total_timesteps, self.step, sys.stderr)
        self._next_look = time.perf_counter() + self._progress.period
        self._next_heartbeat = time.perf_counter() + HEARTBEAT_S

    # ---- start ----

    @classmethod
    def create(
        cls,
        args: A,
        *,
        root: Path | str = "runs",
        run_dir: Path | str | None = None,
        presets: Sequence[str] = (),
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
            keep: number of checkpoints that stay.
            quiet: no progress line.

        Raises:
            RunError: the directory cannot be made, holds a run, or is in use.
        """
        with _disk(f"make the run directory {run_dir or f'in {root}'}"):
            path = _new_dir(Path(root), args) if run_dir is None else Path(run_dir)
            path.mkdir(parents=True, exist_ok=True)
            lock = _lock(path)
        try:
            done = (path / "status.json").exists() and _read_json(path / "status.json").get("state") == "done"
            if done or step_dirs(path):
                raise RunError(f"{path} already holds a run; resume it, or choose another directory")
            with _disk(f"write in {path}"):
                for old in [path / "metrics.csv", *path.glob("events.out.tfevents.*")]:
                    old.unlink(missing_ok=True)
                _write_json(path / "config.json", asdict(args))
                _write_json(path / "manifest.json", {**manifest(), "presets": list(presets), "resumes": []})
                run = cls(path, args, lock, presets, None, keep, quiet)
                run._write_status("running")
        except BaseException:
            _unlock(lock)
            if run_dir is None:  # made here, and nothing is in it
                shutil.rmtree(path, ignore_errors=True)
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
        keep: int = 2,
        quiet: bool = False,
    ) -> Self:
        """Go on with a run from its newest good checkpoint: `run.args`, `run.checkpoint.load(name, device)`.

        Metrics that were logged after that checkpoint are dropped, they will be measured again. Newer checkpoints
        that are damaged are renamed to `*.damaged`, with one line on stderr.

        Args:
            run_dir: of the run.
            args_class: dataclass that config.json fills. A field that the file lacks takes its default.
            overrides: settings that were given anew.
            mutable: the settings that may be.
            keep: number of checkpoints that stay.
            quiet: no progress line.

        Raises:
            RunError: no run, no good checkpoint, already done, in use, or an override that is not allowed.
        """
        path = Path(run_dir)
        if not (path / "config.json").is_file():
            raise RunError(f"{path} holds no run: there is no config.json")
        with _disk(f"lock {path}"):
            lock = _lock(path)
        try:
            args, changed = _override(read_args(path, args_class), overrides or {}, mutable)
            status = _read_json(path / "status.json")
            if status.get("state") == "done" and status["step"] >= args.total_timesteps:
                raise RunError(f"{path} is done: {status['step']} of {args.total_timesteps} frames are trained")
            checkpoint, complaints = newest_checkpoint(path)
            with _disk(f"write in {path}"):
                for damaged in step_dirs(path):
                    if damaged > checkpoint.path:
                        _set_aside(damaged)
                _remove_leftovers(path / "checkpoints")
                short = _truncate(path / "metrics.csv", checkpoint.meta["metrics_bytes"])
                record = _read_json(path / "manifest.json")
                record["resumes"].append({**manifest(), "step": checkpoint.step, "changed": changed})
                _write_json(path / "manifest.json", record)
                _write_json(path / "config.json", asdict(args))
                run = cls(path, args, lock, record["presets"], checkpoint, keep, quiet)
                run._write_status("running")
            if any(path.glob("events.out.tfevents.*")):
                run.writer.flush()  # now, not at the first log: what came after the checkpoint is void
        except BaseException:
            _unlock(lock)
            raise
        for complaint in complaints:
            run.note(f"{complaint}; going on from {checkpoint.path.name}")
        if short:
            run.note(f"{path / 'metrics.csv'} lacks {short} bytes that were written before {checkpoint.path.name}")
        return run

    def __enter__(self) -> Self:
        self._signals = {number: signal.signal(number, self._on_signal) for number in STOP_SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        try:
            if isinstance(error, KeyboardInterrupt):
                self._write_status("interrupted", "SIGINT twice: stopped without saving")
            elif error is not None:
                self._write_status("failed", " ".join(f"{type(error).__name__}: {error}".split()))
            elif not self._ended:
                self._write_status("failed", "the program left the run without finish()")
        except RunError as refused:
            if error is None:
                raise
            self.note(str(refused))  # the error that came first is the one that goes up
        finally:
            self.close(error)

    # ---- during ----

    @property
    def wall_s(self) -> float:
        """Seconds of training so far, over all resumes."""
        return time.perf_counter() - self._start

    @property
    def writer(self) -> SummaryWriter:
        """TensorBoard's writer, for histograms, figures and text. Scalars go through `log`."""
        if self._writer is None:
            with _disk(f"write TensorBoard's events in {self.dir}"):
                self._writer = self._open_writer()
        return self._writer

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
            args, wall_s = self.args, round(self.wall_s, 3)
            with _disk(f"write {self.dir / 'metrics.csv'}"):
                if self._csv is None:
                    self._csv = _open_csv(self.dir / "metrics.csv")
                rows = ([args.exp_name, args.env_id, args.seed, tag, step, wall_s, x] for tag, x in values.items())
                csv.writer(self._csv, lineterminator="\n").writerows(rows)
                self._csv.flush()
            # One event for all of them: five times cheaper than one add_scalar each.
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=x) for tag, x in values.items()])
            with _disk(f"write TensorBoard's events in {self.dir}"):
                self._add_summary(summary, step)
        self.step = step
        self._last_log = (step, self.wall_s)
        self._return = values.get("charts/episodic_return", self._return)
        return values

    def sps(self, step: int) -> float:
        """Environment frames per second since the last `log`."""
        last_step, last_wall_s = self._last_log
        return (step - last_step) / max(self.wall_s - last_wall_s, 1e-9)

    def progress(self, step: int) -> None:
        """Keep the progress line and status.json fresh. Call it in every iteration; it mostly does nothing."""
        self.step = step
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
        if done and done[-1].name == f"step_{step:012d}":
            return done[-1]
        for name, state in states.items():
            _check_plain(state, name)
        with self.timer("save"):
            size = 0
            with _disk(f"write the metrics in {self.dir}", CheckpointError):
                if self._writer is not None:
                    self._writer.flush()
                if self._csv is not None:
                    os.fsync(self._csv.fileno())  # the offset below must be true after a power cut
                if (self.dir / "metrics.csv").exists():
                    size = (self.dir / "metrics.csv").stat().st_size
            meta = {"wall_s": self.wall_s, "metrics_bytes": size}
            return _write_checkpoint(self.dir, step, states, meta, self.keep)

    def finish(self, state: str = "done", why: str = "") -> int:
        """Say how the run has ended; returns the exit status for it.

        Args:
            state: done, interrupted (it can be resumed) or failed.
            why: for a reader of status.json, a signal's name for instance.
        """
        if state not in EXIT_STATUS:
            raise ValueError(f"state {state!r}: legal are {', '.join(EXIT_STATUS)}")
        if self._writer is not None and state == "done":
            *_, end = hparams({}, {})
            with _disk(f"write TensorBoard's events in {self.dir}"):
                self._add_summary(end)
        self._write_status(state, why)
        self._ended = True
        if not self.quiet:
            self.note(f"{state} after {self.step:,} frames in {clock(self.wall_s)}: {self.dir}")
        return EXIT_STATUS[state]

    def note(self, line: str) -> None:
        """Print a line on stderr without tearing the progress line."""
        self._progress.clear()
        print(line, file=sys.stderr, flush=True)

    def close(self, error: BaseException | None = None) -> None:
        """Flush and release everything. Safe to call twice."""
        self._progress.clear()
        try:
            with _disk(f"write the metrics in {self.dir}"), ExitStack() as stack:
                for file in (self._csv, self._writer):
                    if file is not None:
                        stack.callback(file.close)
        except RunError as refused:
            if error is None:
                raise
            self.note(str(refused))
        finally:
            _unlock(self._lock)
            self._csv = self._writer = self._lock = None

    # ---- inside ----

    def _on_signal(self, number: int, _: Any) -> None:
        """Ask the loop to save and stop. Only a second SIGINT is impatient; a batch system repeats its signals."""
        self._sigints += number == signal.SIGINT
        if self._sigints > 1:
            raise KeyboardInterrupt
        self.stop_signal = self.stop_signal or signal.Signals(number).name
        again = "; once more to stop at once" if number == signal.SIGINT else ""
        line = f"\n{signal.Signals(number).name}: saving, then stopping{again}\n"
        os.write(2, line.encode())  # a signal may come in the middle of a print

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
        with _disk(f"write {self.dir / 'status.json'}"):
            _write_json(self.dir / "status.json", status)

    def _open_writer(self) -> SummaryWriter:
        """Open an event file. The first gets the settings, a later one hides what came after the checkpoint."""
        stamps = [int(path.name.split(".")[3]) for path in self.dir.glob("events.out.tfevents.*")]
        if not stamps or self.checkpoint is None:
            writer = SummaryWriter(str(self.dir), max_queue=1000, flush_secs=10)
            # In the run's own directory: SummaryWriter.add_hparams would make a second run beside it.
            for summary in hparams(_hparams(self.args), {"eval/episodic_return": None})[:2]:
                writer._get_file_writer().add_summary(summary)
            writer.add_text("config", _config_table(self.args, self._presets))
            return writer
        if max(stamps) == int(time.time()):  # readers go by the second in the name
            time.sleep(1.0 - time.time() % 1.0)
        return SummaryWriter(str(self.dir), max_queue=1000, flush_secs=10, purge_step=self.checkpoint.step + 1)

    def _add_summary(self, summary: Summary, step: int = 0) -> None:
        """Write one event."""
        self.writer._get_file_writer().add_summary(summary, step)


def to_floats(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers and tensors of one element as Python floats; one transfer per device.

    Raises:
        ValueError: a tensor with more than one element.
    """
    tensors: dict[torch.device, dict[str, Tensor]] = {}
    values: dict[str, float] = {}
    for tag, value in metrics.items():
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"metric {tag} has shape {list(value.shape)}; a metric is one number")
            tensors.setdefault(value.device, {})[tag] = value.detach().reshape(())
            values[tag] = math.nan  # keeps its place
        else:
            values[tag] = float(value)
    for group in tensors.values():
        values.update(zip(group, map(float, torch.stack(list(group.values())).tolist()), strict=True))
    return values


def _new_dir(root: Path, args: RunArgs) -> Path:
    """Make a directory that nobody else has."""
    root.mkdir(parents=True, exist_ok=True)
    parts = (str(args.env_id), args.exp_name, str(args.seed), time.strftime("%Y%m%d-%H%M%S"))
    name = "__".join(re.sub(r"[^\w.-]+", "-", part, flags=re.ASCII) for part in parts)
    for count in range(1, 10_000):
        path = root / (name if count == 1 else f"{name}-{count}")
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run of the same second
            continue
    raise RunError(f"{root} has 9999 directories called {name}")


def _lock(run_dir: Path) -> IO[str]:
    """Hold the directory until the file that is returned is closed, or this process dies.

    Raises:
        RunError: another process holds it.
    """
    file = open(run_dir / ".lock", "a+")  # noqa: SIM115  lives as long as the run
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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


def _unlock(lock: IO[str] | None) -> None:
    """Let go of the directory."""
    if lock is not None:
        lock.close()


def _set_aside(damaged: Path) -> None:
    """Rename a damaged checkpoint, so that its step can be saved again and nobody reads it."""
    target = damaged.with_name(f"{damaged.name}.damaged")
    if target.exists():
        shutil.rmtree(target)
    os.replace(damaged, target)


def _truncate(path: Path, size: int) -> int:
    """Cut a file back to a size; returns how many bytes it is too short."""
    have = path.stat().st_size if path.exists() else 0
    if have > size:
        os.truncate(path, size)
    return max(size - have, 0)


def _open_csv(path: Path) -> IO[str]:
    """Open metrics.csv to append; a new one gets its header."""
    file = open(path, "a", newline="")  # noqa: SIM115  lives as long as the run
    if file.tell() == 0:
        file.write("exp_name,env_id,seed,metric,step,wall_s,value\n")
    return file


def _override(args: A, overrides: Mapping[str, Any], mutable: Collection[str]) -> tuple[A, dict[str, Any]]:
    """Settings of a run with overrides applied, and those that changed.

    Raises:
        RunError: one changes that may not.
    """
    changed = {name: value for name, value in overrides.items() if value != getattr(args, name)}
    if changed.keys() - set(mutable):
        fixed, legal = (
            ", ".join("--" + name.replace("_", "-") for name in names)
            for names in (sorted(changed.keys() - set(mutable)), sorted(mutable))
        )
        raise RunError(f"{fixed} cannot change when a run is resumed; what can: {legal}")
    return replace(args, **changed), changed


def _hparams(args: RunArgs) -> dict[str, Any]:
    """Settings as the HParams tab takes them: it shows a bool as 0 or 1, and refuses lists."""
    switch = {True: "on", False: "off", None: "none"}
    plain = asdict(args).items()
    return {
        name: switch[value]
        if value is None or isinstance(value, bool)
        else value
        if isinstance(value, int | float)
        else str(value)
        for name, value in plain
    }


def _config_table(args: RunArgs, presets: Sequence[str]) -> str:
    """Settings as a markdown table; those that differ from the defaults come first."""
    defaults = asdict(type(args)())
    values = asdict(args)
    rows = sorted(values, key=lambda name: values[name] == defaults[name])
    lines = [f"presets: {', '.join(presets) or 'none'}", "", "| setting | value | default |", "| --- | --- | --- |"]
    for name in rows:
        default = "" if values[name] == defaults[name] else defaults[name]
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in (name, values[name], default)) + " |")
    return "\n".join(lines)
