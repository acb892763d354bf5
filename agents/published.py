"""What other code has published, as the agents here name it: one file, for `--init-from`.

1. Of github.com/younggyoseo/FastTD3, for `agents/fasttd3.py`. Its `save_params` writes actor, critics, their targets,
   normalisers and settings. The networks are layer for layer those here with three hidden layers, each half as wide as
   the one before, with SEM or without.
2. Of github.com/vwxyzjn/cleanrl, for `agents/ppo.py`: `*.cleanrl_model` as `ppo_continuous_action.py --save-model`
   writes it, and `torch.save(agent.state_dict(), FILE)` in its `ppo.py` and `ppo_atari_envpool.py`. There are weights
   in it and nothing else: the statistics of observations, without which a continuous policy does not do what it has
   learned, are lost there, and start afresh here.

Optimisers and the scale of rewards start afresh too. CleanRL's TD3, SAC and DQN have networks that no agent here has.
"""

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
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
    lacking: tuple[str, ...] = ("reward_scale.",)
    """how the names begin that the file does not have, and that start afresh"""
    own_units: bool = False
    """the policy's actions are in the task's units, not in [-1, 1]"""


def read(path: Path, agent: str | None) -> Published:
    """Return what is in a file that an agent can start from.

    Raises:
        RunError: the agent can start from no file, or not from this one.
    """
    if agent not in READERS:
        whose = " and ".join(f"{name} for agents/{ours}.py" for ours, (name, _) in READERS.items())
        raise RunError(f"{path} is a file: {whose} can be read, agents/{agent}.py starts from a run directory")
    found = READERS[agent][1](path)
    for name, x in found.modules.items():
        if not x.is_floating_point() or x.device.type != "cpu" or x.layout != torch.strided:
            raise RunError(f"{path} does not fit: {name} is no dense tensor of floating-point numbers")
    return found


