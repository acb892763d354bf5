"""Gymnasium's MuJoCo tasks, version 5, each for all worlds at once: torch functions of what an engine has computed.

The class attributes of a task are Gymnasium's keyword options with Gymnasium's defaults, and the sizes of the buffers
for contacts. Nothing in here simulates or knows where its tensors live.

A task of your own is a model, what is observed, what is paid, and when it ends; `my_task:make` is then a name for
`envs.make` and for `--env-id`:

    from functools import partial
    import torch
    from envs.mjwarp import MjwarpEnv
    from envs.mjwarp_tasks import Draws, Physics, Task
    from torch import Tensor

    class Tray(Task):
        xml_file = '''<mujoco><worldbody>
            <body name="tray" pos="0 0 1"><joint name="tilt" axis="0 1 0" damping="1" range="-30 30"/>
                <geom type="box" size=".5 .2 .02" mass="1"/></body>
            <body name="ball" pos="0 0 1.07"><freejoint/><geom size=".05" mass=".1"/></body>
            </worldbody><actuator><motor joint="tilt" ctrlrange="-2 2"/></actuator></mujoco>'''
        frame_skip = 10
        max_episode_steps = 200
        reads = ("xpos",)

        def start(self, physics: Physics, draws: Draws) -> dict[str, Tensor]:
            return {"qvel": draws.uniform(physics.model.nv, 0.1)}

        def observe(self, physics: Physics) -> Tensor:
            return torch.cat([physics.qpos[:, :4], physics.qvel], 1)

        def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
            ball = physics.xpos[:, physics.body("ball")]
            return 1 - 2 * ball[:, 0].abs() - 0.01 * physics.ctrl.square().sum(1)

        def terminated(self, physics: Physics) -> Tensor:
            return physics.xpos[:, physics.body("ball"), 2] < 0.8

    make = partial(MjwarpEnv, Tray)

Source: gymnasium 1.4.0, gymnasium/envs/mujoco/*_v5.py; what is odd there is odd here.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

OptionValue = bool | int | float | str | tuple[float, float]


class Physics:
    """N worlds of one model as tasks see them: MuJoCo's arrays by MuJoCo's names, as tensors of N rows.

    `qpos` and `qvel` are the state after a step. Everything else is what MuJoCo computed on its way there, from the
    state before the last physics step, as in Gymnasium. At the start of an episode it is up to date, and forces are 0.
    The tensors are the simulator's memory, and change with it.
    """

    qpos: Tensor
    """[N, nq]"""
    qvel: Tensor
    """[N, nv]"""
    ctrl: Tensor
    """[N, nu] the action in the actuators' own range"""

    def __init__(self, model: Any, frame_skip: int, arrays: Mapping[str, Tensor]) -> None:
        self.model = model
        """the mujoco.MjModel, for names and sizes"""
        self.timestep = float(model.opt.timestep)
        """seconds of a physics step"""
        self.dt = self.timestep * frame_skip
        """seconds of a step of the environment"""
        self.__dict__.update(arrays)
        self.qpos0 = self.qpos.new_tensor(model.qpos0)
        """[nq] the model's own pose"""
        self.body_mass = self.qpos.new_tensor(model.body_mass)
        """[nbody], or [N, nbody] where masses are randomised"""

    def __getattr__(self, name: str) -> Tensor:
        raise AttributeError(f"physics.{name} is not there: name it in the task's `reads`, or look for a typing error")

    def body(self, name: int | str) -> int:
        """Return the index of a body."""
        return int(self.model.body(name).id)


class Draws:
    """Random numbers for N worlds. All of them draw at each call, so that none depends on how the others fare."""

    def __init__(self, num_worlds: int, generator: torch.Generator) -> None:
        self._num_worlds, self._generator = num_worlds, generator

    def uniform(self, size: int, bound: float = 1.0) -> Tensor:
        """[N, size] in [-bound, bound)."""
        draw = torch.rand(self._num_worlds, size, generator=self._generator, device=self._generator.device)
        return bound * (2 * draw - 1)

    def normal(self, size: int, scale: float = 1.0) -> Tensor:
        """[N, size] from a normal distribution of mean 0."""
        draw = torch.randn(self._num_worlds, size, generator=self._generator, device=self._generator.device)
        return scale * draw


