"""The learners of others, as `benchmarks/speed.py` times them beside ours: FastTD3's and holosoma's FastSAC.

CHECKOUT is a copy of github.com/younggyoseo/FastTD3, or of github.com/amazon-far/holosoma for FastSAC.

Of FastTD3, networks, projection, normaliser and replay buffer are imported from there; its update, in `train.py` a set
of closures, is in `FastTD3Code`, with the switches of its `hyperparams.py`. Of FastSAC the class of the agent is
imported, and its own methods are called; what that class needs of simulators, robots and logging has stand-ins that do
nothing.

Of the switches that depend on the machine: mixed precision needs CUDA in both, so on a CPU they have float32. FastTD3's
`train.py` limits a CPU to one thread and compiles, here both sides have the same threads, and both are compiled with
--compile and neither without. Sizes and constants are ours, which for --size reference are their defaults.
"""

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor, nn

from agents import fastsac, fasttd3
from agents.manifest import git_revision
from envs.base import Step, VecEnv
from networks.normalize import RunningNorm

SEM_PLACES = ("off", "actor", "critic", "both")
LOSS_TOLERANCE = 1e-4  # between the two sides in float32
MOVE_TOLERANCE = 0.05

Settings = TypeVar("Settings", bound=fasttd3.Args | fastsac.Args)


def with_sem(args: Settings, place: str) -> Settings:
    """Return the settings with SEM in one of SEM_PLACES."""
    in_actor, in_critic = place in ("actor", "both"), place in ("critic", "both")
    return replace(args, sem=in_actor or in_critic, sem_actor=in_actor, sem_critic=in_critic)


class Difference(NamedTuple):
    """How far two numbers are apart, and how far they may be."""

    seen: float
    tolerated: float


Differences = dict[str, Difference]


def compared(mine: Tensor, theirs: Tensor) -> Difference:
    """Return by how much numbers in float32 differ at most, relative above 1."""
    return Difference(((mine - theirs).abs() / theirs.abs().clamp(min=1)).max().item(), LOSS_TOLERANCE)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Return all numbers in one vector."""
    return torch.cat([x.flatten() for x in tensors])


def hard(batch: TensorDict) -> TensorDict:
    """Return a batch in which rewards are small and large, and some transitions the last of their episode."""
    index = torch.arange(len(batch), device=batch["reward"].device)
    batch = batch.clone(recurse=False)
    batch["reward"] = batch["reward"] * torch.tensor([0.0, 1.0, 100.0], device=index.device)[index % 3]
    batch["discount"] = batch["discount"] * (index % 5 > 0)
    return batch


# ---- FastTD3 ---------------------------------------------------------------------------------------------------------


class Code(NamedTuple):
    """Modules of a checkout of the authors' repository."""

    nets: ModuleType
    utils: ModuleType
    settings: Any
    """`BaseArgs()`: their defaults"""
    sem: bool
    """whether this version has simplicial embeddings"""
    git: dict[str, Any] | None
    """its revision, if the checkout has one"""


def load_fasttd3(checkout: Path) -> Code:
    """Return the modules of a checkout, imported under names of their own.

    Raises:
        ValueError: it is no such checkout, or what it imports is not installed.
    """
    loaded = []
    for name in ("fast_td3", "fast_td3_utils", "hyperparams"):
        spec = importlib.util.spec_from_file_location(f"reference_{name}", checkout / "fast_td3" / f"{name}.py")
        assert spec is not None and spec.loader is not None  # the name ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except FileNotFoundError:
            advice = f"there is no fast_td3/{name}.py; give a checkout of github.com/younggyoseo/FastTD3"
            raise ValueError(f"--reference {checkout}: {advice}") from None
        except ImportError as error:
            raise ValueError(f"--reference {checkout}: fast_td3/{name}.py does not import: {error}") from error
        loaded.append(module)
    nets, utils, hyperparams = loaded
    has_sem = "sim_type" in inspect.signature(nets.Critic).parameters
    return Code(nets, utils, hyperparams.BaseArgs(), has_sem, git_revision(checkout))


