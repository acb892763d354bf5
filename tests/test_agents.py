"""What the agents have in common: the program as users run it, what it leaves on disk, and how it goes on."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from gymnasium.spaces import Discrete
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

import envs
from agents import fastsac, fasttd3, ppo, pqn
from agents.checkpoint import newest_checkpoint, step_dirs
from agents.run import Run
from envs.torch import ClosedFormDiscrete, PointMass, Scripted

ROOT = Path(__file__).resolve().parents[1]
COMMON = {
    "env_id": "PointMass-v0",
    "device": "cpu",
    "size": "small",
    "num_envs": 4,
    "eval_envs": 2,
    "total_timesteps": 240,
    "log_every": 80,
    "eval_every": 120,
    "save_every": 120,  # between two rows of metrics
    "actor_hidden": (16, 16),
    "critic_hidden": (16, 16),
    "sem_actor_groups": 2,
    "sem_actor_vertices": 8,
    "sem_critic_groups": 4,
    "sem_critic_vertices": 4,
    "amp": "off",
    "threads": 1,
}
OFF_POLICY = {
    **COMMON,
    "learning_starts": 40,
    "batch_size": 32,
    "buffer_size": 160,  # so that it overflows
    "num_updates": 2,
    "atoms": 11,
    "v_min": 0.0,
    "v_max": 20.0,
}
ON_POLICY = {**COMMON, "num_steps": 10, "num_minibatches": 4, "update_epochs": 2, "learning_rate": 3e-3}
CRITIC_ONLY = {
    **{name: value for name, value in ON_POLICY.items() if "actor" not in name},
    "env_id": "ClosedFormDiscrete-v0",
    "epsilon_end": 0.2,
}
SCALAR = {"distributional": False, "clipped_double_q": True}
# An image costs as much as a thousand vectors.
IMAGES = {"num_envs": 2, "total_timesteps": 80, "log_every": 60, "eval_every": 40, "save_every": 40}


class Kind(NamedTuple):
    """An agent, and settings that let it train in a second."""

    module: ModuleType
    tiny: dict[str, Any]


KINDS = {
    "fasttd3": Kind(fasttd3, OFF_POLICY),
    "fastsac": Kind(fastsac, OFF_POLICY),
    "fastsac-scalar": Kind(fastsac, {**OFF_POLICY, **SCALAR}),
    "ppo": Kind(ppo, ON_POLICY),
    "ppo-discrete": Kind(ppo, {**ON_POLICY, "env_id": "ClosedFormDiscrete-v0"}),
    "ppo-images": Kind(ppo, {**ON_POLICY, "env_id": "Pixels-v0", **IMAGES}),
    "pqn": Kind(pqn, CRITIC_ONLY),
    "pqn-images": Kind(pqn, {**CRITIC_ONLY, "env_id": "Pixels-v0", **IMAGES}),
}
AGENTS = ("fasttd3", "fastsac", "ppo", "pqn")
LEARNERS = ("fasttd3", "fastsac")  # from a replay buffer
CONTINUOUS = (*LEARNERS, "ppo")
BATCH_NORMED = (*LEARNERS, "pqn")  # all but PPO, which refuses it
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
every_kind = pytest.mark.parametrize("kind", KINDS)
every_agent = pytest.mark.parametrize("kind", AGENTS)


def flags(**values: Any) -> list[str]:
    """The words of a command line."""
    out = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            out += [f"--{'' if value else 'no-'}{flag}"]
        else:
            out += [f"--{flag}", *([str(x) for x in value] if isinstance(value, tuple) else [str(value)])]
    return out


def run_main(kind: str, root: Path, **changes: Any) -> Path:
    """Train in this process; returns the run directory."""
    module, tiny = KINDS[kind]
    root.mkdir(exist_ok=True)
    before = set(root.iterdir())
    assert module.main([*flags(**{**tiny, **changes}), "--run-root", str(root), "--quiet"]) == 0
    (made,) = set(root.iterdir()) - before
    return made


def resume(kind: str, run_dir: Path, *words: str) -> int:
    return KINDS[kind].module.main(["--resume", str(run_dir), "--quiet", *words])


def build(kind: str, **changes: Any) -> tuple[Any, ...]:
    """What the program builds before it trains: the agent first."""
    module, tiny = KINDS[kind]
    return module.build(module.resolve(replace(module.Args(), **{**tiny, "eval_every": 0, **changes})))


def final_state(run_dir: Path) -> dict[str, Any]:
    checkpoint, _ = newest_checkpoint(run_dir)
    return {name: checkpoint.load(name) for name in ("agent", "loop", "replay") if checkpoint.has(name)}


def optimizer_steps(state: dict[str, Any]) -> int:
    """Steps that the optimiser of the critic has taken."""
    agent = state["agent"]
    return int(agent.get("critic_optimizer", agent.get("optimizer"))["count"])


def status(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "status.json").read_text())


def metric_rows(run_dir: Path, but: tuple[str, ...] = ("time/", "charts/SPS")) -> list[tuple[str, ...]]:
    """Rows of metrics.csv without what depends on the clock."""
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [(r["metric"], r["step"], r["value"]) for r in rows if not r["metric"].startswith(but)]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Bit for bit, in nested dicts and lists."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, Tensor):
        assert a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num()), where
    else:
        assert a == b or a != a, where


def same(a: Any, b: Any) -> bool:
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True


def tensors(state: Any) -> Iterator[Tensor]:
    """All of them, in nested dicts and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list)):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part)


def assert_finite(state: Any) -> None:
    assert all(torch.isfinite(x).all() for x in tensors(state) if x.is_floating_point())


# ---- a run -----------------------------------------------------------------------------------------------------------


