"""Gymnasium's MuJoCo tasks on MuJoCo Warp: against Gymnasium itself, as functions of a state and step by step."""

import inspect
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import envs
from envs import mjwarp, mjwarp_tasks
from envs.base import Step, TaskError
from envs.check import examine
from envs.mjwarp import MjwarpEnv
from envs.mjwarp_tasks import TASKS, Draws, Hopper, Physics, Task

pytestmark = pytest.mark.filterwarnings("ignore:MULTICCD is enabled")  # of Pusher's model
needs_warp = pytest.mark.skipif(
    not find_spec("mujoco_warp"), reason="MuJoCo Warp is not installed: pip install 'semrl[mjwarp]'"
)
each_task = pytest.mark.parametrize("task", TASKS)
ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
ENGINE = {"max_episode_steps", "nconmax", "njmax"}  # options that Gymnasium's classes do not have
N = 16


def oracle(task: str, **options: Any) -> Any:
    """Gymnasium's own environment, which never resets."""
    return gym.make(task, max_episode_steps=-1, disable_env_checker=True, **options).unwrapped


def physics_of(env: Any, task: Task) -> Physics:
    """What Gymnasium's simulator holds now, in float64."""
    names = {"qpos", "qvel", "ctrl", *task.reads}
    arrays = {name: torch.from_numpy(getattr(env.data, name).copy())[None] for name in names}
    return Physics(env.model, task.frame_skip, arrays)


def action_of(env: Any, action: np.ndarray) -> np.ndarray:
    """From [-1, 1] to the task's range, in float32."""
    low, high = env.action_space.low, env.action_space.high
    return ((high + low) / 2 + (high - low) / 2 * action).astype(np.float32)


def make(task: str, num_envs: int = 2, seed: int = 0, **options: Any) -> Any:
    return mjwarp.make(task, num_envs, seed, CPU, **options)


@cache
def made(task: str) -> MjwarpEnv:
    """One environment of 16 worlds that tests share; those that use it put it into the state that they need."""
    return make(task, N, 3)


def put(env: MjwarpEnv, state: dict[str, Any], position: Any = None) -> None:
    """Put worlds into a state in the middle of an episode."""
    env.reset()
    for name, rows in state.items():
        env._physics.state[name].copy_(torch.as_tensor(np.asarray(rows)))
    if position is not None:
        env._position = torch.as_tensor(np.asarray(position)).float()


def actions(env: MjwarpEnv, count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.rand(env.num_envs, *env.action_space.shape, generator=generator) - 1 for _ in range(count)]


def rows_of(step: Step, keep: list[int]) -> list[Tensor]:
    return [tensor[keep] for tensor in step[:8]]


# ---- the tasks as functions of a state -------------------------------------------------------------------------------


def changed(task: str) -> dict[str, Any]:
    """Every option of a task with another value."""
    found: dict[str, Any] = {}
    for name, value in TASKS[task].options().items():
        if isinstance(value, bool):
            found[name] = not value
        elif isinstance(value, float):
            found[name] = 1.5 * value
        elif isinstance(value, tuple):
            found[name] = (value[0] - 0.05, 0.75 * value[1])
        elif name == "frame_skip":
            found[name] = value + 1
    return found


@each_task
def test_options_are_gymnasiums(task: str) -> None:
    theirs = inspect.signature(type(oracle(task)).__init__).parameters
    expected = {name: value.default for name, value in theirs.items() if value.default is not inspect.Parameter.empty}
    del expected["default_camera_config"]
    mine = TASKS[task].options()
    assert {name: value for name, value in mine.items() if name not in ENGINE} == expected
    assert mine["max_episode_steps"] == gym.spec(task).max_episode_steps


@pytest.mark.parametrize("change", [False, True], ids=["defaults", "changed options"])
@each_task
def test_observation_reward_and_end_are_gymnasiums_functions_of_the_state(task: str, change: bool) -> None:
    options = changed(task) if change else {}
    env, mine = oracle(task, **options), TASKS[task](**options)
    rng = np.random.default_rng(0)
    first, _ = env.reset(seed=0)
    np.testing.assert_array_equal(mine.observe(physics_of(env, mine))[0], first)
    ends = 0
    for t in range(150):
        before = mine.position(physics_of(env, mine))
        action = action_of(env, rng.uniform(-1, 1, env.action_space.shape)).astype(np.float64)
        obs, reward, terminated, _, _ = env.step(action)  # float32 would be squared in float32
        now = physics_of(env, mine)
        np.testing.assert_allclose(mine.observe(now)[0], obs, rtol=1e-14, atol=1e-15)  # a sine may differ in a bit
        velocity = (mine.position(now) - before) / now.dt
        assert mine.reward(now, velocity).item() == pytest.approx(reward, rel=1e-12, abs=1e-12)
        assert mine.terminated(now).item() == terminated
        ends += terminated
        if terminated or t % 50 == 49:
            env.reset()
    never = ("Ant", "HalfCheetah", "HumanoidStandup", "Pusher", "Reacher", "Swimmer")  # Ant: in some hundred steps
    assert ends or task.startswith(never) or "terminate_when_unhealthy" in options


