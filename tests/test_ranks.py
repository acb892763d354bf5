"""Several processes that train one agent: real ones, started by torchrun, that talk by gloo on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.checkpoint import open_checkpoint, step_dirs
from agents.ranks import ALONE, Ranks
from benchmarks import report
from benchmarks.study import Study

ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PATIENCE = 180  # seconds until something that should happen counts as not happening


def torchrun(*command: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*TORCHRUN, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, _ = process.communicate(timeout=PATIENCE)
    return process.returncode, out


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


# ---- the same as one process -----------------------------------------------------------------------------------------

LEARNER = """
import sys
import torch
from tensordict import TensorDict
import envs
from agents import {agent} as module
from agents import config
from agents.ranks import join

ranks = join("cpu")
torch.set_num_threads(1)
args = module.resolve(config.parse(module.Args, module.presets, {flags}).args)
torch.manual_seed(0)
env = envs.make(args.env_id, 8 // ranks.world, seed=0, device="cpu", backend="torch")
agent = module.{name}(args, env, ranks)
for optimizer in ("optimizer", "actor_optimizer", "critic_optimizer"):
    if hasattr(agent, optimizer):  # with the usual 1e-8, what is 0 but for rounding is a step like any other
        getattr(agent, optimizer).eps = 1e-4
draw, permute = torch.randn, torch.randperm


def rows(*shape):  # what a process draws are its rows of what one would draw
    return ranks.own(draw(shape[0] * ranks.world, *shape[1:]))


torch.randn_like = lambda x: rows(*x.shape)
torch.manual_seed(1)
for update in range(5):
    if "{agent}" in ("fasttd3", "fastsac"):
        batch = TensorDict(
            {{
                "obs": rows(64 // ranks.world, 6),
                "next_obs": rows(64 // ranks.world, 6),
                "action": rows(64 // ranks.world, 2).tanh(),
                "reward": rows(64 // ranks.world),
                "discount": torch.full((64 // ranks.world,), 0.9),
            }},
            [64 // ranks.world],
        )
        batch["critic_obs"], batch["next_critic_obs"] = batch["obs"], batch["next_obs"]
        agent.learn_norms(batch["obs"], batch["critic_obs"])
        agent.reward_scale.update(ranks.gather(rows(8 // ranks.world)), torch.zeros(8) > 0)
        agent.update(batch)
    else:
        n = 8 // ranks.world
        columns = dict(target=rows(n, 4), valid=(rows(n, 4) > -1).float())
        if "{agent}" == "pqn":
            columns |= dict(obs=rows(n, 4, 1), action=(rows(n, 4) > 0).long())
        else:
            columns |= dict(obs=rows(n, 4, 6), action=rows(n, 4, 2), log_prob=rows(n, 4) - 2, value=rows(n, 4))
            columns |= dict(advantage=rows(n, 4))
        rollout = TensorDict({{k: v.transpose(0, 1).contiguous() for k, v in columns.items()}}, [4, n])
        torch.randperm = lambda n, device: torch.arange(n)
        agent.update(rollout)
        torch.randperm = permute
vectors = {{name: p.detach().clone() for name, p in agent.modules.state_dict().items()}}
torch.save(vectors, sys.argv[1] + str(ranks.rank))
"""


@pytest.mark.parametrize(
    ("agent", "name", "flags"),
    [
        ("fasttd3", "FastTD3", ["--sem", "--reward-norm", "--max-grad-norm", "0.1"]),
        ("fastsac", "FastSAC", ["--sem", "--reward-norm", "--max-grad-norm", "0.1"]),
        *(
            (agent, name, ["--torso", "flashsac", "--reward-norm"])
            for agent, name in (("fasttd3", "FastTD3"), ("fastsac", "FastSAC"))
        ),
        ("pqn", "PQN", ["--torso", "flashsac", "--num-minibatches", "1", "--env-id", "ClosedFormDiscrete-v0"]),
        ("ppo", "PPO", ["--sem", "--num-minibatches", "1", "--lr-schedule", "adaptive"]),
        ("pqn", "PQN", ["--sem", "--num-minibatches", "1", "--env-id", "ClosedFormDiscrete-v0"]),
    ],
)
def test_two_processes_learn_what_one_does(agent: str, name: str, flags: list[str], tmp_path: Path) -> None:
    script = tmp_path / "learner.py"
    common = ["--size", "small", "--env-id", "PointMass-v0", "--num-envs", "8", "--amp", "off", "--device", "cpu"]
    script.write_text(LEARNER.format(agent=agent, name=name, flags=[*common, *flags]))
    two = torchrun(script, tmp_path / "two")
    done = subprocess.run([sys.executable, script, tmp_path / "one"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, out = finish(two)
    assert code == 0, out
    one, first, second = (torch.load(tmp_path / file) for file in ("one0", "two0", "two1"))
    moved = 0
    for key, expected in one.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], expected, atol=2e-5, rtol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
        moved += expected.numel()
    assert moved > 1000


# ---- whole runs ------------------------------------------------------------------------------------------------------


def test_kills_signals_and_resuming(tmp_path: Path) -> None:
    """A run that a signal stops, and later a process that dies, ends as one that nothing has stopped."""
    flags = ["agents/fasttd3.py", "--env-id", "PointMass-v0", "--backend", "torch", "--sem", "--device", "cpu"]
    flags += ["--total-timesteps", 16_000, "--learning-starts", 320, "--log-every", 1000, "--eval-every", 4000]
    flags += ["--save-every", 1000, "--num-updates", 1, "--batch-size", 64, "--keep-checkpoints", 50, "--reward-norm"]
    flags += ["--quiet"]
    whole = torchrun(*flags, "--run-dir", tmp_path / "whole")
    code, out = finish(whole)
    assert code == 0 and out.count("final evaluation") == 1, out

    run = tmp_path / "run"

    def saved() -> int:
        return max((int(path.name[5:]) for path in step_dirs(run)), default=0)

    process = torchrun(*flags, "--run-dir", run)
    wait_until(lambda: saved() >= 2000, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    stopped = json.loads((run / "status.json").read_text())
    assert stopped["state"] == "interrupted" and stopped["why"] == "SIGTERM"
    assert saved() == stopped["step"] < 14_000

    process = torchrun("agents/fasttd3.py", "--resume", run)
    wait_until(lambda: saved() >= stopped["step"] + 1500, process)
    os.kill(workers(process.pid)["1"], signal.SIGKILL)
    code, out = finish(process)
    assert code != 0 and "SIGKILL" in out and "exitcode  : -9" in out, out

    alone = subprocess.run(
        [sys.executable, "agents/fasttd3.py", "--resume", run], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert alone.returncode == 2 and "--nproc-per-node 2" in alone.stderr and alone.stderr.count("\n") == 1

    code, out = finish(torchrun("agents/fasttd3.py", "--resume", run))
    assert code == 0, out
    ends = [open_checkpoint(step_dirs(path)[-1]) for path in (tmp_path / "whole", run)]
    for rank in (0, 1):
        for name in ("agent", "replay"):
            expected, actual = (end._replace(rank=rank).load(name) for end in ends)
            assert_same(actual, expected, f"{name} of process {rank}")
    first, second = (ends[0]._replace(rank=rank).load("loop")["obs"] for rank in (0, 1))
    assert not torch.equal(first, second)  # each has environments of its own
    scores = [json.loads((path / "result.json").read_text())["eval"] for path in (tmp_path / "whole", run)]
    assert scores[0] == scores[1]


def assert_same(actual: object, expected: object, where: str) -> None:
    if isinstance(expected, torch.Tensor):
        assert isinstance(actual, torch.Tensor) and torch.equal(actual, expected), where
    elif isinstance(expected, dict):
        assert isinstance(actual, dict) and actual.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(actual[key], value, f"{where}/{key}")
    else:
        assert actual == expected, where


def test_a_sweep_starts_runs_of_two_processes_and_goes_on_where_one_is_lost(tmp_path: Path) -> None:
    flags = ["--total-timesteps", "16000", "--learning-starts", "320", "--save-every", "1000", "--eval-every", "8000"]
    grid = ["--agents", "fasttd3", "--tasks", "PointMass-v0", "--seeds", "3", "--variants", "on:--sem", "--ranks", "2"]
    command = [sys.executable, "benchmarks/sweep.py", *grid, "--gpus", "none", "--out", tmp_path / "out", "--", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    run = tmp_path / "out" / "runs" / "PointMass-v0" / "fasttd3__on" / "seed3"
    wait_until(lambda: bool(step_dirs(run)), process)
    agent = json.loads((run / "launch.json").read_text())["pid"]
    os.kill(workers(agent)["1"], signal.SIGKILL)
    code, out = finish(process)
    assert code == 0 and "again    PointMass-v0/fasttd3__on/seed3  one of its 2 processes has ended" in out, out
    assert json.loads((run / "result.json").read_text())["step"] == 16_000
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["ranks"] == 2 and len(manifest["resumes"]) == 1 and manifest["resumes"][0]["step"] >= 1000

    # What the report says makes the run again: as many processes, and no GPU where there is one.
    args = report.Args(dirs=(tmp_path / "out",))
    (line,) = report.commands(Study(report.collect(args.dirs, args.metric), args))
    assert line.startswith("for seed in 3; do torchrun --standalone --nproc-per-node 2 agents/fasttd3.py --")
    line = line.replace("--seed $seed", f"--seed $seed --total-timesteps 640 --run-dir {tmp_path}/again")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-c", line], cwd=ROOT, env=os.environ | {"PATH": path}, capture_output=True, check=True)
    assert json.loads((tmp_path / "again" / "manifest.json").read_text())["ranks"] == 2
    first, again = (json.loads((path / "config.json").read_text()) for path in (run, tmp_path / "again"))
    assert {name for name in first if first[name] != again[name]} == {"total_timesteps", "run_dir"}


def test_a_sweep_that_is_stopped_while_processes_start_goes_on(tmp_path: Path) -> None:
    grid = ["--agents", "ppo", "--tasks", "PointMass-v0", "--seeds", "1", "--ranks", "2", "--gpus", "none"]
    command = [sys.executable, "benchmarks/sweep.py", *grid, "--out", tmp_path / "out", "--", "--total-timesteps", 400]
    run = tmp_path / "out" / "runs" / "PointMass-v0" / "ppo__default" / "seed1"
    process = subprocess.Popen([*map(str, command)], cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def begun() -> bool:
        launch = run / "launch.json"
        pid = json.loads(launch.read_text())["pid"] if launch.exists() else None
        return bool(pid and len(workers(pid)) == 2)

    wait_until(begun, process)
    process.send_signal(signal.SIGTERM)
    code, out = finish(process)
    assert code == 75 and not (run / "config.json").exists(), out
    assert json.loads((run / "launch.json").read_text())["verdict"] != "failed", out
    done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 of 1 done" in done.stdout, done.stdout


def workers(torchrun: int) -> dict[str, int]:
    """Processes that a torchrun has started: rank -> process id."""
    started = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    environments = {pid: Path(f"/proc/{pid}/environ").read_text().partition("\0RANK=")[2] for pid in started}
    return {after[0]: int(pid) for pid, after in environments.items() if after}  # one that is just forked has none


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    process = torchrun(
        *("agents/ppo.py", "--env-id", "PointMass-v0", "--backend", "torch", "--device", "cpu", "--num-envs", 9),
        *("--run-dir", tmp_path / "run"),
    )
    code, out = finish(process)
    assert code != 0 and "--num-envs 9: must be a multiple of the 2 processes" in out, out
    assert "Traceback" not in out.split("torch/distributed")[0]
    assert not (tmp_path / "run").exists()


def test_alone_everything_is_as_it_is() -> None:
    x = torch.randn(4, 3)
    assert ALONE.sum_(x) is x and ALONE.mean_(x) is x and ALONE.max_(x) is x and ALONE.gather(x) is x
    assert ALONE.first and ALONE.seed(7) == 7 and ALONE.device("cuda") == "cuda" and ALONE.share("--x", 5) == 5
    assert ALONE.all(True) and not ALONE.all(False) and ALONE.largest(3) == 3 and ALONE.same(x)
    assert ALONE.by_first(lambda: 5) == 5 and ALONE.tell(6) == 6 and ALONE.collect(7) == [7]


def test_what_is_a_process_s_own() -> None:
    ranks = [Ranks(rank, 4, rank) for rank in range(4)]
    assert len({rank.seed(3) for rank in ranks} | {rank.seed(4) for rank in ranks} | {3, 4}) == 10
    rows = torch.arange(8)
    assert [rank.own(rows).tolist() for rank in ranks] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert [rank.device("cuda") for rank in ranks] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert ranks[1].device("cpu") == "cpu" and ranks[0].share("--num-envs", 12) == 3
    with pytest.raises(ValueError, match="--num-envs 10: must be a multiple of the 4 processes"):
        ranks[0].share("--num-envs", 10)


def test_no_process_outlives_torchrun(tmp_path: Path) -> None:
    flags = "--env-id PointMass-v0 --size small --total-timesteps 4000000 --save-every 0 --eval-every 0 --threads 1"
    process = torchrun("agents/fasttd3.py", *flags.split(), "--run-dir", tmp_path / "run")
    status = tmp_path / "run" / "status.json"
    wait_until(lambda: status.is_file() and json.loads(status.read_text()).get("step", 0) > 0, process)
    ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(ranks) == 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while left := [pid for pid in ranks if running(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