OF_NETWORKS = {
    f"{kind}/{name}_{measure}"
    for name in ("actor", "critic")
    for kind, measures in {
        "repr": ("effective_rank", "srank", "dormant", "feature_norm", "gini", "trunk_gini", "weight_norm"),
        "sem": ("entropy", "perplexity", "usage_perplexity", "vertices_in_use", "dead_vertices"),
    }.items()
    for measure in measures
} | {"critic/td_error", "policy/churn"}
OF_NETWORKS |= {f"gradient/{name}_{x}" for name in ("actor", "critic") for x in ("norm", "variance", "noise_scale")}
OF_REPLAY = OF_NETWORKS | {
    *("losses/qf_loss", "losses/actor_loss", "critic/disagreement", "repr/critic_cosine_agreement"),
    "sem/critic_vertex_agreement",
}
OF_RETURNS = {
    f"critic/{name}"
    for name in ("cramer_distance", "target_mass_below", "target_mass_above", "suggested_v_min", "suggested_v_max")
}
OF_ROLLOUTS = OF_NETWORKS | {
    *("losses/policy_loss", "losses/value_loss", "losses/approx_kl", "losses/explained_variance")
}
OF_VALUES = {
    *(tag for tag in OF_NETWORKS if "/actor_" not in tag),
    *("losses/td_loss", "losses/q_values", "charts/epsilon"),
}
TAGS = {
    "fasttd3": OF_REPLAY | OF_RETURNS,
    "fastsac": {*OF_REPLAY, *OF_RETURNS, "losses/alpha", "losses/alpha_loss", "losses/entropy"},
    "fastsac-scalar": {*OF_REPLAY, "losses/alpha"},
    "ppo": {*OF_ROLLOUTS, "charts/action_std"},
    "ppo-discrete": {*OF_ROLLOUTS, "policy/total_variation"},
    "ppo-images": {*OF_ROLLOUTS, "repr/shared_effective_rank"},
    **dict.fromkeys(("pqn", "pqn-images"), OF_VALUES),
}


@every_kind
def test_a_run_leaves_what_it_promises(kind: str, tmp_path: Path) -> None:
    tiny = KINDS[kind].tiny
    run_dir = run_main(kind, tmp_path, sem=True)
    total = tiny["total_timesteps"]
    assert (status(run_dir)["state"], status(run_dir)["step"]) == ("done", total)
    saved = json.loads((run_dir / "config.json").read_text())
    assert saved["sem"] is True and saved["amp"] == "off" and saved["device"] == "cpu"
    assert {name: tuple(saved[name]) if isinstance(saved[name], list) else saved[name] for name in tiny} == tiny
    rows = metric_rows(run_dir, but=())
    assert TAGS[kind] | {
        *("charts/episodes", "charts/SPS", "charts/learning_rate", "health/nonfinite_transitions"),
        *("eval/episodic_return", "time/act", "time/env", "time/store", "time/learn", "time/other"),
    } <= {metric for metric, _, _ in rows}
    assert all(math.isfinite(float(value)) for _, _, value in rows)
    for metric, every in (("eval/episodic_return", tiny["eval_every"]), ("charts/SPS", tiny["log_every"])):
        expected = sorted({*range(every, total, every), total})
        assert [int(step) for name, step, _ in rows if name == metric] == expected
    events = EventAccumulator(str(run_dir), {"images": 0, "histograms": 0}).Reload()
    shown = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    drawn = sorted({*range(tiny["eval_every"], total, tiny["eval_every"]), total})
    networks = ("critic",) if kind.startswith("pqn") else ("actor", "critic")
    assert shown == {f"sem/{name}_simplices": drawn for name in networks}
    for tag in ("repr/{}_features", "repr/{}_trunk_features", "sem/{}_largest"):
        for name in networks:
            found = events.Histograms(tag.format(name))
            assert [event.step for event in found] == drawn and all(event.histogram_value.num for event in found)
    assert [int(path.name.removeprefix("step_")) for path in sorted((run_dir / "checkpoints").iterdir())] == [
        tiny["save_every"],
        total,
    ]


@every_kind
def test_same_seed_same_run_another_seed_another_run(kind: str, tmp_path: Path) -> None:
    one, two, other = (run_main(kind, tmp_path / str(i), sem=True, seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert metric_rows(one) == metric_rows(two)
    assert_same(final_state(one), final_state(two))
    assert metric_rows(one) != metric_rows(other)
    assert not same(final_state(one)["agent"]["modules"], final_state(other)["agent"]["modules"])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {}) for kind in KINDS),
        ("ppo", {"eval_sample": True}),
        *((kind, {"bottleneck": "gumbel-st"}) for kind in AGENTS),
        *((kind, {"torso": "flashsac"}) for kind in BATCH_NORMED),
    ],
    ids=[
        *(*KINDS, "ppo-eval_sample", *(f"{kind}-gumbel" for kind in AGENTS)),
        *(f"{kind}-flashsac" for kind in BATCH_NORMED),
    ],
)
def test_training_is_the_same_with_evaluation_logging_and_saving_off(kind: str, changes: dict, tmp_path: Path) -> None:
    changes = {**changes, "total_timesteps": min(160, KINDS[kind].tiny["total_timesteps"])}
    plain = final_state(run_main(kind, tmp_path / "plain", **changes, log_every=0, eval_every=0, save_every=0))
    watched = final_state(run_main(kind, tmp_path / "watched", **changes, log_every=4, eval_every=8, save_every=12))
    for state in (plain, watched):  # what a report has read and reset is not training
        for name in ("loss_sum", "loss_count"):
            state["agent"].pop(name)
        state["loop"]["stats"].pop("interval")
        state["loop"].pop("score")
    assert_same(plain, watched)


# ---- settings --------------------------------------------------------------------------------------------------------


