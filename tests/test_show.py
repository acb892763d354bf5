"""What `agents/show.py` says about a run, against what the run's own files say; and about runs that are torn."""

import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import fastsac, fasttd3, ppo, pqn, show
from agents.run import Run

ROOT = Path(__file__).resolve().parents[1]
TINY = "--device cpu --size small --num-envs 4 --eval-envs 2 --total-timesteps 80 --log-every 40 --eval-every 40"
TINY += " --save-every 40 --critic-hidden 16 16 --sem --sem-critic-groups 4 --sem-critic-vertices 4 --amp off"
TINY += " --threads 1 --quiet"
ACTOR = "--env-id PointMass-v0 --actor-hidden 16 16 --sem-actor-groups 2 --sem-actor-vertices 8"
ON_POLICY = "--num-steps 10 --num-minibatches 4 --update-epochs 2"
OFF_POLICY = f"{ACTOR} --learning-starts 8 --batch-size 32 --buffer-size 160 --num-updates 1 --atoms 11"
KINDS: dict[str, tuple[ModuleType, str]] = {
    "fasttd3": (fasttd3, OFF_POLICY),
    "fastsac": (fastsac, OFF_POLICY),
    "ppo": (ppo, f"{ACTOR} {ON_POLICY}"),
    "pqn": (pqn, f"--env-id ClosedFormDiscrete-v0 {ON_POLICY}"),
}
SECTIONS = (
    *("Worth a look", "Settings that are not defaults", "Evaluation", "Where the time went", "Diagnostics", "Health"),
    *("Checkpoints", "Machine and code"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each agent."""
    root = tmp_path_factory.mktemp("trained")
    for kind, (module, words) in KINDS.items():
        assert module.main([*TINY.split(), *words.split(), "--run-dir", str(root / kind)]) == 0
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def run_dir(trained: dict[str, Path], tmp_path: Path) -> Path:
    """One of them, to be damaged."""
    return Path(shutil.copytree(trained["fasttd3"], tmp_path / "run"))


def shown(capsys: pytest.CaptureFixture[str], *paths: Path) -> str:
    """What the program prints."""
    capsys.readouterr()
    assert show.main([str(path) for path in paths]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def section(text: str, title: str) -> list[str]:
    """Lines below a title."""
    _, _, rest = text.partition(f"\n{title}\n{'-' * len(title)}\n")
    assert rest, f"there is no section {title}"
    return rest.partition("\n\n")[0].rstrip("\n").split("\n")


def table(lines: list[str]) -> list[list[str]]:
    """Cells of the rows below the head."""
    return [re.split(r"  +", line.strip()) for line in lines[1:]]


def metrics(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    with open(run_dir / "metrics.csv", newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["metric"], []).append((int(row["step"]), float(row["value"])))
    return found


def contents(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_rows(run_dir: Path, *rows: tuple[str, int, float]) -> None:
    with open(run_dir / "metrics.csv", "a") as file:
        file.writelines(f"fasttd3,PointMass-v0,1,{tag},{step},9.0,{value}\n" for tag, step, value in rows)


def test_the_setting_of_sem_in_words() -> None:
    shape = {"sem_actor": True, "sem_critic": False, "sem_actor_groups": 2, "sem_actor_vertices": 8}
    on = {**shape, "sem": True, "sem_temperature": 0.5}
    assert show.sem(on) == show.sem({**on, "bottleneck": "sem"}) == "actor L=2 V=8, temperature 0.5"
    assert show.sem({**on, "sem_learned_temperature": True}) == "actor L=2 V=8, temperature 0.5, learned"
    moving = {**on, "sem_temperature_end": 2.0, "sem_position": "input"}
    assert show.sem(moving) == "actor L=2 V=8, temperature 0.5 to 2.0, in the first layer"
    assert show.sem({**shape, "sem": False, "bottleneck": "vq"}) == "off, vq instead: actor L=2 V=8"
    assert show.sem({**shape, "sem": False, "bottleneck": "relu"}) == show.sem({**shape, "sem": False}) == "off"
    assert show.sem({}) == "unknown"


# ---- a run that is done ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_done(kind: str, trained: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, (module, _) = trained[kind], KINDS[kind]
    before = contents(run_dir)
    out = shown(capsys, run_dir)
    assert contents(run_dir) == before
    assert [title for title in SECTIONS if section(out, title)] == list(SECTIONS)
    assert re.search(r"^state +done: 80 of 80 frames in \d", out, re.MULTILINE)
    task = "ClosedFormDiscrete-v0" if kind == "pqn" else "PointMass-v0"
    assert re.search(rf"^agent +{kind} \({kind}\) on {task}, seed 1, 4 environments$", out, re.MULTILINE)
    actor = "" if kind == "pqn" else "actor L=2 V=8, "
    assert f"SEM    {actor}critics L=4 V=4, temperature 1.0\n" in out

    # Settings: exactly those that are no defaults, or not what the presets say; computed by another way.
    saved = {
        name: tuple(x) if isinstance(x, list) else x
        for name, x in json.loads((run_dir / "config.json").read_text()).items()
    }
    defaults = asdict(module.Args())
    preset = dict(
        pair
        for _, overrides in module.presets(module.Args(env_id="PointMass-v0", size="small"))
        for pair in overrides.items()
    )
    base = {**defaults, **preset}
    expected = {
        name: "given" if saved[name] != base[name] else "preset"
        for name in saved.keys() - set(show.WHERE)
        if saved[name] != base[name] or saved[name] != defaults[name]
    }
    rows = table(section(out, "Settings that are not defaults"))
    got = {row[0]: "given" if row[3].startswith(("flag", "chosen")) else row[3].partition(" ")[0] for row in rows}
    assert got == expected
    assert {row[0]: row[3] for row in rows}["threads"] == "flag"
    assert {"given", "preset"} <= set(got.values())

    # Results.
    values = metrics(run_dir)
    curve = values["eval/episodic_return"]
    best = max(curve, key=lambda point: point[1])
    evaluation = {row[0]: row[1:] for row in table(section(out, "Evaluation"))}
    for word, (step, value) in (("first", curve[0]), ("best", best), ("last", curve[-1])):
        assert evaluation[word][0] == str(step) and float(evaluation[word][1]) == pytest.approx(value, rel=1e-3)
    assert f"{curve[-1][1]:.2f} ± " in out
    diagnostics = {row[0]: row[1:] for row in table(section(out, "Diagnostics"))}
    plain = {tag for tag in values if not tag.startswith(("time/", "eval/", "health/"))}
    assert diagnostics.keys() == plain and any(tag.startswith("losses/") for tag in plain)
    for tag in plain:
        first, latest, step = diagnostics[tag]
        assert float(first.replace(",", "")) == pytest.approx(values[tag][0][1], rel=1e-3, abs=1e-9)
        assert float(latest.replace(",", "")) == pytest.approx(values[tag][-1][1], rel=1e-3, abs=1e-9)
        assert int(step) == values[tag][-1][0]
    assert table(section(out, "Health")) == [["health/nonfinite_transitions", "0", "0", "never"]]

    # Time: all parts, the largest first, shares of what was logged.
    seconds = {tag[5:]: math.fsum(x for _, x in points) for tag, points in values.items() if tag.startswith("time/")}
    *parts, rest = table(section(out, "Where the time went")[:-1])
    assert rest[0] == "not logged" and [row[0] for row in parts] == sorted(seconds, key=lambda name: -seconds[name])
    for name, _, share in parts:
        assert float(share[:-1]) == pytest.approx(100 * seconds[name] / sum(seconds.values()), abs=0.051)

    checkpoints = table(section(out, "Checkpoints"))
    assert [(row[0], row[2]) for row in checkpoints] == [("step_000000000080", "good"), ("step_000000000040", "good")]
    machine = "\n".join(section(out, "Machine and code"))
    record = json.loads((run_dir / "manifest.json").read_text())
    assert f"torch {record['versions']['torch']}" in machine and str(record["hardware"]["cpu"]) in machine
    assert str(run_dir) not in "\n".join(section(out, "Worth a look"))  # nothing to resume


def test_evaluations_pick_first_best_and_last(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "metrics.csv").write_text("exp_name,env_id,seed,metric,step,wall_s,value\n")
    for step, value in ((10, 3.0), (20, math.nan), (30, 12_345.0), (40, 7.5)):
        add_rows(run_dir, ("eval/episodic_return", step, value), ("eval/success_rate", step, step / 100))
    rows = {row[0]: row[1:] for row in table(section(shown(capsys, run_dir), "Evaluation"))}
    assert rows == {"first": ["10", "3", "0.1"], "best": ["30", "12,345", "0.3"], "last": ["40", "7.5", "0.4"]}


# ---- where a setting comes from --------------------------------------------------------------------------------------


def record_of(**values: Any) -> show.Record:
    """A run by its files, of FastTD3 at small size on PointMass-v0."""
    args = fasttd3.Args(env_id="PointMass-v0", size="small", device="cpu")
    base = {**asdict(args), **{k: v for _, some in fasttd3.presets(args) for k, v in some.items()}, "amp": "off"}
    manifest = {"agent": "fasttd3", "argv": values.pop("argv", []), "resumes": values.pop("resumes", [])}
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in {**base, **values}.items()}
    return show.Record(Path("x"), listed, manifest, {}, {}, {}, alive=False)


def origin(record: show.Record, name: str) -> str | None:
    return {row[0]: row[3] for row in show.origins(record)}.get(name)


def test_where_settings_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ("any task", ("*",), "small", {"tau": 0.02, "actor_hidden": (256, 128), "total_timesteps": 120_000})
    monkeypatch.setattr(fasttd3, "PRESETS", (row,))
    record = record_of()
    assert origin(record, "gamma") is None and origin(record, "noise_clip") is None  # defaults
    assert origin(record, "tau") == "preset any task"
    assert origin(record, "size") == "preset size small"
    assert origin(record, "device") == "chosen" and origin(record, "amp") == "chosen"  # the default is auto
    assert origin(record_of(gamma=0.9), "gamma") == "flag"
    assert origin(record_of(tau=0.5), "tau") == "flag (preset any task: 0.02)"
    assert origin(record_of(tau=fasttd3.Args.tau), "tau") == "flag (preset any task: 0.02)"  # back to the default
    assert origin(record_of(actor_hidden=(8, 8)), "actor_hidden") == "flag (preset any task: 256 128)"
    for words in (["--amp", "off"], ["--amp=off"]):
        assert origin(record_of(argv=["agents/fasttd3.py", *words]), "amp") == "flag"
    resumed = record_of(total_timesteps=7, resumes=[{"changed": {"total_timesteps": 7}}])
    assert origin(resumed, "total_timesteps") == "resume (preset any task: 120,000)"
    assert origin(record_of(new_setting=3), "new_setting") == "another version"
    old = record_of()
    del old.config["gamma"]
    assert ("gamma", "not set", 0.99, "another version") in show.origins(old)
    assert [row[3].startswith("flag") for row in show.origins(record_of(tau=0.5, gamma=0.9))][:2] == [True, True]


def test_a_run_of_a_gpu_is_shown_where_there_is_none(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(run_dir / "config.json", device="cuda:7", size="reference", tau=0.0625)
    rows = {row[0]: row[1:] for row in table(section(shown(capsys, run_dir), "Settings that are not defaults"))}
    assert rows["device"][0] == "cuda:7" and rows["tau"] == ["0.0625", show.short(fasttd3.Args.tau), "flag"]


def test_a_run_of_another_program_shows_its_settings(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("my_agent", "os", "show", "../fasttd3", 5, None):
        edit(run_dir / "manifest.json", agent=name, argv=["elsewhere/my_agent.py"])
        lines = section(shown(capsys, run_dir), "Settings that are not defaults")
        assert "defaults" in lines[0] and ["gamma", "0.99"] in table(lines[1:])


# ---- how a run stands ------------------------------------------------------------------------------------------------


def state_of(text: str) -> str:
    found = re.search(r"^state +(.*)$", text, re.MULTILINE)
    assert found
    return found.group(1)


def test_states(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run.resume(
        run_dir, fasttd3.Args, overrides={"total_timesteps": 160}, mutable=fasttd3.MUTABLE, quiet=True
    ) as run:
        out = shown(capsys, run_dir)
        assert re.match(r"training now, process \d+, heard of 0:0\d ago: 80 of 160 frames", state_of(out))
        assert "--resume" not in "\n".join(section(out, "Worth a look"))
        running = (run_dir / "status.json").read_text()
        run.finish("interrupted", "SIGTERM")
    out = shown(capsys, run_dir)
    assert state_of(out).startswith("interrupted (SIGTERM): 80 of 160 frames")
    advice = f"* python agents/fasttd3.py --resume {run_dir} continues from step_000000000080"
    assert advice in section(out, "Worth a look")
    assert any(line.startswith("resumed") and "total_timesteps 160" in line for line in out.splitlines())
    (run_dir / "status.json").write_text(running)  # a process that was killed says nothing else
    out = shown(capsys, run_dir)
    assert state_of(out).startswith("killed") and advice in section(out, "Worth a look")
    with pytest.raises(RuntimeError), Run.resume(run_dir, fasttd3.Args, quiet=True):
        raise RuntimeError("boom")
    assert state_of(shown(capsys, run_dir)).startswith("failed (RuntimeError: boom)")
    shutil.rmtree(run_dir / "checkpoints")
    assert "* there is no checkpoint to continue from" in section(shown(capsys, run_dir), "Worth a look")


def test_to_look_at_a_run_does_not_hold_it(run_dir: Path) -> None:
    record = show.read_run(run_dir)
    assert not record.alive
    with Run.resume(
        run_dir, fasttd3.Args, overrides={"total_timesteps": 160}, mutable=fasttd3.MUTABLE, quiet=True
    ) as run:
        assert show.read_run(run_dir).alive
        run.finish("interrupted")


# ---- torn runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["config.json", "manifest.json", "status.json", "result.json", "metrics.csv"])
def test_a_file_that_is_missing_or_torn_is_named_and_the_rest_is_shown(
    file: str, run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (run_dir / file).read_bytes()
    for content in (
        None,
        b"",
        whole[: len(whole) // 2 + 3].rstrip(b"\n"),  # within a row
        b"\xff\xfe\x00junk",
        whole[:10] + b"\x00" * 50 + whole[60:],
    ):
        if content is None:
            (run_dir / file).unlink()
        else:
            (run_dir / file).write_bytes(content)
        out = shown(capsys, run_dir)
        assert [title for title in SECTIONS if section(out, title)] == list(SECTIONS)
        looks = "\n".join(section(out, "Worth a look"))
        assert (
            file in looks
            or (content is None and file == "result.json")
            or (file, content or b"") == ("metrics.csv", b"")
        )
        assert shown(capsys, run_dir, run_dir)


def test_a_number_that_is_cut_is_no_number(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_rows(run_dir, ("losses/probe", 80, 1.5), ("losses/probe", 84, 2.5), ("losses/probe", 88, 31.25))
    path = run_dir / "metrics.csv"
    path.write_bytes(path.read_bytes()[: -len(".25\n")])  # 31 is left
    record = show.read_run(run_dir)
    assert [point.value for point in record.metrics["losses/probe"]] == [1.5, 2.5]
    assert record.problems == ["metrics.csv has 1 rows that cannot be read; they are left out"]


def test_rows_that_cannot_be_read_are_counted(run_dir: Path) -> None:
    with open(run_dir / "metrics.csv", "a") as file:
        file.write("a,b,1,losses/probe,8\n,,,,,,\na,b,1,losses/probe,x,0,1\n\na,b,1,losses/probe,8,0.5,nan\n")
        file.write(f"a,b,1,losses/probe,{'9' * 200_000},0,1\na,b,1,losses/probe,9,0.5,4\n")
    metrics_of, torn = show.read_metrics(run_dir / "metrics.csv")
    assert torn == 5 and [point.step for point in metrics_of["losses/probe"]] == [8, 9]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3),
    max_leaves=6,
)
KEYS = {
    "config.json": ("env_id", "sem", "num_envs", "device", "total_timesteps", "actor_hidden", "size", "gamma"),
    "manifest.json": ("agent", "argv", "git", "versions", "hardware", "torch", "resumes", "presets", "time"),
    "status.json": ("state", "step", "wall_s", "why", "pid", "time", "total_timesteps"),
}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_the_files_say_there_is_no_traceback(data: st.DataObject, trained: dict[str, Path]) -> None:
    record = show.read_run(trained["fasttd3"])
    for content, keys in zip((record.config, record.manifest, record.status), KEYS.values(), strict=True):
        for key in data.draw(st.lists(st.sampled_from(keys), max_size=2)):
            content[key] = data.draw(JSON)
    assert show.one_run(record) and show.two_runs(record, show.read_run(trained["ppo"]))


def test_damaged_checkpoints_are_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = run_dir / "checkpoints" / "step_000000000080" / "agent.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    (run_dir / "checkpoints" / ".tmp-step_000000000120").mkdir()
    (run_dir / "checkpoints" / "step_000000000020.damaged").mkdir()
    out = shown(capsys, run_dir)
    assert [(row[0], row[2]) for row in table(section(out, "Checkpoints"))] == [
        ("step_000000000080", "is damaged: agent.pt is not what was written"),
        ("step_000000000040", "good"),
        ("step_000000000020.damaged", "set aside as damaged"),
        (".tmp-step_000000000120", "half written or half deleted"),
    ]
    line = "* damaged checkpoints: step_000000000080; step_000000000040 is the newest good one"
    assert line in section(out, "Worth a look")


# ---- what deserves a look --------------------------------------------------------------------------------------------


def test_remarks(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm = section(shown(capsys, run_dir), "Worth a look")
    add_rows(
        run_dir,
        *(("losses/qf_loss", 84, math.nan), ("losses/qf_loss", 88, 1.0), ("losses/actor_loss", 84, -math.inf)),
        *(("health/nonfinite_transitions", 84, 2), ("health/nonfinite_transitions", 88, 3)),
        *(("critic/target_mass_above", 88, 0.25), ("sem/critic_entropy", 88, 0.01), ("sem/actor_entropy", 88, 0.999)),
        *(("eval/episodic_return", 88, 1.0), ("eval/unfinished", 88, 2), ("eval/nonfinite", 88, 1)),
    )
    record = json.loads((run_dir / "manifest.json").read_text())
    then = record["versions"]
    edit(run_dir / "manifest.json", git={"revision": "f" * 40, "dirty": True})
    edit(run_dir / "manifest.json", resumes=[{"step": 40, "versions": {**then, "torch": "9.9"}}])
    out = shown(capsys, run_dir)
    new = [line for line in section(out, "Worth a look") if line not in calm]
    assert {
        "* losses/qf_loss was nan at 84 frames, again finite since",
        "* losses/actor_loss was -inf at 84 frames, and still is",
        "* critic/target_mass_above is 0.25: part of the target lies outside of --v-min and --v-max",
        "* sem/actor_entropy is 0.999: the embedding says next to nothing about its input",
        "* 2 episodes of the last evaluation had no end",
        "* 1 episodes of the last evaluation were spoilt by the simulator",
        f"* resumed at 40 frames with other versions: torch {then['torch']} -> 9.9",
    } <= set(new)
    assert any(line.startswith("* sem/critic_entropy is 0.01: each group") for line in new)
    assert any(re.match(r"\* health/nonfinite_transitions is above 0 in 2 of \d+ intervals", line) for line in new)
    assert "* it was trained from a checkout with changes that are in no commit" in section(out, "Worth a look")
    assert table(section(out, "Health")) == [["health/nonfinite_transitions", "5", "3", "88"]]
    assert "code      ffffffffffff with changes" in out


# ---- two runs --------------------------------------------------------------------------------------------------------


def test_two_runs(trained: dict[str, Path], run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = shown(capsys, trained["fasttd3"], run_dir)
    assert section(same, "Settings that differ") == ["nothing"]
    assert section(same, "Machine and code that differ") == ["nothing"]
    edit(run_dir / "config.json", seed=2, gamma=0.9, actor_hidden=[8, 8], quiet=False, run_root="elsewhere", extra=1)
    versions = json.loads((run_dir / "manifest.json").read_text())["versions"]
    edit(run_dir / "manifest.json", versions={**versions, "torch": "0.4"})
    add_rows(run_dir, ("eval/episodic_return", 84, 5.0))
    out = shown(capsys, trained["fasttd3"], run_dir)
    *rows, alone = section(out, "Settings that differ")
    assert sorted(table(rows)) == [["actor_hidden", "16 16", "8 8"], ["gamma", "0.99", "0.9"], ["seed", "1", "2"]]
    assert alone == "only B has extra"
    assert table(section(out, "Machine and code that differ")) == [["torch", versions["torch"], "0.4"]]
    curve = dict(metrics(trained["fasttd3"])["eval/episodic_return"])
    points = table(section(out, "Return of the evaluations that both have"))
    assert [row[0] for row in points] == ["40", "80"] and [row[3] for row in points] == ["+0", "+0"]
    assert [float(row[1]) for row in points] == pytest.approx(list(curve.values()), rel=1e-3)
    results = {row[0]: row[1:] for row in table(section(out, "Results"))}
    assert results["last evaluation"][1] == "5.00 ± nan at 84 frames" and results["frames"] == ["80", "84"]


def test_two_agents_have_settings_of_their_own(trained: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, trained["fasttd3"], trained["ppo"])
    lines = section(out, "Settings that differ")
    assert any(line.startswith("only A has") and "policy_noise" in line for line in lines)
    assert any(line.startswith("only B has") and "gae_lambda" in line for line in lines)
    points = {row[0]: row[1:] for row in table(section(out, "Return of the evaluations that both have"))}
    here, there = (dict(metrics(trained[kind])["eval/episodic_return"]) for kind in ("fasttd3", "ppo"))
    for step in (40, 80):
        assert float(points[str(step)][2]) == pytest.approx(there[step] - here[step], rel=2e-3)


def test_long_curves_are_thinned_and_keep_their_ends(run_dir: Path) -> None:
    add_rows(run_dir, *(("eval/episodic_return", step, step / 2) for step in range(1_000, 1_100)))
    record = show.read_run(run_dir)
    points = show.curves(record, record)
    assert len(points) == 10 and points[0][0] == "40" and points[-1][:3] == ("1,099", "549.5", "549.5")


# ---- the program -----------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, expected in (
        ([], "missing RUN_DIR"),
        ([tmp_path / "nowhere"], "is no directory"),
        ([run_dir / "config.json"], "is no directory"),
        ([tmp_path / "empty"], "holds no run"),
        ([run_dir, tmp_path / "empty"], "holds no run"),
        ([run_dir, run_dir, run_dir], "unexpected argument"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            show.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "" and err.count("\n") == 1 and expected in err, words


def test_numbers_are_short() -> None:
    values = (1_200_000, 3e-4, 0.99, 120_000.0, 1234.5, True, None, [256, 128], (), "auto", math.nan, 10**30, -2)
    assert [show.short(value) for value in values] == [
        *("1,200,000", "0.0003", "0.99", "120,000", "1234", "on", "none", "256 128", "none", "auto", "nan"),
        f"{10**30:,}",
        "-2",
    ]


@pytest.mark.parametrize("verb", ["play", "show"])
def test_as_users_run_it(verb: str, run_dir: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "agents" / f"{verb}.py"), str(run_dir)],
        capture_output=True,
        text=True,
        cwd=run_dir.parent,
        timeout=120,
    )
    assert done.returncode == 0 and done.stderr == "" and "PointMass-v0" in done.stdout
