"""What stands between a simulator and a robot: noise, delays, a price for hasty actions; and how it looks in a mirror.

Each is a function of an environment that returns one which keeps the same contract, so they go into one another. An
environment of one's own is the place for them, and `--env-id my_module:Robot` trains in it:

    def Robot(num_envs, seed, device):
        env = envs.make("Go1JoystickFlatTerrain-v1", num_envs, seed, device)
        env = delay_actions(env, steps=1)
        env = delay_observations(env, steps=1)
        return add_noise(env, 0.05, seed)

The order says where on the way something happens: what is outermost is next to the policy.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Discrete
from torch import Tensor

from envs.base import Mirror, Step, Symmetry, TaskError, VecEnv, spawn_seeds, vector_space


def add_noise(env: VecEnv, std: float | Sequence[float], seed: int) -> VecEnv:
    """Return the environment with Gaussian noise in the actor's observations, of one deviation or one per feature.

    Each observation has one draw, whether it is acted on or learned from. A privileged view stays exact; where there is
    none, the critic sees what the actor sees.
    """
    return _Noise(env, std, seed)


def delay_observations(env: VecEnv, steps: int) -> VecEnv:
    """Return the environment with the actor's observations that many steps late; at first an episode stands still."""
    return _LateObservations(env, steps)


def delay_actions(env: VecEnv, steps: int) -> VecEnv:
    """Return the environment with actions that many steps late; an episode begins with as many of zero."""
    return _LateActions(env, steps)


def price_action_rate(env: VecEnv, weight: float) -> VecEnv:
    """Return the environment with `weight * |a - a_before|^2` off the reward, and `a_before` behind what is seen.

    Without it in the observation the price would not follow from what the agent knows. An episode begins with 0. The
    reward of the task is `metrics["raw_reward"]`, which is what episodes are scored by.
    """
    return _ActionRate(env, weight)


def with_symmetry(
    env: VecEnv,
    obs: Sequence[int],
    action: Sequence[int],
    obs_sign: Sequence[int] | None = None,
    action_sign: Sequence[int] | None = None,
    critic_obs: Sequence[int] | None = None,
    critic_obs_sign: Sequence[int] | None = None,
) -> VecEnv:
    """Return the environment with its left-right symmetry told, for agents that are started with --symmetry.

    Entry i of a mirrored observation is `obs_sign[i]` times entry `obs[i]` of the observation; likewise the action, and
    the privileged view where there is one. Signs are 1 or -1, and 1 where none are given. Of discrete actions,
    `action[i]` is the mirror image of action i. Nothing else of the environment changes.

    Raises:
        TaskError: a list has the wrong length, or mirroring twice does not lead back.
    """
    if env.tasks:
        raise TaskError("with_symmetry: goes around each task, not around a set of tasks")
    if len(env.obs_space.shape) != 1 or len(env.critic_obs_space.shape) != 1:
        raise TaskError(f"with_symmetry: {env.task} needs observations that are vectors")
    if not env.privileged and (critic_obs is not None or critic_obs_sign is not None):
        raise TaskError(f"with_symmetry: {env.task} has no privileged view for critic_obs to mirror")
    if env.privileged and critic_obs is None:
        raise TaskError(f"with_symmetry: {env.task} has a privileged view, so critic_obs must say how it is mirrored")
    discrete = isinstance(env.action_space, Discrete)
    if discrete and action_sign is not None:
        raise TaskError(f"with_symmetry: {env.task} has discrete actions, which have no action_sign")
    size = int(env.action_space.n) if isinstance(env.action_space, Discrete) else env.action_space.shape[0]
    seen = _mirror("obs", env.device, env.obs_space.shape[0], obs, obs_sign)
    privileged = seen
    if critic_obs is not None:
        privileged = _mirror("critic_obs", env.device, env.critic_obs_space.shape[0], critic_obs, critic_obs_sign)
    done = _mirror("action", env.device, size, action, action_sign)
    told = Wrapper(env)
    told.symmetry = Symmetry(seen, privileged, done._replace(sign=None) if discrete else done)
    return told


def _mirror(name: str, device: torch.device, size: int, index: Sequence[int], sign: Sequence[int] | None) -> Mirror:
    """Return a reflection of vectors of a size; raises `TaskError` where it is none."""
    index, sign = list(index), [1] * size if sign is None else list(sign)
    if len(index) != size or len(sign) != size:
        raise TaskError(f"with_symmetry: {name} has {len(index)} entries and {len(sign)} signs, must be {size} of each")
    if sorted(index) != list(range(size)):
        raise TaskError(f"with_symmetry: {name} is {index}, must have each number from 0 to {size - 1} once")
    for i, image in enumerate(index):
        if sign[i] not in (1, -1):
            raise TaskError(f"with_symmetry: {name}_sign has {sign[i]} at {i}, must be 1 or -1")
        if index[image] != i or sign[image] != sign[i]:
            raise TaskError(
                f"with_symmetry: {name} mirrored twice is another: entry {i} comes from {image} with sign {sign[i]}, "
                f"but {image} from {index[image]} with sign {sign[image]}"
            )
    return Mirror(torch.tensor(index, device=device), torch.tensor(sign, dtype=torch.float32, device=device))


