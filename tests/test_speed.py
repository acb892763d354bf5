"""benchmarks/speed.py, rivals.py: what they count, what they divide by what, and that all sides do the same work."""

import io
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import config, fastsac, fasttd3, ppo
from benchmarks import authors, rivals, simulators, speed, together
from benchmarks.authors import FastSACCode, FastTD3Code
from benchmarks.rivals import Gate, Missing, Order, Pool, Program, Restarting, Row, Task, Turn
from benchmarks.speed import Contestant, RandomEnv
from envs.base import TaskError
from envs.check import check
from networks.flat import AdamW

CHECKOUTS = {"fasttd3": os.environ.get("FASTTD3_REFERENCE"), "fastsac": os.environ.get("HOLOSOMA_REFERENCE")}
needs_fasttd3 = pytest.mark.skipif(
    not CHECKOUTS["fasttd3"],
    reason="set FASTTD3_REFERENCE to a checkout of github.com/younggyoseo/FastTD3 to compare with it",
)
needs_fastsac = pytest.mark.skipif(
    not CHECKOUTS["fastsac"],
    reason="set HOLOSOMA_REFERENCE to a checkout of github.com/amazon-far/holosoma to compare with it",
)
EACH = [pytest.param("fasttd3", marks=needs_fasttd3), pytest.param("fastsac", marks=needs_fastsac)]
SMALL = [
    *("--size", "small", "--batch-size", "32", "--obs-dim", "5", "--action-dim", "2", "--slots", "8"),
    *("--threads", "1", "--repeats", "2"),
]
TASKS = [*speed.UPDATES, "replay sample, n_step 1", "replay sample, n_step 3", "replay add"]
CPU = torch.device("cpu")
CLEANRL, LEANRL = os.environ.get("CLEANRL_REFERENCE"), os.environ.get("LEANRL_REFERENCE")
SB3_PYTHON = os.environ.get("SB3_PYTHON")
POLE = Task("PPO", "CartPole-v1", 3, (8, 8), (2, 4, 2, 4), num_steps=16, num_minibatches=2, update_epochs=1)
PENDULUM = replace(POLE, env_id="Pendulum-v1")
PONG = replace(POLE, env_id="Pong-v5", images=True)


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
        assert (row["to_floor"] is not None) == (row["task"] in speed.UPDATES)


def test_the_script_times_every_contestant_and_writes_what_it_prints(tmp_path: Path) -> None:
    report, output = run(tmp_path)
    check_results(report["results"])
    ours = [("float32", "bfloat16"), (*authors.SEM_PLACES, speed.CONTROL)]
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
    assert report["networks"] == {"actor": [256, 128, 128], "critic": [256, 128, 64], "atoms": 51}


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
        (["ppo", "--repeats", "0"], "--repeats 0"),
        (["ppo", "--turn", "0"], "--turn 0"),
        (["ppo", "--threads", "-1"], "--threads -1"),
        (["ppo", "--tasks", "chess"], "--tasks chess"),
        (["ppo", "--device", "cuda:99"], "--device cuda:99"),
        (["ppo", "--cleanrl", "absent"], "--cleanrl absent"),
        (["ppo", "--sb3-python", "absent"], "--sb3-python absent"),
        (["ppo", "--out", "absent/results.json"], "--out absent/results.json"),
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
        authors.load_fasttd3(tmp_path)


def test_a_checkout_of_holosoma_that_does_not_import_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no src/holosoma/holosoma/utils/safe_torch_import\.py"):
        authors.load_fastsac(tmp_path)
    source = tmp_path / "src" / "holosoma" / "holosoma" / "utils"
    source.mkdir(parents=True)
    (source / "safe_torch_import.py").write_text("import absent_module\n")
    with pytest.raises(ValueError, match=r"safe_torch_import\.py does not import: No module named 'absent_module'"):
        authors.load_fastsac(tmp_path)
    assert not isinstance(sys.modules.get("loguru"), authors.Anything)  # what stood in has gone


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
        place: tuple(x is not None for x in fasttd3.sem_configs(authors.with_sem(base, place)))
        for place in (*authors.SEM_PLACES, speed.CONTROL)
    }
    plain, both = (False, False), (True, True)
    assert seen == {"off": plain, "actor": (True, False), "critic": (False, True), "both": both, speed.CONTROL: plain}


