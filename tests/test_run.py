"""Runs on disk: what is in their directory, how they end, and what a resumed run must look like."""

import csv
import fcntl
import io
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from agents import run as run_module
from agents.checkpoint import newest_checkpoint, read_args, seal
from agents.manifest import git_revision, manifest
from agents.metrics import to_floats
from agents.run import Run, RunError, Timer, clock, explain

ROOT = Path(run_module.__file__).resolve().parents[1]


@dataclass
class Args:
    """Settings of a run that trains nothing."""

    env_id: str = "dm/cheetah:run"
    exp_name: str = "test"
    seed: int = 3
    total_timesteps: int = 100
    sem: bool = False
    lr: float = 3e-4
    hidden: tuple[int, ...] = (256, 256)
    clip: float | None = None
    out: Path = Path("runs")


def make(tmp_path: Path, **options: Any) -> Run[Args]:
    return Run.create(options.pop("args", Args()), root=tmp_path, quiet=True, **options)


def rows(run_dir: Path) -> list[dict[str, str]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def status(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "status.json").read_text())


def events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars as TensorBoard shows them: tag -> (step, value)."""
    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {tag: [(x.step, x.value) for x in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def table(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.csv."""
    result: dict[str, list[tuple[int, float]]] = {}
    for row in rows(run_dir):
        result.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    return result


# ---- what is in the directory --------------------------------------------------------------------------------------


def test_pictures_and_histograms_are_for_tensorboard_alone(tmp_path: Path) -> None:
    values = torch.tensor([0.5, math.nan, 1.5, -math.inf, 1.5])
    with make(tmp_path) as run:
        run.show(10, {"repr/a": values, "repr/lost": torch.full((3,), math.nan), "sem/a": torch.rand(1, 4, 6)})
        run.show(20, {"repr/far": torch.tensor([1e25, -3e38, 2e38])})
        run.log(20, {"losses/a": 1.0})
        assert run.finish() == 0
    seen = EventAccumulator(str(run.dir), {"histograms": 0, "images": 0}).Reload()
    assert seen.Tags()["histograms"] == ["repr/a", "repr/far"] and seen.Tags()["images"] == ["sem/a"]
    (bars,) = seen.Histograms("repr/a")
    found = bars.histogram_value
    assert (bars.step, found.num, found.min, found.max, found.sum) == (10, 3, 0.5, 1.5, 3.5)
    assert seen.Histograms("repr/far")[0].histogram_value.num == 3
    assert "repr/a" not in (run.dir / "metrics.csv").read_text()