PRIVILEGED = {"env_id": "PointMassPrivileged-v0", "total_timesteps": 80}
ATARI = {"num_envs": 2, "num_steps": 30, "total_timesteps": 60, "update_epochs": 1}
TO_MATTER: dict[str, dict[str, Any]] = {
    "sem_actor": {"sem": True, **PRIVILEGED},
    "sem_critic": {"sem": True, **PRIVILEGED},
    "sem_learned_temperature": {"sem": True, **PRIVILEGED},
    "share_hidden": {"env_id": "Pixels-v0", **IMAGES},
    "clip_vloss": {"clip_coef": 1e-3, **PRIVILEGED},
    "eval_sample": {"eval_every": 80, **PRIVILEGED},
    "episodic_life": {"env_id": "Breakout-v5", **ATARI},  # the first life is soon lost
    "sign_rewards": {"env_id": "Phoenix-v5", **ATARI},  # the first points are soon won, and more than one
}
"""what else it takes for a switch to make a difference"""


def discrete(kind: str, task: str) -> str:
    """A task that the agent can learn in the place of one with continuous actions."""
    return "ClosedFormDiscrete-v0" if kind == "pqn" and task.startswith("PointMass") else task


def switches(kind: str) -> list[str]:
    args = KINDS[kind].module.Args
    return [f.name for f in fields(args) if f.type in (bool, "bool") and f.name not in ("quiet", "compile")]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in AGENTS for name in switches(kind)])
def test_every_switch_both_ways(kind: str, name: str, tmp_path: Path) -> None:
    """Each runs, leaves finite numbers, and changes what it says and nothing but that."""
    changes = TO_MATTER.get(name, PRIVILEGED)
    changes = {**changes, "env_id": discrete(kind, changes["env_id"])}
    if changes["env_id"].endswith("-v5"):
        pytest.importorskip("envpool")
    changes = {"eval_every": 0, **changes}
    on, off = (run_main(kind, tmp_path / str(value), **{**changes, name: value}) for value in (True, False))
    for run_dir, value in ((on, True), (off, False)):
        assert json.loads((run_dir / "config.json").read_text())[name] is value
        assert_finite(final_state(run_dir)["agent"])
    agents_agree = same(final_state(on)["agent"], final_state(off)["agent"])
    if name == "save_replay":
        assert agents_agree and "replay" in final_state(on) and "replay" not in final_state(off)
    elif name == "eval_sample":
        assert agents_agree and metric_rows(on) != metric_rows(off)
    else:
        assert not agents_agree


@every_agent
def test_sem_is_one_of_the_bottlenecks(kind: str, tmp_path: Path) -> None:
    one, other = (
        run_main(kind, tmp_path / str(i), **words) for i, words in enumerate(({"sem": True}, {"bottleneck": "sem"}))
    )
    assert_same(final_state(one), final_state(other))
    assert json.loads((other / "config.json").read_text())["sem"] is True
    plain, relu = (run_main(kind, tmp_path / str(words), **words) for words in ({}, {"bottleneck": "relu"}))
    assert_same(final_state(plain), final_state(relu))


ANY_EDGES: list[dict[str, Any]] = [
    {"total_timesteps": 1},
    {"gamma": 0.0},
    {"gamma": 1.0},
    {"amp": "bfloat16"},
    {"sem": True, "sem_temperature": 0.1},
    *({"bottleneck": kind} for kind in ("layernorm", "narrow", "single", "gumbel-st", "vq", "crelu", "l2", "fta")),
    {"bottleneck": "gumbel-st", "sem_position": "every", "sem_learned_temperature": True, "amp": "bfloat16"},
    {"bottleneck": "vq", "sem_position": "every", "amp": "bfloat16"},
    {"sem": True, "sem_position": "input", "sem_temperature_end": 0.1, "amp": "bfloat16"},
    {"torso": "simba", "sem": True, "amp": "bfloat16"},
    {"torso": "simbav2", "critic_hidden": (16, 16, 8)},
    {"torso": "simbav2", "bottleneck": "vq", "amp": "bfloat16"},
]
FLASH = {"torso": "flashsac", "sem": True}
FLASH_EDGES: list[dict[str, Any]] = [{**FLASH, "amp": "bfloat16"}, {**FLASH, "sem_position": "every"}]
REPLAY_EDGES = [
    *ANY_EDGES,
    *FLASH_EDGES,
    {"torso": "flashsac", "num_envs": 1, "batch_size": 1, "buffer_size": 2, "n_step": 1},
    {"num_envs": 1, "batch_size": 1, "buffer_size": 2, "n_step": 1},
    {"n_step": 5, "policy_frequency": 1, "num_updates": 1},
    {"num_updates": 5, "policy_frequency": 3, "max_grad_norm": 0.1},
    {"replay_dtype": "bfloat16", "amp": "bfloat16"},
    {"replay_storage": "."},
    {"learning_starts": 0, "gamma": 0.0, "tau": 1.0},
    {"adam_betas": (0.0, 0.0), "activation": "elu", "layer_norm": True},
    {"size": "small", "atoms": 2, "sem": True, "sem_temperature": 0.1},
]
EDGES = {
    "fasttd3": [*REPLAY_EDGES, {"std_min": 0.0, "std_max": 0.0, "policy_noise": 0.0}],
    "fastsac": [
        *REPLAY_EDGES,
        {"size": "paper"},
        {"alpha_init": 1e-9, "alpha_lr": 0.0},
        {"alpha_init": 100.0, "target_entropy_ratio": 5.0},
        {"log_std_min": -20.0, "log_std_max": 2.0},
        {"n_step": 3, "distributional": False, "layer_norm": False, "activation": "tanh"},
    ],
    "ppo": [
        *ANY_EDGES,
        {"num_envs": 1, "num_minibatches": 10},  # minibatches of one row
        {"num_steps": 1, "num_minibatches": 1, "update_epochs": 1},
        {"gae_lambda": 0.0, "clip_vloss": False},
        {"gae_lambda": 1.0, "max_grad_norm": 0.0},
        {"target_kl": 1e-9, "lr_schedule": "constant"},
        {"lr_schedule": "adaptive", "desired_kl": 1e-9},
        {"vf_coef": 0.0, "ent_coef": 0.0},
        {"obs_clip": 1e-3, "reward_clip": 1e-3, "adam_eps": 0.0},
        {"init_std": 1e-3, "state_dependent_std": True},
    ],
    "pqn": [
        *ANY_EDGES,
        *FLASH_EDGES,
        {"torso": "flashsac", "num_envs": 1, "num_minibatches": 10},
        {"num_envs": 1, "num_minibatches": 10},  # minibatches of one row
        {"num_steps": 1, "num_minibatches": 1, "update_epochs": 1},
        {"q_lambda": 0.0, "layer_norm": False},
        {"q_lambda": 1.0, "max_grad_norm": 0.0},
        {"epsilon_start": 0.0, "epsilon_end": 0.0},
        {"epsilon_start": 1.0, "epsilon_end": 1.0, "exploration_fraction": 0.0, "eval_epsilon": 1.0},
        {"obs_norm": True, "obs_clip": 1e-3, "reward_norm": True, "reward_clip": 1e-3, "activation": "tanh"},
    ],
    "pqn-images": [{"amp": "bfloat16", "sem": True}, {"layer_norm": False}, {"bottleneck": "vq"}],
    "ppo-discrete": [{"amp": "bfloat16", "sem": True}, {"num_envs": 1, "num_minibatches": 10}],
    "ppo-images": [{"amp": "bfloat16", "sem": True}, {"sem": True, "sem_critic": False}, {"bottleneck": "vq"}],
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [pytest.param(kind, edge, id=f"{kind}-{','.join(edge)}") for kind in EDGES for edge in EDGES[kind]],
)
def test_edge_values(kind: str, changes: dict, tmp_path: Path) -> None:
    run_dir = run_main(kind, tmp_path, **{"total_timesteps": 80, "eval_every": 0, **changes})
    assert status(run_dir)["state"] == "done"
    assert_finite(final_state(run_dir)["agent"])


