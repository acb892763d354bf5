"""The contract of envs.base, held against every backend, and against environments that break it on purpose."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

import envs
from envs.base import Step, VecEnv, spawn_seeds, vector_space
from envs.check import check, examine, main

SHORT = {"max_episode_steps": 12}
TASKS: list[tuple[str, str, int, dict[str, Any]]] = [
    *[("torch", task, 60, SHORT) for task in envs.tasks("torch")],
    ("envpool", "CartPole-v1", 60, SHORT),
    ("envpool", "Hopper-v5", 60, SHORT),
    ("envpool", "WalkerWalk-v1", 40, SHORT),
    ("envpool", "G1JoystickFlatTerrain-v1", 15, SHORT),
    ("envpool", "Breakout-v5", 40, {}),
    ("gymnasium", "CartPole-v1", 60, SHORT),
    ("gymnasium", "Hopper-v5", 60, SHORT),
    ("gymnasium", "Pendulum-v1", 60, SHORT),
    ("mjwarp", "Hopper-v5", 60, SHORT),
    ("humanoidbench", "h1-walk-v0", 20, SHORT),
    ("playground", "CartpoleBalance-v1", 60, SHORT),
    ("mjlab", "Mjlab-Cartpole-Balance", 20, SHORT),
    ("humanoidbench_upstream", "h1-walk-v0", 20, SHORT),
    ("multitask", "MetaWorld/Reach-v3+MetaWorld/Push-v3", 15, SHORT),
]


@pytest.mark.parametrize(("backend", "task", "steps", "options"), TASKS, ids=[f"{row[0]}-{row[1]}" for row in TASKS])
def test_backend_keeps_the_contract(backend: str, task: str, steps: int, options: dict[str, Any]) -> None:
    if backend not in envs.backends():
        pytest.skip(f"{backend} is not installed: {envs.BACKENDS[backend].install}")
    report = examine(lambda num_envs, seed: envs.make(task, num_envs, seed, backend=backend, **options), steps)
    assert report.violations == []
    if options:
        assert not [line for line in report.unseen if line.startswith("truncation")]


def test_no_backend_is_left_out() -> None:
    elsewhere = {"humanoidbench_warp", "isaaclab"}  # on scenes whose kernels compile in seconds; on an imitation
    assert {row[0] for row in TASKS} == envs.BACKENDS.keys() - elsewhere


class Toy(VecEnv):
    """Keeps the contract: a random walk that terminates far out and is truncated after `limit` steps."""

    limit = 7
    snapshots = True

    def __init__(self, num_envs: int, seed: int, device: torch.device | None = None) -> None:
        self.num_envs = num_envs
        self.device = device or torch.device("cpu")
        self.obs_space = vector_space(3)
        self.critic_obs_space = self.obs_space
        self.action_space: Box | Discrete = Box(-1, 1, (3,), np.float32)
        self.max_episode_steps: int | None = self.limit
        self.seed(seed)

    def seed(self, seed: int) -> None:
        self.generators = [torch.Generator().manual_seed(one) for one in spawn_seeds(seed, self.num_envs, "toy")]

    def noise(self) -> Tensor:
        return torch.stack([torch.rand(3, generator=generator) - 0.5 for generator in self.generators])

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        if seed is not None:
            self.seed(seed)
        self.x, self.clock = self.noise(), torch.zeros(self.num_envs, dtype=torch.int64)
        return self.first(self.x)

    def first(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return obs, obs

    def step(self, action: Tensor) -> Step:
        self.action = action
        next_obs = self.x + 0.2 * action + self.noise()
        self.clock = self.clock + 1
        terminated = next_obs[:, 0].abs() > 1
        truncated = (self.clock >= self.limit) & ~terminated
        ended = terminated | truncated
        obs = torch.where(ended[:, None], self.noise(), next_obs)
        self.clock = torch.where(ended, 0, self.clock)
        reward, valid = next_obs.sum(1), torch.ones_like(ended)
        step = self.spoil(Step(obs, obs, reward, terminated, truncated, next_obs, next_obs, valid))
        self.x = obs.clone()
        return step

    def spoil(self, step: Step) -> Step:
        return step

    def state_dict(self) -> dict[str, Any]:
        streams = [generator.get_state() for generator in self.generators]
        return {"x": self.x.clone(), "clock": self.clock.clone(), "streams": streams}

    def load_state_dict(self, state: Any) -> None:
        self.x, self.clock = state["x"], state["clock"]
        for generator, stream in zip(self.generators, state["streams"], strict=True):
            generator.set_state(stream)


def test_toy_keeps_the_contract() -> None:
    assert examine(Toy) == ([], [])  # and leaves no rule untried


def ends(step: Step) -> Tensor:
    return step.terminated | step.truncated


def both(step: Step, obs: Tensor) -> Step:
    return step._replace(next_obs=obs, next_critic_obs=obs)


def recycle(env: Any, reward: Tensor) -> Tensor:
    if not hasattr(env, "buffer"):
        env.buffer = reward.clone()
    return env.buffer.copy_(reward)


# How a step of the toy is spoilt: by what of (env, step), and a part of the message that must say so.
SPOILT: dict[str, tuple[Callable[[Toy, Step], Any], str]] = {
    "both flags": (lambda env, s: s._replace(truncated=ends(s)), "terminated and truncated are both True, in step"),
    "lost successor": (lambda env, s: both(s, s.obs), "obs must be the first observation of the next episode"),
    "no reset": (lambda env, s: s._replace(obs=s.next_obs, critic_obs=s.next_obs), "obs must be the first observation"),
    "noisy successor": (lambda env, s: both(s, s.next_obs * 1.0001), "obs and next_obs differ although nothing ended"),
    "nan successor": (
        lambda env, s: both(s, torch.where(ends(s)[:, None], torch.nan, s.next_obs)),
        "next_obs has numbers that are not finite",
    ),
    "nan critic": (
        lambda env, s: s._replace(critic_obs=s.obs + torch.nan),
        "critic_obs has numbers that are not finite",
    ),
    "infinite reward": (lambda env, s: s._replace(reward=s.reward / 0), "reward has numbers that are not finite"),
    "reward column": (lambda env, s: s._replace(reward=s.reward[:, None]), "reward has shape (4, 1), expected (4,)"),
    "double reward": (
        lambda env, s: s._replace(reward=s.reward.double()),
        "reward is torch.float64, expected torch.fl",
    ),
    "integer flag": (lambda env, s: s._replace(terminated=s.terminated.int()), "terminated is torch.int32"),
    "numpy obs": (lambda env, s: s._replace(obs=s.obs.numpy()), "obs is a ndarray, in step 1: return a torch tensor"),
    "missing row": (lambda env, s: s._replace(next_obs=s.next_obs[1:]), "next_obs has shape (3, 3), expected (4, 3)"),
    "other device": (lambda env, s: s._replace(valid=s.valid.to("meta")), "valid is on meta, expected cpu"),
    "gradient": (lambda env, s: s._replace(reward=s.reward.requires_grad_()), "reward requires a gradient"),
    "no Step": (lambda env, s: (s.obs, s.reward), "step() returns tuple: return an envs.base.Step"),
    "copied view": (lambda env, s: s._replace(critic_obs=s.obs.clone()), "critic_obs is another tensor than obs"),
    "early truncation": (lambda env, s: s._replace(truncated=~s.terminated), "less than max_episode_steps = 7 steps"),
    "truncation for termination": (
        lambda env, s: s._replace(terminated=s.valid & False, truncated=ends(s)),
        "truncated is True before the time limit, max_episode_steps = 7",
    ),
    "no truncation": (lambda env, s: s._replace(truncated=s.valid & False), "an episode goes on after its time limit"),
    "learnable quarantine": (lambda env, s: s._replace(valid=~s.valid), "`valid` is False, but reward is not 0 or"),
    "quarantined successor": (
        lambda env, s: s._replace(valid=~s.valid, reward=0 * s.reward, terminated=~s.valid, truncated=s.valid),
        "next_obs is not the observation that was acted on",
    ),
    "scalar metric": (lambda env, s: s._replace(metrics={"speed": torch.tensor(1.0)}), "metrics['speed'] has shape ()"),
    "float success": (lambda env, s: s._replace(metrics={"success": s.reward}), "metrics['success'] is torch.float32"),
    "written action": (lambda env, s: s._replace(reward=env.action.mul_(2)[:, 0].clone()), "changed the action"),
    "overwritten": (lambda env, s: s._replace(reward=recycle(env, s.reward)), "reward of step 1 was overwritten"),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILT.values(), ids=SPOILT)
def test_spoilt_step_is_caught(spoil: Callable[[Toy, Step], Any], message: str) -> None:
    broken = type("Broken", (Toy,), {"spoil": spoil})
    assert_told(broken, message)


def assert_told(broken: type[Toy], message: str) -> None:
    violations = check(broken, steps=60)
    assert any(message in line for line in violations), violations
    assert all("\n" not in line for line in violations)


class Privileged(Toy):
    """Gives the critic a view of its own without saying so in the spaces, or keeps it when the episode is new."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.critic_obs_space = vector_space(4)

    def first(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        return obs, torch.cat([obs, obs[:, :1]], 1)

    def spoil(self, step: Step) -> Step:
        _, next_critic_obs = self.first(step.next_obs)
        return step._replace(critic_obs=next_critic_obs + 1e-3, next_critic_obs=next_critic_obs)


class CountingSeeds(Toy):
    def seed(self, seed: int) -> None:
        self.generators = [torch.Generator().manual_seed(seed + i) for i in range(self.num_envs)]


class IgnoredSeed(Toy):
    def seed(self, seed: int) -> None:
        super().seed(0)


class OneStream(Toy):
    def noise(self) -> Tensor:
        return (torch.rand(3, generator=self.generators[0]) - 0.5).expand(self.num_envs, 3).clone()


class Unrepeatable(Toy):
    system = random.SystemRandom()

    def noise(self) -> Tensor:
        return super().noise() + 1e-3 * self.system.random()


class SeedOnlyWhenMade(Toy):
    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        return super().reset()


class ClockOutlivesReset(Toy):
    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        clock = getattr(self, "clock", None)
        first = super().reset(seed)
        self.clock = self.clock if clock is None else clock
        return first


class ForgetsItsClock(Toy):
    def load_state_dict(self, state: Any) -> None:
        super().load_state_dict({**state, "clock": 0 * state["clock"]})


class PicklesGenerators(Toy):
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "space": self.obs_space}


