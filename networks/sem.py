"""Simplicial embeddings (SEM): features that live on a product of simplices.

Source: Lavoie et al., "Simplicial Embeddings in Self-Supervised Learning and Downstream Classification" (2022), and
Obando-Ceron et al., "Simplicial Embeddings Improve Sample Efficiency in Actor-Critic Agents" (ICLR 2026), figure 2.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from networks.layers import NORM_EPS, layer_norm, linear

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
    if chunks.device.type == "cpu" and chunks.shape[-1] < SHORT:
        # Along the first dimension torch's kernel is ten times as fast as along short rows.
        return torch.softmax(chunks.movedim(-1, 0).contiguous(), 0).movedim(0, -1).flatten(-2)
    return torch.softmax(chunks, -1).flatten(-2)


class NormedSimplicial(torch.autograd.Function):
    """LayerNorm and `simplicial` in one, for a CPU without a compiler: the same numbers in half the time.

    Composed of torch's kernels they take 8% of an update in bfloat16. There each pass over the features counts, so here
    gain and bias, also where Q copies have one each, are applied by the kernel of the norm; the exponential is `exp2`,
    a quarter of the time of `exp`; and no maximum is subtracted first where gain and bias bound the exponents.
    """

    LARGE = 1 << 18  # features: below that a function of Python's on the way back takes longer than it saves
    LOG2E = math.log2(math.e)
    BOUND = 64.0  # exp of it, and of its negative, times 32,768 vertices are well within float32

    @staticmethod
    def pays(x: Tensor, vertices: int) -> bool:
        """Return whether this is the faster way for features x in groups of so many."""
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return False
        return x.numel() >= NormedSimplicial.LARGE and vertices >= SHORT

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, groups: int) -> Tensor:
        """Return the softmax of `gain * layernorm(x) + bias` within each of `groups` contiguous chunks, in float32.

        [..., L*V] with gain and bias [L*V], or [Q, B, L*V] with [Q, 1, L*V].
        """
        width = x.shape[-1]
        copies, by_group = gain.numel() // width, (-1, groups, width // groups)
        features = x.float().reshape(copies, -1, width)
        codes, moments = torch.empty_like(features), []
        largest = gain.abs().amax() * math.sqrt(width) + bias.abs().amax()  # normalised, all are within that root
        bounded = largest.item() < NormedSimplicial.BOUND
        scale = NormedSimplicial.LOG2E if bounded else 1.0
        gains, biases = ((p * scale if bounded else p).view(copies, width).unbind() for p in (gain, bias))
        for own, code, own_gain, own_bias in zip(features.unbind(), codes.unbind(), gains, biases, strict=True):
            logits, *own_moments = torch.native_layer_norm(own, [width], own_gain, own_bias, NORM_EPS)
            moments += own_moments
            if bounded:
                chunks = torch.exp2(logits, out=code).view(by_group)
                chunks.mul_(chunks.sum(-1, keepdim=True).reciprocal_())
            else:
                torch.softmax(logits.view(by_group), -1, out=code.view(by_group))
        ctx.groups, ctx.dtype = groups, x.dtype
        ctx.save_for_backward(features, codes, gain, *moments)
        return codes.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by x, in its precision, and by gain and bias."""
        features, codes, gain, *moments = ctx.saved_tensors
        copies, rows, width = features.shape
        by_group = (copies, rows, ctx.groups, width // ctx.groups)
        by_codes = gradients[0].reshape(by_group)
        by_logits = torch._softmax_backward_data(by_codes, codes.view(by_group), -1, torch.float32).view(features.shape)
        by_x, sums = torch.empty_like(features, dtype=ctx.dtype), []
        parts = by_logits.unbind(), features.unbind(), moments[::2], moments[1::2], gain.view(copies, width).unbind()
        for copy, (outer, own, mean, inverse_std, own_gain) in enumerate(zip(*parts, strict=True)):
            by_x[copy], *own_sums = torch.ops.aten.native_layer_norm_backward(
                outer, own, [width], mean, inverse_std, own_gain, own_gain, ctx.needs_input_grad[:3]
            )
            sums.append(own_sums)
        by_gain, by_bias = (
            torch.stack(of_copies).view(gain.shape) if wanted else None
            for wanted, of_copies in zip(ctx.needs_input_grad[1:3], zip(*sums, strict=True), strict=True)
        )
        return by_x.view(gradients[0].shape), by_gain, by_bias, None


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
        x = self.linear(x)
        if NormedSimplicial.pays(x, self.config.vertices):
            return NormedSimplicial.apply(x, *self.affine(), self.config.groups)
        x = self.norm(x)
        tau = self.temperature
        if isinstance(tau, Tensor):
            return simplicial(x.float() / tau, self.config.groups)
        return simplicial(x, self.config.groups, tau)

    def anneal(self, progress: float) -> None:
        """Set tau for a share of training done, 0 to 1: by equal factors in equal times from start to end."""
        if self.tau is not None:
            start, end = self.config.temperature, self.config.end_temperature
            self.tau.fill_(start ** (1 - progress) * end**progress)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Return the gain and the bias of the norm, both over tau: [L*V] or [Q, 1, L*V]."""
        gain, bias = self.norm.parameters()
        tau = self.temperature
        return (gain, bias) if not isinstance(tau, Tensor) and tau == 1.0 else (gain / tau, bias / tau)

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
