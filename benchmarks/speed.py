"""Times of FastTD3's learner: what SEM costs, what bfloat16 gains, and how it compares with the authors' own code.

    python benchmarks/speed.py                                          # this repository alone
    python benchmarks/speed.py --reference CHECKOUT --out results.json  # beside the authors' code
    python benchmarks/speed.py ppo --help                               # PPO and SAC in training: benchmarks/rivals.py
    python benchmarks/speed.py reach --help                             # time to a return: benchmarks/reach.py
    python benchmarks/speed.py envs --help                              # environments: benchmarks/simulators.py
    python benchmarks/speed.py together --help                          # seeds side by side: benchmarks/together.py
    python benchmarks/speed.py parts --help                             # without each optimisation: benchmarks/parts.py
    python benchmarks/speed.py gpu --out FOLDER                         # all of it on a GPU, within ten minutes

CHECKOUT is a copy of github.com/younggyoseo/FastTD3, which stays outside of this repository.

All contestants of a task take turns call by call in one process, there and back again, so that whatever else the
machine does hits them alike. A repeat is the median of some calls; the table shows median, least and largest repeat.
Ratios are of medians, with the least and largest ratio within a repeat behind them; below 1 is faster. On a machine
that is shared, trust the ratios and not the times; `--clock cpu --threads 1` counts processor time, which other
processes hardly touch.

The tasks: one update of the critics on a normalised batch (loss, gradient, optimiser); the same of the actor; a whole
update of both as training takes it (normalisation, critics, actor, target); drawing a batch from a full replay buffer;
storing one step of all environments, which for theirs includes the TensorDict that it has to come in.

`floor` is the least time that the machine at hand would need for an update with SEM off: the multiplications of its
matrix products at the rate of the best product that it can do, or the bytes of weights, gradients, moments and batch at
the rate of a copy, whichever takes longer. `off again` is another agent like `off`: their ratio is what noise alone
does.

Of the authors' code, networks, projection, normaliser and replay buffer are imported from the checkout. Their update,
in `train.py` a set of closures, is in `Reference`, with the switches of their `hyperparams.py`. Those that depend on
the machine: mixed precision needs CUDA, so on a CPU they have float32; their `train.py` limits a CPU to one thread and
compiles, here both sides have the same threads, and both are compiled with --compile and neither without. Sizes and
constants are ours, which for --size reference are their defaults. Both sides keep freed memory, as our agents do and
theirs does not: it is a setting of the process. Before anything is timed, both sides get the same weights and batch,
and must compute the same losses.
"""

import gc
import importlib.util
import inspect
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from tensordict import TensorDict
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from agents import config, fasttd3, machine
from agents.compiled import TOLERANCE
from agents.manifest import git_revision, manifest
from agents.replay import ReplayBuffer
from benchmarks import parts, reach, rivals, simulators, together
from benchmarks.rivals import ratio
from envs.base import Step, VecEnv, vector_space
from networks.normalize import RunningNorm

SEM_PLACES = ("off", "actor", "critic", "both")
CONTROL = "off again"
UPDATES = ("critic update", "actor update", "critic and actor update")
LOSS_TOLERANCE = 1e-4  # between the two sides in float32
MOVE_TOLERANCE = 0.05
REPEAT_S = 0.05  # a repeat has as many calls as take one contestant this long, within CALLS
CALLS = (3, 200)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Args:
    """Time one update, one replay sample and one replay add of FastTD3, beside the authors' code if there is some.

    With `ppo` as the first word: the training of PPO and SAC. With `reach`: time to a return. With `envs`: steps of
    environments. With `together`: seeds side by side. With `gpu`: all of it on a GPU. Each has flags of its own.
    """

    reference: Path | None = None
    """checkout of github.com/younggyoseo/FastTD3 to compare with"""
    batch_size: int = 2048
    """B, transitions per update and sample"""
    size: Literal["reference", "small"] = "reference"
    """networks, atoms and number of environments: the paper's, or those for a CPU"""
    obs_dim: int = 151
    """D, size of an observation"""
    action_dim: int = 61
    """A, size of an action"""
    slots: int = 1024
    """S, steps of each environment that the replay buffers hold"""
    threads: int = 0
    """CPU threads of both sides, 0 for all cores that the process may use"""
    repeats: int = 7
    """numbers per contestant"""
    clock: Literal["wall", "cpu"] = "wall"
    """what is counted: wall-clock time, or processor time of all threads, which needs --device cpu"""
    folder: str = ""
    """a folder: time a replay buffer too that is kept in a file there"""
    compile: bool = False
    """compile both sides with torch.compile; takes minutes before the first number"""
    out: Path | None = None
    """JSON file for settings, machine and every number"""
    device: str = "cpu"
    """where everything lives: cpu, cuda, cuda:1"""


