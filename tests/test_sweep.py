"""Sweeps: what is run, in which order, and what becomes of it when runs, sweeps, disks and machines fail.

Most runs here are of a small program that keeps the contract of the agents and fails on demand. It writes down each
frame that it trains, so a run that was started twice, or lost a frame, or did one again, is seen.
"""

import errno
import fcntl
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents import config
from benchmarks import engines, programs, status, study, sweep
from benchmarks.engines import Drive, Ended, Job, Local, Stop, Verdict
from benchmarks.status import Seen

ROOT = Path(sweep.__file__).resolve().parents[1]

AGENT = '''"""Keeps the contract of a run, trains nothing, and ends as --mode says."""
import fcntl, json, os, resource, signal, subprocess, sys, time

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run_dir, mode, total = flags["--run-dir"], flags.get("--mode", "ok"), int(flags.get("--total-timesteps", 4))
path = lambda name: os.path.join(run_dir, name)
os.makedirs(run_dir, exist_ok=True)


def write(name, content):
    with open(path(name + ".tmp"), "w") as file:
        file.write(json.dumps(content))
    os.replace(path(name + ".tmp"), path(name))


def say(state, why=""):
    write("status.json", {"state": state, "step": step, "total_timesteps": total, "why": why, "time": time.time(),
                          "sps": 100.0, "wall_s": 1.0, "pid": os.getpid()})


def refuse(line):
    print("error:", line)
    sys.exit(2)


def train():
    global step
    while step < total and not stop:
        step += 1
        write("checkpoint.json", {"step": step})
        with open(path("frames"), "a") as file:  # last: who reads of a frame may kill, and it is saved
            file.write(f"{step}\\n")
        say("running")
        if step >= 2 and mode != "ok" and not (mode.endswith("-once") and os.path.exists(path("stumbled"))):
            open(path("stumbled"), "w").close()
            fail()


def fail():
    global step
    if mode.startswith("exit"):
        raise RuntimeError("the pole fell")
    if mode.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode.startswith("saved"):
        stop.append("SIGUSR1")
    if mode == "silent":
        sys.exit(0)
    if mode == "leave":  # a simulator process that lives on, with all that it has inherited
        subprocess.Popen(["sleep", "60"], close_fds=False)
        raise RuntimeError("the pole fell")
    if mode == "big":
        if flags.get("--quota") and not go():
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(flags["--quota"]),) * 2)
        with open(path("big"), "wb") as file:
            file.write(bytes(1 << 20))
    while mode in ("wait", "deaf") and not go():
        if stop and mode == "wait":
            break
        time.sleep(0.005)


def go():
    return os.path.exists(os.path.join(run_dir, "..", "..", "..", "..", "..", "go"))


if os.environ.get("RANK", "0") != "0":
    sys.exit(0)
lock = open(path(".lock"), "a+")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    refuse(f"{run_dir} is in use by process 1; wait for it, or stop it")
threads = int(flags.get("--threads", 0))
step, stop = 0, []
if os.path.exists(path("status.json")):
    try:
        json.load(open(path("status.json")))
    except ValueError:
        refuse("status.json is damaged")
if os.path.exists(path("checkpoint.json")):
    step = json.load(open(path("checkpoint.json")))["step"]
    if json.load(open(path("config.json")))["threads"] != threads:
        refuse("--threads cannot change when a run is resumed")
write("config.json", {"threads": threads})
write("env.json", dict(os.environ))
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: stop.append(signal.Signals(number).name))
say("running")
try:
    train()
except RuntimeError as error:
    say("failed", f"RuntimeError: {error}")
    print("Traceback (most recent call last):")
    sys.exit(f"RuntimeError: {error}")
except OSError as error:
    say("failed", f"cannot write: {error.strerror}")
    refuse(f"cannot write: {error.strerror}")
if step < total:
    say("interrupted", stop[0])
    sys.exit(75)
write("result.json", {"step": step, "wall_s": 1.0, "eval": {}})
if mode == "late":  # a library that crashes when the interpreter shuts down
    os.kill(os.getpid(), signal.SIGSEGV)
say("done")
'''


ASKED = '''"""Says what it takes, and never runs."""
from dataclasses import dataclass

from agents import config


@dataclass
class Args:
    """Settings."""

    env_id: str = "A-v0"
    """task"""
    seed: int = 1
    """seed"""
    exp_name: str = "x"
    """name"""
    run_dir: str = ""
    """folder"""
    sem: bool = False
    """switch"""
    lr: float = 0.1
    """number"""


def presets(args):
    if args.env_id.startswith("Odd"):
        raise ValueError(f"{args.env_id} has no preset")
    return []


def resolve(args):
    if args.lr > 1:
        raise ValueError(f"--lr {args.lr}: must be at most 1")
    return args


if __name__ == "__main__":
    raise AssertionError("it was run")
'''


def too_long(*_: Any) -> None:
    raise AssertionError("the sweep has not ended in five minutes")


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engines, "POLL_S", 0.01)
    monkeypatch.setattr(engines, "ROOT", tmp_path)  # the code of these runs is the fake agent, whatever is edited here
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(300)
    yield
    signal.alarm(0)


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(AGENT)
    return path


def words(agent: Path, *more: str, modes: str = "ok", tasks: str = "a", seeds: str = "1", slots: int = 1) -> list[str]:
    """Command line of a sweep over modes; what follows -- in `more` goes to the agents."""
    given = list(more)
    cut = given.index("--") if "--" in given else len(given)
    grid = ["--agents", str(agent), "--tasks", *tasks.split(), "--seeds", *seeds.split(), "--slots", str(slots)]
    grid += ["--variants", *(f"{mode}:--mode {mode}" for mode in modes.split()), "--out", str(agent.parent / "out")]
    return [*grid, *given[:cut], *given[cut:]]


ANY_RAY = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_memory_monitor_refresh_ms": "0"}
ON_RAY = {**ANY_RAY, "RAY_process_group_cleanup_enabled": "true"}
START = """
import pathlib, sys
from benchmarks import engines, sweep
engines.ROOT = pathlib.Path(sys.argv.pop(1))
sys.exit(sweep.main())
"""