@each_task
def test_episodes_begin_as_in_gymnasium(task: str) -> None:
    env, mine = oracle(task), TASKS[task]()
    env.reset(seed=0)
    theirs: dict[str, Any] = {"qpos": [], "qvel": []}
    for _ in range(400):
        env.reset()
        for name, rows in theirs.items():
            rows.append(getattr(env.data, name).copy())
    physics = physics_of(env, mine)
    start = mine.start(physics, Draws(2000, torch.Generator().manual_seed(0)))
    for name, rows in theirs.items():
        for k, values in enumerate(np.array(rows).T):
            ours = start[name][:, k].numpy()
            if np.ptp(values) == 0:
                assert np.ptp(ours) == 0 and ours[0] == pytest.approx(values[0])
            else:
                assert ks_2samp(values, ours).pvalue > 1e-4, f"{name}[{k}]"
    if task == "Reacher-v5":
        assert start["qpos"][:, 2:].norm(dim=1).max() < 0.2
    if task == "Pusher-v5":
        assert start["qpos"][:, -4:-2].norm(dim=1).min() > 0.17


def test_a_task_says_what_it_reads() -> None:
    env = oracle("Hopper-v5")
    physics = physics_of(env, Hopper())
    with pytest.raises(AttributeError, match=r"physics.xpos is not there: name it in the task's `reads`"):
        _ = physics.xpos


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"healthy": 1.0}, r"Hopper has no option 'healthy' \(it has ctrl_cost_weight, .*xml_file\)"),
        ({"reads": ()}, "Hopper has no option 'reads'"),
        ({"healthy_reward": "much"}, "healthy_reward is 'much', must be like its default 1.0"),
        ({"terminate_when_unhealthy": 1}, "terminate_when_unhealthy is 1, must be like its default True"),
        ({"healthy_z_range": (0.1,)}, r"healthy_z_range is \(0.1,\), must be like its default \(0.7, inf\)"),
        ({"frame_skip": 1.5}, "frame_skip is 1.5, must be like its default 4"),
        ({"xml_file": 3}, "xml_file is 3, must be like"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as info:
        make("Hopper-v5", **options)
    assert "\n" not in str(info.value)


# ---- the engine against Gymnasium ------------------------------------------------------------------------------------

# Errors of one step from the same state, relative to 1 + |value|: of the observation in the median and at most, and of
# the reward at most. The humanoids' solver is another one. Ant's are below, with two kinds of contacts.
BOUNDS = {
    "HalfCheetah-v5": (1e-5, 5e-4, 2e-5),
    "Hopper-v5": (1e-6, 5e-6, 2e-6),
    "Humanoid-v5": (1e-5, 1e-3, 2e-5),
    "HumanoidStandup-v5": (1e-4, 5e-3, 1e-5),
    "InvertedDoublePendulum-v5": (2e-6, 2e-5, 2e-6),
    "InvertedPendulum-v5": (5e-7, 2e-6, 0.0),
    "Pusher-v5": (2e-6, 5e-5, 1e-6),
    "Reacher-v5": (1e-6, 5e-6, 5e-7),
    "Swimmer-v5": (2e-6, 2e-5, 2e-6),
    "Walker2d-v5": (1e-5, 2e-4, 1e-5),
}


def errors_of_one_step(env: Any, mine: MjwarpEnv, kind: Task) -> tuple[np.ndarray, np.ndarray]:
    """Errors of observations [M, D] and rewards [M], each one step after Gymnasium's state, relative to 1 + |value|."""
    rng = np.random.default_rng(0)
    obs_errors, reward_errors = [], []
    for batch in range(8):
        if batch % 3 == 0:
            env.reset(seed=batch)
        rows: dict[str, list[Any]] = {"qpos": [], "qvel": [], "qacc_warmstart": []}
        position, action, results = [], [], []
        for _ in range(N):
            for name, values in rows.items():
                values.append(getattr(env.data, name).copy())
            position.append(kind.position(physics_of(env, kind))[0].numpy())
            action.append(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            results.append(env.step(action_of(env, action[-1])))
            if results[-1][2]:
                env.reset()
        put(mine, rows, position)
        step = mine.step(torch.from_numpy(np.array(action)))
        obs, reward, terminated = (np.array([result[k] for result in results]) for k in range(3))
        assert np.array_equal(step.terminated, terminated) and step.valid.all()
        obs_errors.append(np.abs(step.next_obs.numpy() - obs) / (1 + np.abs(obs)))
        reward_errors.append(np.abs(step.reward.numpy() - reward) / (1 + np.abs(reward)))
    return np.concatenate(obs_errors), np.concatenate(reward_errors)


@needs_warp
@pytest.mark.parametrize("task", BOUNDS)
def test_one_step_from_the_same_state_is_gymnasiums(task: str) -> None:
    obs, reward = errors_of_one_step(oracle(task), made(task), TASKS[task]())
    typical, worst, worst_reward = BOUNDS[task]
    assert np.median(obs.max(1)) <= typical and obs.max() <= worst
    assert reward.max() <= worst_reward


@needs_warp
def test_ant_differs_in_the_friction_of_steep_legs_alone(tmp_path: Path) -> None:
    """With cones of friction instead of pyramids, which can be turned, it is as exact as the others."""
    obs, reward = errors_of_one_step(oracle("Ant-v5"), made("Ant-v5"), TASKS["Ant-v5"]())
    differs = obs.max(1) > 1e-3
    assert 0 < differs.mean() < 0.6 and np.median(obs[~differs].max(1)) < 1e-5
    assert obs.max() <= 2 and reward.max() < 0.5
    xml = mjwarp.locate("ant.xml").read_text()
    assert xml.count('<option integrator="RK4"') == 1
    file = tmp_path / "ant.xml"
    file.write_text(xml.replace('<option integrator="RK4"', '<option cone="elliptic" integrator="RK4"'))
    cones = {"xml_file": str(file)}
    obs, reward = errors_of_one_step(oracle("Ant-v5", **cones), make("Ant-v5", N, **cones), TASKS["Ant-v5"]())
    assert np.median(obs.max(1)) < 1e-5 and np.quantile(obs.max(1), 0.95) < 1e-4 and obs.max() < 1e-2
    assert reward.max() < 5e-5


@needs_warp
@each_task
def test_first_observations_are_gymnasiums(task: str) -> None:
    """Forces are 0, positions and velocities of bodies those of the very state."""
    env, mine = oracle(task), made(task)
    obs, _ = mine.reset(seed=5)
    state = mine._physics.state
    for k in range(4):
        env.reset()
        gym.envs.mujoco.MujocoEnv.reset(env)  # clears the simulator
        env.set_state(*(state[name][k].double().numpy() for name in ("qpos", "qvel")))
        np.testing.assert_allclose(obs[k], env._get_obs(), rtol=1e-5, atol=1e-5)


FALL = ("Hopper-v5", "Walker2d-v5", "Humanoid-v5", "InvertedPendulum-v5", "InvertedDoublePendulum-v5")


@needs_warp
@pytest.mark.parametrize("task", FALL)  # the others do not; Ant seldom
def test_free_runs_terminate_in_the_same_step(task: str) -> None:
    env, mine = oracle(task), made(task)
    stream = actions(mine, 80, seed=2)
    mine.reset(seed=11)
    starts = {name: mine._physics.state[name].clone().double().numpy() for name in ("qpos", "qvel")}
    ends = torch.full((N,), -1)
    for t, action in enumerate(stream):
        ends = torch.where((ends < 0) & mine.step(action).terminated, t, ends)
    for k in range(6):
        env.reset(seed=0)
        env.set_state(starts["qpos"][k], starts["qvel"][k])
        flags = (env.step(action_of(env, action[k].numpy()))[2] for action in stream)
        assert next(t for t, flag in enumerate(flags) if flag) == ends[k]


@needs_warp
@each_task
def test_the_same_policy_earns_the_same_on_all_engines(task: str) -> None:
    """Mean returns of 100 episodes, of a policy that does something: a fixed random network."""
    results = []
    for backend in ("mjwarp", "envpool", "gymnasium"):
        if backend not in envs.backends():
            continue
        env = envs.make(task, 100, 7, backend=backend, max_episode_steps=40)
        generator = torch.Generator().manual_seed(0)
        weights = 0.5 * torch.randn(env.obs_space.shape[0], env.action_space.shape[0], generator=generator)
        weights[27:] = 0  # contact forces
        obs, _ = env.reset()
        returns, alive = torch.zeros(100), torch.ones(100, dtype=torch.bool)
        for _ in range(40):
            step = env.step((obs @ weights).tanh())
            returns += step.reward * alive
            alive &= ~(step.terminated | step.truncated)
            obs = step.obs
        assert not alive.any()
        results.append((returns.mean(), returns.var() / 100))
        env.close()
    (mean, variance), *others = results
    assert others
    for other, its_variance in others:
        assert abs(mean - other) < 3 * (variance + its_variance).sqrt()


# ---- the contract ----------------------------------------------------------------------------------------------------


@needs_warp
@pytest.mark.parametrize(
    ("task", "steps", "limit"),
    [("HalfCheetah-v5", 40, 12), ("Hopper-v5", 60, 12), ("InvertedDoublePendulum-v5", 60, 5)],
)
def test_keeps_the_contract(task: str, steps: int, limit: int) -> None:
    report = examine(lambda n, seed: envs.make(task, n, seed, backend="mjwarp", max_episode_steps=limit), steps)
    assert report.violations == []
    assert [line.partition(":")[0] for line in report.unseen] == (["termination"] if "Cheetah" in task else [])


@needs_warp
@pytest.mark.parametrize("corners", [4, 8, 9, 40, 300])
def test_a_mesh_touches_a_plane_where_it_does_in_c(corners: int) -> None:
    """Random meshes in random places, the plane tilted: the same points, at the same depths."""
    from envs.mjwarp import load

    mujoco, mjw, wp = load()
    rng, worlds = np.random.default_rng(corners), 64
    spec = mujoco.MjSpec()
    points = rng.normal(size=(corners, 3))
    spec.add_mesh(name="rock", uservert=(0.2 * points / np.linalg.norm(points, axis=1)[:, None]).ravel())
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=(5, 5, 1), pos=(0.1, 0, 0.3), quat=(1, 0.2, -0.1, 0))
    body = spec.worldbody.add_body()
    body.add_freejoint()
    body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname="rock")
    model = spec.compile()
    data, seen = mujoco.MjData(model), mjw.make_data(model, worlds, nconmax=8)
    places = np.concatenate([rng.uniform(-0.2, 0.2, (worlds, 2)), rng.uniform(0.2, 0.5, (worlds, 1))], 1)
    turns = rng.normal(size=(worlds, 4))
    qpos = np.concatenate([places, turns / np.linalg.norm(turns, axis=1)[:, None]], 1).astype(np.float32)
    wp.copy(seen.qpos, wp.array(qpos, dtype=wp.float32))
    mjw.forward(mjw.put_model(model), seen)
    count = seen.nacon.numpy()[0]
    mine = np.concatenate([seen.contact.pos.numpy(), seen.contact.dist.numpy()[:, None]], 1)[:count]
    numbers = []
    for world, row in enumerate(qpos):
        data.qpos[:] = row
        mujoco.mj_forward(model, data)
        theirs = np.array([(*contact.pos, contact.dist) for contact in data.contact]).reshape(-1, 4)
        ours = mine[seen.contact.worldid.numpy()[:count] == world]
        assert np.allclose(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=2e-6)
        numbers.append(len(theirs))
    assert {0, 1, 3} <= set(numbers)


