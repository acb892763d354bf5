"""benchmarks/report.py: what it takes from run directories, what it makes of it, and that nothing goes missing."""

import base64
import csv
import fcntl
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.custom_scalar import layout_pb2

from agents.run import Run
from benchmarks import plots, records, report, stats, study
from benchmarks.records import Series
from benchmarks.report import Args, collect, main
from benchmarks.study import Comparison, Reference, Study
from envs.families import ATARI_SCORES, DMC

ROOT = Path(report.__file__).resolve().parents[1]
RETURN = "eval/episodic_return"
WALKER, CHEETAH = "WalkerWalk-v1", "CheetahRun-v1"
STEPS = [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]


def write_run(
    path: Path,
    values: Sequence[float],
    task: str = WALKER,
    seed: int = 1,
    variant: str = "off",
    state: str | None = "done",
    *,
    steps: Sequence[int] | None = None,
    planned: int = 1000,
    config: Mapping[str, Any] | None = None,
    metric: str = RETURN,
    why: str = "",
    agent: str = "fasttd3",
    argv: Sequence[str] | None = None,
    start: str = "2026-11-20T10:00:00+00:00",
    seconds: float = 0.01,
) -> Path:
    """A run directory as `agents/run.py` leaves it, with evaluations at `STEPS` that come `seconds` per frame."""
    path.mkdir(parents=True)
    settings = {"env_id": task, "exp_name": variant, "seed": seed, "total_timesteps": planned, "sem": variant != "off"}
    (path / "config.json").write_text(json.dumps({**settings, **(config or {})}))
    words = argv if argv is not None else [f"/somewhere/agents/{agent}.py", "--env-id", task, "--seed", str(seed)]
    revision = {"revision": "0123456789abcdef", "dirty": False}
    (path / "manifest.json").write_text(
        json.dumps(
            {"time": start, "agent": agent, "argv": list(words), "git": revision, "versions": {}, "hardware": {}}
        )
    )
    if state:
        (path / "status.json").write_text(json.dumps({"state": state, "why": why, "time": time.time() - 1000}))
    with open(path / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("exp_name", "env_id", "seed", "metric", "step", "wall_s", "value"))
        for step, value in zip(steps or STEPS, values, strict=False):
            for name, x in (("losses/qf_loss", 0.5), (metric, value), (f"{metric}_std", 7.0)):
                writer.writerow((variant, task, seed, name, step, step * seconds, x))
    return path


def never_started(path: Path) -> None:
    """A run that its agent has refused."""
    path.mkdir(parents=True)
    (path / "log.txt").write_text("$ python agents/fasttd3.py\nerror: no such task\n")


def sweep(root: Path, cells: Mapping[tuple[str, str], Sequence[float]], **options: Any) -> Path:
    """Runs in a sweep's layout: (task, variant) -> what each seed scores all the time."""
    for (task, variant), scores in cells.items():
        for seed, score in enumerate(scores, 1):
            path = root / "runs" / task / f"fasttd3__{variant}" / f"seed{seed}"
            write_run(path, [score] * 10, task, seed, variant, **options)
    return root


def study_of(*dirs: Path, **options: Any) -> Study:
    args = Args(**{"reps": 200, **options})
    return Study(collect(dirs, args.metric), args)


# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass
class RunArgs:
    """Settings of a run that trains nothing."""

    env_id: str = "PointMass-v0"
    exp_name: str = "plain, with a comma"
    seed: int = 4
    total_timesteps: int = 200
    sem: bool = False


def read(path: Path) -> records.Record:
    run = records.read_run(path, path.name, [RETURN])
    assert run is not None
    return run


def test_a_run_of_the_agents_is_read_as_it_stands(tmp_path: Path) -> None:
    with Run.create(RunArgs(), run_dir=tmp_path / "run", quiet=True) as run:
        run.log(100, {RETURN: 3.5, f"{RETURN}_std": 9.0})
        run.log(150, {"losses/actor_loss": 1.0})
        assert read(run.dir).state == "running"
        status = json.loads((run.dir / "status.json").read_text())
        (run.dir / "status.json").write_text(json.dumps({**status, "time": time.time() - 3600}))
        assert read(run.dir).state == "running", "silent for an hour, but it holds its lock"
        run.log(200, {RETURN: 4.25})
        run.finish("done", score={"episodic_return": 4.25})
        done = read(run.dir)
    assert (done.task, done.variant, done.seed, done.planned) == ("PointMass-v0", "plain, with a comma", 4, 200)
    assert done.state == "done" and done.config["sem"] is False and "python" in done.manifest["versions"]
    assert done.series[RETURN].steps.tolist() == [100, 200] and done.series[RETURN].values.tolist() == [3.5, 4.25]
    assert (np.diff(done.series[RETURN].wall_s) >= 0).all() and done.broken == 0


def test_a_run_without_a_process_is_dead(tmp_path: Path) -> None:
    run = Run.create(RunArgs(), run_dir=tmp_path / "run", quiet=True)
    run.log(100, {RETURN: 3.5})
    status = json.loads((run.dir / "status.json").read_text())
    (run.dir / "status.json").write_text(json.dumps({**status, "time": time.time() - 3600}))
    run.close()  # as the kernel does for a process that is killed
    found = read(run.dir)
    assert (found.state, found.why) == ("killed", "its process ended without a word")
    assert found.series[RETURN].values.tolist() == [3.5]


FAILED_LAUNCH = '{"verdict": "failed", "why": "exit status 2: error: no", "ended": 1.0}'


@pytest.mark.parametrize(
    ("files", "state", "why"),
    [
        ({"status.json": '{"state": "done"}'}, "done", ""),
        ({"status.json": '{"state": "run', "result.json": '{"step": 9}'}, "done", ""),
        # asked for more frames since it was done
        (
            {"status.json": '{"state": "interrupted", "total_timesteps": 20}', "result.json": '{"step": 9}'},
            "interrupted",
            "",
        ),
        ({"status.json": '{"state": "failed", "why": "ValueError: no"}'}, "failed", "ValueError: no"),
        ({"status.json": '{"state": "failed"}', "log.txt": "one\ntwo\r 5%\rthe end\n\n"}, "failed", "the end"),
        ({"status.json": '{"state": "interrupted", "why": "SIGTERM"}'}, "interrupted", "SIGTERM"),
        ({"status.json": '{"state": "running"}'}, "killed", "its process ended without a word"),
        ({"status.json": '{"state": "run'}, "killed", "status.json cannot be read"),
        ({"status.json": "[1]"}, "killed", "status.json cannot be read"),
        ({}, "killed", "no status.json"),
        # of a sweep: it goes on with what was killed, until it gives up
        ({"status.json": '{"state": "running"}', "launch.json": '{"pid": 1}'}, "interrupted", ""),
        ({"status.json": '{"state": "running"}', "launch.json": FAILED_LAUNCH}, "failed", "exit status 2: error: no"),
        ({"config.json": None, "launch.json": FAILED_LAUNCH}, "failed", "exit status 2: error: no"),
        ({"config.json": None, "log.txt": "error: --tau x: a number\n"}, "not started", "error: --tau x: a number"),
        ({"config.json": None}, "waiting", ""),
    ],
)
def test_how_a_run_stands(tmp_path: Path, files: Mapping[str, str | None], state: str, why: str) -> None:
    path = tmp_path / "runs" / "Task-v0" / "ppo__on" / "seed3"
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"env_id": "a/Task-v0", "seed": 3}')
    for name, content in files.items():
        (path / name).unlink(missing_ok=True)
        if content is not None:
            (path / name).write_text(content)
    found = read(path)
    assert (found.state, found.why) == (state, why)
    started = files.get("config.json", "") is not None
    assert found.task == ("a/Task-v0" if started else "Task-v0")
    assert (found.variant, found.agent, found.seed) == ("ppo__on", "ppo", 3)


HEAD = b"exp_name,env_id,seed,metric,step,wall_s,value\n"


def test_half_a_line_is_no_value() -> None:
    whole = b"off,T,1,eval/episodic_return,100,1.5,12.5\n"
    for torn in (
        b"off,T,1,eval/episodic_return,200,2.5,9",
        b"off,T,1,eval/episodic_return,20",
        b"off,T,1,eval/episodic_re",
    ):
        series, broken = records.parse_metric(HEAD + whole + torn, RETURN)
        assert series.steps.tolist() == [100] and series.values.tolist() == [12.5]
        assert broken == (0 if torn.endswith(b"_re") else 1)  # that one is of no metric at all
    series, broken = records.parse_metric(
        HEAD + b"off,T,1,eval/episodic_return,100,x,1\n" + whole.replace(b"100", b"50"), RETURN
    )
    assert series.steps.tolist() == [50] and broken == 1