def background(arguments: list[str], prefix: str = "") -> subprocess.Popen[str]:
    """A sweep in a process of its own."""
    command = shlex.join([sys.executable, "-c", START, str(engines.ROOT), *arguments])
    return subprocess.Popen(
        ["bash", "-c", f"{prefix}exec {command}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def folder(agent: Path, mode: str = "ok", task: str = "a", seed: int = 1) -> Path:
    return agent.parent / "out" / "runs" / task / f"fake__{mode}" / f"seed{seed}"


def frames(run_dir: Path) -> list[int]:
    path = run_dir / "frames"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def launch(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "launch.json").read_text())


def wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def job(tmp_path: Path, mode: str = "ok", **more: Any) -> Job:
    script = tmp_path / "fake.py"
    script.write_text(AGENT)
    run_dir = tmp_path / "out" / "runs" / "a" / f"fake__{mode}" / "seed1"
    flags = ("--run-dir", str(run_dir), "--mode", mode)
    made = Job(f"a/fake__{mode}/seed1", run_dir, str(script), flags, {}, engines.code_version(str(script)))
    return replace(made, **more)


def local(tmp_path: Path, *slots: str) -> Local:
    return Local(slots or ("",), 1, tmp_path / "cache")


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[str]:
    """Address of a Ray cluster that is this machine, with two cores and, as it believes, four GPUs."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ON_RAY.items():
            patch.setenv(name, value)
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
        made = importlib.import_module("ray.cluster_utils").Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 4}
        )
        yield made.address
        made.shutdown()


@pytest.fixture
def on_ray(ray_cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Flags of a sweep on that cluster."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(engines, "ROOT", ROOT)  # as the workers see it
    for name, value in ON_RAY.items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGCHLD)
    yield ["--engine", "ray", "--ray-address", ray_cluster, "--gpus"]
    ray.shutdown()
    signal.signal(signal.SIGCHLD, before)


@pytest.fixture(params=["local", "ray"])
def engine(request: pytest.FixtureRequest) -> list[str]:
    """Flags of an engine, with runs on the CPU."""
    return [] if request.param == "local" else [*request.getfixturevalue("on_ray"), "none"]


@pytest.fixture
def no_orphans(tmp_path: Path) -> Iterator[None]:
    """Lets runs that wait for it go on, whatever happens to the test."""
    yield
    (tmp_path / "go").touch()
    for path in tmp_path.rglob("launch.json"):
        if status.held(path.parent / ".child"):
            os.kill(json.loads(path.read_text())["pid"], signal.SIGKILL)


# ---- what is run, and how ------------------------------------------------------------------------------------------


def test_the_grid_is_trained_seed_by_seed(
    agent: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it where it has compiled something
    more = ("--threads", "1", "--", "--total-timesteps", "3")
    assert sweep.main(words(agent, *more, modes="ok late", tasks="ALE/Pong-v5 b", seeds="1-2", slots=2)) == 0
    runs = {
        f"{task}/fake__{mode}/seed{seed}": folder(agent, mode, task, seed)
        for seed in (1, 2)
        for task in ("ALE-Pong-v5", "b")
        for mode in ("ok", "late")
    }
    assert sorted(path.parent for path in agent.parent.rglob("result.json")) == sorted(runs.values())
    started = sorted(runs, key=lambda key: launch(runs[key])["started"])
    assert started == list(runs), "all of the first seed before any of the second"
    for key, path in runs.items():
        assert frames(path) == [1, 2, 3], key
        argv = launch(path)["argv"]
        given = dict(zip(argv[2::2], argv[3::2], strict=True))
        name, _, seed = key.partition("/")[2].partition("/seed")
        assert given["--exp-name"] == name and given["--seed"] == seed and given["--run-dir"] == str(path)
        assert given["--env-id"] == ("ALE/Pong-v5" if "Pong" in key else "b") and given["--threads"] == "1"
        env = json.loads((path / "env.json").read_text())
        assert env["OMP_NUM_THREADS"] == env["MKL_NUM_THREADS"] == env["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
        assert env["TORCHINDUCTOR_CACHE_DIR"] == str(agent.parent / "out" / ".cache" / "torchinductor")
        assert env["CUDA_VISIBLE_DEVICES"] == "" and env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    out, err = capfd.readouterr()
    assert "8 of 8 done" in out and err.count("done     ") == 8
    record = json.loads((agent.parent / "out" / "sweep.json").read_text())
    assert record["runs"] == list(runs) and record["sessions"][0]["ended"] >= record["sessions"][0]["started"]
    for path in runs.values():
        assert launch(path)["verdict"] == "done" and launch(path)["starts"] == 1  # a crash after the result is none


def test_not_more_runs_than_slots(tmp_path: Path, agent: Path, no_orphans: None) -> None:
    most = 0

    def look() -> None:
        nonlocal most
        running = [path for path in paths if status.alive(path)]
        most = max(most, len(running))
        if len(running) == 2 and all(len(frames(path)) >= 2 for path in running):
            (tmp_path / "go").touch()

    jobs = [job(tmp_path, "wait", key=f"{n}", dir=tmp_path / "out/runs/a/x" / f"{n}") for n in range(4)]
    jobs = [replace(x, flags=("--run-dir", str(x.dir), "--mode", "wait")) for x in jobs]
    paths = [x.dir for x in jobs]
    verdicts = Drive(jobs, local(tmp_path, "", ""), refresh=look).run()
    assert {verdict.state for verdict in verdicts.values()} == {"done"} and most == 2


def test_a_rerun_skips_what_is_done(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words(agent, seeds="1")) == 0
    first = launch(folder(agent))
    assert sweep.main(words(agent, seeds="1 2")) == 0  # one more seed
    assert launch(folder(agent)) == first and frames(folder(agent)) == [1, 2, 3, 4]
    assert frames(folder(agent, seed=2)) == [1, 2, 3, 4]
    assert "2 runs, 1 to do" in capfd.readouterr().err
    record = json.loads((agent.parent / "out" / "sweep.json").read_text())
    assert len(record["runs"]) == 2 and len(record["sessions"]) == 2
    assert sweep.main(words(agent, seeds="1 2")) == 0  # nothing to do is no session
    assert json.loads((agent.parent / "out" / "sweep.json").read_text()) == record


@pytest.mark.parametrize("more", [(), ("--threads", "3"), ("--slots", "2"), ("--slots", "2", "--threads", "1")])
def test_a_dry_run_prints_what_is_run(more: tuple[str, ...], agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def printed(*flags: str) -> list[list[str]]:
        assert sweep.main([*arguments, "--dry-run", *flags]) == 0
        out, err = capfd.readouterr()
        assert f"{len(out.splitlines())} to do" in err.splitlines()[-1]
        return [shlex.split(line) for line in out.splitlines()]

    arguments = words(agent, *more, modes="ok exit saved-once", tasks="a 'b", seeds="1-2")
    expected = printed()
    assert len(expected) == 12 and not (agent.parent / "out").exists()
    assert sweep.main(arguments) == 1
    paths = [Path(line[line.index("--run-dir") + 1]) for line in expected]
    assert [launch(path)["argv"] for path in paths] == expected
    assert ("--threads" in expected[0]) == bool(more) and launch(paths[2])["starts"] == 2
    capfd.readouterr()
    assert printed() == [], "what is done or has failed is not started again"
    assert printed("--retry-failed") == [line for line in expected if "exit" in line]
    assert printed("--mismatch", "rerun", "--", "--tau", "1") == [
        [*line[:-2], "--tau", "1", *line[-2:]] for line in expected
    ]
    assert all(path.is_dir() for path in paths) and not (agent.parent / "out" / "replaced").exists()
    assert "--tau was not given, is 1" in refusal([*arguments, "--dry-run", "--", "--tau", "1"], capfd)


def test_flags_are_compared_by_what_they_mean() -> None:
    same = [
        (["--no-sem"], ["--sem", "--no_sem"]),
        (["--lr=0.1"], ["--lr", "0.3", "--lr", "0.1"]),
        (["--threads", "2", "--run-dir", "x", "--quiet"], ["--threads", "4"]),
        (["--device", "cuda:0"], ["--device", "cuda:1"]),
        (["--hidden", "8", "8"], ["--hidden", "8", "8"]),
        (["--b", "1", "--a", "2"], ["--a", "2", "--b", "1"]),
    ]
    for one, other in same:
        assert sweep.settings_of(one, "gpu") == sweep.settings_of(other, "gpu"), (one, other)
    different = [
        (["--sem"], ["--no-sem"]),
        (["--sem"], []),
        (["--hidden", "8", "8"], ["--hidden", "8"]),
        (["--v-min", "-10"], ["--v-min", "10"]),
        (["--device", "cpu"], ["--device", "cuda"]),
    ]
    for one, other in different:
        assert sweep.settings_of(one, "gpu") != sweep.settings_of(other, "gpu"), (one, other)
    assert sweep.settings_of([], "cpu") != sweep.settings_of([], "gpu")  # sizes go by the device
    assert sweep.settings_of(["--device", "cpu"], "gpu") == sweep.settings_of([], "cpu")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "no tasks"),
        (["--tasks", "a/b", "c", "a-b"], "--tasks: a/b and a-b would share the directory a-b"),
        (["--tasks", "c", "a", "a"], "--tasks: a is there twice"),
        (["--tasks", "a", "suite.toml"], "name the suite before the flags"),
        (["--tasks", "a", "--agents", "fasttd"], "did you mean fasttd3?"),
        (["--tasks", "a", "--seeds", "x"], "--seeds x"),
        (["--tasks", "a", "--seeds", "1-3", "2"], "none twice"),
        (["--tasks", "a", "--seeds", "5-1"], "at least one"),
        (["--tasks", "a", "--variants", "a b:--sem"], "variant 'a b'"),
        (["--tasks", "a", "--variants", "a:", "a:--sem"], "two variants are called a"),
        (["--tasks", "a", "--variants", "a:--seed 3"], "--seed is what the sweep sets itself"),
        (["--tasks", "a", "--", "--run-dir=x"], "--run-dir is what the sweep sets itself"),
        (["--tasks", "a", "--per-gpu", "0"], "--per-gpu 0"),
        (["--tasks", "a", "--retries", "-1"], "0 or above"),
        (["--tasks", "a", "--gpus", "foo"], "--gpus foo: expected auto, none, or GPUs by number: 0,1"),
        (["--tasks", "a", "--gpus", "foo", "--dry-run"], "--gpus foo"),
        (["--tasks", "a", "--gpus", "any"], "--gpus any: expected auto, none, or GPUs by number: 0,1"),
        (["--tasks", "a", "--gpus", "foo", "--engine", "ray"], "GPUs by number: 0,1; or any"),
        (["--tasks", "a", "--gpus", "0,0"], "--per-gpu says how many runs share a GPU"),
        (["--tasks", "a", "--gpus", "0,,1"], "--gpus 0,,1"),
        (["--taks", "a"], "did you mean --tasks?"),
        (["--tasks", "a", "--out", ""], "--out is empty"),
        (["--tasks", "a", "--variants", 'on:--lr "1'], 'variant on: --lr "1: No closing quotation'),
        (["missing.toml"], "missing.toml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        sweep.main(arguments)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and line in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variant", "tasks", "more", "line"),
    [
        ("on:--semm", "A-v0 B-v0", "", "A-v0/asked__on: unknown flag --semm; did you mean --sem?"),
        ("on:--lr high", "A-v0", "", "A-v0/asked__on: --lr high: expected a number"),
        ("on:--lr 7", "A-v0", "", "A-v0/asked__on: --lr 7.0: must be at most 1"),
        ("on:--sem", "A-v0", "--gama 1", "A-v0/asked__off: unknown flag --gama"),
        ("on:--sem", "A-v0 Odd-v0", "", "Odd-v0/asked__off: Odd-v0 has no preset"),
        ("on:--help", "A-v0", "", "A-v0/asked__on: --help starts no run"),
    ],
)
def test_flags_are_refused_before_anything_starts(
    variant: str, tasks: str, more: str, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "asked.py"
    script.write_text(ASKED)
    grid = ["--agents", str(script), "--tasks", *tasks.split(), "--variants", "off:", variant, "--seeds", "1-2"]
    for dry in ([], ["--dry-run"]):
        arguments = [*grid, *dry, "--out", str(tmp_path / "new" / "out"), "--slots", "1", "--", *more.split()]
        assert line in refusal(arguments, capfd) and [*tmp_path.iterdir()] == [script], "nothing is left"


def test_tasks_are_refused_before_anything_starts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    grid = ["--tasks", "PointMas-v0", "--seeds", "1", "--gpus", "none", "--out", str(tmp_path / "out")]
    line = refusal([*grid, "--", "--total-timesteps", "100"], capfd)
    assert "PointMas-v0/fasttd3__default: no task is called 'PointMas-v0', did you mean PointMass-v0" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--gpus none --ranks 3 -- --num-envs 16", "--num-envs 16: must be a multiple of the 3 processes"),
        ("--gpus none --ranks 3 -- --num-envs 3 --batch-size 256", "--batch-size 256: must be a multiple of the 3"),
        (
            "--gpus none --ranks 2 --agents ppo -- --num-envs 4 --num-steps 3 --num-minibatches 4",
            "--num-envs 4 times --num-steps 3 in each of 2 processes, which is 6; the nearest that do are 1, 2, 3, 6",
        ),
        ("--gpus 99", "torch finds no GPU 99; --gpus none for the CPU"),
    ],
)
def test_what_processes_and_gpus_cannot_do_is_refused_before_anything_starts(
    arguments: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "missing_gpus", lambda names: [])  # as where there is no nvidia-smi
    grid = ["--tasks", "PointMass-v0", "--seeds", "1", "--out", str(tmp_path / "out"), *arguments.split()]
    assert line in refusal(grid, capfd)
    assert not list(tmp_path.iterdir())


def test_each_agent_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        programs, "check", lambda script, lines, env, here, gpu: asked.append((script, lines, env, here))
    )
    script = tmp_path / "asked.py"
    script.write_text(ASKED)
    grid = ["--agents", str(script), "ppo", "--tasks", "A-v0", "--variants", "a:", "b:--sem", "--seeds", "1-3"]
    assert sweep.main([*grid, "--dry-run", "--out", str(tmp_path / "out"), "--slots", "1"]) == 0
    assert [(Path(path).stem, here) for path, _, _, here in asked] == [("asked", True), ("ppo", True)]
    for path, lines, env, _ in asked:
        name = Path(path).stem
        assert [*lines] == [f"A-v0/{name}__a", f"A-v0/{name}__b"] and env["CUDA_VISIBLE_DEVICES"] == ""
        assert lines[f"A-v0/{name}__b"][-1] == "--sem" and "--run-dir" in lines[f"A-v0/{name}__a"]


# ---- runs that end badly -------------------------------------------------------------------------------------------


def test_a_failure_is_listed_and_stops_nothing(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = words(agent, modes="exit-once ok silent")
    assert sweep.main(arguments) == 1
    out = capfd.readouterr().out
    path = folder(agent, "exit-once")
    assert "1 of 3 done, 2 failed" in out and f"log: {path / 'log.txt'}" in out
    assert "exit status 1: RuntimeError: the pole fell" in out
    assert "exit status 0, but not finished" in out  # whatever the exit status says
    assert frames(folder(agent)) == [1, 2, 3, 4] and frames(path) == [1, 2] and launch(path)["starts"] == 1
    assert sweep.main(arguments) == 1  # a bug is a bug
    assert launch(path)["starts"] == 1 and "the pole fell" in capfd.readouterr().out
    assert sweep.main([*arguments, "--retry-failed"]) == 0
    assert frames(path) == [1, 2, 3, 4] and launch(path)["starts"] == 2 and "3 of 3 done" in capfd.readouterr().out


def test_what_is_killed_goes_on_from_its_checkpoint(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words(agent, modes="kill-once saved-once", slots=2)) == 0
    for mode in ("kill-once", "saved-once"):
        assert frames(folder(agent, mode)) == [1, 2, 3, 4] and launch(folder(agent, mode))["starts"] == 2
    err = capfd.readouterr().err
    assert "killed by SIGKILL" in err and "stopped by SIGUSR1, saved; start 2 of at most 3" in err


def test_but_twice_at_most(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words(agent, "--", "--total-timesteps", "9", modes="kill")) == 1
    assert frames(folder(agent, "kill")) == [1, 2, 3, 4] and launch(folder(agent, "kill"))["starts"] == 3
    assert "killed by SIGKILL (out of memory?); that was start number 3" in capfd.readouterr().out


def test_processes_that_a_run_leaves_behind_go_with_it(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words(agent, modes="leave")) == 1
    assert "exit status 1: RuntimeError: the pole fell" in capfd.readouterr().out
    assert not status.alive(folder(agent, "leave"))  # it had inherited the lock
    assert launch(folder(agent, "leave"))["starts"] == 1


def test_verdicts(tmp_path: Path) -> None:
    run = job(tmp_path)
    run.dir.mkdir(parents=True)
    now = time.time()
    (run.dir / "launch.json").write_text(json.dumps({"started": now}))

    def verdict(code: int | None, result: Any = None, **said: Any) -> tuple[str, str]:
        for name, content in (("status.json", {"time": now + 1, **said}), ("result.json", result)):
            (run.dir / name).unlink(missing_ok=True)
            if content is not None:
                (run.dir / name).write_text(json.dumps(content))
        return engines.judge(Ended(run, code, "Ray: the node died" if code is None else ""))

    finished = {"step": 10}
    assert [verdict(code, finished, state="running", total_timesteps=10)[0] for code in (0, 1, -11, None)] == [
        "done"
    ] * 4
    assert verdict(0, finished, state="done", total_timesteps=20)[0] == "failed"  # asked to go on, and has not
    assert verdict(-9, finished, state="running", total_timesteps=20)[0] == "again"
    assert verdict(0, {"wall_s": 3})[0] == "failed"  # something, but no result
    assert verdict(0, state="running")[0] == "again"  # a wrapper has lost the exit status
    assert verdict(0, state="failed", why="boom") == ("failed", "exit status 0 without result.json: boom")
    assert verdict(75, state="interrupted", why="SIGUSR2")[0] == "again"
    assert verdict(1, state="failed", why="boom") == ("failed", "exit status 1: boom")
    assert verdict(None, state="running") == ("again", "Ray: the node died")
    assert engines.judge(Ended(run, None)) == ("again", "ended unseen")  # of a sweep that was killed, and killed itself
    verdict(75, state="interrupted", why="SIGTERM")
    assert engines.judge(Ended(run, None)) == ("again", "stopped by SIGTERM, saved")
    assert verdict(None, state="failed", why="boom")[0] == "failed"
    assert verdict(None, state="failed", why="boom", time=now - 1)[0] == "again"  # of the life before
    (run.dir / "log.txt").write_text("first\n\nImportError: no module named x\n\n")
    assert verdict(1) == ("failed", "exit status 1: ImportError: no module named x")


TORCHRUN = """
$ python -m torch.distributed.run --standalone --nproc-per-node 2 agents/ppo.py
ValueError: of the life before
$ python -m torch.distributed.run --standalone --nproc-per-node 2 agents/ppo.py
W1122 15:50:15.693000 4813 torch/distributed/run.py:874] ***
{said}W1122 15:50:31.512000 4813 torch/distributed/elastic/multiprocessing/api.py:1028] closing signal
E1122 15:50:31.626000 4813 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code})
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
Failures:
[1]:
  exitcode  : -15 (pid: 4833)  (SIGTERM)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  exitcode  : {code} (pid: 4835)
