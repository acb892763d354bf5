"""PQN with simplicial embeddings (SEM), for discrete actions, vectors and images.

    python agents/pqn.py --sem                           # the default task
    python agents/pqn.py --sem --env-id Acrobot-v1       # any task of `python -m envs` with discrete actions
    python agents/pqn.py --sem --env-id Pong-v5          # Atari
    python agents/pqn.py --resume runs/RUN_DIR           # continue
    python agents/pqn.py --init-from runs/RUN_DIR        # start another run with its network

PQN, a parallelised Q-network (Gallici et al., "Simplifying Deep Temporal Difference Learning", arXiv 2407.04811), is
Q-learning without a replay buffer and without a target network. What takes their places:

1. Rollouts of T steps in N environments with epsilon-greedy actions, Q(lambda) targets, a few epochs of minibatches.
2. LayerNorm after each hidden layer and convolution, which keeps temporal differences from diverging.
3. RAdam, one gradient norm, orthogonal initial weights, a learning rate and an epsilon that fall linearly.

SEM (Obando-Ceron et al., arXiv 2510.13704) replaces the last hidden layer of the one network there is, whose flags are
those of the critics in the other agents: `networks/sem.py`.

What differs from CleanRL and from the authors' code (github.com/mttga/purejaxql) on purpose:

1. An episode that the clock has ended bootstraps from the best value of its true last observation; there that is 0.
2. No return flows back over the end of an episode; in CleanRL lambda times that of the next episode does.
3. The observation normaliser, where there is one, stands still during a rollout and learns after it.
4. The scores of Atari are those of whole games and true rewards, whatever the learner is told.
5. `total_timesteps` and all intervals are environment frames. The last rollout is a whole one.
6. Minibatches are shuffled on the device.
"""

import math
import random
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import le, lt
from typing import Any, Literal

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
from agents.origin import parse, start_from
from agents.ranks import ALONE, Ranks, join, started
from agents.run import EXIT_STATUS, Run, crossed, explain, share_run
from envs.base import Step, VecEnv, spawn_seeds
from envs.families import ATARI, CLASSIC, with_human
from envs.pictures import prepare_gl
from networks.bottlenecks import Bottleneck
from networks.critics import DiscreteCritic
from networks.diagnostics import (
    PROBE,
    describe_gradient,
    describe_torso,
    draw_torso,
    gradient_noise,
    greedy_churn,
    micro_batches,
    td_error,
    undrawn,
)
from networks.flat import Flat, RAdam
from networks.layers import orthogonal_
from networks.normalize import RewardScale, RunningNorm
from networks.residual import batch_norms, spheres
from networks.sem import SEM, told
from networks.torso import nature_cnn, take


