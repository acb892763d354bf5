"""FastTD3: its losses against independent computations, what each update moves, and the program as users run it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import envs
from agents import fasttd3
from agents.checkpoint import newest_checkpoint
from agents.fasttd3 import Args, FastTD3
from envs.torch import optimal_q, optimal_value

ROOT = Path(__file__).parents[1]
TINY = {
    "env_id": "PointMass-v0",
    "device": "cpu",
    "size": "small",
    "num_envs": 4,
    "eval_envs": 2,
    "total_timesteps": 400,
    "learning_starts": 40,
    "log_every": 80,
    "eval_every": 200,
    "save_every": 200,
    "batch_size": 32,
    "buffer_size": 400,
    "num_updates": 2,
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "atoms": 11,
    "v_min": 0.0,
    "v_max": 20.0,
    "sem_actor_groups": 2,
    "sem_actor_vertices": 8,
    "sem_critic_groups": 4,
    "sem_critic_vertices": 4,
    "amp": "off",
    "threads": 1,
}


def tiny(**changes) -> Args:
    return replace(Args(), **{**TINY, **changes})


def make_agent(args: Args, seed: int = 0) -> FastTD3:
    torch.manual_seed(seed)
    return FastTD3(args, envs.make(args.env_id, args.num_envs, seed))


def make_batch(agent: FastTD3, size: int = 64, seed: int = 0) -> TensorDict:
    g = torch.Generator().manual_seed(seed)
    obs_dim = agent.actor.torso[0].in_features
    action_dim = agent.actor.head.out_features
    critic_dim = agent.critic.torso[0].weight.shape[1] - action_dim
    shared = critic_dim == obs_dim
    obs, next_obs = (torch.randn(size, obs_dim, generator=g) for _ in range(2))
    batch = {
        "obs": obs,
        "critic_obs": obs if shared else torch.randn(size, critic_dim, generator=g),
        "action": torch.rand(size, action_dim, generator=g) * 2 - 1,
        "reward": torch.rand(size, generator=g) * 3 - 1,
        "discount": torch.where(torch.rand(size, generator=g) < 0.3, 0.0, 0.9),
        "next_obs": next_obs,
        "next_critic_obs": next_obs if shared else torch.randn(size, critic_dim, generator=g),
    }
    return TensorDict(batch, [size])


def snapshot(agent: FastTD3) -> dict[str, torch.Tensor]:
    return {name: x.clone() for name, x in agent.modules.state_dict().items()}


def changed(before: dict[str, torch.Tensor], agent: FastTD3) -> set[str]:
    """Names of the modules whose numbers differ from before."""
    after = agent.modules.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# ---- losses ----------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def c51_target(probs: np.ndarray, reward: float, discount: float, support: np.ndarray) -> np.ndarray:
    """Atom by atom, as in the C51 paper."""
    out = np.zeros_like(support)
    gap = support[1] - support[0]
    for p, z in zip(probs, support, strict=True):
        b = (min(max(reward + discount * z, support[0]), support[-1]) - support[0]) / gap
        low, high = int(np.floor(b + 1e-9)), int(np.ceil(b - 1e-9))
        if low == high:
            out[low] += p
        else:
            out[low] += p * (high - b)
            out[high] += p * (b - low)
    return out


@pytest.mark.parametrize("clipped", [True, False])
@pytest.mark.parametrize("sem", [True, False])
def test_losses_equal_an_independent_computation(clipped: bool, sem: bool) -> None:
    agent = make_agent(tiny(clipped_double_q=clipped, sem=sem, policy_noise=0.0, env_id="PointMassPrivileged-v0"))
    with torch.no_grad():  # spread the critics apart, so that each of them is the lower one somewhere
        agent.target.head.weight.mul_(20)
        agent.critic.head.weight.mul_(20)
    batch = make_batch(agent)
    support = agent.critic.support.double().numpy()
    with torch.no_grad():
        next_probs = softmax(agent.target(batch["next_critic_obs"], agent.actor(batch["next_obs"])).double().numpy())
        logits = agent.critic(batch["critic_obs"], batch["action"]).double().numpy()
        policy_logits = agent.critic(batch["critic_obs"], agent.actor(batch["obs"])).double().numpy()
    log_probs = np.log(softmax(logits))
    expected, chosen = 0.0, set()
    for i in range(len(batch)):
        targets = [
            c51_target(next_probs[q, i], *(float(batch[k][i]) for k in ("reward", "discount")), support) for q in (0, 1)
        ]
        lower = int(np.argmin([t @ support for t in targets]))
        chosen.add(lower)
        for q in (0, 1):
            expected -= (targets[lower if clipped else q] * log_probs[q, i]).sum() / len(batch)
    assert chosen == {0, 1}
    assert agent.critic_loss(batch).item() == pytest.approx(expected, rel=1e-5)
    value = softmax(policy_logits) @ support
    value = value.min(0) if clipped else value.mean(0)
    assert agent.actor_loss(batch).item() == pytest.approx(-value.mean(), rel=1e-5)


def test_target_noise_is_clipped_and_actions_stay_in_range() -> None:
    agent = make_agent(tiny(policy_noise=100.0, noise_clip=0.25))
    batch = make_batch(agent, 512)
    seen = []
    agent.target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    agent.target_probs(batch)
    with torch.no_grad():
        off = seen[0] - agent.actor(batch["next_obs"])
    assert off.abs().max() <= 0.25 + 1e-6
    assert seen[0].abs().max() <= 1
    assert (off.abs() > 0.249).float().mean() > 0.9  # and it is there


def test_discount_is_not_rounded_to_bfloat16() -> None:
    exact, rounded = (make_agent(tiny(amp=amp, policy_noise=0.0)) for amp in ("off", "bfloat16"))
    for agent in (exact, rounded):
        with torch.no_grad():  # all mass on the last atom, whatever the input
            agent.target.head.weight.zero_()
            agent.target.head.bias.zero_()[..., -1] = 50.0
    batch = make_batch(exact)
    batch["reward"].zero_()
    batch["discount"].fill_(0.99)
    for agent in (exact, rounded):
        mean = agent.target_probs(batch) @ agent.critic.support
        torch.testing.assert_close(mean, torch.full_like(mean, 0.99 * 20.0), rtol=1e-5, atol=0)


def test_bfloat16_losses_are_close_to_float32() -> None:
    exact, fast = (make_agent(tiny(amp=amp, sem=True, policy_noise=0.0)) for amp in ("off", "bfloat16"))
    batch = make_batch(exact)
    assert fast.critic_loss(batch).item() == pytest.approx(exact.critic_loss(batch).item(), rel=0.01)
    assert fast.actor_loss(batch).item() == pytest.approx(exact.actor_loss(batch).item(), rel=0.02)
    assert fast.critic_loss(batch).dtype == torch.float32


# ---- what moves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["PointMass-v0", "PointMassPrivileged-v0"])
def test_each_update_moves_what_it_should(env_id: str) -> None:
    agent = make_agent(tiny(env_id=env_id, policy_frequency=2, sem=True))
    batch = make_batch(agent)
    before = snapshot(agent)
    agent.update(batch)
    assert changed(before, agent) == {"critic", "target"}
    for name, old in before.items():
        if name.startswith("target.") and "support" not in name:
            new = agent.modules.state_dict()[name.replace("target.", "critic.")]
            expected = old + agent.args.tau * (new - old)
            torch.testing.assert_close(agent.modules.state_dict()[name], expected, rtol=1e-6, atol=1e-7)
    before = snapshot(agent)
    agent.update(batch)
    assert changed(before, agent) == {"critic", "target", "actor"}
    before = snapshot(agent)
    agent.act(batch["obs"])
    agent.explore(batch["obs"][:4])
    agent.report(batch)
    assert changed(before, agent) == set()


def test_losses_leave_no_gradient_in_other_networks() -> None:
    agent = make_agent(tiny(policy_frequency=1))
    agent.update(make_batch(agent))
    assert all(p.grad is None for p in agent.target.parameters())
    critic_grads = [p.grad.clone() for p in agent.critic.parameters()]
    agent._descend(1, agent.actor_loss(agent.prepare(make_batch(agent))), agent.actor, agent.actor_optimizer)
    assert all(torch.equal(p.grad, g) for p, g in zip(agent.critic.parameters(), critic_grads, strict=True))


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_policy_delay_counts_updates(frequency: int) -> None:
    agent = make_agent(tiny(policy_frequency=frequency))
    batch, moved = make_batch(agent), []
    for _ in range(6):
        before = snapshot(agent)
        agent.update(batch)
        moved.append("actor" in changed(before, agent))
    assert moved == [(i + 1) % frequency == 0 for i in range(6)]


def test_actor_climbs_the_critic() -> None:
    """With a critic held still, actor updates alone raise the value of the actor's actions."""
    agent = make_agent(tiny(actor_lr=3e-3))
    with torch.no_grad():
        agent.critic.head.weight.mul_(10)
    batch = make_batch(agent, 256)
    first = agent.actor_loss(batch).item()
    for _ in range(50):
        agent._descend(1, agent.actor_loss(batch), agent.actor, agent.actor_optimizer)
    assert agent.actor_loss(batch).item() < first - 0.05


