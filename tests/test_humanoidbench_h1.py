"""HumanoidBench's scenes built from EnvPool's H1: against the stripped ones, array by array, and on their own.

That steps are those of the real benchmark is in `test_humanoidbench.py`.
"""

import gzip
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch

import envs
from envs import humanoidbench_h1, humanoidbench_scenes
from envs.base import TaskError
from envs.check import draw_actions, examine
from envs.humanoidbench_h1 import build, find_robot, foot
from envs.humanoidbench_scenes import hull, load_scene
from envs.humanoidbench_tasks import TASKS

DATA = Path(__file__).resolve().parents[2] / "shared" / "humanoidbench"
ROBOT = find_robot()

needs_scenes = pytest.mark.skipif(not DATA.is_dir(), reason=f"the stripped scenes are not in {DATA}")
needs_robot = pytest.mark.skipif(ROBOT is None, reason=f"EnvPool's H1 is not installed: {humanoidbench_h1.INSTALL}")


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache, without a scene."""
    monkeypatch.setenv("SEMRL_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log there when a simulation blows up
    return tmp_path / "humanoidbench"


# ---- against the stripped scenes -------------------------------------------------------------------------------------

OPTIONS = (
    *("timestep", "impratio", "tolerance", "ls_tolerance", "noslip_tolerance", "ccd_tolerance", "gravity", "wind"),
    *("magnetic", "density", "viscosity", "o_margin", "o_solref", "o_solimp", "o_friction", "integrator", "cone"),
    *("jacobian", "solver", "iterations", "ls_iterations", "noslip_iterations", "ccd_iterations", "disableflags"),
    *("enableflags", "disableactuator"),
)
MOVING = (
    *("qpos0", "qpos_spring", "key_qpos", "key_qvel", "jnt_type", "jnt_pos", "jnt_axis", "jnt_stiffness", "jnt_range"),
    *("jnt_limited", "jnt_margin", "jnt_solref", "jnt_solimp", "jnt_actfrclimited", "jnt_qposadr", "jnt_dofadr"),
    *("dof_damping", "dof_armature", "dof_frictionloss", "dof_invweight0", "dof_M0", "dof_solref", "dof_solimp"),
    *("actuator_gainprm", "actuator_biasprm", "actuator_gaintype", "actuator_biastype", "actuator_dyntype"),
    *("actuator_ctrlrange", "actuator_ctrllimited", "actuator_forcerange", "actuator_forcelimited", "actuator_gear"),
    *("actuator_trntype", "actuator_trnid", "actuator_acc0", "exclude_signature"),
)
BODY = ("mass", "inertia", "ipos", "iquat", "pos", "quat", "invweight0", "gravcomp", "jntnum", "dofnum", "subtreemass")
GEOM = (
    "type",
    "contype",
    "conaffinity",
    "condim",
    "friction",
    "solref",
    "solimp",
    "margin",
    "gap",
    "priority",
    "solmix",
)
FEET = ("left_ankle_link", "right_ankle_link")


def close(one: Any, other: Any) -> bool:
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-5, atol=1e-7)


def corners(model: Any, geom: int) -> np.ndarray:
    """[V, 3] of the hull of a mesh, in the frame of its body: where the mesh has its own is no matter of physics."""
    mesh = model.geom_dataid[geom]
    rotation, turn = np.empty(9), np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.mesh_quat[mesh])
    mujoco.mju_quat2Mat(turn, model.geom_quat[geom])
    own = (hull(model, mesh) - model.mesh_pos[mesh]) @ rotation.reshape(3, 3)
    return own @ turn.reshape(3, 3).T + model.geom_pos[geom]


def reach(points: np.ndarray) -> np.ndarray:
    """[2000] how far a convex shape goes in each of some directions, m: all that there is to know of it."""
    directions = np.random.default_rng(0).normal(size=(2000, 3))
    return (points @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T).max(0)


@needs_scenes
@needs_robot
@pytest.mark.parametrize("task", TASKS)
def test_a_built_scene_is_the_stripped_one(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every number that makes things move."""
    monkeypatch.setenv("SEMRL_CACHE", str(DATA.parent))
    ours, theirs = build(find_robot() or Path(), task), load_scene("h1", task)
    for name in OPTIONS:
        assert close(getattr(ours.opt, name), getattr(theirs.opt, name)), name
    for name in MOVING:
        assert close(getattr(ours, name), getattr(theirs, name)), name
    assert (ours.neq, ours.npair, ours.ntendon, ours.nkey) == (theirs.neq, theirs.npair, theirs.ntendon, theirs.nkey)
    assert close(ours.stat.meaninertia, theirs.stat.meaninertia)  # which the solver scales its tolerance by

    moving = [[model.body(i).name for i in range(model.nbody) if model.body_weldid[i]] for model in (ours, theirs)]
    assert moving[0] == moving[1]
    for name in moving[0]:
        one, other = ours.body(name).id, theirs.body(name).id
        for field in BODY:
            assert close(getattr(ours, f"body_{field}")[one], getattr(theirs, f"body_{field}")[other]), (name, field)
        assert ours.body(ours.body_parentid[one]).name == theirs.body(theirs.body_parentid[other]).name
    for name in ("head", "imu", "left_foot", "right_foot", "left_hand", "right_hand", "com"):
        one, other = ours.site(name), theirs.site(name)
        assert ours.body(one.bodyid[0]).name == theirs.body(other.bodyid[0]).name
        assert close(one.pos, other.pos) and close(one.quat, other.quat)
    one, other = (model.sensor("pelvis_subtreelinvel") for model in (ours, theirs))
    for field in ("type", "objtype", "objid", "dim", "cutoff"):
        assert close(getattr(one, field), getattr(other, field)), field


