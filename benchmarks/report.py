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
the shortest variant was planned for. Runs that failed keep their last evaluation from there on, and are counted. A run
that failed before its first one has no score, and none is made up: no mean has it, each says how many of the runs it is
of, and a comparison that lacks it is no verdict. Runs that are still under way, or stopped and meant to go on, have no
score yet. All of these are listed. Where every run has failed, the report says which, why, and how to start them again.

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
import re
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

from agents import config
from benchmarks import stats
from benchmarks.plots import Plot, plots, save, span
from benchmarks.records import (
    COLUMNS,
    FAILED,
    HOST,
    NOTHING,
    RETURN,
    SEEDS_OF_RUNS,
    SEEDS_OF_SWEEP,
    SUCCESS,
    Record,
    find_runs,
    read_run,
    read_tidy,
    seeds_link,
)
from benchmarks.stats import Bootstrap, Estimate
from benchmarks.status import held, listed_runs, read_json
from benchmarks.study import (
    NO_VARIANT,
    Comparison,
    Curve,
    Study,
    as_text,
    curves,
    digits_for,
    in_sight,
    number,
    read_overlay,
    revision_of,
)
from benchmarks.study import Args as StudyArgs


@dataclass
class Args(StudyArgs):
    """Report on runs. Folders may be written without --dirs, before all flags: report.py DIR... --out OUT."""

    out: Path | None = None
    """folder of the report; by default the sweep's own, or DIR-report beside a folder of plain runs"""
    overlay: tuple[Path, ...] = ()
    """published curves to draw behind: tidy CSV files (the paper's figures are in benchmarks/published, by suite), or
    JSON files like those of FastTD3"""


# ---- words -----------------------------------------------------------------------------------------------------------


def interval(estimate: Estimate, signed: bool = False) -> str:
    """Return `0.63 [0.55, 0.71]`; without brackets where there is no interval."""
    value, low, high = (float(x) for x in estimate)
    digits = digits_for(np.nanmax(np.abs([value, low, high])))
    said = ("+" if signed and value > 0 else "") + number(value, digits)
    return said if math.isnan(low) else f"{said} [{number(low, digits)}, {number(high, digits)}]"


def sign(estimate: Estimate, middle: float = 0.0) -> str:
    """Return better, worse or unclear, by where the interval lies."""
    return "better" if estimate.low > middle else "worse" if estimate.high < middle else "unclear"


def sign_on(study: Study, pair: Comparison, task: str) -> str:
    """Return better, worse or unclear on one task; unclear where runs failed before any evaluation."""
    lost = any(study.lost(task, name) for name in pair)
    return "unclear" if lost else sign(study.differences[pair, task])


