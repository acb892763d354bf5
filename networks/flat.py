"""The parameters of a network as one vector."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Flat:
    """Some parameters in one vector, of which they become views.

    An optimiser of the vector, clipping, and averaging of two networks then take one call each, where they would take
    one per layer: networks of 64 to 256 units spend more time in calls than in arithmetic. The parameters keep their
    names and shapes, and loading a module moves the vector. Make it when they are on their device, and do not move
    them afterwards.
    """

    vector: nn.Parameter
    """[P] float32, what an optimiser gets; its `grad` is set by `differentiate`"""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        pieces = self.vector.detach().split([p.numel() for p in self.parameters])
        for parameter, piece in zip(self.parameters, pieces, strict=True):
            parameter.data = piece.view_as(parameter)

    def differentiate(self, outputs: Tensor | Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> None:
        """Set the vector's gradient to that of a loss, or of outputs by which a loss has the given gradients."""
        grads = torch.autograd.grad(outputs, self.parameters, gradients)
        self.vector.grad = torch.cat([grad.reshape(-1) for grad in grads])

    def clip(self, max_norm: float) -> None:
        """Scale the gradient down to the norm `max_norm` if it is longer, as `torch.nn.utils.clip_grad_norm_` does."""
        assert self.vector.grad is not None
        norm = torch.linalg.vector_norm(self.vector.grad)
        self.vector.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def lerp(self, other: "Flat", share: float) -> None:
        """Move by `share` of the way towards another vector: 0 stays, 1 copies."""
        self.vector.lerp_(other.vector, share)
