"""Gymnasium's MuJoCo tasks, and models of your own, on MuJoCo Warp: thousands of worlds whose tensors stay on the GPU.

What is observed, rewarded and ends an episode is in `envs.mjwarp_tasks`, which also shows a task of one's own. Tensors
are views of the simulator's memory; the physics of a step is recorded once, as a CUDA graph or its counterpart on a
CPU, and repeated from then on. The first use of a model compiles its kernels, half a minute or more; a cache keeps
them. On a CPU the same seed and actions give the same rollout; on a GPU they do not, since sums there have no order.
"""

import gc
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from envs.base import Step, TaskError, VecEnv, spawn_seeds, vector_space
from envs.host import check_count, one_line
from envs.mjwarp_tasks import TASKS, Draws, Physics, Task
from envs.mjwarp_variants import INERTIA, Variants
from envs.pictures import Pictures

INSTALL = "pip install 'semrl[mjwarp]'"
CHECK_EVERY = 100  # steps between two looks at the bits that say what was lost

STATE = ("qpos", "qvel", "act", "qacc_warmstart", "time", "mocap_pos", "mocap_quat")
"""all that a step reads of the steps before"""
POSES = {"xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat"}
POSES |= {"subtree_com", "cinert", "cvel"}
"""what follows from qpos and qvel without dynamics"""
FORCES = {"cfrc_ext", "qfrc_actuator", "qfrc_constraint"}
"""0 at the start of an episode, as in Gymnasium"""

# MuJoCo Warp's bits for what there was no room for, and the option that makes room.
OVERFLOWS = {1 << 0: "njmax", 1 << 1: "njmax", 1 << 2: "nconmax", 1 << 3: "nconmax", 1 << 4: "nconmax"}
OTHER_OVERFLOWS = 0x1E0


