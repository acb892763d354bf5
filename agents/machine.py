"""What the machine at hand is good at: its device, its fast number format, its threads, its memory allocator."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch


def resolve_device(device: str) -> str:
    """Return "cpu", "cuda" or "cuda:i" for a device by name; "auto" is the GPU where there is one.

    Raises:
        ValueError: the device is unknown or absent.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        return device
    if not re.fullmatch(r"cuda(:\d+)?", device):
        raise ValueError(f"--device {device}: legal are auto, cpu, cuda and cuda:i")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= count:
        raise ValueError(f"--device {device}: this machine has {count or 'no'} CUDA devices; use --device cpu")
    return device


def fast_bfloat16(device: str) -> bool:
    """Return whether matrix products in bfloat16 are several times as fast as in float32.

    On a CPU that is so with AMX or AVX512-BF16 (measured: 3 to 4.8 times from 256 rows on), and elsewhere it is slower.
    """
    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device)[0] >= 8
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # not Linux
        return False
    return bool(flags & {"amx_bf16", "avx512_bf16"})


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def learner_threads(rows: int, hidden: Sequence[int]) -> int:
    """Return the CPU threads that pay for updates of `rows` samples through layers of these widths: 1, or all cores.

    Below 32 million multiplications in the largest layer, handing out the work takes as long as doing it, and the
    simulator has use for the other cores: FastTD3 at small size (8 million) trains no faster with two threads than with
    one, for twice the processor time. Where another process wants the cores, threads that wait for each other cost ten
    times what they save. The rule looks at sizes alone: a measurement would let the sums of two equal runs differ.
    """
    largest = max((a * b for a, b in pairwise(hidden)), default=max(hidden, default=1) ** 2)
    return available_cores() if rows * largest >= 1 << 25 else 1


def keep_freed_memory() -> None:
    """Stop the C allocator from handing freed memory back to the system after each update. Linux with glibc only.

    By default the end of the heap is handed back whenever it is free, and then each page of an activation costs a page
    fault when it is next used: how often depends on what happens to lie there. benchmarks/results/speed.md has numbers.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


def die_with_parent() -> None:
    """Have this process killed when the one that has started it ends, however that ends. Linux only.

    torchrun gives each process a session of its own, so what kills torchrun and its group would leave them behind, with
    a GPU each.
    """
    if not sys.platform.startswith("linux"):
        return
    parent, pr_set_pdeathsig = os.getppid(), 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended meanwhile
        os.kill(os.getpid(), signal.SIGKILL)
