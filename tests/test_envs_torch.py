"""The reference environments against what can be computed by hand, and how `envs.make` finds and refuses tasks."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import envs
import envs.list
import envs.torch as reference
from envs import check
from envs.base import Step, TaskError, VecEnv, vector_space
from envs.torch import ClosedForm, ClosedFormDiscrete, optimal_action, optimal_q, optimal_value

ROOT = Path(__file__).resolve().parents[1]

ALL = list(reference.TASKS)
CPU = torch.device("cpu")


def act(env: VecEnv, generator: torch.Generator) -> Tensor:
    if env.action_space.shape:
        return 2 * torch.rand(env.num_envs, *env.action_space.shape, generator=generator) - 1
    return torch.randint(int(env.action_space.n), (env.num_envs,), generator=generator)


def same(one: Step, other: Step) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one[:-1], other[:-1], strict=True))


def mean_reward(env: VecEnv, policy: Callable[[Tensor], Tensor]) -> float:
    """Of one episode under a policy of the actor's observations."""
    obs, _ = env.reset()
    total = 0.0
    for _ in range(env.max_episode_steps or 0):
        step = env.step(policy(obs))
        total += step.reward.mean().item()
        obs = step.obs
    return total / (env.max_episode_steps or 1)


# Scripted ends, against a loop in plain Python.


@settings(max_examples=40, deadline=None)
@given(
    script=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=3), min_size=1, max_size=4),
    limit=st.integers(1, 6),
    num_envs=st.integers(1, 5),
)
def test_scripted_ends(script: list[list[int]], limit: int, num_envs: int) -> None:
    env = envs.make("Scripted-v0", num_envs, script=script, max_episode_steps=limit)
    obs, critic_obs = env.reset()
    assert critic_obs is obs
    episode, clock = [0] * num_envs, [0] * num_envs
    ticket = obs[:, 4].tolist()
    for k in range(20):
        for i in range(num_envs):
            assert obs[i, :3].tolist() == [i, episode[i], clock[i]]
            assert obs[i, 4].item() == ticket[i]
        action = torch.full((num_envs, 1), k / 32)
        step = env.step(action)
        for i in range(num_envs):
            clock[i] += 1
            row = script[i % len(script)]
            ends = clock[i] == row[episode[i] % len(row)]
            late = clock[i] == limit and not ends
            assert step.next_obs[i].tolist() == [i, episode[i], clock[i], action[i, 0].item(), ticket[i]]
            assert step.reward[i].item() == 10_000 * i + 100 * episode[i] + clock[i]
            assert step.terminated[i].item() == ends
            assert step.truncated[i].item() == late
            assert torch.equal(step.obs[i], step.next_obs[i]) != (ends or late)
            if ends or late:
                episode[i], clock[i], ticket[i] = episode[i] + 1, 0, step.obs[i, 4].item()
                assert step.obs[i, 3] == 0
        assert step.valid.all()
        obs = step.obs


def test_scripted_default_has_every_kind_of_end() -> None:
    env = envs.make("Scripted-v0", 4)
    env.reset()
    steps = [env.step(torch.zeros(4, 1)) for _ in range(12)]
    kinds = [
        "".join("T" if s.terminated[i] else "t" if s.truncated[i] else "." for s in steps) for i in range(env.num_envs)
    ]
    assert kinds == ["..T..T..T..T", ".........t..", ".........T..", ".T.........t"]


# Quarantine.


def test_nan_is_quarantined() -> None:
    env = envs.make("Scripted-v0", 3, script=((0,),), nan_at=(1, 1, 4), max_episode_steps=6)
    obs, _ = env.reset()
    for k in range(1, 20):
        step = env.step(torch.full((3, 1), 0.5))
        hit = k == 10  # step 4 of the second episode
        assert step.valid.tolist() == [True, not hit, True]
        assert all(value.isfinite().all() for value in step[:-1])
        if hit:
            assert step.reward[1] == 0 and step.truncated[1] and not step.terminated[1]
            assert torch.equal(step.next_obs[1], obs[1])
            assert step.obs[1, :4].tolist() == [1, 2, 0, 0]  # a new episode
            assert step.reward[0] == 104
        obs = step.obs
    assert obs[:, 1].tolist() == [3, 3, 3] and obs[:, 2].tolist() == [1, 3, 1]  # 19 = 3 * 6 + 1 = 6 + 4 + 6 + 3


