"""A report of runs: what was found in words, tables and plots, from the run directories alone.

    python benchmarks/report.py SWEEP                           # SWEEP/runs/{task}/{agent}__{variant}/seed{k}/
    python benchmarks/report.py runs --out walker               # plain run directories, at any depth
    python benchmarks/report.py A B --out both --baseline off   # several folders as one comparison
    python benchmarks/report.py runs --overlay FlashSAC.csv     # published curves behind ours

A folder may also be a tidy CSV file, a results.csv of this program or one of FlashSAC's. In the folder of the report:

    REPORT.md, report.html   the verdict, failures, tables, plots, how the numbers are made, commands to run it again;
                             the page holds its pictures and needs nothing else
    results.csv              exp_name,env_name,seed,metric,env_step,value: each evaluation of each run, failed ones too
    summary.csv              a row per task and variant
    aggregate.json           measures over tasks with intervals, comparisons, and what they rest on
    plots/                   PNG and PDF
    tb/                      for TensorBoard: a run per variant with mean, low and high per task, and charts with bands

The score of a run is the mean of its evaluations in the last 10% of the frames that are compared, by default those that
the shortest variant was planned for. Runs that failed keep their last evaluation from there on, and are counted; a run
that failed before its first one scores as a random policy, or as the worst evaluation of its task where that score is
unknown. Runs that are still under way, or stopped and meant to go on, have no score yet: they are listed.

Scores of several tasks are put together by the scale in references.csv. Where a task has none, nothing is put together
but ranks (probability of improvement), unless `--relative` takes the least and greatest score here as the scale.
Intervals: `benchmarks/stats.py`.
"""

import base64
import csv
import html
import io
import json
import math
import os
import re
import shlex
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from zlib import crc32

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from agents import config
from benchmarks import stats
from benchmarks.stats import Bootstrap, Estimate
from benchmarks.status import alive, last_lines, read_json
from benchmarks.status import done as finished

Array = NDArray[np.float64]

COLUMNS = ("exp_name", "env_name", "seed", "metric", "env_step", "value")
"""of the tidy table, as FlashSAC publishes its results"""
RETURN, SUCCESS = "eval/episodic_return", "eval/success_rate"
REFERENCES = Path(__file__).with_name("references.csv")
FAILED = ("failed", "killed", "not started")
POINTS = 100
"""of a curve over frames that were not the same in all runs, and of a curve over time"""
SLACK = 1.01
"""two lengths within this factor are the same: they are rounded to steps of all environments"""
CURVE_REPS = 2000
"""resamples for the band of a curve, whose ends nobody reads to the third digit"""

NO_RUNS = ("tb", "plots", "replaced")
"""folders in that of a sweep which hold no runs of it"""
NO_VARIANT = {
    *("env_id", "seed", "exp_name", "run_dir", "run_root", "resume", "quiet", "total_timesteps", "log_every"),
    *("eval_every", "eval_envs", "save_every", "save_replay", "keep_checkpoints", "threads", "env_threads", "device"),
}
"""settings that may differ between the runs of one variant"""


@dataclass
class Args:
    """Report on runs. Folders may be written without --dirs, before all flags: report.py DIR... --out OUT."""

    dirs: tuple[Path, ...] = (Path("runs"),)
    """folders of run directories, looked through to any depth, or tidy CSV files"""
    out: Path | None = None
    """folder of the report; by default the sweep's own, or DIR-report beside a folder of plain runs"""
    title: str = ""
    """above the report and its plots"""
    metric: str = "auto"
    """what is compared, more being better; auto: eval/episodic_return, or eval/success_rate where a task goes by it"""
    baseline: str = "auto"
    """variant that the others are compared with; auto compares each with the variant without SEM of its agent"""
    at: int = 0
    """compare at this many frames, 0 for as many as the shortest variant of a task was planned for"""
    relative: bool = False
    """put tasks together by the least and greatest score in this comparison, instead of by references"""
    references: Path = REFERENCES
    """CSV file of scores that are 0 and 1 on the common scale"""
    overlay: tuple[Path, ...] = ()
    """published curves to draw behind: tidy CSV files, or JSON files like those of FastTD3"""
    seed: int = 0
    """of the bootstrap"""
    reps: int = 10_000
    """resamples of the bootstrap"""


