"""The HumanoidBench package behind the contract, and as the oracle of the native port.

The package is on no registry, so most of this is skipped where it cannot be imported. What does not need its robots is
tried with a package of a few lines in its place.
"""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import humanoidbench, humanoidbench_tasks
from envs import humanoidbench_upstream as upstream
from envs.base import TaskError
from envs.check import draw_actions, examine, play, random_states

needs_package = pytest.mark.skipif(
    not (find_spec("humanoid_bench") and find_spec("dm_control")),
    reason=f"HumanoidBench is missing: {upstream.INSTALL}",
)
CPU = torch.device("cpu")


def make(task: str, num_envs: int = 2, seed: int = 0, vectorization: str = "sync", **options: Any) -> Any:
    return upstream.make(task, num_envs, seed, CPU, vectorization=vectorization, **options)


# ---- a package of a few lines ----------------------------------------------------------------------------------------

SCENE = """<mujoco><option timestep="0.002"/>
<worldbody><body pos="0 0 1"><joint name="slide" type="slide" axis="0 0 1"/>
<geom size=".1" mass="1"/></body></worldbody><actuator><position joint="slide" kp="50" ctrlrange="-1 3"/></actuator>
<keyframe><key qpos="0.5"/></keyframe></mujoco>"""
PACKAGE = """
import jax.numpy as jnp
from gymnasium.envs import register
from . import env
for task in env.TASKS:
    register(f"h1-{task}-v0", "humanoid_bench.env:HumanoidEnv", max_episode_steps=30, kwargs={"task": task})
"""
ENV = """
import os
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from humanoid_bench.dmc_deps import dmc_sizes

class Task:
    success_bar = 8
TASKS = {"reach": Task, "walk": Task}

class HumanoidEnv(MujocoEnv):
    metadata = {"render_modes": [], "render_fps": 50}

    def __init__(self, task, render_mode="rgb_array", randomness=0.01):
        assert render_mode is None, "a window would open"
        print("No randomness in this env.")
        for struct, names in dmc_sizes.array_sizes.items():  # as its indexer does
            for name in names:
                getattr({"mjmodel": mujoco.MjModel, "mjdata": mujoco.MjData}[struct], name)
        scene = os.path.join(os.path.dirname(__file__), "assets", "envs", f"h1_pos_{task}.xml")
        super().__init__(scene, 10, Box(-np.inf, np.inf, (3,)), default_camera_config={}, render_mode=render_mode)
        self.randomness, self.action_space = randomness, Box(-1, 1, (1,), np.float32)

    def reset_model(self):
        self.goal = np.random.uniform(1, 2)
        noise = self.np_random.uniform(-self.randomness, self.randomness, size=1)
        self.set_state(self.model.key(0).qpos + noise, self.init_qvel)
        return np.concatenate([self.data.qpos, self.data.qvel, [self.goal]])

    def step(self, action):
        self.do_simulation(1 + 2 * action, 10)
        if action[0] > 0.999:
            self.data.qpos[0] = np.nan
            mujoco.mj_step(self.model, self.data)
        obs = np.concatenate([self.data.qpos, self.data.qvel, [self.goal]])
        return obs, float(obs[0]), bool(obs[0] > self.goal - 0.3), False, {}
"""
SIZES = (
    'array_sizes = {"mjmodel": {"body_pos": ("nbody", 3), "no_more": (1,)}, "mjdata": {"qpos": ("nq",), "gone": (1,)}}'
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A humanoid_bench of one joint, which draws from both generators, wants JAX and opens windows."""
    import gymnasium

    folder = tmp_path / "humanoid_bench"
    (folder / "assets" / "envs").mkdir(parents=True)
    (folder / "dmc_deps").mkdir()
    for name in ("h1_pos_reach", "h1_pos_walk", "g1_torque_walk", "h1_pos_kitchen", "g1_pos_walk", "common"):
        text = "<mujoco><nonsense/></mujoco>" if "kitchen" in name else SCENE
        (folder / "assets" / "envs" / f"{name}.xml").write_text(text)
    for name, text in {"__init__": PACKAGE, "env": ENV, "dmc_deps/__init__": "", "dmc_deps/dmc_sizes": SIZES}.items():
        (folder / f"{name}.py").write_text(text)
    mine = [name for name in sys.modules if name.partition(".")[0] == "humanoid_bench"]
    real = {name: sys.modules.pop(name) for name in mine}
    registered = dict(gymnasium.registry)
    monkeypatch.syspath_prepend(tmp_path)
    upstream.load.cache_clear()
    yield
    upstream.load.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "humanoid_bench"]:
        del sys.modules[name]
    sys.modules.update(real)
    gymnasium.registry.clear()
    gymnasium.registry.update(registered)


def test_tasks_are_those_with_a_scene(package: None) -> None:
    assert upstream.tasks() == ["g1-walk-v0", "h1-kitchen-v0", "h1-reach-v0", "h1-walk-v0"]


def test_what_it_needs_is_there_only_while_it_is_imported(package: None) -> None:
    before = sys.modules.get("jax")
    env = upstream.load()
    assert sys.modules.get("jax") is before and env.dmc_sizes.array_sizes == {
        "mjmodel": {"body_pos": ("nbody", 3)},
        "mjdata": {"qpos": ("nq",)},
    }


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_both_generators_are_seeded_and_the_global_one_is_left_alone(
    package: None, vectorization: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Forked processes would all have the goal of the first; another seed must give others, the same one the same."""
    state = random_states()
    envs = [make("h1-reach-v0", 3, seed, vectorization) for seed in (0, 1)]
    (first, _), (second, _) = (env.reset() for env in envs)
    (again, _) = envs[1].reset(0)
    for column in (0, 2):  # of the pose and of the goal
        assert len(torch.cat([first, second])[:, column].unique()) == 6
    assert torch.equal(first, again)
    for env in envs:
        env.close()
        env.close()
    assert random_states() == state and capfd.readouterr().out == ""


def test_processes_change_nothing(package: None) -> None:
    one, other = (make("h1-reach-v0", 2, 3, kind, max_episode_steps=5) for kind in ("sync", "async"))
    moves = [0.9 * action for action in draw_actions(one, 12, 0)]
    assert play(one, moves) == play(other, moves, split=True)
    other.close()


def test_the_package_keeps_the_contract(package: None) -> None:
    report = examine(lambda num_envs, seed: make("h1-walk-v0", num_envs, seed, max_episode_steps=9), steps=60)
    assert report.violations == [] and [line for line in report.unseen if "snapshots" not in line] == []


def test_success_is_a_return_at_the_bar(package: None) -> None:
    env = make("h1-walk-v0", 1)
    assert env.max_episode_steps == 30
    env.reset()
    total, reached = 0.0, False
    for _ in range(60):
        step = env.step(torch.full((1, 1), -0.2))
        total += step.reward.item()
        assert step.metrics["success"].item() == (total >= 8)
        reached |= total >= 8
        total *= not (step.terminated | step.truncated).item()
    assert reached


def test_a_state_that_mujoco_gave_up_is_quarantined(package: None) -> None:
    env = make("h1-walk-v0")
    acted_on, _ = env.reset()
    step = env.step(torch.tensor([[1.0], [0.0]]))
    assert step.valid.tolist() == [False, True] and torch.equal(step.next_obs[0], acted_on[0])
    assert env.step(torch.zeros(2, 1)).valid.all()


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("h1-wlk-v0", {}, "HumanoidBench has no task 'h1-wlk-v0', did you mean h1-walk-v0"),
        ("h1-walk-v0", {"small_obs": True}, "no option 'small_obs' .it has max_episode_steps, randomness, vectoriz"),
        ("h1-walk-v0", {"vectorization": "both"}, "vectorization is 'both', must be"),
        ("h1-walk-v0", {"num_envs": 0}, "num_envs is 0, must be a whole number of at least 1"),
        ("h1-walk-v0", {"max_episode_steps": 0}, "max_episode_steps is 0, must be"),
        ("g1-walk-v0", {}, "g1-walk-v0 needs vectorization 'async'"),
        ("h1-kitchen-v0", {}, "HumanoidBench cannot make h1-kitchen-v0: "),
    ],
)
def test_wrong_use_is_named(package: None, task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as info:
        make(task, **options)
    assert "\n" not in str(info.value)


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "humanoid_bench", None)
    with pytest.raises(
        TaskError, match=r"HumanoidBench cannot be used \(.*\): clone github.com/carlosferrazza"
    ) as info:
        upstream.load.__wrapped__()
    assert "\n" not in str(info.value)


