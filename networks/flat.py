"""The parameters of a network as one vector, and its optimiser."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from networks.residual import OnSphere


class Flat:
    """Some parameters in one vector, of which they become views.

    An optimiser of the vector, clipping, and averaging of two networks then take one call each, where they would take
    one per layer: networks of 64 to 256 units spend more time in calls than in arithmetic. The parameters keep their
    names and shapes, and loading a module moves the vector. Make it when they are on their device, and do not move
    them afterwards. The layers `spheres` are among them, and are led back to their spheres after each optimiser step.
    """

    vector: nn.Parameter
    """[P] float32, what an optimiser gets; its `grad`, [P] too, is what clipping and steps go by"""
    leaf: Tensor | None
    """[P], while a network computes with `pieces` of it: what `gradient` goes by, instead of one by each parameter"""

    def __init__(self, parameters: Iterable[Tensor], spheres: Sequence[OnSphere] = ()) -> None:
        self.parameters, self.spheres = list(parameters), spheres
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        self.leaf = None
        for parameter, piece in zip(self.parameters, self.pieces(self.vector.detach()), strict=True):
            parameter.data = piece

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector [P] in the shapes of the parameters."""
        pieces = vector.split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for p, piece in zip(self.parameters, pieces, strict=True)]

    def differentiate(self, outputs: Tensor | Sequence[Tensor], gradients: Sequence[Tensor] | None = None) -> Tensor:
        """Set the vector's gradient to that of a loss, or of outputs by which a loss has the given gradients.

        Returns it, [P].
        """
        self.vector.grad = self.gradient(outputs, gradients)
        return self.vector.grad

    def gradient(
        self, outputs: Tensor | Sequence[Tensor], gradients: Sequence[Tensor] | None = None, again: bool = False
    ) -> Tensor:
        """Return what `differentiate` would set, [P], and set nothing; 0 where the outputs do not depend on it.

        `again`: the same outputs, or what they are made of, will be differentiated once more.
        """
        if self.leaf is not None:
            return torch.autograd.grad(outputs, self.leaf, gradients, again)[0]
        grads = torch.autograd.grad(
            outputs, self.parameters, gradients, again, allow_unused=True, materialize_grads=True
        )
        return torch.cat([grad.reshape(-1) for grad in grads])

    def clip(self, max_norm: float) -> None:
        """Scale the gradient down to the norm `max_norm` if it is longer, as `torch.nn.utils.clip_grad_norm_` does."""
        assert self.vector.grad is not None
        norm = torch.linalg.vector_norm(self.vector.grad)
        self.vector.grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1.0))

    @torch.no_grad()
    def lerp(self, other: "Flat", share: float) -> None:
        """Move by `share` of the way towards another vector: 0 stays, 1 copies."""
        self.vector.lerp_(other.vector, share)


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) of one vector; Adam where `weight_decay` is 0.

    The numbers are those of `torch.optim.AdamW(fused=True)`, bit for bit. Its bookkeeping for groups of parameters and
    hooks takes five times as long as the arithmetic on a small network; one vector needs none.
    """

    lr: Tensor
    """the learning rate, one number on the device: a schedule fills it without waiting for the device"""

    def __init__(
        self,
        flat: Flat,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.vector, self.spheres = flat.vector, flat.spheres
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        device = self.vector.device
        self.lr = torch.tensor(lr, device=device)
        self.count = torch.zeros((), device=device)  # of steps, float32 as the kernel wants it
        self.mean, self.square = torch.zeros_like(self.vector.detach()), torch.zeros_like(self.vector.detach())

    def step(self) -> None:
        """Move the vector by its gradient."""
        self.move(self.lr, self.eps)

    @torch.no_grad()
    def move(self, lr: Tensor, eps: float) -> None:
        """Take a step with this learning rate, and this floor of the root mean square."""
        assert self.vector.grad is not None
        self.count += 1
        torch._fused_adamw_(
            [self.vector],
            [self.vector.grad],
            [self.mean],
            [self.square],
            [],  # the largest squares, of amsgrad
            [self.count],
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=eps,
            amsgrad=False,
            maximize=False,
        )
        self.project()

    def project(self) -> None:
        """Lead weights that live on spheres back to them."""
        for layer in self.spheres:
            layer.project_()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context whose steps do not count: at its end vector, gradient and state are as before, bit for bit."""
        moving = [self.vector.detach(), *self.state_dict().values()]
        kept, gradient = [x.clone() for x in moving], self.vector.grad
        try:
            yield
        finally:
            for mine, old in zip(moving, kept, strict=True):
                mine.copy_(old)
            self.vector.grad = gradient

    def state_dict(self) -> dict[str, Any]:
        """Return what the steps so far have left behind."""
        return {"lr": self.lr, "count": self.count, "mean": self.mean, "square": self.square}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an optimiser of as many parameters."""
        for name, mine in self.state_dict().items():
            mine.copy_(state[name])


class RAdam(AdamW):
    """RAdam (Liu et al., 2020) of one vector.

    The numbers are those of `torch.optim.RAdam`, within rounding. Adam's step is shortened while its second moment is
    of too few gradients to be trusted, and the first ones, here five, go by the first moment alone.
    """

    def __init__(self, flat: Flat, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        super().__init__(flat, lr, betas, eps)
        self.steps = 0  # as `count`, where no device has to be waited for

    @torch.no_grad()
    def step(self) -> None:
        """Move the vector by its gradient."""
        assert self.vector.grad is not None
        self.steps += 1
        beta1, beta2 = self.betas
        known = 1 - beta2**self.steps  # the share of the second moment that is not its start, 0
        longest = 2 / (1 - beta2) - 1  # gradients in the memory of the second moment: at most, and now
        length = longest - 2 * self.steps * (1 - known) / known
        if length <= 5:
            self.count += 1
            self.mean.lerp_(self.vector.grad, 1 - beta1)
            self.square.mul_(beta2).addcmul_(self.vector.grad, self.vector.grad, value=1 - beta2)
            self.vector.sub_(self.mean * (self.lr / (1 - beta1**self.steps)))
            self.project()
            return
        ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        # Adam corrects the second moment before it adds eps.
        self.move(self.lr * math.sqrt(ratio), self.eps / math.sqrt(known))

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Context whose steps do not count."""
        steps = self.steps
        try:
            with super().rehearsal():
                yield
        finally:
            self.steps = steps

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of an optimiser of as many parameters."""
        super().load_state_dict(state)
        self.steps = int(self.count)
