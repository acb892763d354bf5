"""Episode statistics and evaluation against lists, on scripted environments."""

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from agents import episodes
from agents.episodes import EpisodeStats, evaluate
from envs.base import Step, VecEnv, vector_space

Row = dict[str, Any]
"""one step of one environment: reward, end (going, terminated, truncated, spoilt, life), raw, success"""


def step_of(rows: list[Row], *, raw: bool = False, lives: bool = False, success: bool = False) -> Step:
    """The `Step` of N rows; a lost life is `terminated` without `game_over`."""
    end = [row["end"] for row in rows]
    obs = torch.zeros(len(rows), 1)
    metrics: dict[str, Tensor] = {}
    if raw:
        metrics["raw_reward"] = torch.tensor([row["raw"] for row in rows], dtype=torch.float32)
    if lives:
        metrics["game_over"] = torch.tensor([x in ("terminated", "truncated") for x in end])
    if success:
        metrics["success"] = torch.tensor([row["success"] for row in rows])
    return Step(
        obs,
        obs,
        torch.tensor([row["reward"] for row in rows], dtype=torch.float32),
        torch.tensor([x in ("terminated", "life") for x in end]),
        torch.tensor([x in ("truncated", "spoilt") for x in end]),
        obs,
        obs,
        torch.tensor([x != "spoilt" for x in end]),
        metrics,
    )


class Lists:
    """The same statistics as `EpisodeStats`, kept the slow way."""

    def __init__(self, num_envs: int, raw: bool, success: bool) -> None:
        self.raw, self.success = raw, success
        self.running: list[list[Row]] = [[] for _ in range(num_envs)]
        self.finished: list[list[Row]] = []
        self.spoilt = 0

    def add(self, rows: list[Row]) -> None:
        for env, row in enumerate(rows):
            self.running[env].append(row)
            self.spoilt += row["end"] == "spoilt"
            if row["end"] in ("terminated", "truncated"):
                self.finished.append(self.running[env])
            if row["end"] in ("terminated", "truncated", "spoilt"):
                self.running[env] = []

    def summary(self) -> dict[str, float]:
        out = {"charts/episodes": len(self.finished), "health/nonfinite_transitions": self.spoilt}
        if self.finished:
            returns = [sum(row["raw" if self.raw else "reward"] for row in episode) for episode in self.finished]
            out |= {
                "charts/episodic_return": np.mean(returns),
                "charts/episodic_return_min": min(returns),
                "charts/episodic_return_max": max(returns),
                "charts/episodic_length": np.mean([len(episode) for episode in self.finished]),
            }
            if self.success:
                out["charts/success_rate"] = np.mean([any(x["success"] for x in e) for e in self.finished])
                out["charts/success_end"] = np.mean([e[-1]["success"] for e in self.finished])
        self.finished, self.spoilt = [], 0
        return out


def random_row(rng: np.random.Generator, lives: bool) -> Row:
    end = rng.choice(["going", "terminated", "truncated", "spoilt", "life"], p=[0.7, 0.1, 0.07, 0.05, 0.08])
    end = "going" if end == "life" and not lives else str(end)
    spoilt = end == "spoilt"
    return {
        "reward": 0.0 if spoilt else float(rng.integers(-9, 10)) / 4,
        "raw": float("nan") if spoilt else float(rng.integers(-99, 100)),
        "end": end,
        "success": bool(rng.random() < 0.2),
    }


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_envs=st.integers(1, 4),
    every=st.integers(1, 20),
    raw=st.booleans(),
    lives=st.booleans(),
    success=st.booleans(),
)
def test_statistics_are_those_of_the_lists(
    seed: int, num_envs: int, every: int, raw: bool, lives: bool, success: bool
) -> None:
    rng = np.random.default_rng(seed)
    stats, lists = EpisodeStats(num_envs, "cpu"), Lists(num_envs, raw, success)
    for now in range(60):
        rows = [random_row(rng, lives) for _ in range(num_envs)]
        stats.add(step_of(rows, raw=raw, lives=lives, success=success))
        lists.add(rows)
        if now % every == every - 1:
            assert stats.summary() == pytest.approx(lists.summary(), rel=1e-12)
        if now % 7 == 0:  # a fresh one continues in the middle of it all
            state = stats.state_dict()
            stats = EpisodeStats(num_envs, "cpu")
            stats.load_state_dict(state)
    assert stats.summary() == pytest.approx(lists.summary(), rel=1e-12)


