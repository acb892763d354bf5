"""mjlab's tasks: against mjlab itself, stepped and reset by hand, and against the contract."""

import csv
import math
import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import envs
from agents import fasttd3
from envs import mjlab
from envs.base import TaskError, spawn_seeds
from envs.check import examine
from envs.managed import Streams

needs_mjlab = pytest.mark.skipif(not find_spec("mjlab"), reason="mjlab is not installed: pip install 'semrl[mjlab]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of what mjlab imports
    pytest.mark.filterwarnings("ignore:MULTICCD is enabled"),  # of the rough terrains' models
]
CPU = torch.device("cpu")
BALANCE = "Mjlab-Cartpole-Balance"
N = 4

# The cartpole with all that can go wrong in an adapter: noise and history for the actor alone, a privileged view, ends
# of both kinds, shakes, and friction that is drawn for good when the simulation is made.
OWN = """
from dataclasses import replace
from mjlab.envs.mdp import dr, reset_joints_by_offset
from mjlab.managers.event_manager import EventTermCfg
from mjlab.managers.metrics_manager import MetricsTermCfg
from mjlab.managers.observation_manager import ObservationTermCfg
from mjlab.managers.scene_entity_config import SceneEntityCfg
from mjlab.managers.termination_manager import TerminationTermCfg
from mjlab.tasks.registry import load_env_cfg, load_rl_cfg, register_mjlab_task
from mjlab.utils.noise import UniformNoiseCfg

def joints(env):
    return env.scene["cartpole"].data.joint_pos

def damping(env):
    return env.sim.model.dof_damping[:, :1]

def fallen(env):
    return joints(env)[:, 1].abs() > 0.12

def angle(env):
    return joints(env)[:, 1].abs()

config = load_env_cfg("Mjlab-Cartpole-Balance")
config.episode_length_s = 10 * 0.05
seen = config.observations["actor"].terms
for name, term in seen.items():
    seen[name] = replace(term, noise=UniformNoiseCfg(n_min=-0.5, n_max=0.5), history_length=2 * (name == "cart_vel"))
config.observations["critic"].terms |= {"joints": ObservationTermCfg(joints), "damping": ObservationTermCfg(damping)}
config.terminations["fallen"] = TerminationTermCfg(fallen)
config.metrics["angle"] = MetricsTermCfg(angle)
slider, hinge = (SceneEntityCfg("cartpole", joint_names=(name,)) for name in ("slider", "hinge_1"))
config.events["damping"] = EventTermCfg(
    dr.joint_damping, mode="startup", params={"asset_cfg": slider, "operation": "abs", "ranges": (0.0, 0.1)}
)
config.events["shake"] = EventTermCfg(
    reset_joints_by_offset,
    mode="interval",
    interval_range_s=(0.1, 0.3),
    params={"position_range": (-0.1, 0.1), "velocity_range": (-0.1, 0.1), "asset_cfg": hinge},
)
register_mjlab_task("Own", config, config, load_rl_cfg("Mjlab-Cartpole-Balance"))
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of that task."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_cartpole.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield "own_cartpole:Own"


def make(task: str, num_envs: int = N, seed: int = 0, **options: Any) -> Any:
    return mjlab.make(task, num_envs, seed, CPU, **options)


def actions(env: Any, count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.rand(env.num_envs, *env.action_space.shape, generator=generator) - 1 for _ in range(count)]


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


@cache
def made(task: str) -> Any:
    """One environment that tests share; those that use it reset it."""
    return make(task)


# ---- against mjlab ---------------------------------------------------------------------------------------------------


@needs_mjlab
def test_steps_are_mjlabs_and_resets_touch_only_what_has_ended(own: str) -> None:
    env = make(own, seed=3)
    sent = actions(env, 40)
    first = env.reset()
    steps = [env.step(action) for action in sent]

    streams = Streams(CPU)
    streams.seed(spawn_seeds(3, 1, "mjlab")[0])
    ended_both_ways = torch.zeros(2, dtype=torch.bool)
    redrawn = 0
    with streams:
        raw = mjlab_itself(own)
        groups, _ = raw.reset()
        assert torch.equal(first[0], groups["actor"]) and torch.equal(first[1], groups["critic"])
        for action, step in zip(sent, steps, strict=True):
            groups, reward, terminated, timed_out, _ = raw.step(action)
            ended = terminated | timed_out
            assert torch.equal(step.next_obs, groups["actor"]) and torch.equal(step.next_critic_obs, groups["critic"])
            assert torch.equal(step.reward, reward) and step.valid.all()
            assert torch.equal(step.terminated, terminated)
            assert torch.equal(step.truncated, timed_out & ~terminated)
            ended_both_ways |= torch.stack([step.terminated.any(), step.truncated.any()])
            assert torch.equal(step.obs[~ended], groups["actor"][~ended])
            assert torch.equal(step.critic_obs[~ended], groups["critic"][~ended])
            if ended.any():
                before = groups["actor"]
                groups, _ = raw.reset(env_ids=ended.nonzero()[:, 0])
                assert torch.equal(step.obs[ended], groups["actor"][ended])
                assert torch.equal(step.critic_obs[ended], groups["critic"][ended])
                redrawn += int((groups["actor"] != before)[~ended].any())
    assert ended_both_ways.all()
    assert redrawn  # so that to take all rows after a reset would have been wrong


def mjlab_itself(task: str) -> Any:
    from mjlab.envs import ManagerBasedRlEnv
    from mjlab.tasks.registry import load_env_cfg

    config = load_env_cfg(task.rpartition(":")[2])
    config.scene.num_envs, config.auto_reset = N, False
    return ManagerBasedRlEnv(config, device="cpu")


@needs_mjlab
def test_the_tasks_are_those_of_the_registry_that_see_without_a_camera() -> None:
    registry = mjlab.load()
    groups = {task: registry.load_env_cfg(task).observations for task in registry.list_tasks() if task != "Own"}
    assert mjlab.tasks() == [task for task, observed in groups.items() if set(observed) <= {"actor", "critic"}]


@needs_mjlab
def test_the_log_is_averaged_over_episodes(own: str) -> None:
    env = make(own, seed=1)
    env.reset()
    assert env.summary() == {}  # the reset of environments that never ran is no episode
    kinds, rewards = torch.zeros(2), []
    returns = torch.zeros(N)
    for action in actions(env, 50):
        step = env.step(action)
        returns += step.reward
        ended = step.terminated | step.truncated
        rewards += returns[ended].tolist()
        returns[ended] = 0
        kinds += torch.stack([step.terminated.sum(), step.truncated.sum()])
    summary = {tag: float(value) for tag, value in env.summary().items()}
    assert summary.keys() == {
        *("Episode_Reward/smooth_reward", "Episode_Metrics/angle"),
        *("Episode_Termination/fallen", "Episode_Termination/time_out"),
    }
    assert summary["Episode_Reward/smooth_reward"] == pytest.approx(np.mean(rewards) / (10 * 0.05), rel=1e-5)
    assert summary["Episode_Termination/fallen"] == pytest.approx(float(kinds[0] / kinds.sum()))
    assert kinds.min() > 0 and 0 < summary["Episode_Metrics/angle"] < 0.2
    assert env.summary() == {}


# ---- the contract ----------------------------------------------------------------------------------------------------


@needs_mjlab
def test_keeps_the_contract(own: str) -> None:
    report = examine(lambda n, seed: envs.make(own, n, seed, backend="mjlab"), steps=40)
    assert report.violations == []
    assert [line.partition(":")[0] for line in report.unseen] == ["snapshots"]


@needs_mjlab
def test_views_and_limits(own: str) -> None:
    env = made(BALANCE)
    obs, critic_obs = env.reset()
    assert critic_obs is obs and not env.privileged
    assert (env.obs_space.shape, env.action_space.shape, env.max_episode_steps) == ((5,), (1,), 1000)
    env = made(own)
    assert env.privileged
    assert (env.obs_space.shape, env.critic_obs_space.shape, env.max_episode_steps) == ((6,), (8,), 10)
    obs, critic_obs = env.reset()
    assert (obs.shape, critic_obs.shape) == ((N, 6), (N, 8))


@needs_mjlab
def test_global_streams_are_left_alone_and_environments_do_not_share_any(own: str) -> None:
    seed = os.environ.get("PYTHONHASHSEED")
    before = states()
    one, other = make(own, seed=5), make(own, seed=5)
    one.reset(), other.reset()
    for action in actions(one, 20):
        left, right = one.step(action), other.step(action)
        assert torch.equal(left.obs, right.obs) and torch.equal(left.critic_obs, right.critic_obs)
    assert states() == before and os.environ.get("PYTHONHASHSEED") == seed


@needs_mjlab
def test_streams_come_back_after_an_error() -> None:
    before = states()
    with pytest.raises(KeyError), Streams(CPU):
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        raise KeyError
    assert states() == before


@needs_mjlab
def test_a_seed_draws_anew_what_is_drawn_for_good(own: str) -> None:
    env = make(own, seed=0)
    dampings = []
    for seed in (None, None, 1, 0):
        _, critic_obs = env.reset(seed)
        dampings.append(critic_obs[:, -1])
    assert torch.equal(dampings[0], dampings[1]) and torch.equal(dampings[0], dampings[3])
    assert len(dampings[0].unique()) == N and not torch.isclose(dampings[0], dampings[2]).any()


@needs_mjlab
def test_termination_on_the_step_of_the_limit_is_no_truncation(own: str) -> None:
    env = make(own, 3, max_episode_steps=7)
    env.reset()
    for t in range(1, 8):
        env._engine.sim.data.qpos[:, 1] = 0.0
        env._engine.sim.data.qvel[:] = 0.0
        if t == 7:
            env._engine.sim.data.qpos[1, 1] = 0.5
        step = env.step(torch.zeros(3, 1))
        assert step.terminated.tolist() == [False, t == 7, False]
        assert step.truncated.tolist() == [t == 7, False, t == 7]
    assert not (step.obs == step.next_obs).all(1).any()


@needs_mjlab
@pytest.mark.parametrize("limit", [1, 3, 7, 49])
def test_the_time_limit_is_exact(limit: int) -> None:
    env = make(BALANCE, 2, max_episode_steps=limit)
    assert env.max_episode_steps == env._engine.max_episode_length == limit


@needs_mjlab
def test_a_task_whose_end_is_the_time_limit_terminates(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mjlab.configure(own, N, None, None)  # imports it
    monkeypatch.setattr(sys.modules["own_cartpole"].config, "is_finite_horizon", True)
    env = make(own)
    assert env.max_episode_steps is None
    env.reset()
    steps = [env.step(torch.zeros(N, 1)) for _ in range(16)]
    assert any(step.terminated.any() for step in steps) and not any(step.truncated.any() for step in steps)
    with pytest.raises(TaskError, match="has no time limit"):
        make(own, max_episode_steps=9)


@needs_mjlab
def test_a_world_that_is_not_finite_is_quarantined(own: str) -> None:
    env = make(own, 3)
    acted_on, critic_acted_on = env.reset()
    env._engine.sim.data.qvel[1] = math.nan
    step = env.step(torch.zeros(3, 1))
    assert step.valid.tolist() == [True, False, True] and step.truncated[1] and not step.terminated[1]
    assert step.reward[1] == 0 and torch.equal(step.next_obs[1], acted_on[1])
    assert torch.equal(step.next_critic_obs[1], critic_acted_on[1])
    for action in [step.obs[:, :1] * 0, *actions(env, 5)]:
        assert step.obs.isfinite().all() and step.critic_obs.isfinite().all()
        step = env.step(action)
        assert step.valid.all()
    assert all(math.isfinite(value) for value in env.summary().values())


@needs_mjlab
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_actions_are_clipped_and_scaled(scale: float) -> None:
    env = make(BALANCE, 3, action_range=scale)
    env.reset()
    env.step(torch.tensor([[0.5], [-7.0], [7.0]]))
    assert env._engine.action_manager.action.flatten().tolist() == [0.5 * scale, -scale, scale]
    assert [bound.tolist() for bound in env.action_bounds] == [[-scale], [scale]]


# ---- what users do ---------------------------------------------------------------------------------------------------


@needs_mjlab
@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("Mjlab-Cartpole", {}, "mjlab has no task 'Mjlab-Cartpole', only Mjlab-Cartpole-Balance, "),
        ("no_module:Task", {}, "no_module:Task: No module named 'no_module'"),
        ("Mjlab-Lift-Cube-Yam-Rgb", {}, "observes actor, critic, camera; agents here take actor, and critic beside it"),
        ("Mjlab-Tracking-Flat-Unitree-G1", {}, "needs a motion_file to imitate"),
        ("Mjlab-Tracking-Flat-Unitree-G1", {"motion_file": "nowhere.npz"}, "cannot make .*nowhere.npz"),
        (BALANCE, {"motion_file": "nowhere.npz"}, "takes no motion_file"),
        (BALANCE, {"colour": 1}, "has no option 'colour', only action_range, max_episode_steps and motion_file"),
        (BALANCE, {"num_envs": 0}, "num_envs is 0"),
        (BALANCE, {"max_episode_steps": 0}, "max_episode_steps is 0"),
        (BALANCE, {"action_range": 0}, "action_range is 0, must be a positive number"),
        (BALANCE, {"action_range": "wide"}, "action_range is 'wide'"),
    ],
)
def test_mistakes_are_told_in_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as info:
        make(task, **options)
    assert "\n" not in str(info.value)


@needs_mjlab
def test_wrong_use_is_named() -> None:
    with pytest.raises(TaskError, match="device is mps, but mjlab has only cpu and cuda"):
        mjlab.make(BALANCE, 2, 0, torch.device("mps"))
    env = make(BALANCE, 2)
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(torch.zeros(2, 1))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(2, 1\)"):
        env.step(torch.zeros(2, 3))


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", missing)
    with pytest.raises(TaskError, match=r"the package mjlab is missing: pip install 'semrl\[mjlab\]'"):
        mjlab.load()


def test_versions_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"mjlab": "1.6.0", "mujoco": "4.0.0", "torch": "2.13.0+cpu"}
    asked = ["mujoco~=3.11.0", "torch>=2.7.0", "tqdm>=9", 'torch>=99; extra == "cu128"']
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    with pytest.raises(TaskError, match=r"^mjlab 1.6.0 needs mujoco~=3.11.0, but 4.0.0 is installed: pip install"):
        mjlab.check_versions()
    versions["mujoco"] = "3.11.0"
    mjlab.check_versions()


@needs_mjlab
@pytest.mark.parametrize("task", [BALANCE, "own"])
def test_fasttd3_trains_on_it(task: str, own: str, tmp_path: Path) -> None:
    """Unchanged, as users start it; what mjlab logs is in the metrics."""
    flags = {
        "env-id": own if task == "own" else task,
        "backend": "mjlab",
        "device": "cpu",
        "size": "small",
        "num-envs": N,
        "eval-envs": 2,
        "total-timesteps": 240,
        "log-every": 120,
        "eval-every": 240 if task == "own" else 0,  # an episode of the other one is long
        "learning-starts": 40,
        "batch-size": 32,
        "buffer-size": 240,
        "threads": 1,
        "run-dir": tmp_path / "run",
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    assert fasttd3.main([*words, "--quiet"]) == 0
    with open(tmp_path / "run" / "metrics.csv", newline="") as file:
        values = {row["metric"]: float(row["value"]) for row in csv.DictReader(file)}
    assert all(math.isfinite(value) for value in values.values()) and "losses/qf_loss" in values
    if task == "own":
        assert 0 < values["Episode_Termination/fallen"] <= 1 and values["Episode_Reward/smooth_reward"] > 0
        assert values["eval/episodes"] == 2


@needs_mjlab
@pytest.mark.slow
@pytest.mark.parametrize("task", mjlab.TASKS)
def test_every_task_runs(task: str, tmp_path: Path) -> None:
    """A cold cache of kernels takes a minute for each kind of robot."""
    options: dict[str, Any] = {}
    if "Tracking" in task:
        options["motion_file"] = motion(tmp_path / "motion.npz")
    env = make(task, 2, **options)
    obs, critic_obs = env.reset()
    assert env.privileged == ("Cartpole" not in task and "Cube" not in task)
    for action in actions(env, 4):
        step = env.step(action)
        assert step.valid.all() and step.obs.isfinite().all() and step.critic_obs.isfinite().all()
        assert step.obs.shape == obs.shape and step.critic_obs.shape == critic_obs.shape


def motion(file: Path) -> str:
    """Write a motion of the G1: it stands still for a second."""
    from mjlab.asset_zoo.robots import get_g1_robot_cfg
    from mjlab.entity import Entity

    model = Entity(get_g1_robot_cfg()).spec.compile()
    frames, bodies, joints = 50, model.nbody - 1, model.nu
    upright = np.tile([1.0, 0.0, 0.0, 0.0], (frames, bodies, 1))
    still = np.zeros((frames, bodies, 3))
    rows = {
        "body_pos_w": np.tile([0.0, 0.0, 0.8], (frames, bodies, 1)),
        "body_lin_vel_w": still,
        "body_ang_vel_w": still,
    }
    angles = np.zeros((frames, joints))
    np.savez(file, fps=[50], joint_pos=angles, joint_vel=angles, body_quat_w=upright, **rows)
    return str(file)
