"""Simplicial embeddings (SEM): features that live on a product of simplices.

Source: Lavoie et al., "Simplicial Embeddings in Self-Supervised Learning and Downstream Classification" (2022), and
Obando-Ceron et al., "Simplicial Embeddings Improve Sample Efficiency in Actor-Critic Agents" (ICLR 2026), figure 2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from networks.layers import layer_norm, linear


@dataclass(frozen=True)
class SEMConfig:
    """Shape of a SEM block: L groups of V units, and the temperature of the softmax in each."""

    groups: int
    """L, the number of simplices"""
    vertices: int
    """V, the width of the softmax in each of them"""
    temperature: float = 1.0
    """tau: below 1 the codes get closer to one-hot, above 1 closer to uniform. The paper's released code has 1."""
    learned_temperature: bool = False
    """learn tau, from there on"""

    def __post_init__(self) -> None:
        if self.groups < 1 or self.vertices < 2 or not self.temperature > 0:
            raise ValueError(
                f"a simplicial embedding needs groups >= 1, vertices >= 2 and temperature > 0; "
                f"got {self.groups}, {self.vertices}, {self.temperature}"
            )

    def __str__(self) -> str:
        learned = ", learned" if self.learned_temperature else ""
        return f"L={self.groups} V={self.vertices} tau={self.temperature:g}{learned}"

    @property
    def width(self) -> int:
        """L * V, the number of features that come out."""
        return self.groups * self.vertices


def simplicial(x: Tensor, groups: int, temperature: float = 1.0) -> Tensor:
    """Return the softmax of `x / temperature` within each of `groups` contiguous chunks of the last dimension.

    [..., L*V] to [..., L*V], computed in float32: each chunk is a point of the simplex with V vertices.
    """
    chunks = x.unflatten(-1, (groups, -1)).float()
    if temperature != 1.0:
        chunks = chunks / temperature
    if chunks.device.type == "cpu" and chunks.shape[-1] < 16:
        # torch's CPU kernel is scalar along rows this short; along the first dimension it is ten times as fast.
        return torch.softmax(chunks.movedim(-1, 0).contiguous(), 0).movedim(0, -1).flatten(-2)
    return torch.softmax(chunks, -1).flatten(-2)


class SEM(nn.Module):
    """Linear, LayerNorm over all L*V features, softmax over V in each group: [..., in] to [..., L*V].

    Takes the place of the last hidden Linear and ReLU of a network. With `copies`, Q independent blocks: [Q, B, L*V].
    """

    def __init__(self, in_features: int, config: SEMConfig, copies: int | None = None) -> None:
        super().__init__()
        self.config, self.copies = config, copies
        self.linear = linear(in_features, config.width, copies)
        self.norm = layer_norm(config.width, copies)
        self.log_temperature: nn.Parameter | None = None
        if config.learned_temperature:  # its logarithm, which keeps it above 0
            shape = (1,) if copies is None else (copies, 1, 1)
            self.log_temperature = nn.Parameter(torch.full(shape, math.log(config.temperature)))

    def forward(self, x: Tensor) -> Tensor:
        """Return features on the product of simplices; each group sums to 1."""
        x = self.norm(self.linear(x))
        if self.log_temperature is None:
            return simplicial(x, self.config.groups, self.config.temperature)
        return simplicial(x.float() / self.temperature, self.config.groups)

    @property
    def temperature(self) -> float | Tensor:
        """Tau, also where it is learned: [1] or [Q, 1, 1]."""
        return self.config.temperature if self.log_temperature is None else self.log_temperature.exp()

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return str(self.config)


def entropy(features: Tensor, groups: int) -> Tensor:
    """Return the mean entropy of the groups over its maximum, log V: 0 is one-hot, 1 uniform. [..., L*V] to []."""
    chunks = features.unflatten(-1, (groups, -1)).float()
    return torch.special.entr(chunks).sum(-1).mean() / math.log(chunks.shape[-1])