def many(count: int, what: str) -> str:
    """Return `1 run` or `3,000 runs`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def verdict(study: Study) -> list[str]:
    """Return what was found, a paragraph for each comparison, and how many runs failed."""
    counts = study.counts()
    said = []
    if study.pending:
        said.append(
            f"**Preliminary**: {len(study.pending)} of {counts.total()} runs are not finished and have no score yet."
        )
    said += [_compare(study, pair) for pair in study.comparisons]
    if not any(study.shared(pair) for pair in study.comparisons):
        for (task, variant), cell in study.cells.items():
            mean = interval(stats.t_interval(study.scores(task, variant)))
            said.append(f"**{variant}** on {task}: {mean} over {many(len(cell), 'seed')}.")
    lost = len(study.lost())
    if counts["failed"]:
        one = counts["failed"] - lost == 1
        kept = f"{counts['failed'] - lost} count{'s' if one else ''} with {'its' if one else 'their'} last evaluation"
        none = f"{lost} {'has no evaluation and is' if lost == 1 else 'have no evaluation and are'} in no number"
        parts = [kept] * (lost < counts["failed"]) + [none] * (lost > 0)
        said.append(f"**{counts['failed']} of {counts.total()} runs failed**: {', '.join(parts)}, see below.")
    else:
        said.append(f"None of {counts.total()} runs failed.")
    return said


def _compare(study: Study, pair: Comparison) -> str:
    """What was found about one variant."""
    tasks, start = study.shared(pair), f"**{pair.variant}** against **{pair.baseline}**"
    if not tasks:
        return f"{start}: no verdict, since there is no task in which both have a score."
    seeds = span(len(study.cells[task, name]) for task in tasks for name in pair)
    seeds += " seed" if seeds == "1" else " seeds"
    if len(tasks) == 1:
        found = study.differences[pair, tasks[0]]
        mine, other = (interval(stats.t_interval(study.scores(tasks[0], name))) for name in pair)
        said = (
            f"{start} on {tasks[0]}: {mine} against {other}, a difference of {interval(found, signed=True)} ({seeds})."
        )
        how = sign(found)
    else:
        found = study.improvements[pair]
        by = Counter(sign_on(study, pair, task) for task in tasks)
        said = (
            f"{start}: a run of it beats one of the baseline with probability {interval(found)}, over {len(tasks)} "
            f"tasks with {seeds}. By task it is better in {by['better']}, worse in {by['worse']}, "
            f"unclear in {by['unclear']}."
        )
        if study.together:
            mine, other = (number(float(study.aggregates[name]["iqm"].value)) for name in pair)
            said += f" IQM {mine} against {other}, a difference of {interval(study.gains[pair], signed=True)}."
        how = sign(found, 0.5)
    if lost := sum(len(study.lost(task, name)) for task in study.tasks for name in pair):
        are = "is" if lost == 1 else "are"
        return f"{said} {lost} more failed before any evaluation and {are} in no number, so this is no verdict."
    if math.isnan(float(found.low)):
        return f"{said} One seed says nothing about chance."
    if len(tasks) == 1:
        return f"{said} {'These runs do not settle it.' if how == 'unclear' else f'So it is {how}.'}"
    gain = sign(study.gains[pair]) if study.together else "unclear"
    if {how, gain} == {"better", "worse"}:
        return f"{said} The two measures contradict each other."
    if by["better"] and by["worse"]:
        return f"{said} It depends on the task{'' if how == 'unclear' else f'; over all of them it is {how}'}."
    return f"{said} {'These runs do not settle it.' if how == 'unclear' else f'So over these tasks it is {how}.'}"


def sessions_of(folder: Path) -> list[dict[str, Any]]:
    """Return how often the sweep in a folder was at work: its command, when it began and ended, and why."""
    found = read_json(folder / "sweep.json").get("sessions")
    return [x for x in found if isinstance(x, dict) and x.get("command")] if isinstance(found, list) else []


def sweep_commands(folders: Iterable[Path], again: bool = False) -> list[str]:
    """Return the commands that have made the sweeps in these folders, without where that was on whose machine.

    `again`: the last one of each, as it was given and with --retry-failed.
    """
    said = []
    for folder in folders:
        for session in sessions_of(folder)[-1:] if again else sessions_of(folder):
            words = [str(word).replace(f"{session.get('cwd')}/", "") for word in session["command"]]
            cut = words.index("--") if "--" in words else len(words)
            if again and "--retry-failed" not in words[:cut]:
                words.insert(cut, "--retry-failed")
            words[0] = words[0] if again else "/".join(Path(words[0]).parts[-2:])
            for index, word in enumerate(words[:cut] if not again else []):
                flag, equals, path = word.partition("=")
                if flag == "--out" and equals and path.startswith("/"):
                    words[index] = f"--out={Path(path).name}"
                elif index and words[index - 1] == "--out" and word.startswith("/"):
                    words[index] = Path(word).name
            said.append(shlex.join(["python", *words]))
    return list(dict.fromkeys(said))


def history(study: Study) -> dict[str, int]:
    """Return how often sweeps and runs were interrupted, as far as their folders tell.

    A session that has left no end was killed, or its machine went down; one that is at work now does not count.
    """
    sessions = [x for folder in study.folders for x in sessions_of(folder)]
    at_work = sum(held(folder / ".sweep.lock") is True for folder in study.folders)
    again = [run for run in study.runs if run.starts > 1]
    return {
        "sessions": len(sessions),
        "cut_off": max(sum("ended" not in x for x in sessions) - at_work, 0),
        "stopped": sum(bool(x.get("stopped")) for x in sessions),
        "runs_started_again": len(again),
        "from_a_checkpoint": sum(run.resumed > 0 for run in again),
    }


def _history(study: Study) -> str:
    """The same in words; empty where nothing was interrupted."""
    found = history(study)
    cut, stopped, again, resumed = (
        found[key] for key in ("cut_off", "stopped", "runs_started_again", "from_a_checkpoint")
    )
    said = []
    if cut or stopped:
        how = [f"{cut} {'was' if cut == 1 else 'were'} cut off without a word (killed, or the machine went down)"]
        how = how * (cut > 0) + [f"{stopped} {'was' if stopped == 1 else 'were'} stopped by a signal"] * (stopped > 0)
        said.append(f"The runs were made in {many(found['sessions'], 'session')}: {', '.join(how)}.")
    if again:
        anew = again - resumed
        how = [f"{resumed} went on from a checkpoint"] * (resumed > 0)
        how += [f"{anew} began anew, with no checkpoint yet"] * (anew > 0)
        said.append(f"{again} of {many(len(study.runs), 'run')} were interrupted: {', '.join(how)}.")
    return " ".join(said)


def commands(study: Study) -> list[str]:
    """Return the command lines that make the runs again: one for all seeds that differ in nothing else."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(study.runs, key=lambda run: not run.argv):
        cell = groups[run.task, run.variant]
        if run.argv:
            cell[_command(run)].append(run.seed)
        elif len(cell) == 1:  # it never came to say what it was asked: the same as the other seeds
            next(iter(cell.values())).append(run.seed)
    return [
        f"for seed in {' '.join(map(str, sorted(seeds)))}; do {command} --seed $seed; done"
        for _, cell in sorted(groups.items())
        for command, seeds in sorted(cell.items())
    ]


