"""FastTD3: its losses against independent computations, what each update moves, and whether it learns.

What it shares with the other agents, the program as users run it for instance, is in test_agents.py.
"""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import envs
from agents import fasttd3
from agents.fasttd3 import Args, FastTD3
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


def tiny(**changes) -> Args:
    return replace(Args(), **{**TINY, **changes})


def make_agent(args: Args, seed: int = 0) -> FastTD3:
    torch.manual_seed(seed)
    return FastTD3(args, envs.make(args.env_id, args.num_envs, seed))


def make_batch(agent: FastTD3, size: int = 64, seed: int = 0) -> TensorDict:
    g = torch.Generator().manual_seed(seed)
    env = envs.make(agent.args.env_id, 1)
    obs_dim, critic_dim, action_dim = (
        space.shape[0] for space in (env.obs_space, env.critic_obs_space, env.action_space)
    )
    shared = critic_dim == obs_dim
    obs, next_obs = (torch.randn(size, obs_dim, generator=g) for _ in range(2))
    batch = {
        "obs": obs,
        "critic_obs": obs if shared else torch.randn(size, critic_dim, generator=g),
        "action": torch.rand(size, action_dim, generator=g) * 2 - 1,
        "reward": torch.rand(size, generator=g) * 30 - 15,  # many returns lie beyond the support
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
    agent.target_probs(batch, agent.next_action(batch))
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
        mean = agent.target_probs(batch, agent.next_action(batch)) @ agent.critic.support
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
    before = [flat.vector.grad.clone() for flat in (agent.critic_flat, agent.actor_flat)]
    found = agent.actor_gradient(agent.prepare(make_batch(agent, 16)))
    agent._descend(1, *found, agent.actor_flat, agent.actor_optimizer)
    assert torch.equal(agent.critic_flat.vector.grad, before[0]) and agent.target_flat.vector.grad is None
    assert not torch.equal(agent.actor_flat.vector.grad, before[1])
    assert all(p.grad is None for p in agent.modules.parameters())


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
        agent._descend(1, *agent.actor_gradient(batch), agent.actor_flat, agent.actor_optimizer)
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


def test_a_report_probes_a_thousand_transitions_and_draws_nothing() -> None:
    agent = make_agent(tiny(sem=True))
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
        "critic": [gradients(other.critic_loss(part), other.critic_flat.parameters) for part in parts],
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
    agent = make_agent(tiny(critic_lr=1e-3, critic_lr_end=1e-4, actor_lr=2e-3, actor_lr_end=4e-3))
    for progress, share in ((0.0, 1.0), (0.25, 0.5 + 0.125**0.5), (0.5, 0.5), (1.0, 0.0)):  # cos(pi / 4) is 0.5^0.5
        agent.anneal(progress)
        rates = [float(x.lr) for x in (agent.critic_optimizer, agent.actor_optimizer)]
        assert rates == pytest.approx([1e-4 + 9e-4 * share, 4e-3 - 2e-3 * share])


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


def train(root: Path, **changes) -> tuple[FastTD3, dict[str, float]]:
    """The agent after a run with its presets and these changes, and the last evaluation."""
    asked = replace(Args(), **changes)
    preset = {name: value for _, overrides in fasttd3.presets(asked) for name, value in overrides.items()}
    args = fasttd3.resolve(replace(asked, **{**preset, **changes}))
    built = fasttd3.build(args)
    with Run.create(args, root=root, quiet=True) as run:
        score = fasttd3.train(run, *built)
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
@pytest.mark.parametrize("torso", ["simba", "simbav2", "flashsac"])
def test_learns_the_point_mass_with_residual_blocks(torso: str, tmp_path: Path) -> None:
    changes = {**LEARNING, "env_id": "PointMass-v0", "total_timesteps": 12_000, "v_max": 60.0, "atoms": 61}
    _, score = train(tmp_path, **changes, torso=torso, weight_decay=0.0, eval_every=12_000, gamma=0.97)
    assert score["episodic_return"] > 60


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
        value = agent.critic.value(agent.critic(x, action)).mean(0)
    best = optimal_value(x, gamma)
    assert (value - best).abs().mean() < 0.02 * spread
    assert (best - optimal_q(x, action, gamma)).mean() < 0.01 * spread  # and the policy is as good


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("torso", ["mlp", "flashsac"])
def test_compiled_updates_equal_eager_ones(torso: str) -> None:
    agents = [make_agent(tiny(sem=True, torso=torso, compile=compiled)) for compiled in (False, True)]
    assert agents[1].compiled is not None
    check = partial(agents[1].gradient, make_batch(agents[1], 64, seed=9))
    said = agents[1].compiled.verify(1e-4, check, "critic_gradient", "actor_gradient")
    assert said.startswith("compiled in ")
    for step in range(3):
        for agent in agents:
            torch.manual_seed(step)  # noise is drawn in both
            agent.update(make_batch(agent, 64, seed=step))
    eager, compiled = (agent.modules.state_dict() for agent in agents)
    for name, x in eager.items():
        torch.testing.assert_close(compiled[name], x, rtol=1e-3, atol=1e-4, msg=name)