def test_values_that_are_not_finite_are_left_out_and_counted() -> None:
    lines = [
        f"off,T,1,eval/episodic_return,{step},1.0,{value}\n" for step, value in ((1, "nan"), (2, "-inf"), (3, "4.0"))
    ]
    series, broken = records.parse_metric(HEAD + "".join(lines).encode(), RETURN)
    assert series.values.tolist() == [4.0] and broken == 2


def test_of_two_values_for_a_step_the_later_counts() -> None:
    lines = [
        f"off,T,1,eval/episodic_return,{step},{wall},{value}\n"
        for step, wall, value in ((200, 2, 5), (100, 1, 3), (200, 9, 7))
    ]
    series, _ = records.parse_metric("".join(lines).encode(), RETURN)
    assert series.steps.tolist() == [100, 200] and series.values.tolist() == [3, 7] and series.wall_s.tolist() == [1, 9]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([RETURN, "eval/episodic_return_std", "a", "eval/episodic"]),
            st.integers(0, 10**9),
            st.floats(0, 1e6),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        max_size=20,
        unique_by=lambda row: row[1],
    ),
    st.sampled_from(["off", 'a "b", c', "eval/episodic_return", "x,y"]),
)
def test_reading_agrees_with_the_csv_module(rows: list[tuple[str, int, float, float]], name: str) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows((name, "T/x", 1, *row) for row in rows)
    brute = {
        int(row[4]): (float(row[5]), float(row[6]))
        for row in csv.reader(text.getvalue().splitlines())
        if row[3] == RETURN
    }
    series, broken = records.parse_metric(text.getvalue().encode(), RETURN)
    assert broken == 0
    assert [*zip(series.steps, zip(series.wall_s, series.values, strict=True), strict=True)] == sorted(brute.items())


def test_runs_are_found_in_both_layouts_and_nothing_else(tmp_path: Path) -> None:
    plain = write_run(tmp_path / "a" / "WalkerWalk-v1__off__1__20261120-100000", [1.0])
    write_run(plain / "checkpoints" / "copy", [2.0])  # within a run
    deep = write_run(tmp_path / "b" / "runs" / WALKER / "ppo__on" / "seed2", [3.0], seed=2)
    empty = tmp_path / "b" / "runs" / WALKER / "ppo__on" / "seed3"
    empty.mkdir()
    write_run(tmp_path / "b" / "tb" / "run", [4.0])
    write_run(tmp_path / "b" / "replaced" / "20261120-100000" / WALKER / "ppo__on" / "seed2", [5.0])
    (tmp_path / "c" / "seed1").mkdir(parents=True)
    (tmp_path / "c" / "status.json").write_text("{}")
    assert list(records.find_runs(tmp_path)) == [plain, deep, empty]


# ---- scores ----------------------------------------------------------------------------------------------------------


def series(steps: Sequence[float], values: Sequence[float]) -> Series:
    return Series(np.array(steps, float), np.array(steps, float), np.array(values, float))


def test_the_score_is_the_mean_of_the_last_tenth() -> None:
    twenty = series(range(50, 1001, 50), range(1, 21))
    assert study.score(twenty, 1000, cut=False) == (19.5, 20.0, 20.0)  # at 950 and 1000; 900 is the ninth tenth
    assert study.score(series([400, 800], [5, 3]), 1000, cut=False) == (3.0, 3.0, 5.0)  # failed before the last tenth
    assert study.score(series([950, 1024], [5, 3]), 1000, cut=False)[0] == 4.0  # it overshot what it was planned for
    assert study.score(series([950, 1024], [5, 3]), 1000, cut=True)[0] == 5.0
    assert all(math.isnan(x) for x in study.score(series([1024], [3]), 1000, cut=True))


def test_failed_runs_count_with_their_last_value(tmp_path: Path) -> None:
    sweep(tmp_path, {(WALKER, "off"): [500, 600]})
    folder = tmp_path / "runs" / WALKER / "fasttd3__off"
    write_run(folder / "seed3", [100, 300, 200], seed=3, state="failed", why="boom")
    write_run(folder / "seed4", [100] * 9 + [900], seed=4, state="running")  # killed at the very end
    write_run(folder / "seed5", [], seed=5, state="failed", why="out of memory")
    never_started(folder / "seed6")
    found = study_of(tmp_path)
    assert found.scores(WALKER, "fasttd3__off").tolist() == [500, 600, 200, 900], "no score is made up"
    assert found.counts() == {"done": 2, "failed": 4} and [run.seed for run in found.lost()] == [5, 6]
    said = report.verdict(found)[-1]
    assert (
        "**4 of 6 runs failed**: 2 count with their last evaluation, 2 have no evaluation and are in no number" in said
    )


def test_runs_that_failed_before_any_evaluation_decide_nothing(tmp_path: Path) -> None:
    sweep(tmp_path, {("Odd-v0", "off"): [60, 70, 80]})
    folder = tmp_path / "runs" / "Odd-v0" / "fasttd3__on"
    for seed in (1, 2, 3):
        write_run(folder / f"seed{seed}", [], "Odd-v0", variant="on", seed=seed, state="failed")
    said = report.verdict(study_of(tmp_path))
    assert said[0].endswith("no verdict, since there is no task in which both have a score.")
    assert said[1].startswith("**fasttd3__off** on Odd-v0: 70.0 [")
    write_run(folder / "seed4", [500] * 10, "Odd-v0", variant="on", seed=4)
    write_run(folder / "seed5", [510] * 10, "Odd-v0", variant="on", seed=5)
    found = study_of(tmp_path)
    said = report.verdict(found)
    assert said[0].endswith("3 more failed before any evaluation and are in no number, so this is no verdict.")
    assert [row["verdict"] for row in report.aggregate(found)["difference"]] == ["unclear"], "though far apart"
    assert float(found.differences[found.comparisons[0], "Odd-v0"].low) > 400