============================================================
"""
SIGNALLED = "torch.distributed.elastic.multiprocessing.api.SignalException: Process 26611 got signal: 15\n"


def test_what_torchrun_says_of_its_processes(tmp_path: Path) -> None:
    run = job(tmp_path, ranks=2)
    run.dir.mkdir(parents=True)
    (run.dir / "launch.json").write_text(json.dumps({"started": time.time()}))

    def verdict(log: str, **said: Any) -> tuple[str, str]:
        (run.dir / "log.txt").write_text(log)
        (run.dir / "status.json").write_text(json.dumps({"time": time.time() - 100, **said}))  # of the life before
        return engines.judge(Ended(run, 1))

    again = "again", "killed by SIGTERM while it started"
    assert verdict(SIGNALLED) == again and verdict(SIGNALLED, state="failed", why="boom") == again
    assert verdict(TORCHRUN.format(said="", code=-9)) == ("again", "killed by SIGKILL while it started")
    refused = TORCHRUN.format(said="error in process 1: no such task\n", code=2)
    assert verdict(refused) == ("failed", "exit status 1: error in process 1: no such task")
    assert status.last_lines(run.dir / "log.txt", 3)[-1] == "error in process 1: no such task"
    assert "of the life before" not in "".join(status.last_lines(run.dir / "log.txt", 9))
    last = verdict(TORCHRUN.format(said="", code=2), time=time.time() + 1, state="failed", why="boom")
    assert last == ("failed", "exit status 1: boom")


def test_programs_are_called_by_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert status.called(sweep.__file__) == "benchmarks/sweep.py"
    monkeypatch.chdir(tmp_path)
    assert status.called(sweep.__file__) == str(ROOT / "benchmarks" / "sweep.py")


def test_exit_statuses_may_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker of Ray can ignore SIGCHLD; then every child seems to end with 0.
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        for mode, expected in (("exit", "failed"), ("kill", "again"), ("ok", "done"), ("saved", "again")):
            run = job(tmp_path, mode)
            code = engines.execute(run, False, 1, str(tmp_path), str(tmp_path / ".stop"))
            assert code == 0 and engines.judge(Ended(run, code))[0] == expected, mode
        for seed, mode in enumerate(("exit", "kill-once")):  # and so can whoever has started the sweep
            path = tmp_path / "out" / "again" / str(seed)
            run = job(tmp_path, dir=path, flags=("--run-dir", str(path), "--mode", mode))
            verdict = Drive([run], local(tmp_path)).run()[run.key]
            assert verdict.state == ("failed" if mode == "exit" else "done") and len(frames(path)) in (2, 4)
    finally:
        signal.signal(signal.SIGCHLD, before)


# ---- never twice ---------------------------------------------------------------------------------------------------


def test_a_run_is_locked_from_its_first_moment(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import time; time.sleep(60)")  # a program that is still importing torch: no lock, no status
    run = job(tmp_path, script=str(script), any_code=True)
    assert not status.alive(run.dir)
    child = engines.launch(run, "", None, dict(os.environ), detached=True)
    try:
        assert status.alive(run.dir)
        with pytest.raises(engines.Refused):
            engines.launch(run, "", None, dict(os.environ), detached=True)
        assert launch(run.dir)["starts"] == 1 and launch(run.dir)["pid"] == child.pid
    finally:
        child.kill()
        child.wait()
    assert not status.alive(run.dir)


def test_a_run_that_somebody_started_by_hand_is_waited_for(tmp_path: Path) -> None:
    run = job(tmp_path)
    run.dir.mkdir(parents=True)
    looks = 0
    with open(run.dir / ".lock", "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def look() -> None:
            nonlocal looks
            looks += 1
            assert held.closed or not (run.dir / "launch.json").exists()
            if looks == 20:
                held.close()

        verdicts = Drive([run], local(tmp_path), refresh=look).run()
    assert verdicts[run.key].state == "done" and frames(run.dir) == [1, 2, 3, 4]


def test_a_killed_sweep_goes_on_while_its_runs_live(
    agent: Path, monkeypatch: pytest.MonkeyPatch, no_orphans: None
) -> None:
    left, new = folder(agent, "wait", seed=2), folder(agent, "wait", seed=1)
    first = background(words(agent, modes="wait", seeds="2"))
    wait_for(lambda: len(frames(left)) >= 2)
    first.kill()
    first.wait()
    assert status.alive(left) and status.look("x", left).state == "running"
    rounds = []

    def refresh(_: status.Screen) -> None:
        assert new.exists() <= (not status.alive(left)), "the run that was left behind has the only slot"
        rounds.append(1)
        if len(rounds) == 10:
            (agent.parent / "go").touch()

    monkeypatch.setattr(status.Screen, "refresh", refresh)
    arguments = words(agent, modes="wait", seeds="1 2")
    with sweep.lock(agent.parent / "out"), pytest.raises(SystemExit):  # a second sweep beside it
        sweep.main(arguments)
    assert sweep.main(arguments) == 0
    for run_dir in (left, new):
        assert frames(run_dir) == [1, 2, 3, 4] and launch(run_dir)["starts"] == 1


def test_a_killed_sweep_and_its_killed_runs_go_on(agent: Path, no_orphans: None) -> None:
    arguments = words(agent, modes="wait", seeds="1 2", slots=2)
    paths = [folder(agent, "wait", seed=seed) for seed in (1, 2)]
    first = background(arguments)
    wait_for(lambda: all(len(frames(path)) >= 2 for path in paths))
    first.kill()
    for path in paths:
        os.kill(launch(path)["pid"], signal.SIGKILL)
    first.wait()
    wait_for(lambda: not any(status.alive(path) for path in paths))
    assert [status.look("x", path).state for path in paths] == ["stopped"] * 2
    (agent.parent / "go").touch()
    assert sweep.main(arguments) == 0
    for path in paths:
        assert frames(path) == [1, 2, 3, 4] and launch(path)["starts"] == 2


# ---- stopping ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_lets_all_runs_save(
    number: signal.Signals,
    agent: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_orphans: None,
) -> None:
    paths = [folder(agent, "wait", seed=seed) for seed in (1, 2)]
    sent = []

    def refresh(_: status.Screen) -> None:
        if not sent and all(len(frames(path)) >= 2 for path in paths):
            sent.append(os.kill(os.getpid(), number))

    monkeypatch.setattr(status.Screen, "refresh", refresh)
    before = signal.getsignal(number)
    arguments = words(agent, modes="wait", seeds="1-3", slots=2)
    assert sweep.main(arguments) == 75
    assert signal.getsignal(number) is before
    for path in paths:
        said = json.loads((path / "status.json").read_text())
        assert said["state"] == "interrupted" and said["why"] == "SIGTERM" and not status.alive(path)
    assert not folder(agent, "wait", seed=3).exists()
    out, err = capfd.readouterr()
    assert "0 of 3 done, 3 unfinished" in out and "goes on with what is unfinished" in out
    assert f"{number.name}: the runs save and stop" in err and err.count("stopped by SIGTERM, saved") == 2
    (agent.parent / "go").touch()
    assert sweep.main(arguments) == 0
    assert all(frames(folder(agent, "wait", seed=seed)) == [1, 2, 3, 4] for seed in (1, 2, 3))


def test_ctrl_c_twice_kills(tmp_path: Path, no_orphans: None) -> None:
    run, stop = job(tmp_path, "deaf"), Stop()

    def refresh() -> None:
        if len(frames(run.dir)) >= 2 and stop.sigints < 2:
            stop.heard(signal.SIGINT, None)

    verdicts = Drive([run], local(tmp_path), stop=stop, refresh=refresh).run()
    assert verdicts[run.key] == Verdict("unfinished", "killed by SIGKILL (out of memory?)")
    assert launch(run.dir)["exit"] == -signal.SIGKILL and not status.alive(run.dir)


def test_what_a_killed_sweep_has_left_is_stopped_too(tmp_path: Path, no_orphans: None) -> None:
    run, by_hand, stop = job(tmp_path, "wait"), job(tmp_path, "ok"), Stop()
    orphan = engines.launch(run, "", 1, dict(os.environ), detached=True)
    wait_for(lambda: len(frames(run.dir)) >= 2)
    by_hand.dir.mkdir(parents=True)
    with open(by_hand.dir / ".lock", "a") as held:  # this process, which must not get a signal
        fcntl.flock(held, fcntl.LOCK_EX)
        drive = Drive([run, by_hand], local(tmp_path), stop=stop, refresh=lambda: stop.heard(signal.SIGTERM, None))
        assert drive.run()[run.key].state == "unfinished"
    assert orphan.wait() == 75 and json.loads((run.dir / "status.json").read_text())["state"] == "interrupted"


# ---- disks ---------------------------------------------------------------------------------------------------------


def test_a_full_disk(agent: Path, engine: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    arguments = words(agent, *engine, "--retry-failed", "--", "--quota", "65536", modes="big ok")
    assert sweep.main(arguments) == 1
    said = capfd.readouterr().out
    assert "1 of 2 done, 1 failed" in said and "exit status 2: cannot write: File too large" in said
    assert launch(folder(agent, "big"))["starts"] == 1
    (agent.parent / "go").touch()  # there is room again
    assert sweep.main(arguments) == 0
    assert frames(folder(agent, "big")) == [1, 2, 3, 4]


def test_no_room_for_the_sweep_itself(agent: Path) -> None:
    sweeper = background(words(agent), "ulimit -f 0; ")
    said, _ = sweeper.communicate(timeout=60)
    assert sweeper.returncode == 2 and said.startswith("error: cannot write") and said.count("\n") == 1, said


def test_one_directory_that_cannot_be_made(agent: Path, engine: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    blocked = folder(agent, task="b").parent
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a directory should be")
    assert sweep.main(words(agent, *engine, tasks="b a")) == 1
    assert frames(folder(agent)) == [1, 2, 3, 4]
    out, err = capfd.readouterr()
    assert "cannot start it: Not a directory" in out
    assert err.count("again ") == (2 if engine else 0)  # another machine might have been able to
    assert not engine or f"Not a directory on {socket.gethostname()}" in out


@pytest.mark.parametrize(
    ("content", "engine"),
    [("", "local"), ('{"state": "runn', "local"), ("[1]", "local"), ("\x00\x00", "local"), ('{"state": "runn', "ray")],
    indirect=["engine"],
)
def test_a_corrupt_status_file(content: str, engine: list[str], agent: Path) -> None:
    path = folder(agent, "saved")
    arguments = words(agent, *engine, "--retries", "0", modes="saved", slots=1)
    assert sweep.main(arguments) == 1 and frames(path) == [1, 2]
    (path / "status.json").write_text(content)
    assert status.main([str(agent.parent / "out")]) == 1
    assert sweep.main([*arguments, "--retry-failed"]) == 1 and frames(path) == [1, 2, 3]
    assert (path / "status.json.damaged").read_text() == content
    assert sweep.main([*arguments, "--retry-failed"]) == 0 and frames(path) == [1, 2, 3, 4]
    (path / "status.json").write_text(content)
    starts = launch(path)["starts"]
    assert sweep.main(arguments) == 0 and launch(path)["starts"] == starts  # the result counts


# ---- never mixed ---------------------------------------------------------------------------------------------------


def refusal(arguments: list[str], capfd: pytest.CaptureFixture[str], lines: int = 1) -> str:
    capfd.readouterr()
    with pytest.raises(SystemExit) as stop:
        sweep.main(arguments)
    err = capfd.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == lines
    return err


def test_other_settings_are_not_mixed(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, path = agent.parent / "out", folder(agent)
    assert sweep.main(words(agent, "--", "--total-timesteps", "3")) == 0
    err = refusal(words(agent, "--", "--total-timesteps", "5", seeds="1 2"), capfd)
    assert "--total-timesteps was 3, is 5" in err and "1 of 2 runs" in err
    assert not folder(agent, seed=2).exists(), "nothing was started"
    assert "--tau was not given, is 1" in refusal(words(agent, "--", "--total-timesteps", "3", "--tau", "1"), capfd)
    logging = ("--total-timesteps", "3", "--log-every", "7", "--quiet", "yes")
    assert sweep.main(words(agent, "--threads", "1", "--", *logging)) == 0  # no result depends on these
    assert launch(path)["starts"] == 1
    assert sweep.main(words(agent, "--mismatch", "keep", "--", "--total-timesteps", "5", seeds="1 2")) == 0
    assert frames(path) == [1, 2, 3] and frames(folder(agent, seed=2)) == [1, 2, 3, 4, 5]
    assert sweep.main(words(agent, "--mismatch", "rerun", "--", "--total-timesteps", "5", seeds="1 2")) == 0
    assert frames(path) == frames(folder(agent, seed=2)) == [1, 2, 3, 4, 5]
    assert [frames(old.parent) for old in (out / "replaced").rglob("frames")] == [[1, 2, 3]]
    assert launch(folder(agent, seed=2))["starts"] == 1
    assert sweep.main(words(agent, "--mismatch", "rerun", "--", "--total-timesteps", "4", seeds="1 2")) == 0
    assert frames(path) == frames(folder(agent, seed=2)) == [1, 2, 3, 4]  # both at once


def test_runs_of_the_cpu_and_of_gpus_are_not_mixed(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words(agent)) == 0
    assert "--device was cpu, is gpu" in refusal(words(agent, "--gpus", "0", seeds="1 2"), capfd)


def test_other_code_is_not_mixed(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(words(agent)) == 0
    agent.write_text(AGENT + "# a new idea\n")
    assert "other code" in refusal(words(agent, seeds="1 2"), capfd)
    assert sweep.main(words(agent, "--mismatch", "keep", seeds="1 2")) == 0
    assert launch(folder(agent))["starts"] == 1
    assert "other code" in refusal(words(agent, seeds="1 2"), capfd)  # the mixture does not pass for one
    (folder(agent) / "launch.json").write_text("{")
    assert "no record" in refusal(words(agent), capfd)


def test_code_that_changes_during_a_sweep_ends_it(
    agent: Path, engine: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    at_once = 2 if engine else 1
    paths = [folder(agent, "wait", seed=seed) for seed in (1, 2, 3, 4)]

    def edit(_: status.Screen) -> None:
        if sum(len(frames(path)) == 2 for path in paths) == at_once:  # where they wait
            agent.write_text(AGENT + "# a new idea\n")
            (agent.parent / "go").touch()

    monkeypatch.setattr(status.Screen, "refresh", edit)
    assert sweep.main(words(agent, *engine, modes="wait", seeds="1-4")) == 1
    out, err = capfd.readouterr()
    assert f"{at_once} of 4 done, {4 - at_once} unfinished" in out and err.count("the code has changed") == 1
    assert sum(path.exists() for path in paths) == at_once


def test_the_version_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("agents/one.py", '__name__ == "__main__"'),
        ("agents/two.py", '__name__ == "__main__"'),
        ("agents/shared.py", "x = 1"),
        ("networks/sem.py", "x = 1"),
        ("benchmarks/report.py", "x = 1"),
        ("README.md", "x"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(engines, "ROOT", tmp_path)
    script = str(tmp_path / "agents/one.py")

    def changes(name: str) -> bool:
        before = engines.code_version(script)
        with open(tmp_path / name, "a") as file:
            file.write("# changed\n")
        return engines.code_version(script) != before

    assert engines.code_version(script) == engines.code_version(script)
    assert all(changes(name) for name in ("agents/one.py", "agents/shared.py", "networks/sem.py"))
    assert not any(changes(name) for name in ("agents/two.py", "benchmarks/report.py", "README.md"))


def test_a_run_goes_on_with_its_own_threads(agent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = words(agent, "--retries", "0", modes="saved")  # each life is one frame; the fourth is the last
    assert sweep.main([*arguments, "--threads", "3"]) == 1
    assert sweep.main([*arguments, "--threads", "1", "--retry-failed"]) == 1
    assert sweep.main([*arguments, "--threads", "2", "--retry-failed"]) == 0
    argv = launch(folder(agent, "saved"))["argv"]
    assert argv[argv.index("--threads") + 1] == "3" and frames(folder(agent, "saved")) == [1, 2, 3, 4]


# ---- slots ---------------------------------------------------------------------------------------------------------


def test_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "cores", lambda: 8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert sweep.places(sweep.Args()) == (["2", "3"], "gpu")
    assert sweep.places(sweep.Args(gpus="0,1", per_gpu=2)) == (["0", "1", "0", "1"], "gpu")
    assert sweep.places(sweep.Args(gpus="none")) == ([""] * 8, "cpu")
    assert sweep.places(sweep.Args(gpus="none", threads=4)) == ([""] * 2, "cpu")
    assert sweep.places(sweep.Args(gpus="none", slots=3)) == ([""] * 3, "cpu")
    assert sweep.places(sweep.Args(gpus="none", threads=2, ranks=2)) == ([""] * 2, "cpu")
    assert sweep.places(sweep.Args(gpus="0,1,2,3,4", ranks=2)) == (["0,1", "2,3"], "gpu")
    assert sweep.places(sweep.Args(gpus="GPU-aa, MIG-bb/1")) == (["GPU-aa", "MIG-bb/1"], "gpu")
    for wrong in ({"ranks": 3}, {"ranks": 2, "per_gpu": 2}):
        with pytest.raises(ValueError, match="--ranks"):
            sweep.places(sweep.Args(gpus="0,1", **wrong))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert sweep.places(sweep.Args())[1] == "cpu"


def test_gpus_are_found_and_handed_out(
    agent: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tool = agent.parent / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\ncase $1 in\n  --query-gpu=index) echo 0; echo 1;;\n"
        "  --query-gpu=index,uuid) echo '0, GPU-aa'; echo '1, GPU-bb';;\n"
        "  *) echo '0, GPU-aa, 100, 1000'; echo '1, GPU-bb, 700, 1000';;\nesac\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{agent.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert engines.gpus() == ["0", "1"]
    assert engines.missing_gpus(["0", "GPU-b", "MIG-x", "2", "GPU-c"]) == ["2", "GPU-c"]
    assert "this machine has no GPU 7" in refusal(words(agent, "--gpus", "0,7"), capfd)
    assert engines.gpu_memory() == {"0": (100, 1000), "GPU-aa": (100, 1000), "1": (700, 1000), "GPU-bb": (700, 1000)}
    assert sweep.main(words(agent, "--per-gpu", "2", seeds="1-4")) == 0
    for seed in range(1, 5):
        env = json.loads((folder(agent, seed=seed) / "env.json").read_text())
        assert env["CUDA_VISIBLE_DEVICES"] == env["MUJOCO_EGL_DEVICE_ID"] in ("0", "1")
        assert launch(folder(agent, seed=seed))["where"] == f"GPU {env['CUDA_VISIBLE_DEVICES']}"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert engines.gpus() == [] and engines.gpu_memory() == {} and engines.missing_gpus(["9"]) == []


def test_a_gpu_is_shared_only_while_the_memory_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"0": (0.0, 1000.0), "1": (0.0, 1000.0)}
    monkeypatch.setattr(engines, "gpu_memory", lambda: memory)
    monkeypatch.setattr(engines, "MEMORY_S", 0.0)
    engine = local(tmp_path, "0", "1", "0", "1", "0", "1")
    said: list[str] = []
    engine._say = said.append

    def occupy(gpu: str, sps: float | None) -> None:
        run = job(tmp_path, dir=tmp_path / f"{len(engine.children)}")
        run.dir.mkdir()
        (run.dir / "status.json").write_text(json.dumps({"sps": sps}))
        engine.children[str(len(engine.children))] = engines.Child(run, None, gpu)  # type: ignore[arg-type]

    assert engine._room() == "0"
    occupy("0", None)
    assert engine._room() == "1"  # first one on each
    occupy("1", None)
    assert engine._room() is None  # what they need is not known yet
    for run in (tmp_path / "0", tmp_path / "1"):
        (run / "status.json").write_text(json.dumps({"sps": 10.0}))
    memory |= {"0": (460.0, 1000.0), "1": (440.0, 1000.0)}  # twice 460 is above 90%
    assert engine._room() == "1"
    occupy("1", 10.0)
    memory["1"] = (640.0, 1000.0)
    assert engine._room() is None
    assert said == [
        "GPU 0: 1 of its runs take 460 of 1,000 MiB, one more does not fit",
        "GPU 1: 2 of its runs take 640 of 1,000 MiB, one more does not fit",
    ]
    memory["1"] = (560.0, 1000.0)
    assert engine._room() == "1"
    occupy("1", 10.0)
    del engine.children["0"]
    assert engine._room() == "0"


def test_a_run_left_behind_keeps_its_gpu(tmp_path: Path) -> None:
    engine = local(tmp_path, "0", "1")
    run = job(tmp_path)
    run.dir.mkdir(parents=True)
    engine.adopted[run.key] = run
    for record, expected in (
        ({"host": socket.gethostname(), "where": "GPU 0"}, "1"),
        ({"host": socket.gethostname(), "where": "GPU 7"}, "0"),  # of a time with other GPUs: one slot less
        ({"host": "another", "where": "GPU 0"}, "0"),
    ):
        (run.dir / "launch.json").write_text(json.dumps(record))
        assert engine._room() == expected
    (run.dir / "launch.json").write_text(json.dumps({"host": socket.gethostname(), "where": "GPU 7"}))
    engine.slots = ["0"]
    assert engine._room() is None


# ---- the table -----------------------------------------------------------------------------------------------------


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(name: str, **files: Any) -> Path:
        path = tmp_path / "runs" / "walk" / "td3__on" / name
        path.mkdir(parents=True)
        for stem, content in files.items():
            (path / f"{stem}.json").write_text(json.dumps(content))
        return path

    now = time.time()
    half = {
        "state": "running",
        "step": 500,
        "total_timesteps": 2000,
        "sps": 250.0,
        "episodic_return": 12.34,
        "time": now,
    }
    finished = {"state": "done", "step": 2000, "total_timesteps": 2000, "wall_s": 100.0}
    run("seed1", status=finished, result={"step": 2000})
    running = run("seed2", status=half, launch={"where": "GPU 1", "started": now - 9})
    run("seed3", status=half, launch={"started": now - 9, "ended": now, "verdict": "again", "why": "killed by SIGKILL"})
    failed = {"started": now - 9, "ended": now, "verdict": "failed", "why": "exit status 1: boom"}
    run("seed4", status={**half, "state": "failed"}, launch=failed)
    keys = [f"walk/td3__on/seed{seed}" for seed in range(1, 6)]
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": keys}))
    with open(running / ".child", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert status.main([str(tmp_path)]) == 1
    # Left: 6 s of the running one; like the one that is done, 75 s of the stopped and 100 s of the waiting one.
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path}: 1 of 5 done, 1 running, 1 stopped, 1 failed, 1 waiting; 250 SPS; ETA 3:01",
        "running  walk/td3__on/seed2   25.0%  500/2,000 frames  250 SPS  return 12.3  on GPU 1",
        "stopped  walk/td3__on/seed3   25.0%  500/2,000 frames  return 12.3  killed by SIGKILL",
        "failed   walk/td3__on/seed4  exit status 1: boom",
    ]
    assert status.main([str(tmp_path)]) == 1 and "2 stopped" in capsys.readouterr().out  # nobody holds the lock
    (tmp_path / "sweep.json").unlink()
    assert status.keys_of(tmp_path) == keys[:4]
    with pytest.raises(SystemExit) as stop:
        status.main([str(tmp_path / "nothing")])
    assert stop.value.code == 2 and "holds no sweep" in capsys.readouterr().err


def test_a_lock_that_may_not_be_read_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    (tmp_path / ".child").touch()
    monkeypatch.setattr("builtins.open", closed)
    assert status.held(tmp_path / ".child") is None


def test_time_left() -> None:
    def run(group: str, state: str, **more: Any) -> Seen:
        return Seen(f"{group}/seed1", state, **more)

    on = run("a", "running", step=50, total=100, sps=10.0)  # 5 s
    assert status.time_left([on]) == pytest.approx(5)
    assert status.time_left([on, run("a", "waiting")]) == pytest.approx(15)  # as long as this one takes: 10 s
    assert status.time_left([on, on, run("a", "waiting")]) == pytest.approx(10)  # two at a time
    history = [run("a", "done", wall_s=30.0), run("b", "done", wall_s=60.0)]
    assert status.time_left([on, run("b", "waiting"), *history]) == pytest.approx(65)
    assert status.time_left([on, run("c", "waiting"), *history]) == pytest.approx(50)  # the mean of both
    half = run("b", "stopped", step=1, total=2)
    assert status.time_left([on, half, *history]) == pytest.approx(35)
    many = [run("a", "running", step=99, total=100, sps=10.0)] * 3
    assert status.time_left([on, *many]) == pytest.approx(5)  # not the mean: the last one decides
    assert status.time_left(history) == 0 and status.time_left([run("a", "failed"), *history]) == 0
    assert status.time_left([run("a", "waiting")]) != status.time_left([run("a", "waiting")])  # not known: NaN


def test_the_screen_redraws_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("LINES", "5")
    keys = [f"a/b/seed{seed}" for seed in range(6)]
    screen = status.Screen(tmp_path, keys, terminal)  # type: ignore[arg-type]
    for seed in range(6):
        path = tmp_path / "runs" / "a" / "b" / f"seed{seed}"
        path.mkdir(parents=True)
        (path / "launch.json").write_text(json.dumps({"verdict": "failed", "ended": 1, "why": "w" * 99}))
    screen.look()
    screen.say("first")
    drawn = terminal.text
    assert drawn.startswith("first\n") and drawn.count("\n") == 4 and "and 5 more" in drawn
    assert max(map(len, drawn.splitlines())) < 60
    screen.say("second")
    assert terminal.text[len(drawn) :].startswith("\x1b[3F\x1b[Jsecond\n")  # over its three lines
    screen.close()
    assert terminal.text.endswith("\x1b[3F\x1b[J")

    def broken(_: str) -> None:
        raise OSError("the terminal was closed")

    terminal.write = broken  # type: ignore[method-assign]
    screen.say("third")  # is no reason to lose the sweep


# ---- suites --------------------------------------------------------------------------------------------------------

SUITES = sorted((ROOT / "benchmarks" / "suites").glob("*.toml"))
PUBLISHED = sorted((ROOT / "benchmarks" / "published").glob("*.csv"))


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_suites(path: Path) -> None:
    envs = pytest.importorskip("envs")
    grid = sweep.grid_of(sweep.Args(suite=str(path)), set(), [])
    assert len(grid.variants) > 1 and len(grid.seeds) > 1
    known = {task for backend in envs.backends() for task in envs.tasks(backend)}
    missing = [task for task in grid.tasks if task not in known]
    assert all(task.startswith(("h1-", "h1hand-")) for task in missing), missing  # HumanoidBench is an extra of its own
    for agent in grid.scripts:
        module = importlib.import_module(f"agents.{agent}")
        seen = []
        for flags in grid.variants.values():
            parsed = config.parse(module.Args, module.presets, ["--env-id", grid.tasks[0], *grid.flags, *flags])
            seen.append(parsed.args)
            assert parsed.explicit >= {name[2:].replace("-", "_") for name in sweep.settings_of(grid.flags)} - {
                "device"
            }
        assert all(one != other for i, one in enumerate(seen) for other in seen[:i]), "two variants are the same"


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_curves_are_those_of_a_suite(path: Path) -> None:
    envs = pytest.importorskip("envs")
    grid = sweep.grid_of(sweep.Args(suite=str(path.parents[1] / "suites" / f"{path.stem}.toml")), set(), [])
    metric = dict.fromkeys(grid.tasks, "eval/success_rate")
    curves = study.read_overlay(path, metric)
    single = len(grid.scripts) == 1
    ours = {name if single else f"{agent}__{name}" for name in grid.variants for agent in grid.scripts}
    assert {curve.name for curve in curves} <= ours and len(curves) > 1, "their names are those of variants"
    (frames,) = {
        config.parse(m.Args, m.presets, ["--env-id", grid.tasks[0], *grid.flags]).args.total_timesteps
        for m in (importlib.import_module(f"agents.{agent}") for agent in grid.scripts)
    }
    assert envs and all(curve.steps[0] <= 1.1 * frames for curve in curves), "some of it is within the plot"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('flags = ["--mode", "ok"]', "flags is ['--mode', 'ok']; expected one text"),
        ('[variants]\na = ["--mode", "ok"]', "expected a table of flags"),
        ('tasks = "WalkerWalk-v1"', "tasks is 'WalkerWalk-v1'; expected a list of names"),
        ('agents = "fasttd3"', "agents is 'fasttd3'; expected a list of names"),
        ("seeds = true", "seeds is True; expected a number"),
        ("tasks = [1]", "tasks is [1]; expected a list of names"),
    ],
)
def test_a_suite_of_wrong_types_is_one_line(
    line: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "suite.toml").write_text(f"{line}\n")
    assert said in refusal([str(tmp_path / "suite.toml"), "--out", str(tmp_path / "out")], capfd)
    assert not (tmp_path / "out").exists()


def test_flags_win_over_a_suite(tmp_path: Path) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(
        'agents = ["ppo"]\ntasks = ["a"]\nseeds = [3, "5-6"]\nflags = "--gamma 0.9"\n[variants]\non = "--sem"\n'
    )
    grid = sweep.grid_of(sweep.Args(suite=str(path)), set(), ["--gamma", "0.5"])
    assert list(grid.scripts) == ["ppo"] and grid.seeds == [3, 5, 6] and grid.variants == {"on": ["--sem"]}
    assert sweep.settings_of(grid.flags)["--gamma"] == "0.5"
    asked = sweep.Args(suite=str(path), tasks=("b",), seeds=("9",))
    grid = sweep.grid_of(asked, {"tasks", "seeds"}, [])
    assert grid.tasks == ["b"] and grid.seeds == [9] and list(grid.scripts) == ["ppo"]
    path.write_text('task = ["a"]')
    with pytest.raises(ValueError, match="unknown key task"):
        sweep.grid_of(asked, set(), [])


def test_suites_are_part_of_the_package() -> None:
    tomllib = importlib.import_module("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["benchmarks"]
    assert shipped == ["suites/*.toml", "published/*.csv", "references.csv"]
    assert {"ray", "slurm"} <= project["project"]["optional-dependencies"].keys()


def test_a_disk_that_fills_meanwhile_hides_no_failure(
    agent: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, calls = sweep.write_json, []

    def fills(path: Path, content: Any) -> None:
        calls.append(path)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write(path, content)

    monkeypatch.setattr(sweep, "write_json", fills)
    assert sweep.main(words(agent, modes="ok exit")) == 1
    said = capsys.readouterr()
    assert len(calls) == 2 and "does not say how this session ended: No space left on device" in said.out + said.err
    assert "a/fake__exit/seed1" in said.out and "done" in said.out


# ---- Ray -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A Ray cluster of two machines that are both this one, with a core each."""
    ray = pytest.importorskip("ray")
    cluster_utils = importlib.import_module("ray.cluster_utils")
    monkeypatch.setattr(engines, "ROOT", ROOT)  # as the workers see it
    for name, value in getattr(request, "param", ON_RAY).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")  # the cluster believes it
    before = signal.getsignal(signal.SIGCHLD)
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    signal.signal(signal.SIGCHLD, before)


