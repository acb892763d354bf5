"""What engines on the CPU share: clock, same-step restart, quarantine, conversion, pinned copies."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from torch import Tensor

from envs.base import Spec, Step, TaskError, VecEnv, vector_space

UNBOUNDED = 1e6  # engines write 1e10 or the largest float where they mean infinity
GOAL_KEYS = {"observation", "achieved_goal", "desired_goal"}
PRIVILEGED_KEYS = {"state", "privileged_state"}


def describe(task: str, obs_space: Space[Any], action_space: Space[Any], step_limit: int | None) -> Spec:
    """Return what a `HostEnv` with these spaces looks like.

    Raises:
        TaskError: a space cannot be used.
    """
    readers = obs_readers(task, obs_space)
    return Spec(readers[0].space, readers[-1].space, action_map(task, action_space)[0], step_limit)


def obs_readers(task: str, obs_space: Space[Any]) -> list["ObsReader"]:
    """Return what reads the actor's view of an engine's observations, and the critic's where that is another."""
    if isinstance(obs_space, Dict) and set(obs_space.spaces) == PRIVILEGED_KEYS:
        return [ObsReader(task, obs_space[key], (key,)) for key in ("state", "privileged_state")]
    return [ObsReader(task, obs_space)]


BEGINNINGS = 10
"""episodes of which one must begin with finite observations"""


