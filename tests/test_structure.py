"""The shape of the repository, read from the source: who imports whom, what a flag must have, what a preset may say."""

import ast
import importlib
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import envs
from agents import config
from envs.families import CLASSIC, GYM_MUJOCO

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("agents", "benchmarks", "envs", "networks")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
"""dotted name of every module of ours, and its file"""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def args_class(code: ast.Module) -> ast.ClassDef | None:
    return next((node for node in code.body if isinstance(node, ast.ClassDef) and node.name == "Args"), None)


def constants(code: ast.Module) -> dict[str, str]:
    """Upper-case names that a module assigns at its top level, and what, as source."""
    found = {}
    for node in code.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                if isinstance(target, ast.Name) and target.id.isupper():
                    found[target.id] = ast.unparse(node.value)
    return found


WITH_ARGS = [module for module in FILES if args_class(tree(module))]
AGENTS = [m for m in WITH_ARGS if m.startswith("agents.") and "PRESETS" in constants(tree(m))]
VERBS = [m for m in FILES if m in ("agents.play", "agents.show", "agents.export")]  # done with a run, of any agent
SHARED = [m for m in FILES if m.startswith("agents.") and m not in AGENTS and m not in VERBS]
ADAPTERS = {backend.module: backend.package for backend in envs.BACKENDS.values()}


def test_the_modules_are_found() -> None:
    assert "agents.fasttd3" in AGENTS and "agents.replay" in SHARED and "envs.gymnasium" in ADAPTERS
    assert set(PACKAGES) <= set(FILES) and "envs.list" in FILES


# ---- imports ---------------------------------------------------------------------------------------------------------


class Import(NamedTuple):
    """One name that a module imports."""

    target: str
    """dotted: a module of ours, or module and name of somebody else's"""
    lazy: bool
    """within a function"""
    line: int


