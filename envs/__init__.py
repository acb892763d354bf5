"""Environments by name: `make` finds the backend that has a task. `envs.base` is the contract that they keep."""

import importlib
import inspect
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any, NamedTuple

# By name: importing the submodules envs.torch and envs.gymnasium writes these two names into this very namespace; for
# the same reason nothing here calls `list`.
from gymnasium.spaces import Box, Discrete
from torch import Tensor, dtype, empty, float32, uint8
from torch import bool as boolean
from torch import device as Device

from envs.base import Spec, Step, TaskError, VecEnv

__all__ = ["BACKENDS", "Backend", "Spec", "Step", "TaskError", "VecEnv", "backends", "describe", "make", "tasks"]


class Backend(NamedTuple):
    """Where the tasks of a simulator come from."""

    module: str
    """the adapter, with `tasks() -> list[str]` and `make(task, num_envs, seed, device, **options) -> VecEnv`"""
    package: str
    """what it needs beside this library"""
    install: str
    """how to get that"""
    twin: str = ""
    """another backend with the same tasks, which tells what they look like where making one takes minutes"""
    gpu: bool = False
    """whether it simulates on a GPU, and so comes first there"""


BACKENDS = {  # in the order in which "auto" tries them
    "torch": Backend("envs.torch", "torch", "pip install torch"),
    "humanoidbench": Backend("envs.humanoidbench", "mujoco", "pip install mujoco"),
    "envpool": Backend("envs.envpool", "envpool", "pip install envpool"),
    "gymnasium": Backend("envs.gymnasium", "gymnasium", 'pip install "gymnasium[mujoco]"'),
    "mjwarp": Backend("envs.mjwarp", "mujoco_warp", "pip install 'semrl[mjwarp]'", "gymnasium", gpu=True),
    "playground": Backend(
        "envs.playground", "mujoco_playground", "pip install 'semrl[playground]'", "envpool", gpu=True
    ),
    "mjlab": Backend("envs.mjlab", "mjlab", "pip install 'semrl[mjlab]'", gpu=True),
    "humanoidbench_warp": Backend(
        "envs.humanoidbench_warp", "mujoco_warp", "pip install 'semrl[mjwarp]'", "humanoidbench", gpu=True
    ),
    "multitask": Backend("envs.multitask", "torch", "pip install torch"),
    "isaaclab": Backend("envs.isaaclab", "isaaclab", "see https://isaac-sim.github.io/IsaacLab", gpu=True),
    "humanoidbench_upstream": Backend(
        "envs.humanoidbench_upstream", "humanoid_bench", "see github.com/carlosferrazza/humanoid-bench"
    ),
}


def backends() -> list[str]:
    """Names of the installed backends, the preferred one first."""
    return [name for name, backend in BACKENDS.items() if find_spec(backend.package)]


def tasks(backend: str) -> list[str]:
    """All names that a backend can make.

    Raises:
        TaskError: the backend is unknown or not installed.
    """
    return _load(backend).tasks()


def describe(task: str, backend: str) -> Spec | None:
    """Return what a task looks like; None where that is not known before it is made, at the cost of minutes.

    Raises:
        TaskError: the backend cannot make the task.
    """
    adapter = _load(BACKENDS[backend].twin or backend)
    if hasattr(adapter, "describe"):
        return adapter.describe(task)
    env = adapter.make(task, 1, 0, Device("cpu"))
    env.close()
    return env.spec


def make(
    task: str,
    num_envs: int,
    seed: int = 0,
    device: str | Device = "cpu",
    backend: str = "auto",
    **options: Any,
) -> VecEnv:
    """Return `num_envs` environments that step together.

    Args:
        task: a name that `python -m envs.list` lists, or several joined by `+`; or `module:attribute` for an
            environment of your own: a class or function of (num_envs, seed, device, and any options) that returns a
            `VecEnv`; or `module:Id` for a Gymnasium environment that the module registers. It is looked for in the
            current directory too.
        num_envs: N, at least 1.
        seed: of the run, at least 0. Neighbouring seeds share no random streams.
        device: where actions come from and tensors go to.
        backend: "auto" takes the first of `backends()` that has the task; on a GPU, those first that simulate there.
        options: go to the backend: `max_episode_steps`, and what the task has besides.

    Raises:
        TaskError: an argument is not legal, the task or an option is unknown, or a simulator is missing.
    """
    if not 1 <= num_envs <= 1 << 24:
        raise TaskError(f"num_envs is {num_envs}, must be from 1 to {1 << 24}")
    if seed < 0:
        raise TaskError(f"seed is {seed}, must be at least 0")
    place = _device(device)
    if "+" in task and backend == "auto":
        backend = "multitask"
    if ":" in task and backend in ("auto", "gymnasium"):
        module, _, attribute = task.rpartition(":")
        own = _import_own(module)
        if backend == "auto" and not hasattr(own, attribute) and attribute in _usable("gymnasium"):
            backend = "gymnasium"
    if ":" in task and backend == "auto":
        name = module
        env = _make_own(task, own, num_envs, seed, place, options)
        _look_once(env)
    else:
        name = _backend_of(task, backend, place)
        env = _load(name).make(task, num_envs, seed, place, **options)
    env.task, env.backend = task, name
    return env


