"""What mjlab and Isaac Lab share: engines that speak torch, draw from the global random streams, and log episodes."""

import math
import random
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from envs.base import Step, TaskError, VecEnv, spawn_seeds, vector_space


class ManagedEnv(VecEnv):
    """N environments of such an engine behind the contract.

    It clips and scales actions, quarantines numbers that are not finite, restarts an episode within the step that ended
    it, keeps the engine's random streams apart from everybody else's, and averages its logs. Where the observations of
    actor and critic are of one size, the critic gets the actor's: the contract tells privileged views by their size.

    A subclass wires up an engine, which is called within `self._streams` only: `_begin`, `_advance`, `_restart`.

    Args:
        task: its name.
        num_envs: N.
        seed: of the run.
        device: a CPU or a CUDA device.
        action_range: what an action of 1 is multiplied by.

    Raises:
        TaskError: device or action_range is not legal.
    """

    groups: tuple[str, str]
    """what the engine calls the observations of the actor and of the critic"""
    action_space: Box

    def __init__(self, task: str, num_envs: int, seed: int, device: torch.device, action_range: float) -> None:
        if device.type not in ("cpu", "cuda"):
            raise TaskError(f"device is {device}, but {self.backend} has only cpu and cuda")
        if not isinstance(action_range, int | float) or not 0 < action_range < math.inf:
            raise TaskError(f"action_range is {action_range!r}, must be a positive number")
        self.task = task
        self.num_envs = num_envs
        self.device = device
        self._action_range = float(action_range)
        self._clock_terminates = False  # whether there is no value after the time limit
        self._streams = Streams(device)
        self._seed(seed)
        self._views: tuple[Tensor, ...] = ()  # what to act on; none before the first reset
        self._logged: dict[str, tuple[Any, int]] = {}

    def _seed(self, seed: int) -> None:
        self._streams.seed(spawn_seeds(seed, 1, self.backend)[0])

    def _set_spaces(self, observations: Mapping[str, Any], num_actions: int) -> None:
        """Set the spaces of the contract from the engine's, by group.

        Raises:
            TaskError: the actor's group is missing, there are others than the two, or one is not a vector.
        """
        shapes: dict[str, tuple[int, ...]]
        shapes = {group: getattr(space, "shape", None) or () for group, space in observations.items()}
        if self.groups[0] not in shapes or not shapes.keys() <= {*self.groups}:
            raise TaskError(
                f"{self.task} observes {', '.join(shapes)}; agents here take {self.groups[0]}, and {self.groups[1]} "
                "beside it"
            )
        if any(len(shape) != 1 for shape in shapes.values()):
            raise TaskError(f"{self.task}: an observation is no vector: {shapes}")
        actor, critic = (shapes.get(group, shapes[self.groups[0]]) for group in self.groups)
        self.obs_space, self.critic_obs_space = vector_space(actor[0]), vector_space(critic[0])
        self.action_space = Box(-1, 1, (num_actions,), np.float32)
        self.action_bounds = np.full(num_actions, -self._action_range), np.full(num_actions, self._action_range)

    @abstractmethod
    def _begin(self, seed: int | None) -> Mapping[str, Tensor]:
        """Return the first observations of N new episodes. A seed makes the engine as new."""

    @abstractmethod
    def _advance(self, action: Tensor) -> tuple[Mapping[str, Tensor], Tensor, Tensor, Tensor]:
        """Apply actions; return the true successors, reward, what terminated, and what the clock ended."""

    @abstractmethod
    def _restart(self, rows: Tensor) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """Begin new episodes in these environments; return observations of all N, and the log of what has ended."""

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first (obs, critic_obs) of N new episodes. A seed starts all random streams afresh."""
        if seed is not None:
            self._seed(seed)
        with self._streams:
            self._views = self._read(self._begin(seed))
        return self._views[0], self._views[-1]

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Apply [N, A] float32 actions, clipped to [-1, 1].

        On a GPU it waits for the device, as these engines themselves do, to learn which episodes have ended.

        Raises:
            ValueError: the shape of the action is wrong.
            RuntimeError: no episode was started by `reset`.
        """
        expected = (self.num_envs, *self.action_space.shape)
        if action.shape != expected:
            raise ValueError(f"{self.task}: action has shape {tuple(action.shape)}, expected {expected}")
        if not self._views:
            raise RuntimeError(f"{self.task}: step() without an episode: call reset() first")
        with self._streams:
            groups, reward, terminated, timed_out = self._advance(self._action_range * action.clamp(-1, 1))
            successor = self._read(groups)
            valid = torch.stack([rows.isfinite().all(1) for rows in (*successor, reward[:, None])]).all(0)
            successor = tuple(pick(valid, new, old) for new, old in zip(successor, self._views, strict=True))
            if self._clock_terminates:
                terminated = terminated | timed_out
            terminated = terminated & valid
            truncated = timed_out & ~terminated | ~valid
            ended = terminated | truncated
            self._views = successor
            rows = ended.nonzero()[:, 0]
            if len(rows):
                groups, log = self._restart(rows)
                first = self._read(groups)
                # Of the others the engine may have drawn new noise: not what the step has led to.
                self._views = tuple(pick(ended, new, old) for new, old in zip(first, successor, strict=True))
                if valid.all():  # else there may be numbers in it that are not finite
                    self._count(log, len(rows))
        reward = torch.where(valid, reward, 0)
        views, ends = self._views, (terminated, truncated)
        return Step(views[0], views[-1], reward, *ends, successor[0], successor[-1], valid)

    def _read(self, groups: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Return the actor's view, and the critic's where it differs."""
        return tuple(groups[group] for group in self.groups[: 1 + self.privileged])

    def _count(self, log: Mapping[str, Any], episodes: int) -> None:
        """Add what was logged of episodes: how many they were in `Episode_Termination/`, else a mean over them."""
        for tag, value in log.items():
            mean = value.float().mean() if isinstance(value, Tensor) else value
            total, count = self._logged.get(tag, (0, 0))
            weight = 1 if tag.startswith("Episode_Termination/") else episodes
            self._logged[tag] = total + weight * mean, count + episodes

    def summary(self) -> dict[str, float | Tensor]:
        """Return what the engine logs of episodes, over those that have ended since the last call, by its own tags.

        Means over episodes; of `Episode_Termination/` the share of the episodes that ended in this way. Tensors are of
        one element and on the device, which is not waited for. Steps with rows that are not valid are left out.
        """
        means = {tag: total / count for tag, (total, count) in self._logged.items()}
        self._logged = {}
        return means


class Streams:
    """Global random streams of an engine's own: `with streams:` they take the place of everybody else's.

    Args:
        device: where the engine draws; streams of the CPU it has in any case.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inner = self._outer = self._read()

    def seed(self, seed: int) -> None:
        """Start the streams afresh."""
        with self:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002  the global one is what engines use
            torch.default_generator.manual_seed(seed)
            if self._device.type == "cuda":
                torch.cuda.default_generators[self._device.index].manual_seed(seed)

    def __enter__(self) -> None:
        self._outer = self._read()
        self._write(self._inner)

    def __exit__(self, *_: object) -> None:
        self._inner = self._read()
        self._write(self._outer)

    def _read(self) -> tuple[Any, ...]:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        return (*states, torch.cuda.get_rng_state(self._device)) if self._device.type == "cuda" else states

    def _write(self, states: tuple[Any, ...]) -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[3], self._device)


def pick(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return the rows of `chosen` where the [N] mask is True, else those of `other`."""
    return torch.where(mask[:, None], chosen, other)
