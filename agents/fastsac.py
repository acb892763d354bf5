"""FastSAC with simplicial embeddings (SEM).

    python agents/fastsac.py --sem                           # the default task, sized for the machine
    python agents/fastsac.py --sem --env-id HalfCheetah-v5   # any task of `python -m envs`
    python agents/fastsac.py --resume runs/RUN_DIR           # continue

FastSAC (Seo et al., arXiv 2512.01996) is SAC (Haarnoja et al., 2018) with many parallel environments, large batches
and a distributional critic:

1. C51 critics instead of scalar ones, each with its own target; the actor climbs their average.
2. The entropy bonus of the next action shifts the atoms of the target's distribution.
3. LayerNorm and SiLU in actor and critics; the deviation of the policy stays within exp(-5) and 1.
4. A temperature that is learned fast enough to be started at 0.001, and a target entropy of 0.

SEM (Obando-Ceron et al., arXiv 2510.13704) replaces the last hidden layer of actor and critics: `networks/sem.py`.
`--size paper` is the FastSAC that the SEM paper could have used: the branch of that name of FastTD3's code (June 2025),
with scalar critics, clipped double Q and no LayerNorm.

What differs from the authors' code (github.com/amazon-far/holosoma) on purpose:

1. The log-density of an action is exact at saturation; there 1e-6 is added to the slope of the tanh.
2. The normaliser learns from each observation once, when it is collected, and not again from every replayed batch.
3. n-step windows stop at the write head of the replay buffer, and the discount is gamma to the steps really taken.
4. The policy delay counts updates, so that a delay of 1 trains the actor.
5. Actions are in [-1, 1] of the task's own range, so the entropy is that of the scaled action.
6. `total_timesteps`, `learning_starts` and all intervals are environment frames, not vector steps.
7. The environments step while the learner learns, so a batch never holds the very last transitions.
"""

import math
import random
import signal
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from operator import le, lt
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from tensordict import TensorDict
from torch import Tensor, nn

import envs
from agents import config, machine
from agents.checkpoint import Checkpoint, rng_state, set_rng_state
from agents.compiled import TOLERANCE, Compiled
from agents.episodes import EpisodeStats, evaluate
from agents.film import filmed, rehearse
from agents.mirror import asymmetry, symmetry_of, with_images
from agents.origin import parse, start_from
from agents.ranks import ALONE, Ranks, join, started
from agents.recorded import Recorded, can_record
from agents.replay import ReplayBuffer
from agents.run import EXIT_STATUS, Run, crossed, explain, share_run
from envs.base import Step, VecEnv, spawn_seeds
from envs.families import DMC, GYM_MUJOCO, HUMANOIDBENCH
from envs.pictures import prepare_gl
from networks.actors import SquashedGaussianActor
from networks.bottlenecks import Bottleneck
from networks.critics import CategoricalCritics, ScalarCritics, project
from networks.diagnostics import (
    PROBE,
    action_churn,
    describe_gradient,
    describe_returns,
    describe_torso,
    disagreement,
    draw_torso,
    gradient_noise,
    micro_batches,
    td_error,
    undrawn,
)
from networks.flat import AdamW, Flat
from networks.normalize import RewardScale, RunningNorm
from networks.residual import batch_norms, spheres
from networks.sem import SEM, told
from networks.torso import TaskEmbedding