def find(task: str, backend: str = "auto", device: str | Device = "cpu") -> str:
    """Return the backend that `make` would take, without making anything; of an environment of your own its module.

    Raises:
        TaskError: the task is unknown, or the backend or the device is missing.
    """
    if ":" in task and backend == "auto":
        return task.rpartition(":")[0]
    return _backend_of(task, "multitask" if "+" in task and backend == "auto" else backend, _device(device))


def nearest(task: str, names: Iterable[str], count: int = 5) -> list[str]:
    """Up to `count` names that a user may have meant, the nearest first, whatever the case."""
    by_key: dict[str, list[str]] = {}
    for name in names:
        by_key.setdefault(name.lower(), []).append(name)
    key = task.lower()
    keys = [key] if key in by_key else get_close_matches(key, by_key, count, cutoff=0.6)
    keys = keys or [known for known in by_key if key and key in known]
    return [*dict.fromkeys(name for key in keys for name in by_key[key])][:count]


def _backend_of(task: str, backend: str, device: Device) -> str:
    """Return the backend to make the task with."""
    if backend != "auto":
        # Gymnasium has ids of its own with a colon, which only the module in front of it registers.
        if task in tasks(backend) or ":" in task or (backend == "multitask" and "+" in task):
            return backend
        elsewhere = [name for name in backends() if task in _usable(name)]
        if elsewhere:
            have = "has it" if len(elsewhere) == 1 else "have it"
            raise TaskError(f"the backend {backend} has no task {task!r}, but {' and '.join(elsewhere)} {have}")
    for name in sorted(backends(), key=lambda name: device.type == "cuda" and not BACKENDS[name].gpu):
        if task in _usable(name):
            return name
    near = nearest(task, (known for name in backends() for known in _usable(name)))
    hint = f"did you mean {', '.join(near)}?" if near else "`python -m envs.list` lists all"
    missing = _missing()
    if len(missing) == 1:
        hint += f"; {missing[0]} is not installed and may have it: {BACKENDS[missing[0]].install}"
    elif missing:
        hint += f"; not installed here are {', '.join(missing)} (`python -m envs.list` says how they are)"
    raise TaskError(f"no task is called {task!r}, {hint}")


def _usable(backend: str) -> list[str]:
    """All names that a backend can make; none where it is installed but broken: the others are not."""
    try:
        return tasks(backend)
    except TaskError:
        return []


def _missing() -> list[str]:
    installed = backends()
    return [name for name in BACKENDS if name not in installed]


def _load(backend: str) -> Any:
    """Return the adapter of a backend. Only here is it imported: a simulator takes seconds."""
    if backend not in BACKENDS:
        raise TaskError(f"backend is {backend!r}, must be auto, {', '.join(BACKENDS)}")
    if backend in _missing():
        raise TaskError(f"the backend {backend} is not installed: {BACKENDS[backend].install}")
    return importlib.import_module(BACKENDS[backend].module)


