"""How far a sweep is, from any shell, while it runs or after.

    python benchmarks/status.py runs/sweep            # one look; exit status 0 if all of it is done, 1 if not
    python benchmarks/status.py runs/sweep --every 5  # a look every five seconds until nothing runs any more

    runs/sweep: 12 of 40 done, 3 running, 1 failed, 24 waiting; 54,021 SPS; ETA 2:10:31
    running  WalkerWalk-v1/fasttd3__sem-on/seed3    41.3%  49,552/120,000 frames  18,034 SPS  return 612.3  on GPU 0
    failed   WalkerWalk-v1/fasttd3__sem-off/seed1   exit status 1: RuntimeError: boom

All of it is read from the run directories, so it is true whoever started the runs and whatever has become of him:

    result.json   written by the training process itself when it has finished: nothing else makes a run done
    status.json   the training process's last word: state, frames, SPS
    launch.json   the sweep's: settings, code, where the run was put, and how it ended
    .child        locked for as long as a process that a sweep has started lives, from its very first moment on
    .lock         locked for as long as any training process writes there
"""

import errno
import fcntl
import json
import math
import os
import re
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import IO, Any, NamedTuple

import tyro

from agents import config

STATES = ("done", "running", "stopped", "failed", "waiting")
STALE_S = 900.0
"""on file systems without locks: a run of another machine that is silent for so long is dead"""


@dataclass
class Args:
    """Show how far a sweep is."""

    directory: tyro.conf.Positional[str]
    """of the sweep"""
    every: float = 0.0
    """seconds between looks, until nothing runs any more; 0 for one look"""


# ---- one run ---------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file; nothing if it is missing, damaged or no object."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file at once: a reader sees the old content or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def held(lock: Path) -> bool | None:
    """Whether a process holds a lock; None where the file system does not say."""
    try:
        file = open(lock)  # noqa: SIM115  closed below
    except FileNotFoundError:
        return False
    except OSError:  # of another user, say
        return None
    try:
        with file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        return True if error.errno == errno.EACCES else None
    return False


def alive(run_dir: Path) -> bool:
    """Whether a process works on this run, whoever started it."""
    locks = held(run_dir / ".child"), held(run_dir / ".lock")
    if None not in locks or True in locks:
        return True in locks
    launch, status = read_json(run_dir / "launch.json"), read_json(run_dir / "status.json")
    if "ended" in launch or (not launch and status.get("state") != "running"):
        return False
    if launch.get("host") == socket.gethostname():
        return Path(f"/proc/{launch.get('pid')}").exists()
    return time.time() - max(status.get("time", 0.0), launch.get("started", 0.0)) < STALE_S


def done(run_dir: Path) -> bool:
    """Whether the training process has left a result for all the frames that it was last asked for."""
    step = read_json(run_dir / "result.json").get("step")
    total = read_json(run_dir / "status.json").get("total_timesteps")
    return isinstance(step, int) and (not isinstance(total, int) or step >= total)


class Seen(NamedTuple):
    """What the directory of a run says."""

    key: str
    state: str
    """one of STATES; stopped is half done, and the sweep goes on with it"""
    step: int = 0
    total: int = 0
    sps: float = 0.0
    score: float | None = None
    """mean return of the last episodes"""
    wall_s: float = 0.0
    where: str = ""
    why: str = ""

    @property
    def share(self) -> float:
        """How much of the frames is done."""
        return min(self.step / self.total, 1.0) if self.total else 0.0


def look(key: str, run_dir: Path) -> Seen:
    """Return what the directory of a run says."""
    if not run_dir.is_dir():  # most runs of a large sweep, and a network file system takes its time
        return Seen(key, "waiting")
    launch, status = read_json(run_dir / "launch.json"), read_json(run_dir / "status.json")
    running = alive(run_dir)
    unseen = "ended" not in launch and _number(status.get("time")) >= _number(launch.get("started"))
    ended_badly = launch.get("verdict") == "failed" or (unseen and status.get("state") == "failed")
    if running:
        state = "running"
    elif done(run_dir):
        state = "done"
    elif ended_badly:
        state = "failed"
    else:
        state = "stopped" if launch or status else "waiting"
    fresh = status.get("state") == "running"  # else the status is that of the run's life before
    why = launch.get("why") or status.get("why") or ""
    return Seen(
        key,
        state,
        step=_number(status.get("step")),
        total=_number(status.get("total_timesteps")),
        sps=float(_number(status.get("sps"))) if running and fresh else 0.0,
        score=status.get("episodic_return") if fresh else None,
        wall_s=float(_number(status.get("wall_s"))),
        where=launch.get("where", "") if running else "",
        why=str(why) if state in ("failed", "stopped") else "",
    )


def _number(value: Any) -> Any:
    return value if isinstance(value, (int, float)) else 0


def called(program: str) -> str:
    """How a program of this checkout is called from where we are: by its place in the folder, or from the root on."""
    path = Path(program).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def last_life(log: Path) -> str:
    """What is at the end of a log, since the process was last started."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - (1 << 16)))
            text = file.read().decode(errors="replace").replace("\r", "\n")
    except OSError:
        return ""
    return re.split(r"^\$ .*\n", text, flags=re.MULTILINE)[-1]


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that are not blank, without what torchrun says when a process of its has failed."""
    text = last_life(log)
    own = re.split(r"^[WE]\d{4} \S+ \d+ torch/distributed/elastic/", text, maxsplit=1, flags=re.MULTILINE)[0]
    return [line.rstrip() for line in (own if own.strip() else text).splitlines() if line.strip()][-count:]


