"""PQN: targets and loss against independent computations, exploration, what moves, and the program as it is run."""

import csv
import math
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from tensordict import TensorDict
from torch import Tensor

import envs
from agents import config, pqn
from agents.checkpoint import newest_checkpoint
from agents.pqn import LOSSES, PQN, Args, lambda_returns, take
from envs.base import Step, VecEnv
from envs.torch import Scripted, State, optimal_q
from networks.normalize import RunningNorm
from networks.sem import SEM

TINY = {
    "env_id": "ClosedFormDiscrete-v0",
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
    "anneal_lr": False,
    "epsilon_end": 0.2,
    "exploration_fraction": 0.5,
    "critic_hidden": (16, 16),
    "sem_critic_groups": 4,
    "sem_critic_vertices": 4,
    "amp": "off",
    "threads": 1,
}
IMAGES = {"env_id": "Pixels-v0", "num_envs": 2}


class ScriptedDiscrete(Scripted):
    """`Scripted` with three actions."""

    action_space = Discrete(3)  # type: ignore[assignment]

    def advance(self, state: State, action: Tensor) -> tuple:
        return super().advance(state, action.float()[:, None])


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(envs.torch.TASKS, "ScriptedDiscrete-v0", ScriptedDiscrete)


def tiny(**changes) -> Args:
    return replace(Args(), **{**TINY, **changes})


def make_agent(args: Args, seed: int = 0, **options) -> tuple[PQN, VecEnv]:
    torch.manual_seed(seed)
    env = envs.make(args.env_id, args.num_envs, seed, backend="torch", **options)
    return PQN(args, env), env


def roll(agent: PQN, env: VecEnv, steps: int, obs: Tensor | None = None) -> tuple[list, list[Step]]:
    """What `estimate` wants: rows and steps of a rollout."""
    obs = env.reset()[0] if obs is None else obs
    rows, seen = [], []
    for _ in range(steps):
        rows.append(agent.explore(obs))
        seen.append(env.step(rows[-1]["action"]))
        obs = seen[-1].obs
    return rows, seen


def make_rollout(agent: PQN, env: VecEnv, steps: int = 16, seed: int = 0) -> TensorDict:
    """A rollout [T, N] of made-up numbers, a fifth of its rows spoilt."""
    g = torch.Generator().manual_seed(seed)
    shape = (steps, env.num_envs)
    batch = {
        "obs": torch.randn(*shape, *env.obs_space.shape, generator=g),
        "action": torch.randint(agent.actions, shape, generator=g),
        "target": 3 * torch.randn(shape, generator=g),
        "valid": (torch.rand(shape, generator=g) < 0.8).float(),
    }
    return TensorDict(batch, shape)


def losses_of(agent: PQN, rollout: TensorDict) -> dict[str, Tensor]:
    """The losses of all rows of a rollout as one minibatch."""
    batch = agent.prepare(dict(rollout.flatten().items()))
    with torch.no_grad(), agent.autocast:
        value = agent(batch["obs"])
    return dict(zip(LOSSES, agent.losses(batch, agent.gradients(value, batch)[0]), strict=True))


def by_name(agent: PQN) -> dict[str, Tensor]:
    """The gradient that the optimiser sees, in pieces."""
    parameters = dict(agent.modules.named_parameters())
    pieces = agent.flat.vector.grad.split([p.numel() for p in parameters.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(parameters.items(), pieces, strict=True)}


def snapshot(agent: PQN) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in agent.modules.state_dict().items()}


def changed(before: dict[str, Tensor], agent: PQN) -> set[str]:
    """Names of the modules whose numbers differ from before."""
    after = agent.modules.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


# ---- targets ---------------------------------------------------------------------------------------------------------