# ---- run directories -------------------------------------------------------------------------------------------------


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
    series: dict[str, Series] = field(default_factory=dict)
    broken: int = 0
    """lines of metrics.csv that are not whole, and values that are not finite: not used"""
    # what `Study` makes of it
    data: Series = NOTHING
    score: float = math.nan
    last: float = math.nan
    best: float = math.nan
    imputed: bool = False
    """it failed before its first evaluation, and has the score of others"""
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
    agent = manifest.get("program") or (variant.partition("__")[0] if of_sweep else "")
    state, why = read_state(path, bool(settings))
    record = Record(path, name, task, variant, agent, int(seed), state, why)
    record.planned = int(settings.get("total_timesteps") or 0)
    record.config, record.manifest = settings, manifest
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
        ValueError: the columns are not there.
    """
    points: dict[tuple[str, str, str, str], dict[float, float]] = defaultdict(dict)
    with open(path, newline="") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        if not set(COLUMNS) <= set(header):
            raise ValueError(f"{path} lacks the columns {', '.join(COLUMNS)}")
        at = [header.index(name) for name in COLUMNS]
        for row in reader:
            name, task, seed, metric, step, value = (row[index] for index in at)
            if math.isfinite(float(value)):
                points[name, task, seed, {"avg_return": RETURN, "avg_success": SUCCESS}.get(metric, metric)][
                    float(step)
                ] = float(value)
    runs: dict[tuple[str, str, str], Record] = {}
    for (name, task, seed, metric), values in points.items():
        where = f"{path.name}, {name} in {task}, seed {seed}"
        run = runs.setdefault((name, task, seed), Record(path, where, task, name, "", int(float(seed)), "done"))
        steps = np.array(sorted(values))
        run.series[metric] = Series(steps, np.full(len(steps), math.nan), np.array([values[step] for step in steps]))
        run.planned = max(run.planned, int(steps[-1]))
    return list(runs.values())


# ---- the study: which runs make up a variant, and what they score ----------------------------------------------------


class Reference(NamedTuple):
    """The scores that are 0 and 1 on the common scale."""

    metric: str
    low: float
    high: float
    meaning: str
    source: str


def read_references(path: Path) -> list[tuple[str, Reference]]:
    """Return patterns of tasks and their references.

    Raises:
        ValueError: a scale is empty.
    """
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    found = []
    for row in rows:
        reference = Reference(row["metric"], float(row["low"]), float(row["high"]), row["meaning"], row["source"])
        if not reference.low < reference.high:
            raise ValueError(f"{path}: {row['env_id']} has low {row['low']} and high {row['high']}")
        found.append((row["env_id"], reference))
    return found


def look_up(task: str, references: Iterable[tuple[str, Reference]]) -> Reference | None:
    """Return the reference of a task, which may have a family before its name: ALE/Pong-v5."""
    names = {task, task.rpartition("/")[2]}
    return next((found for pattern, found in references if any(fnmatchcase(name, pattern) for name in names)), None)


class Comparison(NamedTuple):
    """A variant and what it is compared with."""

    variant: str
    baseline: str


class Study:
    """Runs by task and variant, their scores, and the remarks that a reader has to know."""

    def __init__(self, records: list[Record], args: Args) -> None:
        self.args = args
        self.how = Bootstrap(args.reps, args.seed)
        self._notes: dict[str, list[str]] = defaultdict(list)
        references = read_references(args.references)
        self.references = {task: look_up(task, references) for task in sorted({run.task for run in records})}
        name_variants(records)
        self.runs = self._without_doubles(records)
        self.tasks = sorted({run.task for run in self.runs})
        self.metric = {task: self._choose_metric(task) for task in self.tasks}
        for run in self.runs:
            run.data = run.series.get(self.metric[run.task], NOTHING)
        self.comparisons = self._choose_comparisons()
        names = sorted({run.variant for run in self.runs})
        against = [name for name in names if any(name == pair.baseline for pair in self.comparisons)]
        self.variants = against + [name for name in names if name not in against]
        self.budget = {task: self._choose_budget(task) for task in self.tasks}
        self.cells: dict[tuple[str, str], list[Record]] = {}
        for task in self.tasks:
            self._score(task)

    # ---- what is compared ----

    def _without_doubles(self, records: list[Record]) -> list[Record]:
        """One run for each task, variant and seed: a finished one, and of several the one that began last."""
        found: dict[tuple[str, str, int], list[Record]] = defaultdict(list)
        for run in records:
            found[run.task, run.variant, run.seed].append(run)
        kept = []
        for key in sorted(found):
            best = max(found[key], key=lambda run: (run.state == "done", run.manifest.get("time", ""), run.name))
            kept.append(best)
            for other in found[key]:
                if other is not best:
                    self._notes["not used, since another run has the same task, variant and seed"].append(other.name)
        return kept

    def _choose_metric(self, task: str) -> str:
        """The metric of a task: as asked, else that of its scale if any run has it. Forgets a scale of another one."""
        reference = self.references[task]
        metric = self.args.metric
        if metric == "auto":
            metric = f"eval/{reference.metric}" if reference else RETURN
            if not any(len(run.series.get(metric, NOTHING).steps) for run in self.runs if run.task == task):
                metric = RETURN
        if reference and metric.rpartition("/")[2] != reference.metric:
            self.references[task] = None
        return metric

    def _choose_comparisons(self) -> list[Comparison]:
        """Pairs: each variant with the asked baseline, or with the one of the same agent that has no SEM."""
        agents: dict[str, set[str]] = defaultdict(set)
        plain = set()
        for run in self.runs:
            agents[run.agent].add(run.variant)
            if run.config.get("sem") is False:
                plain.add(run.variant)
        if self.args.baseline != "auto":
            every = set().union(*agents.values())
            config.require(
                self.args.baseline in every,
                f"--baseline {self.args.baseline}: the variants are {', '.join(sorted(every))}",
            )
            return [Comparison(name, self.args.baseline) for name in sorted(every - {self.args.baseline})]
        pairs = []
        for agent in sorted(agents):
            names = agents[agent]
            against = sorted(names & plain) or sorted(name for name in names if re.search(r"(^|[-_])off$", name))
            if len(against) == 1:
                pairs += [Comparison(name, against[0]) for name in sorted(names - {against[0]})]
            elif len(names) > 1:
                text = "no differences are shown, since " + ("several variants have" if against else "no variant has")
                self._notes[f"{text} SEM off; say --baseline VARIANT"].append(agent or "all")
        return pairs

    def _choose_budget(self, task: str) -> int:
        """Frames at which the variants of a task are compared: what most runs of the shortest one were planned for."""
        if self.args.at:
            return self.args.at
        planned: dict[str, Counter[int]] = defaultdict(Counter)
        for run in self.runs:
            if run.task == task and (run.planned or len(run.data.steps)):
                planned[run.variant][run.planned or int(run.data.steps[-1])] += 1
        usual = {name: max(counts, key=lambda n: (counts[n], n)) for name, counts in planned.items()}
        if max(usual.values(), default=0) > SLACK * min(usual.values(), default=0):
            lengths = ", ".join(f"{name} {frames:,}" for name, frames in sorted(usual.items()))
            self._notes[f"variants of different lengths ({lengths} frames) are compared at the shortest"].append(task)
        return min(usual.values(), default=0)

    # ---- scores ----

    def _score(self, task: str) -> None:
        runs, budget = [run for run in self.runs if run.task == task], self.budget[task]
        seen = [run.data.values.min() for run in runs if len(run.data.values)]
        reference = self.references[task]
        floor = reference.low if reference else float(min(seen, default=math.nan))
        for run in runs:
            run.cut = run.planned > SLACK * budget
            if len(run.data.steps):
                run.score, run.last, run.best = score(run.data, budget, run.cut)
            if run.state in FAILED and math.isnan(run.score):
                run.score = run.last = run.best = floor
                run.imputed = not math.isnan(floor)
            if run.state not in FAILED and not self._complete(run):
                run.score = math.nan
        for variant in self.variants:
            cell = [run for run in runs if run.variant == variant and not math.isnan(run.score)]
            if cell:
                self.cells[task, variant] = cell

    def _complete(self, run: Record) -> bool:
        budget = self.budget[run.task]
        reached = len(run.data.steps) > 0 and run.data.steps[-1] >= budget
        return bool(reached or (run.state == "done" and SLACK * (run.planned or budget) >= budget))

    def scores(self, task: str, variant: str) -> Array:
        """Return the scores of the runs of a cell, by seed."""
        return np.array([run.score for run in self.cells.get((task, variant), [])])

    def normalised(self, task: str, values: Array) -> Array:
        """Return scores on the common scale."""
        low, high = self.scale[task]
        return (values - low) / (high - low)

    @cached_property
    def names(self) -> dict[str, str]:
        """Names of the variants for plots: without the agent where all have the same."""
        agents = {name.partition("__")[0] for name in self.variants}
        if len(agents) == 1 and all("__" in name for name in self.variants) and len(self.variants) > 1:
            return {name: name.partition("__")[2] for name in self.variants}
        return {name: name.replace("__", " ") for name in self.variants}

    @cached_property
    def colours(self) -> dict[str, str]:
        """A colour for each variant; grey for one that all others are compared with."""
        against = {pair.baseline for pair in self.comparisons}
        grey = against if len(against) == 1 else set()
        bright = [name for name in self.variants if name not in grey]
        return {name: PALETTE[n % len(PALETTE)] for n, name in enumerate(bright)} | dict.fromkeys(grey, BASELINE)

    @cached_property
    def scale(self) -> dict[str, tuple[float, float]]:
        """The scores that are 0 and 1 on the common scale, of the tasks that have one."""
        if not self.args.relative:
            return {task: (found.low, found.high) for task, found in self.references.items() if found}
        spans = {}
        for task in self.tasks:
            seen = [run.score for (of, _), cell in self.cells.items() if of == task for run in cell]
            if seen and min(seen) < max(seen):
                spans[task] = (min(seen), max(seen))
        return spans

    @cached_property
    def common(self) -> list[str]:
        """Tasks in which every variant has scores."""
        return [task for task in self.tasks if all((task, variant) in self.cells for variant in self.variants)]

    @cached_property
    def together(self) -> list[str]:
        """The common tasks, if they can be put together on a scale: at least two, each of which has one."""
        return self.common if len(self.common) > 1 and all(task in self.scale for task in self.common) else []

    def on_scale(self, variant: str) -> list[Array]:
        """Return the scores of a variant on the common scale, by task."""
        return [self.normalised(task, self.scores(task, variant)) for task in self.together]

    def shared(self, pair: Comparison) -> list[str]:
        """Return the tasks in which both variants have scores."""
        return [task for task in self.tasks if {(task, pair.variant), (task, pair.baseline)} <= self.cells.keys()]

    @cached_property
    def aggregates(self) -> dict[str, dict[str, Estimate]]:
        """The measures over all tasks, by variant."""
        return {
            variant: {
                name: stats.bootstrap(self.on_scale(variant), measure, self.how)
                for name, measure in stats.AGGREGATES.items()
            }
            for variant in (self.variants if self.together else [])
        }

    @cached_property
    def improvements(self) -> dict[Comparison, Estimate]:
        """The probability of improvement, of pairs with two tasks or more; of all pairs where variants are few."""
        pairs = list(self.comparisons)
        if len(self.variants) <= 6:
            pairs += [Comparison(x, y) for x in self.variants for y in self.variants if x != y]
        return {
            pair: stats.improvement(
                [self.scores(task, pair.variant) for task in self.shared(pair)],
                [self.scores(task, pair.baseline) for task in self.shared(pair)],
                self.how,
            )
            for pair in dict.fromkeys(pairs)
            if len(self.shared(pair)) > 1
        }

    @cached_property
    def gains(self) -> dict[Comparison, Estimate]:
        """IQM over all tasks of a variant minus that of its baseline."""
        return {
            pair: stats.difference(self.on_scale(pair.variant), self.on_scale(pair.baseline), stats.iqm, self.how)
            for pair in (self.comparisons if self.together else [])
        }

    @cached_property
    def differences(self) -> dict[tuple[Comparison, str], Estimate]:
        """Mean score of a variant minus that of its baseline, by task."""
        return {
            (pair, task): stats.welch(self.scores(task, pair.variant), self.scores(task, pair.baseline))
            for pair in self.comparisons
            for task in self.shared(pair)
        }

    # ---- remarks ----

    def counts(self, *where: str) -> Counter[str]:
        """Return how many runs are in each state, of those of a task or variant if they are named."""
        chosen = [run for run in self.runs if set(where) <= {run.task, run.variant}]
        return Counter("failed" if run.state in FAILED else run.state for run in chosen)

    @cached_property
    def notes(self) -> list[str]:
        """What a reader has to know beside the numbers."""
        notes = defaultdict(list, {text: list(where) for text, where in self._notes.items()})
        for run in self.runs:
            if run.broken:
                notes["lines of metrics.csv are broken or not finite, and not used"].append(
                    f"{run.name} ({run.broken})"
                )
            if run.state == "done" and math.isnan(run.score):
                few = "planned for fewer frames than are compared" if len(run.data.steps) else "without an evaluation"
                notes[f"done but {few}, so without a score"].append(run.name)
        for task in self.tasks:
            sizes = {variant: len(self.cells.get((task, variant), ())) for variant in self.variants}
            if len(set(sizes.values())) > 1:
                many = ", ".join(f"{name} {n}" for name, n in sizes.items())
                notes[f"numbers of seeds differ ({many})"].append(task)
            if task not in self.common and self.common and len(self.variants) > 1:
                notes["not every variant has a score, so left out where tasks are put together"].append(task)
            if task in self.common and task not in self.scale and len(self.common) > 1:
                what = "all scores are the same" if self.args.relative else f"no scale in {self.args.references.name}"
                advice = "" if self.args.relative else "; add one with its source, or say --relative"
                notes[f"{what}, so there is no score over all tasks{advice}"].append(task)
        if len(code := sorted({_revision(run.manifest) for run in self.runs} - {""})) > 1:
            notes["the runs are of different versions of the code"] = code
        return [f"{_some(where)}: {text}." for text, where in notes.items()]


def score(data: Series, budget: int, cut: bool) -> tuple[float, float, float]:
    """Return the score of a run, its last value and its best: NaN if it has none.

    The score is the mean of the values in the last 10% of the budget; without one there, the last value. `cut` drops
    what comes after the budget: a run that was planned for just the budget may overshoot it.
    """
    steps, values = data.steps, data.values
    if cut:
        steps, values = steps[steps <= budget], values[: (steps <= budget).sum()]
    if not len(values):
        return math.nan, math.nan, math.nan
    late = values[steps * 10 > budget * 9]
    return float(late.mean() if len(late) else values[-1]), float(values[-1]), float(values.max())


def name_variants(records: Sequence[Record]) -> None:
    """Tell variants apart that share a name: by agent, and by the settings that differ within a task."""
    agents: dict[str, set[str]] = defaultdict(set)
    for run in records:
        agents[run.variant].add(run.agent)
    for run in records:
        if len(agents[run.variant] - {""}) > 1 and not run.variant.startswith(run.agent):
            run.variant = f"{run.agent}__{run.variant}"
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for run in records:
        if run.config:
            groups[run.task, run.variant].append(run)
    for runs in groups.values():
        names = sorted({name for run in runs for name in run.config} - NO_VARIANT)
        # A setting that some runs lack came with another version of the code, which is a remark of its own.
        known = {name: {json.dumps(run.config[name]) for run in runs if name in run.config} for name in names}
        differ = [name for name in names if len(known[name]) > 1]
        for run in runs if differ else []:
            said = [f"{name}={_plain(run.config.get(name))}" for name in differ]
            more = f", {len(said) - 3} more: {crc32(repr(said).encode()):08x}" if len(said) > 3 else ""
            run.variant += f" ({', '.join(said[:3])}{more})"


def _some(names: Sequence[str], most: int = 8) -> str:
    """`a, b and 5 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _plain(value: Any) -> str:
    """A setting in words."""
    return {True: "on", False: "off", None: "none"}[value] if isinstance(value, bool | None) else str(value)


def _revision(manifest: Mapping[str, Any]) -> str:
    """Short name of the code's version."""
    git = manifest.get("git") or {}
    return f"{git['revision'][:10]}{' with changes' if git.get('dirty') else ''}" if git.get("revision") else ""


# ---- curves ----------------------------------------------------------------------------------------------------------


class Curve(NamedTuple):
    """Runs of one variant at common points."""

    x: Array
    values: Array
    """[runs, points]"""


def curves(study: Study, task: str, wall: bool = False) -> dict[str, Curve]:
    """Return the curves of the variants in a task, over frames or over seconds.

    A run that failed keeps its last value. Over frames, all variants share their points: the steps of the evaluations
    where all finished runs have the same, else evenly spaced ones. Over seconds, a variant goes as far as its fastest
    finished run, and a run whose time is not known is left out.
    """
    budget = study.budget[task]
    cells = {variant: study.cells[task, variant] for variant in study.variants if (task, variant) in study.cells}
    if wall:
        cells = {name: [run for run in cell if not np.isnan(run.data.wall_s).any()] for name, cell in cells.items()}
    shared = _points([run for cell in cells.values() for run in cell], budget, wall=False)
    found = {}
    for variant, cell in cells.items():
        x = _points(cell, budget, wall=True) if wall else shared
        if len(x):
            found[variant] = Curve(x, np.array([_at(run, x, wall) for run in cell]))
    return found


def _points(runs: Sequence[Record], budget: int, wall: bool) -> Array:
    """Points of an axis that all finished runs reach; none if no run has any."""
    through = [run for run in runs if len(run.data.steps) and run.state not in FAILED]
    through = through or [run for run in runs if len(run.data.steps)]
    axes = [run.axis(wall)[(run.data.steps <= budget) | (not run.cut)] for run in through]
    axes = [x for x in axes if len(x)]
    if not axes:
        return np.empty(0)
    if not wall and len(axes[0]) <= 2 * POINTS and all(np.array_equal(axes[0], x) for x in axes):
        return axes[0]
    return np.linspace(max(x[0] for x in axes), min(x[-1] for x in axes), POINTS)


def _at(run: Record, x: Array, wall: bool = False) -> Array:
    """The values of a run at points of an axis; outside of what it has, the nearest."""
    return np.interp(x, run.axis(wall), run.data.values) if len(run.data.steps) else np.full(len(x), run.last)


def iqm_curves(study: Study) -> dict[str, tuple[Array, Estimate]]:
    """Return the IQM over all tasks and runs of each variant, at shares of the frames that are compared."""
    through = [run for run in study.runs if run.task in study.together and run.state not in FAILED]
    first = max((run.data.steps[0] / study.budget[run.task] for run in through if len(run.data.steps)), default=0.0)
    share = np.linspace(min(first, 1.0), 1, POINTS)
    how = study.how._replace(reps=min(study.how.reps, CURVE_REPS))
    found = {}
    for variant in study.variants:
        at = {
            task: [_at(run, share * study.budget[task]) for run in study.cells[task, variant]]
            for task in study.together
        }
        tasks = [study.normalised(task, np.array(values)) for task, values in at.items()]
        found[variant] = share, stats.bootstrap(tasks, stats.iqm, how)
    return found


class Overlay(NamedTuple):
    """A published curve of a task: the mean over its seeds."""

    name: str
    task: str
    steps: Array
    seconds: Array
    mean: Array


def read_overlay(path: Path, metric: Mapping[str, str]) -> list[Overlay]:
    """Return the curves in a file that are of our tasks, given our metric of each.

    JSON is as FastTD3 has it: {task: {"env_step": [], "time": [], "return": []}}, or with a level for algorithms
    between. Its first point, zero at step zero, is no measurement.

    Raises:
        ValueError: the file is of neither kind.
    """
    if path.suffix != ".json":
        return _tidy_overlay(path, metric)
    found = []
    content = json.loads(path.read_text())
    for theirs, entry in content.items() if isinstance(content, dict) else [("the file", content)]:
        levels = {path.stem: entry} if not isinstance(entry, dict) or "return" in entry else entry
        for name, curve in levels.items():
            if not isinstance(curve, dict) or not {"env_step", "time", "return"} <= curve.keys():
                raise ValueError(f"{path}: {theirs} lacks env_step, time or return")
            columns = [np.array(curve[key], float) for key in ("env_step", "time", "return")]
            real = (columns[0] > 0) | (columns[2] != 0)
            if task := same_task(theirs, metric):
                found.append(Overlay(name, task, *(x[real] for x in columns)))
    return found


def _tidy_overlay(path: Path, metric: Mapping[str, str]) -> list[Overlay]:
    """Curves in a tidy CSV file, at the steps that all seeds have between them."""
    groups: dict[tuple[str, str], list[Series]] = defaultdict(list)
    for run in read_tidy(path):
        task = same_task(run.task, metric)
        if task and metric[task] in run.series:
            groups[run.variant, task].append(run.series[metric[task]])
    found = []
    for (name, task), runs in groups.items():
        low, high = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
        steps = np.unique(np.concatenate([run.steps for run in runs]))
        steps = steps[(steps >= low) & (steps <= high)]
        mean = np.mean([np.interp(steps, run.steps, run.values) for run in runs], axis=0)
        found.append(Overlay(name, task, steps, np.full(len(steps), math.nan), mean))
    return found


def same_task(theirs: str, ours: Iterable[str]) -> str | None:
    """Return which of our tasks is meant by another project's name for it.

    h1hand_walk is h1hand-walk-v0 and humanoid-run is HumanoidRun-v1, but HalfCheetah-v4 is not HalfCheetah-v5.
    """

    def key(task: str) -> tuple[str, str]:
        name, version = re.findall(r"^(.*?)(?:-v(\d+))?$", task.rpartition("/")[2])[0]
        return re.sub(r"[^a-z0-9]", "", name.lower()), version

    name, version = key(theirs)
    return next((x for x in ours if key(x)[0] == name and len({version, key(x)[1]} - {""}) <= 1), None)


# ---- plots -----------------------------------------------------------------------------------------------------------

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Okabe and Ito's colours without yellow, which any eye tells apart, and two more"""
BASELINE, PUBLISHED, INK, FAINT = "#4A4A4A", "#9A9A9A", "#222222", "#6B6B6B"
STYLE: Any = {
    **{"font.size": 9.5, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left"},
    **{"text.color": INK, "axes.labelcolor": INK, "xtick.labelcolor": INK, "ytick.labelcolor": INK},
    **{"axes.edgecolor": "#B0B0B0", "xtick.color": "#B0B0B0", "ytick.color": "#B0B0B0", "grid.color": "#E4E4E4"},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "grid.linewidth": 0.8},
    **{"lines.solid_capstyle": "round", "figure.dpi": 200, "pdf.fonttype": 42},
}
WIDTH = 8.4
"""inches; at 200 dots each, a README shows it at about half its size"""
BAND_FROM = 5
"""seeds; with fewer, a 95% interval fills the plot, and each seed is drawn instead"""
MEANINGS = {RETURN: "evaluation return", SUCCESS: "success rate"}


class Plot(NamedTuple):
    """A figure: `draw` fills it, in inches of `height`, below the title and the names in `legend`."""

    name: str
    title: str
    caption: str
    height: float
    draw: Callable[[Figure], None]
    legend: Sequence[tuple[str, str, Any]] = ()
    """(name, colour, line style)"""


def save(plot: Plot, folder: Path, title: str) -> None:
    """Write a plot as PNG and PDF. The same runs give the same bytes."""
    with rc_context(STYLE):
        caption = textwrap.wrap(plot.caption, 150)
        lines = math.ceil(len(plot.legend) / 5)
        height = plot.height + 0.3 + 0.2 * lines + 0.14 * len(caption)
        engine = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06, hspace=0.03)
        figure = Figure(figsize=(WIDTH, height), layout=engine)
        FigureCanvasAgg(figure)
        heading = f"{title}: {plot.title[0].lower()}{plot.title[1:]}" if title else plot.title
        figure.suptitle(heading + "\n" * lines, x=0.012, ha="left", fontsize=11.5, fontweight="bold")
        figure.supxlabel("\n".join(caption), x=0.012, ha="left", fontsize=7.6, color=FAINT)
        if plot.legend:
            place: Any = {"loc": "upper left", "bbox_to_anchor": (0.005, 1 - 0.27 / height), "borderaxespad": 0.0}
            look: Any = {"labelcolor": "linecolor", "handlelength": 1.2, "columnspacing": 1.6, "frameon": False}
            lines_of: list[Any] = [
                Line2D([], [], color=colour, linestyle=dash, linewidth=2.5, label=name)
                for name, colour, dash in plot.legend
            ]
            figure.legend(handles=lines_of, ncols=5, **place, **look).set_in_layout(False)
        plot.draw(figure)
        figure.savefig(folder / f"{plot.name}.png", metadata={"Software": None})
        figure.set_layout_engine("none")  # it has done its work
        figure.savefig(folder / f"{plot.name}.pdf", metadata={"CreationDate": None})


def all_names(study: Study, overlays: Sequence[Overlay] = ()) -> list[tuple[str, str, Any]]:
    """Return a legend of all variants."""
    found = [(study.names[variant], study.colours[variant], "-") for variant in study.variants]
    return found + [(name, PUBLISHED, "--") for name in dict.fromkeys(overlay.name for overlay in overlays)]


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], height: float) -> None:
    """Write names (y, text, colour) beside the right ends of their lines, moved apart where they would overlap.

    `height`: of the axes in inches, about.
    """
    low, high = axes.get_ylim()
    ends = sorted(ends)
    places = [min(max((y - low) / (high - low), 0.02), 0.98) for y, _, _ in ends]
    for _ in range(200):
        for index in range(len(places) - 1):
            push = max(0.0, 0.15 / height - places[index + 1] + places[index]) / 2
            places[index] -= push
            places[index + 1] += push
    lift = max(0.0, 0.02 - min(places, default=1.0))
    for place, (_, text, colour) in zip(places, ends, strict=True):
        axes.annotate(text, (1.015, place + lift), xycoords="axes fraction", color=colour, va="center", fontsize=9)


def draw_task(
    axes: Axes, study: Study, task: str, overlays: Sequence[Overlay], wall: bool
) -> list[tuple[float, str, str]]:
    """Draw the curves of a task; returns where they end, for their labels."""
    found = curves(study, task, wall)
    right = max((curve.x[-1] for curve in found.values()), default=0.0)
    label, unit = time_unit(right) if wall else ("environment frames", 1.0)
    seen, ends = [], []
    for variant, curve in found.items():
        colour, x, mean = study.colours[variant], curve.x / unit, curve.values.mean(0)
        if len(curve.values) >= BAND_FROM:
            _, low, high = stats.t_interval(curve.values)
            axes.fill_between(x, low, high, color=colour, alpha=0.17, linewidth=0)
            seen += list(np.quantile(curve.values, [0.1, 0.9], axis=0))
        else:
            axes.plot(x, curve.values.T, color=colour, alpha=0.45, linewidth=0.8)
            seen += list(curve.values)
        axes.plot(x, mean, color=colour, linewidth=2.0 if len(found) < 7 else 1.5)
        seen.append(mean)
        ends.append((float(mean[-1]), study.names[variant], colour))
        for run in study.cells[task, variant]:
            if run.state in FAILED:
                axes.plot(x, _at(run, curve.x, wall), color=colour, alpha=0.6, linewidth=0.8, linestyle="--")
                seen.append(_at(run, curve.x, wall))
                if len(run.data.steps) and run.axis(wall)[-1] <= right:
                    axes.plot(run.axis(wall)[-1] / unit, run.data.values[-1], "x", color=colour, markeredgewidth=1.6)
    for run in study.runs:
        if run.task == task and math.isnan(run.score) and run.state != "done" and len(run.data.steps):
            axes.plot(
                run.axis(wall) / unit, run.data.values, color=study.colours[run.variant], linestyle=":", linewidth=1.2
            )
            seen.append(run.data.values)
    for overlay in overlays:
        known = overlay.seconds if wall else overlay.steps
        inside = known <= right * 1.0001
        if overlay.task == task and inside.any():
            axes.plot(known[inside] / unit, overlay.mean[inside], color=PUBLISHED, linestyle="--", linewidth=1.3)
            seen.append(overlay.mean[inside])
            ends.append((float(overlay.mean[inside][-1]), overlay.name, PUBLISHED))
    if seen:
        bottom, top = float(min(x.min() for x in seen)), float(max(x.max() for x in seen))
        margin = 0.05 * (top - bottom or 1)
        axes.set_ylim(bottom - margin, top + margin)
    axes.set_xlim(0, right / unit or None)
    axes.grid(axis="y")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if not wall:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel=label, ylabel=MEANINGS.get(study.metric[task], study.metric[task]))
    return ends


def time_unit(seconds: float) -> tuple[str, float]:
    """Return the name of the unit that suits a length of time, and its seconds."""
    if seconds < 300:
        return "seconds of training", 1.0
    return ("minutes of training", 60.0) if seconds < 3 * 3600 else ("hours of training", 3600.0)


def curve_plot(study: Study, overlays: Sequence[Overlay], wall: bool) -> Plot:
    """Return the plot of all tasks over frames, or over time."""
    overlays = [curve for curve in overlays if not wall or not np.isnan(curve.seconds).any()]
    tasks = [task for task in study.tasks if curves(study, task, wall)] or study.tasks
    columns = 1 if len(tasks) == 1 else 2 if len(tasks) <= 4 else 3
    rows, height = math.ceil(len(tasks) / columns), {1: 3.5, 2: 2.6, 3: 1.9}[columns]
    direct = len(tasks) <= 4 and len(study.variants) <= 6

    def draw(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False)
        for index, axes in enumerate(grid.flat):
            if index >= len(tasks):
                axes.set_visible(False)
                continue
            ends = draw_task(axes, study, tasks[index], overlays, wall)
            axes.set_title(tasks[index], fontsize=min(10, 10 * (84 / columns - 3) / len(tasks[index])))
            if direct:
                label_ends(axes, ends, height - 0.7)
            if index % columns:
                axes.set_ylabel("")
            if index + columns < len(tasks):
                axes.set_xlabel("")

    sizes = [len(cell) for cell in study.cells.values()]
    said = [f"Line: mean over seeds ({_range(sizes)} for each variant and task)."]
    if any(n >= BAND_FROM for n in sizes):
        said.append("Band: 95% Student-t interval of the mean, at each point on its own.")
    if any(n < BAND_FROM for n in sizes):
        said.append(f"Thin lines: single seeds, where they are fewer than {BAND_FROM} and a band would say little.")
    if study.counts()["failed"]:
        said.append("x: a run failed here; dashed, its last value counts from there on.")
    if study.counts().keys() - {"done", "failed"}:
        said.append("Dotted: a run that is not finished, and not in the mean.")
    if wall:
        sessions = [x for folder in study.args.dirs for x in read_json(folder / "sweep.json").get("sessions") or []]
        most = max((int(x.get("per_gpu") or x.get("slots") or 1) for x in sessions), default=1)
        shared = f"up to {most} runs shared a machine" if most > 1 else "runs that shared a machine are slower"
        said.append(f"Time is that of the training process, with evaluations; {shared}.")
    if overlays:
        said.append("Dashed grey: published mean, from other code and often other settings.")
    name, title = ("curves_time", "Learning curves over time") if wall else ("curves", "Learning curves")
    return Plot(name, title, " ".join(said), height * rows, draw, () if direct else all_names(study, overlays))


def _range(sizes: Iterable[int]) -> str:
    """`5` or `3 to 5`."""
    found = sorted(set(sizes)) or [0]
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]}"


def _scale(study: Study, tasks: Sequence[str] = ()) -> str:
    """What the scores 0 and 1 are."""
    if study.args.relative:
        return "Scores are relative to this comparison: 0 is the least and 1 the greatest of a task."
    meanings = {found.meaning for task in tasks or study.together if (found := study.references[task])}
    return f"Scores: {meanings.pop()}." if len(meanings) == 1 else "Scores: 0 and 1 as in the table of scales."


def iqm_plot(study: Study) -> Plot:
    """Return the plot of the IQM over all tasks."""
    direct = len(study.variants) <= 8

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        budgets = {study.budget[task] for task in study.together}
        frames = budgets.pop() if len(budgets) == 1 else 0
        ends = []
        for variant, (share, band) in iqm_curves(study).items():
            x, colour = share * (frames or 100), study.colours[variant]
            axes.fill_between(x, band.low, band.high, color=colour, alpha=0.17, linewidth=0)
            axes.plot(x, band.value, color=colour, linewidth=2)
            ends.append((float(band.value[-1]), study.names[variant], colour))
        axes.grid(axis="y")
        axes.set(xlim=(0, frames or 100), ylabel="IQM of normalised score")
        axes.set_xlabel("environment frames" if frames else "% of the frames that are compared, by task")
        if frames:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if direct:
            label_ends(axes, ends, 2.8)

    caption = f"Interquartile mean over {len(study.together)} tasks and all their seeds. {_scale(study)} {BOOTSTRAPPED}"
    return Plot("iqm", "Sample efficiency over all tasks", caption, 3.4, draw, () if direct else all_names(study))


BOOTSTRAPPED = "Band: 95% stratified bootstrap interval, at each point on its own."


def draw_intervals(axes: Axes, rows: Sequence[tuple[Estimate, str, str]]) -> None:
    """Draw estimates (estimate, name, colour) with their intervals and values below one another, the first on top."""
    known = [abs(float(x)) for estimate, _, _ in rows for x in estimate if not np.isnan(x)]
    for index, (estimate, _, colour) in enumerate(rows):
        value, low, high = (float(x) for x in estimate)
        axes.plot([low, high], [index, index], color=colour, linewidth=6, alpha=0.35, solid_capstyle="butt")
        axes.plot(value, index, "o", color=colour, markersize=6)
        text = number(value, digits_for(max(known)))
        axes.annotate(text, (value, index), (0, 6), textcoords="offset points", ha="center", fontsize=8, color=colour)
    axes.set_yticks(range(len(rows)), [name for _, name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.75)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def aggregate_plot(study: Study) -> Plot:
    """Return the plot of the measures over all tasks."""

    def draw(figure: Figure) -> None:
        titles = {
            "iqm": "IQM \u2191",
            "median": "median \u2191",
            "mean": "mean \u2191",
            "optimality_gap": "optimality gap \u2193",
        }
        for axes, (measure, title) in zip(figure.subplots(1, 4, sharey=True), titles.items(), strict=True):
            draw_intervals(
                axes,
                [(study.aggregates[name][measure], study.names[name], study.colours[name]) for name in study.variants],
            )
            axes.set_title(title, fontsize=9.5)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.margins(x=0.15)

    caption = f"Over {len(study.together)} tasks. {_scale(study)} Bar: 95% stratified bootstrap interval."
    return Plot("aggregates", "Scores over all tasks", caption, 0.75 + 0.42 * len(study.variants), draw)


def profile_plot(study: Study) -> Plot:
    """Return the plot of performance profiles."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        every = np.concatenate([scores for variant in study.variants for scores in study.on_scale(variant)])
        at = np.linspace(min(0.0, every.min()), every.max() * 1.02, 2 * POINTS)
        how = study.how._replace(reps=min(study.how.reps, CURVE_REPS))
        for variant in study.variants:
            band, colour = stats.profile(study.on_scale(variant), at, how), study.colours[variant]
            axes.fill_between(at, band.low, band.high, color=colour, alpha=0.17, linewidth=0, step="post")
            axes.step(at, band.value, where="post", color=colour, linewidth=2)
        axes.grid()
        axes.set(xlim=(at[0], at[-1]), ylim=(0, 1.02), xlabel="normalised score", ylabel="share of runs above it")

    tasks = len(study.together)
    caption = f"Share of runs above a score, over {tasks} tasks: higher is better. {_scale(study)} {BOOTSTRAPPED}"
    return Plot("profiles", "Performance profiles", caption, 3.2, draw, all_names(study))


def improvement_plot(study: Study) -> Plot:
    """Return the plot of the probability that a variant improves on its baseline."""
    pairs = [pair for pair in study.comparisons if pair in study.improvements]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = {pair: f"{study.names[pair.variant]} over {study.names[pair.baseline]}" for pair in pairs}
        draw_intervals(axes, [(study.improvements[pair], names[pair], study.colours[pair.variant]) for pair in pairs])
        axes.axvline(0.5, color=INK, linewidth=1)
        axes.set(
            xlim=(0, 1),
            xlabel="\u2190 the second is better     probability of improvement     the first is better \u2192",
        )

    tasks = _range(len(study.shared(pair)) for pair in pairs)
    caption = (
        f"Probability that a run of the first beats one of the second on the same task, mean over {tasks} tasks; 0.5 "
        "is no difference. Bar: 95% stratified bootstrap interval."
    )
    return Plot("improvement", "Probability of improvement", caption, 0.7 + 0.42 * len(pairs), draw)


def difference_plot(study: Study) -> Plot:
    """Return the plot of differences from the baseline: on one axis if all tasks have a scale, else on one for each."""
    tasks = list(dict.fromkeys(task for _, task in study.differences))
    one_scale = all(task in study.scale for task in tasks) and len(tasks) > 1
    dense = one_scale and len(tasks) > 4
    found: dict[str, list[tuple[Estimate, str, str]]] = {task: [] for task in tasks}
    for (pair, task), estimate in study.differences.items():
        low, high = study.scale[task] if one_scale else (0.0, 1.0)
        scaled = Estimate(*(x / (high - low) for x in estimate))
        found[task].append((scaled, study.names[pair.variant], study.colours[pair.variant]))
    rows = [len(rows) for rows in found.values()]

    def draw(figure: Figure) -> None:
        if dense:
            axes = figure.subplots()
            draw_rows(axes, found)
        else:
            grid = figure.subplots(
                len(tasks), 1, squeeze=False, sharex=one_scale, height_ratios=[n + 0.8 for n in rows]
            )
            for axes, task in zip(grid[:, 0], tasks, strict=True):
                draw_intervals(axes, found[task])
                axes.set_title(task, fontsize=9.5)
        for axes in figure.axes:
            axes.axvline(0, color=INK, linewidth=1)
            axes.xaxis.set_major_locator(MaxNLocator(7))
        what = "normalised score" if one_scale else MEANINGS.get(study.metric[tasks[-1]], study.metric[tasks[-1]])
        against = {study.names[pair.baseline] for pair, _ in study.differences}
        axes.set_xlabel(f"{what}, minus that of {against.pop() if len(against) == 1 else 'the same agent without SEM'}")

    sizes = _range(len(study.cells[task, name]) for pair, task in study.differences for name in pair)
    caption = (
        "Difference of mean scores: right of the line, the variant is better than its baseline. Bar: 95% Welch "
        f"interval over {sizes} seeds, each on its own: of many, one in twenty misses the truth."
        + (f" {_scale(study, tasks)}" if one_scale else "")
    )
    height = 0.5 + sum(0.1 + 0.13 * n for n in rows) if dense else 0.45 + sum(0.3 + 0.36 * n for n in rows)
    named = [name for name in all_names(study) if name[0] in {name for rows in found.values() for _, name, _ in rows}]
    return Plot("differences", "Difference from the baseline", caption, height, draw, named if dense else ())


def draw_rows(axes: Axes, found: Mapping[str, Sequence[tuple[Estimate, str, str]]]) -> None:
    """Draw many estimates, those of a task close together."""
    y, ticks = 0.0, []
    for rows in found.values():
        ticks.append(y + (len(rows) - 1) / 2)
        for estimate, _, colour in rows:
            axes.plot(
                [estimate.low, estimate.high], [y, y], color=colour, linewidth=4, alpha=0.4, solid_capstyle="butt"
            )
            axes.plot(estimate.value, y, "o", color=colour, markersize=4)
            y += 1
        y += 0.8
    axes.set_yticks(ticks, list(found))
    axes.set_ylim(y - 0.3, -1)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def plots(study: Study, overlays: Sequence[Overlay]) -> list[Plot]:
    """Return the plots that the runs allow."""
    found = [curve_plot(study, overlays, wall=False)]
    if study.differences:
        found.append(difference_plot(study))
    if any(pair in study.improvements for pair in study.comparisons):
        found.append(improvement_plot(study))
    if study.together:
        found += [aggregate_plot(study), iqm_plot(study), profile_plot(study)]
    if any(curves(study, task, wall=True) for task in study.tasks):
        found.append(curve_plot(study, overlays, wall=True))
    return found


# ---- words -----------------------------------------------------------------------------------------------------------


def digits_for(largest: float) -> int:
    """Return how many decimals are of use beside a number."""
    return 0 if largest >= 100 else 1 if largest >= 10 else 2


def number(x: float, digits: int | None = None) -> str:
    """Return `1,234`, `56.7`, `0.89`, or `-` for NaN."""
    return "-" if math.isnan(x) else f"{x:z,.{digits_for(abs(x)) if digits is None else digits}f}"


def interval(estimate: Estimate, signed: bool = False) -> str:
    """Return `0.63 [0.55, 0.71]`; without brackets where there is no interval."""
    value, low, high = (float(x) for x in estimate)
    digits = digits_for(np.nanmax(np.abs([value, low, high])))
    said = ("+" if signed and value > 0 else "") + number(value, digits)
    return said if math.isnan(low) else f"{said} [{number(low, digits)}, {number(high, digits)}]"


def sign(estimate: Estimate, middle: float = 0.0) -> str:
    """Return better, worse or unclear, by where the interval lies."""
    return "better" if estimate.low > middle else "worse" if estimate.high < middle else "unclear"


def verdict(study: Study) -> list[str]:
    """Return what was found, a paragraph for each comparison, and how many runs failed."""
    counts = study.counts()
    said = []
    unfinished = counts.total() - counts["done"] - counts["failed"]
    if unfinished:
        said.append(f"**Preliminary**: {unfinished} of {counts.total()} runs are not finished and have no score yet.")
    compared = [_compare(study, pair) for pair in study.comparisons if study.shared(pair)]
    said += compared
    if not compared:
        for (task, variant), cell in study.cells.items():
            mean = interval(stats.t_interval(study.scores(task, variant)))
            said.append(f"**{variant}** on {task}: {mean} over {len(cell)} seeds.")
    failed = [run for run in study.runs if run.state in FAILED]
    imputed = sum(run.imputed for run in failed)
    if failed:
        none = f"; {imputed} had none and count with the lowest score" if imputed else ""
        said.append(
            f"**{len(failed)} of {counts.total()} runs failed** and count with their last evaluation{none}, see below."
        )
    else:
        said.append(f"None of {counts.total()} runs failed.")
    return said


def _compare(study: Study, pair: Comparison) -> str:
    """What was found about one variant."""
    tasks, start = study.shared(pair), f"**{pair.variant}** against **{pair.baseline}**"
    seeds = _range(len(study.cells[task, name]) for task in tasks for name in pair) + " seeds"
    if len(tasks) == 1:
        found = study.differences[pair, tasks[0]]
        mine, other = (interval(stats.t_interval(study.scores(tasks[0], name))) for name in pair)
        said = (
            f"{start} on {tasks[0]}: {mine} against {other}, a difference of {interval(found, signed=True)} ({seeds})."
        )
        how = sign(found)
    else:
        found = study.improvements[pair]
        by = Counter(sign(study.differences[pair, task]) for task in tasks)
        said = (
            f"{start}: a run of it beats one of the baseline with probability {interval(found)}, over {len(tasks)} "
            f"tasks with {seeds}. By task it is better in {by['better']}, worse in {by['worse']}, "
            f"unclear in {by['unclear']}."
        )
        if study.together:
            mine, other = (number(float(study.aggregates[name]["iqm"].value)) for name in pair)
            said += f" IQM {mine} against {other}, a difference of {interval(study.gains[pair], signed=True)}."
        how = sign(found, 0.5)
    if math.isnan(float(found.low)):
        return f"{said} One seed says nothing about chance."
    what = "it" if len(tasks) == 1 else "over these tasks it"
    end = f"So {what} is {how}." if how != "unclear" else "These runs show no difference."
    return f"{said} {end}"


def sweep_commands(folders: Iterable[Path]) -> list[str]:
    """Return the commands that have made the sweeps in these folders."""
    sessions = [x for folder in folders for x in read_json(folder / "sweep.json").get("sessions") or []]
    said = [shlex.join(["python", *map(str, x["command"])]).replace(f"{x.get('cwd')}/", "") for x in sessions]
    return list(dict.fromkeys(said))


def commands(study: Study) -> list[str]:
    """Return the command lines that make the runs again: one for all seeds that differ in nothing else."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(study.runs, key=lambda run: not run.manifest.get("argv")):
        cell = groups[run.task, run.variant]
        if words := run.manifest.get("argv"):
            cell[_command([str(word) for word in words])].append(run.seed)
        elif len(cell) == 1:  # it never came to say what it was asked: the same as the other seeds
            next(iter(cell.values())).append(run.seed)
    return [
        f"for seed in {' '.join(map(str, sorted(seeds)))}; do python {command} --seed $seed; done"
        for _, cell in sorted(groups.items())
        for command, seeds in sorted(cell.items())
    ]


def _command(words: Sequence[str]) -> str:
    """A command line without its seed, and without where it wrote on whose machine."""
    program = Path(words[0])
    kept, skip = [str(Path(program.parent.name) / program.name)], False
    for word in words[1:]:
        flag, equals, _ = word.replace("_", "-").partition("=")
        if flag in ("--seed", "--run-dir", "--run-root", "--resume"):
            skip = not equals
        elif skip:
            skip = False
        elif flag != "--quiet":
            kept.append(word)
    return shlex.join(kept)


class Page:
    """A text with tables and pictures, to be written as Markdown and as HTML."""

    def __init__(self) -> None:
        self.blocks: list[tuple[str, Any]] = []

    def add(self, kind: str, content: Any) -> None:
        """Append an `h1`, `h2` or `p` (text), `ul` (texts), `pre`, `table` (rows, first a head) or `figure` (Plot)."""
        if content:
            self.blocks.append((kind, content))

    def markdown(self) -> str:
        """Return the page as Markdown."""
        out = []
        for kind, content in self.blocks:
            if kind == "table":
                head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in content]
                out.append("\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)))
            elif kind == "ul":
                out.append("\n".join(f"- {text}" for text in content))
            elif kind == "figure":
                out.append(f"![{content.title}](plots/{content.name}.png)\n\n*{content.caption.strip()}*")
            else:
                out.append({"h1": "# {}", "h2": "## {}", "p": "{}", "pre": "```\n{}\n```"}[kind].format(content))
        return "\n\n".join(out) + "\n"

    def html(self, folder: Path) -> str:
        """Return the page as HTML, with the pictures in `folder` inside."""
        out = []
        for kind, content in self.blocks:
            if kind == "table":
                rows = ["".join(f"<td>{_inline(cell)}</td>" for cell in row) for row in content]
                rows[0] = rows[0].replace("<td>", "<th>").replace("</td>", "</th>")
                out.append(f'<div class="wide"><table>{"".join(f"<tr>{row}</tr>" for row in rows)}</table></div>')
            elif kind == "ul":
                out.append(f"<ul>{''.join(f'<li>{_inline(text)}</li>' for text in content)}</ul>")
            elif kind == "figure":
                data = base64.b64encode((folder / f"{content.name}.png").read_bytes()).decode()
                alt = html.escape(f"{content.title}. {content.caption}")
                out.append(f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>')
            else:
                out.append(f"<{kind}>{html.escape(content) if kind == 'pre' else _inline(content)}</{kind}>")
        title = html.escape(next(content for kind, content in self.blocks if kind == "h1"))
        return HTML.format(title=title, body="\n".join(out))


HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 54rem; margin: 2rem auto;
  padding: 0 1rem }}
h1 {{ font-size: 1.6rem; line-height: 1.2 }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem }}
figure {{ margin: 1.5rem 0 }} img {{ width: 100%; height: auto }} .wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }}
th, td {{ text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top }}
li {{ overflow-wrap: anywhere }} pre {{ background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: .8rem }}
code {{ background: #f2f2f2; padding: 0 .2em }}
</style></head>
<body>
{body}
</body></html>
"""


def _inline(text: str) -> str:
    """Text with `code`, **strong** parts and addresses, as HTML."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    text = re.sub(r"(http://[^\s<]+)", r'<a href="\1">\1</a>', text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def write_up(study: Study, shown: Sequence[Plot], links: Sequence[str]) -> Page:
    """Return the report."""
    page = Page()
    page.add("h1", study.args.title or "Report")
    for text in verdict(study):
        page.add("p", text)
    for plot in shown[:2]:
        page.add("figure", plot)
    page.add("h2", "Scores")
    page.add("p", "Mean over seeds of the score of a run, [its 95% Student-t interval], and (number of seeds).")
    page.add("table", _score_table(study))
    if study.together:
        page.add("p", f"Over {len(study.together)} tasks, with 95% stratified bootstrap intervals:")
        measures = [[interval(found[key]) for key in stats.AGGREGATES] for found in study.aggregates.values()]
        rows = [[name, *cells] for name, cells in zip(study.aggregates, measures, strict=True)]
        page.add("table", [["variant", *(key.replace("_", " ") for key in stats.AGGREGATES)], *rows])
    for plot in shown[2:]:
        page.add("figure", plot)
    page.add("h2", "Runs")
    page.add("table", _run_table(study))
    failed = [_failure(run) for run in study.runs if run.state in FAILED]
    page.add("p", "Failed, and in the numbers:" if failed else "")
    page.add("table", [["run", "state", "frames", "score", "last words"], *failed] if failed else [])
    waiting = [run for run in study.runs if run.state not in (*FAILED, "done")]
    page.add("ul", [f"{run.name}: {run.state}, {_frames(run)} frames" for run in waiting])
    page.add("ul", study.notes)
    settings = _settings_table(study)
    page.add("h2", "What differs between the variants" if settings else "")
    page.add("table", settings)
    page.add("h2", "How the numbers are made")
    page.add("ul", _method(study))
    page.add("table", _scale_table(study))
    page.add("h2", "To look at in TensorBoard")
    page.add("ul", links)
    page.add("h2", "To run it again")
    page.add("ul", _origin(study))
    sweeps = sweep_commands(study.args.dirs)
    page.add("p", "The sweep, and each of its runs:" if sweeps else "")
    page.add("pre", "\n".join(sweeps))
    page.add("pre", "\n".join(commands(study)))
    return page


def _score_table(study: Study) -> list[list[str]]:
    def cell(values: Array) -> str:
        return f"{interval(stats.t_interval(values))} ({len(values)})" if len(values) else "-"

    rows = [
        [task, f"{study.budget[task]:,}", *(cell(study.scores(task, name)) for name in study.variants)]
        for task in study.tasks
    ]
    return [["task", "frames", *study.variants], *rows]


def _run_table(study: Study) -> list[list[str]]:
    rows = [["variant", "runs", "done", "failed", "not finished", "hours each", "frames per second"]]
    for variant in study.variants:
        counts = study.counts(variant)
        many = counts.total(), counts["done"], counts["failed"], counts.total() - counts["done"] - counts["failed"]
        speed = _speed([run for run in study.runs if run.variant == variant])
        rows.append([variant, *map(str, many), *map(number, speed)])
    return rows


def _speed(runs: Iterable[Record]) -> tuple[float, float]:
    """Mean hours and median frames per second of finished runs; NaN where time is not known."""
    ends = [(run.data.steps[-1], run.data.wall_s[-1]) for run in runs if run.state == "done" and len(run.data.steps)]
    known = [(frames, seconds) for frames, seconds in ends if seconds > 0]
    if not known:
        return math.nan, math.nan
    hours = float(np.mean([seconds for _, seconds in known])) / 3600
    return hours, float(np.median([frames / seconds for frames, seconds in known]))


def _frames(run: Record) -> str:
    reached = f"{int(run.data.steps[-1]):,}" if len(run.data.steps) else "0"
    return f"{reached} of {run.planned:,}" if run.planned else reached


def _failure(run: Record) -> list[str]:
    words = run.why.replace(str(Path.cwd()), ".").replace(str(Path.home()), "~").replace("`", "'")
    score = f"{number(run.score)}{' (no evaluation)' if run.imputed else ''}"
    return [run.name, run.state, _frames(run), score, f"`{words}`" if words else ""]