@dataclass
class Args:
    """FastSAC: fast maximum-entropy control with many environments, and simplicial embeddings in actor and critic."""

    # ---- experiment ----
    env_id: str = "WalkerWalk-v1"
    """task, by the name that `python -m envs` lists, or module:Class of a VecEnv of your own"""
    backend: str = "auto"
    """simulator that makes the task: auto, or a name that `python -m envs` lists"""
    seed: int = 1
    """seed of all that is random; networks, environments, replay and evaluation have streams of their own"""
    exp_name: str = "fastsac"
    """name of the variant: runs that differ only in the seed share it"""
    run_root: str = "runs"
    """folder of the run directories, and the --logdir of TensorBoard"""
    run_dir: str | None = None
    """exactly this run directory, new or not; a run that it holds is continued, so the command can be given again"""
    resume: str | None = None
    """run directory to continue from its last good checkpoint; settings come from there, and of the flags only
    --total-timesteps, --quiet, --keep-checkpoints, --threads, --env-threads and --device may be given anew"""
    init_from: str | None = None
    """run directory, one of its checkpoints, or a file that `agents/published.py` can read, whose networks and
    normalisers a new run starts from, on this task or another; the settings that shape them come along"""
    device: str = "auto"
    """where the learner lives: auto (cuda if there is one), cpu, cuda, cuda:1"""
    size: Literal["auto", "small", "reference", "paper"] = "auto"
    """networks, batch and cadence: reference is FastSAC's, paper is that of the SEM paper's time, small is what learns
    fast on a CPU, auto goes by device"""
    threads: int = 0
    """CPU threads of the learner, 0 for what pays: all cores, or one where networks and batches are small"""
    quiet: bool = False
    """no progress line"""

    # ---- length and intervals, in environment frames ----
    total_timesteps: int = 102_400_000
    """frames to train for, over all environments"""
    learning_starts: int = 40_960
    """frames collected before the first update"""
    log_every: int = 409_600
    """frames between rows of metrics, 0 for none"""
    eval_every: int = 5_120_000
    """frames between evaluations, 0 for none; one more at the end"""
    eval_envs: int = 64
    """environments of the evaluation, one episode each, with seeds of their own that are the same every time"""
    video_every: int = 0
    """frames between films of the first episode of an evaluation, 0 for none: videos/ and TensorBoard's Images tab; a
    multiple of --eval-every, and one more at the end"""
    save_every: int = 5_120_000
    """frames between checkpoints, 0 for none but the last"""
    save_replay: bool = True
    """checkpoints hold the replay buffer, which makes resuming exact; without it a resumed run refills it"""
    keep_checkpoints: int = 2
    """how many of the latest checkpoints to keep"""

    # ---- environments ----
    num_envs: int = 4_096
    """N, environments that step together"""
    env_threads: int = 0
    """threads of a CPU simulator, 0 for its own choice"""

    # ---- algorithm ----
    gamma: float = 0.97
    """discount per step"""
    tau: float = 0.125
    """share of the critic that the target critic takes on at each update"""
    batch_size: int = 8_192
    """B, transitions per update"""
    buffer_size: int = 4_194_304
    """transitions that the replay buffer holds, over all environments"""
    replay_dtype: Literal["float32", "bfloat16"] = "float32"
    """precision of stored observations: bfloat16 halves the memory and rounds before normalisation"""
    replay_storage: str = "device"
    """where the replay buffer is kept: device, beside the learner; host, in main memory; or a folder, in a nameless
    file there, of which free memory holds as much as it can"""
    n_step: int = 1
    """rewards summed before bootstrapping"""
    num_updates: int = 8
    """critic updates per step of all environments"""
    policy_frequency: int = 4
    """critic updates per actor update"""
    critic_lr: float = 3e-4
    """learning rate of the critics at the start"""
    critic_lr_end: float = 3e-4
    """learning rate of the critics at the end; a cosine leads there"""
    actor_lr: float = 3e-4
    """learning rate of the actor at the start"""
    actor_lr_end: float = 3e-4
    """learning rate of the actor at the end; a cosine leads there"""
    alpha_lr: float = 3e-4
    """learning rate of the temperature"""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    """decay of the running mean and square of the gradients, of all optimisers"""
    weight_decay: float = 0.001
    """decoupled weight decay (AdamW) of actor and critics"""
    max_grad_norm: float = 0.0
    """gradient norm at which to clip, 0 for no clipping"""
    alpha_init: float = 0.001
    """temperature at the start: the weight of the entropy beside the rewards"""
    autotune: bool = True
    """learn the temperature, so that the policy's entropy approaches the target"""
    target_entropy_ratio: float = 0.0
    """target entropy in nats is minus this times A: 0 is the entropy of a range of length 1, and 1 that of 1/e"""
    log_std_min: float = -5.0
    """lowest logarithm of the policy's deviation"""
    log_std_max: float = 0.0
    """highest logarithm of the policy's deviation"""
    distributional: bool = True
    """critics give the distribution of the return (C51); otherwise its mean, learned by squared error"""
    atoms: int = 101
    """K, atoms of the return distribution"""
    v_min: float = -20.0
    """lowest return of the support"""
    v_max: float = 20.0
    """highest return of the support"""
    clipped_double_q: bool = False
    """targets and actor go by the critic with the lower mean; otherwise each critic has its own target, and the actor
    climbs their average"""
    obs_norm: bool = True
    """normalise observations that are vectors by their running mean and deviation"""
    reward_norm: bool = False
    """scale rewards by the deviation of a running return"""
    symmetry: bool = False
    """learn from each transition and from its mirror image, in batches that are twice as large: for tasks whose
    left-right symmetry is known (`envs.wrappers.with_symmetry`)"""

    # ---- networks ----
    actor_hidden: tuple[int, ...] = (512, 256, 128)
    """units of the actor's hidden layers"""
    critic_hidden: tuple[int, ...] = (768, 384, 192)
    """units of the critic's hidden layers, of each critic's where there are two"""
    layer_norm: bool = True
    """LayerNorm before each activation"""
    activation: Literal["relu", "silu", "tanh", "elu"] = "silu"
    """nonlinearity of the hidden layers; after convolutions it is relu"""
    task_embedding: int = 32
    """width of the learned vector that stands for a task, where --env-id has several; 0 leaves the one-hot vector"""
    torso: Literal["mlp", "simba", "simbav2", "flashsac"] = "mlp"
    """hidden layers: plain ones, or residual blocks with norms and an activation of their own, one for each number of
    units (`networks/residual.py`); PPO has no flashsac"""
    sem: bool = False
    """simplicial embeddings in actor and critics"""
    bottleneck: Literal[
        "auto", "relu", "sem", "layernorm", "narrow", "single", "gumbel-st", "vq", "crelu", "l2", "fta"
    ] = "auto"
    """what takes the place of the last hidden layer: relu leaves it as it is, `networks/bottlenecks.py` has the others,
    auto is sem with --sem and relu without; the flags below are for whichever it is"""
    sem_actor: bool = True
    """where --sem or --bottleneck asks for one, in the actor"""
    sem_critic: bool = True
    """where --sem or --bottleneck asks for one, in the critics"""
    sem_position: Literal["last", "every", "input"] = "last"
    """which hidden layer it takes the place of: the last, every one, or the first; one that is not the last has as many
    groups of V as there were units for"""
    sem_actor_groups: int = 2
    """L of the actor's embedding"""
    sem_actor_vertices: int = 64
    """V of the actor's embedding; L * V is by default the width of the layer that it replaces"""
    sem_critic_groups: int = 3
    """L of the critics' embedding"""
    sem_critic_vertices: int = 64
    """V of the critics' embedding; L * V is by default the width of the layer that it replaces"""
    sem_temperature: float = 1.0
    """tau of the softmax; the paper's code has 1"""
    sem_learned_temperature: bool = False
    """learn tau, one for each network, from --sem-temperature on"""
    sem_temperature_end: float = 0.0
    """tau at the end of training, approached by equal factors in equal times; 0 keeps it at --sem-temperature"""

    # ---- speed ----
    amp: Literal["auto", "bfloat16", "off"] = "auto"
    """precision of the learner's products: auto is bfloat16 where the hardware multiplies it faster"""
    compile: bool = False
    """compile the updates with torch.compile, and on a GPU record them as CUDA graphs (PQN: the first alone): pays on a
    GPU, and on a CPU in long runs; before the first one, both are held against plain code, and given up where they
    differ"""


LOSSES = ("qf_loss", "actor_loss", "alpha_loss", "entropy")


