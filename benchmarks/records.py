"""What run directories and tidy tables hold: the numbers of each run, and how it ended."""

import csv
import io
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from benchmarks.status import alive, last_lines, read_json
from benchmarks.status import done as finished

Array = NDArray[np.float64]

COLUMNS = ("exp_name", "env_name", "seed", "metric", "env_step", "value")
"""of the tidy table, as FlashSAC publishes its results"""
RETURN, SUCCESS = "eval/episodic_return", "eval/success_rate"
FAILED = ("failed", "killed", "not started")
NO_RUNS = ("tb", "plots", "replaced")
"""folders in that of a sweep which hold no runs of it"""


class Series(NamedTuple):
    """The values of one metric of one run."""

    steps: Array
    wall_s: Array
    values: Array


NOTHING = Series(np.empty(0), np.empty(0), np.empty(0))


@dataclass
class Record:
    """One run: what its directory says, and what it scores."""

    path: Path
    name: str
    """where it lies, for readers"""
    task: str
    variant: str
    agent: str
    seed: int
    state: str
    """done; running, interrupted, waiting; failed, killed (ended without a word), not started"""
    why: str = ""
    planned: int = 0
    """frames"""
    config: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    """hash of the source that a sweep has started it from"""
    argv: list[str] = field(default_factory=list)
    """its command line, from the program on; empty if nobody has written it down"""
    ranks: int = 1
    """processes that train it together"""
    device: str = ""
    """what it is trained on: "cpu", "cuda" or "cuda:i"; empty if nobody has written it down"""
    starts: int = 1
    """how often a process was started for it"""
    resumed: int = 0
    """how many of these went on from a checkpoint"""
    series: dict[str, Series] = field(default_factory=dict)
    broken: int = 0
    """lines of metrics.csv that are not whole, and values that are not finite: not used"""
    # what `Study` makes of it
    data: Series = NOTHING
    score: float = math.nan
    """NaN for a run that has none: it is not finished, or has no evaluation"""
    last: float = math.nan
    best: float = math.nan
    cut: bool = False
    """it was planned for more frames than are compared"""

    def axis(self, wall: bool) -> Array:
        """Where the values are: seconds or frames."""
        return self.data.wall_s if wall else self.data.steps


def find_runs(root: Path) -> Iterator[Path]:
    """Yield the run directories under a folder, in order; what lies within a run is not looked at."""
    for folder, inside, files in os.walk(root):
        path = Path(folder)
        of_sweep = re.fullmatch(r"seed\d+", path.name) and "__" in path.parent.name
        if of_sweep or "config.json" in files or "metrics.csv" in files:
            inside.clear()
            yield path
        inside[:] = sorted(name for name in inside if name not in NO_RUNS and not name.startswith("."))


def read_run(path: Path, name: str, metrics: Sequence[str]) -> Record | None:
    """Return a run; None if nothing there says what task it is."""
    settings, manifest = read_json(path / "config.json"), read_json(path / "manifest.json")
    log = path / "metrics.csv"
    data = log.read_bytes() if log.is_file() else b""
    first = next(csv.reader(io.StringIO(data[data.find(b"\n") + 1 :][:1000].decode(errors="replace"))), [])
    columns = len(first) >= 3 and first[2].lstrip("-").isdigit()
    of_sweep = re.fullmatch(r"seed(\d+)", path.name) if "__" in path.parent.name else None
    task = settings.get("env_id") or (first[1] if columns else path.parents[1].name if of_sweep else "")
    seed = settings.get("seed", int(first[2]) if columns else int(of_sweep[1]) if of_sweep else None)
    if not task or seed is None:
        return None
    variant = path.parent.name if of_sweep else settings.get("exp_name") or (first[0] if columns else "")
    launch = read_json(path / "launch.json")
    words = [str(word) for word in manifest.get("argv") or launch.get("argv") or []]
    program = next((index for index, word in enumerate(words) if word.endswith(".py")), 0)
    # In a sweep the program names it, also where its settings are another agent's.
    own = manifest.get("agent") or Path("".join(words[program : program + 1])).stem
    agent = variant.partition("__")[0] if of_sweep else str(own)
    state, why = read_state(path, bool(settings))
    record = Record(path, name, task, variant, agent, int(seed), state, why)
    record.planned = int(settings.get("total_timesteps") or 0)
    record.config, record.manifest = settings, manifest
    record.source = str(launch.get("source") or "")
    record.argv = words[program:]
    # What a command line does not say: a run of a sweep finds its device and its processes in the environment.
    asked = launch.get("settings") or {}
    record.ranks = int(manifest.get("ranks") or asked.get("ranks") or 1)
    record.device = str(settings.get("device") or asked.get("--device") or "")
    record.resumed = len(manifest.get("resumes") or [])
    record.starts = max(int(launch.get("starts") or 1), 1 + record.resumed)
    for metric in metrics:
        record.series[metric], broken = parse_metric(data, metric)
        record.broken += broken
    return record