class RandomEnv(VecEnv):
    """Observations and rewards that are noise: what a learner can be timed with, without a simulator.

    An episode ends at the time limit, or by chance once in 500 steps, which soon spreads the truncations.
    """

    deterministic = True

    def __init__(
        self, num_envs: int, seed: int, device: torch.device | str, obs_dim: int, action_dim: int, limit: int = 200
    ) -> None:
        self.task, self.backend, self.num_envs, self.device = "random", "speed", num_envs, torch.device(device)
        self.obs_space = self.critic_obs_space = vector_space(obs_dim)
        self.action_space = Box(-1, 1, (action_dim,))
        self.max_episode_steps = self._limit = limit
        self._generator = torch.Generator().manual_seed(seed)

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first observations."""
        if seed is not None:
            self._generator.manual_seed(seed)
        self._age = torch.zeros(self.num_envs, dtype=torch.int64)
        obs = self._observe()
        return obs, obs

    def step(self, action: Tensor) -> Step:
        """Return noise, whatever the action."""
        self._age += 1
        terminated = torch.rand(self.num_envs, generator=self._generator) < 1 / 500
        truncated = ~terminated & (self._age >= self._limit)
        done = terminated | truncated
        self._age[done] = 0
        next_obs = self._observe()
        obs = torch.where(done[:, None].to(self.device), self._observe(), next_obs)
        reward = torch.randn(self.num_envs, generator=self._generator)
        reward, terminated, truncated = (x.to(self.device) for x in (reward, terminated, truncated))
        return Step(obs, obs, reward, terminated, truncated, next_obs, next_obs, torch.ones_like(terminated))

    def _observe(self) -> Tensor:
        return torch.randn(self.num_envs, *self.obs_space.shape, generator=self._generator).to(self.device)


# ---- the authors' code -----------------------------------------------------------------------------------------------


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


def load_code(checkout: Path) -> Code:
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


class Reference:
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


class Difference(NamedTuple):
    """How far two numbers are apart, and how far they may be."""

    seen: float
    tolerated: float


@torch.no_grad()
def differences(code: Code, ours: fasttd3.Args, env: VecEnv, batch: TensorDict) -> dict[str, Difference]:
    """Return by how much two implementations with the same weights differ, for each quantity that they share.

    Losses, with clipped double Q on and off and SEM off and on, relative above 1. How far three whole updates move each
    network, which takes in optimisers, weight decay and target, relative: no closer than AdamW's first steps allow,
    where a gradient that is nearly 0 counts by its sign. Normalised observations. All in float32 and without policy
    noise; heads are sharpened, targets differ from critics, weight decay is large enough to be seen, and atoms leave
    the support and hit its grid.
    """
    ours = replace(ours, amp="off", compile=False, policy_noise=0.0, policy_frequency=1, weight_decay=10.0)
    code = code._replace(settings=replace(code.settings, amp=False))
    index = torch.arange(len(batch), device=env.device)
    batch = batch.clone(recurse=False)
    batch["reward"] = batch["reward"] * torch.tensor([0.0, 1.0, 100.0], device=env.device)[index % 3]
    batch["discount"] = batch["discount"] * (index % 5 > 0)
    out = {}

    def compare(name: str, mine: Tensor, theirs: Tensor) -> None:
        out[name] = Difference(((mine - theirs).abs() / theirs.abs().clamp(min=1)).max().item(), LOSS_TOLERANCE)

    def flat(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([x.flatten() for x in tensors])

    for sem in SEM_PLACES if code.sem else ("off",):
        for clipped in (True, False):
            case = f"clipped double Q {'on' if clipped else 'off'}, SEM {sem}"
            args = with_sem(replace(ours, clipped_double_q=clipped), sem)
            agent, rival = fasttd3.FastTD3(args, env), Reference(code, args, sem, env)
            for head in (agent.actor.head, agent.critic.head):
                head.weight.mul_(10)
            for moved, source in zip(agent.target.parameters(), agent.critic.parameters(), strict=True):
                moved.copy_(source * 0.9)
            start = {}
            for name, (mine, theirs) in rival.weights(agent).items():
                torch._foreach_copy_(theirs, mine)
                start[name] = flat(mine)
            ready, data = agent.prepare(batch), to_reference(batch)  # normalisers that have seen nothing: as it was
            compare(f"critic loss, {case}", agent.critic_loss(ready), rival.critic_loss(data)[0])
            compare(f"actor loss, {case}", agent.actor_loss(ready), rival.actor_loss(data))
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
    compare("normalised observations", norm(batch["obs"]), theirs(batch["obs"]))
    return out


# ---- contestants -----------------------------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """Who is timed."""

    side: Literal["ours", "reference"]
    precision: str
    sem: str = ""
    """one of SEM_PLACES or CONTROL, or nothing where there are no networks"""


Call = Callable[[], object]
Calls = dict[Contestant, Call]


def with_sem(args: fasttd3.Args, place: str) -> fasttd3.Args:
    """Return the settings with SEM in one of SEM_PLACES."""
    in_actor, in_critic = place in ("actor", "both"), place in ("critic", "both")
    return replace(args, sem=in_actor or in_critic, sem_actor=in_actor, sem_critic=in_critic)


def settings(args: Args) -> fasttd3.Args:
    """Return our agent's settings for what is timed: those of the size, of no task, with every update one of both.

    Each hidden layer has half the units of the one before, since the authors' classes have no others.

    Raises:
        ValueError: a value is out of range, or the device is absent.
    """
    ours = fasttd3.Args(env_id="random", size=args.size, device=args.device)
    for _, overrides in fasttd3.presets(ours):
        ours = replace(ours, **overrides)
    actor, critic = ((units[0], units[0] // 2, units[0] // 4) for units in (ours.actor_hidden, ours.critic_hidden))
    ours = replace(ours, actor_hidden=actor, critic_hidden=critic, batch_size=args.batch_size, compile=args.compile)
    return fasttd3.resolve(replace(ours, policy_frequency=1, n_step=1, reward_norm=False))


def update_calls(args: fasttd3.Args, code: Code | None, env: VecEnv, batch: TensorDict) -> dict[str, Calls]:
    """Return, for each of UPDATES, what each contestant does with the batch."""
    tasks: dict[str, Calls] = {name: {} for name in UPDATES}
    theirs = to_reference(batch)
    for sem in (*SEM_PLACES, CONTROL):  # next to each other: what is to be compared
        for precision, amp in (("float32", "off"), ("bfloat16", "bfloat16")):
            agent = fasttd3.FastTD3(with_sem(replace(args, amp=amp), sem), env)  # type: ignore[arg-type]
            agent.learn_norms(batch["obs"], batch["critic_obs"])
            if agent.compiled is not None:
                said = agent.compiled.verify(TOLERANCE[amp], partial(agent.gradient, batch))
                config.require(said.startswith("compiled"), f"ours, {precision}, SEM {sem}: {said}")
            for name, call in zip(UPDATES, our_updates(agent, batch), strict=True):
                tasks[name][Contestant("ours", precision, sem)] = call
        if code is not None and (code.sem or sem == "off") and sem in SEM_PLACES:
            rival = Reference(code, args, sem, env)
            precision = "bfloat16" if rival.amp else "float32"
            for name, call in zip(UPDATES, their_updates(rival, theirs), strict=True):
                tasks[name][Contestant("reference", precision, sem)] = call
    return tasks


def our_updates(agent: fasttd3.FastTD3, batch: TensorDict) -> tuple[Call, ...]:
    """Return an update of the critics, of the actor, and a whole one."""
    prepared = agent.prepare(batch)
    return (
        lambda: agent._descend(0, *agent.critic_gradient(prepared), agent.critic_flat, agent.critic_optimizer),
        lambda: agent._descend(1, *agent.actor_gradient(prepared), agent.actor_flat, agent.actor_optimizer),
        lambda: agent.update(batch),
    )


def their_updates(rival: Reference, data: TensorDict) -> tuple[Call, ...]:
    """Return an update of the critics, of the actor, and a whole one."""
    normalised = data.clone(recurse=False)
    normalised["observations"] = rival.normalize_obs(data["observations"])
    normalised["next", "observations"] = rival.normalize_obs(data["next", "observations"])
    return (
        lambda: rival.update_main(normalised, TensorDict()),
        lambda: rival.update_pol(normalised, TensorDict()),
        lambda: rival.update(data),
    )


def replay_calls(
    args: fasttd3.Args, code: Code | None, env: VecEnv, slots: int, n_step: int, storage: str = "device"
) -> tuple[ReplayBuffer, Calls, Calls]:
    """Return our replay buffer, and what each side does to sample a batch and to add a step. All buffers are full."""
    spaces = env.obs_space, env.critic_obs_space, env.action_space
    limit = env.max_episode_steps
    replay = ReplayBuffer(
        *(env.num_envs, slots, *spaces, env.device),
        max_episode_steps=limit,
        n_step=n_step,
        gamma=args.gamma,
        storage=storage,
    )
    obs, critic_obs = env.reset(seed=0)
    replay.start(obs, critic_obs)
    action = torch.rand(env.num_envs, *env.action_space.shape, device=env.device) * 2 - 1  # type: ignore[misc]
    ours, theirs = Contestant("ours", "float32"), Contestant("reference", "float32")
    sample: Calls = {ours: lambda: replay.sample(args.batch_size)}
    buffer = None
    if code is not None:
        sizes = {"n_obs": env.obs_space.shape[0], "n_critic_obs": env.obs_space.shape[0], "n_act": action.shape[1]}
        windows = {"n_steps": n_step, "gamma": args.gamma, "device": env.device}
        buffer = code.utils.SimpleReplayBuffer(n_env=env.num_envs, buffer_size=slots, **sizes, **windows)
        per_env = args.batch_size // env.num_envs
        sample[theirs] = lambda: buffer.sample(per_env)
    for _ in range(slots + slots // 2):  # the write head is in the middle
        before, step = obs, env.step(action)
        replay.add(action, step)
        if buffer is not None:
            buffer.extend(to_transition(before, action, step))
        obs = step.obs
    add: Calls = {ours: lambda: replay.add(action, step)}
    if buffer is not None:
        add[theirs] = lambda: buffer.extend(to_transition(before, action, step))
    return replay, sample, add


# ---- the floor -------------------------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """What a machine can do."""

    flops: dict[str, float]
    """per precision, floating-point operations of a matrix product per second"""
    copied: float
    """bytes read or written per second, by a copy of what no cache holds"""


def rates(device: torch.device, repeats: int, clock: Callable[[], float]) -> Rates:
    """Measure the machine: the best of some square products in each precision, and of copies of 256 MiB."""
    flops = {}
    source = torch.ones(64 << 20, device=device)
    copy = torch.empty_like(source)
    for precision in ("float32", "bfloat16"):
        squares = [torch.randn(2, n, n, device=device, dtype=getattr(torch, precision)) for n in (512, 1024, 2048)]
        products = [lambda a=a, b=b: torch.mm(a, b) for a, b in squares]
        best = (min(seen) for seen in measure(products, repeats, device, clock))
        flops[precision] = max(2e3 * len(a) ** 3 / ms for (a, _), ms in zip(squares, best, strict=True))
    ((*seen,),) = measure([lambda: copy.copy_(source)], repeats, device, clock)
    return Rates(flops, 2e3 * source.nbytes / min(seen))


def floors(agent: fasttd3.FastTD3, batch: TensorDict, machine_rates: Rates) -> dict[str, dict[str, Any]]:
    """Return, for each of UPDATES, its floating-point operations, its bytes, and the least ms in each precision.

    Operations are those of the matrix products that the agent really does. Of the bytes only what nobody could save:
    AdamW reads and writes a weight and its two moments and reads its gradient, which was written; other weights and the
    batch are read, and the target is written too in a whole update.
    """
    actor, critic = (4 * sum(p.numel() for p in net.parameters()) for net in (agent.actor, agent.critic))
    tensors = (x for x in batch.values() if isinstance(x, Tensor))
    data = sum({x.data_ptr(): x.nbytes for x in tensors}.values())  # critic_obs may be obs
    of_critics, of_actor = 8 * critic + critic + actor, 8 * actor + critic
    out = {}
    bytes_of = (of_critics + data, of_actor + data, of_critics + of_actor + critic + data)
    for name, call, moved in zip(UPDATES, our_updates(agent, batch), bytes_of, strict=True):
        with FlopCounterMode(display=False) as counter:
            call()
        flops = counter.get_total_flops()
        copying = moved / machine_rates.copied
        least = {kind: 1e3 * max(flops / rate, copying) for kind, rate in machine_rates.flops.items()}
        out[name] = {"flops": flops, "bytes": moved, "floor_ms": least}
    return out


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(calls: Sequence[Call], repeats: int, device: torch.device, clock: Callable[[], float]) -> list[list[float]]:
    """Return, for each call, its median time in ms in each repeat. The calls take turns, there and back again."""

    def timed(call: Call) -> float:
        begin = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - begin

    for _ in range(2):  # the first call allocates, and compiles
        longest = max(timed(call) for call in calls)
    rounds = min(max(CALLS[0], math.ceil(REPEAT_S / longest)), CALLS[1])
    out: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()  # not while the clock runs
    try:
        for _ in range(repeats):
            times: list[list[float]] = [[] for _ in calls]
            for turn in range(rounds):
                for index in range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls))):
                    times[index].append(1e3 * timed(calls[index]))
            for index, seen in enumerate(times):
                out[index].append(statistics.median(seen))
    finally:
        gc.enable()
    return out


def results(
    task: str,
    contestants: Iterable[Contestant],
    measured: Sequence[Sequence[float]],
    floor_ms: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each contestant: its times, and their ratios to its yardsticks, None where there is none.

    The yardsticks are the reference with SEM in the same place, the same contestant with SEM off, and the floor in its
    precision.
    """
    times = dict(zip(contestants, measured, strict=True))
    rows = []
    for who, seen in times.items():
        rival = next((x for other, x in times.items() if other.side == "reference" and other.sem == who.sem), None)
        plain = times.get(who._replace(sem="off"))
        rows.append(
            {
                "task": task,
                **who._asdict(),
                "median_ms": statistics.median(seen),
                "min_ms": min(seen),
                "max_ms": max(seen),
                "repeats_ms": seen,
                "to_reference": ratio(seen, rival) if rival and who.side == "ours" else None,
                "to_sem_off": ratio(seen, plain) if plain and who.sem != "off" else None,
                "to_floor": statistics.median(seen) / floor_ms[who.precision] if floor_ms else None,
            }
        )
    return rows


