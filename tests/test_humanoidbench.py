"""HumanoidBench, native: against recordings of the real one, a transcription world by world, and scenes made here.

The recordings and the scenes that go with them are no part of this repository: what needs them is skipped where they
are not. Everything else runs on scenes of a few boxes that have all that the tasks look at.
"""

import concurrent.futures
import gzip
import io
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from scipy.stats import ks_2samp

import envs
from envs import humanoidbench, humanoidbench_h1, humanoidbench_scenes, humanoidbench_warp
from envs.base import Step, TaskError, spawn_seeds
from envs.check import examine
from envs.humanoidbench import HumanoidBench
from envs.humanoidbench_scenes import find_scene, main, make_scene, strip
from envs.humanoidbench_tasks import ROBOTS, TASKS, gaussian, linear, outside, quadratic

pytestmark = pytest.mark.filterwarnings("ignore:MULTICCD is enabled")  # of poles, in MuJoCo Warp
CPU = torch.device("cpu")
DATA = Path(__file__).resolve().parents[2] / "shared" / "humanoidbench"
RECORDED = {"3.11": DATA / "trajectories_mujoco-3.11.npz", "4.0": DATA / "trajectories_mujoco-4.0.npz"}
RECORDING = RECORDED.get(".".join(mujoco.__version__.split(".")[:2]))
ORIGINAL = os.environ.get("HUMANOIDBENCH", "")

needs_scenes = pytest.mark.skipif(not DATA.is_dir(), reason=f"the stripped scenes are not in {DATA}")
needs_recording = pytest.mark.skipif(
    RECORDING is None or not RECORDING.is_file(),
    reason=f"{DATA} has no trajectories recorded with MuJoCo {mujoco.__version__}",
)
needs_robot = pytest.mark.skipif(
    humanoidbench_h1.find_robot() is None, reason=f"EnvPool's H1 is not installed: {humanoidbench_h1.INSTALL}"
)
needs_warp = pytest.mark.skipif(
    not find_spec("mujoco_warp"), reason="MuJoCo Warp is not installed: pip install 'semrl[mjwarp]'"
)
needs_original = pytest.mark.skipif(
    not ORIGINAL, reason="the variable HUMANOIDBENCH names no checkout of carlosferrazza/humanoid-bench"
)

# From HumanoidBench's own code: return that counts as success, time limit, numbers observed with h1, and terms below.
UPSTREAM = {
    "stand": (800, 1000, 51),
    "walk": (700, 1000, 51),
    "run": (700, 1000, 51),
    "hurdle": (700, 1000, 51),
    "maze": (1200, 1000, 51),
    "crawl": (700, 1000, 51),
    "stair": (700, 1000, 51),
    "slide": (700, 1000, 51),
    "pole": (700, 1000, 51),
    "sit_simple": (750, 1000, 51),
    "sit_hard": (750, 1000, 64),
    "balance_simple": (800, 1000, 64),
    "balance_hard": (800, 1000, 77),
    "reach": (12000, 1000, 57),
    "push": (700, 500, 63),
}
UNRECORDED = [(robot, task) for robot in ROBOTS for task in ("slide", "pole", "reach", "push")]


# ---- scenes of a few boxes -------------------------------------------------------------------------------------------

BEFORE = {
    "hurdle": """
        <body name="left"><geom name="left_barrier_collision" type="box" pos="3 -1 1" size="9 .1 1"/></body>
        <body name="right"><geom name="right_barrier_collision" type="box" pos="3 1 1" size="9 .1 1"/></body>
        <body name="behind"><geom name="behind_barrier_collision" type="box" pos="-1 0 1" size=".1 1 1"/></body>
        <body name="hurdle"><geom type="box" pos=".6 0 .2" size=".1 .5 .2"/></body>""",
    "maze": """
        <body name="maze">
          <geom name="block_collision_00" type="box" pos="1 .9 .6" size="9 .2 .6"/>
          <geom name="block_collision_01" type="box" pos="1 -.9 .6" size="9 .2 .6"/>
        </body>""",
    "pole": """
        <body name="poles">
          <geom name="pole_r1_c1" type="cylinder" pos=".5 .4 1" size=".05 1"/>
          <geom name="pole_r1_c2" type="cylinder" pos=".5 -.4 1" size=".05 1"/>
          <geom name="left_barrier" type="box" pos="3 -1 1" size="9 .1 1"/>
        </body>""",
    "sit_simple": """
        <body name="chair" pos="-.25 0 0"><geom type="box" pos="0 0 .2" size=".2 .2 .2"/></body>""",
    "sit_hard": """
        <body name="chair" pos="-.25 0 0"><freejoint/><geom type="box" pos="0 0 .2" size=".2 .2 .2"/></body>""",
    "balance_simple": """
        <body name="stand_board" pos="0 0 .37"><freejoint/>
          <geom name="stand_board_collision" type="box" size=".15 .5 .03"/>
          <geom name="pivot_sphere_collision" type="sphere" pos="0 0 -.2" size=".17"/>
        </body>""",
    "balance_hard": """
        <body name="stand_board" pos="0 0 .37"><freejoint/>
          <geom name="stand_board_collision" type="box" size=".15 .5 .03"/></body>
        <body name="rolling_pivot" pos="0 0 .17"><freejoint/>
          <geom name="pivot_sphere_collision" type="sphere" size=".17"/></body>""",
    "push": """
        <body name="table"><geom type="box" pos=".9 0 .85" size=".5 1 .05"/></body>
        <body name="object" pos=".7 0 1"><freejoint name="free_object"/><geom type="box" size=".1 .1 .1"/></body>""",
}
FREE = {"sit_hard": "-.25 0 0 1 0 0 0", "balance_simple": "0 0 .37 1 0 0 0", "push": ".7 0 1 1 0 0 0"}
FREE["balance_hard"] = f"{FREE['balance_simple']} 0 0 .17 1 0 0 0"
SCENE = """
<mujoco>
  <option timestep="0.002" iterations="20"/>
  <worldbody>
    <geom name="floor" type="plane" size="20 20 1"/>
    <body name="pelvis" pos="0 0 1"><freejoint/>
      <geom type="box" size=".08 .12 .08" mass="6"/>
      <geom type="box" pos="0 .1 -.5" size=".06 .04 .42" mass="2"/>
      <geom type="box" pos="0 -.1 -.5" size=".06 .04 .42" mass="2"/>
      <site name="imu"/><site name="left_foot" pos="0 .1 -.92"/><site name="right_foot" pos="0 -.1 -.9"/>
      <body name="torso_link" pos="0 0 .2"><joint name="waist" axis="0 1 0" damping="1" range="-90 90"/>
        <geom type="box" pos="0 0 .2" size=".08 .1 .15" mass="4"/><site name="head" pos="0 0 .47"/>
        <body name="arm" pos="0 .15 .3"><joint name="shoulder" axis="0 1 0" damping="1" range="-90 90"/>
          <geom type="capsule" fromto="0 0 0 .4 0 0" size=".03" mass="1"/><site name="left_hand" pos=".42 0 0"/>
        </body>
      </body>
    </body>{objects}
  </worldbody>
  <actuator>
    <position joint="waist" kp="60" ctrlrange="-1 .5" forcerange="-30 30"/>
    <position joint="shoulder" kp="20" ctrlrange="-1.5 1" forcerange="-9 9"/>
  </actuator>
  <sensor><velocimeter site="imu"/><subtreelinvel name="pelvis_subtreelinvel" body="pelvis"/></sensor>
  <keyframe><key qpos="0 0 .98 1 0 0 0 .1 -.2 {free}"/></keyframe>
</mujoco>"""


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of scenes for all tasks of h1, each a few boxes."""
    folder = tmp_path_factory.mktemp("boxes")
    for task in TASKS:
        text = SCENE.format(objects=BEFORE.get(task, ""), free=FREE.get(task, ""))
        (folder / f"h1_pos_{task}.xml").write_text(text)
    return folder


@pytest.fixture
def make(boxes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that makes a task on its boxes, two threads, without a time limit that matters."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log there when a simulation blows up

    def make(task: str, num_envs: int = 3, seed: int = 5, backend: str = "humanoidbench", **options: Any) -> Any:
        threads = {"num_threads": 2} if backend == "humanoidbench" else {}
        options = {"scenes": str(boxes), "max_episode_steps": 10**6} | threads | options
        return envs.make(f"h1-{task}-v0", num_envs, seed, backend=backend, **options)

    return make


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMRL_CACHE", str(DATA.parent))


def actions(env: Any, count: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = env.num_envs, *env.action_space.shape
    return [scale * (2 * torch.rand(size, generator=generator) - 1) for _ in range(count)]


def same(one: Step, other: Step) -> bool:
    pairs = zip(one[:-1], other[:-1], strict=True)
    return all(torch.equal(a, b) for a, b in pairs) and torch.equal(one.metrics["success"], other.metrics["success"])


# ---- the tasks, once more, one world at a time, as HumanoidBench's code reads ----------------------------------------


def tolerance(x: float, low: float = 0, high: float = 0, margin: float = 0, sigmoid: str = "gaussian") -> float:
    """dm_control's, with the value at the margin that HumanoidBench gives it: 0.1 for gaussian, else 0."""
    if low <= x <= high:
        return 1.0
    if margin == 0:
        return 0.0
    d = (low - x if x < low else x - high) / margin
    if sigmoid == "gaussian":
        return math.exp(-0.5 * (d * math.sqrt(-2 * math.log(0.1))) ** 2)
    return 0.0 if abs(d) >= 1 else 1 - d if sigmoid == "linear" else 1 - d**2