def _settings_table(study: Study) -> list[list[str]]:
    """Settings that are not the same in all variants; nothing if all are."""
    known = {run.variant: run.config for run in reversed(study.runs) if run.config}
    configs = [known.get(variant, {}) for variant in study.variants]
    rows = []
    for name in sorted({name for settings in configs for name in settings} - NO_VARIANT):
        cells = [_plain(settings[name]) if name in settings else "" for settings in configs]
        if len(set(cells)) > 1:
            rows.append([f"`{name}`", *cells])
    return [["setting", *study.variants], *rows] if rows else []


def _scale_table(study: Study) -> list[list[str]]:
    rows = [
        [task, f"{found.low:g}", f"{found.high:g}", found.meaning, found.source]
        for task, found in study.references.items()
        if found and not study.args.relative
    ]
    return [["task", "0", "1", "what they are", "source"], *rows] if rows else []


def _method(study: Study) -> list[str]:
    how = study.how
    return [
        f"Compared is {' and '.join(sorted({f'`{metric}`' for metric in study.metric.values()}))}. The score of a run "
        "is the mean of its evaluations in the last tenth of the frames that are compared; nothing is a maximum.",
        "A failed run keeps its last evaluation. Without one it scores as a random policy where that score is known, "
        "else as the worst evaluation of its task here.",
        "By task: Student-t intervals of a mean, Welch's of a difference, not corrected for the number of comparisons.",
        f"Over tasks: stratified bootstrap over the seeds of each task, {how.reps:,} resamples, seed {how.seed}, "
        "percentiles widened for few seeds (Hesterberg 2015). `benchmarks/stats.py` says how often such intervals hold "
        "the truth.",
        "Measures: Agarwal et al., NeurIPS 2021. A task weighs the same, however many seeds it has.",
    ]


