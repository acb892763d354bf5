"""Random command lines: each either trains a few iterations or is refused with one clear line, and leaves nothing.

    SEMRL_LONG=1 python -m pytest tests/test_fuzz.py         # 2,000 for each agent instead of 200
    SEMRL_LONG=1 SEMRL_SEED=7 python -m pytest ...           # others

A command line is a tiny run on a torch task and, appended to it, up to five flags drawn from the agent's own Args:
legal values, ones at the edge of what is legal, ones beyond it, and words that are no flags at all.
"""

import os
import random
import re
import resource
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from agents import checkpoint as checkpoint_module
from agents import fastsac, fasttd3, ppo, pqn
from agents import run as run_module
from agents.run import Run

LONG = bool(os.environ.get("SEMRL_LONG"))
SEED = int(os.environ.get("SEMRL_SEED", "0"))
COUNT = 2_000 if LONG else 200

TINY = "--env-id PointMass-v0 --device cpu --size small --num-envs 4 --eval-envs 2 --total-timesteps 4000 --log-every 4"
TINY += " --eval-every 1000 --save-every 8 --actor-hidden 8 8 --critic-hidden 8 8 --threads 1 --amp off"
TINY += " --sem-actor-groups 2 --sem-actor-vertices 4 --sem-critic-groups 2 --sem-critic-vertices 4"
DISCRETE = re.sub(r" --(sem-)?actor-\w+( \d+)+", "", TINY).replace("PointMass", "ClosedFormDiscrete")
ROLLOUTS = " --num-steps 4 --num-minibatches 2 --update-epochs 1"
LEARNER = " --learning-starts 4 --batch-size 8 --buffer-size 40 --num-updates 1 --atoms 5"
AGENTS: dict[str, tuple[ModuleType, str]] = {
    "fasttd3": (fasttd3, TINY + LEARNER),
    "fastsac": (fastsac, TINY + LEARNER),
    "ppo": (ppo, TINY + ROLLOUTS),
    "pqn": (pqn, DISCRETE + ROLLOUTS),
}

TASKS = ("PointMass-v0", "PointMassPrivileged-v0", "ClosedForm-v0", "ClosedFormDiscrete-v0", "Scripted-v0", "Pixels-v0")
WORDS: dict[str, tuple[str, ...]] = {
    "env_id": (*TASKS, "PointMas-v0", "", ":", "a:b", "os:getcwd", "envs.torch:PointMass", "../x", "*", "a b\nc"),
    "backend": ("auto", "torch", "tourch", "", "auto auto", "gymnasium"),
    "device": ("auto", "cpu", "cuda", "cuda:99", "cuda:-1", "meta", "tpu", "", "cpu:0", "cpu:1"),
    "exp_name": ("a", "", "a b", "../../up", "é", "x" * 300, "%s", "-"),
    "run_root": ("runs", "", ".", "a/b/c", "occupied", "occupied/x", "/proc/self/nothing", "x" * 300),
    "run_dir": ("mine", "", ".", "a/b", "occupied", "/proc/self/nothing", "done"),
    "resume": ("", "nowhere", "done", "occupied", ".", "/proc", "done/checkpoints"),
    "replay_storage": ("device", "host", ".", "", "nowhere", "occupied", "/proc"),
    "init_from": ("", "nowhere", "done", "occupied", ".", "/proc", "done/checkpoints", "other"),
}
SMALL = (1, 2, 3, 4, 5, 8, 12)
EDGES = (0, -1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, -(1 << 63), 10**12, 10**30)
FOR_EVER = ("num_updates", "update_epochs")
"""of which a large number is legal, and takes its time"""
FLOATS = (0.0, 1.0, 0.5, 1e-3, 2.0, 10.0, -1.0, 1e-30, 1e-320, 1e30, 1e308, -1e308)
NO_NUMBERS = ("", "x", "1.5.2", "nan", "inf", "-inf", "0x10", "1e3", "True", "None", "\uff11", " 3", "1_0", "--", "-")
STRAY = (["--sem-typo"], ["word"], ["--"], ["-x"], ["--=3"], ["--sem", "true"], ["--seed"], ["--no-seed", "3"], [""])


