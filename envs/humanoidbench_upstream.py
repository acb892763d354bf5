"""The HumanoidBench package itself behind the contract: all its robots and tasks, one process per environment.

It is what `envs.humanoidbench` is measured against, and the way to the tasks that are not there: manipulation, and
other robots. A process takes 0.2 to 0.5 GB, most of it the model, which tasks write into, so that none can be shared.
What the package needs to run on current versions is done when it is imported (`load`); its files stay as they are.
Scores are those of the installed MuJoCo: contacts have changed since the version that HumanoidBench pins.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from envs.base import TaskError, VecEnv, spawn_seeds
from envs.host import HostEnv, check_count, one_line

INSTALL = "clone github.com/carlosferrazza/humanoid-bench, then pip install --no-deps dm_control -e humanoid-bench"
OPTIONS = ("max_episode_steps", "randomness", "vectorization")
SCENE = re.compile(r"(g1(?=_torque)|h1[a-z]*(?=_pos))_(?:torque|pos)_(\w+)")
"""robot and task in the name of a scene; HumanoidBench has no others for the way in which it controls each robot"""


def tasks() -> list[str]:
    """HumanoidBench's ids, without those whose scene it lacks."""
    found = find_spec("humanoid_bench")
    places = found.submodule_search_locations if found else None
    scenes = [path.stem for place in places or () for path in Path(place).glob("assets/envs/*.xml")]
    return sorted(f"{match[1]}-{match[2]}-v0" for match in map(SCENE.fullmatch, scenes) if match)


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` environments of HumanoidBench.

    Args:
        task: an id of HumanoidBench: "h1hand-cabinet-v0", "g1-walk-v0".
        num_envs: N.
        seed: of the run.
        device: where the tensors go.
        options: `max_episode_steps`, by default the registered ones; `randomness` of the first pose in radians and
            metres; `vectorization` "async", a process for each, or "sync", all in this one.

    Raises:
        TaskError: the package or one that it needs is missing, the task or an option is unknown, or a scene cannot be
            loaded.
    """
    if task not in tasks():
        near = get_close_matches(task, tasks(), cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "envs.humanoidbench_upstream.tasks() lists all"
        raise TaskError(f"HumanoidBench has no task {task!r}, {hint}")
    for name in options:
        if name not in OPTIONS:
            raise TaskError(f"HumanoidBench's {task} has no option {name!r} (it has {', '.join(OPTIONS)})")
    return HumanoidBenchUpstream(task, num_envs, seed, device, **options)


class HumanoidBenchUpstream(HostEnv):
    """N environments of one task. `metrics["success"]` is whether the episode's return has come up to the task's bar.

    The bar and the time limit are HumanoidBench's; the clock is the adapter's.
    """

    backend = "humanoidbench_upstream"

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        device: torch.device,
        vectorization: str = "async",
        max_episode_steps: int | None = None,
        randomness: float | None = None,
    ) -> None:
        if vectorization not in ("sync", "async"):
            raise TaskError(f'vectorization is {vectorization!r}, must be "sync" or "async"')
        robot, name = task.removesuffix("-v0").split("-")
        if (robot, vectorization) == ("g1", "sync"):
            raise TaskError(
                f"{task} needs vectorization 'async': it changes the rewards of other robots in its process"
            )
        check_count("num_envs", num_envs)
        limit = None if max_episode_steps is None else check_count("max_episode_steps", max_episode_steps)
        upstream = load()
        import gymnasium
        from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

        create: Any = partial(Environment, task, **({} if randomness is None else {"randomness": randomness}))
        vector = AsyncVectorEnv if vectorization == "async" else SyncVectorEnv
        try:
            self._vector: Any = vector([create] * num_envs, autoreset_mode=AutoresetMode.DISABLED)
        except Exception as error:  # whatever its constructors raise
            raise TaskError(f"HumanoidBench cannot make {task}: {one_line(error)}") from error
        spaces = self._vector.single_observation_space, self._vector.single_action_space
        super().__init__(task, num_envs, device, *spaces, limit or gymnasium.spec(task).max_episode_steps)
        self._async = vectorization == "async"
        self._seed: int | None = seed
        self._bar = upstream.TASKS[name].success_bar
        self._returns = np.zeros(num_envs)

    def _start(self, seed: int | None) -> Any:
        seed, self._seed = (self._seed if seed is None else seed), None
        self._returns[:] = 0
        seeds = None if seed is None else spawn_seeds(seed, self.num_envs, self.backend)
        return self._vector.reset(seed=seeds)[0]

    def _send(self, action: np.ndarray) -> None:
        if self._async:
            self._vector.step_async(action)
        else:
            self._action = action

    def _recv(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        obs, reward, terminated, truncated, _ = (
            self._vector.step_wait() if self._async else self._vector.step(self._action)
        )
        self._returns += reward
        return obs, reward, terminated, truncated, {"success": self._returns >= self._bar}

    def _restart(self, mask: np.ndarray) -> Any:
        self._returns[mask] = 0
        return self._vector.reset(options={"reset_mask": mask})[0][mask]

    def _metrics(self, info: dict[str, Any], over: np.ndarray) -> dict[str, np.ndarray]:
        return {"success": info["success"]}

    def close(self) -> None:
        """End the processes. Safe to call twice."""
        self._vector.close()


class Environment:
    """One environment of HumanoidBench whose randomness is its own, in whatever process it is.

    HumanoidBench draws the first pose from Gymnasium's generator, and goals and objects from NumPy's global one, which
    Gymnasium's seed does not reach: processes that were forked would all have the same goals. Here that one is put in
    place for as long as HumanoidBench runs.
    """

    def __init__(self, task: str, **options: Any) -> None:
        load()
        import gymnasium
        import mujoco

        self._generator = np.random.RandomState(0).get_state()
        # Without a render mode it opens no window and needs no OpenGL; and some tasks print what they are.
        with self._own_generator(), redirect_stdout(None):
            self._env: Any = gymnasium.make(
                task, max_episode_steps=-1, disable_env_checker=True, render_mode=None, **options
            )
        warnings = mujoco.mjtWarning
        self._bad = [int(w) for w in (warnings.mjWARN_BADQPOS, warnings.mjWARN_BADQVEL, warnings.mjWARN_BADQACC)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Return (obs, info) of a new episode. A seed starts both random streams afresh."""
        if seed is not None:
            self._generator = np.random.RandomState(seed).get_state()
        with self._own_generator():
            return self._env.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Return (obs, reward, terminated, truncated, info); the reward is NaN where MuJoCo gave the state up."""
        with self._own_generator():
            obs, reward, terminated, truncated, _ = self._env.step(action)
        if any(self._env.unwrapped.data.warning[kind].number for kind in self._bad):
            reward = np.nan  # MuJoCo has begun anew, in a state that looks sound
        return obs, reward, terminated, truncated, {}

    @contextmanager
    def _own_generator(self) -> Iterator[None]:
        outside = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._generator)  # noqa: NPY002
        try:
            yield
        finally:
            self._generator = np.random.get_state()  # noqa: NPY002
            np.random.set_state(outside)  # noqa: NPY002


@cache
def load() -> Any:
    """Return the module humanoid_bench.env, fit for the installed versions.

    Raises:
        TaskError: the package or one that it needs is missing, or does not fit.
    """
    try:
        import gymnasium.envs.mujoco  # noqa: F401  before JAX is, for a moment, something else
        import mujoco

        with without_jax():
            from humanoid_bench import env
        from humanoid_bench.dmc_deps import dmc_sizes
    except Exception as error:  # what a wrong version raises is often no ImportError
        raise TaskError(f"HumanoidBench cannot be used ({one_line(error)}): {INSTALL}") from error
    # Its list of MuJoCo's arrays is that of version 3.1.6. Later ones lack some, which none of its tasks reads.
    for name, struct in (("mjmodel", mujoco.MjModel), ("mjdata", mujoco.MjData)):
        arrays = dmc_sizes.array_sizes[name]
        dmc_sizes.array_sizes[name] = {field: sizes for field, sizes in arrays.items() if hasattr(struct, field)}
    return env


@contextmanager
def without_jax() -> Iterator[None]:
    """Stand in for JAX, which HumanoidBench imports to convert checkpoints that nothing here has."""
    names = [name for name in ("jax", "jax.numpy") if "jax" not in sys.modules]
    modules = {name: ModuleType(name) for name in names}
    if modules:
        modules["jax"].numpy = modules["jax.numpy"]  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
