"""Frames per second of several seeds that train at once on one machine: how many to put side by side.

    python benchmarks/speed.py together                                              # 1, 2 and 4 on the CPU
    python benchmarks/speed.py together --device cuda --size reference --runs 1 2 4 8
    python benchmarks/speed.py together --agent ppo --env-id CartPole-v1 -- --sem

Every run is `python agents/AGENT.py` as users start it, without evaluations and checkpoints. A run counts with the
median of its `charts/SPS` while all were at it, the first and the last of its rows left out; a row of the table is the
sum over the runs, and its ratio to one run alone. Where that stops growing, more side by side only take memory. MPS of
NVIDIA, which lets kernels of several processes overlap, is used if its daemon runs: the table says so.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from agents import config
from agents.manifest import manifest

ROOT = Path(__file__).resolve().parents[1]
ROWS = 8  # of metrics in a run


@dataclass
class Args:
    """Time several seeds side by side. What follows -- are flags of the agent."""

    agent: Literal["fasttd3", "fastsac", "ppo", "pqn"] = "fasttd3"
    """what trains"""
    env_id: str = "PointMass-v0"
    """task; one of torch's own runs where the learner does"""
    size: Literal["auto", "small", "reference"] = "auto"
    """networks and batches"""
    runs: tuple[int, ...] = (1, 2, 4)
    """numbers of runs side by side"""
    frames: int = 40_000
    """frames of each run"""
    threads: int = 1
    """CPU threads of each learner"""
    device: str = "cpu"
    """where all learners live: cpu, cuda, cuda:1"""
    out: Path | None = None
    """JSON file for settings, machine and every number"""


def command(args: Args, flags: Sequence[str], seed: int, run_dir: Path) -> list[str]:
    """Return the command line of one run."""
    return [
        *(sys.executable, str(ROOT / "agents" / f"{args.agent}.py")),
        *("--env-id", args.env_id, "--size", args.size, "--device", args.device, "--threads", str(args.threads)),
        *("--seed", str(seed), "--total-timesteps", str(args.frames), "--log-every", str(max(args.frames // ROWS, 1))),
        *("--eval-every", "0", "--save-every", "0", "--quiet", "--run-dir", str(run_dir)),
        *flags,
    ]


def train(args: Args, flags: Sequence[str], count: int, folder: Path) -> list[float]:
    """Train so many seeds at once; returns the frames per second of each.

    Raises:
        SystemExit: one has failed; with its last line.
    """
    started = []
    try:
        for seed in range(1, count + 1):
            run_dir = folder / f"{count}-{seed}"
            words = command(args, flags, seed, run_dir)
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            started.append((run_dir, process))
        for run_dir, process in started:
            _, errors = process.communicate()
            if process.returncode:
                config.fail(f"{run_dir.name}: {(errors.strip().splitlines() or ['no message'])[-1]}")
    finally:
        for _, process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [rate(run_dir) for run_dir, _ in started]


def rate(run_dir: Path) -> float:
    """Return the median frames per second of a run, without its first rows and the last."""
    with open(run_dir / "metrics.csv", newline="") as file:
        seen = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "charts/SPS"]
    return statistics.median(seen[2:-1] or seen)


def mps() -> bool:
    """Return whether NVIDIA's multi-process service is there for new processes."""
    return Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"), "control").exists()


def main(argv: Sequence[str]) -> None:
    """Time each number of runs, and print and write the results."""
    cut = argv.index("--") if "--" in argv else len(argv)
    args, flags = config.parse(Args, argv=argv[:cut]).args, [*argv[cut + 1 :]]
    config.positive(args, "frames")
    config.require(args.threads >= 0, f"--threads {args.threads}: must be 0 or above")
    config.require(bool(args.runs) and min(args.runs) > 0, f"--runs {args.runs}: must be numbers above 0")
    if args.out is not None:
        config.require(args.out.parent.is_dir(), f"--out {args.out}: there is no directory {args.out.parent}")
    about = manifest()
    shared = ", with MPS" if args.device != "cpu" and mps() else ""
    print(f"machine  {about['hardware']['cpu']}, {about['hardware']['cores']} cores, {args.device}{shared}")
    print(f"runs     {args.agent} on {args.env_id}, size {args.size}, {args.frames:,} frames each {' '.join(flags)}\n")
    print(f"{'side by side':>12}  {'frames/s together':>18}  {'each':>9}  {'to one':>7}")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for count in args.runs:
            each = train(args, flags, count, Path(folder))
            alone = rows[0]["together"] / rows[0]["runs"] if rows else each[0]
            rows.append({"runs": count, "together": sum(each), "each": each, "to_one": sum(each) / alone})
            new = rows[-1]
            print(
                f"{count:>12}  {new['together']:>18,.0f}  {statistics.median(each):>9,.0f}  {new['to_one']:>7.2f}",
                flush=True,
            )
    best = max(rows, key=lambda row: row["together"])
    enough = min(row["runs"] for row in rows if row["together"] >= 0.95 * best["together"])
    print(f"\n{enough} side by side: more bring less than 5%")
    if args.out is not None:
        settings = {name: value for name, value in asdict(args).items() if name != "out"}
        where = {key: about[key] for key in ("time", "git", "versions", "hardware", "torch")}
        report = {"settings": settings, "flags": flags, "machine": where, "mps": bool(shared), "results": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"every number: {args.out}")
