"""Playing a run: the same episodes as its own evaluation, whatever shape the run is in, and films that show them."""

import csv
import hashlib
import importlib
import importlib.util
import io
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from ctypes.util import find_library
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import envs
from agents import fastsac, fasttd3, play, ppo, pqn
from agents import film as films
from agents.checkpoint import seal
from agents.episodes import evaluate
from agents.run import Run
from agents.trained import RATES, find_checkpoint, load_agent, look_up, settings
from envs import pictures
from envs.base import VecEnv
from envs.families import DMC

ROOT = Path(__file__).resolve().parents[1]
TINY = "--device cpu --size small --num-envs 4 --eval-envs 3 --total-timesteps 80 --log-every 0 --eval-every 40"
TINY += " --save-every 40 --critic-hidden 16 16 --sem --sem-critic-groups 4 --sem-critic-vertices 4 --amp off"
TINY += " --threads 1 --quiet --reward-norm"
ACTOR = "--actor-hidden 16 16 --sem-actor-groups 2 --sem-actor-vertices 8"
OFF_POLICY = f"{ACTOR} --env-id PointMass-v0 --learning-starts 8 --batch-size 32 --buffer-size 160 --num-updates 2"
OFF_POLICY += " --atoms 11"
ON_POLICY = "--num-steps 10 --num-minibatches 4 --update-epochs 2 --learning-rate 3e-3"
KINDS: dict[str, tuple[ModuleType, str]] = {
    "fasttd3": (fasttd3, OFF_POLICY),
    "fastsac": (fastsac, OFF_POLICY),
    "ppo": (ppo, f"{ACTOR} {ON_POLICY} --env-id PointMassPrivileged-v0"),
    "ppo-discrete": (ppo, f"{ACTOR} {ON_POLICY} --env-id ClosedFormDiscrete-v0"),
    "ppo-sampled": (ppo, f"{ACTOR} {ON_POLICY} --env-id PointMass-v0 --eval-sample"),
    "pqn": (pqn, f"{ON_POLICY} --env-id ClosedFormDiscrete-v0 --epsilon-end 0.2"),
    "pqn-straying": (pqn, f"{ON_POLICY} --env-id ClosedFormDiscrete-v0 --eval-epsilon 0.5"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each kind, with a checkpoint at 40 and at 80 frames, and an evaluation at both."""
    root = tmp_path_factory.mktemp("trained")
    for kind, (module, words) in KINDS.items():
        assert module.main([*TINY.split(), *words.split(), "--run-dir", str(root / kind)]) == 0
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def run_dir(trained: dict[str, Path], tmp_path: Path) -> Path:
    """One of them, to be damaged."""
    return Path(shutil.copytree(trained["fasttd3"], tmp_path / "run"))


def metric(run_dir: Path, name: str) -> dict[int, float]:
    with open(run_dir / "metrics.csv", newline="") as file:
        return {int(r["step"]): float(r["value"]) for r in csv.DictReader(file) if r["metric"] == name}


def played(run_dir: Path, *words: str) -> list[dict[str, str]]:
    """Rows of the table that a command line gives."""
    path = run_dir.parent / "played.csv"
    assert play.main([str(run_dir), "--csv", str(path), *words]) == 0
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def returns(rows: list[dict[str, str]]) -> np.ndarray:
    return np.array([float(row["return"]) for row in rows])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that bad input gives."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        play.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def spoil(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- the run's own evaluation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_played_is_the_evaluation_of_the_run(
    kind: str, trained: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = trained[kind]
    before = contents(run_dir)
    path = tmp_path / "episodes.csv"
    means = {}
    for step, words in ((80, []), (40, ["--step", "40"])):
        assert play.main([str(run_dir), "--csv", str(path), *words]) == 0
        out = capsys.readouterr().out
        with open(path, newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(r["policy"], r["step"], r["seed"]) for r in rows} == {("trained", str(step), "1")}
        assert len(rows) == 3 and f"{kind.partition('-')[0]} after {step} frames" in out
        means[step] = returns(rows).mean()
        for name, value in (
            ("episodic_return", means[step]),
            ("episodic_return_std", returns(rows).std()),
            ("episodic_return_max", returns(rows).max()),
            ("episodic_length", np.mean([float(r["length"]) for r in rows])),
        ):
            assert value == pytest.approx(metric(run_dir, f"eval/{name}")[step], rel=1e-12, abs=1e-12)
        assert re.search(rf"^mean +{means[step]:.2f} ", out, re.MULTILINE)
        assert re.search(rf"^std +{returns(rows).std():.2f} ", out, re.MULTILINE)
    # Else a wrong checkpoint would not be noticed; the most likely of three actions is the same after so few updates.
    assert means[40] != means[80] or kind in ("ppo-discrete", "pqn", "pqn-straying")
    assert contents(run_dir) == before


def test_other_seeds_are_other_episodes_and_more_are_more(trained: dict[str, Path]) -> None:
    run_dir = trained["fasttd3"]
    own, more, other = (returns(played(run_dir, *words.split())) for words in ("", "--episodes 5", "--seed 2"))
    assert len(more) == 5
    # PointMass draws for all of its environments at once; so 3 and 5 of them share nothing, and neither do two seeds.
    assert len({*own, *more, *other}) == 11
    assert np.array_equal(own, returns(played(run_dir, "--seed", "1", "--episodes", "3")))


def test_a_longer_and_a_shorter_episode(trained: dict[str, Path]) -> None:
    rows = played(trained["fasttd3"], "--max-steps", "7")
    assert {(r["length"], r["end"]) for r in rows} == {("7", "unfinished")}
    assert {(r["length"], r["end"]) for r in played(trained["fasttd3"])} == {("100", "time limit")}


# ---- one row per episode ---------------------------------------------------------------------------------------------


def still(env: VecEnv) -> play.Policy:
    return play.zero_policy(env)


def test_episodes_by_hand() -> None:
    env = envs.make("Scripted-v0", 5, seed=0, nan_at=(4, 0, 2))
    recorded = play.Recorded(env)
    score = evaluate(still(env), recorded, 0)
    # Rewards are 10,000 environment + 100 episode + step. The script: after 3, never, on the limit of 10, after 2.
    expected = [
        (6.0, 3, "terminated"),
        (100_055.0, 10, "time limit"),
        (200_055.0, 10, "terminated"),
        (60_003.0, 2, "terminated"),
        (40_001.0, 2, "spoilt"),
    ]
    episodes = recorded.episodes()
    assert [one[:3] for one in episodes] == expected
    assert all(one.success is None and one.success_end is None for one in episodes)
    counting = [one.returned for one in episodes if one.end != "spoilt"]
    assert score["episodic_return"] == np.mean(counting) and score["nonfinite"] == 1
    lines = play.table(episodes, score, env.task).splitlines()
    assert lines[0].split() == ["episode", "return", "length", "end"] and len(lines) == 8
    assert lines[-2].split() == ["mean", f"{np.mean(counting):.2f}", "6.2"]
    assert lines[-1].split() == ["std", f"{np.std(counting):.2f}", f"{np.std([3, 10, 10, 2]):.1f}"]


def test_cut_episodes_are_unfinished() -> None:
    env = envs.make("Scripted-v0", 4, seed=0)
    recorded = play.Recorded(env)
    evaluate(still(env), recorded, 0, max_steps=5)
    ends = [(one.length, one.end) for one in recorded.episodes()]
    assert ends == [(3, "terminated"), (5, "unfinished"), (5, "unfinished"), (2, "terminated")]


def test_success_at_any_step_and_at_the_last() -> None:
    def through_the_goal(obs: Tensor) -> Tensor:
        return (4 * (obs[:, 4:6] - obs[:, 0:2])).clamp(-1, 1)  # no brakes

    env = envs.make("PointMass-v0", 12, seed=3, max_episode_steps=16)
    recorded = play.Recorded(env)
    score = evaluate(through_the_goal, recorded, 5)
    near = []
    obs, _ = env.reset(5)
    for _ in range(16):
        step = env.step(through_the_goal(obs))
        near.append((step.next_obs[:, 0:2] - step.next_obs[:, 4:6]).norm(dim=1) < 0.1)
        obs = step.obs
    expected = list(zip(torch.stack(near).any(0).tolist(), near[-1].tolist(), strict=True))
    assert [(one.success, one.success_end) for one in recorded.episodes()] == expected
    assert len(set(expected)) == 3  # never, still, and not any more: all there is
    lines = play.table(recorded.episodes(), score, env.task).splitlines()
    assert lines[1 + expected.index((True, False))].split()[-2:] == ["yes", "no"]
    assert lines[-2].endswith(f"{score['success_end']:.0%}")


def test_human_normalised_scores_of_games() -> None:
    score = {"episodic_return_std": 0.0, "episodic_length": 1.0, "unfinished": 0.0}
    episode = play.Episode(14.6, 1, "terminated", None, None)
    last = play.table([episode], {**score, "episodic_return": 14.6}, "Pong-v5").splitlines()[-1]
    assert last.startswith("human") and "1.000" in last
    assert "human" not in play.table([episode], {**score, "episodic_return": 14.6, "unfinished": 1.0}, "Pong-v5")
    assert "human" not in play.table([episode], {**score, "episodic_return": 14.6}, "Hopper-v4")


# ---- policies that need no training ----------------------------------------------------------------------------------


def test_doing_nothing_earns_the_closed_form(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")  # nothing to load
    rows = played(run_dir, "--policy", "zero", "--episodes", "6", "--seed", "4")
    env = envs.make("PointMass-v0", 6, seed=0)
    obs, _ = env.reset(play.spawn_seeds(4, 1, "evaluation")[0])
    distance = (obs[:, 0:2] - obs[:, 4:6]).norm(dim=1).double()  # at rest it stays where it is
    assert returns(rows) == pytest.approx((100 * torch.exp(-2 * distance)).numpy(), rel=1e-5)
    assert {r["step"] for r in rows} == {"0"}


def test_random_actions_come_from_the_seed(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")
    once, twice, other = (returns(played(run_dir, "--policy", "random", "--seed", seed)) for seed in "775")
    assert np.array_equal(once, twice) and not set(once) & set(other)


def test_random_actions_are_even() -> None:
    count = 2_000
    obs = torch.zeros(count, 1)
    continuous = play.random_policy(envs.make("PointMass-v0", count, seed=0), 1)(obs)
    assert continuous.shape == (count, 2) and continuous.dtype == torch.float32 and continuous.abs().max() <= 1
    quarters = torch.histc(continuous, 4, -1, 1) / (2 * count)
    assert torch.allclose(quarters, torch.tensor(0.25), atol=0.03)  # five deviations
    discrete = play.random_policy(envs.make("ClosedFormDiscrete-v0", count, seed=0), 1)(obs)
    assert discrete.shape == (count,) and discrete.dtype == torch.int64
    assert torch.allclose(torch.bincount(discrete, minlength=3) / count, torch.tensor(1 / 3), atol=0.055)
    zeros = play.zero_policy(envs.make("ClosedFormDiscrete-v0", 4, seed=0))(obs[:4])
    assert zeros.tolist() == [0, 0, 0, 0] and zeros.dtype == torch.int64


# ---- another task ----------------------------------------------------------------------------------------------------

OWN = '''
"""A point mass whose goal is the origin, which draws itself."""
import numpy as np
from envs.torch import PointMass

class Home(PointMass):
    def start(self):
        state = super().start()
        return {**state, "goal": 0 * state["goal"]}

    def render(self, index=0, size=None, camera=None):
        steps = int(self._state["elapsed"][index])
        return np.full((66, 81, 3), steps, np.uint8)  # odd sides
'''


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_task_of_play.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    yield "own_task_of_play:Home"
    sys.modules.pop("own_task_of_play", None)
    while str(tmp_path) in sys.path:
        sys.path.remove(str(tmp_path))


def test_another_task_of_equal_shapes(trained: dict[str, Path], own_task: str, tmp_path: Path) -> None:
    path = tmp_path / "played.csv"
    assert play.main([str(trained["fasttd3"]), "--env-id", own_task, "--csv", str(path), "--episodes", "2"]) == 0
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [r["env_id"] for r in rows] == [own_task] * 2
    # Independently: the run's agent in that task.
    own = settings(play.read_args(trained["fasttd3"], fasttd3.Args))
    agent = load_agent(fasttd3, own, find_checkpoint(trained["fasttd3"], None)[0])
    env = envs.make(own_task, 2, seed=1)
    obs, _ = env.reset(play.spawn_seeds(1, 1, "evaluation")[0])
    total = torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        step = env.step(agent.act(obs))
        obs, total = step.obs, total + step.reward
    assert returns(rows) == pytest.approx(total.numpy(), rel=1e-9)


def test_another_shape_is_refused_by_name(trained: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, trained["fasttd3"], "--env-id", "ClosedForm-v0")
    assert "does not fit" in line and "actor.torso" in line


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_bad_input_is_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, expected in (
        ([], "missing RUN_DIR"),
        ([tmp_path / "nowhere"], "holds no run"),
        ([run_dir, "--step", "7"], "it has 40, 80"),
        ([run_dir, "--step", "-1"], "--step -1"),
        ([run_dir, "--policy", "best"], "trained, random, zero"),
        ([run_dir, "--policy", "zero", "--step", "40"], "--step is of no use"),
        ([run_dir, "--episodes", "0"], "--episodes 0: must be above 0"),
        ([run_dir, "--seed", "-3"], "--seed -3: must be 0 or above"),
        ([run_dir, "--max-steps", "0"], "must be above 0"),
        ([run_dir, "--backend", "nosuch"], "backend is 'nosuch'"),
        ([run_dir, "--device", "tpu"], "--device tpu"),
        ([run_dir, "--csv", tmp_path / "no" / "x.csv"], "there is no directory"),
        ([run_dir, "--video", "--video-size", "8", "8"], "--video-size"),
        ([run_dir, "--env-id", "ClosedForm-v0", "--policy", "zero", "--video"], "is not possible"),
    ):
        assert expected in refused(capsys, *words), words


@pytest.mark.parametrize("name", ["os", "play", "../fasttd3", "nothing", None, 3])
def test_only_an_agent_of_this_folder_is_imported(
    name: Any, run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((run_dir / "manifest.json").read_text())
    (run_dir / "manifest.json").write_text(json.dumps({**record, "agent": name}))
    imported: list[str] = []
    real = importlib.import_module
    monkeypatch.setattr(importlib, "import_module", lambda module: imported.append(module) or real(module))
    assert "is no agent" in refused(capsys, run_dir)
    assert imported in ([], ["agents.play"])


# ---- damaged runs ----------------------------------------------------------------------------------------------------


def test_a_damaged_checkpoint_gives_way_to_the_one_before(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(run_dir / "checkpoints" / "step_000000000080" / "agent.pt")
    rows = played(run_dir)
    err = capsys.readouterr().err
    assert "step_000000000080 is damaged" in err and "playing step_000000000040" in err and err.count("\n") == 1
    assert returns(rows).mean() == pytest.approx(metric(run_dir, "eval/episodic_return")[40], rel=1e-12)
    assert "is damaged" in refused(capsys, run_dir, "--step", 80)
    (run_dir / "checkpoints" / "step_000000000040" / "meta.json").unlink()
    line = refused(capsys, run_dir)
    assert "step_000000000080" in line and "step_000000000040" in line and "no checkpoint" in line


class Bomb:
    """What a malicious checkpoint would hold."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch exploded",)


def test_a_malicious_checkpoint_runs_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = run_dir / "checkpoints" / "step_000000000080"
    for write in (
        lambda p: p.write_bytes(pickle.dumps(Bomb(), protocol=2)),
        lambda p: torch.save({"modules": Bomb()}, p),
    ):
        write(folder / "agent.pt")
        meta = json.loads((folder / "meta.json").read_text())
        meta["sha256"]["agent.pt"] = hashlib.sha256((folder / "agent.pt").read_bytes()).hexdigest()
        del meta["seal"]
        (folder / "meta.json").write_text(json.dumps({**meta, "seal": seal(meta)}))
        refused(capsys, run_dir)
        assert not (tmp_path / "exploded").exists()


def test_a_checkpoint_of_something_else_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_dir / "checkpoints" / "step_000000000080"
    for state in ({}, {"modules": {}}, [1, 2], "text"):
        torch.save(state, folder / "agent.pt")
        meta = json.loads((folder / "meta.json").read_text())
        meta["sha256"]["agent.pt"] = hashlib.sha256((folder / "agent.pt").read_bytes()).hexdigest()
        del meta["seal"]
        (folder / "meta.json").write_text(json.dumps({**meta, "seal": seal(meta)}))
        assert "step_000000000080" in refused(capsys, run_dir) or state == {"modules": {}}


@pytest.mark.parametrize("file", ["config.json", "manifest.json"])
def test_a_torn_file_is_named(file: str, run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_dir / file
    path.write_bytes(path.read_bytes()[:40])
    line = refused(capsys, run_dir)
    assert file in line and "is damaged" in line


def test_a_checkpoint_that_vanishes_while_it_is_opened(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A run that trains saves a new checkpoint and deletes the oldest while somebody plays.
    real, calls = load_agent, []

    def load(module: ModuleType, args: Any, checkpoint: Any) -> Any:
        calls.append(checkpoint.path.name)
        if len(calls) == 1:
            shutil.rmtree(checkpoint.path)
        return real(module, args, checkpoint)

    monkeypatch.setattr("agents.trained.load_agent", load)
    rows = played(run_dir)
    assert calls == ["step_000000000080", "step_000000000040"] and {r["step"] for r in rows} == {"40"}


def test_a_run_that_trains_is_played_and_left_alone(run_dir: Path) -> None:
    with Run.resume(run_dir, fasttd3.Args, overrides={"total_timesteps": 160}, mutable=fasttd3.MUTABLE) as run:
        before = contents(run_dir)
        assert returns(played(run_dir)).mean() == pytest.approx(metric(run_dir, "eval/episodic_return")[80])
        assert contents(run_dir) == before
        run.finish("interrupted")


# ---- films -----------------------------------------------------------------------------------------------------------


def gif_frames(content: bytes) -> list[np.ndarray]:
    image = Image.open(io.BytesIO(content))
    frames = []
    for k in range(image.n_frames):
        image.seek(k)
        frames.append(np.asarray(image.convert("RGB")))
    return frames


def gif_seconds(content: bytes) -> float:
    image = Image.open(io.BytesIO(content))
    total = 0
    for k in range(image.n_frames):
        image.seek(k)
        total += image.info["duration"]
    return total / 1000


def test_a_film_of_the_first_episode(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = {path.name: path.read_bytes() for path in run_dir.glob("events.out.*")}
    plain = played(run_dir)
    filmed = played(run_dir, "--video", "--video-seconds", "3")
    assert filmed == plain  # to look changes nothing
    gif = (run_dir / "videos" / "trained-seed-1-step-80.gif").read_bytes()
    assert f"   video  {run_dir / 'videos' / 'trained-seed-1-step-80.gif'}" in capsys.readouterr().out
    assert len(gif_frames(gif)) <= 30 and gif_seconds(gif) == pytest.approx(3.0)  # ten steps are a second
    accumulator = EventAccumulator(str(run_dir / "videos"), size_guidance={"images": 0})
    accumulator.Reload()
    (event,) = accumulator.Images("trained-seed-1")
    assert (event.step, event.encoded_image_string, event.width, event.height) == (80, gif, 240, 240)
    # A second event file beside the run's own would keep TensorBoard from reading on in that.
    assert {path.name: path.read_bytes() for path in run_dir.glob("events.out.*")} == events
    assert not list(run_dir.rglob("*.part"))


def centre(picture: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Where the pixels of a colour are, in the square's own coordinates."""
    y, x = np.nonzero((np.abs(picture.astype(int) - colour) < 3).all(-1))
    assert len(x), "nothing has this colour"
    scale = picture.shape[0] / 2.4
    return (x.mean() + 0.5) / scale - 1.2, 1.2 - (y.mean() + 0.5) / scale


@pytest.mark.parametrize(("position", "goal"), [((0.5, -0.25), (-0.75, 0.5)), ((-1, 1), (1, -1)), ((0, 0), (0.3, 0.9))])
def test_the_point_mass_is_drawn_where_it_is(position: tuple[float, float], goal: tuple[float, float]) -> None:
    picture = films.draw_point_mass(np.array([*position, 0.0, 0.0, *goal], np.float32))
    assert centre(picture, (31, 119, 180)) == pytest.approx(position, abs=0.012)
    assert centre(picture, (198, 239, 206)) == pytest.approx(goal, abs=0.012)
    assert (picture[0, 0] != 255).any() and (picture[120, 12] == picture[12, 120]).all()  # walls on all sides


def test_images_are_drawn_as_they_are_seen() -> None:
    env = envs.make("Pixels-v0", 1, seed=2)
    obs, _ = env.reset()
    picture = films.draw_image(obs[0].numpy())
    assert picture.shape == (252, 252, 3)
    assert (picture[::3, ::3, 1] == obs[0, -1].numpy()).all()  # the newest of four frames
    colours = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3)
    assert (films.draw_image(colours)[::128, ::128] == colours).all()
    assert (films.draw_image(colours.transpose(2, 0, 1))[::128, ::128] == colours).all()


def test_a_task_that_draws_itself_and_the_clock_of_a_film(trained: dict[str, Path], own_task: str) -> None:
    env = envs.make(own_task, 2, seed=1)
    film = films.Film(env, seconds=0.5)
    assert film.fps == 30  # nobody knows this task's clock
    evaluate(play.zero_policy(env), play.Recorded(env, film), 0)
    assert [frame[0, 0, 0] for frame in film.frames] == list(range(15))  # every step, from the first, for half a second
    assert film.frames[0].shape == (66, 80, 3)  # codecs want even sides


def test_a_film_ends_with_its_episode_and_keeps_time() -> None:
    for rate, every, fps in ((125.0, 5, 25.0), (100.0, 4, 25.0), (40.0, 2, 20.0), (20.0, 1, 20.0), (30.0, 1, 30.0)):
        env = envs.make("Scripted-v0", 2, seed=0, script=((70,), (3,)), max_episode_steps=80)
        env.render = lambda index, size, camera, env=env: np.full(
            (8, 8, 3), int(env._state["elapsed"][index]), np.uint8
        )  # type: ignore
        play_rate, films.steps_per_second = films.steps_per_second, lambda env, rate=rate: rate
        try:
            film = films.Film(env)
        finally:
            films.steps_per_second = play_rate
        assert film.fps == fps
        evaluate(still(env), play.Recorded(env, film), 0)
        assert [frame[0, 0, 0] for frame in film.frames] == list(range(0, 70, every))


def test_gif_keeps_time_and_colours() -> None:
    frames = [np.full((40, 400, 3), (250, 10 * k, 0), np.uint8) for k in range(20)]
    for fps in (10.0, 15.0, 25.0, 30.0):
        content = films.gif_bytes(frames, fps)
        pictures = gif_frames(content)
        every = math.ceil(fps / 15)
        assert len(pictures) == math.ceil(20 / every) and pictures[0].shape == (32, 320, 3)
        assert gif_seconds(content) == pytest.approx(len(pictures) * every / fps, abs=0.006)
        for picture, frame in zip(pictures, frames[::every], strict=True):
            assert np.abs(picture[5, 5].astype(int) - frame[5, 5]).max() <= 25  # a palette for the whole film


def test_without_an_encoder_there_is_a_line_and_a_gif(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert play.main([str(run_dir), "--policy", "zero", "--video", "--video-seconds", "1"]) == 0
    err = capsys.readouterr().err
    assert err == "no MP4: imageio_ffmpeg is missing: pip install imageio-ffmpeg\n"
    assert [path.suffix for path in (run_dir / "videos").iterdir() if "tfevents" not in path.name] == [".gif"]


def test_mp4(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "a" / "film.mp4"
    films.write_mp4(path, [np.full((66, 80, 3), 12 * k, np.uint8) for k in range(20)], 25.0)
    assert ffmpeg.count_frames_and_secs(str(path)) == (20, pytest.approx(0.8, abs=0.01))
    reader = ffmpeg.read_frames(str(path))
    assert next(reader)["size"] == (80, 66)
    means = [np.frombuffer(frame, np.uint8).mean() for frame in reader]
    assert means == pytest.approx([12 * k for k in range(20)], abs=6)
    assert [file.name for file in path.parent.iterdir()] == ["film.mp4"]


def test_what_a_renderer_says_becomes_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def film_of(render: Any) -> str:
        env = envs.make("PointMass-v0", 1, seed=0)
        env.render = render  # type: ignore[attr-defined]
        film = films.Film(env)
        with pytest.raises(films.CannotDraw) as refusal:
            film.shoot(*env.reset())
        return str(refusal.value)

    def broken(*_: Any) -> None:
        raise RuntimeError("no\nscreen")

    assert film_of(broken) == "a film of PointMass-v0 by torch is not possible: no screen"
    assert "returned object of shape ()" in film_of(lambda *_: None)
    assert "returned float64 of shape (2, 2, 3)" in film_of(lambda *_: np.zeros((2, 2, 3)))


# ---- films of simulators ---------------------------------------------------------------------------------------------


def test_envpool_draws_what_it_simulates() -> None:
    pytest.importorskip("envpool")
    env = envs.make("CartPole-v1", 2, seed=0, backend="envpool")
    film = films.Film(env)
    recorded = play.Recorded(env, film)
    seen = []

    def to_the_right(obs: Tensor) -> Tensor:
        seen.append(float(obs[0, 0]))
        return torch.ones(2, dtype=torch.int64)

    evaluate(to_the_right, recorded, seed=3)
    assert film.fps == 25 and len(film.frames) == math.ceil(recorded.episodes()[0].length / 2) > 2
    # The cart is the black box. A painter that kept the simulator of before the reset, which a seed replaces, would
    # draw the same picture again and again.
    for frame, x in zip(film.frames, seen[::2], strict=False):
        columns = np.nonzero((frame < 20).all(-1).sum(0) > 15)[0]
        assert (columns[0] + columns[-1]) / 2 == pytest.approx(300 + 125 * x, abs=2)  # 600 pixels for 4.8 metres
    assert 125 * (seen[2 * len(film.frames) - 2] - seen[0]) > 6  # more than the tolerance


def test_late_opengl_is_refused_instead_of_ending_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("of Linux")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    monkeypatch.setitem(sys.modules, "envpool.mujoco.mujoco_dmc_envpool", ModuleType("x"))
    pictures.prepare_gl.cache_clear()
    assert "a process of its own" in pictures.prepare_gl()
    for name in [name for name in sys.modules if name.startswith("envpool.mujoco.") and name.endswith("_envpool")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(
        pictures.ctypes, "CDLL", lambda *_, **__: (_ for _ in ()).throw(OSError("libEGL.so.1: not found"))
    )
    pictures.prepare_gl.cache_clear()
    assert pictures.prepare_gl().startswith("libEGL.so.1: not found; apt install")
    pictures.prepare_gl.cache_clear()


MUJOCO = [
    f"{task} --backend {backend}"
    for task, backend in (("WalkerWalk-v1", "envpool"), ("HalfCheetah-v5", "gymnasium"), ("HalfCheetah-v5", "mjwarp"))
]
no_egl = sys.platform.startswith("linux") and find_library("EGL") is None


@pytest.mark.slow
@pytest.mark.skipif(no_egl, reason="libEGL is missing")
@pytest.mark.parametrize("task", MUJOCO)
def test_mujoco_is_filmed_without_a_display(task: str, run_dir: Path) -> None:
    name, _, backend = task.split()
    if backend not in envs.backends():
        pytest.skip(f"{backend} is missing")
    words = (
        f"--env-id {task} --policy random --video --video-seconds 0.4 --video-size 96 64 --max-steps 20 --episodes 2"
    )
    command = [sys.executable, str(ROOT / "agents" / "play.py"), str(run_dir), *words.split()]
    quiet = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MUJOCO_GL")}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, cwd=run_dir.parent, timeout=300)
    assert done.returncode == 0, done.stderr
    (gif,) = (run_dir / "videos").glob(f"random-{name}-*.gif")
    frames = gif_frames(gif.read_bytes())
    assert len(frames) >= 3 and frames[0].shape == (64, 96, 3)
    for frame in frames:  # an orange robot, away from the edges
        y, x = np.nonzero((frame[..., 0] > 110) & (frame[..., 0].astype(int) - frame[..., 2] > 45))
        assert 15 < len(x) < 2_000 and 10 < x.mean() < 86 and 8 < y.mean() < 56
    assert (frames[0] != frames[-1]).any()
    if backend != "envpool":
        return
    # And where there is no driver, one line; MuJoCo would end the process.
    blind = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**quiet, "__EGL_VENDOR_LIBRARY_DIRS": str(run_dir)},
        cwd=run_dir.parent,
        timeout=300,
    )
    if blind.returncode == 0:
        pytest.skip("this EGL looks for its drivers elsewhere")
    assert blind.returncode == 2 and f"a film of {name} by {backend} is not possible" in blind.stderr


def test_clocks_of_gymnasium() -> None:
    pytest.importorskip("gymnasium.envs.mujoco")
    import gymnasium

    names = "Ant HalfCheetah Hopper Humanoid HumanoidStandup InvertedDoublePendulum InvertedPendulum Pusher Reacher"
    for task in [f"{name}-v5" for name in (*names.split(), "Swimmer", "Walker2d")]:
        env = gymnasium.make(task)
        assert look_up(RATES, task, 0.0) == pytest.approx(1 / env.unwrapped.dt), task
        env.close()


def test_clocks_of_deepmind_control() -> None:
    assets = importlib.util.find_spec("envpool_assets")
    if assets is None or not assets.submodule_search_locations:
        pytest.skip("EnvPool's assets are missing")
    folder = Path(next(iter(assets.submodule_search_locations))) / "mujoco" / "assets_dmc"
    one_to_one = {"acrobot", "cartpole", "cheetah", "pendulum", "point_mass", "reacher"}  # a step of physics per action
    tasks = [t for t in envs.tasks("envpool") if any(fnmatchcase(t, p) for p in DMC)]
    seen = set()
    for path in folder.glob("*.xml"):
        found = re.search(r'timestep="([^"]+)"', path.read_text())
        prefix = path.stem.replace("_", "").lower()
        named = [t for t in tasks if t.lower().startswith(prefix)]
        if path.stem == "humanoid":
            named = [t for t in named if not t.startswith("HumanoidCMU")]
        for task in named if found else []:
            substeps = 1 / (look_up(RATES, task, 0.0) * float(found.group(1)))  # type: ignore[union-attr]
            assert substeps == pytest.approx(round(substeps), abs=1e-6) and round(substeps) >= 1, task
            assert path.stem not in one_to_one or round(substeps) == 1, task
            seen.add(path.stem)
    assert one_to_one <= seen and len(seen) >= 12


# ---- viewer ----------------------------------------------------------------------------------------------------------


def test_without_a_display_the_viewer_is_refused(
    trained: dict[str, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures.sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert (
        refused(capsys, trained["ppo"], "--viewer")
        == "error: there is no display to open a window on; films need none\n"
    )
    monkeypatch.setenv("DISPLAY", ":7")
    assert "torch gives out no MuJoCo model of PointMass-v0" in refused(capsys, trained["fasttd3"], "--viewer")


class FakeWindow:
    """MuJoCo's viewer as a program sees it; closed by its user after some pictures."""

    def __init__(self, data: Any, left: int) -> None:
        self.data, self.left, self.seen, self.closed = data, left, [], False

    def is_running(self) -> bool:
        return len(self.seen) < self.left

    def lock(self) -> Any:
        return nullcontext()

    def sync(self) -> None:
        self.seen.append((self.data.qpos.copy(), self.data.xpos[1].copy()))

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("left", [4, 100])
def test_the_viewer_shows_the_states_of_the_first_episode_at_its_speed(
    left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gymnasium.envs.mujoco")
    monkeypatch.setenv("DISPLAY", ":7")
    windows: list[FakeWindow] = []

    def launch(model: Any, data: Any) -> FakeWindow:
        windows.append(FakeWindow(data, left))
        return windows[-1]

    viewer = ModuleType("mujoco.viewer")
    viewer.launch_passive = launch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mujoco.viewer", viewer)
    monkeypatch.setattr(importlib.import_module("mujoco"), "viewer", viewer, raising=False)
    slept: list[float] = []
    monkeypatch.setattr(play.time, "sleep", slept.append)
    monkeypatch.setattr(play.time, "perf_counter", lambda: sum(slept))
    env = envs.make("HalfCheetah-v5", 2, seed=1, backend="gymnasium")
    expected = []

    def policy(obs: Tensor) -> Tensor:
        expected.append(env.mujoco()[1]["qpos"])
        return torch.full((2, 6), 0.3)

    evaluate(policy, films.Filmed(env, play.Window(env)), seed=3, max_steps=10)
    (window,) = windows
    assert len(window.seen) == min(left, 10) and window.closed is (left < 10)
    for (qpos, place), state in zip(window.seen, expected, strict=False):
        assert np.array_equal(qpos, state) and place[0] == pytest.approx(state[0])  # the world moved, too
    assert sum(slept) == pytest.approx(0.05 * min(left, 9))  # 20 steps a second
