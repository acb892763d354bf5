"""MuJoCo Playground behind the contract: against C MuJoCo, Playground's own wrapper, and a task made for its traps."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import playground
from envs.base import TaskError
from envs.check import draw_actions, examine, play

needs_playground = pytest.mark.skipif(
    not find_spec("mujoco_playground"), reason="MuJoCo Playground is not installed: pip install 'semrl[playground]'"
)
needs_robots = pytest.mark.skipif(
    not all(map(find_spec, playground.ASSETS)), reason="EnvPool's robots are not installed: pip install envpool"
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what Playground imports
ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
N = 4  # of all environments here: another number is compiled anew


def make(task: str, num_envs: int = N, seed: int = 0, **options: Any) -> Any:
    return playground.make(task, num_envs, seed, CPU, **options)


def actions(env: Any, count: int, seed: int = 0) -> list[Tensor]:
    return list(draw_actions(env, count, seed))


def close_enough(one: Any, other: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=tolerance, atol=tolerance)


TOY_XML = """<mujoco><worldbody><body><joint name="slide" type="slide"/><geom size=".1"/></body></worldbody>
<actuator><motor joint="slide" ctrlrange="-1 1"/></actuator></mujoco>"""


@pytest.fixture(scope="module")
def toy() -> Iterator[str]:
    """A task of one's own in Playground: no physics, but all that an adapter can get wrong, and quick to compile.

    The state x begins at random in [0, 1] and grows by `speed` and the first action; beyond `goal` it terminates. The
    second action at its highest spoils the reward or, with the third, the observation.
    """
    import jax
    import jax.numpy as jnp
    import mujoco
    from ml_collections import config_dict
    from mujoco import mjx
    from mujoco_playground import MjxEnv, State, dm_control_suite

    def config() -> Any:
        return config_dict.create(
            ctrl_dt=0.1, sim_dt=0.1, episode_length=20, action_repeat=1, goal=10.3, inner=config_dict.create(speed=0.5)
        )

    class Toy(MjxEnv):
        xml_path, action_size = "", 3
        mj_model = mujoco.MjModel.from_xml_string(TOY_XML)
        mjx_model = mjx.put_model(mj_model, impl="jax")

        def __init__(self, config: Any, config_overrides: Any = None) -> None:
            super().__init__(config, config_overrides)

        def observe(self, x: Any, info: Any) -> Any:
            state = jnp.stack([x, jnp.asarray(info["age"], float)])
            return {"state": state, "privileged_state": jnp.append(state, info["first"])}

        def reset(self, rng: Any) -> Any:
            x = jax.random.uniform(rng)
            data = mjx.make_data(self.mj_model, impl="jax").replace(qpos=x[None])
            info = {"rng": rng, "age": 0, "first": x}
            return State(data, self.observe(x, info), *jnp.zeros(2), {"reward/success": 0.0, "count": 0}, info)

        def step(self, state: Any, action: Any) -> Any:
            x = state.data.qpos[0] + self._config.inner.speed + 0.1 * action[0]
            info = state.info | {"age": state.info["age"] + 1}
            done = x > self._config.goal
            metrics = {"reward/success": done.astype(float), "count": info["age"]}
            reward = jnp.where(action[1] > 0.999, jnp.nan, x)
            obs = self.observe(jnp.where(action[2] > 0.999, jnp.inf, x), info)
            data = state.data.replace(qpos=x[None])
            return State(data, obs, reward, done.astype(float), metrics, info)

    name = "Toy"
    dm_control_suite.register_environment(name, Toy, config)
    yield f"{name}-v1"
    dm_control_suite._envs.pop(name)
    dm_control_suite._cfgs.pop(name)
    playground.engine.cache_clear()


# ---- the contract ----------------------------------------------------------------------------------------------------


@needs_playground
def test_toy_keeps_the_contract(toy: str) -> None:
    assert examine(lambda num_envs, seed: make(toy, num_envs, seed), steps=80) == ([], [])  # and leaves no rule untried


@needs_playground
def test_every_episode_begins_with_a_state_of_its_own(toy: str) -> None:
    """Playground's wrapper would begin each with the first one of its environment."""
    env = make(toy)
    starts = [env.reset()[1][:, 2]]
    for action in actions(env, 60):
        step = env.step(action)
        ended = step.terminated | step.truncated
        starts.append(step.critic_obs[ended, 2])
        assert torch.equal(step.obs[:, 1] == 0, ended)  # the task's own clock begins anew too
        assert (step.next_obs[:, 1] > 0).all()
    count = sum(map(len, starts))
    assert count > 3 * N and len(torch.cat(starts).unique()) == count


