"""PPO: advantages and losses against independent computations, what each update moves, and the program as it is run."""

import csv
import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from tensordict import TensorDict
from torch import Tensor

import envs
from agents import ppo
from agents.checkpoint import newest_checkpoint
from agents.ppo import LOSSES, PPO, Args, gae, take
from envs.base import Step, VecEnv
from envs.torch import ClosedForm, ClosedFormDiscrete, optimal_value
from networks.normalize import RunningNorm
from networks.sem import SEM

TINY = {
    "env_id": "PointMass-v0",
    "device": "cpu",
    "size": "small",
    "num_envs": 4,
    "eval_envs": 2,
    "total_timesteps": 320,
    "log_every": 80,
    "eval_every": 160,
    "save_every": 160,
    "num_steps": 10,
    "num_minibatches": 4,
    "update_epochs": 2,
    "learning_rate": 1e-3,
    "lr_schedule": "constant",
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "reward_norm": True,
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "activation": "tanh",
    "sem_actor_groups": 2,
    "sem_actor_vertices": 8,
    "sem_critic_groups": 4,
    "sem_critic_vertices": 4,
    "amp": "off",
    "threads": 1,
}
TASKS = ["PointMass-v0", "PointMassPrivileged-v0", "ClosedFormDiscrete-v0"]


def tiny(**changes) -> Args:
    return replace(Args(), **{**TINY, **changes})


def make_agent(args: Args, seed: int = 0, **options) -> tuple[PPO, VecEnv]:
    """An agent that prefers some actions to others, and its environments."""
    torch.manual_seed(seed)
    env = envs.make(args.env_id, args.num_envs, seed, **options)
    agent = PPO(args, env)
    with torch.no_grad():
        agent.actor.head.weight.mul_(50)
    return agent, env


def roll(agent: PPO, env: VecEnv, steps: int, start: tuple[Tensor, Tensor] | None = None) -> tuple[list, list[Step]]:
    """What `estimate` wants: rows and steps of a rollout."""
    obs, critic_obs = start or env.reset()
    rows, seen = [], []
    for _ in range(steps):
        rows.append(agent.explore(obs, critic_obs))
        seen.append(env.step(rows[-1]["action"]))
        obs, critic_obs = seen[-1].obs, seen[-1].critic_obs
    return rows, seen


def make_rollout(agent: PPO, env: VecEnv, steps: int = 16, seed: int = 0) -> TensorDict:
    """A rollout [T, N] that a policy nearby has made: ratios, values and advantages are on both sides of all bounds."""
    g = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs)
    obs = torch.randn(*shape, *env.obs_space.shape, generator=g)
    critic_obs = torch.randn(*shape, *env.critic_obs_space.shape, generator=g) if env.privileged else obs
    with torch.no_grad():
        flat = obs.flatten(0, 1)
        policy, value = agent(flat, critic_obs.flatten(0, 1) if env.privileged else flat)
        torch.manual_seed(seed)
        action = policy.sample()
        action, log_prob, value = (x.unflatten(0, shape) for x in (action, policy.log_prob(action), value))
    batch = {
        "obs": obs,
        "action": action,
        "log_prob": log_prob + 0.3 * torch.randn(shape, generator=g),
        "value": value + 0.5 * torch.randn(shape, generator=g),
        "advantage": 1 + 3 * torch.randn(shape, generator=g),
        "target": value + torch.randn(shape, generator=g),
        "valid": (torch.rand(shape, generator=g) < 0.8).float(),
    }
    return TensorDict({**batch, "critic_obs": critic_obs} if env.privileged else batch, shape)


def losses_of(agent: PPO, rollout: TensorDict) -> dict[str, Tensor]:
    """The terms of the loss for all rows of a rollout as one minibatch."""
    batch = agent.prepare(dict(rollout.flatten().items()))
    with torch.no_grad(), agent.autocast:
        policy, value = agent(batch["obs"], batch.get("critic_obs", batch["obs"]))
    return dict(zip(LOSSES, agent.losses(batch, agent.gradients(policy, value, batch)[0]), strict=True))


def gradients_of(agent: PPO, rollout: TensorDict, **weights: float) -> dict[str, Tensor]:
    """What `differentiate` makes of all rows of a rollout as one minibatch, by the names of the parameters."""
    agent.args = replace(agent.args, **weights)
    agent.differentiate(agent.prepare(dict(rollout.flatten().items())))
    return by_name(agent)


def by_name(agent: PPO) -> dict[str, Tensor]:
    """The gradient that the optimiser sees, in pieces."""
    parameters = dict(agent.modules.named_parameters())
    pieces = agent.flat.vector.grad.split([p.numel() for p in parameters.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}


def snapshot(agent: PPO) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in agent.modules.state_dict().items()}


def changed(before: dict[str, Tensor], agent: PPO) -> set[str]:
    """Names of the modules whose numbers differ from before."""
    after = agent.modules.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# ---- advantages ------------------------------------------------------------------------------------------------------