def test_files_of_a_run(tmp_path: Path) -> None:
    args = Args(sem=True, hidden=(8,))
    with make(tmp_path, args=args, presets=["large", "h1"]) as run:
        assert status(run.dir)["state"] == "running"
        for step in (0, 50, 100):
            run.log(step, {"losses/a": step / 3, "eval/episodic_return": torch.tensor(7.0)})
        run.writer.add_histogram("sem/code", np.arange(5.0), 100)
        run.save(100, {"agent": {"w": torch.ones(2)}})
        assert run.finish() == 0
    assert run.dir.name.startswith("dm-cheetah-run__test__3__")
    assert json.loads((run.dir / "config.json").read_text()) == {
        "env_id": "dm/cheetah:run",
        "exp_name": "test",
        "seed": 3,
        "total_timesteps": 100,
        "sem": True,
        "lr": 3e-4,
        "hidden": [8],
        "clip": None,
        "out": "runs",
    }
    assert read_args(run.dir, Args) == args
    record = json.loads((run.dir / "manifest.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["numpy"] == np.__version__
    assert record["presets"] == ["large", "h1"] and record["argv"] == sys.argv
    assert record["agent"] == "test_run"  # the file that defines Args
    assert record["hardware"]["cores"] >= 1 and record["torch"]["threads"] == torch.get_num_threads()
    ended = status(run.dir)
    assert (ended["state"], ended["step"], ended["why"]) == ("done", 100, "")
    # No run beside the run in TensorBoard's list, and nothing half written.
    assert sorted(path.name for path in run.dir.iterdir() if path.is_dir()) == ["checkpoints"]
    assert len(list(run.dir.glob("events.out.*"))) == 1 and not list(run.dir.rglob("*.tmp"))
    assert (run.dir / "metrics.csv").read_text().startswith("exp_name,env_id,seed,metric,step,wall_s,value\n")
    assert [(row["exp_name"], row["env_id"], row["seed"]) for row in rows(run.dir)] == [
        ("test", "dm/cheetah:run", "3")
    ] * 6


def test_one_event_per_log_call_and_the_settings_in_the_same_run(tmp_path: Path) -> None:
    with make(tmp_path, args=Args(sem=True)) as run:
        for step in range(5):
            run.log(step, {f"losses/{name}": step for name in "abcd"})
        run.finish()
    (path,) = run.dir.glob("events.out.*")
    scalars = [
        [value.tag for value in event.summary.value]
        for event in LegacyEventFileLoader(str(path)).Load()
        if any(value.HasField("simple_value") for value in event.summary.value)
    ]
    assert scalars == [[f"losses/{name}" for name in "abcd"]] * 5
    assert events(run.dir) == table(run.dir)
    accumulator = EventAccumulator(str(run.dir))
    accumulator.Reload()
    data = {
        tag: HParamsPluginData.FromString(accumulator.SummaryMetadata(f"_hparams_/{tag}").plugin_data.content)
        for tag in ("experiment", "session_start_info", "session_end_info")
    }
    assert [info.name.tag for info in data["experiment"].experiment.metric_infos] == ["eval/episodic_return"]
    settings_shown = data["session_start_info"].session_start_info.hparams
    assert settings_shown["sem"].string_value == "on" and settings_shown["clip"].string_value == "none"
    assert settings_shown["lr"].number_value == 3e-4 and settings_shown["hidden"].string_value == "(256, 256)"
    (text,) = accumulator.Tensors("config/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    assert lines[0] == "presets: none"
    assert lines[4] == "| sem | True | False |"  # changed ones first
    assert len(lines) == 4 + len(fields(Args))


def test_the_hparams_session_ends_only_when_the_run_is_done(tmp_path: Path) -> None:
    for state, ends in (("interrupted", 0), ("done", 1)):
        with make(tmp_path) as run:
            run.log(0, {"a": 1})
            run.finish(state)
        text = b"".join(path.read_bytes() for path in run.dir.glob("events.out.*"))
        assert text.count(b"_hparams_/session_start_info") == 1
        assert text.count(b"_hparams_/session_end_info") == ends


def test_without_logging_and_saving_only_the_marker_is_written(tmp_path: Path) -> None:
    before = (random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: NPY002
    with make(tmp_path) as run:
        for step in range(100):
            run.progress(step)
        run.finish()
    files = [".lock", "config.json", "manifest.json", "result.json", "status.json"]
    assert sorted(path.name for path in run.dir.iterdir()) == files
    with make(tmp_path) as run:
        run.log(1, {"a": 1})
        run.save(1, {"agent": {}})
        run.finish()
    after = (random.getstate(), torch.get_rng_state().tolist(), str(np.random.get_state()))  # noqa: NPY002
    assert before == after


def test_directories_are_unique_and_their_names_safe(tmp_path: Path) -> None:
    args = Args(env_id="ALE/Breakout-v5:a b", exp_name="../x")
    runs = [make(tmp_path / "deep" / "er", args=args) for _ in range(3)]
    assert len({run.dir for run in runs}) == 3
    for run in runs:
        assert run.dir.parent == tmp_path / "deep" / "er"
        assert run.dir.name.startswith("ALE-Breakout-v5-a-b__..-x__3__")
        run.close()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=20))
def test_csv_holds_every_float_exactly(tmp_path: Path, values: list[float]) -> None:
    with make(tmp_path) as run:
        returned = run.log(1, {f'm/{i},"x"': value for i, value in enumerate(values)})
        read = rows(run.dir)  # flushed by log
        run.finish()
    assert [row["metric"] for row in read] == [f'm/{i},"x"' for i in range(len(values))]
    for row, value in zip(read, values, strict=True):
        assert np.float64(row["value"]).tobytes() == np.float64(value).tobytes() or math.isnan(value)
    assert list(map(str, returned.values())) == [str(value) for value in values]


def test_to_floats_keeps_order_and_types() -> None:
    metrics = {
        "a": torch.tensor(1.5, dtype=torch.bfloat16),
        "b": 2,
        "c": torch.tensor([[3]], requires_grad=False),
        "d": torch.tensor(True),
        "e": np.float32(0.1),
        "f": torch.tensor(0.1, requires_grad=True),
        "g": torch.tensor(0.1, dtype=torch.float64),
    }
    values = to_floats(metrics)
    assert list(values) == list(metrics)
    assert all(type(value) is float for value in values.values())
    assert [values[tag] for tag in "abcd"] == [1.5, 2.0, 3.0, 1.0]
    assert values["e"] == values["f"] == float(np.float32(0.1)) and values["g"] == 0.1
    with pytest.raises(ValueError, match=r"metric x has shape \[2\]"):
        to_floats({"x": torch.zeros(2)})


def test_git_revision(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True).stdout.strip()

    assert git_revision(tmp_path) is None
    git("init")
    (tmp_path / "a").write_text("1")
    assert git_revision(tmp_path) is None  # no commit yet
    git("add", "a")
    git("commit", "-m", "x")
    revision = git("rev-parse", "HEAD")
    assert len(revision) == 40
    assert git_revision(tmp_path) == {"revision": revision, "dirty": False}
    (tmp_path / "a").write_text("2")
    assert git_revision(tmp_path) == {"revision": revision, "dirty": True}


def test_manifest_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert manifest()["git"] is None


# ---- how it ends ---------------------------------------------------------------------------------------------------


def test_status_after_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), make(tmp_path) as run:
        run.log(40, {"a": 1})
        print(1 / 0)
    assert (status(run.dir)["state"], status(run.dir)["step"]) == ("failed", 40)
    assert status(run.dir)["why"] == "ZeroDivisionError: division by zero"
    with pytest.raises(ValueError, match="two"), make(tmp_path) as run:
        raise ValueError("two\nlines")
    assert status(run.dir)["why"] == "ValueError: two lines"
    with make(tmp_path) as run:
        pass
    assert status(run.dir)["state"] == "failed" and "finish" in status(run.dir)["why"]
    with pytest.raises(ValueError, match="legal are done"), make(tmp_path) as run:
        run.finish("great")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT"])
def test_a_signal_asks_to_stop(tmp_path: Path, name: str) -> None:
    number = signal.Signals[name]
    before = {each: signal.getsignal(each) for each in run_module.STOP_SIGNALS}
    with make(tmp_path) as run:
        assert run.stop_signal is None
        os.kill(os.getpid(), number)
        assert run.stop_signal == name
        if name != "SIGINT":  # batch systems repeat themselves
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), signal.SIGINT)
        assert run.stop_signal == name
        assert run.finish("interrupted", name) == 75
    assert (status(run.dir)["state"], status(run.dir)["why"]) == ("interrupted", name)
    assert {each: signal.getsignal(each) for each in run_module.STOP_SIGNALS} == before