def _origin(study: Study) -> list[str]:
    """Code and machines that the runs are of."""
    said = []
    for what, of in (("Code", _revision), ("torch", _torch), ("Hardware", _hardware)):
        values = Counter(of(run.manifest) or "unknown" for run in study.runs)
        said.append(f"{what}: {', '.join(f'{name} ({count} runs)' for name, count in sorted(values.items()))}")
    return [*said, f"Seeds: {', '.join(map(str, sorted({run.seed for run in study.runs})))}"]


def _torch(manifest: Mapping[str, Any]) -> str:
    return (manifest.get("versions") or {}).get("torch") or ""


def _hardware(manifest: Mapping[str, Any]) -> str:
    machine = manifest.get("hardware") or {}
    gpus = Counter(machine.get("gpus") or [])
    cpu = [f"{machine['cpu']}, {machine.get('cores')} cores"] if machine.get("cpu") else []
    return ", ".join([*(f"{n} x {name}" for name, n in gpus.items()), *cpu])


# ---- files -----------------------------------------------------------------------------------------------------------


def write_tidy(study: Study, path: Path) -> int:
    """Write all evaluations of all runs; returns how many."""
    with open(path, "w", newline="") as file:
        file.write(",".join(COLUMNS) + "\n")
        for run in study.runs:
            head = io.StringIO()
            csv.writer(head, lineterminator="").writerow([run.variant, run.task, run.seed, study.metric[run.task]])
            points = zip(run.data.steps.tolist(), run.data.values.tolist(), strict=True)
            file.writelines(f"{head.getvalue()},{step:.0f},{value:.6g}\n" for step, value in points)
    return sum(len(run.data.steps) for run in study.runs)