def random_case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arguments of gae, [T, N], by the rules of the environments: never both ends, and a spoilt row is a truncated one.

    Each row may end in each way, the last one too, and several environments at once.
    """
    shape = (rng.integers(1, 9), rng.integers(1, 4))
    share = rng.choice([0.0, 0.1, 0.5], 3)
    valid = rng.random(shape) >= share[0]
    terminated = (rng.random(shape) < share[1]) & valid
    truncated = (rng.random(shape) < share[2]) & ~terminated | ~valid
    reward, value, next_value = rng.standard_normal((3, *shape))
    return {
        "reward": reward * valid,
        "value": value,
        "next_value": next_value,
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
    }


def sum_of_errors(case: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> np.ndarray:
    """Equation 16 of Schulman et al. (2016), term by term: the sum of (gamma lambda)^k delta[t + k] to the end."""
    out = np.zeros(case["reward"].shape)
    for t, n in np.ndindex(out.shape):
        for k in range(t, len(out)):
            reward, value, next_value, terminated, truncated, valid = (x[k, n] for x in case.values())
            if valid:
                after = 0.0 if terminated else next_value
                out[t, n] += (gamma * gae_lambda) ** (k - t) * (reward + gamma * after - value)
            if terminated or truncated:
                break
    return out


def mean_of_returns(case: dict[str, np.ndarray], gamma: float, gae_lambda: float) -> np.ndarray:
    """The same before its authors have simplified it: the mean of all k-step advantages, weighted by lambda^(k - 1).

    The longest, of m steps, has what is left of the weight. It goes to the end of the episode or of the rollout.
    """
    out = np.zeros(case["reward"].shape)
    for t, n in np.ndindex(out.shape):
        if not case["valid"][t, n]:
            continue
        k_step, rewards = [], 0.0
        for k in range(t, len(out)):
            reward, _, next_value, terminated, truncated, valid = (x[k, n] for x in case.values())
            if not valid:  # the row tells nothing, and the returns end before it
                break
            rewards += gamma ** (k - t) * reward
            after = 0.0 if terminated else gamma ** (k - t + 1) * next_value
            k_step.append(rewards + after - case["value"][t, n])
            if terminated or truncated:
                break
        m = len(k_step)
        weights = [(1 - gae_lambda) * gae_lambda**k for k in range(m - 1)] + [gae_lambda ** (m - 1)]
        out[t, n] = np.dot(weights, k_step)
    return out


def test_gae_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(("last row", "spoilt last row", "all at once", "spoilt within"), 0)
    for _ in range(1000):
        gamma, gae_lambda = rng.choice([0.0, 0.5, 0.99, 1.0], 2)
        case = random_case(rng)
        ended = case["terminated"] | case["truncated"]
        seen["last row"] += ended[-1].any()
        seen["spoilt last row"] += (~case["valid"][-1]).any()
        seen["all at once"] += ended.shape[1] > 1 and ended.all(1).any()
        seen["spoilt within"] += (~case["valid"][1:] & ~ended[:-1]).any()
        actual = gae(*(torch.tensor(x) for x in case.values()), gamma, gae_lambda).numpy()
        np.testing.assert_allclose(actual, sum_of_errors(case, gamma, gae_lambda), rtol=1e-12, atol=1e-12)
        # Values that agree with one another: what comes next is what the next row has seen.
        case["next_value"][:-1] = np.where(ended[:-1], case["next_value"][:-1], case["value"][1:])
        actual = gae(*(torch.tensor(x) for x in case.values()), gamma, gae_lambda).numpy()
        np.testing.assert_allclose(actual, mean_of_returns(case, gamma, gae_lambda), rtol=1e-11, atol=1e-11)
    assert min(seen.values()) > 100, seen


# ---- losses ----------------------------------------------------------------------------------------------------------


def mlp(parameters: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    for layer in ("0", "2"):
        if f"trunk.{layer}.weight" in parameters:  # both networks' in one, transposed
            weight, bias = (parameters[f"trunk.{layer}.{part}"][int(name == "critic")] for part in ("weight", "bias"))
        else:
            weight, bias = parameters[f"{name}.torso.{layer}.weight"].T, parameters[f"{name}.torso.{layer}.bias"]
        x = torch.tanh(x @ weight + bias)
    return x @ parameters[f"{name}.head.weight"].T + parameters[f"{name}.head.bias"]


def by_the_paper(agent: PPO, rollout: TensorDict) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Losses, the gradient of their weighted sum, and ratio, advantage and values, of a minibatch in float64.

    Source: Schulman et al. (2017), equations 7 and 9, the former case by case as in figure 1.
    """
    args = agent.args
    p = {name: x.detach().double().requires_grad_() for name, x in agent.modules.named_parameters()}
    rows = rollout.flatten()
    rows = rows[rows["valid"] > 0].to(torch.float64)
    out = mlp(p, "actor", rows["obs"])
    if agent.actor.__class__.__name__ == "CategoricalActor":
        probs = out.exp() / out.exp().sum(-1, keepdim=True)
        log_prob = probs[torch.arange(len(rows)), rows["action"].long()].log()
        entropy = -(probs * probs.log()).sum(-1)
    else:
        std = p["actor.log_std"].exp()
        density = torch.exp(-0.5 * ((rows["action"] - out) / std) ** 2) / (std * math.sqrt(2 * math.pi))
        log_prob = density.log().sum(-1)
        entropy = (0.5 * torch.log(2 * math.pi * math.e * std**2)).sum().expand(len(rows))
    ratio = torch.exp(log_prob - rows["log_prob"])
    advantage = rows["advantage"]
    if args.norm_adv:
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
    low, high = 1 - args.clip_coef, 1 + args.clip_coef
    kept = torch.where(advantage > 0, ratio <= high, ratio >= low)
    gain = advantage * torch.where(kept, ratio, torch.where(advantage > 0, high, low))
    value = mlp(p, "critic", rows.get("critic_obs", rows["obs"]))[:, 0]
    error = (value - rows["target"]) ** 2
    if args.clip_vloss:
        move = value - rows["value"]
        near = rows["value"] + torch.where(move.abs() > args.clip_coef, args.clip_coef * move.sign(), move)
        clipped_error = (near - rows["target"]) ** 2
        error = torch.where(clipped_error > error, clipped_error, error)
    losses = {
        "policy_loss": -gain.mean(),
        "value_loss": 0.5 * error.mean(),
        "entropy": entropy.mean(),
        "approx_kl": (ratio - 1 - ratio.log()).mean(),
        "clipfrac": ((ratio > high) | (ratio < low)).double().mean(),
    }
    total = losses["policy_loss"] - args.ent_coef * losses["entropy"] + args.vf_coef * losses["value_loss"]
    gradients = dict(zip(p, torch.autograd.grad(total, list(p.values())), strict=True))
    inside = {"ratio": ratio, "advantage": advantage, "value": value, "old": rows["value"], "target": rows["target"]}
    return losses, gradients, inside


@pytest.mark.parametrize("clip_vloss", [True, False])
@pytest.mark.parametrize("norm_adv", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_losses_equal_an_independent_computation(task: str, norm_adv: bool, clip_vloss: bool) -> None:
    agent, env = make_agent(tiny(env_id=task, norm_adv=norm_adv, clip_vloss=clip_vloss))
    rollout = make_rollout(agent, env, 100)
    losses = losses_of(agent, rollout)
    expected, _, inside = by_the_paper(agent, rollout)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-6), name
    # Each case of the paper's figure is there, and so is each side of the clipped value.
    ratio, up = inside["ratio"], inside["advantage"] > 0
    for side in (ratio > 1.2, ratio < 0.8, (ratio - 1).abs() < 0.2):
        assert (side & up).sum() > 5 and (side & ~up).sum() > 5
    move, off = inside["value"] - inside["old"], inside["value"] - inside["target"]
    for side in (move > 0.2, move < -0.2):
        assert (side & (off > 0)).sum() > 5 and (side & (off < 0)).sum() > 5


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05, 1e3])
@pytest.mark.parametrize("task", TASKS)
def test_an_update_is_one_step_of_adam_along_the_clipped_gradient(task: str, max_grad_norm: float) -> None:
    args = tiny(env_id=task, update_epochs=1, num_minibatches=1, max_grad_norm=max_grad_norm, ent_coef=0.3, vf_coef=2.0)
    agent, env = make_agent(args)
    rollout = make_rollout(agent, env)
    _, gradients, _ = by_the_paper(agent, rollout)
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    shrink = min(1.0, max_grad_norm / norm) if max_grad_norm else 1.0
    assert (shrink < 1) == (max_grad_norm == 0.05)
    before = {name: p.detach().clone() for name, p in agent.modules.named_parameters()}
    agent.update(rollout)
    seen = by_name(agent)
    for name, p in agent.modules.named_parameters():
        gradient = shrink * gradients[name]
        torch.testing.assert_close(seen[name].double(), gradient, rtol=1e-4, atol=1e-6, msg=name)
        # Adam's first step, of moments that start at 0 and are corrected for it: the gradient over its size.
        step = args.learning_rate * seen[name] / (seen[name].abs() + args.adam_eps)
        torch.testing.assert_close(before[name] - p.detach(), step, rtol=1e-3, atol=1e-7, msg=name)