# ---- reporting -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of one task as text."""

    def cell(of: Mapping[str, float] | None) -> str:
        return f"{of['ratio']:6.3f} [{of['min']:.3f}, {of['max']:.3f}]" if of else ""

    heads = f"{'[least, largest]':<20}{'to reference':>22}{'to SEM off':>24}{'to floor':>10}"
    lines = [f"{rows[0]['task']:<34}{'ms':>9}  {heads}"]
    for row in sorted(rows, key=lambda row: (row["side"], row["precision"] != "float32")):
        name = f"  {row['side']:<10}{row['precision']:<10}{'SEM ' + row['sem'] if row['sem'] else ''}"
        spread = f"[{row['min_ms']:.3f}, {row['max_ms']:.3f}]"
        lines.append(
            f"{name:<34}{row['median_ms']:9.3f}  {spread:<20}"
            f"{cell(row['to_reference']):>22}{cell(row['to_sem_off']):>24}"
            f"{'' if row['to_floor'] is None else format(row['to_floor'], '10.2f')}".rstrip()
        )
    return "\n".join(lines)


def check(args: Args) -> tuple[fasttd3.Args, Code | None]:
    """Return our settings and the authors' code; fails with one line where an argument is wrong."""
    check_common(args)
    config.positive(args, "batch_size", "obs_dim", "action_dim")
    config.require(args.slots >= 4, f"--slots {args.slots}: must be at least 4, for windows of 3 steps")
    try:
        ours = settings(args)
        code = load_code(args.reference) if args.reference is not None else None
    except ValueError as error:
        config.fail(str(error))
    config.require(
        code is None or args.batch_size % ours.num_envs == 0,
        f"--batch-size {args.batch_size}: the reference draws as many from each of its {ours.num_envs} environments, "
        f"so it must be a multiple of that",
    )
    return ours, code