class Task:
    """What an episode of N worlds begins with, what is observed and rewarded, and where it terminates.

    Class attributes that are numbers, texts or ranges are options: `Task(name=value)` replaces them. The tensors that
    the functions return may share memory with the simulator; they must not be written into.
    """

    xml_file: str
    """the model: a file as Gymnasium finds it (beside its own, or a path that begins with `.`, `/` or `~`), or XML"""
    frame_skip: int = 1
    """physics steps in one of the environment"""
    max_episode_steps: int = 1000
    """steps after which an episode is truncated"""
    nconmax: int = 32
    """contacts per world that there is room for: pairs of geoms that are near, on average over the worlds"""
    njmax: int = 64
    """rows of constraints per world that there is room for: four per contact with friction, one per limit"""
    reads: ClassVar[tuple[str, ...]] = ()
    """what the functions read of `Physics` beside qpos, qvel and ctrl: names of arrays of mujoco_warp.Data"""
    begins: ClassVar[tuple[str, ...] | None] = None
    """what of `reads` they read at the start of an episode too, where nothing else is up to date; by default all"""

    def __init__(self, **options: OptionValue) -> None:
        defaults = self.options()
        for name, value in options.items():
            if name not in defaults:
                raise ValueError(f"{type(self).__name__} has no option {name!r} (it has {', '.join(sorted(defaults))})")
            if not is_like(defaults[name], value) and not (name == "main_body" and isinstance(value, str)):
                raise ValueError(f"{name} is {value!r}, must be like its default {defaults[name]!r}")
            setattr(self, name, value)

    @classmethod
    def options(cls) -> dict[str, OptionValue]:
        """Return all options with their defaults."""
        found = {name: value for kind in reversed(cls.__mro__) for name, value in vars(kind).items()}
        kinds = (bool, int, float, str, tuple)
        return {
            k: v
            for k, v in found.items()
            if isinstance(v, kinds) and not k.startswith("_") and k not in ("reads", "begins")
        }

    def model(self) -> Any:
        """Return the mujoco.MjModel where it is made by other means than from `xml_file`; else None."""
        return None

    def memory(self, physics: Physics) -> dict[str, Tensor]:
        """Return [N, ...] tensors that the task keeps beside the state: a goal, a stage. Called once, before all else.

        They become attributes of `physics`. An episode begins with what they are here, or what `start` says; `reward`
        may write into them.
        """
        return {}

    def start(self, physics: Physics, draws: Draws) -> dict[str, Tensor]:
        """Return how N episodes begin: "qpos" [N, nq], "qvel" [N, nv], and what of `memory` differs between them.

        What is left out is as in the model.
        """
        return {}

    def observe(self, physics: Physics) -> Tensor:
        """[N, D]."""
        return torch.cat([physics.qpos, physics.qvel], 1)

    def position(self, physics: Physics) -> Tensor:
        """[N, k] whose velocity `reward` is given."""
        return physics.qpos[:, :0]

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """[N] of the step that has led here; velocity [N, k] is how much `position` has changed, per second."""
        raise NotImplementedError

    def terminated(self, physics: Physics) -> Tensor:
        """[N] bool."""
        return torch.zeros_like(physics.qpos[:, 0], dtype=torch.bool)

    def metrics(self, physics: Physics) -> dict[str, Tensor]:
        """[N] tensors beside the reward; `success` is bool."""
        return {}


def is_like(default: OptionValue, value: Any) -> bool:
    """Whether a value may replace a default: texts, booleans, whole numbers, numbers and pairs of numbers."""
    if isinstance(default, tuple):
        return isinstance(value, tuple | list) and len(value) == 2 and all(is_like(0.0, bound) for bound in value)
    if isinstance(default, bool) or isinstance(value, bool) or isinstance(default, str):
        return type(value) is type(default)
    return isinstance(value, int if isinstance(default, int) else int | float)


