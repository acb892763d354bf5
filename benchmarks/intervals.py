"""What the numbers of a report are worth and what they cost: coverage of its intervals, speed, memory.

    python benchmarks/intervals.py coverage --out benchmarks/results/coverage.json
    python benchmarks/intervals.py bootstrap --rliable VENV/bin/python     # beside rliable's
    python benchmarks/intervals.py report                                  # of 1,000 runs with 1,000 evaluations each

Coverage is the share of simulated experiments whose 95% interval holds the truth, which a simulation knows. The scores
of a task are normal; the means of the tasks lie evenly from 0.3 to 1, and their deviations from 0.25 to 0.1; a single
task is in the middle. A run that fails has a score near 0 instead. `improvement` compares two variants that are the
same, `improvement, apart` two that differ by a deviation in each task. `plain` are percentiles as rliable takes them,
not widened for few seeds.

rliable needs old versions of what it stands on: pip install 'rliable==1.2.0' 'pandas<3' 'arch<8', in an environment of
its own. Both sides resample the same scores as often, each in a process of its own with one thread, and processor time
counts. The time of a report is that of its process, from the start of the interpreter on.
"""

import csv
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from numpy.typing import NDArray

from agents import config, machine
from agents.manifest import manifest
from benchmarks import stats
from benchmarks.stats import Bootstrap, Estimate

ROOT = Path(__file__).resolve().parents[1]
Array = NDArray[np.float64]
FAILING = 0.2
"""share of the runs that fail, where some do"""
GET_RLIABLE = "python -m venv rliable && rliable/bin/pip install 'rliable==1.2.0' 'pandas<3' 'arch<8'"


@dataclass
class Args:
    """Measure what the numbers of a report are worth, and what they cost."""

    what: tyro.conf.Positional[Literal["coverage", "bootstrap", "report"]]
    """coverage of intervals, speed of the bootstrap, or a report of many runs"""
    experiments: int = 2000
    """simulated ones, for each number of coverage"""
    reps: int = 0
    """resamples; 0 for 2,000 in coverage and 50,000 in bootstrap"""
    repeats: int = 5
    """of what is timed; the median counts"""
    rliable: Path | None = None
    """interpreter of an environment that has rliable"""
    runs: int = 1000
    """that are reported"""
    points: int = 1000
    """evaluations of each run"""
    out: Path | None = None
    """JSON file for settings, machine and every number"""


# ---- coverage --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A kind of interval, over so many tasks."""

    tasks: int
    measure: str
    plain: bool = False


CASES = (
    *(Case(1, "t"), Case(1, "welch")),
    *(Case(tasks, "iqm", plain) for tasks in (2, 5, 10) for plain in (False, True)),
    *(Case(tasks, "mean", plain) for tasks in (2, 10) for plain in (False, True)),
    *(Case(10, "median"), Case(10, "optimality_gap")),
    *(Case(10, "improvement"), Case(10, "improvement", plain=True), Case(10, "improvement, apart")),
)
SEEDS = (3, 5, 10)
AT_ONCE = 250
"""experiments that are simulated together: resamples of all of them are in memory"""


def tasks_of(count: int) -> tuple[Array, Array]:
    """Return means and deviations [T] of the scores of the tasks."""
    place = np.linspace(0, 1, count) if count > 1 else np.array([0.5])
    return 0.3 + 0.7 * place, 0.25 - 0.15 * place


def draw(
    rng: np.random.Generator, case: Case, shape: tuple[int, ...], failing: bool, shift: float = 0.0
) -> list[Array]:
    """Return scores of this shape for each task, `shift` deviations higher than they are."""
    scores = []
    for mean, deviation in zip(*tasks_of(case.tasks), strict=True):
        x = mean + deviation * (shift + rng.standard_normal(shape))
        failed = rng.random(shape) < FAILING * failing
        scores.append(np.where(failed, 0.02 * np.abs(rng.standard_normal(shape)), x))
    return scores