@needs_scenes
@needs_robot
@pytest.mark.parametrize("task", TASKS)
def test_what_collides_has_the_same_shape(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same order and place, with the same names. The feet come near: 20 of their corners are not equal."""
    monkeypatch.setenv("SEMRL_CACHE", str(DATA.parent))
    models = build(find_robot() or Path(), task), load_scene("h1", task)
    states = []
    for model in models:
        states.append(mujoco.MjData(model))
        mujoco.mj_resetDataKeyframe(model, states[-1], 0)
        mujoco.mj_forward(model, states[-1])
    ours, theirs = models
    assert ours.ngeom == theirs.ngeom
    for geom in range(ours.ngeom):
        assert ours.geom(geom).name == theirs.geom(geom).name
        for field in GEOM:
            assert close(*(getattr(model, f"geom_{field}")[geom] for model in models)), (geom, field)
        if ours.geom_type[geom] != mujoco.mjtGeom.mjGEOM_MESH:
            assert close(ours.geom_size[geom], theirs.geom_size[geom])
            for field in ("geom_xpos", "geom_xmat"):
                assert np.allclose(*(getattr(state, field)[geom] for state in states), atol=1e-6), (geom, field)
            continue
        off = np.abs(reach(corners(ours, geom)) - reach(corners(theirs, geom)))
        if ours.body(ours.geom_bodyid[geom]).name in FEET:
            assert off.max() < 5e-5 and np.quantile(off, 0.9) < 1e-6
        else:
            assert off.max() < 2e-6  # the stripped ones are rounded to six digits


# ---- on their own ----------------------------------------------------------------------------------------------------


@needs_robot
@pytest.mark.parametrize("task", TASKS)
def test_every_task_runs_without_a_scene_of_ones_own(task: str, empty: Path) -> None:
    env = envs.make(f"h1-{task}-v0", 3, seed=1)
    assert env.backend == "humanoidbench" and env.action_space.shape == (19,)
    obs, _ = env.reset()
    assert obs.isfinite().all() and abs(obs[:, 2].mean() - (1.38 if "balance" in task else 0.98)) < 0.01
    lowest = []
    for action in draw_actions(env, 25, 0):
        step = env.step(0.5 * action)
        assert step.valid.all() and step.next_obs.isfinite().all() and step.reward.isfinite().all()
        lowest.append(step.next_obs[:, 2].min())
    assert torch.stack(lowest).min() > 0.05  # nothing has sunk into the ground
    env.close()
    assert not empty.exists()


@needs_robot
@pytest.mark.parametrize("task", ["walk", "balance_hard"])
def test_contract(task: str, empty: Path) -> None:
    def make(num_envs: int, seed: int) -> Any:
        return envs.make(f"h1-{task}-v0", num_envs, seed, max_episode_steps=9)

    assert examine(make, 12, num_envs=2).violations == []


@needs_robot
def test_the_robot_stands_on_its_feet(empty: Path) -> None:
    """Held where it is, by its actuators in the pose of the keyframe, for half a second."""
    model = load_scene("h1", "stand")
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.ctrl[:] = data.qpos[7:]
    mujoco.mj_step(model, data, 250)
    touching = {model.body(model.geom_bodyid[pair[1]]).name for pair in data.contact.geom}
    assert touching <= set(FEET) and touching
    assert data.body("torso_link").xmat[8] > 0.95 and data.site("head").xpos[2] - data.site("left_foot").xpos[2] > 0.9
    assert np.abs(data.qpos[7:] - model.key_qpos[0, 7:]).max() < 0.3


@needs_robot
def test_what_building_took_is_given_back(empty: Path) -> None:
    load_scene("h1", "walk")
    assert mujoco.mj_getCacheSize(mujoco.mj_getCache()) == 0


def test_a_foot_is_a_blade_below_a_joint() -> None:
    points = foot(0)
    assert np.allclose(points.min(0), (-0.1, -0.015, -0.07), atol=1e-7)
    assert np.allclose(points.max(0), (0.2, 0.015, 0.011 * math.cos(math.radians(5))), atol=1e-7)
    sole = points[points[:, 2] < -0.07 + 1e-7]
    assert sorted(map(tuple, sole.round(4).tolist())) == [
        (x, y, -0.07) for x in (-0.0947, 0.1944) for y in (-0.012, 0.012)
    ]
    spec = mujoco.MjSpec()
    spec.add_mesh(name="foot", uservert=points.ravel())
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="foot")
    assert len(hull(spec.compile(), 0)) == 908


def test_a_nudge_moves_seven_corners_outwards() -> None:
    moved = foot(1e-6) - foot(0)
    rows = np.abs(moved).max(1) > 0
    assert rows.sum() == 7 and np.linalg.norm(moved, axis=1).max() == pytest.approx(2e-6)
    outwards = np.sign(foot(0)[rows, 1]) * moved[rows, 1]
    assert (moved[rows, 2] < 0).all() and (outwards >= 0).all() and (moved[:, 0] == 0).all()


# ---- which scene is taken, and what is said where there is none ------------------------------------------------------

SMALL = """<mujoco><worldbody><geom name="floor" type="plane" size="1 1 1"/><body name="pelvis" pos="0 0 1"><freejoint/>
<geom size=".1"/></body></worldbody><keyframe><key qpos="0 0 1 1 0 0 0"/></keyframe></mujoco>"""


@needs_robot
def test_a_scene_in_the_cache_comes_first(empty: Path) -> None:
    assert load_scene("h1", "run").nv == 25
    empty.mkdir()
    (empty / "h1_pos_run.xml.gz").write_bytes(gzip.compress(SMALL.encode()))
    assert load_scene("h1", "run").nv == 6 and load_scene("h1", "walk").nv == 25
    (empty / "h1_pos_run.xml.gz").write_bytes(b"nothing")
    with pytest.raises(TaskError, match="Not a gzipped file"):  # and is not replaced in silence
        load_scene("h1", "run")


def test_a_folder_of_ones_own_is_all_that_counts(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"h1_pos_walk, which is not in .*; `python -m envs"):
        load_scene("h1", "walk", str(tmp_path))


@pytest.mark.parametrize("robot", ["h1", "h1hand"])
def test_without_envpool_the_message_says_both_ways(robot: str, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humanoidbench_h1, "find_spec", lambda name: None)
    with pytest.raises(TaskError) as error:
        envs.make(f"{robot}-walk-v0", 2)
    message = str(error.value)
    assert "\n" not in message and f"{robot}_pos_walk" in message and str(empty) in message
    assert "`python -m envs.humanoidbench_scenes --from DIR`" in message
    assert ("`pip install envpool`" in message) == (robot == "h1")  # the hands are not in EnvPool's assets


@pytest.mark.parametrize(
    ("text", "message"),
    [(SMALL, "it is not the H1 of MuJoCo Menagerie"), ("<mujoco>", "XML")],
)
def test_another_robot_is_refused(
    text: str, message: str, empty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "h1.xml"
    path.write_text(text)
    monkeypatch.setattr(humanoidbench_h1, "find_robot", lambda: path)
    with pytest.raises(TaskError, match=message) as error:
        load_scene("h1", "walk")
    assert str(error.value).startswith(f"{path} is unusable (") and "\n" not in str(error.value)
    assert humanoidbench_scenes.COMMAND in str(error.value)


def test_the_robot_is_found_without_loading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(part: Callable[[Path], None]) -> None:
        package = tmp_path / humanoidbench_h1.ASSETS
        package.mkdir(exist_ok=True)
        part(package)

    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, humanoidbench_h1.ASSETS, raising=False)
    assert find_robot() is None
    installed(lambda package: package.joinpath("__init__.py").write_text("raise ImportError") and None)
    assert find_robot() is None  # an edition without it
    file = tmp_path / humanoidbench_h1.ASSETS / humanoidbench_h1.ROBOT
    file.parent.mkdir(parents=True)
    file.write_text("")
    assert find_robot() == file