def test_on_ray(
    agent: Path, two_nodes: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], no_orphans: None
) -> None:
    on_two = ("--engine", "ray", "--gpus")
    for more in (("any", "--ranks", "9"), ("none", "--threads", "4096")):  # more than any machine of the cluster has
        with pytest.raises(SystemExit) as refused:
            sweep.main(words(agent, *on_two, *more))
        assert refused.value.code == 2
        assert "no machine of the Ray cluster has the " in capfd.readouterr().err
        assert not (agent.parent / "out").exists()

    # Exit statuses, retries, and what is done is skipped: as on one machine.
    arguments = words(agent, *on_two, "none", modes="ok exit kill-once saved-once late")
    assert sweep.main(arguments) == 1
    out = capfd.readouterr().out
    assert "4 of 5 done, 1 failed" in out and "exit status 1: RuntimeError: the pole fell" in out
    for mode, starts in (("ok", 1), ("kill-once", 2), ("saved-once", 2), ("late", 1)):
        assert frames(folder(agent, mode)) == [1, 2, 3, 4] and launch(folder(agent, mode))["starts"] == starts
        assert json.loads((folder(agent, mode) / "env.json").read_text())["CUDA_VISIBLE_DEVICES"] == ""
    assert sweep.main([*arguments, "--retry-failed"]) == 1 and launch(folder(agent, "exit"))["starts"] == 2
    assert launch(folder(agent, "ok"))["starts"] == 1

    # A share of a GPU.
    shared = words(agent, *on_two, "any", "--per-gpu", "2", tasks="gpu")
    assert sweep.main(shared) == 0
    assert json.loads((folder(agent, task="gpu") / "env.json").read_text())["CUDA_VISIBLE_DEVICES"] in ("0", "1")

    # A signal: what runs saves, what waits does not start.
    started: list[Path] = []
    paths = [folder(agent, "wait", "stop", seed) for seed in (1, 2, 3, 4)]

    def refresh(_: status.Screen) -> None:
        running = [path for path in paths if len(frames(path)) >= 2]  # any two: Ray keeps no order
        if not started and len(running) == 2:
            started.extend(running)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(status.Screen, "refresh", refresh)
        waiting = words(agent, *on_two, "none", modes="wait", tasks="stop", seeds="1-4")
        assert sweep.main(waiting) == 75
    for path in paths:
        assert (status.look("x", path).state == "stopped" and launch(path)["exit"] == 75) == (path in started)
        assert bool(frames(path)) == (path in started)

    # A machine that dies, with one of two runs on it.
    paths = [folder(agent, "wait", "die", seed) for seed in (1, 2)]
    killed = []

    def strike(_: status.Screen) -> None:
        if not killed and all(len(frames(path)) >= 2 for path in paths):
            killed.append(two_nodes.remove_node(two_nodes.worker_nodes.copy().pop(), allow_graceful=False))
            (agent.parent / "go").touch()

    with monkeypatch.context() as patch:
        patch.setattr(status.Screen, "refresh", strike)
        assert sweep.main(words(agent, *on_two, "none", modes="wait", tasks="die", seeds="1 2")) == 0
    assert killed and all(frames(path) == [1, 2, 3, 4] for path in paths)


