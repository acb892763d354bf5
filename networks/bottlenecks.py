"""What can take the place of a hidden layer: SEM, and what its effect has to be told from.

Each is [..., in] to [..., width], alone or in Q copies at once. L groups of V units are the shape of all of them, so
that features are as many as those of SEM unless the table says otherwise.

    sem         Linear, LayerNorm, softmax in each group: networks/sem.py
    layernorm   Linear, LayerNorm, activation: SEM without the simplices
    narrow      an ordinary layer of L*V units: SEM's width alone, and the plain network where that is the same
    single      SEM with one group of L*V vertices
    gumbel-st   SEM whose groups draw one vertex each, with straight-through gradients
    vq          the nearest of V learned codes in each group
    crelu       Linear, and the positive and the negative part of each unit: 2*L*V features
    l2          Linear, activation, and a length of 1
    fta         L units, each spread over V tiles
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks.layers import Layers, layer_norm, linear
from networks.sem import SEM, SEMConfig

Kind = Literal["sem", "layernorm", "narrow", "single", "gumbel-st", "vq", "crelu", "l2", "fta"]
Position = Literal["last", "every", "input"]
WITH_TEMPERATURE: tuple[Kind, ...] = ("sem", "single", "gumbel-st")


@dataclass(frozen=True)
class Bottleneck(SEMConfig):
    """Kind, shape and place of what takes the place of hidden layers."""

    kind: Kind = "sem"
    position: Position = "last"
    """in place of which hidden layer: the last, every one or the first. Where that is not the last, it has as many
    groups of V as there were units for."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in WITH_TEMPERATURE and self.in_words != "1":
            raise ValueError(f"{self.kind} has no temperature, neither another one than 1 nor one to learn or anneal")

    def __str__(self) -> str:
        kind = "" if self.kind == "sem" else f"{self.kind} "
        tau = f" tau={self.in_words}" if self.kind in WITH_TEMPERATURE else ""
        place = {"last": "", "every": ", every layer", "input": ", first layer"}[self.position]
        return f"{kind}L={self.groups} V={self.vertices}{tau}{place}"

    def replaces(self, index: int, count: int) -> bool:
        """Return whether it takes the place of a hidden layer, 0 to count - 1."""
        return {"last": index == count - 1, "every": True, "input": index == 0}[self.position]

    def of_width(self, units: int) -> "Bottleneck":
        """Return the same for a layer of so many units: more or fewer groups.

        Raises:
            ValueError: they are no whole number of groups.
        """
        if units % self.vertices:
            raise ValueError(f"a hidden layer must be a multiple of V={self.vertices} units wide, got {units}")
        return replace(self, groups=units // self.vertices)


def bottleneck(
    config: SEMConfig,
    in_features: int,
    copies: int | None = None,
    activation: Callable[[], nn.Module] = nn.ReLU,
    norm: bool = False,
) -> tuple[nn.Module, int]:
    """Return what takes the place of a hidden layer, and the width of what comes out.

    A `SEMConfig` that is no `Bottleneck` stands for SEM. `activation` and `norm` are those of the other layers.
    """
    kind, width = config.kind if isinstance(config, Bottleneck) else "sem", config.width
    if kind == "sem":
        return SEM(in_features, config, copies), width
    if kind == "single":
        one = SEMConfig(1, width, config.temperature, config.learned_temperature, config.end_temperature)
        return SEM(in_features, one, copies), width
    if kind == "gumbel-st":
        return GumbelST(in_features, config, copies), width
    if kind == "vq":
        return VQ(in_features, config, copies), width
    if kind == "crelu":
        return CReLU(in_features, width, copies), 2 * width
    if kind == "l2":
        return UnitLength(in_features, width, copies, activation()), width
    if kind == "fta":
        return FTA(in_features, config, copies), width
    norms = [layer_norm(width, copies)] if norm or kind == "layernorm" else []
    return Layers(linear(in_features, width, copies), *norms, activation()), width


class GumbelST(SEM):
    """Linear, LayerNorm, and one vertex of each group, one-hot: drawn where something is learned, else the likeliest.

    The gradient is that of the softmax that was drawn from. Where none flows, as in acting, evaluation, targets and
    reports, nothing is drawn; so PPO compares a policy that draws with one that did not.
    Source: Jang et al., "Categorical Reparameterization with Gumbel-Softmax" (ICLR 2017), straight-through.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return one-hot groups."""
        logits = self.norm(self.linear(x)).float()
        if not logits.requires_grad:
            return vertex(self.chunks(logits)).flatten(-2)
        if self.training:
            clock = torch.empty_like(logits).exponential_().clamp_(min=1e-30)  # a draw of 0 would be infinitely likely
            logits = logits - clock.log()
        soft = torch.softmax(self.chunks(logits / self.temperature), -1)
        return (vertex(soft.detach()) + (soft - soft.detach())).flatten(-2)  # the bracket is 0, but for its gradient

    def chunks(self, x: Tensor) -> Tensor:
        """Return features by group, [..., L, V]."""
        return x.unflatten(-1, (self.config.groups, -1))


def vertex(x: Tensor) -> Tensor:
    """Return x with 1 in place of the largest entry of the last dimension, and 0 in place of all others."""
    return torch.zeros_like(x).scatter_(-1, x.argmax(-1, keepdim=True), 1.0)


class VQ(nn.Module):
    """Linear, LayerNorm, and in each group of V features the nearest of V codes, which all groups share.

    Gradients pass straight through. The loss that moves codes and features towards each other, 10 * (MSE of the codes +
    0.25 * MSE of the features), is added on the way back: whoever differentiates a loss with respect to this block's
    parameters differentiates the sum. What comes before the block does not feel it, so that an actor that climbs a
    critic is not moved by the critic's codes.
    Source: van den Oord et al., "Neural Discrete Representation Learning" (2017); sizes and weights are those of the
    SEM paper's rebuttal code.
    """

    WEIGHT, COMMITMENT = 10.0, 0.25

    def __init__(self, in_features: int, config: SEMConfig, copies: int | None = None) -> None:
        super().__init__()
        self.shape, self.copies = config, copies
        self.linear = linear(in_features, config.width, copies)
        self.norm = layer_norm(config.width, copies)
        self.codes = nn.Parameter(torch.randn(*([] if copies is None else [copies]), config.vertices, config.vertices))

    def forward(self, x: Tensor) -> Tensor:
        """Return a code for each group, [..., L*V] float32."""
        features = self.norm(self.linear(x)).float()
        with torch.autocast(x.device.type, enabled=False):
            code = self.nearest(features.detach())
        if not features.requires_grad:
            return code
        own = self.norm(self.linear(x.detach())).float()
        error = (code - features.detach()).square() + self.COMMITMENT * (own - code.detach()).square()
        copies = 1 if self.copies is None else self.copies
        straight = code.detach() + (features - features.detach())
        return WithLoss.apply(straight, self.WEIGHT * copies * error.mean())

    def nearest(self, features: Tensor) -> Tensor:
        """Return the nearest code to each group of features, [..., L*V], with gradients to the codes."""
        groups = features.unflatten(-1, (self.shape.groups, -1)).flatten(-3, -2)  # [..., B*L, V]
        codes = self.codes
        distance = codes.square().sum(-1).unsqueeze(-2) - 2 * groups @ codes.mT
        chosen = distance.argmin(-1, keepdim=True).expand_as(groups)
        return codes.gather(-2, chosen).view_as(features)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"L={self.shape.groups} V={self.shape.vertices}"


class WithLoss(torch.autograd.Function):
    """A tensor as it is, on the way back a loss beside whatever becomes of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        """Return x."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradients by both: that of the loss is 1."""
        return gradients[0], gradients[0].new_ones(())


class CReLU(nn.Module):
    """Linear, and relu of it and of its negative: [..., in] to [..., 2*units].

    Source: Abbas et al., "Loss of Plasticity in Continual Deep Reinforcement Learning" (2023).
    """

    def __init__(self, in_features: int, units: int, copies: int | None = None) -> None:
        super().__init__()
        self.linear = linear(in_features, units, copies)

    def forward(self, x: Tensor) -> Tensor:
        """Return the positive parts, then the negative ones."""
        x = self.linear(x)
        return torch.cat([x.relu(), (-x).relu()], -1)


class UnitLength(nn.Module):
    """Linear and activation, over their Euclidean length.

    Source: Hussing et al., "Dissecting Deep RL with High Update Ratios: Combatting Value Divergence" (2024).
    """

    def __init__(self, in_features: int, units: int, copies: int | None, activation: nn.Module) -> None:
        super().__init__()
        self.linear = linear(in_features, units, copies)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Return features of length 1, or 0 where none is active; float32."""
        return F.normalize(self.activation(self.linear(x)).float(), dim=-1)


class FTA(nn.Module):
    """L units, each spread over V tiles of width 1: a tile is 1 where the unit is, and falls to 0 at a distance of 1.

    The tiles cover -V/2 to V/2, and a tanh of slope 1 at 0 keeps the units within.
    Source: Pan et al., "Fuzzy Tiling Activations" (ICLR 2021), with eta = delta = 1; there a penalty keeps them within.
    """

    low: Tensor

    def __init__(self, in_features: int, config: SEMConfig, copies: int | None = None) -> None:
        super().__init__()
        self.bound = config.vertices / 2
        self.linear = linear(in_features, config.groups, copies)
        self.register_buffer("low", torch.arange(config.vertices) - self.bound, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return how near each unit is to each tile, 0 to 1, [..., L*V] float32."""
        unit = self.bound * torch.tanh(self.linear(x).float() / self.bound)[..., None]
        away = (self.low - unit).relu() + (unit - 1 - self.low).relu()
        return (1 - away).relu().flatten(-2)
