"""The hidden layers that actors and critics share."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from networks.bottlenecks import Bottleneck, bottleneck
from networks.layers import NORM_EPS, Layers, layer_norm, linear, orthogonal_
from networks.residual import FlashBlock, FlashEmbedding, RMSNorm, SimbaBlock, SphereBlock, SphereEmbedding
from networks.sem import SEMConfig

Activation = Literal["relu", "silu", "tanh", "elu"]
Residual = Literal["simba", "simbav2", "flashsac"]
Torso = Literal["mlp", Residual]
WIDEST = 1 << 15
"""Units that a layer may have: beyond that a slip of the finger takes all memory before anybody can say so."""
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh, "elu": nn.ELU}


def mlp_torso(
    in_features: int,
    hidden: Sequence[int],
    sem: SEMConfig | None = None,
    copies: int | None = None,
    activation: Activation = "relu",
    norm: bool = False,
) -> tuple[nn.Sequential, int]:
    """Return hidden layers of Linear and activation, and the width of what comes out of them.

    With `sem`, the block takes the place of the last Linear and activation, so that a network with L*V equal to the
    last width has as many features and, but for the LayerNorm, as many parameters as the plain one. Without it nothing
    of the block exists. A `Bottleneck` in its place is another block, or sits elsewhere. With `copies`, every layer is
    Q layers in one. With `norm`, a LayerNorm follows each Linear. Without hidden layers the input comes out as it is.

    Raises:
        ValueError: a layer has no units or too many, or there is none that the block could replace, or one that it
            cannot.
    """
    check_sizes(hidden, sem)
    layers: list[nn.Module] = []
    width = in_features
    for index, units in enumerate(hidden):
        if (config := block_at(sem, index, hidden)) is not None:
            block, width = bottleneck(config, width, copies, ACTIVATIONS[activation], norm)
            layers.append(block)
            continue
        layers.append(linear(width, units, copies))
        if norm:
            layers.append(layer_norm(units, copies))
        layers.append(ACTIVATIONS[activation]())
        width = units
    return Layers(*layers), width


def residual_torso(
    kind: Residual,
    in_features: int,
    hidden: Sequence[int],
    sem: SEMConfig | None = None,
    copies: int | None = None,
    activation: Activation = "relu",
    norm: bool = False,
) -> tuple[nn.Sequential, int]:
    """Return a residual block for each hidden layer of `mlp_torso`, and the width of what comes out of them.

    An embedding comes before the first, and wherever the width changes. `sem` takes the place of a block. `activation`
    and `norm` are for what may stand in its place; blocks have their own.

    Raises:
        ValueError: as `mlp_torso`.
    """
    check_sizes(hidden, sem)
    layers: list[nn.Module] = []
    width, stream = in_features, False
    blocks = sum(block_at(sem, index, hidden) is None for index in range(len(hidden)))
    for index, units in enumerate(hidden):
        config = block_at(sem, index, hidden)
        if stream and (config is not None or units != width):
            layers += stream_end(kind, width, copies)
            stream = False
        if config is not None:
            block, width = bottleneck(config, width, copies, ACTIVATIONS[activation], norm)
            layers.append(block)
            continue
        if not stream:
            layers.append(stream_start(kind, width, units, copies, index == 0))
        if kind == "simbav2":
            layers.append(SphereBlock(units, blocks, copies))
        else:
            layers.append((SimbaBlock if kind == "simba" else FlashBlock)(units, copies))
        width, stream = units, True
    if stream:
        layers += stream_end(kind, width, copies)
    return nn.Sequential(*layers), width


def stream_start(kind: Residual, width: int, units: int, copies: int | None, first: bool) -> nn.Module:
    """Return the embedding before the first block of a residual stream."""
    if kind == "simbav2":
        return SphereEmbedding(width, units, copies, shift=first)
    if kind == "flashsac":
        return FlashEmbedding(width, units, copies)
    embedding = linear(width, units, copies)
    orthogonal_(embedding, 1.0)
    return embedding


def stream_end(kind: Residual, width: int, copies: int | None) -> list[nn.Module]:
    """Return the norm behind the last block of a residual stream, if there is one."""
    if kind == "simbav2":
        return []
    return [layer_norm(width, copies) if kind == "simba" else RMSNorm(width, copies)]


def hidden_layers(kind: Torso, *sizes: Any, **style: Any) -> tuple[nn.Sequential, int]:
    """Return `mlp_torso` or `residual_torso` of the rest of the arguments, which are the same."""
    return mlp_torso(*sizes, **style) if kind == "mlp" else residual_torso(kind, *sizes, **style)


def check_sizes(hidden: Sequence[int], sem: SEMConfig | None) -> None:
    """See to it that layers can be made.

    Raises:
        ValueError: a layer has no units or too many, or there is none that the block could replace.
    """
    if max((sem.width if sem is not None else 1), *hidden, 1) > WIDEST:
        extra = f" and a block of {sem.width}" if sem is not None else ""
        raise ValueError(f"layers have at most {WIDEST:,} units, got hidden layers of {tuple(hidden)}{extra}")
    if min(hidden, default=1) < 1 or (sem is not None and not hidden):
        needed = "a layer that SEM replaces, and " if sem is not None else ""
        raise ValueError(f"hidden layers need {needed}at least one unit each, got {tuple(hidden)}")


def block_at(sem: SEMConfig | None, index: int, hidden: Sequence[int]) -> SEMConfig | None:
    """Return what takes the place of a hidden layer, None where that stays as it is."""
    if not isinstance(sem, Bottleneck):
        return sem if index == len(hidden) - 1 else None
    if not sem.replaces(index, len(hidden)):
        return None
    return sem if index == len(hidden) - 1 else sem.of_width(hidden[index])


class TaskEmbedding(nn.Module):
    """A learned vector of at most length 1 for each of T tasks, in place of the one-hot vector that says which it is.

    [..., D] to [..., D - T + width]; the one-hot vector begins at feature `start`. Source: the multi-task networks of
    FastTD3 (arXiv 2505.22642, reference implementation), where such vectors are cut to that length.
    """

    def __init__(self, start: int, tasks: int, width: int) -> None:
        super().__init__()
        self.start, self.tasks = start, tasks
        self.weight = nn.Parameter(torch.randn(tasks, width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features with the vector of their task among them."""
        before, told, after = x.split([self.start, self.tasks, x.shape[-1] - self.start - self.tasks], -1)
        weight = self.weight / torch.linalg.vector_norm(self.weight, dim=1, keepdim=True).clamp(min=1)
        return torch.cat([before, (told @ weight).to(x.dtype), after], -1)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"start={self.start}, tasks={self.tasks}, width={self.weight.shape[1]}"


