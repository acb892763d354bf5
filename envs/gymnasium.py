"""Any registered Gymnasium environment behind the contract.

Bring your own: register it with Gymnasium and use its id, or `module:Id`, which imports the module first. This backend
steps single environments one after the other (`vectorization="async"`: in one process each), so it is the slow one,
and the oracle for the others.
"""

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch

from envs.base import TaskError, VecEnv, spawn_seeds
from envs.host import HostEnv, check_count, one_line


def tasks() -> list[str]:
    """Ids in Gymnasium's registry, old versions included; some need packages of their own."""
    import gymnasium

    return sorted(task for task in gymnasium.registry if not task.startswith("GymV2"))  # those are shells for old Gym


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` copies of a registered environment.

    Args:
        task: an id, or `module:Id` for one that importing `module` registers.
        num_envs: N.
        seed: of the run.
        device: where the tensors go.
        options: `vectorization` "sync" or "async"; `max_episode_steps` instead of the registered one; everything else
            is passed to `gymnasium.make`.

    Raises:
        TaskError: unknown task, missing package, unusable space or bad option.
    """
    return GymnasiumEnv(task, num_envs, seed, device, **options)


class GymnasiumEnv(HostEnv):
    """N environments made by `gymnasium.make`, without Gymnasium's own resets and time limit.

    The limit is the adapter's, since Gymnasium's reports both ends where a task terminates on its last step. A task
    may still truncate by a clock of its own; one with no registered limit says so with `max_episode_steps` 1.
    """

    backend = "gymnasium"

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        device: torch.device,
        vectorization: str = "sync",
        max_episode_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        import gymnasium
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

        if vectorization not in ("sync", "async"):
            raise TaskError(f'vectorization is {vectorization!r}, must be "sync" or "async"')
        check_count("num_envs", num_envs)
        step_limit = check_count("max_episode_steps", max_episode_steps) if max_episode_steps is not None else None
        try:
            module, _, name = task.rpartition(":")
            if module:
                import_module(module)
            spec = gymnasium.spec(name)
            create = partial(gymnasium.make, task, max_episode_steps=-1, disable_env_checker=True, **kwargs)
            vector = AsyncVectorEnv if vectorization == "async" else SyncVectorEnv
            self._vector: Any = vector([create] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
        except Exception as error:  # whatever somebody's constructor raises
            raise TaskError(f"Gymnasium cannot make {task!r}: {one_line(error)}") from error
        spaces = self._vector.single_observation_space, self._vector.single_action_space
        try:
            super().__init__(task, num_envs, device, *spaces, step_limit or spec.max_episode_steps)
        except TaskError:
            self._vector.close()
            raise
        if self.max_episode_steps is None:
            self.max_episode_steps = 1
        self.deterministic = not spec.nondeterministic
        self._async = vectorization == "async"
        self._seed: int | None = seed
        self._success = ""

    def _start(self, seed: int | None) -> Any:
        seed, self._seed = (self._seed if seed is None else seed), None
        seeds = None if seed is None else spawn_seeds(seed, self.num_envs, self.backend)
        return self._vector.reset(seed=seeds)[0]

    def _send(self, action: np.ndarray) -> None:
        if self._async:
            self._vector.step_async(action)
        else:
            self._action = action

    def _recv(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        return self._vector.step_wait() if self._async else self._vector.step(self._action)

    def _restart(self, mask: np.ndarray) -> Any:
        obs, _ = self._vector.reset(options={"reset_mask": mask})
        return take(obs, mask)

    def _metrics(self, info: dict[str, Any], over: np.ndarray) -> dict[str, np.ndarray]:
        if not self._success:
            self._success = next((key for key in ("success", "is_success") if key in info), "")
        if not self._success:
            return {}
        success = info.get(self._success, np.zeros(self.num_envs))  # once reported, the metric stays
        return {"success": success.astype(np.float64) > 0}

    def render(self, index: int = 0, size: tuple[int, int] | None = None, camera: int | None = None) -> np.ndarray:
        """Return a picture of one environment. Size and camera are options of `make`: render_mode, width, camera_id.

        Raises:
            TaskError: the environments were not made with render_mode="rgb_array", or each in its own process.
        """
        if self._async:
            raise TaskError(f'{self.task} is drawn with vectorization="sync" only')
        picture = self._vector.envs[index].render()
        if picture is None:
            raise TaskError(f'{self.task} draws nothing unless it is made with render_mode="rgb_array"')
        return picture

    def mujoco(self, index: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
        """Return the MuJoCo model of one environment, and its state now, see `VecEnv.mujoco`."""
        task: Any = None if self._async else self._vector.envs[index].unwrapped
        if not hasattr(task, "model") or not hasattr(task, "data"):
            return super().mujoco(index)
        data = task.data
        return task.model, {name: getattr(data, name).copy() for name in ("qpos", "mocap_pos", "mocap_quat")}

    def close(self) -> None:
        """Close the environments. Safe to call twice."""
        self._vector.close()


def take(batch: Any, mask: np.ndarray) -> Any:
    """Return the masked rows of a nested batch."""
    if isinstance(batch, dict):
        return {key: take(value, mask) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(take(value, mask) for value in batch)
    return batch[mask]
