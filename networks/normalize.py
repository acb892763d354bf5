"""Running normalisation. `update` learns, `forward` only normalises: no statistic moves unless it is asked to."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class RunningNorm(nn.Module):
    """Observations with running mean 0 and deviation 1: [..., *shape] to the same, float32.

    Mean and sum of squares are merged batch by batch in float64 (Chan et al., 1979), so that they equal those of all
    data at once and do not drift over billions of samples. Before the first update it changes nothing. The last `keep`
    features are no quantities, they come out as they go in.
    """

    count: Tensor
    mean64: Tensor
    square: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self, shape: int | tuple[int, ...], eps: float = 1e-2, keep: int = 0) -> None:
        super().__init__()
        self.eps, self.keep = eps, keep
        self.register_buffer("mean64", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(shape, dtype=torch.float64))  # sum of squared deviations
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return (x - mean) / (deviation + eps)."""
        return (x.float() - self.mean) * self.scale

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Learn from a batch [B, *shape]."""
        x = x.double()
        n = x.shape[0]
        batch_mean = x.mean(0)
        total = self.count + n
        delta = batch_mean - self.mean64
        self.square += (x - batch_mean).square_().sum(0) + delta.square() * (self.count * n / total)
        self.mean64 += delta * (n / total)
        self.count.copy_(total)
        self.mean.copy_(self.mean64)
        self.scale.copy_(1.0 / ((self.square / total).sqrt() + self.eps))
        if self.keep:
            self.mean[..., -self.keep :], self.scale[..., -self.keep :] = 0, 1


class RewardScale(nn.Module):
    """Rewards on the scale of the return's support: divided by the deviation of a running discounted return.

    The divisor is at least the largest such return seen, over `g_max`, so that returns stay within [-g_max, g_max].
    Each task has a divisor of its own, where `task` [N] says which of several an environment has. Source: FastTD3's
    optional reward normalisation (arXiv 2505.22642, reference implementation).
    """

    running: Tensor
    largest: Tensor
    square: Tensor
    total: Tensor
    count: Tensor
    member: Tensor

    def __init__(self, num_envs: int, gamma: float, g_max: float, task: Tensor | None = None) -> None:
        super().__init__()
        if not g_max > 0:
            raise ValueError(f"g_max is {g_max}, must be above 0")
        self.gamma = gamma
        self.g_max = g_max
        task = torch.zeros(num_envs, dtype=torch.int64) if task is None else task
        tasks = int(task.max()) + 1
        member = torch.nn.functional.one_hot(task, tasks).double()
        self.register_buffer("member", member, persistent=False)  # [N, tasks]
        self.register_buffer("running", torch.zeros(num_envs))
        self.register_buffer("largest", torch.zeros(tasks))
        for name in ("total", "square", "count"):
            self.register_buffer(name, torch.zeros(tasks, dtype=torch.float64))

    def forward(self, reward: Tensor, task: Tensor | None = None) -> Tensor:
        """Return the scaled reward [B], with the divisor of each one's task [B] int64, by default of the first."""
        mean = self.total / self.count.clamp(min=1)
        deviation = (self.square / self.count.clamp(min=1) - mean.square()).clamp(min=0).sqrt().float()
        divisor = torch.maximum(deviation, self.largest / self.g_max)
        divisor = torch.where(divisor > 0, divisor, 1.0).clamp(min=1e-8)
        return reward / (divisor[0] if task is None else divisor[task])

    @torch.no_grad()
    def update(self, reward: Tensor, done: Tensor) -> None:
        """Learn from the rewards [N] of one step and from where it ended an episode [N] bool; or [T, N] of T steps."""
        seen = []
        running = self.running
        for step_reward, step_done in zip(reward.view(-1, len(running)), done.view(-1, len(running)), strict=True):
            seen.append(self.gamma * running + step_reward)
            running = seen[-1].masked_fill(step_done, 0.0)
        self.running.copy_(running)
        wide = torch.stack(seen).double()  # [T, N]
        # Products, not scattered additions: a GPU does those in any order, and processes that share this come apart.
        self.total += wide.sum(0) @ self.member
        self.square += wide.square().sum(0) @ self.member
        self.count += len(seen) * self.member.sum(0)
        largest = (wide.abs().amax(0)[:, None] * self.member).amax(0)
        self.largest.copy_(torch.maximum(self.largest, largest.float()))