def read_state(path: Path, started: bool) -> tuple[str, str]:
    """Return how a run stands, and why.

    A run whose process has ended without a word was killed. In a sweep it only waits to be started again, until the
    sweep gives it up.
    """
    status, launch = read_json(path / "status.json"), read_json(path / "launch.json")
    said, why = status.get("state"), str(launch.get("why") or status.get("why") or "")
    if said == "done" or finished(path):
        return "done", ""
    if alive(path):
        return "running", ""
    last = "".join(last_lines(path / "log.txt", 1))
    if said == "failed" or launch.get("verdict") == "failed":
        return "failed", why or last
    if said == "interrupted" or launch:
        return "interrupted", why
    if not started and said is None:
        return ("not started", last) if last else ("waiting", "")
    if said is None:
        return "killed", "status.json cannot be read" if (path / "status.json").exists() else "no status.json"
    return "killed", "its process ended without a word"


def parse_metric(data: bytes, metric: str) -> tuple[Series, int]:
    """Return the values of a metric in the bytes of a metrics.csv, by step, and how many had to be left out.

    Left out is a line without its end, which a killed run may leave (half a number is a number too), a line that is no
    numbers, and a value that is not finite. Of two values for one step the later one counts.
    """
    rows, broken = [], 0
    for piece in data.split(f",{metric},".encode())[1:]:
        line, end, _ = piece.partition(b"\n")
        if end and line.count(b",") == 2:
            rows.append(line)
        else:
            broken += 1
    try:
        table = np.array(b",".join(rows).split(b",") if rows else [], dtype=float).reshape(-1, 3)
    except ValueError:
        good = [row for row in rows if re.fullmatch(rb"[-+.\deEinfaN]+,[-+.\deE]+,[-+.\deEinfaN]+\s*", row)]
        broken += len(rows) - len(good)
        table = np.array([list(map(float, row.split(b","))) for row in good], dtype=float).reshape(-1, 3)
    finite = np.isfinite(table).all(1)
    broken += int((~finite).sum())
    table = table[finite][::-1]
    _, keep = np.unique(table[:, 0], return_index=True)
    return Series(*table[keep].T), broken


def read_tidy(path: Path) -> list[Record]:
    """Return the runs in a CSV file with `COLUMNS`, as done; other columns are skipped. FlashSAC's metrics become ours.

    Raises:
        ValueError: the columns are not there, or a row is cut short.
    """
    points: dict[tuple[str, str, str, str], dict[float, float]] = defaultdict(dict)
    with open(path, newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if not set(COLUMNS) <= set(header):
            raise ValueError(f"{path} lacks the columns {', '.join(COLUMNS)}")
        at = [header.index(name) for name in COLUMNS]
        for row in reader:
            try:
                name, task, seed, metric = (row[index] for index in at[:4])
                int(float(seed))
                step, value = (float(row[index]) for index in at[4:])
            except (IndexError, ValueError, OverflowError):
                raise ValueError(f"{path}, line {reader.line_num}: not a row of {', '.join(COLUMNS)}: {row}") from None
            if math.isfinite(value):
                metric = {"avg_return": RETURN, "avg_success": SUCCESS}.get(metric, metric)
                points[name, task, seed, metric][step] = value
    runs: dict[tuple[str, str, str], Record] = {}
    for (name, task, seed, metric), values in points.items():
        where = f"{path.name}, {name} in {task}, seed {seed}"
        run = runs.setdefault((name, task, seed), Record(path, where, task, name, "", int(float(seed)), "done"))
        steps = np.array(sorted(values))
        run.series[metric] = Series(steps, np.full(len(steps), math.nan), np.array([values[step] for step in steps]))
        run.planned = max(run.planned, int(steps[-1]))
    return list(runs.values())


# ---- TensorBoard -----------------------------------------------------------------------------------------------------

HOST = "http://localhost:6006/"
SEEDS_OF_SWEEP, SEEDS_OF_RUNS = r"([^/]+)/seed\d+$", r"__([^/]+)__\d+__\d{8}-\d{6}"
"""names of runs, with the variant in a group: in a sweep, and in a folder of plain runs"""


def seeds_link(group: str, tags: str = "eval/episodic_return", only: str = "") -> str:
    """Return a link to TensorBoard's time series of all runs, or of `only` some, with a colour for each `group`."""
    query = f"?runColorGroup={quote('regex:' + group, safe='')}&tagFilter={quote(f'^({tags})$', safe='')}&smoothing=0"
    return f"{HOST}{query}{'&runFilter=' + quote(only, safe='') if only else ''}#timeseries"
