"""FastSAC: its losses against independent computations, what each update moves, and whether it learns.

What it shares with the other agents, the program as users run it for instance, is in test_agents.py.
"""

import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from tensordict import TensorDict

import envs
from agents import fastsac
from agents.fastsac import Args, FastSAC
from agents.run import Run
from envs.torch import optimal_q, optimal_value
from networks.diagnostics import PROBE

TINY = {
    "env_id": "PointMass-v0",
    "num_envs": 4,
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
}
KINDS = {
    "C51": {},
    "C51-clipped": {"clipped_double_q": True},
    "scalar": {"distributional": False},
    "scalar-clipped": {"distributional": False, "clipped_double_q": True},
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def tiny(**changes) -> Args:
    return replace(Args(), **{**TINY, **changes})


def make_agent(args: Args, seed: int = 0) -> FastSAC:
    """An agent whose policy depends on what it sees, and whose critics differ."""
    torch.manual_seed(seed)
    agent = FastSAC(args, envs.make(args.env_id, args.num_envs, seed))
    with torch.no_grad():
        torch.nn.init.normal_(agent.actor.head.weight, std=0.5)
        for critic in (agent.critic, agent.target):  # far enough apart that each of them is the lower one somewhere
            critic.head.weight.mul_(20)
    return agent


def make_batch(agent: FastSAC, size: int = 64, seed: int = 0) -> TensorDict:
    g = torch.Generator().manual_seed(seed)
    obs_dim = agent.actor.torso[0].in_features
    critic_dim = agent.critic.torso[0].weight.shape[1] - agent.action_dim
    shared = critic_dim == obs_dim
    obs, next_obs = (torch.randn(size, obs_dim, generator=g) for _ in range(2))
    batch = {
        "obs": obs,
        "critic_obs": obs if shared else torch.randn(size, critic_dim, generator=g),
        "action": torch.rand(size, agent.action_dim, generator=g) * 2 - 1,
        "reward": torch.rand(size, generator=g) * 30 - 15,  # many returns lie beyond the support
        "discount": torch.where(torch.rand(size, generator=g) < 0.3, 0.0, 0.9),
        "next_obs": next_obs,
        "next_critic_obs": next_obs if shared else torch.randn(size, critic_dim, generator=g),
    }
    return TensorDict(batch, [size])


def snapshot(agent: FastSAC) -> dict[str, torch.Tensor]:
    return {
        name: x.detach().clone() for name, x in {**agent.modules.state_dict(), "log_alpha": agent.log_alpha}.items()
    }


def changed(before: dict[str, torch.Tensor], agent: FastSAC) -> set[str]:
    """Names of the modules whose numbers differ from before."""
    after = snapshot(agent)
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# ---- losses ----------------------------------------------------------------------------------------------------------


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def log_density(agent: FastSAC, obs: torch.Tensor, action: torch.Tensor) -> np.ndarray:
    """That of tanh(x) with normal x: the density of x over the slope of tanh. [B]"""
    with torch.no_grad():
        policy = agent.actor(obs)
    mean, std = policy.mean.double().numpy(), policy.log_std.double().exp().numpy()
    a = action.double().numpy()
    assert np.abs(a).max() < 0.9999, "the inverse of tanh would not be exact"
    return (stats.norm.logpdf(np.arctanh(a), mean, std) - np.log(1 - a**2)).sum(-1)


def soft_c51_target(probs: np.ndarray, reward: float, discount: float, bonus: float, support: np.ndarray) -> np.ndarray:
    """The projection of the C51 paper, atom by atom, of returns that the entropy bonus has shifted before."""
    out = np.zeros_like(support)
    gap = support[1] - support[0]
    for p, z in zip(probs, support, strict=True):
        b = (min(max(reward + discount * (z + bonus), support[0]), support[-1]) - support[0]) / gap
        low, high = int(np.floor(b + 1e-9)), int(np.ceil(b - 1e-9))
        if low == high:
            out[low] += p
        else:
            out[low] += p * (high - b)
            out[high] += p * (b - low)
    return out


@every_kind
@pytest.mark.parametrize("sem", [True, False])
def test_critic_loss_equals_an_independent_computation(kind: dict, sem: bool) -> None:
    agent = make_agent(tiny(**kind, sem=sem, alpha_init=0.7, env_id="PointMassPrivileged-v0"))
    batch = make_batch(agent)
    seen = []
    agent.target.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    loss, log_prob = agent.critic_loss(batch)
    ((next_critic_obs, next_action, _),) = seen
    assert torch.equal(next_critic_obs, batch["next_critic_obs"])
    entropy = -log_density(agent, batch["next_obs"], next_action)
    np.testing.assert_allclose(-log_prob.numpy(), entropy, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        next_out = agent.target(next_critic_obs, next_action).double().numpy()
        out = agent.critic(batch["critic_obs"], batch["action"]).double().numpy()
    clipped, expected, chosen = agent.args.clipped_double_q, 0.0, set()
    for i in range(len(batch)):
        reward, discount, bonus = float(batch["reward"][i]), float(batch["discount"][i]), 0.7 * entropy[i]
        if agent.args.distributional:
            support = agent.critic.support.double().numpy()
            targets = [soft_c51_target(softmax(next_out[q, i]), reward, discount, bonus, support) for q in (0, 1)]
            lower = int(np.argmin([target @ support for target in targets]))
        else:
            targets = [reward + discount * (next_out[q, i] + bonus) for q in (0, 1)]
            lower = int(np.argmin(next_out[:, i]))
        chosen.add(lower)
        for q in (0, 1):
            target = targets[lower if clipped else q]
            if agent.args.distributional:
                expected -= (target * np.log(softmax(out[q, i]))).sum() / len(batch)
            else:
                expected += (out[q, i] - target) ** 2 / len(batch)
    assert chosen == {0, 1}
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@every_kind
@pytest.mark.parametrize("sem", [True, False])
def test_actor_loss_equals_an_independent_computation(kind: dict, sem: bool) -> None:
    agent = make_agent(tiny(**kind, sem=sem, alpha_init=0.7, env_id="PointMassPrivileged-v0"))
    batch = make_batch(agent)
    seen = []
    agent.critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    loss = agent.actor_loss(batch)
    critic_obs, action = (x.detach() for x in seen[0])
    assert torch.equal(critic_obs, batch["critic_obs"])
    with torch.no_grad():
        out = agent.critic(critic_obs, action).double().numpy()
    value = softmax(out) @ agent.critic.support.double().numpy() if agent.args.distributional else out
    assert {0, 1} == set(value.argmin(0))
    value = value.min(0) if agent.args.clipped_double_q else value.mean(0)
    expected = (0.7 * log_density(agent, batch["obs"], action) - value).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@every_kind
def test_actor_gradient_is_the_slope_of_its_loss(kind: dict) -> None:
    """Through the action and through its density: with the same noise, the loss rises that steeply along it."""
    agent = make_agent(tiny(**kind, alpha_init=0.7))
    batch = make_batch(agent)
    parameters = list(agent.actor.parameters())

    def loss() -> torch.Tensor:
        torch.manual_seed(1)
        return agent.actor_loss(batch)

    gradient = torch.autograd.grad(loss(), parameters)
    length = sum(g.square().sum() for g in gradient).sqrt()
    values = []
    with torch.no_grad():
        for move in (0.002, -0.004):  # there, and as far to the other side
            torch._foreach_add_(parameters, gradient, alpha=move / length.item())
            values.append(loss().item())
    assert (values[0] - values[1]) / 0.004 == pytest.approx(length.item(), rel=0.01)


def test_without_a_critic_the_policy_becomes_the_most_random_one() -> None:
    """Among tanh(s z) with normal z, that is s = 0.87: neither narrow nor so wide that all mass is at the ends."""
    agent = make_agent(tiny(log_std_max=2.0, actor_lr=0.02, actor_lr_end=0.0, alpha_init=1.0, distributional=False))
    with torch.no_grad():
        agent.critic.head.weight.zero_()
    batch = make_batch(agent, 512)
    for step in range(150):
        agent.anneal(step / 150)
        agent._descend("actor_loss", *agent.actor_gradient(batch), agent.actor_flat, agent.actor_optimizer)
    z, weight = np.polynomial.hermite_e.hermegauss(101)
    spread = np.linspace(0.5, 1.5, 1001)
    x = spread[:, None] * z
    log_slope = -2 * np.log(np.cosh(x))  # of tanh
    entropy = np.log(spread) + log_slope @ weight / weight.sum()  # but for a constant
    with torch.no_grad():
        policy = agent.actor(batch["obs"])
    assert policy.log_std.exp().mean().item() == pytest.approx(spread[entropy.argmax()], abs=0.03)
    assert policy.mean.abs().mean() < 0.05


def test_entropy_bonus_and_discount_are_not_rounded_to_bfloat16() -> None:
    exact, rounded = (make_agent(tiny(amp=amp, alpha_init=1.0)) for amp in ("off", "bfloat16"))
    batch = make_batch(exact)
    batch["reward"].zero_()
    batch["discount"].fill_(0.99)
    for agent in (exact, rounded):
        with torch.no_grad():  # all mass on the atom 10, whatever the input
            agent.target.head.weight.zero_()
            agent.target.head.bias.zero_()[..., 5] = 50.0
        action, log_prob = agent.next_action(batch)
        target = agent.soft_target(batch, action, log_prob)
        mean = target @ agent.critic.support
        assert log_prob.dtype == torch.float32 and log_prob.abs().max() > 1
        torch.testing.assert_close(mean, (0.99 * (10.0 - log_prob)).expand_as(mean), rtol=1e-5, atol=0)


@every_kind
def test_bfloat16_losses_are_close_to_float32(kind: dict) -> None:
    losses = []
    for amp in ("off", "bfloat16"):
        agent = make_agent(tiny(**kind, amp=amp, sem=True))
        with torch.no_grad():
            for critic in (agent.critic, agent.target):
                critic.head.weight.div_(20)
        batch = make_batch(agent)
        torch.manual_seed(1)
        critic_loss, log_prob = agent.critic_loss(batch)
        losses.append((critic_loss, agent.actor_loss(batch)))
        assert {critic_loss.dtype, log_prob.dtype, losses[-1][1].dtype} == {torch.float32}
    (critic, actor), (fast_critic, fast_actor) = losses
    assert fast_critic.item() == pytest.approx(critic.item(), rel=0.02)
    assert fast_actor.item() == pytest.approx(actor.item(), rel=0.02, abs=0.005)
    assert fast_critic.item() != critic.item()


# ---- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 1.0])
def test_temperature_gradient_is_entropy_above_target(ratio: float) -> None:
    """Times the temperature itself, which is what its logarithm is differentiated by."""
    agent = make_agent(tiny(alpha_init=0.3, target_entropy_ratio=ratio))
    log_prob = torch.tensor([0.5, -1.0, 4.0])
    assert agent.target_entropy == -ratio * 2
    agent.alpha_loss(log_prob).backward()
    entropy = -(0.5 - 1.0 + 4.0) / 3
    assert agent.log_alpha.grad.item() == pytest.approx(0.3 * (entropy - agent.target_entropy), rel=1e-6)


@pytest.mark.parametrize(("log_std", "direction"), [(-3.0, 1), (-0.2, -1)])
def test_temperature_rises_while_the_entropy_is_below_its_target(log_std: float, direction: int) -> None:
    """By the learning rate, as the first step of Adam does, and no weight decay pulls it."""
    agent = make_agent(tiny(alpha_init=0.3, alpha_lr=1e-3, weight_decay=10.0, log_std_min=-6.0, log_std_max=0.0))
    with torch.no_grad():
        agent.actor.head.weight.zero_()
        agent.actor.head.bias[2:] = math.atanh(log_std / 3 + 1)
    before = agent.log_alpha.item()
    agent.update(make_batch(agent, 512))
    entropy = agent.report(make_batch(agent))["losses/entropy"]
    assert (entropy < 0) == (direction > 0)
    assert agent.log_alpha.item() - before == pytest.approx(direction * 1e-3, rel=1e-2)


def test_temperature_stays_without_autotune() -> None:
    agent = make_agent(tiny(alpha_init=0.3, autotune=False))
    for step in range(8):
        agent.update(make_batch(agent, seed=step))
    assert agent.log_alpha.item() == pytest.approx(math.log(0.3)) and agent.alpha_optimizer.count == 0
    assert agent.report(make_batch(agent))["losses/alpha"].item() == pytest.approx(0.3)


def test_temperature_takes_the_entropy_to_its_target() -> None:
    """To -1, in a problem where the temperature of the start would leave it at -6."""
    changes = {"target_entropy_ratio": 0.5, "alpha_init": 0.01, "alpha_lr": 0.05, "actor_lr": 0.01, "critic_lr": 0.0}
    agent = make_agent(tiny(**changes, policy_frequency=1))
    batch = make_batch(agent)
    batch["next_obs"] = batch["obs"]
    entropy = []
    for updates in (20, 50, 80):
        for _ in range(updates):
            agent.update(batch)
        entropy.append(agent.report(batch)["losses/entropy"].item())
    assert entropy[0] < -3
    assert entropy[2] == pytest.approx(-1, abs=0.3)


# ---- what moves ------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("env_id", ["PointMass-v0", "PointMassPrivileged-v0"])
def test_each_update_moves_what_it_should(kind: dict, env_id: str) -> None:
    agent = make_agent(tiny(**kind, env_id=env_id, policy_frequency=2, sem=True))
    batch = make_batch(agent)
    before = snapshot(agent)
    agent.update(batch)
    assert changed(before, agent) == {"critic", "target", "log_alpha"}
    after = snapshot(agent)
    for name, old in before.items():
        if name.startswith("target.") and "support" not in name:
            expected = old + agent.args.tau * (after[name.replace("target.", "critic.")] - old)
            torch.testing.assert_close(after[name], expected, rtol=1e-6, atol=1e-7)
    before = snapshot(agent)
    agent.update(batch)
    assert changed(before, agent) == {"critic", "target", "log_alpha", "actor"}
    before = snapshot(agent)
    agent.act(batch["obs"])
    agent.explore(batch["obs"])
    agent.report(batch)
    assert changed(before, agent) == set()


@every_kind
def test_losses_leave_no_gradient_in_other_networks(kind: dict) -> None:
    agent = make_agent(tiny(**kind, policy_frequency=1))
    agent.update(make_batch(agent))
    parts = {
        "critic": agent.critic_flat,
        "actor": agent.actor_flat,
        "alpha": agent.alpha_flat,
        "target": agent.target_flat,
    }
    assert agent.target_flat.vector.grad is None
    batch = agent.prepare(make_batch(agent, seed=1))
    _, log_prob = agent.critic_loss(batch)
    assert not log_prob.requires_grad
    steps = {
        "critic": ("qf_loss", lambda: agent.critic_gradient(batch)[:2], agent.critic_optimizer),
        "actor": ("actor_loss", lambda: agent.actor_gradient(batch), agent.actor_optimizer),
        "alpha": ("alpha_loss", lambda: agent.alpha_gradient(log_prob), agent.alpha_optimizer),
    }
    for own, (name, found, optimizer) in steps.items():
        before = {part: (flat.vector.detach().clone(), flat.vector.grad) for part, flat in parts.items()}
        agent._descend(name, *found(), parts[own], optimizer)
        for part, flat in parts.items():
            vector, grad = before[part]
            if part != own:
                assert flat.vector.grad is grad, f"{name} left a gradient in {part}"
            assert torch.equal(flat.vector, vector) == (part != own), f"{name} moved {part}, or not its own"
        assert all(p.grad is None for p in (*agent.modules.parameters(), agent.log_alpha))


@pytest.mark.parametrize("frequency", [1, 2, 3])
def test_policy_delay_counts_updates(frequency: int) -> None:
    agent = make_agent(tiny(policy_frequency=frequency))
    batch, moved = make_batch(agent), []
    for _ in range(6):
        before = snapshot(agent)
        agent.update(batch)
        moved.append("actor" in changed(before, agent))
    assert moved == [(i + 1) % frequency == 0 for i in range(6)]


def test_report_has_the_means_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(tiny(policy_frequency=2))
    batch, seen = make_batch(agent), []
    critic_loss = agent.critic_loss

    def recorded(batch: TensorDict) -> tuple[torch.Tensor, torch.Tensor]:
        loss, log_prob = critic_loss(batch)
        seen.append((loss.item(), -log_prob.mean().item()))
        return loss, log_prob

    monkeypatch.setattr(agent, "critic_loss", recorded)
    for count in (3, 4):
        seen.clear()
        for _ in range(count):
            agent.update(batch)
        expected = np.mean(seen, 0)  # before the report, which looks at losses of its own
        report = agent.report(batch)
        assert report["losses/qf_loss"].item() == pytest.approx(expected[0], rel=1e-5)
        assert report["losses/entropy"].item() == pytest.approx(expected[1], rel=1e-5)
        assert report["losses/alpha"].item() == pytest.approx(agent.log_alpha.exp().item())


# ---- acting ----------------------------------------------------------------------------------------------------------


def test_exploration_follows_the_distribution_of_the_policy() -> None:
    agent = make_agent(tiny(num_envs=4))
    g = torch.Generator().manual_seed(5)
    obs = torch.randn(4, 6, generator=g)
    agent.learn_norms(torch.randn(100, 6, generator=g) * 3 + 1, torch.empty(0))
    with torch.no_grad():
        policy = agent.actor(agent.obs_norm(obs))
    assert torch.equal(agent.act(obs), torch.tanh(policy.mean))
    assert policy.mean.std() > 0.1 and policy.log_std.std() > 0.1  # rows that could be mixed up
    actions = torch.stack([agent.explore(obs) for _ in range(2000)])
    z = (torch.atanh(actions.double()) - policy.mean) / policy.log_std.exp()
    for env in range(4):
        for i in range(2):
            assert stats.kstest(z[:, env, i].numpy(), "norm").pvalue > 1e-4
    together = np.corrcoef(z.flatten(1).numpy().T)
    assert np.abs(together - np.eye(8)).max() < 0.1  # a draw of its own for each number
    assert actions.abs().max() <= 1


def test_uniform_exploration_is_uniform() -> None:
    agent = make_agent(tiny(num_envs=4))
    actions = torch.stack([agent.explore_uniformly() for _ in range(1000)])
    assert actions.shape == (1000, 4, 2)
    assert stats.kstest(actions.flatten().numpy(), stats.uniform(-1, 2).cdf).pvalue > 1e-4


@every_kind
def test_a_report_probes_a_thousand_transitions_and_draws_nothing(kind: dict) -> None:
    agent = make_agent(tiny(sem=True, **kind))
    batch = make_batch(agent, 1_100)
    state = torch.get_rng_state()
    report = agent.report(batch)
    assert torch.equal(torch.get_rng_state(), state)
    spoilt = batch.clone()
    for name in ("obs", "critic_obs", "reward", "next_obs"):
        spoilt[name][PROBE:] = torch.nan
    again = agent.report(spoilt)
    for tag, value in report.items():
        assert torch.equal(again[tag], value) and value.isfinite().all(), tag
    assert report["repr/critic_cosine_agreement"].item() == pytest.approx(1)
    assert report["sem/critic_vertex_agreement"].item() == 1


def gradients(loss: torch.Tensor, parameters: list) -> np.ndarray:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double().numpy()


@pytest.mark.parametrize("max_grad_norm", [0.0, 1e-3])
def test_a_report_says_how_large_and_noisy_gradients_are_and_what_a_step_changes(max_grad_norm: float) -> None:
    """Four parts of 16 samples, and a step of the actor that another agent really takes."""
    args = tiny(sem=True, max_grad_norm=max_grad_norm)
    agent, other = make_agent(args), make_agent(args, seed=1)
    agent.update(make_batch(agent, seed=1))
    agent.update(make_batch(agent, seed=2))
    other.load_state_dict(agent.state_dict())
    batch = make_batch(agent, 66)  # two too many for four equal parts
    torch.manual_seed(5)
    report = agent.report(batch)
    torch.manual_seed(5)
    parts = other.prepare(batch)[:64].split(16)
    rows = {
        "critic": [gradients(other.critic_loss(part)[0], other.critic_flat.parameters) for part in parts],
        "actor": [gradients(other.actor_loss(part), other.actor_flat.parameters) for part in parts],
    }
    for name, found in rows.items():
        mean, variance = np.mean(found, 0), 16 * np.trace(np.atleast_2d(np.cov(found, rowvar=False)))
        assert report[f"gradient/{name}_norm"].item() == pytest.approx(np.linalg.norm(mean), rel=1e-4)
        assert report[f"gradient/{name}_variance"].item() == pytest.approx(variance, rel=1e-3)
        scale = variance / np.linalg.norm(mean) ** 2
        assert report[f"gradient/{name}_noise_scale"].item() == pytest.approx(scale, rel=1e-3)
    before = other.act(batch["obs"])
    other.actor_flat.vector.grad = torch.tensor(np.mean(rows["actor"], 0)).float()
    if max_grad_norm:
        other.actor_flat.clip(max_grad_norm)
    other.actor_optimizer.step()
    changed = (other.act(batch["obs"]) - before).abs().mean()
    assert 0 < changed.item() == pytest.approx(report["policy/churn"].item(), rel=1e-3)
    assert not torch.equal(agent.actor_flat.vector, other.actor_flat.vector)


def test_cosine_schedule() -> None:
    agent = make_agent(tiny(critic_lr=1e-3, critic_lr_end=1e-4, actor_lr=2e-3, actor_lr_end=4e-3, alpha_lr=5e-3))
    for progress, share in ((0.0, 1.0), (0.25, 0.5 + 0.125**0.5), (0.5, 0.5), (1.0, 0.0)):  # cos(pi / 4) is 0.5^0.5
        agent.anneal(progress)
        optimizers = (agent.critic_optimizer, agent.actor_optimizer, agent.alpha_optimizer)
        rates = [float(optimizer.lr) for optimizer in optimizers]
        assert rates == pytest.approx([1e-4 + 9e-4 * share, 4e-3 - 2e-3 * share, 5e-3])


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_temperature_and_its_optimizer_are_saved(tmp_path: Path) -> None:
    agent, other = (make_agent(tiny(alpha_lr=0.01, policy_frequency=1), seed) for seed in (0, 1))
    for step in range(3):
        agent.update(make_batch(agent, seed=step))
    learned, parameter = agent.log_alpha.item(), other.log_alpha
    assert abs(learned - parameter.item()) > 0.01
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    other.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    assert other.log_alpha is parameter and parameter.requires_grad  # the one that its optimiser holds
    assert parameter.item() == learned
    moments = [one.alpha_optimizer.state_dict() for one in (agent, other)]
    assert moments[0].keys() == moments[1].keys() and all(torch.equal(moments[0][k], moments[1][k]) for k in moments[0])


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


def train(root: Path, **changes) -> tuple[FastSAC, dict[str, float]]:
    """The agent after a run with its presets and these changes, and the last evaluation."""
    asked = replace(Args(), **changes)
    preset = {name: value for _, overrides in fastsac.presets(asked) for name, value in overrides.items()}
    args = fastsac.resolve(replace(asked, **{**preset, **changes}))
    built = fastsac.build(args)
    with Run.create(args, root=root, quiet=True) as run:
        score = fastsac.train(run, *built)
        run.finish()
    return built[0], score


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_learns_the_point_mass(sem: bool, tmp_path: Path) -> None:
    """Random forces earn 20 in the 100 steps of an episode, a wrong sign less than 10, a sensible policy 85."""
    changes = {**LEARNING, "env_id": "PointMass-v0", "total_timesteps": 12_000, "v_max": 60.0, "atoms": 61, "sem": sem}
    _, score = train(tmp_path, **changes, eval_every=12_000, gamma=0.97)
    assert score["episodic_return"] > 60


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_reaches_the_optimal_value_in_closed_form(sem: bool, tmp_path: Path) -> None:
    """The critics' values of the policy are within 2% of the range of Q* from V*, on the average over visited states.

    The temperature is so low that the soft value is the plain one. Both wrong bootstraps are further off: value after a
    termination by 9%, none after a time-out by 3%.
    """
    gamma = 0.7
    args = {**LEARNING, "env_id": "ClosedForm-v0", "gamma": gamma, "n_step": 1, "sem": sem, "v_min": -3.0, "v_max": 4.0}
    args |= {"autotune": False, "alpha_init": 1e-6}
    # Many frames for few updates: with rare random terminations a small replay would be learnt by heart.
    args |= {"num_envs": 256, "buffer_size": 10**6, "total_timesteps": 128_000, "learning_starts": 10_000}
    # And large batches: of the few samples near a state, one in twenty terminates.
    args |= {"batch_size": 1024, "num_updates": 4, "tau": 0.05, "obs_norm": False, "eval_every": 0}
    args |= {"critic_lr_end": 1e-5, "actor_lr_end": 1e-5}
    args |= {"critic_hidden": (128, 64 if sem else 128), "atoms": 29}
    agent, _ = train(tmp_path, **args)
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
        value = agent.values(agent.critic(x, action)).mean(0)
    best = optimal_value(x, gamma)
    assert (value - best).abs().mean() < 0.02 * spread
    assert (best - optimal_q(x, action, gamma)).mean() < 0.01 * spread  # and the policy is as good


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_updates_equal_eager_ones() -> None:
    agents = [make_agent(tiny(sem=True, compile=compiled)) for compiled in (False, True)]
    assert agents[1].compiled is not None
    check = partial(agents[1].gradient, make_batch(agents[1], 64, seed=9))
    said = agents[1].compiled.verify(1e-4, check, "critic_gradient", "actor_gradient")
    assert said.startswith("compiled in ")
    for agent in agents:
        for step in range(4):
            torch.manual_seed(step)
            agent.update(make_batch(agent, 64, seed=step))
    eager, compiled = (snapshot(agent) for agent in agents)
    for name, x in eager.items():
        torch.testing.assert_close(compiled[name], x, rtol=1e-3, atol=1e-4, msg=name)