def test_a_killed_sweep_on_ray_goes_on(
    agent: Path, on_ray: list[str], capfd: pytest.CaptureFixture[str], no_orphans: None
) -> None:
    arguments = words(agent, *on_ray, "none", modes="wait", seeds="1-3")
    paths = [folder(agent, "wait", seed=seed) for seed in (1, 2, 3)]
    first = background(arguments)
    wait_for(lambda: sum(len(frames(path)) >= 2 for path in paths) == 2, 60.0)
    assert f"process {first.pid} of " in refusal(arguments, capfd)  # a rerun while it runs
    begun = [path for path in paths if frames(path)]
    first.kill()
    first.wait()
    wait_for(lambda: not any(status.alive(path) for path in paths))  # Ray ends what it has started for a sweep
    assert [status.look("x", path).state for path in begun] == ["stopped"] * 2
    (agent.parent / "go").touch()
    assert sweep.main(arguments) == 0
    for path in paths:
        assert frames(path) == [1, 2, 3, 4] and launch(path)["starts"] == 1 + (path in begun)


def test_a_run_that_is_alive_is_not_started_on_ray_too(
    agent: Path, on_ray: list[str], monkeypatch: pytest.MonkeyPatch, no_orphans: None
) -> None:
    arguments = words(agent, *on_ray, "none", "--mismatch", "keep", modes="wait")
    by_hand = subprocess.Popen([sys.executable, agent, "--run-dir", folder(agent, "wait"), "--mode", "wait"])
    wait_for(lambda: len(frames(folder(agent, "wait"))) >= 2)
    monkeypatch.setattr(status.Screen, "refresh", lambda _: (agent.parent / "go").touch())
    assert sweep.main(arguments) == 0 and by_hand.wait() == 0
    assert frames(folder(agent, "wait")) == [1, 2, 3, 4] and "starts" not in launch(folder(agent, "wait"))


