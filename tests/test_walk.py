"""A new user's walk in its short form, with real processes; and that what does not work is named."""

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import walk

ROOT = Path(__file__).resolve().parents[1]


def git(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *identity, *words], cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
def test_the_way_from_a_clone_to_curves_beside_a_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if git("rev-parse", "HEAD").returncode:
        pytest.skip("this is no git repository")
    status = walk.main([str(tmp_path / "user"), "--short"])
    said = capsys.readouterr()
    assert status == 0, said.err
    rows = [line.split(" | ")[0].removeprefix("| ") for line in said.out.splitlines() if line.startswith("| ")]
    assert len(rows) == 13 and rows[1] == "clone" and rows[-2:] == ["TensorBoard, the report", "all"]


def repository(folder: Path, readme: str, makefile: str) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(readme)
    (folder / "Makefile").write_text(makefile)
    assert git("init", "--quiet", cwd=folder).returncode == git("add", ".", cwd=folder).returncode == 0
    assert git("commit", "--quiet", "-m", "all", cwd=folder).returncode == 0
    return folder


RUN = "a__fasttd3__1__20260101-000000"
TRAINED = f'train:\n\t@mkdir -p runs/{RUN}\n\t@echo \'{{"state": "%s"}}\' > runs/{RUN}/status.json\n'
TRAINED += f"\t@echo 'run directory     runs/{RUN}'\n"


@pytest.mark.parametrize(
    ("readme", "makefile", "message"),
    [
        ("nothing\n", "", "train with SEM: README.md does not say `make train`"),
        ("make train\n", "", "README.md does not say"),  # in the prose
        ("```\nmake train   # all\n```\n", "train:\n\t@echo of the past && exit 3\n", "exit status 2\nof the past"),
        ("```\nmake train\n```\n", "train:\n\t@echo fine\n", "does not name the run directory"),
        ("```\nmake train\n```\n", TRAINED % "failed", "the run is failed, not done"),
        ("```\nmake train\n```\n", TRAINED % "done", "metrics.csv"),
    ],
)
def test_what_does_not_work_is_named(
    readme: str, makefile: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(walk, "HERE", repository(tmp_path / "theirs", readme, makefile))
    assert walk.main([str(tmp_path / "user"), "--short"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: set up, train with SEM: ") and message in said


def test_a_folder_that_is_not_empty_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (ROOT, Path(__file__)):
        assert walk.main([str(folder)]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and "empty" in said


CURVES = {"a": [(640, 1.0), (1280, 2.0)], "b": [(640, 3.0), (1280, 4.0)]}


def two_runs(folder: Path) -> walk.Walk:
    at = walk.Walk(folder, short=True)
    at.names = {"RUN_DIR": "a", "OTHER_RUN_DIR": "b"}
    for run, points in CURVES.items():
        (at.clone / "runs" / run).mkdir(parents=True)
        with open(at.clone / "runs" / run / "metrics.csv", "w", newline="") as file:
            csv.writer(file).writerows([("metric", "step", "value"), *((walk.RETURN, *point) for point in points)])
    return at


def server(curves: dict[str, list[tuple[int, float]]], films: dict[str, Any]) -> Callable[..., Any]:
    def ask(page: str, run: str = "", tag: str = "") -> Any:
        return films if page == "images/tags" else [(0.0, *point) for point in curves[run]]

    return ask


def test_tensorboard_must_have_both_curves_and_the_film(tmp_path: Path) -> None:
    at, films = two_runs(tmp_path), {"a": {"film": {}}}
    walk.curves_of_runs(at, server(CURVES, films))
    for curves in (CURVES | {"b": CURVES["b"][:1]}, CURVES | {"b": []}, CURVES | {"a": [(640, 1.0), (1280, 2.5)]}):
        with pytest.raises(walk.Stumble, match=r"TensorBoard's eval/episodic_return is .*, metrics.csv has"):
            walk.curves_of_runs(at, server(curves, films))
    with pytest.raises(walk.Stumble, match="no film"):
        walk.curves_of_runs(at, server(CURVES, {"b": {"film": {}}}))


def test_the_report_must_have_both_variants(tmp_path: Path) -> None:
    tags = {"fasttd3": {"task/mean": {}}, "plain": {"task/mean": {}}}
    walk.curves_of_report(two_runs(tmp_path), lambda _: tags)
    with pytest.raises(walk.Stumble, match="no mean of plain"):
        walk.curves_of_report(two_runs(tmp_path / "again"), lambda _: {**tags, "plain": {"task/low": {}}})


def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    at = two_runs(tmp_path)
    at.logs.mkdir()
    at.readme = {"false --logdir runs"}
    with pytest.raises(walk.Stumble, match="`false --logdir runs --port 0` ended with exit status 1"):
        walk.look(at, "false --logdir runs", walk.curves_of_runs)
