"""What a run must survive: kills at any moment.

SEMRL_LONG=1 python -m pytest tests/test_hardening.py    # 200 kills instead of 8 for each agent
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from agents import fastsac, fasttd3, ppo

ROOT = Path(__file__).resolve().parents[1]
LONG = bool(os.environ.get("SEMRL_LONG"))
TINY = "--env-id PointMass-v0 --device cpu --size small --num-envs 4 --eval-envs 2 --total-timesteps 800 --log-every 40"
TINY += " --eval-every 400 --save-every 80 --actor-hidden 16 16 --critic-hidden 16 16 --sem --sem-actor-groups 2"
TINY += " --sem-actor-vertices 8 --sem-critic-groups 4 --sem-critic-vertices 4 --amp off --threads 1 --quiet"
LEARNER = " --learning-starts 40 --batch-size 32 --buffer-size 800 --num-updates 1 --n-step 3 --atoms 11"
AGENTS = {
    "fasttd3": (fasttd3, TINY + LEARNER),
    "fastsac": (fastsac, TINY + LEARNER),
    "ppo": (ppo, f"{TINY} --num-steps 10 --num-minibatches 4 --update-epochs 2"),
}
every_agent = pytest.mark.parametrize("kind", AGENTS)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


# ---- kills -----------------------------------------------------------------------------------------------------------

KILLER = '''
import csv, importlib, os, random, shutil, signal, sys, time
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
