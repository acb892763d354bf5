"""Which runs make up a variant, what they score, and their curves."""

import csv
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from agents import config
from benchmarks import stats
from benchmarks.records import FAILED, NOTHING, RETURN, Array, Record, Series, read_tidy
from benchmarks.stats import Bootstrap, Estimate

REFERENCES = Path(__file__).with_name("references.csv")
POINTS = 100
"""of a curve over frames that were not the same in all runs, and of a curve over time"""
SLACK = 1.01
"""two lengths within this factor are the same: they are rounded to steps of all environments"""
CURVE_REPS = 2000
"""resamples for the band of a curve, whose ends nobody reads to the third digit"""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")
"""Okabe and Ito's colours without yellow, which any eye tells apart, and two more"""
BASELINE, PUBLISHED, INK, FAINT = "#4A4A4A", "#9A9A9A", "#222222", "#6B6B6B"

NO_VARIANT = {
    *("env_id", "seed", "exp_name", "run_dir", "run_root", "resume", "quiet", "total_timesteps", "log_every"),
    *("eval_every", "eval_envs", "save_every", "save_replay", "keep_checkpoints", "threads", "env_threads", "device"),
}
"""settings that may differ between the runs of one variant"""


@dataclass
class Args:
    """What is compared, and how."""

    dirs: tuple[Path, ...] = (Path("runs"),)
    """folders of run directories, looked through to any depth, or tidy CSV files"""
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
    seed: int = 0
    """of the bootstrap"""
    reps: int = 10_000
    """resamples of the bootstrap"""


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
        ValueError: a scale is empty, or the file is another table.
    """
    found = []
    with open(path, newline="") as file:
        for line, row in enumerate(csv.DictReader(file), 2):
            try:
                meaning, source = row["meaning"], row["source"]
                reference = Reference(row["metric"], float(row["low"]), float(row["high"]), meaning, source)
                found.append((row["env_id"], reference))
            except (KeyError, TypeError, ValueError) as error:
                columns = "env_id, metric, low, high, meaning and source, low and high being numbers"
                raise ValueError(f"{path}, line {line}: expected {columns}") from error
            if not -math.inf < reference.low < reference.high < math.inf:
                raise ValueError(f"{path}: {row['env_id']} has low {row['low']} and high {row['high']}")
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
        self.folders, self.title = args.dirs, args.title
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
        return list(dict.fromkeys(pairs))  # the agent of a run in a table is not known: a variant can be of both

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
        for run in runs:
            run.cut = run.planned > SLACK * budget
            if len(run.data.steps):
                run.score, run.last, run.best = score(run.data, budget, run.cut)
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

    @cached_property
    def pending(self) -> list[Record]:
        """Runs that have no score yet. One that goes on, or was stopped, beyond the frames that are compared has it."""
        return [run for run in self.runs if run.state not in (*FAILED, "done") and math.isnan(run.score)]

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

    def lost(self, *where: str) -> list[Record]:
        """Return the runs that failed before any evaluation, of a task or variant if they are named.

        They are in no mean, since any score would be made up, and without them a comparison is no verdict.
        """
        return [
            run
            for run in self.runs
            if run.state in FAILED and math.isnan(run.score) and set(where) <= {run.task, run.variant}
        ]

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
                few = "without an evaluation" + (" in the frames that are compared" if len(run.data.steps) else "")
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
        sources = {run.source for run in self.runs}  # what a sweep goes by: commits may touch other files
        code = sorted({revision_of(run.manifest) for run in self.runs} - {""})
        if len(code) > 1 and (len(sources) > 1 or "" in sources):
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
            said = [f"{name}={as_text(run.config.get(name))}" for name in differ]
            more = f", {len(said) - 3} more: {crc32(repr(said).encode()):08x}" if len(said) > 3 else ""
            run.variant += f" ({', '.join(said[:3])}{more})"


def _some(names: Sequence[str], most: int = 8) -> str:
    """`a, b and 5 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def as_text(value: Any) -> str:
    """A setting in words."""
    return {True: "on", False: "off", None: "none"}[value] if isinstance(value, bool | None) else str(value)


def revision_of(manifest: Mapping[str, Any]) -> str:
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
            found[variant] = Curve(x, np.array([values_at(run, x, wall) for run in cell]))
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


def values_at(run: Record, x: Array, wall: bool = False) -> Array:
    """The values of a run at points of an axis; outside of what it has, the nearest."""
    return np.interp(x, run.axis(wall), run.data.values)


def curves_over_tasks(study: Study, measure: str) -> dict[str, tuple[Array, Estimate]]:
    """Return a measure over all tasks and runs of each variant, at shares of the frames that are compared."""
    through = [run for run in study.runs if run.task in study.together and run.state not in FAILED]
    first = max((run.data.steps[0] / study.budget[run.task] for run in through if len(run.data.steps)), default=0.0)
    share = np.linspace(min(first, 1.0), 1, POINTS)
    how = study.how._replace(reps=min(study.how.reps, CURVE_REPS))
    found = {}
    for variant in study.variants:
        at = {
            task: [values_at(run, share * study.budget[task]) for run in study.cells[task, variant]]
            for task in study.together
        }
        tasks = [study.normalised(task, np.array(values)) for task, values in at.items()]
        found[variant] = share, stats.bootstrap(tasks, stats.AGGREGATES[measure], how)
    return found


EVERY_TASK = "*"
"""in a tidy table the name of no task: the values are measures over all of them, on their common scale"""


class Overlay(NamedTuple):
    """A published curve of a task, the mean over its seeds, or of all tasks together."""

    name: str
    task: str
    """one of ours, or `EVERY_TASK`"""
    steps: Array
    seconds: Array
    mean: Array
    measure: str = ""
    """of all tasks, one of `stats.AGGREGATES`: what `mean` is then"""


def in_sight(study: Study, overlay: Overlay) -> bool:
    """Whether any point of a published curve is within the frames that are compared; of all tasks, if these are one."""
    frames = {study.budget[task] for task in (study.together if overlay.measure else [overlay.task])}
    return len(frames) == 1 and bool(((overlay.steps >= 0) & (overlay.steps <= 1.0001 * max(frames))).any())


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
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # of JSON, or of its characters
        raise ValueError(f"{path} is no JSON: {error}") from error
    for theirs, entry in content.items() if isinstance(content, dict) else [("the file", content)]:
        levels = {path.stem: entry} if not isinstance(entry, dict) or "return" in entry else entry
        for name, curve in levels.items():
            if not isinstance(curve, dict) or not {"env_step", "time", "return"} <= curve.keys():
                raise ValueError(f"{path}: {theirs} lacks env_step, time or return")
            try:
                columns = np.array([curve[key] for key in ("env_step", "time", "return")], float)
            except ValueError as error:
                raise ValueError(f"{path}: {theirs}: env_step, time and return must be as many numbers each") from error
            real = (columns[0] > 0) | (columns[2] != 0)
            if task := same_task(theirs, metric):
                found.append(Overlay(name, task, *(x[real] for x in columns)))
    return found


def _tidy_overlay(path: Path, metric: Mapping[str, str]) -> list[Overlay]:
    """Curves in a tidy CSV file, at the steps that all seeds have between them."""
    groups: dict[tuple[str, str, str], list[Series]] = defaultdict(list)
    try:
        runs = read_tidy(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: {error}") from error
    for run in runs:
        if run.task == EVERY_TASK:
            for measure in [name for name in stats.AGGREGATES if name in run.series]:
                groups[run.variant, EVERY_TASK, measure].append(run.series[measure])
        elif (task := same_task(run.task, metric)) and metric[task] in run.series:
            groups[run.variant, task, ""].append(run.series[metric[task]])
    found = []
    for (name, task, measure), seeds in groups.items():
        low, high = max(run.steps[0] for run in seeds), min(run.steps[-1] for run in seeds)
        steps = np.unique(np.concatenate([run.steps for run in seeds]))
        steps = steps[(steps >= low) & (steps <= high)]
        mean = np.mean([np.interp(steps, run.steps, run.values) for run in seeds], axis=0)
        found.append(Overlay(name, task, steps, np.full(len(steps), math.nan), mean, measure))
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


# ---- numbers in words ------------------------------------------------------------------------------------------------


def digits_for(largest: float) -> int:
    """Return how many decimals are of use beside a number."""
    return 0 if largest >= 100 else 1 if largest >= 10 else 2


def number(x: float, digits: int | None = None) -> str:
    """Return `1,234`, `56.7`, `0.89`, or `-` for NaN."""
    return "-" if math.isnan(x) else f"{x:z,.{digits_for(abs(x)) if digits is None else digits}f}"
