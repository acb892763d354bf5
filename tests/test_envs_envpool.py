"""EnvPool behind the contract: against EnvPool itself with its reset rows taken out, and against Gymnasium."""

import random
from pathlib import Path
from typing import Any, NamedTuple

import envpool as engine
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, flatten
from optree import tree_leaves, tree_map

from envs import envpool, gymnasium
from envs.base import Step, TaskError, VecEnv, spawn_seeds

CPU = torch.device("cpu")


def make(task: str, num_envs: int = 2, seed: int = 3, **options: Any) -> VecEnv:
    return envpool.make(task, num_envs, seed, CPU, **{"num_threads": 1, **options})


def actions(env: VecEnv, count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(env.action_space, Discrete):
        return list(torch.randint(int(env.action_space.n), (count, env.num_envs), generator=generator))
    return list(torch.rand(count, env.num_envs, *env.action_space.shape, generator=generator) * 2 - 1)


def rollout(env: VecEnv, count: int, seed: int = 0) -> list[Step]:
    env.reset()
    return [env.step(action) for action in actions(env, count, seed)]


def assert_same(left: Step, right: Step) -> None:
    for name in Step._fields[:-1]:
        assert torch.equal(getattr(left, name), getattr(right, name)), name
    assert left.metrics.keys() == right.metrics.keys()
    assert all(torch.equal(left.metrics[name], right.metrics[name]) for name in left.metrics)


class Row(NamedTuple):
    """One transition of one environment."""

    obs: np.ndarray
    reward: float
    next_obs: np.ndarray
    ended: bool
    elapsed: int


def flat(space: Any, batch: Any) -> np.ndarray:
    """Rows as Gymnasium flattens them, goal tasks without `achieved_goal`; images as they are."""
    if isinstance(space, Box) and space.dtype == np.uint8:
        return batch
    if isinstance(space, Dict) and "desired_goal" in space.spaces:
        space = Dict([(key, child) for key, child in space.spaces.items() if key != "achieved_goal"])
    count = len(tree_leaves(batch)[0])
    rows = [flatten(space, tree_map(lambda values, i=i: values[i], batch)) for i in range(count)]
    return np.array(rows, np.float32)


def engine_rows(task: str, env_seed: int, stream: list[np.ndarray], **options: Any) -> tuple[list[Row], list[float]]:
    """What one environment of EnvPool answers to a stream of actions, and the rewards of its reset rows."""
    pool = engine.make_gymnasium(task, num_envs=1, seed=[env_seed], num_threads=1, **options)
    low, high = getattr(pool.action_space, "low", None), getattr(pool.action_space, "high", None)
    space = pool.observation_space
    obs, rows, reset_rewards = flat(space, pool.reset()[0])[0], [], []
    for action in stream:
        scaled = action[None] if low is None else (high + low) / 2 + action[None].astype(np.float64) * (high - low) / 2
        batch, reward, terminated, truncated, info = pool.step(scaled)
        ended = bool(terminated[0] or truncated[0])
        rows.append(Row(obs, float(reward[0]), flat(space, batch)[0], ended, int(info["elapsed_step"][0])))
        if ended:
            batch, reward, *_ = pool.step(scaled)
            reset_rewards.append(float(reward[0]))
        obs = flat(space, batch)[0]
    pool.close()
    return rows, reset_rewards


# Every trap of the engine shows here: next-step reset rows and their rewards, observations in dicts and of no
# dimension, ranges of actions, seeds, life loss, and limits that are part of an observation or of a reward.
@pytest.mark.parametrize(
    ("task", "steps", "options"),
    [
        ("CartPole-v1", 60, {}),
        ("Pendulum-v1", 17, {"max_episode_steps": 5}),
        ("Hopper-v5", 80, {"max_episode_steps": 25}),
        ("Pusher-v5", 8, {"max_episode_steps": 3}),
        ("Humanoid-v4", 40, {}),
        ("WalkerWalk-v1", 17, {"max_episode_steps": 5}),
        ("QuadrupedWalk-v1", 7, {"max_episode_steps": 3}),
        ("MetaWorld/Assembly-v3", 17, {"max_episode_steps": 5}),
        ("FetchPush-v4", 12, {"max_episode_steps": 5}),
        ("myoElbowPose1D6MRandom-v0", 12, {"max_episode_steps": 5}),
        ("AlohaHandOver-v1", 12, {"max_episode_steps": 5}),
        ("LunarLander-v3", 120, {}),
        ("MiniGrid-Empty-5x5-v0", 150, {}),
        ("Breakout-v5", 220, {"episodic_life": True, "noop_max": 5}),
        ("Pong-v5", 24, {"max_episode_steps": 10}),
    ],
)
def test_equals_the_engine_without_its_reset_rows(task: str, steps: int, options: dict[str, Any]) -> None:
    env = make(task, **options)
    stream = actions(env, steps)
    obs, _ = env.reset()
    trail = []
    for action in stream:
        step = env.step(action)
        trail.append((obs, step))
        obs = step.obs
    total_resets = []
    for i, env_seed in enumerate(spawn_seeds(3, 2, "envpool")):
        rows, reset_rewards = engine_rows(task, env_seed, [action[i].numpy() for action in stream], **options)
        total_resets += reset_rewards
        for (obs, step), row in zip(trail, rows, strict=True):
            ended = bool(step.terminated[i] | step.truncated[i])
            assert np.array_equal(obs[i], row.obs)
            assert step.reward[i] == row.reward
            assert np.array_equal(step.next_obs[i], row.next_obs)
            assert ended == row.ended
            assert ended or torch.equal(step.obs[i], step.next_obs[i])
            assert step.valid[i]
    assert len(total_resets) >= 2
    if "Walk-" in task or "Assembly" in task:
        assert min(total_resets) > 0  # what would have leaked into the returns


FAMILIES = {
    "CartPole-v1": ((4,), (4,), Discrete(2), 500),
    "Acrobot-v1": ((6,), (6,), Discrete(3), 500),
    "BipedalWalker-v3": ((24,), (24,), Box(-1, 1, (4,), np.float32), 1600),
    "HalfCheetah-v4": ((17,), (17,), Box(-1, 1, (6,), np.float32), 1000),
    "Humanoid-v5": ((348,), (348,), Box(-1, 1, (17,), np.float32), 1000),
    "CheetahRun-v1": ((17,), (17,), Box(-1, 1, (6,), np.float32), 1000),
    "G1JoystickFlatTerrain-v1": ((103,), (216,), Box(-1, 1, (29,), np.float32), 1000),
    "MetaWorld/Reach-v3": ((39,), (39,), Box(-1, 1, (4,), np.float32), 500),
    "myoElbowPose1D6MRandom-v0": ((9,), (9,), Box(-1, 1, (6,), np.float32), 100),
    "FetchReach-v4": ((13,), (13,), Box(-1, 1, (4,), np.float32), 50),
    "AdroitHandDoor-v1": ((39,), (39,), Box(-1, 1, (28,), np.float32), 200),
    "Pong-v5": ((4, 84, 84), (4, 84, 84), Discrete(6), 27000),
    "CarRacing-v3": ((96, 96, 3), (96, 96, 3), Box(-1, 1, (3,), np.float32), 1000),
    "highway-v0": ((25,), (25,), Discrete(5), 40),
    "parking-v0": ((12,), (12,), Box(-1, 1, (2,), np.float32), 500),
    "MiniGrid-Empty-5x5-v0": ((247,), (247,), Discrete(7), 100),
    "BabyAI-ActionObjDoor-v0": ((663,), (663,), Discrete(7), 1),
    "Maze-v0": ((245,), (245,), Discrete(4), 100),
    "FrozenLake-v1": ((16,), (16,), Discrete(4), 100),
    "CliffWalking-v1": ((48,), (48,), Discrete(4), None),
}
SUCCESS = {"MetaWorld/Reach-v3", "myoElbowPose1D6MRandom-v0", "FetchReach-v4", "AdroitHandDoor-v1", "parking-v0"}


@pytest.mark.parametrize("task", FAMILIES)
def test_every_family_keeps_the_contract(task: str) -> None:
    shape, critic_shape, action_space, limit = FAMILIES[task]
    env = make(task)
    assert (env.task, env.backend, env.num_envs, env.max_episode_steps) == (task, "envpool", 2, limit)
    assert env.action_space == action_space
    assert env.obs_space.shape == shape and env.critic_obs_space.shape == critic_shape
    assert env.privileged == (shape != critic_shape)
    dtype = torch.uint8 if len(shape) == 3 else torch.float32
    assert env.obs_space.dtype == (np.uint8 if len(shape) == 3 else np.float32)
    obs, critic_obs = env.reset()
    for step in [None, *rollout(env, 3)]:
        views = (obs, critic_obs) if step is None else (step.obs, step.critic_obs)
        if step is not None:
            assert step.reward.dtype == torch.float32
            for flag in (step.terminated, step.truncated, step.valid):
                assert flag.dtype == torch.bool and flag.shape == (2,)
            assert step.valid.all()
            assert step.metrics.keys() == ({"success"} if task in SUCCESS else set())
            assert all(values.dtype == torch.bool and values.shape == (2,) for values in step.metrics.values())
            assert (step.next_critic_obs is step.next_obs) == (not env.privileged)
        assert views[0].shape == (2, *shape) and views[1].shape == (2, *critic_shape)
        assert all(view.dtype == dtype and view.is_contiguous() and view.device == CPU for view in views)
        assert (views[1] is views[0]) == (not env.privileged)
    env.close()
    env.close()


def test_privileged_state_goes_to_the_critic() -> None:
    pool = engine.make_gymnasium("G1JoystickFlatTerrain-v1", num_envs=2, seed=spawn_seeds(3, 2, "envpool"))
    raw, _ = pool.reset()
    obs, critic_obs = make("G1JoystickFlatTerrain-v1").reset()
    assert np.array_equal(obs, raw["state"].astype(np.float32))
    assert np.array_equal(critic_obs, raw["privileged_state"].astype(np.float32))


def test_dicts_keep_their_own_order() -> None:
    pool = engine.make_gymnasium("WalkerWalk-v1", num_envs=2, seed=spawn_seeds(3, 2, "envpool"))
    raw, _ = pool.reset()
    assert list(raw) == ["orientations", "height", "velocity"] and raw["height"].shape == (2,)  # neither sorted nor 2-D
    obs, _ = make("WalkerWalk-v1").reset()
    assert np.array_equal(obs[:, :14], raw["orientations"].astype(np.float32))
    assert np.array_equal(obs[:, 14], raw["height"].astype(np.float32))
    assert np.array_equal(obs[:, 15:], raw["velocity"].astype(np.float32))


@pytest.mark.parametrize(
    ("task", "key"),
    [("AdroitHandPen-v1", "success"), ("FetchPush-v4", "is_success"), ("myoElbowPose1D6MRandom-v0", "solved")],
)
def test_success_is_the_engines(task: str, key: str) -> None:
    env = make(task, num_envs=8)
    pool = engine.make_gymnasium(task, num_envs=8, seed=spawn_seeds(3, 8, "envpool"), num_threads=1)
    pool.reset()
    env.reset()
    total = 0
    for action in actions(env, 20):
        expected = pool.step(action.numpy())[-1][key] != 0
        assert np.array_equal(env.step(action).metrics["success"], expected)
        total += expected.sum()
    assert total > 0


@pytest.mark.parametrize(
    ("task", "low", "high"),
    [
        ("Pendulum-v1", [-2.0], [2.0]),
        ("Humanoid-v5", [-0.4] * 17, [0.4] * 17),
        ("QuadrupedWalk-v1", [-1.0, -1.0, -0.8] * 4, [1.0, 1.1, 0.8] * 4),
    ],
)
def test_actions_reach_the_bounds_and_are_clipped(task: str, low: list[float], high: list[float]) -> None:
    env = make(task)
    pool = engine.make_gymnasium(task, num_envs=2, seed=spawn_seeds(3, 2, "envpool"))
    env.reset()
    pool.reset()
    space, ends = pool.observation_space, np.array([low, high])
    for scale in (1.0, 7.0):  # each environment at one end of the range, then far beyond it
        step = env.step(torch.tensor([[-scale], [scale]]).expand(2, len(low)))
        batch, reward, *_ = pool.step(ends)
        assert np.array_equal(step.obs, flat(space, batch)) and np.array_equal(step.reward, reward)
    step = env.step(torch.zeros(2, len(low)))
    assert np.array_equal(step.obs, flat(space, pool.step(np.tile(ends.mean(axis=0), (2, 1)))[0]))


@pytest.mark.parametrize(
    ("task", "count"),
    [("CartPole-v1", 50), ("Hopper-v5", 50), ("G1JoystickFlatTerrain-v1", 50), ("MiniGrid-Empty-5x5-v0", 99)],
)
def test_termination_on_the_step_of_the_limit_is_no_truncation(task: str, count: int) -> None:
    steps = rollout(make(task, num_envs=4), count)
    lengths = [next((t for t, step in enumerate(steps, 1) if step.terminated[i]), count) for i in range(4)]
    limit = sorted(set(lengths))[-2]  # the longest episode is cut off, the next one just ends in time
    step = rollout(make(task, num_envs=4, max_episode_steps=limit), limit)[-1]
    for i, length in enumerate(lengths):
        if length >= limit:
            assert step.terminated[i] == (length == limit)
            assert step.truncated[i] == (length > limit)
            assert not torch.equal(step.obs[i], step.next_obs[i])


def test_truncation_comes_exactly_at_the_limit_of_each_environment() -> None:
    env = make("Hopper-v5", num_envs=8, max_episode_steps=20)
    elapsed = torch.zeros(8)
    seen = torch.zeros(2)
    for step in rollout(env, 120):
        elapsed += 1
        assert torch.equal(step.truncated, (elapsed == 20) & ~step.terminated)
        assert not (step.truncated & step.terminated).any()
        seen += torch.stack([step.truncated.sum(), step.terminated.sum()])
        elapsed[step.truncated | step.terminated] = 0
    assert (seen > 8).all()


def test_returns_are_right_from_the_second_episode_on() -> None:
    env = make("WalkerWalk-v1", max_episode_steps=4)
    steps = rollout(env, 12)
    returns = torch.stack([step.reward for step in steps]).view(3, 4, 2).sum(1)
    for i, env_seed in enumerate(spawn_seeds(3, 2, "envpool")):
        stream = [action[i].numpy() for action in actions(env, 12)]
        rows, _ = engine_rows("WalkerWalk-v1", env_seed, stream, max_episode_steps=4)
        expected = np.array([row.reward for row in rows], np.float32).reshape(3, 4).sum(1)
        np.testing.assert_allclose(returns[:, i], expected, rtol=1e-6)


def test_no_two_environments_share_a_stream() -> None:
    first = torch.cat([make("Hopper-v5", 16, seed).reset()[0] for seed in range(4)])
    assert len(torch.unique(first, dim=0)) == len(first)
    raw = [engine.make_gymnasium("Hopper-v5", num_envs=16, seed=seed).reset()[0] for seed in range(4)]
    assert len(np.unique(np.concatenate(raw), axis=0)) == 19  # EnvPool's own seeds: 3 new streams of 48


@pytest.mark.parametrize("task", ["Hopper-v5", "WalkerWalk-v1", "Breakout-v5"])
def test_the_same_seed_gives_the_same_rollout_whatever_the_threads(task: str) -> None:
    count, options = (8, {"max_episode_steps": 5}) if task == "Breakout-v5" else (40, {"max_episode_steps": 15})
    runs = [rollout(make(task, 4, num_threads=threads, **options), count) for threads in (1, 2)]
    env = make(task, 4, seed=8, **options)
    other = rollout(env, count)
    first, _ = env.reset(seed=3)
    runs.append([env.step(action) for action in actions(env, count)])
    assert torch.equal(first, make(task, 4, **options).reset()[0])
    for run in runs[1:]:
        for left, right in zip(runs[0], run, strict=True):
            assert_same(left, right)
    assert any(not torch.equal(left.obs, right.obs) for left, right in zip(runs[0], other, strict=True))


def test_send_and_recv_are_a_step() -> None:
    whole, halves = make("Hopper-v5", 4), make("Hopper-v5", 4, num_threads=2)
    whole.reset()
    halves.reset()
    for action in actions(whole, 60):
        halves.step_send(action)
        assert_same(whole.step(action), halves.step_recv())


def test_reset_and_close_forget_a_step_that_is_on_its_way() -> None:
    env, calm = make("Hopper-v5"), make("Hopper-v5")
    for other in (env, calm):
        other.reset()
    env.step_send(actions(env, 1)[0])
    calm.step(actions(env, 1)[0])
    assert torch.equal(env.reset()[0], calm.reset()[0])
    assert_same(env.step(actions(env, 1)[0]), calm.step(actions(env, 1)[0]))
    env.step_send(actions(env, 1)[0])
    assert torch.equal(env.reset(seed=3)[0], make("Hopper-v5").reset()[0])
    env.step_send(actions(env, 1)[0])
    env.close()


@pytest.mark.parametrize("task", ["Hopper-v5", "WalkerWalk-v1", "Pong-v5"])
def test_later_steps_do_not_overwrite_what_was_returned(task: str) -> None:
    env = make(task, max_episode_steps=6)
    env.reset()
    steps = []
    for action in actions(env, 25):
        step = env.step(action)
        steps.append((step, [tensor.clone() for tensor in step[:8]]))
    for step, copies in steps:
        assert all(torch.equal(tensor, copy) for tensor, copy in zip(step[:8], copies, strict=True))


@pytest.mark.parametrize("task", ["Pendulum-v1", "Hopper-v5"])  # NaN in observation and reward; in the reward alone
def test_numbers_that_are_not_finite_are_quarantined(task: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log about it
    env = make(task, num_envs=3, max_episode_steps=8)
    twin = make(task, num_envs=3, max_episode_steps=8)
    twin.reset()
    obs, _ = env.reset()
    elapsed = torch.zeros(3)
    for t, action in enumerate(actions(env, 20)):
        reference = twin.step(action)
        if t == 4:
            action[1] = torch.nan
        step = env.step(action)
        elapsed += 1
        broken = torch.tensor([False, t == 4, False])
        assert torch.equal(step.valid, ~broken)
        assert torch.equal(step.truncated, (elapsed == 8) | broken) and not step.terminated.any()
        for tensor in (step.obs, step.next_obs, step.reward):
            assert tensor.isfinite().all()
        if t == 4:
            assert torch.equal(step.next_obs[1], obs[1]) and step.reward[1] == 0
            assert not torch.equal(step.obs[1], obs[1])
        assert torch.equal(step.obs[::2], reference.obs[::2]) and torch.equal(step.reward[::2], reference.reward[::2])
        obs = step.obs
        elapsed[step.truncated] = 0


def test_lost_lives_terminate_but_the_game_goes_on() -> None:
    env = make("Breakout-v5", episodic_life=True, noop_max=1)
    lost, games = torch.zeros(2), torch.zeros(2)
    for step in rollout(env, 330):
        over = step.metrics["game_over"]
        assert not (over & ~step.terminated).any() and not step.truncated.any()
        lost += step.terminated
        games += over
        assert (lost[over] == 5).all()  # Breakout has five lives
        lost[over] = 0
    assert (games >= 1).all()


def test_the_limit_of_atari_counts_the_whole_game() -> None:
    env = make("Breakout-v5", episodic_life=True, noop_max=1, max_episode_steps=40)
    steps = rollout(env, 80)
    assert torch.stack([step.terminated for step in steps[:39]]).any(0).all()  # a life is lost every 25 steps or so
    for t, step in enumerate(steps, 1):
        assert torch.equal(step.metrics["game_over"], torch.full((2,), t % 40 == 0))
        assert torch.equal(step.truncated, step.metrics["game_over"] & ~step.terminated)


def test_a_life_lost_on_the_step_of_the_limit_ends_the_game() -> None:
    options = {"num_envs": 1, "episodic_life": True}
    limit = next(t for t, step in enumerate(rollout(make("Breakout-v5", **options), 60), 1) if step.terminated)
    env = make("Breakout-v5", max_episode_steps=limit, **options)
    steps = rollout(env, 2 * limit)
    assert steps[limit - 1].terminated and not steps[limit - 1].truncated
    assert [t for t, step in enumerate(steps, 1) if step.metrics["game_over"]] == [limit, 2 * limit]


def test_a_clipped_reward_comes_with_the_score() -> None:
    plain, clipped = rollout(make("Assault-v5"), 20), rollout(make("Assault-v5", reward_clip=True), 20)
    assert max(step.reward.max() for step in plain) == 21
    for left, right in zip(plain, clipped, strict=True):
        assert not left.metrics
        assert torch.equal(left.reward, right.metrics["raw_reward"])
        assert torch.equal(left.reward.sign(), right.reward)


# EnvPool has MuJoCo 3.6 inside. With another MuJoCo the first steps agree to 1e-6, and to the last bit with 3.6 itself.
@pytest.mark.parametrize(
    ("task", "steps"),
    [
        ("HalfCheetah-v5", 12),
        ("Hopper-v5", 60),
        ("Walker2d-v5", 45),
        ("Swimmer-v5", 12),
        ("InvertedPendulum-v5", 40),
        ("InvertedDoublePendulum-v5", 30),
        ("Ant-v5", 5),
        ("Humanoid-v5", 2),
    ],
)
def test_equals_gymnasium(task: str, steps: int) -> None:
    options = {"reset_noise_scale": 0.0, "max_episode_steps": 10 if task == "Swimmer-v5" else 1000}
    ours = make(task, **options)
    oracle = gymnasium.make(task, 2, 5, CPU, **options)
    np.testing.assert_allclose(ours.reset()[0], oracle.reset()[0], rtol=1e-6, atol=1e-7)
    ends = 0
    for action in actions(ours, steps):
        left, right = ours.step(action), oracle.step(action)
        for name in ("obs", "next_obs", "reward"):
            np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=2e-6, atol=2e-6, err_msg=name)
        assert torch.equal(left.terminated, right.terminated) and torch.equal(left.truncated, right.truncated)
        ends += int((left.terminated | left.truncated).sum())
    assert ends or steps < 13


def test_the_global_random_numbers_are_left_alone() -> None:
    def state() -> list[Any]:
        numpy_state = np.random.get_state()[1:3]  # noqa: NPY002  it is the global one that matters
        return [random.getstate(), numpy_state[0].tolist(), numpy_state[1], torch.get_rng_state().tolist()]

    before = state()
    rollout(make("Hopper-v5", max_episode_steps=3), 5)
    assert state() == before


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("Hoper-v5", {}, "did you mean Hopper-v5"),
        ("Nothing like it", {}, "has no task"),
        ("Hopper-v5", {"max_epsiode_steps": 5}, "did you mean max_episode_steps"),
        ("Hopper-v5", {"batch_size": 5}, "has no option 'batch_size'"),
        ("Hopper-v5", {"max_episode_steps": 0}, "at least 1"),
        ("Hopper-v5", {"max_episode_steps": 2.5}, "at least 1"),
        ("Hopper-v5", {"frame_skip": "many"}, "cannot load"),
        ("Hopper-v5", {"num_envs": 0}, "num_envs is 0"),
        ("LqrLqr21-v1", {}, "unbounded"),
        ("D1Basic-v1", {}, "unbounded"),
        ("BinPack-v2", {}, "only Discrete or a Box of floats"),
        ("TicTacToe-v1", {}, "2 players"),
    ],
)
def test_mistakes_are_told_in_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as error:
        make(task, **options)
    assert "\n" not in str(error.value)


def test_steps_out_of_order_are_refused_instead_of_hanging() -> None:
    env = make("Hopper-v5")
    with pytest.raises(RuntimeError, match="reset before the first step"):
        env.step(torch.zeros(2, 3))
    env.reset()
    with pytest.raises(RuntimeError, match="without a step_send"):
        env.step_recv()
    env.step_send(torch.zeros(2, 3))
    with pytest.raises(RuntimeError, match="step_recv before the next"):
        env.step_send(torch.zeros(2, 3))
    assert env.step_recv().valid.all()


def test_an_action_of_the_wrong_shape_is_refused() -> None:
    env = make("Hopper-v5")
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \(2, 3\)"):
        env.step(torch.zeros(2, 4))


def test_tasks_are_those_of_the_engine() -> None:
    tasks = envpool.tasks()
    assert set(FAMILIES) <= set(tasks) <= set(engine.list_all_envs())
    assert "TicTacToe-v1" not in tasks and tasks == sorted(tasks)