class Wrapper(VecEnv):
    """An environment around another one, the same but for what a subclass does to actions, observations and steps."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.task, self.backend, self.num_envs, self.device = env.task, env.backend, env.num_envs, env.device
        self.obs_space, self.critic_obs_space = env.obs_space, env.critic_obs_space
        self.action_space, self.max_episode_steps = env.action_space, env.max_episode_steps
        self.tasks, self.deterministic, self.snapshots = env.tasks, env.deterministic, env.snapshots
        self.symmetry, self.action_bounds = env.symmetry, env.action_bounds

    def __getattr__(self, name: str) -> Any:
        """What else the inner environment knows of itself, its `control_dt` for instance."""
        if name == "env":  # not there yet
            raise AttributeError(name)
        return getattr(self.env, name)

    def begin(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a reset returns."""
        return obs, critic_obs

    def send(self, action: Tensor) -> Tensor:
        """Return the actions that the inner environment gets."""
        return action

    def receive(self, step: Step) -> Step:
        """Return the step as the outside sees it."""
        return step

    def own_state(self) -> dict[str, Any]:
        """Return the tensors that the next step depends on."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `own_state`."""

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first observations."""
        return self.begin(*self.env.reset(seed))

    def step(self, action: Tensor) -> Step:
        """Take a step."""
        self.step_send(action)
        return self.step_recv()

    def step_send(self, action: Tensor) -> None:
        """Start a step."""
        self.env.step_send(self.send(action))

    def step_recv(self) -> Step:
        """Wait for it."""
        return self.receive(self.env.step_recv())

    def summary(self) -> dict[str, float | Tensor]:
        """Return what the inner environment reports."""
        return self.env.summary()

    def render(self, index: int = 0, size: tuple[int, int] | None = None, camera: int | None = None) -> np.ndarray:
        """Return a picture."""
        return self.env.render(index, size, camera)

    def mujoco(self, index: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
        """Return model and state."""
        return self.env.mujoco(index)

    def close(self) -> None:
        """Release the simulator."""
        self.env.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state and our own."""
        return {"inner": self.env.state_dict(), "own": self.own_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue both."""
        self.env.load_state_dict(state["inner"])
        self.load_own_state(state["own"])

    def shown(self, step: Step, obs: Tensor, next_obs: Tensor) -> Step:
        """Return the step with these observations for the actor, and for a critic that has no view of its own."""
        step = step._replace(obs=obs, next_obs=next_obs)
        return step if self.privileged else step._replace(critic_obs=obs, next_critic_obs=next_obs)


def _beside(one: Mirror, other: Mirror) -> Mirror:
    """Return the reflection of two vectors that are one behind the other."""
    assert one.sign is not None and other.sign is not None
    return Mirror(torch.cat([one.source, len(one.source) + other.source]), torch.cat([one.sign, other.sign]))


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask [N] that broadcasts over observations or actions."""
    return mask.view(-1, *[1] * (like.ndim - 1))


def _whole(name: str, steps: int) -> int:
    if steps < 1:
        raise TaskError(f"{name}: steps is {steps}, must be at least 1")
    return steps


class _Noise(Wrapper):
    def __init__(self, env: VecEnv, std: float | Sequence[float], seed: int) -> None:
        super().__init__(env)
        self._std = torch.as_tensor(std, dtype=torch.float32, device=env.device)
        if env.obs_space.dtype != "float32":
            raise TaskError(f"add_noise: {env.task} has observations of {env.obs_space.dtype}, must be of float32")
        if self._std.shape not in ((), env.obs_space.shape) or not bool((self._std >= 0).all()):
            raise TaskError(f"add_noise: std is {std}, must be one number or {env.obs_space.shape} of them, at least 0")
        if self.symmetry is not None and self._std.ndim and not self._std.equal(self._std[self.symmetry.obs.source]):
            raise TaskError(f"add_noise: std is {std}, not the same for a feature and for its mirror image")
        self._generator = torch.Generator(env.device)
        self._seed(seed)

    def _seed(self, seed: int) -> None:
        self._generator.manual_seed(spawn_seeds(seed, 1, "noise")[0])

    def _noisy(self, obs: Tensor) -> Tensor:
        return obs + self._std * torch.randn(obs.shape, generator=self._generator, device=obs.device)

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        if seed is not None:
            self._seed(seed)
        return super().reset(seed)

    def begin(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        self._obs = self._noisy(obs)
        seen = self._obs.clone()
        return seen, critic_obs if self.privileged else seen

    def receive(self, step: Step) -> Step:
        next_obs, first = self._noisy(step.next_obs), self._noisy(step.obs)
        next_obs = torch.where(_rows(step.valid, next_obs), next_obs, self._obs)  # a spoilt row stays where it was
        self._obs = torch.where(_rows(step.terminated | step.truncated, first), first, next_obs)
        return self.shown(step, self._obs.clone(), next_obs)

    def own_state(self) -> dict[str, Any]:
        return {"obs": self._obs.clone(), "generator": self._generator.get_state()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._obs = state["obs"].clone()
        self._generator.set_state(state["generator"].cpu())


class _LateObservations(Wrapper):
    def __init__(self, env: VecEnv, steps: int) -> None:
        super().__init__(env)
        self._steps = _whole("delay_observations", steps)

    def begin(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        self._past = torch.stack((self._steps + 1) * [obs])  # the newest last
        return obs, critic_obs

    def receive(self, step: Step) -> Step:
        ended = step.terminated | step.truncated
        on = torch.cat([self._past[1:], step.next_obs[None]])
        next_obs = torch.where(_rows(step.valid, on[0]), on[0], self._past[0])
        self._past = torch.where(_rows(ended, step.obs), step.obs, on)
        return self.shown(step, self._past[0].clone(), next_obs.clone())

    def own_state(self) -> dict[str, Any]:
        return {"past": self._past.clone()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._past = state["past"].clone()


class _LateActions(Wrapper):
    def __init__(self, env: VecEnv, steps: int) -> None:
        super().__init__(env)
        self._steps = _whole("delay_actions", steps)
        if isinstance(env.action_space, Discrete):
            raise TaskError(f"delay_actions: {env.task} has discrete actions, and none of them is to do nothing")

    def begin(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        self._waiting = torch.zeros(self._steps, self.num_envs, *self.action_space.shape, device=self.device)  # type: ignore[misc]
        return obs, critic_obs

    def send(self, action: Tensor) -> Tensor:
        queue = torch.cat([self._waiting, action[None]])
        self._waiting = queue[1:]
        return queue[0]

    def receive(self, step: Step) -> Step:
        ended = step.terminated | step.truncated
        self._waiting = torch.where(_rows(ended, self._waiting[0]), 0.0, self._waiting)
        return step

    def own_state(self) -> dict[str, Any]:
        return {"waiting": self._waiting.clone()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._waiting = state["waiting"].clone()


class _ActionRate(Wrapper):
    def __init__(self, env: VecEnv, weight: float) -> None:
        super().__init__(env)
        if isinstance(env.action_space, Discrete) or len(env.obs_space.shape) != 1:
            raise TaskError(f"price_action_rate: {env.task} needs actions and observations that are vectors")
        if env.tasks:
            raise TaskError("price_action_rate: goes around each task, not around a set of tasks")
        self._weight, size = weight, env.action_space.shape[0]
        self.obs_space, self.critic_obs_space = (
            vector_space(space.shape[0] + size) for space in (env.obs_space, env.critic_obs_space)
        )
        if (was := env.symmetry) is not None:
            self.symmetry = Symmetry(_beside(was.obs, was.action), _beside(was.critic_obs, was.action), was.action)

    def _seen(self, obs: Tensor, critic_obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        seen = torch.cat([obs, action], 1)
        return seen, torch.cat([critic_obs, action], 1) if self.privileged else seen

    def begin(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        self._before = obs.new_zeros(self.num_envs, *self.action_space.shape)  # type: ignore[misc]
        return self._seen(obs, critic_obs, self._before)

    def send(self, action: Tensor) -> Tensor:
        self._now = action.clone()
        return action

    def receive(self, step: Step) -> Step:
        price = self._weight * (self._now - self._before).square().sum(1)
        after = torch.where(step.valid[:, None], self._now, self._before)
        next_obs, next_critic_obs = self._seen(step.next_obs, step.next_critic_obs, after)
        self._before = torch.where((step.terminated | step.truncated)[:, None], 0.0, after)
        obs, critic_obs = self._seen(step.obs, step.critic_obs, self._before)
        return step._replace(
            obs=obs,
            critic_obs=critic_obs,
            reward=torch.where(step.valid, step.reward - price, step.reward),
            next_obs=next_obs,
            next_critic_obs=next_critic_obs,
            metrics={"raw_reward": step.reward, **step.metrics},
        )

    def own_state(self) -> dict[str, Any]:
        return {"before": self._before.clone()}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self._before = state["before"].clone()