@pytest.mark.parametrize("task", ["PointMass-v0", "PointMassPrivileged-v0", "ClosedForm-v0"])
def test_nan_action_reaches_nobody_else(task: str) -> None:
    env, twin = envs.make(task, 3), envs.make(task, 3)
    obs, _ = env.reset()
    twin.reset()
    action = torch.full((3, *env.action_space.shape), 0.5)
    broken = action.clone()
    broken[1] = torch.nan
    step, clean = env.step(broken), twin.step(action)
    assert step.valid.tolist() == [True, False, True]
    assert torch.equal(step.next_obs[1], obs[1]) and step.reward[1] == 0
    others = torch.tensor([0, 2])
    assert all(torch.equal(a[others], b[others]) for a, b in zip(step[:-1], clean[:-1], strict=True))
    assert not any(value[1].any() for value in step.metrics.values())
    assert all(value.isfinite().all() for value in env.step(action)[:-1])


class Half(reference.PointMassPrivileged):
    """Breaks one part of the step of environment 0 at a time."""

    part = ""

    def advance(self, state: reference.State, action: Tensor) -> Any:
        new, reward, terminated, metrics = super().advance(state, action)
        if self.part == "reward":
            reward = reward.clone()
            reward[0] = torch.inf
        elif self.part:
            new[self.part] = new[self.part].clone()
            new[self.part][0, 1] = -torch.inf
        terminated[0] = True
        return new, reward, terminated, metrics


@pytest.mark.parametrize("part", ["reward", "error", "velocity"])  # seen by nobody, the actor alone, the critic alone
def test_each_part_alone_is_quarantined(part: str) -> None:
    env = Half(2, 0, CPU)
    obs, critic_obs = env.reset()
    env.part = part
    step = env.step(torch.ones(2, 2))
    assert step.valid.tolist() == [False, True]
    assert step.terminated.tolist() == [False, False] and step.truncated.tolist() == [True, False]
    assert torch.equal(step.next_obs[0], obs[0]) and torch.equal(step.next_critic_obs[0], critic_obs[0])
    assert all(value.isfinite().all() for value in step[:-1])


# Seeds, snapshots, ownership, the device.


@pytest.mark.parametrize("task", ALL)
def test_snapshot_continues_bit_for_bit(task: str) -> None:
    env, other = envs.make(task, 3, seed=1, max_episode_steps=7), envs.make(task, 3, seed=2, max_episode_steps=7)
    generator = torch.Generator().manual_seed(0)
    env.reset()
    for _ in range(10):
        env.step(act(env, generator))
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other.load_state_dict(state)
    for value in env.state_dict()["state"].values():
        value.zero_()  # the caller's
    for _ in range(20):
        action = act(env, generator)
        assert same(env.step(action), other.step(action))
    late = envs.make(task, 3, seed=3, max_episode_steps=7)
    late.load_state_dict(state)  # neither run has written into the snapshot
    again = envs.make(task, 3, seed=4, max_episode_steps=7)
    again.load_state_dict(late.state_dict())
    for value in state["state"].values():
        value.zero_()
    action = act(env, generator)
    assert same(late.step(action), again.step(action))


def test_snapshot_of_a_new_environment() -> None:
    env, other = envs.make("PointMass-v0", 2, seed=1), envs.make("PointMass-v0", 2, seed=2)
    other.load_state_dict(env.state_dict())
    assert torch.equal(env.reset()[0], other.reset()[0])


def test_snapshot_of_something_else_is_refused() -> None:
    state = envs.make("PointMass-v0", 2)
    state.reset()
    for wrong in (envs.make("PointMass-v0", 3), envs.make("ClosedForm-v0", 2)):
        with pytest.raises(TaskError, match="the state is of another task or number of environments"):
            wrong.load_state_dict(state.state_dict())


@pytest.mark.parametrize("task", ALL)
def test_callers_may_write_into_what_they_get(task: str) -> None:
    env, twin = envs.make(task, 3, max_episode_steps=5), envs.make(task, 3, max_episode_steps=5)
    generator = torch.Generator().manual_seed(0)
    for first in env.reset():
        first.zero_()
    twin.reset()
    for _ in range(12):
        action = act(env, generator)
        step, clean = env.step(action), twin.step(action)
        assert same(step, clean)
        for value in (*step[:-1], *step.metrics.values(), action):
            value.zero_()