class FastTD3Code:
    """The authors' agent: their classes, and around them what their `train.py` has inside `main`."""

    def __init__(self, code: Code, ours: fasttd3.Args, sem: str, env: VecEnv) -> None:
        device, obs_dim, action_dim = env.device, env.obs_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
        self.args, self.ours, self.device = code.settings, ours, device
        self.amp = code.settings.amp and code.settings.cuda and device.type == "cuda"
        self.amp_dtype = torch.bfloat16 if code.settings.amp_dtype == "bf16" else torch.float16
        self.scaler = torch.amp.GradScaler(enabled=self.amp and self.amp_dtype == torch.float16)
        kind = {"off": "", "actor": "sim_actor", "critic": "sim_critic", "both": "sim_both"}[sem]

        def sizes(hidden: int, groups: int, vertices: int) -> dict[str, Any]:
            simplices = {"sim_type": kind, "sim_dimension": vertices, "seq_len": groups} if code.sem else {}
            return {"n_obs": obs_dim, "n_act": action_dim, "hidden_dim": hidden, "device": device, **simplices}

        def adamw(net: nn.Module, rate: float) -> torch.optim.AdamW:
            lr = torch.tensor(rate, device=device)
            return torch.optim.AdamW(list(net.parameters()), lr=lr, weight_decay=ours.weight_decay)

        self.actor = code.nets.Actor(
            num_envs=env.num_envs,
            init_scale=code.settings.init_scale,
            std_min=ours.std_min,
            std_max=ours.std_max,
            **sizes(ours.actor_hidden[0], ours.sem_actor_groups, ours.sem_actor_vertices),
        )
        critic = sizes(ours.critic_hidden[0], ours.sem_critic_groups, ours.sem_critic_vertices)
        critic |= {"num_atoms": ours.atoms, "v_min": ours.v_min, "v_max": ours.v_max}
        self.qnet, self.qnet_target = code.nets.Critic(**critic), code.nets.Critic(**critic)
        self.qnet_target.load_state_dict(self.qnet.state_dict())
        self.q_optimizer, self.actor_optimizer = adamw(self.qnet, ours.critic_lr), adamw(self.actor, ours.actor_lr)
        norm = code.utils.EmpiricalNormalization(shape=obs_dim, device=device) if ours.obs_norm else nn.Identity()
        self.normalize_obs: Callable[[Tensor], Tensor] = norm.forward
        if ours.compile:
            mode = code.settings.compile_mode
            self.update_main = torch.compile(self.update_main, mode=mode)  # type: ignore[method-assign]
            self.update_pol = torch.compile(self.update_pol, mode=mode)  # type: ignore[method-assign]
            self.normalize_obs = torch.compile(self.normalize_obs, mode=None)

    @torch.no_grad()
    def weights(self, agent: fasttd3.FastTD3) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Return the weights of each network, ours and theirs, in their shapes and order.

        Both register their layers in the same order. Ours of the critics are stacked, and transposed: [Q, in, out].
        """
        out: dict[str, tuple[list[Tensor], list[Tensor]]] = {
            "actor": (list(agent.actor.parameters()), list(self.actor.parameters()))
        }
        for name, stacked, critic in (("critics", agent.critic, self.qnet), ("target", agent.target, self.qnet_target)):
            nets = critic.qnet1, critic.qnet2
            theirs = [p for net in nets for p in net.parameters()]
            mine = [p[index].T for index in range(len(nets)) for p in stacked.parameters()]
            out[name] = [p.reshape(to.shape) for p, to in zip(mine, theirs, strict=True)], theirs
        return out

    def autocast(self) -> torch.autocast:
        """Return the context of their losses."""
        return torch.autocast(device_type=self.device.type, dtype=self.amp_dtype, enabled=self.amp)

    def critic_loss(self, data: TensorDict) -> tuple[Tensor, Tensor]:
        """Return `qf_loss` of `update_main`, and `qf1_next_target_value`, which is logged."""
        args, ours = self.args, self.ours
        with self.autocast():
            observations, actions = data["observations"], data["actions"]
            next_observations, rewards = data["next"]["observations"], data["next"]["rewards"]
            dones, truncations = data["next"]["dones"].bool(), data["next"]["truncations"].bool()
            bootstrap = (~dones).float() if args.disable_bootstrap else (truncations | ~dones).float()
            clipped_noise = torch.randn_like(actions)
            clipped_noise = clipped_noise.mul(ours.policy_noise).clamp(-ours.noise_clip, ours.noise_clip)
            next_state_actions = (self.actor(next_observations) + clipped_noise).clamp(-1.0, 1.0)
            discount = ours.gamma ** data["next"]["effective_n_steps"]
            with torch.no_grad():
                qf1_next_target_projected, qf2_next_target_projected = self.qnet_target.projection(
                    next_observations, next_state_actions, rewards, bootstrap, discount
                )
                qf1_next_target_value = self.qnet_target.get_value(qf1_next_target_projected)
                qf2_next_target_value = self.qnet_target.get_value(qf2_next_target_projected)
                qf1_next_target_dist, qf2_next_target_dist = qf1_next_target_projected, qf2_next_target_projected
                if ours.clipped_double_q:
                    qf1_next_target_dist = qf2_next_target_dist = torch.where(
                        qf1_next_target_value.unsqueeze(1) < qf2_next_target_value.unsqueeze(1),
                        qf1_next_target_projected,
                        qf2_next_target_projected,
                    )
            qf1, qf2 = self.qnet(observations, actions)
            qf1_loss = -torch.sum(qf1_next_target_dist * F.log_softmax(qf1, dim=1), dim=1).mean()
            qf2_loss = -torch.sum(qf2_next_target_dist * F.log_softmax(qf2, dim=1), dim=1).mean()
            return qf1_loss + qf2_loss, qf1_next_target_value

    def actor_loss(self, data: TensorDict) -> Tensor:
        """Return `actor_loss` of `update_pol`."""
        with self.autocast():
            qf1, qf2 = self.qnet(data["observations"], self.actor(data["observations"]))
            qf1_value = self.qnet.get_value(F.softmax(qf1, dim=1))
            qf2_value = self.qnet.get_value(F.softmax(qf2, dim=1))
            if self.ours.clipped_double_q:
                return -torch.minimum(qf1_value, qf2_value).mean()
            return -((qf1_value + qf2_value) / 2.0).mean()

    def update_main(self, data: TensorDict, logs: TensorDict) -> TensorDict:
        """Take a step of the critics."""
        qf_loss, target_value = self.critic_loss(data)
        self._descend("qf_loss", qf_loss, self.q_optimizer, logs)
        logs["qf_max"] = target_value.max().detach()
        logs["qf_min"] = target_value.min().detach()
        return logs

    def update_pol(self, data: TensorDict, logs: TensorDict) -> TensorDict:
        """Take a step of the actor."""
        self._descend("actor_loss", self.actor_loss(data), self.actor_optimizer, logs)
        return logs

    def _descend(self, name: str, loss: Tensor, optimizer: torch.optim.Optimizer, logs: TensorDict) -> None:
        optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimizer)
        self.scaler.step(optimizer)
        self.scaler.update()
        logs[f"{name}_grad_norm"] = torch.tensor(0.0, device=self.device)
        logs[name] = loss.detach()

    @torch.no_grad()
    def soft_update(self) -> None:
        """Move the target."""
        src_ps = [p.data for p in self.qnet.parameters()]
        tgt_ps = [p.data for p in self.qnet_target.parameters()]
        torch._foreach_mul_(tgt_ps, 1.0 - self.ours.tau)
        torch._foreach_add_(tgt_ps, src_ps, alpha=self.ours.tau)

    def updates(self, data: TensorDict) -> tuple[Callable[[], object], ...]:
        """Return an update of the critics, of the actor, and a whole one."""
        normalised = data.clone(recurse=False)
        normalised["observations"] = self.normalize_obs(data["observations"])
        normalised["next", "observations"] = self.normalize_obs(data["next", "observations"])
        return (
            lambda: self.update_main(normalised, TensorDict()),
            lambda: self.update_pol(normalised, TensorDict()),
            lambda: self.update(data),
        )

    def update(self, data: TensorDict) -> None:
        """Do with a batch what the body of their training loop does."""
        data = data.clone(recurse=False)  # there the batch is fresh, and changed in place
        data["observations"] = self.normalize_obs(data["observations"])
        data["next"]["observations"] = self.normalize_obs(data["next"]["observations"])
        logs = self.update_main(data, TensorDict())
        self.update_pol(data, logs)
        self.soft_update()


def to_reference(batch: TensorDict) -> TensorDict:
    """Return a batch of 1-step transitions of ours as their replay buffer hands it out."""
    done = (batch["discount"] == 0).long()
    after = {"observations": batch["next_obs"], "rewards": batch["reward"], "dones": done}
    after |= {"truncations": torch.zeros_like(done), "effective_n_steps": torch.ones_like(done)}
    return TensorDict({"observations": batch["obs"], "actions": batch["action"], "next": after}, batch.batch_size)


def to_transition(obs: Tensor, action: Tensor, step: Step) -> TensorDict:
    """Return one step of all environments as their training loop builds it for their replay buffer."""
    after = {"observations": step.next_obs, "rewards": step.reward}
    after |= {"truncations": step.truncated.long(), "dones": (step.terminated | step.truncated).long()}
    return TensorDict({"observations": obs, "actions": action, "next": after}, (len(obs),), device=obs.device)


@torch.no_grad()
def fasttd3_differences(code: Code, ours: fasttd3.Args, env: VecEnv, batch: TensorDict) -> Differences:
    """Return by how much two implementations with the same weights differ, for each quantity that they share.

    Losses, with clipped double Q on and off and SEM off and on, relative above 1. How far three whole updates move each
    network, which takes in optimisers, weight decay and target, relative: no closer than AdamW's first steps allow,
    where a gradient that is nearly 0 counts by its sign. Normalised observations. All in float32 and without policy
    noise; heads are sharpened, targets differ from critics, weight decay is large enough to be seen, and atoms leave
    the support and hit its grid.
    """
    ours = replace(ours, amp="off", compile=False, policy_noise=0.0, policy_frequency=1, weight_decay=10.0)
    code = code._replace(settings=replace(code.settings, amp=False))
    batch, out = hard(batch), {}
    for sem in SEM_PLACES if code.sem else ("off",):
        for clipped in (True, False):
            case = f"clipped double Q {'on' if clipped else 'off'}, SEM {sem}"
            args = with_sem(replace(ours, clipped_double_q=clipped), sem)
            agent, rival = fasttd3.FastTD3(args, env), FastTD3Code(code, args, sem, env)
            for head in (agent.actor.head, agent.critic.head):
                head.weight.mul_(10)
            for moved, source in zip(agent.target.parameters(), agent.critic.parameters(), strict=True):
                moved.copy_(source * 0.9)
            start = {}
            for name, (mine, theirs) in rival.weights(agent).items():
                torch._foreach_copy_(theirs, mine)
                start[name] = flat(mine)
            ready, data = agent.prepare(batch), to_reference(batch)  # normalisers that have seen nothing: as it was
            out[f"critic loss, {case}"] = compared(agent.critic_loss(ready), rival.critic_loss(data)[0])
            out[f"actor loss, {case}"] = compared(agent.actor_loss(ready), rival.actor_loss(data))
            with torch.enable_grad():
                for _ in range(3):
                    agent.update(batch)
                    rival.update_pol(data, rival.update_main(data, TensorDict()))
                    rival.soft_update()
            for name, (mine, theirs) in rival.weights(agent).items():
                apart = (flat(mine) - flat(theirs)).norm() / (flat(theirs) - start[name]).norm()
                out[f"movement of {name}, {case}"] = Difference(apart.item(), MOVE_TOLERANCE)
    norm = RunningNorm(env.obs_space.shape).to(env.device)
    norm.update(batch["obs"])
    theirs = code.utils.EmpiricalNormalization(shape=env.obs_space.shape[0], device=env.device)
    out["normalised observations"] = compared(norm(batch["obs"]), theirs(batch["obs"]))
    return out


# ---- FastSAC ---------------------------------------------------------------------------------------------------------


class Anything(ModuleType):
    """In the place of a module: whatever is asked of it is a class that does nothing."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *_, **__: None})


