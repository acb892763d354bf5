"""Searches: which settings are tried and what they score, and that nothing is lost or done twice, whatever is killed.

Most runs here are of a small program that keeps the contract of the agents. What it scores is a function of its
settings and its seed, and it writes down each frame that it trains. The last tests are of a real agent.
"""

import csv
import io
import json
import math
import os
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engines, plots, space, status, sweep, tune
from benchmarks.space import Dimension
from benchmarks.trials import Record, Trial, metric_of, score_of
from benchmarks.tune import Search

pytest.importorskip("optuna")

AGENT = '''"""Trains nothing, and ends as --mode says."""
import fcntl, json, math, os, signal, sys, time
from dataclasses import dataclass
from typing import Literal


@dataclass
class Args:
    env_id: str = "a"
    seed: int = 1
    exp_name: str = "fake"
    run_dir: str | None = None
    threads: int = 0
    total_timesteps: int = 40
    eval_every: int = 10
    lr: float = 0.1
    groups: int = 4
    gamma: float = 0.99
    bias: float | None = None
    sem: bool = False
    hidden: tuple[int, ...] = (8, 8)
    act: Literal["relu", "tanh"] = "relu"
    mode: str = "ok"


def presets(args):
    return [("every task", {"groups": 2})]


def resolve(args):
    if not 0 <= args.gamma <= 1:
        raise ValueError(f"--gamma {args.gamma}: must be at most 1")
    return args


def build(args):
    if args.env_id != "a":
        raise ValueError(f"no task is called {args.env_id!r}, did you mean a?")
    return ()


def train():
    flags, name = {}, ""
    for word in sys.argv[1:]:
        if word.startswith("--"):
            name, _, flags[word.partition("=")[0]] = word.partition("=")
        else:
            flags[name] = f"{flags[name]} {word}".strip()
    run_dir, seed, total = flags["--run-dir"], int(flags["--seed"]), int(flags.get("--total-timesteps", 40))
    lr, groups, mode = float(flags.get("--lr", 0.1)), int(flags.get("--groups", 2)), flags.get("--mode", "ok")
    score = 100 - 20 * abs(math.log10(lr) + 2) - abs(groups - 6) + seed % 7
    path = lambda name: os.path.join(run_dir, name)

    def write(name, content):
        with open(path(name + ".tmp"), "w") as file:
            file.write(json.dumps(content))
        os.replace(path(name + ".tmp"), path(name))

    def say(state, why=""):
        write("status.json", {"state": state, "step": step, "total_timesteps": total, "why": why, "time": time.time()})

    os.makedirs(run_dir, exist_ok=True)
    lock = open(path(".lock"), "a+")
    fcntl.flock(lock, fcntl.LOCK_EX)  # whoever asks whether the run is alive holds it for a moment
    stop = []
    signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
    step = json.load(open(path("checkpoint.json")))["step"] if os.path.exists(path("checkpoint.json")) else 0
    names = {"env_id": "--env-id", "seed": "--seed", "exp_name": "--exp-name"}
    write("config.json", {**{name: flags[flag] for name, flag in names.items()}, "total_timesteps": total})
    if not step:
        with open(path("metrics.csv"), "w") as file:
            file.write("exp_name,env_id,seed,metric,step,wall_s,value\\n")
    poor = lr > 0.05
    while step < total and not stop:
        step += 10
        value = "nan" if mode == "nan" and poor and step == total else score * step / total
        with open(path("frames"), "a") as file:
            file.write(f"{step}\\n")
        with open(path("metrics.csv"), "a") as file:
            file.write(f"{flags['--exp-name']},a,{seed},eval/episodic_return,{step},1.0,{value}\\n")
        write("checkpoint.json", {"step": step})
        say("running")
        if step == 20 and (mode == "fail" or mode == "poor" and poor or mode == "second" and poor and seed % 2):
            say("failed", "RuntimeError: the pole fell")
            sys.exit("RuntimeError: the pole fell")
        while mode == "wait" and step == 20 and not stop and not os.path.exists(path("../../../../../go")):
            time.sleep(0.005)
    if step < total:
        say("interrupted", "SIGTERM")
        sys.exit(75)
    write("result.json", {"step": step, "wall_s": 1.0, "eval": {}})
    say("done")


if __name__ == "__main__":
    train()
'''
SEARCH = ("lr=log:1e-4:1", "groups=int:1:8", "act=choice:relu,tanh")


