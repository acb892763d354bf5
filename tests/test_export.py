"""Exported policies: they act as the agent does where there is no torch, and a bundle is whole or is not there."""

import errno
import hashlib
import io
import json
import math
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

import envs
from agents import export, fastsac, fasttd3, ppo, pqn
from agents.checkpoint import read_args
from agents.episodes import evaluate
from agents.trained import find_checkpoint, load_agent, settings
from envs.base import VecEnv, spawn_seeds
from envs.wrappers import price_action_rate

ROOT = Path(__file__).resolve().parents[1]
TINY = "--device cpu --size small --num-envs 4 --eval-envs 3 --total-timesteps 400 --log-every 0 --eval-every 400"
TINY += " --save-every 200 --critic-hidden 16 32 --amp off --threads 1 --quiet --reward-norm"
TINY += " --sem-critic-groups 4 --sem-critic-vertices 8"
OFF_POLICY = "--actor-hidden 16 32 --learning-starts 40 --batch-size 32 --buffer-size 800 --num-updates 2"
ROLLOUT = "--num-steps 20 --num-minibatches 4 --update-epochs 2 --learning-rate 3e-3"
ON_POLICY = f"--actor-hidden 16 32 {ROLLOUT}"
CRITIC = "--sem-critic-groups 4 --sem-critic-vertices 8"  # of the agent that acts by its critic
SHORT, LONG = "--sem-actor-groups 4 --sem-actor-vertices 8", "--sem-actor-groups 2 --sem-actor-vertices 16"
"""the softmax has two implementations on a CPU, by the width of a group"""
KINDS: dict[str, tuple[ModuleType, str, str]] = {
    "fasttd3": (fasttd3, f"{OFF_POLICY} --env-id PointMass-v0 --atoms 11", SHORT),
    "fasttd3-envpool": (fasttd3, f"{OFF_POLICY} --env-id Pendulum-v1 --backend envpool --atoms 11", LONG),
    "fastsac": (fastsac, f"{OFF_POLICY} --env-id PointMass-v0 --atoms 11", LONG),
    "ppo": (ppo, f"{ON_POLICY} --env-id PointMassPrivileged-v0 --obs-clip 1.5", SHORT),
    "ppo-sampled": (ppo, f"{ON_POLICY} --env-id ClosedForm-v0 --eval-sample --state-dependent-std", LONG),
    "ppo-discrete": (ppo, f"{ON_POLICY} --env-id ClosedFormDiscrete-v0 --no-obs-norm", SHORT),
    "ppo-images": (ppo, f"{ON_POLICY} --env-id Pixels-v0 --total-timesteps 160 --eval-every 160 --num-steps 10", SHORT),
    "pqn-discrete": (pqn, f"{ROLLOUT} --env-id ClosedFormDiscrete-v0 --obs-norm --eval-epsilon 0.5", CRITIC),
    "pqn-images": (pqn, f"{ROLLOUT} --env-id Pixels-v0 --total-timesteps 160 --eval-every 160 --num-steps 10", CRITIC),
}
CASES = [(kind, sem) for kind in KINDS for sem in (False, True)]
UNITS = [
    *((task, backend) for task in ("Humanoid-v5", "Pendulum-v1") for backend in ("gymnasium", "envpool")),
    ("Humanoid-v5", "mjwarp"),
]
LACKING = [name for name in export.PACKAGES if find_spec(name) is None]
FAR = (1.0, 30.0)
"""deviations of observations: usual ones, and such as the normaliser's clip and a saturated tanh are for"""


