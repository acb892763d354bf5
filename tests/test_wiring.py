"""What `build` and `train` connect: whether settings, seeds, observations and rewards arrive where they should.

Each agent trains for a few hundred frames in environments of the torch backend that write down what they were asked
and what they answered. From that alone the tests compute what must be in the replay buffer, the normalisers, the
losses, the learning rates and the metrics.
"""

import csv
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium.spaces import Discrete
from scipy import stats
from torch import Tensor
from torch.nn.utils import parameters_to_vector

import envs
from agents import fastsac, fasttd3, ppo, pqn
from agents.run import Run
from envs.base import Step, VecEnv, spawn_seeds
from envs.torch import PointMass, State

MODULES: dict[str, ModuleType] = {"fasttd3": fasttd3, "fastsac": fastsac, "ppo": ppo, "pqn": pqn}
LEARNERS = ("fasttd3", "fastsac")  # from a replay buffer
ROLLOUTS = ("ppo", "pqn")
every_agent = pytest.mark.parametrize("kind", MODULES)
every_learner = pytest.mark.parametrize("kind", LEARNERS)

SEED, N, T, BATCH = 7, 4, 10, 32
COMMON: dict[str, Any] = {
    "env_id": "PointMass-v0",
    "device": "cpu",
    "seed": SEED,
    "num_envs": N,
    "eval_envs": 3,
    "total_timesteps": 240,
    "log_every": 0,
    "eval_every": 0,
    "save_every": 0,
    "gamma": 0.9,
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "amp": "off",
    "threads": 1,
}
OFF_POLICY = {
    **COMMON,
    "learning_starts": 42,  # within a step: the first updates are at 44 frames
    "batch_size": BATCH,
    "buffer_size": 10_000,
    "num_updates": 2,
    "policy_frequency": 2,
    "critic_lr": 1e-3,
    "critic_lr_end": 2e-4,
    "actor_lr": 2e-3,
    "actor_lr_end": 3e-3,
    "atoms": 11,
    "v_min": -5.0,
    "v_max": 10.0,
}
ON_POLICY = {**COMMON, "num_steps": T, "num_minibatches": 5, "update_epochs": 3, "learning_rate": 3e-3}
CRITIC_ONLY = {
    **{name: value for name, value in ON_POLICY.items() if "actor" not in name},
    "env_id": "PointMassDiscrete-v0",
}
SETTINGS = {**dict.fromkeys(LEARNERS, OFF_POLICY), "ppo": ON_POLICY, "pqn": CRITIC_ONLY}
TASK = {kind: settings["env_id"] for kind, settings in SETTINGS.items()}
LIMIT = 9
"""steps of an episode of the point mass here: many ends in a few frames, most of them within a rollout"""


# ---- environments that write down what happens to them ---------------------------------------------------------------


@dataclass
class Stream:
    """What followed a reset."""

    seed: int | None
    first: tuple[Tensor, Tensor]
    actions: list[Tensor] = field(default_factory=list)
    """as they were given"""
    steps: list[Step] = field(default_factory=list)

    def acted_on(self, view: str = "obs", count: int | None = None) -> Tensor:
        """[T, N, ...] observations for which the first `count` actions were chosen."""
        start = self.first[view == "critic_obs"]
        return torch.stack([start, *(getattr(step, view) for step in self.steps)])[: count or len(self.actions)]

    def answers(self, name: str) -> Tensor:
        """[T, N, ...] of a field of the steps."""
        return torch.stack([getattr(step, name) for step in self.steps])

    def ended(self) -> Tensor:
        """[T, N] bool."""
        return self.answers("terminated") | self.answers("truncated")