def test_noise_scale_is_redrawn_only_where_an_episode_ended() -> None:
    env = envs.make("Scripted-v0", 4, 0)
    torch.manual_seed(0)
    agent = FastTD3(tiny(env_id="Scripted-v0", std_min=0.1, std_max=0.4), env)
    env.reset()
    for _ in range(30):
        before = agent.noise_scale.clone()
        step = env.step(torch.zeros(4, 1))
        agent.observe(step)
        done = step.terminated | step.truncated
        assert torch.equal((agent.noise_scale != before)[:, 0], done)
        assert agent.noise_scale.min() >= 0.1 and agent.noise_scale.max() <= 0.4


def test_exploration_has_the_deviation_of_each_environment() -> None:
    agent = make_agent(tiny(num_envs=4, std_min=0.01, std_max=0.2))
    obs = torch.zeros(4, 6)
    noise = torch.stack([agent.explore(obs) - agent.act(obs) for _ in range(2000)])
    torch.testing.assert_close(noise.std((0, 2)), agent.noise_scale[:, 0], rtol=0.1, atol=0)
    assert agent.explore(obs).abs().max() <= 1


def test_cosine_schedule() -> None:
    agent = make_agent(tiny(critic_lr=1e-3, critic_lr_end=1e-4))
    for progress, rate in ((0.0, 1e-3), (0.5, 5.5e-4), (1.0, 1e-4)):
        agent.anneal(progress)
        assert float(agent.critic_optimizer.param_groups[0]["lr"]) == pytest.approx(rate)


