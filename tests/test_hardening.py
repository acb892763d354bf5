"""What a run must survive: kills at any moment, damage to any of its files, and hours of training.

SEMRL_LONG=1 python -m pytest tests/test_hardening.py    # 200 kills instead of 8 for each agent, longer soaks
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agents import fastsac, fasttd3, ppo, pqn
from agents.run import Run

ROOT = Path(__file__).resolve().parents[1]
LONG = bool(os.environ.get("SEMRL_LONG"))
TINY = "--env-id PointMass-v0 --device cpu --size small --num-envs 4 --eval-envs 2 --total-timesteps 800 --log-every 40"
TINY += " --eval-every 400 --save-every 80 --actor-hidden 16 16 --critic-hidden 16 16 --sem --sem-actor-groups 2"
TINY += " --sem-actor-vertices 8 --sem-critic-groups 4 --sem-critic-vertices 4 --amp off --threads 1 --quiet"
LEARNER = " --learning-starts 40 --batch-size 32 --buffer-size 800 --num-updates 1 --n-step 3 --atoms 11"
DISCRETE = re.sub(r" --(sem-)?actor-\w+( \d+)+", "", TINY).replace("PointMass", "ClosedFormDiscrete")
ROLLOUTS = " --num-steps 10 --num-minibatches 4 --update-epochs 2"
AGENTS = {
    "fasttd3": (fasttd3, TINY + LEARNER),
    "fastsac": (fastsac, TINY + LEARNER),
    "ppo": (ppo, TINY + ROLLOUTS),
    "pqn": (pqn, DISCRETE + ROLLOUTS),
}
every_agent = pytest.mark.parametrize("kind", AGENTS)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# ---- kills -----------------------------------------------------------------------------------------------------------

KILLER = '''
import csv, importlib, json, os, random, shutil, signal, sys, time
from pathlib import Path
import torch
from agents.checkpoint import newest_checkpoint, step_dirs

kind, words, root, seed, wanted = sys.argv[1], sys.argv[2].split(), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])
agent = importlib.import_module(f"agents.{kind}")
rng = random.Random(seed)

def start(*argv):
    """A process that trains, as the shell would start it, without the seconds that imports take."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(agent.main(list(argv)))
        except SystemExit as stop:
            os._exit(stop.code)
    return pid

def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def content(run_dir):
    """All that the last checkpoint holds, and all that was measured but for the clock."""
    checkpoint, complaints = newest_checkpoint(run_dir)
    assert not complaints, complaints
    states = {name[:-3]: checkpoint.load(name[:-3]) for name in sorted(checkpoint.meta["sha256"])}
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = [(r["metric"], r["step"], r["value"]) for r in csv.DictReader(file)]
    return states, [row for row in rows if not row[0].startswith(("time/", "charts/SPS"))]

def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or a != a

def half_written(run_dir):
    path = run_dir / "checkpoints"
    entries = os.scandir(path) if path.exists() else ()
    return {(entry.name, entry.inode()) for entry in entries if entry.name.startswith(".tmp-")}

kills = {"starting": 0, "saving": 0, "training": 0}
for turn in range(10**6):
    command = [*words, "--seed", str(turn + 1), "--run-dir"]
    whole, killed = root / f"whole{turn}", root / f"killed{turn}"
    begun = time.perf_counter()
    assert end(start(*command, str(whole))) == 0
    took = time.perf_counter() - begun
    for _ in range(8):
        before, old = step_dirs(killed), half_written(killed)
        left = set(old)
        resume = ["--resume", str(killed), "--quiet"]
        pid = start(*(resume if before and rng.random() < 0.5 else [*command, str(killed)]))
        if rng.random() < 0.5:
            time.sleep(rng.uniform(0, 0.7 * took))
        else:  # at its first or second attempt to save
            late = time.perf_counter() + took
            for _ in range(rng.randint(1, 2)):
                while time.perf_counter() < late and not half_written(killed) - left:
                    time.sleep(0.0005)
                left |= half_written(killed)
            time.sleep(rng.uniform(0, 0.01))
        os.kill(pid, signal.SIGKILL)
        code = end(pid)
        if code != -signal.SIGKILL:  # it was sooner
            assert code == 0, code
            break
        saving = half_written(killed) - old
        kills["saving" if saving else "training" if step_dirs(killed) != before else "starting"] += 1
        if (killed / "status.json").exists() and json.loads((killed / "status.json").read_text())["state"] == "done":
            break  # it had only to exit
    code = end(start(*command, str(killed)))
    assert code in (0, 2), code  # 2: it was done already
    assert same(content(killed), content(whole)), (turn, kills)
    assert not list(killed.rglob(".tmp-*")) and not list(killed.rglob("*.damaged")), list(killed.rglob("*"))
    shutil.rmtree(whole), shutil.rmtree(killed)
    if sum(kills.values()) >= wanted:
        break
