"""Residual blocks of SimBa, SimbaV2, where features and weights live on spheres, and FlashSAC. Alone or in Q copies.

    simba      x + Linear(relu(Linear(LayerNorm(x)))), from an affine embedding to a last LayerNorm
    simbav2    unit((1 - a) x + a unit(W relu(s W x))) of a unit vector x; every unit of a W has weights of length 1
    flashsac   x + relu(BatchNorm(W relu(BatchNorm(W x)))), from W BatchNorm(x) to a last RMSNorm; each W as in simbav2

Sources: Lee et al., "SimBa: Simplicity Bias for Scaling Up Parameters in Deep RL" (arXiv 2410.09754), and
"Hyperspherical Normalization for Scalable Deep RL" (arXiv 2502.15280); Kim et al., "FlashSAC: Fast and Stable
Off-Policy Reinforcement Learning for High-Dimensional Robot Control" (arXiv 2604.04539); with the starts of their own
code. Of the first two is the normalisation of observations too (`--obs-norm`). Heads are those of the agents here,
where SimbaV2 and FlashSAC have spheres as well.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers import BatchedLinear, layer_norm, linear
from networks.normalize import BatchNorm

EXPANSION = 4
"""units within a block for each of the stream"""
SHIFT = 3.0
"""what SimbaV2 appends to observations, so that their length is not lost when it is made 1"""


def unit(x: Tensor) -> Tensor:
    """Return x over its length along the last dimension, float32; 0 stays 0."""
    return F.normalize(x.float(), dim=-1)


class UnitLinear(nn.Module):
    """Linear map without bias whose output units have weights of length 1: [..., in] to [..., out].

    The gradient knows nothing of that; after each step of the optimiser `project_` leads back (`flat.AdamW` does so).
    Weights that are normalised on the way instead would need no such step, but their hidden length grows with every
    step, and the true learning rate falls with it.
    """

    def __init__(self, in_features: int, out_features: int, copies: int | None = None) -> None:
        super().__init__()
        self.copies = copies
        weight = torch.empty(copies or 1, in_features, out_features)
        for one in weight:
            nn.init.orthogonal_(one)
        self.weight = nn.Parameter(weight if copies is not None else weight[0])
        self.project_()

    @torch.no_grad()
    def project_(self) -> None:
        """Make the weights of each unit have length 1 again."""
        self.weight.div_(torch.linalg.vector_norm(self.weight, dim=-2, keepdim=True).clamp_(min=1e-12))

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., out]."""
        return x @ self.weight

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{self.weight.shape[-2]}, {self.weight.shape[-1]}, copies={self.copies}"


class Scale(nn.Module):
    """A learned factor for each feature: `start` at first, and kept as `stored`, which sets how fast it moves."""

    def __init__(self, features: int, start: float, stored: float, copies: int | None = None) -> None:
        super().__init__()
        self.copies, self.ratio = copies, start / stored
        self.weight = nn.Parameter(torch.full((features,) if copies is None else (copies, 1, features), stored))

    def forward(self, x: Tensor) -> Tensor:
        """Return x times the factors."""
        return x * (self.weight * self.ratio)