def load(path: Path) -> Any:
    """Return the content of a file of tensors and plain values.

    Raises:
        RunError: it is none, or holds more.
    """
    try:
        with disk(f"read {path}"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how old or foreign a file is
            return torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # what torch's unpickler raises for bytes that are none of its own is anybody's guess
        why = "torch.save has not written it, it is damaged, or it holds more than tensors and plain values"
        raise RunError(f"{path} cannot be read: {why}") from error


# ---- FastTD3 ---------------------------------------------------------------------------------------------------------


def read_fasttd3(path: Path) -> Published:
    """Return what is in a file that FastTD3 has written.

    Raises:
        RunError: it is none, holds more than tensors and plain values, or has networks that are not ours.
    """
    file = load(path)
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


# ---- CleanRL ---------------------------------------------------------------------------------------------------------

LAYER = re.compile(r"(network|critic|actor|actor_mean)\.(?:([0-9]+)\.)?(weight|bias)")
CONVOLUTIONS = {"network.0": (8, 8), "network.2": (4, 4), "network.4": (3, 3)}
"""of their Atari network, with the size of the kernel"""


def read_cleanrl(path: Path) -> Published:
    """Return what is in a file with the networks of CleanRL's PPO: continuous, discrete, or of images.

    Which settings they were trained with is not in it: hidden layers of vectors are taken to have tanh, as theirs have,
    and continuous policies to see normalised observations.

    Raises:
        RunError: it is none, holds more than tensors, or has networks that are not ours.
    """
    file = load(path)
    if isinstance(file, list | tuple) and len(file) > 1 and all(isinstance(part, Mapping) for part in file):
        raise RunError(
            f"{path} holds {len(file)} networks, as CleanRL's TD3 and DDPG write them: agents/ppo.py can start from "
            "its PPO alone, and critics that give a number for an action are no agent's here"
        )
    if not isinstance(file, Mapping) or not all(isinstance(x, Tensor) for x in file.values()):
        raise RunError(f"{path} is no checkpoint of CleanRL's PPO: it is not the state_dict() of its networks")
    if other := sorted(str(name) for name, x in file.items() if not isinstance(name, str) or not x.is_floating_point()):
        raise RunError(f"{path} does not fit: CleanRL's PPO has no {other[0]} of that type")
    state = {name: x.float() for name, x in uncompiled(file).items()}
    log_std = state.pop("actor_logstd", None)
    if other := sorted(name for name in state if not LAYER.fullmatch(name)):
        raise RunError(f"{path} does not fit: CleanRL's PPO has no {other[0]}")
    images, continuous = "network.0.weight" in state, log_std is not None
    try:
        modules, actor, critic = of_images(state) if images else of_vectors(state, log_std)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        why = "its networks are not those of CleanRL's PPO"
        raise RunError(f"{path} does not fit: {why} ({type(error).__name__}: {error})".replace("\n", " ")) from error
    settings: dict[str, Any] = {
        **{"actor_hidden": actor, "critic_hidden": critic, "activation": "tanh", "torso": "mlp", "share_hidden": True},
        **{"state_dependent_std": False, "obs_norm": continuous, "obs_clip": 10.0, "sem": False, "bottleneck": "auto"},
        **({"init_std": 1.0} if continuous else {}),
    }
    name, told, _ = path.resolve().parent.name.partition("__")  # task__script__seed__time
    seen = "images" if images else f"{layers(state, 'critic')[0][0].shape[1]} observations"
    lacking = ("reward_scale.", "obs_norm.", "critic_obs_norm.")
    task = name if told else f"its own task, of {seen}"
    return Published(task, 0, settings, modules, lacking, own_units=continuous)


Networks = tuple[dict[str, Tensor], tuple[int, ...], tuple[int, ...]]
"""parameters by our names, and the units of the hidden layers of actor and critic"""


def of_vectors(state: Mapping[str, Tensor], log_std: Tensor | None) -> Networks:
    """Return hidden layers and heads of actor and critic; hidden layers that are alike are two copies in one.

    Raises:
        ValueError: the file has other networks too, or the deviations are not as many as the actions.
    """
    policy = "actor" if log_std is None else "actor_mean"
    if other := sorted(name for name in state if not name.startswith((f"{policy}.", "critic."))):
        raise ValueError(f"{other[0]} is no layer of it")
    actor, critic = layers(state, policy), layers(state, "critic")
    modules: dict[str, Tensor] = {}
    if log_std is not None:
        if log_std.numel() != len(actor[-1][1]):
            raise ValueError(f"actor_logstd has {log_std.numel()} numbers, the policy gives {len(actor[-1][1])}")
        modules["actor.log_std"] = log_std.reshape(-1)
    units = tuple(len(bias) for _, bias in actor[:-1]), tuple(len(bias) for _, bias in critic[:-1])
    for name, own in (("actor", actor), ("critic", critic)):
        modules |= {f"{name}.head.weight": own[-1][0], f"{name}.head.bias": own[-1][1]}
    if [weight.shape for weight, _ in actor[:-1]] == [weight.shape for weight, _ in critic[:-1]]:
        for index, both in enumerate(zip(actor[:-1], critic[:-1], strict=True)):
            modules[f"trunk.{2 * index}.weight"] = torch.stack([weight.T for weight, _ in both]).contiguous()
            modules[f"trunk.{2 * index}.bias"] = torch.stack([bias[None] for _, bias in both])
        return modules, *units
    for name, own in (("actor", actor), ("critic", critic)):
        for index, (weight, bias) in enumerate(own[:-1]):
            modules |= {f"{name}.torso.{2 * index}.weight": weight, f"{name}.torso.{2 * index}.bias": bias}
    return modules, *units


def of_images(state: Mapping[str, Tensor]) -> Networks:
    """Return convolutions, the hidden layer that actor and critic share, and heads.

    Raises:
        ValueError: it is another network.
    """
    for name, kernel in CONVOLUTIONS.items():
        if state[f"{name}.weight"].shape[2:] != kernel:
            raise ValueError(f"{name} has weights of {tuple(state[f'{name}.weight'].shape)}")
    for name in ("network.7", "actor", "critic"):
        if state[f"{name}.weight"].dim() != 2:
            raise ValueError(f"{name} has weights of {tuple(state[f'{name}.weight'].shape)}")
    trunk = {f"{name}.{kind}": (name, kind) for name in (*CONVOLUTIONS, "network.7") for kind in ("weight", "bias")}
    heads = {f"{name}.{kind}": (name, kind) for name in ("actor", "critic") for kind in ("weight", "bias")}
    if other := sorted(state.keys() - trunk.keys() - heads.keys()):
        raise ValueError(f"{other[0]} is no layer of it")
    modules = {
        # one later: here the bytes are made numbers by a layer of their own
        **{f"trunk.{int(name[-1]) + 1}.{kind}": state[key] for key, (name, kind) in trunk.items()},
        **{f"{name}.head.{kind}": state[key] for key, (name, kind) in heads.items()},
    }
    units = (len(state["network.7.weight"]),)
    return modules, units, units


def layers(state: Mapping[str, Tensor], network: str) -> list[tuple[Tensor, Tensor]]:
    """Return weight [out, in] and bias [out] of the layers of one of their networks, in order.

    Raises:
        ValueError: there is no hidden layer, between two layers is not one activation each, or they do not fit.
    """
    own = [name.split(".") for name in state if name.startswith(f"{network}.")]
    numbers = sorted({int(name[1]) for name in own if name[1].isdigit()})
    if len(numbers) < 2 or numbers != list(range(0, 2 * len(numbers), 2)):
        raise ValueError(f"{network} has layers {numbers}, must have two or more, and every second number")
    found = [(state[f"{network}.{x}.weight"], state[f"{network}.{x}.bias"]) for x in numbers]
    width = found[0][0].shape[-1:]
    for x, (weight, bias) in zip(numbers, found, strict=True):
        if weight.dim() != 2 or weight.shape[1:] != width or bias.shape != weight.shape[:1]:
            shapes = f"weights of {tuple(weight.shape)} and a bias of {tuple(bias.shape)}"
            raise ValueError(f"{network}.{x} has {shapes}")
        width = bias.shape
    return found


READERS: dict[str, tuple[str, Callable[[Path], Published]]] = {
    "fasttd3": ("FastTD3's", read_fasttd3),
    "ppo": ("CleanRL's PPO", read_cleanrl),
}
"""whose files an agent can start from"""