print(kills)
'''


@every_agent
def test_killed_at_any_moment_a_run_goes_on_and_ends_as_if_nothing_was(kind: str, tmp_path: Path) -> None:
    """SIGKILL while it starts, trains, saves, resumes: the next process goes on, by --resume or the same command."""
    kills = 200 if LONG else 8
    command = [
        sys.executable,
        "-c",
        KILLER,
        kind,
        AGENTS[kind][1],
        str(tmp_path),
        str(random.randrange(10**6)),
        str(kills),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, f"seed {command[-2]}: {done.stderr[-3000:]}"
    print(done.stdout.splitlines()[-1])


# ---- damage ----------------------------------------------------------------------------------------------------------


def flip(content: bytearray, rng: random.Random) -> None:
    if content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def truncate(content: bytearray, rng: random.Random) -> None:
    del content[rng.randrange(max(1, len(content))) :]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of FastTD3 that has failed at 280 of 320 frames, with checkpoints at 160 and 240."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    progress = Run.progress

    def fail(run: Run, step: int) -> None:
        progress(run, step)
        if step == 280:
            raise ZeroDivisionError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Run, "progress", fail)
        fasttd3.main([*AGENTS["fasttd3"][1].split(), "--total-timesteps", "320", "--run-dir", str(run_dir)])
    return run_dir


def goes_on(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and stderr of a resume."""
    capsys.readouterr()
    try:
        status = fasttd3.main(["--resume", str(run_dir), "--quiet"])
    except SystemExit as stop:
        status = int(stop.code or 0)
    return status, capsys.readouterr().err


@pytest.mark.parametrize("damage", [flip, truncate])
def test_damage_to_any_file_is_named_or_harmless(
    damage: Any, stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(shutil.copytree(stopped, tmp_path / "whole"))
    assert goes_on(whole, capsys) == (0, "")
    expected = (whole / "checkpoints" / "step_000000000320" / "agent.pt").read_bytes()
    files = sorted(path.relative_to(stopped) for path in stopped.rglob("*") if path.is_file())
    assert {"config.json", "metrics.csv", "agent.pt", "meta.json"} <= {path.name for path in files}
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    for turn in range(20 if LONG else 2):
        for file in files:
            run_dir = Path(shutil.copytree(stopped, tmp_path / f"{turn}-{'-'.join(file.parts)}"))
            content = bytearray((run_dir / file).read_bytes())
            damage(content, rng)
            (run_dir / file).write_bytes(content)
            status, err = goes_on(run_dir, capsys)
            where = f"seed {seed}, turn {turn}, {damage.__name__} of {file}: {status}, {err}"
            assert "Traceback" not in err and err.count("\n") <= 1, where
            if status == 0:  # the same training, and what could not be used was named
                agent = (run_dir / "checkpoints" / "step_000000000320" / "agent.pt").read_bytes()
                assert agent == expected or MAY_CHANGE & set(changed(run_dir, stopped)), where
                newest = file.parent.name == "step_000000000240"
                assert not newest or "going on from step_000000000160" in err or same_json(run_dir, stopped, file), (
                    where
                )
            else:
                named = file.name in err or (file.name == "config.json" and err.startswith("error: --"))  # or the flag
                assert status == 2 and err.startswith("error: ") and named, where
            shutil.rmtree(run_dir)


MAY_CHANGE = set(fasttd3.MUTABLE)
"""settings that a user may change in a run, so that nothing can tell damage from it"""


def changed(run_dir: Path, other: Path) -> list[str]:
    here, there = (json.loads((path / "config.json").read_text()) for path in (run_dir, other))
    return [name for name in there if here.get(name) != there[name]]


def same_json(run_dir: Path, other: Path, file: Path) -> bool:
    """Whether a JSON file of the undamaged run says what this one said: a bit between the words."""
    return (
        file.suffix == ".json"
        and (run_dir / file).exists()
        and (json.loads((run_dir / file).read_text()) == json.loads((other / file).read_text()))
    )


# ---- memory ----------------------------------------------------------------------------------------------------------

SOAK = """
import importlib, resource, sys
from pathlib import Path
from agents.run import Run

kind, words, root, iterations = sys.argv[1], sys.argv[2].split(), sys.argv[3], int(sys.argv[4])
agent = importlib.import_module(f"agents.{kind}")
progress, seen = Run.progress, []

def measured(run, step):
    progress(run, step)
    with open("/proc/self/statm") as file:
        seen.append(int(file.read().split()[1]) * resource.getpagesize())
    if len(seen) == iterations:
        run.stop_signal = "SIGTERM"

Run.progress = measured
assert agent.main([*words, "--total-timesteps", str(10**9), "--run-dir", f"{root}/run"]) == 75
half, end = max(seen[len(seen) // 4 : len(seen) // 2]), max(seen[len(seen) // 2 :])
print(f"{half / 2**20:.1f} MiB in the second quarter of {iterations}, {end / 2**20:.1f} MiB in the second half")
sys.exit(end > 1.02 * half)
"""
ITERATIONS = {"fasttd3": 1_200, "fastsac": 1_200, "ppo": 120, "pqn": 120}
"""by which a replay buffer is full and everything that is made once was made"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@every_agent
def test_memory_does_not_grow(kind: str, tmp_path: Path) -> None:
    """Resident size, with evaluations, metrics and checkpoints, stays within 2% after warm-up."""
    iterations = ITERATIONS[kind] * (100 if LONG else 1)
    command = [sys.executable, "-c", SOAK, kind, AGENTS[kind][1], str(tmp_path), str(iterations)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=ROOT)
    print(done.stdout.splitlines()[-1:])
    assert done.returncode == 0, done.stdout[-500:] + done.stderr[-2000:]