SUMMARY = (
    *("task", "variant", "metric", "frames", "seeds", "done", "failed", "unfinished", "mean", "t95_low", "t95_high"),
    *("median", "min", "max", "last_mean", "best_mean", "normalised_mean", "normalised_iqm", "hours", "sps"),
)


def write_summary(study: Study, path: Path) -> None:
    """Write a row per task and variant. `seeds` have a score; best is the best evaluation of each, and no score."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(SUMMARY)
        for task, variant in sorted({(run.task, run.variant) for run in study.runs}):
            counts, cell, values = (
                study.counts(task, variant),
                study.cells.get((task, variant), []),
                study.scores(task, variant),
            )
            unfinished = counts.total() - counts["done"] - counts["failed"]
            row = [
                task,
                variant,
                study.metric[task],
                study.budget[task],
                len(values),
                counts["done"],
                counts["failed"],
                unfinished,
            ]
            if cell:
                found = [*stats.t_interval(values), np.median(values), values.min(), values.max()]
                found += [np.mean([run.last for run in cell]), np.mean([run.best for run in cell])]
                scaled = study.normalised(task, values) if task in study.scale else np.full(1, math.nan)
                iqm = stats.bootstrap([scaled], stats.iqm, Bootstrap(1)).value if task in study.scale else math.nan
                found += [scaled.mean(), iqm, *_speed(cell)]
                row += ["" if math.isnan(x) else f"{x:.6g}" for x in map(float, found)]
            writer.writerow(row)


def aggregate(study: Study) -> dict[str, Any]:
    """Return all that was computed over seeds and tasks, for aggregate.json."""

    def plain(estimate: Estimate) -> dict[str, float | None]:
        return {name: None if math.isnan(x) else float(f"{float(x):.6g}") for name, x in estimate._asdict().items()}

    scale = {}
    for task, (low, high) in study.scale.items():
        known = None if study.args.relative else study.references[task]
        said = (
            {"meaning": known.meaning, "source": known.source} if known else {"meaning": "relative to this comparison"}
        )
        scale[task] = {"low": low, "high": high, **said}
    return {
        "verdict": [text.replace("**", "") for text in verdict(study)],
        "score": "mean of the evaluations in the last 10% of the frames",
        "metric": study.metric,
        "frames": study.budget,
        "runs": dict(sorted(study.counts().items())),
        "bootstrap": study.how._asdict(),
        "tasks_together": study.together,
        "scale": scale,
        "variants": {name: {key: plain(x) for key, x in found.items()} for name, found in study.aggregates.items()},
        "improvement": [
            {"variant": pair.variant, "over": pair.baseline, "tasks": len(study.shared(pair)), **plain(estimate)}
            for pair, estimate in study.improvements.items()
        ],
        "difference": [
            {
                "variant": pair.variant,
                "baseline": pair.baseline,
                "task": task,
                **plain(estimate),
                "verdict": sign(estimate),
            }
            for (pair, task), estimate in study.differences.items()
        ],
        "iqm_difference": [
            {"variant": pair.variant, "baseline": pair.baseline, **plain(estimate)}
            for pair, estimate in study.gains.items()
        ],
        "notes": study.notes,
    }


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def write_tensorboard(study: Study, folder: Path) -> None:
    """Write a run per variant: mean, low and high for each task, and charts that show them as a line with a band.

    The band is the Student-t interval over seeds; with one seed it is the line. What an earlier report left there goes.
    """
    for old in folder.glob("*/events.out.tfevents.*.report"):
        old.unlink()
    series = layout_pb2.MarginChartContent.Series
    charts = [
        layout_pb2.Chart(
            title=task,
            margin=layout_pb2.MarginChartContent(
                series=[series(value=f"{task}/mean", lower=f"{task}/low", upper=f"{task}/high")]
            ),
        )
        for task in reversed(study.tasks)  # TensorBoard shows the last one first
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="mean and 95% interval over seeds", chart=charts)])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    tensor = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
    head = Summary.Value(tag="custom_scalars__config__", metadata=metadata, tensor=tensor)
    found = {task: curves(study, task) for task in study.tasks}
    for variant in study.variants:
        path = folder / re.sub(r"[^\w.=-]+", "-", variant) / "events.out.tfevents.0000000000.report"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            writer = RecordWriter(file)
            writer.write(Event(file_version="brain.Event:2").SerializeToString())
            if variant == study.variants[0]:  # it holds for all runs
                writer.write(Event(summary=Summary(value=[head])).SerializeToString())
            for task, variant_curves in found.items():
                if variant in variant_curves:
                    for event in _events(task, variant_curves[variant], study.cells[task, variant]):
                        writer.write(event.SerializeToString())


def _events(task: str, curve: Curve, runs: Sequence[Record]) -> Iterator[Event]:
    """Points of a task; their time is the mean over runs, so that TensorBoard's relative axis is time of training."""
    mean, *ends = stats.t_interval(curve.values)
    low, high = (np.where(np.isnan(x), mean, x) for x in ends)
    timed = [run.data for run in runs if len(run.data.steps) and not np.isnan(run.data.wall_s).any()]
    seconds = np.mean([np.interp(curve.x, data.steps, data.wall_s) for data in timed] or [0 * curve.x], axis=0)
    for step, at, *values in zip(curve.x, seconds, mean, low, high, strict=True):
        tagged = zip((f"{task}/mean", f"{task}/low", f"{task}/high"), values, strict=True)
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in tagged])
        yield Event(step=round(step), wall_time=at, summary=summary)