@cache
def truth(case: Case, failing: bool) -> float:
    """Return what an interval should hold, by half a million runs of each task where there is no closed form."""
    if case.measure in ("welch", "improvement"):
        return 0.0 if case.measure == "welch" else 0.5
    if case.measure == "improvement, apart" and not failing:
        return NormalDist().cdf(1 / math.sqrt(2))
    rng = np.random.default_rng(12345)
    scores = draw(rng, case, (500_000,), failing)
    if case.measure == "improvement, apart":
        others = draw(rng, case, (500_000,), failing, shift=1.0)
        return float(np.mean([np.mean(y > x) for x, y in zip(scores, others, strict=True)]))
    measure = stats.mean if case.measure == "t" else stats.AGGREGATES[case.measure]
    return float(stats.bootstrap(scores, measure, Bootstrap(reps=1)).value)


def coverage(case: Case, seeds: int, failing: bool, experiments: int, reps: int, seed: int = 0) -> float:
    """Return the share of experiments whose interval holds the truth."""
    rng = np.random.default_rng([seed, case.tasks, seeds, failing, *case.measure.encode()])
    parts = [min(AT_ONCE, experiments - begun) for begun in range(0, experiments, AT_ONCE)]
    return sum(_held(case, seeds, failing, part, reps, rng) for part in parts) / experiments


def _held(case: Case, seeds: int, failing: bool, experiments: int, reps: int, rng: np.random.Generator) -> int:
    """How many intervals hold the truth. All of them have the same resamples, of scores of their own."""
    x = draw(rng, case, (seeds, experiments), failing)
    how = Bootstrap(reps, expand=not case.plain)
    if case.measure == "t":
        found = stats.t_interval(x[0])
    elif case.measure == "welch":
        y = draw(rng, case, (seeds, experiments), failing)
        each = [stats.welch(a, b) for a, b in zip(x[0].T, y[0].T, strict=True)]
        found = Estimate(*(np.array(column) for column in zip(*each, strict=True)))
    elif case.measure.startswith("improvement"):
        better = draw(rng, case, (seeds, experiments), failing, shift=float("apart" in case.measure))
        found = stats.improvement(better, x, how)
    else:
        found = stats.bootstrap(x, stats.AGGREGATES[case.measure], how)
    known = truth(case._replace(plain=False), failing)
    return int(np.sum((found.low <= known) & (known <= found.high)))


def simulate(args: Args) -> Iterator[dict[str, Any]]:
    """Yield the coverage of each case: by number of seeds, with no run failing and with some."""
    for case in CASES:
        row: dict[str, Any] = case._asdict()
        for failing in (False, True):
            shares = {str(n): coverage(case, n, failing, args.experiments, args.reps) for n in SEEDS}
            row["failing" if failing else "normal"] = shares
        print(
            f"{name_of(case):<34}",
            *(f"{share:7.3f}" for key in ("normal", "failing") for share in row[key].values()),
            flush=True,
        )
        yield row


def name_of(case: Case) -> str:
    """Return a case in words."""
    words = {"t": "mean, Student's t", "welch": "difference, Welch's t", "iqm": "IQM"}
    tasks = "1 task" if case.tasks == 1 else f"{case.tasks} tasks"
    return f"{tasks}, {words.get(case.measure, case.measure.replace('_', ' '))}{', plain' if case.plain else ''}"


# ---- the bootstrap beside rliable's ----------------------------------------------------------------------------------