# ---- the real one ----------------------------------------------------------------------------------------------------


@needs_package
def test_every_native_task_is_there() -> None:
    assert set(humanoidbench.tasks()) <= set(upstream.tasks())
    bars = {name: kind.success_bar for name, kind in upstream.load().TASKS.items()}
    assert {name: task.bar for name, task in humanoidbench_tasks.TASKS.items()}.items() <= bars.items()


@needs_package
@pytest.mark.parametrize("task", ["h1-walk-v0", "h1-reach-v0"])
def test_the_native_port_moves_as_the_package_does(task: str) -> None:
    """From the package's own state, over one step, on the package's own scene: all numbers, bit for bit or nearly."""
    package = find_spec("humanoid_bench")
    assert package and package.submodule_search_locations
    theirs = make(task)
    ours: Any = humanoidbench.make(task, 2, 0, CPU, scenes=package.submodule_search_locations[0])
    worlds = [env._env.unwrapped for env in theirs._vector.envs]
    ours.reset()
    theirs.reset()
    for action in draw_actions(theirs, 40, 1):
        for row, world in enumerate(worlds):
            for name, rows in ours._physics.state.items():
                rows[row] = getattr(world.data, name)
            if "goal" in ours._memory:
                ours._memory["goal"][row] = torch.from_numpy(np.asarray(world.task.goal))
        expected, step = theirs.step(0.5 * action), ours.step(0.5 * action)
        assert torch.equal(step.terminated, expected.terminated)
        for name in ("next_obs", "reward"):
            torch.testing.assert_close(getattr(step, name), getattr(expected, name), atol=1e-6, rtol=1e-6)


@needs_package
def test_goals_differ_between_environments_and_seeds() -> None:
    def goals(seed: int) -> Tensor:
        return make("h1-reach-v0", 2, seed).reset()[0][:, -3:]

    both = torch.cat([goals(0), goals(1)])
    assert len(both.unique(dim=0)) == 4 and torch.equal(goals(0), both[:2])


@needs_package
@pytest.mark.slow
@pytest.mark.parametrize("task", ["h1hand-package-v0", "h1hand-cabinet-v0"])
def test_manipulation_runs_in_processes(task: str) -> None:
    env = make(task, 2, vectorization="async", max_episode_steps=3)
    env.reset()
    for action in draw_actions(env, 5, 0):
        step = env.step(action)
        assert step.valid.all() and step.obs.shape == (2, *env.obs_space.shape)
    env.close()


@needs_package
@pytest.mark.slow
def test_the_real_package_keeps_the_contract() -> None:
    report = examine(
        lambda num_envs, seed: make("h1-walk-v0", num_envs, seed, max_episode_steps=12), steps=40, num_envs=2
    )
    assert report.violations == []
