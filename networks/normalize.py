"""Running normalisation. `update` learns, `forward` only normalises: no statistic moves unless it is asked to."""

import torch
from torch import Tensor, nn


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