class World:
    """One world: steps it, and says what HumanoidBench would."""

    def __init__(self, model: Any, task: str) -> None:
        self.model, self.task, self.data = model, task, mujoco.MjData(model)
        self.goal, self.stage, self.direction = np.zeros(3), 0, (1, 0)
        self.dof = model.nq - (7 if task == "push" else 0)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool]:
        low, high = self.model.actuator_ctrlrange.astype(np.float32).T
        self.data.ctrl[:] = (action + 1) / 2 * (high - low) + low
        mujoco.mj_step(self.model, self.data, 10)
        obs, reward = self.obs(), float(self.reward())
        return obs, reward, bool(self.terminated())

    def obs(self) -> np.ndarray:
        d, hand = self.data, self.data.site("left_hand").xpos if self.task in ("reach", "push") else None
        if hand is None:
            return np.concatenate([d.qpos, d.qvel])
        robot = [d.qpos[: self.dof], d.qvel[: self.dof - 1], hand, self.goal]
        return np.concatenate(robot if self.task == "reach" else [*robot, d.qpos[-7:-4], d.qvel[-6:-3]])

    def pairs(self) -> list[list[str]]:
        names = [self.model.geom(i).name for i in range(self.model.ngeom)]
        return [[names[i] for i in pair] for pair in self.data.contact.geom]

    def touches(self, *parts: str) -> bool:
        return any(part in name for pair in self.pairs() for name in pair for part in parts)

    def reward(self) -> float:
        d, task = self.data, self.task
        head, imu = d.site("head").xpos, d.site("imu").xpos
        up, velocity = d.body("torso_link").xmat[8], d.sensor("pelvis_subtreelinvel").data
        control = (4 + np.mean([tolerance(f, margin=10, sigmoid="quadratic") for f in d.actuator_force])) / 5
        still = (tolerance(velocity[0], margin=2) + tolerance(velocity[1], margin=2)) / 2

        def upright(low: float, margin: float = 1.9) -> float:
            return tolerance(up, low, math.inf, margin, "linear")

        def stand(low: float = 0.9, height: float = 1.65) -> float:
            return tolerance(head[2], height, math.inf, 1.65 / 4) * upright(low)

        def move(speed: float) -> float:
            return (5 * tolerance(velocity[0], speed, math.inf, speed, "linear") + 1) / 6

        if task == "stand":
            return control * stand() * still
        if task in ("walk", "run"):
            return control * stand() * move(1 if task == "walk" else 5)
        if task == "hurdle":
            return control * stand(0.8) * move(5) * (0.1 if self.touches("barrier_collision") else 1)
        if task == "pole":
            hit = any("floor" not in pair and any("pole_r" in name for name in pair) for pair in self.pairs())
            return (0.5 * control * stand() + 0.5 * move(0.5)) * (0.1 if hit else 1)
        if task in ("stair", "slide"):
            above = [head[2] - d.site(f"{side}_foot").xpos[2] for side in ("left", "right")]
            tall = tolerance(above[0], 1.2, math.inf, 0.45) * tolerance(above[1], 1.2, math.inf, 0.45)
            return tall * upright(0.5) * control * move(1)
        if task == "crawl":
            low = min(tolerance(imu[2], 0.6, 1.0, 1), tolerance(head[2], 0.6, 1.0, 1))
            prone = tolerance(np.linalg.norm(d.body("pelvis").xquat - np.array([0.75, 0, 0.65, 0])), margin=1)
            total = 0.1 * control + 0.25 * low + 0.4 * move(1) + 0.25 * prone
            return total * (1 if -1 <= imu[1] <= 1 else 0)
        if task in ("sit_simple", "sit_hard"):
            x, y = d.qpos[:2] - d.body("chair").xpos[:2]
            on_chair = tolerance(x, -0.19, 0.19, 0.2) * tolerance(y, margin=0.1)
            posture = tolerance(head[2] - imu[2], 0.35, 0.45, 0.3)
            sit = (0.5 * tolerance(d.qpos[2], 0.68, 0.72, 0.2) + 0.5 * on_chair) * upright(0.95, 0.9) * posture
            return control * sit * still
        if task in ("balance_simple", "balance_hard"):
            return control * stand(height=1.65 + 0.37) * still
        hand = d.site("left_hand").xpos
        if task == "reach":
            distance = math.dist(hand, self.goal)
            motion = np.sum(d.qvel**2)
            return 5 * d.xmat[1, -1] - 1e-4 * motion + (5 if distance < 1 else 0) + (10 if distance < 0.05 else 0)
        if task == "push":
            box = d.joint("free_object").qpos[:3]
            left = math.dist(box, self.goal)
            return -0.1 * math.dist(hand, box) - left + (1000 if left < 0.05 else 0)
        checkpoints = [(0, 0), (3, 0), (3, 6), (6, 6), (6, 6)]
        bonus = 0
        if math.dist(d.body("pelvis").xpos[:2], checkpoints[self.stage]) < 0.4 and self.stage < 4:
            self.direction = [(1, 0), (0, 1), (1, 0), (0, 1)][self.stage]
            self.stage += 1
            bonus = 100 * self.stage
        toward = [tolerance(velocity[i] - 2 * self.direction[i], margin=1, sigmoid="linear") for i in (0, 1)]
        go = (5 * (1 if self.stage == 4 else toward[0] * toward[1]) + 1) / 6
        near = tolerance(math.dist(checkpoints[self.stage], imu[:2]), margin=1)
        good = 0.2 * stand() * control + 0.4 * go + 0.4 * near
        return good * (0.1 if self.touches("block_collision") else 1) + bonus

    def terminated(self) -> bool:
        d, task = self.data, self.task
        if task in ("crawl", "reach"):
            return False
        if task in ("stair", "slide"):
            return d.body("torso_link").xmat[8] < 0.1
        if task == "push":
            return math.dist(d.joint("free_object").qpos[:3], self.goal) < 0.05
        if task in ("balance_simple", "balance_hard"):
            ball = "pivot_sphere_collision"
            bad = [{ball, "floor"} != {*pair} and {ball, "stand_board_collision"} != {*pair} for pair in self.pairs()]
            faults = [b for b, pair in zip(bad, self.pairs(), strict=True) if ball in pair or "floor" in pair]
            return d.qpos[2] < 0.8 or any(faults)
        return d.qpos[2] < {"pole": 0.5, "sit_simple": 0.5, "sit_hard": 0.5}.get(task, 0.2)