def value(rng: random.Random, name: str, hint: Any) -> list[str]:
    """Words for a field: legal ones in two cases of three."""
    legal = rng.random() < 2 / 3
    if get_origin(hint) is Literal:
        return [rng.choice([str(x) for x in get_args(hint)] if legal else ["", "nothing", "AUTO", "0"])]
    if get_origin(hint) is tuple:
        inner, *rest = get_args(hint)
        length = 2 if rest != [...] and legal else rng.choice((1, 2, 3) if legal else (0, 1, 3, 20))
        return [word for _ in range(length) for word in value(rng, name, inner)]
    if hint is int:
        pool = SMALL if legal else SMALL[:1] if name in FOR_EVER else EDGES
        return [str(rng.choice(pool))] if rng.random() < 0.9 else [rng.choice(NO_NUMBERS)]
    if hint is float:
        pool = FLOATS[:6] if legal else FLOATS
        return [str(rng.choice(pool))] if rng.random() < 0.9 else [rng.choice(NO_NUMBERS)]
    return [rng.choice(WORDS[name])]


def command(rng: random.Random, module: ModuleType) -> list[str]:
    """Up to five flags and, now and then, what is none."""
    hints = get_type_hints(module.Args)
    words: list[str] = []
    for name in rng.choices(
        [f.name for f in fields(module.Args) if f.name not in ("quiet", "compile")], k=rng.randint(1, 5)
    ):
        flag = rng.choice((name, name.replace("_", "-")))
        if hints[name] is bool:
            words += [f"--{rng.choice(('', 'no-'))}{flag}"]
        elif rng.random() < 0.1 and get_origin(hints[name]) is not tuple:
            words += [f"--{flag}={value(rng, name, hints[name])[0]}"]
        else:
            words += [f"--{flag}", *value(rng, name, hints[name])]
    if rng.random() < 0.1:
        words += rng.choice(STRAY)
    return words


@contextmanager
def limits(seconds: float, memory: int) -> Iterator[None]:
    """Let no command line take much longer, or many more bytes, than a run of this size needs."""

    def late(*_: Any) -> None:
        raise AssertionError(f"it took more than {seconds} s")

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before, (soft, hard) = signal.signal(signal.SIGALRM, late), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three iterations are enough, and a disk need not be waited for."""
    progress = Run.progress

    def three(run: Run, step: int) -> None:
        progress(run, step)
        run.iterations = getattr(run, "iterations", 0) + 1  # type: ignore[attr-defined]
        if run.iterations == 3:  # type: ignore[attr-defined]
            run.stop_signal = "SIGTERM"

    monkeypatch.setattr(Run, "progress", three)
    monkeypatch.setattr(run_module, "manifest", lambda: {})
    monkeypatch.setattr(checkpoint_module.os, "fsync", lambda handle: None)


def outcome(kind: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Run a command line; returns trained, refused or wrong, and what was said."""
    module, tiny = AGENTS[kind]
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    capsys.readouterr()
    try:
        with limits(30, 4 << 30):
            status: Any = module.main([*tiny.split(), *words, "--quiet"])
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        return "wrong", f"{type(error).__name__}: {error}"
    err = capsys.readouterr().err
    if status in (0, 75) or (status == 1 and "diverged: " in err):
        return "trained" if "Traceback" not in err else "wrong", err
    if status != 2 or not re.fullmatch(r"error: .{8,}\n", err):
        return "wrong", f"status {status}, {err!r}"
    after = {path: path.stat().st_mtime_ns for path in Path().rglob("*") if path.is_file()}
    changed = {str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    touched = {str(path) for path in before if path.name == ".lock"}  # a look at whether a run is alive
    return ("wrong", f"{changed} changed, but {err}") if changed - touched else ("refused", err)


@pytest.mark.parametrize("kind", AGENTS)
def test_every_command_line_trains_or_is_refused_in_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "occupied").write_text("a file")
    module = AGENTS[kind][0]
    for name, other in (("done", kind), ("other", next(x for x in AGENTS if x != kind))):
        assert AGENTS[other][0].main([*AGENTS[other][1].split(), "--run-dir", name, "--quiet"]) == 75
    ends: dict[str, list[str]] = {"trained": [], "refused": [], "wrong": []}
    for number in range(COUNT):
        words = command(random.Random(f"{SEED} {kind} {number}"), module)
        end, said = outcome(kind, words, capsys)
        ends[end].append(f"{shlex.join(words)}\n    {said}")
    assert not ends["wrong"], "\n".join(ends["wrong"])
    assert min(len(ends["trained"]), len(ends["refused"])) > COUNT / 5, "the draw is one-sided"