def test_noise_does_not_depend_on_others() -> None:
    """What one environment draws is the same whether or not its neighbours end."""
    ends, never = (envs.make("Scripted-v0", 2, script=((0,), row), max_episode_steps=4) for row in ((1,), (0,)))
    ends.reset()
    never.reset()
    for _ in range(9):
        assert torch.equal(ends.step(torch.zeros(2, 1)).obs[0], never.step(torch.zeros(2, 1)).obs[0])


class NoSync(TorchDispatchMode):
    """Refuses what would make a GPU wait for the host, or copy from it."""

    FORBIDDEN = ("_local_scalar_dense", "equal", "lift_fresh", "masked_select", "nonzero")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} synchronises"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("task", ALL)
def test_step_never_waits_for_the_device(task: str) -> None:
    env = envs.make(task, 3, max_episode_steps=3)
    env.reset()
    action = act(env, torch.Generator().manual_seed(0))
    with NoSync():
        for _ in range(7):
            env.step(action)
    with pytest.raises(AssertionError, match="synchronises"), NoSync():
        bool(action.any())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", ALL)
def test_cuda(task: str) -> None:
    env = envs.make(task, 3, device="cuda", max_episode_steps=3)
    env.reset()
    action = act(env, torch.Generator().manual_seed(0)).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = [env.step(action) for _ in range(7)][-1]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(value.device == env.device for value in step[:-1])


def test_misuse() -> None:
    env = envs.make("PointMass-v0", 3)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(torch.zeros(3, 2))
    env.reset()
    with pytest.raises(ValueError, match=r"action has shape \(3,\), expected \(3, 2\)"):
        env.step(torch.zeros(3))
    assert not env.step(torch.zeros(3, 2, requires_grad=True)).reward.requires_grad


def test_default_dtype_is_not_used() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        for task in ALL:
            env = envs.make(task, 2)
            env.reset()
            step = env.step(act(env, torch.Generator().manual_seed(0)))
            assert step.reward.dtype == torch.float32 and step.obs.dtype in (torch.float32, torch.uint8)
    finally:
        torch.set_default_dtype(torch.float32)


# The closed form.

GAMMAS = (0.4, 0.9, 0.97, 0.99, 1.0)


@pytest.mark.parametrize("gamma", [0.0, *GAMMAS])
def test_bellman_residual_is_zero(gamma: float) -> None:
    """V(x) is the largest Q(x, a) over a dense grid of actions, and the optimal action attains it."""
    x = torch.linspace(-1, 1, 201, dtype=torch.float64)[:, None]
    action = torch.linspace(-1, 1, 2001, dtype=torch.float64)[:, None]
    best, at = optimal_q(x[:, None], action[None], gamma).max(1)
    value = optimal_value(x, gamma)
    assert (best - value).abs().max() < 1e-5  # of the grid: (1e-3 / 2)^2 times the curvature in a
    assert (best <= value + 1e-12).all()
    assert (action[at] - optimal_action(x, gamma)).abs().max() <= 5.1e-4
    assert (optimal_q(x, optimal_action(x, gamma), gamma) - value).abs().max() < 1e-12


@pytest.mark.parametrize("gamma", GAMMAS)
def test_value_iteration_agrees(gamma: float) -> None:
    """Value iteration from 0 on a grid of positions, knowing nothing but the text of the task."""
    x = np.linspace(-1, 1, 161)
    a = np.linspace(-1, 1, 321)
    successor = np.clip(x[:, None] + a / 4, -1, 1)
    reward = 1 - x[:, None] ** 2 - a**2
    value = np.zeros_like(x)
    for _ in range(350):  # 0.95^350 = 2e-8
        value = (reward + gamma * 0.95 * np.interp(successor, x, value)).max(1)
    exact = optimal_value(torch.tensor(x)[:, None], gamma).numpy()
    assert np.abs(value - exact).max() < 2e-3 * np.ptp(exact)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_value_iteration_agrees_discrete(gamma: float) -> None:
    x = np.arange(-4, 5) / 4
    move = np.array([-1, 0, 1])
    successor = np.clip(np.arange(9)[:, None] + move, 0, 8)
    reward = 1 - np.abs(x)[:, None] - 0.1 * np.abs(move)
    value = np.zeros(9)
    for _ in range(700):
        q = reward + gamma * 0.95 * value[successor]
        value = q.max(1)
    obs = torch.tensor(x)[:, None]
    assert np.allclose(optimal_value(obs, gamma, discrete=True), value, rtol=0, atol=1e-9)
    assert np.allclose(optimal_q(obs[:, None], torch.arange(3)[None], gamma), q, rtol=0, atol=1e-9)
    assert (q.argmax(1) == optimal_action(obs, gamma, discrete=True).numpy()).all()
    assert np.diff(np.sort(q, 1)[:, 1:]).min() > 1e-3  # one action is best everywhere