class Case(NamedTuple):
    """An exported run."""

    kind: str
    run_dir: Path
    out: Path
    said: str
    """what export printed"""

    @property
    def about(self) -> dict[str, Any]:
        return json.loads((self.out / "policy.json").read_text())

    def agent(self) -> Any:
        """The agent of the run, loaded without export's help, in the mode that is exported."""
        module = KINDS[self.kind][0]
        now = settings(read_args(self.run_dir, module.Args), "cpu")
        plain = {"eval_sample": False, "eval_epsilon": 0.0}
        now = replace(now, **{name: value for name, value in plain.items() if hasattr(now, name)})
        return load_agent(module, now, find_checkpoint(self.run_dir, None)[0])

    def env(self, count: int) -> VecEnv:
        args = read_args(self.run_dir, KINDS[self.kind][0].Args)
        return envs.make(args.env_id, count, args.seed, "cpu", args.backend)

    def observations(self, count: int, scale: float) -> np.ndarray:
        about = self.about["observation"]
        rng = np.random.default_rng(7)
        if about["dtype"] == "uint8":
            return rng.integers(0, 256, (count, *about["shape"]), np.uint8)
        return (scale * rng.standard_normal((count, *about["shape"]))).astype(np.float32)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Case]:
    """Trains and exports a kind, once."""
    if LACKING:
        pytest.skip(f"{LACKING} missing: pip install 'semrl[export]'")
    root = tmp_path_factory.mktemp("exported")
    cases: dict[tuple[str, bool], Case] = {}

    def get(kind: str, sem: bool) -> Case:
        if (kind, sem) not in cases:
            module, words, shape = KINDS[kind]
            if "envpool" in words:
                pytest.importorskip("envpool")
            run_dir = root / f"{kind}-{sem}"
            switches = ["--sem", *shape.split()] if sem else []
            assert module.main([*TINY.split(), *words.split(), *switches, "--run-dir", str(run_dir)]) == 0
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(export, "latency", partial(export.latency, seconds=0.01))
                patch.setattr(sys, "stdout", said := io.StringIO())
                assert export.main([str(run_dir), "--observations", "200"]) == 0
            cases[kind, sem] = Case(kind, run_dir, run_dir / "export", said.getvalue())
        return cases[kind, sem]

    return get


@pytest.fixture
def copied(exported: Callable[[str, bool], Case], tmp_path: Path) -> Case:
    """One of them, to be damaged."""
    case = exported("fasttd3", True)
    run_dir = Path(shutil.copytree(case.run_dir, tmp_path / "run"))
    return case._replace(run_dir=run_dir, out=run_dir / "export")