def deep_links(study: Study, folders: Sequence[Path], out: Path) -> list[str]:
    """Return what to type and what to open: the variants with bands; all seeds, those of a variant in one colour."""
    found = [
        f"Means with bands: `tensorboard --logdir {_shown(out / 'tb')}`, then {HOST}#custom_scalars&_smoothingWeight=0 "
        "(smoothing would smooth the line and leave the band)"
    ]
    for folder in folders:
        if not folder.is_dir():
            continue
        logdir = folder / "runs" if (folder / "runs").is_dir() else folder
        of_sweep = any(run.path.name == f"seed{run.seed}" for run in study.runs if folder in run.path.parents)
        group = r"([^/]+)/seed\d+$" if of_sweep else r"__([^/]+)__\d+__\d{8}-\d{6}"
        tags = "|".join(sorted(set(study.metric.values())))
        query = (
            f"?runColorGroup={quote('regex:' + group, safe='')}&tagFilter={quote(f'^({tags})$', safe='')}&smoothing=0"
        )
        found.append(
            f"All seeds, coloured by variant: `tensorboard --logdir {_shown(logdir)}`, then {HOST}{query}#timeseries"
        )
        for task in study.tasks[:12] if len(study.tasks) > 1 else ():
            folder_of = re.escape(re.sub(r"[^\w.-]+", "-", task))
            only = quote(f"^{folder_of}(/|__)", safe="")
            found.append(f"The same of {task} alone: {HOST}{query}&runFilter={only}#timeseries")
    return found