def test_rejects_what_it_cannot_learn() -> None:
    for task in ("ClosedFormDiscrete-v0", "Pixels-v0"):
        with pytest.raises(ValueError, match="needs continuous actions"):
            FastTD3(tiny(env_id=task), envs.make(task, 2, 0))


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sem", [True, False])
def test_state_round_trip(sem: bool, tmp_path: Path) -> None:
    agent, other = make_agent(tiny(sem=sem), seed=0), make_agent(tiny(sem=sem), seed=1)
    batch = make_batch(agent)
    agent.learn_norms(batch["obs"], batch["critic_obs"])
    agent.update(batch)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    other.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    assert torch.equal(agent.act(batch["obs"]), other.act(batch["obs"]))
    for one in (agent, other):  # the optimisers' state came along: the next update is the same too
        torch.manual_seed(3)
        one.update(batch)
        one.update(batch)
    assert torch.equal(agent.act(batch["obs"]), other.act(batch["obs"]))


@pytest.mark.parametrize("changes", [{"sem": True}, {"env_id": "PointMassPrivileged-v0"}, {"critic_hidden": (16, 8)}])
def test_checkpoint_of_another_architecture_is_named(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"the checkpoint does not fit: .* there and .* here"):
        make_agent(tiny(**changes)).load_state_dict(make_agent(tiny()).state_dict())


# ---- the program -----------------------------------------------------------------------------------------------------


def flags(**values) -> list[str]:
    out = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            out += [f"--{'' if value else 'no-'}{flag}"]
        else:
            out += [f"--{flag}", *([str(x) for x in value] if isinstance(value, tuple) else [str(value)])]
    return out


def run_main(root: Path, **changes) -> Path:
    """Train in this process; returns the run directory."""
    root.mkdir(exist_ok=True)
    before = set(root.iterdir())
    assert fasttd3.main([*flags(**{**TINY, **changes}), "--run-root", str(root), "--quiet"]) == 0
    (made,) = set(root.iterdir()) - before
    return made


def final_state(run_dir: Path) -> dict:
    checkpoint, _ = newest_checkpoint(run_dir)
    return {name: checkpoint.load(name) for name in ("agent", "loop", "replay") if checkpoint.has(name)}


def metric_rows(run_dir: Path, but: tuple[str, ...] = ("time/", "charts/SPS")) -> list[tuple[str, ...]]:
    """Rows of metrics.csv without what depends on the clock."""
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [(r["metric"], r["step"], r["value"]) for r in rows if not r["metric"].startswith(but)]