class HostEnv(VecEnv):
    """An engine on the CPU that speaks NumPy, behind the contract.

    It keeps the clock, restarts an episode within the step that ended it, quarantines numbers that are not finite, and
    converts. A subclass wires up an engine that never resets by itself: `_start`, `_send`, `_recv`, `_restart`.
    """

    def __init__(
        self,
        task: str,
        num_envs: int,
        device: torch.device,
        obs_space: Space[Any],
        action_space: Space[Any],
        step_limit: int | None,
    ) -> None:
        self.task = task
        self.num_envs = num_envs
        self.device = device
        self.max_episode_steps = step_limit
        self.action_space, self._to_engine = action_map(task, action_space)
        if isinstance(action_space, Box):
            self.action_bounds = action_space.low.ravel().astype(float), action_space.high.ravel().astype(float)
        self._readers = obs_readers(task, obs_space)
        self.obs_space, self.critic_obs_space = self._readers[0].space, self._readers[-1].space
        self._action_shape = (num_envs, *(self.action_space.shape or ()))
        self._step_limit = np.iinfo(np.int64).max if step_limit is None else step_limit
        self._elapsed = np.zeros(num_envs, np.int64)
        self._current: list[np.ndarray] = []  # what to act on: the actor's view, and the critic's where it differs
        self._in_flight = False

    @abstractmethod
    def _start(self, seed: int | None) -> Any:
        """Return the first observations of N new episodes. A seed starts all random streams afresh."""

    @abstractmethod
    def _send(self, action: np.ndarray) -> None:
        """Start a step with actions in the engine's own range."""

    @abstractmethod
    def _recv(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Return fresh (obs, reward, terminated, truncated, info) of the step; obs are the true successors."""

    @abstractmethod
    def _restart(self, mask: np.ndarray) -> Any:
        """Start new episodes in the masked environments, and return the first observations of these, in order."""

    def _is_over(self, terminated: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """Return [N] bool: where a terminated environment needs a restart."""
        return terminated

    def _next_life(self, mask: np.ndarray) -> Any:
        """Go on in the masked environments, which terminated but are not over; return observations like `_restart`."""
        raise NotImplementedError

    def _metrics(self, info: dict[str, Any], over: np.ndarray) -> dict[str, np.ndarray]:
        """Return [N] arrays for `Step.metrics`; `over` is where a game ended."""
        return {}

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first (obs, critic_obs) of N new episodes. A seed starts all random streams afresh."""
        if self._in_flight:
            self._in_flight = False
            self._recv()
        self._elapsed[:] = 0
        self._current = self._first(self._start(seed), np.ones(self.num_envs, np.bool_))
        return self._tensors(self._current)

    def step(self, action: Tensor) -> Step:
        """Apply [N, A] float32 actions, clipped to [-1, 1], or [N] int64 ones."""
        self.step_send(action)
        return self.step_recv()

    def step_send(self, action: Tensor) -> None:
        """Start a step; the engine works on it while the caller does something else."""
        if self._in_flight or not self._current:  # EnvPool would hang, or hand out a reset row as a step
            raise RuntimeError(f"{self.task}: reset before the first step, and step_recv before the next step_send")
        if action.shape != self._action_shape:
            raise ValueError(f"{self.task}: action has shape {tuple(action.shape)}, expected {self._action_shape}")
        self._send(self._to_engine(action.detach().cpu().numpy()))
        self._in_flight = True

    def step_recv(self) -> Step:
        """Wait for the step that `step_send` has started, and return it."""
        if not self._in_flight:
            raise RuntimeError(f"{self.task}: step_recv without a step_send")
        self._in_flight = False
        batch, reward, terminated, truncated, info = self._recv()
        reward = reward.astype(np.float32, copy=False)
        successor = self._read(batch)
        self._elapsed += 1
        expired = self._elapsed >= self._step_limit

        flags = np.ones((3, self.num_envs), np.bool_)  # in one array: one copy to the device
        valid = flags[2]
        if not all(is_finite(values) for values in (reward, *successor)):
            valid[:] = np.logical_and.reduce([finite_rows(values) for values in (reward, *successor)])
            reward = np.where(valid, reward, np.float32(0))
            for new, old in zip(successor, self._current, strict=True):
                new[~valid] = old[~valid]
        flags[0] = terminated & valid
        flags[1] = (truncated | expired | ~valid) & ~flags[0]
        ended = flags[0] | flags[1]
        over = (flags[0] & self._is_over(terminated, info)) | flags[1] | expired

        self._current = successor
        if ended.any():
            self._current = [view.copy() for view in successor]
            for mask, begin in ((over, self._restart), (ended & ~over, self._next_life)):
                if mask.any():
                    for view, first in zip(self._current, self._first(begin(mask), mask), strict=True):
                        view[mask] = first
            self._elapsed[over] = 0

        next_obs, next_critic_obs = self._tensors(successor)
        fresh = self._current is not successor
        obs, critic_obs = self._tensors(self._current) if fresh else (next_obs, next_critic_obs)
        metrics = {name: self._tensor(values) for name, values in self._metrics(info, over).items()}
        end, cut, sound = self._tensor(flags).unbind()
        return Step(obs, critic_obs, self._tensor(reward), end, cut, next_obs, next_critic_obs, sound, metrics)

    def _read(self, batch: Any) -> list[np.ndarray]:
        """Return the views of a batch."""
        return [reader(batch) for reader in self._readers]

    def _first(self, batch: Any, mask: np.ndarray) -> list[np.ndarray]:
        """Return the views of the first observations of the masked environments' episodes.

        An episode that begins with a number that is not finite is begun again.

        Raises:
            TaskError: none of several begins otherwise.
        """
        views = self._read(batch)
        for _ in range(BEGINNINGS):
            if all(is_finite(view) for view in views):
                return views
            sound = np.logical_and.reduce([finite_rows(view) for view in views])
            if sound.all():  # a sum has overflowed
                return views
            again = mask.copy()
            again[mask] = ~sound
            views = [view.copy() for view in views]
            for view, first in zip(views, self._read(self._restart(again)), strict=True):
                view[~sound] = first
        raise TaskError(f"{self.task}: {BEGINNINGS} episodes begin with an observation that is not finite")

    def _tensors(self, views: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        tensors = [self._tensor(view) for view in views]
        return tensors[0], tensors[-1]

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cpu":
            return tensor
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from torch's cache, which reuses the memory only after the copy
        return tensor.to(self.device, non_blocking=True)


class ObsReader:
    """Turns a batch from a Gymnasium space into [N, D] float32 rows, or leaves a uint8 image as it is.

    Dict and Tuple are concatenated in the space's own order, Discrete and MultiDiscrete become one-hot. Of a goal task
    (`observation`, `achieved_goal`, `desired_goal`) what was achieved is left out: the observation tells it.

    Raises:
        TaskError: a Text, Graph or other space without a fixed-size vector.
    """

    def __init__(self, task: str, space: Space[Any], path: tuple[Any, ...] = ()) -> None:
        image = isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) in (2, 3)
        self._path = path if image else None
        self._columns = [] if image else [(path, *columns(task, leaf)) for path, leaf in leaves(space, path)]
        self._size = sum(size for _, size, _ in self._columns)
        self.space = Box(0, 255, space.shape, np.uint8) if image else vector_space(self._size)

    def __call__(self, batch: Any) -> np.ndarray:
        """[N, *space.shape]; may share memory with the batch."""
        if self._path is not None:
            return np.ascontiguousarray(follow(batch, self._path))
        parts = [encode(follow(batch, path)) for path, _, encode in self._columns]
        if len(parts) == 1:
            return np.ascontiguousarray(parts[0], np.float32)
        rows = np.empty((len(parts[0]), self._size), np.float32)
        np.concatenate(parts, axis=1, out=rows, casting="unsafe")
        return rows


def leaves(space: Space[Any], path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Space[Any]]]:
    """Yield (path, space) of the leaves of a nested space, in its own order."""
    if isinstance(space, Dict):
        goal = set(space.spaces) == GOAL_KEYS
        for key, child in space.spaces.items():
            if not (goal and key == "achieved_goal"):
                yield from leaves(child, (*path, key))
    elif isinstance(space, Tuple):
        for index, child in enumerate(space.spaces):
            yield from leaves(child, (*path, index))
    else:
        yield path, space