DATA = ((20, 10, 8), (21, 5, 10), (22, 3, 26))
"""seed, runs, tasks of the scores that both sides get"""
COMMON = """
import json, statistics, sys, time
import numpy as np
asked = json.load(sys.stdin)
x, y = np.array(asked["x"]), np.array(asked["y"])

def timed(call):
    found, seconds = None, []
    for _ in range(asked["repeats"]):
        before = time.process_time()
        found = call()
        seconds.append(time.process_time() - before)
    return found, statistics.median(seconds)
"""
OURS = """
from benchmarks import stats
def fresh(call):
    stats._resamples.cache_clear()
    return call()
how = stats.Bootstrap(asked["reps"], expand=False)
measures = stats.AGGREGATES.values()
aggregates, seconds = timed(lambda: fresh(lambda: [stats.bootstrap(list(x.T), f, how) for f in measures]))
how = stats.Bootstrap(asked["pair_reps"], expand=False)
pair, pair_seconds = timed(lambda: fresh(lambda: stats.improvement(list(x.T), list(y.T), how)))
numbers = [[float(v) for v in estimate] for estimate in [*aggregates, pair]]
print(json.dumps({"numbers": numbers, "seconds": seconds, "pair_seconds": pair_seconds}))
"""
THEIRS = """
from rliable import library, metrics
f = lambda z: np.array([metrics.aggregate_iqm(z), metrics.aggregate_median(z), metrics.aggregate_mean(z),
                        metrics.aggregate_optimality_gap(z)])
(points, ends), seconds = timed(lambda: library.get_interval_estimates({"x": x}, f, reps=asked["reps"]))
(won, won_ends), pair_seconds = timed(
    lambda: library.get_interval_estimates({"x": (x, y)}, metrics.probability_of_improvement, reps=asked["pair_reps"]))
numbers = [[float(points["x"][i]), *map(float, ends["x"][:, i])] for i in range(4)]
numbers += [[float(won["x"]), *map(float, np.ravel(won_ends["x"]))]]
print(json.dumps({"numbers": numbers, "seconds": seconds, "pair_seconds": pair_seconds}))
"""