STANDING_IN = (
    *("agents.base_algo.base_algo", "agents.modules.augmentation_utils", "agents.modules.logging_utils"),
    *("config_types.algo", "envs.base_task.base_task", "utils.average_meters", "utils.inference_helpers"),
)


def load_fastsac(checkout: Path) -> Code:
    """Return the modules of a checkout of holosoma; in the place of `settings` is the class of its agent.

    Raises:
        ValueError: it is no such checkout, or what it imports is not installed.
    """
    source = checkout / "src" / "holosoma" / "holosoma"
    names = ["holosoma", *(f"holosoma.{name}" for name in STANDING_IN), "tqdm", "loguru"]
    here = {name: sys.modules.get(name) for name in names}
    before = torch.get_float32_matmul_precision()
    loaded = {}
    try:
        sys.modules.update({name: Anything(name) for name in names})
        for name in ("utils.safe_torch_import", "agents.fast_sac.fast_sac_utils", "agents.fast_sac.fast_sac"):
            loaded[name] = load(f"holosoma.{name}", source, checkout)
        loaded["agent"] = load("holosoma.agents.fast_sac.fast_sac_agent", source, checkout)
    finally:
        torch.set_float32_matmul_precision(before)  # theirs sets it for the process: `FastSACCode` for its calls
        for name, module in here.items():
            sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    nets, utils = loaded["agents.fast_sac.fast_sac"], loaded["agents.fast_sac.fast_sac_utils"]
    return Code(nets, utils, loaded["agent"].FastSACAgent, False, git_revision(checkout))


