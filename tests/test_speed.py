"""benchmarks/speed.py: what it counts, what it divides by what, and that our losses are those of the authors' code."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import fasttd3
from benchmarks import speed
from benchmarks.speed import Contestant, RandomEnv, Reference
from envs.check import check

CHECKOUT = os.environ.get("FASTTD3_REFERENCE")
needs_reference = pytest.mark.skipif(
    not CHECKOUT, reason="set FASTTD3_REFERENCE to a checkout of github.com/younggyoseo/FastTD3 to compare with it"
)
SMALL = [
    *("--size", "small", "--batch-size", "32", "--obs-dim", "5", "--action-dim", "2", "--slots", "8"),
    *("--threads", "1", "--repeats", "2"),
]
TASKS = [*speed.UPDATES, "replay sample, n_step 1", "replay sample, n_step 3", "replay add"]
CPU = torch.device("cpu")


def run(tmp_path: Path, *flags: str) -> tuple[dict[str, Any], str]:
    """The report and the output of the script, as users run it."""
    out = tmp_path / "results.json"
    command = [sys.executable, speed.__file__, *SMALL, "--out", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def check_results(results: list[dict[str, Any]]) -> None:
    """Every number is there and follows from the repeats."""
    assert list(dict.fromkeys(row["task"] for row in results)) == TASKS
    of = {(row["task"], row["side"], row["precision"], row["sem"]): row for row in results}
    assert len(of) == len(results)
    for row in results:
        repeats = row["repeats_ms"]
        assert len(repeats) == 2 and all(x > 0 for x in repeats)
        assert (row["min_ms"], row["max_ms"]) == (min(repeats), max(repeats))
        assert row["median_ms"] == statistics.median(repeats)
        if row["task"] in speed.UPDATES and row["sem"] != "off":
            plain = of[row["task"], row["side"], row["precision"], "off"]
            assert row["to_sem_off"]["ratio"] == pytest.approx(row["median_ms"] / plain["median_ms"])
        else:
            assert row["to_sem_off"] is None


def test_the_script_times_every_contestant_and_writes_what_it_prints(tmp_path: Path) -> None:
    report, output = run(tmp_path)
    check_results(report["results"])
    ours = [("float32", "bfloat16"), speed.SEM_PLACES]
    for task in TASKS:
        seen = {(row["side"], row["precision"], row["sem"]) for row in report["results"] if row["task"] == task}
        if task in speed.UPDATES:
            assert seen == {("ours", precision, sem) for precision in ours[0] for sem in ours[1]}
        else:
            assert seen == {("ours", "float32", "")}
        assert task in output
    for row in report["results"]:
        assert f"{row['median_ms']:.3f}" in output
        assert row["to_reference"] is None
    assert report["reference"] is None
    assert report["settings"]["batch_size"] == 32
    assert report["machine"]["torch"]["threads"] == 1
    assert report["machine"]["hardware"]["cpu"]
    assert report["networks"] == {"actor": [256, 128, 64], "critic": [256, 128, 64], "atoms": 51}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "--batch-size 0"),
        (["--repeats", "-1"], "--repeats -1"),
        (["--slots", "3"], "--slots 3"),
        (["--threads", "-2"], "--threads -2"),
        (["--size", "huge"], "--size huge"),
        (["--device", "cuda:99"], "--device cuda:99"),
        (["--device", "cuda", "--clock", "cpu"], "--clock cpu"),
        (["--out", "absent/results.json"], "--out absent/results.json"),
        (["--reference", "absent"], "--reference absent: there is no fast_td3/fast_td3.py"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        speed.main(flags)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert out == ""
    assert err.count("\n") == 1 and err.startswith(f"error: {message}")


def test_a_checkout_that_does_not_import_says_why(tmp_path: Path) -> None:
    (tmp_path / "fast_td3").mkdir()
    (tmp_path / "fast_td3" / "fast_td3.py").write_text("import absent_module\n")
    with pytest.raises(ValueError, match=r"fast_td3\.py does not import: No module named 'absent_module'"):
        speed.load_code(tmp_path)


def test_random_env_keeps_the_contract() -> None:
    assert check(lambda num_envs, seed: RandomEnv(num_envs, seed, "cpu", 3, 2, limit=20), steps=200) == []


def test_random_env_ends_episodes_both_ways() -> None:
    env = RandomEnv(64, 0, "cpu", 3, 2, limit=50)
    env.reset()
    steps = [env.step(torch.zeros(64, 2)) for _ in range(300)]
    assert any(step.terminated.any() for step in steps)
    truncated = torch.stack([step.truncated for step in steps])
    assert truncated.any(0).all()
    assert truncated[100:].any(1).sum() > 20  # spread, not all at once


def test_sem_is_where_a_contestant_says() -> None:
    base = speed.settings(speed.Args(size="small"))
    seen = {
        place: tuple(x is not None for x in fasttd3.sem_configs(speed.with_sem(base, place)))
        for place in speed.SEM_PLACES
    }
    assert seen == {"off": (False, False), "actor": (True, False), "critic": (False, True), "both": (True, True)}


class Clock:
    """A clock that only its calls move; each takes the next of its durations, over and over."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, durations: list[float]) -> Callable[[], None]:
        count = 0

        def go() -> None:
            nonlocal count
            self.now += durations[count % len(durations)]
            count += 1
            self.order.append(name)

        return go