def test_returns_are_right_from_the_second_episode_on() -> None:
    stats = EpisodeStats(1, "cpu")
    for length in (3, 1, 4):
        for now in range(length):
            row = {"reward": 10.0**now, "end": "truncated" if now == length - 1 else "going"}
            stats.add(step_of([row]))
        assert stats.summary() == {
            "charts/episodes": 1,
            "charts/episodic_return": sum(10.0**x for x in range(length)),
            "charts/episodic_return_min": sum(10.0**x for x in range(length)),
            "charts/episodic_return_max": sum(10.0**x for x in range(length)),
            "charts/episodic_length": length,
            "health/nonfinite_transitions": 0,
        }


def test_returns_do_not_lose_small_rewards() -> None:
    stats = EpisodeStats(1, "cpu")
    stats.add(step_of([{"reward": 2.0**25, "end": "going"}]))
    for _ in range(9):
        stats.add(step_of([{"reward": 1.0, "end": "going"}]))
    stats.add(step_of([{"reward": 1.0, "end": "terminated"}]))
    assert stats.summary()["charts/episodic_return"] == 2**25 + 10


def test_nothing_finished_has_no_return() -> None:
    stats = EpisodeStats(2, "cpu")
    stats.add(step_of([{"reward": 1.0, "end": "going"}, {"reward": 1.0, "end": "spoilt"}]))
    assert stats.summary() == {"charts/episodes": 0, "health/nonfinite_transitions": 1}


def test_adding_reads_nothing_back() -> None:
    """Tensors on the meta device have no values, so what would wait for an accelerator raises."""
    row = {"reward": 1.0, "raw": 2.0, "end": "terminated", "success": True}
    step = step_of([row, row], raw=True, lives=True, success=True)
    tensors = [x.to("meta") for x in step[:-1]]
    stats = EpisodeStats(2, "meta")
    stats.add(Step._make([*tensors, {key: x.to("meta") for key, x in step.metrics.items()}]))
    with pytest.raises(RuntimeError, match="meta"):
        stats.summary()


def test_state_is_a_copy_and_knows_its_size() -> None:
    stats = EpisodeStats(2, "cpu")
    state = stats.state_dict()
    stats.add(step_of([{"reward": 1.0, "end": "terminated"}] * 2))
    assert float(state["interval"][4].sum()) == 0
    with pytest.raises(ValueError, match="are of 2 environments; it must be 3"):
        EpisodeStats(3, "cpu").load_state_dict(state)


# ---- evaluation ----


class Script(VecEnv):
    """Plays the rows [env][step], and after them what must not count; obs are [env, step, seed]."""

    task = backend = "script"
    device = torch.device("cpu")
    obs_space = critic_obs_space = vector_space(3)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, rows: list[list[Row]], max_episode_steps: int | None = None, **columns: bool) -> None:
        self.num_envs, self.rows, self.columns = len(rows), rows, columns
        self.max_episode_steps = max_episode_steps
        self.actions: list[Tensor] = []
        self.count = self.seed = 0

    def _obs(self) -> Tensor:
        return torch.tensor([[env, self.count, self.seed] for env in range(self.num_envs)], dtype=torch.float32)

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        assert seed is not None
        self.count, self.seed = 0, seed
        return self._obs(), self._obs()

    def step(self, action: Tensor) -> Step:
        self.actions.append(action)
        end = ["going", "terminated", "spoilt"][self.count % 3]
        poison = {"reward": 1e9, "raw": float("nan"), "end": end, "success": True}
        rows = [steps[self.count] if self.count < len(steps) else poison for steps in self.rows]
        self.count += 1
        obs = self._obs()
        return step_of(rows, **self.columns)._replace(obs=obs, critic_obs=obs, next_obs=obs, next_critic_obs=obs)