def place(env: Any, worlds: list[World], rng: np.random.Generator) -> None:
    """Put every world somewhere where something may happen, in both."""
    task, state = worlds[0].task, env._physics.state
    for row, world in enumerate(worlds):
        d = world.data
        d.qpos[:] = world.model.key_qpos[0] + rng.normal(0, 0.02, world.model.nq)
        d.qvel[:] = rng.normal(0, 0.3, world.model.nv)
        d.qvel[0] = rng.uniform(0, 6)
        d.qacc_warmstart[:] = 0
        if rng.random() < 0.4:  # anywhere, anyhow
            d.qpos[:3] += rng.uniform((-0.5, -1.2, -1.1), (0.5, 1.2, 0.4))
            d.qpos[3:7] = rng.normal(0, 1, 4)
        if task == "maze":
            world.stage = int(rng.integers(5))
            world.direction = [(1, 0), (1, 0), (0, 1), (1, 0), (0, 1)][world.stage]
            d.qpos[:2] += np.array([(0, 0), (3, 0), (3, 6), (6, 6), (6, 6)])[world.stage] + rng.uniform(-0.5, 0.5, 2)
            env._memory["stage"][row] = world.stage
        if task.startswith("sit"):
            d.qpos[:3] += np.array([-0.25, 0, -0.28]) + rng.normal(0, 0.1, 3)
        if task.startswith("balance"):
            d.qpos[2] += rng.choice([0.0, 0.32, 0.6])
        if task in ("reach", "push"):
            mujoco.mj_forward(world.model, d)
            target = d.site("left_hand").xpos if task == "reach" else d.joint("free_object").qpos[:3]
            world.goal = target + rng.normal(0, 1, 3) * rng.choice([0.01, 0.2, 1.0])
            env._memory["goal"][row] = torch.from_numpy(world.goal)
        for name, rows in state.items():
            rows[row] = getattr(d, name)