def test_a_sweep_on_ray_whose_file_to_stop_is_gone_kills(
    agent: Path, on_ray: list[str], monkeypatch: pytest.MonkeyPatch, no_orphans: None
) -> None:
    paths = [folder(agent, "wait", seed=seed) for seed in (1, 2, 3)]

    def refresh(_: status.Screen) -> None:
        stop = agent.parent / "out" / ".stop"
        if stop.exists() and sum(len(frames(path)) >= 2 for path in paths) == 2:
            stop.unlink()
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(status.Screen, "refresh", refresh)
    assert sweep.main(words(agent, *on_ray, "none", modes="wait", seeds="1-3")) == 75
    wait_for(lambda: not any(status.alive(path) for path in paths))
    assert sorted(len(frames(path)) for path in paths) == [0, 2, 2]


def test_several_gpus_for_a_run(agent: Path, on_ray: list[str]) -> None:
    for task, more in (("a", [*on_ray, "any"]), ("b", ["--gpus", "0,1,2,3"])):
        assert sweep.main(words(agent, *more, "--ranks", "2", "--threads", "1", tasks=task, seeds="1 2")) == 0
        given = [json.loads((folder(agent, task=task, seed=seed) / "env.json").read_text()) for seed in (1, 2)]
        assert all(len(set(env["CUDA_VISIBLE_DEVICES"].split(",")) & set("0123")) == 2 for env in given)
        assert [env["WORLD_SIZE"] for env in given] == ["2", "2"]


