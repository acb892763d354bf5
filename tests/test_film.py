"""Films while an agent trains: of its evaluations, without a trace in what it learns, or refused before it starts."""

import csv
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import envs
from agents import fastsac, fasttd3, film, ppo
from agents.checkpoint import newest_checkpoint
from agents.episodes import evaluate
from agents.run import Run

TINY = "--device cpu --size small --num-envs 4 --eval-envs 2 --total-timesteps 120 --log-every 40 --eval-every 40"
TINY += " --save-every 40 --actor-hidden 8 8 --critic-hidden 8 8 --threads 1 --amp off --quiet"
LEARNER = " --env-id PointMass-v0 --learning-starts 4 --batch-size 8 --buffer-size 400 --num-updates 1 --atoms 5"
ROLLOUTS = " --num-steps 10 --num-minibatches 2 --update-epochs 1"
KINDS: dict[str, tuple[ModuleType, str]] = {
    "fasttd3": (fasttd3, TINY + LEARNER),
    "fastsac": (fastsac, TINY + LEARNER),
    "ppo": (ppo, f"{TINY}{ROLLOUTS} --env-id PointMassPrivileged-v0"),
    "ppo-images": (ppo, f"{TINY}{ROLLOUTS} --env-id Pixels-v0 --eval-sample"),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def train(kind: str, run_dir: Path, words: str = "") -> Path:
    module, tiny = KINDS[kind]
    assert module.main([*tiny.split(), *words.split(), "--run-dir", str(run_dir)]) == 0
    return run_dir


def rows(run_dir: Path) -> list[tuple[str, ...]]:
    """What was measured, without what depends on the clock."""
    with open(run_dir / "metrics.csv", newline="") as file:
        found = [(r["metric"], r["step"], r["value"]) for r in csv.DictReader(file)]
    return [row for row in found if not row[0].startswith(("time/", "charts/SPS"))]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a.nan_to_num(), b.nan_to_num())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b or a != a)


def images(run_dir: Path) -> list[Any]:
    accumulator = EventAccumulator(str(run_dir), size_guidance={"images": 0})
    accumulator.Reload()
    return accumulator.Images("eval/episode")


@every_kind
def test_films_of_evaluations_leave_training_as_it_is(kind: str, tmp_path: Path) -> None:
    plain, filmed = train(kind, tmp_path / "plain"), train(kind, tmp_path / "filmed", "--video-every 80")
    assert rows(plain) == rows(filmed)
    ours, theirs = (newest_checkpoint(path)[0] for path in (filmed, plain))
    for name in (file.removesuffix(".pt") for file in theirs.meta["sha256"]):
        assert same(theirs.load(name), ours.load(name)), name
    assert not (plain / "videos").exists()
    files = {path.name for path in (filmed / "videos").iterdir()}
    assert files == {f"eval-step-{step}.{suffix}" for step in (80, 120) for suffix in ("mp4", "gif")}  # and at the end
    events = images(filmed)
    assert [event.step for event in events] == [80, 120]
    for event in events:
        gif = (filmed / "videos" / f"eval-step-{event.step}.gif").read_bytes()
        assert event.encoded_image_string == gif and gif[:3] == b"GIF"
    assert len(list(filmed.rglob("events.out.*"))) == 1, "TensorBoard reads one file of a run to its end"


def test_a_resumed_run_films_again_what_it_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("fasttd3", tmp_path / "whole", "--video-every 40 --save-every 60")
    progress = Run.progress

    def fail(run: Run, step: int) -> None:
        progress(run, step)
        if step == 100:
            raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Run, "progress", fail)
        train("fasttd3", tmp_path / "parts", "--video-every 40 --save-every 60")
    assert fasttd3.main(["--resume", str(tmp_path / "parts"), "--quiet"]) == 0
    assert [event.step for event in images(tmp_path / "parts")] == [40, 80, 120]
    for path in (whole / "videos").glob("*.gif"):
        assert (tmp_path / "parts" / "videos" / path.name).read_bytes() == path.read_bytes()


def test_pictures_are_of_what_the_policy_acts_on() -> None:
    env = envs.make("PointMass-v0", 3, seed=1, max_episode_steps=9)
    took: list[Tensor] = []
    shots = film.Film(env)
    shots.shoot = lambda obs, critic_obs: took.append(obs.clone())  # type: ignore[method-assign]
    acted: list[Tensor] = []

    def policy(obs: Tensor) -> Tensor:
        acted.append(obs[0].clone())
        return torch.zeros(3, 2)

    score = evaluate(policy, film.Filmed(env, shots), seed=4)
    assert score == evaluate(lambda obs: torch.zeros(3, 2), env, seed=4)
    assert len(took) == len(acted) and all(map(torch.equal, took, acted))
    assert shots._over


def refused(kind: str, words: str, root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    module, tiny = KINDS[kind]
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        module.main([*tiny.split(), *words.split(), "--run-root", str(root)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    assert not root.exists()
    return err


@pytest.mark.parametrize("kind", ["fasttd3", "fastsac", "ppo"])
def test_what_cannot_be_filmed_is_refused_before_training(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    for words, said in (
        ("--video-every 60", "--video-every 60: must be a multiple of --eval-every 40"),
        ("--video-every 40 --eval-every 0", "must be a multiple of --eval-every 0"),
        ("--video-every -40", "--video-every -40: must be 0 or above"),
        ("--video-every 40 --env-id ClosedForm-v0", "a film of ClosedForm-v0 by torch is not possible: its state is a"),
    ):
        assert said in refused(kind, words, root, capsys)
    for module, package in (("imageio_ffmpeg", "imageio-ffmpeg"), ("PIL.Image", "pillow")):
        with monkeypatch.context() as patch:
            patch.setitem(film.sys.modules, module, None)
            err = refused(kind, "--video-every 40", root, capsys)
            assert f"{module} is missing: pip install {package}" in err

    def broken(*_: Any) -> None:
        raise RuntimeError("no\nEGL")

    monkeypatch.setattr(film, "draw_point_mass", broken)
    assert "is not possible: no EGL" in refused(kind, "--video-every 40", root, capsys)


def test_gymnasium_is_told_when_it_is_made(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    words = "--env-id CartPole-v1 --backend gymnasium --video-every 120 --eval-every 120 --eval-envs 1"
    run_dir = train("ppo", tmp_path / "run", words)
    assert [event.step for event in images(run_dir)] == [120]
    plain = train("ppo", tmp_path / "plain", words.replace("--video-every 120", ""))
    assert rows(run_dir) == rows(plain)