class GlobalTorch(Toy):
    def noise(self) -> Tensor:
        return super().noise() + 1e-3 * torch.rand(())


class GlobalNumpy(Toy):
    def seed(self, seed: int) -> None:
        super().seed(seed)
        np.random.seed(seed)  # noqa: NPY002


class GlobalPython(Toy):
    def seed(self, seed: int) -> None:
        super().seed(seed)
        random.seed(seed)


class OtherWhenSplit(Toy):
    def step_recv(self) -> Step:
        return self.step(-self._sent)


class ClosesOnce(Toy):
    closed = False

    def close(self) -> None:
        if self.closed:
            raise RuntimeError("already closed")
        self.closed = True


class ResetsToObs(Toy):
    def reset(self, seed: int | None = None) -> Any:
        return super().reset(seed)[0]


class StartsWithNaN(Toy):
    def first(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        bad = torch.full_like(obs, torch.nan)
        return bad, bad


HABITS: list[tuple[type[Toy], str]] = [
    (Privileged, "critic_obs and next_critic_obs differ although nothing ended"),
    (CountingSeeds, "3 of 4 environments play the same episode as another one with the next seed (0 and 1)"),
    (IgnoredSeed, "the seeds 0, 1 and 500009 give the same rollout"),
    (OneStream, "all environments play the same episode"),
    (Unrepeatable, "the same seed and actions give another rollout, from step 0 on"),
    (SeedOnlyWhenMade, "reset(seed) does not repeat the rollout of a new environment"),
    (ClockOutlivesReset, "reset(seed) does not repeat the rollout of a new environment"),
    (ForgetsItsClock, "after load_state_dict() the rollout differs"),
    (PicklesGenerators, "state_dict() holds more than tensors"),
    (GlobalTorch, "the global random generator of torch was used"),
    (GlobalNumpy, "the global random generator of numpy was used"),
    (GlobalPython, "the global random generator of python was used"),
    (OtherWhenSplit, "step_send() and step_recv() differ from step(), from step 1 on"),
    (ClosesOnce, "the second close() raises RuntimeError (already closed)"),
    (ResetsToObs, "reset() returns Tensor: return the tuple (obs, critic_obs)"),
    (StartsWithNaN, "the first obs has numbers that are not finite, in reset() of environment 0"),
]


@pytest.mark.parametrize(("broken", "message"), HABITS, ids=lambda value: getattr(value, "__name__", ""))
def test_bad_habit_is_caught(broken: type[Toy], message: str) -> None:
    state = random.getstate(), torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    try:
        for seed in (0, 1):  # the check leads them to these states, too
            random.seed(seed)
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            assert_told(broken, message)
    finally:
        random.setstate(state[0])
        torch.set_rng_state(state[1])
        np.random.set_state(state[2])  # noqa: NPY002


ATTRIBUTES: list[tuple[str, Any, str]] = [
    ("num_envs", 5, "num_envs is 5, but 4 were asked for"),
    ("device", "cpu", "device is 'cpu': make it a torch.device"),
    ("device", torch.device("cuda"), "device is cuda without an index"),
    ("obs_space", Box(-1, 1, (3,), np.float64), "obs_space is Box(-1.0, 1.0, (3,), float64)"),
    ("critic_obs_space", Discrete(3), "critic_obs_space is Discrete(3)"),
    ("action_space", Box(-2, 2, (3,), np.float32), "map to the task's range in step()"),
    ("action_space", Box(-1, 1, (3,), np.float64), "make it Box(-1, 1, (A,), float32)"),
    ("action_space", Discrete(3, start=1), "Discrete(n) that starts at 0"),
    ("action_bounds", (-2, 2), "action_bounds are (-2, 2): make them two arrays of"),
    ("action_bounds", 3, "action_bounds are 3: make them two arrays of"),
    ("action_bounds", np.ones((2, 3)), "make them two arrays of"),
    ("action_bounds", (np.ones(3), np.full(3, "x", object)), "make them two arrays of"),
    ("action_bounds", (np.ones(3), -np.ones(3)), "make them two arrays of"),
    ("action_bounds", (np.zeros(3), np.full(2, np.inf)), "make them two arrays of"),
    ("max_episode_steps", 0, "max_episode_steps is 0"),
    ("max_episode_steps", None, "truncated is True, but max_episode_steps is None"),
    ("max_episode_steps", 9, "less than max_episode_steps = 9 steps apart"),
    ("max_episode_steps", 5, "an episode goes on after its time limit"),
]


@pytest.mark.parametrize(("name", "value", "message"), ATTRIBUTES)
def test_wrong_attribute_is_caught(name: str, value: Any, message: str) -> None:
    def init(self: Toy, num_envs: int, seed: int) -> None:
        Toy.__init__(self, num_envs, seed)
        setattr(self, name, value)

    assert_told(type("Broken", (Toy,), {"__init__": init}), message)


def test_missing_attribute_is_caught() -> None:
    def init(self: Toy, num_envs: int, seed: int) -> None:
        Toy.__init__(self, num_envs, seed)
        del self.action_space, self.device

    assert_told(type("Broken", (Toy,), {"__init__": init}), "no attribute device, action_space: set it in __init__")


def test_unknown_clock_is_legal() -> None:
    """`max_episode_steps` 1 promises nothing, so whatever truncates keeps it."""
    unknown = type("Unknown", (Toy,), {"spoil": lambda env, step: step})

    def make(num_envs: int, seed: int) -> VecEnv:
        env = unknown(num_envs, seed)
        env.max_episode_steps = 1
        return env

    assert check(make, steps=60) == []


def test_task_without_randomness() -> None:
    class Fixed(Toy):
        def noise(self) -> Tensor:
            return torch.full((self.num_envs, 3), 0.25)

    assert any("--fixed-start" in line for line in check(Fixed))
    assert check(Fixed, random_start=False) == []


def test_nondeterministic_simulator_is_not_held_to_repeat() -> None:
    honest = type("Honest", (Unrepeatable,), {"deterministic": False})
    report = examine(honest)
    assert report.violations == []
    assert any("not deterministic" in line for line in report.unseen)


def test_unseen_rules_are_told() -> None:
    report = examine(lambda num_envs, seed: envs.make("PointMass-v0", num_envs, seed), steps=5)
    assert report.violations == []
    assert [line.partition(":")[0] for line in report.unseen] == ["termination", "truncation"]


def test_few_steps_or_environments_are_refused() -> None:
    with pytest.raises(ValueError, match="num_envs is 1, both must be at least 2"):
        check(Toy, num_envs=1)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["Scripted-v0", "--steps", "30", "--option", "script=((2,0),(0,5))"]) == 0
    assert capsys.readouterr().out == "Scripted-v0 (torch) keeps the contract\n"
    assert main([f"{__name__}:Toy", "--steps", "60"]) == 0
    assert "keeps the contract" in capsys.readouterr().out
    assert main([f"{__name__}:CountingSeeds"]) == 1
    out = capsys.readouterr().out
    assert "breaks 1 rule of the contract" in out and "broken: 3 of 4 environments" in out
    for wrong in (["PointMas-v0"], ["Scripted-v0", "--option", "script"], ["Scripted-v0", "--option", "script=abc"]):
        assert main(wrong) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.count("\n") == 1
    with pytest.raises(SystemExit) as exit_info:
        main(["PointMass-v0", "--num-envs", "1"])
    assert exit_info.value.code == 2