@needs_warp
def test_the_recorded_physics_is_what_python_launches() -> None:
    mine = made("Hopper-v5")
    mine.reset(seed=0)
    physics = mine._physics
    start = {name: rows.clone() for name, rows in physics.state.items()}
    ends = []
    for work in (physics.step, physics._advance):
        for name, rows in physics.state.items():
            rows.copy_(start[name])
        for action in actions(mine, 6):
            physics.ctrl.copy_(action)
            work()
        ends.append({name: rows.clone() for name, rows in physics.state.items()})
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in start)
    assert not torch.equal(ends[0]["qpos"], start["qpos"])


@needs_warp
def test_a_restart_leaves_the_other_worlds_alone() -> None:
    one, other = make("Hopper-v5", 4), make("Hopper-v5", 4)
    one.reset(), other.reset()
    rest = [0, 1, 3]
    for t, action in enumerate(actions(one, 20)):
        if t == 5:
            other._physics.qpos[2, 2] = 1.0  # fallen
        left, right = one.step(action), other.step(action)
        assert right.terminated[2] if t == 5 else True
        assert all(torch.equal(a, b) for a, b in zip(rows_of(left, rest), rows_of(right, rest), strict=True))
        if t >= 5:
            assert not torch.equal(left.obs[2], right.obs[2])


