"""The environment contract, in one page.

Everything that feeds an agent implements `VecEnv`: N environments that step together and speak torch. The rules that
every backend keeps, and that `python -m envs.check TASK` tests:

1. `Step.obs` is what to act on next. Where an episode has just ended it is already the first observation of the next
   one. `Step.next_obs` is the true successor of the action, before any reset; this is what a learner bootstraps from.
   The two are equal where nothing ended. No row that an engine inserts for its own resets ever leaves the adapter.
2. `terminated`: the task ended, the value after it is 0. `truncated`: only the clock ended, bootstrap from `next_obs`.
   Never both: termination wins.
3. Continuous actions are always in [-1, 1]; the adapter maps them to the task's own range. Discrete ones are int64.
4. Observations are float32, or uint8 for images, in the engine's layout (Atari: [4, 84, 84], frames first).
   `critic_obs` is the privileged view where the task has one, else the very same tensor as `obs`. The actor never
   sees it.
5. Tensors belong to the caller: a later step does not overwrite them.
6. Two environments never share a random stream, neither within a run nor across neighbouring seeds; global random
   number generators are left alone.
7. A backend that cannot give the true successor raises when it is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor


class TaskError(ValueError):
    """The task cannot be made: unknown name, missing simulator, broken contract. One line, meant for users."""


class Step(NamedTuple):
    """What one action of each of N environments led to; all tensors on the environment's device."""

    obs: Tensor
    """[N, *obs] to act on next: the first observation of a new episode where one has ended"""
    critic_obs: Tensor
    """[N, *critic_obs] the privileged view of `obs`; the same tensor where the task has none"""
    reward: Tensor
    """[N] float32"""
    terminated: Tensor
    """[N] bool: the episode ended and the value after it is 0"""
    truncated: Tensor
    """[N] bool: the time limit ended the episode; bootstrap from `next_obs`. Never together with `terminated`"""
    next_obs: Tensor
    """[N, *obs] the true successor of the action, before any reset"""
    next_critic_obs: Tensor
    """[N, *critic_obs] the privileged view of `next_obs`"""
    valid: Tensor
    """[N] bool: False where the simulator returned a number that is not finite. The adapter has then reset that
    environment, set `reward` to 0, `next_obs` to the observation acted on, and `truncated` to True: there is nothing
    to learn from the row or its `metrics`, and no NaN to be poisoned by."""
    metrics: Mapping[str, Tensor] = {}
    """[N] tensors that the task reports beside the reward. Reserved names: `success` (bool, of this step),
    `raw_reward` (the score where `reward` was reshaped for learning), `game_over` (bool: the real end of an episode
    where `terminated` also marks a lost life)."""