def follow(env: Any, task: str, rounds: int) -> list[tuple[float, bool]]:
    """Step all worlds from many states beside their transcription; return the rewards and terminations."""
    env.reset()
    model = env._physics.model
    worlds = [World(model, task) for _ in range(env.num_envs)]
    rng = np.random.default_rng(1)
    seen = []
    for action in actions(env, rounds):
        place(env, worlds, rng)
        step = env.step(action)
        assert step.valid.all() and not step.truncated.any()
        for row, world in enumerate(worlds):
            obs, reward, terminated = world.step(action[row].numpy())
            assert np.array_equal(step.next_obs[row], obs.astype(np.float32))
            assert step.reward[row] == pytest.approx(reward, rel=2e-6, abs=1e-9)
            assert step.terminated[row] == terminated
            if task == "maze" and not terminated:
                assert env._memory["stage"][row] == world.stage
            seen.append((reward, terminated))
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_tasks_are_those_of_the_transcription(task: str, make: Callable[..., Any]) -> None:
    env = make(task, 6)
    touched = []
    test = env._physics.touching
    env._physics.touching = lambda pairs: touched.append(test(pairs)) or touched[-1]
    seen = follow(env, task, 12)
    rewards, ends = np.array(seen).T
    assert len(set(rewards.round(4))) > 20  # else the states say little
    assert ends.any() != (task in ("crawl", "reach")) and not ends.all()
    if TASKS[task].contacts:  # else the discount or the fault was never seen, or nothing else
        assert torch.cat(touched).any() and not torch.cat(touched).all()
    if task == "maze":
        assert {int(r // 100) for r in rewards} == {0, 1, 2, 3, 4}
    if task == "reach":
        assert (rewards > 14).any() and ((rewards > 0) & (rewards < 10)).any()
    if task == "push":
        assert (rewards > 900).any() and (rewards < 0).any()
    if task == "crawl":
        assert (rewards == 0).any()
    env.close()


@needs_scenes
@pytest.mark.parametrize(("robot", "task"), UNRECORDED)
def test_tasks_without_a_recording_are_those_of_the_transcription(robot: str, task: str, data: None) -> None:
    env = envs.make(f"{robot}-{task}-v0", 4, backend="humanoidbench")
    assert env.obs_space.shape == (UPSTREAM[task][2] + (100 if robot == "h1hand" else 0),)
    assert env.action_space.shape == ({"h1": 19, "h1hand": 61}[robot],)
    follow(env, task, 5)
    env.close()


def test_shapes_of_rewards_are_those_of_dm_control() -> None:
    x = torch.linspace(-4, 6, 401, dtype=torch.float64)
    bounds = [(0.0, 0.0, 2.0), (-0.5, 1.5, 0.7), (1.0, math.inf, 1.9)]
    for sigmoid, shape in (("gaussian", gaussian), ("linear", linear), ("quadratic", quadratic)):
        for low, high, margin in bounds:
            expected = [tolerance(value, low, high, margin, sigmoid) for value in x.tolist()]
            actual = shape(outside(x, low, high) / margin)
            assert torch.allclose(actual, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


# ---- the real one ----------------------------------------------------------------------------------------------------


def recorded(task: str) -> dict[str, np.ndarray]:
    """All steps of the recorded episodes of a task: what of it is first, and the `stage` of the maze before each."""
    assert RECORDING is not None
    with np.load(RECORDING) as file:
        parts = [{key: file[f"{task}/{episode}/{key}"] for key in KEYS} for episode in (0, 1)]
    number = np.concatenate([np.arange(len(part["rew"])) for part in parts])
    steps = {key: np.concatenate([part[key] for part in parts]) for key in KEYS}
    return steps | {"first": number == 0, "stage": np.minimum(number, 1)}  # one begins at the first checkpoint


KEYS = ("qpos", "qvel", "warm", "act", "obs", "rew", "term")
IN_RECORDING = [f"h1-{task}" for task in UPSTREAM if ("h1", task) not in UNRECORDED] + ["h1hand-stand", "h1hand-walk"]


def resynchronised(task: str, episodes: dict[str, np.ndarray], **options: Any) -> Step:
    """One step from every recorded state, all at once."""
    env: Any = envs.make(f"{task}-v0", len(episodes["rew"]), backend="humanoidbench", **options)
    env.reset()
    for name, key in (("qpos", "qpos"), ("qvel", "qvel"), ("qacc_warmstart", "warm")):
        env._physics.state[name][:] = episodes[key]
    if "stage" in env._memory:
        env._memory["stage"] = torch.from_numpy(episodes["stage"])
    step = env.step(torch.from_numpy(episodes["act"]))
    env.close()
    return step


@needs_recording
def test_all_recordings_are_looked_at() -> None:
    assert RECORDING is not None
    with np.load(RECORDING) as file:
        assert {name.split("/")[0] for name in file} == set(IN_RECORDING)


def apart(step: Step, episodes: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How far rewards are off, and the same where nothing has moved elsewhere; terminations must be equal."""
    assert np.array_equal(step.terminated, episodes["term"])
    off = np.abs(step.reward.numpy() - episodes["rew"])
    alike = np.abs(step.next_obs.numpy() - episodes["obs"]).max(1) < 1e-4
    assert alike.mean() > 0.7
    return off, off[alike]


@needs_recording
@pytest.mark.parametrize("task", IN_RECORDING)
def test_steps_are_those_of_the_real_benchmark(task: str, data: None) -> None:
    """In the stripped scene MuJoCo may take other corners of a foot for contacts. Elsewhere all numbers are equal."""
    episodes = recorded(task)
    off, alike = apart(resynchronised(task, episodes), episodes)
    assert alike.max() < 1e-5 and np.median(off) < 1e-7
    assert np.quantile(off, 0.95) < 1e-4 and off.max() < 1e-2


@needs_recording
@needs_robot
@pytest.mark.parametrize("task", [task for task in IN_RECORDING if task.startswith("h1-")])
def test_steps_with_envpools_robot_are_those_of_the_real_benchmark(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, and closer in most steps: the shapes are whole, and only the feet are not the same file."""
    monkeypatch.setenv("SEMRL_CACHE", str(tmp_path))
    episodes = recorded(task)
    off, alike = apart(resynchronised(task, episodes), episodes)
    assert alike.max() < 1e-5 and np.median(off) < 1e-7
    assert np.quantile(off, 0.94) < 1e-5 and off.max() < 2e-3


@needs_recording
@needs_original
@pytest.mark.parametrize("task", IN_RECORDING)
def test_steps_in_the_original_scenes_are_those_of_the_real_benchmark(task: str) -> None:
    episodes = recorded(task)
    step = resynchronised(task, episodes, scenes=ORIGINAL)
    assert np.array_equal(step.terminated, episodes["term"])
    assert np.array_equal(step.next_obs, episodes["obs"].astype(np.float32))
    assert np.allclose(step.reward.numpy(), episodes["rew"].astype(np.float32), rtol=1e-6, atol=1e-9)


@needs_recording
@pytest.mark.parametrize("task", ["h1-sit_hard", "h1-balance_hard", "h1hand-walk"])
def test_episodes_begin_as_in_the_real_benchmark(task: str, data: None) -> None:
    """The first recorded states are within the range of the starts here, and not in a corner of it."""
    episodes = recorded(task)
    first = episodes["qpos"][episodes["first"]]
    assert len(first) == 2
    env: Any = envs.make(f"{task}-v0", 2, backend="humanoidbench")
    ends = [env._task.start(torch.full((1, env._task.draws), x, dtype=torch.float64))[0][0].numpy() for x in (0, 1)]
    low, high = np.minimum(*ends), np.maximum(*ends)
    if task == "h1-sit_hard":  # the heading is no box: it is cos and sin of half an angle
        low[3:7], high[3:7] = (math.cos(0.9), 0, 0, -math.sin(0.9)), (1, 0, 0, math.sin(0.9))
    assert (first >= low - 1e-12).all() and (first <= high + 1e-12).all()
    assert (np.abs(first - (low + high) / 2) > 0.8 * (high - low) / 2).any()
    env.close()


@pytest.mark.parametrize("task", UPSTREAM)
def test_success_bars_and_time_limits_are_upstreams(task: str, make: Callable[..., Any]) -> None:
    bar, limit, _ = UPSTREAM[task]
    env = make(task, 2, max_episode_steps=None)
    assert (env._task.bar, env.max_episode_steps) == (bar, limit)
    env.close()


def test_ids_are_upstreams() -> None:
    assert set(envs.tasks("humanoidbench")) == {f"{robot}-{task}-v0" for robot in ("h1", "h1hand") for task in UPSTREAM}


# ---- starts ----------------------------------------------------------------------------------------------------------


def test_episodes_begin_at_the_keyframe_with_noise(make: Callable[..., Any]) -> None:
    env = make("walk", 400)
    obs, _ = env.reset()
    nq = env._physics.model.nq
    noise = obs[:, :nq].double() - torch.tensor(env._physics.model.key_qpos[0])
    assert noise.abs().max() <= 0.01 + 1e-7 and (obs[:, nq:] == 0).all()
    # uniform: the extremes of 400 are near the ends, and the variance is a third of the square of the half-width
    assert (noise.amax(0) > 0.0095).all() and (noise.amin(0) < -0.0095).all()
    assert noise.var(0).sub(0.01**2 / 3).abs().max() < 0.25 * 0.01**2 / 3
    assert torch.corrcoef(noise.T).fill_diagonal_(0).abs().max() < 0.25
    env.close()


def test_robot_begins_in_front_of_the_chair_turned_anyhow(make: Callable[..., Any]) -> None:
    env = make("sit_hard", 400)
    qpos = env.reset()[0][:, : env._physics.model.nq]
    yaw = 2 * torch.atan2(qpos[:, 6], qpos[:, 3])
    for values, low, high in ((qpos[:, 0], 0.2, 0.4), (qpos[:, 1], -0.15, 0.15), (yaw, -1.8, 1.8)):
        assert low - 1e-6 <= values.min() < low + 0.03 * (high - low)
        assert high - 0.03 * (high - low) < values.max() <= high + 1e-6
    assert (qpos[:, 4:6] == 0).all() and (qpos[:, 3:7].norm(dim=1) - 1).abs().max() < 1e-6
    assert (qpos[:, 2] - 0.98).abs().max() <= 0.0101 and (qpos[:, 9] + 0.25).abs().max() <= 0.0101  # height, chair
    env.close()


@pytest.mark.parametrize(
    ("task", "low", "high"), [("reach", (-2, -2, 0.2), (2, 2, 2)), ("push", (0.7, -0.5, 1), (1, 0.5, 1))]
)
def test_goals_are_drawn_anew_in_each_episode(
    task: str, low: tuple[float, ...], high: tuple[float, ...], make: Callable[..., Any]
) -> None:
    env = make(task, 400)
    begin = env._physics.model.nq + env._physics.model.nv + 3 - (13 if task == "push" else 0)
    goals = [env.reset()[0][:, begin : begin + 3] for _ in range(2)]
    assert not (goals[0] == goals[1])[:, :2].any()
    for axis in range(3):
        width = high[axis] - low[axis]
        drawn = torch.cat(goals)[:, axis]
        assert low[axis] - 1e-6 <= drawn.min() <= low[axis] + 0.03 * width + 1e-6
        assert high[axis] - 0.03 * width - 1e-6 <= drawn.max() <= high[axis] + 1e-6
    env.close()


def test_hand_is_observed_where_it_begins(make: Callable[..., Any]) -> None:
    """A start is followed by MuJoCo's kinematics, so that the first observation is not that of the last episode."""
    env = make("reach", 2, max_episode_steps=1)
    obs, _ = env.reset()
    step = env.step(actions(env, 1)[0])
    model = env._physics.model
    for row in (*obs, *step.obs):
        data = mujoco.MjData(model)
        data.qpos[:] = row[: model.nq]
        mujoco.mj_forward(model, data)
        hand = row[model.nq + model.nv :][:3].numpy()
        assert np.allclose(hand, data.site("left_hand").xpos, atol=1e-5)
    assert not torch.equal(obs, step.obs)
    env.close()


# ---- on MuJoCo Warp --------------------------------------------------------------------------------------------------


def put(env: Any, state: dict[str, Any]) -> None:
    """Put MuJoCo Warp's worlds into a state, and into what the task remembers of an episode."""
    env.reset()
    for name, rows in state.items():
        env._physics.state[name].copy_(torch.as_tensor(np.asarray(rows)))


@needs_warp
@pytest.mark.parametrize("task", TASKS)
def test_steps_on_warp_are_those_in_c(task: str, make: Callable[..., Any]) -> None:
    """Where the engines agree on contacts, in which boxes that lie upon each other make them differ."""
    one, other = make(task, 32), make(task, 32, backend="humanoidbench_warp")
    one.reset()
    worlds, rng = [World(one._physics.model, task) for _ in range(32)], np.random.default_rng(1)
    off, alike, ends = [], [], []
    for action in actions(one, 4):
        place(one, worlds, rng)
        put(other, one._physics.state | one._memory)
        mine, theirs = one.step(action), other.step(action)
        ends += [mine.terminated, theirs.terminated]
        off.append((mine.reward - theirs.reward).abs() / (1 + mine.reward.abs()))
        alike.append((mine.next_obs - theirs.next_obs).abs().amax(1) < 1e-3)
        for name, rows in one._memory.items():
            kept, sound = other._physics.state[name], ~mine.terminated & ~theirs.terminated
            assert torch.allclose(kept[sound].double(), rows[sound].double(), atol=1e-6)
    rows = torch.cat(alike)
    assert rows.double().mean() > (0.05 if task.startswith(("sit", "push")) else 0.5)
    assert torch.cat(off)[rows].max() < 1e-5
    assert torch.equal(torch.cat(ends[::2])[rows], torch.cat(ends[1::2])[rows])
    other.check()
    one.close()


@needs_warp
def test_episodes_on_warp_begin_as_in_c(make: Callable[..., Any]) -> None:
    for task in ("reach", "sit_hard"):
        one, other = make(task, 400), make(task, 400, backend="humanoidbench_warp")
        for mine, theirs in zip(one.reset()[0].T, other.reset()[0].T, strict=True):
            assert ks_2samp(mine.numpy(), theirs.numpy()).pvalue > 1e-4
        one.close()


@needs_warp
def test_contract_on_warp(make: Callable[..., Any]) -> None:
    kinds = {"backend": "humanoidbench_warp", "max_episode_steps": 8}
    report = examine(lambda num_envs, seed: make("maze", num_envs, seed, **kinds), 20)
    assert report.violations == []
    assert not [line for line in report.unseen if "termination" not in line]


@needs_warp
def test_success_on_warp_is_a_return_at_the_bar(make: Callable[..., Any]) -> None:
    env = make("reach", 2, backend="humanoidbench_warp", max_episode_steps=3)
    assert env.action_bounds is None
    env.reset()
    env._physics.returns[1] = 12000.0
    seen = [env.step(torch.zeros(2, *env.action_space.shape)).metrics["success"].tolist() for _ in range(4)]
    assert seen == [[False, True], [False, True], [False, True], [False, False]]


@needs_warp
def test_wrong_use_on_warp_is_named(make: Callable[..., Any]) -> None:
    for options, message in (
        ({"num_threads": 2}, "has no option 'num_threads' .it has max_episode_steps, nconmax, njmax, scenes."),
        ({"frame_skip": 2}, "has no option 'frame_skip'"),
        ({"scenes": "/nowhere"}, "needs the scene h1_pos_walk, which is not in /nowhere"),
        ({"njmax": 3}, "no room for all contacts or constraints .*; njmax is 3, make .* njmax=6 or more"),
    ):
        with pytest.raises(TaskError, match=message):
            env = make("walk", 2, backend="humanoidbench_warp", **options)
            env.reset()
            for action in actions(env, 30):  # until it has landed
                env.step(action)
            env.check()
    with pytest.raises(TaskError, match="humanoidbench_warp has no task 'h1-wlak-v0', did you mean h1-walk-v0"):
        humanoidbench_warp.make("h1-wlak-v0", 2, 0, CPU)
    assert envs._backend_of("h1-walk-v0", "auto", torch.device("cuda:0")) == "humanoidbench_warp"
    assert envs._backend_of("h1-walk-v0", "auto", CPU) == "humanoidbench"


@needs_warp
@needs_recording
@pytest.mark.slow
@pytest.mark.parametrize("task", IN_RECORDING)
def test_steps_on_warp_are_those_of_the_real_benchmark(task: str, data: None) -> None:
    episodes = recorded(task)
    env: Any = envs.make(f"{task}-v0", len(episodes["rew"]), backend="humanoidbench_warp")
    state = {name: episodes[key] for name, key in (("qpos", "qpos"), ("qvel", "qvel"), ("qacc_warmstart", "warm"))}
    put(env, state | ({"stage": episodes["stage"]} if task == "h1-maze" else {}))
    step = env.step(torch.from_numpy(episodes["act"]).float())
    env.check()
    assert np.array_equal(step.terminated, episodes["term"])
    off = np.abs(step.reward.numpy() - episodes["rew"])
    print(task, np.median(off), off.max())
    assert np.median(off) < 1e-6 and off.max() < 2e-2


# ---- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["walk", "maze", "sit_hard", "push"])
def test_contract(task: str, make: Callable[..., Any]) -> None:
    report = examine(lambda num_envs, seed: make(task, num_envs, seed, max_episode_steps=8), 20)
    assert report.violations == []
    assert not [line for line in report.unseen if "termination" not in line]  # snapshots and streams were tried


@needs_scenes
def test_contract_in_a_real_scene(data: None) -> None:
    def make(num_envs: int, seed: int) -> Any:
        return envs.make("h1-pole-v0", num_envs, seed, max_episode_steps=9)

    assert examine(make, 12, num_envs=2).violations == []


def test_actions_reach_the_actuators_in_their_ranges(make: Callable[..., Any]) -> None:
    env = make("walk", 5)
    env.reset()
    env.step(torch.tensor([[-1.0, -1], [1, 1], [0, 0], [-9, 9], [0.5, -0.5]]))
    expected = [[-1, -1.5], [0.5, 1], [-0.25, -0.25], [-1, 1], [0.125, -0.875]]
    assert np.allclose(env._physics._ctrl, expected, atol=1e-6)
    assert env.action_space == Box(-1, 1, (2,), np.float32)
    env.close()


def test_seeds_are_spread_as_everywhere(make: Callable[..., Any]) -> None:
    env = make("walk", 4, seed=9)
    assert env._seeds.tolist() == spawn_seeds(9, 4, "humanoidbench")
    env.close()


def test_an_episode_depends_on_its_environment_and_number_alone(make: Callable[..., Any]) -> None:
    """However the others fare, and in whatever order episodes end: the k-th start of environment i is the same."""
    env = make("walk", 3)
    env.reset(7)
    plain = [env.reset()[0].clone() for _ in range(3)]  # episodes 1, 2 and 3 of all
    env.reset(7)
    for mask, episode in (((0, 1, 0), 1), ((0, 1, 0), 2), ((1, 0, 0), 1), ((1, 1, 1), None)):
        first = env._restart(np.array(mask, bool))
        expected = [plain[0 if episode is None else episode - 1][i] for i in range(3) if mask[i]]
        if episode is None:
            expected = [plain[1][0], plain[2][1], plain[0][2]]
        assert np.array_equal(first.astype(np.float32), torch.stack(expected))
    env.close()


def test_worlds_do_not_touch_each_other(make: Callable[..., Any]) -> None:
    """The simulators are shared, their worlds are not: other actions elsewhere change nothing here."""
    plain, other = make("hurdle", 3, num_threads=1), make("hurdle", 3, num_threads=1)
    assert torch.equal(plain.reset()[0], other.reset()[0])
    for action in actions(plain, 60):
        disturbed = action.clone()
        disturbed[[0, 2]] *= -1
        one, two = plain.step(action), other.step(disturbed)
        assert torch.equal(one.next_obs[1], two.next_obs[1]) and one.reward[1] == two.reward[1]
        assert not torch.equal(one.next_obs[0], two.next_obs[0])
        assert torch.equal(one.terminated[1], two.terminated[1]) and torch.equal(one.obs[1], two.obs[1])
    plain.close(), other.close()


@pytest.mark.parametrize("task", ["balance_hard", "reach"])
def test_number_of_threads_changes_nothing(task: str, make: Callable[..., Any]) -> None:
    pools = [make(task, 7, num_threads=threads, max_episode_steps=9) for threads in (1, 3, 16)]
    for env in pools:
        env.reset()
    for action in actions(pools[0], 25):
        one, two, three = (env.step(action) for env in pools)
        assert same(one, two) and same(one, three)
    assert [len(env._physics._simulators) for env in pools] == [1, 3, 7]  # no more than worlds
    for env in pools:
        env.close()


def test_threads_and_memory(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulator per thread, not per environment; one thread per core; none is left behind."""
    made = []
    real = mujoco.MjData
    monkeypatch.setattr(mujoco, "MjData", lambda model: made.append(1) or real(model))
    monkeypatch.setattr(humanoidbench, "cores", lambda: 3)
    before = set(threading.enumerate())
    env = make("walk", 64, num_threads=0)
    env.reset()
    for action in actions(env, 3):
        env.step(action)
    threads = set(threading.enumerate()) - before
    assert len(made) == 3 and 1 <= len(threads) <= 3
    env.close()
    env.close()
    assert not any(thread.is_alive() for thread in threads)


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 9}, raising=False)
    assert humanoidbench.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert humanoidbench.cores() == 6


@needs_scenes
def test_rows_of_a_real_scene_are_small(data: None) -> None:
    env: Any = envs.make("h1hand-walk-v0", 128, backend="humanoidbench", num_threads=1)
    physics = env._physics
    tensors = [value for value in vars(physics).values() if isinstance(value, torch.Tensor)]
    held = sum(t.numel() * t.element_size() for t in tensors) + physics._ctrl.nbytes + 128 * physics.model.nv * 8
    assert held < 4e6 and physics.model.nbuffer < 10e6  # bytes, for all of them; upstream: 500 MB for each
    env.close()


def test_physics_runs_while_the_caller_does_not(make: Callable[..., Any]) -> None:
    env = make("walk", 4)
    env.reset()
    env.step_send(actions(env, 1)[0])
    done, late = concurrent.futures.wait(env._physics._jobs, timeout=30)
    assert len(done) == 2 and not late  # before anybody asks for the result
    assert env.step_recv().valid.all()
    env.close()


def test_an_error_in_a_thread_comes_out(make: Callable[..., Any]) -> None:
    env = make("walk", 4)
    env.reset()

    def broken(*args: Any) -> None:
        raise MemoryError("no more")

    env._physics._step = broken
    with pytest.raises(MemoryError, match="no more"):
        env.step(actions(env, 1)[0])
    env.close()


# ---- numbers that are not finite -------------------------------------------------------------------------------------


def spoil_position(env: Any, action: torch.Tensor) -> None:
    env._physics.state["qpos"][1, 2] = np.nan


def spoil_velocity(env: Any, action: torch.Tensor) -> None:
    env._physics.state["qvel"][1, 3] = 1e12  # finite: MuJoCo gives it up all the same, and goes on from its own start


def spoil_action(env: Any, action: torch.Tensor) -> None:
    action[1, 0] = torch.nan


@pytest.mark.parametrize("spoil", [spoil_position, spoil_velocity, spoil_action])
def test_a_simulation_that_blows_up_is_quarantined(
    spoil: Callable[[Any, torch.Tensor], None], make: Callable[..., Any]
) -> None:
    env, calm = make("maze", 3), make("maze", 3)
    env.reset(), calm.reset()
    stream = actions(env, 6, 0.3)
    obs = [(env.step(a), calm.step(a)) for a in stream[:2]][-1][0].obs
    action = stream[2].clone()
    spoil(env, action)
    step, expected = env.step(action), calm.step(stream[2])
    assert step.valid.tolist() == [True, False, True]
    assert step.reward[1] == 0 and step.truncated.tolist() == [False, True, False] and not step.terminated.any()
    assert torch.equal(step.next_obs[1], obs[1]) and not step.metrics["success"][1]
    assert (step.obs[1, :3] - torch.tensor([0, 0, 0.98])).abs().max() <= 0.0101  # a new episode
    assert torch.equal(step.next_obs[[0, 2]], expected.next_obs[[0, 2]])
    assert torch.equal(step.reward[[0, 2]], expected.reward[[0, 2]])
    assert env._returns[1] == 0 and env._memory["stage"].tolist() == [1, 0, 1]
    after = [env.step(a) for a in stream[3:]]
    assert all(one.valid.all() and one.next_obs.isfinite().all() for one in after)
    assert after[0].reward[1] > 100  # the first checkpoint, once more
    env.close(), calm.close()


# ---- success ---------------------------------------------------------------------------------------------------------


def test_success_is_a_return_at_the_bar(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TASKS["crawl"], "bar", 1.5)
    env = make("crawl", 4, max_episode_steps=11)
    env.reset()
    returns, rates = torch.zeros(4, dtype=torch.float64), []
    for action in actions(env, 33, 0.5):
        step = env.step(action)
        returns += step.reward
        assert torch.equal(step.metrics["success"], returns >= 1.5)
        rates.append(step.metrics["success"].double().mean())
        returns[step.truncated] = 0
    assert 0 < torch.stack(rates).mean() < 1
    env.close()


# ---- snapshots -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["maze", "balance_hard", "push"])
def test_snapshots_are_exact(task: str, make: Callable[..., Any]) -> None:
    env = make(task, 4, max_episode_steps=11, num_threads=2)
    env.reset()
    stream = actions(env, 40)
    for action in stream[:15]:
        env.step(action)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    onward = [env.step(action) for action in stream[15:]]
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for other in (make(task, 4, seed=99, max_episode_steps=11, num_threads=1), env):  # elsewhere, and back in time
        other.load_state_dict(state)
        resumed = [other.step(action) for action in stream[15:]]
        assert all(same(a, b) for a, b in zip(onward, resumed, strict=True))
    assert sum(int((step.terminated | step.truncated).sum()) for step in onward) > 4
    env.close()


def test_a_snapshot_is_a_copy(make: Callable[..., Any]) -> None:
    env = make("reach", 3)
    env.reset()
    state = env.state_dict()
    kept = {name: value.clone() for part in ("physics", "memory", "episodes") for name, value in state[part].items()}
    kept |= {f"view {i}": view.clone() for i, view in enumerate(state["current"])}
    for loaded in (False, True):
        if loaded:
            env.load_state_dict(state)
        for action in actions(env, 3):
            env.step(action)
        env.reset()
        now = {name: value for part in ("physics", "memory", "episodes") for name, value in state[part].items()}
        now |= {f"view {i}": view for i, view in enumerate(state["current"])}
        assert kept.keys() == now.keys() and all(torch.equal(kept[name], now[name]) for name in kept)
    env.close()


def test_a_snapshot_of_something_else_is_refused(make: Callable[..., Any]) -> None:
    env = make("walk", 3)
    env.reset()
    state = env.state_dict()
    with pytest.raises(TaskError, match=r"of 3 environments of h1-walk-v0, not 3 of h1-run-v0"):
        make("run", 3).load_state_dict(state)
    with pytest.raises(TaskError, match=r"of 3 environments of h1-walk-v0, not 2 of h1-walk-v0"):
        make("walk", 2).load_state_dict(state)
    env.step_send(actions(env, 1)[0])
    with pytest.raises(RuntimeError, match="step_recv before state_dict"):
        env.state_dict()
    env.load_state_dict(state)  # drops the step
    with pytest.raises(RuntimeError, match="step_recv without a step_send"):
        env.step_recv()
    assert all(torch.equal(a, b) for a, b in zip(state["current"], env.state_dict()["current"], strict=True))
    env.close()


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_unknown_tasks_and_options(make: Callable[..., Any]) -> None:
    with pytest.raises(TaskError, match=r"no task is called 'h1hand-wlak-v0', did you mean .*h1hand-walk-v0"):
        envs.make("h1hand-wlak-v0", 2)
    with pytest.raises(TaskError, match=r"has no task 'h1-sitsimple-v0', did you mean h1-sit_simple-v0"):
        humanoidbench.make("h1-sitsimple-v0", 2, 0, CPU)
    with pytest.raises(TaskError, match=r"has no task 'Ant', it has h1-stand-v0, "):
        humanoidbench.make("Ant", 2, 0, CPU)
    with pytest.raises(TaskError, match=r"h1-walk-v0 has no option 'threads' \(it has max_episode_steps, num_threads"):
        make("walk", threads=3)
    with pytest.raises(TaskError, match="num_threads is -1, must be a whole number"):
        make("walk", num_threads=-1)
    with pytest.raises(TaskError, match=r"max_episode_steps is 0\.5, must be"):
        make("walk", max_episode_steps=0.5)


def test_a_missing_scene_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMRL_CACHE", str(tmp_path))
    with pytest.raises(TaskError) as error:
        envs.make("h1hand-walk-v0", 2)
    message = str(error.value)
    assert "\n" not in message and "h1hand_pos_walk" in message and str(tmp_path / "humanoidbench") in message
    assert "`python -m envs.humanoidbench_scenes --from DIR`" in message and "carlosferrazza" in message


def test_the_cache_is_in_the_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEMRL_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert humanoidbench_scenes.cache() == tmp_path / ".cache" / "semrl" / "humanoidbench"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no archive", "Not a gzipped file"),
        (gzip.compress(b"<mujoco>", mtime=0)[:-4], "ended"),
        (gzip.compress(b"<mujoco><worldbody>", mtime=0), "XML"),
        (gzip.compress(b"<mujoco/>", mtime=0), "it is no scene of HumanoidBench"),
        (gzip.compress(SCENE.split("<keyframe>")[0].format(objects="").encode() + b"</mujoco>"), "no keyframe"),
        (
            gzip.compress(
                SCENE.format(objects="", free="").replace("<keyframe>", "<size nuserdata='1'/><keyframe>").encode()
            ),
            r"state beside positions and velocities \(nuserdata\)",
        ),
    ],
)
def test_an_unusable_scene_is_named(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEMRL_CACHE", str(tmp_path))
    path = tmp_path / "humanoidbench" / "h1_pos_walk.xml.gz"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(TaskError, match=message) as error:
        envs.make("h1-walk-v0", 2)
    assert str(path) in str(error.value) and "make it again: `python -m" in str(error.value)
    assert "\n" not in str(error.value)


# ---- scenes ----------------------------------------------------------------------------------------------------------

ROCK = np.array([[x, y, z] for x in (0, 0.3) for y in (-0.1, 0.1) for z in (0, 0.2)] + [[0.15, 0, 0.1], [0.1, 0, 0.05]])
"""[10, 3] a block off its origin, and two points within"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of HumanoidBench with one scene, in two files, that has all that is left out."""
    assets = tmp_path / "humanoid-bench" / "humanoid_bench" / "assets"
    for folder in ("envs", "common", "meshes"):
        (assets / folder).mkdir(parents=True)
    corners = "\n".join("v " + " ".join(map(str, point)) for point in ROCK)
    faces = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    (assets / "meshes" / "rock.obj").write_text(
        corners + "\n" + "\n".join("f " + " ".join(map(str, face)) for face in faces) + "\n"
    )
    (assets / "common" / "rock.xml").write_text("""
        <mujocoinclude>
          <asset>
            <texture name="bark" type="2d" builtin="flat" width="8" height="8"/><material name="wood" texture="bark"/>
            <mesh file="../meshes/rock.obj"/><mesh name="unused" file="../meshes/rock.obj" scale="2 2 2"/>
          </asset>
          <worldbody>
            <body name="rock" pos="1 0 1"><freejoint/>
              <geom type="mesh" mesh="rock" contype="0" conaffinity="0" material="wood" density="3000"/>
              <geom name="rock_collision" type="mesh" mesh="rock" material="wood" density="10" pos="0 0 .01"/>
              <geom name="ornament" type="sphere" pos="0 .2 0" size=".1" contype="0" conaffinity="0" density="500"/>
            </body>
          </worldbody>
        </mujocoinclude>""")
    text = SCENE.format(objects="", free="1 0 1 1 0 0 0")
    text = text.replace("</mujoco>", '<include file="../common/rock.xml"/></mujoco>')
    (assets / "envs" / "h1_pos_walk.xml").write_text(text)
    return tmp_path / "humanoid-bench"


def fall(model: Any, steps: int) -> np.ndarray:
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    data.qvel[-6:] = 0.4, -0.2, 0.1, 1, 2, 3  # the rock, thrown
    mujoco.mj_step(model, data, steps)
    return np.concatenate([data.qpos, data.qvel])


def test_a_stripped_scene_moves_as_the_original(checkout: Path) -> None:
    path = checkout / "humanoid_bench" / "assets" / "envs" / "h1_pos_walk.xml"
    before = mujoco.MjModel.from_xml_path(str(path))
    text = strip(path)
    after = mujoco.MjModel.from_xml_string(text)  # by itself
    assert "file=" not in text and not after.ntex and not after.nmat
    names = [after.geom(i).name for i in range(after.ngeom)]
    assert after.ngeom == before.ngeom - 2 and "rock_collision" in names and "ornament" not in names
    rock = before.body("rock").id
    assert before.body_mass[rock] == pytest.approx(0.3 * 0.2 * 0.2 * 3010 + 500 * 4 / 3 * math.pi * 0.1**3, rel=1e-3)
    assert np.allclose(after.body_mass[1:], before.body_mass[1:], rtol=1e-5)
    assert np.allclose(after.body_inertia[1:], before.body_inertia[1:], rtol=1e-5)
    assert np.allclose(fall(after, 40), fall(before, 40), atol=1e-5)
    assert (fall(before, 40)[-6:] != 0).all()


def test_a_stripped_mesh_is_its_hull(checkout: Path) -> None:
    path = find_scene(checkout, "h1_pos_walk")
    assert path
    model = mujoco.MjModel.from_xml_string(strip(path))
    assert model.nmesh == 1 and model.mesh_vertnum[0] == 8  # neither the points within nor the mesh nobody uses
    data = mujoco.MjData(model)
    mujoco.mj_resetDataKeyframe(model, data, 0)
    mujoco.mj_forward(model, data)
    geom = model.geom("rock_collision").id
    corners = model.mesh_vert @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
    expected = ROCK[:8] + np.array([1, 0, 1.01])
    order = [np.lexsort(points.round(4).T) for points in (corners, expected)]
    assert np.allclose(corners[order[0]], expected[order[1]], atol=1e-5)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('gainprm="60"', 'gainprm="60.1"'),
        ('biasprm="0 -20"', 'biasprm="0 -20.1"'),
        ('damping="1"', 'damping="1.01"'),
        ('mass="4"', 'mass="4.01"'),
        ('name="head" pos="0 0 0.47"', 'name="head" pos="0 0 0.471"'),
        ('name="rock_collision"', 'name="rock_collision" contype="0" conaffinity="0"'),
        ('<site name="imu"', '<site/><site name="imu"'),
    ],
)
def test_what_would_move_otherwise_is_refused(
    old: str, new: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = find_scene(checkout, "h1_pos_walk"), mujoco.MjSpec.to_xml
    assert path and old in strip(path)
    monkeypatch.setattr(mujoco.MjSpec, "to_xml", lambda spec: real(spec).replace(old, new, 1))
    with pytest.raises(ValueError, match="another model"):
        strip(path)


def test_the_command_makes_what_there_is(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEMRL_CACHE", str(tmp_path / "cache"))
    broken = checkout / "humanoid_bench" / "assets" / "envs" / "h1_pos_run.xml"
    broken.write_text("<mujoco><include file='nowhere.xml'/></mujoco>")
    broken.with_name("h1_pos_stand.xml.gz").write_bytes(gzip.compress(b"<mujoco/>", mtime=0))
    assert main(["--from", str(checkout)]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("h1_pos_walk: ") and out.endswith(
        f"1 of 30 scenes are in {tmp_path / 'cache'}/humanoidbench\n"
    )
    assert err.count("\n") == 29 and "h1_pos_run: " in err and "h1_pos_stand: it is no scene" in err
    assert "h1hand_pos_push: there is none in " in err
    assert [path.name for path in (tmp_path / "cache" / "humanoidbench").iterdir()] == ["h1_pos_walk.xml.gz"]
    checkout.rename(tmp_path / "gone")
    env = envs.make("h1-walk-v0", 2)
    assert env.backend == "humanoidbench" and env.reset()[0].shape == (2, 9 + 8 + 7 + 6)
    env.close()

    # A folder that was made before is a source, too.
    monkeypatch.setenv("SEMRL_CACHE", str(tmp_path / "second"))
    made = make_scene(tmp_path / "cache" / "humanoidbench", "h1_pos_walk")
    assert made.read_bytes() == (tmp_path / "cache" / "humanoidbench" / "h1_pos_walk.xml.gz").read_bytes()


@pytest.mark.parametrize("place", ["", "humanoid_bench", "humanoid_bench/assets/envs"])
def test_the_scenes_are_found_wherever_one_points(place: str, checkout: Path) -> None:
    assert find_scene(checkout / place, "h1_pos_walk")
    assert not find_scene(checkout / place, "h1_pos_run")


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEMRL_CACHE", str(tmp_path / "cache"))
    assert main(["--from", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"no scenes in {tmp_path}: it must be a checkout of ")
    monkeypatch.setattr(humanoidbench_scenes, "find_spec", lambda name: None)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("humanoid_bench is not installed; give --from DIR")
    assert not (tmp_path / "cache").exists()


def test_original_scenes_are_simulated_as_they_are(checkout: Path) -> None:
    env: Any = envs.make("h1-walk-v0", 2, backend="humanoidbench", scenes=str(checkout))
    assert env._physics.model.nmat == 1 and isinstance(env, HumanoidBench)
    env.close()


@needs_scenes
@pytest.mark.slow
def test_a_world_is_drawn_as_it_is() -> None:
    """In a process of its own: OpenGL has to be chosen before MuJoCo is loaded."""
    code = f"""
import numpy as np, torch, envs
from envs import pictures
pictures.prepare_gl()
env = envs.make("h1hand-walk-v0", 2, 0, scenes={str(DATA)!r}, num_threads=1)
env.reset()
first = [env.render(index, (96, 64)).astype(int) for index in (0, 1)]
for _ in range(20):
    env.step(torch.ones(2, 61) * torch.tensor([[1.0], [-1.0]]))
then = [env.render(index, (96, 64)).astype(int) for index in (0, 1)]
assert first[0].shape == (64, 96, 3) and env.render().shape == (360, 480, 3)
for one, two in ((first[0], then[0]), (first[1], then[1]), (then[0], then[1])):
    assert 20 < (abs(one - two).max(-1) > 20).sum() < 3000
"""
    quiet = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=quiet, timeout=300)
    if "cannot draw here" in done.stderr:
        pytest.skip("there is no OpenGL")
    assert done.returncode == 0, done.stderr
