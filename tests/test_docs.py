"""The documentation: commands are ones that the programs take, tables are those of the source, no link is dead.

`python tests/test_docs.py --write` writes the tables of settings, presets and results anew.
"""

import ast
import csv
import importlib
import inspect
import io
import json
import math
import re
import shlex
import statistics
import sys
import textwrap
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import fields
from fnmatch import fnmatchcase
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from torch.distributed import run as torch_run

import envs
from agents import config
from benchmarks import intervals as intervals_of
from benchmarks import parts, reach, records, rivals, simulators, speed, stats, study, together
from envs.families import HUMANOIDBENCH, PLAYGROUND

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md")), ROOT / "benchmarks" / "results" / "speed.md"]
AGENTS = ("fasttd3", "fastsac", "ppo", "pqn")
RESULTS = ROOT / "benchmarks" / "results"

OTHERS = ("tensorboard", "source", "mkdocs", "nvidia-smi")
"""first words of commands that are not checked; any other that is unknown is refused"""
OWN = ("search.py",)
"""programs that are on a page"""
OF_ENVS = ("envs.list", "envs.check", "envs.humanoidbench_scenes")
"""programs that are started with -m"""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# ---- Markdown --------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    runnable: str
    """file that a comment in the line before says it is run as; empty if none does"""
    text: str


FENCE = re.compile(
    r"^(?:<!-- runnable: (?P<file>\S+) -->\n)?(?P<indent> *)(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n"
    r"(?P<text>.*?)^(?P=indent)(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)


def blocks(text: str) -> list[Block]:
    return [
        Block(found["language"], found["file"] or "", textwrap.dedent(found["text"])) for found in FENCE.finditer(text)
    ]


def prose(text: str) -> str:
    """Return a page without its fenced blocks."""
    return FENCE.sub("", text)


def inline_code(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(text))]


def links(text: str) -> list[str]:
    """Return the targets of links and images, outside of code and equations."""
    text = re.sub(r"(?<!`)`[^`]+`(?!`)", "", prose(text))
    return re.findall(r"\]\(<?([^)\s>]+)>?\)", text)


def anchors(text: str) -> set[str]:
    """Return the ids that Markdown gives to the headings of a page."""
    heads = re.findall(r"^#{1,6} +(.+?) *#*$", prose(text), re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists():
            broken.append(f"{target}: there is no {other}")
        elif anchor and anchor not in anchors(text if other == page else read(other)):
            broken.append(f"{target}: {other.name} has no such heading")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_link_is_dead(page: Path) -> None:
    assert not broken_links(page, read(page))


def test_a_dead_link_is_seen() -> None:
    page = DOCS / "index.md"
    text = "# A b\n\n[a](sem.md) ![b](gone.png) [c](sem.md#nowhere) [d](#a-b) `[e](gone.md)` [f](https://x.org)\n"
    assert [line.partition(":")[0] for line in broken_links(page, text)] == ["gone.png", "sem.md#nowhere"]


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w./-]+\.md\b", read(ROOT / "mkdocs.yml").partition("\nnav:")[2])
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES if DOCS in page.parents)


# ---- commands --------------------------------------------------------------------------------------------------------