@dataclass
class Args:
    """PQN: Q-learning from rollouts, without replay or target network, and simplicial embeddings in the network."""

    # ---- experiment ----
    env_id: str = "CartPole-v1"
    """task, by the name that `python -m envs` lists, or module:Class of a VecEnv of your own"""
    backend: str = "auto"
    """simulator that makes the task: auto, or a name that `python -m envs` lists"""
    seed: int = 1
    """seed of all that is random; networks, environments, replay and evaluation have streams of their own"""
    exp_name: str = "pqn"
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
    total_timesteps: int = 98_304_000
    """frames to train for, over all environments"""
    log_every: int = 491_520
    """frames between rows of metrics, 0 for none"""
    eval_every: int = 4_915_200
    """frames between evaluations, 0 for none; one more at the end"""
    eval_envs: int = 64
    """environments of the evaluation, one episode each, with seeds of their own that are the same every time"""
    eval_epsilon: float = 0.0
    """share of actions that are drawn evenly in evaluations"""
    video_every: int = 0
    """frames between films of the first episode of an evaluation, 0 for none: videos/ and TensorBoard's Images tab; a
    multiple of --eval-every, and one more at the end"""
    save_every: int = 4_915_200
    """frames between checkpoints, 0 for none but the last"""
    keep_checkpoints: int = 2
    """how many of the latest checkpoints to keep"""

    # ---- environments ----
    num_envs: int = 1_024
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
    q_lambda: float = 0.65
    """weight of longer returns in the target: 0 is one step, 1 is the whole episode"""
    num_steps: int = 32
    """T, steps of each environment per rollout"""
    update_epochs: int = 2
    """passes over each rollout"""
    num_minibatches: int = 32
    """minibatches per pass; must divide N * T"""
    learning_rate: float = 2.5e-4
    """learning rate at the start"""
    anneal_lr: bool = True
    """let the learning rate fall linearly to 0"""
    epsilon_start: float = 1.0
    """share of actions that are drawn evenly, at the start"""
    epsilon_end: float = 0.01
    """share of actions that are drawn evenly, in the end"""
    exploration_fraction: float = 0.1
    """share of training in which epsilon falls linearly from start to end"""
    max_grad_norm: float = 10.0
    """gradient norm at which to clip, 0 for no clipping"""
    obs_norm: bool = False
    """normalise observations that are vectors by their running mean and deviation"""
    obs_clip: float = 10.0
    """bound of normalised observations, in deviations"""
    reward_norm: bool = False
    """scale rewards by the deviation of a running return"""
    reward_clip: float = 10.0
    """bound of scaled rewards"""

    # ---- networks ----
    critic_hidden: tuple[int, ...] = (512, 512)
    """units of the critic's hidden layers, of each critic's where there are two"""
    layer_norm: bool = True
    """LayerNorm before each activation"""
    activation: Literal["relu", "silu", "tanh", "elu"] = "relu"
    """nonlinearity of the hidden layers; after convolutions it is relu"""
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
    sem_position: Literal["last", "every", "input"] = "last"
    """which hidden layer it takes the place of: the last, every one, or the first; one that is not the last has as many
    groups of V as there were units for"""
    sem_critic_groups: int = 64
    """L of the critics' embedding"""
    sem_critic_vertices: int = 8
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


LOSSES = ("td_loss", "q_values")