def _command(run: Record) -> str:
    """The command line of a run without its seed, and without where it wrote on whose machine."""
    program = Path(run.argv[0])
    start = f"torchrun --standalone --nproc-per-node {run.ranks}" if run.ranks > 1 else "python"
    kept, skip, device = [str(Path(program.parent.name) / program.name)], False, False
    for word in run.argv[1:]:
        flag, equals, _ = word.replace("_", "-").partition("=")
        device = device or flag == "--device"
        if flag in ("--seed", "--run-dir", "--run-root", "--resume"):
            skip = not equals
        elif skip:
            skip = False
        elif flag != "--quiet":
            kept.append(word)
    if run.device == "cpu" and not device:  # a machine with a GPU would choose it, and other sizes with it
        kept += ["--device", "cpu"]
    return f"{start} {shlex.join(kept)}"


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
    page.add("h1", study.title or "Report")
    for text in verdict(study):
        page.add("p", text)
    for plot in shown[:2]:
        page.add("figure", plot)
    page.add("h2", "Scores")
    page.add(
        "p",
        "Mean over seeds of the score of a run, [its 95% Student-t interval], and (number of seeds; 3 of 5 where two "
        "have no score).",
    )
    page.add("table", _score_table(study))
    if study.together:
        page.add("p", f"Over {len(study.together)} tasks, with 95% stratified bootstrap intervals:")
        rows = [
            [name, *(interval(found[key]) for key in stats.AGGREGATES), _of(study, study.together, name)]
            for name, found in study.aggregates.items()
        ]
        page.add("table", [["variant", *(key.replace("_", " ") for key in stats.AGGREGATES), "runs"], *rows])
    for plot in shown[2:]:
        page.add("figure", plot)
    page.add("h2", "Runs")
    page.add("table", _run_table(study))
    page.add("p", _history(study))
    failed = [_failure(run) for run in study.runs if run.state in FAILED]
    page.add("p", "Failed:" if failed else "")
    page.add("table", [["run", "state", "frames", "score", "last words"], *failed] if failed else [])
    retry = sweep_commands(study.folders, again=True) if failed else []
    page.add("p", "What starts the failed runs again, in the folder where the sweep was started:" if retry else "")
    page.add("pre", "\n".join(retry))
    waiting = [run for run in study.runs if run.state not in (*FAILED, "done")]
    page.add("ul", [f"{run.name}: {run.state}, {_frames(run)} frames" for run in waiting])
    page.add("ul", study.notes)
    settings = _settings_table(study)
    page.add("h2", "What differs between the variants" if settings else "")
    page.add("table", settings)
    page.add("h2", "How the numbers are made")
    page.add("ul", _method(study))
    page.add("table", _scale_table(study))
    page.add("h2", "To look at in TensorBoard" if links else "")
    page.add(
        "p",
        "These folders are on the machine where the report was written, `tb` beside it. A copy of the report need not "
        "have them: the commands below make the runs again, and `report.py` on these makes `tb`."
        if links
        else "",
    )
    page.add("ul", links)
    page.add("h2", "To run it again")
    page.add("ul", _origin(study))
    sweeps = sweep_commands(study.folders)
    page.add("p", "The sweep, and each of its runs:" if sweeps else "")
    page.add("pre", "\n".join(sweeps))
    page.add("pre", "\n".join(commands(study)))
    return page


