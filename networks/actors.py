"""Policies: what maps an observation to an action."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from networks.sem import SEMConfig
from networks.torso import mlp_torso


class DeterministicActor(nn.Module):
    """Action in (-1, 1) for each observation: [B, D] to [B, A]."""

    def __init__(
        self,
        obs_dim: int,
        action_dim: int,
        hidden: Sequence[int],
        sem: SEMConfig | None = None,
        init_scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.torso, width = mlp_torso(obs_dim, hidden, sem)
        self.head = nn.Linear(width, action_dim)
        # Small weights: the first actions are near 0 and the tanh is not saturated.
        nn.init.normal_(self.head.weight, std=init_scale)
        nn.init.zeros_(self.head.bias)

    def forward(self, obs: Tensor) -> Tensor:
        """Return [B, A] float32 in (-1, 1)."""
        return torch.tanh(self.head(self.torso(obs)).float())