HOST = "http://localhost:6006/"


def _shown(path: Path) -> str:
    """A path as a reader would type it from here."""
    full = path.resolve()
    return shlex.quote(str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full))


# ---- command line ----------------------------------------------------------------------------------------------------


def collect(folders: Sequence[Path], metric: str) -> list[Record]:
    """Return the runs in folders and tidy files; fails if there are none, or none with a value.

    Raises:
        ValueError: a file is no tidy table.
    """
    metrics = [RETURN, SUCCESS] if metric == "auto" else [metric]
    records: list[Record] = []
    for folder in folders:
        config.require(folder.exists(), f"{folder} does not exist")
        if folder.is_file():
            records += read_tidy(folder)
            continue
        for path in find_runs(folder):
            run = read_run(path, str(folder.resolve().name / path.relative_to(folder)), metrics)
            records += [run] if run else []
        records += not_begun(folder, records)
    where = ", ".join(map(str, folders))
    config.require(bool(records), f"no run under {where}")
    if not any(len(run.series.get(name, NOTHING).steps) for run in records for name in metrics):
        logs = [run.path / "metrics.csv" for run in records if (run.path / "metrics.csv").is_file()]
        known = {row[3] for log in logs[:3] for row in csv.reader(log.read_text().split("\n")[1:]) if len(row) == 7}
        has = f"; they have {', '.join(sorted(known))}" if known else ""
        config.fail(f"none of {len(records)} runs under {where} has {' or '.join(metrics)}{has}")
    return records


