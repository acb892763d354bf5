"""mjlab's tasks behind the contract: robots on MuJoCo Warp, written in Isaac Lab's way, with tensors on the GPU.

A task of one's own: register it with mjlab and use `module:Id`, which imports the module first. On a CPU the same seed
and actions give the same rollout; on a GPU they do not, since sums there have no order.

Actions in [-1, 1] are multiplied by `action_range`, 1 by default, and go to the task, which gives no bounds but scales
them itself: most often to joints' poses at rest, give or take what a quarter of the largest torque would hold. 1 is
also what RSL-RL's PPO, which mjlab trains with, takes for the first standard deviation of its unbounded actions.
"""

import io
import math
import warnings
from collections.abc import Mapping
from contextlib import redirect_stdout
from copy import deepcopy
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

from envs.base import TaskError, VecEnv
from envs.host import check_count, one_line
from envs.managed import ManagedEnv

INSTALL = "pip install 'semrl[mjlab]'"
PHYSICS = ("mujoco", "mujoco-warp", "warp-lang", "torch")
"""packages whose versions must be what mjlab asks for"""
TASKS = [
    "Mjlab-Cartpole-Balance",
    "Mjlab-Cartpole-Swingup",
    "Mjlab-Lift-Cube-Yam",
    "Mjlab-Tracking-Flat-Unitree-G1",
    "Mjlab-Tracking-Flat-Unitree-G1-No-State-Estimation",
    "Mjlab-Velocity-Flat-Unitree-G1",
    "Mjlab-Velocity-Flat-Unitree-Go1",
    "Mjlab-Velocity-Rough-Unitree-G1",
    "Mjlab-Velocity-Rough-Unitree-Go1",
]
"""written down, since to import mjlab and ask it takes ten seconds; those with cameras are left out"""


def tasks() -> list[str]:
    """Names of mjlab's own tasks."""
    return list(TASKS)