def command_lines(text: str) -> Iterator[list[str]]:
    """Yield the words of each line of a shell script; what follows a backslash belongs to the line."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def commands(page: Path) -> list[list[str]]:
    """Return the commands of a page that can be checked, of blocks and of the prose."""
    found = []
    for block in blocks(read(page)):
        if block.language in ("sh", ""):
            # Blocks without a language hold what programs print, too.
            lines = block.text.replace("\\\n", " ").splitlines()
            starts = ("python ", "torchrun ", "make ", "pip ")
            kept = [line for line in lines if block.language == "sh" or line.startswith(starts)]
            found += list(command_lines("\n".join(kept)))
    for code in inline_code(read(page)):
        if re.match(r"(python (agents/|benchmarks/|tests/|-m envs)|torchrun |make [a-z]|pip install )", code):
            found.append(code.split() if code.count("'") % 2 else shlex.split(code))
    return [[word for word in words if word != "..."] for words in found]


def refusal(parse: Any, *arguments: Any, capture: pytest.CaptureFixture[str]) -> str:
    """Return what a parser has to say against a command line; empty if nothing."""
    try:
        parse(*arguments)
    except SystemExit as stop:
        said = capture.readouterr()
        return "" if stop.code in (0, None) else said.err.strip() or f"exit status {stop.code}"
    except ValueError as error:
        return str(error)
    return ""


@cache
def help_flags(module: str) -> frozenset[str]:
    """Return the flags that a program of `envs` names in its help."""
    said = io.StringIO()
    with redirect_stdout(said), suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w-]*", said.getvalue()))


@cache
def known_tasks() -> set[str]:
    """Return the tasks of the simulators that are always here."""
    return {
        task
        for backend in ("torch", "humanoidbench", "envpool", "gymnasium", "multitask")
        for task in envs.tasks(backend)
    }


def no_such_task(task: str) -> str:
    """Return why a task cannot be meant; empty if it can, or is one of a simulator that need not be here."""
    elsewhere = any(fnmatchcase(task, pattern) for pattern in (*PLAYGROUND, *HUMANOIDBENCH)) or ":" in task
    return "" if elsewhere or known_tasks().issuperset(task.split("+")) else f"no task is called {task}"


def check_agent(name: str, words: Sequence[str]) -> None:
    """Parse the words as the agent does, its presets and ranges included.

    Raises:
        ValueError: it would refuse them.
        SystemExit: likewise, with a line on stderr.
    """
    agent = importlib.import_module(f"agents.{name}")
    words = [re.sub(r"^cuda(:\d)?$", "cpu", word) for word in words]
    parsed = config.parse(agent.Args, agent.presets, words)
    agent.resolve(parsed.args)
    if problem := no_such_task(parsed.args.env_id):
        raise ValueError(problem)
    if parsed.args.backend not in ("auto", *envs.BACKENDS):
        raise ValueError(f"no backend is called {parsed.args.backend}")


OF_SPEED = {
    **{"ppo": rivals.Args, "envs": simulators.Args, "together": together.Args, "gpu": speed.GpuArgs},
    **{"reach": reach.Args, "parts": parts.Args},
}


def check_benchmark(name: str, words: Sequence[str]) -> None:
    """Parse the words as a program of `benchmarks` does; flags of agents as the agents do. Raises as `check_agent`."""
    if name == "plain":
        return check_agent(words[0], words[1:])
    program = importlib.import_module(f"benchmarks.{name}")
    cut = words.index("--") if "--" in words else len(words)
    own, rest = list(words[:cut]), list(words[cut + 1 :])
    settings = program.Args
    if name == "speed" and own and (first := OF_SPEED.get(own[0])):
        name, settings, own = own[0], first, own[1:]
    if name == "report":
        first = next((i for i, word in enumerate(own) if word.startswith("--")), len(own))
        own = (["--dirs", *own[:first]] if first else []) + own[first:]
    parsed = config.parse(settings, argv=own)
    if name == "sweep":
        suite = parsed.args.suite
        if suite and not (ROOT / suite).is_file():
            raise ValueError(f"there is no suite {suite}")
        grid = program.grid_of(parsed.args, parsed.explicit, rest)
        for agent in grid.scripts:
            for task in grid.tasks:
                for flags in grid.variants.values():
                    check_agent(agent, ["--env-id", task, *grid.flags, *flags])
    elif name == "together":
        check_agent(parsed.args.agent, ["--env-id", parsed.args.env_id, *rest])
    elif name == "tune":
        check_agent(parsed.args.agent, ["--env-id", parsed.args.task, *rest])
        known = {field.name for field in fields(importlib.import_module(f"agents.{parsed.args.agent}").Args)}
        for spoken in parsed.args.search:
            if spoken.partition("=")[0] not in known:
                raise ValueError(f"{spoken}: no such setting")
    elif rest:
        raise ValueError(f"{' '.join(rest)}: {name} hands nothing on")


def check_command(words: Sequence[str]) -> None:
    """Find what a command starts, and parse its words as it does. Raises as `check_agent`."""
    program, rest = words[0], list(words[1:])
    if program == "torchrun":
        asked = torch_run.get_args_parser().parse_args(rest)
        check_command(["python", asked.training_script, *asked.training_script_args])
    elif program == "make":
        targets = re.findall(r"^(\w[\w-]*):", read(ROOT / "Makefile"), re.MULTILINE)
        if unknown := [word for word in rest if "=" not in word and word not in targets]:
            raise ValueError(f"make has no target {unknown[0]}")
    elif program == "pip":
        extras = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]["optional-dependencies"]
        asked = [
            name
            for word in rest
            for name in re.sub(r"^(\.|semrl)\[(.*)\]$", r"\2", word).split(",")
            if word[-1:] == "]"
        ]
        if unknown := [name for name in asked if name not in extras and name != "jax[cuda12]"]:
            raise ValueError(f"pyproject.toml has no extra {unknown[0]}")
    elif program == "python" and rest[0] == "-m":
        module = "envs.list" if rest[1] == "envs" else rest[1]
        if module not in OF_ENVS:
            raise ValueError(f"python -m {module}: not among the programs that this test knows")
        for word in rest[2:]:
            if word.startswith("--") and word.partition("=")[0] not in help_flags(module):
                raise ValueError(f"python -m {module} has no flag {word}")
    elif program == "python":
        check_file(rest[0], rest[1:])
    elif program not in OTHERS:
        raise ValueError(f"{program}: not among the programs that this test knows")


def check_file(path: str, words: Sequence[str]) -> None:
    """Parse the words as a program of ours does. Raises as `check_agent`."""
    folder, name = Path(path).parts[0], Path(path).stem
    if folder == "runs" or path in OWN:  # of a bundle, of a block of a page
        return
    if not (ROOT / path).is_file():
        raise ValueError(f"there is no program {path}")
    if folder == "agents" and name in AGENTS:
        check_agent(name, words)
    elif folder == "agents":
        config.parse(importlib.import_module(f"agents.{name}").Args, None, list(words))
    elif folder == "benchmarks":
        check_benchmark(name, words)
    elif path not in ("tests/test_docs.py", "tests/walk.py"):
        raise ValueError(f"{path}: not among the programs that this test knows")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_taken(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {}
    for words in commands(page):
        help_asked = [word for word in words if word not in ("-h", "--help")]
        if said := refusal(check_command, help_asked, capture=capsys):
            refused[shlex.join(words)] = said
    assert not refused


@pytest.mark.parametrize(
    "line",
    [
        "python agents/fasttd3.py --sem-typo",
        "python agents/fasttd3.py --gamma high",
        "python agents/fasttd3.py --gamma 1.5",
        "python agents/ppo.py --env-id WalkerWonk-v1",
        "python agents/ppo.py --n-step 3",
        "python agents/gone.py",
        "python agents/play.py",
        "python agents/play.py runs/RUN_DIR --movie",
        "python benchmarks/sweep.py benchmarks/suites/gone.toml",
        "python benchmarks/sweep.py --tasks WalkerWalk-v1 --variants 'a:--semm'",
        "python benchmarks/sweep.py --tasks WalkerWalk-v1 -- --no-such-flag",
        "python benchmarks/report.py a --fancy",
        "python benchmarks/speed.py ppo --batch-size 3",
        "python benchmarks/tune.py --task WalkerWalk-v1 --search actor_rate=log:1:2",
        "python -m envs.check PointMass-v0 --stepps 3",
        "python -m envs.gone",
        "torchrun --standalone --nproc-per-node 2 agents/fasttd3.py --semm",
        "torchrun --nproc-per-nod 2 --standalne agents/fasttd3.py",
        "make trian",
        "pip install -e '.[tuna]'",
        "sbatch job.sh",
    ],
)
def test_a_wrong_command_is_seen(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(check_command, shlex.split(line), capture=capsys)


def test_flags_in_the_prose_exist() -> None:
    flags = {"--logdir", "--nproc-per-node", "--standalone", "--write", "--strict", "--no-"}
    modules = [f"agents.{name}" for name in (*AGENTS, "play", "export", "show")]
    modules += [
        f"benchmarks.{n}"
        for n in ("sweep", "tune", "status", "report", "speed", "rivals", "simulators", "together", "reach", "parts")
    ]
    for module in (*modules, "benchmarks.nonstationary"):
        names = [field.name.replace("_", "-") for field in fields(importlib.import_module(module).Args)]
        flags |= {f"--{prefix}{name}" for name in names for prefix in ("", "no-")}
    flags = flags.union(*map(help_flags, OF_ENVS))
    stray = {}
    for page in PAGES:
        for code in inline_code(read(page)):
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*\*?", code):
                if not any(fnmatchcase(known, flag) for known in flags):
                    stray[flag] = name_of(page)
            if (backend := re.search(r"--backend (\S+)", code)) and backend[1] not in ("auto", "B", *envs.BACKENDS):
                stray[backend[0]] = name_of(page)
    assert not stray


# ---- tables that are written -----------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """A field of an agent's Args."""

    name: str
    group: str
    default: Any
    meaning: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


