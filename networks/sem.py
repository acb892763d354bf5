"""Simplicial embeddings (SEM): features that live on a product of simplices.

Source: Lavoie et al., "Simplicial Embeddings in Self-Supervised Learning and Downstream Classification" (2022), and
Obando-Ceron et al., "Simplicial Embeddings Improve Sample Efficiency in Actor-Critic Agents" (ICLR 2026), figure 2.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from networks.layers import NORM_EPS, layer_norm, linear
from networks.native import LANES, WIDTHS, has_code_for, library, norm_and, suits

SHORT = 16
"""Groups of fewer vertices are slow in torch's CPU kernels, which are scalar along rows this short."""


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
    end_temperature: float = 0.0
    """tau at the end of training, 0 where it stays: `SEM.anneal` leads there"""

    def __post_init__(self) -> None:
        if self.groups < 1 or self.vertices < 2 or not self.temperature > 0:
            raise ValueError(
                f"a simplicial embedding needs groups >= 1, vertices >= 2 and temperature > 0; "
                f"got {self.groups}, {self.vertices}, {self.temperature}"
            )
        if self.end_temperature < 0 or (self.end_temperature and self.learned_temperature):
            raise ValueError(f"a temperature that ends at {self.end_temperature} must be above 0, and not learned")

    def __str__(self) -> str:
        return f"L={self.groups} V={self.vertices} tau={self.in_words}"

    @property
    def in_words(self) -> str:
        """The temperature."""
        learned = ", learned" if self.learned_temperature else ""
        return f"{self.temperature:g}{learned}{f' to {self.end_temperature:g}' if self.end_temperature else ''}"

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
    if chunks.device.type == "cpu" and chunks.shape[-1] < SHORT and not torch.compiler.is_compiling():
        # Along the first dimension torch's kernel is ten times as fast as along short rows. A compiler's is not.
        return torch.softmax(chunks.movedim(-1, 0).contiguous(), 0).movedim(0, -1).flatten(-2)
    return torch.softmax(chunks, -1).flatten(-2)


class SEM(nn.Module):
    """Linear, LayerNorm over all L*V features, softmax over V in each group: [..., in] to [..., L*V].

    Takes the place of the last hidden Linear and ReLU of a network. With `copies`, Q independent blocks: [Q, B, L*V].
    """

    tau: Tensor | None
    """[] float32, the temperature now, where it is annealed"""

    def __init__(self, in_features: int, config: SEMConfig, copies: int | None = None) -> None:
        super().__init__()
        self.config, self.copies = config, copies
        self.linear = linear(in_features, config.width, copies)
        self.norm = layer_norm(config.width, copies)
        self.log_temperature: nn.Parameter | None = None
        if config.learned_temperature:  # its logarithm, which keeps it above 0
            shape = (1,) if copies is None else (copies, 1, 1)
            self.log_temperature = nn.Parameter(torch.full(shape, math.log(config.temperature)))
        # A number on the device, which compiled code reads anew, and in checkpoints: what is resumed or played has it.
        self.register_buffer("tau", torch.tensor(config.temperature) if config.end_temperature else None)

    def forward(self, x: Tensor) -> Tensor:
        """Return features on the product of simplices; each group sums to 1."""
        x, norm, tau = self.linear(x), self.norm, self.temperature
        gain, bias = norm.weight, norm.bias
        if self.log_temperature is None and suits(x, gain, bias, self.config.vertices):
            return norm_and(self.config.vertices, x, gain, bias, NORM_EPS, float(tau))
        x = norm(x)
        if isinstance(tau, Tensor):
            return simplicial(x.float() / tau, self.config.groups)
        return simplicial(x, self.config.groups, tau)

    def anneal(self, progress: float) -> None:
        """Set tau for a share of training done, 0 to 1: by equal factors in equal times from start to end."""
        if self.tau is not None:
            start, end = self.config.temperature, self.config.end_temperature
            self.tau.fill_(start ** (1 - progress) * end**progress)

    @property
    def temperature(self) -> float | Tensor:
        """Tau; a tensor where it is learned, [1] or [Q, 1, 1], or annealed, []."""
        if self.log_temperature is not None:
            return self.log_temperature.exp()
        return self.config.temperature if self.tau is None else self.tau

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return str(self.config)


def entropy(features: Tensor, groups: int) -> Tensor:
    """Return the mean entropy of the groups over its maximum, log V: 0 is one-hot, 1 uniform. [..., L*V] to []."""
    chunks = features.unflatten(-1, (groups, -1)).float()
    return torch.special.entr(chunks).sum(-1).mean() / math.log(chunks.shape[-1])


def told(device: str, *configs: SEMConfig | None) -> str:
    """Return what a user should know of how blocks are computed on a device; nothing where that is as it should be."""
    if device != "cpu" or not any(configs):
        return ""
    found = library()
    sizes = [config for config in configs if config is not None and not has_code_for(config.width, config.vertices)]
    if isinstance(found, str):
        why = found
    elif any(config.learned_temperature for config in configs if config is not None):
        why = "tau is learned"
    elif sizes:
        why = f"V is not one of {', '.join(map(str, WIDTHS))}, or L*V no multiple of {LANES}"
    elif not found.threaded and torch.get_num_threads() > 1:
        why = "C++ without OpenMP has one thread"
    else:
        return ""
    return f" (by torch, slower: {why})"