ANY_BAD = [
    (["--env-id", "PointMas-v0"], "PointMass-v0"),
    (["--num-env", "3"], "--num-envs"),
    (["--num-envs", "many"], "--num-envs many: expected an integer"),
    (["--num-envs", "0"], "--num-envs 0: must be above 0"),
    (["--num-envs", "-1"], "--num-envs -1"),
    (["--gamma", "1.5"], "--gamma 1.5"),
    (["--device", "cuda:77"], "CUDA"),
    (["--device", "tpu"], "--device tpu"),
    (["--sem", "--sem-actor-vertices", "1"], "vertices >= 2"),
    (["--critic-hidden", "16", "0"], "at least one unit"),
    (["--bottleneck", "dropout"], "expected one of auto, relu, sem, layernorm"),
    *((["--sem", "--bottleneck", kind], "--sem stands for --bottleneck sem") for kind in ("relu", "vq")),
    (["--no-sem", "--bottleneck", "sem"], "--sem stands for --bottleneck sem"),
    (["--bottleneck", "vq", "--sem-temperature", "2"], "vq has no temperature"),
    (["--sem", "--sem-position", "every", "--actor-hidden", "12", "16"], "a multiple of V=8 units wide, got 12"),
    (["--sem", "--sem-position", "middle"], "expected one of last, every, input"),
    (["--sem-temperature-end", "-1"], "--sem-temperature-end -1.0: must be 0 or above"),
    (["--sem", "--sem-temperature-end", "2", "--sem-learned-temperature"], "must be above 0, and not learned"),
    (["--resume", "nowhere"], "nowhere"),
    (["--critic-hidden", "999999999"], "at most 32,768 units, got hidden layers of (999999999,)"),
    (["--sem", "--sem-critic-groups", "999999999"], "and a block of 3999999996"),
    (["--seed", "99999999999999999999"], "must be below 2^63"),
    (["--env-id", "tests.test_agents:Bare"], "does not set num_envs, device, obs_space"),
    (["--env-id", "tests.test_agents:nothing"], "it registers no Gymnasium environment of that name"),
    (["--env-threads", "2"], "(--env-threads sets num_threads)"),
    (["--seed", "4294967296"], "--seed 4294967296: must be below 2^32"),
    (["--sem", "--no-sem-actor", "--no-sem-critic"], "there is no network left"),
]
NO_SYMMETRY = ["--symmetry", "--env-id", "Scripted-v0"], "no symmetry of Scripted-v0 is known; tell it with"
REPLAY_BAD = [
    *ANY_BAD,
    NO_SYMMETRY,
    (["--bach-size", "3"], "--batch-size"),
    (["--batch-size", "0"], "--batch-size 0: must be above 0"),
    (["--batch-size", "1000000000000"], "--batch-size 1000000000000: must be at most 2e+08"),
    (["--critic-lr", "1e308"], "--critic-lr 1e+308: must be at most 3e+38"),
    (["--buffer-size", "10000000000000"], "--buffer-size"),
    (
        ["--buffer-size", "4", "--n-step", "3"],
        "--buffer-size 4: with --num-envs 4 and --n-step 3 it must be at least 9",
    ),
    (["--num-envs", "99999999", "--buffer-size", "999999999"], "num_envs is 99999999, must be from 1 to"),
    (["--atoms", "999999999999"], "from 2 to 32,768 atoms"),
    (["--tau", "1.5"], "--tau 1.5"),
    (["--adam-betas", "0.9", "1"], "--adam-betas (0.9, 1.0): both must be at least 0 and below 1"),
    (["--v-min", "5", "--v-max", "-5"], "--v-min 5.0 --v-max -5.0: the first must be below the second"),
    (["--v-min", "-1e300"], "both within 1e+12"),
    (["--v-min", "0", "--v-max", "1e-320"], "the first must be below the second"),
    (["--tau", "0"], "--tau 0.0: must be above 0"),
    (["--env-id", "CartPole-v1"], "needs continuous actions and observations that are vectors"),
    *((["--env-id", task], "use agents/ppo.py") for task in ("CartPole-v1", "ClosedFormDiscrete-v0", "Pixels-v0")),
]
BAD = {
    "fasttd3": [*REPLAY_BAD, (["--std-min", "0.5", "--std-max", "0.1"], "--std-min 0.5")],
    "fastsac": [
        *REPLAY_BAD,
        (["--alpha-init", "0"], "--alpha-init 0.0: must be above 0"),
        (["--log-std-min", "1", "--log-std-max", "0"], "log_std must not be empty"),
    ],
    "pqn": [
        *(row for row in ANY_BAD if "actor" not in str(row)),
        (["--sem", "--sem-critic-vertices", "1"], "vertices >= 2"),
        (["--sem", "--sem-position", "every", "--critic-hidden", "10", "16"], "a multiple of V=4 units wide, got 10"),
        (["--num-minibatches", "3"], "the nearest that do are 1, 2, 4, 5"),
        (["--num-steps", "999999999"], "must be at most 268,435,456"),
        (["--q-lambda", "2"], "--q-lambda 2.0: must be from 0 to 1"),
        *((["--epsilon-end", x], f"--epsilon-end {x}: must be from 0 to 1") for x in ("-0.1", "1.5")),
        (["--exploration-fraction", "2"], "--exploration-fraction 2.0"),
        (["--eval-epsilon", "-1"], "--eval-epsilon -1.0"),
        (["--sem-actor-groups", "3"], "unknown flag --sem-actor-groups; did you mean --sem-critic-groups?"),
        *((["--env-id", task], "PQN needs discrete actions") for task in ("PointMass-v0", "ClosedForm-v0")),
    ],
    "ppo": [
        *ANY_BAD,
        NO_SYMMETRY,
        (["--num-minibatches", "3"], "the nearest that do are 1, 2, 4, 5"),  # of 4 * 10 rows
        (["--num-minibatches", "41"], "the nearest that do are 8, 10, 20, 40"),
        (["--num-steps", "999999999"], "must be at most 268,435,456"),
        (["--gae-lambda", "2"], "--gae-lambda 2.0"),
        (["--lr-schedule", "cosine"], "expected one of constant, linear, adaptive"),
        (["--init-std", "0"], "--init-std 0.0: must be above 0"),
        (["--torso", "flashsac"], "give mlp, simba or simbav2"),
        (["--learning-rate", "1e308"], "--learning-rate 1e+308: must be at most 3e+38"),
        (["--buffer-size", "3"], "unknown flag --buffer-size"),
    ],
}


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [pytest.param(kind, *row, id=f"{kind} {' '.join(row[0])}: {row[1]}") for kind in BAD for row in BAD[kind]],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    kind: str, words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, tiny = KINDS[kind]
    root = tmp_path / "runs"
    with pytest.raises(SystemExit) as stop:
        module.main([*flags(**tiny), "--run-root", str(root), *words])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert not root.exists() or not list(root.iterdir())