class FastSAC:
    """Networks, normalisers and optimisers of one agent, and the ways to change them."""

    def __init__(self, args: Args, env: VecEnv, ranks: Ranks = ALONE) -> None:
        if not isinstance(env.action_space, Box) or len(env.obs_space.shape) != 1:
            raise ValueError(
                f"FastSAC needs continuous actions and observations that are vectors; {env.task} has "
                f"{env.action_space} and observations of shape {env.obs_space.shape}: use agents/ppo.py"
            )
        self.args = args
        self.ranks = ranks
        self.device = env.device
        obs_dim, critic_obs_dim = env.obs_space.shape[0], env.critic_obs_space.shape[0]
        self.num_envs, self.action_dim = env.num_envs, env.action_space.shape[0]
        self.tasks = len(env.tasks)
        self.symmetry = env.symmetry
        self.mirror = symmetry_of(env) if args.symmetry else None  # what is learned from has its images in it, too
        learned = args.task_embedding if self.tasks else 0
        more = learned - self.tasks if learned else 0  # features that the networks see
        actor_sem, critic_sem = sem_configs(args)
        style: dict[str, Any] = {"activation": args.activation, "norm": args.layer_norm, "torso": args.torso}
        sizes = critic_obs_dim + more, self.action_dim, args.critic_hidden
        self.actor = SquashedGaussianActor(
            obs_dim + more, self.action_dim, args.actor_hidden, actor_sem, args.log_std_min, args.log_std_max, **style
        )
        self.critic: CategoricalCritics | ScalarCritics = (
            CategoricalCritics(*sizes, args.atoms, args.v_min, args.v_max, critic_sem, **style)
            if args.distributional
            else ScalarCritics(*sizes, critic_sem, **style)
        )
        if learned:
            for network, size in ((self.actor, obs_dim), (self.critic, critic_obs_dim)):
                network.torso.insert(0, TaskEmbedding(size - self.tasks, self.tasks, learned))
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.obs_norm = RunningNorm(obs_dim, keep=self.tasks) if args.obs_norm else nn.Identity()
        self.critic_obs_norm = self.obs_norm
        if args.obs_norm and env.privileged:
            self.critic_obs_norm = RunningNorm(critic_obs_dim, keep=self.tasks)
        g_max = min(abs(bound) for bound in (args.v_min, args.v_max) if bound != 0)
        self.reward_scale: nn.Module = nn.Identity()
        if args.reward_norm:
            task = env.task_ids.repeat(ranks.world)
            self.reward_scale = RewardScale(len(task), args.gamma, g_max, task)
        self.modules = nn.ModuleDict(
            {
                "actor": self.actor,
                "critic": self.critic,
                "target": self.target,
                "obs_norm": self.obs_norm,
                "critic_obs_norm": self.critic_obs_norm,
                "reward_scale": self.reward_scale,
            }
        ).to(self.device)
        self.log_alpha = torch.tensor(math.log(args.alpha_init), device=self.device, requires_grad=True)
        self.target_entropy = -args.target_entropy_ratio * self.action_dim
        self.annealed = [block for block in self.modules.modules() if isinstance(block, SEM)]
        self.actor_norms, self.critic_norms = batch_norms(self.actor), batch_norms(self.critic, self.target)
        for norm in (*self.actor_norms, *self.critic_norms):
            norm.average = ranks.mean_
        self.actor_flat, self.critic_flat, self.target_flat = (
            Flat(network.parameters(), spheres(network)) for network in (self.actor, self.critic, self.target)
        )
        self.alpha_flat = Flat([self.log_alpha])
        self.actor_optimizer, self.critic_optimizer = (
            AdamW(flat, lr, args.adam_betas, weight_decay=args.weight_decay)
            for flat, lr in ((self.actor_flat, args.actor_lr), (self.critic_flat, args.critic_lr))
        )
        self.alpha_optimizer = AdamW(self.alpha_flat, args.alpha_lr, args.adam_betas)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=args.amp == "bfloat16")
        self.updates = 0
        self.loss_sum = torch.zeros(4, device=self.device)  # of LOSSES, since the last report
        self.loss_count = [0, 0, 0, 0]
        flats = self.actor_flat, self.critic_flat, self.target_flat
        self.compiled = Compiled(self, flats, "critic_gradient", "actor_gradient") if args.compile else None
        self.recorded = Recorded(self, "learn") if args.compile and can_record(self.device, ranks) else None

    # ---- acting ----

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Return the policy's actions [B, A] without noise, for raw observations [B, D]."""
        return self.actor(self.obs_norm(obs)).mode()

    @torch.no_grad()
    def explore(self, obs: Tensor) -> Tensor:
        """Return actions [N, A] in [-1, 1] drawn from the policy, one for each training environment."""
        return self.actor(self.obs_norm(obs)).sample()[0]

    def explore_uniformly(self) -> Tensor:
        """Return actions [N, A] drawn evenly from [-1, 1], for the frames before the first update."""
        return torch.rand(self.num_envs, self.action_dim, device=self.device) * 2 - 1

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Learn the normalisers from a step."""
        self.learn_norms(step.obs, step.critic_obs)
        if isinstance(self.reward_scale, RewardScale):
            done = self.ranks.gather(step.terminated | step.truncated)
            self.reward_scale.update(self.ranks.gather(step.reward), done)

    def learn_norms(self, obs: Tensor, critic_obs: Tensor) -> None:
        """Learn the observation normalisers from collected observations [N, D] and [N, C]."""
        if self.mirror is not None:
            both = with_images({"obs": obs, "critic_obs": critic_obs}, self.mirror)
            obs, critic_obs = both["obs"], both["critic_obs"]
        if isinstance(self.obs_norm, RunningNorm):
            self.obs_norm.update(self.ranks.gather(obs))
        if isinstance(self.critic_obs_norm, RunningNorm) and self.critic_obs_norm is not self.obs_norm:
            self.critic_obs_norm.update(self.ranks.gather(critic_obs))

    # ---- learning ----

    def update(self, batch: TensorDict) -> None:
        """Take a step of critics and temperature, every `policy_frequency`-th time of the actor; move the target."""
        self.updates += 1
        with_actor = self.updates % self.args.policy_frequency == 0
        self.learn(batch, with_actor)
        counts = {"qf_loss": 1, "entropy": 1, "alpha_loss": self.args.autotune, "actor_loss": with_actor}
        self.loss_count = [count + counts[name] for count, name in zip(self.loss_count, LOSSES, strict=True)]

    def learn(self, batch: TensorDict, with_actor: bool) -> None:
        """Do what an update does on the device."""
        batch = self.prepare(self.augment(batch))
        loss, gradient, next_log_prob = self.critic_gradient(batch)
        self._descend("qf_loss", loss, gradient, self.critic_flat, self.critic_optimizer)
        for norm in self.critic_norms:
            norm.learn()
        self.loss_sum[LOSSES.index("entropy")] -= next_log_prob.mean()
        if self.args.autotune:
            self._descend("alpha_loss", *self.alpha_gradient(next_log_prob), self.alpha_flat, self.alpha_optimizer)
        if with_actor:
            self._descend("actor_loss", *self.actor_gradient(batch), self.actor_flat, self.actor_optimizer)
            for norm in self.actor_norms:
                norm.learn()
        self.target_flat.lerp(self.critic_flat, self.args.tau)

    @property
    def variants(self) -> list[tuple[bool]]:
        """What `learn` is told, one way or the other: whether the actor learns, too."""
        return [(True,)] if self.args.policy_frequency == 1 else [(False,), (True,)]

    def gradient(self, batch: TensorDict) -> Tensor:
        """Return the gradients [P] of both losses on a batch, critics first."""
        batch = self.prepare(self.augment(batch))
        return torch.cat([self.critic_gradient(batch)[1], self.actor_gradient(batch)[1]])

    def augment(self, batch: TensorDict) -> TensorDict:
        """Return a batch [B] of raw transitions with their mirror images behind them [2 B], where that is asked for."""
        if self.mirror is None:
            return batch
        return TensorDict(with_images(batch.to_dict(), self.mirror), [2 * len(batch)])

    def prepare(self, batch: TensorDict) -> TensorDict:
        """Return the batch with normalised observations and rewards."""
        obs, next_obs = self.obs_norm(batch["obs"]), self.obs_norm(batch["next_obs"])
        shared = self.critic_obs_norm is self.obs_norm and batch["critic_obs"] is batch["obs"]
        return TensorDict(
            {
                "obs": obs,
                "critic_obs": obs if shared else self.critic_obs_norm(batch["critic_obs"]),
                "action": batch["action"],
                "reward": self.scaled_reward(batch),
                "discount": batch["discount"],
                "next_obs": next_obs,
                "next_critic_obs": next_obs if shared else self.critic_obs_norm(batch["next_critic_obs"]),
            },
            batch.batch_size,
        )

    def scaled_reward(self, batch: TensorDict) -> Tensor:
        """Return the rewards [B] on the scale of the support, where that is asked for, by the task of each row."""
        if not isinstance(self.reward_scale, RewardScale):
            return batch["reward"]
        task = batch["obs"][:, -self.tasks :].argmax(-1) if self.tasks else None
        return self.reward_scale(batch["reward"], task)

    @torch.no_grad()
    def next_action(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Return actions [B, A] drawn from the policy at next_obs, and their log-density [B]."""
        with self.autocast:
            return self.actor(batch["next_obs"]).sample()

    @torch.no_grad()
    def soft_target(self, batch: TensorDict, next_action: Tensor, next_log_prob: Tensor) -> Tensor:
        """Return what the critics learn, from next actions [B, A] and their log-density [B].

        Distributional critics: the distribution of `reward + discount * (Z(next_obs, a) - alpha log pi(a))` on the
        support, [1, B, K], or [Q, B, K] for one each. With clipped double Q it is, sample by sample, that of the critic
        with the lower mean. Scalar critics: the same with values, [1, B] or [Q, B]. With n-step rewards the entropy of
        the steps in between is left out.
        """
        target, beside = self.target, (batch["critic_obs"], batch["action"])
        with self.autocast:
            next_out = target(batch["next_critic_obs"], next_action, beside)  # logits [Q, B, K], or values [Q, B]
        bonus = -self.log_alpha.exp() * next_log_prob  # [B]
        if isinstance(target, ScalarCritics):
            return self.target_values(batch, next_out, bonus)
        return project(*self.target_atoms(batch, next_out, bonus), target.support)

    def target_values(self, batch: TensorDict, next_value: Tensor, bonus: Tensor) -> Tensor:
        """Return the target of scalar critics, [1, B] or [Q, B]."""
        next_value = next_value.amin(0, keepdim=True) if self.args.clipped_double_q else next_value
        return batch["reward"] + batch["discount"] * (next_value + bonus)

    def target_atoms(self, batch: TensorDict, next_logits: Tensor, bonus: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target before projection: probabilities [1, B, K] or [Q, B, K], and their atoms [B, K]."""
        args, target = self.args, self.target
        assert isinstance(target, CategoricalCritics)
        next_probs = torch.softmax(next_logits, -1)
        shifted = target.support + bonus[:, None]
        atoms = torch.addcmul(batch["reward"][:, None], batch["discount"][:, None], shifted)
        if args.clipped_double_q:
            landed = atoms.clamp(args.v_min, args.v_max)  # where projection puts them, so these are the projected means
            value = torch.einsum("qbk,bk->qb", next_probs, landed)
            next_probs = next_probs.gather(0, value.argmin(0)[None, :, None].expand(1, -1, args.atoms))
        return next_probs, atoms

    def critic_loss(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Return the critics' loss, mean over samples and sum over critics, and the log-density [B] of `next_action`.

        The cross-entropy with the target's distribution, or the squared error of scalar critics.
        """
        next_action, next_log_prob = self.next_action(batch)
        target = self.soft_target(batch, next_action, next_log_prob)
        with self.autocast:
            out = self.critic(batch["critic_obs"], batch["action"], (batch["next_critic_obs"], next_action))
        if isinstance(self.critic, ScalarCritics):
            return (out - target).square().mean(-1).sum(), next_log_prob
        return -(target * F.log_softmax(out, -1)).sum(-1).mean(-1).sum(), next_log_prob

    def actor_loss(self, batch: TensorDict) -> Tensor:
        """Return mean of alpha log pi(a) - Q(obs, a) for the actor's own actions; Q is the critics' mean or minimum."""
        with self.autocast:
            action, log_prob = self.actor(batch["obs"], batch["next_obs"]).sample()
            out = self.critic(batch["critic_obs"], action)
        value = self.values(out)
        value = value.amin(0) if self.args.clipped_double_q else value.mean(0)
        return (self.log_alpha.detach().exp() * log_prob - value).mean()

    def alpha_loss(self, log_prob: Tensor) -> Tensor:
        """Return what the temperature descends on: it rises while the policy's entropy is below the target."""
        return -(self.log_alpha.exp() * (log_prob + self.target_entropy)).mean()

    def values(self, out: Tensor) -> Tensor:
        """Return the expected returns [Q, B] that the critics' outputs stand for."""
        return out if isinstance(self.critic, ScalarCritics) else self.critic.value(out)

    def critic_gradient(self, batch: TensorDict) -> tuple[Tensor, Tensor, Tensor]:
        """Return the critics' loss, its gradient [P] by their parameters, and the log-density [B] of `next_action`."""
        loss, next_log_prob = self.critic_loss(batch)
        return loss.detach(), self.critic_flat.gradient(loss), next_log_prob

    def actor_gradient(self, batch: TensorDict) -> tuple[Tensor, Tensor]:
        """Return the actor's loss, and its gradient [P] by its own parameters."""
        loss = self.actor_loss(batch)
        return loss.detach(), self.actor_flat.gradient(loss)

    def alpha_gradient(self, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Return the temperature's loss, and its gradient [1] by the logarithm of the temperature."""
        loss = self.alpha_loss(log_prob)
        return loss.detach(), self.alpha_flat.gradient(loss)

    def _descend(self, name: str, loss: Tensor, gradient: Tensor, network: Flat, optimizer: AdamW) -> None:
        """Take one optimiser step of one network, along its gradient [P] of a loss."""
        network.vector.grad = self.ranks.mean_(gradient)
        if self.args.max_grad_norm > 0:
            network.clip(self.args.max_grad_norm)
        optimizer.step()
        self.loss_sum[LOSSES.index(name)] += loss

    def anneal(self, progress: float) -> None:
        """Set what goes by the share of training done, 0 to 1: SEM's temperature, and learning rates along a cosine."""
        for block in self.annealed:
            block.anneal(progress)
        args, cosine = self.args, 0.5 * (1 + math.cos(math.pi * progress))
        for optimizer, start, end in (
            (self.actor_optimizer, args.actor_lr, args.actor_lr_end),
            (self.critic_optimizer, args.critic_lr, args.critic_lr_end),
        ):
            optimizer.lr.fill_(end + (start - end) * cosine)

    # ---- reporting and saving ----

    @torch.no_grad()
    def report(self, batch: TensorDict) -> dict[str, Tensor]:
        """Return the losses since the last report, and what the networks make of a batch; tensors of one element.

        They are probed with the first 1,024 transitions of the batch, in float32. Leaves the random numbers as they
        are, so that training is the same with and without it.
        """
        raw = batch["obs"][:PROBE]
        batch = self.prepare(batch[:PROBE])
        obs, critic_obs, action = batch["obs"], batch["critic_obs"], batch["action"]
        values = self.critic(critic_obs, action)  # or logits
        value = self.values(values)
        policy = self.actor(obs)
        with undrawn(self.device):
            next_action, next_log_prob = self.actor(batch["next_obs"]).sample()
        next_out = self.target(batch["next_critic_obs"], next_action)
        bonus = -self.log_alpha.exp() * next_log_prob
        losses = self.ranks.mean_(self.loss_sum) / self.loss_sum.new_tensor(self.loss_count).clamp(min=1)
        self.loss_sum.zero_()
        self.loss_count = [0, 0, 0, 0]
        return {
            **{f"losses/{name}": loss for name, loss in zip(LOSSES, losses, strict=True)},
            "losses/alpha": self.log_alpha.exp(),
            "losses/qf1_values": value[0].mean(),
            "losses/qf2_values": value[1].mean(),
            "charts/action_std": policy.log_std.exp().mean(),
            "charts/learning_rate": self.critic_optimizer.lr,
            **(
                describe_returns(values, *self.target_atoms(batch, next_out, bonus), self.target.support)
                if isinstance(self.target, CategoricalCritics)
                else {
                    "critic/disagreement": disagreement(value),
                    "critic/td_error": td_error(value, self.target_values(batch, next_out, bonus)),
                }
            ),
            **describe_torso("actor", self.actor.torso, obs),
            **describe_torso("critic", self.critic.torso, torch.cat([critic_obs, action], -1), self.target.torso),
            **self.describe_gradients(batch),
            **({"policy/asymmetry": asymmetry(self.act, raw, self.symmetry)} if self.symmetry else {}),
        }

    @torch.no_grad()
    def draw(self, batch: TensorDict) -> dict[str, Tensor]:
        """Return values for histograms and images of simplices, by tag, for the first 1,024 transitions of a batch."""
        batch = self.prepare(batch[:PROBE])
        pair = torch.cat([batch["critic_obs"], batch["action"]], -1)
        images = draw_torso(["actor"], self.actor.torso, batch["obs"])
        return images | draw_torso(["critic"], self.critic.torso, pair)

    def describe_gradients(self, batch: TensorDict) -> dict[str, Tensor]:
        """Return size and noise of the gradients of both losses on a prepared batch, and the policy's churn.

        That is how much one more step of the actor along its gradient would change the actions; it is taken back.
        """
        parts = micro_batches(batch)
        with torch.enable_grad(), undrawn(self.device):  # not what is compiled: that is done anew for each size
            critic = gradient_noise(self.critic_flat.gradient(self.critic_loss(part)[0]) for part in parts)
            actor = gradient_noise(self.actor_flat.gradient(self.actor_loss(part)) for part in parts)
        action = self.actor(batch["obs"]).mode()
        with self.actor_optimizer.rehearsal():
            self.actor_flat.vector.grad = actor.mean
            if self.args.max_grad_norm > 0:
                self.actor_flat.clip(self.args.max_grad_norm)
            self.actor_optimizer.step()
            churn = action_churn(self.actor(batch["obs"]).mode(), action)
        return {
            **describe_gradient("critic", critic, len(parts[0])),
            **describe_gradient("actor", actor, len(parts[0])),
            "policy/churn": churn,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training changes; tensors, dicts, lists and numbers only."""
        return {
            "modules": self.modules.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "log_alpha": self.log_alpha.detach(),
            "updates": self.updates,
            "loss_sum": self.loss_sum,
            "loss_count": list(self.loss_count),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an agent with the same settings.

        Raises:
            ValueError: the checkpoint is of another task or architecture; names the first parameter that differs.
        """
        mine = self.modules.state_dict()
        theirs = state["modules"]
        for name in [*mine, *theirs]:
            here, there = (tuple(x[name].shape) if name in x else None for x in (mine, theirs))
            if here != there:
                raise ValueError(
                    f"the checkpoint does not fit: {name} is {there or 'absent'} there and {here or 'absent'} here; "
                    f"task, --torso, --sem*, --bottleneck and --*-hidden must be those of the run"
                )
        self.modules.load_state_dict(theirs)
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        with torch.no_grad():
            self.log_alpha.copy_(state["log_alpha"])
        self.updates = state["updates"]
        self.loss_sum.copy_(state["loss_sum"])
        self.loss_count = list(state["loss_count"])


def sem_configs(args: Args) -> tuple[Bottleneck | None, Bottleneck | None]:
    """Return the SEM of the actor and of the critics, or what --bottleneck asks for instead; None where it is off."""
    kind = args.bottleneck if args.bottleneck != "auto" else "sem" if args.sem else "relu"
    if kind == "relu":
        return None, None
    tau = args.sem_temperature, args.sem_learned_temperature, args.sem_temperature_end
    style = *tau, kind, args.sem_position
    return (
        Bottleneck(args.sem_actor_groups, args.sem_actor_vertices, *style) if args.sem_actor else None,
        Bottleneck(args.sem_critic_groups, args.sem_critic_vertices, *style) if args.sem_critic else None,
    )


# ---- settings --------------------------------------------------------------------------------------------------------

ONE_MACHINE = {  # FastTD3's scale, for simulators on a CPU: 128 environments, 12.8 million frames
    "num_envs": 128,
    "eval_envs": 16,
    "total_timesteps": 12_800_000,
    "learning_starts": 1_280,
    "buffer_size": 6_553_600,
    "batch_size": 32_768,
    "num_updates": 2,
    "policy_frequency": 2,
    "gamma": 0.99,
    "tau": 0.1,
    "log_every": 12_800,
    "eval_every": 640_000,
    "save_every": 640_000,
}

# (name, task patterns, size or None for all, overrides); later rows win. What no row names is as in Args: FastSAC's own
# numbers for legged robots in a GPU simulator, whose rewards are scaled by the time step. It has none for other tasks.
PRESETS: tuple[config.Row, ...] = (
    (
        "any task",
        ("*",),
        "small",
        {
            "num_envs": 16,
            "eval_envs": 16,
            "total_timesteps": 160_000,
            "learning_starts": 1_600,
            "buffer_size": 320_000,
            "batch_size": 256,
            "num_updates": 4,
            "policy_frequency": 2,
            "n_step": 3,
            "gamma": 0.99,
            "tau": 0.02,
            "critic_lr": 1e-3,
            "actor_lr": 1e-3,
            "alpha_lr": 1e-3,
            "atoms": 51,
            "v_min": -10.0,
            "v_max": 10.0,
            "reward_norm": True,  # the scale of the task's rewards is not known
            "actor_hidden": (256, 128, 128),
            "critic_hidden": (256, 128, 64),
            "sem_actor_groups": 2,
            "sem_actor_vertices": 64,
            "sem_critic_groups": 16,
            "sem_critic_vertices": 4,
            "log_every": 4_000,
            "eval_every": 20_000,
            "save_every": 40_000,
        },
    ),
    (
        "any task",
        ("*",),
        "paper",
        {
            **ONE_MACHINE,
            "total_timesteps": 19_200_000,
            "weight_decay": 0.1,
            "adam_betas": (0.9, 0.999),
            "target_entropy_ratio": 1.0,
            "log_std_max": 2.0,
            "distributional": False,
            "clipped_double_q": True,
            "layer_norm": False,
            "activation": "relu",
            "critic_hidden": (1024, 512, 256),
            "sem_critic_groups": 4,
        },
    ),
    ("HumanoidBench", HUMANOIDBENCH, "reference", {**ONE_MACHINE, "v_min": -250.0, "v_max": 250.0}),
    (
        "Meta-World, sets of tasks",  # FastTD3's for MTBench, but for the environments, which here step on the cores
        ("MetaWorld/MT*",),
        None,
        {
            "num_envs": 50,
            "eval_envs": 50,
            "gamma": 0.97,
            "n_step": 8,
            "v_min": -10.0,
            "v_max": 10.0,
            "reward_norm": True,
        },
    ),
    ("DeepMind Control", DMC, None, {"v_min": 0.0, "v_max": 100.0, "reward_norm": False}),
    ("DeepMind Control", DMC, "reference", {**ONE_MACHINE, "n_step": 3}),
    ("Gymnasium MuJoCo", GYM_MUJOCO, "reference", {**ONE_MACHINE, "reward_norm": True}),
)


def presets(args: Args) -> list[tuple[str, config.Overrides]]:
    """Return the overrides for the size and the task, weakest first; the command line is stronger than all."""
    device = machine.resolve_device(args.device)
    size = args.size if args.size != "auto" else "small" if device == "cpu" else "reference"
    return [(f"size {size}", {"size": size}), *config.select(PRESETS, args.env_id, size)]


def resolve(args: Args) -> Args:
    """Return the settings with every choice made that they leave open.

    Raises:
        ValueError: a value is out of its range.
    """
    device = machine.resolve_device(args.device)
    amp = args.amp if args.amp != "auto" else "bfloat16" if machine.fast_bfloat16(device) else "off"
    above_zero = (
        *("total_timesteps", "num_envs", "eval_envs", "batch_size", "buffer_size", "n_step", "num_updates"),
        *("policy_frequency", "keep_checkpoints", "tau", "alpha_init"),
    )
    not_negative = (
        *("seed", "threads", "env_threads", "learning_starts", "log_every", "eval_every", "save_every", "critic_lr"),
        *("critic_lr_end", "actor_lr", "actor_lr_end", "alpha_lr", "weight_decay", "max_grad_norm", "video_every"),
        *("sem_temperature_end", "task_embedding"),
    )
    for names, is_legal, legal in ((above_zero, lt, "above 0"), (not_negative, le, "0 or above")):
        for name in names:
            if not is_legal(0, getattr(args, name)):
                raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {legal}")
            if getattr(args, name) > (most := 2e8 if name == "batch_size" else 3e38):  # memory and float32 end there
                raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at most {most:g}")
    if args.seed >= 1 << 32:
        raise ValueError(f"--seed {args.seed}: must be below 2^32, as NumPy wants it")
    if args.video_every and (args.eval_every == 0 or args.video_every % args.eval_every):
        raise ValueError(
            f"--video-every {args.video_every}: must be a multiple of --eval-every {args.eval_every}, whose "
            "episodes are filmed"
        )
    if max(args.threads, args.env_threads) > 1024:
        raise ValueError(f"--threads {args.threads} --env-threads {args.env_threads}: both must be at most 1024")
    ranks = Ranks(world=started())  # what does not divide is refused here, as early as all else
    _ = ranks.share("--num-envs", args.num_envs), ranks.share("--batch-size", args.batch_size)
    if math.ceil(args.buffer_size / args.num_envs) < args.n_step:
        raise ValueError(
            f"--buffer-size {args.buffer_size}: with --num-envs {args.num_envs} and --n-step {args.n_step} it must be "
            f"at least {args.num_envs * (args.n_step - 1) + 1}"
        )
    if not -SUPPORT <= args.v_min < args.v_max <= SUPPORT or args.v_max - args.v_min < 1 / SUPPORT:
        raise ValueError(
            f"--v-min {args.v_min} --v-max {args.v_max}: the first must be below the second, both within {SUPPORT:g}"
        )
    if not 0 <= args.gamma <= 1 or not args.tau <= 1:
        raise ValueError(f"--gamma {args.gamma} --tau {args.tau}: both must be at most 1, gamma at least 0")
    if not all(0 <= beta < 1 for beta in args.adam_betas):
        raise ValueError(f"--adam-betas {args.adam_betas}: both must be at least 0 and below 1")
    if (args.sem or args.bottleneck not in ("auto", "relu")) and not (args.sem_actor or args.sem_critic):
        raise ValueError("--no-sem-actor --no-sem-critic: there is no network left to put a block into")
    if args.sem and args.bottleneck not in ("auto", "sem"):
        raise ValueError(f"--sem --bottleneck {args.bottleneck}: --sem stands for --bottleneck sem, give one of them")
    return replace(args, device=device, amp=amp, sem=args.sem or args.bottleneck == "sem")


# ---- training --------------------------------------------------------------------------------------------------------


SUPPORT = 1e12
"""largest return that the support may have: float32 ends at 1e38, and squares"""
MUTABLE = ("total_timesteps", "quiet", "keep_checkpoints", "threads", "env_threads", "device")
"""settings that may be given anew when a run is resumed; any other would make it another run"""


def build(args: Args, ranks: Ranks = ALONE) -> tuple[FastSAC, ReplayBuffer, VecEnv, VecEnv | None]:
    """Return agent, replay buffer, and the environments to train and to evaluate in: two instances.

    Raises:
        ValueError: the task, the device or the memory is not there, or the agent cannot learn the task.
    """
    machine.keep_freed_memory()
    if args.video_every:
        prepare_gl()
    num_envs = ranks.share("--num-envs", args.num_envs)
    paying = machine.learner_threads(ranks.share("--batch-size", args.batch_size), args.critic_hidden)
    torch.set_num_threads(args.threads or ranks.threads(paying))
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # the first two for simulators that use them
        seed(args.seed)
    device = ranks.device(args.device)
    options: dict[str, Any] = {"num_threads": args.env_threads} if args.env_threads else {}
    env = envs.make(args.env_id, num_envs, ranks.seed(args.seed), device, args.backend, **options)
    agent = FastSAC(args, env, ranks)
    ranks.part_ways(args.seed)
    replay = ReplayBuffer(
        env.num_envs,
        math.ceil(args.buffer_size / args.num_envs) + 1,  # the open slot holds no transition
        env.obs_space,
        env.critic_obs_space,
        env.action_space,
        env.device,
        max_episode_steps=env.max_episode_steps,
        n_step=args.n_step,
        gamma=args.gamma,
        obs_dtype=getattr(torch, args.replay_dtype),
        storage=args.replay_storage,
        seed=spawn_seeds(ranks.seed(args.seed), 1, "replay")[0],
        say=None if args.quiet or not ranks.first else partial(print, file=sys.stderr),
    )
    eval_env = None
    if args.eval_every and ranks.first:
        make = partial(envs.make, args.env_id, args.eval_envs, args.seed, device, backend=args.backend, **options)
        eval_env = rehearse(make, spawn_seeds(args.seed, 1, "evaluation")[0]) if args.video_every else make()
    return agent, replay, env, eval_env


def train(
    run: Run[Args], agent: FastSAC, replay: ReplayBuffer, env: VecEnv, eval_env: VecEnv | None
) -> dict[str, float]:
    """Train until the frames are done or a signal asks to stop; returns the last evaluation, if there was one."""
    args = run.args
    stats = EpisodeStats(env.num_envs, env.device, run.ranks)
    describe(run, env)
    frames = 0
    learning_starts = args.learning_starts
    score: dict[str, float] = {}  # of the last evaluation
    if run.checkpoint is None:
        obs, critic_obs = env.reset()
        replay.start(obs, critic_obs)
        agent.learn_norms(obs, critic_obs)
    else:
        frames = run.checkpoint.step
        obs, critic_obs, score = restore(run.checkpoint, agent, replay, stats, env)
        if not run.checkpoint.has("replay"):  # it is filled again first, by the policy
            learning_starts += frames
    eval_seed = spawn_seeds(args.seed, 1, "evaluation")[0]
    batch_size = run.ranks.share("--batch-size", args.batch_size)
    batch: TensorDict | None = None

    while frames < args.total_timesteps and not run.stop_signal:
        # ---- act, and learn while the environments step ----
        with run.timer("act"):
            if frames < args.learning_starts and args.init_from is None:
                action = agent.explore_uniformly()
            else:
                action = agent.explore(obs)
            env.step_send(action)
        if frames >= learning_starts and run.ranks.all(len(replay) > 0):
            with run.timer("learn"):
                agent.anneal(frames / args.total_timesteps)
                for _ in range(args.num_updates):
                    batch = replay.sample(batch_size)
                    if agent.compiled is not None and agent.compiled.unverified:
                        run.note(agent.compiled.verify(TOLERANCE[args.amp], partial(agent.gradient, batch)))
                    if agent.recorded is not None and agent.recorded.unverified:
                        run.note(agent.recorded.verify(TOLERANCE[args.amp], batch.copy, agent.variants))
                    agent.update(batch)
        with run.timer("env"):
            step = env.step_recv()
        with run.timer("store"):
            replay.add(action, step)
            agent.observe(step)
            stats.add(step)
        obs, critic_obs = step.obs, step.critic_obs
        frames += args.num_envs

        # ---- once in a while ----
        last = frames >= args.total_timesteps
        if eval_env is not None and (last or crossed(args.eval_every, frames, args.num_envs)):
            wanted = args.video_every > 0 and (last or crossed(args.video_every, frames, args.num_envs))
            watched = filmed(eval_env, wanted, run.dir / "videos", frames, lambda: run.writer)
            with run.timer("eval"), watched as stage:
                score = evaluate(agent.act, stage, seed=eval_seed)
            run.log(frames, {f"eval/{name}": value for name, value in score.items()})
            run.show(frames, agent.draw(batch) if batch is not None else {})
        if args.log_every and (last or crossed(args.log_every, frames, args.num_envs)):
            metrics = {**stats.summary(), **env.summary(), "charts/SPS": run.sps(frames), **run.timer.read()}
            run.log(frames, {**metrics, **(agent.report(batch) if batch is not None else {})})
        run.progress(frames)
        if last or run.stop_signal or crossed(args.save_every, frames, args.num_envs):
            loop = {"obs": obs, "critic_obs": critic_obs, "env": env.state_dict(), "stats": stats.state_dict()}
            states = {"agent": agent.state_dict(), "loop": {**loop, "score": score, "rng": rng_state()}}
            run.save(frames, {**states, "replay": replay.state_dict()} if args.save_replay else states)
    return score


def restore(
    checkpoint: Checkpoint, agent: FastSAC, replay: ReplayBuffer, stats: EpisodeStats, env: VecEnv
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Continue everything from a checkpoint; returns what to act on, and the last evaluation.

    Exact where the simulator can be restored too (`VecEnv.snapshots`). Where it cannot, learner, replay and random
    streams are, and the environments begin new episodes, from seeds that the run has not used before.
    """
    agent.load_state_dict(checkpoint.load("agent", env.device))
    loop = checkpoint.load("loop", env.device)
    if checkpoint.has("replay"):
        replay.load_state_dict(checkpoint.load("replay"))
    if env.snapshots:
        env.load_state_dict(loop["env"])
        stats.load_state_dict(loop["stats"])
        obs, critic_obs = loop["obs"], loop["critic_obs"]
        if not checkpoint.has("replay"):
            replay.start(obs, critic_obs)
    else:
        seed = agent.ranks.seed(agent.args.seed)
        obs, critic_obs = env.reset(seed=spawn_seeds(seed, 1, f"resumed at {checkpoint.step}")[0])
        replay.start(obs, critic_obs)
    set_rng_state(loop["rng"])
    return obs, critic_obs, loop["score"]


def describe(run: Run[Args], env: VecEnv) -> None:
    """Print what was chosen, before the first step."""
    args = run.args
    actor_sem, critic_sem = sem_configs(args)
    torso = "" if args.torso == "mlp" else f"{args.torso}, "
    block = "SEM" if args.bottleneck in ("auto", "relu", "sem") else "block"
    say = {
        "run": run.dir,
        "task": f"{args.env_id} by {env.backend}, {args.num_envs} environments, {args.total_timesteps:,} frames",
        **({"from": args.init_from} if args.init_from else {}),
        "size": f"{args.size}: {torso}actor {args.actor_hidden}, critics {args.critic_hidden}, "
        f"batch {args.batch_size:,}",
        block: f"actor {actor_sem or 'off'}, critics {critic_sem or 'off'}"
        + (told(args.device, actor_sem, critic_sem) if args.sem else ""),
        "learner": f"{args.device}, threads {torch.get_num_threads()}, "
        + ("bfloat16" if args.amp == "bfloat16" else "float32")
        + (", compiled" if args.compile else "")
        + (f", one of {run.ranks.world} processes" if run.ranks.world > 1 else ""),
    }
    if not run.quiet:
        run.note("\n".join(f"{name:>8}  {value}" for name, value in say.items()))


def main(argv: Sequence[str] | None = None) -> int:
    """Train an agent as the command line asks; returns the exit status: 0 done, 75 stopped by a signal, 2 bad input."""
    parsed = parse(Args, presets, argv)
    asked = parsed.args
    try:
        ranks = join(machine.resolve_device(asked.device))
        if asked.resume is None:
            args = resolve(asked)
            if args.sem and not asked.sem and "sem" in parsed.explicit:
                raise ValueError("--no-sem --bottleneck sem: --sem stands for --bottleneck sem, give one of them")
            built = build(args, ranks)  # before there is a run directory: bad input leaves nothing behind
            origin = start_from(args, built[0], built[-2])
            start = partial(
                Run.start,
                args,
                root=args.run_root,
                run_dir=args.run_dir,
                presets=parsed.presets,
                origin=origin,
                mutable=MUTABLE,
                keep=args.keep_checkpoints,
                quiet=args.quiet,
                world=ranks.world,
            )
            run = share_run(ranks, start)
        else:
            given = {name: getattr(asked, name) for name in parsed.explicit - {"resume"}}
            rest: dict[str, Any] = {"mutable": MUTABLE, "check": resolve, "quiet": asked.quiet, "world": ranks.world}
            run = share_run(ranks, partial(Run.resume, asked.resume, Args, overrides=given, **rest))
            run.keep, run.quiet = run.args.keep_checkpoints, run.args.quiet
            built = None
        with run:
            score = train(run, *(built or build(run.args, ranks)))
            status = run.finish("interrupted" if run.stop_signal else "done", run.stop_signal or "", score)
    except (ValueError, RuntimeError, MemoryError) as error:
        config.fail(explain(error))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if not ranks.first:
        return status
    if score:
        print(f"final evaluation  {score['episodic_return']:.1f} over {score['episodes']:.0f} episodes")
    print(f"run directory     {run.dir}")
    if status == EXIT_STATUS["interrupted"]:
        print(f"to continue       python agents/fastsac.py --resume {run.dir}")
    print(f"learning curves   tensorboard --logdir {run.dir.parent}")
    return status


if __name__ == "__main__":
    config.program(main)