def test_a_run_that_failed_before_any_evaluation_is_in_no_number_anywhere(tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    cells = {(t, v): [100, 200, 300 + 100 * len(v)] for t in (WALKER, CHEETAH) for v in ("off", "on")}
    for root in (whole, part):
        sweep(root, cells)
    write_run(part / "runs" / WALKER / "fasttd3__on" / "seed4", [], WALKER, 4, "on", "failed", why="boom")
    never_started(part / "runs" / WALKER / "fasttd3__on" / "seed5")
    for root in (whole, part):
        assert main([str(root), "--reps", "200"]) == 0
    one, other = (json.loads((root / "aggregate.json").read_text()) for root in (whole, part))
    for key in ("variants", "improvement", "iqm_difference"):
        assert one[key] == other[key], key
    assert other["failed_before_any_evaluation"] == [f"part/runs/{WALKER}/fasttd3__on/seed{seed}" for seed in (4, 5)]
    one, other = ({(row["task"], row["variant"]): row for row in rows(root / "summary.csv")} for root in (whole, part))
    counts = ("failed", "no_score")
    assert {row.pop("failed") + row.pop("no_score") for row in one.values()} == {"00"}
    assert [other[WALKER, "fasttd3__on"][name] for name in counts] == ["2", "2"]
    assert one == {key: {k: x for k, x in row.items() if k not in counts} for key, row in other.items()}
    text = (part / "REPORT.md").read_text()
    assert text.count("2 more failed before any evaluation and are in no number, so this is no verdict.") == 1
    (row,) = (line for line in text.split("\n") if line.startswith(f"| {WALKER} | 1,000 "))
    assert "(3) |" in row and row.endswith("(3 of 5) |")
    (row,) = (line for line in text.split("\n") if line.startswith("| fasttd3__on | 0."))
    assert row.endswith("| 6 of 8 |")
    captions = re.findall(r"^\*.*\*$", text, re.M)
    assert len(captions) == 7 and all("2 runs failed before any evaluation and are in none" in x for x in captions)
    for picture in ("curves", "iqm", "aggregates"):  # the same lines and bars; the caption below is another
        assert (part / "plots" / f"{picture}.png").is_file()
    found = [study.curves(study_of(root), WALKER)["fasttd3__on"].values.tolist() for root in (whole, part)]
    assert found[0] == found[1] and len(found[0]) == 3


def test_where_all_runs_have_failed_the_report_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out" / "runs" / WALKER / "fasttd3__on"
    argv = ["/x/agents/fasttd3.py", "--env-id", WALKER, "--seed", "1", "--sem"]
    write_run(folder / "seed1", [], variant="on", state="failed", why="ValueError: no room", argv=argv)
    never_started(folder / "seed2")
    launched = ["/usr/bin/python3", "-m", "torch.distributed.run", *argv[:4], "2", *argv[5:], "--run-dir", "/x"]
    (folder / "seed2" / "launch.json").write_text(json.dumps({"argv": launched, "verdict": "failed", "why": "refused"}))
    command = ["benchmarks/sweep.py", "--out", str(tmp_path / "out"), "--", "--sem"]
    (tmp_path / "out" / "sweep.json").write_text(json.dumps({"sessions": [{"command": command, "ended": 1}]}))
    assert main([str(tmp_path / "out")]) == 0
    assert "2 of 2 runs failed: 2 have no evaluation and are in no number, see below." in capsys.readouterr().out
    text = (tmp_path / "out" / "REPORT.md").read_text()
    assert "**2 of 2 runs failed**" in text and "| failed | 0 of 1,000 | none | `ValueError: no room` |" in text
    assert "/seed2 | failed | 0 | none | `refused` |" in text
    assert f"\npython benchmarks/sweep.py --out {tmp_path}/out --retry-failed -- --sem\n" in text
    assert f"for seed in 1 2; do python agents/fasttd3.py --env-id {WALKER} --sem --seed $seed; done" in text
    assert "TensorBoard" not in text and not list((tmp_path / "out").rglob("*.report"))
    assert (tmp_path / "out" / "report.html").is_file() and len(rows(tmp_path / "out" / "summary.csv")) == 1


@pytest.mark.parametrize("variant", ["fasttd3__off", "my-agent.v2__off"])
def test_a_sweep_that_has_just_begun_has_a_report(variant: str, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / WALKER / variant / "seed1", [], state="interrupted")
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": [f"{WALKER}/{variant}/seed{n}" for n in (1, 2)]}))
    assert main([str(tmp_path)]) == 0
    text = (tmp_path / "REPORT.md").read_text()
    assert "**Preliminary**: 2 of 2 runs" in text and "/seed2: waiting, 0 frames" in text


@pytest.mark.parametrize(("sources", "told"), [(("a", "a"), False), (("a", "b"), True), (("a", ""), True)])
def test_versions_of_the_code_are_told_apart_by_what_they_run(
    sources: tuple[str, str], told: bool, tmp_path: Path
) -> None:
    for seed, source in enumerate(sources, 1):
        run = write_run(tmp_path / "runs" / WALKER / "fasttd3__off" / f"seed{seed}", [500, 600], seed=seed)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["git"]["revision"] = f"{seed}" * 16  # a commit came in between
        (run / "manifest.json").write_text(json.dumps(manifest))
        (run / "launch.json").write_text(json.dumps({"source": source}))
    assert main([str(tmp_path)]) == 0
    assert ("different versions of the code" in (tmp_path / "REPORT.md").read_text()) == told


def test_unfinished_runs_have_no_score_and_are_named(tmp_path: Path) -> None:
    sweep(tmp_path, {(WALKER, "off"): [500, 600]})
    folder = tmp_path / "runs" / WALKER / "fasttd3__off"
    write_run(folder / "seed3", [900] * 5, seed=3, state="interrupted")
    write_run(folder / "seed4", [900] * 10, seed=4, state="interrupted")  # stopped after its last evaluation
    found = study_of(tmp_path)
    assert found.scores(WALKER, "fasttd3__off").tolist() == [500, 600, 900]
    page = report.write_up(found, [], []).markdown()
    assert "**Preliminary**: 1 of 4 runs" in page and "/seed3: interrupted, 500 of 1,000 frames" in page
    early = study_of(tmp_path, at=500)
    assert early.scores(WALKER, "fasttd3__off").tolist() == [500, 600, 900, 900], "all have come that far"


def test_runs_that_a_sweep_has_yet_to_begin_are_counted(tmp_path: Path) -> None:
    sweep(tmp_path, {("ALE/Pong-v5", "off"): [5]})
    (tmp_path / "runs" / "ALE").rename(tmp_path / "runs" / "x")
    (tmp_path / "runs" / "x" / "Pong-v5").rename(tmp_path / "runs" / "ALE-Pong-v5")
    keys = [f"ALE-Pong-v5/fasttd3__{name}/seed{seed}" for seed in (1, 2) for name in ("off", "on")]
    command = ["benchmarks/sweep.py", str(Path.cwd() / "suite.toml"), "--variants", "on:--sem"]
    sessions = [{"command": command, "cwd": str(Path.cwd()), "slots": 3}] * 2
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": keys, "sessions": sessions}))
    found = study_of(tmp_path, dirs=(tmp_path,))
    assert found.counts() == {"done": 1, "waiting": 3} and found.tasks == ["ALE/Pong-v5"]
    page = report.write_up(found, [], []).markdown()
    assert "**Preliminary**: 3 of 4 runs" in page and "runs/ALE-Pong-v5/fasttd3__on/seed2: waiting" in page
    assert "\npython benchmarks/sweep.py suite.toml --variants on:--sem\n```" in page
    assert "up to 3 runs shared a machine" in plots.curve_plot(found, [], wall=True).caption


def test_variants_of_different_lengths_are_compared_at_the_shortest(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(10), variant="off")
    write_run(tmp_path / "b", range(20), variant="on", planned=2000, steps=range(100, 2001, 100))
    write_run(tmp_path / "c", range(8), variant="wide", planned=1005, steps=range(128, 1025, 128))  # whole steps of 128
    found = study_of(tmp_path)
    assert found.budget == {WALKER: 1000}
    assert {name: found.scores(WALKER, name).tolist() for name in found.variants} == {
        "off": [9],
        "on": [9],
        "wide": [7],
    }
    assert any("off 1,000, on 2,000, wide 1,005" in note for note in found.notes)
    assert study_of(tmp_path, at=2000).scores(WALKER, "off").tolist() == []


def test_a_stray_short_run_does_not_shorten_the_comparison(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / f"s{seed}", [5] * 10, seed=seed)
    write_run(tmp_path / "smoke", [1], seed=9, planned=100)
    found = study_of(tmp_path)
    assert found.budget == {WALKER: 1000} and found.scores(WALKER, "off").tolist() == [5, 5, 5]
    assert any("smoke: done but without an evaluation" in note for note in found.notes)


def test_a_run_that_was_repeated_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "first", [1] * 10, start="2026-11-20T10:00:00+00:00")
    write_run(tmp_path / "second", [2] * 10, start="2026-11-20T11:00:00+00:00")
    write_run(tmp_path / "third", [3] * 4, state="failed", start="2026-11-20T12:00:00+00:00")
    found = study_of(tmp_path)
    assert found.scores(WALKER, "off").tolist() == [2] and len(found.runs) == 1
    (note,) = found.notes
    assert "/first" in note and "/third" in note and "/second" not in note


# ---- variants --------------------------------------------------------------------------------------------------------


def test_runs_that_share_a_name_and_not_their_settings_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1] * 10, variant="x", config={"sem": True, "lr": 1e-3, "eval_every": 100})
    write_run(tmp_path / "b", [2] * 10, variant="x", config={"sem": False, "lr": 1e-3, "threads": 4}, seed=2)
    write_run(tmp_path / "c", [3] * 10, variant="x", config={"sem": False, "lr": 1e-3, "run_dir": "c"}, seed=3)
    write_run(tmp_path / "d", [4] * 10, variant="x", config={"sem": False, "lr": 1e-3, "new": 1}, seed=4)
    found = study_of(tmp_path)
    assert {name: found.scores(WALKER, name).tolist() for name in found.variants} == {
        "x (sem=off)": [2, 3, 4],
        "x (sem=on)": [1],
    }
    assert found.comparisons == [Comparison("x (sem=on)", "x (sem=off)")]


def test_many_settings_that_differ_still_tell_variants_apart(tmp_path: Path) -> None:
    for index, last in enumerate((1, 2)):
        config = {"a": index, "b": index, "c": index, "d": index * last}
        write_run(tmp_path / f"r{index}", [1] * 10, variant="x", seed=1, config=config)
    write_run(tmp_path / "r2", [1] * 10, variant="x", seed=1, config={"a": 1, "b": 1, "c": 1, "d": 77})
    assert len(study_of(tmp_path).variants) == 3


def test_agents_that_share_a_name_are_not_mixed(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [1] * 10, variant="on", agent="fasttd3")
    write_run(tmp_path / "b", [2] * 10, variant="on", agent="ppo")
    write_run(tmp_path / "c", [2] * 10, variant="ppo", agent="ppo")
    assert study_of(tmp_path).variants == ["fasttd3__on", "ppo", "ppo__on"]


def test_agents_of_real_runs_are_told_apart(tmp_path: Path) -> None:
    for agent in ("fastsac", "fasttd3"):
        words = ["--env-id", "PointMass-v0", "--size", "small", "--total-timesteps", "160", "--exp-name", "x"]
        words += ["--run-dir", str(tmp_path / agent), "--quiet"]
        subprocess.run([sys.executable, f"agents/{agent}.py", *words], cwd=ROOT, capture_output=True, check=True)
    assert study_of(tmp_path).variants == ["fastsac__x", "fasttd3__x"]