# ---- a simulator that fails ------------------------------------------------------------------------------------------


@every_agent
def test_a_nan_of_the_simulator_is_quarantined(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = envs.make

    def make_with_nan(task: str, *args: Any, **options: Any) -> envs.VecEnv:
        return make(task, *args, **options, nan_at=(1, 2, 1))

    monkeypatch.setattr(envs, "make", make_with_nan)
    wide = {"v_max": 1e5} if kind in LEARNERS else {}
    monkeypatch.setitem(envs.torch.TASKS, "ScriptedDiscrete-v0", ScriptedDiscrete)
    task = "ScriptedDiscrete-v0" if kind == "pqn" else "Scripted-v0"
    run_dir = run_main(kind, tmp_path, env_id=task, eval_every=0, **wide)
    assert_finite(final_state(run_dir)["agent"])
    replay = final_state(run_dir).get("replay", {"ring": {}, "finals": {}})
    assert_finite([replay["ring"], replay["finals"]])
    spoilt = sum(float(value) for metric, _, value in metric_rows(run_dir) if metric == "health/nonfinite_transitions")
    assert spoilt == 1


class Bare(envs.VecEnv):
    """An environment that says nothing of itself."""

    def __init__(self, num_envs: int, seed: int, device: torch.device) -> None:
        pass

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def step(self, action: Tensor) -> envs.Step:
        raise NotImplementedError


class ScriptedDiscrete(Scripted):
    """`Scripted` with three actions."""

    action_space = Discrete(3)  # type: ignore[assignment]

    def advance(self, state: dict[str, Tensor], action: Tensor) -> tuple:
        return super().advance(state, action.float()[:, None])


class Careless(PointMass):
    """An environment that lets a NaN through."""

    def step(self, action: Tensor) -> envs.Step:
        step = super().step(action)
        step.reward[1] = math.nan
        return step


class CarelessDiscrete(ClosedFormDiscrete):
    """The same with discrete actions."""

    def step(self, action: Tensor) -> envs.Step:
        step = super().step(action)
        step.reward[1] = math.nan
        return step


@every_agent
def test_a_nan_that_an_own_environment_lets_through_ends_the_run(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, tiny = KINDS[kind]
    task = "CarelessDiscrete" if kind == "pqn" else "Careless"
    words = flags(**{**tiny, "env_id": f"tests.test_agents:{task}"})
    with pytest.raises(SystemExit) as stop:
        module.main([*words, "--run-dir", str(tmp_path / "run"), "--quiet"])
    assert stop.value.code == 2
    assert "not finite: reward of environment 1; its adapter must" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


@every_agent
def test_help_can_be_cut_short(kind: str) -> None:
    command = f"{sys.executable} agents/{kind}.py --help | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1 and not done.stderr


# ---- saving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sem", [True, False])
@every_kind
def test_state_round_trip(kind: str, sem: bool, tmp_path: Path) -> None:
    module, tiny = KINDS[kind]
    agent, *rest = build(kind, sem=sem, seed=0, log_every=0)
    update, seen = agent.update, []
    agent.update = lambda data: (seen.append(data.clone()), update(data))
    with Run.create(
        replace(agent.args, total_timesteps=tiny["total_timesteps"] // 4), root=tmp_path, quiet=True
    ) as run:
        module.train(run, agent, *rest)
        run.finish()
    del agent.update
    other, *_ = build(kind, sem=sem, seed=1)
    obs, _ = rest[-2].reset()
    assert not same(agent.state_dict(), other.state_dict())
    torch.save(agent.state_dict(), tmp_path / "agent.pt")
    other.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    assert torch.equal(agent.act(obs), other.act(obs))
    for one in (agent, other):  # the optimisers' state came along: the next updates are the same too
        torch.manual_seed(3)
        one.update(seen[-1])
        one.update(seen[-1])
    assert_same(agent.state_dict(), other.state_dict())


PLAIN_TO = [{"sem": True}, {"env_id": "PointMassPrivileged-v0"}, {"critic_hidden": (16, 8)}]
OTHER_NETWORKS = [
    *((kind, changes) for kind in (*LEARNERS, "ppo") for changes in PLAIN_TO),
    *(("pqn", changes) for changes in ({"sem": True}, {"critic_hidden": (16, 8)}, {"layer_norm": False})),
    *(("pqn", changes) for changes in ({"env_id": "Pixels-v0"}, {"bottleneck": "vq"}, {"reward_norm": True})),
    *(("fasttd3", {"bottleneck": kind}) for kind in ("gumbel-st", "vq", "crelu", "fta")),
    ("ppo", {"bottleneck": "vq"}),
    ("fasttd3", {"layer_norm": True}),
    *(("fastsac", {name: False}) for name in ("distributional", "layer_norm")),
    ("ppo", {"state_dependent_std": True}),
    ("ppo", {"env_id": "ClosedForm-v0"}),
    ("ppo-images", {"share_hidden": False}),
    ("ppo-images", {"sem": True, "sem_actor": False}),
]


@pytest.mark.parametrize(
    ("kind", "changes"), OTHER_NETWORKS, ids=[f"{kind}-{','.join(changes)}" for kind, changes in OTHER_NETWORKS]
)
def test_checkpoint_of_another_architecture_is_named(kind: str, changes: dict) -> None:
    one, other = build(kind, **changes)[0], build(kind)[0]
    for here, there in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=r"the checkpoint does not fit: .* there and .* here"):
            here.load_state_dict(there.state_dict())


@every_agent
def test_tau_goes_from_start_to_end_in_all_networks(kind: str) -> None:
    """The target's too; learning rates do not depend on it."""
    agent = build(kind, **ANNEALED)[0]
    for progress, tau in ((0.0, 2.0), (0.5, math.sqrt(0.2)), (1.0, 0.1)):
        agent.anneal(progress)
        found = [x.item() for name, x in agent.modules.state_dict().items() if name.endswith("tau")]
        networks = 1 if kind == "pqn" else 3 if kind in LEARNERS else 2
        assert found == pytest.approx([tau] * networks)


@every_agent
def test_sem_has_its_place(kind: str, tmp_path: Path) -> None:
    """As many features either way, and other networks."""
    places = ("last", "input", "every")
    states = [final_state(run_main(kind, tmp_path / place, sem=True, sem_position=place)) for place in places]
    shapes = [{n: x.shape for n, x in state["agent"]["modules"].items() if "norm" not in n} for state in states]
    assert shapes[0] != shapes[1] != shapes[2] != shapes[0]


# ---- going on --------------------------------------------------------------------------------------------------------


def failing_at(limit: float) -> Callable[[Run, int], None]:
    """`Run.progress` with a defect."""
    progress = Run.progress

    def fail(run: Run, step: int) -> None:
        progress(run, step)
        if step > limit:
            raise ZeroDivisionError("a defect")

    return fail


DRAWING = {"bottleneck": "gumbel-st", "sem_learned_temperature": True}
SPHERES = {"torso": "simbav2", "sem": True}
ANNEALED = {"sem": True, "sem_temperature": 2.0, "sem_temperature_end": 0.1}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"sem": True}) for kind in KINDS),
        *((kind, DRAWING) for kind in AGENTS),
        *((kind, {"bottleneck": "vq"}) for kind in AGENTS),
        *((kind, ANNEALED) for kind in AGENTS),
        *((kind, SPHERES) for kind in AGENTS),
        *((kind, {"symmetry": True, "env_id": "PointMassPrivileged-v0"}) for kind in CONTINUOUS),
        *((kind, FLASH) for kind in BATCH_NORMED),
    ],
    ids=[
        *KINDS,
        *(f"{kind}-{what}" for what in ("gumbel", "vq", "annealed", "spheres") for kind in AGENTS),
        *(f"{kind}-symmetry" for kind in CONTINUOUS),
        *(f"{kind}-flashsac" for kind in BATCH_NORMED),
    ],
)
def test_failed_and_resumed_equals_uninterrupted(
    kind: str, changes: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an exception that comes a while after a checkpoint, all is measured again and becomes the same."""
    total = KINDS[kind].tiny["total_timesteps"]
    whole = run_main(kind, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Run, "progress", failing_at(0.7 * total))
        run_main(kind, tmp_path / "failed", **changes)
    (run_dir,) = (tmp_path / "failed").iterdir()
    assert status(run_dir)["state"] == "failed" and 0.7 * total < status(run_dir)["step"] < total
    assert resume(kind, run_dir) == 0
    assert_same(final_state(whole), final_state(run_dir))
    assert metric_rows(whole) == metric_rows(run_dir)


@every_agent
def test_the_simulator_that_was_chosen_is_said(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, tiny = KINDS[kind]
    assert module.main([*flags(**tiny), "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert f"task  {tiny['env_id']} by torch, " in said.out + said.err


@every_agent
def test_the_same_command_again_goes_on_until_it_is_done(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, tiny = KINDS[kind]
    whole = run_main(kind, tmp_path / "whole")
    run_dir = tmp_path / "parts" / "mine"
    command = [*flags(**tiny), "--run-dir", str(run_dir), "--quiet"]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Run, "progress", failing_at(0.7 * tiny["total_timesteps"]))
        module.main(command)
    with pytest.raises(SystemExit) as stop:
        module.main([*command, "--seed", "2"])
    assert stop.value.code == 2 and "--seed" in capsys.readouterr().err
    assert module.main(command) == 0
    assert_same(final_state(whole), final_state(run_dir))
    assert metric_rows(whole) == metric_rows(run_dir)
    with pytest.raises(SystemExit) as stop:
        module.main(command)
    assert stop.value.code == 2 and "is done" in capsys.readouterr().err


@every_agent
def test_a_run_that_dies_after_its_last_checkpoint_keeps_its_score(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, tiny = KINDS[kind]
    command = [*flags(**tiny), "--run-dir", str(tmp_path / "run"), "--quiet"]

    def die(*_: object) -> int:
        raise ZeroDivisionError

    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Run, "finish", die)
        module.main(command)
    assert not (tmp_path / "run" / "result.json").exists()
    assert module.main(command) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    with (tmp_path / "run" / "metrics.csv").open() as file:
        seen = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "eval/episodic_return"]
    assert result["eval"]["episodic_return"] == seen[-1]


CONSTANT: dict[str, dict[str, Any]] = {
    **{kind: {"critic_lr_end": 1e-3, "actor_lr_end": 1e-3} for kind in LEARNERS},
    "ppo": {"lr_schedule": "constant"},
    "pqn": {"anneal_lr": False, "exploration_fraction": 0.0},
}
"""learning rates, and an epsilon, that do not go by total_timesteps"""


@every_agent
def test_resume_falls_back_from_a_corrupt_checkpoint(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**CONSTANT[kind], "save_every": 40}
    whole = run_main(kind, tmp_path / "whole", total_timesteps=160, **changes)
    part = run_main(kind, tmp_path / "part", total_timesteps=120, **changes)  # checkpoints at 80 and 120
    newest, _ = newest_checkpoint(part)
    with open(newest.path / "agent.pt", "r+b") as file:
        file.seek(1000)
        file.write(b"\0garbage")
    capsys.readouterr()
    assert resume(kind, part, "--total-timesteps", "160") == 0
    assert "step_000000000120" in capsys.readouterr().err
    assert_same(final_state(part), final_state(whole))
    assert metric_rows(part) == metric_rows(whole)


@every_agent
def test_resume_refuses_other_settings(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run_main(kind, tmp_path, total_timesteps=40)
    for words, message in ((["--gamma", "0.5"], "--gamma"), (["--sem"], "--sem"), ([], "is done")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            resume(kind, run_dir, *words)
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert err.startswith("error: ") and err.count("\n") == 1 and message in err


@every_agent
def test_a_resumed_run_keeps_as_many_checkpoints_as_it_is_told(kind: str, tmp_path: Path) -> None:
    run_dir = run_main(kind, tmp_path, total_timesteps=200, save_every=40, keep_checkpoints=4)
    assert len(step_dirs(run_dir)) == 4
    assert resume(kind, run_dir, "--total-timesteps", "240") == 0
    assert len(step_dirs(run_dir)) == 4
    assert resume(kind, run_dir, "--total-timesteps", "280", "--keep-checkpoints", "3") == 0
    assert [int(path.name[5:]) for path in step_dirs(run_dir)] == [200, 240, 280]


@every_agent
def test_what_else_cannot_be_resumed(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = run_main(kind, tmp_path, total_timesteps=200, save_every=40)
    (run_dir / "status.json").write_text('{"state": "interrupted", "step": "x"}')
    other = AGENTS[AGENTS.index(kind) - 1]
    for who, words, message in (
        (kind, ["--total-timesteps", "100"], "--total-timesteps 100: 200 frames are trained already"),
        (other, [], f"is a run of {kind}: resume it with agents/{kind}.py"),
    ):
        with pytest.raises(SystemExit) as stop:
            resume(who, run_dir, *words)
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1 and message in err, err
    assert json.loads((run_dir / "config.json").read_text())["total_timesteps"] == 200
    (run_dir / "events.out.tfevents.foo").touch()
    assert resume(kind, run_dir, "--total-timesteps", "240") == 0
    (run_dir / "manifest.json").write_text("{}")
    with pytest.raises(SystemExit):
        resume(kind, run_dir, "--total-timesteps", "280")
    assert "manifest.json is damaged: it lacks the list of resumes" in capsys.readouterr().err


@every_agent
def test_what_cannot_be_built_on_resuming_is_a_failure(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = run_main(kind, tmp_path, total_timesteps=80)

    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no simulator today")

    monkeypatch.setattr(KINDS[kind].module.envs, "make", broken)
    with pytest.raises(SystemExit):
        resume(kind, run_dir, "--total-timesteps", "120")
    assert status(run_dir)["state"] == "failed" and "no simulator today" in status(run_dir)["why"]


@pytest.mark.parametrize("kind", LEARNERS)
def test_without_its_replay_a_resumed_run_collects_before_it_learns(kind: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"save_replay": False, "learning_starts": 80, "eval_every": 0}
    run_dir = run_main(kind, tmp_path, total_timesteps=200, **changes)
    steps = optimizer_steps(final_state(run_dir))
    assert resume(kind, run_dir, "--total-timesteps", "276") == 0
    assert optimizer_steps(final_state(run_dir)) == steps
    assert resume(kind, run_dir, "--total-timesteps", "400") == 0
    collecting = 276 + 80
    assert optimizer_steps(final_state(run_dir)) == steps + (400 - collecting) * 2 / 4


@every_agent
def test_a_diverged_run_has_failed(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rate = {"critic_lr": 1e30, "actor_lr": 1e30} if kind in LEARNERS else {"learning_rate": 1e30}
    module, tiny = KINDS[kind]
    words = flags(**{**tiny, "total_timesteps": 400, **rate}, run_dir=str(tmp_path / "run"))
    assert module.main([*words, "--quiet"]) == 1
    assert status(tmp_path / "run")["state"] == "failed"
    assert status(tmp_path / "run")["why"].startswith("diverged: losses/")
    assert not (tmp_path / "run" / "result.json").exists()
    assert "diverged: losses/" in capsys.readouterr().err


def test_an_error_of_somebody_else_s_says_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own_env_that_raises.py").write_text("def make(num_envs, seed, device):\n    raise ValueError('no')\n")
    sys.path.append(str(tmp_path))
    with pytest.raises(SystemExit):
        fasttd3.main([*flags(**OFF_POLICY), "--env-id", "own_env_that_raises:make"])
    sys.path.remove(str(tmp_path))
    assert f"error: no (raised in {tmp_path}/own_env_that_raises.py, line 2)" in capsys.readouterr().err


@every_agent
def test_resume_on_an_engine_without_snapshots(kind: str, tmp_path: Path) -> None:
    """EnvPool cannot restore a simulator: learner and replay continue exactly, environments begin new episodes."""
    changes: dict[str, Any] = {"env_id": "InvertedPendulum-v5", "eval_every": 0}
    changes |= {"v_max": 100.0, "buffer_size": 400} if kind in LEARNERS else {}
    changes |= {"env_id": "CartPole-v1", "obs_norm": True} if kind == "pqn" else {}
    run_dir = run_main(kind, tmp_path, total_timesteps=200, **changes)
    before = final_state(run_dir)
    assert resume(kind, run_dir, "--total-timesteps", "400") == 0
    after = final_state(run_dir)
    per_frame = 2 / 4 if kind in LEARNERS else 2 * 4 / 40
    assert optimizer_steps(after) == optimizer_steps(before) + per_frame * 200
    seen = [state["agent"]["modules"]["obs_norm.count"].item() for state in (before, after)]
    assert seen[1] == seen[0] + 200
    if kind in LEARNERS:
        filled = before["replay"]["step"]
        assert after["replay"]["step"] == filled + 200 // 4 + 1  # one slot is the seam
        old, new = (state["replay"]["ring"]["action"][: filled * 4] for state in (before, after))
        assert torch.equal(old, new)


# ---- as a process ----------------------------------------------------------------------------------------------------


def start(kind: str, root: Path, **changes: Any) -> subprocess.Popen[str]:
    module, tiny = KINDS[kind]
    assert module.__file__
    path = Path(module.__file__).relative_to(ROOT)
    command = [sys.executable, str(path), *flags(**{**tiny, **changes}), "--run-root", str(root)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(process: subprocess.Popen[str], root: Path, at_least: int = 1) -> Path:
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.poll() is None:
        found = sorted(root.glob("*/checkpoints/step_*"))
        if len(found) >= at_least:
            return found[0].parents[1]
        time.sleep(0.01)
    process.kill()
    raise AssertionError(f"no checkpoint: {process.communicate()}")


# Long enough that the process is still at work when its second checkpoint is noticed.
LONG: dict[str, dict[str, Any]] = {
    **{kind: {"total_timesteps": 1_600, "n_step": 3} for kind in LEARNERS},
    **{kind: {"total_timesteps": 3_200} for kind in ("ppo", "pqn")},
}
OFTEN = {"save_every": 200, "eval_every": 600, "log_every": 100, "sem": True}


@pytest.mark.parametrize(
    ("kind", "compiled"),
    [*((kind, False) for kind in AGENTS), *(pytest.param(kind, True, marks=needs_compiler) for kind in ("ppo", "pqn"))],
)
def test_killed_and_resumed_equals_uninterrupted(kind: str, compiled: bool, tmp_path: Path) -> None:
    """kill -9 at an arbitrary moment, then --resume: every tensor, random stream and metric is as if nothing was.

    Also where the first rollout after that, like the one before, acts compiled.
    """
    often = {**OFTEN, "compile": compiled}
    process = start(kind, tmp_path / "killed", **often, **LONG[kind])
    run_dir = wait_for_checkpoint(process, tmp_path / "killed", 2)
    process.kill()
    process.communicate()
    assert status(run_dir)["state"] == "running" and status(run_dir)["step"] < LONG[kind]["total_timesteps"]
    assert resume(kind, run_dir) == 0
    whole = run_main(kind, tmp_path / "whole", **often, **LONG[kind])
    assert_same(final_state(whole), final_state(run_dir))
    assert metric_rows(whole) == metric_rows(run_dir)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("fasttd3", "SIGTERM"), *((kind, "SIGUSR1") for kind in LEARNERS), *((k, "SIGTERM") for k in ("ppo", "pqn"))],
)
def test_a_signal_saves_and_exits_with_75(kind: str, name: str, tmp_path: Path) -> None:
    process = start(kind, tmp_path, **{**OFTEN, "total_timesteps": 10_000_000})
    run_dir = wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    ended = status(run_dir)
    assert ended["state"] == "interrupted" and ended["why"] == name
    checkpoint, _ = newest_checkpoint(run_dir)
    assert checkpoint.step == ended["step"]
    assert "run directory" in out