def tasks() -> list[str]:
    """Names of the tasks: Gymnasium's."""
    return list(TASKS)


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` worlds of a task.

    Args:
        task: an id of Gymnasium's MuJoCo tasks, version 5.
        num_envs: N.
        seed: of the run.
        device: where the physics is computed: a CPU or a CUDA device.
        options: Gymnasium's, with its names and defaults, except those for rendering; `max_episode_steps`; `nconmax`
            and `njmax`, room for contacts and rows of constraints per world; `randomise` and `variants`, see
            `MjwarpEnv`.

    Raises:
        TaskError: MuJoCo Warp is missing, the task or an option is unknown, or a value is not legal.
    """
    if task not in TASKS:
        raise TaskError(f"the backend mjwarp has no task {task!r}, only {', '.join(TASKS)}")
    return MjwarpEnv(TASKS[task], num_envs, seed, device, **options)


class MjwarpEnv(VecEnv):
    """N worlds of a task. Noise is drawn for all of them at each step, so that none depends on how the others fare.

    Args:
        kind: the task's class.
        num_envs: N.
        seed: of the run.
        device: a CPU or a CUDA device.
        randomise: lowest and highest factor of physical quantities, by the names in `mjwarp_variants.SCALED`. Each
            episode begins in a model of a pool, whose factors are drawn evenly.
        variants: models in that pool.
        options: attributes of the class to replace.

    Raises:
        TaskError: MuJoCo Warp is missing, the model cannot be used, or an option is unknown or not legal.
    """

    backend = "mjwarp"
    snapshots = True
    max_episode_steps: int
    drawing: Mapping[str, Any] = {}
    """how pictures are drawn, see `Pictures`"""

    def __init__(
        self,
        kind: type[Task],
        num_envs: int,
        seed: int,
        device: torch.device,
        randomise: Mapping[str, Sequence[float]] | None = None,
        variants: int = 128,
        **options: Any,
    ) -> None:
        self.task = kind.__name__
        self.num_envs = check_count("num_envs", num_envs)
        self.device = device
        self.deterministic = device.type == "cpu"
        try:
            self._task = kind(**options)
        except ValueError as error:
            raise TaskError(one_line(error)) from error
        for name in ("frame_skip", "max_episode_steps", "nconmax", "njmax"):
            check_count(name, getattr(self._task, name))
        self.max_episode_steps = self._task.max_episode_steps
        self._physics = WarpPhysics(self._task, num_envs, device, randomise or {}, check_count("variants", variants))
        self._physics.remember(self._task.memory(self._physics))
        low, high = self._physics.control_range
        self._centre, self._scale = (high + low) / 2, (high - low) / 2
        self.action_bounds = low.double().cpu().numpy(), high.double().cpu().numpy()
        self.action_space = Box(-1, 1, (len(low),), np.float32)
        self.obs_space = vector_space(self._task.observe(self._physics).shape[1])
        self.critic_obs_space = self.obs_space

        self._generator = torch.Generator(device)
        self._draws = Draws(num_envs, self._generator)
        self._pool: dict[str, Tensor] = {}  # [variants, ...] of the models, by the arrays that differ
        self._pool_seed = -1
        self._chooser = torch.Generator(device)
        self._chosen = torch.zeros(num_envs, dtype=torch.int64, device=device)  # the model of each world
        self._seed(seed)
        self._elapsed = torch.zeros(num_envs, dtype=torch.int64, device=device)
        self._obs = torch.empty(0, device=device)  # what to act on; none before the first reset
        self._position = torch.empty(0, device=device)  # where the task's `position` was when the step began
        self._lost = torch.zeros(len(self._physics.overflows()), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._countdown = CHECK_EVERY
        self._pictures: Pictures | None = None
        self._view: tuple[Any, Any] = None, None

    def _seed(self, seed: int) -> None:
        self._generator.manual_seed(spawn_seeds(seed, 1, MjwarpEnv.backend)[0])
        self._chooser.manual_seed(spawn_seeds(seed, 1, "physics")[0])
        self._fill(seed)

    def _fill(self, seed: int) -> None:
        """Make the pool of models of a seed."""
        variants = self._physics.variants
        if variants is not None and seed != self._pool_seed:
            pool = {name: torch.from_numpy(rows).to(self.device) for name, rows in variants.pool(seed).items()}
            self._pool = {name: rows.reshape(-1, *self._physics.models[name].shape[1:]) for name, rows in pool.items()}
            self._pool_seed = seed

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first (obs, critic_obs) of N new episodes. A seed starts the random stream afresh.

        Raises:
            TaskError: see `check`.
        """
        self.check()
        if seed is not None:
            self._seed(seed)
        self._elapsed = torch.zeros_like(self._elapsed)
        self._begin(torch.ones_like(self._elapsed, dtype=torch.bool))
        self._position = self._task.position(self._physics).clone()
        self._obs = self._task.observe(self._physics).clone()
        return self._obs, self._obs

    @torch.no_grad()
    def step(self, action: Tensor) -> Step:
        """Apply [N, A] float32 actions, clipped to [-1, 1].

        Raises:
            ValueError: the shape of the action is wrong.
            RuntimeError: no episode was started by `reset`.
            TaskError: see `check`; noticed up to a few hundred steps late.
        """
        task, physics = self._task, self._physics
        if action.shape != physics.ctrl.shape:
            raise ValueError(f"action has shape {tuple(action.shape)}, expected {tuple(physics.ctrl.shape)}")
        if not len(self._obs):
            raise RuntimeError("step() without an episode: call reset() first")
        physics.ctrl.copy_(self._centre + self._scale * action.clamp(-1, 1))
        physics.step()

        position = task.position(physics).clone()
        reward = task.reward(physics, (position - self._position) / physics.dt)
        terminated, metrics, successor = task.terminated(physics), task.metrics(physics), task.observe(physics)
        valid = torch.cat([physics.qpos, physics.qvel, successor, reward[:, None]], 1).isfinite().all(1)
        reward = torch.where(valid, reward, 0)
        metrics = {name: torch.where(valid, value, torch.zeros_like(value)) for name, value in metrics.items()}
        next_obs = pick(valid, successor, self._obs)
        elapsed = self._elapsed + 1
        terminated = terminated & valid
        truncated = (elapsed >= self.max_episode_steps) & ~terminated | ~valid

        ended = terminated | truncated
        self._elapsed = elapsed.masked_fill(ended, 0)
        self._begin(ended)  # from here on the tasks' functions speak of starts
        self._position = pick(ended, task.position(physics), position)
        self._obs = pick(ended, task.observe(physics), next_obs)
        self._look()
        return Step(self._obs, self._obs, reward, terminated, truncated, next_obs, next_obs, valid, metrics)

    def _begin(self, mask: Tensor) -> None:
        """Begin new episodes where the [N] mask is True."""
        physics = self._physics
        if self._pool:
            drawn = torch.randint(len(self._pool[INERTIA]), mask.shape, generator=self._chooser, device=self.device)
            self._become(torch.where(mask, drawn, self._chosen))
        first = physics.initial | self._task.start(physics, self._draws)
        for name, rows in physics.state.items():
            torch.where(mask.reshape(-1, *[1] * (rows.ndim - 1)), first[name], rows, out=rows)
        physics.refresh()

    def _become(self, chosen: Tensor) -> None:
        """Give each world the model with that number in the pool."""
        self._chosen = chosen
        for name, rows in self._physics.models.items():
            rows.copy_(self._pool[name][chosen])

    def render(self, index: int = 0, size: tuple[int, int] | None = None, camera: int | None = None) -> np.ndarray:
        """Return a picture of one world, drawn by MuJoCo.

        Raises:
            TaskError: see `Pictures`.
        """
        if self._pictures is None or self._view != (size, camera):
            self._pictures = Pictures(self._physics.model, size, camera, **self.drawing)
            self._view = size, camera
        return self._pictures.draw(**self.mujoco(index)[1])

    def mujoco(self, index: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
        """Return the MuJoCo model of one world, and its state now, see `VecEnv.mujoco`."""
        state = self._physics.state
        names = [name for name in ("qpos", "mocap_pos", "mocap_quat") if name in state]
        variants, chosen = self._physics.variants, self._chosen[index]
        model = self._physics.model
        if variants is not None:
            model = variants.model({name: rows[chosen].cpu().numpy() for name, rows in self._pool.items()})
        return model, {name: state[name][index].cpu().numpy() for name in names}

    def close(self) -> None:
        """Release what draws. Safe to call twice."""
        if self._pictures is not None:
            self._pictures.close()
            self._pictures = None

    def check(self) -> None:
        """Wait for the simulator, and see whether it had room for all contacts and constraints so far.

        Raises:
            TaskError: it had not, so that what was simulated is wrong. Says which option to raise.
        """
        self._countdown = 1
        self._look(wait=True)

    def _look(self, wait: bool = False) -> None:
        """Check every few steps. A GPU is not waited for: the bits stay, so that they are seen the next time."""
        self._countdown -= 1
        if self._countdown:
            return
        self._countdown = CHECK_EVERY
        self._lost.copy_(self._physics.overflows(), non_blocking=not wait)
        for name, worlds in zip([*OVERFLOWS.values(), ""], self._lost.tolist(), strict=True):
            if worlds and not name:
                raise TaskError(f"{self.task}: a buffer of MuJoCo Warp that no option here sizes overflowed")
            if worlds:
                size = getattr(self._task, name)
                raise TaskError(
                    f"{self.task}: no room for all contacts or constraints in {worlds} of {self.num_envs} worlds, "
                    f"so the simulation is wrong; {name} is {size}, make the environment with {name}={2 * size} or more"
                )

    def state_dict(self) -> dict[str, Any]:
        """State of the physics, of the episodes and of the random stream; tensors only.

        Raises:
            TaskError: see `check`.
        """
        self.check()
        own = {"elapsed": self._elapsed, "obs": self._obs, "position": self._position}
        return {
            "physics": {name: rows.clone() for name, rows in self._physics.state.items()},
            "episodes": {name: rows.clone() for name, rows in own.items()},
            "generator": self._generator.get_state(),
            **(self._models_state() if self._pool else {}),
        }

    def _models_state(self) -> dict[str, Any]:
        """Return what says which model each world has, and which ones come."""
        seed, chooser = torch.tensor(self._pool_seed), self._chooser.get_state()
        return {"models": {"seed": seed, "chosen": self._chosen.clone(), "chooser": chooser}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an environment of the same task, N and device type.

        Raises:
            TaskError: the state is of another task or N.
        """
        expected = {name: tuple(rows.shape) for name, rows in self._physics.state.items()}
        found = {name: tuple(rows.shape) for name, rows in state["physics"].items()}
        if found != expected:
            raise TaskError(f"the state is of another task or number of environments: {found}, expected {expected}")
        if ("models" in state) != bool(self._pool):
            raise TaskError("the state is of worlds whose physics are randomised, or these are: not of both")
        if self._pool:
            models = state["models"]
            self._fill(int(models["seed"]))
            self._become(models["chosen"].to(self.device, copy=True))
            self._chooser.set_state(models["chooser"].cpu())
        for name, rows in self._physics.state.items():
            rows.copy_(state["physics"][name])
        episodes = {name: rows.to(self.device, copy=True) for name, rows in state["episodes"].items()}
        self._elapsed, self._obs, self._position = (episodes[name] for name in ("elapsed", "obs", "position"))
        self._generator.set_state(state["generator"].cpu())  # torch wants it there, also for CUDA


class WarpPhysics(Physics):
    """The worlds of a task in MuJoCo Warp.

    Args:
        task: whose model, sizes and arrays these are.
        num_worlds: N.
        device: a CPU or a CUDA device.
        ranges: of factors of physical quantities, see `Variants`; none for worlds that are all alike.
        variants: models that `Variants` makes.

    Raises:
        TaskError: MuJoCo Warp is missing, or it cannot use the model, the device, the sizes or the ranges.
    """

    def __init__(
        self, task: Task, num_worlds: int, device: torch.device, ranges: Mapping[str, Sequence[float]], variants: int
    ) -> None:
        if device.type not in ("cpu", "cuda"):
            raise TaskError(f"device is {device}, but MuJoCo Warp has only cpu and cuda")
        self._mujoco, self._mjw, self._wp = load()
        self._torch_device, self._device = device, self._wp.device_from_torch(device)
        self._reads = set(task.reads)
        self._begins = self._reads if task.begins is None else set(task.begins)
        self._frame_skip = task.frame_skip
        model = self._compile(task)
        self.variants = Variants(self._mujoco, self._mjw.Model, model, ranges, variants) if ranges else None
        """how models of the worlds are made; None where all have the same"""
        differing = self.variants.names if self.variants else []
        try:
            with self._wp.ScopedDevice(self._device):
                self._model = self._mjw.put_model(model, dict.fromkeys(differing, num_worlds))
                self._data = self._mjw.make_data(model, num_worlds, nconmax=task.nconmax, njmax=task.njmax)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise TaskError(f"MuJoCo Warp cannot make {task.xml_file[:60]}: {one_line(error)}") from error
        self._model.opt.warn_overflow = False  # it would print for each world and step; `overflows` tells instead
        self.state = {name: self._view(name) for name in STATE if getattr(self._data, name).size}
        """views of all that there is to the worlds between two steps, and what `remember` adds; may be written into"""
        self.initial = {name: rows.clone() for name, rows in self.state.items()}
        """how they begin: the model's pose at rest"""
        for name in self._reads:
            array = getattr(self._data, name, None)
            if not isinstance(array, self._wp.array) or not array.size:
                raise TaskError(f"`reads` names {name!r}, which is no array of mujoco_warp.Data, or an empty one")
        super().__init__(
            model, task.frame_skip, self.state | {name: self._view(name) for name in self._reads | {"ctrl"}}
        )
        self.models = {name: self._wp.to_torch(getattr(self._model, name)) for name in differing}
        """views of what differs between the models of the worlds; may be written into"""
        if self.variants:
            self.models[INERTIA] = torch.full((num_worlds,), model.stat.meaninertia, device=device)
            self._model.stat.meaninertia = self._wp.from_torch(self.models[INERTIA])
        if "body_mass" in self.models:
            self.body_mass = self.models["body_mass"]
        self._overflow, self._listed = self._view("overflow"), self._view("nacon")
        contact = self._data.contact
        self._pairs, self._world = self._wp.to_torch(contact.geom), self._wp.to_torch(contact.worldid)
        self._bits = torch.tensor([*OVERFLOWS, OTHER_OVERFLOWS], dtype=torch.int32, device=device)
        self.step = self._record(self._advance)
        """what does a step of the environment with the controls in `ctrl`"""
        self._update = self._record(self._follow) if self._begins else None
        for name, rows in self.state.items():  # recording has moved the worlds
            rows.copy_(self.initial[name])
        self._overflow.zero_()

    def remember(self, memory: Mapping[str, Tensor]) -> None:
        """Keep [N, ...] tensors of the task's own beside the state, as attributes."""
        self.state |= memory
        self.initial |= {name: rows.clone() for name, rows in memory.items()}
        self.__dict__.update(memory)

    def touching(self, test: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[N] bool: whether some contact of the world passes a test of its two geoms, [M] and [M] int64 to [M] bool.

        Those that the last physics step began with, within their margin.
        """
        first, second = self._pairs.long().unbind(1)
        listed = torch.arange(len(first), device=first.device) < self._listed
        hits = listed & test(first, second)
        world = self._world.long().clamp(0, len(self.qpos) - 1)  # what is not listed is of any world
        return torch.zeros(len(self.qpos), device=first.device).index_add(0, world, hits.float()) > 0

    @property
    def control_range(self) -> tuple[Tensor, Tensor]:
        """[A] lowest and highest control."""
        low, high = self.qpos.new_tensor(self.model.actuator_ctrlrange).unbind(1)
        return low, high

    def refresh(self) -> None:
        """Compute what the task reads of the present state, as it is at the start of an episode.

        That of worlds in the middle of an episode changes too, by a physics step; the next step does not look at it.
        """
        if self._update is not None:
            self.ctrl.zero_()
            self._update()
            for name in self._begins & FORCES:
                getattr(self, name).zero_()

    def overflows(self) -> Tensor:
        """[5 + 1] int64: how many worlds have met each of `OVERFLOWS`, and any other one, since they were made."""
        return (self._overflow[:, None] & self._bits).ne(0).sum(0)

    def _view(self, name: str) -> Tensor:
        return self._wp.to_torch(getattr(self._data, name))

    def _compile(self, task: Task) -> Any:
        """Return the mujoco.MjModel of a task, as MuJoCo Warp can use it."""
        name, model = task.xml_file, task.model()
        try:
            if model is None and name.lstrip().startswith("<"):
                model = self._mujoco.MjModel.from_xml_string(name)
            elif model is None:
                model = self._mujoco.MjModel.from_xml_path(str(locate(name)))
        except ValueError as error:
            raise TaskError(f"MuJoCo cannot load {name[:60]}: {one_line(error)}") from error
        if model.opt.solver == self._mujoco.mjtSolver.mjSOL_PGS:  # which MuJoCo Warp lacks
            model.opt.solver = self._mujoco.mjtSolver.mjSOL_NEWTON
            model.opt.iterations = max(model.opt.iterations, 100)
        low, high = model.actuator_ctrlrange.T
        if not (model.nu and (low < high).all()):
            raise TaskError(f"{name[:60]}: an actuator has no ctrlrange, or there is none; actions need a range")
        return model

    def _advance(self) -> None:
        """Launch the physics of a step of the environment."""
        for _ in range(self._frame_skip):
            self._mjw.step(self._model, self._data)
        if "cfrc_ext" in self._reads:
            self._mjw.rne_postconstraint(self._model, self._data)

    def _follow(self) -> None:
        """Launch what `refresh` needs."""
        if self._begins <= POSES | FORCES:
            for work in (self._mjw.kinematics, self._mjw.com_pos, self._mjw.com_vel):
                work(self._model, self._data)
        else:
            self._mjw.forward(self._model, self._data)

    def _record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what repeats all that `work` launches, without Python and on torch's stream."""
        wp, device = self._wp, self._torch_device
        enabled = gc.isenabled()
        with wp.ScopedDevice(self._device):
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # recording has a stream of its own
                work()  # compiles and loads the kernels, which a CPU does while it records
            gc.disable()  # to free an older graph meanwhile would spoil the new one
            try:
                with wp.ScopedCapture() as capture:
                    work()
            finally:
                if enabled:
                    gc.enable()
            wp.synchronize_device(self._device)
        graph = capture.graph  # it knows the arrays by address, so none of them may ever be replaced
        if device.type == "cpu":
            return lambda: wp.capture_launch(graph)
        return lambda: wp.capture_launch(graph, stream=wp.stream_from_torch(torch.cuda.current_stream(device)))


def load() -> tuple[Any, Any, Any]:
    """Return the modules mujoco, mujoco_warp and warp.

    Raises:
        TaskError: one is missing, or they do not fit together.
    """
    try:
        import warp

        # Not one line for each of some hundred kernels; must be said before they are made.
        warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
        import mujoco
        import mujoco_warp
    except ImportError as error:
        raise TaskError(f"MuJoCo Warp is missing ({one_line(error)}): {INSTALL}") from error
    versions = mujoco.__version__, mujoco_warp.__version__
    if len({tuple(version.split(".")[:2]) for version in versions}) > 1:
        raise TaskError(f"mujoco {versions[0]} and mujoco-warp {versions[1]} do not fit together: {INSTALL}")
    warp.init()
    if versions[1].startswith("3."):
        from envs import mjwarp_contacts

        mjwarp_contacts.use()
    return mujoco, mujoco_warp, warp


def locate(name: str) -> Path:
    """Return the file of a model, by Gymnasium's rule.

    Raises:
        TaskError: there is none.
    """
    path = Path(name).expanduser()
    if not name.startswith((".", "/", "~")):
        spec = find_spec("gymnasium")
        folders = spec.submodule_search_locations if spec else None
        path = Path(*folders or ()) / "envs" / "mujoco" / "assets" / name
    if not path.is_file():
        raise TaskError(f"there is no model {path}; a path of your own begins with . or / or ~")
    return path


def pick(mask: Tensor, chosen: Tensor, other: Tensor) -> Tensor:
    """Return the rows of `chosen` where the [N] mask is True, else those of `other`."""
    return torch.where(mask.reshape(-1, *[1] * (chosen.ndim - 1)), chosen, other)
