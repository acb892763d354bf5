"""What is in a run, in words and tables; or what differs between two.

    python agents/show.py runs/RUN_DIR                       # settings, machine, time, scores, diagnostics, checkpoints
    python agents/show.py runs/RUN_DIR runs/OTHER_RUN_DIR    # settings, machine and results that differ

Reads files and changes nothing, so a run that trains can be looked at. What a crash has torn is named and left out, and
the rest is shown. All of it comes from the run directory: `agents/run.py` says what is there.
"""

import csv
import fcntl
import importlib
import io
import math
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from agents import config
from agents.checkpoint import RunError, open_checkpoint, read_json, step_dirs
from agents.run import clock

FILES = ("config.json", "manifest.json", "status.json", "result.json")
STALE_S = 900.0
"""silence after which a run is dead where locks cannot be asked"""


@dataclass
class Args:
    """Show what is in a run, or what differs between two."""

    run_dir: tyro.conf.Positional[str]
    """of the run"""
    other: tyro.conf.Positional[str | None] = None
    """directory of another run, to compare with"""


# ---- reading ---------------------------------------------------------------------------------------------------------


class Point(NamedTuple):
    """One value of a metric."""

    step: int
    wall_s: float
    value: float


@dataclass
class Record:
    """What could be read of a run."""

    dir: Path
    config: dict[str, Any]
    manifest: dict[str, Any]
    status: dict[str, Any]
    result: dict[str, Any]
    metrics: dict[str, list[Point]]
    """by tag, in the order of the file"""
    alive: bool
    """whether a process trains it now"""
    problems: list[str] = field(default_factory=list)
    """sentences about what could not be read"""

    @property
    def agent(self) -> str:
        """Name of the file that trained it; of the program where the manifest is from before that was noted."""
        program = Path(next(iter(command(self.manifest)), "")).stem
        return str(self.manifest.get("agent") or program or "unknown")

    @cached_property
    def evaluations(self) -> list[tuple[int, dict[str, float]]]:
        """Frames and statistics of each evaluation, oldest first."""
        table: dict[int, dict[str, float]] = {}
        for tag, points in self.metrics.items():
            if tag.startswith("eval/"):
                for point in points:
                    table.setdefault(point.step, {})[tag.removeprefix("eval/")] = point.value
        return sorted((step, score) for step, score in table.items() if "episodic_return" in score)

    @property
    def best(self) -> tuple[int, dict[str, float]] | None:
        """The evaluation with the highest return."""
        finite = [one for one in self.evaluations if math.isfinite(one[1]["episodic_return"])]
        return max(finite, key=lambda one: one[1]["episodic_return"], default=None)

    @property
    def step(self) -> int:
        """Frames trained, as far as anything says."""
        logged = (points[-1].step for points in self.metrics.values())
        return max([number(self.status.get("step")), *logged], default=0)

    @property
    def wall_s(self) -> float:
        """Seconds of training over all resumes."""
        logged = (points[-1].wall_s for points in self.metrics.values())
        return max([float(number(self.status.get("wall_s"))), *logged], default=0.0)

    @property
    def seconds(self) -> dict[str, float]:
        """Where they went, as far as it was logged: part -> seconds, the largest first."""
        parts = {
            tag.removeprefix("time/"): math.fsum(p.value for p in points if math.isfinite(p.value))
            for tag, points in self.metrics.items()
            if tag.startswith("time/")
        }
        return dict(sorted(parts.items(), key=lambda item: -item[1]))