def test_runs_that_have_reached_the_frames_compared_are_no_preliminary_ones(tmp_path: Path) -> None:
    for variant in ("off", "on"):
        run = write_run(tmp_path / variant, [1, 2, 3, 4, 5], variant=variant, state="interrupted")
    table = tmp_path / "x.csv"  # the same once more, as a table
    report.write_tidy(study_of(tmp_path / "off", tmp_path / "on", at=500), table)
    assert "Preliminary" in verdict_of(tmp_path / "off", tmp_path / "on") and run.exists()
    text = verdict_of(tmp_path / "off", tmp_path / "on", at=500)
    assert "Preliminary" not in text and text.count("on** against **off") == 1
    text = verdict_of(table, tmp_path / "off", tmp_path / "on", at=500)
    assert text.count("on** against **off") == 1, text


def verdict_of(*dirs: Path, **options: Any) -> str:
    return "\n".join(report.verdict(study_of(*dirs, **options)))


def test_in_a_sweep_the_program_names_the_agent(tmp_path: Path) -> None:
    for seed in (1, 2):  # a program of one's own whose settings are FastTD3's; the second seed has not begun
        path = tmp_path / WALKER / "boom__off" / f"seed{seed}"
        if seed == 1:
            write_run(path, [1] * 10, agent="fasttd3", argv=["/x/boom.py"])
        else:
            never_started(path)
    assert study_of(tmp_path).variants == ["boom__off"]


def test_each_agent_is_compared_with_itself_without_sem(tmp_path: Path) -> None:
    for agent in ("fasttd3", "ppo"):
        for variant in ("plain", "actor", "both"):
            config = {"sem": variant != "plain"}
            write_run(tmp_path / WALKER / f"{agent}__{variant}" / "seed1", [1] * 10, agent=agent, config=config)
    found = study_of(tmp_path)
    assert found.comparisons == [
        Comparison(f"{agent}__{variant}", f"{agent}__plain")
        for agent in ("fasttd3", "ppo")
        for variant in ("actor", "both")
    ]
    assert found.variants[:2] == ["fasttd3__plain", "ppo__plain"]
    asked = study_of(tmp_path, baseline="ppo__both")
    assert {pair.baseline for pair in asked.comparisons} == {"ppo__both"} and len(asked.comparisons) == 5


def test_two_variants_without_sem_need_a_word(tmp_path: Path) -> None:
    for variant in ("narrow", "wide", "sem"):
        write_run(tmp_path / variant, [1] * 10, variant=variant, config={"sem": variant == "sem"})
    found = study_of(tmp_path)
    assert found.comparisons == [] and any(
        "several variants have SEM off; say --baseline" in note for note in found.notes
    )


# ---- scales ----------------------------------------------------------------------------------------------------------

SHIPPED = study.read_references(study.REFERENCES)


def test_shipped_scales_are_sane() -> None:
    assert len({pattern for pattern, _ in SHIPPED}) == len(SHIPPED)
    for pattern, found in SHIPPED:
        assert found.meaning.startswith("0") and "1" in found.meaning and found.source, pattern
        assert found.metric in ("episodic_return", "success_rate")


def test_shipped_scales_agree_with_what_the_agents_know() -> None:
    for game, (low, high) in ATARI_SCORES.items():
        for task in (f"{game}-v5", f"ALE/{game}-v5"):
            found = study.look_up(task, SHIPPED)
            assert found is not None and (found.low, found.high) == (low, high), task
    from fnmatch import fnmatchcase

    for pattern, found in SHIPPED:
        if "DeepMind Control" in found.source:
            assert (found.low, found.high) == (0, 1000) and any(fnmatchcase(pattern, p) for p in DMC), pattern
    assert study.look_up("Humanoid-v5", SHIPPED) != study.look_up("HumanoidWalk-v1", SHIPPED)
    assert study.look_up("h1-walk-v0", SHIPPED) == Reference(
        "episodic_return",
        2.377,
        700,
        "0: random policy; 1: success bar",
        study.look_up("h1-run-v0", SHIPPED).source,  # type: ignore[union-attr]
    )
    assert study.look_up("MetaWorld/Reach-v3", SHIPPED).metric == "success_rate"  # type: ignore[union-attr]
    assert study.look_up("Go1JoystickFlatTerrain-v1", SHIPPED) is None


def test_scores_go_on_the_common_scale(tmp_path: Path) -> None:
    sweep(tmp_path, {(WALKER, "off"): [100, 300], ("Pong-v5", "off"): [-20.7, 14.6]})
    found = study_of(tmp_path)
    assert found.together == ["Pong-v5", WALKER]
    pong, walker = found.on_scale("fasttd3__off")
    assert pong.tolist() == pytest.approx([0, 1]) and walker.tolist() == pytest.approx([0.1, 0.3])
    assert float(found.aggregates["fasttd3__off"]["mean"].value) == pytest.approx(0.35)


def test_a_task_without_a_scale_stands_alone(tmp_path: Path) -> None:
    sweep(tmp_path, {(t, v): x for t in (WALKER, "Odd-v0") for v, x in (("off", [1, 2, 3]), ("on", [4, 5, 6]))})
    found = study_of(tmp_path)
    assert found.together == [] and found.aggregates == {}
    assert any(note.startswith("Odd-v0: no scale in references.csv") and "--relative" in note for note in found.notes)
    chance = found.improvements[Comparison("fasttd3__on", "fasttd3__off")]
    assert float(chance.value) == 1, "ranks need no scale"
    relative = study_of(tmp_path, relative=True)
    assert relative.scale == {WALKER: (1, 6), "Odd-v0": (1, 6)} and relative.together == ["Odd-v0", WALKER]
    assert float(relative.aggregates["fasttd3__on"]["mean"].value) == pytest.approx(0.8)


def test_only_tasks_that_all_variants_have_are_put_together(tmp_path: Path) -> None:
    sweep(tmp_path, {(t, v): [100, 200] for t in (WALKER, CHEETAH) for v in ("off", "on")})
    sweep(tmp_path, {("HopperHop-v1", "on"): [900, 900]})
    found = study_of(tmp_path)
    assert found.together == [CHEETAH, WALKER]
    assert any(note.startswith("HopperHop-v1: not every variant has a score") for note in found.notes)


def test_success_is_the_scale_where_the_table_says_so(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", [0.25] * 10, "MetaWorld/Reach-v3", metric="eval/success_rate")
    log = path / "metrics.csv"
    log.write_text(log.read_text() + f"off,MetaWorld/Reach-v3,1,{RETURN},1000,10,4321\n")
    write_run(tmp_path / "b", [4321] * 10, "MetaWorld/Push-v3")  # which reports no success
    found = study_of(tmp_path)
    assert found.metric == {"MetaWorld/Reach-v3": "eval/success_rate", "MetaWorld/Push-v3": RETURN}
    assert found.scores("MetaWorld/Reach-v3", "off").tolist() == [0.25]
    assert "MetaWorld/Push-v3" not in found.scale, "a return is no success rate"
    assert study_of(tmp_path, metric=RETURN).scale == {}


# ---- curves ----------------------------------------------------------------------------------------------------------


def test_curves_meet_the_evaluations_and_failed_runs_stay_where_they_were(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(10))
    write_run(tmp_path / "b", [2.0, 4.0, 6.0], seed=2, state="failed")
    write_run(tmp_path / "c", [], seed=3, state="failed")  # of which nothing is known
    write_run(tmp_path / "d", [50.0] * 4, seed=4, state="interrupted")
    curve = study.curves(study_of(tmp_path), WALKER)["off"]
    assert curve.x.tolist() == STEPS
    assert curve.values.tolist() == [[*range(10)], [2, 4, *[6] * 8]], "not the one that is unfinished"


def test_curves_of_different_steps_meet_between_them(tmp_path: Path) -> None:
    write_run(tmp_path / "a", [0.0, 100.0], steps=[0, 1000])
    write_run(tmp_path / "b", [0.0, 40.0, 20.0], seed=2, steps=[200, 600, 1000])
    curve = study.curves(study_of(tmp_path), WALKER)["off"]
    assert (curve.x[0], curve.x[-1], len(curve.x)) == (200, 1000, study.POINTS), "nobody has to be guessed beyond"
    assert curve.values[0] == pytest.approx(curve.x / 10)
    assert curve.values[1] == pytest.approx([x / 10 - 20 if x <= 600 else 70 - x / 20 for x in curve.x])


def test_curves_over_time_end_with_the_fastest_run(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(100, 1001, 100), seconds=0.01)
    write_run(tmp_path / "b", range(100, 1001, 100), seed=2, seconds=0.02)
    write_run(tmp_path / "c", range(100, 1001, 100), variant="on", seconds=0.05)
    found = study.curves(study_of(tmp_path), WALKER, wall=True)
    assert [(curve.x[0], curve.x[-1]) for curve in found.values()] == [(2, 10), (5, 50)]
    assert found["off"].values[1] == pytest.approx(found["off"].x * 50)


def test_the_iqm_curve_ends_at_the_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for task in (WALKER, CHEETAH):
        for seed in (1, 2, 3, 4):
            write_run(tmp_path / f"{task}{seed}", rng.uniform(0, 1000, 10), task, seed)
    found = study_of(tmp_path)
    share, band = study.curves_over_tasks(found, "iqm")["off"]
    assert (share[0], share[-1]) == (0.1, 1.0)
    assert band.value[-1] == pytest.approx(float(found.aggregates["off"]["iqm"].value))
    assert (band.low <= band.value).all() and (band.value <= band.high).all()


# ---- published curves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "same"),
    [
        ("h1hand_walk", "h1hand-walk-v0", True),
        ("humanoid-run", "HumanoidRun-v1", True),
        ("G1JoystickFlatTerrain", "MuJoCoPlayground/G1JoystickFlatTerrain-v1", True),
        ("HalfCheetah-v4", "HalfCheetah-v5", False),
        ("HalfCheetah-v5", "HalfCheetah-v5", True),
        ("h1-walk-v0", "h1hand-walk-v0", False),
        ("walker-walk", "WalkerRun-v1", False),
    ],
)
def test_names_of_tasks_in_other_projects(theirs: str, ours: str, same: bool) -> None:
    assert study.same_task(theirs, ["Pong-v5", ours]) == (ours if same else None)