def scores(seed: int, runs: int, tasks: int) -> Array:
    """Return scores [runs, tasks] of tasks that differ in mean and spread."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1.1, tasks) + rng.uniform(0.05, 0.4, tasks) * rng.standard_normal((runs, tasks))


def ask(python: str, code: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return what a program prints as JSON, given a request.

    Raises:
        SystemExit: it has failed; with its last line.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    env = {**os.environ, **threads, "PYTHONPATH": str(ROOT) if code == OURS else ""}
    command = [python, "-c", COMMON + code]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, env=env)
    if done.returncode:
        config.fail(f"{python}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout)


def bootstrap(args: Args) -> Iterator[dict[str, Any]]:
    """Yield the seconds of all four measures with their intervals, and of an improvement, on each set of scores."""
    pair_reps = max(args.reps // 25, 1)  # of which rliable takes five milliseconds each
    for seed, runs, tasks in DATA:
        x, y = scores(seed, runs, tasks), scores(seed + 100, runs, tasks)
        request = {"x": x.tolist(), "y": y.tolist(), "reps": args.reps, "pair_reps": pair_reps}
        ours = ask(sys.executable, OURS, {**request, "repeats": args.repeats})
        row: dict[str, Any] = {"seeds": runs, "tasks": tasks, "reps": args.reps, "pair_reps": pair_reps}
        row |= {"ours_s": ours["seconds"], "ours_pair_s": ours["pair_seconds"]}
        ms, pair_ms = 1000 * ours["seconds"], 1000 * ours["pair_seconds"]
        said = f"{runs} seeds x {tasks} tasks  {ms:8.1f} ms  pair {pair_ms:8.2f} ms"
        if args.rliable:
            theirs = ask(str(args.rliable), THEIRS, {**request, "repeats": 1})
            row |= {"rliable_s": theirs["seconds"], "rliable_pair_s": theirs["pair_seconds"]}
            apart = np.abs(np.array(ours["numbers"]) - np.array(theirs["numbers"]))
            row |= {"points_differ": float(apart[:, 0].max()), "ends_differ": float(apart[:4, 1:].max())}
            row |= {"times": theirs["seconds"] / ours["seconds"]}
            row |= {"pair_times": theirs["pair_seconds"] / ours["pair_seconds"]}
            said += f"  rliable {theirs['seconds']:.1f} s, {row['times']:.0f} times; pair {row['pair_times']:.0f} times"
        print(said, flush=True)
        yield row


# ---- a report of many runs -------------------------------------------------------------------------------------------

TASKS = (
    *("WalkerWalk-v1", "WalkerRun-v1", "CheetahRun-v1", "HopperHop-v1", "HopperStand-v1"),
    *("FingerSpin-v1", "ReacherEasy-v1", "CartpoleSwingup-v1", "HumanoidWalk-v1", "FishSwim-v1"),
)
VARIANTS = ("sem-off", "sem-actor", "sem-on", "sem-wide")


def write_sweep(root: Path, runs: int, points: int) -> None:
    """Write a sweep of so many runs, with so many evaluations each and two more metrics beside them."""
    rng = np.random.default_rng(0)
    steps = np.arange(1, points + 1) * 1000
    for index in range(runs):
        seed, place = divmod(index, len(TASKS) * len(VARIANTS))
        task, variant = TASKS[place // len(VARIANTS)], VARIANTS[place % len(VARIANTS)]
        path = root / "runs" / task / f"fasttd3__{variant}" / f"seed{seed + 1}"
        path.mkdir(parents=True)
        settings = {"env_id": task, "seed": seed + 1, "exp_name": f"fasttd3__{variant}", "wide": variant == "sem-wide"}
        settings |= {"sem": variant != "sem-off", "total_timesteps": int(steps[-1])}
        (path / "config.json").write_text(json.dumps(settings))
        (path / "manifest.json").write_text(
            json.dumps({"agent": "fasttd3", "argv": ["agents/fasttd3.py", "--env-id", task]})
        )
        (path / "status.json").write_text(json.dumps({"state": "done"}))
        curve = rng.uniform(400, 900) * (1 - np.exp(-5 * steps / steps[-1])) + rng.normal(0, 30, points)
        with open(path / "metrics.csv", "w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("exp_name", "env_id", "seed", "metric", "step", "wall_s", "value"))
            head = (f"fasttd3__{variant}", task, seed + 1)
            for step, value in zip(steps.tolist(), curve.tolist(), strict=True):
                for metric, x in (("losses/critic", 0.1), ("eval/episodic_return", value), ("charts/SPS", 500.0)):
                    writer.writerow((*head, metric, step, round(step / 500, 3), round(x, 4)))


def report(args: Args) -> Iterator[dict[str, Any]]:
    """Yield the time and the memory of a report of many runs."""
    with tempfile.TemporaryDirectory() as folder:
        write_sweep(Path(folder), args.runs, args.points)
        begun = time.perf_counter()
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=env)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        config.require(process.returncode == 0, f"the report has failed with exit status {process.returncode}")
    unit = 2**20 if sys.platform == "darwin" else 2**10
    row = {"runs": args.runs, "points": args.points, "wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime}
    row |= {"peak_mib": used.ru_maxrss / unit}
    print(
        f"{args.runs:,} runs x {args.points:,} evaluations: {wall:.1f} s, {row['cpu_s']:.1f} s of processor time, "
        f"{row['peak_mib']:,.0f} MiB"
    )
    yield row


# ---- command line ----------------------------------------------------------------------------------------------------

MEASURES = {"coverage": simulate, "bootstrap": bootstrap, "report": report}
SETTINGS = {"coverage": ("experiments", "reps"), "bootstrap": ("reps", "repeats"), "report": ("runs", "points")}
"""what each goes by"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print and write the results."""
    args = config.parse(Args, argv=argv).args
    config.positive(args, "experiments", "repeats", "runs", "points")
    config.require(args.reps >= 0, f"--reps {args.reps}: must be 0 or above")
    if args.out is not None:
        config.require(args.out.parent.is_dir(), f"--out {args.out}: there is no directory {args.out.parent}")
    if args.rliable is not None:
        config.require(args.rliable.is_file(), f"--rliable {args.rliable}: there is no such interpreter")
    elif args.what == "bootstrap":
        print(f"only our side: --rliable takes the interpreter of an environment that has it\n  {GET_RLIABLE}\n")
    args = replace(args, reps=args.reps or {"coverage": 2000}.get(args.what, 50_000))
    about = manifest()
    print(f"machine  {about['hardware']['cpu']}, {machine.available_cores()} cores")
    if args.what == "coverage":
        print(f"{'seeds':<34}", *(f"{n:>7}" for n in (*SEEDS, *SEEDS)), " the last three with one run in five failing")
    rows = list(MEASURES[args.what](args))
    if args.out is not None:
        settings = {name: getattr(args, name) for name in ("what", *SETTINGS[args.what])}
        where = {key: about[key] for key in ("time", "git", "versions", "hardware")}
        args.out.write_text(json.dumps({"settings": settings, "machine": where, "results": rows}, indent=1) + "\n")
        print(f"every number: {args.out}")


if __name__ == "__main__":
    config.program(main)