def check_common(args: Args | rivals.Args) -> None:
    """Fail with one line where an argument that both commands have is wrong."""
    config.positive(args, "repeats")
    config.require(args.threads >= 0, f"--threads {args.threads}: must be 0 or above")
    config.require(args.clock == "wall" or args.device == "cpu", "--clock cpu: does not see a GPU; take --device cpu")
    check_out(args.out)


def check_out(out: Path | None) -> None:
    """Fail with one line where a file cannot be written for want of its folder."""
    if out is not None:
        config.require(out.parent.is_dir(), f"--out {out}: there is no directory {out.parent}")


def check_paths(args: rivals.Args | reach.Args) -> None:
    """Fail with one line where one of the others is not where it is said to be."""
    paths = {"--cleanrl": args.cleanrl, "--leanrl": getattr(args, "leanrl", None), "--sb3-python": args.sb3_python}
    for flag, path in paths.items():
        config.require(path is None or path.exists(), f"{flag} {path}: there is no such file")


def begin(args: Args | rivals.Args | reach.Args | parts.Args, device: str) -> dict[str, Any]:
    """Say what machine it is; returns the report, without results."""
    about = manifest()
    threads = f"{torch.get_num_threads()} threads of {machine.available_cores()} cores"
    print(f"machine    {about['hardware']['cpu']}, {threads}, torch {torch.__version__}, {device}")
    settings = {name: None if isinstance(x, Path) else x for name, x in asdict(args).items()}  # no path of one machine
    return {
        "settings": settings,
        "machine": {key: about[key] for key in ("time", "git", "versions", "hardware", "torch")},
    }