@cache
def settings(agent: str) -> tuple[Setting, ...]:
    cls = importlib.import_module(f"agents.{agent}").Args
    source = textwrap.dedent(inspect.getsource(cls))
    lines = source.splitlines()
    body = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)).body
    defaults = {field.name: field.default for field in fields(cls)}
    found = []
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            heads = (re.fullmatch(r" *# ---- (.+) ----", line) for line in lines[: node.lineno])
            *_, group = (head[1] for head in heads if head)
            assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), node.target.id
            found.append(
                Setting(node.target.id, group, defaults[node.target.id], " ".join(str(after.value.value).split()))
            )
    return tuple(found)


def as_typed(value: Any) -> str:
    """Return a value as the command line takes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, int):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, tuple):
        return " ".join(map(as_typed, value))
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def code(value: Any) -> str:
    text = as_typed(value)
    return f"`{text}`" if text else "none"


def rows_of(agent: str) -> tuple[config.Row, ...]:
    return importlib.import_module(f"agents.{agent}").PRESETS


def small_of(agent: str) -> config.Overrides:
    """Return what size small sets for every task."""
    return next(row[3] for row in rows_of(agent) if row[1] == ("*",) and row[2] == "small")


def flag_table(agent: str) -> str:
    """Return every setting of an agent: flag, default, what --size small sets for any task, meaning."""
    small, out, group = small_of(agent), [], ""
    for setting in settings(agent):
        if setting.group != group:
            group = setting.group
            out += [
                "",
                f"**{group[0].upper()}{group[1:]}**",
                "",
                "| flag | default | small | meaning |",
                "|---|---|---|---|",
            ]
        other = code(small[setting.name]) if setting.name in small else ""
        out.append(
            f"| `{setting.flag}` | {code(setting.default)} | {other} | {setting.meaning.replace('|', chr(92) + '|')} |"
        )
    return "\n".join(out).strip()


def preset_table(agent: str) -> str:
    """Return the rows of PRESETS but that of --size small, which is in the table of flags."""
    small = small_of(agent)
    out = ["| tasks | size | sets |", "|---|---|---|"]
    for name, patterns, size, overrides in rows_of(agent):
        if overrides is small and patterns == ("*",):
            continue
        shown, start = dict(overrides), ""
        if small.keys() <= overrides.keys():
            shown = {key: value for key, value in overrides.items() if key not in small or small[key] != value}
            start = "all of `--size small`" + (" for any task, but " if shown else " for any task")
        texts = [
            f"`--{'' if value is not False else 'no-'}{key.replace('_', '-')}"
            f"{'' if isinstance(value, bool) else ' ' + as_typed(value)}`"
            for key, value in shown.items()
        ]
        which = f"{name} (`{'`, `'.join(patterns)}`)" if len(patterns) < 3 and patterns != ("*",) else name
        out.append(
            f"| {which} | {size or 'both' if agent != 'fastsac' else size or 'all'} | {start}{', '.join(texts)} |"
        )
    return "\n".join(out)


def result_table(name: str, goal: str) -> str:
    """Return the scores in a file of benchmarks/results, as reports compute them, and the frames until a return."""
    found = study.Study(records.read_tidy(RESULTS / f"{name}.csv"), study.Args())
    out = [
        "| variant | seeds | return, 95% interval | least and greatest seed | "
        f"frames to {float(goal):,.0f}, median seed |",
        "|---|---|---|---|---|",
    ]
    for (task, variant), runs in found.cells.items():
        scores = found.scores(task, variant)
        mean, low, high = (float(x) for x in stats.t_interval(scores))
        first = [
            next((float(x) for x, y in zip(run.data.steps, run.data.values, strict=True) if y >= float(goal)), math.inf)
            for run in runs
        ]
        middle = statistics.median_low(sorted(first))
        reached = f"{middle:,.0f}" if math.isfinite(middle) else "never"
        reached += (
            "" if all(map(math.isfinite, first)) else f" ({sum(map(math.isfinite, first))} of {len(first)} seeds)"
        )
        out.append(
            f"| {variant.partition('__')[2]} | {len(scores)} | {mean:,.0f} [{low:,.0f}, {high:,.0f}] "
            f"| {min(scores):,.0f}, {max(scores):,.0f} | {reached} |"
        )
    return "\n".join(out)


ARMS = {
    "stationary": "plain, one labelling for good",
    "relu": "plain",
    "sem": "with SEM",
    "layernorm": "with LayerNorm alone",
    "crelu": "with CReLU",
    "single": "with one softmax over the layer",
}


def toy_table() -> str:
    """Return what nonstationary.csv has of the last epoch, means over seeds."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    with open(RESULTS / "nonstationary.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["epoch"] == "100":
                values[row["arm"], row["measure"]].append(float(row["value"]))
    out = [
        "| network | share of the fifth labelling that is fitted | dormant units | effective rank |",
        "|---|---|---|---|",
    ]
    for arm, words in ARMS.items():
        measures = ("accuracy", "network_dormant_tau", "effective_rank")
        fitted, dormant, rank = (statistics.mean(values[arm, measure]) for measure in measures)
        out.append(f"| {words} | {fitted:.1%} | {dormant:.1%} | {rank:.0f} |")
    return "\n".join(out)