@pytest.mark.parametrize("discrete", [False, True])
def test_optimal_value_is_earned(discrete: bool) -> None:
    """Discounted returns of the optimal policy in the task itself, against the closed form."""
    num_envs, gamma = 20_000, 0.95
    task = "ClosedFormDiscrete-v0" if discrete else "ClosedForm-v0"
    env = envs.make(task, num_envs, max_episode_steps=200)
    obs, _ = env.reset()
    value = optimal_value(obs, gamma, discrete)
    earned, alive = torch.zeros(num_envs), torch.ones(num_envs, dtype=torch.bool)
    for k in range(120):
        step = env.step(optimal_action(obs, gamma, discrete))
        earned += torch.where(alive, gamma**k * step.reward, 0)
        alive &= ~step.terminated
        obs = step.obs
    error = (earned - value).mean() / ((earned - value).std() / num_envs**0.5)
    assert abs(error) < 3.5
    assert value.std() > 0.3
    weighted = ((earned - value) * (value - value.mean())).mean() / (value.var() * num_envs**-0.5)
    assert abs(weighted) < 3.5 * (earned - value).std() / value.std()  # and the slope in V is 1


@pytest.mark.parametrize("discrete", [False, True])
def test_q_is_what_a_step_gives(discrete: bool) -> None:
    """E[r + gamma V(next)] of random actions, ends by the rules of the contract, is Q."""
    gamma = 0.97
    env = envs.make("ClosedFormDiscrete-v0" if discrete else "ClosedForm-v0", 1000)
    obs, _ = env.reset()
    generator = torch.Generator().manual_seed(1)
    errors, ends = [], []
    for _ in range(100):
        action = act(env, generator)
        q = optimal_q(obs, action, gamma)
        step = env.step(action)
        target = step.reward + gamma * ~step.terminated * optimal_value(step.next_obs, gamma, discrete)
        errors.append(target - q)
        ends.append((step.terminated, step.truncated))
        obs = step.obs
    error = torch.cat(errors)
    assert abs(error.mean() / (error.std() / len(error) ** 0.5)) < 3.5
    terminated, truncated = (torch.stack(flags).float().mean(1) for flags in zip(*ends, strict=True))
    assert abs(terminated.mean() - ClosedForm.HAZARD) < 0.003
    assert truncated[:24].sum() == 0
    assert abs(truncated[24] - 0.95**25) < 0.05  # of the first episodes live to the limit, and do not end on it


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("wrong", ["truncation as termination", "bootstrap at termination"])
def test_wrong_bootstrap_shows(discrete: bool, wrong: str) -> None:
    """How far off the optimal policy's values are if one end is treated wrongly.

    A wrong target shifts the mean of the targets; learnt to the end, the shift feeds on itself like any other reward.
    """
    gamma = 0.97
    env = envs.make("ClosedFormDiscrete-v0" if discrete else "ClosedForm-v0", 2000)
    obs, _ = env.reset()
    shift = []
    for _ in range(50):
        step = env.step(optimal_action(obs, gamma, discrete))
        future = gamma * optimal_value(step.next_obs, gamma, discrete)
        right = future * ~step.terminated
        bad = future if wrong == "bootstrap at termination" else right * ~step.truncated
        shift.append((bad - right).mean().item())
        obs = step.obs
    grid = optimal_value(torch.linspace(-1, 1, 9)[:, None], gamma, discrete)
    error = abs(np.mean(shift)) / (1 - gamma * (1 - ClosedForm.HAZARD))
    assert error > 0.5 * (grid.max() - grid.min()).item()
    assert error > 0.1 * grid.max().item()


def test_closed_form_stays_on_the_grid_and_inside() -> None:
    for task, values in (("ClosedFormDiscrete-v0", ClosedFormDiscrete), ("ClosedForm-v0", ClosedForm)):
        env = envs.make(task, 500)
        env.reset()
        obs = torch.cat([env.step(act(env, torch.Generator().manual_seed(k))).next_obs for k in range(30)])
        assert obs.min() == -1 and obs.max() == 1
        if values is ClosedFormDiscrete:
            assert sorted(set(obs[:, 0].tolist())) == [k / 4 for k in range(-4, 5)]


