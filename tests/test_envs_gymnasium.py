"""Gymnasium behind the contract: against single environments stepped by hand, and scripted ones for the corners."""

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Graph, MultiBinary, MultiDiscrete, Space, Text, Tuple, flatten
from gymnasium.vector.utils import batch_space, iterate
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import gymnasium, host
from envs.base import Step, TaskError, VecEnv, spawn_seeds

CPU = torch.device("cpu")
VECTOR = Box(-np.inf, np.inf, (2,), np.float64)


class Scripted(gym.Env[Any, Any]):
    """Counts its steps: observation (step, episode), reward the step; ends and breaks where the arguments say."""

    def __init__(
        self,
        terminate: int = 10**9,
        truncate: int = 10**9,
        break_reward: int = 10**9,
        break_obs: int = 10**9,
        success: int = 0,
        obs_space: Space[Any] = VECTOR,
        action_space: Space[Any] = Discrete(3),  # noqa: B008  spaces are not changed
    ) -> None:
        self.observation_space, self.action_space = obs_space, action_space
        self.ends = terminate, truncate
        self.breaks = break_reward, break_obs
        self.success = success
        self.episode = 0
        self.actions: list[Any] = []

    def _obs(self) -> Any:
        if self.observation_space is not VECTOR:
            return self.observation_space.sample()
        return np.array([np.inf if self.t == self.breaks[1] else self.t, self.episode])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        self.episode += 1
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.actions.append(action)
        reward = float("nan") if self.t == self.breaks[0] else float(self.t)
        info = {"success": self.t >= self.success} if self.success and self.t % 2 == 0 else {}
        return self._obs(), reward, self.t >= self.ends[0], self.t >= self.ends[1], info


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gym.register("Scripted-v0", Scripted)
    gym.register("ScriptedLimit-v0", Scripted, max_episode_steps=4)
    yield
    del gym.registry["Scripted-v0"], gym.registry["ScriptedLimit-v0"]


def make(task: str, num_envs: int = 2, seed: int = 3, **options: Any) -> Any:
    return gymnasium.make(task, num_envs, seed, CPU, **options)