MEASURES = {
    "effective_rank": ("effective rank", ".1f"),
    "feature_norm": ("norm of the features", ".2f"),
    "gini": ("sparsity (Gini)", ".2f"),
    "dormant": ("dormant units", ".0%"),
}


def diagnostics_table() -> str:
    """Return the last layer's diagnostics without SEM, with it in the actor and in both, from diagnostics.csv."""
    seeds: dict[tuple[str, ...], list[float]] = defaultdict(list)
    with open(RESULTS / "diagnostics.csv", newline="") as file:
        for row in csv.DictReader(file):  # the last tenth of the frames
            variant = row["exp_name"].removeprefix("fasttd3__")
            seeds[row["env_name"], row["metric"].removeprefix("repr/"), variant, row["seed"]].append(
                float(row["value"])
            )
    out = ["| task, network | | off | SEM in the actor | in both |", "|---|---|---|---|---|"]
    for net in ("actor", "critic"):
        for task in ("WalkerWalk-v1", "CheetahRun-v1"):
            for name, (words, digits) in MEASURES.items():
                cells = []
                for variant in ("sem-off", "sem-actor", "sem-on"):
                    key = (task, f"{net}_{name}", variant)
                    means = sorted(statistics.mean(x) for of, x in seeds.items() if of[:3] == key)
                    assert len(means) == 5, key
                    cells.append(f"{statistics.mean(means):{digits}} ({means[0]:{digits}} to {means[-1]:{digits}})")
                out.append(f"| {task}, {net} | {words} | {' | '.join(cells)} |")
    return "\n".join(out)


