"""Policies: what maps an observation to an action, or to a distribution over actions."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers import float32, orthogonal_
from networks.residual import by_batch
from networks.sem import SEMConfig
from networks.torso import Activation, Torso, hidden_layers

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class DeterministicActor(nn.Module):
    """Action in (-1, 1) for each observation: [B, D] to [B, A]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        init_scale: float = 0.01,
        activation: Activation = "relu",
        norm: bool = False,
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        self.torso, width = hidden_layers(torso, obs_dim, hidden, sem, activation=activation, norm=norm)
        self.head = nn.Linear(width, action_dim)
        # Small weights: the first actions are near 0 and the tanh is not saturated.
        nn.init.normal_(self.head.weight, std=init_scale)
        nn.init.zeros_(self.head.bias)

    def forward(self, obs: Tensor, beside: Tensor | None = None) -> Tensor:
        """Return [B, A] float32 in (-1, 1).

        With other observations `beside` them, batch norms go by the statistics of both.
        """
        features = self.torso(obs) if beside is None else by_batch(self.torso, obs, [beside])
        return torch.tanh(self.head(features).float())


class Gaussian(NamedTuple):
    """Independent normal distributions over the A numbers of an action."""

    mean: Tensor
    """[B, A] float32"""
    log_std: Tensor
    """[B, A] float32, the logarithm of the deviation"""

    def mode(self) -> Tensor:
        """Return the most likely action [B, A]."""
        return self.mean

    def sample(self) -> Tensor:
        """Return an action [B, A] with gradients to the parameters (reparameterised)."""
        return torch.addcmul(self.mean, self.log_std.exp(), torch.randn_like(self.mean))

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log density of actions [B, A]: [B]."""
        z = (action - self.mean) * torch.exp(-self.log_std)
        return -(0.5 * z.square() + self.log_std).sum(-1) - LOG_SQRT_2PI * action.shape[-1]

    def entropy(self) -> Tensor:
        """Return [B], in nats."""
        return self.log_std.sum(-1) + (0.5 + LOG_SQRT_2PI) * self.log_std.shape[-1]

    def score(self, action: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the log density of actions [B, A]: [B], and its derivatives by mean and log_std, each [B, A]."""
        inverse = torch.exp(-self.log_std)
        z = (action - self.mean) * inverse
        square = z.square()
        log_prob = -torch.add(self.log_std, square, alpha=0.5).sum(-1) - LOG_SQRT_2PI * action.shape[-1]
        return log_prob, (z * inverse, square - 1)

    def gradient(self, score: tuple[Tensor, ...], by_log_prob: Tensor, by_entropy: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients by mean and log_std, each [B, A], of a loss whose own by the rest [B] are known.

        `score` is the second part of what the method of that name returns.
        """
        slope = by_log_prob[:, None]
        return slope * score[0], torch.addcmul(by_entropy[:, None], slope, score[1])


class SquashedGaussian(NamedTuple):
    """The tanh of independent normals: actions in (-1, 1)."""

    mean: Tensor
    """[B, A] float32, before the tanh"""
    log_std: Tensor
    """[B, A] float32, before the tanh"""

    def mode(self) -> Tensor:
        """Return tanh(mean) [B, A], what the policy does without noise."""
        return torch.tanh(self.mean)

    def sample(self) -> tuple[Tensor, Tensor]:
        """Return an action [B, A] and its log density [B], both with gradients to the parameters (reparameterised).

        The density of tanh(x) is that of x over the slope of tanh, whose logarithm is 2 (log 2 - x - softplus(-2x)).
        That is exact where tanh(x) rounds to 1; log(1 - tanh(x)^2 + 1e-6), as is common, is off by 9 nats at x = 12.
        """
        noise = torch.randn_like(self.mean)
        x = torch.addcmul(self.mean, self.log_std.exp(), noise)
        log_density = -(0.5 * noise.square() + self.log_std + LOG_SQRT_2PI)
        log_slope = 2 * (math.log(2) - x - F.softplus(-2 * x))
        return torch.tanh(x), (log_density - log_slope).sum(-1)


class Categorical(NamedTuple):
    """A distribution over n actions."""

    log_probs: Tensor
    """[B, n] float32, normalised"""

    @classmethod
    def of(cls, logits: Tensor) -> Self:
        """Return the distribution whose probabilities are softmax(logits)."""
        return cls(torch.log_softmax(logits, -1))

    def mode(self) -> Tensor:
        """Return the most likely action [B] int64."""
        return self.log_probs.argmax(-1)

    def sample(self) -> Tensor:
        """Return an action [B] int64. The first of n exponential clocks with these rates has these probabilities."""
        return (self.log_probs - torch.empty_like(self.log_probs).exponential_().log_()).argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Return the log probability of actions [B]: [B]."""
        return self.log_probs.gather(-1, action[..., None])[..., 0]

    def entropy(self) -> Tensor:
        """Return [B], in nats."""
        return -(self.log_probs.exp() * self.log_probs).sum(-1)

    def score(self, action: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the log probability of actions [B]: [B], and which of the log_probs it is: [B, 1]."""
        index = action[..., None]
        return self.log_probs.gather(-1, index)[..., 0], (index,)

    def gradient(self, score: tuple[Tensor, ...], by_log_prob: Tensor, by_entropy: Tensor) -> tuple[Tensor]:
        """Return the gradient by log_probs [B, n] of a loss whose own by log_prob and entropy, each [B], are known.

        `score` is the second part of what the method of that name returns.
        """
        gradient = self.log_probs.exp() * (self.log_probs + 1) * -by_entropy[:, None]
        return (gradient.scatter_add_(-1, score[0], by_log_prob[:, None]),)


class SquashedGaussianActor(nn.Module):
    """Distribution over actions in (-1, 1) whose deviation depends on the observation: [B, D] to [B, A]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        log_std_min: float = -5.0,
        log_std_max: float = 0.0,
        activation: Activation = "silu",
        norm: bool = True,
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        if not log_std_min < log_std_max:
            raise ValueError(f"the range of log_std must not be empty, got {log_std_min} to {log_std_max}")
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.torso, width = hidden_layers(torso, obs_dim, hidden, sem, activation=activation, norm=norm)
        self.head = nn.Linear(width, 2 * action_dim)
        # All zero: the first actions are centred on 0, with the deviation in the middle of its (logarithmic) range.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, obs: Tensor, beside: Tensor | None = None) -> SquashedGaussian:
        """Return the policy at obs; `beside` as in `DeterministicActor`.

        A tanh keeps the logarithm of the deviation in its range.
        """
        features = self.torso(obs) if beside is None else by_batch(self.torso, obs, [beside])
        mean, squashed = self.head(features).float().chunk(2, -1)
        half = 0.5 * (self.log_std_max - self.log_std_min)
        return SquashedGaussian(mean, self.log_std_min + half * (torch.tanh(squashed) + 1))


class GaussianActor(nn.Module):
    """Distribution over real actions, with one deviation per dimension or per observation: [B, D] to [B, A].

    `hidden` may be empty: then `obs` are the features of a torso that is elsewhere.
    """

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        activation: Activation = "tanh",
        init_std: float = 1.0,
        state_dependent_std: bool = False,
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        if not init_std > 0:
            raise ValueError(f"init_std is {init_std}, must be above 0")
        self.torso, width = hidden_layers(torso, obs_dim, hidden, sem, activation=activation)
        self.head = nn.Linear(width, action_dim)
        self.std_head = nn.Linear(width, action_dim) if state_dependent_std else None
        self.log_std = nn.Parameter(torch.full((action_dim,), math.log(init_std)))
        orthogonal_(self.torso, math.sqrt(2))
        orthogonal_(self.head, 0.01)
        if self.std_head is not None:
            orthogonal_(self.std_head, 0.01)

    def forward(self, obs: Tensor) -> Gaussian:
        """Return the policy at obs."""
        features = self.torso(obs)
        mean = float32(self.head, features)
        log_std = self.log_std.expand_as(mean)
        if self.std_head is not None:
            log_std = log_std + float32(self.std_head, features)
        return Gaussian(mean, log_std)


class CategoricalActor(nn.Module):
    """Distribution over n actions: [B, D] to [B, n]. `hidden` may be empty, as in `GaussianActor`."""

    def __init__(
        self,
        obs_dim: int,
        actions: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        activation: Activation = "tanh",
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        self.torso, width = hidden_layers(torso, obs_dim, hidden, sem, activation=activation)
        self.head = nn.Linear(width, actions)
        orthogonal_(self.torso, math.sqrt(2))
        orthogonal_(self.head, 0.01)

    def forward(self, obs: Tensor) -> Categorical:
        """Return the policy at obs."""
        return Categorical.of(float32(self.head, self.torso(obs)))
