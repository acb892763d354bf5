"""Isaac Lab's adapter against an imitation of Isaac Lab, since the real one cannot be installed beside the rest.

The imitation keeps what the source of version 3.0.0 does in `ManagerBasedRLEnv` and `DirectRLEnv`: resets within the
step, `extras["final_obs"]` that is set by steps with resets alone and stays there, noise drawn anew at each look,
buffers that are written in place, global random streams, and one simulation per process.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from torch import Tensor

import envs
from envs import isaaclab
from envs.base import TaskError
from envs.check import examine
from envs.isaaclab import IsaacLabEnv

CPU = torch.device("cpu")
N = 4


def time_out(env: Any) -> Tensor:
    return env.episode_length_buf >= env.max_episode_length


def out_of_bounds(env: Any) -> Tensor:
    return env.position[:, 0].abs() > env.cfg.bound


def edge(env: Any) -> Tensor:
    return env.position[:, 0].abs() > 2


class Imitation(gymnasium.Env):
    """A point that is pushed about: noise for the policy, the truth for the critic."""

    alive = 0
    bounds: tuple[Any, Any] = (-np.inf, np.inf)

    def __init__(self, cfg: Any, render_mode: str | None = None, **kwargs: Any) -> None:
        assert Imitation.alive == 0, "Simulation context already exists. Cannot create a new one."
        Imitation.alive += 1
        self.cfg = cfg
        self.num_envs, self.device = cfg.num_envs, cfg.device
        self.max_episode_length = cfg.episode_length
        self.single_observation_space = Dict(
            {"policy": Box(-np.inf, np.inf, (2,)), "critic": Box(-np.inf, np.inf, (3,))}
        )
        self.single_action_space = Box(*(np.float32(bound) for bound in self.bounds), (2,), np.float32)
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.int64)
        self.position = torch.zeros(self.num_envs, 2)
        self.reward_buf = torch.zeros(self.num_envs)
        self.reset_terminated = torch.zeros(self.num_envs, dtype=torch.bool)
        self.reset_time_outs = torch.zeros(self.num_envs, dtype=torch.bool)
        self.extras: dict[str, Any] = {}
        self.sent: list[Tensor] = []
        self.seen: list[dict[str, Tensor]] = []  # what a step led to, before any reset
        self.termination_manager = SimpleNamespace(active_terms=list(cfg.terms), get_term_cfg=cfg.terms.__getitem__)

    def reset(self, env_ids: Any = None, *, seed: int | None = None, options: Any = None) -> Any:
        self._reset_idx(torch.arange(self.num_envs) if env_ids is None else env_ids)
        return self._observe(), self.extras

    def step(self, action: Tensor) -> Any:
        self.sent.append(action.clone())
        self.position += 0.5 * action + 0.1 * torch.randn_like(self.position)
        self.episode_length_buf += 1
        self.reset_terminated[:], self.reset_time_outs[:] = False, False
        for term in self.cfg.terms.values():
            (self.reset_time_outs if term.time_out else self.reset_terminated)[:] |= term.func(self)
        self.reward_buf[:] = -self.position.norm(dim=1)
        rows = (self.reset_terminated | self.reset_time_outs).nonzero()[:, 0]
        last = self._observe()
        self.seen.append(last)
        if len(rows):
            if self.cfg.compute_final_obs and not self.cfg.forgets:
                self.extras["final_obs"] = last
            self._reset_idx(rows)
            self.seen[-1] = last
        obs = self._observe()
        ended = self.reset_terminated | self.reset_time_outs
        self.seen[-1] = {name: torch.where(ended[:, None], last[name], obs[name]) for name in obs}
        return obs, self.reward_buf, self.reset_terminated, self.reset_time_outs, self.extras

    def close(self) -> None:
        Imitation.alive -= 1

    def _observe(self) -> dict[str, Tensor]:
        noisy = self.position + 0.01 * torch.randn_like(self.position)
        return {"policy": noisy, "critic": torch.cat([self.position, self.episode_length_buf[:, None]], 1)}

    def _reset_idx(self, rows: Tensor) -> None:
        length = self.episode_length_buf[rows].float().mean()
        out = self.reset_terminated[rows].sum().item()
        self.extras["log"] = {"Metrics/length": length, "Episode_Termination/out": out}
        self.episode_length_buf[rows] = 0
        self.position[rows] = torch.rand(len(rows), 2) - 0.5


class Direct(Imitation):
    """The other kind of task: without managers, and reset all at once or by itself."""

    bounds = (-1, 3)

    def __init__(self, cfg: Any, **kwargs: Any) -> None:
        super().__init__(cfg, **kwargs)
        del self.termination_manager

    def reset(self, seed: int | None = None, options: Any = None) -> Any:  # type: ignore[override]
        return super().reset()


def changed(**changes: Any) -> type[Imitation]:
    """An imitation with other spaces."""

    def init(self: Any, cfg: Any, **kwargs: Any) -> None:
        Imitation.__init__(self, cfg, **kwargs)
        for name, space in changes.items():
            setattr(self, name, space)

    return type("Changed", (Imitation,), {"__init__": init})


VECTOR = Box(-np.inf, np.inf, (2,))
CLOCK = SimpleNamespace(func=time_out, time_out=True)
OUT = SimpleNamespace(func=out_of_bounds, time_out=False)
TASKS: dict[str, tuple[type[Imitation], dict[str, Any]]] = {
    "Isaac-Point": (Imitation, {}),
    "Isaac-Point-Direct": (Direct, {}),
    "Isaac-Endless": (Imitation, {"terms": {"out": OUT}}),
    "Isaac-Finite": (Imitation, {"is_finite_horizon": True}),
    "Isaac-Edge": (Imitation, {"terms": {"clock": CLOCK, "edge": SimpleNamespace(func=edge, time_out=True)}}),
    "Isaac-Forgetful": (Imitation, {"forgets": True}),
    "Isaac-Old": (Imitation, {"compute_final_obs": None}),
    "Isaac-Broken": (Imitation, {"num_envs": "many"}),
    "Isaac-Alone": (changed(single_observation_space=Dict({"policy": VECTOR})), {}),
    "Isaac-Camera": (changed(single_observation_space=Dict({"policy": VECTOR, "camera": VECTOR})), {}),
    "Isaac-Terms": (changed(single_observation_space=Dict({"policy": Dict({"a": VECTOR})})), {}),
    "Isaac-Discrete": (changed(single_action_space=Discrete(3)), {}),
    "Isaac-Half": (changed(single_action_space=Box(np.float32([-1, -np.inf]), np.float32([1, np.inf]))), {}),
}


@pytest.fixture(autouse=True)
def isaac(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The imitation in Isaac Lab's place; tells what was launched."""
    told = SimpleNamespace(launched=[], parsed=[])

    def parse_env_cfg(name: str, device: str, num_envs: int, overrides: list[str]) -> Any:
        told.parsed.append((name, device, num_envs, overrides))
        values = {"compute_final_obs": False, "is_finite_horizon": False, "forgets": False, "seed": 42, "bound": 1.0}
        values |= {"terms": {"clock": CLOCK, "out": OUT}, "num_envs": num_envs, "device": device, "episode_length": 9}
        config = SimpleNamespace(**(values | TASKS[name][1]))
        if config.compute_final_obs is None:
            del config.compute_final_obs
        return config

    @contextmanager
    def launch_simulation(config: Any, launcher_args: Any) -> Iterator[None]:
        told.launched.append((config, launcher_args))
        yield

    contents: dict[str, dict[str, Any]] = {
        "isaaclab": {},
        "isaaclab.app": {"launch_simulation": launch_simulation},
        "isaaclab.envs": {},
        "isaaclab.envs.mdp": {"time_out": time_out},
        "isaaclab_tasks": {},
        "isaaclab_tasks.utils": {},
        "isaaclab_tasks.utils.parse_cfg": {"parse_env_cfg": parse_env_cfg},
    }
    for name, values in contents.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    for name, (kind, _) in TASKS.items():
        gymnasium.register(name, entry_point=kind, kwargs={"env_cfg_entry_point": "somewhere:Cfg"})
    monkeypatch.setattr(Imitation, "alive", 0)
    monkeypatch.setattr(IsaacLabEnv, "running", None)
    yield told
    for name in TASKS:
        gymnasium.registry.pop(name)


