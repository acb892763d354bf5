"""Checkpoints: what a kill, a full disk or a flipped bit may not break, and that what is read is what was saved."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import checkpoint as checkpoint_module
from agents.checkpoint import (
    Checkpoint,
    CheckpointError,
    RunError,
    newest_checkpoint,
    open_checkpoint,
    rng_state,
    set_rng_state,
    step_dirs,
)
from agents.run import Run

ROOT = Path(checkpoint_module.__file__).resolve().parents[1]


@dataclass
class Args:
    """Settings of a run that trains nothing."""

    env_id: str = "dm/cheetah:run"
    exp_name: str = "test"
    seed: int = 3
    total_timesteps: int = 100


def make(tmp_path: Path, **options: Any) -> Run[Args]:
    return Run.create(Args(), root=tmp_path, quiet=True, **options)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the operating system refuse to write files larger than this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def flip(path: Path, position: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def state_of(step: int) -> dict[str, Any]:
    return {"agent": {"w": torch.full((50,), float(step)), "steps": [step, None, "x"]}, "replay": {"pos": step}}


def assert_good(checkpoint: Checkpoint) -> None:
    agent = checkpoint.load("agent")
    assert agent["w"].tolist() == [float(checkpoint.step)] * 50
    assert agent["steps"] == [checkpoint.step, None, "x"]
    assert checkpoint.load("replay") == {"pos": checkpoint.step}


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for keep in (1, 2, 3):
        run = make(tmp_path, keep=keep)
        for count, step in enumerate((5, 40, 300, 2000, 10000), start=1):
            path = run.save(step, state_of(step))
            assert path == run.dir / "checkpoints" / f"step_{step:012d}"
            assert len(list((run.dir / "checkpoints").iterdir())) == min(count, keep)
            checkpoint, complaints = newest_checkpoint(run.dir)
            assert (checkpoint.step, complaints) == (step, [])
            assert_good(checkpoint)
        run.close()
    with pytest.raises(ValueError, match="keep 0"):
        make(tmp_path, keep=0)


def test_a_step_is_saved_once(tmp_path: Path) -> None:
    run = make(tmp_path)
    first = run.save(7, {"agent": {"x": 1}})
    assert run.save(7, {"agent": {"x": 2}}) == first
    assert open_checkpoint(first).load("agent") == {"x": 1}
    run.close()


def test_files_of_a_checkpoint(tmp_path: Path) -> None:
    run = make(tmp_path)
    path = run.save(7, {"agent": {"x": torch.arange(3)}})
    assert sorted(each.name for each in path.iterdir()) == ["agent.pt", "meta.json"]
    assert torch.load(path / "agent.pt", weights_only=True)["x"].tolist() == [0, 1, 2]
    checkpoint = open_checkpoint(path)
    assert checkpoint.has("agent") and not checkpoint.has("replay")
    with pytest.raises(RunError, match=r"no replay.pt, only agent.pt"):
        checkpoint.load("replay")
    run.close()


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.zeros(3), "agent/a/0 is a ndarray"),
        (np.float64(1), "agent/a/0 is a float64"),
        ({1, 2}, "agent/a/0 is a set"),
        (Path("x"), "agent/a/0 is a PosixPath"),
        (torch.nn.Linear(1, 1), "agent/a/0 is a Linear"),
    ],
)
def test_what_could_not_be_read_back_is_refused_when_saved(tmp_path: Path, value: Any, where: str) -> None:
    run = make(tmp_path)
    with pytest.raises(TypeError, match=where):
        run.save(1, {"agent": {"a": [value]}})
    assert step_dirs(run.dir) == []
    run.close()


def test_what_agents_save_can_be_read_back(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(net.parameters(), lr=torch.tensor(1e-3))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    net(torch.randn(5, 3)).sum().backward()
    optimizer.step()
    states = {
        "agent": {
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": rng_state(),
            "generator": torch.Generator().get_state(),
        }
    }
    run = make(tmp_path)
    loaded = open_checkpoint(run.save(1, states)).load("agent")
    run.close()
    for name, value in net.state_dict().items():
        assert torch.equal(loaded["net"][name], value)
    optimizer.load_state_dict(loaded["optimizer"])
    scheduler.load_state_dict(loaded["scheduler"])
    assert loaded["optimizer"]["state"][0]["step"] == 1


def test_rng_state_continues_all_generators(tmp_path: Path) -> None:
    def draw() -> list[Any]:
        return [random.random(), random.gauss(0, 1), *np.random.randn(3), *torch.randn(3).tolist()]  # noqa: NPY002

    draw()  # gauss and randn keep a second number back
    run = make(tmp_path)
    path = run.save(1, {"rng": rng_state()})
    run.close()
    expected = [draw() for _ in range(2)]
    set_rng_state(open_checkpoint(path).load("rng"))
    assert [draw() for _ in range(2)] == expected


def without(path: Path, name: str) -> None:
    meta = json.loads(path.read_text())
    del meta[name]
    path.write_text(json.dumps(meta))


def edit(path: Path, name: str, value: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


DAMAGE = {
    "flipped first bit": lambda path: flip(path / "agent.pt", 0),
    "flipped bit in the middle": lambda path: flip(path / "replay.pt", 400),
    "torn": lambda path: os.truncate(path / "agent.pt", 200),
    "empty": lambda path: os.truncate(path / "agent.pt", 0),
    "longer": lambda path: (path / "agent.pt").open("ab").write(b"x"),
    "missing file": lambda path: (path / "replay.pt").unlink(),
    "missing meta": lambda path: (path / "meta.json").unlink(),
    "torn meta": lambda path: os.truncate(path / "meta.json", 20),
    "empty meta": lambda path: os.truncate(path / "meta.json", 0),
    "other meta": lambda path: (path / "meta.json").write_text("{}"),
    "meta without a time": lambda path: without(path / "meta.json", "wall_s"),
    "another step": lambda path: edit(path / "meta.json", "step", 7),
    "another time": lambda path: edit(path / "meta.json", "wall_s", 1e6),
    "no object": lambda path: (path / "meta.json").write_text("[1]"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(tmp_path, keep=3)
    paths = [run.save(step, state_of(step)) for step in (10, 20, 30)]
    run.close()
    DAMAGE[damage](paths[2])
    with pytest.raises(CheckpointError, match="step_000000000030"):
        open_checkpoint(paths[2])
    resumed = Run.resume(run.dir, Args, keep=3, quiet=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert "step_000000000030" in line and line.endswith("; going on from step_000000000020")
    assert resumed.checkpoint is not None and resumed.checkpoint.step == resumed.step == 20
    assert_good(resumed.checkpoint)
    assert_good(open_checkpoint(resumed.save(30, state_of(30))))  # its place is free again
    resumed.close()
    for path in paths[:2]:
        DAMAGE[damage](path)
    DAMAGE[damage](paths[2])
    with pytest.raises(RunError, match="no checkpoint to go on from") as error:
        Run.resume(run.dir, Args, quiet=True)
    assert all(path.name in str(error.value) for path in paths) and "\n" not in str(error.value)


def test_a_checkpoint_of_another_version_is_left_alone(tmp_path: Path) -> None:
    run = make(tmp_path)
    paths = [run.save(step, state_of(step)) for step in (10, 20)]
    run.close()
    (paths[1] / "meta.json").write_text('{"schema": 99, "step": 20, "sha256": {}}')
    with pytest.raises(RunError, match=r"step_000000000020 has format 99, this version reads 3"):
        Run.resume(run.dir, Args)
    assert step_dirs(run.dir) == paths


def test_the_disk_refuses_a_checkpoint(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.log(1, {"a": 1})
    run.save(1, state_of(1))
    big = {"agent": {"x": torch.zeros(100_000)}, "replay": {}}
    for limit in (0, 100, 10_000, 399_000):
        refused = pytest.raises(CheckpointError, match=r"cannot write .*: File too large; step_000000000001 is intact")
        with refused as error, file_size_limit(limit):
            run.save(2, big)
        assert "\n" not in str(error.value)
        assert [path.name for path in (run.dir / "checkpoints").iterdir()] == ["step_000000000001"]
        assert_good(newest_checkpoint(run.dir)[0])
    assert open_checkpoint(run.save(2, big)).load("agent")["x"].shape == (100_000,)  # there is room again
    run.close()


def test_a_bug_in_a_state_is_not_called_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    run = make(tmp_path)
    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="a bug") as error:
        run.save(1, {"agent": {}})
    assert not isinstance(error.value, RunError)
    assert list((run.dir / "checkpoints").iterdir()) == []
    run.close()


def test_the_disk_refuses_the_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "x", Path("/proc/self/nothing")):
        with pytest.raises(RunError, match="cannot make the run directory in") as error:
            make(root)
        assert "\n" not in str(error.value)
    with file_size_limit(10), pytest.raises(RunError, match="File too large"):
        make(tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_disk_refuses_metrics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"cannot write .*metrics.csv: No space left on device"), make(tmp_path) as run:
        (run.dir / "metrics.csv").symlink_to("/dev/full")
        run.log(1, {"a": 1})
    ended = json.loads((run.dir / "status.json").read_text())
    assert ended["state"] == "failed" and "No space left" in ended["why"]
    assert capsys.readouterr().err == ""  # what is raised is the one line


KILLER = '''
import os, random, shutil, signal, sys, time
from dataclasses import dataclass
from pathlib import Path
import torch
from agents.checkpoint import newest_checkpoint, open_checkpoint, step_dirs
from agents.run import Run

@dataclass
class Args:
    env_id: str = "x"
    exp_name: str = "x"
    seed: int = 0
    total_timesteps: int = 10**9

random.seed(int(sys.argv[2]))
torch.set_num_threads(1)
state = torch.zeros(300_000)

def save(run, step):
    run.save(step, {"agent": {"x": state.fill_(float(step))}, "replay": {"step": step}})

def check(run):
    """Every directory that is called a checkpoint is one; the newest step."""
    for path in step_dirs(run.dir):
        checkpoint = open_checkpoint(path)
        assert torch.equal(checkpoint.load("agent")["x"], torch.full((300_000,), float(checkpoint.step)))
        assert checkpoint.load("replay") == {"step": checkpoint.step}
    return newest_checkpoint(run.dir)[0].step

def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid

def dies_at(run, step, count):
    """Save, but die just before the file operation with this number."""
    def hook(event, args):
        nonlocal count
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir", "os.truncate"):
            count -= 1
            if count < 0:
                os._exit(9)
    sys.addaudithook(hook)
    save(run, step)

# 1. a kill before each file operation of a save, in turn
run = Run.create(Args(), root=sys.argv[1], keep=1, quiet=True)  # nothing to fall back on but the last one
save(run, 1), save(run, 2)
step, deaths = 3, 0
for count in range(1000):
    newest = check(run)
    pid = child(lambda: dies_at(run, step, count))
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0:
        break
    deaths += 1
    after = check(run)
    assert newest <= after <= step, (newest, after, step)
    step = after + 1
assert check(run) == step and deaths > 15, (step, deaths)

# 2. SIGKILL at any moment of saving for ever
def forever(start):
    for step in range(start, 10**9):
        save(run, step)
kills = 0
while kills < 15:
    before = check(run)
    pid = child(lambda: forever(before + 1))
    time.sleep(random.uniform(0.0, 0.06))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert check(run) >= before
    kills += 1
torn = len(list((run.dir / "checkpoints").glob(".tmp-*")))
save(run, check(run) + 1)
assert sorted(p.name[:5] for p in (run.dir / "checkpoints").iterdir()) == ["step_"]
print(deaths, torn, "ok")
'''


def test_a_kill_at_any_moment_leaves_good_checkpoints(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLER, str(tmp_path), str(random.randrange(10**6))]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{command[-1]}: {done.stderr}"
    assert done.stdout.endswith("ok\n")
