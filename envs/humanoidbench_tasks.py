"""HumanoidBench's tasks, each for all worlds at once: torch functions of what an engine has computed.

The 13 locomotion tasks, reach and push, with the H1 robot with and without hands. Nothing in here simulates, draws
random numbers or knows where its tensors live, so one definition serves every engine that fills a `Physics`.

Source: Sferrazza et al., HumanoidBench (2024), github.com/carlosferrazza/humanoid-bench at 791405f; what is odd there
is odd here. The shape of the rewards: `tolerance` of dm_control.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

Memory = dict[str, Tensor]
"""[N, ...] what a task remembers of an episode beside the state of the physics: a goal, a stage"""

ROBOTS = ("h1", "h1hand")
FRAME_SKIP = 10  # physics steps of 2 ms in one of the environment
NOISE = 0.01  # an episode begins within this of the scene's pose, in each coordinate
FLOOR, PELVIS = 0, 1  # geom and body, the first ones of every scene


class Physics(ABC):
    """N worlds of one scene as tasks see them: MuJoCo's arrays by MuJoCo's names, as tensors of N rows.

    `qpos` and `qvel` are the state after a step. Everything else is what MuJoCo computed on its way there, from the
    state before the last physics step: the benchmark's rewards read it so, 2 ms late. After a start it is up to date.
    """

    model: Any
    """the scene's mujoco.MjModel, for names, sizes and the keyframe that episodes begin from"""
    qpos: Tensor
    """[N, nq]"""
    qvel: Tensor
    """[N, nv]"""
    xpos: Tensor
    """[N, nbody, 3] positions of bodies"""
    xquat: Tensor
    """[N, nbody, 4] their orientations"""
    xmat: Tensor
    """[N, nbody, 9] the same as matrices; the last entry is the cosine of the tilt"""
    site_xpos: Tensor
    """[N, nsite, 3]"""
    sensordata: Tensor
    """[N, nsensordata]"""
    actuator_force: Tensor
    """[N, nu]"""

    @abstractmethod
    def touching(self, test: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[N] bool: whether some contact of the world passes a test of its two geoms, [M] and [M] int64 to [M] bool.

        Counts whatever MuJoCo lists as a contact, within its margin. Only for tasks with `contacts`.
        """


class Task:
    """What an episode of N worlds begins with, what is observed and rewarded, and where it terminates."""

    bar: ClassVar[float] = 700.0
    """return from which the benchmark counts an episode as a success"""
    step_limit: ClassVar[int] = 1000
    contacts: ClassVar[bool] = False
    """whether `Physics.touching` is needed"""
    extra_draws: ClassVar[int] = 0
    """random numbers of a start beside those of the noise"""

    def __init__(self, physics: Physics) -> None:
        model = physics.model
        self.qpos0 = physics.qpos.new_tensor(model.key_qpos[0])
        self.draws = len(self.qpos0) + self.extra_draws
        self.torso = model.body("torso_link").id
        self.head, self.imu = model.site("head").id, model.site("imu").id
        self.com = int(model.sensor("pelvis_subtreelinvel").adr[0])

    def start(self, draw: Tensor) -> tuple[Tensor, Memory]:
        """Return qpos [n, nq] and memory of n new episodes, at rest, from [n, draws] uniform numbers in [0, 1)."""
        return self.qpos0 + between(draw[:, : len(self.qpos0)], -NOISE, NOISE), {}

    def observe(self, physics: Physics, memory: Memory) -> Tensor:
        """[N, D], new."""
        return torch.cat([physics.qpos, physics.qvel], 1)

    def reward(self, physics: Physics, memory: Memory) -> tuple[Tensor, Memory]:
        """Return [N] rewards of the step that has led here, and what is to be remembered from now on."""
        return self.control(physics) * self.posture(physics) * self.motion(physics), memory

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """[N] bool."""
        return physics.qpos[:, 2] < 0.2

    def posture(self, physics: Physics) -> Tensor:
        """[N] in [0, 1]: how well the robot holds itself."""
        return self.stand(physics)

    def motion(self, physics: Physics) -> Tensor:
        """[N] in [0, 1]: how well it moves."""
        raise NotImplementedError

    def control(self, physics: Physics) -> Tensor:
        """[N] in [0.8, 1]: how little force the actuators use."""
        return (4 + quadratic(physics.actuator_force / 10).mean(1)) / 5

    def upright(self, physics: Physics, low: float, margin: float = 1.9) -> Tensor:
        """[N]: whether the torso's tilt has a cosine of at least `low`."""
        return linear(outside(physics.xmat[:, self.torso, 8], low, math.inf) / margin)

    def stand(self, physics: Physics, low: float = 0.9, height: float = 1.65) -> Tensor:
        """[N]: whether the head is as high as that, and the torso upright."""
        tall = gaussian(outside(physics.site_xpos[:, self.head, 2], height, math.inf) / (1.65 / 4))
        return tall * self.upright(physics, low)

    def velocity(self, physics: Physics) -> Tensor:
        """[N, 2] of the centre of mass, in the plane."""
        return physics.sensordata[:, self.com : self.com + 2]

    def advance(self, physics: Physics, speed: float) -> Tensor:
        """[N] in [1/6, 1]: whether it goes forward at that speed, m/s."""
        return (5 * linear(outside(self.velocity(physics)[:, 0], speed, math.inf) / speed) + 1) / 6

    def rest(self, physics: Physics) -> Tensor:
        """[N]: whether it stays where it is."""
        return gaussian(self.velocity(physics) / 2).mean(1)


class Stand(Task):
    """Stand still."""

    bar = 800.0

    def motion(self, physics: Physics) -> Tensor:
        """Stay."""
        return self.rest(physics)


class Walk(Task):
    """Go forward upright, at 1 m/s or more."""

    speed: ClassVar[float] = 1.0

    def motion(self, physics: Physics) -> Tensor:
        """Go forward."""
        return self.advance(physics, self.speed)


class Run(Walk):
    """Go forward upright, at 5 m/s or more."""

    speed = 5.0


class Hurdle(Run):
    """Run over hurdles; a touch of the walls around them costs nine tenths of the reward."""

    contacts = True

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        walls = [physics.model.geom(f"{side}_barrier_collision").id for side in ("left", "right", "behind")]
        self.walls = marks(physics, walls)

    def posture(self, physics: Physics) -> Tensor:
        """May lean further than in `Run`."""
        return self.stand(physics, 0.8)

    def reward(self, physics: Physics, memory: Memory) -> tuple[Tensor, Memory]:
        """As in `Run`, discounted."""
        reward, memory = super().reward(physics, memory)
        return discount(reward, physics.touching(either(self.walls))), memory


class Crawl(Task):
    """Go forward on all fours, through a tunnel. Never terminates."""

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        self.prone = physics.qpos.new_tensor([0.75, 0, 0.65, 0])

    def reward(self, physics: Physics, memory: Memory) -> tuple[Tensor, Memory]:
        """A sum, which counts only within the tunnel's width."""
        imu = physics.site_xpos[:, self.imu]
        heights = torch.stack([imu[:, 2], physics.site_xpos[:, self.head, 2]])
        low = gaussian(outside(heights, 0.8 - 0.2, 0.8 + 0.2)).amin(0)
        prone = gaussian((physics.xquat[:, PELVIS] - self.prone).norm(dim=1))
        total = 0.1 * self.control(physics) + 0.25 * low + 0.4 * self.advance(physics, 1.0) + 0.25 * prone
        return total * (imu[:, 1].abs() <= 1), memory

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """[N] False."""
        return torch.zeros_like(physics.qpos[:, 0], dtype=torch.bool)


class Climb(Walk):
    """Walk up and down stairs or slopes: the head must be high above the feet, not above the ground."""

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        feet = [physics.model.site(f"{side}_foot").id for side in ("left", "right")]
        self.feet = torch.tensor(feet, device=physics.qpos.device)

    def posture(self, physics: Physics) -> Tensor:
        """Tall above both feet, and upright."""
        tall = physics.site_xpos[:, self.head, None, 2] - physics.site_xpos[:, self.feet, 2]
        return gaussian(outside(tall, 1.2, math.inf) / 0.45).prod(1) * self.upright(physics, 0.5)

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """Where the torso lies."""
        return physics.xmat[:, self.torso, 8] < 0.1


class Pole(Task):
    """Walk between poles; a touch of one costs nine tenths of the reward."""

    contacts = True

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        names = [physics.model.geom(i).name for i in range(physics.model.ngeom)]
        self.poles = marks(physics, [i for i, name in enumerate(names) if "pole_r" in name])

    def reward(self, physics: Physics, memory: Memory) -> tuple[Tensor, Memory]:
        """Half for standing, half for going forward."""
        # Upstream leaves out contacts with the floor; there are none, as neither moves.
        hit = physics.touching(either(self.poles))
        good = 0.5 * self.control(physics) * self.stand(physics) + 0.5 * self.advance(physics, 0.5)
        return discount(good, hit), memory

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """Where the pelvis is low."""
        return physics.qpos[:, 2] < 0.5


class Maze(Task):
    """Walk through a maze along checkpoints, `stage` of which have been reached; each gives a bonus, 1,000 in all.

    The walls are as in `Hurdle`, and cost no bonus.
    """

    bar = 1200.0
    contacts = True

    CHECKPOINTS = ((0.0, 0.0), (3.0, 0.0), (3.0, 6.0), (6.0, 6.0), (6.0, 6.0))  # the last is where it ends, too
    DIRECTIONS = ((1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0))  # to go in, by stage
    SPEED = 2.0
    REACHED = 0.4

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        # Upstream takes every geom from the first block on for a wall; the blocks are the last ones in the scene.
        self.walls = marks(physics, range(physics.model.geom("block_collision_00").id, physics.model.ngeom))
        self.checkpoints = physics.qpos.new_tensor(self.CHECKPOINTS)
        self.directions = physics.qpos.new_tensor(self.DIRECTIONS)

    def start(self, draw: Tensor) -> tuple[Tensor, Memory]:
        """At the first checkpoint, which counts from the first step on."""
        qpos, _ = super().start(draw)
        return qpos, {"stage": torch.zeros(len(draw), dtype=torch.int64, device=draw.device)}

    def reward(self, physics: Physics, memory: Memory) -> tuple[Tensor, Memory]:
        """For standing, for the speed in the stage's direction, for being near to the checkpoint; and the bonus."""
        old = memory["stage"]
        reached = (physics.xpos[:, PELVIS, :2] - self.checkpoints[old]).norm(dim=1) < self.REACHED
        stage = (old + reached).clamp(max=len(self.CHECKPOINTS) - 1)
        error = (self.velocity(physics) - self.SPEED * self.directions[stage]).abs()
        done = stage == len(self.CHECKPOINTS) - 1
        move = (5 * torch.where(done, 1, linear(error).prod(1)) + 1) / 6
        near = gaussian((self.checkpoints[stage] - physics.site_xpos[:, self.imu, :2]).norm(dim=1))
        good = 0.2 * self.stand(physics) * self.control(physics) + 0.4 * move + 0.4 * near
        bonus = torch.where(stage > old, 100 * stage, 0)
        return discount(good, physics.touching(either(self.walls))) + bonus, {"stage": stage}


class Sit(Task):
    """Sit still on a chair."""

    bar = 750.0

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        self.chair = physics.model.body("chair").id

    def posture(self, physics: Physics) -> Tensor:
        """As high as one sits, on the chair, upright, and not bent."""
        high = gaussian(outside(physics.qpos[:, 2], 0.68, 0.72) / 0.2)
        off = physics.qpos[:, :2] - physics.xpos[:, self.chair, :2]
        on_chair = gaussian(outside(off[:, 0], -0.19, 0.19) / 0.2) * gaussian(off[:, 1] / 0.1)
        back = physics.site_xpos[:, self.head, 2] - physics.site_xpos[:, self.imu, 2]
        straight = gaussian(outside(back, 0.35, 0.45) / 0.3)
        return (0.5 * high + 0.5 * on_chair) * self.upright(physics, 0.95, 0.9) * straight

    def motion(self, physics: Physics) -> Tensor:
        """Stay."""
        return self.rest(physics)

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """Where the pelvis is low."""
        return physics.qpos[:, 2] < 0.5


class SitHard(Sit):
    """The chair can be pushed, and the robot begins in front of it, turned anyhow."""

    extra_draws = 3

    def start(self, draw: Tensor) -> tuple[Tensor, Memory]:
        """The noise, but for the robot's place and heading."""
        qpos, memory = super().start(draw)
        x, y, turn = draw[:, -3:].unbind(1)
        half, zero = between(turn, -1.8, 1.8) / 2, torch.zeros_like(turn)
        place = [between(x, 0.2, 0.4), between(y, -0.15, 0.15)]
        heading = [half.cos(), zero, zero, half.sin()]
        return torch.cat([torch.stack(place, 1), qpos[:, 2:3], torch.stack(heading, 1), qpos[:, 7:]], 1), memory


class Balance(Task):
    """Stand still on a board on a ball; terminates where anything but the ball touches the floor, or hits the ball.

    In `balance_hard` the ball and the board are two bodies.
    """

    bar = 800.0
    contacts = True

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        self.ball = physics.model.geom("pivot_sphere_collision").id
        self.board = physics.model.geom("stand_board_collision").id

    def posture(self, physics: Physics) -> Tensor:
        """Stand, on top of that."""
        return self.stand(physics, height=1.65 + 0.37)

    def motion(self, physics: Physics) -> Tensor:
        """Stay."""
        return self.rest(physics)

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """Where the robot has fallen off."""
        return (physics.qpos[:, 2] < 0.8) | physics.touching(self._fault)

    def _fault(self, a: Tensor, b: Tensor) -> Tensor:
        ball, board, floor = ((a == geom) | (b == geom) for geom in (self.ball, self.board, FLOOR))
        return torch.where(ball, ~floor & ~board, floor)


class Reach(Task):
    """Bring the left hand to a goal, which is observed. Never terminates."""

    bar = 12000.0
    extra_draws = 3
    low: ClassVar[tuple[float, ...]] = (-2.0, -2.0, 0.2)
    high: ClassVar[tuple[float, ...]] = (2.0, 2.0, 2.0)
    """of the goal"""

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        self.hand = physics.model.site("left_hand").id
        self.dof = physics.model.nq  # of the robot: so many numbers of position, one less of velocity
        self.nearest, self.farthest = physics.qpos.new_tensor(self.low), physics.qpos.new_tensor(self.high)

    def start(self, draw: Tensor) -> tuple[Tensor, Memory]:
        """The noise, and a goal."""
        qpos, _ = super().start(draw)
        return qpos, {"goal": between(draw[:, -3:], self.nearest, self.farthest)}

    def observe(self, physics: Physics, memory: Memory) -> Tensor:
        """The robot, its left hand and the goal."""
        robot = physics.qpos[:, : self.dof], physics.qvel[:, : self.dof - 1]
        return torch.cat([*robot, physics.site_xpos[:, self.hand], memory["goal"]], 1)

    def reward(self, physics: Physics, memory: Memory) -> tuple[Tensor, Memory]:
        """5 for being upright, 5 for being within 1 m, 10 within 5 cm; quick motion costs."""
        distance = (physics.site_xpos[:, self.hand] - memory["goal"]).norm(dim=1)
        motion = physics.qvel[:, : self.dof - 1].square().sum(1)
        close = 5 * (distance < 1) + 10 * (distance < 0.05)
        return 5 * physics.xmat[:, PELVIS, 8] - 0.0001 * motion + close, memory

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """[N] False."""
        return torch.zeros_like(physics.qpos[:, 0], dtype=torch.bool)


class Push(Reach):
    """Push a box on a table to a goal, which is observed, with the left hand; terminates there, with 1,000."""

    bar = 700.0
    step_limit = 500
    low = (0.7, -0.5, 1.0)
    high = (1.0, 0.5, 1.0)

    def __init__(self, physics: Physics) -> None:
        super().__init__(physics)
        self.dof = int(physics.model.joint("free_object").qposadr[0])  # the box comes last
        self.box_velocity = int(physics.model.body("object").dofadr[0])

    def box(self, physics: Physics) -> Tensor:
        """[N, 3] where it is."""
        return physics.qpos[:, self.dof : self.dof + 3]

    def observe(self, physics: Physics, memory: Memory) -> Tensor:
        """The robot, its left hand, the goal, the box and how that moves."""
        speed = physics.qvel[:, self.box_velocity : self.box_velocity + 3]
        return torch.cat([super().observe(physics, memory), self.box(physics), speed], 1)

    def reward(self, physics: Physics, memory: Memory) -> tuple[Tensor, Memory]:
        """Minus the distances, of the box to the goal and of the hand to the box."""
        reach = (physics.site_xpos[:, self.hand] - self.box(physics)).norm(dim=1)
        left = (self.box(physics) - memory["goal"]).norm(dim=1)
        return -0.1 * reach - left + 1000 * (left < 0.05), memory

    def terminated(self, physics: Physics, memory: Memory) -> Tensor:
        """Where the box is at the goal."""
        return (self.box(physics) - memory["goal"]).norm(dim=1) < 0.05


TASKS: dict[str, type[Task]] = {
    "stand": Stand,
    "walk": Walk,
    "run": Run,
    "hurdle": Hurdle,
    "maze": Maze,
    "crawl": Crawl,
    "stair": Climb,
    "slide": Climb,
    "pole": Pole,
    "sit_simple": Sit,
    "sit_hard": SitHard,
    "balance_simple": Balance,
    "balance_hard": Balance,
    "reach": Reach,
    "push": Push,
}
"""by the name in the id: `h1hand-walk-v0`"""


def outside(x: Tensor, low: float, high: float) -> Tensor:
    """Return how far x is outside of [low, high]; 0 within."""
    return (low - x).clamp(min=0) + (x - high).clamp(min=0)


def gaussian(x: Tensor) -> Tensor:
    """1 at 0, 0.1 at 1 and -1. This and the next two are dm_control's `tolerance`, of a distance over its margin."""
    return torch.exp(math.log(0.1) * x.square())


def linear(x: Tensor) -> Tensor:
    """1 at 0, 0 from 1 on, for x of at least 0."""
    return (1 - x).clamp(min=0)


def quadratic(x: Tensor) -> Tensor:
    """1 at 0, 0 beyond 1 and -1."""
    return (1 - x.square()).clamp(min=0)


def between(draw: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Return numbers in [low, high) from those in [0, 1)."""
    return low + (high - low) * draw


def marks(physics: Physics, geoms: Any) -> Tensor:
    """[ngeom] bool: True for the geoms."""
    marked = torch.zeros(physics.model.ngeom, dtype=torch.bool, device=physics.qpos.device)
    marked[list(geoms)] = True
    return marked


def either(marked: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the test whether one of two geoms is marked."""
    return lambda a, b: marked[a] | marked[b]


def discount(reward: Tensor, hit: Tensor) -> Tensor:
    """[N]: a tenth of the reward where hit, else all of it."""
    return torch.where(hit, 0.1 * reward, reward)