def test_the_floor_counts_what_the_networks_multiply_and_the_optimisers_move() -> None:
    args = replace(speed.settings(speed.Args(size="small", batch_size=32)), amp="off")
    env = RandomEnv(4, 0, "cpu", 5, 2)
    agent = fasttd3.FastTD3(args, env)
    replay, *_ = speed.replay_calls(args, None, env, 64, 1)
    batch = replay.sample(32)
    found = speed.floors(agent, batch, speed.Rates({"float32": 1e9, "bfloat16": 1e15}, 1e9))

    def products(inputs: int, hidden: tuple[int, ...], outputs: int) -> int:
        sizes = (inputs, *hidden, outputs)
        return sum(before * after for before, after in pairwise(sizes))

    actor, critics = products(5, args.actor_hidden, 2), 2 * products(7, args.critic_hidden, args.atoms)
    # of a critic update: actor and target once; forward, by the weights and by the inputs, but for the first layer's
    learn_critics = actor + critics + 3 * critics - 2 * 7 * args.critic_hidden[0]
    learn_actor = 3 * actor - 5 * args.actor_hidden[0] + 2 * critics
    flops = [2 * 32 * work for work in (learn_critics, learn_actor, learn_critics + learn_actor)]
    assert [each["flops"] for each in found.values()] == flops
    data = 32 * 4 * (5 + 2 + 1 + 1 + 5) + 32 * 4 * 2 * 5 * (batch["critic_obs"] is not batch["obs"])
    weights_a, weights_c = (4 * sum(p.numel() for p in net.parameters()) for net in (agent.actor, agent.critic))
    moved = [9 * weights_c + weights_a + data, 8 * weights_a + weights_c + data, 11 * weights_c + 9 * weights_a + data]
    assert [each["bytes"] for each in found.values()] == moved
    for each in found.values():
        assert each["floor_ms"]["float32"] == pytest.approx(1e-6 * each["flops"])  # more than its bytes
        assert each["floor_ms"]["bfloat16"] == pytest.approx(1e-6 * each["bytes"])


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


# ---- PPO and SAC in training -----------------------------------------------------------------------------------------


class Recorder:
    """A program that trains at a given rate, and writes down when it had its turn."""

    def __init__(self, name: str, order: list[str], seconds: list[float]) -> None:
        self.name, self.order, self.seconds = name, order, seconds

    def turn(self, frames: int) -> Turn:
        self.order.append(self.name)
        return Turn(frames, self.seconds.pop(0), 1.0)


def test_programs_take_turns_there_and_back_and_the_first_does_not_count() -> None:
    order: list[str] = []
    programs = {name: Recorder(name, order, [99.0, 1.0, 2.0]) for name in ("a", "b", "c")}
    turns = rivals.take_turns(programs, 2, 7)
    assert order == [*"abc", *"cba", *"abc"]
    assert turns == {name: [Turn(7, 1.0, 1.0), Turn(7, 2.0, 1.0)] for name in programs}


def test_a_program_that_dies_in_its_turn_is_named(tmp_path: Path) -> None:
    script = "import sys; print('{}'); print([1, 1, 1]); sys.stdout.flush(); input(); sys.exit('out of coal')"
    with Program([sys.executable, "-c", script], tmp_path, {}) as dying:
        assert dying.start() == ({}, Turn(1, 1, 1))
        for _ in range(2):  # the second time nobody is there to be told
            with pytest.raises(Missing, match=r"^engine ended in its turn: out of coal$"):
                rivals.take_turns({"engine": dying}, 1, 10)


def rows_of(names: dict[str, str]) -> list[Row]:
    sides = {name: Row(name, side, "", Order("ours", POLE, 1, "cpu")) for name, side in names.items()}  # type: ignore[arg-type]
    return [row._replace(sem_off="ours" if name == "ours --sem" else None) for name, row in sides.items()]


def test_ours_is_compared_with_the_fastest_rival_and_sem_with_ours_without() -> None:
    rows = rows_of({"ours": "ours", "ours --sem": "ours", "slow": "rival", "fast": "rival", "alone": "simulator"})
    turns = {
        "ours": [Turn(100, 1.0, 10.0), Turn(100, 2.0, 10.0), Turn(100, 4.0, 10.0)],
        "ours --sem": [Turn(100, 1.1, 11.0), Turn(100, 2.0, 11.0), Turn(100, 3.6, 11.0)],
        "slow": [Turn(100, 50.0, 40.0)] * 3,
        "fast": [Turn(200, 8.0, 100.0), Turn(200, 8.0, 100.0), Turn(200, 16.0, 100.0)],
        "alone": [Turn(1000, 1.0, 20.0)] * 3,
    }
    found = {row["program"]: row for row in rivals.results(rows, turns, "wall")}
    ours, sem = found["ours"], found["ours --sem"]
    assert (ours["frames_per_s"], ours["min"], ours["max"]) == (50, 25, 100)
    assert ours["fastest_rival"] == "fast" and ours["speedup"] == {"ratio": 2.0, "min": 2.0, "max": 4.0}
    assert sem["to_sem_off"] == {"ratio": 1.0, "min": pytest.approx(0.9), "max": pytest.approx(1.1)}
    assert found["fast"]["speedup"] is None and ours["to_sem_off"] is None
    assert ours["cpu_us"] == pytest.approx(1e5) and ours["learner_us"] == pytest.approx(1e5 - 2e4)
    assert found["alone"]["learner_us"] is None
    by_cpu = {row["program"]: row for row in rivals.results(rows, turns, "cpu")}
    assert by_cpu["ours"]["frames_per_s"] == 10 and by_cpu["ours"]["fastest_rival"] == "slow"
    assert by_cpu["ours"]["speedup"]["ratio"] == pytest.approx(4)
    text = rivals.table("title", list(found.values()), {"CleanRL": "not installed"})
    assert "2.000 [2.000, 4.000]" in text and text.splitlines()[-1].split(maxsplit=1) == ["CleanRL", "not installed"]


def test_without_a_rival_there_is_no_speedup() -> None:
    found = rivals.results(rows_of({"ours": "ours"}), {"ours": [Turn(1, 1.0, 1.0)]}, "wall")
    assert found[0]["speedup"] is None and found[0]["fastest_rival"] is None and found[0]["learner_us"] is None