def test_the_second_interrupt_is_impatient(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), make(tmp_path) as run:
        os.kill(os.getpid(), signal.SIGINT)
        assert run.stop_signal == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
    assert status(run.dir)["state"] == "interrupted"


def test_two_processes_never_share_a_run(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.save(1, {"agent": {}})
    with pytest.raises(RunError, match=f"in use by process {os.getpid()}"):
        Run.resume(run.dir, Args)
    with pytest.raises(RunError, match="in use"):
        Run.create(Args(), run_dir=run.dir)
    run.close()
    Run.resume(run.dir, Args).close()


# ---- going on ------------------------------------------------------------------------------------------------------


def log_some(run: Run[Args], steps: range) -> None:
    for step in steps:
        run.log(step, {"losses/a": math.sin(step), "charts/b": step})
        if step % 20 == 0:
            run.log(step, {"eval/episodic_return": step / 7})


def test_a_resumed_run_looks_as_if_nothing_had_happened(tmp_path: Path) -> None:
    reference = make(tmp_path)
    log_some(reference, range(0, 101, 10))
    reference.close()

    run = make(tmp_path)
    log_some(run, range(0, 41, 10))
    run.save(40, {"agent": {}})
    log_some(run, range(50, 81, 10))
    run.close()  # killed at 80
    assert events(run.dir)["charts/b"][-1] == (80, 80.0)
    for _ in range(2):  # resumed, and killed again before it saved
        resumed = Run.resume(run.dir, Args, quiet=True)
        assert table(run.dir)["charts/b"][-1] == (40, 40.0) == events(run.dir)["charts/b"][-1]
        log_some(resumed, range(50, 71, 10))
        resumed.close()
    resumed = Run.resume(run.dir, Args, quiet=True)
    with resumed:
        log_some(resumed, range(50, 101, 10))
        resumed.finish()

    assert table(run.dir) == table(reference.dir)
    assert events(run.dir) == events(reference.dir)
    for tag, points in events(run.dir).items():  # TensorBoard rounds to float32
        assert points == [(step, float(np.float32(value))) for step, value in table(run.dir)[tag]]
    wall = [float(row["wall_s"]) for row in rows(run.dir)]
    assert wall == sorted(wall)
    assert len(list(run.dir.glob("events.out.*"))) == 4
    assert len({path.name.split(".")[3] for path in run.dir.glob("events.out.*")}) == 4  # an order for readers


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def test_wall_clock_continues(tmp_path: Path) -> None:
    run = make(tmp_path)
    path = run.save(1, {"agent": {}})
    run.close()
    meta = json.loads((path / "meta.json").read_text())
    meta = {**meta, "wall_s": 5000.0}
    (path / "meta.json").write_text(json.dumps({**meta, "seal": seal(without(meta, "seal"))}))
    resumed = Run.resume(run.dir, Args, quiet=True)
    resumed.log(2, {"a": 1})
    resumed.save(2, {"agent": {}})
    resumed.close()
    assert 5000 <= float(rows(run.dir)[0]["wall_s"]) < 5100
    assert 5000 <= newest_checkpoint(run.dir)[0].meta["wall_s"] < 5100


def test_a_torn_row_is_cut_and_a_short_file_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path)
    run.log(1, {"a": 1, "b": 2})
    run.save(1, {"agent": {}})
    run.log(2, {"a": 1})
    run.close()
    path = run.dir / "metrics.csv"
    text = path.read_bytes()
    path.write_bytes(text + b"test,dm/che")
    Run.resume(run.dir, Args, quiet=True).close()
    assert [row["step"] for row in rows(run.dir)] == ["1", "1"]
    assert capsys.readouterr().err == ""
    os.truncate(path, path.stat().st_size - 3)
    Run.resume(run.dir, Args, quiet=True).close()
    assert "lacks 3 bytes" in capsys.readouterr().err