def too_long(*_: Any) -> None:
    raise AssertionError("the search has not ended in two minutes")


class Here:
    """Asks an agent about its settings in this process, which takes no half a second."""

    DEVNULL = subprocess.DEVNULL

    @staticmethod
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        out, err, code = io.StringIO(), io.StringIO(), 0
        path = [*sys.path]
        with redirect_stdout(out), redirect_stderr(err):
            try:
                space.answer(command[-2], command[-1])
            except SystemExit as stop:
                code = int(str(stop.code))
            finally:
                sys.path[:] = path
                del sys.modules["asked_agent"]
        return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engines, "POLL_S", 0.01)
    monkeypatch.setattr(engines, "ROOT", tmp_path)  # the code of these runs is the fake agent, whatever is edited here
    monkeypatch.setattr(tune, "save", lambda *_: None)  # a second for each plot
    monkeypatch.setattr(space, "subprocess", Here)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(120)
    yield
    signal.alarm(0)
    (tmp_path / "go").touch()
    for path in tmp_path.rglob("launch.json"):  # runs that a test has left
        if status.held(path.parent / ".child"):
            os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(AGENT)
    return path


def words(program: Path, *more: str, search: tuple[str, ...] = SEARCH, out: str = "out", **options: Any) -> list[str]:
    """Command line of a search; what follows -- in `more` goes to the agent."""
    given = {"agent": program, "task": "a", "trials": 4, "seeds": 2, "slots": 1, "threads": 1, **options}
    flags = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return [*flags, "--out", str(program.parent / out), *(["--search", *search] if search else []), *more]


def rows(agent: Path, out: str = "out") -> list[dict[str, str]]:
    """The table of a search."""
    with open(agent.parent / out / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def folder(agent: Path, trial: int, seed: int, out: str = "out") -> Path:
    return agent.parent / out / "runs" / "a" / f"fake__trial{trial:03}" / f"seed{seed}"


def frames(run_dir: Path) -> list[int]:
    path = run_dir / "frames"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def launch(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "launch.json").read_text())


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


START = """
import pathlib, sys
from benchmarks import engines, tune
engines.ROOT, engines.POLL_S = pathlib.Path(sys.argv.pop(1)), 0.01
sys.exit(tune.main())
"""


