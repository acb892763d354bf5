"""HumanoidBench's locomotion tasks, reach and push on MuJoCo Warp: worlds by the thousand, with tensors on the GPU.

Scenes, observations, rewards, terminations, noise and limits are those of `envs.humanoidbench`; physics, resets and
buffers are those of `envs.mjwarp`. The first use compiles kernels for some minutes, since meshes collide. On a CPU it
is ten times as slow as C MuJoCo, and there for tests.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from envs import humanoidbench
from envs.base import VecEnv
from envs.humanoidbench_scenes import load_scene, scene_name
from envs.humanoidbench_tasks import FRAME_SKIP, TASKS, Physics
from envs.humanoidbench_tasks import Task as Definition
from envs.mjwarp import MjwarpEnv, WarpPhysics
from envs.mjwarp_tasks import Draws, OptionValue, Task

ROOM = {"h1": (48, 192), "h1hand": (128, 768)}
"""contacts and rows of constraints per world; a robot that lies on its hands needs 120 and 540"""


def tasks() -> list[str]:
    """Upstream's ids of the tasks, whether or not their scenes are there."""
    return humanoidbench.tasks()


def make(task: str, num_envs: int, seed: int, device: torch.device, **options: Any) -> VecEnv:
    """Return `num_envs` worlds of a task.

    Args:
        task: an id as upstream's: "h1hand-walk-v0", "h1-sit_hard-v0".
        num_envs: N.
        seed: of the run.
        device: where the physics is computed: a CPU or a CUDA device.
        options: `max_episode_steps`, by default upstream's 1,000 (push: 500); `scenes`, a copy of HumanoidBench or a
            folder of scenes, as in `envs.humanoidbench`; `nconmax` and `njmax`, room for contacts and rows of
            constraints per world.

    Raises:
        TaskError: MuJoCo Warp or the scene is missing, the task or an option is unknown, or a value is not legal.
    """
    robot, name = humanoidbench.parts(task, HumanoidBenchWarp.backend)
    return HumanoidBenchWarp(kind(robot, name), num_envs, seed, device, **options)


class HumanoidBenchWarp(MjwarpEnv):
    """N worlds of one task. `metrics["success"]` is whether the episode's return has come up to the task's bar."""

    backend = "humanoidbench_warp"
    drawing = {"distance": 4.0, "everything": True}  # noqa: RUF012  scenes come without shapes that do not collide

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.action_bounds = None  # HumanoidBench has actions in [-1, 1] itself


class Bench(Task):
    """A task of HumanoidBench as `MjwarpEnv` takes it. `kind` makes the class of each."""

    scenes = ""
    """a copy of HumanoidBench or a folder of scenes, by default what was made from one or is built here"""
    frame_skip = FRAME_SKIP
    reads = ("xpos", "xquat", "xmat", "site_xpos", "sensordata", "actuator_force")
    _robot: str
    _name: str
    _task: Definition
    _worlds: "Worlds"

    @classmethod
    def options(cls) -> dict[str, OptionValue]:
        """Return all options with their defaults: control at 50 Hz and the model are none."""
        return {name: value for name, value in super().options().items() if name not in ("frame_skip", "xml_file")}

    def model(self) -> Any:
        """Return the mujoco.MjModel of the scene."""
        return load_scene(self._robot, self._name, self.scenes or None)

    def memory(self, physics: Any) -> dict[str, Tensor]:
        """What the task remembers of an episode, and `returns`, [N] the sum of its rewards so far."""
        self._worlds = Worlds(physics)
        self._task = TASKS[self._name](self._worlds)
        idle = physics.qpos.new_zeros(len(physics.qpos), self._task.draws)
        self._kept = self._task.start(idle)[1]
        return self._kept | {"returns": idle[:, 0]}

    def start(self, physics: Any, draws: Draws) -> dict[str, Tensor]:
        """The keyframe's pose with noise, at rest; and a goal."""
        qpos, memory = self._task.start((draws.uniform(self._task.draws) + 1) / 2)
        return {"qpos": qpos, **memory}

    def observe(self, physics: Any) -> Tensor:
        """As the task does."""
        return self._task.observe(self._worlds, self._kept)

    def reward(self, physics: Any, velocity: Tensor) -> Tensor:
        """As the task does, which may go on to its next stage."""
        reward, memory = self._task.reward(self._worlds, self._kept)
        for name, rows in memory.items():
            self._kept[name].copy_(rows)
        physics.returns += reward
        return reward

    def terminated(self, physics: Any) -> Tensor:
        """As the task does."""
        return self._task.terminated(self._worlds, self._kept)

    def metrics(self, physics: Any) -> dict[str, Tensor]:
        """Whether the return has come up to the bar."""
        return {"success": physics.returns >= self._task.bar}


class Worlds(Physics):
    """MuJoCo Warp's arrays as HumanoidBench's tasks see them."""

    def __init__(self, physics: WarpPhysics) -> None:
        self.model = physics.model
        self.qpos, self.qvel, self.xpos, self.xquat = physics.qpos, physics.qvel, physics.xpos, physics.xquat
        self.xmat = physics.xmat.view(*physics.xmat.shape[:2], 9)
        self.site_xpos, self.sensordata = physics.site_xpos, physics.sensordata
        self.actuator_force = physics.actuator_force
        self._touching = physics.touching

    def touching(self, test: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[N] bool, see `Physics`."""
        return self._touching(test)


@cache
def kind(robot: str, name: str) -> type[Bench]:
    """Return the class of a task."""
    nconmax, njmax = ROOM[robot]
    begins = ("site_xpos",) if name in ("reach", "push") else ()  # the hand is observed
    own = {"xml_file": scene_name(robot, name), "nconmax": nconmax, "njmax": njmax, "begins": begins}
    own |= {"max_episode_steps": TASKS[name].step_limit, "_robot": robot, "_name": name}
    return type(f"{robot}-{name}-v0", (Bench,), own)