# ---- all of them -----------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """`3:25:45` or `12:07`; `-:--` for what is not known."""
    if not math.isfinite(seconds):
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def time_left(runs: Sequence[Seen]) -> float:
    """Seconds until all is done if as many run at a time as now; NaN where nothing is known.

    What has not begun takes as long as what is done of the same task and variant, else as all that is done, else as
    what runs will take at its present speed.
    """

    def group(run: Seen) -> str:
        return run.key.rpartition("/")[0]

    finished = [run for run in runs if run.state == "done" and run.wall_s > 0]
    running = [run for run in runs if run.state == "running"]
    speeds = [run for run in running if run.sps > 0 and run.total]
    left: list[float] = []
    for run in runs:
        if run.state not in ("running", "stopped", "waiting"):
            continue
        if run in speeds:
            left.append((1 - run.share) * run.total / run.sps)
            continue
        durations = [x.wall_s for x in finished if group(x) == group(run)] or [x.wall_s for x in finished]
        durations = durations or [x.total / x.sps for x in speeds]
        if not durations:
            return math.nan
        left.append((1 - run.share) * fmean(durations))
    return max([sum(left) / max(len(running), 1), *left], default=0.0)


def summary(runs: Sequence[Seen]) -> str:
    """One line about all runs."""
    count = Counter(run.state for run in runs)
    parts = [f"{count['done']} of {len(runs)} done", *(f"{count[s]} {s}" for s in STATES[1:] if count[s])]
    line = ", ".join(parts)
    if count["running"]:
        line += f"; {sum(run.sps for run in runs):,.0f} SPS; ETA {clock(time_left(runs))}"
    return line


def table(runs: Iterable[Seen]) -> list[str]:
    """One line for each run that runs, was stopped or has failed."""
    shown = [run for state in ("running", "stopped", "failed") for run in runs if run.state == state]
    width = max((len(run.key) for run in shown), default=0)
    lines = []
    for run in shown:
        line = f"{run.state:<8} {run.key:<{width}}"
        if run.state != "failed" and run.total:
            line += f"  {100 * run.share:5.1f}%  {run.step:,}/{run.total:,} frames"
        if run.sps:
            line += f"  {run.sps:,.0f} SPS"
        if run.score is not None:
            line += f"  return {run.score:.1f}"
        line += f"  on {run.where}" if run.where else ""
        line += f"  {run.why}" if run.why else ""
        lines.append(line.rstrip())
    return lines


class Screen:
    """The table of a sweep, redrawn in place on a terminal; in a log, events and now and then the summary."""

    def __init__(self, root: Path, keys: Iterable[str], stream: IO[str] | None = None, period: float = 60.0) -> None:
        self.root = root
        self.stream = stream or sys.stderr
        self.tty = self.stream.isatty()
        self.period = 2.0 if self.tty else period
        """seconds between two summaries"""
        self.runs = {key: Seen(key, "waiting") for key in keys}
        self._height = 0
        self._next = time.monotonic() + self.period

    def look(self) -> list[Seen]:
        """Read the directories anew, but for those of runs that are done."""
        for key, run in self.runs.items():
            if run.state != "done":
                self.runs[key] = look(key, self.root / "runs" / key)
        return list(self.runs.values())

    def say(self, line: str) -> None:
        """Print a line that stays."""
        with suppress(OSError):  # a terminal that was closed, a disk that is full: the runs matter more
            self._clear()
            print(line, file=self.stream, flush=True)
            if self.tty:
                self._draw(self.look())

    def refresh(self) -> None:
        """Draw the table again, if it is time."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self.period
            runs = self.look()
            with suppress(OSError):
                if self.tty:
                    self._clear()
                    self._draw(runs)
                else:
                    print(summary(runs), file=self.stream, flush=True)

    def close(self) -> None:
        """Take the table away."""
        with suppress(OSError):
            self._clear()

    def _draw(self, runs: Sequence[Seen]) -> None:
        size = shutil.get_terminal_size()
        lines = [f"{self.root}: {summary(runs)}", *table(runs)]
        room = max(size.lines - 2, 1)
        if len(lines) > room:
            lines = [*lines[: room - 1], f"and {len(lines) - room + 1} more: python {called(__file__)} {self.root}"]
        self.stream.write("".join(f"{line[: size.columns - 1]}\n" for line in lines))
        self.stream.flush()
        self._height = len(lines)

    def _clear(self) -> None:
        if self._height:
            self.stream.write(f"\x1b[{self._height}F\x1b[J")
            self._height = 0


def keys_of(root: Path) -> list[str]:
    """The runs of a sweep: those that it lists, and those that are there."""
    listed = listed_runs(root)
    found = {path.parent.relative_to(root / "runs").as_posix(): None for path in sorted(root.glob("runs/*/*/seed*/*"))}
    return list(dict.fromkeys([*listed, *found]))


def listed_runs(root: Path) -> list[str]:
    """The runs that a sweep is to make, as its sweep.json lists them; none where that is damaged."""
    runs = read_json(root / "sweep.json").get("runs")
    return [key for key in runs if isinstance(key, str)] if isinstance(runs, list) else []


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit status."""
    args = config.parse(Args, argv=argv).args
    config.require(0 <= args.every < math.inf, f"--every {args.every}: must be seconds, 0 or above")
    root = Path(args.directory)
    keys = keys_of(root)
    config.require(bool(keys), f"{root} holds no sweep: there is no sweep.json, and nothing in {root / 'runs'}")
    while True:
        runs = [look(key, root / "runs" / key) for key in keys]
        print("\n".join([f"{root}: {summary(runs)}", *table(runs)]), flush=True)
        if not args.every or not any(run.state == "running" for run in runs):
            return 0 if all(run.state == "done" for run in runs) else 1
        time.sleep(args.every)


if __name__ == "__main__":
    config.program(main)