def test_curves_of_flashsac(tmp_path: Path) -> None:
    lines = [",exp_name,env_name,seed,metric,env_step,value"]
    for seed, values in ((0, (0, 10, 20)), (1000, (10, 30))):
        for step, value in enumerate(values):
            lines.append(f"{len(lines)},FlashSAC,walker-walk,{seed},avg_return,{step * 100}.0,{value}")
    lines.append("9,FlashSAC,walker-walk,0,avg_success,0,0.5")
    lines.append("9,FlashSAC,dog-run,0,avg_return,0,1")
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    (found,) = study.read_overlay(tmp_path / "x.csv", {WALKER: RETURN})
    assert (found.name, found.task) == ("FlashSAC", WALKER)
    assert found.steps.tolist() == [0, 100] and found.mean.tolist() == [5, 20], "as far as both seeds go"


def test_curves_of_fasttd3(tmp_path: Path) -> None:
    curve = {"env_step": [0, 0, 500], "time": [0, 1, 60], "return": [0, -3.5, 8], "return_min": [0, 0, 0]}
    (tmp_path / "FastTD3.json").write_text(
        json.dumps({"walker-walk": curve, "G1-v0": {"PPO": curve}, "dog-run": curve})
    )
    metric = {WALKER: RETURN, "G1-v0": RETURN}
    found = {overlay.task: overlay for overlay in study.read_overlay(tmp_path / "FastTD3.json", metric)}
    assert {task: overlay.name for task, overlay in found.items()} == {WALKER: "FastTD3", "G1-v0": "PPO"}
    assert found[WALKER].steps.tolist() == [0, 500] and found[WALKER].mean.tolist() == [-3.5, 8]
    assert found[WALKER].seconds.tolist() == [1, 60]


def dashed(runs: Study, overlays: Sequence[study.Overlay], wall: bool) -> list[list[tuple[float, float]]]:
    """The points of each dashed line in the curves of a task."""
    axes = Figure().subplots()
    plots.draw_task(axes, runs, WALKER, overlays, wall)
    lines = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    return [[(float(x), float(y)) for x, y in np.asarray(line.get_xydata())] for line in lines]


def test_published_curves_are_drawn_as_far_as_ours_go(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(100, 1001, 100), seconds=0.01)  # 1,000 frames in 10 s
    none = np.full(3, np.nan)
    flash = study.Overlay("FlashSAC", WALKER, np.array([0, 500, 2000]), none, np.array([1.0, 50.0, 99.0]))
    fast = study.Overlay("FastTD3", WALKER, np.array([0, 800, 900]), np.array([1.0, 8.0, 30.0]), np.array([2.0, 3, 4]))
    other = flash._replace(task=CHEETAH)
    runs = study_of(tmp_path)
    assert dashed(runs, [flash, fast, other], wall=False) == [[(0, 1), (500, 50)], [(0, 2), (800, 3), (900, 4)]]
    assert dashed(runs, [flash, fast, other], wall=True) == [[(1, 2), (8, 3)]]
    for wall, names in ((False, ["FlashSAC", "FastTD3"]), (True, ["FastTD3"])):
        plot = plots.curve_plot(runs, [flash, fast], wall)
        assert "Dashed grey: published mean" in plot.caption
        figure = Figure(figsize=(7, plot.height))
        plot.draw(figure)
        said = {text.get_text() for axes in figure.axes for text in axes.texts} | {name for name, *_ in plot.legend}
        assert said >= set(names)


def test_curves_over_all_tasks(tmp_path: Path) -> None:
    cells = {(t, v): [300, 500] for t in (WALKER, CHEETAH) for v in ("off", "on")}
    runs = study_of(sweep(tmp_path / "sweep", cells))
    rows = [("off", "*", "mean", 100, 0.1), ("off", "*", "mean", 900, 0.2), ("their", "*", "mean", 500, 0.6)]
    rows += [("on", "*", "iqm", 500, 0.7), ("on", "*", "nonsense", 500, 9), ("on", "*", "mean", 2000, 0.9)]
    lines = [f"{name},{task},0,{metric},{step},{value}" for name, task, metric, step, value in rows]
    (tmp_path / "x.csv").write_text("exp_name,env_name,seed,metric,env_step,value\n" + "\n".join(lines) + "\n")
    found = study.read_overlay(tmp_path / "x.csv", runs.metric)
    assert [(curve.name, curve.measure) for curve in found] == [
        ("off", "mean"),
        ("their", "mean"),
        ("on", "iqm"),
        ("on", "mean"),
    ]
    shown = {plot.name: plot for plot in plots.plots(runs, found)}
    assert {"iqm", "mean"} < shown.keys() and "median" not in shown
    assert "published" not in shown["curves"].caption, "they are of no single task"
    for name, expected in (
        ("mean", [[(100, 0.1), (900, 0.2)], [(500, 0.6)]]),
        ("iqm", [[(500, 0.7)]]),
    ):
        figure = Figure()
        shown[name].draw(figure)
        (axes,) = figure.axes
        lines_of = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
        points = [[(float(x), float(y)) for x, y in np.asarray(line.get_xydata())] for line in lines_of]
        assert points == expected
        colours = {line.get_color() for line in axes.get_lines() if line.get_linestyle() == "-"}
        own = [line.get_color() for line in lines_of]
        assert [colour in colours for colour in own] == ([True, False] if name == "mean" else [True])
        assert "Dashed: published" in shown[name].caption
        level = next(line for line in axes.get_lines() if line.get_linestyle() == "-").get_ydata()
        assert np.asarray(level) == pytest.approx(0.4), "0.3 and 0.5 of 1,000"
    (tmp_path / "late.csv").write_text("exp_name,env_name,seed,metric,env_step,value\non,*,0,mean,5000,1\n")
    assert main([str(tmp_path / "sweep"), "--overlay", str(tmp_path / "late.csv"), "--reps", "50"]) == 0
    said = (tmp_path / "sweep" / "REPORT.md").read_text()
    assert "No published curve is of these tasks and within these frames" in said and "Dashed" not in said
    one = sweep(tmp_path / "one", {(WALKER, v): [300, 500] for v in ("off", "on")})
    assert main([str(one), "--overlay", str(tmp_path / "x.csv"), "--reps", "50"]) == 0
    assert "over all tasks are not drawn, for want of two tasks" in (one / "REPORT.md").read_text()
    page = main([str(tmp_path / "sweep"), "--overlay", str(tmp_path / "x.csv"), "--reps", "50"])
    assert page == 0 and "plots/mean.png" in (tmp_path / "sweep" / "REPORT.md").read_text()


@pytest.mark.parametrize(
    "content",
    [
        '{"walker-walk": {"env_step": [1, 2], "time": [1], "return": [1, 2]}}',
        '{"walker-walk": {"env_step": ["a"], "time": [1], "return": [1]}}',
        "[1, 2]",
        '{"walker-walk": {"return": [1]}}',
        '{"walker-walk": [3]}',
        '{"a": {"b": 1}}',
        "{",
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"lacks|Expecting|as many numbers each"):
        study.read_overlay(tmp_path / "x.json", {WALKER: RETURN})
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="lacks the columns exp_name"):
        study.read_overlay(tmp_path / "x.csv", {WALKER: RETURN})


@pytest.mark.parametrize(
    ("rows", "line"),
    [("a,b,1,x,1,2\na,b,1,x\n", 3), ("a,b,1,x,1,\n", 2), ("a,b,one,x,1,2\n", 2), ("a,b,inf,x,1,2\n", 2)],
)
def test_a_table_that_is_cut_short_is_refused(tmp_path: Path, rows: str, line: int) -> None:
    path = tmp_path / "x.csv"
    path.write_text(",".join(records.COLUMNS) + "\n" + rows)
    with pytest.raises(ValueError, match=f"x.csv, line {line}: not a row of exp_name"):
        records.read_tidy(path)