def test_gamma_outside_the_derivation_is_refused() -> None:
    for gamma, discrete in ((1.01, False), (-0.1, False), (0.3, True)):
        with pytest.raises(ValueError, match=f"gamma is {gamma}, must be in"):
            optimal_value(torch.zeros(1, 1), gamma, discrete)


# What the learnable tasks pay.


def pull(obs: Tensor) -> Tensor:
    return 5 * (obs[:, 4:6] - obs[:, :2]) - 1.5 * obs[:, 2:4]


def test_point_mass_pays_for_the_goal() -> None:
    generator = torch.Generator().manual_seed(0)
    env = envs.make("PointMass-v0", 256)
    random_pay = mean_reward(env, lambda obs: act(env, generator))
    assert mean_reward(env, pull) > 0.9
    assert 0.1 < random_pay < 0.3
    assert mean_reward(env, lambda obs: -pull(obs)) < random_pay / 2
    step = env.step(torch.zeros(256, 2))
    assert ((step.reward > 0) & (step.reward <= 1)).all()


def test_point_mass_moves_by_its_equations() -> None:
    env = envs.make("PointMass-v0", 64)
    obs, _ = env.reset()
    assert (obs[:, 2:4] == 0).all()
    action = torch.full((64, 2), 0.5)
    x, v, goal = obs[:, :2].double(), obs[:, 2:4].double(), obs[:, 4:]
    for _ in range(30):
        step = env.step(action)
        v = v + 0.1 * (3 * 0.5 - v)
        blocked = (x + 0.1 * v).abs() > 1
        v = torch.where(blocked, (1 - x) / 0.1, v)
        x = x + 0.1 * v
        distance = (x - goal).norm(dim=1)
        assert torch.allclose(step.next_obs[:, :4].double(), torch.cat([x, v], 1), atol=1e-4)
        assert torch.equal(step.next_obs[:, 4:], goal)
        assert torch.allclose(step.reward.double(), torch.exp(-2 * distance), atol=1e-4)
    assert (x == 1).any(0).all()  # some have reached the wall


def test_success_is_being_near() -> None:
    env = envs.make("PointMass-v0", 256)
    obs, _ = env.reset()
    seen = []
    for _ in range(60):
        step = env.step(pull(obs))
        obs = step.obs
        near = (step.next_obs[:, :2] - step.next_obs[:, 4:]).norm(dim=1) < 0.1
        assert torch.equal(step.metrics["success"], near)
        seen.append(near.float().mean().item())
    assert seen[0] < 0.2 and seen[-1] == 1


def test_privileged_view_is_the_truth() -> None:
    env = envs.make("PointMassPrivileged-v0", 2000)
    assert env.privileged
    obs, critic_obs = env.reset()
    errors = []
    for _ in range(20):
        assert torch.equal(obs[:, 2:], critic_obs[:, 4:])
        errors.append(obs[:, :2] - critic_obs[:, :2])
        step = env.step(2 * (obs[:, 2:] - obs[:, :2]))
        obs, critic_obs = step.obs, step.critic_obs
    error = torch.stack(errors)
    assert abs(error.std() - 0.05) < 0.001 and abs(error.mean()) < 0.001
    assert abs((error[1:] * error[:-1]).mean()) < 1e-4  # a new one at each step
    assert mean_reward(env, lambda obs: 2 * (obs[:, 2:] - obs[:, :2])) > 0.75


def test_bar_in_the_newest_frame_pays() -> None:
    env = envs.make("Pixels-v0", 32)

    def read(channel: int) -> Callable[[Tensor], Tensor]:
        return lambda obs: (obs[:, channel, 0, ::21] == 255).long().argmax(1)

    assert mean_reward(env, read(3)) == 1
    assert 0.2 < mean_reward(env, read(2)) < 0.3
    obs, _ = env.reset()
    assert all(torch.equal(obs[:, 0], obs[:, k]) for k in range(4))
    step = env.step(torch.zeros(32, dtype=torch.int64))
    assert torch.equal(step.next_obs[:, :3], obs[:, 1:])
    assert set(step.next_obs.unique().tolist()) == {0, 255}
    assert (step.next_obs == 255).sum() == 32 * 4 * 84 * 21