def columns(task: str, space: Space[Any]) -> tuple[int, Callable[[np.ndarray], np.ndarray]]:
    """Return the size of a leaf's row and what turns its [N, ...] batch into [N, size]."""
    if isinstance(space, Box | MultiBinary):
        size = int(np.prod(space.shape))
        return size, lambda batch: batch.reshape(-1, size)
    if isinstance(space, Discrete):
        sizes, starts = np.array([space.n]), np.array([space.start])
    elif isinstance(space, MultiDiscrete):
        sizes, starts = space.nvec.ravel(), space.start.ravel()
    else:
        raise TaskError(f"{task}: an observation in {type(space).__name__} has no vector form; wrap the environment")
    source = np.repeat(np.arange(len(sizes)), sizes)
    value = np.concatenate([start + np.arange(size) for size, start in zip(sizes, starts, strict=True)])
    return len(value), lambda batch: batch.reshape(len(batch), -1)[:, source] == value


def action_map(task: str, space: Space[Any]) -> tuple[Box | Discrete, Callable[[np.ndarray], np.ndarray]]:
    """Return the contract's action space, and what maps its [N, ...] actions to the engine's.

    Raises:
        TaskError: neither Discrete nor a bounded Box of floats.
    """
    if isinstance(space, Discrete):
        return Discrete(int(space.n)), lambda action: action + int(space.start)
    if not isinstance(space, Box) or not np.issubdtype(space.dtype, np.floating):
        raise TaskError(
            f"{task}: actions in {type(space).__name__} of {space.dtype} are not supported, "
            "only Discrete or a Box of floats"
        )
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.abs(low) < UNBOUNDED).all() or not (np.abs(high) < UNBOUNDED).all():
        limits = f"{low.min():g} to {high.max():g}"
        raise TaskError(f"{task}: actions are unbounded ({limits}); wrap it in a task whose actions have a range")
    centre, scale = (high + low) / 2, (high - low) / 2

    def rescale(action: np.ndarray) -> np.ndarray:
        action = np.minimum(np.maximum(action, -1), 1).reshape(-1, *space.shape)  # half the time of np.clip
        return (centre + scale * action).astype(space.dtype, copy=False)  # in float64: 1 is exactly the bound

    return Box(-1, 1, (int(np.prod(space.shape)),), np.float32), rescale


def is_finite(values: np.ndarray) -> bool:
    """Whether all values are finite, at the cost of a sum. A sum that overflows says False, which only costs time."""
    return values.dtype == np.uint8 or math.isfinite(np.add.reduce(values, axis=None))


def finite_rows(values: np.ndarray) -> np.ndarray:
    """[N] bool: whether all values of a row are finite."""
    return np.isfinite(values.reshape(len(values), -1)).all(axis=1)


def follow(batch: Any, path: tuple[Any, ...]) -> Any:
    """Return the leaf at the end of a path into a nested batch."""
    for key in path:
        batch = batch[key]
    return batch


def check_count(name: str, value: Any) -> int:
    """Return a whole number that is at least 1.

    Raises:
        TaskError: it is not.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise TaskError(f"{name} is {value!r}, must be a whole number of at least 1")
    return int(value)


def one_line(error: Exception) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