def background(arguments: list[str], root: Path) -> subprocess.Popen[str]:
    """A search in a process of its own."""
    command = [sys.executable, "-c", START, str(root), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def expected(lr: float, groups: int, seed: int) -> float:
    return 100 - 20 * abs(math.log10(lr) + 2) - abs(groups - 6) + seed % 7


# ---- what is tried and what it scores ------------------------------------------------------------------------------


def test_a_search(agent: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tune, "save", plots.save)
    monkeypatch.setattr(space, "subprocess", subprocess)
    assert tune.main(words(agent, "--", "--sem", trials=9, seeds=3)) == 0
    table = rows(agent)
    assert [row["trial"] for row in table] == [str(n) for n in range(9)]
    first = table[0]
    assert (first["lr"], first["groups"], first["act"], first["state"]) == ("0.1", "2", "relu", "complete")
    assert "--lr" not in launch(folder(agent, 0, 1000))["argv"], "the first trial is the agent as it is"
    for row in table:
        known = {seed: float(row[f"seed{seed}"]) for seed in (1000, 1001, 1002) if row[f"seed{seed}"]}
        for seed, value in known.items():
            assert value == pytest.approx(expected(float(row["lr"]), int(row["groups"]), seed))
            argv = launch(folder(agent, int(row["trial"]), seed))["argv"]
            assert argv[argv.index("--seed") + 1] == str(seed) and "--sem" in argv
        assert row["state"] in ("complete", "pruned") and (row["state"] == "complete") == (len(known) == 3)
        if row["state"] == "complete":
            assert float(row["score"]) == pytest.approx(sum(known.values()) / 3)
        else:
            assert row["score"] == "" and int(row["trial"]) >= 5
        assert 1e-4 <= float(row["lr"]) <= 1 and 1 <= int(row["groups"]) <= 8 and row["act"] in ("relu", "tanh")
    done = {int(path.parent.name.removeprefix("seed")) for path in agent.parent.rglob("result.json")}
    assert done == {1000, 1001, 1002} and not done & set(tune.REPORTING)
    assert (agent.parent / "out" / "plots" / "history.png").read_bytes().startswith(b"\x89PNG")

    out, err = capfd.readouterr()
    best = max((row for row in table if row["score"]), key=lambda row: float(row["score"]))
    command = shlex.split(next(line for line in out.splitlines() if line.startswith("python benchmarks/sweep.py")))
    cut = command.index("--")
    parsed = sweep.config.parse(sweep.Args, argv=command[2:cut])
    grid = sweep.grid_of(parsed.args, parsed.explicit, command[cut + 1 :])
    assert grid.variants["default"] == [] and grid.flags == ["--sem"] and grid.tasks == ["a"]
    assert grid.variants["tuned"] == ["--lr", best["lr"], "--groups", best["groups"], "--act", best["act"]]
    assert set(grid.seeds) <= set(tune.REPORTING) and grid.scripts == {"fake": str(agent)}
    where = ("gpus", "per_gpu", "slots", "threads")  # sizes and numbers depend on it
    asked = sweep.config.parse(tune.Args, argv=words(agent)).args
    assert [getattr(parsed.args, name) for name in where] == [getattr(asked, name) for name in where]
    assert "9 of 9 trials done" in out and "default" in out and err.count("trial 0  ") == 1
    assert status.main([str(agent.parent / "out")]) == 0


def test_pruning_is_by_the_median(agent: Path) -> None:
    assert tune.main(words(agent, trials=9, seeds=2)) == 0
    seen: list[float] = []
    for row in rows(agent):
        value = float(row["seed1000"])
        middle = statistics.median(seen) if seen else 0.0
        worse = len(seen) >= tune.PRUNE_FROM and value < middle
        assert (row["state"] == "pruned") == worse, row
        assert folder(agent, int(row["trial"]), 1001).exists() == (not worse)
        seen.append(value)
    assert any(row["state"] == "pruned" for row in rows(agent))
    record = Record(agent.parent / "out" / tune.JOURNAL, space.parse(SEARCH), 0)
    for trial, row in zip(record.study.trials, rows(agent), strict=True):
        assert trial.intermediate_values[1] == float(row["seed1000"])
        assert (2 in trial.intermediate_values) == (trial.state.name == "COMPLETE")
    assert tune.main(words(agent, "--no-prune", trials=7, out="all")) == 0
    assert {row["state"] for row in rows(agent, "all")} == {"complete"}


def test_the_same_command_draws_the_same_trials(agent: Path) -> None:
    def drawn(out: str) -> list[tuple[str, ...]]:
        return [(row["lr"], row["groups"], row["act"]) for row in rows(agent, out)]

    for out, count, seed in (("one", 12, 0), ("two", 12, 0), ("other", 4, 1)):  # from the eleventh on not at random
        assert tune.main(words(agent, trials=count, seeds=1, out=out, sampler_seed=seed)) == 0
    assert rows(agent, "one") == rows(agent, "two")
    assert len(set(drawn("one"))) == 12 and not set(drawn("one")[1:]) & set(drawn("other")[1:])


def test_the_estimator_learns(agent: Path) -> None:
    record = Record(agent.parent / "journal", filled(space.parse(SEARCH)), 0)

    def error(values: dict[str, str]) -> float:
        return abs(math.log10(float(values["lr"])) + 2)

    tried: list[dict[str, str]] = []
    for _ in range(60):
        tried.append(record.draw(tried) or {})
        trial = record.begin(tried[-1], [], [])
        trial.state, trial.scores = "complete", {1000: -error(tried[-1])}
        record.end(trial, -error(tried[-1]))
    # Drawn evenly, the error lies evenly between 0 and 2, and the median of 20 is 1 +- 0.25.
    assert statistics.median(map(error, tried[-20:])) < 0.5
    shares = record.importances()
    assert max(shares, key=lambda name: shares[name]) == "lr" and sum(shares.values()) == pytest.approx(1)


def filled(found: list[Dimension]) -> list[Dimension]:
    return [Dimension(**{**x.__dict__, "inside": True, "default": x.ends[0]}) for x in found]


def test_a_space_that_is_used_up(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    search = ("groups=choice:1,2,4", "sem=choice:on,off")
    assert tune.main(words(agent, trials=50, seeds=1, search=search)) == 0
    found = [(row["groups"], row["sem"]) for row in rows(agent)]
    assert len(found) == len(set(found)) == 6 and found[0] == ("2", "off")
    assert "have been tried" in capfd.readouterr().err
    argv = launch(folder(agent, found.index(("4", "off")), 1000))["argv"]
    assert "--no-sem" in argv and argv[argv.index("--groups") + 1] == "4"


def test_defaults_outside_of_the_space(agent: Path) -> None:
    search = ("lr=uniform:0.2:0.9", "hidden=choice:4 4,16", "bias=uniform:-1e-7:1e-7")
    assert tune.main(words(agent, search=search, seeds=1, trials=14)) == 0
    table = rows(agent)
    assert (table[0]["lr"], table[0]["hidden"], table[0]["bias"]) == ("0.1", "8 8", "None")
    assert all(0.2 <= float(row["lr"]) <= 0.9 and row["hidden"] in ("4 4", "16") for row in table[1:])
    argvs = [launch(folder(agent, n, 1000))["argv"] for n in range(1, 14)]
    assert any("--hidden 4 4" in " ".join(argv) for argv in argvs) and any("--hidden 16" in " ".join(x) for x in argvs)
    assert any(word.startswith("--bias=-") for argv in argvs for word in argv), "a minus makes no flag of a number"


def test_trials_side_by_side(agent: Path) -> None:
    most: dict[str, tuple[int, int]] = {}
    ways = {"many": ("--no-prune",), "single": ("--no-prune", "--at-once", "1"), "ordered": ("--at-once", "1")}
    for out, more in ways.items():
        assert tune.main(words(agent, *more, trials=5, slots=3, out=out)) == 0
        assert len(rows(agent, out)) == 5 and {row["state"] for row in rows(agent, out)} == {"complete"}
        runs = {path.parent: launch(path.parent) for path in (agent.parent / out).rglob("launch.json")}
        together = [
            [path.parent for path, run in runs.items() if run["started"] <= at["started"] <= run["ended"]]
            for at in runs.values()
        ]
        most[out] = max(len(set(trials)) for trials in together), max(map(len, together))
    # Which of the three runs ends first decides whether their slots are shared by two trials or by three.
    assert most["many"] in [(2, 3), (3, 3)]
    assert most["single"] == (1, 2)
    assert most["ordered"] == (1, 1)  # a seed decides whether the next is trained


# ---- runs that end badly -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["poor", "nan", "second"])
def test_failures_are_counted_and_shunned(mode: str, agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune.main(words(agent, "--", "--mode", mode, search=("lr=log:1e-3:0.2",), trials=8)) == 1
    assert "the default settings have failed" in capfd.readouterr().out  # 0.1 is poor
    assert [row["state"] for row in rows(agent)] == ["failed"]
    assert tune.main(words(agent, "--", "--mode", mode, search=("lr=log:1e-3:0.2",), trials=8)) == 0
    out = capfd.readouterr().out
    table = rows(agent)
    assert len(table) == 8
    failed = [row for row in table if float(row["lr"]) > 0.05]
    assert len(failed) > 1
    for row in failed:
        pruned = mode == "second" and row["state"] == "pruned"  # before the seed in which it would have failed
        assert row["state"] == "failed" or pruned
        assert pruned or re.search(r"seed 100\d: .*(the pole fell|not finite)", row["why"]), row
        assert row["score"] == "" and folder(agent, int(row["trial"]), 1001).exists() == (
            mode == "second" and not pruned
        )
    assert out.count("failed   trial") == sum(row["state"] == "failed" for row in table)
    record = Record(agent.parent / "out" / tune.JOURNAL, [], 0)
    assert all(record.study.trials[int(row["trial"])].value == -math.inf for row in failed if row["state"] == "failed")
    assert launch(folder(agent, 0, 1000))["starts"] == 1, "a bug is a bug"


def test_five_failures_in_a_row_end_it(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    agent.write_text(AGENT.replace('mode == "fail"', '"--lr" in flags'))
    assert tune.main(words(agent, trials=20)) == 1
    assert "5 trials in a row have failed" in capfd.readouterr().out
    assert [row["state"] for row in rows(agent)] == ["complete"] + ["failed"] * 5


def test_the_score_of_a_run(tmp_path: Path) -> None:
    def scored(*values: tuple[int, str], planned: int = 100) -> tuple[float, str]:
        head = "exp_name,env_id,seed,metric,step,wall_s,value\n"
        lines = [f"x,a,1,eval/episodic_return,{step},1.0,{value}\n" for step, value in values]
        (tmp_path / "metrics.csv").write_text(head + "".join(lines))
        (tmp_path / "config.json").write_text(json.dumps({"env_id": "a", "seed": 1, "total_timesteps": planned}))
        return score_of(tmp_path, "eval/episodic_return")

    assert scored((50, "9"), (95, "4"), (100, "2")) == (3.0, "")
    assert scored((50, "9"), (104, "2")) == (2.0, "")  # it overshoots by a step of all environments
    for values in (((50, "9"), (100, "nan")), ((50, "9"), (95, "4"), (100, "inf")), ((50, "9"),), ()):
        value, why = scored(*values)
        assert math.isnan(value) and why, values
    assert metric_of("WalkerWalk-v1", "auto") == "eval/episodic_return"
    assert metric_of("a", "eval/success_rate") == "eval/success_rate"


def test_what_is_failed_or_unknown_has_no_place(agent: Path) -> None:
    def trial(number: int, state: str, **scores: float) -> Trial:
        return Trial(number, {}, [], [], state, {int(seed[1:]): value for seed, value in scores.items()})

    args = tune.Args(out=str(agent.parent), task="a")
    search = Search(args, Record(agent.parent / "journal", [], 0), [], lambda _: [], 1)
    search.trials = [trial(n, "complete", s1000=float(n), s1001=0.0) for n in range(4)]
    new = trial(9, "running", s1000=1.2)
    assert not search._below_median(new)  # 4 to compare with
    search.trials.append(trial(4, "failed"))  # is below everything: the median is 1 and not 1.5
    assert not search._below_median(new)
    search.trials.append(trial(5, "pruned", s1000=3.0))  # 1.5
    assert search._below_median(new) and not search._below_median(trial(9, "running", s1000=1.6))
    assert not search._below_median(trial(9, "running", s1000=9.0, s1001=1.0))
    search.trials.append(trial(6, "running", s1001=7.0))  # says nothing about the first seed
    assert [x.number for x in tune.ranked(search.trials, range(1000, 1002))] == [3, 2, 1, 0]


# ---- kills ---------------------------------------------------------------------------------------------------------


def leave(journal: Path) -> None:
    """What a kill leaves in the middle of a line."""
    with open(journal, "a") as file:
        file.write('{"op_code":4,"worker_id":"6e')
    os.symlink(journal, f"{journal}.lock")


def test_half_a_line_and_a_lock_are_no_hindrance(tmp_path: Path) -> None:
    found = filled(space.parse(SEARCH))
    values = {dimension.name: dimension.default for dimension in found}
    for count in range(3):
        start = time.monotonic()
        record = Record(tmp_path / "journal", found, 0)
        assert len(record.trials()) == count
        record.begin(values, ["--lr", "1e-4"], [])
        assert time.monotonic() - start < 20, "Optuna waits half a minute for a lock"
        leave(tmp_path / "journal")
    assert record.trials()[-1] == Trial(2, values, ["--lr", "1e-4"], [])


def test_a_killed_search_goes_on_as_if_nothing_had_been(agent: Path) -> None:
    assert tune.main(words(agent, trials=13, out="whole")) == 0
    arguments = words(agent, trials=13, out="cut")
    for kill_at, its_runs_too in ((3, False), (9, True)):
        search = background(arguments, agent.parent)
        wait_for(lambda n=kill_at: len(list((agent.parent / "cut").glob("runs/*/*/*/frames"))) >= n)
        search.kill()
        search.wait()
        for path in (agent.parent / "cut").rglob("launch.json") if its_runs_too else ():
            if status.held(path.parent / ".child") and launch(path.parent)["pid"]:
                os.kill(launch(path.parent)["pid"], signal.SIGKILL)
    journal = agent.parent / "cut" / tune.JOURNAL
    leave(journal)
    assert tune.main(arguments) == 0
    assert rows(agent, "cut") == rows(agent, "whole")
    assert len(Record(journal, [], 0).trials()) == 13
    for row in rows(agent, "whole"):
        for seed in (1000, 1001):
            path = folder(agent, int(row["trial"]), seed, "cut")
            if not folder(agent, int(row["trial"]), seed, "whole").exists():
                assert not path.exists(), "it was pruned"
                continue
            starts, trained = launch(path)["starts"], frames(path)
            again = len(trained) - 4  # a frame whose checkpoint was not there yet
            assert starts <= 2 and again < starts and sorted(set(trained)) == [10, 20, 30, 40], path
            assert trained == sorted(trained), "it began anew"
    done = {path: path.stat().st_mtime_ns for path in (agent.parent / "cut").rglob("launch.json")}
    assert tune.main(arguments) == 0  # nothing to do
    assert {path: path.stat().st_mtime_ns for path in (agent.parent / "cut").rglob("launch.json")} == done


def test_runs_that_outlive_the_search_are_waited_for(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = words(agent, "--", "--mode", "wait", trials=2, slots=2)
    left = [folder(agent, trial, 1000) for trial in (0, 1)]
    search = background(arguments, agent.parent)
    wait_for(lambda: all(frames(path) == [10, 20] for path in left))
    with pytest.raises(SystemExit):  # a second search beside it
        tune.main(arguments)
    assert "works on" in capfd.readouterr().err
    search.kill()
    search.wait()
    assert all(status.alive(path) for path in left)
    (agent.parent / "go").touch()
    assert tune.main(arguments) == 0
    assert [row["state"] for row in rows(agent)] == ["complete"] * 2
    for trial in (0, 1):
        for seed in (1000, 1001):
            path = folder(agent, trial, seed)
            assert frames(path) == [10, 20, 30, 40] and launch(path)["starts"] == 1


def test_a_signal_lets_the_runs_save(
    agent: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path, sent = folder(agent, 0, 1000), []

    def refresh(_: status.Screen) -> None:
        if not sent and frames(path) == [10, 20]:
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(status.Screen, "refresh", refresh)
    arguments = words(agent, "--", "--mode", "wait", trials=2)
    assert tune.main(arguments) == 75
    assert json.loads((path / "status.json").read_text())["state"] == "interrupted"
    assert rows(agent)[0]["state"] == "running" and "goes on with what is unfinished" in capfd.readouterr().out
    (agent.parent / "go").touch()
    assert tune.main(arguments) == 0
    assert frames(path) == [10, 20, 30, 40] and [row["state"] for row in rows(agent)] == ["complete"] * 2


# ---- never mixed ---------------------------------------------------------------------------------------------------


def refusal(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        tune.main(arguments)
    err = capfd.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1, err
    return err


def test_another_search_is_not_mixed_in(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert tune.main(words(agent, trials=2, seeds=1)) == 0
    before = rows(agent)
    assert tune.main(words(agent, "--retries", "0", trials=3, seeds=1, slots=2)) == 0  # more of the same
    assert rows(agent)[:2] == before and len(rows(agent)) == 3
    for other, text in (
        (words(agent, trials=2, seeds=2), "seeds was [1000], is [1000, 1001]"),
        (words(agent, trials=2, seeds=1, search=SEARCH[:2]), "search was"),
        (words(agent, "--", "--gamma", "0.9", trials=2, seeds=1), "settings was"),
        (words(agent, trials=2, seeds=1, first_seed=2000), "seeds was"),
    ):
        assert text in refusal(other, capfd)
    assert rows(agent)[:2] == before
    agent.write_text(AGENT + "# a new idea\n")
    assert "code was" in refusal(words(agent, trials=4, seeds=1), capfd)
    assert "use another --out" in refusal(
        words(agent, "--mismatch", "keep", "--metric", "eval/success_rate", seeds=1), capfd
    )
    wider = ("lr=log:1e-5:1", "groups=int:1:12", "gamma=uniform:0.9:0.99")
    assert tune.main(words(agent, "--mismatch", "keep", trials=16, seeds=1, search=wider)) == 0
    assert rows(agent)[0]["lr"] == "0.1" and len(rows(agent)) == 16 and rows(agent)[15]["gamma"]
    assert launch(folder(agent, 0, 1000))["starts"] == 1
    assert tune.main(words(agent, "--mismatch", "rerun", trials=1, seeds=1)) == 0
    assert len(rows(agent)) == 1 and launch(folder(agent, 0, 1000))["starts"] == 1
    assert [len(list(old.glob("runs/a/*"))) for old in (agent.parent / "out" / "replaced").iterdir()] == [16]


def test_a_folder_of_other_runs_is_not_used(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder(agent, 0, 1000).mkdir(parents=True)
    assert "no record of a search" in refusal(words(agent), capfd)
    out = agent.parent / "out"
    (out / "tune.json").unlink(missing_ok=True)
    assert tune.main(words(agent, trials=1, out="good")) == 0
    journal = agent.parent / "good" / tune.JOURNAL
    journal.write_text("nonsense\n" + journal.read_text())
    assert "is damaged" in refusal(words(agent, trials=1, out="good"), capfd)
    journal.unlink()
    assert tune.main(words(agent, trials=1, out="good")) == 0, "the runs are those of the same first trial"
    assert launch(folder(agent, 0, 1000, "good"))["starts"] == 1


def test_without_optuna(agent: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert "tune.py needs optuna: pip install 'semrl[tune]'" in refusal(words(agent), capfd)
    assert not (agent.parent / "out").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"search": ()}, "nothing to search"),
        ({"search": ("lr",)}, "expected NAME=log:LOW:HIGH"),
        ({"search": ("lr=normal:0:1",)}, "expected NAME=log:LOW:HIGH"),
        ({"search": ("lr=log:1e-2:1e-4",)}, "the low end must be below the high end"),
        ({"search": ("lr=uniform:1:1",)}, "the low end must be below the high end"),
        ({"search": ("lr=uniform:0:inf",)}, "both finite"),
        ({"search": ("lr=log:0:1",)}, "a logarithmic scale begins above 0"),
        ({"search": ("lr=log:-1:1",)}, "a logarithmic scale begins above 0"),
        ({"search": ("lr=log:1e-4",)}, "expected two numbers"),
        ({"search": ("groups=int:1.5:4",)}, "expected two integers"),
        ({"search": ("act=choice:relu",)}, "two options or more"),
        ({"search": ("act=choice:relu,relu",)}, "none twice"),
        ({"search": ("lr=log:1e-4:1", "lr=uniform:0:1")}, "--search lr: given twice"),
        ({"first_seed": 999}, "seeds 0 to 999 are for reporting"),
        ({"first_seed": -5}, "seeds 0 to 999 are for reporting"),
        ({"trials": 0}, "--trials 0"),
        ({"seeds": 0}, "--seeds 0"),
        ({"at_once": -1}, "0 or above"),
        ({"task": ""}, "no task"),
        ({"agent": "fasttd"}, "no agent 'fasttd'"),
        ({"more": ("--", "--seed", "3")}, "--seed is what the sweep sets itself"),
        ({"more": ("--serch", "x")}, "did you mean --search?"),
        ({"search": ("grups=int:1:4",)}, "--search grups: the agent has no such setting; did you mean groups?"),
        ({"task": "aa"}, "no task is called 'aa', did you mean a?"),
    ],
)
def test_bad_input_is_one_line(
    change: dict[str, Any], line: str, agent: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(space, "subprocess", subprocess)
    options = {name: value for name, value in change.items() if name != "more"}
    assert line in refusal(words(agent, *change.get("more", ()), **options), capfd)
    assert list(agent.parent.iterdir()) == [agent], "nothing was written"


@pytest.mark.parametrize(
    ("search", "flags", "line"),
    [
        ("seed=int:1:4", "", "--search seed: runs that differ in it"),
        ("total_timesteps=int:10:40", "", "--search total_timesteps: runs that differ in it"),
        ("groups=uniform:1:4", "", "an integer, write groups=int:LOW:HIGH"),
        ("groups=log:0.5:4", "", "an integer, write groups=int:LOW:HIGH"),
        ("act=uniform:1:4", "", "not a number, write act=choice:A,B"),
        ("sem=int:0:1", "", "not a number, write sem=choice:A,B"),
        ("sem=choice:1,2", "", "a switch, write sem=choice:on,off"),
        ("act=choice:relu,rely", "", "--act rely: expected one of relu, tanh"),
        ("groups=choice:1,two", "", "--groups two: expected an integer"),
        ("gamma=uniform:0.9:1.5", "", "--gamma 1.5: must be at most 1"),
        ("lr=log:1e-4:1", "--lr 0.1", "the flags after -- set it already"),
        ("lr=log:1e-4:1", "--lrr 0.1", "unknown flag --lrr; did you mean --lr?"),
        ("lr=log:1e-4:1", "--eval-every 0", "the score is made of evaluations"),
    ],
)
def test_what_only_the_agent_knows(
    search: str, flags: str, line: str, agent: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert line in refusal(words(agent, "--", *flags.split(), search=(search,)), capfd)
    assert list(agent.parent.iterdir()) == [agent], "nothing was written"


# ---- spaces --------------------------------------------------------------------------------------------------------


def test_values_as_text_and_words() -> None:
    log, whole = space.parse(["actor-lr=log:1e-4:0.0123456789", "--n=int:1:8"])
    assert log.name == "actor_lr" and log.text(0.00031234567) == "0.000312346"
    assert float(log.text(0.0123456789)) == 0.0123456789, "rounding does not leave the range"
    assert log.words("0.01") == ["--actor-lr", "0.01"] and log.words("-1e-05") == ["--actor-lr=-1e-05"]
    assert whole.whole and whole.text(3.0) == "3" and whole.value("3") == 3
    (several,) = space.parse(["hidden=choice:64  64, 128"])
    assert several.options == ("64 64", "128") and several.words("64 64") == ["--hidden", "64", "64"]


# ---- a real agent --------------------------------------------------------------------------------------------------

TINY = (
    "--device cpu --size small --num-envs 16 --batch-size 8 --buffer-size 320 --actor-hidden 8 --critic-hidden 8 "
    "--num-updates 1 --learning-starts 32 --log-every 160 --eval-every 800 --eval-envs 2 --save-every 160"
)


def cache_of_one(function: Callable[..., Any]) -> Callable[..., Any]:
    found: list[Any] = []

    def cached(*arguments: Any) -> Any:
        found[:] = found or [function(*arguments)]
        return found[0]

    return cached


class Died(BaseException):
    """What a search that is killed does from then on: nothing."""


def test_a_real_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(engines, "ROOT", sweep.ROOT)
    monkeypatch.setattr(space, "subprocess", subprocess)
    monkeypatch.setattr(tune, "ask", cache_of_one(tune.ask))  # some seconds each time
    out = tmp_path / "out"
    arguments = ["--task", "PointMass-v0", "--search", "actor_lr=log:1e-4:1e-2", "tau=uniform:0.01:0.1"]
    arguments += ["--trials", "2", "--seeds", "1", "--slots", "1", "--threads", "1", "--out", str(out)]
    arguments += ["--", *TINY.split(), "--total-timesteps", "1600"]
    path = out / "runs" / "PointMass-v0" / "fasttd3__trial000" / "seed1000"

    def strike(_: status.Screen) -> None:
        if list(path.glob("checkpoints/step_*")):
            os.kill(launch(path)["pid"], signal.SIGKILL)
            raise Died

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(status.Screen, "refresh", strike)
        tune.main(arguments)
    wait_for(lambda: not status.alive(path))
    assert tune.main(arguments) == 0, capfd.readouterr().err
    assert launch(path)["starts"] == 2
    with open(out / "trials.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert (table[0]["actor_lr"], table[0]["tau"]) == ("0.001", "0.02"), "the preset's values, not the class's"
    for row in table:
        run = out / "runs" / "PointMass-v0" / f"fasttd3__trial00{row['trial']}" / "seed1000"
        result, settings = (json.loads((run / f"{name}.json").read_text()) for name in ("result", "config"))
        assert float(row["score"]) == pytest.approx(result["eval"]["episodic_return"]) and result["step"] == 1600
        assert float(row["tau"]) == settings["tau"] and float(row["actor_lr"]) == settings["actor_lr"]
        logged = re.findall(r",1000,charts/SPS,(\d+),", (run / "metrics.csv").read_text())
        assert [int(step) for step in logged] == list(range(160, 1601, 160)), "each log once, across the kill"


def test_a_real_agent_knows_its_tasks(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--task", "PointMas-v0", "--search", "tau=uniform:0.01:0.1", "--out", str(tmp_path / "out")]
    assert "PointMass-v0" in refusal([*arguments, "--", *TINY.split()], capfd)
    assert not (tmp_path / "out").exists()