def load(name: str, source: Path, checkout: Path) -> ModuleType:
    """Return a module of holosoma by its own name, under which others of it look for it."""
    path = source.joinpath(*name.split(".")[1:]).with_suffix(".py")
    where = path.relative_to(checkout)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # the name ends in .py
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except FileNotFoundError:
        advice = f"there is no {where}; give a checkout of github.com/amazon-far/holosoma"
        raise ValueError(f"--reference {checkout}: {advice}") from None
    except ImportError as error:
        raise ValueError(f"--reference {checkout}: {where} does not import: {error}") from error
    return module


class FastSACCode:
    """The authors' agent, made of their classes as its `setup` makes it; its methods are called as by its `learn`."""

    def __init__(self, code: Code, ours: fastsac.Args, sem: str, env: VecEnv) -> None:
        assert sem == "off"  # they have none
        device, obs_dim, action_dim = env.device, env.obs_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
        self.ours = ours
        self.amp = device.type == "cuda"
        where = {"obs": {"start": 0, "end": obs_dim, "size": obs_dim}}
        sizes: dict[str, Any] = {"obs_indices": where, "obs_keys": ["obs"], "n_act": action_dim, "device": device}
        style: dict[str, Any] = {**sizes, "use_layer_norm": ours.layer_norm}
        support = {"num_atoms": ours.atoms, "v_min": ours.v_min, "v_max": ours.v_max}
        bounds = {"log_std_min": ours.log_std_min, "log_std_max": ours.log_std_max}
        self.agent = agent = code.settings.__new__(code.settings)
        agent.device, agent.is_multi_gpu = device, False
        agent.actor = code.nets.Actor(num_envs=env.num_envs, hidden_dim=ours.actor_hidden[0], **bounds, **style)
        critics = [code.nets.Critic(hidden_dim=ours.critic_hidden[0], **support, **style) for _ in range(2)]
        agent.qnet, agent.qnet_target = critics
        agent.qnet_target.load_state_dict(agent.qnet.state_dict())
        agent.log_alpha = torch.tensor([ours.alpha_init], device=device).log().requires_grad_()
        agent.target_entropy = -action_dim * ours.target_entropy_ratio
        adamw = partial(torch.optim.AdamW, fused=True, betas=ours.adam_betas)
        agent.q_optimizer = adamw(list(agent.qnet.parameters()), lr=ours.critic_lr, weight_decay=ours.weight_decay)
        agent.actor_optimizer = adamw(list(agent.actor.parameters()), lr=ours.actor_lr, weight_decay=ours.weight_decay)
        agent.alpha_optimizer = adamw([agent.log_alpha], lr=ours.alpha_lr)
        agent.scaler = torch.amp.GradScaler(enabled=False)  # bfloat16 needs none
        agent.config = SimpleNamespace(
            gamma=ours.gamma,
            max_grad_norm=ours.max_grad_norm,
            use_autotune=ours.autotune,
            amp=self.amp,
            amp_dtype="bf16",
        )
        norm = code.utils.EmpiricalNormalization(shape=obs_dim, device=device) if ours.obs_norm else nn.Identity()
        calls = agent._update_main, agent._update_pol, norm.forward
        if ours.compile:
            calls = torch.compile(calls[0]), torch.compile(calls[1]), torch.compile(calls[2])
        self._main, self._pol, self._norm = calls

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Context with the precision of float32 products that their module asks for."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def normalize_obs(self, obs: Tensor) -> Tensor:
        """Return what their normaliser makes of observations; it learns from them, too."""
        return self._norm(obs)

    def update_main(self, data: TensorDict) -> Tensor:
        """Take a step of critics and temperature; returns the loss of the critics."""
        with self.precision():
            return self._main(data)[2]

    def update_pol(self, data: TensorDict) -> Tensor:
        """Take a step of the actor; returns its loss."""
        with self.precision():
            return self._pol(data)[1]

    @torch.no_grad()
    def soft_update(self) -> None:
        """Move the target."""
        src_ps = [p.data for p in self.agent.qnet.parameters()]
        tgt_ps = [p.data for p in self.agent.qnet_target.parameters()]
        torch._foreach_mul_(tgt_ps, 1.0 - self.ours.tau)
        torch._foreach_add_(tgt_ps, src_ps, alpha=self.ours.tau)

    def normalised(self, data: TensorDict) -> TensorDict:
        """Return a batch with normalised observations, of actor and critics each, as they are two in theirs."""
        data = data.clone(recurse=False)
        for part in (data, data["next"]):
            part["critic_observations"] = self.normalize_obs(part["observations"])
            part["observations"] = self.normalize_obs(part["observations"])
        return data

    def update(self, data: TensorDict) -> None:
        """Do with a batch what the body of their training loop does."""
        data = self.normalised(data)
        self.update_main(data)
        self.update_pol(data)
        self.soft_update()

    def updates(self, data: TensorDict) -> tuple[Callable[[], object], ...]:
        """Return an update of the critics, of the actor, and a whole one."""
        ready = self.normalised(data)
        return lambda: self.update_main(ready), lambda: self.update_pol(ready), lambda: self.update(data)

    @torch.no_grad()
    def weights(self, agent: fastsac.FastSAC) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
        """Return the weights of each network, ours and theirs, in their shapes and order.

        Ours of the critics are stacked, and transposed: [Q, in, out]; mean and deviation of ours are one layer.
        """
        *torso, weight, bias = agent.actor.parameters()
        halves = [half for pair in zip(weight.chunk(2), bias.chunk(2), strict=True) for half in pair]
        out = {"actor": ([*torso, *halves], list(self.agent.actor.parameters()))}
        for name, stacked, critic in (
            ("critics", agent.critic, self.agent.qnet),
            ("target", agent.target, self.agent.qnet_target),
        ):
            theirs = list(critic.parameters())
            mine = [p[index].T for index in range(len(critic.qnets)) for p in stacked.parameters()]
            out[name] = [p.reshape(to.shape) for p, to in zip(mine, theirs, strict=True)], theirs
        return out