class Recorder(VecEnv):
    """An environment, what `envs.make` was asked for it, and what has happened in it."""

    def __init__(self, env: VecEnv, asked: dict[str, Any]) -> None:
        self.env, self.asked = env, asked
        self.deterministic, self.snapshots = env.deterministic, env.snapshots
        self.streams: list[Stream] = []
        self.listener: Callable[[Tensor, Tensor], None] = lambda obs, action: None
        """is told what was acted on and the action, as soon as it is known"""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    @property
    def only(self) -> Stream:
        """The stream of an environment that was reset once, without a seed."""
        (stream,) = self.streams
        assert stream.seed is None
        return stream

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        self.streams.append(Stream(seed, self.env.reset(seed)))
        return self.streams[-1].first

    def step_send(self, action: Tensor) -> None:
        stream = self.streams[-1]
        stream.actions.append(action.clone())
        self.listener(stream.steps[-1].obs if stream.steps else stream.first[0], action)
        self.env.step_send(action)

    def step_recv(self) -> Step:
        step = self.env.step_recv()
        self.streams[-1].steps.append(step)
        return step

    def step(self, action: Tensor) -> Step:
        self.step_send(action)
        return self.step_recv()

    def state_dict(self) -> dict[str, Any]:
        return self.env.state_dict()


class PointMassDiscrete(PointMass):
    """The point mass, pushed along an axis or left alone."""

    action_space = Discrete(5)  # type: ignore[assignment]
    FORCES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    def advance(self, state: State, action: Tensor) -> tuple:
        return super().advance(state, self.FORCES[action])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Recorder]]:
    """All environments that the test has had made: those to train in first, those to evaluate in second."""
    recorders: list[Recorder] = []
    make, threads = envs.make, torch.get_num_threads()

    def make_recorder(
        task: str, num_envs: int, seed: int = 0, device: Any = "cpu", backend: str = "auto", **options: Any
    ) -> VecEnv:
        asked = {"task": task, "num_envs": num_envs, "seed": seed, "device": str(device), "backend": backend, **options}
        limit = {"max_episode_steps": LIMIT} if task.startswith("PointMass") else {}
        recorders.append(Recorder(make(task, num_envs, seed, device, backend, **limit), asked))
        return recorders[-1]

    monkeypatch.setattr(envs, "make", make_recorder)
    monkeypatch.setitem(envs.torch.TASKS, "PointMassDiscrete-v0", PointMassDiscrete)
    yield recorders
    torch.set_num_threads(threads)


class Trained(NamedTuple):
    """What a training leaves behind."""

    agent: Any
    replay: Any
    stream: Stream
    score: dict[str, float]


def resolved(kind: str, **changes: Any) -> Any:
    """Settings of an agent, ready for `build`."""
    module = MODULES[kind]
    return module.resolve(replace(module.Args(), **{**SETTINGS[kind], **changes}))


def train(kind: str, root: Path, watch: Callable[[Any, Recorder], None] | None = None, **changes: Any) -> Trained:
    """Build and train; `watch` gets the agent and the environment between the two."""
    args = resolved(kind, **changes)
    built = MODULES[kind].build(args)
    agent, replay, env = built[0], built[1], built[-2]
    if watch is not None:
        watch(agent, env)
    with Run.create(args, root=root, quiet=True) as run:
        score = MODULES[kind].train(run, *built)
        run.finish()
    return Trained(agent, replay, env.only, score)


def spy(target: Any, name: str, listener: Callable[..., None]) -> None:
    """Have a listener called before each call of a method, with the same arguments."""
    method = getattr(target, name)

    def heard(*args: Any) -> Any:
        listener(*args)
        return method(*args)

    setattr(target, name, heard)


def spread(agent: Any) -> None:
    """Make the policy depend on what it sees: from one step to the next by more than the noise of these tests."""
    generator = torch.Generator().manual_seed(0)
    weight = getattr(agent, "actor", getattr(agent, "critic", None)).head.weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)


