"""Critics: the return as probabilities over a fixed grid of K atoms (C51), or as a number."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from networks.layers import BatchedLinear, float32, orthogonal_
from networks.residual import by_batch
from networks.sem import SEMConfig
from networks.torso import WIDEST, Activation, Torso, hidden_layers


class CategoricalCritics(nn.Module):
    """Q independent return distributions for each observation and action: [B, C], [B, A] to logits [Q, B, K].

    Source: Bellemare et al., "A Distributional Perspective on Reinforcement Learning" (2017).
    """

    support: Tensor
    """[K] float32, the returns that the atoms stand for"""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        atoms: int,
        v_min: float,
        v_max: float,
        sem: SEMConfig | None = None,
        critics: int = 2,
        activation: Activation = "relu",
        norm: bool = False,
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        if not 2 <= atoms <= WIDEST or not v_min < v_max:
            raise ValueError(
                f"the support needs from 2 to {WIDEST:,} atoms and v_min < v_max, got {atoms}, {v_min}, {v_max}"
            )
        self.torso, width = hidden_layers(torso, obs_dim + action_dim, hidden, sem, critics, activation, norm)
        self.head = BatchedLinear(width, atoms, critics)
        self.register_buffer("support", torch.linspace(v_min, v_max, atoms))

    def forward(self, obs: Tensor, action: Tensor, beside: Sequence[Tensor] | None = None) -> Tensor:
        """Return logits, [Q, B, K] float32.

        With other observations and actions `beside` them, batch norms go by the statistics of both.
        """
        pair = torch.cat([obs, action], -1)
        return self.head(self.torso(pair) if beside is None else by_batch(self.torso, pair, beside)).float()

    def value(self, logits: Tensor) -> Tensor:
        """Return the expected return under `logits` [..., K]: [...] float32."""
        return (torch.softmax(logits, -1) * self.support).sum(-1)  # a product of matrices would be autocast


class ScalarCritics(nn.Module):
    """Q independent estimates of the return for each observation and action: [B, C], [B, A] to [Q, B]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        critics: int = 2,
        activation: Activation = "relu",
        norm: bool = False,
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        self.torso, width = hidden_layers(torso, obs_dim + action_dim, hidden, sem, critics, activation, norm)
        self.head = BatchedLinear(width, 1, critics)

    def forward(self, obs: Tensor, action: Tensor, beside: Sequence[Tensor] | None = None) -> Tensor:
        """Return [Q, B] float32; `beside` as in `CategoricalCritics`."""
        pair = torch.cat([obs, action], -1)
        return self.head(self.torso(pair) if beside is None else by_batch(self.torso, pair, beside))[..., 0].float()


class ValueCritic(nn.Module):
    """Value of each observation under the policy: [B, C] to [B].

    `hidden` may be empty: then `obs` are the features of a torso that is elsewhere.
    """

    def __init__(
        self,
        obs_dim: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        activation: Activation = "tanh",
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        self.torso, width = hidden_layers(torso, obs_dim, hidden, sem, activation=activation)
        self.head = nn.Linear(width, 1)
        orthogonal_(self.torso, math.sqrt(2))
        orthogonal_(self.head, 1.0)

    def forward(self, obs: Tensor) -> Tensor:
        """Return [B] float32."""
        return float32(self.head, self.torso(obs))[..., 0]


class DiscreteCritic(nn.Module):
    """Value of each of n actions for each observation: [B, D] to [B, n].

    `hidden` may be empty, as in `ValueCritic`.
    """

    def __init__(
        self,
        obs_dim: int,
        actions: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        activation: Activation = "relu",
        norm: bool = True,
        torso: Torso = "mlp",
    ) -> None:
        super().__init__()
        self.torso, width = hidden_layers(torso, obs_dim, hidden, sem, activation=activation, norm=norm)
        self.head = nn.Linear(width, actions)
        orthogonal_(self, math.sqrt(2))

    def forward(self, obs: Tensor, learning: bool = False) -> Tensor:
        """Return [B, n] float32; with `learning`, batch norms go by the statistics of these observations."""
        return float32(self.head, by_batch(self.torso, obs) if learning else self.torso(obs))


def project(probs: Tensor, atoms: Tensor, support: Tensor) -> Tensor:
    """Return the probabilities on `support` of a distribution whose atoms have moved elsewhere: [..., B, K] float32.

    Args:
        probs: [..., B, K] probabilities.
        atoms: [B, K] where each of them now lies, e.g. reward + discount * support.
        support: [K] an even grid. Mass beyond its ends is put on them.

    Each atom gives its mass to its two neighbours on the grid, the nearer one more. An atom that falls on a grid point
    has an upper neighbour with weight 0, and so has the last one (whose upper neighbour would lie beyond the grid), so
    the mass is preserved with no case apart. In float32 whatever the networks compute in: a discount of 0.99 is 0.988
    in bfloat16. Source: Bellemare et al. (2017), equation 7.
    """
    last = support.numel() - 1
    position = (atoms.float() - support[0]) * (last / (support[-1] - support[0]))
    position = position.clamp(0, last)
    lower = position.floor()
    share = position - lower
    lower_index = lower.nan_to_num(0.0).long().expand(probs.shape)  # a mass of NaN says enough, and needs a place
    upper_index = (lower_index + 1).clamp(max=last)
    upper_mass = probs.float() * share
    projected = torch.zeros(probs.shape, dtype=torch.float32, device=probs.device)
    projected.scatter_add_(-1, lower_index, probs.float() - upper_mass)
    return projected.scatter_add_(-1, upper_index, upper_mass)