def actions(env: VecEnv, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(env.action_space, Discrete):
        return list(torch.randint(int(env.action_space.n), (count, env.num_envs), generator=generator))
    return list(torch.rand(count, env.num_envs, *env.action_space.shape, generator=generator) * 2 - 1)


def rollout(env: VecEnv, count: int, seed: int = 0) -> list[Step]:
    env.reset()
    return [env.step(action) for action in actions(env, count, seed)]


@pytest.mark.parametrize(
    ("task", "steps", "bound"),
    [("CartPole-v1", 80, None), ("Pendulum-v1", 250, 2.0), ("Hopper-v5", 60, 1.0), ("Humanoid-v5", 40, 0.4)],
)
def test_equals_single_environments_stepped_by_hand(task: str, steps: int, bound: float | None) -> None:
    env = make(task)
    stream = actions(env, steps)
    first, _ = env.reset()
    trail = [env.step(action) for action in stream]
    for i, seed in enumerate(spawn_seeds(3, 2, "gymnasium")):
        oracle, episodes = gym.make(task), 0
        obs, _ = oracle.reset(seed=seed)
        assert np.array_equal(first[i], obs.astype(np.float32))
        for action, step in zip(stream, trail, strict=True):
            value = action[i].numpy()
            obs, reward, terminated, truncated, _ = oracle.step(
                value if bound is None else (value * np.float64(np.float32(bound))).astype(np.float32)
            )
            assert np.array_equal(step.next_obs[i], np.asarray(obs, np.float32))
            assert step.reward[i] == np.float32(reward)
            assert step.terminated[i] == terminated and step.truncated[i] == (truncated and not terminated)
            if terminated or truncated:
                obs, _ = oracle.reset()
                episodes += 1
            assert np.array_equal(step.obs[i], np.asarray(obs, np.float32)) and step.valid[i]
        assert episodes > 0


def test_termination_on_the_step_of_the_limit_is_no_truncation() -> None:
    for step_limit, name in ((3, "terminated"), (2, "truncated")):
        steps = rollout(make("Scripted-v0", terminate=3, max_episode_steps=step_limit), 6)
        for t, step in enumerate(steps, 1):
            for flag in ("terminated", "truncated"):
                assert (getattr(step, flag) == (t % step_limit == 0 and flag == name)).all()
    for step in rollout(make("Scripted-v0", terminate=2, truncate=2), 6)[1::2]:  # both at once, by the task itself
        assert step.terminated.all() and not step.truncated.any()


def test_an_episode_ends_within_its_last_step() -> None:
    env = make("ScriptedLimit-v0")
    assert env.max_episode_steps == 4
    obs, critic_obs = env.reset()
    assert obs is critic_obs and obs.tolist() == [[0, 1], [0, 1]]
    returns = torch.zeros(2)
    for t in range(1, 13):
        step = env.step(torch.zeros(2, dtype=torch.int64))
        episode, age = divmod(t - 1, 4)
        assert step.next_obs.tolist() == [[age + 1, episode + 1]] * 2
        assert step.obs.tolist() == ([[0, episode + 2]] * 2 if age == 3 else step.next_obs.tolist())
        assert (step.obs is step.next_obs) == (age < 3)
        returns += step.reward
        if age == 3:
            assert returns.tolist() == [10, 10]  # 1 + 2 + 3 + 4, in the second episode too
            returns.zero_()


def test_the_clock_of_a_task_without_a_limit_is_unknown() -> None:
    assert make("Scripted-v0", truncate=5).max_episode_steps == 1
    assert make("Scripted-v0", max_episode_steps=9).max_episode_steps == 9
    steps = rollout(make("Scripted-v0", truncate=5), 10)
    assert [t for t, step in enumerate(steps, 1) if step.truncated.all()] == [5, 10]


def test_the_option_replaces_the_registered_limit() -> None:
    for limit in (3, 6):  # shorter and longer than the registered 4
        steps = rollout(make("ScriptedLimit-v0", max_episode_steps=limit), 12)
        assert [t for t, step in enumerate(steps, 1) if step.truncated.all()] == list(range(limit, 13, limit))


@pytest.mark.parametrize("where", ["break_reward", "break_obs"])
def test_numbers_that_are_not_finite_are_quarantined(where: str) -> None:
    env = make("Scripted-v0", max_episode_steps=4, terminate=9, **{where: 3})
    obs, _ = env.reset()
    for t, step in enumerate(rollout(env, 9), 1):
        broken = t % 3 == 0  # a new episode each time, so the limit of 4 is never reached
        assert (step.valid != broken).all() and (step.truncated == broken).all() and not step.terminated.any()
        assert all(tensor.isfinite().all() for tensor in (step.obs, step.next_obs, step.reward))
        if broken:
            assert (step.reward == 0).all()
            assert torch.equal(step.next_obs, obs)  # what was acted on
            assert (step.obs[:, 0] == 0).all()
        obs = step.obs


def test_a_broken_step_at_the_end_of_an_episode_is_quarantined_too() -> None:
    step = rollout(make("Scripted-v0", terminate=3, break_reward=3), 3)[-1]
    assert step.truncated.all() and not step.terminated.any() and not step.valid.any()


def test_an_episode_that_begins_with_nan_is_refused() -> None:
    with pytest.raises(TaskError, match="10 episodes begin"):
        make("Scripted-v0", break_obs=0).reset()


class BadStart(gym.Env[np.ndarray, np.ndarray]):
    """Every third episode of an environment begins with NaN; each lasts two steps, and says which one it is."""

    observation_space = Box(-np.inf, np.inf, (1,))
    action_space = Box(-1, 1, (1,))

    def __init__(self) -> None:
        self.episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self.episode, self.age = self.episode + 1, 0
        return np.array([np.nan if self.episode % 3 == 0 else self.episode], np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.age += 1
        return np.array([self.episode], np.float32), 0.0, self.age == 2, False, {}


def test_an_episode_that_begins_with_nan_is_begun_again() -> None:
    gym.register("BadStart-v0", BadStart, max_episode_steps=10)
    env = make("BadStart-v0")
    obs, _ = env.reset()
    assert obs.flatten().tolist() == [1, 1]
    seen = []
    for _ in range(8):
        step = env.step(torch.zeros(2, 1))
        assert step.valid.all()
        seen.append(step.obs[0].item())
    assert seen == [1, 2, 2, 4, 4, 5, 5, 7]


def test_success_stays_once_reported() -> None:
    steps = rollout(make("Scripted-v0", success=4), 7)  # reported at even steps
    expected: list[bool | None] = [None, False, False, True, False, True, False]
    for step, value in zip(steps, expected, strict=True):
        assert step.metrics.keys() == (set() if value is None else {"success"})
        if value is not None:
            assert step.metrics["success"].tolist() == [value, value]


def test_actions_are_clipped_and_mapped_to_the_bounds() -> None:
    low, high = np.array([[-2.0, 0.0, 5.0]]), np.array([[2.0, 1.0, 6.0]])
    env = make("Scripted-v0", action_space=Box(low, high, dtype=np.float64))
    assert env.action_space == Box(-1, 1, (3,), np.float32)
    env.reset()
    for value in (-1.0, 1.0, 0.0, 0.5, -9.0, 9.0):
        env.step(torch.full((2, 3), value))
    sent = np.array(env._vector.envs[1].unwrapped.actions)
    middle = (low + high) / 2
    expected = [low, high, middle, middle + 0.25 * (high - low), low, high]
    assert sent.shape == (6, 1, 3) and np.array_equal(sent, expected)


def test_discrete_actions_begin_where_the_task_begins() -> None:
    env = make("Scripted-v0", action_space=Discrete(3, start=-1))
    assert env.action_space == Discrete(3)
    env.reset()
    for value in range(3):
        env.step(torch.tensor([value, 2 - value]))
    assert env._vector.envs[0].unwrapped.actions == [-1, 0, 1]
    assert env._vector.envs[1].unwrapped.actions == [1, 0, -1]


LEAVES = st.one_of(
    st.builds(lambda shape: Box(-5, 5, tuple(shape), np.float64), st.lists(st.integers(1, 3), max_size=3)),
    st.builds(lambda n: Box(0, 255, (n,), np.uint8), st.integers(1, 3)),
    st.builds(lambda n, start: Discrete(n, start=start), st.integers(1, 4), st.integers(-2, 2)),
    st.builds(
        lambda nvec, start: MultiDiscrete(nvec, start=[start] * len(nvec)),
        st.lists(st.integers(1, 3), min_size=1, max_size=3),
        st.integers(-2, 2),
    ),
    st.builds(MultiBinary, st.integers(1, 4)),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Tuple, st.lists(inner, min_size=1, max_size=3)),
        st.builds(
            lambda names, spaces: Dict(list(zip(names, spaces, strict=False))),  # pairs keep their order, dicts do not
            st.permutations(["c", "a", "b"]),
            st.lists(inner, min_size=1, max_size=3),
        ),
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(SPACES)
def test_observations_are_flattened_as_gymnasium_does(space: Space[Any]) -> None:
    batch = batch_space(space, 3)
    batch.seed(0)
    sample = batch.sample()
    reader = host.ObsReader("task", space)
    rows = reader(sample)
    expected = np.array([flatten(space, row) for row in iterate(batch, sample)], np.float32)
    assert rows.dtype == np.float32 and rows.flags.c_contiguous
    assert rows.shape == (3, *reader.space.shape)
    np.testing.assert_array_equal(rows, expected)


def test_goal_tasks_and_privileged_states_are_recognised() -> None:
    box = Box(-1, 1, (2,), np.float32)
    goal = Dict({"observation": box, "achieved_goal": box, "desired_goal": box})
    env = make("Scripted-v0", obs_space=goal)
    env.reset()
    raw = env._vector._observations  # the order of a dict: sorted by Gymnasium
    assert env.obs_space.shape == (4,)
    assert np.array_equal(env._current[0], np.concatenate([raw["desired_goal"], raw["observation"]], axis=1))
    env = make("Scripted-v0", obs_space=Dict({"privileged_state": Box(-1, 1, (5,)), "state": box}))
    obs, critic_obs = env.reset()
    assert env.privileged and obs.shape == (2, 2) and critic_obs.shape == (2, 5)
    step = env.step(torch.zeros(2, dtype=torch.int64))
    assert step.obs.shape == (2, 2) and step.critic_obs.shape == step.next_critic_obs.shape == (2, 5)


@pytest.mark.parametrize("shape", [(4, 8, 8), (8, 6)])
def test_images_stay_bytes(shape: tuple[int, ...]) -> None:
    env = make("Scripted-v0", obs_space=Box(0, 255, shape, np.uint8), max_episode_steps=2)
    obs, _ = env.reset()
    assert env.obs_space == Box(0, 255, shape, np.uint8)
    for step in rollout(env, 4):
        assert step.obs.dtype == torch.uint8 and step.obs.shape == (2, *shape)
    assert obs.dtype == torch.uint8


def test_later_steps_do_not_overwrite_what_was_returned() -> None:
    env = make("Hopper-v5", max_episode_steps=6)
    env.reset()
    kept = [(step, [tensor.clone() for tensor in step[:8]]) for step in map(env.step, actions(env, 25))]
    for step, copies in kept:
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(step[:8], copies, strict=True))


def test_the_same_seed_gives_the_same_rollout_and_others_share_nothing() -> None:
    first = rollout(make("Hopper-v5"), 40)
    env = make("Hopper-v5", seed=8)
    rollout(env, 5)
    env.reset(seed=3)
    second = [env.step(action) for action in actions(env, 40)]
    for left, right in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left[:8], right[:8], strict=True))
    obs = torch.cat([make("Hopper-v5", 8, seed).reset()[0] for seed in range(4)])
    assert len(torch.unique(obs, dim=0)) == 32