class PQN:
    """Network, normalisers and optimiser of one agent, and the ways to change them."""

    def __init__(self, args: Args, env: VecEnv, ranks: Ranks = ALONE) -> None:
        if not isinstance(env.action_space, Discrete):
            raise ValueError(
                f"PQN needs discrete actions, {env.task} has {env.action_space}: use agents/ppo.py, agents/fastsac.py "
                "or agents/fasttd3.py"
            )
        self.ranks = ranks
        self.device = env.device
        self.images = len(env.obs_space.shape) > 1
        if args.amp == "auto":  # small layers gain nothing
            args = replace(args, amp="bfloat16" if self.images and machine.fast_bfloat16(args.device) else "off")
        self.args = args
        self.actions = int(env.action_space.n)
        self.epsilon = args.epsilon_start
        # What acts is the network that learns: of two views it has that of an actor.
        width = env.obs_space.shape[0]
        self.trunk = nn.Sequential()
        if self.images:
            self.trunk, width = nature_cnn(env.obs_space.shape, args.layer_norm)
        orthogonal_(self.trunk, math.sqrt(2))
        activation = "relu" if self.images else args.activation
        self.critic = DiscreteCritic(
            width, self.actions, args.critic_hidden, sem_config(args), activation, args.layer_norm, args.torso
        )
        normalise = args.obs_norm and not self.images
        self.obs_norm = RunningNorm(env.obs_space.shape[0]) if normalise else nn.Identity()
        all_envs = env.num_envs * ranks.world
        self.reward_scale = RewardScale(all_envs, args.gamma, g_max=math.inf) if args.reward_norm else nn.Identity()
        self.modules = nn.ModuleDict(
            {
                "trunk": self.trunk,
                "critic": self.critic,
                "obs_norm": self.obs_norm,
                "reward_scale": self.reward_scale,
            }
        ).to(self.device)
        self.annealed = [block for block in self.modules.modules() if isinstance(block, SEM)]
        self.norms = batch_norms(self.critic)
        for norm in self.norms:
            norm.average = ranks.mean_
        self.flat = Flat(self.modules.parameters(), spheres(self.modules))
        self.optimizer = RAdam(self.flat, args.learning_rate)
        self.loss_sum = torch.zeros(len(LOSSES), device=self.device)  # since the last report
        self.loss_count = 0
        self.compiled = Compiled(self, [self.flat], "descent", "best") if args.compile else None

    @property
    def autocast(self) -> AbstractContextManager:
        """A context for the networks' products. Within an outer one, weights are rounded once."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.args.amp == "bfloat16" else nullcontext()

    # ---- acting ----

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Return the best actions [B] for raw observations, but for a share of `eval_epsilon`."""
        with self.autocast:
            value = self(self.normalise(obs))
        return self.stray(value.argmax(-1), self.args.eval_epsilon)

    @torch.no_grad()
    def explore(self, obs: Tensor) -> dict[str, Tensor]:
        """Return a row [N] of the rollout: what was seen, what to do, and the value of the best action."""
        row = self.best(obs)
        return {**row, "action": self.stray(row["action"], self.epsilon)}

    @torch.no_grad()
    def best(self, obs: Tensor) -> dict[str, Tensor]:
        """Return what was seen in raw observations [N, ...], the best action, and its value."""
        obs = self.normalise(obs)
        with self.autocast:
            value, action = self(obs).max(-1)
        return {"obs": obs, "action": action, "value": value}

    def rehearse(self, obs: Tensor) -> Tensor:
        """Return the value [N] that a row of the rollout would have, within the autocast of a rollout."""
        with self.autocast:
            return self.best(obs)["value"]

    def stray(self, action: Tensor, epsilon: float) -> Tensor:
        """Return actions [B] of which a share, `epsilon` on average, is replaced by any of all, drawn evenly."""
        if epsilon == 0:
            return action
        drawn = torch.randint_like(action, self.actions)
        return torch.where(torch.rand(action.shape, device=action.device) < epsilon, drawn, action)

    def __call__(self, obs: Tensor, learning: bool = False) -> Tensor:
        """Return the value of each action [B, n] for normalised observations; `learning` as in `DiscreteCritic`."""
        return self.critic(self.trunk(obs), learning)

    @torch.no_grad()
    def value(self, obs: Tensor) -> Tensor:
        """Return the value of the best action [B] for raw observations."""
        with self.autocast:
            return self(self.normalise(obs)).amax(-1)

    def normalise(self, obs: Tensor) -> Tensor:
        """Return observations as the network wants them: images as they are, vectors normalised and clipped."""
        norm = self.obs_norm
        return norm(obs).clamp(-self.args.obs_clip, self.args.obs_clip) if isinstance(norm, RunningNorm) else obs

    @torch.no_grad()
    def observe(self, steps: Sequence[Step]) -> None:
        """Learn the normalisers from the steps of a rollout."""
        if isinstance(self.obs_norm, RunningNorm):
            self.obs_norm.update(self.ranks.gather(torch.cat([step.obs for step in steps])))
        if isinstance(self.reward_scale, RewardScale):
            done = torch.stack([step.terminated | step.truncated for step in steps], 1)  # [N, T]
            reward = torch.stack([step.reward for step in steps], 1)
            self.reward_scale.update(self.ranks.gather(reward).T, self.ranks.gather(done).T)

    # ---- learning ----

    @torch.no_grad()
    def estimate(self, rows: Sequence[dict[str, Tensor]], steps: Sequence[Step]) -> TensorDict:
        """Return the rollout [T, N] as the loss wants it: what was seen and done, `target` of its value, `valid`.

        The best value of a successor is that of the next row, which saw the same observation. Only what ends otherwise
        is looked at again: the last step, and where the clock has ended an episode.
        """
        args = self.args
        rollout = TensorDict({name: torch.stack([row[name] for row in rows]) for name in ("obs", "action")})
        if self.images:  # channels last in memory, which convolutions read a tenth to a quarter faster
            rollout["obs"] = rollout["obs"].movedim(2, -1).contiguous().movedim(-1, 2)
        reward = self.reward_scale(torch.stack([step.reward for step in steps]))
        if args.reward_norm:
            reward = reward.clamp(-args.reward_clip, args.reward_clip)
        terminated = torch.stack([step.terminated for step in steps])
        truncated = torch.stack([step.truncated for step in steps])
        valid = torch.stack([step.valid for step in steps])
        next_value = torch.stack([*(row["value"] for row in rows[1:]), self.value(steps[-1].obs)])
        cut = [t for t, some in enumerate(truncated.any(1).tolist()) if some]  # the one wait for the device
        if cut:
            next_value[truncated] = self.value(torch.cat([steps[t].next_obs[truncated[t]] for t in cut]))
        target = lambda_returns(reward, next_value, terminated, truncated, valid, args.gamma, args.q_lambda)
        rollout.update({"target": target, "valid": valid.float()})
        rollout.batch_size = target.shape
        return rollout

    def update(self, rollout: TensorDict) -> None:
        """Take `update_epochs` passes over a rollout [T, N] in shuffled minibatches, one optimiser step for each."""
        args = self.args
        flat = dict(rollout.flatten().items())
        for _ in range(args.update_epochs):
            order = torch.randperm(rollout.numel(), device=self.device).view(args.num_minibatches, -1)
            shuffled = {name: take(x, order.flatten()) for name, x in flat.items()}
            columns = self.prepare({name: x.unflatten(0, order.shape) for name, x in shuffled.items()})
            seen = []
            for rows in zip(*(x.unbind() for x in columns.values()), strict=True):
                batch = dict(zip(columns, rows, strict=True))
                seen.append(self.differentiate(batch))
                if args.max_grad_norm > 0:
                    self.flat.clip(args.max_grad_norm)
                self.optimizer.step()
                for norm in self.norms:
                    norm.learn()
            self.loss_sum += self.ranks.sum_(self.losses(columns, torch.stack(seen))).sum(0)
            self.loss_count += len(seen)

    def gradient(self, rollout: TensorDict) -> Tensor:
        """Return the gradient [P] on as many rows of a rollout as a minibatch has, and leave it in its place."""
        size = rollout.numel() // self.args.num_minibatches
        self.differentiate(self.prepare({name: x[:size] for name, x in rollout.flatten().items()}))
        assert self.flat.vector.grad is not None
        return self.flat.vector.grad

    def prepare(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return minibatches [..., B] with the `weight` of each row in a mean over its minibatch.

        A row that a simulator has spoilt has none.
        """
        valid = columns["valid"]
        weight = valid / self.ranks.sum_(valid.sum(-1, keepdim=True)).clamp(min=1)
        return {**columns, "weight": weight}

    def differentiate(self, batch: dict[str, Tensor]) -> Tensor:
        """Set the gradient of td_loss of a minibatch [B], and return the values of its actions [B]."""
        seen, gradient = self.descent(batch)
        self.flat.vector.grad = self.ranks.sum_(gradient)
        return seen

    def descent(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the values [B] of the actions of a minibatch [B], and the gradient [P] of its td_loss."""
        with self.autocast:
            value = self(batch["obs"], True)
        seen, gradient = self.gradients(value, batch)
        return seen, self.flat.gradient((value,), (gradient,))

    @torch.no_grad()
    def gradients(self, value: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return what `losses` needs, and the gradient of the loss by the value of each action [B, n].

        That of half the squared error is the error, and 0 for an action that was not taken.
        """
        action = batch["action"][:, None]
        seen = value.gather(-1, action)[:, 0]
        error = (seen - batch["target"]) * batch["weight"]
        return seen, torch.zeros_like(value).scatter_(-1, action, error[:, None])

    @torch.no_grad()
    def losses(self, columns: dict[str, Tensor], seen: Tensor) -> Tensor:
        """Return LOSSES [..., 2] of minibatches [..., B], from the values seen when each had its turn."""
        rows = torch.stack([0.5 * (seen - columns["target"]).square(), seen], -2)
        return (rows @ columns["weight"][..., None])[..., 0]

    def anneal(self, progress: float) -> None:
        """Set learning rate, epsilon and SEM's temperature for a share of training done, 0 to 1."""
        args = self.args
        for block in self.annealed:
            block.anneal(progress)
        if args.anneal_lr:
            self.optimizer.lr.fill_(args.learning_rate * max(1 - progress, 0.0))
        done = min(progress / args.exploration_fraction, 1.0) if args.exploration_fraction > 0 else 1.0
        self.epsilon = (1 - done) * args.epsilon_start + done * args.epsilon_end

    # ---- reporting and saving ----

    @torch.no_grad()
    def report(self, rollout: TensorDict) -> dict[str, Tensor]:
        """Return the losses since the last report, and what the network makes of a rollout; tensors of one element.

        It is probed with every fourth step of it, 1,024 rows at most. Draws no random numbers, so that training is the
        same with and without it.
        """
        losses = self.loss_sum / max(self.loss_count, 1)
        self.loss_sum.zero_()
        self.loss_count = 0
        probe = rollout[::4].flatten()[:PROBE]
        with self.autocast:
            value = self(probe["obs"])
        out = {f"losses/{name}": loss for name, loss in zip(LOSSES, losses, strict=True)}
        out["critic/td_error"] = td_error(value.gather(-1, probe["action"][:, None])[:, 0], probe["target"])
        out["charts/learning_rate"] = self.optimizer.lr
        out["charts/epsilon"] = torch.tensor(self.epsilon)
        out |= self.describe_gradients(probe, value)
        with self.autocast:
            return out | describe_torso("critic", self.layers, probe["obs"])

    @property
    def layers(self) -> nn.Sequential:
        """All that comes before the head."""
        return nn.Sequential(*self.trunk, *self.critic.torso)

    @torch.no_grad()
    def draw(self, rollout: TensorDict) -> dict[str, Tensor]:
        """Return values for histograms and images of simplices, by tag, for the rows that a report looks at."""
        with self.autocast:
            return draw_torso(["critic"], self.layers, rollout[::4].flatten()[:PROBE]["obs"])

    def describe_gradients(self, probe: TensorDict, old: Tensor) -> dict[str, Tensor]:
        """Return size and noise of the gradient on rows [B] of a rollout, and the churn of the policy.

        Churn is how much one more step along it would change the best actions from those of the values `old` [B, n];
        the step is taken back.
        """
        columns = TensorDict(self.prepare(probe.to_dict()), probe.batch_size)
        with torch.enable_grad(), undrawn(self.device):
            order = torch.randperm(len(probe), device=self.device)  # rows of one environment are alike
            parts = micro_batches(columns[order])
            noise = gradient_noise(self.gradient_of(part, len(parts)) for part in parts)
        with self.optimizer.rehearsal():
            self.flat.vector.grad = noise.mean
            if self.args.max_grad_norm > 0:
                self.flat.clip(self.args.max_grad_norm)
            self.optimizer.step()
            with self.autocast:
                new = self(probe["obs"])
        return {**describe_gradient("critic", noise, len(parts[0])), "policy/churn": greedy_churn(new, old)}

    def gradient_of(self, part: TensorDict, parts: int) -> Tensor:
        """Return the gradient [P] of the loss on one of so many parts [B] of a probe."""
        with self.autocast:
            value = self(part["obs"], True)
        _, gradient = self.gradients(value, part.to_dict())
        share = parts * self.ranks.world  # `prepare` gives weights among the rows of all parts, of all processes
        return share * self.flat.gradient(value, [gradient])

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
        self.loss_sum = state["loss_sum"].to(self.device)
        self.loss_count = state["loss_count"]


def lambda_returns(
    reward: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    valid: Tensor,
    gamma: float,
    q_lambda: float,
) -> Tensor:
    """Return the targets of Q(lambda) [T, N].

    target[t] = reward[t] + gamma (lambda target[t + 1] + (1 - lambda) next_value[t]), with next_value[t] alone where
    the next row does not follow. The value after a terminated step counts as 0; `next_value` is the best of the true
    successor, so an episode that the clock has ended is treated exactly. Returns go on where an action was drawn.
    Source: Gallici et al., arXiv 2407.04811; Peng and Williams, "Incremental Multi-Step Q-Learning" (1996).

    Args:
        reward: [T, N], and so are all the others.
        next_value: of the best action in what came of the step, before any reset.
        terminated: bool.
        truncated: bool. Nothing flows back from the next row where an episode ended in either way.
        valid: bool. Nothing flows back from a row that a simulator has spoilt; its own target is of no use.
        gamma: discount.
        q_lambda: weight of longer returns.
    """
    follows = ~(terminated | truncated)  # the next row: not after the last one, and not where that is spoilt
    follows = torch.cat([follows[:-1] & valid[1:], torch.zeros_like(follows[:1])])
    carry = gamma * q_lambda * follows.to(reward.dtype)
    target = reward + (gamma - carry) * torch.where(terminated, 0.0, next_value)
    for t in reversed(range(len(target) - 1)):
        target[t].addcmul_(carry[t], target[t + 1])
    return target


def sem_config(args: Args) -> Bottleneck | None:
    """Return the SEM of the network, or what --bottleneck asks for instead; None where it is off."""
    kind = args.bottleneck if args.bottleneck != "auto" else "sem" if args.sem else "relu"
    if kind == "relu":
        return None
    tau = args.sem_temperature, args.sem_learned_temperature, args.sem_temperature_end
    style = *tau, kind, args.sem_position
    return Bottleneck(args.sem_critic_groups, args.sem_critic_vertices, *style)


# ---- settings --------------------------------------------------------------------------------------------------------

SMALL = {  # the authors' cadence for Atari, with a quarter of the environments
    "num_envs": 32,
    "eval_envs": 16,
    "total_timesteps": 524_288,
    "learning_rate": 1e-3,
    "epsilon_end": 0.05,
    "exploration_fraction": 0.5,
    # Values near 1, as for PPO: a critic whose features are simplices does not follow values of 100, so that with SEM
    # and raw rewards CartPole ended at 267 on average; with this it ends at 500. Without SEM it does so in both ways.
    "reward_norm": True,
    "critic_hidden": (128, 128),
    "sem_critic_groups": 32,  # with 2 of 64 and 8 of 16 CartPole takes more than twice the frames
    "sem_critic_vertices": 4,
    "log_every": 10_240,
    "eval_every": 51_200,
    "save_every": 102_400,
}

# (name, task patterns, size or None for both, overrides); later rows win. What no row names is as in Args: the authors'
# cadence for Atari, for a thousand environments in a GPU simulator.
PRESETS: tuple[config.Row, ...] = (
    ("any task", ("*",), "small", SMALL),
    (
        "classic control",
        CLASSIC,
        None,
        {**SMALL, "total_timesteps": 204_800, "log_every": 5_120, "eval_every": 20_480, "save_every": 51_200},
    ),
    (
        "Atari",  # CleanRL's pqn_atari_envpool
        ATARI,
        None,
        {
            "num_envs": 8,
            "eval_envs": 8,
            "eval_epsilon": 0.01,  # the best action of a policy that was trained to stray can stand still forever
            "total_timesteps": 10_000_384,
            "num_steps": 128,
            "num_minibatches": 4,
            "update_epochs": 4,
            "learning_rate": 2.5e-4,
            "epsilon_end": 0.01,
            "exploration_fraction": 0.1,
            "reward_norm": False,
            "critic_hidden": (512,),
            "sem_critic_groups": 64,
            "sem_critic_vertices": 8,
            "log_every": 10_240,
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
        *("keep_checkpoints", "obs_clip", "reward_clip"),
    )
    not_negative = (
        *("seed", "threads", "env_threads", "log_every", "eval_every", "save_every", "learning_rate"),
        *("max_grad_norm", "sem_temperature_end", "video_every"),
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
    shares = ("gamma", "q_lambda", "epsilon_start", "epsilon_end", "exploration_fraction", "eval_epsilon")
    for name in shares:
        if not 0 <= getattr(args, name) <= 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: must be from 0 to 1")
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
    if args.sem and args.bottleneck not in ("auto", "sem"):
        raise ValueError(f"--sem --bottleneck {args.bottleneck}: --sem stands for --bottleneck sem, give one of them")
    return replace(args, device=machine.resolve_device(args.device), sem=args.sem or args.bottleneck == "sem")


# ---- training --------------------------------------------------------------------------------------------------------


MUTABLE = ("total_timesteps", "quiet", "keep_checkpoints", "threads", "env_threads", "device")
"""settings that may be given anew when a run is resumed; any other would make it another run"""


def build(args: Args, ranks: Ranks = ALONE) -> tuple[PQN, VecEnv, VecEnv | None]:
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
    agent = PQN(args, env, ranks)
    ranks.part_ways(args.seed)
    rows = num_envs * args.num_steps // args.num_minibatches
    paying = machine.available_cores() if agent.images else machine.learner_threads(rows, args.critic_hidden)
    torch.set_num_threads(args.threads or ranks.threads(paying))
    eval_env = None
    if args.eval_every and ranks.first:
        make = partial(envs.make, args.env_id, args.eval_envs, args.seed, device, backend=args.backend, **options)
        eval_env = rehearse(make, spawn_seeds(args.seed, 1, "evaluation")[0]) if args.video_every else make()
    return agent, env, eval_env


def train(run: Run[Args], agent: PQN, env: VecEnv, eval_env: VecEnv | None) -> dict[str, float]:
    """Train until the frames are done or a signal asks to stop; returns the last evaluation, if there was one."""
    args = run.args
    stats = EpisodeStats(env.num_envs, env.device, run.ranks)
    describe(run, agent, env)
    frames = 0
    score: dict[str, float] = {}  # of the last evaluation
    if run.checkpoint is None:
        obs, _ = env.reset()
    else:
        frames = run.checkpoint.step
        obs, score = restore(run.checkpoint, agent, stats, env)
    eval_seed = spawn_seeds(args.seed, 1, "evaluation")[0]
    if agent.compiled is not None:  # before the first rollout: one that goes on from a checkpoint acts as it did before
        run.note(agent.compiled.verify(TOLERANCE[args.amp], partial(agent.rehearse, obs), "best"))

    while frames < args.total_timesteps and not run.stop_signal:
        # ---- act ----
        agent.anneal(frames / args.total_timesteps)
        rows: list[dict[str, Tensor]] = []
        steps: list[Step] = []
        with agent.autocast:
            for _ in range(args.num_steps):
                with run.timer("act"):
                    row = agent.explore(obs)
                with run.timer("env"), torch.autocast(env.device.type, enabled=False):  # a simulator in torch is no net
                    step = env.step(row["action"])
                with run.timer("store"):
                    rows.append(row)
                    steps.append(step)
                    stats.add(step)
                obs = step.obs
        frames += args.num_steps * args.num_envs
        # ---- learn ----
        with run.timer("learn"):
            rollout = agent.estimate(rows, steps)
            if agent.compiled is not None and agent.compiled.unverified:
                run.note(agent.compiled.verify(TOLERANCE[args.amp], partial(agent.gradient, rollout)))
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
            loop = {"obs": obs, "env": env.state_dict(), "stats": stats.state_dict()}
            run.save(frames, {"agent": agent.state_dict(), "loop": {**loop, "score": score, "rng": rng_state()}})
    return score


def assess(agent: PQN, env: VecEnv, seed: int) -> dict[str, float]:
    """Return the evaluation of the policy. Where it draws actions, it does so from a random stream of its own."""
    state = rng_state()
    torch.manual_seed(seed)
    score = evaluate(agent.act, env, seed)
    set_rng_state(state)
    return with_human(env.task, "", score)


def restore(checkpoint: Checkpoint, agent: PQN, stats: EpisodeStats, env: VecEnv) -> tuple[Tensor, dict[str, float]]:
    """Continue everything from a checkpoint; returns what to act on, and the last evaluation.

    Exact where the simulator can be restored too (`VecEnv.snapshots`). Where it cannot, learner and random streams are,
    and the environments begin new episodes, from seeds that the run has not used before.
    """
    agent.load_state_dict(checkpoint.load("agent", env.device))
    loop = checkpoint.load("loop", env.device)
    if env.snapshots:
        env.load_state_dict(loop["env"])
        stats.load_state_dict(loop["stats"])
        obs = loop["obs"]
    else:
        seed = agent.ranks.seed(agent.args.seed)
        obs, _ = env.reset(seed=spawn_seeds(seed, 1, f"resumed at {checkpoint.step}")[0])
    set_rng_state(loop["rng"])
    return obs, loop["score"]


def describe(run: Run[Args], agent: PQN, env: VecEnv) -> None:
    """Print what was chosen, before the first step."""
    args = run.args
    torso = "" if args.torso == "mlp" else f"{args.torso}, "
    block = "SEM" if args.bottleneck in ("auto", "relu", "sem") else "block"
    rows = args.num_envs * args.num_steps
    say = {
        "run": run.dir,
        "task": f"{args.env_id} by {env.backend}, {args.num_envs} environments, {args.total_timesteps:,} frames",
        **({"from": args.init_from} if args.init_from else {}),
        "size": f"{args.size}: {'Nature CNN, ' if agent.images else ''}{torso}critic {args.critic_hidden}, "
        f"rollout {rows:,}, minibatch {rows // args.num_minibatches:,}",
        block: str(sem_config(args) or "off") + (told(args.device, sem_config(args)) if args.sem else ""),
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
        print(f"to continue       python agents/pqn.py --resume {run.dir}")
    print(f"learning curves   tensorboard --logdir {run.dir.parent}")
    return status


if __name__ == "__main__":
    config.program(main)