class SimbaBlock(nn.Module):
    """x plus what a LayerNorm and two layers make of it: [..., D] to the same."""

    def __init__(self, features: int, copies: int | None = None) -> None:
        super().__init__()
        self.norm = layer_norm(features, copies)
        self.expand = linear(features, EXPANSION * features, copies)
        self.contract = linear(EXPANSION * features, features, copies)
        for layer in (self.expand, self.contract):
            start_(layer, math.sqrt(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after the block."""
        return x + self.contract(self.expand(self.norm(x)).relu())


def start_(layer: nn.Module, gain: float) -> None:
    """Start an affine map with normal weights of deviation gain / sqrt(in), and no bias."""
    weight, bias = layer.parameters()
    inputs = weight.shape[-2] if isinstance(layer, BatchedLinear) else weight.shape[-1]
    nn.init.normal_(weight, std=gain / math.sqrt(inputs))
    nn.init.zeros_(bias)


class SphereEmbedding(nn.Module):
    """Vectors as points of a sphere: [..., in] to [..., D], float32 of length 1. With `shift`, of any length."""

    def __init__(self, in_features: int, features: int, copies: int | None = None, shift: bool = True) -> None:
        super().__init__()
        self.shift = shift
        self.linear = UnitLinear(in_features + shift, features, copies)
        self.scale = Scale(features, math.sqrt(2 / features), math.sqrt(2 / features), copies)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embedding."""
        return unit(self.scale(self.linear(unit(F.pad(x, (0, 1), value=SHIFT)) if self.shift else x)))


class SphereBlock(nn.Module):
    """A step from x towards what two layers make of it, back on the sphere: [..., D] to the same, float32 of length 1.

    The step is a learned share for each feature, 1 / (blocks + 1) at first.
    """

    def __init__(self, features: int, blocks: int, copies: int | None = None) -> None:
        super().__init__()
        inner = EXPANSION * features
        self.expand = UnitLinear(features, inner, copies)
        self.scale = Scale(inner, math.sqrt(2 / inner), math.sqrt(2 / inner), copies)
        self.contract = UnitLinear(inner, features, copies)
        self.share = Scale(features, 1 / (blocks + 1), 1 / math.sqrt(features), copies)

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after the block."""
        towards = unit(self.contract(self.scale(self.expand(x)).relu()))
        return unit(x + self.share(towards - x))


class RMSNorm(nn.Module):
    """x over the root of its mean square, times a gain for each feature: [..., D] to the same, float32.

    The gains are of length sqrt(D), so the features are no longer than D; `project_` leads back to that after a step.
    """

    def __init__(self, features: int, copies: int | None = None, eps: float = 1e-6) -> None:
        super().__init__()
        self.copies, self.eps = copies, eps
        self.weight = nn.Parameter(torch.ones((1, features) if copies is None else (copies, 1, features)))

    def forward(self, x: Tensor) -> Tensor:
        """Return [..., D]."""
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight

    @torch.no_grad()
    def project_(self) -> None:
        """Make the gains have length sqrt(D) again."""
        length = torch.linalg.vector_norm(self.weight, dim=-1, keepdim=True)
        self.weight.mul_(math.sqrt(self.weight.shape[-1]) / length.clamp_(min=1e-12))


class FlashEmbedding(nn.Module):
    """Where a stream of FlashSAC's begins: [..., in] to [..., D]."""

    def __init__(self, in_features: int, features: int, copies: int | None = None) -> None:
        super().__init__()
        self.norm = BatchNorm(in_features, copies)
        self.linear = UnitLinear(in_features, features, copies)

    def forward(self, x: Tensor, by_batch: bool = False) -> Tensor:
        """Return the embedding; `by_batch` as in `BatchNorm`."""
        return self.linear(self.norm(x, by_batch))


class FlashBlock(nn.Module):
    """x plus what two layers make of it, each with a batch norm before its activation: [..., D] to the same."""

    def __init__(self, features: int, copies: int | None = None) -> None:
        super().__init__()
        self.expand = UnitLinear(features, EXPANSION * features, copies)
        self.expand_norm = BatchNorm(EXPANSION * features, copies)
        self.contract = UnitLinear(EXPANSION * features, features, copies)
        self.contract_norm = BatchNorm(features, copies)

    def forward(self, x: Tensor, by_batch: bool = False) -> Tensor:
        """Return the stream after the block; `by_batch` as in `BatchNorm`."""
        inner = self.expand_norm(self.expand(x), by_batch).relu()
        return x + self.contract_norm(self.contract(inner), by_batch).relu()


def by_batch(torso: nn.Sequential, x: Tensor, beside: Sequence[Tensor] = ()) -> Tensor:
    """Return torso(x) for x [..., B, D] with batch norms that go by this batch; without any, just torso(x).

    The batch is x and the rows `beside` it, which come in parts to be joined along the last dimension. So pairs of now
    and of the next step, which differ, are seen by one and the same network: Bhatt et al., "CrossQ" (arXiv 1902.05605).
    """
    normed = [isinstance(layer, FlashEmbedding | FlashBlock) for layer in torso]
    if not any(normed):
        return torso(x)
    rows = x.shape[-2]
    if beside:
        x = torch.cat([x, torch.cat(list(beside), -1)], -2)
    for i, layer in enumerate(torso):
        x = layer(x, True) if normed[i] else layer(x)
        if not any(normed[i + 1 :]):  # what follows has no use for the rows beside
            x = x[..., :rows, :]
    return x


def batch_norms(*networks: nn.Module) -> list[BatchNorm]:
    """Return the batch norms of networks."""
    return [layer for network in networks for layer in network.modules() if isinstance(layer, BatchNorm)]


OnSphere = UnitLinear | BatchNorm | RMSNorm
"""layers with weights that stay on a sphere"""


def spheres(module: nn.Module) -> list[OnSphere]:
    """Return the layers of a module whose weights stay on a sphere."""
    return [layer for layer in module.modules() if isinstance(layer, OnSphere)]