def test_processes_give_what_one_process_gives() -> None:
    one, many = make("CartPole-v1"), make("CartPole-v1", vectorization="async")
    assert torch.equal(one.reset()[0], many.reset()[0])
    for action in actions(one, 50):
        many.step_send(action)
        left, right = one.step(action), many.step_recv()
        assert all(torch.equal(a, b) for a, b in zip(left[:8], right[:8], strict=True))
    many.step_send(actions(one, 1)[0])
    assert many.reset(seed=3)[0].equal(one.reset(seed=3)[0])
    many.close()
    many.close()


def test_the_global_random_numbers_are_left_alone() -> None:
    def state() -> list[Any]:
        numpy_state = np.random.get_state()[1:3]  # noqa: NPY002  it is the global one that matters
        return [random.getstate(), numpy_state[0].tolist(), numpy_state[1], torch.get_rng_state().tolist()]

    before = state()
    rollout(make("Hopper-v5", max_episode_steps=3), 5)
    assert state() == before


def test_a_module_before_the_id_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        env = make("mine:Mine-v0")
        assert (env.task, env.max_episode_steps, env.obs_space.shape) == ("mine:Mine-v0", 7, (4,))
        assert env.reset()[0].shape == (2, 4)
        assert "Mine-v0" in gymnasium.tasks()
    finally:
        gym.registry.pop("Mine-v0", None)
        sys.modules.pop("mine", None)