class ByBatch(torch.autograd.Function):
    """gain * (x - mean) / sqrt(variance + eps) + bias, with mean and variance of x's own rows, and these two.

    The way back of the same composed of torch's operations takes four times as long on a CPU. Torch's own kernels know
    neither Q copies nor the rows of other processes, over which `average` takes the mean of a tensor.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, average: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return [..., B, D] float32 for x [..., B, D], gain and bias [..., 1, D]; mean and variance, [..., 1, D]."""
        mean = average(x.mean(-2, keepdim=True))
        centred = x - mean
        variance = average(centred.square().mean(-2, keepdim=True))
        inverse = torch.rsqrt(variance + eps)
        ctx.average = average
        ctx.save_for_backward(centred, inverse, gain)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias, centred, gain * inverse), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients by x, gain and bias."""
        centred, inverse, gain = ctx.saved_tensors
        by_out, by_x = gradients[0], None
        by_bias = by_out.sum(-2, keepdim=True)
        by_gain = (by_out * centred).sum(-2, keepdim=True) * inverse
        if ctx.needs_input_grad[0]:
            scale = gain * inverse
            by_mean, by_deviation = ctx.average(torch.stack([by_bias, by_gain]) / centred.shape[-2])
            by_x = torch.addcmul(-scale * by_mean, by_out, scale).addcmul_(centred, -scale * inverse * by_deviation)
            by_x = by_x.sum_to_size(centred.shape)
        return by_x, by_gain, by_bias, None, None


class BatchNorm(nn.Module):
    """Features with mean 0 and deviation 1, then a gain and a bias for each: [B, D], or of Q copies [Q, B, D], float32.

    By running mean and variance: those of the batches in whose passes it was asked to go `by_batch`, of which `learn`
    takes on a share of the last. So nothing but `learn` changes what it gives. Gain and bias are of length sqrt(D)
    together, and `project_` leads back to that after a step. Sources: Ioffe and Szegedy, "Batch Normalization" (2015);
    the length and the share from FlashSAC (arXiv 2604.04539, reference implementation).
    """

    SHARE = 0.01
    """of the statistics of the last batch in the running ones"""
    mean: Tensor
    variance: Tensor
    seen_mean: Tensor
    seen_variance: Tensor

    def __init__(self, features: int, copies: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.copies, self.eps = copies, eps
        shape = (1, features) if copies is None else (copies, 1, features)
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("seen_mean", torch.zeros(shape), persistent=False)
        self.register_buffer("seen_variance", torch.ones(shape), persistent=False)
        self.average: Callable[[Tensor], Tensor] = alone
        """the mean of a tensor over all processes that train one network, each with as many rows; may change it"""

    def forward(self, x: Tensor, by_batch: bool = False) -> Tensor:
        """Return [B, D] or [Q, B, D]; copies may share rows [B, D]. With `by_batch` by the statistics of x itself."""
        x = x.float()
        if by_batch:
            out, mean, variance = ByBatch.apply(x, self.weight, self.bias, self.eps, self.average)
            self.seen_mean.copy_(mean)
            self.seen_variance.copy_(variance)
            return out
        scale = self.weight * torch.rsqrt(self.variance + self.eps)
        return torch.addcmul(self.bias - self.mean * scale, x, scale)

    @torch.no_grad()
    def learn(self) -> None:
        """Move the running statistics towards those of the last batch that it went by."""
        self.mean.lerp_(self.seen_mean, self.SHARE)
        self.variance.lerp_(self.seen_variance, self.SHARE)

    @torch.no_grad()
    def project_(self) -> None:
        """Make gain and bias have length sqrt(D) together again."""
        length = torch.hypot(*(torch.linalg.vector_norm(p, dim=-1, keepdim=True) for p in (self.weight, self.bias)))
        scale = math.sqrt(self.weight.shape[-1]) / length.clamp_(min=1e-12)
        self.weight.mul_(scale)
        self.bias.mul_(scale)

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"{self.weight.shape[-1]}, copies={self.copies}"


def alone(x: Tensor) -> Tensor:
    """Return x: the mean over one process."""
    return x