def policy(obs: Tensor) -> Tensor:
    assert not torch.is_grad_enabled()
    return obs[:, :1] * 100 + obs[:, 1:2]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), num_envs=st.integers(1, 5), raw=st.booleans(), success=st.booleans())
def test_evaluation_is_of_the_first_episodes(seed: int, num_envs: int, raw: bool, success: bool) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num_envs):
        steps = [
            {**random_row(rng, False), "end": "going", "raw": float(rng.integers(9))} for _ in range(rng.integers(80))
        ]
        rows.append(
            [*steps, {**random_row(rng, False), "raw": 5.0, "end": str(rng.choice(["terminated", "truncated"]))}]
        )
    env = Script(rows, 100, raw=raw, success=success)
    out = evaluate(policy, env, seed=7)
    returns = [sum(row["raw" if raw else "reward"] for row in steps) for steps in rows]
    want = {
        "episodes": num_envs,
        "episodic_return": np.mean(returns),
        "episodic_return_std": np.std(returns),
        "episodic_return_min": min(returns),
        "episodic_return_max": max(returns),
        "episodic_length": np.mean([len(steps) for steps in rows]),
        "unfinished": 0,
        "nonfinite": 0,
    }
    if success:
        want["success_rate"] = np.mean([any(row["success"] for row in steps) for steps in rows])
        want["success_end"] = np.mean([steps[-1]["success"] for steps in rows])
    assert out == pytest.approx(want, abs=1e-9)
    longest = max(len(steps) for steps in rows)
    assert longest <= env.count < longest + episodes.CHECK_EVERY
    assert env.seed == 7
    assert env.actions[1].tolist() == [[100.0 * i + 1] for i in range(num_envs)]  # the policy sees what is current


def test_evaluation_drops_spoilt_episodes() -> None:
    def steps(reward: float, end: str) -> list[Row]:
        return [{"reward": reward, "end": "going"}, {"reward": reward, "end": end}]

    out = evaluate(policy, Script([steps(1, "terminated"), steps(5, "spoilt"), steps(2, "truncated")]), 0)
    assert out["episodes"] == 2 and out["nonfinite"] == 1 and out["unfinished"] == 0
    assert (out["episodic_return"], out["episodic_return_max"]) == (3, 4)
    assert out["episodic_length"] == 2
    out = evaluate(policy, Script([steps(1, "spoilt")]), 0)
    assert out["episodes"] == 0 and out["nonfinite"] == 1
    assert all(np.isnan(out[f"episodic_{x}"]) for x in ("return", "return_std", "return_min", "return_max", "length"))


def test_a_lost_life_is_not_the_end() -> None:
    rows = [{"reward": 1.0, "end": "life"}] * 3 + [{"reward": 1.0, "end": "terminated"}]
    assert evaluate(policy, Script([rows], lives=True), 0)["episodic_return"] == 4


def test_unfinished_episodes_count_with_what_they_have() -> None:
    forever: list[Row] = [{"reward": 1.0, "end": "going"}] * 20_000
    short: list[Row] = [{"reward": 1.0, "end": "terminated"}]
    out = evaluate(policy, Script([forever, short]), 0, max_steps=50)
    assert out["unfinished"] == 1 and out["episodes"] == 2
    assert (out["episodic_return"], out["episodic_length"]) == (25.5, 25.5)


@pytest.mark.parametrize("limit, steps", [(None, 40), (1, 40), (39, 40), (75, 75)])
def test_default_limit(monkeypatch: pytest.MonkeyPatch, limit: int | None, steps: int) -> None:
    monkeypatch.setattr(episodes, "UNLIMITED", 40)
    env = Script([[{"reward": 1.0, "end": "going"}] * 1000], limit)
    assert evaluate(policy, env, 0)["episodic_length"] == env.count == steps
    with pytest.raises(ValueError, match="max_steps is 0"):
        evaluate(policy, env, 0, max_steps=0)


def test_evaluation_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    evaluate(policy, Script([[{"reward": 1.0, "end": "terminated"}]]), 0)
    assert torch.equal(before, torch.get_rng_state())