def test_a_turn_ends_with_the_iteration_that_reaches_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"wall": 0.0, "cpu": 0.0}
    monkeypatch.setattr(rivals.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(rivals.time, "process_time", lambda: now["cpu"])

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(rivals.os, "_exit", leave)
    reports = io.StringIO()
    gate = Gate(io.StringIO("10\n5\n"), reports)
    with pytest.raises(SystemExit) as stop:
        for frames in range(4, 100, 4):
            now["wall"] += 2
            now["cpu"] += 3
            gate(frames, "bfloat16")
    assert stop.value.code == 0
    # after the first iteration; 10 frames are reached after three more; 5 after two more; then nobody asks
    assert [json.loads(line) for line in reports.getvalue().splitlines()] == [
        [4, 2, 3, "bfloat16"],
        [12, 6, 9, "bfloat16"],
        [8, 4, 6, "bfloat16"],
    ]


def program(tmp_path: Path, order: Order, python: str = sys.executable) -> Program:
    env = {"OMP_NUM_THREADS": "1"}
    return Program(rivals.command(Row("x", "ours", python, order)), tmp_path, env)


def test_a_process_trains_only_when_it_is_told_to(tmp_path: Path) -> None:
    with program(tmp_path, Order("simulator", POLE, 1, "cpu")) as simulator:
        versions, first = simulator.start()
        assert versions["numpy"] == np.__version__ and first.frames == 3
        turns = [simulator.turn(30), simulator.turn(31)]
        assert [turn.frames for turn in turns] == [30, 33]
        assert all(turn.wall_s > 0 and turn.cpu_s > 0 for turn in turns)
        process = simulator._process
        assert process.poll() is None
    assert process.poll() is not None


def test_a_process_that_ends_says_why(tmp_path: Path) -> None:
    why = r"^nowhere is no checkout of .*: there is no cleanrl/ppo_continuous_action\.py$"
    order = Order("CleanRL", POLE, 1, "cpu", checkout="nowhere")
    with program(tmp_path, order) as absent, pytest.raises(Missing, match=why):
        absent.start()


def test_what_is_not_installed_is_named_with_the_command_that_installs_it() -> None:
    with pytest.raises(
        Missing, match=r"^not installed \(No module named 'absent_module'\): .* -m pip install a-package$"
    ):
        rivals.need("absent_module", "a-package")
    assert rivals.need("json") is json


def test_what_is_left_out_is_in_the_table_and_bfloat16_is_not_measured_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fake(Recorder):
        def __init__(self, command: list[str], folder: Path, env: dict[str, str]) -> None:
            self.sb3 = json.loads(command[2])["program"] == "SB3"
            super().__init__("", [], [1.0] * 9)

        def __enter__(self) -> "Fake":
            return self

        def __exit__(self, *_: object) -> None: ...

        def start(self) -> tuple[dict[str, str], Turn]:
            if self.sb3:
                raise Missing("not installed: pip install stable-baselines3")
            return {"torch": "2"}, Turn(1, 1.0, 1.0, "off")

    monkeypatch.setattr(rivals, "Program", Fake)
    report = rivals.compare(rivals.Args(repeats=2, threads=1), POLE)
    assert [row["program"] for row in report["results"]] == ["ours", "ours --sem", "simulator alone"]
    assert set(report["missing"]) == {"CleanRL", "LeanRL", "SB3 PPO, EnvPool"}
    printed = capsys.readouterr().out
    assert all(why in printed for why in report["missing"].values())


@pytest.mark.parametrize("task", [*rivals.TASKS.values(), POLE], ids=str)
def test_our_flags_are_legal_and_leave_nothing_to_presets_that_costs_time(task: Task) -> None:
    agent: Any = ppo if task.algorithm == "PPO" else fastsac
    words = [str(word) for word in rivals.our_flags(Order("ours", task, 1, "cpu"))]
    args = config.parse(agent.Args, agent.presets, words).args
    bare = config.parse(agent.Args, None, words).args
    costs_nothing = {
        *(
            "gamma",
            "gae_lambda",
            "learning_rate",
            "clip_coef",
            "ent_coef",
            "vf_coef",
            "eval_envs",
            "eval_sample",
            "tau",
        ),
        *("critic_lr", "actor_lr", "alpha_lr", "v_min", "v_max", "atoms", "adam_betas", "alpha_init"),
        *("target_entropy_ratio", "log_std_max"),
    }
    differ = {name for name, value in vars(args).items() if value != getattr(bare, name)}
    assert differ <= costs_nothing
    for name in ("num_envs", "env_id", "num_steps", "num_minibatches", "update_epochs", "batch_size", "num_updates"):
        if hasattr(args, name):
            assert getattr(args, name) == getattr(task, name)
    assert args.actor_hidden == args.critic_hidden == task.hidden
    assert args.sem_actor_groups * args.sem_actor_vertices == task.hidden[-1]
    assert args.sem_critic_groups * args.sem_critic_vertices == task.hidden[-1]
    assert args.log_every == args.eval_every == args.save_every == 0 and not args.sem
    agent.resolve(args)


def test_ours_trains_under_the_gate_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lineup = rivals.lineup

    def short(args: rivals.Args, task: Task) -> tuple[list[Row], dict[str, str]]:
        rows, missing = lineup(args, task)
        return [row for row in rows if row.name in ("ours", "simulator alone")], missing

    monkeypatch.setattr(rivals, "TASKS", {"cheetah": POLE})
    monkeypatch.setattr(rivals, "lineup", short)
    out = tmp_path / "results.json"
    flags = ["--tasks", "cheetah", "--repeats", "1", "--turn", "50", "--threads", "1", "--clock", "cpu"]
    speed.main(["ppo", *flags, "--out", str(out)])
    report = json.loads(out.read_text())
    ours, alone = report["results"]
    assert ours["program"] == "ours" and alone["program"] == "simulator alone"
    assert [turn["frames"] for turn in ours["turns"]] == [96]  # two rollouts of 3 * 16
    assert [turn["frames"] for turn in alone["turns"]] == [51]
    assert ours["cpu_us"] > 0 and ours["precision"] == "float32"
    assert report["settings"]["turn"] == 50 and report["settings"]["out"] is None
    assert report["machine"]["torch"]["threads"] == 1 and "CleanRL" in report["missing"]["cheetah"]
    assert torch.__version__.startswith(report["versions"]["cheetah"]["ours"]["torch"].partition("+")[0])
    assert "simulator alone" in capsys.readouterr().out


def test_the_simulator_is_the_same_with_the_interface_of_2022() -> None:
    import envpool

    now, then = (envpool.make_gymnasium("CartPole-v1", num_envs=3, seed=5) for _ in range(2))
    old = rivals.old_interface(then)
    assert np.array_equal(now.reset()[0], old.reset())
    old.num_envs = 3  # as CleanRL's script does
    ends = 0
    for _ in range(60):
        action = np.ones(3, np.int32)
        obs, reward, terminated, truncated, _ = now.step(action)
        old_obs, old_reward, done, info = old.step(action)
        assert np.array_equal(obs, old_obs) and np.array_equal(reward, old_reward)
        assert np.array_equal(done, terminated | truncated) and "elapsed_step" in info
        ends += done.sum()
    assert ends


def test_moments_are_those_of_all_rows() -> None:
    rng = np.random.default_rng(0)
    rows = [rng.normal(3, 2, (n, 4)) for n in (2, 7, 5)]
    moments = rivals.Moments((4,))
    for batch in rows:
        moments.update(batch)
    seen = np.concatenate(rows)
    assert np.allclose(moments.mean, seen.mean(0), rtol=1e-3) and np.allclose(moments.var, seen.var(0), rtol=1e-3)


def test_normalised_environments_are_the_plain_ones_normalised_by_hand() -> None:
    plain, normal = Pool(PENDULUM, 1, normalise=False), Pool(PENDULUM, 1, normalise=True)
    rng = np.random.default_rng(0)
    seen = [plain.reset()[0]]
    first = normal.reset()[0]
    assert first.dtype == np.float32
    returns, running = [], np.zeros(3)
    for _ in range(230):  # past the time limit of 200
        action = rng.uniform(-9, 9, (3, 1))  # beyond the bounds
        obs, reward, terminated, truncated, _ = plain.step(action.clip(-2, 2))
        norm_obs, norm_reward, *ends, _ = normal.step(action)
        assert np.array_equal(ends, [terminated, truncated])
        seen.append(obs)
        running = 0.99 * running + reward
        returns.append(running.copy())
        running[terminated | truncated] = 0
        every = np.concatenate(seen).astype(float)
        expected = ((obs - every.mean(0)) / every.std(0)).clip(-10, 10)
        assert np.allclose(norm_obs, expected, atol=2e-3)
        assert np.allclose(norm_reward, (reward / np.std(returns)).clip(-10, 10), rtol=2e-3)
    assert truncated.sum() == 0 and np.std(returns) > 1


@pytest.mark.parametrize("task", [POLE, PENDULUM], ids=lambda task: task.env_id)
def test_what_sb3_sees_is_the_simulator_without_its_reset_rows(task: Task) -> None:
    pool, env = Pool(task, 1, normalise=False), Restarting(task, 1, normalise=False)
    n = task.num_envs

    def action(counts: np.ndarray) -> np.ndarray:
        """Of each environment, by how many transitions it has made."""
        if task is POLE:
            return (counts // 3 + np.arange(n)) % 2
        return np.sin(counts[:, None] + np.arange(n)[:, None])

    streams: list[list[Any]] = [[] for _ in range(n)]  # of each environment: transitions as tuples
    obs, counts, fresh = pool.reset()[0], np.zeros(n, int), np.zeros(n, bool)
    for _ in range(450):
        after, reward, terminated, truncated, _ = pool.step(action(counts))
        for i in np.flatnonzero(~fresh):
            streams[i].append((obs[i], reward[i], after[i], bool(terminated[i]), bool(truncated[i])))
        counts += ~fresh
        obs, fresh = after, terminated | truncated
    obs, counts = env.reset(), np.zeros(n, int)
    ends = 0
    for t in range(min(len(stream) for stream in streams)):
        after, reward, done, infos = env.step(action(counts))
        counts += 1
        for i in range(n):
            before, gain, successor, terminated, truncated = streams[i][t]
            assert np.array_equal(obs[i], before) and reward[i] == gain and done[i] == (terminated or truncated)
            assert np.array_equal(infos[i].get("terminal_observation", after[i]), successor)
            assert infos[i].get("TimeLimit.truncated", False) == (truncated and not terminated)
            assert ("terminal_observation" in infos[i]) == done[i]
            ends += done[i]
        obs = after
    assert ends > n


ATARI_SCRIPT = """
import argparse, envpool, gym
from torch.utils.tensorboard import SummaryWriter

class Wrapped(gym.Wrapper):
    def step(self, action):
        *out, info = super().step(action)
        return *out, {**info, "seen": True}

parser = argparse.ArgumentParser()
for name in ("env_id", "num_envs", "num_steps", "num_minibatches", "update_epochs", "total_timesteps"):
    parser.add_argument("--" + name, type=str if name == "env_id" else int)
parser.add_argument("--no-cuda", action="store_true")
args = parser.parse_args()
assert args.no_cuda
envs = envpool.make(args.env_id, env_type="gym", num_envs=args.num_envs, episodic_life=True, reward_clip=True, seed=1)
envs.num_envs = args.num_envs
envs = Wrapped(envs)
assert isinstance(envs.action_space, gym.spaces.Discrete)
writer = SummaryWriter("runs")
writer.add_text("x", "y")
import numpy as np
obs = envs.reset()
assert obs.shape == (args.num_envs, 4, 84, 84) and obs.dtype == np.uint8
for step in range(1, 100):
    obs, reward, done, info = envs.step(np.zeros(args.num_envs, np.int32))
    assert info["seen"] and "lives" in info
    writer.add_scalar("losses/x", 0.5, step)
    writer.add_scalar("charts/SPS", 100, step * args.num_envs)
"""

CONTINUOUS_SCRIPT = """
import sys
import gymnasium as gym
import numpy as np
from torch.utils.tensorboard import SummaryWriter

def make():
    env = gym.make("Pendulum-v1")
    return gym.wrappers.TransformObservation(env, lambda obs: np.clip(obs, -10, 10))

envs = gym.vector.SyncVectorEnv([make for _ in range(3)])
assert isinstance(envs.single_action_space, gym.spaces.Box)
obs, _ = envs.reset(seed=1)
writer = SummaryWriter("runs")
for step in range(1, 100):
    obs, reward, terminated, truncated, infos = envs.step(np.zeros((3, 1), np.float32))
    assert obs.shape == (3, 3)
    writer.add_scalar("charts/SPS", type(envs).__name__, step * 3)
"""


@pytest.mark.parametrize("case", ["atari", "EnvPool", "as published"])
def test_scripts_like_cleanrls_run_as_they_are(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import envpool
    import gymnasium

    task, script = (PONG, ATARI_SCRIPT) if case == "atari" else (PENDULUM, CONTINUOUS_SCRIPT)
    path = tmp_path / "cleanrl" / f"ppo_{'atari_envpool' if case == 'atari' else 'continuous_action'}.py"
    path.parent.mkdir()
    path.write_text(script)
    # what run_cleanrl replaces in its own process is put back in this one
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(envpool, "make", envpool.make)
    monkeypatch.setattr(gymnasium.vector, "SyncVectorEnv", gymnasium.vector.SyncVectorEnv)
    monkeypatch.setattr(gymnasium.wrappers, "TransformObservation", gymnasium.wrappers.TransformObservation)
    for name in ("gym", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, sys.modules.get(name))  # type: ignore[arg-type]
    seen = []

    def gate(frames: int) -> None:
        seen.append(frames)
        if len(seen) == 4:
            raise KeyboardInterrupt

    order = Order("CleanRL", task, 1, "cpu", checkout=str(tmp_path), on_envpool=case == "EnvPool")
    with pytest.raises(KeyboardInterrupt):
        rivals.run_cleanrl(order, gate)  # type: ignore[arg-type]
    assert seen == [3, 6, 9, 12]


LEANRL_SCRIPT = """
import sys
import gymnasium as gym
import numpy as np
import tqdm
import wandb
from tensordict import from_module
from torch import nn

assert sys.argv[-1] == "--compile" and "--no-cuda" in sys.argv
wandb.init(project="x", save_code=True)
envs = gym.vector.SyncVectorEnv([])
envs.reset()
learner, actor = nn.Linear(3, 1), nn.Linear(3, 1)
from_module(learner).data.to_module(actor)
assert actor.weight.data_ptr() == learner.weight.data_ptr() and learner.weight.requires_grad
bar = tqdm.tqdm(range(1, 100))
for iteration in bar:
    obs, reward, terminated, truncated, infos = envs.step(actor(actor.weight.new_zeros(3, 3)).numpy())
    bar.set_description("x")
    wandb.log({"reward": reward}, step=iteration)
"""


def test_scripts_like_leanrls_run_as_they_are(tmp_path: Path) -> None:
    script = tmp_path / "leanrl" / "ppo_continuous_action_torchcompile.py"
    script.parent.mkdir()
    script.write_text(LEANRL_SCRIPT)
    order = Order("LeanRL", PENDULUM, 1, "cpu", flags=("--compile",), checkout=str(tmp_path))
    with program(tmp_path, order) as like:
        assert like.start()[1].frames == 48, "3 environments, 16 steps"
        assert like.turn(50).frames == 96
    why = r"is no checkout of .*LeanRL: there is no leanrl/ppo_atari_envpool_torchcompile\.py$"
    with program(tmp_path, order._replace(task=PONG)) as absent, pytest.raises(Missing, match=why):
        absent.start()


def test_leanrl_runs_as_by_default_and_as_fast_as_it_can(tmp_path: Path) -> None:
    rows, missing = rivals.lineup(rivals.Args(leanrl=tmp_path, device="cuda"), PENDULUM)
    assert {row.name: row.order.flags for row in rows if row.order.program == "LeanRL"} == {
        "LeanRL, EnvPool": (),
        "LeanRL --compile --cudagraphs": ("--compile", "--cudagraphs"),
    }
    assert list(missing) == ["CleanRL"]
    assert list(rivals.lineup(rivals.Args(), PENDULUM)[1]) == ["CleanRL", "LeanRL"]


def test_ours_is_compiled_in_rows_of_its_own() -> None:
    plain, more = (rivals.lineup(rivals.Args(compile=asked), PENDULUM)[0] for asked in (False, True))
    added = [row for row in more if row not in plain]
    assert [row.name for row in more if row in plain] == [row.name for row in plain]
    assert [(row.name, row.order.flags, row.sem_off) for row in added] == [
        ("ours --compile", ("--compile",), None),
        ("ours --compile --sem", ("--compile", "--sem"), "ours --compile"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "frames"),
    [
        (Order("LeanRL", replace(PONG, num_envs=2), 1, "cpu"), 64),
        (Order("LeanRL", replace(PENDULUM, env_id="HalfCheetah-v5"), 1, "cpu"), 96),
        (Order("CleanRL", replace(PONG, num_envs=2), 1, "cpu"), 64),
        (Order("CleanRL", replace(PENDULUM, env_id="HalfCheetah-v5"), 1, "cpu"), 96),
        (Order("CleanRL", replace(PENDULUM, env_id="HalfCheetah-v5"), 1, "cpu", on_envpool=False), 96),
        (Order("SB3", replace(PONG, num_envs=2), 1, "cpu"), 64),
        (Order("SB3", PENDULUM, 1, "cpu"), 96),
        (Order("SB3", Task("SAC", "Pendulum-v1", 3, (8, 8), (2, 4, 2, 4), batch_size=8, num_updates=2), 1, "cpu"), 51),
    ],
    ids=[
        "LeanRL Atari",
        "LeanRL",
        "CleanRL Atari",
        "CleanRL EnvPool",
        "CleanRL as published",
        "SB3 Atari",
        "SB3 PPO",
        "SB3 SAC",
    ],
)
def test_the_rivals_themselves_train_under_the_gate(tmp_path: Path, order: Order, frames: int) -> None:
    checkout = {"CleanRL": CLEANRL, "LeanRL": LEANRL}.get(order.program)
    if not (SB3_PYTHON if order.program == "SB3" else checkout):
        need = "CLEANRL_REFERENCE and LEANRL_REFERENCE to checkouts, SB3_PYTHON to an interpreter that has it"
        pytest.skip(f"{order.program} is not here: set {need}")
    python = SB3_PYTHON if order.program == "SB3" else sys.executable
    assert python is not None
    order = order._replace(checkout=str(Path(checkout or "").resolve()))
    with program(tmp_path, order, python) as rival:
        rival.start()
        turn = rival.turn(50)
    assert turn.frames == frames and turn.wall_s > 0 and turn.cpu_s > 0


# ---- against the authors' code ---------------------------------------------------------------------------------------


def differences(agent: str) -> authors.Differences:
    """By how much an agent and that of its authors differ."""
    torch.manual_seed(0)
    checkout = CHECKOUTS[agent]
    assert checkout is not None
    base = speed.settings(speed.Args(agent=agent, size="small", batch_size=64, reference=Path(checkout)))  # type: ignore[arg-type]
    ours = replace(base, v_min=-20.0, v_max=30.0)
    env = RandomEnv(ours.num_envs, 0, "cpu", 7, 3)
    replay, _, _ = speed.replay_calls(ours, None, env, 16, 1)
    others = authors.OTHERS[agent]
    return others.differences(others.load(Path(checkout)), ours, env, replay.sample(64))


@pytest.mark.parametrize("agent", EACH)
def test_losses_and_updates_are_those_of_the_authors(agent: str) -> None:
    found = differences(agent)
    assert {name.partition(",")[0] for name in found} == {
        *("critic loss", "actor loss", *(["normalised observations"] if agent == "fasttd3" else [])),
        *("movement of actor", "movement of critics", "movement of target"),
    }
    assert {name: each for name, each in found.items() if not each.seen <= each.tolerated} == {}


@pytest.mark.parametrize("agent", EACH)
@pytest.mark.parametrize(
    ("broken", "noticed"),
    [
        ("soft_update", "movement of target"),
        ("actor_loss", "actor loss"),
        ("critic_loss", "critic loss"),
        ("AdamW", "movement of critics"),
    ],
)
def test_the_comparison_notices_what_differs(
    agent: str, broken: str, noticed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if broken == "soft_update":
        monkeypatch.setattr({"fasttd3": FastTD3Code, "fastsac": FastSACCode}[agent], broken, lambda self: None)
    elif broken == "AdamW":

        def adamw(*args: Any, weight_decay: float = 0.0) -> AdamW:
            return AdamW(*args, weight_decay=0.1 * weight_decay)

        monkeypatch.setattr(speed.AGENTS[agent], broken, adamw)
    else:
        loss = getattr(speed.LEARNERS[agent], broken)

        def off(self: Any, batch: Any) -> Any:
            seen = loss(self, batch)
            return (seen[0] * 1.001, *seen[1:]) if isinstance(seen, tuple) else seen * 1.001

        monkeypatch.setattr(speed.LEARNERS[agent], broken, off)
    found = differences(agent)
    assert noticed in {name.partition(",")[0] for name, each in found.items() if each.seen > each.tolerated}


@pytest.mark.parametrize("agent", EACH)
def test_the_script_times_the_reference_too(agent: str, tmp_path: Path) -> None:
    report, output = run(tmp_path, "--agent", agent, "--reference", str(Path(CHECKOUTS[agent] or "").resolve()))
    rows = report["results"]
    if agent == "fasttd3":
        check_results(rows)
        for row in rows:
            assert (row["to_reference"] is not None) == (row["side"] == "ours" and row["sem"] != speed.CONTROL)
        assert {row["sem"] for row in rows if row["side"] == "reference"} == {*authors.SEM_PLACES, ""}
    else:  # it has no SEM, and the replay buffer of FastTD3
        theirs = [row for row in rows if row["side"] == "reference"]
        assert [(row["task"], row["sem"]) for row in theirs] == [(task, "off") for task in speed.UPDATES]
        beside = [row for row in rows if row["to_reference"] is not None]
        assert {(row["task"], row["sem"]) for row in beside} == {(task, "off") for task in speed.UPDATES}
    assert "float32" in report["reference"]["runs"] and report["reference"]["runs"] in output


def test_fastsac_is_timed_as_fasttd3_is(tmp_path: Path) -> None:
    report, output = run(tmp_path, "--agent", "fastsac")
    assert {row["task"] for row in report["results"]} == set(TASKS)
    assert report["networks"] == {"actor": [256, 128, 128], "critic": [256, 128, 64], "atoms": 51}
    for row in report["results"]:
        assert row["median_ms"] > 0 and (row["to_floor"] is not None) == (row["task"] in speed.UPDATES)
    assert "critic and actor update" in output


# ---- environments ----------------------------------------------------------------------------------------------------


def test_environments_are_timed_beside_their_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "envs --tasks HalfCheetah-v5 PointMass-v0 --backends envpool gymnasium torch --worlds 2 3"
    speed.main([*words.split(), *f"--seconds 0.01 --repeats 2 --out {tmp_path / 'out.json'}".split()])
    report = json.loads((tmp_path / "out.json").read_text())
    rows = [(row["task"], row["backend"], row["worlds"], "engine" in row) for row in report["results"]]
    cheetah = [("HalfCheetah-v5", name, worlds, True) for name in ("envpool", "gymnasium") for worlds in (2, 3)]
    assert rows == [*cheetah, *(("PointMass-v0", "torch", worlds, False) for worlds in (2, 3))]
    for row in report["results"]:
        for side in [row[name] for name in ("ours", "engine") if name in row]:
            assert len(side["turns"]) == 3 and 0 < side["min"] <= side["median"] <= side["max"]
    out = capsys.readouterr().out
    assert out.count("HalfCheetah-v5") == 4 and out.rstrip().endswith("out.json")


def test_backends_are_timed_against_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "envs --tasks CartPole-v1 --backends gymnasium envpool --against envpool --worlds 3"
    speed.main([*words.split(), *f"--seconds 0.01 --repeats 2 --out {tmp_path / 'out.json'}".split()])
    ours, theirs = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (ours["backend"], ours["against"], theirs["backend"]) == ("gymnasium", "envpool", "envpool")
    for row in (ours, theirs):
        assert len(row["ours"]["turns"]) == 3 and 0 < row["ours"]["min"] <= row["ours"]["median"]
        assert row["total_mib"] > max(row["memory_mib"], 50)  # Python and torch at least
    within = [a / b for a, b in zip(ours["ours"]["turns"][1:], theirs["ours"]["turns"][1:], strict=True)]
    assert (ours["speed_ratio"]["min"], ours["speed_ratio"]["max"]) == (min(within), max(within))
    assert ours["speed_ratio"]["ratio"] == ours["ours"]["median"] / theirs["ours"]["median"]
    assert ours["memory_ratio"] == ours["total_mib"] / theirs["total_mib"] and "speed_ratio" not in theirs
    assert capsys.readouterr().out.count("CartPole-v1") == 2


def test_a_backend_that_cannot_start_says_why() -> None:
    with pytest.raises(TaskError, match="no task is called 'CartPole-v9'"):
        simulators.Rival("CartPole-v9", "envpool", 2, simulators.Args())
    with simulators.Rival("CartPole-v1", "gymnasium", 2, simulators.Args(seconds=0.01)) as rival:
        assert rival.ask("turn") > 0
        rival._process.kill()
        with pytest.raises(TaskError, match=r"the process of gymnasium has ended \(-9\)"):
            rival.ask("turn")


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="Linux alone tells of other processes")
def test_memory_and_processor_time_are_those_of_all_processes() -> None:
    """64 MiB and 0.3 s of a child's child count, and no longer when it has ended."""
    cpu = torch.device("cpu")
    held, used = simulators.memory(cpu), simulators.processor_time()
    busy = "import time; held = b'x' * 2**26\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", start], **pipes) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert 60 < simulators.memory(cpu) - held < 130
        assert 0.25 < simulators.processor_time() - used < 2
        child.communicate("\n")
    assert abs(simulators.memory(cpu) - held) < 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--tasks Nowhere-v0", "no backend here has the task 'Nowhere-v0'"),
        ("--against isaac", "--against isaac: installed are"),
        ("--against envpool --tasks PointMass-v0", "--against envpool: has no task 'PointMass-v0'"),
        ("--against torch --tasks PointMass-v0", "--against torch: no other backend has the task 'PointMass-v0'"),
        ("--backends isaac", "--backends isaac: installed are"),
        ("--worlds 0", "each must be above 0"),
        ("--seconds 0", "--seconds 0.0: must be above 0"),
        ("--out nowhere/x.json", "there is no directory nowhere"),
    ],
)
def test_bad_input_to_the_timing_of_environments(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        speed.main(["envs", *words.split()])
    err = capsys.readouterr().err
    assert stop.value.code == 2 and err.startswith("error: ") and message in err and err.count("\n") == 1


# ---- side by side, and all on a GPU ----------------------------------------------------------------------------------


def test_seeds_side_by_side_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "together --runs 1 2 --frames 400 --size small"
    more = "--num-envs 4 --batch-size 8 --learning-starts 40 --num-updates 1"
    speed.main([*words.split(), "--out", str(tmp_path / "out.json"), "--", *more.split()])
    report = json.loads((tmp_path / "out.json").read_text())
    assert [row["runs"] for row in report["results"]] == [1, 2]
    for row in report["results"]:
        assert len(row["each"]) == row["runs"] and min(row["each"]) > 0
        assert row["together"] == pytest.approx(sum(row["each"]))
        assert row["to_one"] == pytest.approx(row["together"] / report["results"][0]["together"])
    assert report["flags"] == more.split() and report["mps"] is False
    assert "side by side: more bring less than 5%" in capsys.readouterr().out


def test_frames_per_second_are_those_of_the_middle_of_a_run(tmp_path: Path) -> None:
    rows = [f"x,x,1,charts/SPS,{step},0,{value}" for step, value in enumerate((1, 2, 5, 7, 6, 900))]
    rows.insert(2, "x,x,1,charts/episodic_return,2,0,1e9")
    (tmp_path / "metrics.csv").write_text("\n".join(["exp_name,env_id,seed,metric,step,wall_s,value", *rows]))
    assert together.rate(tmp_path) == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("together --runs 0", "--runs (0,)"),
        ("together --frames 0", "--frames 0"),
        ("together --threads -1", "--threads -1"),
        ("together --out absent/x.json", "--out absent/x.json"),
        ("together --env-id Absent-v9 --runs 2 --frames 100", "no task is called 'Absent-v9'"),
        ("parts --parts absent", "--parts 'absent': there are again, twins, "),
        ("parts --repeats 0", "--repeats 0: must be at least 2"),
        ("parts --repeats 1", "--repeats 1: must be at least 2"),
        ("parts --out absent/x.json", "--out absent/x.json"),
        ("gpu --out absent", "--out absent"),
        ("gpu --minutes 0 --out .", "--minutes 0.0"),
        ("gpu --device cuda:99 --out .", "--device cuda:99"),
    ],
)
def test_bad_flags_of_these_are_one_line(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        speed.main(words.split())
    assert stop.value.code == 2
    assert message in (errors := capsys.readouterr().err) and len(errors.strip().splitlines()) == 1


def test_all_rows_of_a_gpu_are_legal_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[list[str]] = []

    def run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
        assert 0 < timeout <= 600
        done.append(command[2:])
        return subprocess.CompletedProcess(command, int("together" in command))

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SystemExit) as stop:
        places = " ".join(f"--{name} {tmp_path}" for name in ("out", "reference", "cleanrl", "holosoma"))
        speed.main(f"gpu --device cpu {places}".split())
    assert stop.value.code == 1  # one has failed, the others were run
    kinds = {"ppo": rivals.Args, "envs": simulators.Args, "together": together.Args}
    for words in done:
        kind = kinds.get(words[0], speed.Args)
        args = config.parse(kind, argv=words[1:] if words[0] in kinds else words).args
        assert args.device == "cpu" and args.out.parent == tmp_path  # type: ignore[attr-defined]
    assert len(done) == len(speed.ON_GPU)
    assert sum("--reference" in words for words in done) == 3


def test_a_gpu_s_rows_end_with_their_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        speed.main(f"gpu --out {tmp_path} --device cpu --minutes 0.001".split())
    assert stop.value.code == 1
    assert "not measured: update had no time left, update-compiled had no time left" in capfd.readouterr().out