# ---- plots -----------------------------------------------------------------------------------------------------------


def drawn(found: Study, draw: Callable[[Figure], None] | None = None) -> Figure:
    figure = Figure()
    if draw is None:
        plots.draw_task(figure.subplots(), found, WALKER, [], wall=False)
    else:
        draw(figure)
    return figure


def test_the_curve_of_a_task_is_the_mean_with_the_band_of_student(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1000, (6, 10))
    for seed, row in enumerate(values, 1):
        write_run(tmp_path / f"s{seed}", row, seed=seed)
    (axes,) = drawn(study_of(tmp_path)).axes
    (line,) = axes.lines
    assert np.array(line.get_xydata()) == pytest.approx(np.array([STEPS, values.mean(0)]).T)
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    low, high = (np.array([f(corners[corners[:, 0] == step, 1]) for step in STEPS]) for f in (np.min, np.max))
    half = 2.5705818 * values.std(0, ddof=1) / math.sqrt(6)
    assert low == pytest.approx(values.mean(0) - half) and high == pytest.approx(values.mean(0) + half)


def test_few_seeds_are_drawn_one_by_one(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / f"s{seed}", [seed * 100.0] * 10, seed=seed)
    found = study_of(tmp_path)
    (axes,) = drawn(found).axes
    assert not axes.collections and sorted(line.get_ydata()[0] for line in axes.lines) == [100, 200, 200, 300]
    assert "Band" not in plots.curve_plot(found, [], wall=False).caption


def test_captions_say_what_is_drawn(tmp_path: Path) -> None:
    for seed in range(1, 6):
        write_run(tmp_path / f"s{seed}", [500.0] * 10, seed=seed, state="failed" if seed == 2 else "done")
    write_run(tmp_path / "s9", [500.0] * 3, seed=9, state="interrupted")
    found = study_of(tmp_path)
    caption = plots.curve_plot(found, [], wall=True).caption
    for word in ("95% Student-t", "x: a run failed", "Dotted", "shared a machine"):
        assert word in caption
    assert "Thin lines" not in caption and "published" not in caption
    (axes,) = drawn(found).axes
    styles = [line.get_linestyle() for line in axes.lines]
    assert "--" in styles and ":" in styles and any(line.get_marker() == "x" for line in axes.lines)


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    axes.set_ylim(0, 100)
    ends = [(50.0, "a", "k"), (50.1, "b", "k"), (49.9, "c", "k"), (99.9, "d", "k"), (0.0, "e", "k")]
    plots.label_ends(axes, ends, height=3.0)
    places = {text.get_text(): text.xyann[1] for text in axes.texts}
    assert sorted(places, key=lambda name: places[name]) == ["e", "c", "a", "b", "d"]
    assert np.diff(sorted(places.values())).min() > 0.99 * 0.15 / 3.0
    assert abs(places["a"] - 0.5) < 0.02 and min(places.values()) >= 0 and max(places.values()) <= 1


def test_a_plot_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(10))
    plot = plots.curve_plot(study_of(tmp_path), [], wall=False)
    content = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plots.save(plot, tmp_path / name, "Title")
        content.append([(tmp_path / name / f"curves.{kind}").read_bytes() for kind in ("png", "pdf")])
    assert content[0] == content[1] and content[0][0].startswith(b"\x89PNG") and content[0][1].startswith(b"%PDF")


# ---- words -----------------------------------------------------------------------------------------------------------


def test_numbers_as_a_reader_wants_them() -> None:
    said = [study.number(x) for x in (1234.5, 56.78, 0.891, -0.001, math.nan, -150.2)]
    assert said == ["1,234", "56.8", "0.89", "0.00", "-", "-150"]
    assert report.interval(stats.Estimate(*map(np.array, (3.2, -20.0, 120.7)))) == "3 [-20, 121]"
    assert report.interval(stats.Estimate(*map(np.array, (0.5, math.nan, math.nan))), signed=True) == "+0.50"


def test_the_verdict_on_one_task(tmp_path: Path) -> None:
    cells = {"off": [500, 510, 520], "good": [700, 710, 720], "bad": [1, 2, 3], "same": [400, 500, 640]}
    sweep(tmp_path, {(WALKER, name): x for name, x in cells.items()})
    said = {text.split("**")[1]: text for text in report.verdict(study_of(tmp_path))[:3]}
    assert "So it is better." in said["fasttd3__good"] and "a difference of +200 [" in said["fasttd3__good"]
    assert "So it is worse." in said["fasttd3__bad"] and "These runs do not settle it." in said["fasttd3__same"]
    assert "(3 seeds)" in said["fasttd3__same"] and "510 [485, 535]" in said["fasttd3__same"]


def test_the_verdict_over_tasks(tmp_path: Path) -> None:
    tasks = {WALKER: 0, CHEETAH: 100, "HopperHop-v1": -300}
    cells = {(task, "off"): [400.0, 410, 420, 430] for task in tasks}
    cells |= {(task, "on"): [405.0 + shift, 412 + shift, 420 + shift, 429 + shift] for task, shift in tasks.items()}
    found = study_of(sweep(tmp_path, cells))
    (said, end) = report.verdict(found)
    wins = [
        np.mean([(p > q) + 0.5 * (p == q) for p in cells[task, "on"] for q in cells[task, "off"]]) for task in tasks
    ]
    assert f"with probability {np.mean(wins):.2f} [" in said
    assert "over 3 tasks with 4 seeds. By task it is better in 1, worse in 1, unclear in 1." in said
    assert said.endswith("It depends on the task.") and end == "None of 24 runs failed."


def test_one_seed_says_nothing(tmp_path: Path) -> None:
    sweep(tmp_path, {(WALKER, "off"): [5], (WALKER, "on"): [900]})
    said = report.verdict(study_of(tmp_path))[0]
    assert said.endswith("One seed says nothing about chance.") and "900 against 5.00" in said


def test_commands_make_the_runs_again(tmp_path: Path) -> None:
    for seed in (1, 2, 10):
        argv = [
            "/x/y/agents/fasttd3.py",
            "--env-id",
            WALKER,
            f"--seed={seed}",
            "--run-dir",
            "/tmp/a b",
            "--sem",
            "--quiet",
        ]
        write_run(
            tmp_path / WALKER / "fasttd3__on" / f"seed{seed}", [1] * 10, seed=seed, argv=[*argv, "--exp-name", "a b"]
        )
    argv = ["agents/fasttd3.py", "--run_root=/tmp/x", "--seed", "4", "--env-id", WALKER, "--sem", "--lr", "-1e-3"]
    write_run(tmp_path / WALKER / "fasttd3__on" / "seed4", [1] * 10, seed=4, argv=argv)
    found = report.commands(study_of(tmp_path))
    assert found == [
        f"for seed in 1 2 10; do python agents/fasttd3.py --env-id {WALKER} --sem --exp-name 'a b' --seed $seed; done",
        f"for seed in 4; do python agents/fasttd3.py --env-id {WALKER} --sem --lr -1e-3 --seed $seed; done",
    ]


def test_a_run_that_never_started_is_in_the_commands_too(tmp_path: Path) -> None:
    sweep(tmp_path, {(WALKER, "off"): [1, 2]})
    never_started(tmp_path / "runs" / WALKER / "fasttd3__off" / "seed7")
    (command,) = report.commands(study_of(tmp_path))
    assert command.startswith("for seed in 1 2 7; do python agents/fasttd3.py --env-id ")


def test_commands_name_the_device_and_the_processes(tmp_path: Path) -> None:
    for device, ranks, words in (("cpu", 1, []), ("cuda", 1, []), ("cpu", 1, ["--device=cpu"]), ("cuda", 4, [])):
        folder = tmp_path / WALKER / f"ppo__{device}{ranks}{len(words)}" / "seed1"
        path = write_run(folder, [1] * 10, argv=["agents/ppo.py", *words], config={"device": device})
        record = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps(record | {"ranks": ranks}))
    # As a sweep leaves a run that was killed before it wrote anything.
    path = tmp_path / WALKER / "ppo__early" / "seed1"
    path.mkdir(parents=True)
    argv = ["python", "-m", "torch.distributed.run", "--nproc-per-node", "2", "/x/agents/ppo.py", "--sem"]
    (path / "launch.json").write_text(json.dumps({"argv": argv, "settings": {"--device": "cpu", "ranks": "2"}}))
    assert [line.removeprefix("for seed in 1; do ") for line in report.commands(study_of(tmp_path))] == [
        "python agents/ppo.py --device cpu --seed $seed; done",
        "python agents/ppo.py --device=cpu --seed $seed; done",
        "python agents/ppo.py --seed $seed; done",
        "torchrun --standalone --nproc-per-node 4 agents/ppo.py --seed $seed; done",
        "torchrun --standalone --nproc-per-node 2 agents/ppo.py --sem --device cpu --seed $seed; done",
    ]