def test_tasks_are_the_registry() -> None:
    assert {"CartPole-v1", "HalfCheetah-v4", "HalfCheetah-v5", "Scripted-v0"} <= set(gymnasium.tasks())
    assert not any("GymV2" in task for task in gymnasium.tasks())


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("CartPoel-v1", {}, "Did you mean: `CartPole`"),
        ("CartPole-v9", {}, "v9"),
        ("no_such_module:CartPole-v1", {}, "no_such_module"),
        ("CartPole-v1", {"colour": "red"}, "colour"),
        ("CartPole-v1", {"vectorization": "threads"}, '"sync" or "async"'),
        ("CartPole-v1", {"max_episode_steps": -1}, "at least 1"),
        ("CartPole-v1", {"num_envs": 0}, "num_envs is 0"),
        ("Scripted-v0", {"action_space": Box(-np.inf, np.inf, (2,))}, "unbounded"),
        ("Scripted-v0", {"action_space": MultiDiscrete([2, 3])}, "only Discrete or a Box of floats"),
        ("Scripted-v0", {"action_space": Box(0, 5, (2,), np.int64)}, "only Discrete or a Box of floats"),
        ("Scripted-v0", {"action_space": Dict({"a": Discrete(2)})}, "only Discrete or a Box of floats"),
        ("Scripted-v0", {"obs_space": Dict({"words": Text(5)})}, "Text has no vector form"),
        ("Scripted-v0", {"obs_space": Graph(Discrete(2), None)}, "Graph has no vector form"),
    ],
)
def test_mistakes_are_told_in_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        make(task, **options)
    assert "\n" not in str(error.value)


def test_an_action_of_the_wrong_shape_is_refused() -> None:
    env = make("Hopper-v5")
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(3,\), expected \(2, 3\)"):
        env.step(torch.zeros(3))
