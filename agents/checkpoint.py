"""What a run goes on from: its settings and the states it saved, written all or nothing and verified when read.

{run_dir}/config.json
{run_dir}/checkpoints/step_000000300000/   {name}.pt, one per state, and meta.json with the SHA-256 of each;
                                           where several processes train, {name}.rank1.pt are the second one's
"""

import errno
import hashlib
import io
import json
import os
import random
import re
import shutil
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor

from agents.config import checked
from agents.ranks import ALONE, Ranks

SCHEMA = 3  # of what agents save; 1 and 2 had optimiser states as torch.optim writes them


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


# ---- the disk ------------------------------------------------------------------------------------------------------


@contextmanager
def disk(what: str, error: type[RunError] = RunError, then: str = "") -> Iterator[None]:
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


def write_json(path: Path, content: Any) -> None:
    """Replace a file at once: a reader sees the old content or the new, also after a power cut."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file.

    Raises:
        RunError: there is none, or not an object.
    """
    with disk(f"read {path}"):
        text = path.read_bytes()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: not an object")
    return content


# ---- settings ------------------------------------------------------------------------------------------------------


def read_args(run_dir: Path, args_class: type[A]) -> A:
    """The settings in config.json; a field that it lacks takes its default.

    Raises:
        RunError: there is none, or it sets what `args_class` does not know.
    """
    saved = read_json(run_dir / "config.json")
    defaults = args_class()
    if unknown := sorted(saved.keys() - {f.name for f in fields(defaults)}):
        raise RunError(f"{run_dir / 'config.json'} was written by another version: it sets {', '.join(unknown)}")
    hints = get_type_hints(args_class)
    for name, value in saved.items():  # JSON knows neither tuples nor paths
        if isinstance(value, list) and not isinstance(getattr(defaults, name), list):
            saved[name] = tuple(value)
        elif isinstance(value, str) and Path in (hints[name], *get_args(hints[name])):
            saved[name] = Path(value)
    try:
        checked(args_class, {"config.json": saved})
    except TypeError as error:
        raise RunError(
            f"{run_dir / 'config.json'} is damaged: {error}".replace("preset 'config.json' ", "it ")
        ) from error
    return replace(defaults, **saved)


def override_args(args: A, overrides: Mapping[str, Any], mutable: Collection[str]) -> tuple[A, dict[str, Any]]:
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


def check_settings(run_dir: Path, args: RunArgs, checkpoint: "Checkpoint", mutable: Collection[str]) -> None:
    """Do nothing if config.json says what the checkpoint was trained with, but for what may change.

    Raises:
        RunError: it does not: the file was damaged or edited.
    """
    noted = checkpoint.meta.get("settings", {})  # older checkpoints have none
    now = json.loads(json.dumps(asdict(args), default=str))
    for name in now.keys() & noted.keys() - set(mutable):
        if now[name] != noted[name]:
            raise RunError(
                f"{run_dir / 'config.json'} is damaged or was edited: it sets {name} = {now[name]!r}, and "
                f"{checkpoint.path.name} was trained with {noted[name]!r}"
            )


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


# ---- checkpoints ---------------------------------------------------------------------------------------------------