def imports(code: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(code):
        inside = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [x.value for x in node.args[:1] if isinstance(x, ast.Constant) and isinstance(x.value, str)]
        for name in names:
            own = name.partition(".")[0] in PACKAGES
            while own and name not in FILES:
                name = name.rpartition(".")[0]  # a class or function of ours: its module
            yield Import(name, inside, getattr(node, "lineno", 0))
        yield from imports(node, inside)


COMMON = ("envs.host", "envs.managed", "envs.pictures")  # what several adapters share
ALSO = {  # packages of other adapters that one needs too
    "envs.mjwarp": {"mujoco"},
    "envs.isaaclab": {"gymnasium"},
    "envs.humanoidbench_upstream": {"gymnasium", "mujoco"},
}
KERNELS = {"envs.mjwarp_contacts"}  # whose functions are compiled by the simulator: imported lazily as it is itself
JOINS = {"envs.humanoidbench_warp": {"envs.humanoidbench", "envs.mjwarp"}}  # the tasks of one, the physics of another
SIMULATORS = set(ADAPTERS.values()) - {"torch"} | {
    *("ale_py", "brax", "dm_control", "genesis", "gymnasium_robotics", "isaaclab", "isaacgym", "jax", "mani_skill"),
    *("metaworld", "mjlab", "mujoco", "mujoco_playground", "mujoco_warp", "newton", "warp"),
}


def is_simulator(target: str) -> bool:
    return target.partition(".")[0] in SIMULATORS and not f"{target}.".startswith("gymnasium.spaces.")


@cache
def declared() -> frozenset[str]:
    """Top-level modules of the distributions that pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {re.split(r"[^\w-]", line)[0].lower() for line in project["dependencies"]}
    return frozenset(
        name for name, owners in packages_distributions().items() if asked & {owner.lower() for owner in owners}
    )


def level(module: str) -> int:
    """Networks may import what is on a lower level."""
    levels = {"native": 0, "normalize": 0, "layers": 1, "residual": 2, "sem": 2, "bottlenecks": 3, "torso": 4}
    return levels.get(module.removeprefix("networks."), 5)


def adapter_of(module: str) -> str | None:
    """Return the adapter that a module is or is a part of, as `envs.humanoidbench_tasks` is of `envs.humanoidbench`."""
    if module in ADAPTERS:
        return module
    return next((name for name in ADAPTERS if module.startswith(f"{name}_")), None)


def others(adapter: str) -> set[str]:
    """Return the simulators of all other adapters."""
    return set(ADAPTERS.values()) - {ADAPTERS[adapter]} - ALSO.get(adapter, set())


def allows_own(module: str, target: str) -> bool:
    """Whether a module of ours may import another."""
    package, into = module.partition(".")[0], target.partition(".")[0]
    if package == "networks":
        return into == "networks" and level(target) < level(module) and "." in module
    if module == "envs.multitask" and target == "envs":  # it has no simulator of its own
        return True
    if module == "envs.humanoidbench_warp" and adapter_of(target) in ("envs.humanoidbench", "envs.mjwarp"):
        return True  # the tasks of one on the engine of the other
    if adapter := adapter_of(module):
        own = {adapter, *JOINS.get(adapter, ())}
        return target in ("envs.base", "envs.families", *COMMON) or adapter_of(target) in own
    if module in COMMON:
        return target in ("envs.base", *COMMON)
    if package == "envs":
        return module != "envs.base" and target in ("envs", "envs.base")
    if module in SHARED:
        return target in ("envs.base", "envs.families") or target in SHARED
    if package == "agents":
        usable = [*SHARED, *(AGENTS if module in VERBS else [])]
        return into == "networks" or target in ("envs", "envs.base", "envs.families", "envs.pictures", *usable)
    users = (
        "speed",
        "authors",
        "parts",
        "simulators",
        "together",
        "nonstationary",
        "intervals",
    )  # of networks, envs, manifests
    return into == "benchmarks" or target == "agents.config" or module.removeprefix("benchmarks.") in users


def allows(module: str, target: str, lazy: bool) -> bool:
    """Whether a module may import something: the table of rules, in the order of who asks."""
    package, root, adapter = module.partition(".")[0], target.partition(".")[0], adapter_of(module)
    if root in PACKAGES:
        return allows_own(module, target) and (lazy or not KERNELS & {target, target.rpartition(".")[0]})
    if root in sys.stdlib_module_names:
        return True
    if is_simulator(target):
        drawing = module == "envs.pictures" and root == "mujoco"
        late = lazy or module in KERNELS
        return late and (drawing or (adapter is not None and root not in others(adapter)))
    if package == "networks":
        return root in ("torch", "tensordict")
    if package == "envs":
        return root in ("torch", "numpy", "gymnasium") or (lazy and adapter is not None)
    return root in declared()


@pytest.mark.parametrize("module", FILES)
def test_imports_keep_the_rules(module: str) -> None:
    bad = [f"line {x.line}: {x.target}" for x in imports(tree(module)) if not allows(module, x.target, x.lazy)]
    assert not bad, f"{module} must not import these here"


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("networks.sem", "from networks.torso import mlp_torso"),
        ("networks.torso", "from networks import actors"),
        ("networks.actors", "import networks.critics"),
        ("networks.layers", "import numpy"),
        ("networks.critics", "from agents.replay import ReplayBuffer"),
        ("envs.base", "import envs"),
        ("envs.base", "import gymnasium"),
        ("envs.base", "import tensordict"),
        ("envs.envpool", "import envpool"),
        ("envs.envpool", "class A:\n import envpool"),
        ("envs.torch", "def f():\n import envpool"),
        ("envs.gymnasium", "def f():\n from envpool.registration import registry"),
        ("envs.envpool", "from envs.gymnasium import GymnasiumEnv"),
        ("envs.gymnasium", "def f():\n import mujoco"),
        ("envs.mjwarp", "import mujoco_warp"),
        ("envs.mjwarp", "def f():\n import gymnasium"),
        ("envs.gymnasium", "from envs.humanoidbench_tasks import TASKS"),
        ("envs.humanoidbench_scenes", "import mujoco"),
        ("envs.humanoidbench_scenes", "from envs.envpool import tasks"),
        ("envs.host", "def f():\n import gymnasium"),
        ("envs.host", "import envs"),
        ("envs.host", "from envs.gymnasium import make"),
        ("envs.check", "from envs.host import HostEnv"),
        ("envs", "from envs.torch import tasks"),
        ("envs.check", "def f():\n import mujoco"),
        ("agents.replay", "from networks.sem import SEM"),
        ("agents.replay", "import envs"),
        ("agents.run", "from agents.fasttd3 import Args"),
        ("agents.trained", "from agents import play"),
        ("agents.export", "from agents.play import settings"),
        ("agents.run", "def f():\n importlib.import_module('agents.fasttd3')"),
        ("agents.run", "import scipy"),
        ("agents.run", "from .replay import ReplayBuffer"),
        ("agents.fasttd3", "from envs.envpool import make"),
        ("agents.fasttd3", "def f():\n import mujoco"),
        ("agents.fasttd3", "from gymnasium import make"),
        ("benchmarks.sweep", "from agents import fasttd3"),
        ("benchmarks.sweep", "from networks.sem import SEM"),
        ("benchmarks.report", "import pandas"),
    ],
)
def test_the_rules_forbid(module: str, statement: str) -> None:
    assert [x for x in imports(ast.parse(statement)) if not allows(module, x.target, x.lazy)]


@pytest.mark.parametrize(
    ("module", "statement"),
    [
        ("networks.critics", "import math, torch.nn.functional\nfrom networks.sem import SEM"),
        ("envs.base", "import numpy\nfrom gymnasium.spaces import Box"),
        ("envs.envpool", "from envs.host import HostEnv\ndef f():\n from envpool.registration import registry"),
        ("envs.humanoidbench", "from envs.humanoidbench_tasks import TASKS\nfrom envs.host import HostEnv"),
        ("envs.humanoidbench_scenes", "from envs.base import TaskError\ndef f():\n import mujoco"),
        ("envs.mjwarp", "from envs.mjwarp_tasks import TASKS\ndef f():\n import mujoco, mujoco_warp, warp"),
        (
            "envs.host",
            "import math, numpy, torch\nfrom gymnasium.spaces import Box\nfrom envs.base import Step, VecEnv",
        ),
        ("agents.fasttd3", "import envs\nfrom envs.base import Step\nfrom networks.sem import SEM\nimport agents.run"),
        ("agents.export", "import envs\nfrom networks.sem import SEM\nfrom agents.trained import settings"),
        ("benchmarks.sweep", "from agents import config\nimport benchmarks, subprocess, matplotlib.pyplot"),
        ("benchmarks.speed", "from agents.fasttd3 import FastTD3"),
    ],
)
def test_the_rules_allow(module: str, statement: str) -> None:
    assert not [x for x in imports(ast.parse(statement)) if not allows(module, x.target, x.lazy)]


def test_no_module_needs_itself() -> None:
    needs = {module: {x.target for x in imports(tree(module)) if x.target in FILES} for module in FILES}
    TopologicalSorter(needs).prepare()  # raises with the cycle


@pytest.mark.parametrize("package", ["agents", "benchmarks"])
def test_scripts_hide_no_other_module(package: str) -> None:
    # `python agents/fasttd3.py` searches agents/ before everything else.
    names = {module.split(".")[1] for module in FILES if module.startswith(f"{package}.")}
    assert not names & (sys.stdlib_module_names | packages_distributions().keys())


# ---- flags -----------------------------------------------------------------------------------------------------------

CHECKS_ONLY = ("resolve", "describe")  # functions that look at values, whether or not anything goes by them
READ_BY_THE_RUN = {"exp_name", "init_from"}


def flags(code: ast.Module) -> dict[str, tuple[str, str | None]]:
    """Fields of Args: annotation, and the docstring directly below."""
    body = getattr(args_class(code), "body", [])
    found = {}
    for node, below in itertools.zip_longest(body, body[1:]):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            documented = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            found[node.target.id] = ast.unparse(node.annotation), str(below.value.value) if documented else None
    return found


def reads(code: ast.Module) -> set[str]:
    """Attributes that code takes from settings, whatever checks and prints them left out."""
    nodes = [node for top in code.body if getattr(top, "name", "") not in CHECKS_ONLY for node in ast.walk(top)]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in ("args", "asked"):
                found.add(node.attr)
    return found


def unread(code: ast.Module) -> set[str]:
    return flags(code).keys() - reads(code) - READ_BY_THE_RUN


@pytest.mark.parametrize("module", WITH_ARGS)
def test_flags_are_documented_and_read(module: str) -> None:
    code = tree(module)
    assert flags(code)
    assert not [name for name, (_, doc) in flags(code).items() if not (doc and doc.strip())], "no docstring below"
    assert not unread(code), "nobody reads these"


def test_the_run_reads_what_agents_need_not() -> None:
    assert set().union(*(reads(tree(module)) for module in SHARED)) >= READ_BY_THE_RUN


@pytest.mark.parametrize("module", AGENTS)
def test_an_unused_flag_is_noticed(module: str) -> None:
    source = FILES[module].read_text(encoding="utf-8")
    anchor = re.search(r"^    env_id: str", source, re.MULTILINE)
    assert anchor
    extra = (
        source[: anchor.start()] + '    dead: int = 0\n    """said"""\n    mute: int = 0\n' + source[anchor.start() :]
    )
    only_checked = "\n\ndef resolve(args: Args) -> bool:\n    return args.dead > 0 and getattr(args, 'mute') > 0\n"
    code = ast.parse(extra + only_checked)
    assert unread(code) - unread(tree(module)) == {"dead", "mute"}
    assert flags(code)["dead"] == ("int", "said") and flags(code)["mute"] == ("int", None)
    used = "\n\ndef use(run):\n    return run.args.dead, run.args.mute\n"
    assert unread(ast.parse(extra + used)) == unread(tree(module))


@pytest.mark.parametrize("module", WITH_ARGS)
def test_defaults_have_their_type(module: str) -> None:
    settings = importlib.import_module(module).Args
    defaults = {name: getattr(settings, name) for name in settings.__dataclass_fields__ if hasattr(settings, name)}
    config.checked(settings, {"defaults": defaults})


def test_agents_agree_in_what_they_repeat() -> None:
    for one, other in itertools.combinations(AGENTS, 2):
        here, there = flags(tree(one)), flags(tree(other))
        for name in here.keys() & there.keys():
            if name != "size":  # an agent may have sizes of its own
                assert here[name] == there[name], f"{one} and {other}: type or meaning of {name}"
        mine, theirs = constants(tree(one)), constants(tree(other))
        for name in mine.keys() & theirs.keys() - {"PRESETS", "LOSSES"}:
            assert mine[name] == theirs[name], f"{one} and {other}: {name}"


# ---- presets ---------------------------------------------------------------------------------------------------------


ELSEWHERE = {  # tasks of simulators that are seldom installed, by their own names
    "humanoidbench": ("h1hand-basketball-v0", "h1hand-package-v0", "h1hand-truck-v0", "h1hand-window-v0"),
    "isaaclab": (
        *("Isaac-Velocity-Flat-G1-v0", "Isaac-Velocity-Rough-G1-v0", "Isaac-Repose-Cube-Shadow-Direct-v0"),
        "Isaac-Open-Drawer-Franka-v0",
    ),
}


@cache
def families() -> dict[str, str]:
    """Every task of the installed backends, and the suite that it belongs to: EnvPool knows, of its own tasks."""
    found = {task: backend for backend, tasks in ELSEWHERE.items() for task in tasks}
    found |= {task: backend for backend in reversed(envs.backends()) for task in envs.tasks(backend)}
    if "envpool" in envs.backends():
        from envpool.registration import registry

        found |= {task: registry.specs[task][0] for task in envs.tasks("envpool")}
    return found


def rows(module: str) -> list[tuple[str, tuple[str, ...], str | None, dict[str, Any]]]:
    return importlib.import_module(module).PRESETS


@pytest.mark.parametrize("module", AGENTS)
def test_presets_override_flags_with_legal_values(module: str) -> None:
    settings = importlib.import_module(module).Args
    for name, patterns, size, overrides in rows(module):
        assert patterns and overrides, name
        config.checked(settings, {name: {**overrides, **({"size": size} if size else {})}})
        assert not overrides.keys() & {"env_id", "device", "size", "seed", "resume"}, "what presets are chosen by"


@pytest.mark.parametrize("module", AGENTS)
def test_presets_match_tasks_of_one_suite_only(module: str) -> None:
    pytest.importorskip("envpool")
    wrong = []
    for name, patterns, _, _ in rows(module):
        known = (p for p in patterns if p != "*" and not p.startswith("ALE/"))
        hits = {p: {task for task in families() if fnmatchcase(task, p)} for p in known}
        wrong += [f"{name}: {p} matches no task" for p, tasks in hits.items() if not tasks]
        suites = {p: {families()[task] for task in tasks} for p, tasks in hits.items()}
        home = max(set().union(*suites.values()), key=lambda s: sum(s in x for x in suites.values()), default="")
        wrong += [
            f"{name}: {p} matches {sorted(task for task in hits[p] if families()[task] != home)}"
            for p, found in suites.items()
            if found - {home}
        ]
    assert not wrong


@pytest.mark.parametrize("module", AGENTS)
def test_classic_tasks_have_no_preset_of_a_suite(module: str) -> None:
    names = ("Ant", "HalfCheetah", "Hopper", "Humanoid", "HumanoidStandup", "InvertedPendulum", "Pusher", "Reacher")
    tasks = [f"{name}-v{version}" for name in (*names, "Swimmer", "Walker2d") for version in (3, 4, 5)]
    tasks += ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "BipedalWalker-v3"]
    patterns = {p for _, some, _, _ in rows(module) for p in some if p not in ("*", *GYM_MUJOCO, *CLASSIC)}
    assert not [(task, p) for task in tasks for p in patterns if fnmatchcase(task, p)]


SUITES = {
    "envpool.mujoco.dmc": "DMC",
    "envpool.mujoco.playground": "PLAYGROUND",
    "envpool.mujoco.gym": "GYM_MUJOCO",
    "envpool.atari": "ATARI",
    "humanoidbench": "HUMANOIDBENCH",
}


@pytest.mark.parametrize("module", ["envs.families"])
def test_suites_are_covered(module: str) -> None:
    pytest.importorskip("envpool")
    table = importlib.import_module(module)
    for suite, constant in SUITES.items():
        if hasattr(table, constant):
            tasks = [task for task, family in families().items() if family == suite]
            assert tasks
            missed = [task for task in tasks if not any(fnmatchcase(task, p) for p in getattr(table, constant))]
            assert all(task.startswith("Lqr") for task in missed), missed  # costs: returns below 0, unlike all others


# ---- text ------------------------------------------------------------------------------------------------------------

UNWANTED = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X)\b|(?<![\w.])/(w[o]rk|r[o]ot|h[o]me)/")
"""reminders, and paths of somebody's machine; in brackets, so that this file does not match"""


def text_files() -> list[Path]:
    folders = [ROOT / name for name in (*PACKAGES, "tests", "docs", ".ci", ".github")]
    paths = [*ROOT.iterdir(), *(path for folder in folders for path in folder.rglob("*"))]
    return sorted(p for p in paths if p.is_file() and p.suffix not in (".pyc", ".png", ".npz", ".pt", ".gif", ".mp4"))


def test_no_reminders_and_no_paths_of_one_machine() -> None:
    files = text_files()
    assert {ROOT / "Makefile", ROOT / "agents" / "fasttd3.py", Path(__file__).resolve()} <= set(files)
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in files
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if UNWANTED.search(line)
    ]
    assert not found


def test_unwanted_text_is_noticed() -> None:
    for bad in ("# TO" + "DO: later", "x = 1  # FIX" + "ME", 'open("/ro' + 'ot/data")', "see /ho" + "me/me/x"):
        assert UNWANTED.search(bad)
    for good in ("a network / homework", "https://example.org/ho" + "me/page", "to do", "runs/wo" + "rk/x"):
        assert not UNWANTED.search(good)