def assert_same(a, b, where: str = "") -> None:
    """Bit for bit, in nested dicts and lists."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()), where
    else:
        assert a == b or a != a, where


def test_a_run_leaves_what_it_promises(tmp_path: Path) -> None:
    run_dir = run_main(tmp_path, sem=True)
    assert json.loads((run_dir / "status.json").read_text())["state"] == "done"
    saved = json.loads((run_dir / "config.json").read_text())
    assert saved["sem_actor"] is True and saved["amp"] == "off" and saved["device"] == "cpu"
    tags = {metric for metric, _, _ in metric_rows(run_dir, but=())}
    assert {
        *("charts/episodic_return", "charts/episodic_length", "charts/SPS", "losses/qf_loss", "losses/actor_loss"),
        *("eval/episodic_return", "time/env", "time/learn", "time/other", "sem/actor_entropy", "sem/critic_entropy"),
        "health/nonfinite_transitions",
    } <= tags
    assert len(list((run_dir / "checkpoints").iterdir())) == 2
    assert [int(step) for metric, step, _ in metric_rows(run_dir) if metric == "eval/episodic_return"] == [200, 400]


def test_same_seed_same_run_another_seed_another_run(tmp_path: Path) -> None:
    one, two, other = (run_main(tmp_path / str(i), sem=True, seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert metric_rows(one) == metric_rows(two)
    assert_same(final_state(one), final_state(two))
    assert metric_rows(one) != metric_rows(other)


def test_training_is_the_same_with_evaluation_logging_and_saving_off(tmp_path: Path) -> None:
    plain = final_state(run_main(tmp_path / "plain", log_every=0, eval_every=0, save_every=0))
    watched = final_state(run_main(tmp_path / "watched", log_every=4, eval_every=8, save_every=12))
    for state in (plain, watched):  # what a report has read and reset is not training
        for name in ("loss_sum", "loss_count"):
            state["agent"].pop(name)
        state["loop"]["stats"].pop("interval")
    assert_same(plain, watched)


BOOLS = [f.name for f in fields(Args) if "bool" in str(f.type) and f.name not in ("quiet", "compile")]


@pytest.mark.parametrize("name", BOOLS)
def test_every_switch_both_ways(name: str, tmp_path: Path) -> None:
    for value in (True, False):
        run_dir = run_main(tmp_path, env_id="PointMassPrivileged-v0", total_timesteps=120, **{name: value})
        assert json.loads((run_dir / "config.json").read_text())[name] is value
        assert all(torch.isfinite(x).all() for x in final_state(run_dir)["agent"]["modules"].values())


EDGES = [
    {"num_envs": 1, "batch_size": 1, "buffer_size": 2, "n_step": 1},
    {"n_step": 5, "policy_frequency": 1, "num_updates": 1},
    {"num_updates": 5, "policy_frequency": 3, "max_grad_norm": 0.1},
    {"replay_dtype": "bfloat16", "amp": "bfloat16"},
    {"learning_starts": 0, "gamma": 0.0, "tau": 1.0},
    {"total_timesteps": 1},
    {"std_min": 0.0, "std_max": 0.0, "policy_noise": 0.0},
    {"size": "small", "atoms": 2, "sem": True, "sem_temperature": 0.1},
]


@pytest.mark.parametrize("changes", EDGES, ids=[",".join(c) for c in EDGES])
def test_edge_values(changes: dict, tmp_path: Path) -> None:
    run_dir = run_main(tmp_path, **{"total_timesteps": 120, **changes})
    assert all(torch.isfinite(x).all() for x in final_state(run_dir)["agent"]["modules"].values())


BAD = [
    (["--env-id", "PointMas-v0"], "PointMass-v0"),
    (["--env-id", "ClosedFormDiscrete-v0"], "needs continuous actions"),
    (["--bach-size", "3"], "--batch-size"),
    (["--batch-size", "many"], "--batch-size many: expected an integer"),
    (["--batch-size", "0"], "--batch-size 0: must be above 0"),
    (["--gamma", "1.5"], "--gamma 1.5"),
    (["--std-min", "0.5", "--std-max", "0.1"], "--std-min 0.5"),
    (["--v-min", "5", "--v-max", "-5"], "v_min < v_max"),
    (["--device", "cuda:77"], "CUDA"),
    (["--device", "tpu"], "--device tpu"),
    (["--sem", "--sem-actor-vertices", "1"], "vertices >= 2"),
    (["--resume", "nowhere"], "nowhere"),
    (["--num-envs", "-1"], "--num-envs -1"),
    (["--buffer-size", "10000000000000"], "--buffer-size"),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(words: list[str], message: str, tmp_path: Path, capsys) -> None:
    root = tmp_path / "runs"
    with pytest.raises(SystemExit) as stop:
        fasttd3.main([*flags(**TINY), "--run-root", str(root), *words])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert not root.exists() or not list(root.iterdir())


def test_a_nan_of_the_simulator_is_quarantined(tmp_path: Path, monkeypatch) -> None:
    make = envs.make

    def make_with_nan(task, *args, **options):
        return make(task, *args, **options, nan_at=(1, 2, 1))

    monkeypatch.setattr(envs, "make", make_with_nan)
    run_dir = run_main(tmp_path, env_id="Scripted-v0", v_max=1e5, eval_every=0, total_timesteps=400)
    state = final_state(run_dir)
    tensors = {**state["replay"]["ring"], **state["replay"]["finals"], **state["agent"]["modules"]}
    assert all(torch.isfinite(x).all() for x in tensors.values() if x.is_floating_point())
    spoilt = sum(float(value) for metric, _, value in metric_rows(run_dir) if metric == "health/nonfinite_transitions")
    assert spoilt == 1


# ---- as a process ----------------------------------------------------------------------------------------------------


def start(*words: str, **changes) -> subprocess.Popen:
    command = [sys.executable, "agents/fasttd3.py", *flags(**{**TINY, **changes}), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process: subprocess.Popen, root: Path, at_least: int = 1) -> Path:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        found = sorted(root.glob("*/checkpoints/step_*"))
        if len(found) >= at_least:
            return found[0].parents[1]
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint: {process.communicate()}")


LONG = {"total_timesteps": 6_000, "save_every": 400, "eval_every": 1_000, "log_every": 200, "sem": True, "n_step": 3}


def resume(run_dir: Path, *words: str) -> int:
    return fasttd3.main(["--resume", str(run_dir), "--quiet", *words])


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    """kill -9 at an arbitrary moment, then --resume: every tensor, random stream and metric is as if nothing was."""
    whole = run_main(tmp_path / "whole", **LONG)
    process = start("--run-root", str(tmp_path / "killed"), "--quiet", **LONG)
    run_dir = wait_for_checkpoint(process, tmp_path / "killed", 2)
    process.kill()
    process.communicate()
    assert json.loads((run_dir / "status.json").read_text())["step"] < LONG["total_timesteps"]
    assert resume(run_dir) == 0
    assert_same(final_state(whole), final_state(run_dir))
    assert metric_rows(whole) == metric_rows(run_dir)


def test_resume_falls_back_from_a_corrupt_checkpoint(tmp_path: Path, capsys) -> None:
    constant = {"critic_lr_end": 1e-3, "actor_lr_end": 1e-3}  # the schedule goes by total_timesteps
    whole = run_main(tmp_path / "whole", total_timesteps=800, **constant)
    part = run_main(tmp_path / "part", total_timesteps=600, **constant)  # checkpoints at 400 and 600
    newest, _ = newest_checkpoint(part)
    with open(newest.path / "agent.pt", "r+b") as file:
        file.seek(1000)
        file.write(b"\0garbage")
    capsys.readouterr()
    assert resume(part, "--total-timesteps", "800") == 0
    assert "step_000000000600" in capsys.readouterr().err
    assert_same(final_state(part), final_state(whole))


def test_resume_refuses_other_settings(tmp_path: Path, capsys) -> None:
    run_dir = run_main(tmp_path)
    for words in (["--gamma", "0.5"], ["--sem"], []):
        with pytest.raises(SystemExit) as stop:
            resume(run_dir, *words)
        assert stop.value.code == 2
    assert capsys.readouterr().err.count("error:") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_exits_with_75(number: int, tmp_path: Path) -> None:
    process = start("--run-root", str(tmp_path), **{**LONG, "total_timesteps": 10_000_000})
    run_dir = wait_for_checkpoint(process, tmp_path)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    status = json.loads((run_dir / "status.json").read_text())
    assert status["state"] == "interrupted" and status["why"] == signal.Signals(number).name
    checkpoint, _ = newest_checkpoint(run_dir)
    assert checkpoint.step == status["step"]
    assert "run directory" in out


def test_resume_on_an_engine_without_snapshots(tmp_path: Path) -> None:
    """EnvPool cannot restore a simulator: learner and replay continue exactly, environments begin new episodes."""
    changes = {"env_id": "InvertedPendulum-v5", "eval_every": 0, "v_max": 100.0}
    run_dir = run_main(tmp_path, total_timesteps=200, **changes)
    before = final_state(run_dir)
    assert resume(run_dir, "--total-timesteps", "400") == 0
    after = final_state(run_dir)
    assert after["agent"]["updates"] == before["agent"]["updates"] + 2 * 200 // 4
    filled = before["replay"]["step"]
    assert after["replay"]["step"] == filled + 200 // 4 + 1  # one slot is the seam
    assert torch.equal(
        after["replay"]["ring"]["action"][: filled * 4], before["replay"]["ring"]["action"][: filled * 4]
    )


# ---- learning --------------------------------------------------------------------------------------------------------


LEARNING = {
    "device": "cpu",
    "size": "small",
    "num_envs": 8,
    "eval_envs": 16,
    "learning_starts": 400,
    "log_every": 0,
    "save_every": 0,
    "save_replay": False,
    "batch_size": 256,
    "num_updates": 2,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "sem_actor_groups": 2,
    "sem_actor_vertices": 32,
    "sem_critic_groups": 16,  # few groups collapse in so small a critic
    "sem_critic_vertices": 4,
    "amp": "off",
    "threads": 1,
    "v_min": 0.0,
    "reward_norm": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_learns_the_point_mass(sem: bool, tmp_path: Path) -> None:
    """Random forces earn 20 in the 100 steps of an episode, a wrong sign less than 10, a sensible policy 85."""
    changes = {**LEARNING, "env_id": "PointMass-v0", "total_timesteps": 12_000, "v_max": 60.0, "atoms": 61, "sem": sem}
    changes |= {"eval_every": 12_000, "gamma": 0.97}
    run_dir = run_main(tmp_path, **changes)
    score = [float(value) for metric, _, value in metric_rows(run_dir) if metric == "eval/episodic_return"]
    assert score[-1] > 60


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_reaches_the_optimal_value_in_closed_form(sem: bool, tmp_path: Path) -> None:
    """The critics' values of the policy are within 2% of the range of Q* from V*, on the average over visited states.

    Both wrong bootstraps are further off: value after a termination by 9%, none after a time-out by 3%.
    """
    gamma = 0.7
    args = {**LEARNING, "env_id": "ClosedForm-v0", "gamma": gamma, "n_step": 1, "sem": sem, "v_min": -3.0, "v_max": 4.0}
    # Many frames for few updates: with rare random terminations a small replay would be learnt by heart.
    args |= {"num_envs": 256, "buffer_size": 10**6, "total_timesteps": 200_000, "learning_starts": 10_000}
    # And large batches: of the few samples near a state, one in twenty terminates.
    args |= {"batch_size": 1024, "num_updates": 4, "tau": 0.05, "policy_noise": 0.0, "obs_norm": False, "eval_every": 0}
    args |= {"std_min": 0.3, "std_max": 1.0, "critic_lr_end": 1e-5, "actor_lr_end": 1e-5, "clipped_double_q": False}
    args |= {"critic_hidden": (128, 64 if sem else 128), "atoms": 29}
    run_dir = run_main(tmp_path, **args)
    agent = make_agent(replace(Args(), **args))
    agent.load_state_dict(final_state(run_dir)["agent"])
    axis = torch.linspace(-1, 1, 41)
    grid = torch.cartesian_prod(axis, axis)
    everywhere = optimal_q(grid[:, :1], grid[:, 1:], gamma)
    spread = everywhere.max() - everywhere.min()
    env = envs.make("ClosedForm-v0", 256, seed=7)
    seen = [env.reset()[0]]
    for _ in range(25):
        seen.append(env.step(agent.act(seen[-1])).obs)
    x = torch.cat(seen)
    with torch.no_grad():
        action = agent.act(x)
        value = agent.critic.value(agent.critic(x, action)).mean(0)
    best = optimal_value(x, gamma)
    assert (value - best).abs().mean() < 0.02 * spread
    assert (best - optimal_q(x, action, gamma)).mean() < 0.01 * spread  # and the policy is as good


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_updates_equal_eager_ones() -> None:
    agents = [make_agent(tiny(sem=True, compile=compiled, policy_noise=0.0)) for compiled in (False, True)]
    for step in range(3):
        for agent in agents:
            agent.update(make_batch(agent, 64, seed=step))
    eager, compiled = (agent.modules.state_dict() for agent in agents)
    for name, x in eager.items():
        torch.testing.assert_close(compiled[name], x, rtol=1e-3, atol=1e-4, msg=name)