# envs.make


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "pointmass-V0"}, "no task is called 'pointmass-V0', did you mean PointMass-v0?"),
        ({"task": "PointMas-v0"}, "did you mean PointMass-v0"),
        ({"task": "pixels"}, "did you mean Pixels-v0?"),
        ({"task": "qqqqqqqqqqq"}, "no task is called 'qqqqqqqqqqq', `python -m envs.list` lists all"),
        ({"num_envs": 0}, "num_envs is 0, must be from 1 to 16777216"),
        ({"seed": -1}, "seed is -1, must be at least 0"),
        ({"backend": "isaac"}, "backend is 'isaac', must be auto, torch, humanoidbench, envpool, gymnasium"),
        ({"device": "banana"}, "device 'banana' cannot be used"),
        ({"device": "meta"}, "device is 'meta', must be cpu, cuda, cuda:N or mps"),
        ({"speed": 2}, "PointMass-v0 has no option 'speed' (it has max_episode_steps)"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0, must be a whole number of at least 1"),
        ({"max_episode_steps": "long"}, "max_episode_steps is 'long', must be"),
        ({"task": "Scripted-v0", "stop": 2}, "no option 'stop' (it has max_episode_steps, script, nan_at)"),
        ({"task": "Scripted-v0", "script": ((1,), ())}, "script is ((1,), ()), must be rows of steps"),
        ({"task": "Scripted-v0", "script": ((-1,),)}, "script is ((-1,),), must be rows of steps"),
        ({"task": "Scripted-v0", "script": "abc"}, "script is 'abc', must be rows of steps"),
        ({"task": "Scripted-v0", "nan_at": (1, 2)}, "nan_at is (1, 2), must be three integers"),
        ({"task": "nowhere:Env"}, "there is no module 'nowhere', neither installed nor in"),
        ({"task": "a b:Env"}, "'a b' is no name of a module"),
        ({"task": "json:Env"}, "'json:Env': module 'json' has no attribute 'Env'"),
        ({"task": "json:dumps"}, "'json:dumps' does not take (num_envs, seed, device)"),
    ],
)
def test_error_lines(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError) as error:
        envs.make(**{"task": "PointMass-v0", "num_envs": 2, **arguments})
    assert message in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpu() -> None:
    with pytest.raises(TaskError, match=r"device 'cuda:0' cannot be used .*must be cpu, cuda"):
        envs.make("PointMass-v0", 2, device="cuda:0")


def test_missing_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = envs.Backend("envs.envpool", "no_such_package", "pip install envpool")
    monkeypatch.setattr(envs, "BACKENDS", {"torch": envs.BACKENDS["torch"], "envpool": missing})
    assert envs.backends() == ["torch"]
    with pytest.raises(TaskError, match="the backend envpool is not installed: pip install envpool"):
        envs.make("Hopper-v5", 2, backend="envpool")
    with pytest.raises(TaskError, match=r"'Hopper-v5'.*envpool is not installed and may have it: pip install envpool"):
        envs.make("Hopper-v5", 2)


def test_auto_takes_the_first_that_has_it_and_loads_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = envs._load
    monkeypatch.setattr(envs, "_load", lambda backend: loaded.append(backend) or load(backend))
    env = envs.make("PointMass-v0", 2)
    assert (env.task, env.backend) == ("PointMass-v0", "torch")
    assert set(loaded) == {"torch"}


def test_wrong_backend_names_the_right_one() -> None:
    with pytest.raises(TaskError, match="the backend gymnasium has no task 'PointMass-v0', but torch has it"):
        envs.make("PointMass-v0", 2, backend="gymnasium")


OWN = """
import torch
from envs.torch import PointMass

class Mine(PointMass):
    def __init__(self, num_envs, seed, device, colour="red"):
        super().__init__(num_envs, seed, device)
        self.colour = colour

def build(num_envs, seed, device):
    return Mine(num_envs, seed, device, "blue")

def arguments(**arguments):
    return arguments
"""