@pytest.mark.parametrize("task", TASKS)
def test_spoilt_rows_weigh_nothing(task: str) -> None:
    agent, env = make_agent(tiny(env_id=task))
    rollout = make_rollout(agent, env)
    other = make_rollout(agent, env, seed=1)
    mixed = rollout.clone()
    spoilt = rollout["valid"] == 0
    for name in set(rollout.keys()) - {"valid"}:
        mixed[name][spoilt] = other[name][spoilt]
    assert spoilt.sum() > 5
    one, two = losses_of(agent, rollout), losses_of(agent, mixed)
    for name, loss in one.items():
        torch.testing.assert_close(loss, two[name], rtol=1e-6, atol=1e-7, msg=name)
    rollout["valid"].zero_()  # nothing at all to learn from
    before = snapshot(agent)
    assert all(loss == 0 for loss in losses_of(agent, rollout).values())
    agent.update(rollout)
    assert changed(before, agent) == set()


def test_bfloat16_losses_are_close_to_float32() -> None:
    (exact, env), (fast, _) = (make_agent(tiny(amp=amp, sem=True)) for amp in ("off", "bfloat16"))
    rollout = make_rollout(exact, env, 100)
    expected = losses_of(exact, rollout)
    for name, loss in losses_of(fast, rollout).items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05, abs=0.01)
        assert loss.dtype == torch.float32