def describe(task: str) -> None:
    """None: what a task looks like is known once it is made; making one takes seconds, after ten to import mjlab."""


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` worlds of a task.

    Args:
        task: an id in mjlab's registry, or `module:Id` for one that importing `module` registers.
        num_envs: N.
        seed: of the run.
        device: where the physics is computed: a CPU or a CUDA device.
        options: `action_range`, `max_episode_steps` and `motion_file`, see `MjlabEnv`.

    Raises:
        TaskError: mjlab is missing or does not fit, the task or an option is unknown, or a value is not legal.
    """
    unknown = options.keys() - {"action_range", "max_episode_steps", "motion_file"}
    if unknown:
        raise TaskError(f"{task} has no option {min(unknown)!r}, only action_range, max_episode_steps and motion_file")
    return MjlabEnv(task, num_envs, seed, device, **options)


class MjlabEnv(ManagedEnv):
    """N worlds of an mjlab task, which resets them only when told to, after the last observation of an episode.

    Args:
        task: see `make`.
        num_envs: N.
        seed: of the run.
        device: a CPU or a CUDA device.
        action_range: what an action of 1 is multiplied by, see above.
        max_episode_steps: instead of the task's time limit.
        motion_file: what a tracking task imitates, an .npz file as mjlab writes them.

    Raises:
        TaskError: mjlab is missing or does not fit, the task is unknown or cannot be used, or a value is not legal.
    """

    backend = "mjlab"
    groups = ("actor", "critic")

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        device: torch.device,
        action_range: float = 1.0,
        max_episode_steps: int | None = None,
        motion_file: str | None = None,
    ) -> None:
        super().__init__(task, check_count("num_envs", num_envs), seed, device, action_range)
        self.deterministic = device.type == "cpu"
        with self._streams:
            self._config = configure(task, num_envs, max_episode_steps, motion_file)
            self._engine = self._build()
        self._clock_terminates = self._config.is_finite_horizon
        self.max_episode_steps = time_limit(self._config)
        spaces = self._engine.single_observation_space.spaces
        self._set_spaces(spaces, self._engine.single_action_space.shape[0])

    def _build(self) -> Any:
        from mjlab.envs import ManagerBasedRlEnv

        printed = io.StringIO()  # ten tables
        try:
            with redirect_stdout(printed):
                engine = ManagerBasedRlEnv(deepcopy(self._config), device=str(self.device))
        except Exception as error:  # whatever the functions of a task raise
            raise TaskError(f"mjlab cannot make {self.task!r}: {one_line(error)}") from error
        for line in printed.getvalue().splitlines():
            if "[WARN" in line:
                warnings.warn(line, stacklevel=2)
        return engine

    def _begin(self, seed: int | None) -> Mapping[str, Tensor]:
        if seed is not None:  # friction, terrain and the like are drawn when it is made, and curricula go on for ever
            self._engine.close()
            self._engine = self._build()
        return self._engine.reset()[0]

    def _advance(self, action: Tensor) -> tuple[Mapping[str, Tensor], Tensor, Tensor, Tensor]:
        return self._engine.step(action)[:4]

    def _restart(self, rows: Tensor) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        groups, extras = self._engine.reset(env_ids=rows)
        return groups, extras["log"]

    def close(self) -> None:
        """Close the engine. Safe to call twice."""
        self._engine.close()


def configure(task: str, num_envs: int, max_episode_steps: int | None, motion_file: str | None) -> Any:
    """Return a task's ManagerBasedRlEnvCfg with what is asked for, see `MjlabEnv`.

    Raises:
        TaskError: mjlab is missing or does not fit, the task is unknown, or a value is not legal.
    """
    registry = load()
    module, _, name = task.rpartition(":")
    if module:
        try:
            import_module(module)
        except ImportError as error:
            raise TaskError(f"{task}: {one_line(error)}") from error
    if name not in registry.list_tasks():
        raise TaskError(f"mjlab has no task {name!r}, only {', '.join(registry.list_tasks())}")
    config = registry.load_env_cfg(name)
    if not hasattr(config, "auto_reset"):
        raise TaskError(f"mjlab {metadata.version('mjlab')} does not give the last observation of episodes: {INSTALL}")
    config.auto_reset = False
    config.scene.num_envs = num_envs
    config.seed = None  # to seed is our work; mjlab would write an environment variable too
    if max_episode_steps is not None:
        if time_limit(config) is None:
            raise TaskError(f"{task} has no time limit, so max_episode_steps cannot be set")
        steps = check_count("max_episode_steps", max_episode_steps)
        # A little less, since mjlab rounds the number of steps up, and 7 * 0.02 / 0.02 is more than 7.
        config.episode_length_s = steps * (1 - 1e-9) * config.sim.mujoco.timestep * config.decimation
    tracking = [command for command in config.commands.values() if hasattr(command, "motion_file")]
    if bool(tracking) != (motion_file is not None):
        raise TaskError(f"{task} {'needs a motion_file to imitate' if tracking else 'takes no motion_file'}")
    for command in tracking:
        command.motion_file = motion_file
    return config


def time_limit(config: Any) -> int | None:
    """Return after how many steps a task truncates: None if it never does, 1 if not the clock alone makes it."""
    from mjlab.envs.mdp import time_out

    reasons = [term.func for term in config.terminations.values() if term is not None and term.time_out]
    if not reasons or config.is_finite_horizon:
        return None
    if any(reason is not time_out for reason in reasons):
        return 1
    return math.ceil(config.episode_length_s / (config.sim.mujoco.timestep * config.decimation))


def load() -> Any:
    """Return mjlab's registry of tasks, with its own tasks in it.

    Raises:
        TaskError: mjlab is missing, or what it simulates with is not of a version that it asks for.
    """
    check_versions()
    try:
        import warp

        # Not one line for each of some hundred kernels; must be said before they are made.
        warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
        from mjlab.tasks import registry
    except ImportError as error:
        raise TaskError(f"mjlab cannot be imported ({one_line(error)}): {INSTALL}") from error
    return registry


def check_versions() -> None:
    """Hold the versions of `PHYSICS` against what mjlab asks for.

    Raises:
        TaskError: one does not fit or is missing, or mjlab is; names them.
    """
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(line) for line in metadata.requires("mjlab") or ()]
        needed = [one for one in asked if one.name in PHYSICS and (not one.marker or one.marker.evaluate())]
        found = {one.name: metadata.version(one.name) for one in needed}
    except metadata.PackageNotFoundError as error:
        raise TaskError(f"the package {error.name} is missing: {INSTALL}") from error
    wrong = [one for one in needed if not one.specifier.contains(found[one.name], prereleases=True)]
    if wrong:
        reasons = ", ".join(f"{one}, but {found[one.name]} is installed" for one in wrong)
        raise TaskError(f"mjlab {metadata.version('mjlab')} needs {reasons}: {INSTALL}")