def test_own_environment_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_env_for_test.py").write_text(OWN)
    (tmp_path / "needy_env_for_test.py").write_text("import a_package_that_is_not_there")
    with pytest.raises(TaskError, match="there is no module 'own_env_for_test'"):
        envs.make("own_env_for_test:Mine", 2)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    monkeypatch.chdir(tmp_path)
    env = envs.make("own_env_for_test:Mine", 3, seed=5, colour="green")
    assert (env.task, env.backend, env.num_envs, env.colour) == (
        "own_env_for_test:Mine",
        "own_env_for_test",
        3,
        "green",
    )
    assert torch.equal(env.reset()[0], envs.make("PointMass-v0", 3, seed=5).reset()[0])
    assert envs.make("own_env_for_test:build", 2).colour == "blue"
    with pytest.raises(TaskError, match=r"does not take \(num_envs, seed, device, size\): got an unexpected"):
        envs.make("own_env_for_test:Mine", 2, size=3)
    with pytest.raises(TaskError, match=r"'own_env_for_test:arguments' returns a dict, must be an envs.base.VecEnv"):
        envs.make("own_env_for_test:arguments", 2)
    with pytest.raises(TaskError, match=r"'needy_env_for_test' cannot be imported: .*a_package_that_is_not_there"):
        envs.make("needy_env_for_test:Mine", 2)
    (tmp_path / "torn_env_for_test.py").write_text("def")
    with pytest.raises(TaskError, match="'torn_env_for_test' cannot be imported"):
        envs.make("torn_env_for_test:Mine", 2)


REGISTERED = """
import gymnasium
import numpy as np


class Mine(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (3,))
    action_space = gymnasium.spaces.Box(-1, 1, (2,))

    def reset(self, seed=None, options=None):
        return np.zeros(3, np.float32), {}

    def step(self, action):
        return np.ones(3, np.float32), 1.0, False, False, {}


gymnasium.register("Mine-v0", Mine, max_episode_steps=20)
"""


@pytest.mark.parametrize("backend", ["auto", "gymnasium"])
def test_own_gymnasium_environment_of_a_module_in_this_folder(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"registers_for_test_{backend}"
    (tmp_path / f"{name}.py").write_text(REGISTERED)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    env = envs.make(f"{name}:Mine-v0", 2, backend=backend)
    assert (env.backend, env.max_episode_steps) == ("gymnasium", 20)
    env.reset()
    assert env.step(torch.zeros(2, 2)).reward.tolist() == [1, 1]
    with pytest.raises(TaskError, match="has no attribute 'Yours-v0', and it registers no Gymnasium environment"):
        envs.make(f"{name}:Yours-v0", 2)


class Misshapen(VecEnv):
    """Returns what it is told to in place of what the contract asks for."""

    max_episode_steps = 20

    def __init__(self, num_envs: int, seed: int, device: torch.device, wrong: str = "", limit: Any = 20) -> None:
        self.num_envs, self.device, self.wrong = num_envs, device, wrong
        self.max_episode_steps = limit
        self.obs_space = self.critic_obs_space = vector_space(3)
        self.action_space = Box(-1, 1, (2,))

    def reset(self, seed: int | None = None) -> Any:
        obs = torch.zeros(self.num_envs, 4 if self.wrong == "obs" else 3)
        return obs if self.wrong == "reset" else (obs, obs)

    def step(self, action: Tensor) -> Any:
        obs, flag = torch.zeros(self.num_envs, 3), torch.zeros(self.num_envs, dtype=torch.bool)
        reward: Any = torch.zeros(self.num_envs)
        step = Step(obs, obs, reward, flag, flag, obs, obs, ~flag)
        changes: dict[str, Any] = {
            "reward": {"reward": reward[:, None]},
            "numpy": {"reward": reward.numpy()},
            "float64": {"reward": reward.double()},
            "terminated": {"terminated": flag.float()},
            "next_obs": {"next_obs": obs[:, :2]},
        }
        return tuple(step)[:5] if self.wrong == "tuple" else step._replace(**changes.get(self.wrong, {}))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("reset", "reset must return a pair"),
        ("obs", r"obs is \(\(2, 4\), torch.float32, .* must be a tensor of \(\(2, 3\), torch.float32"),
        ("tuple", "step must return an envs.base.Step, got tuple"),
        ("reward", r"reward is \(\(2, 1\)"),
        ("numpy", "reward is ndarray"),
        ("float64", "reward is .*torch.float64"),
        ("terminated", "terminated is .*torch.float32.*must be a tensor of .*torch.bool"),
        ("next_obs", r"next_obs is \(\(2, 2\)"),
    ],
)
def test_what_an_own_environment_returns_first_is_looked_at(wrong: str, message: str) -> None:
    env = envs.make(f"{__name__}:Misshapen", 2, wrong=wrong)
    with pytest.raises(TaskError, match=message):
        env.reset()
        env.step(torch.zeros(2, 2))


def test_a_look_at_an_own_environment_is_the_only_one() -> None:
    env = envs.make(f"{__name__}:Misshapen", 2)
    env.reset()
    env.step_send(torch.zeros(2, 2))
    env.step_recv()
    assert not {"reset", "step"} & env.__dict__.keys()
    for limit in (20.0, 0, "20"):
        with pytest.raises(TaskError, match="must be a whole number of at least 1, or None"):
            envs.make(f"{__name__}:Misshapen", 2, limit=limit)