def training(argv: Sequence[str]) -> None:
    """Time PPO and SAC in training, and print and write the results."""
    args = config.parse(rivals.Args, argv=argv).args
    check_common(args)
    config.positive(args, "turn")
    config.require(bool(args.tasks), "--tasks: name at least one")
    check_paths(args)
    try:
        args.device = machine.resolve_device(args.device)
    except ValueError as error:
        config.fail(str(error))
    threads = args.threads or machine.available_cores()
    torch.set_num_threads(threads)
    report = begin(args, args.device)
    for name, path in (("cleanrl", args.cleanrl), ("leanrl", args.leanrl)):
        report[name] = git_revision(path) if path else None
    try:
        rivals.run(replace(args, threads=threads), report)
    except rivals.Missing as missing:
        config.fail(str(missing))


def reaching(argv: Sequence[str]) -> None:
    """Train until a return is reached, and print and write what that took."""
    args = config.parse(reach.Args, argv=argv).args
    config.positive(args, "frames", "every", "episodes", "threads")
    config.require(bool(args.seeds), "--seeds: name at least one")
    check_out(args.out)
    check_paths(args)
    names = [row.name for row in reach.lineup(replace(args, programs=(), cleanrl=args.cleanrl or Path()))]
    for name in args.programs:
        config.require(name in names, f"--programs {name!r}: there are {', '.join(names)}")
    report, runs = begin(args, "cpu"), []
    if args.out is not None and args.out.exists():
        try:
            before = json.loads(args.out.read_text())
            same = {
                key: before["settings"][key] for key in ("env_id", "goal", "frames", "every", "episodes", "threads")
            }
            runs = before["runs"]
        except (ValueError, KeyError, TypeError):
            config.fail(f"--out {args.out}: it is there, and no result of this command; name another file")
        config.require(
            same == {key: getattr(args, key) for key in same},
            f"--out {args.out}: it was measured with other settings, {same}; name another file",
        )
        report["machine"] = before["machine"]
    try:
        reach.run(args, report, runs)
    except rivals.Missing as missing:
        config.fail(str(missing))