@needs_playground
def test_episodes_do_not_depend_on_the_other_environments(toy: str) -> None:
    """Row 1 plays the same episodes whatever row 0 does, and goes on from the same stream after a reset."""

    def starts(first_action: float) -> list[float]:
        env = make(toy)
        env.reset()
        action = torch.tensor([first_action, 0.0, 0.0, 0.0])[:, None] * torch.tensor([1.0, 0.0, 0.0])
        found = []
        for _ in range(40):
            step = env.step(action)
            found += step.critic_obs[1:2, 2][(step.terminated | step.truncated)[1:2]].tolist()
        return [*found, env.reset()[1][1, 2].item()]

    assert len(set(starts(1.0))) > 2 and starts(1.0) == starts(-1.0)


@needs_playground
def test_termination_wins_over_the_clock(toy: str) -> None:
    env = make(toy, max_episode_steps=3, goal=2.1)  # x begins in [0, 1], so that 2 steps of 0.5 never get there
    for _ in range(4):
        env.reset()
        for _ in range(3):
            step = env.step(torch.zeros(N, 3))
        x = step.next_obs[:, 0]
        assert torch.equal(step.terminated, x > 2.1) and torch.equal(step.truncated, x <= 2.1)
    assert env.max_episode_steps == 3


@needs_playground
@pytest.mark.parametrize("column", [1, 2], ids=["reward", "observation"])
def test_numbers_that_are_not_finite_are_quarantined(toy: str, column: int) -> None:
    env = make(toy)
    acted_on, critic_acted_on = env.reset()
    action = torch.zeros(N, 3)
    action[2, column] = 1
    step = env.step(action)
    assert step.valid.tolist() == [True, True, False, True] == (~step.truncated).tolist()
    assert step.reward[2] == 0 and torch.equal(step.next_obs[2], acted_on[2]) and not step.terminated.any()
    assert torch.equal(step.next_critic_obs[2], critic_acted_on[2])
    assert all(value[2] == 0 for value in step.metrics.values())
    assert step.obs[2, 1] == 0 and step.obs[2, 0] != acted_on[2, 0] and step.obs[0, 1] == 1
    assert env.step(torch.zeros(N, 3)).valid.all()


@needs_playground
def test_the_tasks_metrics_come_along(toy: str) -> None:
    env = make(toy)
    env.reset()
    for count in range(1, 21):
        step = env.step(torch.zeros(N, 3))
        if step.terminated.any():
            break
        assert step.metrics["count"].tolist() == [count] * N
    assert step.terminated.any() and set(step.metrics) == {"reward/success", "count", "success"}
    assert step.metrics["success"].dtype == torch.bool and torch.equal(step.metrics["success"], step.terminated)


@needs_playground
def test_actions_are_clipped(toy: str) -> None:
    env = make(toy)
    low, lower = (play(env, [torch.full((N, 3), value)] * 3, seed=1) for value in (-1.0, -7.0))
    assert low == lower


@needs_playground
def test_not_to_look_whether_something_ended_changes_nothing(toy: str) -> None:
    """On a GPU, which is not waited for, restarts are computed at each step."""
    env = make(toy)
    looked = play(env, actions(env, 50), seed=3)
    env.device = torch.device("cuda:0")
    assert play(env, [a.cpu() for a in draw_actions(make(toy), 50, 0)], seed=3) == looked