def test_pages_escape_what_runs_say(tmp_path: Path) -> None:
    page = report.Page()
    page.add("h1", "A < B")
    page.add("table", [["a"], ["x | <b> `c|d` **e**"]])
    page.add("p", "")
    assert page.markdown() == "# A < B\n\n| a |\n| --- |\n| x \\| <b> `c\\|d` **e** |\n"
    text = page.html(tmp_path)
    assert "<td>x | &lt;b&gt; <code>c|d</code> <strong>e</strong></td>" in text and "<title>A &lt; B</title>" in text


def test_interruptions_are_told_by_the_records(tmp_path: Path) -> None:
    # As a sweep leaves it that was killed twice: the third session has an end, and of its runs two had a checkpoint.
    sweep(tmp_path, {(WALKER, "off"): [1, 2, 3, 4, 5]})
    folder = tmp_path / "runs" / WALKER / "fasttd3__off"
    for seed, starts, resumes in ((1, 1, 0), (2, 2, 1), (3, 3, 1), (4, 2, 0)):
        (folder / f"seed{seed}" / "launch.json").write_text(json.dumps({"starts": starts, "ended": 1}))
        path = folder / f"seed{seed}" / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "resumes": [{"step": 500}] * resumes}))
    session = {"command": ["benchmarks/sweep.py", "--out=/somewhere/else/mine"], "cwd": "/nowhere", "started": 1}
    record = tmp_path / "sweep.json"
    record.write_text(json.dumps({"sessions": [session, session, {**session, "ended": 2}]}))
    found = study_of(tmp_path, dirs=(tmp_path,))
    expected = {"sessions": 3, "cut_off": 2, "stopped": 0, "runs_started_again": 3, "from_a_checkpoint": 2}
    assert report.history(found) == expected == report.aggregate(found)["history"]
    text = report.write_up(found, [], []).markdown()
    assert "in 3 sessions: 2 were cut off without a word (killed, or the machine went down)." in text
    assert "3 of 5 runs were interrupted: 2 went on from a checkpoint, 1 began anew, with no checkpoint yet." in text
    assert "\npython benchmarks/sweep.py --out=mine\n" in text and "/somewhere" not in text
    stopped = {**session, "ended": 2, "stopped": "SIGTERM"}
    record.write_text(json.dumps({"sessions": [stopped, session]}))
    assert "in 2 sessions: 1 was cut off without a word (killed, or the machine went down), 1 was" in (
        report.write_up(found, [], []).markdown()
    )
    with open(tmp_path / ".sweep.lock", "w") as lock:  # the second one is at work
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert report.history(found)["cut_off"] == 0
    record.write_text(json.dumps({"sessions": [{**session, "ended": 2}]}))
    assert "session" not in report.write_up(found, [], []).markdown()


def test_a_copy_of_a_report_claims_no_folder_that_it_lacks(tmp_path: Path) -> None:
    sweep(tmp_path / "mine", {(WALKER, "off"): [1, 2]})
    out = tmp_path / "elsewhere" / "copy"
    for asked in ([], ["--out", str(out)]):
        assert main([str(tmp_path / "mine"), "--reps", "50", *asked]) == 0
    inside, copy = (path.read_text() for path in (tmp_path / "mine" / "REPORT.md", out / "REPORT.md"))
    assert "`tensorboard --logdir tb`" in inside and "`tensorboard --logdir runs`" in inside
    assert "`tensorboard --logdir tb`" in copy and "`tensorboard --logdir mine/runs`" in copy
    for text in (inside, copy):
        assert str(tmp_path) not in text and "A copy of the report need not have them" in text


# ---- the whole report ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep with faults of all kinds, and its report beside its runs."""
    root = tmp_path_factory.mktemp("sweep")
    rng = np.random.default_rng(0)
    for task in (WALKER, CHEETAH):
        for variant, gain in (("off", 600), ("on", 800)):
            for seed in range(1, 6):
                folder = root / "runs" / task / f"fasttd3__{variant}" / f"seed{seed}"
                values = gain * np.linspace(0.1, 1, 10) + rng.normal(0, 20, 10)
                cut, state = {(CHEETAH, "on", 5): (4, "failed"), (WALKER, "on", 5): (3, "interrupted")}.get(
                    (task, variant, seed), (10, "done")
                )
                write_run(folder, values[:cut], task, seed, variant, state, why="" if state == "done" else "| `x` <b>")
    log = root / "runs" / WALKER / "fasttd3__off" / "seed1" / "metrics.csv"
    log.write_text(log.read_text() + f"off,{WALKER},1,{RETURN},1100,11,9")  # torn
    never_started(root / "runs" / WALKER / "fasttd3__off" / "seed6")
    stale = root / "tb" / "gone" / "events.out.tfevents.0000000000.report"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    (root / "flash.csv").write_text(
        ",".join(records.COLUMNS) + "\nFlashSAC,walker-walk,0,avg_return,100,5\n"
        "FlashSAC,walker-walk,0,avg_return,900,50\n"
    )
    assert main([str(root), "--reps", "500", "--overlay", str(root / "flash.csv"), "--title", "SEM & co"]) == 0
    return root


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_results_hold_every_evaluation_of_every_run(whole: Path) -> None:
    found = rows(whole / "results.csv")
    assert tuple(found[0]) == records.COLUMNS
    assert len(found) == 10 * 18 + 4 + 3
    expected = read(whole / "runs" / CHEETAH / "fasttd3__on" / "seed5").series[RETURN]
    mine = [
        row for row in found if row["env_name"] == CHEETAH and row["exp_name"] == "fasttd3__on" and row["seed"] == "5"
    ]
    assert [int(row["env_step"]) for row in mine] == expected.steps.tolist()
    assert [float(row["value"]) for row in mine] == pytest.approx(expected.values.tolist(), rel=1e-5)
    assert {row["metric"] for row in found} == {RETURN}


def test_summary_follows_from_the_results(whole: Path) -> None:
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in rows(whole / "results.csv"):
        values.setdefault((row["env_name"], row["exp_name"], row["seed"]), []).append(float(row["value"]))
    found = {(row["task"], row["variant"]): row for row in rows(whole / "summary.csv")}
    assert len(found) == 4
    for (task, variant), row in found.items():
        last = [x[-1] for (t, v, s), x in values.items() if (t, v) == (task, variant)]
        if (task, variant) == (WALKER, "fasttd3__on"):
            del last[-1]  # seed 5, which is not finished
        assert int(row["seeds"]) == len(last)
        assert float(row["mean"]) == pytest.approx(np.mean(last), rel=1e-5)
        assert float(row["median"]) == pytest.approx(np.median(last), rel=1e-5)
        half = stats.t_quantile(0.975, len(last) - 1) * np.std(last, ddof=1) / math.sqrt(len(last))
        assert float(row["t95_low"]) == pytest.approx(np.mean(last) - half, rel=1e-4)
        assert float(row["normalised_mean"]) == pytest.approx(np.mean(last) / 1000, rel=1e-5)
        states = [int(row[name]) for name in ("done", "failed", "unfinished")]
        lost = {
            (CHEETAH, "fasttd3__on"): [4, 1, 0],
            (WALKER, "fasttd3__on"): [4, 0, 1],
            (WALKER, "fasttd3__off"): [5, 1, 0],
        }
        assert states == lost.get((task, variant), [5, 0, 0])
        assert float(row["sps"]) == pytest.approx(100) and float(row["hours"]) == pytest.approx(10 / 3600, rel=1e-4)


def test_aggregates_follow_from_the_runs(whole: Path) -> None:
    found = json.loads((whole / "aggregate.json").read_text())
    again = study_of(whole, reps=500)
    assert found["runs"] == {"done": 18, "failed": 2, "interrupted": 1}
    assert found["bootstrap"] == {"reps": 500, "seed": 0, "level": 0.95, "expand": True}
    for variant, measures in found["variants"].items():
        tasks = [again.scores(task, variant) / 1000 for task in found["tasks_together"]]
        for name, statistic in stats.AGGREGATES.items():
            mine = stats.bootstrap(tasks, statistic, stats.Bootstrap(500))
            assert [measures[name][key] for key in ("value", "low", "high")] == pytest.approx(
                [*map(float, mine)], rel=1e-5
            )
    (pair,) = (row for row in found["improvement"] if row["variant"] == "fasttd3__on")
    assert pair["over"] == "fasttd3__off" and 0.5 < pair["value"] <= 1 and pair["tasks"] == 2
    assert {row["task"] for row in found["difference"]} == {WALKER, CHEETAH}
    assert found["scale"][WALKER]["high"] == 1000 and "construction" in found["scale"][WALKER]["source"]


