"""Isaac Lab's tasks behind the contract, from version 3.0 on: older ones do not give the last observation of episodes.

Written after the source of 3.0.0 and tested against an imitation of its interface alone. Isaac Lab itself wants a
Python, a torch and a MuJoCo Warp of its own, and robots from the network, so that it fits beside no other engine here.

It has one simulation per process, and none is left to evaluate in: train with `--eval-every 0`. A task of one's own:
register it with Gymnasium, as Isaac Lab's are, and use `module:Id`, which imports the module first.

Actions in [-1, 1] are mapped to the task's range if it has one. Most have none; there an action is multiplied by
`action_range`, 1 by default, and the task scales it.
"""

import atexit
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from typing import Any, ClassVar

import torch
from gymnasium.spaces import Box
from torch import Tensor

from envs.base import TaskError, VecEnv
from envs.host import check_count, one_line
from envs.managed import ManagedEnv, pick

INSTALL = "https://isaac-sim.github.io/IsaacLab tells how to install version 3.0 or newer"


def tasks() -> list[str]:
    """Ids of Isaac Lab's tasks in Gymnasium's registry.

    Raises:
        TaskError: Isaac Lab is missing or too old.
    """
    load()
    import gymnasium

    return sorted(name for name, spec in gymnasium.registry.items() if "env_cfg_entry_point" in spec.kwargs)