def test_check_says_what_an_environment_raises(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main([f"{__name__}:exploding"]) == 1
    out = capsys.readouterr().out
    assert "raises KeyError: 'exploded'" in out and "in exploding" in out


def exploding(num_envs: int, seed: int, device: torch.device) -> VecEnv:
    raise KeyError("exploded")


def test_listing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    missing = envs.Backend("envs.envpool", "no_such_package", "pip install envpool")
    monkeypatch.setattr(envs, "BACKENDS", {"torch": envs.BACKENDS["torch"], "envpool": missing})
    assert envs.list.main(["point*PRIV"]) == 0
    out, err = capsys.readouterr()
    heads, row = out.splitlines()
    assert heads.split() == ["task", "backend", "observation", "action", "steps"]
    assert row.split() == ["PointMassPrivileged-v0", "torch", "4", "(critic", "6)", "2", "100"]
    assert [row.index(word) for word in ("torch", "4 (", "100")] == [
        heads.index(word) for word in ("backend", "observation", "steps")
    ]
    assert err == "the backend envpool is not installed: pip install envpool\n"
    assert envs.list.main(["nothing"]) == 1
    assert "no task matches 'nothing'" in capsys.readouterr().err
    assert envs.list.main(["--backend", "torch", "--names"]) == 0
    assert capsys.readouterr().out.split() == ALL


def test_listing_of_every_kind_of_backend(capsys: pytest.CaptureFixture[str]) -> None:
    assert envs.list.main(["WalkerWalk-v1", "--backend", "envpool"]) == 0
    assert envs.list.main(["Pong-v5", "--backend", "envpool"]) == 0
    assert envs.list.main(["HalfCheetah-v5", "--backend", "gymnasium"]) == 0
    assert envs.list.main(["h1-walk-v0", "--backend", "humanoidbench"]) == 0  # with its scene or without
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if not line.startswith("task ")]
    assert lines[:3] == [
        ["WalkerWalk-v1", "envpool", "24", "6", "1000"],
        ["Pong-v5", "envpool", "4x84x84", "uint8", "6", "ways", "27000"],
        ["HalfCheetah-v5", "gymnasium", "17", "6", "1000"],
    ]
    assert lines[3][:2] == ["h1-walk-v0", "humanoidbench"]


@pytest.mark.parametrize("task", ["WalkerWalk-v1", "Pong-v5", "Acrobot-v1", "MetaWorld/Assembly-v3"])
def test_a_description_is_what_the_environment_says(task: str) -> None:
    env = envs.make(task, 1, backend="envpool")
    assert envs.describe(task, "envpool") == env.spec
    env.close()


def test_listing_is_short_for_the_package() -> None:
    command = f"{sys.executable} -m envs pointmass --backend torch | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["task", "backend", "observation", "action", "steps"] and not done.stderr


def test_a_task_is_found_without_being_made(monkeypatch: pytest.MonkeyPatch) -> None:
    env = envs.make("PointMass-v0", 1)
    assert envs.find("PointMass-v0") == env.backend == "torch"
    assert envs.find("PointMass-v0+Pendulum-v1") == "multitask"
    monkeypatch.setattr(envs, "_load", lambda name: pytest.fail("a simulator was loaded"))
    assert envs.find("my.module:Task-v0") == "my.module", "which is not imported either"
    with pytest.raises(TaskError, match="device"):
        envs.find("PointMass-v0", device="gpu")


def test_a_broken_backend_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def tasks(backend: str) -> list[str]:
        if backend == "playground":
            raise TaskError("broken")
        return {"torch": ALL, "envpool": ["WalkerWalk-v1"]}.get(backend, [])

    monkeypatch.setattr(envs, "find_spec", lambda name: True)
    monkeypatch.setattr(envs, "tasks", tasks)
    assert envs._backend_of("WalkerWalk-v1", "auto", torch.device("cuda:0")) == "envpool"
    with pytest.raises(TaskError, match="no task is called 'WalkerWalk-v9', did you mean WalkerWalk-v1"):
        envs._backend_of("WalkerWalk-v9", "auto", CPU)
    with pytest.raises(TaskError, match="broken"):
        envs._backend_of("WalkerWalk-v1", "playground", CPU)