def taking_apart(argv: Sequence[str]) -> None:
    """Time training without each of its optimisations, and print and write the results."""
    args = config.parse(parts.Args, argv=argv).args
    config.require(args.repeats > 1, f"--repeats {args.repeats}: must be at least 2, for quartiles")
    config.require(bool(args.tasks), "--tasks: name at least one")
    for name in args.parts:
        config.require(name in parts.PARTS, f"--parts {name!r}: there are {', '.join(parts.PARTS)}")
    check_out(args.out)
    try:
        parts.run(args, begin(args, "cpu"))
    except rivals.Missing as missing:
        config.fail(str(missing))


@dataclass
class GpuArgs:
    """Take every number that this library has of a GPU, one command after the other, each into a file of its own."""

    out: Path = Path("benchmarks/results")
    """folder of the files, which are called gpu-*.json"""
    reference: Path | None = None
    """checkout of github.com/younggyoseo/FastTD3 to compare with"""
    cleanrl: Path | None = None
    """checkout of github.com/vwxyzjn/cleanrl to compare with"""
    leanrl: Path | None = None
    """checkout of github.com/pytorch-labs/LeanRL to compare with"""
    sb3_python: Path | None = None
    """interpreter that has stable-baselines3"""
    device: str = "cuda"
    """which GPU: cuda, cuda:1"""
    minutes: float = 10.0
    """when the last command is stopped"""