def _score_table(study: Study) -> list[list[str]]:
    def cell(task: str, name: str) -> str:
        values, planned = study.scores(task, name), study.counts(task, name).total()
        said = interval(stats.t_interval(values)) if len(values) else "-"
        return f"{said} ({_of(study, [task], name)})" if planned else said

    rows = [[task, f"{study.budget[task]:,}", *(cell(task, name) for name in study.variants)] for task in study.tasks]
    return [["task", "frames", *study.variants], *rows]


def _of(study: Study, tasks: Sequence[str], variant: str) -> str:
    """`5`, or `3 of 5` where two of the runs have no score."""
    scored = sum(len(study.scores(task, variant)) for task in tasks)
    planned = sum(study.counts(task, variant).total() for task in tasks)
    return f"{scored}" if scored == planned else f"{scored} of {planned}"


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
    score = "none" if math.isnan(run.score) else number(run.score)
    return [run.name, run.state, _frames(run), score, f"`{words}`" if words else ""]


def _settings_table(study: Study) -> list[list[str]]:
    """Settings that are not the same in all variants; nothing if all are."""
    known = {run.variant: run.config for run in reversed(study.runs) if run.config}
    configs = [known.get(variant, {}) for variant in study.variants]
    rows = []
    for name in sorted({name for settings in configs for name in settings} - NO_VARIANT):
        cells = [as_text(settings[name]) if name in settings else "" for settings in configs]
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
        "A failed run keeps its last evaluation. Without one it has no score, is in no number, and a comparison that "
        "lacks it is no verdict.",
        "By task: Student-t intervals of a mean, Welch's of a difference, not corrected for the number of comparisons.",
        f"Over tasks: stratified bootstrap over the seeds of each task, {how.reps:,} resamples, seed {how.seed}, "
        "percentiles widened for few seeds (Hesterberg 2015). `docs/sweeps.md` has a table of how often such intervals "
        "hold the truth.",
        "Measures: Agarwal et al., NeurIPS 2021. A task weighs the same, however many seeds it has.",
    ]


def _origin(study: Study) -> list[str]:
    """Code and machines that the runs are of."""
    said = []
    for what, of in (("Code", revision_of), ("torch", _torch), ("Hardware", _hardware)):
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
    *("task", "variant", "metric", "frames", "seeds", "done", "failed", "unfinished", "no_score"),
    *(
        "mean",
        "t95_low",
        "t95_high",
        "median",
        "min",
        "max",
        "last_mean",
        "best_mean",
        "normalised_mean",
        "normalised_iqm",
        "hours",
        "sps",
    ),
)


def write_summary(study: Study, path: Path) -> None:
    """Write a row per task and variant. `seeds` have a score, `no_score` have none; best is the best evaluation."""
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
                counts.total() - len(values),
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
        "failed_before_any_evaluation": [run.name for run in study.lost()],
        "history": history(study),
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
                "verdict": sign_on(study, pair, task),
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
    Without any evaluation there is nothing to write.
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
        if any((task, variant) in study.cells for variant in study.variants)
    ]
    layout = layout_pb2.Layout(category=[layout_pb2.Category(title="mean and 95% interval over seeds", chart=charts)])
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="custom_scalars"))
    tensor = TensorProto(dtype="DT_STRING", string_val=[layout.SerializeToString()])
    head = Summary.Value(tag="custom_scalars__config__", metadata=metadata, tensor=tensor)
    found = {task: curves(study, task) for task in study.tasks}
    variants = [name for name in study.variants if any((task, name) in study.cells for task in study.tasks)]
    for variant in variants:
        path = folder / re.sub(r"[/\0]", "-", variant) / "events.out.tfevents.0000000000.report"
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            writer = RecordWriter(file)
            writer.write(Event(file_version="brain.Event:2").SerializeToString())
            if variant == variants[0]:  # it holds for all runs
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


