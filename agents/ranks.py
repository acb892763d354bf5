"""Several processes that train one agent, each with a GPU or a share of the cores:

    torchrun --standalone --nproc-per-node 2 agents/fasttd3.py --sem --env-id Humanoid-v5

Flags mean what they mean for one process: environments, batch and replay buffer are divided over the processes, frames
are counted over all of them. Gradients are averaged (those of PPO and PQN are summed, with weights that count all
rows), normalisers learn from the observations of all. So every process has the same parameters, bit for bit, and two of
them compute what one would, within the rounding of float32, from batches that have the same rows. The first process
evaluates, logs and writes; in checkpoints each has files of its own. "Rank" is torch.distributed's word for the number
of a process.
"""

import atexit
import os
import pickle
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from agents.machine import die_with_parent
from envs.base import spawn_seeds

T = TypeVar("T")
PATIENCE = timedelta(hours=12)
"""how long processes wait for one that evaluates or compiles; one that has died is noticed at once"""


class RankError(RuntimeError):
    """Another process of the training has ended, or differs; the text is one line for users."""


class Ranks:
    """This process among those that train one agent. Alone, every method does nothing and costs nothing."""

    def __init__(self, rank: int = 0, world: int = 1, local: int = 0) -> None:
        self.rank, self.world, self.local = rank, world, local

    @property
    def first(self) -> bool:
        """Whether this is the process that evaluates, logs and writes."""
        return self.rank == 0

    # ---- what is this process's own ----

    def share(self, flag: str, total: int) -> int:
        """Return this process's part of a number that is given for all.

        Raises:
            ValueError: it cannot be divided.
        """
        if total % self.world:
            raise ValueError(f"{flag} {total}: must be a multiple of the {self.world} processes that divide it")
        return total // self.world

    def own(self, rows: Tensor) -> Tensor:
        """Return this process's rows of [world * N, ...]: [N, ...]."""
        return rows.chunk(self.world)[self.rank]

    def seed(self, seed: int) -> int:
        """Return a seed for what must differ between processes: the run's where there is only one."""
        return seed if self.world == 1 else spawn_seeds(seed, self.world, "ranks")[self.rank]

    def part_ways(self, seed: int) -> None:
        """Seed the global generators with numbers of this process's own; before, networks start alike everywhere."""
        if self.world > 1:
            for own in (random.seed, np.random.seed, torch.manual_seed):
                own(self.seed(seed))

    def device(self, device: str) -> str:
        """Return this process's device: each has a GPU of its own."""
        return f"cuda:{self.local}" if device == "cuda" and self.world > 1 else device

    def threads(self, threads: int) -> int:
        """Return this process's part of the CPU threads of a machine, at least 1."""
        return max(threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1) if self.world > 1 else threads

    # ---- what is computed together ----

    def sum_(self, x: Tensor) -> Tensor:
        """Replace x, of the same shape everywhere, by its sum over all processes, and return it."""
        return self._reduce_(x, dist.ReduceOp.SUM)

    def max_(self, x: Tensor) -> Tensor:
        """Replace x by its largest value over all processes, element by element, and return it."""
        return self._reduce_(x, dist.ReduceOp.MAX)

    def _reduce_(self, x: Tensor, how: Any) -> Tensor:
        if self.world > 1:
            with together():
                dist.all_reduce(x, how)
        return x

    def mean_(self, x: Tensor) -> Tensor:
        """Replace x by its mean over all processes, and return it."""
        return self.sum_(x).div_(self.world) if self.world > 1 else x

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, in their order: [N, ...] to [world * N, ...]."""
        if self.world == 1:
            return rows
        sent = (rows.byte() if rows.dtype == torch.bool else rows).contiguous()
        found = sent.new_empty(self.world * len(sent), *sent.shape[1:])
        with together():
            dist.all_gather(list(found.chunk(self.world)), sent)
        return found.to(rows.dtype)

    def largest(self, number: int) -> int:
        """Return the largest of everybody's numbers."""
        return int(self.max_(torch.tensor(number))) if self.world > 1 else number

    def all(self, yes: bool) -> bool:
        """Return whether everybody says yes."""
        return not self.largest(not yes)

    def same(self, x: Tensor) -> bool:
        """Return whether x is the same everywhere, bit for bit."""
        if self.world == 1:
            return True
        words = x.detach().contiguous().view(-1).view(torch.int32).long()
        place = torch.arange(1, len(words) + 1, device=words.device)
        digest = torch.stack([words.sum(), (words * place).sum()])
        return bool((self.gather(digest[None]) == digest).all())

    # ---- what the first process decides ----

    def tell(self, value: T) -> T:
        """Return the first process's value to all."""
        if self.world == 1:
            return value
        box = [value]
        with together():
            dist.broadcast_object_list(box)
        return box[0]

    def by_first(self, act: Callable[[], T]) -> T | None:
        """Have the first process do something; None elsewhere, where its failure ends the process without a word."""
        if self.world == 1:
            return act()
        if not self.first:
            failed = self.tell(False)
            if failed:
                raise SystemExit(2)
            return None
        try:
            value = act()
        except BaseException:
            self.tell(True)
            raise
        self.tell(False)
        return value

    def collect(self, value: T) -> list[T]:
        """Return everybody's value, in order."""
        if self.world == 1:
            return [value]
        box: list[Any] = [None] * self.world
        with together():
            dist.all_gather_object(box, value)
        return box


ALONE = Ranks()


def started() -> int:
    """Return how many processes torchrun has started for this run; 1 where it has not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if dist.is_torchelastic_launched() else 1


def join(device: str) -> Ranks:
    """Return this process among those that torchrun has started; alone, where it has not."""
    world = started()
    if world == 1:
        return ALONE
    die_with_parent()
    rank, local = (int(os.environ[name]) for name in ("RANK", "LOCAL_RANK"))
    if device.startswith("cuda"):
        torch.cuda.set_device(local)
    with together():  # what lives on a CPU, a signal for instance, is talked about without the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)
    return Ranks(rank, world, local)


@contextmanager
def together() -> Iterator[None]:
    """Context of something that all processes do.

    Raises:
        RankError: another one has ended.
    """
    try:
        yield
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise RankError(
            f"another process of this training has ended ({str(error).splitlines()[0]}); its own last line, and "
            "torchrun's, say why"
        ) from error