@torch.no_grad()
def fastsac_differences(code: Code, ours: fastsac.Args, env: VecEnv, batch: TensorDict) -> Differences:
    """Return by how much two implementations with the same weights differ, for each quantity that they share.

    As `fasttd3_differences`, of three whole updates with the same random numbers: the losses of each, the movement of
    each network. The temperature is large enough to be seen; theirs decays, and is set to ours before each update.
    """
    ours = replace(ours, amp="off", compile=False, policy_frequency=1, weight_decay=10.0, alpha_init=0.2)
    batch, out, start = hard(batch), {}, {}
    agent, rival = fastsac.FastSAC(ours, env), FastSACCode(code, ours, "off", env)
    agent.actor.head.weight.normal_(0, 0.05)  # they are 0 at first
    agent.critic.head.weight.mul_(10)
    for moved, source in zip(agent.target.parameters(), agent.critic.parameters(), strict=True):
        moved.copy_(source * 0.9)
    for name, (mine, theirs) in rival.weights(agent).items():
        torch._foreach_copy_(theirs, mine)
        start[name] = flat(mine)
    data = to_reference(batch)
    for part in (data, data["next"]):
        part["critic_observations"] = part["observations"]
    with torch.enable_grad():
        for update in range(3):
            rival.agent.log_alpha.data.fill_(agent.log_alpha.detach())
            agent.loss_sum.zero_()
            torch.manual_seed(update)
            agent.update(batch)
            torch.manual_seed(update)
            losses = rival.update_main(data), rival.update_pol(data)
            rival.soft_update()
            for index, (name, loss) in enumerate(zip(("critic loss", "actor loss"), losses, strict=True)):
                out[f"{name}, update {update}"] = compared(agent.loss_sum[index], loss)
    for name, (mine, theirs) in rival.weights(agent).items():
        apart = (flat(mine) - flat(theirs)).norm() / (flat(theirs) - start[name]).norm()
        out[f"movement of {name}"] = Difference(apart.item(), MOVE_TOLERANCE)
    return out


# ---- both ------------------------------------------------------------------------------------------------------------


class Others(NamedTuple):
    """What there is of the authors of an agent."""

    load: Callable[[Path], Code]
    learner: Callable[..., Any]
    differences: Callable[..., Differences]


OTHERS = {
    "fasttd3": Others(load_fasttd3, FastTD3Code, fasttd3_differences),
    "fastsac": Others(load_fastsac, FastSACCode, fastsac_differences),
}