def random_case(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Arguments of lambda_returns, [T, N]: each row may end in each way, and a spoilt row is a truncated one."""
    shape = (rng.integers(1, 9), rng.integers(1, 4))
    share = rng.choice([0.0, 0.1, 0.5], 3)
    valid = rng.random(shape) >= share[0]
    terminated = (rng.random(shape) < share[1]) & valid
    truncated = (rng.random(shape) < share[2]) & ~terminated | ~valid
    reward, next_value = rng.standard_normal((2, *shape))
    return {
        "reward": reward * valid,
        "next_value": next_value,
        "terminated": terminated,
        "truncated": truncated,
        "valid": valid,
    }


def mean_of_returns(case: dict[str, np.ndarray], gamma: float, q_lambda: float) -> np.ndarray:
    """The definition: the mean of all k-step returns, weighted by lambda^(k - 1); the longest has what is left.

    A k-step return is k discounted rewards and the discounted value after them, 0 where the episode has terminated. The
    longest goes to the end of the episode or of the rollout, or to the row before a spoilt one.
    """
    out = np.zeros(case["reward"].shape)
    for t, n in np.ndindex(out.shape):
        k_step, rewards = [], 0.0
        for k in range(t, len(out)):
            reward, next_value, terminated, truncated, valid = (x[k, n] for x in case.values())
            if k > t and not valid:
                break
            rewards += gamma ** (k - t) * reward
            k_step.append(rewards + (0.0 if terminated else gamma ** (k - t + 1) * next_value))
            if terminated or truncated:
                break
        m = len(k_step)
        weights = [(1 - q_lambda) * q_lambda**k for k in range(m - 1)] + [q_lambda ** (m - 1)]
        out[t, n] = np.dot(weights, k_step)
    return out


def test_lambda_returns_equal_their_definition() -> None:
    rng = np.random.default_rng(0)
    seen = dict.fromkeys(("last row", "spoilt last row", "all at once", "spoilt within"), 0)
    for _ in range(1000):
        gamma, q_lambda = rng.choice([0.0, 0.5, 0.99, 1.0], 2)
        case = random_case(rng)
        ended = case["terminated"] | case["truncated"]
        seen["last row"] += ended[-1].any()
        seen["spoilt last row"] += (~case["valid"][-1]).any()
        seen["all at once"] += ended.shape[1] > 1 and ended.all(1).any()
        seen["spoilt within"] += (~case["valid"][1:] & ~ended[:-1]).any()
        given = [torch.tensor(x) for x in case.values()]
        actual = lambda_returns(*given, gamma, q_lambda).numpy()
        expected = mean_of_returns(case, gamma, q_lambda)
        np.testing.assert_allclose(actual[case["valid"]], expected[case["valid"]], rtol=1e-11, atol=1e-11)
        assert np.isfinite(actual).all()
        assert all(np.array_equal(x.numpy(), y) for x, y in zip(given, case.values(), strict=True))  # as they were
    assert min(seen.values()) > 100, seen


def test_lambda_returns_by_hand() -> None:
    """Two environments, three steps: a termination after the second step, and a time-out in the same place."""
    reward, next_value = torch.tensor([[1.0], [2.0], [4.0]]).repeat(1, 2), torch.full((3, 2), 10.0)
    ends = torch.tensor([[False], [True], [False]])
    terminated, truncated = ends & torch.tensor([True, False]), ends & torch.tensor([False, True])
    target = lambda_returns(reward, next_value, terminated, truncated, torch.ones(3, 2) > 0, 0.5, 0.4)
    # The last step has 4 + 0.5 * 10 = 9. The second has 2, or 2 + 0.5 * 10 = 7. The first mixes it with the value 10:
    # 1 + 0.5 (0.4 * 2 + 0.6 * 10) = 4.4, and 1 + 0.5 (0.4 * 7 + 0.6 * 10) = 5.4.
    torch.testing.assert_close(target, torch.tensor([[4.4, 5.4], [2.0, 7.0], [9.0, 9.0]]))


@pytest.mark.parametrize("q_lambda", [0.0, 0.65])
def test_estimates_bootstrap_from_the_true_successor(q_lambda: float) -> None:
    """Where the clock ends an episode the value is that of its last observation, after a termination it is 0."""
    args = tiny(env_id="ScriptedDiscrete-v0", gamma=0.9, q_lambda=q_lambda, obs_norm=True)
    agent, env = make_agent(args, script=((3,), (0,), (10,), (3, 0)))
    agent.observe(roll(agent, env, 5)[1])
    agent.epsilon = 0.3
    start = env.reset()[0]
    rows, seen = roll(agent, env, 20, start)
    g = torch.Generator().manual_seed(0)
    seen = [step._replace(reward=torch.randn(4, generator=g)) for step in seen]  # the script's are large
    rollout = agent.estimate(rows, seen)
    reward, terminated, truncated = (
        torch.stack([getattr(step, name) for step in seen]) for name in ("reward", "terminated", "truncated")
    )

    def best(obs: Tensor) -> Tensor:
        with torch.no_grad():
            return agent(agent.normalise(obs)).amax(-1)

    after = torch.where(terminated, 0.0, torch.stack([best(step.next_obs) for step in seen]))
    expected = reward + 0.9 * after
    for t in reversed(range(19)):
        mixed = reward[t] + 0.9 * (q_lambda * expected[t + 1] + (1 - q_lambda) * after[t])
        expected[t] = torch.where(terminated[t] | truncated[t], expected[t], mixed)
    torch.testing.assert_close(rollout["target"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(rollout["obs"][0], agent.normalise(start)) and (rollout["valid"] == 1).all()
    assert torch.equal(rollout["action"], torch.stack([row["action"] for row in rows]))
    # What would be wrong is far off: the value of the next episode's first observation, or of a terminal one.
    first_of_next = torch.stack([best(step.obs) for step in seen])
    assert (first_of_next - after).abs()[truncated].mean() > 0.05
    assert torch.stack([best(step.next_obs) for step in seen])[terminated].abs().mean() > 0.05
    assert terminated[9, 2] and not truncated[9, 2]  # on the very step of the time limit
    assert truncated[-1].any() and truncated[:-1].any() and terminated[-1].any() and (terminated.sum(1) > 1).any()


def test_a_spoilt_row_has_no_weight() -> None:
    agent, env = make_agent(tiny(env_id="ScriptedDiscrete-v0", obs_norm=True, reward_norm=True), nan_at=(1, 0, 4))
    rows, steps = roll(agent, env, 8)
    rollout = agent.estimate(rows, steps)
    assert (rollout["valid"] == 0).nonzero().tolist() == [[3, 1]]
    assert all(torch.isfinite(x).all() for x in rollout.values())
    agent.observe(steps)
    agent.update(rollout)
    assert all(torch.isfinite(x).all() for x in snapshot(agent).values())


def test_rewards_are_scaled_by_what_came_before_and_clipped() -> None:
    args = tiny(num_envs=3, gamma=0.9, q_lambda=0.5, reward_norm=True, reward_clip=0.4)
    (agent, env), (plain, _) = make_agent(args), make_agent(replace(args, reward_norm=False))
    for one in (agent, plain):
        with torch.no_grad():  # values of 0, and a lambda of 0.5: then a target is 0.45 of the next, and the reward
            for p in one.critic.head.parameters():
                p.zero_()
    obs, data = env.reset()[0], []
    for number in range(3):
        rows, steps = roll(agent, env, 7, obs)
        obs = steps[-1].obs
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
            assert (scaled > 0.4).any() and (scaled < 0.4).any()
        ended = torch.stack([step.terminated | step.truncated for step in steps])
        for learner, rewards in ((agent, scaled.clamp(-0.4, 0.4)), (plain, 100 * reward)):
            expected = rewards.clone()
            for t in reversed(range(6)):
                expected[t] += 0.45 * expected[t + 1] * ~ended[t]
            given = [step._replace(reward=100 * step.reward) for step in steps] if learner is plain else steps
            torch.testing.assert_close(learner.estimate(rows, given)["target"], expected, rtol=1e-4, atol=1e-5)
        agent.observe(steps)
        data += [(step.reward, step.terminated | step.truncated) for step in steps]


# ---- loss ------------------------------------------------------------------------------------------------------------


def by_definition(agent: PQN, rollout: TensorDict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of a minibatch, and the gradient of half the mean squared error, in float64 and without our modules."""
    p = {name: x.detach().double().requires_grad_() for name, x in agent.modules.named_parameters()}
    rows = rollout.flatten()
    rows = rows[rows["valid"] > 0].to(torch.float64)
    x = rows["obs"]
    for linear, norm in ((0, 1), (3, 4)):
        x = x @ p[f"critic.torso.{linear}.weight"].T + p[f"critic.torso.{linear}.bias"]
        if agent.args.layer_norm:
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            x = x * p[f"critic.torso.{norm}.weight"] + p[f"critic.torso.{norm}.bias"]
        x = x * (x > 0)
    value = x @ p["critic.head.weight"].T + p["critic.head.bias"]
    taken = value[torch.arange(len(rows)), rows["action"].long()]
    loss = 0.5 * ((rows["target"] - taken) ** 2).mean()
    gradients = dict(zip(p, torch.autograd.grad(loss, list(p.values())), strict=True))
    return {"td_loss": loss, "q_values": taken.mean()}, gradients


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05, 1e3])
def test_an_update_is_one_step_of_radam_along_the_clipped_gradient(max_grad_norm: float) -> None:
    agent, env = make_agent(tiny(update_epochs=1, num_minibatches=1, max_grad_norm=max_grad_norm))
    rollout = make_rollout(agent, env)
    expected, gradients = by_definition(agent, rollout)
    for name, loss in losses_of(agent, rollout).items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=1e-4, abs=1e-6), name
    norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
    shrink = min(1.0, max_grad_norm / norm) if max_grad_norm else 1.0
    assert (shrink < 1) == (max_grad_norm == 0.05)
    before = {name: p.detach().clone() for name, p in agent.modules.named_parameters()}
    agent.update(rollout)
    seen = by_name(agent)
    for name, p in agent.modules.named_parameters():
        torch.testing.assert_close(seen[name].double(), shrink * gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        # RAdam's first steps go by the first moment alone, and the first one has seen one gradient.
        torch.testing.assert_close(before[name] - p.detach(), 1e-3 * seen[name], rtol=1e-3, atol=1e-7, msg=name)
    assert agent.loss_sum.tolist() == pytest.approx([expected[name].item() for name in LOSSES], rel=1e-4)


def test_spoilt_rows_weigh_nothing() -> None:
    agent, env = make_agent(tiny())
    rollout, other = make_rollout(agent, env), make_rollout(agent, env, seed=1)
    mixed, spoilt = rollout.clone(), rollout["valid"] == 0
    for name in ("obs", "action", "target"):
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


# ---- acting ----------------------------------------------------------------------------------------------------------


def test_epsilon_falls_linearly() -> None:
    agent, _ = make_agent(tiny(epsilon_start=0.9, epsilon_end=0.1, exploration_fraction=0.4))
    assert agent.epsilon == 0.9
    for progress, expected in ((0.0, 0.9), (0.1, 0.7), (0.2, 0.5), (0.4, 0.1), (0.7, 0.1), (1.2, 0.1)):
        agent.anneal(progress)
        assert agent.epsilon == pytest.approx(expected)
    agent, _ = make_agent(tiny(exploration_fraction=0.0))
    agent.anneal(0.0)
    assert agent.epsilon == 0.2


@torch.no_grad()
def test_a_share_of_epsilon_is_drawn_evenly_and_the_rest_is_greedy() -> None:
    agent, env = make_agent(tiny(num_envs=30_000))
    obs = env.reset()[0]
    greedy = agent(obs).argmax(-1)
    assert torch.equal(agent.act(obs), greedy) and len(greedy.unique()) > 1
    for epsilon in (0.0, 0.3, 1.0):
        agent.epsilon = epsilon
        row = agent.explore(obs)
        assert torch.equal(row["value"], agent(obs).amax(-1)) and row["action"].dtype == torch.int64
        # A third of those drawn is greedy by chance; the others are as many of each.
        distance = (row["action"] - greedy) % 3
        shares = distance.bincount(minlength=3) / 30_000
        assert shares.tolist() == pytest.approx([1 - epsilon * 2 / 3, epsilon / 3, epsilon / 3], abs=0.015)
    straying, _ = make_agent(tiny(num_envs=30_000, eval_epsilon=0.6))
    assert (straying.act(obs) != greedy).float().mean() == pytest.approx(0.4, abs=0.015)


def test_greedy_evaluations_draw_nothing() -> None:
    agent, env = make_agent(tiny())
    obs = env.reset()[0]
    state = torch.get_rng_state()
    agent.act(obs)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_evaluation_that_strays_is_the_same_every_time() -> None:
    agent, env = make_agent(tiny(eval_epsilon=0.5, num_envs=8))
    scores = []
    for seed in (5, 5, 6):
        torch.rand(3)  # wherever the global stream is
        scores.append(pqn.assess(agent, env, seed)["episodic_return"])
    assert scores[0] == scores[1] != scores[2]


# ---- what moves ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [False, True])
def test_each_step_moves_what_it_should(images: bool) -> None:
    changes = IMAGES if images else {}
    agent, env = make_agent(tiny(sem=True, obs_norm=True, reward_norm=True, num_minibatches=2, **changes))
    obs = env.reset()[0]
    before = snapshot(agent)
    rows, steps = roll(agent, env, 4, obs)
    rollout = agent.estimate(rows, steps)
    agent.act(obs)
    losses_of(agent, rollout)
    agent.report(rollout)
    assert changed(before, agent) == set()
    agent.update(rollout)
    assert changed(before, agent) == {"critic", *(["trunk"] if images else [])}
    before = snapshot(agent)
    agent.observe(steps)
    assert changed(before, agent) == {"reward_scale", *([] if images else ["obs_norm"])}
    assert agent.images == images and isinstance(agent.obs_norm, RunningNorm) != images


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
    assert torch.equal(take(images, rows), images[rows])
    assert take(images, rows).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("anneal_lr", [True, False])
def test_linear_learning_rate(anneal_lr: bool) -> None:
    agent, _ = make_agent(tiny(anneal_lr=anneal_lr, learning_rate=4e-3))
    for progress, expected in ((0.0, 4e-3), (0.25, 3e-3), (0.5, 2e-3), (1.0, 0.0), (1.5, 0.0)):
        agent.anneal(progress)
        assert float(agent.optimizer.lr) == pytest.approx(expected if anneal_lr else 4e-3)


# ---- network ---------------------------------------------------------------------------------------------------------

LAYER, PLAIN = ["Linear", "LayerNorm", "ReLU"], ["Linear", "ReLU"]


@pytest.mark.parametrize(
    ("changes", "torso"),
    [
        ({}, 2 * LAYER),
        ({"layer_norm": False}, 2 * PLAIN),
        ({"sem": True}, [*LAYER, "SEM"]),
        ({"sem": True, "layer_norm": False}, [*PLAIN, "SEM"]),
        ({"sem": True, "sem_position": "every"}, ["SEM", "SEM"]),
        ({"bottleneck": "vq"}, [*LAYER, "VQ"]),
    ],
)
@pytest.mark.parametrize("images", [False, True])
def test_what_the_network_is_made_of(images: bool, changes: dict, torso: list[str]) -> None:
    agent, env = make_agent(tiny(**(IMAGES if images else {}), **changes))
    layers = [type(layer).__name__ for layer in (*agent.trunk, *agent.critic.torso)]
    norms = ["ImageNorm"] if changes.get("layer_norm", True) else []
    assert layers == (["Pixels", *3 * ["Conv2d", *norms, "ReLU"], "Flatten"] if images else []) + torso
    assert all((m.config.groups, m.config.vertices) == (4, 4) for m in agent.modules.modules() if type(m) is SEM)
    report = agent.report(agent.estimate(*roll(agent, env, 4)))
    tags = {tag.partition("/")[0] for tag in report}
    always = {"losses", "charts", "critic", "gradient", "policy", "repr"}
    assert tags == always | ({"sem"} if "sem" in changes else set())
    assert all(math.isfinite(x) for x in report.values())


def test_the_network_sees_what_an_actor_may_see() -> None:
    _, env = make_agent(tiny())
    env.critic_obs_space = envs.make("PointMass-v0", 2).obs_space
    assert env.privileged
    agent = PQN(tiny(), env)
    assert agent.critic.torso[0].in_features == 1 and agent.act(env.reset()[0]).shape == (4,)


def test_continuous_actions_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        pqn.main(["--env-id", "PointMass-v0", "--device", "cpu"])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.count("\n") == 1
    assert "PQN needs discrete actions, PointMass-v0 has Box(" in err
    assert "use agents/ppo.py, agents/fastsac.py or agents/fasttd3.py" in err


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
    assert pqn.main([*flags(**{**TINY, **changes}), "--run-root", str(root), "--quiet"]) == 0
    (made,) = set(root.iterdir()) - before
    return made


def curve(run_dir: Path, name: str) -> dict[int, float]:
    """Values of one metric by frames."""
    with open(run_dir / "metrics.csv", newline="") as file:
        return {int(row["step"]): float(row["value"]) for row in csv.DictReader(file) if row["metric"] == name}


def test_learning_rate_and_epsilon_fall_over_a_run(tmp_path: Path) -> None:
    run_dir = run_main(tmp_path, anneal_lr=True, log_every=40)
    steps = range(40, 321, 40)
    assert curve(run_dir, "charts/learning_rate") == pytest.approx({s: 1e-3 * (1 - (s - 40) / 320) for s in steps})
    expected = {s: max(1 - 0.8 * (s - 40) / 160, 0.2) for s in steps}
    assert curve(run_dir, "charts/epsilon") == pytest.approx(expected)


def test_the_last_rollout_is_a_whole_one(tmp_path: Path) -> None:
    run_dir = run_main(tmp_path, total_timesteps=330)  # nine rollouts of 40
    assert list(curve(run_dir, "eval/episodic_return")) == [160, 320, 360]
    assert list(curve(run_dir, "losses/td_loss")) == [80, 160, 240, 320, 360]


@pytest.mark.parametrize("task", ["Pong-v5", "CartPole-v1"])
def test_tasks_with_settings_of_their_own_have_them_at_every_size(task: str) -> None:
    """What size small sets for any task does not shine through."""
    words = ["--env-id", task, "--device", "cpu"]
    small, reference = (config.parse(Args, pqn.presets, [*words, "--size", s]).args for s in ("small", "reference"))
    assert replace(small, size="reference") == reference
    if task == "Pong-v5":  # CleanRL's
        assert (small.num_envs, small.num_steps, small.num_minibatches, small.update_epochs) == (8, 128, 4, 4)
        assert (small.learning_rate, small.q_lambda, small.gamma, small.max_grad_norm) == (2.5e-4, 0.65, 0.99, 10.0)
        assert (small.epsilon_start, small.epsilon_end, small.exploration_fraction) == (1.0, 0.01, 0.1)
        assert small.anneal_lr and not small.reward_norm and not small.obs_norm


ATARI = {"num_envs": 2, "eval_envs": 2, "env_threads": 1, "critic_hidden": (16,), "num_steps": 64, "update_epochs": 1}


def test_atari_scores_are_those_of_whole_games(tmp_path: Path) -> None:
    """With true rewards, in training and in evaluation: 0 is a random player of Breakout, 1 a human."""
    pytest.importorskip("envpool")
    changes = {**ATARI, "total_timesteps": 640, "log_every": 640, "eval_every": 640, "eval_epsilon": 1.0}
    run_dir = run_main(tmp_path, env_id="Breakout-v5", epsilon_end=1.0, **changes)
    for prefix in ("charts/", "eval/"):
        returned = curve(run_dir, f"{prefix}episodic_return")
        score = curve(run_dir, f"{prefix}human_normalised_score")
        assert returned and score == pytest.approx({step: (x - 1.7) / (30.5 - 1.7) for step, x in returned.items()})
        # Games of five lives, not single ones: a random player loses one in about 30 steps.
        assert curve(run_dir, f"{prefix}episodic_length")[640] > 100


def test_only_the_learner_of_atari_sees_lives_and_signs() -> None:
    pytest.importorskip("envpool")
    _, env, eval_env = pqn.build(tiny(env_id="SpaceInvaders-v5", **ATARI))
    for one, seen in ((env, [0, 1]), (eval_env, [0, 5, 10, 15, 20, 25, 30, 200])):
        one.reset()
        g = torch.Generator().manual_seed(0)
        steps = [one.step(torch.randint(6, (2,), generator=g)) for _ in range(300)]
        rewards = torch.stack([step.reward for step in steps]).unique().tolist()
        assert set(rewards) <= set(seen) and max(rewards) > (0 if one is env else 1)
        assert all(("game_over" in step.metrics) == (one is env) for step in steps)


# ---- learning --------------------------------------------------------------------------------------------------------

LEARNING = {
    "device": "cpu",
    "size": "small",
    "eval_envs": 16,
    "log_every": 0,
    "save_every": 0,
    "num_envs": 32,
    "num_steps": 32,
    "num_minibatches": 16,
    "update_epochs": 4,
    "learning_rate": 1e-3,
    "anneal_lr": True,
    "epsilon_end": 0.05,
    "exploration_fraction": 0.5,
    "critic_hidden": (64, 64),
    "sem_critic_groups": 16,
    "sem_critic_vertices": 4,
    "amp": "off",
    "threads": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_the_critic_learns_the_optimal_values(sem: bool, tmp_path: Path) -> None:
    """Of all three actions in all nine places: within 2% of the range of V*, and the best action is optimal.

    With one-step targets, whose fixed point is Q*; longer ones are of actions that were drawn, too. Both wrong
    bootstraps are further off: value after a termination, and none after a time-out.
    """
    gamma = 0.7
    args = {**LEARNING, "env_id": "ClosedFormDiscrete-v0", "sem": sem, "gamma": gamma, "q_lambda": 0.0}
    args |= {"num_envs": 128, "num_steps": 16, "total_timesteps": 204_800, "epsilon_end": 0.2, "reward_norm": False}
    run_dir = run_main(tmp_path, **args, eval_every=0)
    agent, _ = make_agent(replace(Args(), **args), seed=7)
    agent.load_state_dict(newest_checkpoint(run_dir)[0].load("agent"))
    obs = torch.linspace(-1, 1, 9)[:, None]
    with torch.no_grad():
        value = agent(obs)
    expected = torch.stack([optimal_q(obs, torch.full((9,), action), gamma) for action in range(3)], 1)
    best = expected.amax(1)
    spread = best.max() - best.min()
    assert ((value - expected).abs() / spread).mean() < 0.02
    chosen = expected.gather(1, agent.act(obs)[:, None])[:, 0]
    assert ((best - chosen) / spread).max() < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("sem", [True, False])
def test_balances_the_pole(sem: bool, tmp_path: Path) -> None:
    """Random actions last 20 steps, a wrong sign 10; the task counts as solved at 475 of 500."""
    pytest.importorskip("envpool")
    args = {**LEARNING, "env_id": "CartPole-v1", "sem": sem, "env_threads": 1, "total_timesteps": 102_400}
    run_dir = run_main(tmp_path, **args, eval_every=102_400, reward_norm=True)
    assert curve(run_dir, "eval/episodic_return")[102_400] >= 475


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_compiled_updates_equal_eager_ones() -> None:
    agents = [make_agent(tiny(sem=True, compile=compiled))[0] for compiled in (False, True)]
    env = envs.make("ClosedFormDiscrete-v0", 4)
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


def test_a_run_can_start_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = (
        "--env-id ClosedFormDiscrete-v0 --num-envs 4 --num-steps 10 --num-minibatches 4 --total-timesteps 80 --quiet"
    )
    words += " --eval-every 0 --critic-hidden 16 16 --sem-critic-groups 4 --sem-critic-vertices 4"
    assert pqn.main([*words.split(), "--sem", "--run-dir", str(tmp_path / "source")]) == 0
    seen = []
    monkeypatch.setattr(pqn, "train", lambda run, agent, *_: seen.append(agent) or {})
    source = ["--init-from", str(tmp_path / "source")]
    assert pqn.main([*words.split(), *source, "--run-dir", str(tmp_path / "new"), "--seed", "9"]) == 0
    saved = newest_checkpoint(tmp_path / "source")[0].load("agent")["modules"]
    mine = seen[0].modules.state_dict()
    assert seen[0].args.sem and mine.keys() == saved.keys()
    assert all(torch.equal(x, saved[name]) for name, x in mine.items() if name != "reward_scale.running")
    with pytest.raises(SystemExit):
        pqn.main([*words.split(), *source, "--no-sem", "--run-dir", str(tmp_path / "other")])