ON_GPU: dict[str, tuple[str, tuple[str, ...]]] = {  # name: command, and which of the flags it takes
    "update": ("--batch-size 32768 --repeats 5 --folder {out}", ("reference",)),
    "update-compiled": ("--batch-size 32768 --repeats 5 --compile", ("reference",)),
    "ppo": ("ppo --repeats 5 --turn 8192 --tasks atari cheetah", ("cleanrl", "leanrl", "sb3_python")),
    "envs": ("envs --tasks HalfCheetah-v5 Humanoid-v5 --backends mjwarp --worlds 1024 4096 16384 --repeats 3", ()),
    "together": ("together --size reference --runs 1 2 4 --frames 60000", ()),
    "together-small": ("together --size small --runs 1 2 4 8 --frames 20000", ()),
}


def on_gpu(argv: Sequence[str]) -> int:
    """Run the commands of ON_GPU, as far as the time goes; returns 1 if one of them failed or had no time."""
    args = config.parse(GpuArgs, argv=argv).args
    config.require(args.out.is_dir(), f"--out {args.out}: there is no such folder")
    config.require(args.minutes > 0, f"--minutes {args.minutes}: must be above 0")
    try:
        device = machine.resolve_device(args.device)
    except ValueError as error:
        config.fail(str(error))
    end = time.monotonic() + 60 * args.minutes
    missed = []
    for name, (words, takes) in ON_GPU.items():
        flags = {flag: getattr(args, flag) for flag in takes if getattr(args, flag) is not None}
        more = [x for flag, value in flags.items() for x in (f"--{flag.replace('_', '-')}", str(value))]
        out = args.out / f"gpu-{name}.json"
        command = [*words.format(out=args.out).split(), "--device", device, *more, "--out", str(out)]
        print(f"\n$ python benchmarks/speed.py {' '.join(command)}", flush=True)
        try:
            left = max(end - time.monotonic(), 0.0)
            if subprocess.run([sys.executable, __file__, *command], timeout=left).returncode:
                missed.append(f"{name} failed")
        except subprocess.TimeoutExpired:
            missed.append(f"{name} had no time left")
    print("\n" + (f"not measured: {', '.join(missed)}" if missed else "all measured"))
    return int(bool(missed))