def rows_of(run_dir: Path) -> dict[str, dict[int, float]]:
    """metrics.csv: by metric and step."""
    out: dict[str, dict[int, float]] = {}
    with open(run_dir / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            assert int(row["step"]) not in out.setdefault(row["metric"], {}), "logged twice"
            out[row["metric"]][int(row["step"])] = float(row["value"])
    return out


def numbers(first: Tensor) -> set[float]:
    """What was drawn for the first observations: all but the velocities, which are 0."""
    return set(first.flatten().tolist()) - {0.0}


# ---- independent computations ----------------------------------------------------------------------------------------


def mean_and_deviation(x: Tensor) -> tuple[Tensor, Tensor]:
    """[*] of observations [T, N, *], in float64."""
    flat = x.double().flatten(0, 1)
    return flat.mean(0), flat.std(0, correction=0)


def normalised(x: Tensor, learned: Tensor) -> Tensor:
    """Observations [..., *] on the scale of the learned ones [T, N, *]; as they are where nothing was learned."""
    if not len(learned):
        return x
    mean, deviation = mean_and_deviation(learned)
    return ((x.double() - mean) / (deviation + 0.01)).float()


def running_returns(reward: Tensor, ended: Tensor, gamma: float) -> Tensor:
    """[T, N] discounted sums of the rewards [T, N] of an episode so far, in float64."""
    out, running = [], torch.zeros(reward.shape[1], dtype=torch.float64)
    for r, e in zip(reward.double(), ended, strict=True):
        out.append(gamma * running + r)
        running = torch.where(e, 0.0, out[-1])
    return torch.stack(out)


def divisor(returns: Tensor, g_max: float) -> float:
    """What rewards are divided by after these running returns [T, N]."""
    return max(float(returns.std(correction=0)), float(returns.abs().max()) / g_max)


# ---- seeds -----------------------------------------------------------------------------------------------------------


@every_agent
def test_settings_reach_both_environments(kind: str, made: list[Recorder]) -> None:
    given = {"seed": 5, "num_envs": 6, "eval_envs": 3, "eval_every": 48, "env_threads": 2, "threads": 3}
    MODULES[kind].build(resolved(kind, **given, backend="torch"))
    asked = {"task": TASK[kind], "seed": 5, "device": "cpu", "backend": "torch", "num_threads": 2}
    assert [env.asked for env in made] == [{**asked, "num_envs": 6}, {**asked, "num_envs": 3}]
    assert torch.get_num_threads() == 3
    MODULES[kind].build(resolved(kind))
    assert len(made) == 3 and "num_threads" not in made[-1].asked  # no evaluation asked for


@every_agent
def test_training_begins_with_the_episodes_of_its_seed(kind: str, made: list[Recorder], tmp_path: Path) -> None:
    firsts = []
    for seed in (5, 6):
        stream = train(kind, tmp_path, seed=seed, total_timesteps=8).stream
        firsts.append(stream.first[0])
        assert torch.equal(firsts[-1], envs.make(TASK[kind], N, seed).reset()[0])
    assert not numbers(firsts[0]) & numbers(firsts[1])


@every_agent
def test_every_random_stream_depends_on_the_seed(kind: str, made: list[Recorder]) -> None:
    drawn: list[dict[str, Any]] = []
    for seed in (5, 5, 6):
        agent, *rest = MODULES[kind].build(resolved(kind, seed=seed))
        draws: dict[str, Callable[[], Any]] = {
            "random": random.random,
            "numpy": np.random.rand,
            "torch": torch.initial_seed,
        }
        streams = {name: draw() for name, draw in draws.items()}
        streams["networks"] = parameters_to_vector(agent.modules.parameters())
        if kind in LEARNERS:
            replay, env = rest[0], rest[1]
            replay.start(*env.reset())
            for _ in range(20):
                replay.add(torch.zeros(N, 2), env.step(torch.zeros(N, 2)))
            streams["replay"] = replay.draw(BATCH)
        drawn.append({name: np.asarray(torch.as_tensor(x).detach()) for name, x in streams.items()})
    one, same, other = drawn
    for name in one:
        assert np.array_equal(one[name], same[name]) and not np.array_equal(one[name], other[name]), name


# ---- acting ----------------------------------------------------------------------------------------------------------


SCALE = 0.05
LITTLE_NOISE: dict[str, dict[str, Any]] = {
    "fasttd3": {"std_min": 0.8 * SCALE, "std_max": SCALE},
    "fastsac": {"log_std_min": math.log(0.8 * SCALE), "log_std_max": math.log(SCALE)},
    "ppo": {"init_std": SCALE},
}


@torch.no_grad()
def noise_of(kind: str, agent: Any, obs: Tensor, action: Tensor) -> Tensor:
    """How far actions [N, A] are from the policy's best, in deviations of its noise."""
    if kind == "fasttd3":
        return (action - agent.act(obs)) / agent.noise_scale
    if kind == "fastsac":
        policy = agent.actor(agent.obs_norm(obs))
        return (action.double().atanh().float() - policy.mean) / policy.log_std.exp()
    normal = agent.normalise(obs, agent.obs_norm)
    policy, _ = agent(normal, normal)
    return (action - policy.mean) / policy.log_std.exp()


@pytest.mark.parametrize("kind", LITTLE_NOISE)
def test_actions_are_uniform_first_then_the_policy_of_now_and_its_noise(
    kind: str, made: list[Recorder], tmp_path: Path
) -> None:
    noise: list[Tensor] = []
    best: list[Tensor] = []

    def watch(agent: Any, env: Recorder) -> None:
        def listener(obs: Tensor, action: Tensor) -> None:
            noise.append(noise_of(kind, agent, obs, action))
            best.append(agent.act(obs))

        spread(agent)
        env.listener = listener

    starts = {"learning_starts": 44} if kind in LEARNERS else {}
    stream = train(kind, tmp_path, watch, **{**LITTLE_NOISE[kind], **starts}).stream
    uniform = [t * N < starts.get("learning_starts", 0) for t in range(240 // N)]
    assert [bool(z.abs().max() > 5) for z in noise] == uniform
    late = torch.stack(noise)[sum(uniform) :]
    inside = torch.stack(best)[sum(uniform) :].abs() < 1 - 4 * SCALE  # so that no noise is clipped
    assert inside.sum() > 50 and torch.stack(best).std() > 4 * SCALE
    assert stats.kstest(late[inside], "norm").pvalue > 1e-3
    if kind in LEARNERS:
        early = torch.stack(stream.actions[: sum(uniform)])
        assert stats.kstest(early.flatten(), stats.uniform(-1, 2).cdf).pvalue > 1e-3


@every_agent
def test_evaluations_are_of_the_best_actions_in_the_same_episodes(
    kind: str, made: list[Recorder], tmp_path: Path
) -> None:
    best: list[Tensor] = []

    def watch(agent: Any, env: Recorder) -> None:
        made[1].listener = lambda obs, _: best.append(agent.act(obs))
        spread(agent)

    fast = {"learning_rate": 0.1} if kind == "pqn" else {}  # else the best of five actions stays the best
    score = train(kind, tmp_path, watch, eval_every=80, **fast).score
    training, evaluation = made
    reference = envs.make(TASK[kind], 3, 0)
    first = reference.reset(spawn_seeds(SEED, 1, "evaluation")[0])[0]
    assert len(evaluation.streams) == 3
    for stream in evaluation.streams:
        assert torch.equal(stream.first[0], first)
    assert not numbers(first) & numbers(training.only.first[0])
    assert torch.equal(torch.cat(best), torch.cat([x for stream in evaluation.streams for x in stream.actions]))
    returns = [stream.answers("reward")[:LIMIT].double().sum(0) for stream in evaluation.streams]
    assert score["episodic_return"] == pytest.approx(float(returns[-1].mean()))
    assert score["episodes"] == 3 and score["episodic_length"] == LIMIT
    (run_dir,) = tmp_path.iterdir()
    logged = rows_of(run_dir)["eval/episodic_return"]
    assert logged == pytest.approx({80 * (i + 1): float(x.mean()) for i, x in enumerate(returns)})
    assert len(set(logged.values())) == 3  # of policies that have changed


# ---- replay ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "changes"),
    [
        ("ClosedForm-v0", {"n_step": 1}),
        ("PointMassPrivileged-v0", {"n_step": 3, "replay_dtype": "bfloat16", "buffer_size": 150}),
    ],
    ids=["one step", "three steps"],
)
@every_learner
def test_replay_holds_what_was_executed_and_what_came_of_it(
    kind: str, env_id: str, changes: dict[str, Any], made: list[Recorder], tmp_path: Path
) -> None:
    loud = {"std_min": 1.0, "std_max": 1.0} if kind == "fasttd3" else {}
    agent, replay, stream, _ = train(kind, tmp_path, env_id=env_id, **{**changes, **loud})
    n, gamma, count = agent.args.n_step, agent.args.gamma, len(stream.steps)
    assert count == 60
    lives = min(60, math.ceil(agent.args.buffer_size / N))  # steps; the oldest are overwritten
    assert len(replay) == lives * N
    where = [(t, i) for t in range(count - lives, count) for i in range(N)]
    batch = replay.gather(torch.tensor([t * N + i for t, i in where]))
    executed = torch.stack(stream.actions).clamp(-1, 1)
    assert kind != "fasttd3" or (executed.abs() == 1).float().mean() > 0.1
    reward, terminated, ended = stream.answers("reward"), stream.answers("terminated"), stream.ended()
    assert ended.sum() > 8 and (terminated.any() or n > 1)
    seen = {view: stream.acted_on(view) for view in ("obs", "critic_obs")}
    successors = {view: stream.answers(f"next_{view}") for view in seen}

    def stored(obs: Tensor) -> Tensor:
        return obs.bfloat16().float() if agent.args.replay_dtype == "bfloat16" else obs

    for row, (t, i) in enumerate(where):
        last, total = t, float(reward[t, i])
        while last - t + 1 < n and last + 1 < count and not ended[last, i]:
            last += 1
            total += gamma ** (last - t) * float(reward[last, i])
        assert torch.equal(batch["action"][row], executed[t, i])
        assert float(batch["reward"][row]) == pytest.approx(total, rel=1e-5, abs=1e-6)
        discount = 0.0 if terminated[last, i] else gamma ** (last - t + 1)
        assert float(batch["discount"][row]) == pytest.approx(discount)
        for view, x in seen.items():
            assert torch.equal(batch[view][row], stored(x[t, i]))
            if discount:  # what follows a termination is not looked at
                assert torch.equal(batch[f"next_{view}"][row], stored(successors[view][last, i]))


# ---- learning from it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("starts", "updates", "frequency"), [(42, 2, 2), (0, 1, 3), (100, 3, 1)], ids=["42", "at once", "100"]
)
@every_learner
def test_updates_begin_on_time_and_are_as_many_as_asked(
    kind: str, starts: int, updates: int, frequency: int, made: list[Recorder], tmp_path: Path
) -> None:
    at: list[int] = []
    batches: list[Tensor] = []
    actors: list[Tensor] = []

    def watch(agent: Any, env: Recorder) -> None:
        def listener(batch: Any) -> None:
            at.append((len(env.only.actions) - 1) * N)
            assert batch.batch_size == (BATCH,)
            batches.append(batch["obs"].clone())
            actors.append(parameters_to_vector(agent.actor.parameters()).clone())

        spy(agent, "update", listener)

    changes = {"learning_starts": starts, "num_updates": updates, "policy_frequency": frequency}
    agent = train(kind, tmp_path, watch, total_timesteps=160, **changes).agent
    expected = [frames for frames in range(N, 160, N) if frames >= starts for _ in range(updates)]  # not of nothing
    assert at == expected
    assert not any(torch.equal(one, two) for one, two in pairwise(batches))
    actors.append(parameters_to_vector(agent.actor.parameters()))
    moved = [not torch.equal(one, two) for one, two in pairwise(actors)]
    assert moved == [(i + 1) % frequency == 0 for i in range(len(expected))]


@every_learner
def test_losses_get_normalised_views_and_scaled_rewards(kind: str, made: list[Recorder], tmp_path: Path) -> None:
    """By what was collected until then: the privileged view by its own statistics."""
    raw: list[Any] = []
    learned: dict[str, Tensor] = {}
    counts = {"critic_loss": 0, "actor_loss": 0}

    def watch(agent: Any, env: Recorder) -> None:
        def on_update(batch: Any) -> None:
            stream = env.only
            raw[:] = [batch]
            learned.update({view: stream.acted_on(view) for view in ("obs", "critic_obs")})
            done = len(stream.actions) - 1
            returns = running_returns(stream.answers("reward")[:done], stream.ended()[:done], 0.9)
            learned["divisor"] = torch.tensor(divisor(returns, g_max=1.0))  # the nearer end of the support

        def on_loss(name: str, batch: Any) -> None:
            counts[name] += 1
            (given,) = raw
            for view in ("obs", "critic_obs"):
                for key in (view, f"next_{view}"):
                    torch.testing.assert_close(batch[key], normalised(given[key], learned[view]), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(batch["reward"], (given["reward"] / learned["divisor"]).float(), msg="reward")
            for key in ("action", "discount"):
                assert torch.equal(batch[key], given[key])

        spy(agent, "update", on_update)
        spy(agent, "critic_loss", lambda batch: on_loss("critic_loss", batch))
        spy(agent, "actor_loss", lambda batch: on_loss("actor_loss", batch))

    train(kind, tmp_path, watch, env_id="PointMassPrivileged-v0", reward_norm=True, v_min=-1.0)
    assert counts == {"critic_loss": 98, "actor_loss": 49}
    assert learned["divisor"] > 1.5


NORMALISED = ("PointMass-v0", "PointMassPrivileged-v0", "ClosedForm-v0")


@pytest.mark.parametrize(
    ("kind", "env_id"),
    [
        *((kind, env_id) for kind in LITTLE_NOISE for env_id in NORMALISED),
        *(("pqn", env_id) for env_id in ("PointMassDiscrete-v0", "ClosedFormDiscrete-v0")),
    ],
)
def test_normalisers_learn_from_everything_once(kind: str, env_id: str, made: list[Recorder], tmp_path: Path) -> None:
    agent, _, stream, _ = train(kind, tmp_path, env_id=env_id, obs_norm=True, reward_norm=True, eval_every=80)
    norms = {"obs": agent.obs_norm, "critic_obs": getattr(agent, "critic_obs_norm", agent.obs_norm)}
    assert (norms["obs"] is norms["critic_obs"]) == (env_id != "PointMassPrivileged-v0")
    for view, norm in norms.items():
        learned = torch.stack([stream.first[view == "critic_obs"], *(getattr(step, view) for step in stream.steps)])
        if kind in ROLLOUTS:  # learns after a rollout, from what its steps have led to
            learned = learned[1:]
        mean, deviation = mean_and_deviation(learned)
        assert norm.count == learned.shape[0] * N
        torch.testing.assert_close(norm.mean64, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(1 / norm.scale, deviation.float() + 0.01, rtol=1e-5, atol=1e-6)
    returns = running_returns(stream.answers("reward"), stream.ended(), 0.9)
    scale = agent.reward_scale
    assert scale.count == returns.numel() == 240
    assert float(scale.total) == pytest.approx(float(returns.sum()), rel=1e-5)
    assert float(scale.square) == pytest.approx(float(returns.square().sum()), rel=1e-5)
    assert float(scale.largest) == pytest.approx(float(returns.abs().max()), rel=1e-5)


@every_agent
def test_every_update_has_the_learning_rate_of_the_schedule(kind: str, made: list[Recorder], tmp_path: Path) -> None:
    rates: list[tuple[float, ...]] = []
    expected: list[tuple[float, ...]] = []

    def watch(agent: Any, env: Recorder) -> None:
        def listener(_: Any) -> None:
            steps = len(env.only.actions) - 1  # before the last action, or before the rollout
            if kind in ROLLOUTS:
                rates.append((float(agent.optimizer.lr),))
                expected.append((3e-3 * (1 - (steps + 1 - T) * N / 240),))
            else:
                rates.append((float(agent.critic_optimizer.lr), float(agent.actor_optimizer.lr)))
                cosine = 0.5 * (1 + math.cos(math.pi * steps * N / 240))
                expected.append((2e-4 + 8e-4 * cosine, 3e-3 - 1e-3 * cosine))

        spy(agent, "update", listener)

    train(kind, tmp_path, watch, log_every=100, **({"lr_schedule": "linear"} if kind == "ppo" else {}))
    assert np.array(rates) == pytest.approx(np.array(expected))
    assert len(rates) == (6 if kind in ROLLOUTS else 98)
    (run_dir,) = tmp_path.iterdir()
    assert rows_of(run_dir)["charts/learning_rate"][240] == pytest.approx(rates[-1][0])


# ---- rollouts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["PointMassPrivileged-v0", "ClosedForm-v0"])
def test_the_learner_of_ppo_sees_what_the_actor_saw_and_what_came_of_it(
    env_id: str, made: list[Recorder], tmp_path: Path
) -> None:
    """Rewards scaled by what came before and clipped, advantages by recursion from the true successors' values."""
    args = {"gae_lambda": 0.8, "reward_norm": True, "reward_clip": 0.4, "obs_clip": 1.2, "init_std": 0.7}
    clipped: list[Tensor] = []
    sizes: list[int] = []

    def watch(agent: Any, env: Recorder) -> None:
        def seen(x: Tensor, learned: Tensor) -> Tensor:
            return normalised(x, learned).clamp(-1.2, 1.2)

        @torch.no_grad()
        def listener(rollout: Any) -> None:
            stream, done = env.only, len(env.only.steps) - T
            views = {}
            for view in ("obs", "critic_obs"):
                learned = stream.answers(view)[:done]
                views[view] = seen(stream.acted_on(view)[-T:], learned)
                views[f"next_{view}"] = seen(stream.answers(f"next_{view}")[-T:], learned)
            policy, value = agent(views["obs"].flatten(0, 1), views["critic_obs"].flatten(0, 1))
            _, next_value = agent(views["next_obs"].flatten(0, 1), views["next_critic_obs"].flatten(0, 1))
            value, next_value = value.view(T, N), next_value.view(T, N)
            action = torch.stack(stream.actions[-T:])
            normal = torch.distributions.Normal(policy.mean, policy.log_std.exp())
            reward, ended = stream.answers("reward"), stream.ended()
            if done:
                reward = (reward / divisor(running_returns(reward[:done], ended[:done], 0.9), math.inf)).float()
            clipped.append(reward[-T:].abs() > 0.4)
            reward, ended, terminated = reward[-T:].clamp(-0.4, 0.4), ended[-T:], stream.answers("terminated")[-T:]
            advantage = torch.zeros(T + 1, N)
            for t in reversed(range(T)):
                delta = reward[t] + 0.9 * torch.where(terminated[t], 0.0, next_value[t]) - value[t]
                advantage[t] = delta + 0.9 * 0.8 * torch.where(ended[t], 0.0, advantage[t + 1])
            expected = {
                "obs": views["obs"],
                "action": action,
                "log_prob": normal.log_prob(action.flatten(0, 1)).sum(-1).view(T, N),
                "value": value,
                "advantage": advantage[:T],
                "target": advantage[:T] + value,
                "valid": torch.ones(T, N),
            }
            if "critic_obs" in rollout:
                expected["critic_obs"] = views["critic_obs"]
            assert set(rollout.keys()) == set(expected) and ("critic_obs" in expected) == env.privileged
            for name, x in expected.items():
                torch.testing.assert_close(rollout[name], x, rtol=1e-3, atol=1e-4, msg=partial("{}: {}".format, name))

        spread(agent)
        spy(agent, "update", listener)
        spy(agent, "differentiate", lambda batch: sizes.append(len(batch["obs"])))

    agent, _, stream, _ = train("ppo", tmp_path, watch, env_id=env_id, **args)
    assert 0.05 < torch.stack(clipped).float().mean() < 0.95
    assert len(clipped) == 6 and stream.ended().sum() > 8
    assert sizes == [T * N // 5] * (6 * 3 * 5)  # rollouts, passes, minibatches
    assert agent.optimizer.count == 6 * 3 * 5


def test_the_learner_of_pqn_sees_what_it_saw_and_what_came_of_it(made: list[Recorder], tmp_path: Path) -> None:
    """Greedy actions but for a share of epsilon; rewards scaled by what came before and clipped; exact targets."""
    args = {"q_lambda": 0.8, "obs_norm": True, "obs_clip": 1.2, "reward_norm": True, "reward_clip": 0.4}
    args |= {"epsilon_start": 0.9, "epsilon_end": 0.1, "exploration_fraction": 0.5, "total_timesteps": 2_400}
    clipped: list[Tensor] = []
    strayed: list[float] = []

    def watch(agent: Any, env: Recorder) -> None:
        def seen(x: Tensor, learned: Tensor) -> Tensor:
            return normalised(x, learned).clamp(-1.2, 1.2)

        @torch.no_grad()
        def listener(rollout: Any) -> None:
            stream, done = env.only, len(env.only.steps) - T
            learned = stream.answers("obs")[:done]
            obs = seen(stream.acted_on()[-T:], learned)
            next_value = agent(seen(stream.answers("next_obs")[-T:], learned)).amax(-1)
            action = torch.stack(stream.actions[-T:])
            strayed.append((action != agent(obs).argmax(-1)).float().mean().item())
            reward, ended = stream.answers("reward"), stream.ended()
            if done:
                reward = (reward / divisor(running_returns(reward[:done], ended[:done], 0.9), math.inf)).float()
            clipped.append(reward[-T:].abs() > 0.4)
            reward, ended, terminated = reward[-T:].clamp(-0.4, 0.4), ended[-T:], stream.answers("terminated")[-T:]
            target = torch.zeros(T, N)
            for t in reversed(range(T)):
                after = torch.where(terminated[t], 0.0, next_value[t])
                longer = after if t == T - 1 else torch.where(ended[t], after, target[min(t + 1, T - 1)])
                target[t] = reward[t] + 0.9 * (0.8 * longer + 0.2 * after)
            expected = {"obs": obs, "action": action, "target": target, "valid": torch.ones(T, N)}
            assert set(rollout.keys()) == set(expected)
            for name, x in expected.items():
                torch.testing.assert_close(rollout[name], x, rtol=1e-3, atol=1e-4, msg=partial("{}: {}".format, name))

        spread(agent)
        spy(agent, "update", listener)

    agent, _, stream, _ = train("pqn", tmp_path, watch, **args)
    assert 0.05 < torch.stack(clipped).float().mean() < 0.95 and stream.ended().sum() > 50
    assert agent.optimizer.count == 60 * 3 * 5  # rollouts, passes, minibatches
    # Four of five random actions are not the greedy one.
    first, last = (np.mean(part) for part in (strayed[:5], strayed[30:]))
    assert first == pytest.approx(0.8 * 0.85, abs=0.12) and last == pytest.approx(0.8 * 0.1, abs=0.04)


# ---- frames ----------------------------------------------------------------------------------------------------------


@every_agent
def test_the_program_counts_frames_and_ends_with_metrics_evaluation_and_checkpoint(
    kind: str, made: list[Recorder], tmp_path: Path
) -> None:
    """Neither steps nor intervals divide the length here."""
    every = {"log_every": 74, "eval_every": 44, "save_every": 110}
    changes = {"num_envs": 6, "total_timesteps": 200, **every, "keep_checkpoints": 100}
    changes |= {"num_steps": 5} if kind in ROLLOUTS else {}
    words = []
    for name, value in {**SETTINGS[kind], **changes}.items():
        words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    assert MODULES[kind].main([*words, "--run-dir", str(tmp_path / "run"), "--quiet"]) == 0
    training, evaluation = made
    chunk = 6 * (5 if kind in ROLLOUTS else 1)
    end = math.ceil(200 / chunk) * chunk
    assert len(training.only.steps) * 6 == end

    def due(interval: int) -> list[int]:
        return sorted({math.ceil(x / chunk) * chunk for x in range(interval, end + 1, interval)} | {end})

    rows = rows_of(tmp_path / "run")
    assert list(rows["charts/SPS"]) == list(rows["charts/episodes"]) == due(74)
    loss = {"ppo": "losses/policy_loss", "pqn": "losses/td_loss"}.get(kind, "losses/qf_loss")
    assert list(rows[loss]) == due(74)
    assert list(rows["eval/episodic_return"]) == due(44)
    assert len(evaluation.streams) == len(due(44))
    saved = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [int(path.name.removeprefix("step_")) for path in saved] == due(110)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["step"] == end
    assert result["eval"]["episodic_return"] == rows["eval/episodic_return"][end]

    assert torch.equal(training.only.first[0], envs.make(TASK[kind], 6, SEED).reset()[0])
    ended = training.only.ended()
    assert sum(rows["charts/episodes"].values()) == ended.sum() == 6 * (end // 6 // LIMIT)
    returns = running_returns(training.only.answers("reward"), ended, 1.0)[ended].sum()
    means = rows["charts/episodic_return"]
    assert sum(x * rows["charts/episodes"][step] for step, x in means.items()) == pytest.approx(float(returns))