def test_settings_of_a_resumed_run(tmp_path: Path) -> None:
    args = Args(hidden=(1, 2), clip=math.inf, out=Path("a/b"), lr=0.1)
    run = make(tmp_path, args=args, presets=["p"])
    run.save(10, {"agent": {}})
    run.close()
    with pytest.raises(
        RunError, match=r"--hidden, --lr cannot change when a run is resumed; what can: --total-timesteps"
    ):
        Run.resume(run.dir, Args, overrides={"lr": 0.2, "hidden": (1,), "total_timesteps": 5, "clip": math.inf})
    mutable = ("total_timesteps", "out")
    overrides = {"total_timesteps": 500, "out": Path("c"), "lr": 0.1}
    resumed = Run.resume(run.dir, Args, overrides=overrides, mutable=mutable, quiet=True)
    resumed.close()
    expected = Args(hidden=(1, 2), clip=math.inf, out=Path("c"), lr=0.1, total_timesteps=500)
    assert resumed.args == expected == read_args(run.dir, Args)
    record = json.loads((run.dir / "manifest.json").read_text())
    (entry,) = record["resumes"]
    assert record["presets"] == ["p"] and entry["step"] == 10
    assert entry["changed"] == {"total_timesteps": 500, "out": "c"}


def test_settings_of_another_version(tmp_path: Path) -> None:
    run = make(tmp_path)
    saved = json.loads((run.dir / "config.json").read_text())
    run.close()
    del saved["lr"]
    (run.dir / "config.json").write_text(json.dumps(saved))
    assert read_args(run.dir, Args) == Args()
    (run.dir / "config.json").write_text(json.dumps({**saved, "zeta": 1}))
    with pytest.raises(RunError, match="another version: it sets zeta"):
        read_args(run.dir, Args)
    (run.dir / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json is damaged"):
        read_args(run.dir, Args)


def test_an_edited_config_is_refused(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        path = run.save(10, {"agent": {}})
        run.finish("interrupted")
    saved = json.loads((run.dir / "config.json").read_text())
    (run.dir / "config.json").write_text(json.dumps({**saved, "lr": 3.25e-4, "total_timesteps": 200}))
    said = r"config.json is damaged or was edited: it sets lr = 0.000325, and step_000000000010 was trained with 0.0003"
    with pytest.raises(RunError, match=said):
        Run.resume(run.dir, Args)
    (run.dir / "config.json").write_text(json.dumps({**saved, "total_timesteps": 200}))  # which may be given anew
    Run.resume(run.dir, Args, quiet=True).close()
    assert json.loads((path / "meta.json").read_text())["settings"]["hidden"] == [256, 256]


@pytest.mark.parametrize("content", [None, b"", b'{"state": "do', b"\xff\xfe", b"[]"])
def test_a_torn_status_says_nothing(content: bytes | None, tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.save(10, {"agent": {}})
        run.finish("interrupted")
    status_file = run.dir / "status.json"
    status_file.unlink() if content is None else status_file.write_bytes(content)
    again = Run.resume(run.dir, Args, quiet=True)
    assert again.step == 10
    again.close()
    (run.dir / "status.json").write_bytes(content or b"{}")
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(Args(), run_dir=run.dir)


def test_what_is_not_legal_is_refused_before_a_resumed_run_changes(tmp_path: Path) -> None:
    with make(tmp_path) as run:
        run.save(10, {"agent": {}})
        run.finish("interrupted")
    before = tree(run.dir)

    def check(args: Args) -> Args:
        raise ValueError("not legal")

    with pytest.raises(ValueError, match="not legal"):
        Run.resume(run.dir, Args, check=check)
    assert tree(run.dir) == before
    saved = json.loads((run.dir / "config.json").read_text())
    for name, wrong in (("total_timesteps", "x"), ("lr", None), ("seed", 0.5)):
        (run.dir / "config.json").write_text(json.dumps({**saved, name: wrong}))
        with pytest.raises(RunError, match=f"config.json is damaged: it sets {name} = "):
            Run.resume(run.dir, Args)
    with pytest.raises(RunError, match="the name of the run directory is empty"):
        Run.start(Args(), run_dir="")


def test_divergence_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(tmp_path)
    for step in (1, 2, 3):
        run.log(step, {"losses/qf_loss": math.nan if step > 1 else 0.0, "charts/x": math.nan})
    run.close()
    assert capsys.readouterr().err.count("diverged: losses/qf_loss is nan at 2 frames") == 1


def test_damage_names_the_file(tmp_path: Path) -> None:
    for content in (b"\xff\xfe", b"{"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(RunError, match=r"config\.json is damaged"):
            read_args(tmp_path, Args)


def test_a_look_at_the_lock_does_not_keep_a_run_from_starting(tmp_path: Path) -> None:
    probe = open(tmp_path / ".lock", "a+")  # noqa: SIM115
    fcntl.flock(probe, fcntl.LOCK_EX)
    threading.Timer(0.05, probe.close).start()
    Run.create(Args(), run_dir=tmp_path, quiet=True).close()


def test_what_cannot_be_resumed(tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(RunError, match=r"holds no run: there is no config.json"):
            Run.resume(missing, Args)
    run = make(tmp_path)
    run.close()
    with pytest.raises(RunError, match="has no checkpoint to go on from"):
        Run.resume(run.dir, Args)
    with make(tmp_path) as run:
        run.save(100, {"agent": {}})
        run.finish()
    with pytest.raises(RunError, match="is done: 100 of 100 frames"):
        Run.resume(run.dir, Args)
    more = Run.resume(run.dir, Args, overrides={"total_timesteps": 101}, quiet=True)
    assert more.step == 100
    more.close()


def test_a_directory_of_ones_own_choice(tmp_path: Path) -> None:
    path = tmp_path / "a" / "seed3"
    run = Run.create(Args(), run_dir=path, quiet=True)
    run.log(5, {"a": 1})
    run.close()  # killed before its first checkpoint
    run = Run.create(Args(seed=4), run_dir=path, quiet=True)
    run.log(1, {"b": 2})
    run.save(1, {"agent": {}})
    run.close()
    assert table(path) == events(path) == {"b": [(1, 2.0)]}
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(Args(), run_dir=path)
    done = tmp_path / "done"
    with Run.create(Args(), run_dir=done, quiet=True) as run:
        run.finish()
    with pytest.raises(RunError, match="already holds a run"):
        Run.create(Args(), run_dir=done)


AGENT = """
import sys, time
from dataclasses import dataclass
import torch
from agents import config
from agents.checkpoint import rng_state, set_rng_state
from agents.run import Run, RunError

@dataclass
class Args:
    env_id: str = "x"
    exp_name: str = "x"
    seed: int = 0
    total_timesteps: int = 3000
    root: str = ""
    resume: str = ""
    slow: bool = False

def main():
    args, presets, explicit = config.parse(Args)
    torch.manual_seed(args.seed)
    step = 0
    if args.resume:
        changes = {name: getattr(args, name) for name in explicit - {"resume"}}
        run = Run.resume(args.resume, Args, overrides=changes, mutable=("total_timesteps", "slow"))
        agent = run.checkpoint.load("agent")
        step, walk = run.checkpoint.step, agent["walk"]
        set_rng_state(agent["rng"])
    else:
        run, walk = Run.create(args, root=args.root), torch.zeros(())
    args = run.args
    with run:
        while step < args.total_timesteps and not run.stop_signal:
            step += 10
            walk = walk + torch.randn(())
            if args.slow:
                time.sleep(0.001)
            run.progress(step)
            if step % 50 == 0:
                run.log(step, {"losses/walk": walk})
            if step % 500 == 0:
                run.save(step, {"agent": {"walk": walk, "rng": rng_state()}})
                print("saved", step, flush=True)
        run.save(step, {"agent": {"walk": walk, "rng": rng_state()}})
        return run.finish("done" if step >= args.total_timesteps else "interrupted", run.stop_signal or "")

if __name__ == "__main__":
    try:
        sys.exit(main())
    except RunError as error:
        config.fail(str(error))
"""


def test_stopped_and_resumed_from_a_shell_equals_uninterrupted(tmp_path: Path) -> None:
    (tmp_path / "agent.py").write_text(AGENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start(*argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "agent.py"), *argv]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    whole = start("--root", str(tmp_path / "whole"))
    child = start("--root", str(tmp_path / "parts"), "--slow", "--total-timesteps", "100_000_000")
    assert child.stdout is not None
    assert child.stdout.readline() == "saved 500\n"
    (run_dir,) = (tmp_path / "parts").iterdir()
    with pytest.raises(RunError, match=f"is in use by process {child.pid}"):
        Run.resume(run_dir, Args)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate()
    assert child.returncode == 75, err
    assert "SIGTERM: saving, then stopping" in err.splitlines()
    stopped = status(run_dir)
    assert (stopped["state"], stopped["why"]) == ("interrupted", "SIGTERM")
    assert newest_checkpoint(run_dir)[0].step == stopped["step"] < 3000

    child = start("--resume", str(run_dir), "--total-timesteps", "3000", "--no-slow")
    _, err = child.communicate()
    assert child.returncode == 0, err
    assert err.splitlines()[-1].startswith("done after 3,000 frames in ") and err.endswith(f": {run_dir}\n")
    assert status(run_dir)["state"] == "done"
    record = json.loads((run_dir / "manifest.json").read_text())
    assert record["agent"] == "agent" and len(record["resumes"]) == 1
    assert whole.wait() == 0
    whole.communicate()
    (reference,) = (tmp_path / "whole").iterdir()
    assert table(run_dir) == table(reference) and len(table(reference)["losses/walk"]) == 60
    assert events(run_dir) == events(reference)
    ends = [newest_checkpoint(path)[0].load("agent") for path in (run_dir, reference)]
    assert ends[0]["walk"] == ends[1]["walk"]
    assert torch.equal(ends[0]["rng"]["torch"], ends[1]["rng"]["torch"])

    child = start("--resume", str(run_dir))
    assert child.communicate() == ("", f"error: {run_dir} is done: 3000 of 3000 frames are trained\n")
    assert child.returncode == 2


# ---- time and progress ---------------------------------------------------------------------------------------------


class Clock:
    """time.perf_counter that moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_timer_accounts_for_all_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Clock(monkeypatch)
    timer = Timer()
    for _ in range(3):
        with timer("env"):
            fake.now += 2
        fake.now += 0.5
        with timer("learn"):
            fake.now += 4
    assert timer.read() == {"time/env": 6.0, "time/learn": 12.0, "time/other": 1.5}
    fake.now += 7
    with pytest.raises(ValueError), timer("env"):
        fake.now += 1
        raise ValueError
    assert timer.read() == {"time/env": 1.0, "time/learn": 0.0, "time/other": 7.0}


def test_logging_and_saving_are_timed(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.log(1, {"a": 1})
    run.save(1, {"agent": {}})
    parts = run.timer.read()
    assert parts["time/log"] > 0 and parts["time/save"] > 0 and parts["time/other"] > 0
    run.close()


def test_frames_per_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Clock(monkeypatch)
    run = make(tmp_path)
    fake.now += 10
    assert run.sps(50) == 5
    fake.now += 1
    run.log(100, {"eval/episodic_return": 1.0})  # an evaluation on the same frame must not hide the frames
    fake.now += 1
    assert run.sps(150) == 50
    assert run.wall_s == 12
    run.close()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, quiet: bool = False) -> str:
    """What an hour of a run of two hours prints."""
    fake = Clock(monkeypatch)
    monkeypatch.setattr(sys, "stderr", stream)
    with Run.create(Args(total_timesteps=7_200_000), root=tmp_path, quiet=quiet) as run:
        for second in range(1, 3601):
            fake.now += 1
            run.progress(second * 1000)
            if second == 100:
                run.log(second * 1000, {"charts/episodic_return": 12.25})
        heartbeat = status(run.dir)
        assert (heartbeat["state"], heartbeat["step"]) == ("running", 3_600_000)
        assert heartbeat["episodic_return"] == 12.25 and heartbeat["sps"] == 1000
        text = stream.getvalue()
        run.finish()
    return text


def test_progress_in_a_log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = progress_of(tmp_path, monkeypatch, io.StringIO())
    lines = text.splitlines()
    assert "\r" not in text and "\x1b" not in text
    assert 45 <= len(lines) <= 50  # one per percent, though one per 10 s would be due
    assert lines[0] == "  1.1%  80,000/7,200,000 frames  1,000 SPS  ETA 1:58:40"
    assert lines[-1] == " 50.0%  3,600,000/7,200,000 frames  1,000 SPS  return 12.2  ETA 1:00:00"


def test_progress_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = progress_of(tmp_path, monkeypatch, Terminal())
    assert "\n" not in text
    assert text.count("\r\x1b[K") == 3600
    assert text.endswith(" 50.0%  3,600,000/7,200,000 frames  1,000 SPS  return 12.2  ETA 1:00:00")


def test_a_quiet_run_prints_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    assert progress_of(tmp_path, monkeypatch, stream, quiet=True) == ""
    assert stream.getvalue() == ""


def test_a_note_does_not_tear_the_progress_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Clock(monkeypatch)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    run = Run.create(Args(), root=tmp_path)
    fake.now += 1
    run.progress(10)
    run.note("hello")
    run.close()
    assert stream.getvalue() == "\r\x1b[K 10.0%  10/100 frames  10 SPS  ETA 0:09\r\x1b[Khello\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (90061, "25:01:01"), (math.inf, "-:--")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_status_has_no_number_that_json_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(constant: str) -> Mapping[str, Any]:
        raise AssertionError(constant)

    fake = Clock(monkeypatch)
    run = make(tmp_path)
    run.log(1, {"charts/episodic_return": math.nan})
    fake.now += 1000
    run.progress(2)
    assert json.loads((run.dir / "status.json").read_text(), parse_constant=refuse)["episodic_return"] is None
    run.close()


# ---- a directory that is named beforehand ----------------------------------------------------------------------------


def test_a_named_directory_is_continued_until_the_run_is_done(tmp_path: Path) -> None:
    path = tmp_path / "here"
    options: dict[str, Any] = {"run_dir": path, "quiet": True}
    with Run.start(Args(), **options) as run:
        assert run.checkpoint is None and run.dir == path
        run.save(10, {"agent": {"x": torch.ones(2)}})
        assert run.finish("interrupted", "SIGTERM") == 75
    assert not (path / "result.json").exists(), "only a run that is done has a result"
    before = tree(path)
    with pytest.raises(RunError, match="--seed cannot change"):
        Run.start(Args(seed=5), **options)
    assert tree(path) == before
    with Run.start(Args(), **options) as run:
        assert run.checkpoint is not None and run.checkpoint.step == 10
        run.progress(run.args.total_timesteps)
        assert run.finish("done", score={"episodic_return": 3.5}) == 0
    result = json.loads((path / "result.json").read_text())
    assert result["eval"] == {"episodic_return": 3.5} and result["step"] == Args().total_timesteps
    with pytest.raises(RunError, match="is done"):
        Run.start(Args(), **options)


def test_a_named_directory_without_a_checkpoint_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "here"
    with Run.start(Args(), run_dir=path, quiet=True) as run:
        run.log(5, {"a": 1})
        run.finish("interrupted")
    with Run.start(Args(seed=4), run_dir=path, quiet=True) as run:  # nothing of the first can be continued
        assert run.checkpoint is None and run.args.seed == 4
        run.finish()


def test_without_a_name_each_start_has_a_directory_of_its_own(tmp_path: Path) -> None:
    dirs = set()
    for _ in range(2):
        with Run.start(Args(), root=tmp_path, quiet=True) as run:
            run.finish()
        dirs.add(run.dir)
    assert len(dirs) == 2 and all(path.parent == tmp_path for path in dirs)


def tree(path: Path) -> dict[str, bytes]:
    """Content of all files, but for the lock."""
    return {str(p): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda: torch.empty(10**15), "out of memory (4000000000000000 bytes more were asked for): choose fewer"),
        (lambda: torch.empty(10**12, 10**12), "out of memory: choose fewer"),
        (lambda: bytearray(1 << 60), "out of memory: choose fewer"),
        (lambda: explain(ValueError("one line")), "one line"),
    ],
)
def test_a_lack_of_memory_becomes_one_line(work: Callable[[], Any], says: str) -> None:
    try:
        assert work() == says
    except (RuntimeError, MemoryError) as error:
        assert explain(error).startswith(says)


def test_what_is_nobodys_fault_is_not_explained_away() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        explain(RuntimeError("shapes do not match"))
