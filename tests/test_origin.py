"""Starting from another run: its networks and normalisers and nothing else, or one line that says what does not fit."""

import ast
import hashlib
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import envs
from agents import fastsac, fasttd3, origin, ppo, show
from agents.checkpoint import newest_checkpoint, seal
from agents.run import Run
from agents.trained import load_agent, settings
from envs.torch import PointMass
from networks.flat import Flat

ROOT = Path(__file__).resolve().parents[1]
AGENTS: dict[str, ModuleType] = {"fasttd3": fasttd3, "fastsac": fastsac, "ppo": ppo}
LEARNERS = ("fasttd3", "fastsac")  # from a replay buffer
every_agent = pytest.mark.parametrize("kind", AGENTS)

SHAPES = "--actor-hidden 16 16 --critic-hidden 16 16 --sem --sem-actor-groups 2 --sem-actor-vertices 8"
SHAPES += " --sem-critic-groups 4 --sem-critic-vertices 4 --activation elu --reward-norm"
REST = "--env-id PointMass-v0 --device cpu --num-envs 4 --eval-envs 2 --total-timesteps 80 --log-every 0"
REST += " --eval-every 0 --save-every 40 --amp off --threads 1 --quiet"
OF: dict[str, str] = {
    "fasttd3": "--learning-starts 8 --batch-size 32 --buffer-size 160 --num-updates 2",
    "fastsac": "--learning-starts 8 --batch-size 32 --buffer-size 160 --num-updates 2",
    "ppo": "--num-steps 10 --num-minibatches 4 --update-epochs 2",
}
MORE = {"fasttd3": " --atoms 11 --v-min -3", "fastsac": " --atoms 11 --v-min -3 --log-std-min -4", "ppo": ""}


class Heavier(PointMass):
    """Another task with observations and actions of the same sizes."""

    def __init__(self, num_envs: int, seed: int, device: torch.device) -> None:
        super().__init__(num_envs, seed, device, max_episode_steps=20)


OTHER = "tests.test_origin:Heavier"


def train(kind: str, run_dir: Path, words: str = "", shapes: str = "") -> Path:
    assert (
        AGENTS[kind].main(
            [*REST.split(), *OF[kind].split(), *shapes.split(), *words.split(), "--run-dir", str(run_dir)]
        )
        == 0
    )
    return run_dir


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each agent, with settings that are no defaults, and checkpoints at 40 and at 80 frames."""
    root = tmp_path_factory.mktemp("sources")
    return {kind: train(kind, root / kind, shapes=SHAPES + MORE[kind]) for kind in AGENTS}


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Programs that stop before the first step; what they would have trained."""
    seen: list[Any] = []

    def stop(run: Run, agent: Any, *_: Any) -> dict[str, float]:
        seen.append(agent)
        return {}

    for module in AGENTS.values():
        monkeypatch.setattr(module, "train", stop)
    yield seen


def modules(run_dir: Path, step: int | None = None) -> dict[str, Tensor]:
    path = run_dir / "checkpoints" / f"step_{step:012d}" if step else newest_checkpoint(run_dir)[0].path
    return torch.load(path / "agent.pt", weights_only=True)["modules"]