class Mirror(NamedTuple):
    """A reflection of vectors: entry i of the image is `sign[i]` times entry `source[i]`. Twice, it changes nothing."""

    source: Tensor
    """[D] int64"""
    sign: Tensor | None
    """[D] float32, 1 or -1; None where numbers of discrete actions are reflected, whose images are in `source`"""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the images of [..., D], or of discrete actions [...]."""
        return self.source[x] if self.sign is None else x[..., self.source] * self.sign


class Symmetry(NamedTuple):
    """The left-right symmetry of a task: mirrored actions in mirrored states earn and lead to the mirror image."""

    obs: Mirror
    critic_obs: Mirror
    action: Mirror


class Spec(NamedTuple):
    """What a task looks like, without making it; fields are those of `VecEnv`."""

    obs_space: Box
    critic_obs_space: Box
    action_space: Box | Discrete
    max_episode_steps: int | None


class VecEnv(ABC):
    """N environments that step together. A user's own simulator plugs in by implementing `reset` and `step`."""

    task: str
    """name that `envs.make` was given"""
    backend: str
    """name of the backend that made it"""
    num_envs: int
    """N"""
    device: torch.device
    """where every tensor of a `Step` lives, and where actions are expected"""
    obs_space: Box
    """of one environment: float32 with infinite bounds, or uint8 for images"""
    critic_obs_space: Box
    """of one environment; equal to `obs_space` where the task has no privileged view"""
    action_space: Box | Discrete
    """of one environment: Box(-1, 1, (A,), float32) or Discrete(n)"""
    max_episode_steps: int | None
    """steps after which an episode is truncated, None if it never is. Two truncations of one environment, rows that are
    not valid aside, are at least this far apart, over resets too: the replay buffer relies on it. A task whose clock is
    unknown says 1."""
    tasks: Mapping[str, slice] = {}
    """which environments have which task, where there are several: in this order a one-hot vector, the end of each
    observation, says which"""
    symmetry: Symmetry | None = None
    """how observations and actions look in a mirror, where the task is the same in it: `envs.wrappers.with_symmetry`"""
    action_bounds: tuple[np.ndarray, np.ndarray] | None = None
    """what actions of -1 and of 1 are in the task's own units, [A] float64 each; None where they are the same there,
    or where several tasks have several units"""
    deterministic: bool = True
    """the same seed and actions give the same rollout, bit for bit"""
    snapshots: bool = False
    """`state_dict` holds everything that `load_state_dict` needs to continue bit for bit"""

    @abstractmethod
    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first (obs, critic_obs) of N new episodes. A seed starts all random streams afresh."""

    @abstractmethod
    def step(self, action: Tensor) -> Step:
        """Apply [N, A] float32 actions in [-1, 1], or [N] int64 ones."""

    def step_send(self, action: Tensor) -> None:
        """Start a step. An engine with threads of its own returns at once, and works while the learner learns."""
        self._sent = action

    def step_recv(self) -> Step:
        """Wait for the step that `step_send` has started, and return it."""
        return self.step(self._sent)

    def summary(self) -> dict[str, float | Tensor]:
        """Return what the simulator itself reports of episodes that have ended since the last call, by TensorBoard tag.

        Numbers or tensors of one element on the device; agents log them beside their own.
        """
        return {}

    def render(self, index: int = 0, size: tuple[int, int] | None = None, camera: int | None = None) -> np.ndarray:
        """Return a picture [H, W, 3] uint8 of one environment as it is: what it has just returned as `obs`.

        Args:
            index: of the environment.
            size: width and height in pixels, where the renderer leaves a choice.
            camera: its number, where there are several.

        Raises:
            TaskError: the backend cannot draw, or not here.
        """
        raise TaskError(f"{self.backend} cannot draw {self.task}")

    def mujoco(self, index: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
        """Return the MuJoCo model of one environment, and its state now: arrays of MjData by name, qpos at least.

        Raises:
            TaskError: the task has none, or its simulator keeps them to itself.
        """
        raise TaskError(f"{self.backend} gives out no MuJoCo model of {self.task}")

    def close(self) -> None:  # noqa: B027  most engines have nothing to release
        """Release the simulator. Safe to call twice."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, where `snapshots` is True; else empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an environment of the same task, N and device type.

        Raises:
            TaskError: the backend has no snapshots.
        """
        raise TaskError(f"{self.backend} cannot restore the state of a simulator; reset it instead")

    @property
    def spec(self) -> Spec:
        """What the task looks like."""
        return Spec(self.obs_space, self.critic_obs_space, self.action_space, self.max_episode_steps)

    @property
    def task_ids(self) -> Tensor:
        """[N] int64 on the CPU: which of `tasks` each environment has; 0 where there is only one."""
        ids = torch.zeros(self.num_envs, dtype=torch.int64)
        for number, rows in enumerate(self.tasks.values()):
            ids[rows] = number
        return ids

    @property
    def privileged(self) -> bool:
        """Whether the critic sees more than the actor does."""
        return self.critic_obs_space != self.obs_space


def vector_space(size: int) -> Box:
    """Space of an unbounded float32 observation vector. Engines' own bounds are ignored: some are nonsense."""
    return Box(-np.inf, np.inf, (size,), np.float32)


def spawn_seeds(seed: int, count: int, stream: str = "env") -> list[int]:
    """`count` seeds in [0, 2**31) for one purpose of a run; no two purposes or neighbouring runs share a stream.

    Counting up from the run's seed, as is common, makes seeds 1 and 2 share all environments but one.
    """
    words = np.random.SeedSequence([seed, *stream.encode()]).generate_state(2 * count + 8) & 0x7FFFFFFF
    return [int(x) for x in dict.fromkeys(words.tolist())][:count]  # distinct: two equal words are two equal streams