def deep_links(
    study: Study, folders: Sequence[Path], out: Path, shown: Callable[[Path], str] | None = None
) -> list[str]:
    """Return what to type and what to open: the variants with bands; all seeds, those of a variant in one colour.

    `shown` writes a folder down, by default so that it can be typed here.
    """
    shown = shown or _typed
    if not any(len(run.data.steps) for run in study.runs):
        return []
    found = [
        f"Means with bands: `tensorboard --logdir {shown(out / 'tb')}`, then {HOST}#custom_scalars&_smoothingWeight=0 "
        "(smoothing would smooth the line and leave the band)"
    ] * bool(study.cells)
    for folder in folders:
        if not folder.is_dir():
            continue
        logdir = folder / "runs" if (folder / "runs").is_dir() else folder
        of_sweep = any(run.path.name == f"seed{run.seed}" for run in study.runs if folder in run.path.parents)
        group = SEEDS_OF_SWEEP if of_sweep else SEEDS_OF_RUNS
        tags = "|".join(sorted(set(study.metric.values())))
        found.append(
            f"All seeds, coloured by variant: `tensorboard --logdir {shown(logdir)}`, then {seeds_link(group, tags)}"
        )
        for task in study.tasks[:12] if len(study.tasks) > 1 else ():
            folder_of = re.escape(re.sub(r"[^\w.-]+", "-", task))
            found.append(f"The same of {task} alone: {seeds_link(group, tags, f'^{folder_of}(/|__)')}")
    return found


def _typed(path: Path) -> str:
    """A path as a reader would type it from here."""
    full = path.resolve()
    return shlex.quote(str(full.relative_to(Path.cwd()) if full.is_relative_to(Path.cwd()) else full))


def _beside(out: Path) -> Callable[[Path], str]:
    """How a report in `out` names folders, wherever it is copied to: from its own folder on, else without the path."""

    def named(path: Path) -> str:
        full = path.resolve()
        if full.is_relative_to(out.resolve()):
            return shlex.quote(str(full.relative_to(out.resolve())))
        return shlex.quote(str(Path(*full.parts[-2:]) if full.name == "runs" else full.name))

    return named


# ---- command line ----------------------------------------------------------------------------------------------------


def collect(folders: Sequence[Path], metric: str) -> list[Record]:
    """Return the runs in folders and tidy files; fails if there are none, or none with what they should have.

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
        # Runs that have all failed, or have just begun, lack it by themselves: that is for the report to say.
        mistaken = any(run.state == "done" for run in records) or (metric != "auto" and known)
        config.require(not mistaken, f"none of {len(records)} runs under {where} has {' or '.join(metrics)}{has}")
    return records


def not_begun(folder: Path, records: Sequence[Record]) -> list[Record]:
    """Return the runs that the sweep in a folder is to make and has made no directory for yet."""
    tasks = {run.path.parents[1]: run.task for run in records}
    there, found = {run.path for run in records}, []
    for key in listed_runs(folder):
        path = folder / "runs" / key
        match = re.fullmatch(r"[^/]+/(([^/]+?)__[^/]+)/seed(\d+)", key)
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
    if (folder / "runs").is_dir():
        return args.dirs[0]
    beside = folder.parent if (folder / "config.json").is_file() else folder  # its neighbours are runs too
    return beside.with_name(f"{folder.stem if folder.is_file() else folder.name}-report")


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
    seen = [curve for curve in overlays if in_sight(study, curve)]
    if args.overlay and not seen:
        study.notes.append("No published curve is of these tasks and within these frames.")
    if any(curve.measure for curve in overlays) and len({study.budget[task] for task in study.together}) != 1:
        why = "for want of two tasks or more that have a common scale and the same number of frames"
        study.notes.append(f"Published curves over all tasks are not drawn, {why}.")
    overlays = seen
    try:
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
        page = write_up(study, shown, deep_links(study, args.dirs, out, _beside(out)))
        (out / "REPORT.md").write_text(page.markdown())
        (out / "report.html").write_text(page.html(folder))
    except OSError as error:
        config.fail(f"cannot write in {out}: {error.strerror or error}")
    words_of = [*verdict(study), _history(study), *study.notes, *links]
    print("\n".join(re.sub(r"\*\*|`", "", text) for text in words_of if text) + "\n")
    made = [many(len(shown), "plot"), many(len(study.runs), "run"), many(values, "evaluation")]
    print(f"{out}: REPORT.md, report.html, {', '.join(made)}")
    return 0


if __name__ == "__main__":
    config.program(main)
