"""benchmarks/reach.py: what is counted until a policy is good, and that a file is continued."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import reach, speed
from benchmarks.reach import Args, Evaluation, Judge, Order, Stopwatch

CLEANRL, SB3_PYTHON = os.environ.get("CLEANRL_REFERENCE"), os.environ.get("SB3_PYTHON")
ORDER = Order("SB3", "WalkerWalk-v1", 1, 100, 2, 1, 0.0)


def runs(**ends: list[tuple[int, float, float]]) -> list[dict[str, Any]]:
    """Runs by program, each with frames, return and seconds of its last evaluation."""
    return [
        {
            "program": name,
            "side": "ours" if name == "mine" else "rival",
            "seed": seed,
            "versions": {},
            "evaluations": [[1, 0.0, 1.0, 1.0], [frames, score, seconds, 2 * seconds]],
        }
        for name, each in ends.items()
        for seed, (frames, score, seconds) in enumerate(each)
    ]


def test_medians_are_compared_with_whichever_rival_took_least() -> None:
    seen = runs(
        mine=[(30, 801, 1.0), (10, 900, 3.0), (20, 800, 2.0)],
        sparing=[(10, 801, 40.0)],
        fast=[(90, 801, 8.0)],
        hopeless=[(300, 799, 9.0), (300, 100, 9.0), (300, 950, 9.0)],
    )
    rows = {row["program"]: row for row in reach.results(Args(), seen)}
    assert rows["mine"]["frames"] == [20, 10, 30] and rows["mine"]["seconds"] == [2, 1, 3]
    assert (rows["mine"]["sparing"], rows["mine"]["speedup"]) == (0.5, 4.0)
    assert rows["hopeless"]["frames"] == [math.inf, 300, math.inf]
    assert rows["fast"]["speedup"] is None
    by_cpu = {row["program"]: row for row in reach.results(Args(clock="cpu"), seen)}
    assert by_cpu["mine"]["seconds"] == [4, 2, 6]
    text = reach.table(list(rows.values()), "wall").splitlines()
    assert text[1].split()[-2:] == ["0.50", "4.00"] and "never" in text[4]
    alone = reach.results(Args(), runs(mine=[(1, 900, 1.0)]))
    assert alone[0]["speedup"] is None and alone[0]["sparing"] is None


def test_evaluations_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 100.0, "cpu": 7.0}
    monkeypatch.setattr(reach.time, "time", lambda: now["wall"])
    monkeypatch.setattr(reach.time, "process_time", lambda: now["cpu"])
    watch = Stopwatch(started=90.0)
    told: list[Evaluation] = []

    def evaluate(*_: Any) -> float:
        now["wall"] += 50
        now["cpu"] += 60
        return 3.0

    monkeypatch.setattr(reach, "rollout", evaluate)
    judge = Judge(ORDER, watch, told.append)
    for frames in (99, 350, 351, 399, 400):
        now["wall"] += 1
        judge(frames, lambda obs: obs)
    # what is missed is not made up for: after 350 comes 400
    assert told == [Evaluation(350, 3.0, 12.0, 7.0), Evaluation(400, 3.0, 15.0, 7.0)]


def test_a_policy_is_worth_the_mean_of_whole_episodes() -> None:
    seen: list[np.ndarray] = []

    def policy(obs: np.ndarray) -> np.ndarray:
        seen.append(obs)
        return np.zeros((2, 6), np.float32)

    score = reach.rollout(ORDER, policy)
    assert len(seen) == 1000 and {obs.shape for obs in seen} == {(2, 24)} and seen[0].dtype == np.float32
    assert 0 < score < 1000
    with pytest.raises(reach.Missing, match="not all of the same length"):
        reach.rollout(ORDER._replace(env_id="Hopper-v5", episodes=8), lambda _: np.eye(8, 3))


def test_what_stands_in_for_gymnasium_restarts_within_the_step() -> None:
    env = reach.SameStep(ORDER)
    first, _ = env.reset()
    action = np.zeros((1, 6), np.float32)
    for count in range(1, 1001):
        obs, _, terminated, truncated, info = env.step(action)
        assert (bool(truncated), bool(terminated), bool(info)) == (count == 1000, False, count == 1000)
    last = info["final_observation"][0]
    assert last.shape == obs[0].shape == first[0].shape and not np.allclose(last, obs[0], atol=1e-3)
    env.close()


def test_it_trains_ours_until_the_goal_and_continues_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [
        "reach",
        "--goal",
        "1",
        "--every",
        "200",
        "--episodes",
        "2",
        "--programs",
        "FastTD3 --sem",
        "--out",
        "r.json",
    ]
    speed.main([*flags, "--seeds", "1"])
    assert "x faster" in capsys.readouterr().out
    before = json.loads(Path("r.json").read_text())
    (run,) = before["runs"]
    frames, score, wall_s, cpu_s = run["evaluations"][-1]
    assert frames % 200 < 16 and score >= 1 and cpu_s > 0 and wall_s > 0
    assert before["results"][0]["frames"] == [frames] * 3
    speed.main([*flags, "--seeds", "1"])  # nothing left to do
    assert json.loads(Path("r.json").read_text())["runs"] == before["runs"]
    with pytest.raises(SystemExit) as stop:
        speed.main([*flags, "--goal", "2"])
    assert stop.value.code == 2 and "measured with other settings" in capsys.readouterr().err
    Path("r.json").write_text("{}")
    with pytest.raises(SystemExit) as stop:
        speed.main(flags)
    assert stop.value.code == 2 and "no result of this command" in capsys.readouterr().err
    assert Path("r.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--every", "0"], "--every 0"),
        (["--programs", "FastTD4"], "--programs 'FastTD4': there are FastTD3, FastTD3 --sem, "),
        (["--cleanrl", "absent"], "--cleanrl absent"),
        (["--out", "absent/r.json"], "--out absent/r.json"),
        (["--env-id", "WalkerTalk-v1", "--programs", "FastTD3"], "FastTD3 does not run: error: "),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        speed.main(["reach", *flags])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.count("\n") == 1 and err.startswith(f"error: {message}")


@pytest.mark.skipif(not (CLEANRL and SB3_PYTHON), reason="set CLEANRL_REFERENCE and SB3_PYTHON to run the others")
def test_the_others_train_too(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    speed.main(
        [
            *("reach", "--goal", "0", "--every", "500", "--episodes", "1", "--seeds", "1", "--out", str(out)),
            *("--cleanrl", str(CLEANRL), "--sb3-python", str(SB3_PYTHON)),
            *("--programs", "CleanRL TD3", "SB3 TD3", "SB3 SAC"),
        ]
    )
    seen = {run["program"]: run["evaluations"] for run in json.loads(out.read_text())["runs"]}
    assert {name: each[-1][0] for name, each in seen.items()} == {"CleanRL TD3": 25_100, "SB3 TD3": 500, "SB3 SAC": 500}
