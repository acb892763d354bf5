"""HumanoidBench's locomotion tasks, reach and push, native: one process, C MuJoCo on a pool of threads, no gymnasium.

Upstream is one process of 200 to 500 MB per environment; here 128 environments share one model and a simulator per
thread. Observations, rewards, terminations, noise, control at 50 Hz and time limits are upstream's
(`envs.humanoidbench_tasks`) and so are the scenes: those of H1 are built from the robot that EnvPool installs
(`envs.humanoidbench_h1`), those of H1 with hands are made once from a copy of HumanoidBench
(`envs.humanoidbench_scenes`). Scores are those of the installed MuJoCo: contacts have changed since the version that
HumanoidBench pins.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor

from envs.base import TaskError, VecEnv, spawn_seeds
from envs.host import HostEnv, check_count
from envs.humanoidbench_scenes import load_scene
from envs.humanoidbench_tasks import FRAME_SKIP, ROBOTS, TASKS, Physics
from envs.pictures import Pictures

OPTIONS = ("max_episode_steps", "num_threads", "scenes")
CLOCK = 1.0  # the time that every step begins at; MuJoCo's own falls back to 0 where it gives up a state


def tasks() -> list[str]:
    """Upstream's ids of the tasks, whether or not their scenes are there."""
    return [f"{robot}-{name}-v0" for robot in ROBOTS for name in TASKS]


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` environments that step on threads of this process.

    Args:
        task: an id as upstream's: "h1hand-walk-v0", "h1-sit_hard-v0".
        num_envs: N.
        seed: of the run.
        device: where the tensors go.
        options: `max_episode_steps`, by default upstream's 1,000 (push: 500); `num_threads`, by default one per core;
            `scenes`, a copy of HumanoidBench or a folder of scenes, by default what was made from one or is built here.

    Raises:
        TaskError: the task or an option is unknown, or the scene is missing.
    """
    parts(task, "humanoidbench")
    for name in options:
        if name not in OPTIONS:
            raise TaskError(f"{task} has no option {name!r} (it has {', '.join(OPTIONS)})")
    return HumanoidBench(task, num_envs, seed, device, **options)


def parts(task: str, backend: str) -> tuple[str, str]:
    """Return robot and task of an id.

    Raises:
        TaskError: there is none of that name.
    """
    if task not in tasks():
        near = get_close_matches(task, tasks(), cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(tasks())}"
        raise TaskError(f"the backend {backend} has no task {task!r}, {hint}")
    robot, name = task.removesuffix("-v0").split("-")
    return robot, name


class HumanoidBench(HostEnv):
    """N environments of one task. `metrics["success"]` is whether the episode's return has come up to the task's bar.

    What environment i begins its episode k with depends on its seed and on k alone, not on how the others fare.
    """

    backend = "humanoidbench"
    snapshots = True

    def __init__(
        self,
        task: str,
        num_envs: int,
        seed: int,
        device: torch.device,
        max_episode_steps: int | None = None,
        num_threads: int = 0,
        scenes: str | None = None,
    ) -> None:
        check_count("num_envs", num_envs)
        robot, name = parts(task, self.backend)
        kind = TASKS[name]
        limit = kind.step_limit if max_episode_steps is None else check_count("max_episode_steps", max_episode_steps)
        threads = cores() if num_threads == 0 else check_count("num_threads", num_threads)
        self._physics = ThreadedPhysics(load_scene(robot, name, scenes), num_envs, threads, kind.contacts)
        self._task = kind(self._physics)
        _, self._memory = self._task.start(torch.zeros(num_envs, self._task.draws, dtype=torch.float64))
        size = self._task.observe(self._physics, self._memory).shape[1]
        actions = self._physics.model.nu
        super().__init__(
            task,
            num_envs,
            device,
            Box(-np.inf, np.inf, (size,), np.float64),
            Box(-1, 1, (actions,), np.float32),
            limit,
        )
        low, high = self._physics.model.actuator_ctrlrange.astype(np.float32).T
        self._low, self._span = low, high - low
        self._returns = np.zeros(num_envs)
        self._pictures: Pictures | None = None
        self._view: tuple[Any, Any] = None, None
        self._seed(seed)

    def _seed(self, seed: int) -> None:
        self._seeds = np.array(spawn_seeds(seed, self.num_envs, self.backend))
        self._episodes = np.zeros(self.num_envs, np.int64)  # begun so far

    def _start(self, seed: int | None) -> Any:
        if seed is not None:
            self._seed(seed)
        return self._begin(np.arange(self.num_envs))

    def _restart(self, mask: np.ndarray) -> Any:
        return self._begin(np.flatnonzero(mask))

    def _begin(self, worlds: np.ndarray) -> np.ndarray:
        """Begin new episodes in some environments, and return their observations."""
        streams = zip(self._seeds[worlds].tolist(), self._episodes[worlds].tolist(), strict=True)
        draw = np.stack([np.random.default_rng(stream).random(self._task.draws) for stream in streams])
        qpos, memory = self._task.start(torch.from_numpy(draw))
        self._physics.begin(worlds, qpos.numpy())
        for name, rows in memory.items():
            self._memory[name][torch.from_numpy(worlds)] = rows
        self._episodes[worlds] += 1
        self._returns[worlds] = 0
        return self._task.observe(self._physics, self._memory).numpy()[worlds]

    def _send(self, action: np.ndarray) -> None:
        self._physics.send((action + 1) / 2 * self._span + self._low)  # upstream's order, in float32 as there

    def _recv(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        sound = self._physics.recv()
        obs = self._task.observe(self._physics, self._memory).numpy()
        rewards, memory = self._task.reward(self._physics, self._memory)
        terminated = self._task.terminated(self._physics, memory).numpy()
        self._memory = memory
        reward = np.where(sound, rewards.numpy(), np.nan)  # the state is MuJoCo's own restart, so nothing tells
        self._returns += reward
        return obs, reward, terminated, np.zeros_like(terminated), {"success": self._returns >= self._task.bar}

    def _metrics(self, info: dict[str, Any], over: np.ndarray) -> dict[str, np.ndarray]:
        return {"success": info["success"]}

    def state_dict(self) -> dict[str, Any]:
        """State of the physics, the episodes and the random streams; tensors, and the name of the task.

        Raises:
            RuntimeError: a step is under way.
        """
        if self._in_flight:
            raise RuntimeError(f"{self.task}: step_recv before state_dict")
        own = {"seeds": self._seeds, "episodes": self._episodes, "returns": self._returns, "elapsed": self._elapsed}
        return {
            "task": self.task,
            "physics": {name: torch.tensor(rows) for name, rows in self._physics.state.items()},
            "memory": {name: rows.clone() for name, rows in self._memory.items()},
            "episodes": {name: torch.tensor(rows) for name, rows in own.items()},
            "current": [torch.tensor(view) for view in self._current],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an environment of the same task and N.

        Raises:
            TaskError: the state is of another task or N.
        """
        found = state["task"], len(state["episodes"]["seeds"])
        if found != (self.task, self.num_envs):
            raise TaskError(
                f"the state is of {found[1]} environments of {found[0]}, not {self.num_envs} of {self.task}"
            )
        if self._in_flight:
            self._in_flight = False
            self._physics.recv()
        for name, rows in self._physics.state.items():
            rows[:] = state["physics"][name].numpy()
        self._memory = {name: rows.clone() for name, rows in state["memory"].items()}
        episodes = {name: rows.numpy().copy() for name, rows in state["episodes"].items()}
        self._seeds, self._episodes = episodes["seeds"], episodes["episodes"]
        self._returns, self._elapsed = episodes["returns"], episodes["elapsed"]
        self._current = [view.numpy().copy() for view in state["current"]]

    def render(self, index: int = 0, size: tuple[int, int] | None = None, camera: int | None = None) -> np.ndarray:
        """Return a picture of one world: the shapes that collide, since scenes come without others.

        Raises:
            TaskError: see `Pictures`.
        """
        if self._pictures is None or self._view != (size, camera):
            self._pictures = Pictures(self._physics.model, size, camera, distance=4.0, everything=True)
            self._view = size, camera
        return self._pictures.draw(**self.mujoco(index)[1])

    def mujoco(self, index: int = 0) -> tuple[Any, dict[str, np.ndarray]]:
        """Return the MuJoCo model of one world, and its state now, see `VecEnv.mujoco`."""
        return self._physics.model, {"qpos": self._physics.state["qpos"][index]}

    def close(self) -> None:
        """Stop the threads. Safe to call twice."""
        self._physics.close()
        if self._pictures is not None:
            self._pictures.close()
            self._pictures = None


class ThreadedPhysics(Physics):
    """C MuJoCo: the state of each of N worlds is a row, and each thread has one simulator for all of them in turn.

    MuJoCo's step is a function of qpos, qvel, warm start and control alone, so what a world does depends neither on
    the thread nor on the world that was there before.
    """

    def __init__(self, model: Any, num_worlds: int, num_threads: int, contacts: bool) -> None:
        import mujoco

        self.model = model
        self._step, self._forward = mujoco.mj_step, mujoco.mj_forward
        sizes: dict[str, tuple[int, ...]] = {
            "qpos": (model.nq,),
            "qvel": (model.nv,),
            "qacc_warmstart": (model.nv,),
            "ctrl": (model.nu,),
        }
        sizes |= {"xpos": (model.nbody, 3), "xquat": (model.nbody, 4), "xmat": (model.nbody, 9)}
        sizes |= {"site_xpos": (model.nsite, 3), "sensordata": (model.nsensordata,), "actuator_force": (model.nu,)}
        rows = {name: np.zeros((num_worlds, *size)) for name, size in sizes.items()}
        self.state = {name: rows[name] for name in ("qpos", "qvel", "qacc_warmstart")}
        """all that there is to the worlds between two steps; may be written into"""
        self._ctrl = rows["ctrl"]
        self.qpos, self.qvel = torch.from_numpy(rows["qpos"]), torch.from_numpy(rows["qvel"])
        self.xpos, self.xquat = torch.from_numpy(rows["xpos"]), torch.from_numpy(rows["xquat"])
        self.xmat, self.site_xpos = torch.from_numpy(rows["xmat"]), torch.from_numpy(rows["site_xpos"])
        self.sensordata = torch.from_numpy(rows["sensordata"])
        self.actuator_force = torch.from_numpy(rows["actuator_force"])
        self._contacts = contacts
        self._pairs = [np.empty((0, 2), np.int32)] * num_worlds  # of geoms, per contact
        self._sound = np.ones(num_worlds, np.bool_)

        self._simulators = []  # each with the rows that it reads and writes, beside its own arrays, which stay in place
        for _ in range(min(num_threads, num_worlds)):
            data = mujoco.MjData(model)
            views = {name: getattr(data, name) for name in rows}
            reads = [(views[name], rows[name]) for name in (*self.state, "ctrl")]
            writes = [(rows[name], views[name]) for name in rows if name != "ctrl"]
            self._simulators.append((data, reads, writes))
        self._pool = ThreadPoolExecutor(len(self._simulators), "humanoidbench")
        self._jobs: list[Future[None]] = []

    def begin(self, worlds: np.ndarray, qpos: np.ndarray) -> None:
        """Put worlds at rest into the states qpos [n, nq], and compute what follows from these."""
        for rows in (*self.state.values(), self._ctrl):
            rows[worlds] = 0
        self.state["qpos"][worlds] = qpos
        self._run(worlds, 0)
        self._wait()

    def send(self, ctrl: np.ndarray) -> None:
        """Start a step of all worlds with controls [N, nu]."""
        self._ctrl[:] = ctrl
        self._run(np.arange(len(ctrl)), FRAME_SKIP)

    def recv(self) -> np.ndarray:
        """Wait for the step. Return [N] bool: False where its numbers are not those of the world."""
        self._wait()
        return self._sound & np.isfinite(self._ctrl).all(1)  # MuJoCo takes 0 for all controls if one is not finite

    def touching(self, test: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[N] bool, see `Physics`."""
        first, second = torch.from_numpy(np.concatenate(self._pairs)).long().unbind(1)
        counts = torch.tensor([len(pairs) for pairs in self._pairs])
        world = torch.repeat_interleave(torch.arange(len(counts)), counts)
        return torch.zeros_like(counts).index_add(0, world, test(first, second).long()) > 0

    def close(self) -> None:
        """Stop the threads. Safe to call twice."""
        self._pool.shutdown()

    def _run(self, worlds: np.ndarray, steps: int) -> None:
        pending = deque(worlds.tolist())  # a thread takes the next one when it is free: contacts make some slow
        self._jobs = [self._pool.submit(self._work, *one, pending, steps) for one in self._simulators[: len(worlds)]]

    def _wait(self) -> None:
        for job in self._jobs:
            job.result()

    def _work(self, data: Any, reads: list[Any], writes: list[Any], pending: deque[int], steps: int) -> None:
        """Step worlds until none is left; with 0 steps only compute what follows from their states."""
        while True:
            try:
                world = pending.popleft()
            except IndexError:
                return
            for view, rows in reads:
                view[:] = rows[world]
            data.time = CLOCK
            if steps:
                self._step(self.model, data, steps)  # without the GIL
            else:
                self._forward(self.model, data)
            for rows, view in writes:
                rows[world] = view
            self._sound[world] = data.time >= CLOCK
            if self._contacts:
                self._pairs[world] = data.contact.geom.copy()


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
