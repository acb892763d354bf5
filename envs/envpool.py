"""EnvPool behind the contract: MuJoCo, DeepMind Control, MuJoCo Playground, MetaWorld, MyoSuite, Atari and more.

EnvPool resets in the step after the end of an episode, by a row that is no transition. This adapter restarts what has
ended within the step that ended it, so the row never comes to be.
"""

import ctypes
import gc
import sys
import warnings
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch

from envs import host
from envs.base import Spec, TaskError, VecEnv, spawn_seeds
from envs.families import DMC
from envs.host import HostEnv, check_count, one_line
from envs.pictures import SIZE, prepare_gl

NEVER = 2**31 - 1  # EnvPool's largest time limit, and what it writes where there is none
RESERVED = {"num_envs", "batch_size", "max_num_players", "seed", "env_seed", "base_path", "gym_reset_return_info"}
UNUSABLE = {"pgx", "vizdoom"}
SUCCESS = ("success", "is_success", "solved")

# In most families the adapter keeps the clock: EnvPool reports a task that terminates on its last step as truncated.
# In these the engine must know the limit: it is part of an observation (AlohaHandOver) or of the reward (MiniGrid),
# or the engine has a clock of its own.
OWN_CLOCK = {"gfootball", "highway", "jumanji", "minigrid", "pgx", "playground", "procgen", "vizdoom"}

# (task patterns, camera): where the free camera stays behind, or where another one shows more of the gait.
CAMERAS: tuple[tuple[tuple[str, ...], int], ...] = (
    (("Quadruped*",), 2),
    (("Humanoid[SWR]*-v1", "HumanoidCMU*"), 1),
    (DMC, 0),
    (("Apollo*", "Barkour*", "Berkeley*", "G1*", "Go1*", "H1*", "Op3*", "Spot*", "T1*"), 0),
)
FREE_CAMERA = -1
DRAWN_BY_MUJOCO = {"dmc", "gym", "metaworld", "myosuite", "playground", "robotics"}