def test_the_report_names_what_went_wrong(whole: Path) -> None:
    text = (whole / "REPORT.md").read_text()
    assert text.startswith("# SEM & co\n\n**Preliminary**: 1 of 21 runs")
    assert "**2 of 21 runs failed**" in text
    (failed,) = (line for line in text.split("\n") if line.startswith("|") and "/seed5 | failed" in line)
    assert "400 of 1,000" in failed and "'x' <b>" in failed
    (lost,) = (line for line in text.split("\n") if "/seed6 | not started" in line)
    assert "| 0 | none | `error: no such task` |" in lost
    assert "fasttd3__on/seed5: interrupted, 300 of 1,000 frames" in text
    assert "fasttd3__off/seed1 (1): lines of metrics.csv are broken" in text
    assert f"{WALKER}: numbers of seeds differ (fasttd3__off 5, fasttd3__on 4)." in text
    assert "| `sem` | off | on |" in text
    assert str(Path.home()) not in text.replace(str(whole), "") and "/somewhere" not in text


def test_the_report_has_its_pictures(whole: Path) -> None:
    text = (whole / "REPORT.md").read_text()
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert sorted(Path(name).stem for name in pictures) == sorted(
        ["aggregates", "curves", "curves_time", "differences", "improvement", "iqm", "profiles"]
    )
    for name in pictures:
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
        assert (whole / name).with_suffix(".pdf").read_bytes().startswith(b"%PDF")


class Links(HTMLParser):
    """Everything that a page asks the browser to fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        assert tag not in ("link", "script", "iframe", "object")
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")
            assert dict(attrs)["alt"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(whole: Path) -> None:
    text = (whole / "report.html").read_text()
    page = Links()
    page.feed(text)
    assert page.open == ["html"] or not page.open
    assert len(page.images) == 7 and "SEM &amp; co" in text and "url(" not in text and "@import" not in text
    for image in page.images:
        head, _, data = image.partition(",")
        assert head == "data:image/png;base64" and base64.b64decode(data).startswith(b"\x89PNG")


def test_a_report_on_the_results_alone_gives_the_same_scores(whole: Path, tmp_path: Path) -> None:
    runs, table = study_of(whole), study_of(whole / "results.csv", at=1000)
    for task in runs.tasks:
        complete = [run.score for run in runs.cells[task, "fasttd3__off"] if run.state == "done"]
        assert table.scores(task, "fasttd3__off").tolist() == pytest.approx(complete, rel=1e-5)
    assert table.comparisons == [Comparison("fasttd3__on", "fasttd3__off")]


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def test_tensorboard_gets_a_run_per_variant_with_mean_and_band(whole: Path) -> None:
    files = sorted((whole / "tb").glob("*/*tfevents*"))
    assert [path.parent.name for path in files] == ["fasttd3__off", "fasttd3__on"], "and nothing of an earlier report"
    found: dict[str, dict[int, float]] = {}
    times = []
    for event in LegacyEventFileLoader(str(files[0])).Load():
        for value in event.summary.value:
            if value.tag == "custom_scalars__config__":
                assert value.metadata.plugin_data.plugin_name == "custom_scalars"
                layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
            else:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
                times.append(event.wall_time)
    (category,) = layout.category
    assert [chart.title for chart in category.chart] == [WALKER, CHEETAH], "which TensorBoard turns around"
    for chart in category.chart:
        (margin,) = chart.margin.series
        assert {margin.value, margin.lower, margin.upper} <= found.keys()
    curve = study.curves(study_of(whole), CHEETAH)["fasttd3__off"]
    band = stats.t_interval(curve.values)
    for tag, expected in zip(("mean", "low", "high"), band, strict=True):
        assert list(found[f"{CHEETAH}/{tag}"]) == STEPS
        assert list(found[f"{CHEETAH}/{tag}"].values()) == pytest.approx(expected.tolist(), rel=1e-5)
    assert times[:10] == pytest.approx([x for step in STEPS[:4] for x in [step * 0.01] * 3][:10])


def test_with_one_seed_the_band_is_the_line(tmp_path: Path) -> None:
    write_run(tmp_path / "a", range(10))
    report.write_tensorboard(study_of(tmp_path), tmp_path / "tb")
    (path,) = (tmp_path / "tb").glob("*/*tfevents*")
    values = [
        v.simple_value
        for event in LegacyEventFileLoader(str(path)).Load()
        for v in event.summary.value[:3]
        if "/" in v.tag
    ]
    assert values == [float(step) for step in range(10) for _ in range(3)]


def test_links_colour_the_runs_by_variant(tmp_path: Path) -> None:
    first, second = tmp_path / "sweep", tmp_path / "plain"
    sweep(first, {(t, v): [1, 2] for t in (WALKER, CHEETAH) for v in ("off", "on")})
    write_run(second / f"{WALKER}__my-name__3__20261120-100000", [1] * 10, seed=3, variant="my-name")
    for folder, pattern in ((first / "runs", "*/*/*"), (second, "*")):
        found = study_of(folder)
        links = report.deep_links(found, [folder], tmp_path / "out")
        (url, *single) = [word for text in links[1:] for word in text.split() if word.startswith("http://")]
        query = parse_qs(urlsplit(url).query)
        colour = query["runColorGroup"][0].removeprefix("regex:")
        for path in folder.glob(pattern):
            match = re.search(colour, str(path.relative_to(folder)))
            assert match and match[1] == next(run.variant for run in found.runs if run.path == path)
        (tags,) = query["tagFilter"]
        assert re.search(tags, RETURN) and not re.search(tags, f"{RETURN}_std")
        assert urlsplit(url).fragment == "timeseries" and query["smoothing"] == ["0"]
        for link, task in zip(single, found.tasks, strict=False):
            only = parse_qs(urlsplit(link).query)["runFilter"][0]
            assert [re.search(only, f"{other}/x/seed1") is not None for other in found.tasks] == [
                t == task for t in found.tasks
            ]
    assert f"--logdir {shlex.quote(str(tmp_path / 'out' / 'tb'))}`" in links[0] and "#custom_scalars" in links[0]


# ---- command line ----------------------------------------------------------------------------------------------------


def fails(argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_a_reader_of_the_report_may_leave(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", [1] * 10)
    command = shlex.join(
        [sys.executable, str(ROOT / "benchmarks" / "report.py"), str(tmp_path / "runs"), "--reps", "50"]
    )
    line = f"{command} --out {tmp_path}/out | head -c 0; echo $((PIPESTATUS[0]))"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.stdout, done.stderr) == ("141\n", "") and (tmp_path / "out" / "report.html").is_file()


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "does not exist" in fails([str(tmp_path / "none")], capsys)
    assert "no run under" in fails([str(tmp_path / "empty")], capsys)
    write_run(tmp_path / "a" / "run", [1] * 10)
    error = fails([str(tmp_path / "a"), "--metric", "eval/success"], capsys)
    assert "eval/success" in error and f"they have {RETURN}, {RETURN}_std, losses/qf_loss" in error
    assert "the variants are off" in fails([str(tmp_path / "a"), "--baseline", "on"], capsys)
    assert "say --out" in fails([str(tmp_path / "a"), str(tmp_path / "empty")], capsys)
    assert "--reps 0" in fails([str(tmp_path / "a"), "--reps", "0"], capsys)
    assert "--at -1" in fails([str(tmp_path / "a"), "--at", "-1"], capsys)
    (tmp_path / "refs.csv").write_text("env_id,metric,low,high,meaning,source\nA,episodic_return,1,1,x,y\n")
    for text in ("a,b\n1,2\n", "env_id,metric,low,high,meaning,source\nA,x,one,2,,\n", "env_id,metric,low\nA,x\n"):
        (tmp_path / "table.csv").write_text(text)
        line = fails([str(tmp_path / "a"), "--references", str(tmp_path / "table.csv")], capsys)
        assert "table.csv, line 2: expected env_id, metric, low, high" in line
    assert "cannot write in /proc/x: " in fails([str(tmp_path / "a"), "--out", "/proc/x"], capsys)
    assert "A has low 1 and high 1" in fails([str(tmp_path / "a"), "--references", str(tmp_path / "refs.csv")], capsys)
    assert not (tmp_path / "a-report").exists()


def test_the_report_of_plain_runs_goes_beside_them(tmp_path: Path) -> None:
    runs, swept = tmp_path / "runs.old", tmp_path / "sweep"
    runs.mkdir()
    (swept / "runs").mkdir(parents=True)
    assert report.out_folder(Args(dirs=(runs,))) == tmp_path / "runs.old-report"
    assert report.out_folder(Args(dirs=(swept,))) == swept
    one = runs / "one"
    one.mkdir()
    (one / "config.json").write_text("{}")
    assert report.out_folder(Args(dirs=(one,))) == tmp_path / "one-report"  # not beside it, among the runs
    assert report.out_folder(Args(dirs=(runs, swept), out=Path("x"))) == Path("x")
    (tmp_path / "results.csv").touch()
    assert report.out_folder(Args(dirs=(tmp_path / "results.csv",))) == tmp_path / "results-report"