def part(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return an object within an object from a file; an empty one if there is none."""
    return value if isinstance(value := record.get(key), dict) else {}


def resumes(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of a manifest about resumes."""
    entries = record.get("resumes")
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def command(record: Mapping[str, Any]) -> list[str]:
    """Return the words of the command line that started a run."""
    words = record.get("argv")
    return [str(word) for word in words] if isinstance(words, list) else []


def number(value: Any) -> Any:
    """Return a number from a file, 0 for what is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else 0


def read_run(run_dir: Path) -> Record:
    """Return what is in a run directory.

    Raises:
        RunError: it is none.
    """
    if not run_dir.is_dir():
        raise RunError(f"{run_dir} is no directory")
    have = [name for name in (*FILES, "metrics.csv") if (run_dir / name).is_file()]
    if not have:
        raise RunError(f"{run_dir} holds no run: there is none of {', '.join((*FILES, 'metrics.csv'))}")
    problems = []
    content: dict[str, dict[str, Any]] = {name: {} for name in FILES}
    for name in FILES:
        if name in have:
            try:
                content[name] = read_json(run_dir / name)
            except (RunError, UnicodeDecodeError, RecursionError) as error:
                problems.append(f"{name}: {' '.join(str(error).split())}")
        elif name != "result.json":
            problems.append(f"{name} is missing")
    metrics: dict[str, list[Point]] = {}
    torn = 0
    if "metrics.csv" in have:
        try:
            metrics, torn = read_metrics(run_dir / "metrics.csv")
        except OSError as error:
            problems.append(f"cannot read metrics.csv: {error.strerror}")
    if torn:
        problems.append(f"metrics.csv has {torn} rows that cannot be read; they are left out")
    settings, record, status, result = content.values()
    return Record(run_dir, settings, record, status, result, metrics, is_alive(run_dir, status), problems)


def read_metrics(path: Path) -> tuple[dict[str, list[Point]], int]:
    """Return the metrics by tag, and how many rows cannot be read."""
    whole, newline, torn_row = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    torn = int(bool(torn_row))  # a number that is cut is a wrong number
    if "\0" in whole:  # what a file system leaves where a power cut hit
        lines = whole.split("\n")
        whole = "\n".join(line for line in lines if "\0" not in line)
        torn += sum("\0" in line for line in lines)
    rows = csv.reader(io.StringIO(whole + newline, newline=""))
    metrics: dict[str, list[Point]] = {}
    while True:
        try:
            row = next(rows)
            if row[:3] != ["exp_name", "env_id", "seed"]:
                _, _, _, tag, step, wall_s, value = row
                metrics.setdefault(tag, []).append(Point(int(step), float(wall_s), float(value)))
        except StopIteration:
            return metrics, torn
        except (ValueError, csv.Error):
            torn += 1


def is_alive(run_dir: Path, status: Mapping[str, Any]) -> bool:
    """Whether a process holds the run's lock; where locks cannot be asked, whether it has been heard of lately."""
    try:
        with open(run_dir / ".lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError:
        return status.get("state") == "running" and time.time() - number(status.get("time")) < STALE_S
    return False


# ---- words -----------------------------------------------------------------------------------------------------------


def grid(rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """Return rows as aligned lines: the first `left` columns to the left, numbers to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[k]) for row in cells if k < len(row)) for k in range(max(map(len, cells)))]
    return "\n".join(
        "  ".join(f"{cell:{'<' if k < left else '>'}{widths[k]}}" for k, cell in enumerate(row)).rstrip()
        for row in cells
    )


def short(value: Any) -> str:
    """Return a value in few characters: four digits of a number, words for switches and lists."""
    if value is None or isinstance(value, bool):
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and 1e4 <= abs(value) < 1e16 else f"{value:.4g}"
    return " ".join(map(short, value)) or "none" if isinstance(value, list | tuple) else str(value)


def state(run: Record) -> str:
    """Return how the run stands, in words."""
    total = run.status.get("total_timesteps", run.config.get("total_timesteps"))
    of = f" of {total:,}" if isinstance(total, int) else ""
    how = f"{run.step:,}{of} frames in {clock(run.wall_s)}"
    said = run.status.get("state")
    why = run.status.get("why") or ""
    if run.alive:
        heard = time.time() - number(run.status.get("time"))
        return f"training now, process {run.status.get('pid', 'unknown')}, heard of {clock(heard)} ago: {how}"
    if said == "running":
        return f"killed: nobody trains it any more, and it did not say goodbye; {how}"
    if said not in ("done", "interrupted", "failed"):
        return f"unknown; {how}"
    return f"{said}{f' ({why})' if why else ''}: {how}"


def sem(settings: Mapping[str, Any]) -> str:
    """Return the SEM setting in words, or what takes its place."""
    kind = settings.get("bottleneck", "auto")
    rival = kind not in ("auto", "relu", "sem")
    if not settings.get("sem") and not rival:
        return "off" if "sem" in settings else "unknown"
    parts = [
        f"{name} L={settings.get(f'sem_{key}_groups')} V={settings.get(f'sem_{key}_vertices')}"
        for key, name in (("actor", "actor"), ("critic", "critics"))
        if settings.get(f"sem_{key}", f"sem_{key}_groups" in settings)  # an only network has no switch of its own
    ]
    shapes = ", ".join(parts) or "in no network"
    if rival:
        return f"off, {kind} instead: {shapes}"
    learned = ", learned" if settings.get("sem_learned_temperature") else ""
    annealed = f" to {end}" if (end := settings.get("sem_temperature_end")) else ""
    place = {"every": ", in every layer", "input": ", in the first layer"}.get(settings.get("sem_position", ""), "")
    return f"{shapes}, temperature {settings.get('sem_temperature')}{learned}{annealed}{place}"


def score_words(one: tuple[int, Mapping[str, float]] | None) -> str:
    """Return an evaluation as a phrase."""
    if one is None:
        return "none"
    step, score = one
    spread = score.get("episodic_return_std", math.nan)
    return f"{score['episodic_return']:.2f} ± {spread:.2f} at {step:,} frames"


# ---- settings --------------------------------------------------------------------------------------------------------

WHERE = ("run_root", "run_dir", "resume", "quiet")
"""settings that change nothing but where a run lies and what it prints"""


def origins(run: Record) -> list[tuple[str, Any, Any, str]]:
    """Return (setting, value, default, where the value is from) for each that is not simply the default.

    From a flag, from a preset by its name, from a resume, or chosen for the machine where the default is auto.

    Raises:
        ValueError: this version has no such agent.
    """
    path = Path(__file__).parent / f"{run.agent}.py"
    if not run.agent.isidentifier() or not path.is_file():
        raise ValueError(f"there is no agent {run.agent!r} here, so the defaults of its settings are not known")
    module = importlib.import_module(f"agents.{run.agent}")
    if not hasattr(module, "Args") or not hasattr(module, "presets"):
        raise ValueError(f"{path} is no agent, so the defaults of its settings are not known")
    defaults = module.Args()
    known = {f.name for f in fields(defaults)}
    value = tuples(run.config)
    asked = replace(defaults, **{**{k: v for k, v in value.items() if k in known}, "device": "cpu"})  # any GPU will do
    preset = {name: (source, x) for source, overrides in module.presets(asked) for name, x in overrides.items()}
    preset |= {name: ("init-from", x) for name, x in tuples(part(part(run.manifest, "init_from"), "settings")).items()}
    resumed = {name for one in resumes(run.manifest) for name in part(one, "changed")}
    rows: list[tuple[str, Any, Any, str]] = []
    for name, default in asdict(defaults).items():
        if name in WHERE:
            continue
        if name not in value:
            rows.append((name, "not set", default, "another version"))
            continue
        source, base = preset.get(name, ("", default))
        if value[name] == base:
            if value[name] != default:
                rows.append((name, value[name], default, f"preset {source}"))
        else:
            given = "resume" if name in resumed else "chosen" if base == "auto" and not has_flag(run, name) else "flag"
            rows.append((name, value[name], default, f"{given} (preset {source}: {short(base)})" if source else given))
    rows += [(name, value[name], "unknown", "another version") for name in value if name not in known]
    return sorted(rows, key=lambda row: not row[3].startswith(("flag", "resume")))


def tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings from a JSON file, which knows no tuples, as they were."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in settings.items()}


def has_flag(run: Record, name: str) -> bool:
    """Whether the command line of a run gives a setting."""
    words = [word.partition("=")[0].replace("_", "-") for word in command(run.manifest)]
    flag = name.replace("_", "-")
    return f"--{flag}" in words or f"--no-{flag}" in words


def settings_table(run: Record) -> str:
    """Return the settings that are not simply defaults; all of them where the defaults are not known."""
    try:
        rows = origins(run)
    except (ValueError, TypeError, AttributeError) as error:
        every = grid([("setting", "value"), *((name, short(value)) for name, value in run.config.items())], left=2)
        return f"{error}\n{every}" if run.config else str(error)
    if not run.config:
        return "unknown"
    head = ("setting", "value", "default", "from")
    return grid([head, *((name, short(value), short(default), source) for name, value, default, source in rows)], 4)


# ---- the machine -----------------------------------------------------------------------------------------------------


def code(record: Mapping[str, Any]) -> str:
    """Return the revision of the code."""
    git = part(record, "git")
    changed = " with changes" if git.get("dirty") else ""
    return f"{str(git.get('revision'))[:12]}{changed}" if git else "not from git"


def machine_lines(run: Record) -> list[tuple[str, str]]:
    """Return (what, words) about the machine and the code."""
    record = run.manifest
    if not record:
        return [("machine", "unknown")]
    versions = {name: version for name, version in part(record, "versions").items() if version}
    hardware, switches = part(record, "hardware"), part(record, "torch")
    gpus = hardware.get("gpus")
    lines = [
        ("started", str(record.get("time", "unknown"))),
        ("command", shlex.join(command(record)) or "unknown"),
        ("code", code(record)),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("machine", f"{hardware.get('cpu')}, {hardware.get('cores')} cores, {hardware.get('platform')}"),
        ("GPU", ", ".join(map(str, gpus)) if gpus and isinstance(gpus, list) else "none"),
        ("torch", ", ".join(f"{name} {short(value)}" for name, value in switches.items())),
    ]
    if source := part(record, "init_from"):
        frames = f"after {number(source.get('step')):,} frames of {source.get('task')}"
        lines.insert(1, ("from", f"the networks of {source.get('path')}, {frames}"))
    for one in resumes(record):
        changed = "".join(f", {name} {short(value)}" for name, value in part(one, "changed").items())
        lines.append(("resumed", f"at {number(one.get('step')):,} frames, {one.get('time')}{changed}"))
    return lines


# ---- results ---------------------------------------------------------------------------------------------------------

SCORES = (
    *("episodic_return", "episodic_return_std", "episodic_return_min", "episodic_return_max", "episodic_length"),
    *("success_rate", "success_end", "human_normalised_score", "episodes"),
)


def evaluation_table(run: Record) -> str:
    """Return the first, the best and the last evaluation."""
    if not run.evaluations or run.best is None:
        return "none"
    chosen = [("first", run.evaluations[0]), ("best", run.best), ("last", run.evaluations[-1])]
    shown = [name for name in SCORES if any(name in score for _, (_, score) in chosen)]
    rows = [("", "frames", *(name.removeprefix("episodic_").replace("_", " ") for name in shown))]
    rows += [
        (word, f"{step:,}", *(short(score[name]) if name in score else "" for name in shown))
        for word, (step, score) in chosen
    ]
    return grid(rows)


def time_table(run: Record) -> str:
    """Return where the time went."""
    parts = run.seconds
    total = math.fsum(parts.values())
    if not total:
        return "not logged"
    rows = [("part", "time", "share")]
    rows += [(name, clock(seconds), f"{seconds / total:.1%}") for name, seconds in parts.items()]
    rows.append(("not logged", clock(max(run.wall_s - total, 0.0)), ""))
    rate = run.step / run.wall_s if run.wall_s else math.nan
    return f"{grid(rows)}\n{rate:,.0f} frames per second over the whole run"


def diagnostics_table(run: Record) -> str:
    """Return the first and the latest value of every other metric."""
    rows = [("metric", "first", "latest", "at frames")]
    for tag in sorted(run.metrics):
        if not tag.startswith(("time/", "eval/", "health/")):
            points = run.metrics[tag]
            rows.append((tag, short(points[0].value), short(points[-1].value), f"{points[-1].step:,}"))
    return grid(rows) if len(rows) > 1 else "none"


def health_table(run: Record) -> str:
    """Return the counters of what went wrong, summed over the run."""
    rows = [("counter", "sum", "latest", "last seen at frames")]
    for tag, points in sorted(run.metrics.items()):
        if tag.startswith("health/"):
            bad = [point for point in points if point.value != 0]
            total = math.fsum(point.value for point in points if math.isfinite(point.value))
            rows.append((tag, short(total), short(points[-1].value), f"{bad[-1].step:,}" if bad else "never"))
    return grid(rows) if len(rows) > 1 else "none"


def checkpoint_rows(run_dir: Path) -> list[tuple[str, str, str]]:
    """Return (name, size, whether it is good) of each checkpoint, newest first. Every byte is verified."""
    rows = []
    for path in reversed(step_dirs(run_dir)):
        try:
            open_checkpoint(path)
            word = "good"
        except RunError as error:
            word = " ".join(str(error).split()).removeprefix(f"{path} ")
        rows.append((path.name, size(path), word))
    rows += [(p.name, size(p), "set aside as damaged") for p in (run_dir / "checkpoints").glob("*.damaged")]
    rows += [(p.name, size(p), "half written or half deleted") for p in (run_dir / "checkpoints").glob(".tmp-*")]
    return rows


def size(path: Path) -> str:
    """Return the size of a directory in MiB."""
    try:
        return f"{sum(file.stat().st_size for file in path.rglob('*') if file.is_file()) / 2**20:,.1f} MiB"
    except OSError:  # a run that trains has just deleted it
        return "gone"


# ---- remarks ---------------------------------------------------------------------------------------------------------


def remarks(run: Record, checkpoints: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return sentences about what deserves a look."""
    found = list(run.problems)
    good = [name for name, _, word in checkpoints if word == "good"]
    bad = [name for name, _, word in checkpoints if word != "good" and re.fullmatch(r"step_\d+", name)]
    if bad:
        newest = f"{good[0]} is the newest good one" if good else "no good one is left"
        found.append(f"damaged checkpoints: {', '.join(bad)}; {newest}")
    if run.status.get("state") != "done" and not run.alive:
        again = f"python agents/{run.agent}.py --resume {shlex.quote(str(run.dir))}"
        found.append(f"{again} continues from {good[0]}" if good else "there is no checkpoint to continue from")
    for tag, points in run.metrics.items():
        first = next((point for point in points if not math.isfinite(point.value)), None)
        if first is not None:
            again = "again finite since" if math.isfinite(points[-1].value) else "and still is"
            found.append(f"{tag} was {first.value} at {first.step:,} frames, {again}")
        elif tag.startswith("health/") and any(point.value > 0 for point in points):
            found.append(f"{tag} is above 0 in {sum(point.value > 0 for point in points)} of {len(points)} intervals")
        elif word := reading(tag, points[-1].value):
            found.append(f"{tag} is {short(points[-1].value)}: {word}")
    if not run.evaluations:
        found.append("there is no evaluation; charts/episodic_return is of the policy that explores")
    else:
        for name, meaning in (("unfinished", "had no end"), ("nonfinite", "were spoilt by the simulator")):
            if count := run.evaluations[-1][1].get(name):
                found.append(f"{count:.0f} episodes of the last evaluation {meaning}")
    if part(run.manifest, "git").get("dirty"):
        found.append("it was trained from a checkout with changes that are in no commit")
    for one in resumes(run.manifest):
        now, then = part(one, "versions"), part(run.manifest, "versions")
        if moved := [f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name)]:
            found.append(f"resumed at {number(one.get('step')):,} frames with other versions: {', '.join(moved)}")
    return found


def reading(tag: str, value: float) -> str:
    """Return what a value of a metric means where it means trouble, else nothing."""
    if tag in ("critic/target_mass_below", "critic/target_mass_above") and value > 0.01:
        return "part of the target lies outside of --v-min and --v-max"
    if tag.startswith("sem/") and tag.endswith("_entropy"):
        if value < 0.1:
            return "each group of the embedding has decided for one vertex; where nothing is learnt, try more groups"
        if value > 0.99:
            return "the embedding says next to nothing about its input"
    return ""


# ---- one run ---------------------------------------------------------------------------------------------------------


def one_run(run: Record) -> str:
    """Return all about a run."""
    settings = run.config
    last = run.evaluations[-1] if run.evaluations else None
    head = [
        ("run", str(run.dir)),
        ("state", state(run)),
        (
            "agent",
            f"{run.agent} ({settings.get('exp_name', 'unknown')}) on {settings.get('env_id', 'an unknown task')}, "
            f"seed {settings.get('seed', 'unknown')}, {settings.get('num_envs', 'unknown')} environments",
        ),
        ("SEM", sem(settings)),
        ("score", f"{score_words(last)}; best {score_words(run.best)}"),
    ]
    checkpoints = checkpoint_rows(run.dir)
    table = grid([("checkpoint", "size", ""), *checkpoints], left=3) if checkpoints else "none"
    remarked = remarks(run, checkpoints)
    sections = {
        "Worth a look": "\n".join(f"* {line}" for line in remarked) or "nothing",
        "Settings that are not defaults": settings_table(run),
        "Evaluation": evaluation_table(run),
        "Where the time went": time_table(run),
        "Diagnostics": diagnostics_table(run),
        "Health": health_table(run),
        "Checkpoints": table,
        "Machine and code": grid(machine_lines(run), left=2),
    }
    blocks = [grid(head, left=2), *(f"{title}\n{'-' * len(title)}\n{body}" for title, body in sections.items())]
    return "\n\n".join(blocks)


# ---- two runs --------------------------------------------------------------------------------------------------------


def differing(one: Mapping[str, Any], other: Mapping[str, Any], skip: Sequence[str] = ()) -> str:
    """Return a table of what two mappings disagree on, and the names that only one of them has."""
    both = [name for name in one if name in other and name not in skip and one[name] != other[name]]
    table = (
        [grid([("", "A", "B"), *((name, short(one[name]), short(other[name])) for name in both)], 3)] if both else []
    )
    for word, here, there in (("A", one, other), ("B", other, one)):
        if alone := [name for name in here if name not in there]:
            table.append(f"only {word} has {', '.join(alone)}")
    return "\n".join(table) or "nothing"


def surroundings(run: Record) -> dict[str, Any]:
    """Return what a run ran on, flat."""
    record = run.manifest
    flat = {"agent": run.agent, "presets": record.get("presets"), "resumes": len(resumes(record)), "code": code(record)}
    return {**flat, **part(record, "versions"), **part(record, "hardware"), **part(record, "torch")}


def results(run: Record) -> dict[str, str]:
    """Return the results of a run, in words."""
    total = math.fsum(run.seconds.values())
    rate = f"{run.step / run.wall_s:,.0f}" if run.wall_s else "unknown"
    counters = [p.value for tag, points in run.metrics.items() if tag.startswith("health/") for p in points]
    return {
        "state": "training now" if run.alive else str(run.status.get("state", "unknown")),
        "frames": f"{run.step:,}",
        "time": clock(run.wall_s),
        "frames per second": rate,
        "last evaluation": score_words(run.evaluations[-1] if run.evaluations else None),
        "best evaluation": score_words(run.best),
        **{f"time in {name}": f"{seconds / total:.1%}" for name, seconds in run.seconds.items() if total},
        "health counters": short(math.fsum(x for x in counters if math.isfinite(x))),
    }


def curves(one: Record, other: Record) -> list[tuple[str, ...]]:
    """Return (frames, return here, return there, difference) of evaluations that both have, at most ten of them."""
    here, there = ({s: score["episodic_return"] for s, score in run.evaluations} for run in (one, other))
    both = sorted(here.keys() & there.keys())
    shown = sorted({both[round(k * (len(both) - 1) / 9)] for k in range(10)}) if both else []
    return [(f"{s:,}", short(here[s]), short(there[s]), f"{there[s] - here[s]:+.4g}") for s in shown]


def two_runs(one: Record, other: Record) -> str:
    """Return what differs between two runs."""
    head = grid([("A", str(one.dir), state(one)), ("B", str(other.dir), state(other))], left=3)
    here, there = results(one), results(other)
    score = [(name, here.get(name, ""), there.get(name, "")) for name in {**here, **there}]
    points = curves(one, other)
    sections = {
        "Settings that differ": differing(one.config, other.config, skip=WHERE),
        "Machine and code that differ": differing(surroundings(one), surroundings(other)),
        "Results": grid([("", "A", "B"), *score], left=3),
        "Return of the evaluations that both have": grid([("frames", "A", "B", "B - A"), *points], left=0)
        if points
        else "there is none",
    }
    problems = [f"* {name}: {line}" for name, run in (("A", one), ("B", other)) for line in run.problems]
    if problems:
        sections["Could not be read"] = "\n".join(problems)
    return "\n\n".join([head, *(f"{title}\n{'-' * len(title)}\n{body}" for title, body in sections.items())])


def main(argv: Sequence[str] | None = None) -> int:
    """Print what the command line asks for; returns the exit status. Bad input is one line on stderr and status 2."""
    args = config.parse(Args, None, argv).args
    try:
        runs = [read_run(Path(path)) for path in (args.run_dir, args.other) if path is not None]
    except RunError as error:
        config.fail(str(error))
    print(two_runs(*runs) if len(runs) > 1 else one_run(runs[0]))
    return 0


if __name__ == "__main__":
    config.program(main)