def make(task: str = "Isaac-Point", num_envs: int = N, seed: int = 0, **options: Any) -> Any:
    return isaaclab.make(task, num_envs, seed, CPU, **options)


def actions(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [2 * torch.rand(N, 2, generator=generator) - 1 for _ in range(count)]


def test_keeps_the_contract() -> None:
    report = examine(lambda n, seed: isaaclab.make("Isaac-Point", n, seed, CPU), steps=60)
    assert report.violations == []
    assert [line.partition(":")[0] for line in report.unseen] == ["repeated rollouts and snapshots"]


def test_the_last_observations_are_isaac_labs() -> None:
    env = make(seed=1)
    engine = env._engine.unwrapped
    env.reset()
    ends = torch.zeros(2, dtype=torch.int64)
    for action in actions(60):
        step = env.step(action)
        ended = step.terminated | step.truncated
        assert torch.equal(step.next_obs, engine.seen[-1]["policy"])
        assert torch.equal(step.next_critic_obs, engine.seen[-1]["critic"])
        assert (step.critic_obs[ended, 2] == 0).all() and (step.next_critic_obs[ended, 2] > 0).all()
        assert torch.equal(step.obs[~ended], step.next_obs[~ended])
        ends += torch.stack([step.terminated.sum(), step.truncated.sum()])
    assert ends.min() > 0


def test_the_same_seed_repeats_and_global_streams_are_left_alone() -> None:
    before = random.getstate(), torch.get_rng_state().tolist()
    rollouts = []
    for _ in range(2):
        env = make(seed=3)
        env.reset()
        rollouts.append(torch.cat([env.step(action).obs for action in actions(20)]))
        env.close()
    env = make(seed=0)
    env.reset(3)
    rollouts.append(torch.cat([env.step(action).obs for action in actions(20)]))
    assert torch.equal(rollouts[0], rollouts[1]) and torch.equal(rollouts[0], rollouts[2])
    assert before == (random.getstate(), torch.get_rng_state().tolist())


def test_how_it_is_launched(isaac: SimpleNamespace) -> None:
    make(overrides=["physics=newton_mjwarp"])
    assert isaac.parsed == [("Isaac-Point", "cpu", N, ["physics=newton_mjwarp"])]
    ((config, arguments),) = isaac.launched
    assert config.compute_final_obs is True and config.seed is None
    assert arguments == {"headless": True, "visualizer": ["none"]}


def test_there_is_one_at_a_time() -> None:
    env = make()
    with pytest.raises(TaskError, match="one simulation per process, and there is one: train with --eval-every 0"):
        make()
    env.close(), env.close()
    make().close()
    assert Imitation.alive == 0


@pytest.mark.parametrize(
    ("task", "limit"),
    [
        ("Isaac-Point", 9),
        ("Isaac-Point-Direct", 1),
        ("Isaac-Edge", 1),
        ("Isaac-Endless", None),
        ("Isaac-Finite", None),
    ],
)
def test_the_time_limit_is_told_if_it_is_known(task: str, limit: int | None) -> None:
    env = make(task)
    assert env.max_episode_steps == limit
    env.reset()
    still = torch.full((N, 2), -0.5 if task.endswith("Direct") else 0.0)
    truncated = any(bool(env.step(still).truncated.any()) for _ in range(12))
    assert truncated == (limit is not None)


def test_views() -> None:
    env = make()
    assert (env.obs_space.shape, env.critic_obs_space.shape, env.privileged) == ((2,), (3,), True)
    env.close()
    env = make("Isaac-Alone")
    obs, critic_obs = env.reset()
    assert critic_obs is obs and not env.privileged


@pytest.mark.parametrize(
    ("task", "options", "expected"),
    [
        ("Isaac-Point", {}, [-1, 0.5]),
        ("Isaac-Point", {"action_range": 2}, [-2, 1]),
        ("Isaac-Point-Direct", {}, [-1, 2]),
    ],
)
def test_actions_are_clipped_and_mapped_to_the_tasks_range(task: str, options: Any, expected: list[float]) -> None:
    env = make(task, **options)
    env.reset()
    env.step(torch.tensor([[-5.0, 0.5]]).expand(N, 2))
    assert env._engine.unwrapped.sent[0][0].tolist() == expected
    low, high = env.action_bounds
    assert [low[0], low[1] + 0.75 * (high[1] - low[1])] == expected


def test_a_row_that_is_not_finite_is_quarantined() -> None:
    env = make()
    acted_on, _ = env.reset()
    env._engine.unwrapped.position[2] = torch.nan
    step = env.step(torch.zeros(N, 2))
    assert step.valid.tolist() == [True, True, False, True] and step.truncated[2] and not step.terminated[2]
    assert step.reward[2] == 0 and torch.equal(step.next_obs[2], acted_on[2]) and step.obs.isfinite().all()
    assert torch.equal(step.obs[[0, 1, 3]], step.next_obs[[0, 1, 3]])
    assert env.step(torch.zeros(N, 2)).valid.all()


def test_a_direct_task_cannot_quarantine() -> None:
    env = make("Isaac-Point-Direct")
    env.reset()
    env._engine.unwrapped.position[2] = torch.nan
    with pytest.raises(FloatingPointError, match="no way to reset only their rows"):
        env.step(torch.zeros(N, 2))


def test_the_log_is_averaged_over_episodes() -> None:
    env = make()
    env.reset()
    lengths, kinds = [], torch.zeros(2)
    for action in actions(50):
        step = env.step(action)
        ended = step.terminated | step.truncated
        lengths += step.next_critic_obs[ended, 2].tolist()
        kinds += torch.stack([step.terminated.sum(), ended.sum()])
    summary = env.summary()
    assert float(summary["Metrics/length"]) == pytest.approx(np.mean(lengths))
    assert summary["Episode_Termination/out"] == pytest.approx(float(kinds[0] / kinds[1]))
    assert env.summary() == {}


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("Isaac-Pont", {}, "Isaac Lab cannot make 'Isaac-Pont'"),
        ("no_module:Isaac-Point", {}, "no_module"),
        ("Isaac-Broken", {}, "Isaac Lab cannot make 'Isaac-Broken'"),
        ("Isaac-Old", {}, "does not give the last observation of an episode; https"),
        ("Isaac-Camera", {}, "observes camera, policy; agents here take policy, and critic beside it"),
        ("Isaac-Terms", {}, "an observation is no vector"),
        ("Isaac-Discrete", {}, "actions in Discrete of shape .* are not supported"),
        ("Isaac-Half", {}, "only some of the actions are bounded"),
        ("Isaac-Point", {"colour": 1}, "has no option 'colour', only action_range and overrides"),
        ("Isaac-Point", {"num_envs": 0}, "num_envs is 0"),
        ("Isaac-Point", {"action_range": -1}, "action_range is -1"),
    ],
)
def test_mistakes_are_told_in_one_line(task: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as info:
        make(task, **options)
    assert "\n" not in str(info.value)


def test_a_step_without_the_last_observation_is_an_error() -> None:
    env = make("Isaac-Forgetful")
    env.reset()
    with pytest.raises(RuntimeError, match="has ended an episode without its last observation"):
        for _ in range(10):
            env.step(torch.zeros(N, 2))


@pytest.mark.parametrize("module", ["isaaclab_tasks", "isaaclab.app"])
def test_an_old_or_missing_version_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None if module == "isaaclab_tasks" else ModuleType(module))
    for call in (isaaclab.tasks, make):
        with pytest.raises(TaskError, match=r"Isaac Lab is missing or too old \(.*\): https://.* 3.0 or newer"):
            call()


def test_tasks_are_gymnasiums_with_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isaaclab.tasks() == sorted(TASKS)
    monkeypatch.setitem(envs.BACKENDS, "isaaclab", envs.Backend("envs.isaaclab", "torch", isaaclab.INSTALL))
    env = envs.make("Isaac-Point", N, backend="isaaclab")
    assert (env.task, env.backend, env.deterministic) == ("Isaac-Point", "isaaclab", False)