@needs_playground
def test_nothing_is_copied(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(toy)
    obs, critic_obs = env.reset()
    views = env._worlds["state"].obs
    assert obs.data_ptr() == views["state"].unsafe_buffer_pointer()
    assert critic_obs.data_ptr() == views["privileged_state"].unsafe_buffer_pointer()
    calls: list[Any] = []
    compiled = env._engine._step

    def spy(worlds: Any, action: Any) -> Any:
        calls.append((action, *compiled(worlds, action)))
        return calls[-1][1:]

    monkeypatch.setattr(env._engine, "_step", spy)
    action = torch.zeros(N, 3)
    step = env.step(action)
    sent, _, views, numbers, flags = calls[0]
    assert sent.unsafe_buffer_pointer() == action.data_ptr()
    assert step.next_obs.data_ptr() == views[0].unsafe_buffer_pointer()
    assert step.reward.data_ptr() == numbers.unsafe_buffer_pointer()
    assert step.terminated.data_ptr() == flags.unsafe_buffer_pointer()


@needs_playground
def test_environments_share_what_is_compiled(toy: str) -> None:
    env, other = make(toy), make(toy, seed=5)
    assert env._engine is other._engine and env._engine is not make(toy, goal=9.0)._engine
    env.reset()
    for action in actions(env, 45):
        env.step(action)
    env.reset()
    other.load_state_dict(env.state_dict())
    other.step(torch.zeros(N, 3))
    compiled = env._engine
    assert [f._cache_size() for f in (compiled._reset, compiled._step, compiled._restart)] == [1, 1, 1]


# ---- against MuJoCo and Playground -----------------------------------------------------------------------------------


@needs_playground
def test_toy_is_what_playgrounds_own_wrapper_makes_of_it(toy: str) -> None:
    """With repeated actions, up to the first end: rewards, observations and truncations."""
    import jax
    from mujoco_playground import registry, wrapper

    options = {"action_repeat": 2, "goal": 100.0}
    env = make(toy, **options)
    env.reset()
    theirs = wrapper.wrap_for_brax_training(
        registry.load("Toy", config_overrides=options), episode_length=20, action_repeat=2
    )
    state = jax.jit(theirs.reset)(env._worlds["keys"])
    state = state.replace(data=env._worlds["state"].data, obs=env._worlds["state"].obs)
    step_theirs = jax.jit(theirs.step)
    for count, action in enumerate(actions(env, 10), 1):
        action = action.clamp(max=0.9)
        step = env.step(action)
        state = step_theirs(state, action.numpy())
        close_enough(step.reward, state.reward)
        assert np.array_equal(step.truncated, state.info["truncation"] > 0) and not step.terminated.any()
        if count < 10:  # theirs is the first state of all there
            close_enough(step.next_obs, state.obs["state"])
    assert step.truncated.all() and env.max_episode_steps == 10


@needs_playground
def test_nothing_is_rewarded_after_an_end_within_a_repeated_action(toy: str) -> None:
    env = make(toy, action_repeat=4, goal=1.5)
    x = env.reset()[0][:, 0]
    step = env.step(torch.zeros(N, 3))
    expected = []
    for value in x.tolist():
        total = 0.0
        for k in range(1, 5):
            total += value + 0.5 * k
            if value + 0.5 * k > 1.5:
                break
        expected.append(total)
    close_enough(step.reward, expected)
    assert step.terminated.all()  # from 0 it is beyond 1.5 in four steps


@needs_playground
def test_cartpole_moves_as_in_mujoco() -> None:
    """One control step at a time from the same state, in float32."""
    import mujoco

    env = make("CartpoleBalance-v1", max_episode_steps=12)
    env.reset()
    model = env._engine._env.mj_model
    data = mujoco.MjData(model)
    for action in actions(env, 10):
        before = {name: np.array(getattr(env._worlds["state"].data, name)) for name in ("qpos", "qvel")}
        step = env.step(action)
        for i in range(N):
            mujoco.mj_resetData(model, data)
            data.qpos, data.qvel, data.ctrl = before["qpos"][i], before["qvel"][i], action[i].numpy()
            mujoco.mj_step(model, data, env._engine._env.n_substeps)
            pole = data.body("pole_1").xmat.reshape(3, 3)  # where it was before the step: so it is in Playground too
            close_enough(step.next_obs[i], [data.qpos[0], pole[2, 2], pole[0, 2], *data.qvel], 1e-5)
        assert set(step.metrics) >= {"reward/upright", "reward/centered"} and (step.reward > 0).all()


# ---- names, options, robots ------------------------------------------------------------------------------------------


@needs_playground
def test_names_are_envpools() -> None:
    registry = pytest.importorskip("envpool.registration").registry
    ids = {task for task, (module, _, _) in registry.specs.items() if module.endswith((".dmc", ".playground"))}
    names = set(playground.tasks()) - {"Toy-v1"}
    assert names <= ids and {"CartpoleBalance-v1", "BallInCupCatch-v1", "PointMassEasy-v1"} <= names
    robots = {task for task in ids if registry.specs[task][0].endswith(".playground") and "/" not in task}
    assert robots <= names


@needs_playground
def test_options_are_the_tasks_configuration(toy: str) -> None:
    config, menagerie = playground.configure(toy, {"inner.speed": 2.0})
    assert (config.inner.speed, config.goal, menagerie) == (2.0, 10.3, None)
    config, _ = playground.configure("CartpoleBalance-v1", {})
    assert (config.impl, config.episode_length) == ("jax", 1000)
    config, _ = playground.configure("AlohaSinglePegInsertion-v1", {"max_episode_steps": 30})
    assert config.episode_length == 60  # the action is repeated, and the task counts each time


@needs_playground
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaol": 1.0}, r"has no option 'gaol', did you mean goal\? \(it has action_repeat, .*inner.speed"),
        ({"episode_length": 5}, "has no option 'episode_length'"),
        ({"goal": "far"}, "cannot use {'goal': 'far'}"),
        ({"goal": CPU}, "options must be numbers, texts and lists of these"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0, must be a whole number of at least 1"),
        ({"action_repeat": 0}, "action_repeat is 0, must be a whole number of at least 1"),
        ({"menagerie": "no/where"}, "menagerie is 'no/where', which is no folder"),
    ],
)
def test_wrong_options_are_named(toy: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as info:
        make(toy, **options)
    assert "\n" not in str(info.value)


@needs_playground
def test_wrong_use_is_named(toy: str) -> None:
    with pytest.raises(TaskError, match=r"no task 'CartpoleBalance', did you mean CartpoleBalance\w*-v1"):
        make("CartpoleBalance")
    with pytest.raises(TaskError, match="num_envs is 0"):
        make(toy, 0)
    with pytest.raises(TaskError, match="device is mps, but Playground has only cpu and cuda"):
        playground.make(toy, N, 0, torch.device("mps"))
    env = make(toy)
    with pytest.raises(RuntimeError, match="reset before the first step"):
        env.step(torch.zeros(N, 3))
    with pytest.raises(RuntimeError, match="reset before state_dict"):
        env.state_dict()
    env.reset()
    with pytest.raises(ValueError, match=r"shape \(4, 2\), expected \(4, 3\)"):
        env.step(torch.zeros(N, 2))
    state = env.state_dict()
    with pytest.raises(TaskError, match="the state is of Other-v1, not of Toy-v1"):
        env.load_state_dict(state | {"task": "Other-v1"})
    with pytest.raises(TaskError, match="another number of environments"):
        env.load_state_dict(state | {"worlds": state["worlds"][1:]})


@needs_playground
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_jax_lacks_is_named(toy: str) -> None:
    with pytest.raises(TaskError, match=r"JAX has no device cuda:0 \(.*\): pip install 'jax\[cuda"):
        playground.make(toy, N, 0, torch.device("cuda:0"))


@needs_playground
def test_a_task_that_does_not_fit_the_installed_versions_is_named(toy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mujoco_playground import registry

    def load(*args: Any, **kwargs: Any) -> None:
        raise AttributeError("MjSpec has no\nfind_body")

    monkeypatch.setattr(registry, "load", load)
    config, _ = playground.configure("CartpoleBalance-v1", {"impl": "warp"})
    wanted = (
        r"cannot make CartpoleBalance-v1 \(MjSpec has no find_body; playground [\d.]+, mujoco [\d.]+, mujoco-mjx .*"
    )
    with pytest.raises(TaskError, match=wanted + 'impl="warp" wants warp-lang==') as info:
        playground.build("CartpoleBalance-v1", config, None)
    assert "\n" not in str(info.value)


@needs_playground
@needs_robots
def test_robots_are_found_where_envpool_has_them() -> None:
    from mujoco_playground._src import mjx_env

    before = mjx_env.MENAGERIE_PATH
    config, _ = playground.configure("LeapCubeRotateZAxis-v1", {})
    env = playground.build("LeapCubeRotateZAxis-v1", config, None)
    assert env.action_size == 16 and mjx_env.MENAGERIE_PATH is before


@needs_playground
def test_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from mujoco_playground._src import mjx_env

    def popen(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(playground, "ASSETS", ("nowhere_at_all",))
    monkeypatch.setattr(mjx_env, "MENAGERIE_PATH", type(mjx_env.MENAGERIE_PATH)(tmp_path / "none"))
    before = mjx_env.MENAGERIE_PATH
    config, _ = playground.configure("LeapCubeRotateZAxis-v1", {})
    with pytest.raises(TaskError, match=r"the robot leap_hand of MuJoCo Menagerie is missing: pip install ") as info:
        playground.build("LeapCubeRotateZAxis-v1", config, None)
    assert "\n" not in str(info.value) and mjx_env.MENAGERIE_PATH is before
    (tmp_path / "leap_hand").mkdir()  # found, but empty
    with pytest.raises(TaskError, match="cannot make LeapCubeRotateZAxis-v1"):
        playground.build("LeapCubeRotateZAxis-v1", config, str(tmp_path))


# ---- imports ---------------------------------------------------------------------------------------------------------


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    with pytest.raises(
        TaskError, match=r"cannot be used \(.*playground.*\): pip install 'semrl\[playground\]'"
    ) as info:
        playground.load.__wrapped__()
    assert "\n" not in str(info.value)


@needs_playground
def test_jax_takes_memory_as_it_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    playground.load.__wrapped__()
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")  # the user's word
    playground.load.__wrapped__()
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"


def test_the_adapter_itself_imports_no_simulator() -> None:
    code = "import sys, envs.playground; sys.exit(bool({'jax', 'mujoco', 'mujoco_playground'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@needs_playground
def test_to_import_it_draws_from_no_global_generator() -> None:
    code = """
        from envs.check import random_states
        from envs import playground
        before = random_states()
        playground.make("CartpoleBalance-v1", 2, 0, __import__("torch").device("cpu"))
        assert random_states() == before
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)


@needs_playground
@pytest.mark.slow
@pytest.mark.parametrize("agent", ["ppo", "fasttd3", "fastsac"])
def test_agents_run_unchanged(agent: str, tmp_path: Path) -> None:
    flags = {
        "--env-id": "CartpoleBalance-v1",
        "--backend": "playground",
        "--num-envs": "8",
        "--total-timesteps": "4000",
        "--run-dir": str(tmp_path / "run"),
    }
    command = [sys.executable, str(ROOT / "agents" / f"{agent}.py"), *(word for pair in flags.items() for word in pair)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.csv").exists()
