"""Several tasks at once for one policy, which is told its task by a one-hot vector behind the observation.

`MetaWorld/MT10-v3` and `MetaWorld/MT50-v3` are the multi-task sets of Meta-World (Yu et al., 2020), made of EnvPool's
single tasks, with goals that can be seen as there. `TASK+TASK+...` is a set of one's own: any tasks whose observations
and actions have the same shape, and whose episodes the same time limit.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import envs
from envs.base import Spec, Step, TaskError, VecEnv, spawn_seeds, vector_space
from envs.families import SETS

MT10 = tuple(
    f"MetaWorld/{name}-v3"
    for name in (
        *("Reach", "Push", "PickPlace", "DoorOpen", "DrawerOpen", "DrawerClose", "ButtonPressTopdown"),
        *("PegInsertSide", "WindowOpen", "WindowClose"),
    )
)
OF_ROWS = ("reward", "terminated", "truncated", "valid")


def tasks() -> list[str]:
    """Return the sets that have a name."""
    return list(SETS)


def members(task: str) -> tuple[str, ...]:
    """Return the tasks of a set.

    Raises:
        TaskError: it is no set, or its tasks are not distinct.
    """
    if task == "MetaWorld/MT10-v3":
        return MT10
    if task == "MetaWorld/MT50-v3":
        return tuple(name for name in envs.tasks("envpool") if name.startswith("MetaWorld/"))
    names = tuple(task.split("+"))
    if len(names) < 2 or not all(names) or len({*names}) < len(names):
        raise TaskError(f"{task!r} is no set of tasks, must be {', '.join(tasks())}, or distinct names: TASK+TASK")
    return names


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` environments, as many of each task; options go to each of them.

    Raises:
        TaskError: one cannot be made, their shapes differ, or num_envs is not a multiple of their number.
    """
    if task in tasks():
        options = {"partially_observable": False, **options}
    return MultiTask(members(task), num_envs, seed, device, envs.make, **options)


def describe(task: str) -> Spec:
    """Return what a set looks like, which one of its tasks tells."""
    names = members(task)
    backend = next(name for name in envs.backends() if names[0] in envs.tasks(name))
    spec = envs.describe(names[0], backend)
    assert spec is not None  # only backends without sets of tasks say so
    return spec._replace(
        obs_space=vector_space(spec.obs_space.shape[0] + len(names)),
        critic_obs_space=vector_space(spec.critic_obs_space.shape[0] + len(names)),
    )


class MultiTask(VecEnv):
    """Environments of several tasks that step together, in the order of the tasks.

    `make_one` is `envs.make`, or stands for it.
    """

    def __init__(
        self,
        names: Sequence[str],
        num_envs: int,
        seed: int,
        device: torch.device,
        make_one: Callable[..., VecEnv],
        **options: Any,
    ) -> None:
        each, rest = divmod(num_envs, len(names))
        if rest or not each:
            raise TaskError(f"num_envs is {num_envs}, must be a multiple of {len(names)}, the number of tasks")
        self.num_envs, self.device = num_envs, device
        self._parts: list[VecEnv] = []
        try:
            for name, own in zip(names, self._seeds(seed, len(names)), strict=True):
                self._parts.append(make_one(name, each, own, device, **options))
                self._compare(names[0], name)
        except BaseException:
            self.close()
            raise
        first = self._parts[0]
        self.tasks = {name: slice(index * each, (index + 1) * each) for index, name in enumerate(names)}
        self._one_hot = one_hot(torch.arange(len(names), device=device).repeat_interleave(each)).float()  # [N, tasks]
        self.obs_space, self.critic_obs_space = (
            vector_space(space.shape[0] + len(names)) for space in (first.obs_space, first.critic_obs_space)
        )
        self.action_space = first.action_space
        bounds = [part.action_bounds for part in self._parts]
        if len({None if own is None else tuple(np.concatenate(own)) for own in bounds}) == 1:
            self.action_bounds = bounds[0]
        self.max_episode_steps = first.max_episode_steps
        self.deterministic = all(part.deterministic for part in self._parts)
        self.snapshots = all(part.snapshots for part in self._parts)

    @staticmethod
    def _seeds(seed: int, count: int) -> list[int]:
        return spawn_seeds(seed, count, "multitask")

    def _compare(self, first: str, name: str) -> None:
        """Raise for a task that the first one's network could not see or act in, or whose episodes end elsewhere."""
        one, other = self._parts[0].spec, self._parts[-1].spec
        if len(one.obs_space.shape) != 1 or other != one:
            shown = [f"{x.obs_space.shape}, {x.action_space} and {x.max_episode_steps} steps" for x in (one, other)]
            raise TaskError(
                "tasks that are learned together need vectors of one size, the same actions and the same time limit: "
                f"{first} has {shown[0]}, {name} has {shown[1]}"
            )

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first observations of all tasks."""
        count = len(self._parts)
        seeds = [None] * count if seed is None else self._seeds(seed, count)
        views = [part.reset(own) for part, own in zip(self._parts, seeds, strict=True)]
        obs, critic_obs = zip(*views, strict=True)
        return self._views(obs, critic_obs)

    def step(self, action: Tensor) -> Step:
        """Take a step in all."""
        self.step_send(action)
        return self.step_recv()

    def step_send(self, action: Tensor) -> None:
        """Start a step of all tasks, side by side where their engines have threads."""
        for part, own in zip(self._parts, action.chunk(len(self._parts)), strict=True):
            part.step_send(own)

    def step_recv(self) -> Step:
        """Wait for all. Of the metrics those come out that every task has."""
        steps = [part.step_recv() for part in self._parts]
        rows = {name: torch.cat([getattr(step, name) for step in steps]) for name in OF_ROWS}
        shared = [key for key in steps[0].metrics if all(key in step.metrics for step in steps)]
        obs, critic_obs = self._views([x.obs for x in steps], [x.critic_obs for x in steps])
        next_obs, next_critic_obs = self._views([x.next_obs for x in steps], [x.next_critic_obs for x in steps])
        return Step(
            obs=obs,
            critic_obs=critic_obs,
            next_obs=next_obs,
            next_critic_obs=next_critic_obs,
            metrics={key: torch.cat([step.metrics[key] for step in steps]) for key in shared},
            **rows,
        )

    def _views(self, obs: Sequence[Tensor], critic_obs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the observations of all tasks with the one-hot vector behind them."""
        told = torch.cat([torch.cat([*obs]), self._one_hot], 1)
        return told, torch.cat([torch.cat([*critic_obs]), self._one_hot], 1) if self.privileged else told

    def summary(self) -> dict[str, float | Tensor]:
        """Return what each simulator reports, by task."""
        parts = zip(self.tasks, self._parts, strict=True)
        return {f"{tag}/{name}": value for name, part in parts for tag, value in part.summary().items()}

    def render(self, index: int = 0, size: tuple[int, int] | None = None, camera: int | None = None) -> np.ndarray:
        """Return a picture of one environment, as its task draws it."""
        part, own = divmod(index, self.num_envs // len(self._parts))
        return self._parts[part].render(own, size, camera)

    def mujoco(self, index: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
        """Return model and state of one environment, where its task gives them out."""
        part, own = divmod(index, self.num_envs // len(self._parts))
        return self._parts[part].mujoco(own)

    def close(self) -> None:
        """Release all simulators. Safe to call twice."""
        for part in self._parts:
            part.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all tasks."""
        return {name: part.state_dict() for name, part in zip(self.tasks, self._parts, strict=True)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue all tasks."""
        for name, part in zip(self.tasks, self._parts, strict=True):
            part.load_state_dict(state[name])
