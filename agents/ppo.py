"""PPO with simplicial embeddings (SEM), for continuous and discrete actions, vectors and images.

    python agents/ppo.py --sem                           # the default task
    python agents/ppo.py --sem --env-id HalfCheetah-v5   # any task of `python -m envs`
    python agents/ppo.py --sem --env-id Pong-v5          # Atari
    python agents/ppo.py --resume runs/RUN_DIR           # continue
    python agents/ppo.py --init-from runs/RUN_DIR        # start another run with its networks

PPO (Schulman et al., arXiv 1707.06347) with the details of Huang et al., "The 37 Implementation Details of PPO" (2022):

1. A rollout of T steps in N environments, generalised advantage estimation, then a few epochs of minibatches.
2. Clipped policy ratio, clipped value error, entropy bonus, advantages normalised in each minibatch.
3. Orthogonal initial weights, Adam with eps 1e-5, one gradient norm over actor and critic, a learning rate that falls
   linearly or follows the KL divergence (`--lr-schedule adaptive`, as in rsl_rl for massively parallel simulators).
4. Observations normalised and clipped, rewards scaled by the deviation of the running return and clipped.

SEM (Obando-Ceron et al., arXiv 2510.13704) replaces the last hidden layer of actor and critic: `networks/sem.py`.

What differs from CleanRL and Stable-Baselines3 on purpose:

1. An episode that the clock has ended bootstraps from the value of its true last observation, in every kind of task.
2. The observation normaliser stands still during a rollout and learns after it, so that the policy that is improved is
   exactly the one that has acted: the first ratios are 1.
3. The scores of Atari are those of whole games and true rewards, whatever the learner is told.
4. `total_timesteps` and all intervals are environment frames. The last rollout is a whole one.
5. Minibatches are shuffled on the device.
"""

import math
import random
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import le, lt
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Discrete
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
from agents.run import EXIT_STATUS, Run, crossed, explain, share_run
from envs.base import Step, VecEnv, spawn_seeds
from envs.families import ATARI, CLASSIC, DMC, GYM_MUJOCO, with_human
from envs.pictures import prepare_gl
from networks.actors import Categorical, CategoricalActor, Gaussian, GaussianActor
from networks.bottlenecks import Bottleneck
from networks.critics import ValueCritic
from networks.diagnostics import (
    PROBE,
    action_churn,
    describe_copies,
    describe_gradient,
    describe_torso,
    draw_torso,
    gradient_noise,
    greedy_churn,
    micro_batches,
    td_error,
    total_variation,
    undrawn,
)
from networks.flat import AdamW, Flat
from networks.layers import orthogonal_
from networks.normalize import RewardScale, RunningNorm
from networks.residual import spheres
from networks.sem import SEM, told
from networks.torso import hidden_layers, nature_cnn, take


@dataclass
class Args:
    """PPO: on-policy control, continuous or discrete, and simplicial embeddings in actor and critic."""

    # ---- experiment ----
    env_id: str = "CartPole-v1"
    """task, by the name that `python -m envs` lists, or module:Class of a VecEnv of your own"""
    backend: str = "auto"
    """simulator that makes the task: auto, or a name that `python -m envs` lists"""
    seed: int = 1
    """seed of all that is random; networks, environments, replay and evaluation have streams of their own"""
    exp_name: str = "ppo"
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
    size: Literal["auto", "small", "reference"] = "auto"
    """for tasks without settings of their own: reference is for thousands of environments on a GPU, small for a CPU,
    auto goes by device"""
    threads: int = 0
    """CPU threads of the learner, 0 for what pays: all cores, or one where networks and batches are small"""
    quiet: bool = False
    """no progress line"""

    # ---- length and intervals, in environment frames ----
    total_timesteps: int = 196_608_000
    """frames to train for, over all environments"""
    log_every: int = 983_040
    """frames between rows of metrics, 0 for none"""
    eval_every: int = 9_830_400
    """frames between evaluations, 0 for none; one more at the end"""
    eval_envs: int = 64
    """environments of the evaluation, one episode each, with seeds of their own that are the same every time"""
    eval_sample: bool = False
    """evaluate actions drawn from the policy instead of its most likely ones"""
    video_every: int = 0
    """frames between films of the first episode of an evaluation, 0 for none: videos/ and TensorBoard's Images tab; a
    multiple of --eval-every, and one more at the end"""
    save_every: int = 9_830_400
    """frames between checkpoints, 0 for none but the last"""
    keep_checkpoints: int = 2
    """how many of the latest checkpoints to keep"""

    # ---- environments ----
    num_envs: int = 4_096
    """N, environments that step together"""
    env_threads: int = 0
    """threads of a CPU simulator, 0 for its own choice"""
    episodic_life: bool = True
    """Atari by EnvPool: for the learner, a lost life ends the episode; scores are always those of whole games"""
    sign_rewards: bool = True
    """Atari by EnvPool: the learner sees only the sign of a reward; scores are always sums of true rewards"""

    # ---- algorithm ----
    gamma: float = 0.99
    """discount per step"""
    gae_lambda: float = 0.95
    """weight of longer returns in the advantage: 0 is one step, 1 is the whole episode"""
    num_steps: int = 24
    """T, steps of each environment per rollout"""
    update_epochs: int = 5
    """passes over each rollout"""
    num_minibatches: int = 4
    """minibatches per pass; must divide N * T"""
    learning_rate: float = 1e-3
    """learning rate at the start"""
    lr_schedule: Literal["constant", "linear", "adaptive"] = "adaptive"
    """linear falls to 0; adaptive divides or multiplies by 1.5 to keep the KL divergence near --desired-kl"""
    desired_kl: float = 0.01
    """divergence per minibatch that the adaptive learning rate aims at, in nats"""
    target_kl: float = 0.0
    """end the passes over a rollout once the divergence exceeds this, in nats; 0 for never"""
    clip_coef: float = 0.2
    """how far the policy's ratio may move from 1, and with --clip-vloss a value from what it was"""
    clip_vloss: bool = True
    """clip the value error"""
    norm_adv: bool = True
    """normalise the advantages of each minibatch"""
    ent_coef: float = 0.005
    """weight of the entropy bonus"""
    vf_coef: float = 1.0
    """weight of the value error"""
    max_grad_norm: float = 1.0
    """gradient norm at which to clip, 0 for no clipping"""
    adam_eps: float = 1e-5
    """Adam's floor of the root mean square"""
    obs_norm: bool = True
    """normalise observations that are vectors by their running mean and deviation"""
    obs_clip: float = 10.0
    """bound of normalised observations, in deviations"""
    reward_norm: bool = False
    """scale rewards by the deviation of a running return"""
    reward_clip: float = 10.0
    """bound of scaled rewards"""
    symmetry: bool = False
    """learn from each transition and from its mirror image, in batches that are twice as large: for tasks whose
    left-right symmetry is known (`envs.wrappers.with_symmetry`)"""

    # ---- networks ----
    actor_hidden: tuple[int, ...] = (512, 256, 128)
    """units of the actor's hidden layers"""
    critic_hidden: tuple[int, ...] = (512, 256, 128)
    """units of the critic's hidden layers, of each critic's where there are two"""
    activation: Literal["relu", "silu", "tanh", "elu"] = "elu"
    """nonlinearity of the hidden layers; after convolutions it is relu"""
    share_hidden: bool = True
    """images: actor and critic share the hidden layers too, not only the convolutions, where theirs are the same"""
    init_std: float = 1.0
    """deviation of continuous actions at the start, on the scale of [-1, 1]"""
    state_dependent_std: bool = False
    """let the deviation of continuous actions depend on the observation"""
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
    sem_critic_groups: int = 2
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


LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl", "clipfrac")


class Seen(NamedTuple):
    """What the losses of a minibatch are made of; tensors [..., B]."""

    log_ratio: Tensor
    """of new to old probability"""
    value: Tensor
    entropy: Tensor


def divergence(log_ratio: Tensor) -> Tensor:
    """Return an estimate of the KL divergence from old to new policy, in nats: (r - 1) - log r of each row.

    Source: Schulman, "Approximating KL Divergence" (2020). Its mean is right, and no row is below 0.
    """
    return log_ratio.expm1() - log_ratio


class PPO:
    """Networks, normalisers and optimiser of one agent, and the ways to change them."""

    def __init__(self, args: Args, env: VecEnv, ranks: Ranks = ALONE) -> None:
        self.ranks = ranks
        self.device = env.device
        self.images = len(env.obs_space.shape) > 1
        self.symmetry = env.symmetry
        self.mirror = symmetry_of(env) if args.symmetry else None  # what is learned from has its images in it, too
        if args.amp == "auto":  # small layers gain nothing, and the ratio of two policies is a small difference
            args = replace(args, amp="bfloat16" if self.images and machine.fast_bfloat16(args.device) else "off")
        self.args = args
        if self.images and env.privileged:
            raise ValueError(
                f"PPO cannot give images to the actor and something else to the critic, as {env.task} asks"
            )
        actor_sem, critic_sem = sem_configs(args)
        obs_dim, critic_obs_dim = env.obs_space.shape[0], env.critic_obs_space.shape[0]
        actor_hidden, critic_hidden, activation = args.actor_hidden, args.critic_hidden, args.activation
        actor_in, critic_in = obs_dim, critic_obs_dim
        alike = (actor_sem, actor_hidden) == (critic_sem, critic_hidden)
        # What comes before actor and critic. For images: the convolutions of both, and hidden layers if they are to be
        # shared. For vectors: nothing is shared, but hidden layers that are alike are computed in one batched product.
        self.trunk = nn.Sequential()
        self.paired = alike and not self.images and not env.privileged
        if self.images:
            self.trunk, actor_in = nature_cnn(env.obs_space.shape)
            critic_in, activation = actor_in, "relu"
        if self.paired or (self.images and args.share_hidden and alike):
            copies = 2 if self.paired else None
            hidden, actor_in = hidden_layers(args.torso, actor_in, actor_hidden, actor_sem, copies, activation)
            self.trunk.extend(hidden)
            critic_in, actor_hidden, critic_hidden, actor_sem, critic_sem = actor_in, (), (), None, None
        orthogonal_(self.trunk, math.sqrt(2))
        self.actor: GaussianActor | CategoricalActor = (
            CategoricalActor(actor_in, int(env.action_space.n), actor_hidden, actor_sem, activation, args.torso)
            if isinstance(env.action_space, Discrete)
            else GaussianActor(
                *(actor_in, env.action_space.shape[0], actor_hidden, actor_sem, activation),
                init_std=args.init_std,
                state_dependent_std=args.state_dependent_std,
                torso=args.torso,
            )
        )
        self.critic = ValueCritic(critic_in, critic_hidden, critic_sem, activation, args.torso)
        normalise = args.obs_norm and not self.images
        self.obs_norm = RunningNorm(obs_dim) if normalise else nn.Identity()
        self.critic_obs_norm = RunningNorm(critic_obs_dim) if normalise and env.privileged else self.obs_norm
        all_envs = env.num_envs * ranks.world
        self.reward_scale = RewardScale(all_envs, args.gamma, g_max=math.inf) if args.reward_norm else nn.Identity()
        self.modules = nn.ModuleDict(
            {
                "trunk": self.trunk,
                "actor": self.actor,
                "critic": self.critic,
                "obs_norm": self.obs_norm,
                "critic_obs_norm": self.critic_obs_norm,
                "reward_scale": self.reward_scale,
            }
        ).to(self.device)
        self.annealed = [block for block in self.modules.modules() if isinstance(block, SEM)]
        self.flat = Flat(self.modules.parameters(), spheres(self.modules))
        self.optimizer = AdamW(self.flat, args.learning_rate, eps=args.adam_eps)
        self.loss_sum = torch.zeros(len(LOSSES), device=self.device)  # since the last report
        self.loss_count = 0
        self.compiled = Compiled(self, [self.flat], "descent", "explore") if args.compile else None
        self.recorded = Recorded(self, "learn") if args.compile and can_record(self.device, ranks) else None

    @property
    def autocast(self) -> AbstractContextManager:
        """A context for the networks' products. Within an outer one, weights are rounded once."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.args.amp == "bfloat16" else nullcontext()

    # ---- acting ----

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Return the policy's actions [B, A] or [B] for raw observations, most likely ones or as `eval_sample` says."""
        policy = self.policy(obs)
        return policy.sample() if self.args.eval_sample else policy.mode()

    @torch.no_grad()
    def policy(self, obs: Tensor) -> Gaussian | Categorical:
        """Return the policy for raw observations."""
        obs = self.normalise(obs, self.obs_norm)
        with self.autocast:
            return self.actor(self.features(obs, obs)[0])

    @torch.no_grad()
    def explore(self, obs: Tensor, critic_obs: Tensor) -> dict[str, Tensor]:
        """Return a row [N] of the rollout: what was seen, what to do, its log-probability, and the critic's value.

        Continuous actions may lie outside of [-1, 1]: environments clip them, their probability is that of the draw.
        """
        obs, critic_obs = self.normalise_both(obs, critic_obs)
        with self.autocast:
            policy, value = self(obs, critic_obs)
        action = policy.sample()
        row = {"obs": obs, "action": action, "log_prob": policy.log_prob(action), "value": value}
        return row if critic_obs is obs else {**row, "critic_obs": critic_obs}

    def rehearse(self, obs: Tensor, critic_obs: Tensor) -> Tensor:
        """Return the value [N] that a row of the rollout would have, within the autocast of a rollout."""
        with self.autocast:
            return self.explore(obs, critic_obs)["value"]

    def __call__(self, obs: Tensor, critic_obs: Tensor) -> tuple[Gaussian | Categorical, Tensor]:
        """Return policy and value [B] for normalised observations."""
        features, critic_features = self.features(obs, critic_obs)
        return self.actor(features), self.critic(critic_features)

    def features(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the trunk makes of normalised observations for the actor, and for the critic."""
        features = self.trunk(obs)
        if self.paired:
            return features.unbind()
        return features, features if critic_obs is obs else self.trunk(critic_obs)

    @torch.no_grad()
    def value(self, critic_obs: Tensor) -> Tensor:
        """Return the critic's value [B] of raw observations [B, C]."""
        critic_obs = self.normalise(critic_obs, self.critic_obs_norm)
        with self.autocast:
            return self.critic(self.features(critic_obs, critic_obs)[1])

    def normalise(self, obs: Tensor, norm: nn.Module) -> Tensor:
        """Return observations as the networks want them: images as they are, vectors normalised and clipped."""
        return norm(obs).clamp(-self.args.obs_clip, self.args.obs_clip) if isinstance(norm, RunningNorm) else obs

    def normalise_both(self, obs: Tensor, critic_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return both views, normalised; the same tensor where they are one."""
        normal = self.normalise(obs, self.obs_norm)
        return normal, normal if critic_obs is obs else self.normalise(critic_obs, self.critic_obs_norm)

    @torch.no_grad()
    def observe(self, steps: Sequence[Step]) -> None:
        """Learn the normalisers from the steps of a rollout."""
        for norm, view in ((self.obs_norm, "obs"), (self.critic_obs_norm, "critic_obs")):
            if isinstance(norm, RunningNorm) and (view == "obs" or norm is not self.obs_norm):
                seen = {view: torch.cat([getattr(step, view) for step in steps])}
                # With their images, statistics are symmetric, and to mirror is the same before and after normalising.
                seen = seen if self.mirror is None else with_images(seen, self.mirror)
                norm.update(self.ranks.gather(seen[view]))
        if isinstance(self.reward_scale, RewardScale):
            done = torch.stack([step.terminated | step.truncated for step in steps], 1)  # [N, T]
            reward = torch.stack([step.reward for step in steps], 1)
            self.reward_scale.update(self.ranks.gather(reward).T, self.ranks.gather(done).T)

    # ---- learning ----

    @torch.no_grad()
    def estimate(self, rows: Sequence[dict[str, Tensor]], steps: Sequence[Step]) -> TensorDict:
        """Return the rollout [T, N] as the losses want it: rows with `advantage`, `target` of the value, `valid`.

        The value of a successor is that of the next row, which saw the same observation. Only what ends otherwise is
        looked at again: the last step, and where the clock has ended an episode.
        """
        args = self.args
        rollout = TensorDict({name: torch.stack([row[name] for row in rows]) for name in rows[0]})
        if self.images:  # channels last in memory, which convolutions read a tenth to a quarter faster
            rollout["obs"] = rollout["obs"].movedim(2, -1).contiguous().movedim(-1, 2)
        reward = self.reward_scale(torch.stack([step.reward for step in steps]))
        if args.reward_norm:
            reward = reward.clamp(-args.reward_clip, args.reward_clip)
        terminated = torch.stack([step.terminated for step in steps])
        truncated = torch.stack([step.truncated for step in steps])
        valid = torch.stack([step.valid for step in steps])
        next_value = torch.cat([rollout["value"][1:], self.value(steps[-1].critic_obs)[None]])
        cut = [t for t, some in enumerate(truncated.any(1).tolist()) if some]  # the one wait for the device
        if cut:
            next_value[truncated] = self.value(torch.cat([steps[t].next_critic_obs[truncated[t]] for t in cut]))
        value = rollout["value"]
        advantage = gae(reward, value, next_value, terminated, truncated, valid, args.gamma, args.gae_lambda)
        rollout.update({"advantage": advantage, "target": advantage + value, "valid": valid.float()})
        rollout.batch_size = advantage.shape
        return rollout

    def update(self, rollout: TensorDict) -> None:
        """Take `update_epochs` passes over a rollout [T, N] in shuffled minibatches, one optimiser step for each."""
        rows, target_kl = dict(rollout.flatten().items()), self.args.target_kl
        for _ in range(self.args.update_epochs):
            losses = self.learn(self.shuffle(rows))
            self.loss_sum += losses.sum(0)
            self.loss_count += len(losses)
            if target_kl > 0 and losses[-1, LOSSES.index("approx_kl")] > target_kl:
                break

    def shuffle(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return rows [T * N] in minibatches [M, B], in an order that is drawn."""
        order = torch.randperm(len(rows["action"]), device=self.device)
        return {name: take(x, order).unflatten(0, (self.args.num_minibatches, -1)) for name, x in rows.items()}

    def learn(self, columns: dict[str, Tensor]) -> Tensor:
        """Take an optimiser step for each of the minibatches [M, B]; returns their LOSSES [M, 5]."""
        args, columns, seen = self.args, self.prepare(self.augment(columns)), []
        for rows in zip(*(x.unbind() for x in columns.values()), strict=True):
            batch = dict(zip(columns, rows, strict=True))
            seen.append(self.differentiate(batch))
            if args.max_grad_norm > 0:
                self.flat.clip(args.max_grad_norm)
            self.optimizer.step()
            if args.lr_schedule == "adaptive":
                self.follow(self.ranks.sum_(self.divergence(seen[-1].log_ratio, batch["weight"])))
        return self.ranks.sum_(self.losses(columns, Seen(*map(torch.stack, zip(*seen, strict=True)))))

    def gradient(self, rollout: TensorDict) -> Tensor:
        """Return the gradient [P] on as many rows of a rollout as a minibatch has, and leave it in its place."""
        size = rollout.numel() // self.args.num_minibatches
        self.differentiate(self.prepare(self.augment({name: x[:size] for name, x in rollout.flatten().items()})))
        assert self.flat.vector.grad is not None
        return self.flat.vector.grad

    def augment(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return minibatches [..., B] with their mirror images behind them [..., 2 B], where that is asked for.

        An image has the advantage, the old log-probability and the value of its original. Source: rsl_rl.
        """
        return columns if self.mirror is None else with_images(columns, self.mirror, columns["valid"].ndim - 1)

    def divergence(self, log_ratio: Tensor, weight: Tensor) -> Tensor:
        """Return the mean of `divergence` over minibatches [..., B]: [...].

        Mirror images are left out: the old policy has drawn none of them, so what it thinks of them is no measure of
        how far it has moved.
        """
        if self.mirror is not None:
            rows = log_ratio.shape[-1] // 2
            log_ratio, weight = log_ratio[..., :rows], 2 * weight[..., :rows]
        return (divergence(log_ratio) * weight).sum(-1)

    def prepare(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return minibatches [..., B] with all that does not change while they are learned from.

        `weight` is the share of a row in a mean over its minibatch; a row that a simulator has spoilt has none.
        Advantages are normalised if asked. `bound` is the largest gain that clipping the ratio leaves to a row, `low`
        and `high` are the ends of the range that the value is clipped to, and `by_*` derivatives of the loss.
        """
        args, clip = self.args, self.args.clip_coef
        valid, advantage, value = columns["valid"], columns["advantage"], columns["value"]
        total = self.ranks.sum_
        weight = valid / total(valid.sum(-1, keepdim=True)).clamp(min=1)
        if args.norm_adv:
            centred = advantage - total((weight * advantage).sum(-1, keepdim=True))
            advantage = centred / (total((weight * centred.square()).sum(-1, keepdim=True)).sqrt() + 1e-8)
        bounds = {"bound": advantage + clip * advantage.abs(), "low": value - clip, "high": value + clip}
        by = {"by_gain": -weight, "by_entropy": -args.ent_coef * weight, "by_error": args.vf_coef * weight}
        return {**columns, "weight": weight, "advantage": advantage, **bounds, **by}

    def differentiate(self, batch: dict[str, Tensor]) -> Seen:
        """Set the gradient of policy_loss - ent_coef entropy + vf_coef value_loss of a minibatch [B]."""
        seen, gradient = self.descent(batch)
        self.flat.vector.grad = self.ranks.sum_(gradient)
        return seen

    def descent(self, batch: dict[str, Tensor]) -> tuple[Seen, Tensor]:
        """Return what `losses` needs of a minibatch [B], and the gradient [P] of its loss."""
        with self.autocast:
            policy, value = self(batch["obs"], batch.get("critic_obs", batch["obs"]))
        seen, gradients = self.gradients(policy, value, batch)
        return seen, self.flat.gradient((*policy, value), gradients)

    @torch.no_grad()
    def gradients(
        self, policy: Gaussian | Categorical, value: Tensor, batch: dict[str, Tensor]
    ) -> tuple[Seen, tuple[Tensor, ...]]:
        """Return what `losses` needs, and the gradient of the loss by each field of the policy and by the value.

        The gain min(A r, A clip(r)) of a row with the ratio r of new to old probability and the advantage A is
        min(A r, A + clip_coef |A|). So its derivative by log r is A r, or 0 where it is clipped. The squared error of
        the value is the larger one of those with and without clipping; where the former is larger, its derivative is 0.
        Small networks spend more time in calls than in arithmetic: differentiating the losses takes 70 more.
        """
        log_prob, score = policy.score(batch["action"])
        log_ratio = log_prob - batch["log_prob"]
        gain = batch["advantage"] * log_ratio.exp()
        by_log_prob = gain.masked_fill(gain >= batch["bound"], 0.0) * batch["by_gain"]
        error = value - batch["target"]
        by_value = error * batch["by_error"]
        if self.args.clip_vloss:
            near = value.clamp(batch["low"], batch["high"]) - batch["target"]
            by_value = by_value.masked_fill(near.abs() > error.abs(), 0.0)
        seen = Seen(log_ratio, value.detach(), policy.entropy())
        return seen, (*policy.gradient(score, by_log_prob, batch["by_entropy"]), by_value)

    @torch.no_grad()
    def losses(self, columns: dict[str, Tensor], seen: Seen) -> Tensor:
        """Return LOSSES [..., 5] of minibatches [..., B], from what was seen when each had its turn."""
        log_ratio, value, entropy = seen
        ratio = log_ratio.exp()
        gain = torch.minimum(columns["advantage"] * ratio, columns["bound"])
        error = (value - columns["target"]).square()
        if self.args.clip_vloss:
            error = error.maximum((value.clamp(columns["low"], columns["high"]) - columns["target"]).square())
        clipped = ((ratio - 1).abs() > self.args.clip_coef).to(ratio.dtype)
        rows = torch.stack([-gain, 0.5 * error, entropy, divergence(log_ratio), clipped], -2)
        losses = (rows @ columns["weight"][..., None])[..., 0]
        if self.mirror is not None:
            losses[..., LOSSES.index("approx_kl")] = self.divergence(log_ratio, columns["weight"])
        return losses

    def follow(self, kl: Tensor) -> None:
        """Move the learning rate so that the divergence comes near the desired one; on the device, without a look."""
        rate, desired = self.optimizer.lr, self.args.desired_kl
        slower, faster = kl > 2 * desired, kl < 0.5 * desired
        rate.mul_(torch.where(slower, 1 / 1.5, torch.where(faster, 1.5, 1.0))).clamp_(1e-5, 1e-2)

    def anneal(self, progress: float) -> None:
        """Set learning rate and SEM's temperature for a share of training done, 0 to 1."""
        for block in self.annealed:
            block.anneal(progress)
        if self.args.lr_schedule == "linear":
            self.optimizer.lr.fill_(self.args.learning_rate * max(1 - progress, 0.0))

    # ---- reporting and saving ----

    @torch.no_grad()
    def report(self, rollout: TensorDict) -> dict[str, Tensor]:
        """Return the losses since the last report, and what the networks make of a rollout; tensors of one element.

        They are probed with every fourth step of it, 1,024 rows at most. Where actor and critic are two copies of one
        trunk, the numbers are those of each; what images share is `shared`. Draws no random numbers, so that training
        is the same with and without it.
        """
        losses = self.loss_sum / max(self.loss_count, 1)
        self.loss_sum.zero_()
        self.loss_count = 0
        target, value = rollout["target"], rollout["value"]
        out = {
            **{f"losses/{name}": loss for name, loss in zip(LOSSES, losses, strict=True)},
            "losses/explained_variance": 1
            - (target - value).var(correction=0) / target.var(correction=0).clamp(min=1e-12),
            "losses/values": value.mean(),
            "critic/td_error": td_error(value, target),
            "charts/learning_rate": self.optimizer.lr,
        }
        probe = rollout[::4].flatten()[:PROBE]
        obs, critic_obs = probe["obs"], probe.get("critic_obs", probe["obs"])
        with self.autocast:
            features, critic_features = self.features(obs, critic_obs)
            policy = self.actor(features)
        out |= self.describe_gradients(probe, policy)
        if self.symmetry is not None:
            norm = self.obs_norm
            raw = obs / norm.scale + norm.mean if isinstance(norm, RunningNorm) else obs
            out["policy/asymmetry"] = asymmetry(lambda x: self.policy(x).mode(), raw, self.symmetry)
        if isinstance(policy, Gaussian):
            out["charts/action_std"] = policy.log_std.exp().mean()
        with self.autocast:
            if self.paired:
                return out | describe_copies(("actor", "critic"), self.trunk, obs)
            out |= describe_torso("shared", self.trunk, obs)
            out |= describe_torso("actor", self.actor.torso, features)
            return out | describe_torso("critic", self.critic.torso, critic_features)

    @torch.no_grad()
    def draw(self, rollout: TensorDict) -> dict[str, Tensor]:
        """Return values for histograms and images of simplices, by tag, for the rows that a report looks at."""
        probe = rollout[::4].flatten()[:PROBE]
        obs, critic_obs = probe["obs"], probe.get("critic_obs", probe["obs"])
        with self.autocast:
            if self.paired:
                return draw_torso(["actor", "critic"], self.trunk, obs)
            features, critic_features = self.features(obs, critic_obs)
            images = draw_torso(["shared"], self.trunk, obs)
            images |= draw_torso(["actor"], self.actor.torso, features)
            return images | draw_torso(["critic"], self.critic.torso, critic_features)

    def describe_gradients(self, probe: TensorDict, old: Gaussian | Categorical) -> dict[str, Tensor]:
        """Return size and noise of the gradients of both losses on rows [B] of a rollout, and the churn of the policy.

        The actor's loss has the entropy bonus, the critic's its coefficient; what both share gets gradients of both.
        Churn is how much one more step along their sum would change the policy from what it is; the step is taken back.
        """
        columns = TensorDict(self.prepare(probe.to_dict()), probe.batch_size)
        with torch.enable_grad(), undrawn(self.device):
            order = torch.randperm(len(probe), device=self.device)  # rows of one environment are alike
            parts = micro_batches(columns[order])
            actor, critic = map(
                gradient_noise, zip(*(self.both_gradients(part, len(parts)) for part in parts), strict=True)
            )
        with self.optimizer.rehearsal():
            self.flat.vector.grad = actor.mean + critic.mean
            if self.args.max_grad_norm > 0:
                self.flat.clip(self.args.max_grad_norm)
            self.optimizer.step()
            with self.autocast:
                new, _ = self(probe["obs"], probe.get("critic_obs", probe["obs"]))
        if isinstance(old, Categorical) and isinstance(new, Categorical):
            shift = total_variation(new.log_probs.exp(), old.log_probs.exp())
            churn = {"policy/churn": greedy_churn(new.log_probs, old.log_probs), "policy/total_variation": shift}
        else:
            churn = {"policy/churn": action_churn(new.mode(), old.mode())}
        return {
            **describe_gradient("critic", critic, len(parts[0])),
            **describe_gradient("actor", actor, len(parts[0])),
            **churn,
        }

    def both_gradients(self, part: TensorDict, parts: int) -> tuple[Tensor, Tensor]:
        """Return the gradients [P] of the actor's loss and of the critic's on one of so many parts [B] of a probe."""
        with self.autocast:
            policy, value = self(part["obs"], part.get("critic_obs", part["obs"]))
        _, (*by_policy, by_value) = self.gradients(policy, value, part.to_dict())
        share = parts * self.ranks.world  # `prepare` gives weights among the rows of all parts, of all processes
        actor = self.flat.gradient(policy, by_policy, again=True)
        return share * actor, share * self.flat.gradient(value, [by_value])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training changes; tensors, dicts, lists and numbers only."""
        return {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
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
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_sum.copy_(state["loss_sum"])
        self.loss_count = state["loss_count"]


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Return generalised advantage estimates [T, N].

    The sum over k of (gamma lambda)^k delta[t + k] within an episode, where delta[t] = reward[t] + gamma next_value[t]
    - value[t]. The value after a terminated step counts as 0; `next_value` is that of the true successor, so an
    episode that the clock has ended is treated exactly. Source: Schulman et al., arXiv 1506.02438, equation 16.

    Args:
        reward: [T, N], and so are all the others.
        value: of what was acted on.
        next_value: of what came of it, before any reset.
        terminated: bool.
        truncated: bool. Nothing flows back from the next row where an episode ended in either way.
        valid: bool. Where a simulator has spoilt the row its estimate is 0, and nothing flows back from it.
        gamma: discount.
        gae_lambda: weight of longer returns.
    """
    delta = (reward + gamma * torch.where(terminated, 0.0, next_value) - value) * valid
    carry = gamma * gae_lambda * (~(terminated | truncated)).to(delta.dtype)  # a spoilt row is a truncated one
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = torch.addcmul(delta[t], carry[t], running, out=advantage[t])
    return advantage


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

CONTINUOUS = {  # CleanRL's ppo_continuous_action with 16 environments for its one: rollouts and minibatches as large
    "num_envs": 16,
    "eval_envs": 16,
    "total_timesteps": 1_048_576,
    "num_steps": 128,
    "num_minibatches": 32,
    "update_epochs": 10,
    "learning_rate": 3e-4,
    "lr_schedule": "linear",
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "reward_norm": True,
    "actor_hidden": (64, 64),
    "critic_hidden": (64, 64),
    "activation": "tanh",
    "sem_actor_groups": 2,
    "sem_actor_vertices": 32,
    "sem_critic_groups": 2,
    "sem_critic_vertices": 32,
    "log_every": 20_480,
    "eval_every": 102_400,
    "save_every": 204_800,
}

# (name, task patterns, size or None for both, overrides); later rows win. What no row names is as in Args: PPO for
# thousands of environments in a GPU simulator, with rsl_rl's numbers.
PRESETS: tuple[config.Row, ...] = (
    ("any task", ("*",), "small", CONTINUOUS),
    ("Gymnasium MuJoCo", GYM_MUJOCO, "reference", CONTINUOUS),
    ("DeepMind Control", DMC, "reference", CONTINUOUS),
    # A pole that comes to rest shrinks the deviations, and with them what the policy knows: 843 against 250.
    ("cart and pole", ("Cartpole[BST]*",), None, {"obs_norm": False}),
    (
        "classic control",  # CleanRL's ppo
        CLASSIC,
        None,
        {
            **CONTINUOUS,
            "num_envs": 8,
            "total_timesteps": 204_800,
            "num_steps": 64,
            "num_minibatches": 4,
            "update_epochs": 4,
            "learning_rate": 7e-4,
            "ent_coef": 0.01,
            "obs_norm": False,  # a pole that is balanced shrinks the deviations, and with them what the policy knows
            # Values near 1: a critic whose features are simplices does not reach 100 in time, so that with SEM and raw
            # rewards CartPole ended between 279 and 375; with this it ends at 500.
            "reward_norm": True,
            "log_every": 10_240,
            "eval_every": 20_480,
            "save_every": 51_200,
        },
    ),
    (
        "Atari",  # CleanRL's ppo_atari_envpool
        ATARI,
        None,
        {
            "num_envs": 8,
            "eval_envs": 8,
            "eval_sample": True,  # the most likely action of a policy that was trained to draw can stand still forever
            "total_timesteps": 10_000_384,
            "num_steps": 128,
            "num_minibatches": 4,
            "update_epochs": 4,
            "learning_rate": 2.5e-4,
            "lr_schedule": "linear",
            "clip_coef": 0.1,
            "ent_coef": 0.01,
            "vf_coef": 0.5,
            "max_grad_norm": 0.5,
            "reward_norm": False,
            "actor_hidden": (512,),
            "critic_hidden": (512,),
            "sem_actor_groups": 64,  # with 8 of 64, codes hardly differ between frames, and nothing is learned
            "sem_actor_vertices": 8,
            "sem_critic_groups": 64,
            "sem_critic_vertices": 8,
            "log_every": 20_480,
            "eval_every": 512_000,
            "save_every": 512_000,
        },
    ),
)


def presets(args: Args) -> list[tuple[str, config.Overrides]]:
    """Return the overrides for the size and the task, weakest first; the command line is stronger than all."""
    device = machine.resolve_device(args.device)
    size = args.size if args.size != "auto" else "small" if device == "cpu" else "reference"
    return [(f"size {size}", {"size": size}), *config.select(PRESETS, args.env_id, size)]


def resolve(args: Args) -> Args:
    """Return the settings with every choice made that they leave open, but for those that the task decides.

    Raises:
        ValueError: a value is out of its range.
    """
    above_zero = (
        *("total_timesteps", "num_envs", "eval_envs", "num_steps", "update_epochs", "num_minibatches"),
        *("keep_checkpoints", "init_std", "desired_kl", "clip_coef", "obs_clip", "reward_clip"),
    )
    not_negative = (
        *("seed", "threads", "env_threads", "log_every", "eval_every", "save_every", "learning_rate", "target_kl"),
        *("ent_coef", "vf_coef", "max_grad_norm", "adam_eps", "sem_temperature_end", "video_every"),
    )
    for names, is_legal, legal in ((above_zero, lt, "above 0"), (not_negative, le, "0 or above")):
        for name in names:
            if not is_legal(0, getattr(args, name)):
                raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {legal}")
            if getattr(args, name) > 3e38:  # float32 ends there
                raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be at most 3e+38")
    if args.seed >= 1 << 32:
        raise ValueError(f"--seed {args.seed}: must be below 2^32, as NumPy wants it")
    if args.video_every and (args.eval_every == 0 or args.video_every % args.eval_every):
        raise ValueError(
            f"--video-every {args.video_every}: must be a multiple of --eval-every {args.eval_every}, whose "
            "episodes are filmed"
        )
    if max(args.threads, args.env_threads) > 1024:
        raise ValueError(f"--threads {args.threads} --env-threads {args.env_threads}: both must be at most 1024")
    if not 0 <= args.gamma <= 1 or not 0 <= args.gae_lambda <= 1:
        raise ValueError(f"--gamma {args.gamma} --gae-lambda {args.gae_lambda}: both must be from 0 to 1")
    world = started()
    rows = Ranks(world=world).share("--num-envs", args.num_envs) * args.num_steps
    if rows > 1 << 28:
        raise ValueError(
            f"--num-envs {args.num_envs} --num-steps {args.num_steps}: a rollout of {rows:,} frames, must be at most "
            f"{1 << 28:,}"
        )
    if rows % args.num_minibatches:
        divisors = [n for n in range(1, rows + 1) if rows % n == 0]
        near = sorted(sorted(divisors, key=lambda n: abs(n - args.num_minibatches))[:4])
        raise ValueError(
            f"--num-minibatches {args.num_minibatches}: must divide --num-envs {args.num_envs} times --num-steps "
            f"{args.num_steps}{f' in each of {world} processes' * (world > 1)}, which is {rows}; the nearest that do "
            f"are {', '.join(map(str, near))}"
        )
    if args.torso == "flashsac":
        raise ValueError(
            "--torso flashsac: its batch norms act by other statistics than they learn by, and PPO compares the "
            "probabilities of both; give mlp, simba or simbav2"
        )
    if (args.sem or args.bottleneck not in ("auto", "relu")) and not (args.sem_actor or args.sem_critic):
        raise ValueError("--no-sem-actor --no-sem-critic: there is no network left to put a block into")
    if args.sem and args.bottleneck not in ("auto", "sem"):
        raise ValueError(f"--sem --bottleneck {args.bottleneck}: --sem stands for --bottleneck sem, give one of them")
    return replace(args, device=machine.resolve_device(args.device), sem=args.sem or args.bottleneck == "sem")


# ---- training --------------------------------------------------------------------------------------------------------


MUTABLE = ("total_timesteps", "quiet", "keep_checkpoints", "threads", "env_threads", "device")
"""settings that may be given anew when a run is resumed; any other would make it another run"""


def build(args: Args, ranks: Ranks = ALONE) -> tuple[PPO, VecEnv, VecEnv | None]:
    """Return agent, and the environments to train and to evaluate in: two instances.

    Raises:
        ValueError: the task, the device or the memory is not there, or the agent cannot learn the task.
    """
    machine.keep_freed_memory()
    if args.video_every:
        prepare_gl()
    for seed in (random.seed, np.random.seed, torch.manual_seed):  # the first two for simulators that use them
        seed(args.seed)
    device = ranks.device(args.device)
    options: dict[str, Any] = {"num_threads": args.env_threads} if args.env_threads else {}
    num_envs = ranks.share("--num-envs", args.num_envs)
    atari = args.env_id in ATARI and "/" not in args.env_id and args.backend in ("auto", "envpool")
    learner = {"episodic_life": args.episodic_life, "reward_clip": args.sign_rewards} if atari else {}
    env = envs.make(args.env_id, num_envs, ranks.seed(args.seed), device, args.backend, **options, **learner)
    agent = PPO(args, env, ranks)
    ranks.part_ways(args.seed)
    rows = num_envs * args.num_steps // args.num_minibatches
    paying = machine.available_cores() if agent.images else machine.learner_threads(rows, args.critic_hidden)
    torch.set_num_threads(args.threads or ranks.threads(paying))
    eval_env = None
    if args.eval_every and ranks.first:
        make = partial(envs.make, args.env_id, args.eval_envs, args.seed, device, backend=args.backend, **options)
        eval_env = rehearse(make, spawn_seeds(args.seed, 1, "evaluation")[0]) if args.video_every else make()
    return agent, env, eval_env


def train(run: Run[Args], agent: PPO, env: VecEnv, eval_env: VecEnv | None) -> dict[str, float]:
    """Train until the frames are done or a signal asks to stop; returns the last evaluation, if there was one."""
    args = run.args
    stats = EpisodeStats(env.num_envs, env.device, run.ranks)
    describe(run, agent, env)
    frames = 0
    score: dict[str, float] = {}  # of the last evaluation
    if run.checkpoint is None:
        obs, critic_obs = env.reset()
    else:
        frames = run.checkpoint.step
        obs, critic_obs, score = restore(run.checkpoint, agent, stats, env)
    eval_seed = spawn_seeds(args.seed, 1, "evaluation")[0]
    if agent.compiled is not None:  # before the first rollout: one that goes on from a checkpoint acts as it did before
        run.note(agent.compiled.verify(TOLERANCE[args.amp], partial(agent.rehearse, obs, critic_obs), "explore"))

    while frames < args.total_timesteps and not run.stop_signal:
        # ---- act ----
        agent.anneal(frames / args.total_timesteps)
        rows: list[dict[str, Tensor]] = []
        steps: list[Step] = []
        with agent.autocast:
            for _ in range(args.num_steps):
                with run.timer("act"):
                    row = agent.explore(obs, critic_obs)
                with run.timer("env"), torch.autocast(env.device.type, enabled=False):  # a simulator in torch is no net
                    step = env.step(row["action"])
                with run.timer("store"):
                    rows.append(row)
                    steps.append(step)
                    stats.add(step)
                obs, critic_obs = step.obs, step.critic_obs
        frames += args.num_steps * args.num_envs
        # ---- learn ----
        with run.timer("learn"):
            rollout = agent.estimate(rows, steps)
            if agent.compiled is not None and agent.compiled.unverified:
                run.note(agent.compiled.verify(TOLERANCE[args.amp], partial(agent.gradient, rollout)))
            if agent.recorded is not None and agent.recorded.unverified:
                rows_of = dict(rollout.flatten().items())
                run.note(agent.recorded.verify(TOLERANCE[args.amp], partial(agent.shuffle, rows_of)))
            agent.update(rollout)
            agent.observe(steps)

        # ---- once in a while ----
        last = frames >= args.total_timesteps
        if eval_env is not None and (last or crossed(args.eval_every, frames, len(rows) * args.num_envs)):
            wanted = args.video_every > 0 and (last or crossed(args.video_every, frames, len(rows) * args.num_envs))
            watched = filmed(eval_env, wanted, run.dir / "videos", frames, lambda: run.writer)
            with run.timer("eval"), watched as stage:
                score = assess(agent, stage, eval_seed)
            run.log(frames, {f"eval/{name}": value for name, value in score.items()})
            run.show(frames, agent.draw(rollout))
        if args.log_every and (last or crossed(args.log_every, frames, len(rows) * args.num_envs)):
            episodes = {**with_human(args.env_id, "charts/", stats.summary()), **env.summary()}
            run.log(frames, {**episodes, "charts/SPS": run.sps(frames), **run.timer.read(), **agent.report(rollout)})
        run.progress(frames)
        if last or run.stop_signal or crossed(args.save_every, frames, len(rows) * args.num_envs):
            loop = {"obs": obs, "critic_obs": critic_obs, "env": env.state_dict(), "stats": stats.state_dict()}
            run.save(frames, {"agent": agent.state_dict(), "loop": {**loop, "score": score, "rng": rng_state()}})
    return score


def assess(agent: PPO, env: VecEnv, seed: int) -> dict[str, float]:
    """Return the evaluation of the policy. Where it draws actions, it does so from a random stream of its own."""
    state = rng_state()
    torch.manual_seed(seed)
    score = evaluate(agent.act, env, seed)
    set_rng_state(state)
    return with_human(env.task, "", score)


def restore(
    checkpoint: Checkpoint, agent: PPO, stats: EpisodeStats, env: VecEnv
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Continue everything from a checkpoint; returns what to act on, and the last evaluation.

    Exact where the simulator can be restored too (`VecEnv.snapshots`). Where it cannot, learner and random streams are,
    and the environments begin new episodes, from seeds that the run has not used before.
    """
    agent.load_state_dict(checkpoint.load("agent", env.device))
    loop = checkpoint.load("loop", env.device)
    if env.snapshots:
        env.load_state_dict(loop["env"])
        stats.load_state_dict(loop["stats"])
        obs, critic_obs = loop["obs"], loop["critic_obs"]
        if not env.privileged:
            critic_obs = obs
    else:
        seed = agent.ranks.seed(agent.args.seed)
        obs, critic_obs = env.reset(seed=spawn_seeds(seed, 1, f"resumed at {checkpoint.step}")[0])
    set_rng_state(loop["rng"])
    return obs, critic_obs, loop["score"]


def describe(run: Run[Args], agent: PPO, env: VecEnv) -> None:
    """Print what was chosen, before the first step."""
    args = run.args
    actor_sem, critic_sem = sem_configs(args)
    torso = "" if args.torso == "mlp" else f"{args.torso}, "
    block = "SEM" if args.bottleneck in ("auto", "relu", "sem") else "block"
    rows = args.num_envs * args.num_steps
    say = {
        "run": run.dir,
        "task": f"{args.env_id} by {env.backend}, {args.num_envs} environments, {args.total_timesteps:,} frames",
        **({"from": args.init_from} if args.init_from else {}),
        "size": f"{args.size}: {'Nature CNN, ' if agent.images else ''}{torso}actor {args.actor_hidden}, "
        f"critic {args.critic_hidden}, rollout {rows:,}, minibatch {rows // args.num_minibatches:,}",
        block: f"actor {actor_sem or 'off'}, critic {critic_sem or 'off'}"
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
                built[0].args,
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
        print(f"to continue       python agents/ppo.py --resume {run.dir}")
    print(f"learning curves   tensorboard --logdir {run.dir.parent}")
    return status


if __name__ == "__main__":
    config.program(main)