class Checkpoint(NamedTuple):
    """One good checkpoint: every file has the SHA-256 that was noted when it was written."""

    path: Path
    step: int
    meta: dict[str, Any]
    """step, wall_s, sha256 per file, metrics_bytes, schema, ranks: how many processes have written it"""
    rank: int = 0
    """of the process whose states are loaded"""

    def load(self, name: str, device: torch.device | str = "cpu") -> Any:
        """The state that was saved under this name, on a device.

        Raises:
            RunError: there is none of that name, or it holds more than tensors and plain containers, of which
                nothing was run.
        """
        if not self.has(name):
            raise RunError(f"{self.path} has no {state_file(name, self.rank)}, only {', '.join(self.meta['sha256'])}")
        path = self.path / state_file(name, self.rank)
        try:
            with disk(f"read {self.path}"):
                return torch.load(path, map_location=device, weights_only=True)
        except (UnpicklingError, EOFError) as error:
            raise RunError(f"{path} cannot be read: {error}".partition("\n")[0]) from error

    def has(self, name: str) -> bool:
        """Whether a state was saved under this name."""
        return state_file(name, self.rank) in self.meta["sha256"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Return a checkpoint directory if every file in it is what was written.

    Raises:
        CheckpointError: it is damaged.
        RunError: it has the format of another version.
    """
    try:
        meta = read_json(path / "meta.json")
        schema, step, sha256 = int(meta["schema"]), int(meta["step"]), dict(meta["sha256"])
    except RunError as error:
        raise CheckpointError(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: meta.json is not what was written ({error!r})") from error
    if schema != SCHEMA:
        raise RunError(f"{path} has format {schema}, this version reads {SCHEMA}: use the version that wrote it")
    if meta.pop("seal", None) not in (None, seal(meta)):  # older ones have none
        raise CheckpointError(f"{path} is damaged: meta.json is not what was written")
    if not all(isinstance(meta.get(name), int | float) for name in ("wall_s", "metrics_bytes")):
        raise CheckpointError(f"{path} is damaged: meta.json lacks wall_s or metrics_bytes")
    for name, expected in sha256.items():
        with disk(f"read {path / name}", CheckpointError), open(path / name, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                raise CheckpointError(f"{path} is damaged: {name} is not what was written")
    return Checkpoint(path, step, meta)


def seal(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what JSON makes of an object, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


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


def write_checkpoint(
    run_dir: Path, step: int, states: Mapping[str, Any], meta: Mapping[str, Any], keep: int, ranks: Ranks = ALONE
) -> Path:
    """Write one checkpoint, all of it or nothing, then delete the oldest beyond `keep`.

    It is written beside its place, synchronised and renamed: after a kill at any moment the directories that are
    called `step_*` are complete. Of several processes, which call this together, each writes its own states.

    Raises:
        CheckpointError: the disk refuses. The checkpoints before it are intact.
        TypeError: a state holds what `torch.load(weights_only=True)` would refuse.
    """
    for name, state in states.items():
        _check_plain(state, name)
    root = run_dir / "checkpoints"
    final = root / f"step_{step:012d}"
    temporary = root / f".tmp-{final.name}"
    intact = "".join(f"; {path.name} is intact" for path in step_dirs(run_dir)[-1:])

    def begin() -> None:
        with disk(f"write {final}", CheckpointError, intact):
            root.mkdir(exist_ok=True)
            _remove_leftovers(root)
            temporary.mkdir()

    def write() -> dict[str, str] | CheckpointError:
        try:
            with disk(f"write {final}", CheckpointError, intact):
                files = {state_file(name, ranks.rank): state for name, state in states.items()}
                return {name: _save_state(temporary / name, state) for name, state in files.items()}
        except CheckpointError as error:  # the others want to know
            return error

    def end(sha256: Mapping[str, str]) -> None:
        with disk(f"write {final}", CheckpointError, intact):
            content = {"schema": SCHEMA, "step": step, "sha256": sha256, **meta}
            write_json(temporary / "meta.json", {**content, "seal": seal(content)})
            _sync_dir(temporary)
            os.replace(temporary, final)
            _sync_dir(root)
        with disk(f"delete old checkpoints in {root}", CheckpointError):
            for path in step_dirs(run_dir)[:-keep]:
                doomed = root / f".tmp-{path.name}"
                os.replace(path, doomed)  # renamed first: half-deleted must not look like a checkpoint
                shutil.rmtree(doomed)

    try:
        ranks.by_first(begin)
        sha256: dict[str, str] = {}
        for written in ranks.collect(write()):
            if isinstance(written, CheckpointError):
                raise written
            sha256 |= written
        ranks.by_first(lambda: end(sha256))
    except BaseException:
        if ranks.first:
            shutil.rmtree(temporary, ignore_errors=True)  # the error on its way up is the one that matters
        raise
    return final


def state_file(name: str, rank: int) -> str:
    """Return the name of the file that holds a state of one process."""
    return f"{name}.rank{rank}.pt" if rank else f"{name}.pt"


def clean_up(checkpoint: Checkpoint) -> None:
    """Leave no checkpoint newer than this one: those are damaged and become `*.damaged`; delete what a kill has left.

    Their steps can be saved again then, and nobody reads them.
    """
    root = checkpoint.path.parent
    for damaged in step_dirs(root.parent):
        if damaged > checkpoint.path:
            target = damaged.with_name(f"{damaged.name}.damaged")
            if target.exists():
                shutil.rmtree(target)
            os.replace(damaged, target)
    _remove_leftovers(root)


def _remove_leftovers(root: Path) -> None:
    """Delete what a killed process has left half written or half deleted."""
    for path in root.glob(".tmp-*"):
        shutil.rmtree(path)


class _HashedFile(io.BufferedWriter):
    """A file that knows the SHA-256 of what went in."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write all of it."""
        self.sha256.update(data)
        return super().write(data)


def _save_state(path: Path, state: Any) -> str:
    """Write one state so that it survives a power cut; returns its SHA-256."""
    with _HashedFile(path) as file:
        try:
            torch.save(state, file)  # copies from the device synchronously
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # torch hides what the system refused
                raise error.__context__ from error
            raise
        file.flush()
        os.fsync(file.fileno())
        return file.sha256.hexdigest()


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
