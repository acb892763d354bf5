"""What a run ran on: all that a result depends on beside its settings."""

import platform
import re
import subprocess
import sys
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from agents.machine import available_cores
from agents.ranks import started

PACKAGES = (
    *("torch", "numpy", "tensordict", "gymnasium", "mujoco", "envpool", "tyro", "tensorboard"),
    *("mujoco-warp", "warp-lang", "mjlab", "ale-py"),
)


def manifest() -> dict[str, Any]:
    """Versions, git revision, hardware, torch's switches, processes and command line: all that a result depends on."""
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "argv": sys.argv,
        "ranks": started(),
        "git": git_revision(Path(__file__).resolve().parent),
        "versions": versions,
        "hardware": {
            "platform": platform.platform(),
            "cpu": cpu_model(),
            "cores": available_cores(),
            "gpus": [torch.cuda.get_device_name(index) for index in range(gpus)],
        },
        "torch": {
            "threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        },
    }


def git_revision(path: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a directory belongs to and whether files differ from it; None outside of git."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(path), *words], capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):  # no git, no checkout, no commit yet
        return None


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()