@pytest.fixture
def quick(copied: Case, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The same, whose graph need not be made once more."""
    model = (copied.out / "policy.onnx").read_bytes()
    monkeypatch.setattr(export, "to_onnx", lambda program, outputs: model)
    monkeypatch.setattr(export, "latency", partial(export.latency, seconds=0.01))
    return copied


def load(folder: Path) -> Any:
    """The `Policy` of a bundle, by its own run_policy.py."""
    return runpy.run_path(str(folder / "run_policy.py"))["Policy"](folder)


ALONE = """
import runpy, sys
for name in ("torch", "tensordict", "gymnasium", "onnx", "onnxscript", "agents", "networks", "envs"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_alone(out: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run run_policy.py where neither torch nor this library can be imported."""
    command = [sys.executable, "-c", ALONE, out / "run_policy.py", *words]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=out.parent, timeout=120)


def by_hand(case: Case, action: Tensor) -> np.ndarray:
    """Actions of the contract in the units of the task, from what is known of it."""
    if case.kind == "fasttd3-envpool":
        return 2 * action.clamp(-1, 1).numpy()  # the torque of a pendulum, in newton metres
    return action.numpy() if action.dtype == torch.int64 else action.clamp(-1, 1).numpy()


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that bad input gives."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        export.main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.is_file()}


def spoil(path: Path, at: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << bit
    path.write_bytes(content)


# ---- what is in it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sem"), CASES)
def test_a_bundle_is_whole_and_says_what_it_is(kind: str, sem: bool, exported: Callable[[str, bool], Case]) -> None:
    case = exported(kind, sem)
    about = case.about
    files = contents(case.out)
    assert set(files) == {"policy.onnx", "policy.pt2", "policy.json", "run_policy.py"}
    rest = about["sha256"].pop("policy.json")
    assert {**about["sha256"], "policy.json": files["policy.json"]} == files
    assert rest == hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    module, words, shape = KINDS[kind]
    steps = 160 if kind.endswith("images") else 400
    assert about["agent"] == module.__name__.rpartition(".")[2] and about["source"] == case.run_dir.name
    assert f"--env-id {about['task']} " in f"{words} " and about["frames"] == steps and about["deterministic"] is True
    assert about["backend"] == ("envpool" if "envpool" in kind else "torch")
    groups, vertices = (int(word) for word in shape.split()[1::2])
    assert about["sem"] == ({"groups": groups, "vertices": vertices, "temperature": 1.0} if sem else None)
    assert about["control_dt_s"] == (0.1 if "PointMass" in words else None)
    assert (about["observation"]["normaliser"] is None) == (kind in ("ppo-discrete", "ppo-images", "pqn-images"))
    assert about["parity"]["observations"] == 200
    assert all(0 <= error <= 1e-5 for error in about["parity"]["largest_error"].values())
    assert all(0 < one["median_us"] <= one["p99_us"] for one in about["latency"].values())
    assert about["versions"]["torch"] == torch.__version__
    assert f"after {steps:,} frames, {'SEM L=' if sem else 'no SEM'}" in case.said and case.said.count("\n") == 7
    env = case.env(1)
    env.close()
    assert about["observation"]["shape"] == list(env.obs_space.shape)
    if isinstance(env.action_space, Discrete):
        assert (
            about["outputs"] == ["action", "values" if "pqn" in kind else "logits"]
            and about["action"]["n"] == env.action_space.n
        )
    else:
        bound = 2.0 if "envpool" in kind else 1.0
        size = env.action_space.shape[0]
        assert (about["action"]["low"], about["action"]["high"]) == ([-bound] * size, [bound] * size)


@pytest.mark.parametrize(
    ("kind", "sem"), [("fasttd3", True), ("ppo-discrete", True), ("ppo-images", True), ("pqn-discrete", True)]
)
def test_the_graph_is_small_and_tells_nothing_of_this_machine(
    kind: str, sem: bool, exported: Callable[[str, bool], Case]
) -> None:
    import onnx

    case = exported(kind, sem)
    graph = onnx.load(case.out / "policy.onnx").graph
    names = [node.op_type for node in graph.node]
    assert len(names) <= 25 and names.count("Softmax") == 1 and names.count("LayerNormalization") == 1 + ("pqn" in kind)
    for one in (*graph.input, *graph.output):
        assert one.type.tensor_type.shape.dim[0].dim_param == "batch"
    with zipfile.ZipFile(case.out / "policy.pt2") as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    agent = case.agent()
    networks = getattr(agent, "actor", None) or agent.critic, getattr(agent, "trunk", nn.Identity())
    copies = 2 if getattr(agent, "paired", False) else 1  # of the trunk: one is the critic's
    weights = sum(p.numel() // n for part, n in zip(networks, (1, copies), strict=True) for p in part.parameters())
    for content in (*parts, (case.out / "policy.onnx").read_bytes()):
        assert str(ROOT).encode() not in content and b".py" not in content
    assert str(case.run_dir.parent) not in (case.out / "policy.json").read_text()
    given = sum(math.prod(one.dims) for one in graph.initializer)
    assert weights <= given < weights + 100  # each once, with normaliser and bounds, and no critic
    images = 2 * math.prod(case.about["observation"]["shape"]) if kind == "ppo-images" else 0  # the example
    assert (case.out / "policy.pt2").stat().st_size < 4 * weights + 80_000 + images


def test_names_of_observations_and_time_steps() -> None:
    pytest.importorskip("envpool")
    walker = envs.make("WalkerWalk-v1", 1, backend="envpool")
    parts = [(part["name"], part["start"], part["size"]) for part in export.layout(walker)]
    assert parts == [("orientations", 0, 14), ("height", 14, 1), ("velocity", 15, 9)]
    assert export.control_dt(walker) == 0.025
    walker.close()
    cheetah = envs.make("HalfCheetah-v5", 1, backend="gymnasium")
    parts = [(part["name"], part["start"], part["size"]) for part in export.layout(cheetah)]
    assert parts == [("qpos", 0, 8), ("qvel", 8, 9)] and export.control_dt(cheetah) == pytest.approx(0.05)
    cheetah.close()
    pendulum = envs.make("Pendulum-v1", 1, backend="gymnasium")
    assert export.layout(pendulum) == [] and export.control_dt(pendulum) == pytest.approx(0.05)
    pendulum.close()
    mass = envs.make("PointMass-v0", 1)
    assert export.layout(mass) == [] and export.control_dt(mass) == pytest.approx(0.1)
    mass.task, mass.control_dt = "own:Task", 0.004  # type: ignore[attr-defined]
    assert export.control_dt(mass) == 0.004


@pytest.mark.parametrize(("task", "backend"), UNITS)
def test_actions_are_exported_in_the_units_of_the_task(task: str, backend: str) -> None:
    pytest.importorskip({"mjwarp": "mujoco_warp"}.get(backend, backend))
    space = gymnasium.make(task).action_space
    assert isinstance(space, Box)
    env = envs.make(task, 2, backend=backend)
    about = export.describe_action(env)
    env.close()
    assert env.action_bounds is not None
    for bounds in (env.action_bounds, (about["low"], about["high"])):
        assert np.asarray(bounds) == pytest.approx(np.stack([space.low, space.high]), rel=1e-6)
    assert price_action_rate(env, 0.1).action_bounds is env.action_bounds


@pytest.mark.parametrize(
    ("low", "high"), [(np.array([-0.3, 0.1]), np.array([0.9, 0.4])), (np.zeros((2, 1)), np.full((2, 1), 3.0))]
)
def test_actions_reach_both_bounds_and_never_leave_them(low: np.ndarray, high: np.ndarray) -> None:
    # A policy whose mean is its observation, in a task with a range that is not symmetric, and one with odd shape.
    class Mean(nn.Module):
        def forward(self, obs: Tensor) -> Tensor:
            return obs

    agent = SimpleNamespace(obs_norm=nn.Identity(), actor=Mean(), args=SimpleNamespace(obs_clip=0.5))
    action = {"kind": "continuous", "shape": list(low.shape), "low": low.tolist(), "high": high.tolist()}
    policy = export.Deployed(agent, action)
    obs = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [-7.0, 9.0], [0.0, 0.5]])
    expected = (low + high) / 2 + (high - low) / 2 * obs.clamp(-1, 1).double().numpy().reshape(4, *low.shape)
    found = policy(obs)
    assert isinstance(found, Tensor) and found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected, abs=1e-6)
    assert (found[0].numpy() == low.astype(np.float32)).all() and (found[1].numpy() == high.astype(np.float32)).all()


# ---- does it do the same ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sem"), CASES)
def test_onnxruntime_alone_acts_as_the_agent(
    kind: str, sem: bool, exported: Callable[[str, bool], Case], tmp_path: Path
) -> None:
    case = exported(kind, sem)
    agent = case.agent()
    obs = np.concatenate([case.observations(9, scale) for scale in FAR])
    np.save(tmp_path / "obs.npy", obs)
    done = run_alone(case.out, tmp_path / "obs.npy", tmp_path / "action.npy")
    assert done.returncode == 0 and done.stdout == done.stderr == "", done.stderr
    found = np.load(tmp_path / "action.npy")
    expected = by_hand(case, agent.act(torch.from_numpy(obs)))
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.abs(found - expected).max() <= 1e-5
    if expected.dtype != np.int64:
        assert np.abs(found).max() > 1e-3  # else two policies that do nothing would be equal
    shown = run_alone(case.out)  # of a random observation
    assert shown.returncode == 0 and shown.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("kind", "words", "sem"),
    [
        ("fastsac", "--torso simba --actor-hidden 16 16", None),
        ("fasttd3", "--torso flashsac --actor-hidden 16 16", None),
        ("ppo-discrete", "--torso simbav2 --actor-hidden 16 16 --critic-hidden 16 16", None),
        *(("fasttd3", f"--bottleneck {name}", None) for name in ("gumbel-st", "vq", "crelu", "l2", "fta")),
        ("ppo-discrete", "--bottleneck vq", None),  # the first of two copies
        ("ppo-discrete", "--bottleneck gumbel-st", None),
        ("ppo-discrete", "--sem --sem-learned-temperature --sem-temperature 0.5 --sem-position every", 0.5),
        ("ppo-discrete", "--sem --sem-temperature 0.25 --sem-temperature-end 0.4", 0.375),
    ],
)
def test_bottlenecks_are_exported(
    kind: str, words: str, sem: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if LACKING:
        pytest.skip(f"{LACKING} missing: pip install 'semrl[export]'")
    module, settings_of, shape = KINDS[kind]
    monkeypatch.setattr(export, "latency", partial(export.latency, seconds=0.01))
    run_dir = tmp_path / "run"
    command = [*TINY.split(), *settings_of.split(), *shape.split(), *words.split(), "--run-dir", str(run_dir)]
    assert module.main([*command, "--total-timesteps", "200", "--eval-every", "0"]) == 0
    assert export.main([str(run_dir), "--observations", "100"]) == 0
    case = Case(kind, run_dir, run_dir / "export", "")
    obs = case.observations(50, 1.0)
    expected = by_hand(case, case.agent().act(torch.from_numpy(obs)))
    assert np.abs(load(case.out)(obs) - expected).max() <= 1e-5
    if sem is None:
        assert case.about["sem"] is None
    else:  # the temperature that was learned
        assert 0 < abs(case.about["sem"]["temperature"] - sem) < 0.3


@pytest.mark.parametrize(("kind", "sem"), CASES)
def test_batches_of_every_size_and_single_observations(
    kind: str, sem: bool, exported: Callable[[str, bool], Case]
) -> None:
    case = exported(kind, sem)
    policy = load(case.out)
    program = torch.export.load(case.out / "policy.pt2").module()
    for count in (1, 2, 5, 64):
        obs = case.observations(count, 1.0)
        outputs = policy.outputs(obs)
        with torch.no_grad():
            others = program(torch.from_numpy(obs))
        for found, other in zip(outputs, others if isinstance(others, tuple) else (others,), strict=True):
            assert np.abs(found - other.numpy()).max() <= 1e-5
        if len(outputs) == 2:
            action, scores = outputs
            assert (action == scores.argmax(1)).all()
            assert ("pqn" in kind) or np.exp(scores).sum(1) == pytest.approx(1, abs=1e-5)
        assert np.abs(policy(obs[0]) - outputs[0][0]).max() <= 1e-5 and policy(obs[0]).shape == outputs[0].shape[1:]
    with pytest.raises(ValueError, match="an observation has shape"):
        policy(obs[:, :-1])
    if case.about["observation"]["dtype"] == "uint8":
        with pytest.raises(TypeError, match="uint8"):
            policy(obs.astype(np.float32) / 255)  # pixels are not intensities


def as_contract(case: Case, policy: Any, obs: Tensor) -> Tensor:
    """Actions of a bundle as environments of ours want them."""
    action = torch.from_numpy(policy(obs.numpy()))
    return action / 2 if case.kind == "fasttd3-envpool" else action


@pytest.mark.parametrize(("kind", "sem"), CASES)
def test_an_evaluation_driven_by_onnxruntime_returns_the_same(
    kind: str, sem: bool, exported: Callable[[str, bool], Case]
) -> None:
    case = exported(kind, sem)
    seed = spawn_seeds(1, 1, "evaluation")[0]
    env = case.env(5)
    ours = evaluate(case.agent().act, env, seed, 200)
    theirs = evaluate(partial(as_contract, case, load(case.out)), env, seed, 200)
    env.close()
    exact = isinstance(env.action_space, Discrete)
    assert theirs == (ours if exact else pytest.approx(ours, rel=1e-4, abs=1e-4))


def test_what_is_drawn_in_evaluation_is_not_drawn_on_a_robot(exported: Callable[[str, bool], Case]) -> None:
    case = exported("ppo-sampled", True)
    assert read_args(case.run_dir, ppo.Args).eval_sample
    policy, obs = load(case.out), case.observations(50, 1.0)
    assert (policy(obs) == policy(obs)).all()


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_policy_that_differs_is_refused(
    quick: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = contents(quick.out)
    act = fasttd3.FastTD3.act
    monkeypatch.setattr(fasttd3.FastTD3, "act", lambda self, obs: act(self, obs) * (1 - 1e-4) + 2e-5)
    line = refused(capsys, quick.run_dir, "--force", "--observations", "20")
    assert "policy.onnx differs from the agent by" in line and "1e-05" in line
    assert "differs" in refused(capsys, quick.run_dir, "--out", tmp_path / "new", "--observations", "20")
    assert contents(quick.out) == before and not (tmp_path / "new").exists()
    monkeypatch.setattr(fasttd3.FastTD3, "act", lambda self, obs: act(self, obs) * math.nan)
    assert "differs from the agent by nan" in refused(capsys, quick.run_dir, "--force", "--observations", "20")


def test_errors_by_hand() -> None:
    wide = {"kind": "continuous", "low": [-4.0, 1.0], "high": [4.0, 1.0]}  # halves of 4, and of nothing
    agents = np.array([[0.0, 1.0], [2.0, 1.0]])
    assert export.worst(wide, [np.array([[0.0, 1.0], [2.4, 1.0]])], agents, None) == pytest.approx(0.1)
    assert export.worst(wide, [np.array([[0.0, 1.25], [2.0, 1.0]])], agents, None) == pytest.approx(0.25)
    assert math.isnan(export.worst(wide, [np.array([[math.nan, 1.0], [2.0, 1.0]])], agents, None))
    games = {"kind": "discrete", "start": 1}
    logits = np.array([[-1.0, -0.5], [-8.0, -3e-4]])
    assert export.worst(games, [np.array([2, 2]), logits], np.array([2, 2]), logits) == 0
    near = export.worst(games, [np.array([2, 2]), logits + np.array([[0, 0], [0.4, 0]])], np.array([2, 2]), logits)
    assert near == pytest.approx(0.05)
    assert export.worst(games, [np.array([1, 2]), logits], np.array([2, 2]), logits) == pytest.approx(0.5)


@pytest.mark.parametrize("missing", export.PACKAGES)
def test_a_missing_package_is_one_line(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.json").write_text("{}")
    (run_dir / "manifest.json").write_text('{"agent": "ppo"}')
    monkeypatch.setitem(sys.modules, missing, None)
    line = refused(capsys, run_dir)
    assert missing in line and line.endswith("missing: pip install 'semrl[export]'\n")
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.json", "manifest.json"]


def test_bad_input_is_one_line(quick: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for words, expected in (
        ([], "missing RUN_DIR"),
        ([tmp_path / "nowhere"], "holds no run"),
        ([quick.run_dir], "exists already: --force"),
        ([quick.run_dir, "--force", "--step", "7"], "it has 200, 400"),
        ([quick.run_dir, "--step", "-1"], "--step -1"),
        ([quick.run_dir, "--observations", "0"], "--observations 0: must be above 0"),
        ([quick.run_dir, "--out", tmp_path / "file", "--force"], "is no folder"),
        ([quick.run_dir, "--out", quick.run_dir, "--force"], "which no export has written"),
    ):
        assert expected in refused(capsys, *words), words


def test_another_checkpoint_and_one_that_is_damaged(
    copied: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "deep" / "two"
    words = [str(copied.run_dir), "--observations", "3", "--out"]
    assert export.main([*words, str(one), "--step", "200"]) == 0
    capsys.readouterr()
    path = copied.run_dir / "checkpoints" / "step_000000000400" / "agent.pt"
    spoil(path, path.stat().st_size // 2)
    assert export.main([*words, str(two)]) == 0
    err = capsys.readouterr().err
    assert "step_000000000400 is damaged" in err and "exporting step_000000000200" in err and err.count("\n") == 1
    for folder in (one, two):
        assert copied._replace(out=folder).about["frames"] == 200
    assert contents(one)["policy.onnx"] == contents(two)["policy.onnx"] != contents(copied.out)["policy.onnx"]


# ---- whole or not there ----------------------------------------------------------------------------------------------


def test_a_bundle_is_replaced_only_by_force(quick: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    before = contents(quick.out)
    refused(capsys, quick.run_dir)
    assert contents(quick.out) == before
    (quick.run_dir / ".export.part").mkdir()  # of an export that was killed
    (quick.run_dir / ".export.part" / "policy.onnx").write_text("half")
    (quick.out / "__pycache__").mkdir()
    assert export.main([str(quick.run_dir), "--force", "--observations", "9"]) == 0
    assert quick.about["parity"]["observations"] == 9
    assert not list(quick.run_dir.glob(".export*")) and set(contents(quick.out)) == set(before)
    (tmp_path / "empty").mkdir()
    assert export.main([str(quick.run_dir), "--out", str(tmp_path / "empty"), "--observations", "9"]) == 0
    assert set(contents(tmp_path / "empty")) == set(before)


@pytest.mark.parametrize("name", ["policy.onnx", "policy.pt2", "run_policy.py"])
def test_a_full_disk_leaves_what_was_there(
    name: str, quick: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(quick.out)

    def full(write: Callable[..., int], path: Path, *content: Any) -> int:
        if path.name == name:
            write(path, content[0][: len(content[0]) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *content)

    for method in ("write_bytes", "write_text"):
        real = getattr(Path, method)
        monkeypatch.setattr(Path, method, lambda path, *content, real=real: full(real, path, *content))
    assert "No space left on device" in refused(capsys, quick.run_dir, "--force", "--observations", "3")
    assert contents(quick.out) == before and not list(quick.run_dir.glob(".export*"))


def test_a_rename_that_fails_brings_the_old_bundle_back(
    quick: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(quick.out)
    real = export.os.replace

    def replace_once(source: Path, target: Path) -> None:
        if Path(source).name == ".export.part":
            raise OSError(errno.EACCES, "Permission denied")
        real(source, target)

    monkeypatch.setattr(export.os, "replace", replace_once)
    assert "Permission denied" in refused(capsys, quick.run_dir, "--force", "--observations", "3")
    assert contents(quick.out) == before and not list(quick.run_dir.glob(".export*"))


def reads_as(path: Path, content: bytes) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(content))
    except ValueError:
        return False


def test_a_damaged_bundle_is_noticed(copied: Case) -> None:
    rng = np.random.default_rng(3)
    for name in ("policy.onnx", "policy.pt2", "policy.json"):
        path = copied.out / name
        whole = path.read_bytes()
        for at in [0, len(whole) - 2, *rng.integers(0, len(whole), 25)]:
            spoil(path, int(at), int(rng.integers(8)))
            if name == "policy.json" and reads_as(path, whole):  # 1e-5 and 1E-5
                continue
            with pytest.raises(ValueError, match=r"damaged|holds no whole policy"):
                load(copied.out)
            path.write_bytes(whole)
        for share in (0, 0.5, 0.99):
            path.write_bytes(whole[: int(share * len(whole))])
            with pytest.raises(ValueError, match=r"damaged|holds no whole policy"):
                load(copied.out)
        done = run_alone(copied.out)
        assert done.returncode != 0 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        path.write_bytes(whole)
    load(copied.out)
    about = copied.about
    for content in ([], {}, {**about, "sha256": 3}, {**about, "sha256": {}}, {**about, "task": "another"}):
        (copied.out / "policy.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"damaged|holds no whole policy"):
            load(copied.out)


def test_the_program_of_a_bundle_is_short_and_clean(tmp_path: Path) -> None:
    lines = export.RUN_POLICY.splitlines()
    assert len([line for line in lines if line.strip()]) <= 45 and max(map(len, lines)) <= 120
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff:
        (tmp_path / "run_policy.py").write_text(export.RUN_POLICY)
        config = ["--isolated", "--line-length", "120"]
        for words in (["check"], ["format", "--check"]):
            done = subprocess.run([ruff, *words, *config, "."], cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