@needs_warp
def test_termination_on_the_step_of_the_limit_is_no_truncation() -> None:
    env = make("Hopper-v5", 3, max_episode_steps=3)
    env.reset()
    for t in range(1, 7):
        if t == 3:
            env._physics.qpos[1, 2] = 1.0
        step = env.step(torch.zeros(3, 3))
        assert step.terminated.tolist() == [False, t == 3, False]
        assert step.truncated.tolist() == [t % 3 == 0, t == 6, t % 3 == 0]
        assert (step.obs == step.next_obs).all(1).tolist() == [t % 3 != 0, t % 3 != 0, t % 3 != 0]


@needs_warp
def test_a_world_that_is_not_finite_is_quarantined() -> None:
    env = make("Hopper-v5", 3)
    acted_on, _ = env.reset()
    env._physics.qvel[1, 0] = math.nan
    step = env.step(torch.zeros(3, 3))
    assert step.valid.tolist() == [True, False, True] == (~step.truncated).tolist()
    assert step.reward[1] == 0 and torch.equal(step.next_obs[1], acted_on[1]) and not step.terminated.any()
    for action in actions(env, 5):
        step = env.step(action)
        assert step.valid.all() and step.obs.isfinite().all()


@needs_warp
def test_snapshots_of_other_environments_are_refused() -> None:
    state = make("Hopper-v5", 2).state_dict()
    with pytest.raises(TaskError, match="another task or number of environments"):
        make("Hopper-v5", 3).load_state_dict(state)