SUBREAPER = {**ANY_RAY, "RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper": "true"}


@pytest.mark.slow
@pytest.mark.parametrize("two_nodes", [SUBREAPER], indirect=True)
def test_on_ray_where_every_exit_status_is_0(agent: Path, two_nodes: Any, capfd: pytest.CaptureFixture[str]) -> None:
    # Somebody else's cluster may be set up so: its workers ignore SIGCHLD.
    assert sweep.main(words(agent, "--engine", "ray", "--gpus", "none", modes="ok exit kill-once saved-once")) == 1
    out, err = capfd.readouterr()
    assert "exit status 0 without result.json: RuntimeError: the pole fell" in out and "3 of 4 done, 1 failed" in out
    assert "exit status 0, but not finished; start 2" in err
    for mode in ("ok", "kill-once", "saved-once"):
        assert frames(folder(agent, mode)) == [1, 2, 3, 4]


# ---- Slurm ---------------------------------------------------------------------------------------------------------


def test_slurm_without_slurm(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("submitit")
    queue = ("--engine", "slurm", "--slurm", "cluster=debug", "timeout_min=1")  # in this process, one after the other
    assert sweep.main(words(agent, *queue, modes="ok exit", seeds="1-2", slots=2)) == 1
    assert "2 of 4 done, 2 failed" in capfd.readouterr().out
    for seed in (1, 2):
        assert (
            frames(folder(agent, seed=seed)) == [1, 2, 3, 4] and launch(folder(agent, "exit", seed=seed))["exit"] == 1
        )
    assert "--threads 1" in (folder(agent) / "log.txt").read_text()


SBATCH = """#!/bin/bash
# Starts each task of the array at once, and keeps a file for it in the queue while it runs.
count=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
id=$(( 100 + $(ls $QUEUE/submitted | wc -l) ))
cp "$1" $QUEUE/submitted/$id
for i in $(seq 0 ${count:-0}); do
  name=$id${count:+_$i}
  touch $QUEUE/running/$name
  (
    export SLURM_JOB_ID=$id${count:+$i} SLURM_PROCID=0 ${count:+SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$i}
    bash "$1"
    rm $QUEUE/running/$name
  ) > $QUEUE/log-$name 2>&1 &
done
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] || shift; shift; done
exec "$@"
"""


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What submitit sees of Slurm: its programs, with this machine behind them."""
    pytest.importorskip("submitit")
    for name in ("bin", "queue/submitted", "queue/running"):
        (tmp_path / name).mkdir(parents=True)
    for name, text in (("sbatch", SBATCH), ("srun", SRUN), ("squeue", "#!/bin/sh\nls $QUEUE/running\n")):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(tmp_path / "queue"))
    monkeypatch.setattr(engines, "ROOT", ROOT)  # as the processes of the queue see it
    monkeypatch.setattr(engines.Slurm.__init__, "__defaults__", (0.1,))  # how often the queue is looked at
    return tmp_path / "queue"


def test_on_slurm(
    agent: Path,
    queue: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_orphans: None,
) -> None:
    slurm = ("--engine", "slurm", "--slurm", "timeout_min=5", "slurm_partition=small")
    arguments = words(agent, *slurm, modes="wait exit", seeds="1-2", slots=2)
    paths = [folder(agent, "wait", seed=seed) for seed in (1, 2)]
    sent = []

    def refresh(_: status.Screen) -> None:
        if not sent and all(len(frames(path)) >= 2 for path in paths):
            sent.append(os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(status.Screen, "refresh", refresh)
    assert sweep.main(arguments) == 75  # only the watching ends
    assert "scancel 100 stops them" in capfd.readouterr().out and all(status.alive(path) for path in paths)
    (submitted,) = (queue / "submitted").iterdir()
    assert "--array=0-1%2" in submitted.read_text() and "--partition=small" in submitted.read_text()
    seen = []

    def release(_: status.Screen) -> None:
        seen.append(len(list((queue / "submitted").iterdir())))
        (agent.parent / "go").touch()

    monkeypatch.setattr(status.Screen, "refresh", release)
    assert sweep.main(arguments) == 1
    assert set(seen) == {1}, "nothing was submitted twice"
    for seed in (1, 2):
        assert frames(paths[seed - 1]) == [1, 2, 3, 4] and launch(paths[seed - 1])["starts"] == 1
        assert launch(folder(agent, "exit", seed=seed))["exit"] == 1
    assert "2 of 4 done, 2 failed" in capfd.readouterr().out

    # A task that vanishes, with its machine for instance, is submitted again.
    (agent.parent / "go").unlink()
    lost = folder(agent, "wait", seed=3)
    killed = []

    def strike(_: status.Screen) -> None:
        if not killed and len(frames(lost)) >= 2:
            (name,) = (queue / "running").iterdir()
            killed.append(name)
            pids = subprocess.run(
                ["pgrep", "-f", f"submitit.core._submit {agent.parent}"], capture_output=True, text=True
            )
            for pid in [*map(int, pids.stdout.split()), launch(lost)["pid"]]:
                os.kill(pid, signal.SIGKILL)
            (agent.parent / "go").touch()

    monkeypatch.setattr(status.Screen, "refresh", strike)
    assert sweep.main(words(agent, *slurm, modes="wait", seeds="3")) == 0
    assert frames(lost) == [1, 2, 3, 4] and launch(lost)["starts"] == 2
    assert len(list((queue / "submitted").iterdir())) == 3 and "has vanished" in capfd.readouterr().err


def test_a_task_saves_before_slurm_takes_the_machine_back(tmp_path: Path, no_orphans: None) -> None:
    submitit = pytest.importorskip("submitit")
    run = job(tmp_path, "wait")
    task = engines.Task([run], 0, 1, None, tmp_path)
    task.engine = local(tmp_path)
    assert task.engine.start(run)
    wait_for(lambda: len(frames(run.dir)) >= 2)
    again = task.checkpoint()
    assert isinstance(again, submitit.helpers.DelayedSubmission) and again.function.jobs == [run]
    assert json.loads((run.dir / "status.json").read_text())["state"] == "interrupted"
    assert [ended.code for ended in task.engine.ended()] == [75]


@pytest.mark.parametrize(
    ("engine", "arguments", "line"),
    [
        ("ray", [], "pip install 'semrl[ray]'"),
        ("slurm", [], "pip install 'semrl[slurm]'"),
        ("slurm", [], "timeout_min"),
        ("slurm", ["timeout_min=5", "slurm_prtition=x"], "slurm_prtition"),
        ("slurm", ["timeout_min=5"], "sbatch has refused: no such partition"),
    ],
)
def test_engines_say_what_they_lack(
    engine: str,
    arguments: list[str],
    line: str,
    agent: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    package = {"ray": "ray", "slurm": "submitit"}[engine]
    if line.startswith("pip"):
        monkeypatch.setitem(sys.modules, package, None)
    else:
        pytest.importorskip(package)
        monkeypatch.setenv("PATH", f"{agent.parent}:{os.environ['PATH']}")
        for name, text in (("srun", ""), ("sbatch", "echo no such partition >&2; exit 1"), ("squeue", "")):
            (agent.parent / name).write_text(f"#!/bin/sh\n{text}\n")
            (agent.parent / name).chmod(0o755)
    more = ["--slurm", *arguments] if arguments else []
    assert line in refusal(words(agent, "--engine", engine, *more), capfd, lines=3 if "sbatch" in line else 1)
    assert not (agent.parent / "out").exists(), "nothing is left"


@pytest.mark.parametrize(
    ("resources", "line"), [({}, "has no GPU: --gpus none"), (None, "no Ray cluster answers at x: refused")]
)
def test_a_sweep_that_ray_refuses_leaves_nothing(
    resources: dict[str, float] | None,
    line: str,
    agent: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Ray:
        exceptions = SimpleNamespace(RayError=KeyError)

        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**_: Any) -> None:
            if resources is None:
                raise ConnectionError("refused")

        @staticmethod
        def cluster_resources() -> dict[str, float]:
            return resources or {}

    assert sweep.main(words(agent)) == 0
    before = {path: path.read_bytes() for path in agent.parent.rglob("*") if path.is_file()}
    monkeypatch.setitem(sys.modules, "ray", Ray)
    on_ray = ("--engine", "ray", "--gpus", "any", "--ray-address", "x")
    new = [str(agent.parent / "new" / "out") if x == str(agent.parent / "out") else x for x in words(agent, *on_ray)]
    for arguments in (new, words(agent, *on_ray, "--mismatch", "keep", seeds="1-2")):
        assert line in refusal(arguments, capfd, lines=1 if arguments is new else 2)
    assert {path: path.read_bytes() for path in agent.parent.rglob("*") if path.is_file()} == before
    assert not (agent.parent / "new").exists()


def test_where_no_cluster_is_that_is_said_at_once(agent: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    for address, why in (("127.0.0.1:1", "refused"), ("nowhere.invalid:6379", "nown")):
        new = words(agent, "--engine", "ray", "--ray-address", address, "--gpus", "none")
        line = refusal(new, capfd)
        assert f"no Ray cluster answers at {address}: " in line and why in line
    assert not (agent.parent / "out").exists()


def test_a_cluster_that_wants_a_token_says_how(tmp_path: Path, agent: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {"HOME": str(tmp_path)}
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the names of its sockets must be short
    (tmp_path / ".ray").mkdir()
    (tmp_path / engines.TOKEN).write_text("0123456789abcdef" * 4)
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
    ray += ["--include-dashboard", "false", "--port", str(port), "--num-cpus", "1", "--temp-dir", folder]
    # Its other processes end with the first one.
    cluster = subprocess.Popen(ray, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert cluster.stdout and any("Ray runtime started" in line for line in cluster.stdout)
        on_ray = ("--engine", "ray", "--ray-address", f"127.0.0.1:{port}", "--gpus", "none")
        command = [sys.executable, str(ROOT / "benchmarks" / "sweep.py"), *words(agent, *on_ray)]
        refused = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert refused.returncode == 2, refused.stderr
        *_, line = refused.stderr.splitlines()  # Ray's own lines come before it
        assert line.startswith(f"error: no Ray cluster answers at 127.0.0.1:{port}: ")
        assert line.endswith("; if it wants the token in ~/.ray/auth_token: RAY_AUTH_MODE=token")
        done = subprocess.run(
            command, env=env | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        (tmp_path / engines.TOKEN).unlink()
        command = [*command[:2], *words(agent, *on_ray, seeds="9")]
        lost = subprocess.run(
            command, env=env | {"RAY_AUTH_MODE": "token"}, capture_output=True, text=True, check=False
        )
        assert lost.returncode == 2 and "no authentication token was found" in lost.stderr, lost.stderr
    finally:
        cluster.terminate()
        cluster.wait(30)
        shutil.rmtree(folder)


# ---- a real agent --------------------------------------------------------------------------------------------------


def test_a_real_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    path = out / "runs" / "PointMass-v0" / "fasttd3__on" / "seed1"
    flags = (
        "--device cpu --size small --num-envs 16 --batch-size 8 --buffer-size 320 --actor-hidden 8 --critic-hidden 8 "
        "--num-updates 1 --total-timesteps 1600 --learning-starts 32 --log-every 160 --eval-every 0 --save-every 160"
    )
    sem = "on:--sem --sem-actor-groups 2 --sem-actor-vertices 4 --sem-critic-groups 2 --sem-critic-vertices 4"
    arguments = ["--tasks", "PointMass-v0", "--seeds", "1", "--variants", sem, "--threads", "1", "--out", str(out)]
    arguments += ["--", *flags.split()]
    struck = []

    def strike(_: status.Screen) -> None:  # once it has saved something
        if not struck and list(path.glob("checkpoints/step_*")):
            struck.append(os.kill(launch(path)["pid"], signal.SIGKILL))

    monkeypatch.setattr(status.Screen, "refresh", strike)
    assert sweep.main(arguments) == 0, capfd.readouterr().err
    assert json.loads((path / "result.json").read_text())["step"] == 1600
    assert launch(path)["starts"] == 2 and launch(path)["verdict"] == "done"
    settings = json.loads((path / "config.json").read_text())
    assert settings["exp_name"] == "fasttd3__on" and settings["sem"] and settings["threads"] == 1
    steps = re.findall(r"^fasttd3__on,PointMass-v0,1,charts/SPS,(\d+),", (path / "metrics.csv").read_text(), re.M)
    assert [int(step) for step in steps] == list(range(160, 1601, 160)), "each log once, across the kill"
    assert sweep.main(arguments) == 0
    assert launch(path)["starts"] == 2


@pytest.mark.parametrize("runs", [[{"a": 1}, "a/b__c/seed1"], 3, {"a": 1}])
def test_a_list_of_runs_of_other_things(runs: Any, tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs}))
    assert status.keys_of(tmp_path) == (["a/b__c/seed1"] if isinstance(runs, list) else [])