def main(argv: Sequence[str] | None = None) -> None:
    """Check that both sides compute the same, time them, and print and write the results."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "ppo":
        return training(argv[1:])
    if argv and argv[0] == "reach":
        return reaching(argv[1:])
    if argv and argv[0] == "envs":
        return simulators.main(argv[1:])
    if argv and argv[0] == "together":
        return together.main(argv[1:])
    if argv and argv[0] == "parts":
        return taking_apart(argv[1:])
    if argv and argv[0] == "gpu":
        sys.exit(on_gpu(argv[1:]))
    args = config.parse(Args, argv=argv).args
    ours, code = check(args)
    machine.keep_freed_memory()
    torch.set_num_threads(args.threads or machine.available_cores())
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # all contestants of the other side share its code
    torch.manual_seed(0)
    env = RandomEnv(ours.num_envs, 0, ours.device, args.obs_dim, args.action_dim)

    replay, *one_step = replay_calls(ours, code, env, args.slots, n_step=1)
    _, *three_steps = replay_calls(ours, code, env, args.slots, n_step=3)
    batch = replay.sample(args.batch_size)
    report = begin(args, args.device)
    report |= {"networks": {"actor": ours.actor_hidden, "critic": ours.critic_hidden, "atoms": ours.atoms}}
    report |= {"num_envs": ours.num_envs, "freed_memory_kept": ["ours", "reference"], "reference": None, "results": []}
    print(f"networks   actor {ours.actor_hidden}, 2 critics {ours.critic_hidden}, {ours.atoms} atoms")
    print(f"batch      {args.batch_size:,} of {args.obs_dim} observations and {args.action_dim} actions")
    if code is not None:
        found = differences(code, ours, env, batch[:1024])
        for name, (seen, tolerated) in found.items():
            config.require(seen <= tolerated, f"the two sides do not compute the same: {name} differs by {seen:.1e}")
        worst = max(each.seen for each in found.values() if each.tolerated == LOSS_TOLERANCE)
        precision = "bfloat16" if Reference(code, ours, "off", env).amp else "float32"
        runs = f"{precision} (their amp needs CUDA), {'compiled' if args.compile else 'not compiled'}"
        apart = {name: each._asdict() for name, each in found.items()}
        report["reference"] = {"git": code.git, "runs": runs, "differences": apart}
        print(f"reference  {runs}; with the same weights and batch, losses agree to {worst:.0e}")
    print(f"clock      {args.clock}; freed memory is kept on all sides; [least, largest] of {args.repeats} repeats")

    clock = CLOCKS[args.clock]
    machine_rates = rates(env.device, args.repeats, clock)
    plain = fasttd3.FastTD3(replace(ours, amp="off", compile=False), env)
    least = floors(plain, batch, machine_rates)
    report |= {"rates": machine_rates._asdict(), "floors": least}
    whole, per_s = least[UPDATES[-1]], machine_rates.flops
    print(
        f"floor      {whole['flops'] / 1e9:,.1f} GFLOP and {whole['bytes'] / 2**20:,.0f} MiB per update, at "
        f"{per_s['float32'] / 1e9:,.0f} GFLOP/s ({per_s['bfloat16'] / 1e9:,.0f} in bfloat16) and "
        f"{machine_rates.copied / 1e9:,.1f} GB/s\n"
    )

    tasks = update_calls(ours, code, env, batch)
    tasks |= {"replay sample, n_step 1": one_step[0], "replay sample, n_step 3": three_steps[0]}
    tasks |= {"replay add": one_step[1]}
    for name, storage in (("host", "host"), ("file", args.folder)):
        if storage and (name == "file" or env.device.type != "cpu"):  # beside a learner on the CPU is on the host
            _, sample, add = replay_calls(ours, None, env, args.slots, 1, storage)
            tasks |= {f"replay sample, {name}": sample, f"replay add, {name}": add}
    for task, calls in tasks.items():
        measured = measure(list(calls.values()), args.repeats, env.device, clock)
        rows = results(task, calls, measured, least[task]["floor_ms"] if task in least else None)
        print(table(rows), flush=True)
        report["results"] += rows
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"\nevery number: {args.out}")


if __name__ == "__main__":
    config.program(main)