CONTROLS = {
    "ppo__relu": "plain",
    "ppo__sem": "with SEM, L=2, V=32",
    "ppo__actor": "with SEM in the actor alone",
    "ppo__critic": "with SEM in the critic alone",
    "ppo__sem-tau0.3": "with SEM at tau=0.3",
    "ppo__sem-narrow": "with SEM, L=2, V=8",
    "ppo__layernorm": "with LayerNorm alone",
    "ppo__narrow": "as narrow as L=2, V=8",
    "ppo__single": "with one softmax over the layer",
}


def control_table() -> str:
    """Return after how many frames PPO with each block was there, from the results of controls-small and Acrobot."""
    seeds: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for name in ("controls-small/results", "acrobot-ppo"):
        with open(RESULTS / f"{name}.csv", newline="") as file:
            for row in csv.DictReader(file):
                cell = seeds[row["exp_name"], row["env_name"]]
                cell[row["seed"]].append((float(row["env_step"]), float(row["value"])))

    def words(variant: str, task: str, goal: float) -> str:
        if not (cell := seeds.get((variant, task))):
            return ""
        at = sorted(next((step for step, x in sorted(run) if x >= goal), math.inf) for run in cell.values())
        assert len(at) == 5, (variant, task)
        said = ["never" if math.isinf(step) else f"{step:,.0f}" for step in at]
        return f"{said[2]} [{said[0]}, {said[-1]}]"

    out = ["| PPO | Acrobot-v1 at -100 | CartPole-v1 at 500 |", "|---|---|---|"]
    out += [
        f"| {text} | {words(x, 'Acrobot-v1', -100)} | {words(x, 'CartPole-v1', 500)} |" for x, text in CONTROLS.items()
    ]
    return "\n".join(out)


def ratio(of: dict[str, float]) -> str:
    low, high = (of["min"], of["max"]) if "min" in of else (of["low"], of["high"])
    return f"{of['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def cost_table() -> str:
    """Return what SEM costs of an update of critics and actor, from speed-cpu-2048-sem.json and the compiled one."""
    found = {}
    for name in ("speed-cpu-2048-sem", "speed-cpu-compiled-2048"):
        for row in json.loads(read(RESULTS / f"{name}.json"))["results"]:
            if row["task"] == "critic and actor update" and row["side"] == "ours" and row["to_sem_off"]:
                found[row["sem"], name, row["precision"]] = ratio(row["to_sem_off"])
    out = ["| SEM in | float32 | bfloat16 | compiled, float32 | compiled, bfloat16 |", "|---|---|---|---|---|"]
    for where, words in (("actor", "actor"), ("critic", "critics"), ("both", "both")):
        out.append(f"| {words} | {' | '.join(text for (sem, *_), text in found.items() if sem == where)} |")
    return "\n".join(out)