def _make_own(task: str, module: Any, num_envs: int, seed: int, device: Device, options: dict[str, Any]) -> VecEnv:
    """Make a user's own environment, `module:attribute`."""
    try:
        factory = getattr(module, task.rpartition(":")[2])
    except AttributeError as error:
        raise TaskError(f"{task!r}: {error}, and it registers no Gymnasium environment of that name") from error
    arguments = {"num_envs": num_envs, "seed": seed, "device": device, **options}
    try:
        inspect.signature(factory).bind(**arguments)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{task!r} does not take ({', '.join(arguments)}): {error}") from error
    env = factory(**arguments)
    if not isinstance(env, VecEnv):
        raise TaskError(f"{task!r} returns a {type(env).__name__}, must be an envs.base.VecEnv")
    needed = ("num_envs", "device", "obs_space", "critic_obs_space", "action_space", "max_episode_steps")
    if missing := [name for name in needed if not hasattr(env, name)]:
        raise TaskError(f"{task!r} does not set {', '.join(missing)}; envs.base.VecEnv says what they are")
    if env.num_envs != num_envs:
        raise TaskError(f"{task!r} has num_envs {env.num_envs} where {num_envs} were asked for")
    if env.device != device:
        raise TaskError(f"{task!r} has the device {env.device!r}, must be the torch.device that it was given, {device}")
    limit = env.max_episode_steps
    if limit is not None and (type(limit) is not int or limit < 1):
        raise TaskError(f"{task!r} has max_episode_steps {limit!r}, must be a whole number of at least 1, or None")
    for name, space in (("obs_space", env.obs_space), ("critic_obs_space", env.critic_obs_space)):
        if not isinstance(space, Box):
            raise TaskError(f"{task!r} has the {name} {space}, must be a gymnasium.spaces.Box")
    action = env.action_space
    if not isinstance(action, Discrete) and not (isinstance(action, Box) and action == Box(-1, 1, action.shape)):
        raise TaskError(f"{task!r} has the action_space {action}, must be Discrete or Box(-1, 1, (A,), float32)")
    return env


def _look_once(env: VecEnv) -> None:
    """Have the first observations and the first step of a user's environment looked at, when they come.

    What has a wrong form would otherwise be noticed far from here, or not at all. `python -m envs.check` looks at more.
    """
    reset, step = env.reset, env.step

    def first_reset(seed: int | None = None) -> tuple[Tensor, Tensor]:
        views = reset(seed)
        if not isinstance(views, tuple) or len(views) != 2:
            raise TaskError(f"{env.task}: reset must return a pair, obs and critic_obs, got {type(views).__name__}")
        _expect(env, obs=(views[0], env.obs_space), critic_obs=(views[1], env.critic_obs_space))
        del env.__dict__["reset"]
        return views

    def first_step(action: Tensor) -> Step:
        found = step(action)
        if not isinstance(found, Step):
            raise TaskError(f"{env.task}: step must return an envs.base.Step, got {type(found).__name__}")
        rows = {name: (getattr(found, name), kind) for name, kind in _ROWS.items()}
        views = {name: (getattr(found, name), env.obs_space) for name in ("obs", "next_obs")}
        views |= {name: (getattr(found, name), env.critic_obs_space) for name in ("critic_obs", "next_critic_obs")}
        _expect(env, **rows, **views)
        del env.__dict__["step"]
        return found

    env.__dict__.update(reset=first_reset, step=first_step)


_ROWS = {"reward": float32, "terminated": boolean, "truncated": boolean, "valid": boolean}


def _expect(env: VecEnv, **found: tuple[Any, Box | dtype]) -> None:
    """Raise for the first tensor that is not [N, *shape] of a space, or [N] of a type, on the environment's device."""
    for name, (value, form) in found.items():
        shape, kind = (form.shape, uint8 if form.dtype == "uint8" else float32) if isinstance(form, Box) else ((), form)
        wanted = (env.num_envs, *shape), kind, env.device
        actual = (tuple(value.shape), value.dtype, value.device) if isinstance(value, Tensor) else type(value).__name__
        if actual != wanted:
            raise TaskError(
                f"{env.task}: {name} is {actual}, must be a tensor of {wanted}; `python -m envs.check {env.task}` "
                "tells more"
            )


def _import_own(name: str) -> Any:
    """Import a user's module, from the current directory if it is nowhere else."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise TaskError(f"{name!r} is no name of a module")
    here = os.getcwd()
    while True:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise TaskError(f"{name!r} cannot be imported: {error}") from error  # it misses something itself
            if here in sys.path:
                raise TaskError(f"there is no module {name!r}, neither installed nor in {here}") from error
        except SyntaxError as error:
            raise TaskError(f"{name!r} cannot be imported: {error}") from error
        sys.path.append(here)  # last, so that it hides nothing; it stays, for what the module imports later


def _device(device: str | Device) -> Device:
    """Return the device as tensors on it report it: "cuda" alone is not equal to "cuda:0"."""
    legal = "must be cpu, cuda, cuda:N or mps"
    try:
        kind = Device(device).type
        if kind not in ("cpu", "cuda", "mps"):
            raise TaskError(f"device is {str(device)!r}, {legal}")
        return Device("cpu") if kind == "cpu" else empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(":")[0]
        raise TaskError(f"device {str(device)!r} cannot be used ({reason}), {legal}") from error
