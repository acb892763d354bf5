"""What other code has published, as the agents here name it: checkpoints of github.com/younggyoseo/FastTD3.

Its `save_params` writes one file with actor, critics, their targets, normalisers and settings. The networks are layer
for layer those of `agents/fasttd3.py` with three hidden layers, each half as wide as the one before, with SEM or
without. What the file lacks, the optimisers and the scale of rewards, starts afresh.
"""

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agents.checkpoint import RunError, disk

PLACES = {"": (False, False), "sim_actor": (True, False), "sim_critic": (False, True), "sim_both": (True, True)}
"""of their `sim_type`: SEM in the actor, and in the critics"""
BUFFERS = ("noise_scales", "std_min", "std_max", "q_support")
"""what their networks save beside parameters"""
NORM_EPS = 1e-2
"""what their normaliser adds to the deviation, and ours"""


class Published(NamedTuple):
    """A checkpoint of other code."""

    task: str
    step: int
    settings: dict[str, Any]
    """those of our agent that shape its networks"""
    modules: dict[str, Tensor]
    """networks and normalisers by our names; what the file lacks is not there"""


def read_fasttd3(path: Path) -> Published:
    """Return what is in a file that FastTD3 has written.

    Raises:
        RunError: it is none, holds more than tensors and plain values, or has networks that are not ours.
    """
    try:
        with disk(f"read {path}"):
            file = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, EOFError, RuntimeError) as error:
        raise RunError(f"{path} cannot be read: {error}".partition("\n")[0]) from error
    wanted = ("actor_state_dict", "qnet_state_dict", "qnet_target_state_dict", "args")
    if not isinstance(file, Mapping) or not all(isinstance(file.get(name), Mapping) for name in wanted):
        raise RunError(f"{path} is no checkpoint of FastTD3: it lacks one of {', '.join(wanted)}")
    actor, critic, target = (uncompiled(file[name]) for name in wanted[:3])
    args = file["args"]
    try:
        settings = settings_of(args)
        in_actor, in_critic = PLACES[args.get("sim_type", "")]
        modules = {
            **{f"actor.{name}": x for name, x in zip(names(in_actor), parameters(actor), strict=True)},
            **{f"critic.{name}": x for name, x in zip(names(in_critic), stacked(critic), strict=True)},
            **{f"target.{name}": x for name, x in zip(names(in_critic), stacked(target), strict=True)},
            "critic.support": critic["q_support"],
            "target.support": target["q_support"],
        }
        seen = file.get("obs_normalizer_state") or {}
        for ours, state in (("obs_norm", seen), ("critic_obs_norm", file.get("critic_obs_normalizer_state") or seen)):
            modules |= {f"{ours}.{name}": x for name, x in normaliser(state).items()}
        return Published(str(args["env_name"]), int(file.get("global_step", 0)), settings, modules)
    except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        why = "its networks are not FastTD3's plain ones, or of another version"
        raise RunError(f"{path} does not fit: {why} ({type(error).__name__}: {error})".replace("\n", " ")) from error


def settings_of(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return our settings of the networks, for theirs."""
    in_actor, in_critic = PLACES[args.get("sim_type", "")]
    hidden = {
        f"{name}_hidden": tuple(args[f"{name}_hidden_dim"] // half for half in (1, 2, 4))
        for name in ("actor", "critic")
    }
    out: dict[str, Any] = {
        **hidden,
        **{"layer_norm": False, "activation": "relu", "torso": "mlp", "obs_norm": bool(args["obs_normalization"])},
        **{"atoms": args["num_atoms"], "v_min": float(args["v_min"]), "v_max": float(args["v_max"])},
        "sem": in_actor or in_critic,
        "bottleneck": "sem" if in_actor or in_critic else "auto",
    }
    if out["sem"]:
        out |= {"sem_actor": in_actor, "sem_critic": in_critic, "sem_position": "last", "sem_temperature": 1.0}
        out |= {"sem_learned_temperature": False, "sem_temperature_end": 0.0}
        for name in ("actor", "critic"):
            out |= {f"sem_{name}_groups": args[f"{name}_seq_len"], f"sem_{name}_vertices": args["sim_dimension"]}
    return out


def names(sem: bool) -> list[str]:
    """Return our names of the parameters of a network, in the order of its layers."""
    last = ("torso.4.linear", "torso.4.norm") if sem else ("torso.4",)
    return [f"{layer}.{kind}" for layer in ("torso.0", "torso.2", *last, "head") for kind in ("weight", "bias")]


def uncompiled(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state of a network by the names that it has where it is not compiled."""
    return {name.removeprefix("_orig_mod."): x for name, x in state.items()}


def parameters(state: Mapping[str, Tensor], prefix: str = "") -> list[Tensor]:
    """Return the parameters of one of their networks, in the order of its layers.

    Raises:
        ValueError: it has layers that ours has not.
    """
    own = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix) and name not in BUFFERS}
    if other := sorted(name for name in own if name.partition(".")[0] not in ("net", "fc_head", "fc_mu")):
        raise ValueError(f"{other[0]} is no layer of it")
    return list(own.values())


def stacked(state: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the parameters of their two critics as those of our batched ones: [Q, in, out] and [Q, 1, out]."""
    pairs = zip(parameters(state, "qnet1."), parameters(state, "qnet2."), strict=True)
    return [torch.stack([x.T if x.dim() == 2 else x[None] for x in pair]).contiguous() for pair in pairs]


def normaliser(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the statistics of their normaliser as ours has them; empty where there was none."""
    if not state:
        return {}
    mean, variance, deviation = (state[name][0] for name in ("_mean", "_var", "_std"))
    count = state["count"].double()
    return {
        "mean64": mean.double(),
        "square": variance.double() * count,
        "count": count,
        "mean": mean.float(),
        "scale": 1 / (deviation.float() + NORM_EPS),
    }
