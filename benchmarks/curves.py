"""Learning curves of several runs in one picture and one table.

    python benchmarks/curves.py runs --out benchmarks/results/walker-walk

reads the metrics.csv of every run directory under `runs` and writes walker-walk.csv (tidy, every seed) and
walker-walk.png: the mean over seeds of each variant (exp_name), with each seed as a thin line and, from three seeds on,
a 95% Student-t band. A bootstrap of so few seeds would be far too narrow.
"""

import csv
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from agents import config

COLUMNS = ("exp_name", "env_name", "seed", "metric", "env_step", "value")
"""of the tidy table, as others in the field publish them"""

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""97.5% quantiles of Student's t for 1 to 10 degrees of freedom; with more, 1.96 (1 + 1.2 / degrees) is close"""


@dataclass
class Args:
    """Plot the learning curves of the runs in a folder."""

    runs: str = "runs"
    """folder of run directories, looked through to any depth"""
    out: str = "curves"
    """path of the table and the picture, without .csv and .png"""
    metric: str = "eval/episodic_return"
    """which one to plot"""
    title: str = ""
    """above the picture; by default the task"""


class Point(NamedTuple):
    """One value of one run."""

    exp_name: str
    env_id: str
    seed: int
    step: int
    value: float


def read(root: Path, metric: str) -> list[Point]:
    """Return all values of a metric in the runs under a folder, sorted."""
    points = []
    for path in sorted(root.rglob("metrics.csv")):
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                if row["metric"] == metric:
                    key = row["exp_name"], row["env_id"], int(row["seed"])
                    points.append(Point(*key, int(row["step"]), float(row["value"])))
    return sorted(points)


def band(values: np.ndarray) -> float:
    """Return half the width of the 95% Student-t interval of the mean of [n] values; NaN for fewer than three."""
    n = len(values)
    if n < 3:
        return math.nan
    t = T_975[n - 2] if n - 2 < len(T_975) else 1.96 * (1 + 1.2 / (n - 1))
    return t * float(values.std(ddof=1)) / math.sqrt(n)


def draw(points: Sequence[Point], title: str, metric: str, path: Path) -> None:
    """Write the picture."""
    curves: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for point in points:
        curves[point.exp_name][point.seed].append((point.step, point.value))
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (name, seeds) in enumerate(curves.items()):
        color = f"C{number}"
        shared = sorted(set.intersection(*({step for step, _ in curve} for curve in seeds.values())))
        values = np.array([[dict(curve)[step] for step in shared] for curve in seeds.values()])  # [seeds, steps]
        mean, half = values.mean(0), np.array([band(column) for column in values.T])
        for curve in seeds.values():
            axes.plot(*zip(*curve, strict=True), color=color, alpha=0.25, linewidth=0.8)
        axes.fill_between(shared, mean - half, mean + half, color=color, alpha=0.12, linewidth=0)
        axes.plot(shared, mean, color=color, linewidth=2, label=f"{name} ({len(seeds)} seeds)")
    axes.set(xlabel="environment frames", ylabel=metric, title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Write table and picture; returns the exit status."""
    args = config.parse(Args, argv=argv).args
    points = read(Path(args.runs), args.metric)
    config.require(bool(points), f"no run under {args.runs} has the metric {args.metric}")
    tasks = {point.env_id for point in points}
    config.require(len(tasks) == 1, f"the runs under {args.runs} are of several tasks: {', '.join(sorted(tasks))}")
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{out}.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((p.exp_name, p.env_id, p.seed, args.metric, p.step, round(p.value, 3)) for p in points)
    draw(points, args.title or tasks.pop(), args.metric, Path(f"{out}.png"))
    print(f"{out}.csv and {out}.png: {len(points)} values")
    return 0


if __name__ == "__main__":
    sys.exit(main())