def tasks() -> list[str]:
    """Ids that EnvPool registers, without the games for two and those that take no plain action.

    A few more raise when made, by their spaces or for want of a system library; `make` says why.
    """
    return sorted(task for task, (module, _, _) in registry().specs.items() if family(module) not in UNUSABLE)


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` environments that step in EnvPool's threads.

    Args:
        task: an id of EnvPool: "WalkerWalk-v1", "G1JoystickFlatTerrain-v1", "MetaWorld/Assembly-v3", "Pong-v5".
        num_envs: N.
        seed: of the run.
        device: where the tensors go.
        options: EnvPool's own with its names and defaults: `max_episode_steps`, `num_threads` (0: one per core),
            weights of rewards, scales of noise, Atari's preprocessing.

    Raises:
        TaskError: EnvPool or the task is missing, an option is unknown, or a space cannot be used.
    """
    return EnvPool(task, num_envs, seed, device, **options)


def describe(task: str) -> Spec:
    """Return what a task looks like.

    Raises:
        TaskError: EnvPool cannot load it, or a space cannot be used.
    """
    spec = look_up(task, {"num_envs": 1})
    step_limit = spec.config.max_episode_steps
    return host.describe(task, *spaces(spec), {0: 1, NEVER: None}.get(step_limit, step_limit))


def spaces(spec: Any) -> tuple[Any, Any]:
    """Return EnvPool's own spaces of observations and actions."""
    with warnings.catch_warnings(action="ignore"):  # EnvPool has float64 bounds for some float32 spaces
        return spec.observation_space, spec.action_space


def registry() -> Any:
    """Return EnvPool's registry.

    Raises:
        TaskError: EnvPool is not installed.
    """
    try:
        from envpool.registration import registry
    except ImportError as error:
        raise TaskError(f"EnvPool is missing ({one_line(error)}): pip install envpool") from error
    return registry


class EnvPool(HostEnv):
    """N environments of one EnvPool.

    Atari's `episodic_life` says `terminated` at each lost life. The game goes on as in EnvPool, after up to `noop_max`
    idle steps and a FIRE, and `metrics["game_over"]` says where it ended. With `reward_clip`, `metrics["raw_reward"]`
    is the score. The time limit is that of a whole game.
    """

    backend = "envpool"

    def __init__(self, task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> None:
        check_count("num_envs", num_envs)
        check_count("max_episode_steps", options.get("max_episode_steps", 1))
        if options.get("num_threads", 0) < 0:  # EnvPool would abort the process
            raise TaskError(f"num_threads is {options['num_threads']}, must be at least 0")
        self._options = {**options, "num_envs": num_envs}
        spec = look_up(task, self._options)
        step_limit = spec.config.max_episode_steps
        super().__init__(task, num_envs, device, *spaces(spec), step_limit if 0 < step_limit < NEVER else None)
        if step_limit == 0:  # BabyAI: another one in each episode
            self.max_episode_steps = 1
        self._family = family(registry().specs[task][0])
        self._options["max_episode_steps"] = step_limit if self._family in OWN_CLOCK else NEVER
        self._lives = self._family == "atari" and spec.config.episodic_life
        self._clipped = self._family == "atari" and spec.config.reward_clip
        self._pool = self._open(seed)

    def _open(self, seed: int) -> Any:
        import envpool

        seeds = spawn_seeds(seed, self.num_envs, self.backend)  # EnvPool's own, seed + i, meet those of the next run
        try:
            return envpool.make_gymnasium(self.task, seed=seeds, **self._options)
        except Exception as error:  # whatever the C++ side raises
            raise TaskError(f"EnvPool cannot make {self.task}: {one_line(error)}") from error

    def _start(self, seed: int | None) -> Any:
        if seed is not None:  # EnvPool takes seeds only when it is made
            self.close()
            del self._pool
            give_back_memory()
            self._pool = self._open(seed)
        with warnings.catch_warnings(action="ignore"):  # as above: the first call looks at the spaces
            return self._pool.reset()[0]

    def _send(self, action: np.ndarray) -> None:
        self._pool.send(action)

    def _recv(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self._pool.recv()
        if self._family == "playground":
            terminated = info["terminated"]  # true to the task also on the step of the time limit
        elif self._family == "minigrid":
            terminated = terminated | (truncated & (reward != 0))  # a reward comes only with the end of the task
        return obs, reward, terminated, truncated, info

    def _restart(self, mask: np.ndarray) -> Any:
        return self._pool.reset(options={"reset_mask": mask})[0]

    def _is_over(self, terminated: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return info["terminated"] != 0 if self._lives else terminated

    def _next_life(self, mask: np.ndarray) -> Any:
        env_id = np.flatnonzero(mask).astype(np.int32)
        return self._pool.step(np.zeros(len(env_id), np.int32), env_id)[0]  # EnvPool's reset row, and all it does here

    def _metrics(self, info: dict[str, Any], over: np.ndarray) -> dict[str, np.ndarray]:
        metrics = {}
        if key := next((key for key in SUCCESS if key in info), None):
            metrics["success"] = info[key] > 0
        if self._lives:
            metrics["game_over"] = over
        if self._clipped:
            metrics["raw_reward"] = info["reward"]
        return metrics

    def render(self, index: int = 0, size: tuple[int, int] | None = None, camera: int | None = None) -> np.ndarray:
        """Return a picture of one environment by EnvPool's own renderer: the simulator's state, in its own colours.

        Raises:
            TaskError: OpenGL is missing.
        """
        width, height, number = 0, 0, FREE_CAMERA  # what a painter without OpenGL prefers; it has one view
        if self._family in DRAWN_BY_MUJOCO:
            if problem := prepare_gl():
                raise TaskError(problem)
            width, height = size or SIZE
            usual = (n for patterns, n in CAMERAS if any(fnmatchcase(self.task, pattern) for pattern in patterns))
            number = camera if camera is not None else next(usual, FREE_CAMERA)
        return self._pool._render(np.array([index], np.int32), width, height, number)[0]

    def close(self) -> None:
        """Stop the threads. Safe to call twice."""
        self._pool.close()


def look_up(task: str, options: dict[str, Any]) -> Any:
    """Return EnvPool's spec of a task under the given options.

    Raises:
        TaskError: the task or an option is unknown, or EnvPool cannot load the task.
    """
    names = list(registry().specs)
    if task not in names:
        near = suggest(get_close_matches(task, names, cutoff=0.5))
        raise TaskError(f"EnvPool has no task {task!r}{near} (envs.envpool.tasks() lists all)")
    import envpool

    try:
        legal = sorted(set(envpool.make_spec(task).config._fields) - RESERVED)
        unknown = [name for name in options if name not in legal and name != "num_envs"]
        spec = None if unknown else envpool.make_spec(task, **options)
    except Exception as error:  # whatever the C++ side raises
        raise TaskError(f"EnvPool cannot load {task}: {one_line(error)}") from error
    if spec is None:
        near = suggest(get_close_matches(unknown[0], legal, cutoff=0.5))
        raise TaskError(f"EnvPool's {task} has no option {unknown[0]!r}{near} (it has {', '.join(legal)})")
    if spec.config.max_num_players != 1:
        raise TaskError(f"{task} has {spec.config.max_num_players} players, only tasks with one are supported")
    return spec


def give_back_memory() -> None:
    """Return what a closed pool held to the system: the C allocator keeps 50 MB or more of each of them otherwise."""
    gc.collect()
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc; other C libraries do without
        if trim is not None:
            trim(0)


def family(module: str) -> str:
    """Return the family of tasks that one of EnvPool's modules holds."""
    return module.rpartition(".")[2]


def suggest(names: list[str]) -> str:
    """Return a question about near names, or nothing."""
    return f", did you mean {' or '.join(names)}?" if names else ""