def refused(capsys: pytest.CaptureFixture[str], kind: str, *words: str) -> str:
    """The one line that bad input gives."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        AGENTS[kind].main([*REST.split(), *OF[kind].split(), *words])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


# ---- what comes along ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["PointMass-v0", OTHER])
@pytest.mark.parametrize("step", [None, 40])
@every_agent
def test_networks_and_normalisers_come_along_and_nothing_else(
    kind: str, step: int | None, env_id: str, sources: dict[str, Path], untrained: list[Any], tmp_path: Path
) -> None:
    source = sources[kind]
    named = source if step is None else source / "checkpoints" / f"step_{step:012d}"
    train(kind, tmp_path / "new", f"--init-from {named} --num-envs 8 --env-id {env_id} --seed 5")
    (agent,) = untrained
    theirs, mine = modules(source, step), agent.modules.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        if name == "reward_scale.running":
            assert value.tolist() == [0.0] * 8
        else:
            assert torch.equal(value, theirs[name]), name
    assert agent.obs_norm.count == 4 * (1 + (step or 80) // 4) - (4 if kind == "ppo" else 0)
    optimizers = [x for name, x in vars(agent).items() if name.endswith("optimizer")]
    assert optimizers and all(not x.count and not x.mean.any() for x in optimizers)
    flats = [x for x in vars(agent).values() if isinstance(x, Flat)]
    assert agent.args.seed == 5 and flats
    for flat in flats:  # what optimisers move is what was loaded
        assert torch.equal(flat.vector, torch.cat([p.detach().reshape(-1) for p in flat.parameters]))


@every_agent
def test_the_new_run_acts_as_the_source_did(
    kind: str, sources: dict[str, Path], untrained: list[Any], tmp_path: Path
) -> None:
    module = AGENTS[kind]
    train(kind, tmp_path / "new", f"--init-from {sources[kind]} --env-id {OTHER}")
    args = settings(module_args(kind, sources[kind]), "cpu")
    old = load_agent(module, args, newest_checkpoint(sources[kind])[0])
    obs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(old.act(obs), untrained[0].act(obs)) and old.act(obs).std() > 0


def module_args(kind: str, run_dir: Path) -> Any:
    return origin.read_args(run_dir, AGENTS[kind].Args)


@every_agent
def test_settings_of_the_networks_come_along_and_the_others_do_not(
    kind: str, sources: dict[str, Path], untrained: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = train(kind, tmp_path / "new", f"--init-from {sources[kind]} --gamma 0.5")
    ours, theirs = asdict(module_args(kind, run_dir)), asdict(module_args(kind, sources[kind]))
    plain = asdict(module_args(kind, train(kind, tmp_path / "plain", "--gamma 0.5")))
    assert ours["init_from"] == str(sources[kind])
    for name in ours.keys() - {"run_dir", "init_from", "bottleneck"}:
        assert ours[name] == (theirs if name in origin.NETWORKS else plain)[name], name
    differ = {name for name in theirs if theirs[name] != plain[name]} & set(origin.NETWORKS)
    assert {"actor_hidden", "sem", "activation"} <= differ, "else nothing was tested"
    record = json.loads((run_dir / "manifest.json").read_text())
    newest, _ = newest_checkpoint(sources[kind])
    assert record["presets"][-1] == "init-from"
    assert "init_from" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert {name: record["init_from"][name] for name in ("path", "task", "step", "sha256")} == {
        "path": str(newest.path.resolve()),
        "task": "PointMass-v0",
        "step": 80,
        "sha256": newest.meta["sha256"]["agent.pt"],
    }
    capsys.readouterr()
    assert show.main([str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert f"the networks of {newest.path.resolve()}, after 80 frames of PointMass-v0" in out
    rows = {line.split()[0]: line for line in out.splitlines() if "preset init-from" in line}
    plainest = asdict(AGENTS[kind].Args())
    assert {name for name in differ if theirs[name] != plainest[name]} <= rows.keys() <= set(origin.NETWORKS)


@every_agent
def test_a_flag_that_says_the_same_is_no_contradiction(
    kind: str, sources: dict[str, Path], untrained: list[Any], tmp_path: Path
) -> None:
    train(kind, tmp_path / "new", f"--init-from {sources[kind]}", shapes=SHAPES + MORE[kind])
    assert untrained


def section(path: Path, title: str) -> set[str]:
    """Fields of Args below a line `# ---- title ----`."""
    source = path.read_text()
    body = next(x for x in ast.parse(source).body if isinstance(x, ast.ClassDef) and x.name == "Args").body
    lines = source.splitlines()
    heads = {i: line.strip("# -") for i, line in enumerate(lines, 1) if line.startswith("    # ---- ")}
    return {
        node.target.id
        for node in body
        if isinstance(node, ast.AnnAssign) and heads[max(i for i in heads if i < node.lineno)] == title
    }


def test_every_setting_of_networks_is_known() -> None:
    known = set()
    for kind, module in AGENTS.items():
        named = {f.name for f in fields(module.Args)}
        known |= named
        assert section(ROOT / "agents" / f"{kind}.py", "networks") <= set(origin.NETWORKS), kind
    assert set(origin.NETWORKS) <= known


@pytest.mark.parametrize("kind", LEARNERS)
def test_the_policy_collects_from_the_first_frame_on(
    kind: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = getattr(AGENTS[kind], "FastTD3" if kind == "fasttd3" else "FastSAC")
    drawn = []
    uniformly = cls.explore_uniformly
    monkeypatch.setattr(cls, "explore_uniformly", lambda self: drawn.append(1) or uniformly(self))
    train(kind, tmp_path / "new", f"--init-from {sources[kind]} --learning-starts 40")
    assert not drawn
    train(kind, tmp_path / "plain", "--learning-starts 40")
    assert len(drawn) == 10


# ---- going on --------------------------------------------------------------------------------------------------------


@every_agent
def test_such_a_run_goes_on_without_its_source(
    kind: str, sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Path(shutil.copytree(sources[kind], tmp_path / "source"))
    words = f"--init-from {source} --total-timesteps 160"
    whole = train(kind, tmp_path / "whole", words)
    progress = Run.progress

    def fail(run: Run, step: int) -> None:
        progress(run, step)
        if step > 130:
            raise ZeroDivisionError

    for name in ("again", "resumed"):
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(Run, "progress", fail)
            train(kind, tmp_path / name, words)
    shutil.rmtree(source)
    train(kind, tmp_path / "again", words)  # the same command
    assert AGENTS[kind].main(["--resume", str(tmp_path / "resumed"), "--quiet"]) == 0
    for name in ("again", "resumed"):
        ours, theirs = (newest_checkpoint(path)[0].load("agent") for path in (tmp_path / name, whole))
        assert not [k for k, x in theirs["modules"].items() if not torch.equal(x, ours["modules"][k])]
        assert json.loads((tmp_path / name / "manifest.json").read_text())["init_from"]["step"] == 80
    scratch = train(kind, tmp_path / "scratch", "--total-timesteps 160", shapes=SHAPES + MORE[kind])
    assert not torch.equal(modules(scratch)["critic.head.weight"], modules(whole)["critic.head.weight"])


@every_agent
def test_a_run_does_not_change_its_source_when_it_is_resumed(
    kind: str, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = train(kind, tmp_path / "new", f"--init-from {sources[kind]} --total-timesteps 80")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        AGENTS[kind].main(["--resume", str(run_dir), "--init-from", "elsewhere"])
    assert "--init-from cannot change when a run is resumed" in capsys.readouterr().err


# ---- what is refused -------------------------------------------------------------------------------------------------


@every_agent
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    kind: str, sources: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = str(sources[kind])
    other = next(name for name in AGENTS if name != kind)
    theirs = f"its networks are those of {other}, and {kind} has others; start from a run of agents/{kind}.py"
    bad: list[tuple[str, list[str]]] = [
        ("--actor-hidden 32 16", ["--actor-hidden 32 16: the networks of", "those of --actor-hidden 16 16; leave out"]),
        ("--no-sem --activation relu", ["--no-sem", "--activation relu", "those of", "--sem", "--activation elu"]),
        ("--bottleneck vq", ["--bottleneck vq: the networks of", "--bottleneck sem; leave out what differs"]),
        ("--env-id Pendulum-v1", ["do not fit Pendulum-v1,", "there and", "sizes of PointMass-v0"]),
        ("--env-id PointMassPrivileged-v0", ["do not fit PointMassPrivileged-v0,"]),
        (f"--init-from {tmp_path / 'gone'}", ["gone: no run and no checkpoint of one, there is no"]),
        (f"--init-from {sources[other]}", [theirs]),
        ("--init-from=", ["no run and no checkpoint of one"]),
    ]
    for words, said in bad:
        if "Pendulum" in words and "envpool" not in envs.backends():
            continue
        for place in ("--run-root", "--run-dir"):
            err = refused(capsys, kind, "--init-from", source, *words.split(), place, str(tmp_path / "runs"))
            assert not [part for part in said if part not in err], err
    assert not (tmp_path / "runs").exists()


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def reseal(step_dir: Path) -> None:
    """Note what is in a checkpoint as what was written."""
    meta = json.loads((step_dir / "meta.json").read_text())
    meta["sha256"] = {name: hashlib.sha256((step_dir / name).read_bytes()).hexdigest() for name in meta["sha256"]}
    del meta["seal"]
    (step_dir / "meta.json").write_text(json.dumps({**meta, "seal": seal(meta)}))


@every_agent
def test_a_damaged_source(
    kind: str, sources: dict[str, Path], untrained: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(sources[kind], tmp_path / "source"))
    first, last = sorted((source / "checkpoints").iterdir())
    spoil(last / "agent.pt")
    err = refused(capsys, kind, "--init-from", str(last), "--run-root", str(tmp_path / "runs"))
    assert "agent.pt is not what was written" in err
    train(kind, tmp_path / "new", f"--init-from {source}")  # the one before it is good
    assert f"agent.pt is not what was written; starting from {first.name}" in capsys.readouterr().err
    assert torch.equal(
        untrained[0].modules.state_dict()["critic.head.weight"], modules(source, 40)["critic.head.weight"]
    )
    assert last.exists(), "a source is only read"
    spoil(first / "agent.pt")
    assert "no checkpoint to go on from" in refused(
        capsys, kind, "--init-from", str(source), "--run-root", str(tmp_path / "runs")
    )
    assert not (tmp_path / "runs").exists()


class Malicious:
    """Code in the guise of a checkpoint."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@every_agent
def test_what_a_source_holds_is_not_trusted(
    kind: str,
    sources: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    source = Path(shutil.copytree(sources[kind], tmp_path / "source"))
    last = sorted((source / "checkpoints").iterdir())[-1]
    good = torch.load(last / "agent.pt", weights_only=True)
    nan = {**good["modules"], "critic.head.weight": good["modules"]["critic.head.weight"] * torch.nan}
    for content, said in (
        ({"modules": Malicious()}, "agent.pt cannot be read"),
        ([1, 2], "does not hold what this version of the agent saves"),
        ({"modules": {"actor": 3}}, "does not hold what this version of the agent saves"),
        ({**good, "modules": nan}, "critic.head.weight is not finite, that run has diverged"),
    ):
        torch.save(content, last / "agent.pt", pickle_module=pickle)
        reseal(last)
        assert said in refused(capsys, kind, "--init-from", str(source), "--run-root", str(tmp_path / "runs"))
    assert not (tmp_path / "executed").exists() and not (tmp_path / "runs").exists()