def flat(rows: Tensor) -> Tensor:
    """[N, ...] to [N, D]."""
    return rows.reshape(len(rows), -1)


def inside(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Whether values are between two bounds, these left out."""
    return (bounds[0] < values) & (values < bounds[1])


class Noisy(Task):
    """Begins in the model's pose, at rest, each coordinate with noise."""

    reset_noise_scale = 5e-3
    _normal_velocity = False  # whether the noise of the velocity is normal, not uniform

    def start(self, physics: Physics, draws: Draws) -> dict[str, Tensor]:
        """Pose and velocity with noise."""
        scale = self.reset_noise_scale
        qpos = physics.qpos0 + draws.uniform(physics.model.nq, scale)
        draw = draws.normal if self._normal_velocity else draws.uniform
        return {"qpos": qpos, "qvel": draw(physics.model.nv, scale)}


class Mover(Noisy):
    """Is observed without its position, and pays for control."""

    ctrl_cost_weight = 1e-3
    exclude_current_positions_from_observation = True
    _hidden = 1  # coordinates of the position that is left out

    def pose(self, physics: Physics) -> Tensor:
        """[N, nq] or less: what of qpos is observed."""
        return physics.qpos[:, self._hidden if self.exclude_current_positions_from_observation else 0 :]

    def observe(self, physics: Physics) -> Tensor:
        """Pose and velocity."""
        return torch.cat([self.pose(physics), physics.qvel], 1)

    def effort(self, physics: Physics) -> Tensor:
        """[N] cost of control."""
        return self.ctrl_cost_weight * physics.ctrl.square().sum(1)


class Runner(Mover):
    """Is paid for its speed along x."""

    forward_reward_weight = 1.0

    def position(self, physics: Physics) -> Tensor:
        """X."""
        return physics.qpos[:, :1]

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Speed less effort."""
        return self.forward_reward_weight * velocity[:, 0] - self.effort(physics)


class HalfCheetah(Runner):
    """Runs, and may fall."""

    xml_file = "half_cheetah.xml"
    frame_skip = 5
    nconmax, njmax = 16, 48
    ctrl_cost_weight = 0.1
    reset_noise_scale = 0.1
    _normal_velocity = True


class Swimmer(Runner):
    """Swims in a plane."""

    xml_file = "swimmer.xml"
    frame_skip = 4
    nconmax, njmax = 8, 16
    ctrl_cost_weight = 1e-4
    reset_noise_scale = 0.1
    _hidden = 2


class Walker(Runner):
    """A runner that is paid for staying upright, and may end where it does not."""

    healthy_reward = 1.0
    terminate_when_unhealthy = True

    def healthy(self, physics: Physics) -> Tensor:
        """[N] bool: whether it is upright."""
        raise NotImplementedError

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Speed and health less effort."""
        return super().reward(physics, velocity) + self.healthy_reward * self.healthy(physics)

    def terminated(self, physics: Physics) -> Tensor:
        """Where it is not healthy."""
        return ~self.healthy(physics) if self.terminate_when_unhealthy else super().terminated(physics)


class Hopper(Walker):
    """Hops on one leg."""

    xml_file = "hopper.xml"
    frame_skip = 4
    nconmax, njmax = 16, 48
    healthy_state_range = (-100.0, 100.0)
    healthy_z_range = (0.7, math.inf)
    healthy_angle_range = (-0.2, 0.2)

    def observe(self, physics: Physics) -> Tensor:
        """Pose and clipped velocity."""
        return torch.cat([self.pose(physics), physics.qvel.clamp(-10, 10)], 1)

    def healthy(self, physics: Physics) -> Tensor:
        """By height, angle, and everything else."""
        state = torch.cat([physics.qpos[:, 2:], physics.qvel], 1)
        return inside(state, self.healthy_state_range).all(1) & self.upright(physics)

    def upright(self, physics: Physics) -> Tensor:
        """[N] bool: by height and angle."""
        z, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        return inside(z, self.healthy_z_range) & inside(angle, self.healthy_angle_range)


class Walker2d(Walker):
    """Walks on two legs in a plane."""

    xml_file = "walker2d_v5.xml"
    frame_skip = 4
    nconmax, njmax = 16, 64
    healthy_z_range = (0.8, 2.0)
    healthy_angle_range = (-1.0, 1.0)

    observe = Hopper.observe

    def healthy(self, physics: Physics) -> Tensor:
        """By height and angle."""
        z, angle = physics.qpos[:, 1], physics.qpos[:, 2]
        return inside(z, self.healthy_z_range) & inside(angle, self.healthy_angle_range)


class Ant(Walker):
    """Runs on four legs.

    Where a leg is steep, MuJoCo Warp turns the friction pyramid of its contact with the floor (google-deepmind/mujoco
    issue 2774). That is as good a pyramid, but forces and what follows from them differ from C MuJoCo's in about every
    third step: scores can be compared, trajectories cannot. With `cone="elliptic"` in a model both agree.
    """

    xml_file = "ant.xml"
    frame_skip = 5
    nconmax, njmax = 24, 64
    ctrl_cost_weight = 0.5
    contact_cost_weight = 5e-4
    main_body = 1
    healthy_z_range = (0.2, 1.0)
    contact_force_range = (-1.0, 1.0)
    reset_noise_scale = 0.1
    include_cfrc_ext_in_observation = True
    reads = ("xpos", "cfrc_ext")
    _hidden = 2
    _normal_velocity = True

    def contact_forces(self, physics: Physics) -> Tensor:
        """[N, nbody, 6], clipped."""
        return physics.cfrc_ext.clamp(*self.contact_force_range)

    def observe(self, physics: Physics) -> Tensor:
        """Pose, velocity and clipped contact forces."""
        obs = super().observe(physics)
        if not self.include_cfrc_ext_in_observation:
            return obs
        return torch.cat([obs, flat(self.contact_forces(physics)[:, 1:])], 1)

    def position(self, physics: Physics) -> Tensor:
        """X of the torso, one physics step late."""
        return physics.xpos[:, physics.body(self.main_body), :1]

    def healthy(self, physics: Physics) -> Tensor:
        """By height."""
        z = physics.qpos[:, 2]
        return (self.healthy_z_range[0] <= z) & (z <= self.healthy_z_range[1])

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Speed and health less effort and contact."""
        contact = self.contact_cost_weight * flat(self.contact_forces(physics)).square().sum(1)
        return super().reward(physics, velocity) - contact


class Humanlike(Mover):
    """What the two humanoid tasks share: 348 numbers of observation.

    The models ask for MuJoCo's PGS solver, which MuJoCo Warp lacks; Newton's finds the same forces more exactly.
    """

    frame_skip = 5
    nconmax, njmax = 64, 128
    ctrl_cost_weight = 0.1
    reset_noise_scale = 1e-2
    include_cinert_in_observation = True
    include_cvel_in_observation = True
    include_qfrc_actuator_in_observation = True
    include_cfrc_ext_in_observation = True
    reads = ("cinert", "cvel", "qfrc_actuator", "cfrc_ext", "xipos")
    _hidden = 2

    def observe(self, physics: Physics) -> Tensor:
        """Pose, velocity, inertia and velocity of the bodies, forces of the joints and of contacts."""
        parts = [super().observe(physics)]
        if self.include_cinert_in_observation:
            parts.append(flat(physics.cinert[:, 1:]))
        if self.include_cvel_in_observation:
            parts.append(flat(physics.cvel[:, 1:]))
        if self.include_qfrc_actuator_in_observation:
            parts.append(physics.qfrc_actuator[:, 6:])
        if self.include_cfrc_ext_in_observation:
            parts.append(flat(physics.cfrc_ext[:, 1:]))
        return torch.cat(parts, 1)


class Humanoid(Humanlike, Walker):
    """Walks on two legs."""

    xml_file = "humanoid.xml"
    forward_reward_weight = 1.25
    contact_cost_weight = 5e-7
    contact_cost_range = (-math.inf, 10.0)
    healthy_reward = 5.0
    healthy_z_range = (1.0, 2.0)

    def position(self, physics: Physics) -> Tensor:
        """X of the centre of mass, one physics step late."""
        mass = physics.body_mass
        return ((physics.xipos[..., 0] * mass).sum(1) / mass.sum(-1))[:, None]

    def healthy(self, physics: Physics) -> Tensor:
        """By height."""
        return inside(physics.qpos[:, 2], self.healthy_z_range)

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Speed and health less effort and contact."""
        contact = self.contact_cost_weight * flat(physics.cfrc_ext).square().sum(1)
        return super().reward(physics, velocity) - contact.clamp(*self.contact_cost_range)


class HumanoidStandup(Humanlike):
    """Gets up from the floor."""

    xml_file = "humanoidstandup.xml"
    uph_cost_weight = 1.0  # read by nobody, as in Gymnasium
    impact_cost_weight = 0.5e-6
    impact_cost_range = (-math.inf, 10.0)

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Height, per second of a physics step, less effort and impact."""
        impact = self.impact_cost_weight * flat(physics.cfrc_ext).square().sum(1)
        costs = self.effort(physics) + impact.clamp(*self.impact_cost_range)
        return physics.qpos[:, 2] / physics.timestep - costs + 1


class InvertedPendulum(Noisy):
    """Balances a pole on a cart."""

    xml_file = "inverted_pendulum.xml"
    frame_skip = 2
    nconmax, njmax = 8, 16
    reset_noise_scale = 0.01

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """1 as long as the pole stands."""
        return (~self.terminated(physics)).to(physics.qpos)

    def terminated(self, physics: Physics) -> Tensor:
        """By the angle."""
        return physics.qpos[:, 1].abs() > 0.2


class InvertedDoublePendulum(Noisy):
    """Balances a pole on a pole on a cart."""

    xml_file = "inverted_double_pendulum.xml"
    frame_skip = 5
    nconmax, njmax = 8, 16
    healthy_reward = 10.0
    reset_noise_scale = 0.1
    reads = ("site_xpos", "qfrc_constraint")
    _normal_velocity = True

    def observe(self, physics: Physics) -> Tensor:
        """Position, sine and cosine of the angles, clipped velocity, clipped force of the rail's end."""
        x, angles = physics.qpos[:, :1], physics.qpos[:, 1:]
        forces = physics.qfrc_constraint[:, :1].clamp(-10, 10)
        return torch.cat([x, angles.sin(), angles.cos(), physics.qvel.clamp(-10, 10), forces], 1)

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Health less the distance of the tip from above the middle, and the speed of the poles."""
        x, _, y = physics.site_xpos[:, 0].unbind(1)
        _, first, second = physics.qvel.unbind(1)
        distance = 0.01 * x.square() + (y - 2).square()
        speed = 1e-3 * first.square() + 5e-3 * second.square()
        return self.healthy_reward * ~self.terminated(physics) - distance - speed

    def terminated(self, physics: Physics) -> Tensor:
        """By the height of the tip, one physics step late."""
        return physics.site_xpos[:, 0, 2] <= 1


class Reacher(Task):
    """Brings the tip of an arm to a target."""

    xml_file = "reacher.xml"
    frame_skip = 2
    nconmax, njmax = 8, 16
    max_episode_steps = 50
    reward_dist_weight = 1.0
    reward_control_weight = 1.0
    reads = ("xpos",)

    def start(self, physics: Physics, draws: Draws) -> dict[str, Tensor]:
        """Nearly straight; the target anywhere in a disc. Gymnasium draws from a square until it hits the disc."""
        arm = physics.qpos0 + draws.uniform(physics.model.nq, 0.1)
        radius, angle = (0.5 * draws.uniform(2) + 0.5).unbind(1)
        radius, angle = 0.2 * radius.sqrt(), 2 * math.pi * angle
        goal = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        qvel = draws.uniform(physics.model.nv, 0.005)
        return {"qpos": torch.cat([arm[:, :-2], goal], 1), "qvel": torch.cat([qvel[:, :-2], 0 * goal], 1)}

    def to_target(self, physics: Physics) -> Tensor:
        """[N, 3] from the target to the tip."""
        return physics.xpos[:, physics.body("fingertip")] - physics.xpos[:, physics.body("target")]

    def observe(self, physics: Physics) -> Tensor:
        """Cosine and sine of the joints, target, velocity, distance."""
        angles = physics.qpos[:, :2]
        parts = [angles.cos(), angles.sin(), physics.qpos[:, 2:], physics.qvel[:, :2], self.to_target(physics)[:, :2]]
        return torch.cat(parts, 1)

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Less the distance and the effort."""
        distance = self.reward_dist_weight * self.to_target(physics).norm(dim=1)
        return -distance - self.reward_control_weight * physics.ctrl.square().sum(1)


class Pusher(Task):
    """Pushes a cylinder to a goal.

    Where the arm touches it, MuJoCo Warp may find other points of contact than C MuJoCo: errors of 1e-3, not of 1e-6.
    """

    xml_file = "pusher_v5.xml"
    frame_skip = 5
    nconmax, njmax = 16, 48
    max_episode_steps = 100
    reward_near_weight = 0.5
    reward_dist_weight = 1.0
    reward_control_weight = 0.1
    reads = ("xpos",)

    _tries = 32  # of which each hits with a probability of 0.62

    def start(self, physics: Physics, draws: Draws) -> dict[str, Tensor]:
        """At rest but for noise; the cylinder anywhere in a rectangle, 0.17 or more from the goal at its edge."""
        x = 0.15 * draws.uniform(self._tries) - 0.15
        y = draws.uniform(self._tries, 0.2)
        first = (x.square() + y.square() > 0.17**2).long().argmax(1, keepdim=True)
        place = torch.cat([x.gather(1, first), y.gather(1, first)], 1)
        arm = physics.qpos0[:-4].expand(len(place), -1)
        qvel = draws.uniform(physics.model.nv, 0.005)[:, :-4]
        return {"qpos": torch.cat([arm, place, 0 * place], 1), "qvel": torch.cat([qvel, 0 * place, 0 * place], 1)}

    def observe(self, physics: Physics) -> Tensor:
        """Joints, their velocity, tip, cylinder, goal."""
        bodies = [physics.xpos[:, physics.body(name)] for name in ("tips_arm", "object", "goal")]
        return torch.cat([physics.qpos[:, :7], physics.qvel[:, :7], *bodies], 1)

    def reward(self, physics: Physics, velocity: Tensor) -> Tensor:
        """Less the distances from tip to cylinder and from cylinder to goal, and the effort."""
        tip, cylinder, goal = (physics.xpos[:, physics.body(name)] for name in ("tips_arm", "object", "goal"))
        near = self.reward_near_weight * (cylinder - tip).norm(dim=1)
        far = self.reward_dist_weight * (cylinder - goal).norm(dim=1)
        return -far - self.reward_control_weight * physics.ctrl.square().sum(1) - near


TASKS: dict[str, type[Task]] = {
    "Ant-v5": Ant,
    "HalfCheetah-v5": HalfCheetah,
    "Hopper-v5": Hopper,
    "Humanoid-v5": Humanoid,
    "HumanoidStandup-v5": HumanoidStandup,
    "InvertedDoublePendulum-v5": InvertedDoublePendulum,
    "InvertedPendulum-v5": InvertedPendulum,
    "Pusher-v5": Pusher,
    "Reacher-v5": Reacher,
    "Swimmer-v5": Swimmer,
    "Walker2d-v5": Walker2d,
}