def coverage_table() -> str:
    """Return how often 95% intervals hold the truth, from coverage.json."""
    rows = json.loads(read(RESULTS / "coverage.json"))["results"]
    plain = {(row["tasks"], row["measure"]): row for row in rows if row["plain"]}
    seeds = [str(n) for n in intervals_of.SEEDS]
    heads = [f"{n} seeds" for n in seeds] + [f"{n}, some fail" for n in seeds]
    out = ["| interval | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for row in rows:
        case = intervals_of.Case(*(row[name] for name in intervals_of.Case._fields))
        if not case.plain:
            other = plain.get((case.tasks, case.measure))
            cells = [
                f"{row[key][n]:.3f}" + (f" ({other[key][n]:.3f})" if other else "")
                for key in ("normal", "failing")
                for n in seeds
            ]
            out.append(f"| {intervals_of.name_of(case)} | {' | '.join(cells)} |")
    return "\n".join(out)


def bootstrap_table() -> str:
    """Return what intervals cost here and with rliable, from bootstrap.json."""
    rows = json.loads(read(RESULTS / "bootstrap.json"))["results"]
    out = [
        f"| scores | four measures, {rows[0]['reps']:,} resamples | rliable | times | improvement, "
        f"{rows[0]['pair_reps']:,} resamples | rliable | times |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        out.append(
            f"| {row['seeds']} seeds x {row['tasks']} tasks "
            f"| {row['ours_s']:.2f} s | {row['rliable_s']:.1f} s | {row['times']:.0f} "
            f"| {1000 * row['ours_pair_s']:.1f} ms | {row['rliable_pair_s']:.1f} s | {row['pair_times']:.0f} |"
        )
    return "\n".join(out)


def report_table() -> str:
    """Return what a large report costs, from report.json."""
    out = ["| runs | evaluations of each | processor time | elapsed | memory at most |", "|---|---|---|---|---|"]
    for row in json.loads(read(RESULTS / "report.json"))["results"]:
        sizes = f"{row['cpu_s']:.0f} s | {row['wall_s']:.0f} s | {row['peak_mib']:,.0f} MiB"
        out.append(f"| {row['runs']:,} | {row['points']:,} | {sizes} |")
    return "\n".join(out)


def native_table() -> str:
    """Return what HumanoidBench takes here and in its own package, from envs-cpu-humanoidbench.json."""
    out = [
        "| | environments | steps a second, ours | the package's | times as fast | MiB, ours | the package's | share |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = json.loads(read(RESULTS / "envs-cpu-humanoidbench.json"))["results"]
    for ours, theirs in zip(rows[::2], rows[1::2], strict=True):
        assert ours["against"] == theirs["backend"]
        out.append(
            f"| {ours['task']} | {ours['worlds']} | {ours['ours']['median']:,.0f} | {theirs['ours']['median']:,.0f} "
            f"| {ratio(ours['speed_ratio'])} | {ours['total_mib']:,.0f} | {theirs['total_mib']:,.0f} "
            f"| {ours['memory_ratio']:.1%} |"
        )
    return "\n".join(out)


def adapter_table() -> str:
    """Return what adapters take of a step, from envs-cpu-16.json and envs-cpu-128.json."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for worlds in (16, 128):
        for row in json.loads(read(RESULTS / f"envs-cpu-{worlds}.json"))["results"]:
            sides = zip(row["ours"]["turns"][1:], row["engine"]["turns"][1:], strict=True)
            turns = sorted(1 - mine / bare for mine, bare in sides)
            said = f"{row['ours']['median']:,.0f} | {statistics.median(turns):.0%} ({turns[1]:.0%} to {turns[-2]:.0%})"
            found.setdefault((row["task"], row["backend"]), {})[worlds] = said
    out = [
        "| task | backend | 16 environments: steps a second | adapter | 128: steps a second | adapter |",
        "|---|---|---|---|---|---|",
    ]
    for (task, backend), cells in found.items():
        out.append(f"| {task} | {backend} | {cells[16]} | {cells.get(128, ' | ')} |")
    return "\n".join(out)


def parts_table(name: str = "speed-cpu-parts") -> str:
    """Return what each optimisation of training brings, from what `speed.py parts` has written."""
    out = ["| optimisation | training | times as long without it | in processor time |", "|---|---|---|---|"]
    rows = json.loads(read(RESULTS / f"{name}.json"))["results"]
    for part in dict.fromkeys(row["part"] for row in rows):
        for row in (row for row in rows if row["part"] == part):
            out.append(f"| {row['about']} | {row['training']} | {ratio(row['wall'])} | {ratio(row['cpu'])} |")
    return "\n".join(out)


def rivals_table(*algorithms: str) -> str:
    """Return how fast training is beside other libraries, by frames per second, from speed-cpu-ppo.json."""
    rows = json.loads(read(RESULTS / "speed-cpu-ppo.json"))["results"]
    programs = ("ours", "ours --sem", "ours --compile", "ours --compile --sem")
    heads = "| | ours | `--sem` | `--compile` | `--compile --sem` | fastest rival | times as fast, ours |"
    out = [f"{heads} with both |", "|---" * 8 + "|"]
    for task in dict.fromkeys(row["task"] for row in rows):
        of = {row["program"]: row for row in rows if row["task"] == task}
        rival = of[of["ours"]["fastest_rival"]]
        frames = [f"{of[name]['frames_per_s']:,.0f}" for name in programs]
        frames.append(f"{rival['frames_per_s']:,.0f} ({rival['program'].removesuffix(', EnvPool')})")
        name, hidden = re.fullmatch(r"(.*?): .*hidden \((.*?),?\).*", task).groups()  # type: ignore[union-attr]
        sizes = "Nature CNN" if "Pong" in name else hidden.replace(", ", "-")
        if not algorithms or name.partition(",")[0] in algorithms:
            times = [ratio(of[name]["speedup"]) for name in (programs[0], programs[-1])]
            out.append(f"| {name}, {sizes} | {' | '.join([*frames, *times])} |")
    return "\n".join(out)


def reach_table(name: str) -> str:
    """Return frames and processor time to a return, from what `speed.py reach` has written."""

    def spread(of: list[float | None]) -> str:
        median, least, largest = ("never" if x is None else f"{x:,.0f}" for x in of)
        return median if least == largest else f"{median} ({least} to {largest})"

    out = [
        "| program | seeds | frames | processor time, s | times as fast as the best other |",
        "|---|---|---|---|---|",
    ]
    for row in json.loads(read(RESULTS / f"{name}.json"))["results"]:
        faster = f"{row['speedup']:.1f}" if row["speedup"] else ""
        seen = f"{spread(row['frames'])} | {spread(row['seconds'])}"
        out.append(f"| {row['program']} | {row['seeds']} | {seen} | {faster} |")
    return "\n".join(out)


def own_task(module: str) -> str:
    """Return the example in the docstring of a module of `envs`, as a block that is run."""
    lines = (importlib.import_module(f"envs.{module}").__doc__ or "").splitlines()
    text = textwrap.dedent("\n".join(line for line in lines if not line or line.startswith("    "))).strip()
    text = re.sub(r"\n\n(?=\w)", "\n\n\n", text.replace("'''", '"""'))  # as the formatter wants a page to have it
    return f"<!-- runnable: my_task.py -->\n```python\n{text}\n```"


TABLES = {
    **{"flags": flag_table, "presets": preset_table, "results": result_table, "toy": toy_table, "cost": cost_table},
    **{"controls": control_table, "diagnostics": diagnostics_table},
    **{"coverage": coverage_table, "bootstrap": bootstrap_table, "report": report_table, "own": own_task},
    **{
        "native": native_table,
        "adapters": adapter_table,
        "parts": parts_table,
        "reach": reach_table,
        "rivals": rivals_table,
    },
}
MARKED = re.compile(r"(<!-- table: (\w+) ([^\n]*?)-->\n)(?:(?!<!-- table).)*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """Return a page with its tables written anew, each between `<!-- table: KIND WORDS -->` and `<!-- end -->`."""
    return MARKED.sub(lambda m: f"{m[1]}\n{TABLES[m[2]](*m[3].split())}\n\n{m[4]}", text)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_current(page: Path) -> None:
    assert read(page) == with_tables(read(page)), "python tests/test_docs.py --write"


def listed_flags(text: str) -> list[tuple[str, str]]:
    """Return flag and default of each row of the tables of flags in a page."""
    return re.findall(r"^\| `(--[\w-]+)` \| (?:`([^`]*)`|none) \|", text, re.MULTILINE)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_flag_is_in_its_page_once_with_its_default(agent: str) -> None:
    cls = importlib.import_module(f"agents.{agent}").Args
    expected = [("--" + field.name.replace("_", "-"), as_typed(field.default)) for field in fields(cls)]
    assert sorted(listed_flags(read(DOCS / f"{agent}.md"))) == sorted(expected)


def test_a_stale_table_is_seen() -> None:
    text = read(DOCS / "fasttd3.md")
    for old, new in (("| `--gamma` | `0.99` |", "| `--gamma` | `0.98` |"), ("| `--seed` ", "| `--sead` ")):
        assert old in text
        stale = text.replace(old, new)
        assert stale != with_tables(stale) == text and listed_flags(stale) != listed_flags(text)
    assert text.count("806 [400, 1,213]") == 1
    assert (stale := text.replace("806 [400, 1,213]", "906 [400, 1,213]")) != with_tables(stale)


@cache
def intervals() -> set[str]:
    """Return each score and ratio in benchmarks/results, as pages write them: `958 [956, 961]`, `0.26 [0.24, 0.27]`."""
    found = set(re.findall(r"(?<=\| )[\d,]+ \[[\d,]+, [\d,]+\]", control_table()))
    for path in RESULTS.glob("*-*.csv"):
        found |= set(re.findall(r"(?<=\| )[\d,]+ \[-?[\d,]+, -?[\d,]+\]", result_table(path.stem, "0")))
    for path in RESULTS.glob("*.json"):
        for row in json.loads(read(path))["results"]:
            found |= {ratio(value) for value in row.values() if isinstance(value, dict) and "ratio" in value}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_intervals_are_those_of_the_results(page: Path) -> None:
    written = set(re.findall(r"(?<![\w.,])\d[\d.,]* \[-?\d[\d.,]*, -?\d[\d.,]*\]", prose(read(page))))
    assert written <= intervals(), "none of benchmarks/results says so"


def test_what_may_change_on_resuming_is_said() -> None:
    said = read(DOCS / "runs.md").partition("Settings come from the run; only ")[2].partition("may be given anew")[0]
    for agent in AGENTS:
        names = importlib.import_module(f"agents.{agent}").MUTABLE
        assert sorted(inline_code(said)) == sorted("--" + name.replace("_", "-") for name in names)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_are_there(page: Path) -> None:
    for named in re.findall(r"(?<![\w{}-])[a-z][\w-]*\.(?:csv|json|png|toml)\b", read(page)):
        there = [*(ROOT / "benchmarks").glob(f"**/{named}"), *ROOT.glob(named)]
        assert there or named in WRITTEN, f"{named}: neither in benchmarks/ nor what a program writes"


WRITTEN = (
    *("config.json", "manifest.json", "status.json", "result.json", "metrics.csv", "meta.json", "policy.json"),
    *("results.csv", "summary.csv", "aggregate.json", "trials.csv", "history.png", "launch.json", "episodes.csv"),
    *("pyproject.toml", "tune.json", "FlashSAC.csv", "curves.png"),
)


# ---- Python ----------------------------------------------------------------------------------------------------------


RUNNABLE = [(page, block) for page in PAGES for block in blocks(read(page)) if block.runnable]


def test_there_is_something_to_run() -> None:
    known = {"my_env.py", "my_task.py", "robot.py", "shaken.py", "walker.py", "search.py"}
    assert {block.runnable for _, block in RUNNABLE} >= known


@pytest.mark.parametrize("block", [block for _, block in RUNNABLE], ids=[block.runnable for _, block in RUNNABLE])
def test_python_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block is a module; what is done with it is what its page tells to do, made short."""
    (tmp_path / block.runnable).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module, line in DONE_WITH[block.runnable]:
        assert importlib.import_module(module).main(line.split()) == 0, f"{module} {line}"


DONE_WITH = {
    "my_env.py": [
        ("envs.check", "my_env:Pendulum --option max_episode_steps=20"),
        (
            "agents.fasttd3",
            "--env-id my_env:Pendulum --sem --size small --num-envs 8 --total-timesteps 480 --learning-starts 400 "
            "--eval-every 0 --quiet",
        ),
    ],
    "my_task.py": [
        ("envs.check", "my_task:make --option max_episode_steps=20"),
        (
            "agents.fasttd3",
            "--env-id my_task:make --sem --size small --num-envs 4 --total-timesteps 400 --learning-starts 40 "
            "--num-updates 1 --eval-every 0 --quiet",
        ),
    ],
    "robot.py": [
        ("envs.check", "robot:Robot --steps 20"),
        (
            "agents.fasttd3",
            "--env-id robot:Robot --sem --size small --num-envs 4 --total-timesteps 400 --learning-starts 40 "
            "--num-updates 1 --eval-every 0 --quiet",
        ),
    ],
    "walker.py": [
        ("envs.check", "walker:Walker --steps 20"),
        *(
            (
                f"agents.{agent}",
                f"--env-id walker:Walker --symmetry --size small --num-envs 4 --total-timesteps 512 {few} --quiet "
                "--eval-every 0",
            )
            for agent, few in (("fasttd3", "--sem --learning-starts 400 --num-updates 1"), ("ppo", ""))
        ),
    ],
    "shaken.py": [
        ("envs.check", "shaken:Walker --steps 20"),
        (
            "agents.fasttd3",
            "--env-id shaken:Walker --sem --size small --num-envs 4 --total-timesteps 512 --learning-starts 400 "
            "--num-updates 1 --eval-envs 2 --eval-every 512 --quiet --run-dir trained",
        ),
        ("agents.play", "trained --env-id Walker2d-v5 --backend mjwarp --episodes 2 --max-steps 20"),
    ],
    "search.py": [
        ("search", "--total-timesteps 4000 --run-dir mine --quiet --sem"),
        ("search", "--total-timesteps 8000 --run-dir mine --quiet --sem"),
    ],
}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_parses(page: Path) -> None:
    for block in blocks(read(page)):
        if block.language == "python":
            ast.parse(block.text)


if __name__ == "__main__":
    for changed in PAGES if sys.argv[1:] == ["--write"] else sys.exit("usage: python tests/test_docs.py --write"):
        if (new := with_tables(read(changed))) != read(changed):
            changed.write_text(new, encoding="utf-8")
            print(f"written: {name_of(changed)}")