@needs_warp
@pytest.mark.parametrize(("option", "size"), [("njmax", 2), ("nconmax", 1)])
def test_too_little_room_is_an_error_that_says_what_to_raise(option: str, size: int) -> None:
    env = make("Hopper-v5", 4, terminate_when_unhealthy=False, **{option: size})
    env.reset()
    message = rf"no room for all .* in \d of 4 worlds.*; {option} is {size}, make .* {option}={2 * size} or more"
    with pytest.raises(TaskError, match=message):
        for action in actions(env, 150):
            env.step(action)
    for late in (env.check, env.state_dict, env.reset):
        with pytest.raises(TaskError, match=message):
            late()


@needs_warp
@each_task
def test_there_is_room_for_what_a_random_policy_does(task: str) -> None:
    env = made(task)
    env.reset()
    for action in actions(env, 40):
        env.step(action.sign())
    env.check()


class NoSync(TorchDispatchMode):
    """Refuses what would wait for a GPU, on a CPU too."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not any(word in str(func) for word in ("local_scalar", "nonzero", "masked_select"))
        return func(*args, **(kwargs or {}))


@needs_warp
@each_task
def test_step_never_waits_for_the_device(task: str) -> None:
    env = made(task)
    env.reset()
    action = actions(env, 1)[0]
    with NoSync():
        for _ in range(7):
            env.step(action)
    with pytest.raises(AssertionError), NoSync():
        bool(action.any())


@needs_warp
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("task", ["HalfCheetah-v5", "Humanoid-v5"])
def test_a_gpu_is_not_waited_for_and_agrees_with_the_cpu(task: str) -> None:
    gpu = torch.device("cuda:0")
    one, other = make(task, N), mjwarp.make(task, N, 0, gpu)
    for env in (one, other):
        env.reset()
    assert isinstance(other, MjwarpEnv)
    action = actions(one, 1)[0]
    on_gpu = action.to(gpu)
    for name, rows in one._physics.state.items():
        other._physics.state[name].copy_(rows)
    other._position, other._obs = one._position.to(gpu), one._obs.to(gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step = other.step(on_gpu)
        for _ in range(mjwarp.CHECK_EVERY):
            other.step(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = one.step(action)
    errors = (step.next_obs.cpu() - expected.next_obs).abs() / (1 + expected.next_obs.abs())
    assert errors.amax(1).median() < 1e-4 and errors.max() < 1e-2
    torch.testing.assert_close(step.reward.cpu(), expected.reward, atol=1e-4, rtol=1e-4)


# ---- what users do ---------------------------------------------------------------------------------------------------


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example in the docstring of the tasks, as a file."""
    lines = (mjwarp_tasks.__doc__ or "").splitlines()
    code = "\n".join(line[4:] for line in lines if line.startswith("    "))
    assert len([line for line in code.splitlines() if line.strip()]) <= 30
    (tmp_path / "my_task.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_task:make"
    sys.modules.pop("my_task", None)


@needs_warp
def test_a_task_of_ones_own(own_task: str) -> None:
    env = envs.make(own_task, 3, max_episode_steps=40)
    assert (env.task, env.obs_space.shape, env.action_space.shape) == (own_task, (11,), (1,))
    env.reset()
    step = env.step(torch.ones(3, 1))
    expected = 1 - 2 * env._physics.xpos[:, 2, 0].abs() - 0.01 * 2**2  # type: ignore[attr-defined]
    torch.testing.assert_close(step.reward, expected, atol=1e-2, rtol=0)  # a physics step later
    report = examine(lambda n, seed: envs.make(own_task, n, seed, max_episode_steps=15), steps=60)
    assert report.violations == [] and not [line for line in report.unseen if "truncation" in line]


@needs_warp
def test_a_model_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    free = "<mujoco><worldbody><body><freejoint/><geom size='1'/></body></worldbody></mujoco>"
    for xml, message in (
        ("nowhere.xml", "there is no model .*nowhere.xml; a path of your own begins with"),
        (str(tmp_path / "none.xml"), "there is no model"),
        (free, "an actuator has no ctrlrange, or there is none"),
        ("<mujoco><nonsense/></mujoco>", "MuJoCo cannot load"),
    ):
        with pytest.raises(TaskError, match=message) as info:
            make("Hopper-v5", xml_file=xml)
        assert "\n" not in str(info.value)


@needs_warp
def test_wrong_use_is_named() -> None:
    with pytest.raises(TaskError, match="num_envs is 0"):
        make("Hopper-v5", 0)
    with pytest.raises(TaskError, match="njmax is 0"):
        make("Hopper-v5", njmax=0)
    with pytest.raises(TaskError, match="has no task 'Hopper-v4', only Ant-v5, "):
        make("Hopper-v4")
    with pytest.raises(TaskError, match="device is mps, but MuJoCo Warp has only cpu and cuda"):
        mjwarp.make("Hopper-v5", 2, 0, torch.device("mps"))
    env = make("Hopper-v5")
    with pytest.raises(RuntimeError, match="call reset"):
        env.step(torch.zeros(2, 3))
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \(2, 3\)"):
        env.step(torch.zeros(2, 4))
    with pytest.raises(TaskError, match="`reads` names 'nonsense'"):
        MjwarpEnv(type("Own", (Hopper,), {"reads": ("nonsense",)}), 2, 0, CPU)


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_warp", None)
    with pytest.raises(TaskError, match=r"MuJoCo Warp is missing \(.*\): pip install 'semrl\[mjwarp\]'"):
        mjwarp.load()


@needs_warp
def test_versions_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco_warp

    monkeypatch.setattr(mujoco_warp, "__version__", "2.9.1")
    with pytest.raises(TaskError, match=r"mujoco [\d.]+ and mujoco-warp 2.9.1 do not fit together"):
        mjwarp.load()


def test_a_gpu_prefers_this_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = ("mujoco_playground", "mjlab", "isaaclab", "humanoid_bench")
    monkeypatch.setattr(envs, "find_spec", lambda name: name not in optional)
    gpu = torch.device("cuda:0")
    assert envs._backend_of("Hopper-v5", "auto", gpu) == "mjwarp"
    assert envs._backend_of("Hopper-v5", "gymnasium", gpu) == "gymnasium"
    assert envs._backend_of("WalkerWalk-v1", "auto", gpu) == "envpool"
    assert envs._backend_of("Hopper-v5", "auto", CPU) == "envpool"
    assert envs._backend_of("PointMass-v0", "auto", gpu) == "torch"


@needs_warp
@pytest.mark.slow
@pytest.mark.parametrize(("agent", "frames"), [("ppo", 40_960), ("fasttd3", 20_000)])
def test_agents_learn(agent: str, frames: int, tmp_path: Path) -> None:
    """On a CPU, as users start it. A random policy keeps the pole up for 6 steps of 1,000."""
    flags = {
        "--env-id": "InvertedPendulum-v5",
        "--backend": "mjwarp",
        "--device": "cpu",
        "--num-envs": "16",
        "--seed": "2",
        "--total-timesteps": str(frames),
        "--eval-every": str(frames),
        "--run-dir": str(tmp_path / "run"),
    }
    command = [sys.executable, str(ROOT / "agents" / f"{agent}.py"), *(word for pair in flags.items() for word in pair)]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    scores = [float(line.split(",")[-1]) for line in lines if ",eval/episodic_return," in line]
    assert scores[-1] > 400


# ---- worlds whose physics differ -------------------------------------------------------------------------------------

RANGES = {"body_mass": (0.5, 1.5), "geom_friction": (0.3, 1.2), "dof_damping": (0.5, 2.0), "actuator_gear": (0.8, 1.2)}
RANGES |= {"dof_armature": (0.5, 2.0), "jnt_stiffness": (0.5, 2.0), "dof_frictionloss": (0.5, 2.0)}


@cache
def various(task: str) -> MjwarpEnv:
    """One environment of 16 worlds that tests share; those that use it reset it."""
    return make(task, N, 3, randomise=RANGES, variants=40)


def models_of(env: MjwarpEnv) -> list[Any]:
    return [env.mujoco(k)[0] for k in range(env.num_envs)]


@needs_warp
@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_models_are_within_their_ranges_and_like_the_model_in_all_else(task: str) -> None:
    env = various(task)
    env.reset(seed=1)
    plain, found = env._physics.model, models_of(env)
    masses = np.stack([model.body_mass for model in found])[:, 1:] / plain.body_mass[1:]
    assert masses.min() >= 0.5 - 1e-6 and masses.max() <= 1.5 + 1e-6
    assert masses.std(0).min() > 0.1 and masses.std(1).min() > 0.05  # from world to world, and from body to body
    for model in found:
        ratio = model.body_inertia[1:] / plain.body_inertia[1:]
        np.testing.assert_allclose(
            ratio, (model.body_mass / np.maximum(plain.body_mass, 1e-9))[1:, None] + 0 * ratio, 1e-5
        )
        for name in ("geom_friction", "dof_damping", "dof_armature", "actuator_gear", "jnt_stiffness"):
            old, new = getattr(plain, name), getattr(model, name)
            assert (new[old == 0] == 0).all()
            factors = new[old != 0] / old[old != 0]
            assert ((factors >= RANGES[name][0] - 1e-6) & (factors <= RANGES[name][1] + 1e-6)).all()
        for name in ("body_pos", "geom_size", "jnt_range", "qpos0", "actuator_ctrlrange"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(model, name))


@needs_warp
@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_what_follows_from_masses_is_that_of_the_model(task: str) -> None:
    """To derive it anew changes nothing, and it is not that of the model as it was."""
    import mujoco

    env = various(task)
    env.reset(seed=4)
    for model in models_of(env)[:4]:
        names = ("body_subtreemass", "body_invweight0", "dof_invweight0")
        before = {name: getattr(model, name).copy() for name in names}
        mujoco.mj_setConst(model, mujoco.MjData(model))
        for name in names:
            np.testing.assert_allclose(before[name], getattr(model, name), rtol=1e-5, atol=1e-9)
            assert np.abs(before[name] / np.maximum(getattr(env._physics.model, name), 1e-9) - 1).max() > 0.05


@needs_warp
@pytest.mark.parametrize("task", ["Hopper-v5", "Humanoid-v5"])
def test_worlds_hold_what_mujoco_warp_makes_of_their_models(task: str) -> None:
    """All arrays of its Model, those that MuJoCo derives from masses among them."""
    _, mujoco_warp, warp = mjwarp.load()
    env = various(task)
    env.reset(seed=2)
    compared = set()
    for k, model in enumerate(models_of(env)[:4]):
        with warp.ScopedDevice("cpu"):
            alone = mujoco_warp.put_model(model)
        for name, mine in vars(env._physics._model).items():
            theirs = getattr(alone, name)
            if isinstance(mine, warp.array) and mine.size and not name.startswith(("cam_", "light_")):
                here, there = mine.numpy(), theirs.numpy()
                row = here[k % len(here)] if name in env._physics.variants.names else here  # type: ignore[union-attr]
                there = there[0] if name in env._physics.variants.names else there  # type: ignore[union-attr]
                np.testing.assert_allclose(row, there, rtol=1e-6, err_msg=name)
                compared.add(name)
        np.testing.assert_allclose(env._physics._model.stat.meaninertia.numpy()[k], model.stat.meaninertia, rtol=1e-6)
    assert {"body_mass", "body_subtreemass", "dof_invweight0", "geom_friction", "qpos0"} <= compared


@needs_warp
@pytest.mark.parametrize("task", ["Hopper-v5", "HalfCheetah-v5"])
def test_worlds_move_as_c_mujoco_moves_their_models(task: str) -> None:
    import mujoco

    env = various(task)
    env.reset(seed=3)
    state = {name: env._physics.state[name].double().numpy() for name in ("qpos", "qvel")}
    models, action = models_of(env), actions(env, 1)[0]
    found = env.step(action)
    assert not (found.terminated | found.truncated).any()
    ctrl = action_of(oracle(task), action.numpy())
    errors, apart = [], []
    for k, model in enumerate(models):
        ends = []
        for one in (model, env._physics.model):
            data = mujoco.MjData(one)
            data.qpos, data.qvel, data.ctrl = state["qpos"][k], state["qvel"][k], ctrl[k]
            mujoco.mj_step(one, data, nstep=TASKS[task].frame_skip)
            ends.append(np.concatenate([data.qpos, data.qvel]))
        mine = torch.cat([env._physics.qpos[k], env._physics.qvel[k]]).numpy()
        errors.append(np.abs(mine - ends[0]).max())
        apart.append(np.abs(ends[1] - ends[0]).max())
    assert np.median(errors) < 1e-4 and max(errors) < 1e-2
    assert np.median(apart) > 0.1


@needs_warp
def test_each_episode_has_a_model_of_its_own_from_a_stream_of_its_own() -> None:
    env = make("Hopper-v5", 4, 3, randomise=RANGES, variants=40, max_episode_steps=5)
    plain = make("Hopper-v5", 4, 3, max_episode_steps=5)
    first, of_plain = env.reset(seed=1)[0], plain.reset(seed=1)[0]
    assert torch.equal(first, of_plain)  # the noise of a start is that of an environment that is not randomised
    seen = [env._chosen.clone()]
    for action in actions(env, 20):
        step = env.step(action)
        ended = step.terminated | step.truncated
        assert torch.equal(seen[-1][~ended], env._chosen[~ended])
        assert torch.equal(env._physics.models["body_mass"], env._pool["body_mass"][env._chosen])
        seen.append(env._chosen.clone())
    assert len(torch.stack(seen).unique()) > 8
    masses = {}
    for seed in (1, 2, 1):
        env.reset(seed=seed)
        mass = env._physics.models["body_mass"].clone()
        assert torch.equal(masses.setdefault(seed, mass), mass)
    assert not torch.equal(masses[1], masses[2])


@needs_warp
def test_randomised_worlds_keep_the_contract_and_continue_bit_for_bit() -> None:
    def build(num_envs: int, seed: int) -> Any:
        return make("Hopper-v5", num_envs, seed, randomise={"body_mass": (0.8, 1.2)}, variants=8, max_episode_steps=12)

    assert examine(build, 40).violations == []
    one, other = build(3, 1), build(3, 2)
    one.reset(seed=9), other.reset()
    for action in actions(one, 15):
        one.step(action)
    other.load_state_dict(one.state_dict())
    for action in actions(one, 30, 1):
        assert all(torch.equal(a, b) for a, b in zip(one.step(action)[:8], other.step(action)[:8], strict=True))
    assert torch.equal(one._chosen, other._chosen)
    for left, right in ((one, make("Hopper-v5", 3)), (make("Hopper-v5", 3), one)):
        with pytest.raises(TaskError, match="whose physics are randomised"):
            left.load_state_dict(right.state_dict())


@needs_warp
def test_randomised_worlds_do_not_wait_for_the_device() -> None:
    env = various("Hopper-v5")
    env.reset()
    action = actions(env, 1)[0]
    with NoSync():
        for _ in range(7):
            env.step(action)


@needs_warp
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"randomise": {"mass": (1, 2)}}, "randomise: 'mass' must be one of body_mass, geom_friction"),
        ({"randomise": {"body_mass": (1.2, 0.8)}}, "must be the lowest and highest factor, above 0"),
        ({"randomise": {"body_mass": (0.0, 1.0)}}, "must be the lowest and highest factor, above 0"),
        ({"randomise": {"body_mass": (1.0,)}}, "must be the lowest and highest factor"),
        ({"randomise": {"body_mass": (1.0, math.inf)}}, "must be the lowest and highest factor"),
        ({"randomise": {"body_mass": (1, 2)}, "variants": 0}, "variants is 0, must be a whole number"),
    ],
)
def test_ranges_that_are_none_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make("Hopper-v5", **words)