# ---- rollouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*TASKS, "Pixels-v0"])
@pytest.mark.parametrize("amp", ["off", "bfloat16"])
def test_first_ratios_are_one(task: str, amp: str) -> None:
    """What is improved is what has acted: recomputed from the rollout, its probabilities and values are the same."""
    images = task == "Pixels-v0"
    agent, env = make_agent(tiny(env_id=task, obs_norm=True, obs_clip=1.5, amp=amp, sem=True, num_envs=2))
    agent.observe(roll(agent, env, 5)[1])  # a normaliser that does something
    rows, steps = roll(agent, env, 4 if images else 20)
    rollout = agent.estimate(rows, steps)
    flat = rollout.flatten()
    with torch.no_grad(), agent.autocast:
        policy, value = agent(flat["obs"], flat.get("critic_obs", flat["obs"]))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if amp == "off" else {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(policy.log_prob(flat["action"]), flat["log_prob"], **tolerance)
    torch.testing.assert_close(value, flat["value"], **tolerance)
    losses = losses_of(agent, rollout)
    assert losses["approx_kl"].abs() < (1e-6 if amp == "off" else 1e-3) and losses["clipfrac"] == 0
    assert flat["log_prob"].std() > 0.05  # and they are not all alike
    if isinstance(agent.obs_norm, RunningNorm):
        raw = torch.cat([env.reset()[0], *(step.obs for step in steps)])
        assert agent.obs_norm.count > 0 and not torch.equal(agent.normalise(raw, agent.obs_norm), raw)
        assert flat["obs"].abs().max() <= 1.5


@pytest.mark.parametrize("privileged", [False, True])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.95])
def test_estimates_bootstrap_from_the_true_successor(privileged: bool, gae_lambda: float) -> None:
    """Where the clock ends an episode the value is that of its last observation, after a termination it is 0."""
    task, steps = ("PointMassPrivileged-v0", 10) if privileged else ("Scripted-v0", 20)
    args = tiny(env_id=task, reward_norm=False, gamma=0.9, gae_lambda=gae_lambda)
    options = {"max_episode_steps": 5} if privileged else {"script": ((3,), (0,), (10,), (3, 0))}
    agent, env = make_agent(args, **options)
    agent.observe(roll(agent, env, 5)[1])
    start = env.reset()
    rows, seen = roll(agent, env, steps, start)
    g = torch.Generator().manual_seed(0)
    seen = [step._replace(reward=torch.randn(4, generator=g)) for step in seen]  # the script's are large
    rollout = agent.estimate(rows, seen)
    reward, terminated, truncated = (
        torch.stack([getattr(step, name) for step in seen]) for name in ("reward", "terminated", "truncated")
    )
    true_next = torch.stack([agent.value(step.next_critic_obs) for step in seen])
    acted_on = torch.stack([agent.value(critic) for critic in (start[1], *(step.critic_obs for step in seen[:-1]))])
    torch.testing.assert_close(rollout["value"], acted_on)
    expected = gae(
        *(reward, acted_on, true_next, terminated, truncated, torch.ones_like(terminated)), args.gamma, gae_lambda
    )
    if gae_lambda == 0:
        after = torch.where(terminated, 0.0, true_next)
        torch.testing.assert_close(expected, reward + 0.9 * after - acted_on)
    torch.testing.assert_close(rollout["advantage"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rollout["target"], expected + acted_on, rtol=1e-4, atol=1e-5)
    # What would be wrong is far off: the value of the next episode's first observation.
    first_of_next = torch.stack([agent.value(step.critic_obs) for step in seen])
    assert (first_of_next - true_next).abs()[truncated].mean() > 0.05
    assert truncated[-1].any() and truncated[:-1].any()  # by the last row, and within
    if not privileged:
        assert terminated[9, 2] and not truncated[9, 2]  # on the very step of the time limit
        assert terminated[-1].any() and (terminated.sum(1) > 1).any()  # in the last row, and several at once
        assert true_next[terminated].abs().mean() > 0.05


def test_a_spoilt_row_has_no_weight_and_no_advantage() -> None:
    agent, env = make_agent(tiny(env_id="Scripted-v0", num_envs=4), nan_at=(1, 0, 4))
    rows, steps = roll(agent, env, 8)
    rollout = agent.estimate(rows, steps)
    assert (rollout["valid"] == 0).nonzero().tolist() == [[3, 1]]
    assert rollout["advantage"][3, 1] == 0
    assert all(torch.isfinite(x).all() for x in rollout.values())
    agent.observe(steps)
    agent.update(rollout)
    assert all(torch.isfinite(x).all() for x in snapshot(agent).values())


def test_rewards_are_scaled_by_what_came_before_and_clipped() -> None:
    args = tiny(num_envs=3, gamma=0.9, gae_lambda=0.0, reward_norm=True, reward_clip=0.8)
    agent, env = make_agent(args, max_episode_steps=4)
    with torch.no_grad():
        for p in agent.critic.head.parameters():  # values of 0: then the target is the reward
            p.zero_()
    start, data = env.reset(), []
    for number in range(3):
        rows, steps = roll(agent, env, 7, start)
        start = steps[-1].obs, steps[-1].critic_obs
        target = agent.estimate(rows, steps)["target"]
        reward = torch.stack([step.reward for step in steps])
        if number == 0:
            scaled = reward  # nothing is known before the first update
        else:
            returns = []
            for n in range(3):
                total = 0.0
                for r, done in data:
                    total = 0.9 * total + float(r[n])
                    returns.append(total)
                    total = 0.0 if done[n] else total
            scaled = reward / np.std(returns)
            assert (scaled > 0.8).any() and (scaled < 0.8).any()
        torch.testing.assert_close(target, scaled.clamp(-0.8, 0.8), rtol=1e-4, atol=1e-5)
        agent.observe(steps)
        data += [(step.reward, step.terminated | step.truncated) for step in steps]
    (plain, env) = make_agent(replace(args, reward_norm=False))
    with torch.no_grad():
        for p in plain.critic.head.parameters():
            p.zero_()
    rows, steps = roll(plain, env, 7)
    steps = [step._replace(reward=100 * step.reward) for step in steps]
    plain.observe(steps)
    target = plain.estimate(rows, steps)["target"]  # neither scaled nor clipped
    torch.testing.assert_close(target, torch.stack([step.reward for step in steps]))


def test_the_normalisers_know_mean_and_deviation_of_what_was_seen() -> None:
    agent, env = make_agent(tiny(env_id="PointMassPrivileged-v0", obs_clip=1.0))
    start, seen = env.reset(), []
    for _ in range(3):
        _, steps = roll(agent, env, 6, start)
        start = steps[-1].obs, steps[-1].critic_obs
        seen += steps
        agent.observe(steps)
    row = agent.explore(*start)
    for name, raw, batch in (
        ("obs", start[0], [step.obs for step in seen]),
        ("critic_obs", start[1], [step.critic_obs for step in seen]),
    ):
        data = torch.cat(batch).double()
        expected = (raw - data.mean(0)) / (data.std(0, correction=0) + 1e-2)
        torch.testing.assert_close(row[name].double(), expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)
        assert (expected.abs() > 1).any()


def test_draws_are_not_clipped_and_their_probability_is_that_of_the_draw() -> None:
    agent, env = make_agent(tiny(num_envs=512, init_std=2.0))
    obs, critic_obs = env.reset()
    row = agent.explore(obs, critic_obs)
    assert (row["action"].abs() > 1).float().mean() > 0.3
    with torch.no_grad():
        policy, _ = agent(obs, obs)
    expected = torch.distributions.Normal(policy.mean, policy.log_std.exp()).log_prob(row["action"]).sum(-1)
    torch.testing.assert_close(row["log_prob"], expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(agent.act(obs), policy.mean)


@pytest.mark.parametrize("task", TASKS)
def test_a_report_says_how_large_and_noisy_gradients_are_and_what_a_step_changes(task: str) -> None:
    """Four parts of the rows of a rollout in the order of a draw that is taken back, and a step that another takes."""
    args = tiny(env_id=task, sem=True, norm_adv=False, clip_vloss=False, ent_coef=0.1, max_grad_norm=0.05)
    (agent, env), (other, _) = (make_agent(args, seed) for seed in (0, 1))
    agent.update(make_rollout(agent, env, seed=1))
    other.load_state_dict(agent.state_dict())
    rollout = make_rollout(agent, env)
    rollout["valid"].fill_(1.0)
    torch.manual_seed(5)
    report = agent.report(rollout)
    after = torch.rand(())
    torch.manual_seed(5)
    assert torch.rand(()) == after  # nothing was drawn
    torch.manual_seed(5)
    probe = rollout[::4].flatten()
    order = torch.randperm(len(probe))
    rows: dict[str, list[Tensor]] = {"actor": [], "critic": []}
    for part in probe[order].split(len(probe) // 4):
        policy, value = other(part["obs"], part.get("critic_obs", part["obs"]))
        ratio = (policy.log_prob(part["action"]) - part["log_prob"]).exp()
        clipped = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
        gain = torch.minimum(part["advantage"] * ratio, part["advantage"] * clipped)
        for name, loss in (
            ("actor", -(gain + args.ent_coef * policy.entropy()).mean()),
            ("critic", 0.5 * args.vf_coef * (value - part["target"]).square().mean()),
        ):
            found = torch.autograd.grad(loss, other.flat.parameters, retain_graph=True, materialize_grads=True)
            rows[name].append(torch.cat([g.flatten() for g in found]))
    for name, gradients in rows.items():
        stack = torch.stack(gradients).double()
        norm, variance = stack.mean(0).norm().item(), len(probe) / 4 * stack.var(0).sum().item()
        assert report[f"gradient/{name}_norm"].item() == pytest.approx(norm, rel=1e-4)
        assert report[f"gradient/{name}_variance"].item() == pytest.approx(variance, rel=1e-3)
        assert report[f"gradient/{name}_noise_scale"].item() == pytest.approx(variance / norm**2, rel=1e-3)
    views = probe["obs"], probe.get("critic_obs", probe["obs"])
    before, _ = other(*views)
    other.flat.vector.grad = sum(torch.stack(gradients).mean(0) for gradients in rows.values())
    other.flat.clip(args.max_grad_norm)
    other.optimizer.step()
    new, _ = other(*views)
    if task == "ClosedFormDiscrete-v0":
        moved = (new.log_probs.exp() - before.log_probs.exp()).abs().sum(-1).mean() / 2
        assert 0 < moved.item() == pytest.approx(report["policy/total_variation"].item(), rel=1e-3)
        assert report["policy/churn"].item() == (new.mode() != before.mode()).float().mean().item()
    else:
        moved = (new.mean - before.mean).abs().mean()
        assert 0 < moved.item() == pytest.approx(report["policy/churn"].item(), rel=1e-3)


# ---- what moves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*TASKS, "Pixels-v0"])
def test_each_step_moves_what_it_should(task: str) -> None:
    images = task == "Pixels-v0"
    agent, env = make_agent(tiny(env_id=task, sem=True, num_envs=2, num_minibatches=2))
    obs, critic_obs = env.reset()
    before = snapshot(agent)
    rows, steps = roll(agent, env, 4, (obs, critic_obs))
    rollout = agent.estimate(rows, steps)
    agent.act(obs)
    losses_of(agent, rollout)
    agent.report(rollout)
    assert changed(before, agent) == set()
    agent.update(rollout)
    assert changed(before, agent) == {"actor", "critic", *(["trunk"] if images else [])}
    before = snapshot(agent)
    agent.observe(steps)
    assert changed(before, agent) == {"reward_scale", *([] if images else ["obs_norm", "critic_obs_norm"])}


@pytest.mark.parametrize("task", ["PointMass-v0", "Pixels-v0"])
@pytest.mark.parametrize("share_hidden", [True, False])
def test_each_loss_reaches_its_networks(task: str, share_hidden: bool) -> None:
    """Actor and critic share nothing but the trunk, and that is there for images only."""
    images = task == "Pixels-v0"
    agent, env = make_agent(tiny(env_id=task, share_hidden=share_hidden, num_envs=2))
    assert agent.paired != images
    rollout = agent.estimate(*roll(agent, env, 4))
    by_policy = gradients_of(agent, rollout, ent_coef=0.0, vf_coef=0.0)
    rollout["advantage"].zero_()
    by_value = gradients_of(agent, rollout, vf_coef=1.0)

    def reached(gradients: dict[str, Tensor], network: str) -> bool:
        return any(bool(g.any()) for name, g in gradients.items() if name.startswith(network))

    assert reached(by_policy, "actor") and not reached(by_policy, "critic")
    assert reached(by_value, "critic") and not reached(by_value, "actor")
    for name in (name for name in by_policy if name.startswith("trunk")):
        if images:
            assert by_policy[name].any() and by_value[name].any()
        else:
            for copy, (mine, other) in enumerate(((by_policy, by_value), (by_value, by_policy))):
                assert mine[name][copy].any() and not other[name][copy].any()


def kinds(layers: Sequence[torch.nn.Module]) -> list[str]:
    return [type(layer).__name__ for layer in layers]


CNN = ["Pixels", *3 * ["Conv2d", "ReLU"], "Flatten"]
HIDDEN, BLOCK = 2 * ["Linear", "ReLU"], ["Linear", "ReLU", "SEM"]
SAME = {"sem": True, "sem_critic_groups": 2, "sem_critic_vertices": 8}
OTHER = {"sem": True}  # 2 groups of 8 in the actor, 4 of 4 in the critic


def described(report: dict[str, Tensor], prefix: str) -> set[str]:
    """The networks that a report says something of."""
    return {tag.removeprefix(prefix).split("_")[0] for tag in report if tag.startswith(prefix)}


@pytest.mark.parametrize(
    ("changes", "shared", "actor", "critic"),
    [
        ({}, HIDDEN, [], []),
        (SAME, BLOCK, [], []),
        (OTHER, [], BLOCK, BLOCK),
        ({**SAME, "sem_critic": False}, [], BLOCK, HIDDEN),
        ({**SAME, "sem_actor": False}, [], HIDDEN, BLOCK),
        ({"critic_hidden": (16, 8)}, [], HIDDEN, HIDDEN),
        ({**SAME, "critic_hidden": (8, 16)}, [], BLOCK, BLOCK),
        ({"share_hidden": False}, [], HIDDEN, HIDDEN),
        ({**SAME, "share_hidden": False}, [], BLOCK, BLOCK),
    ],
)
def test_images_share_hidden_layers_that_are_the_same(
    changes: dict, shared: list[str], actor: list[str], critic: list[str]
) -> None:
    agent, env = make_agent(tiny(env_id="Pixels-v0", num_envs=2, **changes))
    assert kinds(agent.trunk) == CNN + shared
    assert kinds(agent.actor.torso) == actor and kinds(agent.critic.torso) == critic
    configs = [m.config for m in agent.modules.modules() if isinstance(m, SEM)]
    assert len(configs) == [*shared, *actor, *critic].count("SEM")
    if changes is OTHER:
        assert [(c.groups, c.vertices) for c in configs] == [(2, 8), (4, 4)]
    report = agent.report(agent.estimate(*roll(agent, env, 2)))
    wanted = {name for name, layers in (("shared", shared), ("actor", actor), ("critic", critic)) if "SEM" in layers}
    assert described(report, "sem/") == wanted
    assert all(0 < report[f"sem/{name}_entropy"] <= 1 + 1e-6 for name in wanted)
    parts = {"shared": agent.trunk, "actor": agent.actor.torso, "critic": agent.critic.torso}
    assert described(report, "repr/") == {name for name, part in parts.items() if len(part)}


LINEAR, BATCHED = ["Linear", "Tanh"], ["BatchedLinear", "Tanh"]


@pytest.mark.parametrize(
    ("changes", "pair", "actor", "critic"),
    [
        ({}, 2 * BATCHED, [], []),
        (SAME, [*BATCHED, "SEM"], [], []),
        (OTHER, [], [*LINEAR, "SEM"], [*LINEAR, "SEM"]),
        ({**SAME, "sem_critic": False}, [], [*LINEAR, "SEM"], 2 * LINEAR),
        ({"critic_hidden": (16, 8)}, [], 2 * LINEAR, 2 * LINEAR),
        ({"env_id": "PointMassPrivileged-v0"}, [], 2 * LINEAR, 2 * LINEAR),
    ],
)
def test_hidden_layers_of_vectors_that_are_alike_are_one_batched_product(
    changes: dict, pair: list[str], actor: list[str], critic: list[str]
) -> None:
    agent, env = make_agent(tiny(**changes))
    assert kinds(agent.trunk) == pair and agent.paired == bool(pair)
    assert kinds(agent.actor.torso) == actor and kinds(agent.critic.torso) == critic
    report = agent.report(agent.estimate(*roll(agent, env, 2)))
    wanted = {name for name, own in (("actor", actor), ("critic", critic)) if "SEM" in pair + own}
    assert described(report, "sem/") == wanted and described(report, "repr/") == {"actor", "critic"}


@pytest.mark.parametrize("sem", [False, True])
def test_pairing_is_a_matter_of_speed(sem: bool) -> None:
    """With the same weights the two layouts give the same policy, values and gradients."""
    pair, env = make_agent(tiny(**SAME | {"sem": sem}))
    env.critic_obs_space = Box(-1, 1, env.obs_space.shape)  # as if the critic saw something else
    apart = PPO(pair.args, env)
    assert pair.paired and not apart.paired
    env.critic_obs_space = env.obs_space
    with torch.no_grad():
        pair.trunk[0].weight[0] *= 1.5  # orthogonal weights of both copies have the same norm
    state = pair.modules.state_dict()

    def weights(name: str, like: Tensor) -> Tensor:
        copy, layer = (
            int(name.startswith("critic")),
            name.replace("actor.torso", "trunk").replace("critic.torso", "trunk"),
        )
        if layer == name:
            return state[name]
        x = state[layer][copy]
        return x.T if like.dim() == 2 else x.reshape(like.shape)

    mine = apart.modules.state_dict()
    apart.modules.load_state_dict({name: weights(name, x) for name, x in mine.items()})
    rollout = make_rollout(pair, env)
    said, alone = pair.report(rollout), apart.report(rollout)
    assert said.keys() == alone.keys()
    for tag, value in said.items():  # of each copy, where a mean over both would be something else
        torch.testing.assert_close(alone[tag], value, rtol=1e-4, atol=1e-6, msg=tag)
    for name in ("effective_rank", "feature_norm", "weight_norm", "gini"):
        assert abs(said[f"repr/actor_{name}"] - said[f"repr/critic_{name}"]) > 1e-3 * said[f"repr/actor_{name}"], name
    one, two = losses_of(pair, rollout), losses_of(apart, rollout)
    for name, loss in one.items():
        torch.testing.assert_close(two[name], loss, rtol=1e-4, atol=1e-6, msg=name)
    expected = gradients_of(pair, rollout)
    for name, gradient in gradients_of(apart, rollout).items():
        state = expected
        torch.testing.assert_close(gradient, weights(name, gradient), rtol=1e-4, atol=1e-6, msg=name)


def test_the_actor_never_sees_what_only_the_critic_may() -> None:
    agent, env = make_agent(tiny(env_id="PointMassPrivileged-v0"))
    assert agent.actor.torso[0].in_features == 4 and agent.critic.torso[0].in_features == 6
    obs, critic_obs = env.reset()
    results = []
    for seen_by_critic in (critic_obs, critic_obs + 1):
        torch.manual_seed(0)
        row = agent.explore(obs, seen_by_critic)
        results.append((row, agent.act(obs)))
    (one, best), (two, still_best) = results
    assert torch.equal(one["action"], two["action"]) and torch.equal(one["log_prob"], two["log_prob"])
    assert torch.equal(best, still_best) and not torch.equal(one["value"], two["value"])
    assert torch.equal(one["value"], agent.explore(obs + 1, critic_obs)["value"])  # nor the critic the noisy view

    rollout = make_rollout(agent, env)
    one = gradients_of(agent, rollout)
    rollout["critic_obs"] += 1
    two = gradients_of(agent, rollout)
    same = {name for name in one if torch.equal(one[name], two[name])}
    assert {name for name in one if name.startswith("actor")} == {name for name in same if one[name].any()}


def test_images_with_a_privileged_view_are_refused() -> None:
    _, env = make_agent(tiny(env_id="Pixels-v0", num_envs=2))
    env.critic_obs_space = envs.make("PointMass-v0", 2).obs_space
    with pytest.raises(ValueError, match="cannot give images to the actor and something else to the critic"):
        PPO(tiny(env_id="Pixels-v0", num_envs=2), env)


# ---- passes and learning rate ----------------------------------------------------------------------------------------


def test_every_pass_covers_every_row_once(monkeypatch) -> None:
    agent, env = make_agent(tiny(num_minibatches=8, update_epochs=3))
    rollout = make_rollout(agent, env)
    rollout["row"] = torch.arange(64).view(16, 4)
    batches, differentiate = [], agent.differentiate
    monkeypatch.setattr(agent, "differentiate", lambda batch: batches.append(batch["row"]) or differentiate(batch))
    agent.update(rollout)
    assert [len(batch) for batch in batches] == 24 * [8]
    passes = torch.cat(batches).view(3, 64)
    for order in passes:
        assert torch.equal(order.sort().values, torch.arange(64))
        assert not torch.equal(order, torch.arange(64))
    assert not torch.equal(passes[0], passes[1]) and not torch.equal(passes[1], passes[2])
    assert agent.loss_count == 24


def test_taking_rows_keeps_the_order_in_memory() -> None:
    rows = torch.tensor([2, 0, 0, 4])
    vectors, images = torch.randn(5, 3), torch.randint(0, 255, (5, 2, 4, 6), dtype=torch.uint8)
    assert torch.equal(take(vectors, rows), vectors[rows])
    for x in (images, images.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(take(x, rows), x[rows])
        assert take(x, rows).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("target_kl", "passes"), [(0.0, 5), (1e-12, 1), (1e3, 5)])
def test_target_kl_ends_the_passes(target_kl: float, passes: int) -> None:
    agent, env = make_agent(tiny(target_kl=target_kl, update_epochs=5))
    agent.update(make_rollout(agent, env))
    assert agent.loss_count == passes * 4


def test_target_kl_goes_by_the_last_minibatch_of_a_pass(monkeypatch) -> None:
    agent, env = make_agent(tiny(target_kl=0.05, update_epochs=5))
    losses, divergences = agent.losses, iter([[9.0, 9.0, 9.0, 0.04], [0.0, 0.0, 0.0, 0.06]])
    kl = torch.tensor([float(name == "approx_kl") for name in LOSSES])
    monkeypatch.setattr(
        agent, "losses", lambda *x: losses(*x) * (1 - kl) + torch.tensor(next(divergences))[:, None] * kl
    )
    agent.update(make_rollout(agent, env))
    assert agent.loss_count == 8


def rate(agent: PPO) -> float:
    return float(agent.optimizer.lr)


def test_linear_learning_rate() -> None:
    agent, _ = make_agent(tiny(lr_schedule="linear", learning_rate=4e-3))
    for progress, expected in ((0.0, 4e-3), (0.25, 3e-3), (0.5, 2e-3), (1.0, 0.0), (1.5, 0.0)):
        agent.anneal(progress)
        assert rate(agent) == pytest.approx(expected)
    for schedule in ("constant", "adaptive"):
        agent, _ = make_agent(tiny(lr_schedule=schedule, learning_rate=4e-3))
        agent.anneal(0.5)
        assert rate(agent) == pytest.approx(4e-3)


def test_adaptive_learning_rate_follows_the_divergence() -> None:
    agent, _ = make_agent(tiny(lr_schedule="adaptive", learning_rate=1e-3, desired_kl=0.01))
    for divergence, factor in ((0.021, 1 / 1.5), (0.0049, 1.5), (0.0, 1.5), (5.0, 1 / 1.5)):
        before = rate(agent)
        agent.follow(torch.tensor(divergence))
        assert rate(agent) == pytest.approx(before * factor)
    for divergence in (0.0051, 0.01, 0.019):
        before = rate(agent)
        agent.follow(torch.tensor(divergence))
        assert rate(agent) == before
    for divergence, bound in ((1.0, 1e-5), (0.0, 1e-2)):
        for _ in range(30):
            agent.follow(torch.tensor(divergence))
        assert rate(agent) == pytest.approx(bound)


@pytest.mark.parametrize(("schedule", "moves"), [("adaptive", True), ("linear", False), ("constant", False)])
def test_updates_adapt_the_learning_rate_after_every_minibatch(schedule: str, moves: bool) -> None:
    agent, env = make_agent(tiny(lr_schedule=schedule, learning_rate=1e-4, update_epochs=1, desired_kl=1e-6))
    rollout = make_rollout(agent, env)  # far from the policy: each minibatch divides
    agent.update(rollout)
    assert rate(agent) == pytest.approx(1e-4 / 1.5**4 if moves else 1e-4)


# ---- saving ----------------------------------------------------------------------------------------------------------


def test_an_adapted_learning_rate_is_saved(tmp_path: Path) -> None:
    args = tiny(lr_schedule="adaptive", desired_kl=1e-6)
    (agent, env), (other, _) = make_agent(args), make_agent(args)
    rollout = make_rollout(agent, env)
    agent.update(rollout)
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    other.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    assert rate(agent) == rate(other) == pytest.approx(1e-3 / 1.5**8)
    for one in (agent, other):  # and goes on from there, whether or not it was saved
        torch.manual_seed(3)
        one.update(rollout)
    assert rate(agent) == rate(other) < 2e-5
    assert not changed(snapshot(agent), other)


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
    assert ppo.main([*flags(**{**TINY, **changes}), "--run-root", str(root), "--quiet"]) == 0
    (made,) = set(root.iterdir()) - before
    return made


def final_state(run_dir: Path) -> dict:
    checkpoint, _ = newest_checkpoint(run_dir)
    return {name: checkpoint.load(name) for name in ("agent", "loop")}


def metric_rows(run_dir: Path) -> list[tuple[str, int, float]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return [(row["metric"], int(row["step"]), float(row["value"])) for row in csv.DictReader(file)]


def curve(run_dir: Path, name: str) -> dict[int, float]:
    """Values of one metric by frames."""
    return {step: value for metric, step, value in metric_rows(run_dir) if metric == name}


def training_metrics(run_dir: Path) -> list[tuple[str, int, float]]:
    """What does not depend on the clock or on evaluations."""
    return [row for row in metric_rows(run_dir) if not row[0].startswith(("time/", "eval/", "charts/SPS"))]


def test_the_last_rollout_is_a_whole_one(tmp_path: Path) -> None:
    run_dir = run_main(tmp_path, total_timesteps=330)  # nine rollouts of 40
    assert json.loads((run_dir / "status.json").read_text())["step"] == 360
    assert list(curve(run_dir, "eval/episodic_return")) == [160, 320, 360]
    assert list(curve(run_dir, "losses/value_loss")) == [80, 160, 240, 320, 360]
    assert not curve(run_dir, "eval/human_normalised_score")  # that is for games


def test_the_learning_rate_falls_over_a_run(tmp_path: Path) -> None:
    run_dir = run_main(tmp_path, lr_schedule="linear", log_every=40)
    rates = curve(run_dir, "charts/learning_rate")
    assert rates == pytest.approx({step: 1e-3 * (1 - (step - 40) / 320) for step in range(40, 321, 40)})


@pytest.mark.parametrize("task", ["PointMass-v0", "ClosedFormDiscrete-v0"])
def test_evaluations_that_draw_actions_leave_training_alone(task: str, tmp_path: Path) -> None:
    """They do so from a random stream of their own, and in environments of their own."""
    plain = run_main(tmp_path / "plain", env_id=task, eval_every=0)
    watched = run_main(tmp_path / "watched", env_id=task, eval_every=80, eval_sample=True)
    assert len(curve(watched, "eval/episodic_return")) == 4 and not curve(plain, "eval/episodic_return")
    assert training_metrics(plain) == training_metrics(watched)
    (one, loop), (two, other_loop) = ((state["agent"], state["loop"]) for state in map(final_state, (plain, watched)))
    assert all(torch.equal(x, two["modules"][name]) for name, x in one["modules"].items())
    assert torch.equal(loop["rng"]["torch"], other_loop["rng"]["torch"]) and torch.equal(loop["obs"], other_loop["obs"])


def test_an_evaluation_that_draws_is_the_same_every_time() -> None:
    agent, _ = make_agent(tiny(eval_sample=True))
    env = envs.make("PointMass-v0", 4, 0)
    scores = []
    for seed in (5, 5, 6):
        torch.rand(3)  # wherever the global stream is
        scores.append(ppo.assess(agent, env, seed)["episodic_return"])
    assert scores[0] == scores[1] != scores[2]
    still, _ = make_agent(tiny(eval_sample=False))
    assert ppo.assess(still, env, 5)["episodic_return"] != scores[0]


def test_normalisers_stand_still_in_a_rollout(tmp_path: Path, monkeypatch) -> None:
    """Whoever acts sees the statistics of all rollouts before this one, and an update those of the rollout."""
    counts: dict[str, list[float]] = {"explore": [], "update": []}
    for name, count in counts.items():
        original = getattr(PPO, name)

        def spy(agent: PPO, *args, original=original, count=count):
            count.append(float(agent.obs_norm.count))
            return original(agent, *args)

        monkeypatch.setattr(PPO, name, spy)
    run_main(tmp_path, total_timesteps=160)
    assert counts["explore"] == [float(40 * rollout) for rollout in range(4) for _ in range(10)]
    assert counts["update"] == [0, 40, 80, 120]


def test_simulators_compute_in_their_own_precision(tmp_path: Path, monkeypatch) -> None:
    """The learner's autocast would round the products of a simulator that is written in torch, and only in training."""
    seen = []
    advance = envs.torch.PointMass.advance

    def spy(self, state, action):
        seen.append(torch.is_autocast_enabled("cpu"))
        return advance(self, state, action)

    monkeypatch.setattr(envs.torch.PointMass, "advance", spy)
    run_main(tmp_path, amp="bfloat16", total_timesteps=40, eval_every=0)
    assert seen == 10 * [False]


# ---- Atari -----------------------------------------------------------------------------------------------------------

ATARI = {"num_envs": 2, "eval_envs": 2, "env_threads": 1, "actor_hidden": (16,), "critic_hidden": (16,), "num_steps": 8}


def play(env: VecEnv, steps: int) -> list[Step]:
    env.reset()
    g = torch.Generator().manual_seed(0)
    return [env.step(torch.randint(int(env.action_space.n), (env.num_envs,), generator=g)) for _ in range(steps)]


@pytest.mark.parametrize("plain", [False, True])
def test_only_the_learner_of_atari_sees_lives_and_signs(plain: bool) -> None:
    pytest.importorskip("envpool")
    args = tiny(env_id="SpaceInvaders-v5", **ATARI)  # shots are worth 5 and more, and a player has three lives
    if plain:
        args = replace(args, episodic_life=False, sign_rewards=False)
    _, env, eval_env = ppo.build(args)
    for steps in (play(eval_env, 200), *([play(env, 200)] if plain else [])):
        assert max(float(step.reward.max()) for step in steps) >= 5
        assert not any("raw_reward" in step.metrics or "game_over" in step.metrics for step in steps)
    if not plain:
        steps = play(env, 300)
        assert torch.stack([step.reward for step in steps]).unique().tolist() == [0, 1]
        assert max(float(step.metrics["raw_reward"].max()) for step in steps) >= 5
        assert any((step.terminated & ~step.metrics["game_over"]).any() for step in steps)


def test_atari_logs_the_human_normalised_score(tmp_path: Path) -> None:
    """Of whole games and true rewards, in training and in evaluation: 0 is a random player of Breakout, 1 a human."""
    pytest.importorskip("envpool")
    changes = {**ATARI, "num_steps": 64, "total_timesteps": 640, "log_every": 640, "eval_every": 640}
    run_dir = run_main(tmp_path, env_id="Breakout-v5", eval_sample=True, update_epochs=1, **changes)
    for prefix in ("charts/", "eval/"):
        returned = curve(run_dir, f"{prefix}episodic_return")
        score = curve(run_dir, f"{prefix}human_normalised_score")
        assert returned and score == pytest.approx({step: (x - 1.7) / (30.5 - 1.7) for step, x in returned.items()})
    # Games of five lives, not single ones: a random player loses one in about 30 steps.
    assert curve(run_dir, "charts/episodic_length")[640] > 100
    assert curve(run_dir, "eval/episodic_length")[640] > 100


# ---- learning --------------------------------------------------------------------------------------------------------


LEARNING = {
    "device": "cpu",
    "size": "small",
    "eval_envs": 16,
    "log_every": 0,
    "save_every": 0,
    "num_minibatches": 4,
    "learning_rate": 2e-3,
    "lr_schedule": "linear",
    "clip_coef": 0.2,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "activation": "tanh",
    "sem_actor_groups": 2,
    "sem_actor_vertices": 32,
    "sem_critic_groups": 16,
    "sem_critic_vertices": 4,
    "amp": "off",
    "threads": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_balances_the_pole(sem: bool, tmp_path: Path) -> None:
    """Random actions last 20 steps, a wrong sign 10; the task counts as solved at 475 of 500."""
    pytest.importorskip("envpool")
    args = {**LEARNING, "env_id": "CartPole-v1", "sem": sem, "env_threads": 1, "total_timesteps": 98_304}
    args |= {"num_envs": 32, "num_steps": 32, "update_epochs": 10, "gamma": 0.98, "gae_lambda": 0.9}
    run_dir = run_main(tmp_path, **args, eval_every=98_304, obs_norm=False, reward_norm=False)
    assert curve(run_dir, "eval/episodic_return")[98_304] >= 475


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_learns_the_point_mass(sem: bool, tmp_path: Path) -> None:
    """Random forces earn 20 in the 100 steps of an episode, a wrong sign less than 10, a sensible policy 85."""
    args = {**LEARNING, "env_id": "PointMass-v0", "sem": sem, "total_timesteps": 48_000, "learning_rate": 1e-3}
    args |= {"num_envs": 32, "num_steps": 50, "update_epochs": 5, "gamma": 0.97, "gae_lambda": 0.95}
    run_dir = run_main(tmp_path, **args, eval_every=48_000, obs_norm=True, reward_norm=True)
    assert curve(run_dir, "eval/episodic_return")[48_000] > 75


def chain(agent: PPO, discrete: bool, greedy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """The closed-form task under a policy as a Markov chain: places [S, 1], rewards [S], transitions [S, S].

    Discrete: exact. Continuous: places that lie close, actions at quantiles of the policy, and landings shared between
    neighbouring places. Greedy: what the policy prefers, at all times.
    """
    count = 9 if discrete else 401
    x = torch.linspace(-1, 1, count, dtype=torch.float64)
    with torch.no_grad():
        seen = x[:, None].float()
        policy = agent.actor(agent.features(seen, seen)[0])
    if discrete:
        action = torch.arange(3).expand(9, 3)
        weight = torch.nn.functional.one_hot(policy.mode(), 3).double() if greedy else policy.log_probs.double().exp()
    else:
        noise = torch.special.ndtri((torch.arange(400).double() + 0.5) / 400)
        action = (
            (policy.mean.double() + (0 if greedy else policy.log_std.double().exp() * noise))
            .expand(-1, 400)
            .clamp(-1, 1)
        )
        weight = torch.full_like(action, 1 / 400)
    task = ClosedFormDiscrete if discrete else ClosedForm
    move = (action - 1).double() if discrete else action
    reward = (weight * task.reward(x[:, None], move)).sum(1)
    landed = (task.shift(x[:, None], move) + 1) * (count - 1) / 2
    lower = landed.floor().clamp(max=count - 2)
    share = landed - lower
    transition = torch.zeros(count, count, dtype=torch.float64)
    transition.scatter_add_(1, lower.long(), weight * (1 - share))
    transition.scatter_add_(1, lower.long() + 1, weight * share)
    return x[:, None].float(), reward, transition


@pytest.mark.slow
@pytest.mark.parametrize("discrete", [True, False])
@pytest.mark.parametrize("sem", [True, False])
def test_the_critic_learns_the_value_of_the_policy(sem: bool, discrete: bool, tmp_path: Path) -> None:
    """Within 2% of the range of V*, on the average over visited states; and what the policy prefers is optimal.

    The value of the policy solves a linear equation, with which V* agrees where the policy is optimal. Both wrong
    bootstraps are further off: value after a termination by 10%, none after a time-out by 4%.
    """
    task, gamma = "ClosedFormDiscrete-v0" if discrete else "ClosedForm-v0", 0.7
    args = {**LEARNING, "env_id": task, "sem": sem, "gamma": gamma, "total_timesteps": 245_760, "activation": "relu"}
    args |= {"num_envs": 256, "num_steps": 16, "num_minibatches": 8, "update_epochs": 4, "gae_lambda": 0.9}
    args |= {"obs_norm": False, "reward_norm": False, "clip_vloss": False, "vf_coef": 1.0, "init_std": 0.6}
    run_dir = run_main(tmp_path, **args, eval_every=0)
    agent, env = make_agent(replace(Args(), **args), seed=7)
    agent.load_state_dict(final_state(run_dir)["agent"])

    def solve(reward: Tensor, transition: Tensor) -> Tensor:
        return torch.linalg.solve(torch.eye(len(reward)) - gamma * (1 - ClosedForm.HAZARD) * transition, reward)

    x, reward, transition = chain(agent, discrete)
    expected = solve(reward, transition)
    best = optimal_value(x, gamma, discrete).double()
    spread = best.max() - best.min()
    rows, _ = roll(agent, env, 25)  # from starts that are anywhere
    visits = ((torch.cat([row["obs"] for row in rows])[:, 0] + 1) * (len(x) - 1) / 2).round().long()
    error = (agent.value(x).double() - expected).abs() / spread
    assert error[visits].mean() < 0.02
    greedy = solve(*chain(agent, discrete, greedy=True)[1:])
    assert (best - greedy)[visits].mean() < 0.01 * spread
    assert (torch.maximum(expected, greedy) - best).max() < 1e-3 * spread  # nothing is better than V*


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.parametrize("task", ["PointMassPrivileged-v0", "ClosedFormDiscrete-v0"])
def test_compiled_updates_equal_eager_ones(task: str) -> None:
    agents = [make_agent(tiny(env_id=task, sem=True, compile=compiled))[0] for compiled in (False, True)]
    env = envs.make(task, 4)
    for seed in range(2):
        rollout = make_rollout(agents[0], env, seed=seed)
        compiled = agents[1].compiled
        assert compiled is not None
        assert compiled.verify(1e-4, partial(agents[1].gradient, rollout), "descent").startswith("compiled ")
        for agent in agents:
            torch.manual_seed(seed)
            agent.update(rollout)
    eager, fast = (agent.modules.state_dict() for agent in agents)
    for name, x in eager.items():
        torch.testing.assert_close(fast[name], x, rtol=1e-3, atol=1e-4, msg=name)
