"""What the machine offers: devices by name, number formats by the CPU's own word, memory that stays."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from agents import machine

ROOT = Path(machine.__file__).resolve().parents[1]


def gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Pretend that there are so many."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("count", "asked", "given"),
    [
        *[(0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (1, "cuda", "cuda")],
        *[(1, "cuda:0", "cuda:0"), (2, "cuda:1", "cuda:1")],
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, count: int, asked: str, given: str) -> None:
    gpus(monkeypatch, count)
    assert machine.resolve_device(asked) == given


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize(
    "bad", ["", "gpu", "CPU", "cpu:0", "cuda:x", "cuda:-1", "cuda:1.0", "cuda:", "mps", "cuda:0:0"]
)
def test_unknown_devices_are_refused(monkeypatch: pytest.MonkeyPatch, count: int, bad: str) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(ValueError, match=f"^--device {bad}: legal are auto, cpu, cuda and cuda:i$"):
        machine.resolve_device(bad)


@pytest.mark.parametrize(("count", "bad"), [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:7")])
def test_absent_devices_are_refused(monkeypatch: pytest.MonkeyPatch, count: int, bad: str) -> None:
    gpus(monkeypatch, count)
    with pytest.raises(ValueError, match=f"^--device {bad}: this machine has {count or 'no'} CUDA device") as caught:
        machine.resolve_device(bad)
    assert "\n" not in str(caught.value) and "--device cpu" in str(caught.value)


def test_fast_bfloat16_is_what_the_cpu_says() -> None:
    answer = machine.fast_bfloat16("cpu")
    assert isinstance(answer, bool)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = {flag for line in lines if line.startswith("flags") for flag in line.partition(":")[2].split()}
    assert answer == bool(flags & {"amx_bf16", "avx512_bf16"})


@pytest.mark.parametrize(
    ("cpuinfo", "fast"),
    [
        ("model name\t: x\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", False),
        ("", False),
    ],
)
def test_fast_bfloat16_by_flags(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, fast: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: cpuinfo)
    assert machine.fast_bfloat16("cpu") is fast


def test_fast_bfloat16_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> str:
        raise FileNotFoundError("/proc/cpuinfo")

    monkeypatch.setattr(Path, "read_text", absent)
    assert machine.fast_bfloat16("cpu") is False
    for capability, fast in (((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, answer=capability: answer)
        assert machine.fast_bfloat16("cuda") is machine.fast_bfloat16("cuda:0") is fast


def test_small_updates_get_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 6)
    for rows, hidden, threads in (
        (64, (64, 64), 1),
        (128, (64,), 1),
        (256, (256, 128, 64), 1),
        (2_048, (256, 128, 64), 6),
        (32_768, (1024, 512, 256), 6),
        (8, (512,), 1),
        (1_000_000, (), 1),
        (1_024, (256, 128), 6),  # 2 ** 25 products: the threshold
        (1_023, (256, 128), 1),
    ):
        assert machine.learner_threads(rows, hidden) == threads, (rows, hidden)


def test_available_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = machine.available_cores()
    assert 1 <= cores <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 8}, raising=False)
    assert machine.available_cores() == 3  # of a process that was told to use these
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert machine.available_cores() == 7


MEMORY = """
import resource
import torch
from agents import machine

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(min(faults() for _ in range(20)))
machine.keep_freed_memory()
machine.keep_freed_memory()  # harmless
print(min(faults() for _ in range(20)))  # the first few calls still find places for their blocks
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_kept_memory_costs_no_page_faults() -> None:
    # A block of 64 MiB is above every threshold at which glibc by default maps and unmaps it each time.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    given_back, kept = map(int, done.stdout.split())
    if not given_back:
        pytest.skip("this kernel does not count page faults")
    assert kept < given_back / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_the_allocator_accepts_both_thresholds(monkeypatch: pytest.MonkeyPatch) -> None:
    real, answers = ctypes.CDLL("libc.so.6").mallopt, {}

    def mallopt(parameter: int, value: int) -> None:
        answers[parameter] = real(parameter, value), value

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    machine.keep_freed_memory()
    assert answers.keys() == {-1, -3}  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    assert all(accepted == 1 and value >= 1 << 30 for accepted, value in answers.values())


def test_keeping_memory_is_a_choice_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(*_: object) -> None:
        raise OSError("libc.so.6: cannot open shared object file")

    monkeypatch.setattr(machine.ctypes, "CDLL", no_library)
    machine.keep_freed_memory()  # another C library
    monkeypatch.setattr(sys, "platform", "darwin")
    machine.keep_freed_memory()
