"""Noise, delays and the price of hasty actions, against what a list of the past says; and the contract around them."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import envs
from agents import fasttd3
from envs.base import Step, TaskError, VecEnv
from envs.check import examine
from envs.wrappers import add_noise, delay_actions, delay_observations, price_action_rate

Wrap = Callable[[VecEnv, int], VecEnv]
WRAPS: dict[str, Wrap] = {
    "noise": lambda env, seed: add_noise(env, 0.1, seed),
    "late observations": lambda env, _: delay_observations(env, 2),
    "late actions": lambda env, _: delay_actions(env, 2),
    "price": lambda env, _: price_action_rate(env, 0.5),
    "all": lambda env, seed: add_noise(price_action_rate(delay_actions(delay_observations(env, 1), 1), 0.1), 0.1, seed),
}


def scripted(num_envs: int = 4, nan_at: tuple[int, int, int] | None = None) -> VecEnv:
    return envs.make("Scripted-v0", num_envs, 0, nan_at=nan_at)


def rollout(env: VecEnv, steps: int) -> tuple[torch.Tensor, list[torch.Tensor], list[Step]]:
    generator = torch.Generator().manual_seed(0)
    first, _ = env.reset(1)
    actions = [torch.rand(env.num_envs, *env.action_space.shape, generator=generator) for _ in range(steps)]  # type: ignore[misc]
    return first, actions, [env.step(action) for action in actions]


@pytest.mark.parametrize("task", ["PointMass-v0", "PointMassPrivileged-v0", "Scripted-v0"])
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_they_keep_the_contract(wrap: Wrap, task: str) -> None:
    found = examine(lambda num_envs, seed: wrap(envs.make(task, num_envs, seed, max_episode_steps=7), seed), 60)
    assert found.violations == []


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_they_keep_the_contract_where_the_simulator_breaks(wrap: Wrap) -> None:
    found = examine(lambda num_envs, seed: wrap(scripted(num_envs, nan_at=(1, 0, 4)), seed), 40, random_start=False)
    assert found.violations == []


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_they_continue_bit_for_bit(wrap: Wrap) -> None:
    env, other = (wrap(envs.make("PointMassPrivileged-v0", 3, seed, max_episode_steps=5), seed) for seed in (1, 2))
    assert env.snapshots
    rollout(env, 8)
    other.reset()
    other.load_state_dict(env.state_dict())
    for _ in range(8):
        action = torch.full((3, 2), 0.25)
        assert all(torch.equal(x, y) for x, y in zip(env.step(action)[:-1], other.step(action)[:-1], strict=True))


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_observations_come_late(delay: int) -> None:
    first, _, steps = rollout(delay_observations(scripted(), delay), 40)
    plain_first, _, plain = rollout(scripted(), 40)
    assert torch.equal(first, plain_first)
    for env in range(4):
        past = [plain_first[env]]  # of this episode
        for step, exact in zip(steps, plain, strict=True):
            assert torch.equal(step.reward[env], exact.reward[env])
            past.append(exact.next_obs[env])
            assert torch.equal(step.next_obs[env], past[max(len(past) - 1 - delay, 0)])
            if exact.terminated[env] or exact.truncated[env]:
                past = [exact.obs[env]]
            assert torch.equal(step.obs[env], past[max(len(past) - 1 - delay, 0)])


@pytest.mark.parametrize("delay", [1, 2, 5])
def test_actions_come_late(delay: int) -> None:
    _, actions, steps = rollout(delay_actions(scripted(), delay), 40)
    for env in range(4):
        given: list[torch.Tensor] = []  # in this episode
        for action, step in zip(actions, steps, strict=True):
            given.append(action[env])
            done = given[-1 - delay] if len(given) > delay else torch.zeros(1)
            assert torch.equal(step.next_obs[env, 3:4], done)  # the action as the simulator got it
            if step.terminated[env] or step.truncated[env]:
                given = []


def test_hasty_actions_have_their_price() -> None:
    weight = 0.5
    first, actions, steps = rollout(price_action_rate(envs.make("PointMassPrivileged-v0", 4, 1), weight), 30)
    plain_first, _, plain = rollout(envs.make("PointMassPrivileged-v0", 4, 1), 30)
    assert torch.equal(first, torch.cat([plain_first, torch.zeros(4, 2)], 1))
    before = torch.zeros(4, 2)
    for action, step, exact in zip(actions, steps, plain, strict=True):
        torch.testing.assert_close(step.reward, exact.reward - weight * (action - before).square().sum(1))
        assert torch.equal(step.metrics["raw_reward"], exact.reward)
        assert torch.equal(step.next_obs, torch.cat([exact.next_obs, action], 1))
        assert torch.equal(step.next_critic_obs, torch.cat([exact.next_critic_obs, action], 1))
        before = torch.where((exact.terminated | exact.truncated)[:, None], 0.0, action)
        assert torch.equal(step.obs[:, -2:], before)


def test_noise_is_what_it_says() -> None:
    std = [0.0, 0.5, 2.0, 0.1]
    _, _, steps = rollout(add_noise(envs.make("PointMassPrivileged-v0", 64, 1), std, 7), 100)
    _, _, plain = rollout(envs.make("PointMassPrivileged-v0", 64, 1), 100)
    noise = torch.stack([step.next_obs - exact.next_obs for step, exact in zip(steps, plain, strict=True)]).flatten(
        0, 1
    )
    torch.testing.assert_close(noise.std(0), torch.tensor(std), rtol=0.05, atol=1e-6)
    assert noise.mean(0).abs().max() < 0.1
    for step, exact in zip(steps, plain, strict=True):
        assert torch.equal(step.next_critic_obs, exact.next_critic_obs) and torch.equal(step.reward, exact.reward)
    again, others = (add_noise(envs.make("PointMass-v0", 2, 1), 1.0, seed).reset()[0] for seed in (7, 8))
    assert not torch.equal(again, others)
    assert torch.equal(again, add_noise(envs.make("PointMass-v0", 2, 1), 1.0, 7).reset()[0])


@pytest.mark.parametrize(
    ("wrap", "task", "message"),
    [
        (lambda env, _: add_noise(env, -1.0, 0), "PointMass-v0", "std is -1.0"),
        (lambda env, _: add_noise(env, [0.1], 0), "PointMass-v0", r"must be one number or \(6,\) of them"),
        (lambda env, _: add_noise(env, 1.0, 0), "Pixels-v0", "has observations of uint8"),
        (lambda env, _: delay_observations(env, 0), "PointMass-v0", "delay_observations: steps is 0"),
        (lambda env, _: delay_actions(env, -1), "PointMass-v0", "delay_actions: steps is -1"),
        (lambda env, _: delay_actions(env, 1), "ClosedFormDiscrete-v0", "discrete actions"),
        (lambda env, _: price_action_rate(env, 1.0), "ClosedFormDiscrete-v0", "vectors"),
        (lambda env, _: price_action_rate(env, 1.0), "HopperHop-v1+HopperStand-v1", "around each task"),
    ],
)
def test_misuse_is_named(wrap: Wrap, task: str, message: str) -> None:
    env = envs.make(task, 2)
    with pytest.raises(TaskError, match=message):
        wrap(env, 0)
    env.close()


def test_an_agent_trains_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "robot_of_mine.py").write_text(
        "import envs\n"
        "from envs.wrappers import add_noise, delay_actions\n"
        "def Robot(num_envs, seed, device):\n"
        "    return add_noise(delay_actions(envs.make('PointMass-v0', num_envs, seed, device), 1), 0.05, seed)\n"
    )
    monkeypatch.chdir(tmp_path)
    flags = "--env-id robot_of_mine:Robot --num-envs 4 --total-timesteps 480 --learning-starts 40 --quiet --run-dir run"
    assert fasttd3.main(flags.split()) == 0
    assert fasttd3.main(["--resume", "run", "--total-timesteps", "800"]) == 0
    sys.modules.pop("robot_of_mine", None)
    importlib.invalidate_caches()
