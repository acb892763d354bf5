"""The figures of a report."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from benchmarks import stats
from benchmarks.records import FAILED, RETURN, SUCCESS
from benchmarks.stats import Estimate
from benchmarks.status import read_json
from benchmarks.study import (
    CURVE_REPS,
    FAINT,
    INK,
    POINTS,
    PUBLISHED,
    Overlay,
    Study,
    curves,
    curves_over_tasks,
    digits_for,
    in_sight,
    number,
    values_at,
)

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
                axes.plot(x, values_at(run, curve.x, wall), color=colour, alpha=0.6, linewidth=0.8, linestyle="--")
                seen.append(values_at(run, curve.x, wall))
                if len(run.data.steps) and run.axis(wall)[-1] <= right:
                    axes.plot(run.axis(wall)[-1] / unit, run.data.values[-1], "x", color=colour, markeredgewidth=1.6)
    for run in study.pending:
        if run.task == task and len(run.data.steps):
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
    said = [f"Line: mean over seeds ({span(sizes)} for each variant and task)."]
    if any(n >= BAND_FROM for n in sizes):
        said.append("Band: 95% Student-t interval of the mean, at each point on its own.")
    if any(n < BAND_FROM for n in sizes):
        said.append(f"Thin lines: single seeds, where they are fewer than {BAND_FROM} and a band would say little.")
    if any(run.state in FAILED for cell in study.cells.values() for run in cell):
        said.append("x: a run failed here; dashed, its last value counts from there on.")
    if any(len(run.data.steps) for run in study.pending):
        said.append("Dotted: a run that is not finished, and not in the mean.")
    if wall:
        sessions = [x for folder in study.folders for x in read_json(folder / "sweep.json").get("sessions") or []]
        most = max((int(x.get("per_gpu") or x.get("slots") or 1) for x in sessions), default=1)
        shared = f"up to {most} runs shared a machine" if most > 1 else "runs that shared a machine are slower"
        said.append(
            f"Time is that of the training process, with evaluations; {shared}. A curve ends with its fastest run."
        )
    if overlays:
        said.append("Dashed grey: published mean, from other code and often other settings.")
    name, title = ("curves_time", "Learning curves over time") if wall else ("curves", "Learning curves")
    caption = " ".join(said) + without(study)
    return Plot(name, title, caption, height * rows, draw, () if direct else all_names(study, overlays))


def without(study: Study, tasks: Iterable[str] = (), variants: Iterable[str] = ()) -> str:
    """Say how many runs are in none of the numbers of a plot, of some tasks and variants if they are named."""
    names, those = set(tasks) or set(study.tasks), set(variants) or set(study.variants)
    lost = sum(run.task in names and run.variant in those for run in study.lost())
    runs = (
        "1 run failed before any evaluation and is"
        if lost == 1
        else f"{lost} runs failed before any evaluation and are"
    )
    return f" {runs} in none of these numbers." if lost else ""


def span(sizes: Iterable[int]) -> str:
    """`5` or `3 to 5`."""
    found = sorted(set(sizes)) or [0]
    return f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]}"


def _scale(study: Study, tasks: Sequence[str] = ()) -> str:
    """What the scores 0 and 1 are."""
    if study.args.relative:
        return "Scores are relative to this comparison: 0 is the least and 1 the greatest of a task."
    meanings = {found.meaning for task in tasks or study.together if (found := study.references[task])}
    return f"Scores: {meanings.pop()}." if len(meanings) == 1 else "Scores: 0 and 1 as in the table of scales."


def efficiency_plot(study: Study, measure: str, overlays: Sequence[Overlay] = ()) -> Plot:
    """Return the plot of a measure over all tasks: its IQM, or what has been published."""
    direct = len(study.variants) <= 8
    budgets = {study.budget[task] for task in study.together}
    frames = budgets.pop() if len(budgets) == 1 else 0
    published = [curve for curve in overlays if curve.measure == measure and in_sight(study, curve)]
    strange = [curve for curve in published if overlay_colour(study, curve) == PUBLISHED]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ends = []
        for variant, (share, band) in curves_over_tasks(study, measure).items():
            x, colour = share * (frames or 100), study.colours[variant]
            axes.fill_between(x, band.low, band.high, color=colour, alpha=0.17, linewidth=0)
            axes.plot(x, band.value, color=colour, linewidth=2)
            ends.append((float(band.value[-1]), study.names[variant], colour))
        for curve in published:
            inside, colour = curve.steps <= frames * 1.0001, overlay_colour(study, curve)
            style: Any = {"linestyle": "--", "marker": "o", "markersize": 2.5, "linewidth": 1.3}
            axes.plot(curve.steps[inside], curve.mean[inside], color=colour, **style)
            if colour == PUBLISHED and inside.any():
                ends.append((float(curve.mean[inside][-1]), curve.name, colour))
        axes.grid(axis="y")
        axes.set(xlim=(0, frames or 100), ylabel=f"{MEASURES[measure]} normalised score")
        axes.set_xlabel("environment frames" if frames else "% of the frames that are compared, by task")
        if frames:
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if direct:
            label_ends(axes, ends, 2.8)

    what = {"iqm": "Interquartile mean"}.get(measure, measure.replace("_", " ").capitalize())
    caption = f"{what} over {len(study.together)} tasks and all their seeds. {_scale(study)} {BOOTSTRAPPED}"
    if published:
        caption += (
            " Dashed: published, in the colour of the variant of the same name, on the scale and the tasks of its "
            "source, from other code."
        )
    caption += without(study, study.together)
    title = "Sample efficiency over all tasks" + ("" if measure == "iqm" else f", {measure.replace('_', ' ')}")
    return Plot(measure, title, caption, 3.4, draw, () if direct else all_names(study, strange))


MEASURES = {"iqm": "IQM of", "median": "median", "mean": "mean", "optimality_gap": "optimality gap of"}


def overlay_colour(study: Study, overlay: Overlay) -> str:
    """Return the colour of the variant of the same name, or grey."""
    names = {study.names[variant]: variant for variant in study.variants} | {name: name for name in study.variants}
    return study.colours[names[overlay.name]] if overlay.name in names else PUBLISHED


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
    caption += without(study, study.together)
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
    caption += without(study, study.together)
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

    tasks = span(len(study.shared(pair)) for pair in pairs)
    caption = (
        f"Probability that a run of the first beats one of the second on the same task, mean over {tasks} tasks; 0.5 "
        "is no difference. Bar: 95% stratified bootstrap interval."
        + without(
            study, {task for pair in pairs for task in study.shared(pair)}, {name for pair in pairs for name in pair}
        )
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

    sizes = span(len(study.cells[task, name]) for pair, task in study.differences for name in pair)
    caption = (
        "Difference of mean scores: right of the line, the variant is better than its baseline. Bar: 95% Welch "
        f"interval over {sizes} seeds, each on its own: of many, one in twenty misses the truth."
        + (f" {_scale(study, tasks)}" if one_scale else "")
        + without(study, tasks, {name for pair, _ in study.differences for name in pair})
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
    found = []
    over_all = [curve for curve in overlays if curve.measure]
    overlays = [curve for curve in overlays if not curve.measure]
    if any(len(run.data.steps) for run in study.runs):
        found.append(curve_plot(study, overlays, wall=False))
    if study.differences:
        found.append(difference_plot(study))
    if any(pair in study.improvements for pair in study.comparisons):
        found.append(improvement_plot(study))
    if study.together:
        measures = dict.fromkeys(["iqm", *(curve.measure for curve in over_all)])
        efficiency = [efficiency_plot(study, measure, over_all) for measure in measures]
        found += [aggregate_plot(study), *efficiency, profile_plot(study)]
    if any(curves(study, task, wall=True) for task in study.tasks):
        found.append(curve_plot(study, overlays, wall=True))
    return found