def test_calls_take_turns_there_and_back_and_a_repeat_is_a_median() -> None:
    clock = Clock()
    # two calls to warm up, then two repeats of three
    one = clock.call("one", [9, 9, 1, 5, 2, 7, 3, 3])
    two = clock.call("two", [9, 9, 4, 4, 8, 1, 1, 6])
    assert speed.measure([one, two], 2, CPU, clock) == [[2000, 3000], [4000, 1000]]
    turns = ["one", "two", "two", "one", "one", "two"]
    assert clock.order == ["one", "two"] * 2 + turns * 2


def test_short_calls_are_repeated_until_they_can_be_measured() -> None:
    clock = Clock()
    assert speed.measure([clock.call("x", [0.001])], 1, CPU, clock) == [[pytest.approx(1)]]
    assert len(clock.order) == 2 + 50  # 50 ms
    clock = Clock()
    speed.measure([clock.call("x", [1e-9])], 1, CPU, clock)
    assert len(clock.order) == 2 + speed.CALLS[1]


def test_ratios_are_to_the_same_sem_of_the_reference_and_to_sem_off_of_oneself() -> None:
    times = {
        Contestant("ours", "float32", "off"): [10.0, 20.0, 30.0],
        Contestant("ours", "bfloat16", "off"): [1.0, 2.0, 3.0],
        Contestant("ours", "float32", "both"): [11.0, 30.0, 33.0],
        Contestant("ours", "bfloat16", "both"): [4.0, 4.0, 4.0],
        Contestant("reference", "float32", "off"): [40.0, 40.0, 50.0],
        Contestant("reference", "float32", "both"): [60.0, 60.0, 66.0],
    }
    rows = {
        Contestant(row["side"], row["precision"], row["sem"]): row
        for row in speed.results("x", times, list(times.values()))
    }
    both = rows[Contestant("ours", "float32", "both")]
    assert both["to_sem_off"] == {"ratio": 1.5, "min": pytest.approx(1.1), "max": 1.5}
    assert both["to_reference"] == {"ratio": 0.5, "min": pytest.approx(11 / 60), "max": 0.5}
    assert rows[Contestant("ours", "bfloat16", "both")]["to_sem_off"]["ratio"] == 2
    assert rows[Contestant("ours", "bfloat16", "off")]["to_reference"]["ratio"] == 0.05
    theirs = rows[Contestant("reference", "float32", "both")]
    assert theirs["to_reference"] is None and theirs["to_sem_off"]["ratio"] == 1.5
    assert "1.500 [1.100, 1.500]" in speed.table(list(rows.values()))


# ---- against the authors' code ---------------------------------------------------------------------------------------


def differences() -> dict[str, speed.Difference]:
    """What `speed.differences` finds in a small agent."""
    torch.manual_seed(0)
    assert CHECKOUT is not None
    ours = replace(speed.settings(speed.Args(size="small", batch_size=64)), v_min=-20.0, v_max=30.0)
    env = RandomEnv(ours.num_envs, 0, "cpu", 7, 3)
    replay, _, _ = speed.replay_calls(ours, None, env, 16, 1)
    return speed.differences(speed.load_code(Path(CHECKOUT)), ours, env, replay.sample(64))


@needs_reference
def test_losses_and_updates_are_those_of_the_authors() -> None:
    found = differences()
    assert {name.partition(",")[0] for name in found} == {
        *("critic loss", "actor loss", "normalised observations"),
        *("movement of actor", "movement of critics", "movement of target"),
    }
    assert {name: each for name, each in found.items() if each.seen > each.tolerated} == {}


@needs_reference
@pytest.mark.parametrize(
    ("broken", "noticed"),
    [
        ("soft_update", "movement of target"),
        ("actor_loss", "actor loss"),
        ("critic_loss", "critic loss"),
        ("_adamw", "movement of critics"),
    ],
)
def test_the_comparison_notices_what_differs(broken: str, noticed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if broken == "soft_update":
        monkeypatch.setattr(Reference, broken, lambda self: None)
    elif broken == "_adamw":  # a tenth of the weight decay
        own = fasttd3.FastTD3._adamw

        def adamw(self: Any, *args: Any) -> torch.optim.AdamW:
            optimizer = own(self, *args)
            optimizer.param_groups[0]["weight_decay"] *= 0.1
            return optimizer

        monkeypatch.setattr(fasttd3.FastTD3, broken, adamw)
    else:
        loss = getattr(fasttd3.FastTD3, broken)
        monkeypatch.setattr(fasttd3.FastTD3, broken, lambda self, batch: loss(self, batch) * 1.001)
    found = differences()
    assert noticed in {name.partition(",")[0] for name, each in found.items() if each.seen > each.tolerated}


@needs_reference
def test_the_script_times_the_reference_too(tmp_path: Path) -> None:
    assert CHECKOUT is not None
    report, output = run(tmp_path, "--reference", str(Path(CHECKOUT).resolve()))
    check_results(report["results"])
    assert "float32" in report["reference"]["runs"] and report["reference"]["runs"] in output
    for row in report["results"]:
        assert (row["to_reference"] is not None) == (row["side"] == "ours")
    assert {row["sem"] for row in report["results"] if row["side"] == "reference"} == {*speed.SEM_PLACES, ""}