class Pixels(nn.Module):
    """Intensities in [0, 1] in the precision that the first layer computes in: [B, *image] uint8 to float."""

    def forward(self, image: Tensor) -> Tensor:
        """Return image / 255. Under autocast in its precision: 8 bits fit, and the copy is half as large."""
        device = image.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        return image.to(dtype) / 255


class ImageNorm(nn.LayerNorm):
    """Layer normalisation over channels and pixels: [B, C, H, W], with a gain and a bias for each [H, W, C].

    In the order that images have in memory with the channels last, where the order of `nn.LayerNorm` is a copy there
    and back: a tenth of the time of the convolutions on a CPU.
    """

    def forward(self, image: Tensor) -> Tensor:
        """Return [B, C, H, W]."""
        return super().forward(image.movedim(1, -1)).movedim(-1, 1)


def nature_cnn(shape: Sequence[int], norm: bool = False) -> tuple[nn.Sequential, int]:
    """Return the convolutions of the Nature DQN, [B, *shape] uint8 to [B, width], and the width.

    `shape` is that of one image, frames or channels first: (4, 84, 84) in Atari, which gives 3,136 features. With
    `norm`, a LayerNorm over channels and pixels follows each convolution. Source: Mnih et al., "Human-level control
    through deep reinforcement learning" (2015).

    Raises:
        ValueError: the image is too small, or has no channels first.
    """
    if len(shape) != 3 or min(shape[1:]) < 36:
        raise ValueError(f"images must be channels x height x width of at least 36 x 36 pixels, got {tuple(shape)}")
    channels, *sides = shape
    layers: list[nn.Module] = [Pixels()]
    for filters, kernel, stride in ((32, 8, 4), (64, 4, 2), (64, 3, 1)):
        layers.append(nn.Conv2d(channels, filters, kernel, stride))
        channels, sides = filters, [(side - kernel) // stride + 1 for side in sides]
        if norm:
            layers.append(ImageNorm((*sides, channels), NORM_EPS))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten()), channels * sides[0] * sides[1]


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return x[rows]; images [B, C, H, W] with the channels last in memory, as convolutions read them faster."""
    return x.index_select(0, rows) if x.dim() != 4 else x.movedim(1, -1).index_select(0, rows).movedim(-1, 1)