def describe(task: str) -> None:
    """None: what a task looks like is known once it is made; making one starts the simulator."""


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` environments of a task.

    Args:
        task: an id of Isaac Lab's, or `module:Id` for one that importing `module` registers.
        num_envs: N.
        seed: of the run.
        device: where the physics is computed.
        options: `action_range`, and `overrides`, a list of "key=value" as Isaac Lab's own scripts take them, such as
            "physics=newton_mjwarp".

    Raises:
        TaskError: Isaac Lab is missing or too old, the task or an option is unknown or cannot be used, or there is
            another environment of Isaac Lab in this process.
    """
    unknown = options.keys() - {"action_range", "overrides"}
    if unknown:
        raise TaskError(f"{task} has no option {min(unknown)!r}, only action_range and overrides")
    return IsaacLabEnv(task, num_envs, seed, device, **options)


class IsaacLabEnv(ManagedEnv):
    """N environments of Isaac Lab. It resets them within a step itself, and gives the last observations beside it.

    Args:
        task: see `make`.
        num_envs: N.
        seed: of the run.
        device: where the physics is computed.
        action_range: what an action of 1 is multiplied by where the task gives no bounds.
        overrides: of the task's configuration.

    Raises:
        TaskError: see `make`.
    """

    backend = "isaaclab"
    groups = ("policy", "critic")
    deterministic = False
    running: ClassVar["IsaacLabEnv | None"] = None
    """the one in this process"""

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        device: torch.device,
        action_range: float = 1.0,
        overrides: Sequence[str] = (),
    ) -> None:
        super().__init__(task, check_count("num_envs", num_envs), seed, device, action_range)
        with self._streams:
            self._engine = self._build(task, overrides)
        env = self._engine.unwrapped
        try:
            self._set_action_range(env.single_action_space)
            self._set_spaces(env.single_observation_space.spaces, env.single_action_space.shape[0])
            low, high = (
                (self._centre + sign * self._scale * torch.ones(self.action_space.shape, device=device))
                .double()
                .cpu()
                .numpy()
                for sign in (-1, 1)
            )
            self.action_bounds = low, high
        except TaskError:
            self.close()
            raise
        self._clock_terminates = env.cfg.is_finite_horizon
        self.max_episode_steps = time_limit(env)
        self._ended = torch.zeros(num_envs, dtype=torch.bool, device=device)  # by Isaac Lab, in the last step
        self._current: Mapping[str, Tensor] = {}  # what it observed after that

    def _build(self, task: str, overrides: Sequence[str]) -> Any:
        launch, parse = load()
        import gymnasium

        if IsaacLabEnv.running is not None:
            raise TaskError("Isaac Lab has one simulation per process, and there is one: train with --eval-every 0")
        module, _, name = task.rpartition(":")
        runtime = ExitStack()
        atexit.register(runtime.close)  # not before, since Isaac Sim takes the process with it
        try:
            if module:
                import_module(module)
            config = parse(name, device=str(self.device), num_envs=self.num_envs, overrides=list(overrides))
            if not hasattr(config, "compute_final_obs"):
                raise TaskError(f"it does not give the last observation of an episode; {INSTALL}")
            config.compute_final_obs = True
            config.seed = None  # to seed is our work; Isaac Lab would also set an environment variable, and cuDNN
            runtime.enter_context(launch(config, {"headless": True, "visualizer": ["none"]}))
            env = gymnasium.make(name, cfg=config, disable_env_checker=True)
        except Exception as error:  # whatever somebody's configuration raises
            raise TaskError(f"Isaac Lab cannot make {task!r}: {one_line(error)}") from error
        IsaacLabEnv.running = self
        return env

    def _set_action_range(self, space: Any) -> None:
        """Set what maps [-1, 1] to the task's range.

        Raises:
            TaskError: the actions are no vector of numbers, or only some of them are bounded.
        """
        if not isinstance(space, Box) or len(space.shape) != 1:
            raise TaskError(f"{self.task}: actions in {type(space).__name__} of shape {space.shape} are not supported")
        low, high = (
            torch.as_tensor(bound, dtype=torch.float32, device=self.device) for bound in (space.low, space.high)
        )
        bounded = bool(low.isfinite().all() and high.isfinite().all())
        if not bounded and (low.isfinite().any() or high.isfinite().any()):
            raise TaskError(f"{self.task}: only some of the actions are bounded")
        self._centre: Tensor | float = (high + low) / 2 if bounded else 0.0
        self._scale: Tensor | float = (high - low) / 2 if bounded else self._action_range
        self._action_range = 1.0

    def _begin(self, seed: int | None) -> Mapping[str, Tensor]:
        return self._engine.reset()[0]  # what was drawn when it was made, such as terrain, stays

    def _advance(self, action: Tensor) -> tuple[Mapping[str, Tensor], Tensor, Tensor, Tensor]:
        self._current, reward, terminated, timed_out, extras = self._engine.step(self._centre + self._scale * action)
        self._ended = terminated | timed_out
        last = extras.pop("final_obs", None)  # it would stay there, and pass for that of a later step
        if last is None and self._ended.any():
            raise RuntimeError(f"{self.task} has ended an episode without its last observation")
        if last is None:
            return self._current, reward, terminated, timed_out
        successor = {group: pick(self._ended, last[group], rows) for group, rows in self._current.items()}
        return successor, reward, terminated, timed_out

    def _restart(self, rows: Tensor) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        env = self._engine.unwrapped
        log = env.extras.get("log", {})
        spoilt = rows[~self._ended[rows]]  # of which Isaac Lab does not know
        if len(spoilt):
            if not hasattr(env, "termination_manager"):
                raise FloatingPointError(
                    f"{self.task}: numbers that are not finite, and no way to reset only their rows"
                )
            others, _ = env.reset(env_ids=spoilt)
            return {group: pick(self._ended, self._current[group], others[group]) for group in others}, log
        return self._current, log

    def close(self) -> None:
        """Close the simulation, so that there may be another one. Safe to call twice."""
        if IsaacLabEnv.running is self:
            IsaacLabEnv.running = None
            self._engine.close()


def time_limit(env: Any) -> int | None:
    """Return after how many steps a task truncates: None if it never does, 1 if not the clock alone makes it."""
    from isaaclab.envs.mdp import time_out

    if env.cfg.is_finite_horizon:
        return None
    if not hasattr(env, "termination_manager"):  # a task of the direct kind, which counts as it likes
        return 1
    manager = env.termination_manager
    terms = [manager.get_term_cfg(name) for name in manager.active_terms]
    reasons = [term.func for term in terms if term.time_out]
    if not reasons:
        return None
    return env.max_episode_length if all(reason is time_out for reason in reasons) else 1


def load() -> tuple[Any, Any]:
    """Return what launches a simulation and what makes the configuration of a task.

    Raises:
        TaskError: Isaac Lab is missing or too old.
    """
    try:
        import isaaclab_tasks  # noqa: F401  registers the tasks
        from isaaclab.app import launch_simulation
        from isaaclab_tasks.utils.parse_cfg import parse_env_cfg
    except ImportError as error:
        raise TaskError(f"Isaac Lab is missing or too old ({one_line(error)}): {INSTALL}") from error
    return launch_simulation, parse_env_cfg