def not_begun(folder: Path, records: Sequence[Record]) -> list[Record]:
    """Return the runs that the sweep in a folder is to make and has made no directory for yet."""
    tasks = {run.path.parents[1]: run.task for run in records}
    there, found = {run.path for run in records}, []
    for key in read_json(folder / "sweep.json").get("runs") or []:
        path = folder / "runs" / key
        match = re.fullmatch(r"[^/]+/((\w+?)__[^/]+)/seed(\d+)", key)
        if match and path not in there:
            task, name = tasks.get(path.parents[1], path.parents[1].name), f"{folder.resolve().name}/runs/{key}"
            found.append(Record(path, name, task, match[1], match[2], int(match[3]), "waiting"))
    return found


def out_folder(args: Args) -> Path:
    """Return where the report goes: not among plain runs, where TensorBoard would take its curves for runs."""
    if args.out is not None:
        return args.out
    config.require(len(args.dirs) == 1, "say --out for a report on several folders")
    folder = args.dirs[0].resolve()
    name = folder.stem if folder.is_file() else folder.name
    return args.dirs[0] if (folder / "runs").is_dir() else folder.with_name(f"{name}-report")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    flags = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    args = config.parse(Args, argv=(["--dirs", *words[:flags]] if flags else []) + words[flags:]).args
    config.positive(args, "reps")
    config.require(args.at >= 0, f"--at {args.at}: must not be below 0")
    out = out_folder(args)
    try:
        study = Study(collect(args.dirs, args.metric), args)
        overlays = [curve for path in args.overlay for curve in read_overlay(path, study.metric)]
    except (OSError, ValueError) as error:
        config.fail(str(error))
    if args.overlay and not overlays:
        study.notes.append("No published curve is of these tasks.")
    folder = out / "plots"
    folder.mkdir(parents=True, exist_ok=True)
    shown = plots(study, overlays)
    for plot in shown:
        save(plot, folder, args.title)
    values = write_tidy(study, out / "results.csv")
    write_summary(study, out / "summary.csv")
    (out / "aggregate.json").write_text(json.dumps(aggregate(study), indent=2) + "\n")
    write_tensorboard(study, out / "tb")
    links = deep_links(study, args.dirs, out)
    page = write_up(study, shown, links)
    (out / "REPORT.md").write_text(page.markdown())
    (out / "report.html").write_text(page.html(folder))
    print("\n".join(re.sub(r"\*\*|`", "", text) for text in [*verdict(study), *study.notes, "", *links, ""]))
    print(f"{out}: REPORT.md, report.html, {len(shown)} plots, {len(study.runs)} runs, {values:,} evaluations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
