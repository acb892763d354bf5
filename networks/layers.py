"""Building blocks: layers that come in Q independent copies, computed in one batched product, and rows of layers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from networks.native import RELU, SILU, norm_and, suits

AFTER: dict[type[nn.Module], int] = {nn.ReLU: RELU, nn.SiLU: SILU}
"""activations that can be computed together with the norm before them"""
NORM_EPS = 1e-5
"""What every LayerNorm adds to the variance"""


class BatchedLinear(nn.Module):
    """Q affine maps at once: [B, in] or [Q, B, in] to [Q, B, out].

    Twin critics differ only in their weights. One batched product fills the device better than Q small ones, and the
    optimiser and the target update see half the tensors. Every copy starts like `torch.nn.Linear`: uniform within
    1/sqrt(in).
    """

    def __init__(self, in_features: int, out_features: int, copies: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(copies, in_features, out_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(copies, 1, out_features).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Return [Q, B, out]."""
        if x.dim() == 2:
            x = x.expand(self.weight.shape[0], -1, -1)
        return torch.baddbmm(self.bias, x, self.weight)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        copies, in_features, out_features = self.weight.shape
        return f"{in_features}, {out_features}, copies={copies}"


class BatchedLayerNorm(nn.Module):
    """Layer normalisation over the last dimension with a gain and a bias of its own for each of Q copies: [Q, B, D]."""

    eps = NORM_EPS

    def __init__(self, features: int, copies: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(copies, 1, features))
        self.bias = nn.Parameter(torch.zeros(copies, 1, features))

    def forward(self, x: Tensor) -> Tensor:
        """Return [Q, B, D]."""
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:], eps=self.eps), self.weight)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{self.weight.shape[-1]}, copies={self.weight.shape[0]}"


class Layers(nn.Sequential):
    """Layers, one after the other, as `nn.Sequential`; on a CPU a norm and the activation behind it are one.

    There they are one pass over each row (`networks/native.py`), where two of torch's go over memory several times.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return what the last layer makes of it."""
        layers, index = [*self], 0
        while index < len(layers):
            layer, behind = layers[index], layers[index + 1 : index + 2]
            both = norm_and_activation(layer, behind[0], x) if behind else None
            x, index = (layer(x), index + 1) if both is None else (both, index + 2)
        return x


def norm_and_activation(norm: nn.Module, activation: nn.Module, x: Tensor) -> Tensor | None:
    """Return what a norm of rows and an activation behind it make of x in one pass; None where there is none."""
    after = AFTER.get(type(activation))
    if after is None or type(norm) not in (nn.LayerNorm, BatchedLayerNorm) or hooks(norm) or hooks(activation):
        return None
    assert isinstance(norm, nn.LayerNorm | BatchedLayerNorm)
    if norm.bias is None or not suits(x, norm.weight, norm.bias, after):
        return None
    return norm_and(after, x, norm.weight, norm.bias, norm.eps)


def hooks(layer: nn.Module) -> bool:
    """Whether somebody looks on when it is called, or has put another function in place of its own."""
    own = layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks
    return bool(own) or "forward" in layer.__dict__ or _has_any_global_hook()


def linear(in_features: int, out_features: int, copies: int | None) -> nn.Module:
    """Return one affine map, or Q of them where `copies` is given."""
    return nn.Linear(in_features, out_features) if copies is None else BatchedLinear(in_features, out_features, copies)


def layer_norm(features: int, copies: int | None) -> nn.LayerNorm | BatchedLayerNorm:
    """Return one affine layer normalisation, or Q of them where `copies` is given."""
    return nn.LayerNorm(features, NORM_EPS) if copies is None else BatchedLayerNorm(features, copies)


def orthogonal_(module: nn.Module, gain: float) -> None:
    """Start every affine map and convolution in `module` with orthogonal weights times `gain`, and no bias.

    What on-policy methods have used since OpenAI Baselines; see Huang et al., "The 37 Implementation Details of PPO"
    (2022), detail 2.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, BatchedLinear):
            for weight in layer.weight:
                nn.init.orthogonal_(weight, gain)
            nn.init.zeros_(layer.bias)


def float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Return layer(x) in float32, whatever autocast would make of it: for heads whose output is compared closely."""
    if not torch.is_autocast_enabled(x.device.type):
        return layer(x.float())
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())
