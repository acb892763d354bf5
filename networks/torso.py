"""The hidden layers that actors and critics share."""

from collections.abc import Sequence

from torch import nn

from networks.layers import linear
from networks.sem import SEM, SEMConfig


def mlp_torso(
    in_features: int, hidden: Sequence[int], sem: SEMConfig | None = None, copies: int | None = None
) -> tuple[nn.Sequential, int]:
    """Return hidden layers of Linear and ReLU, and the width of what comes out of them.

    With `sem`, the block takes the place of the last Linear and ReLU, so that a network with L*V equal to the last
    width has as many features and, but for the LayerNorm, as many parameters as the plain one. Without it nothing of
    the block exists. With `copies`, every layer is Q layers in one.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"a torso needs at least one hidden layer of at least one unit, got {tuple(hidden)}")
    plain = hidden if sem is None else hidden[:-1]
    layers: list[nn.Module] = []
    width = in_features
    for units in plain:
        layers += [linear(width, units, copies), nn.ReLU()]
        width = units
    if sem is not None:
        layers.append(SEM(width, sem, copies))
        width = sem.width
    return nn.Sequential(*layers), width
