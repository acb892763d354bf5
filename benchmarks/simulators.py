"""Environment steps per second of each backend, beside a raw loop of its engine.

    python benchmarks/speed.py envs                                         # some tasks, every backend that has them
    python benchmarks/speed.py envs --tasks HalfCheetah-v5 --worlds 16 1024  # one task at several sizes
    python benchmarks/speed.py envs --tasks Humanoid-v5 --device cuda --worlds 1024 4096 16384 --out results.json

The raw loop does what the engine cannot be without: EnvPool's and Gymnasium's own step with their own resets, and for
MuJoCo Warp and HumanoidBench the physics alone, without observations, rewards, ends and resets. It is the ceiling;
`adapter` is the share of the time of a step that goes to what this library puts around it. Both sides get the same
random actions and take turns. A row has the median of the turns, with the least and the largest behind it, after a
first turn that does not count.
"""

import gc
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

import envs
from agents import config, machine
from agents.manifest import manifest
from envs.base import TaskError, VecEnv

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
ACTIONS = 16  # batches of actions, used in turn


@dataclass
class Args:
    """Time the steps of environments, beside the engine alone."""

    tasks: tuple[str, ...] = ("HalfCheetah-v5", "WalkerWalk-v1", "Pong-v5", "PointMass-v0")
    """tasks, by the names that `python -m envs.list` shows"""
    backends: tuple[str, ...] = ()
    """only these; by default each that has the task"""
    worlds: tuple[int, ...] = ()
    """N, environments that step together; by default 16 and 128, on a GPU 1,024 and 4,096"""
    device: str = "cpu"
    """where the tensors go: cpu, cuda, cuda:1"""
    threads: int = 0
    """threads of a CPU simulator, 0 for its own choice"""
    seconds: float = 1.0
    """length of a turn"""
    repeats: int = 5
    """turns of each side that count"""
    clock: Literal["wall", "cpu"] = "wall"
    """what steps are divided by: wall-clock time, or processor time of all threads"""
    out: Path | None = None
    """JSON file for settings, machine and every number"""


Advance = Callable[[Tensor], Any]


def raw(env: VecEnv) -> Advance | None:
    """Return a step of the engine behind an environment, for actions as the contract has them; None if it has none."""
    inner: Any = env
    if env.backend == "envpool":
        pool = inner._open(1)
        pool.reset()
        return lambda action: pool.step(inner._to_engine(action.numpy()))
    if env.backend == "gymnasium":
        twin: Any = envs.make(env.task, env.num_envs, 1, backend=env.backend)
        vector = twin._vector
        vector.reset(seed=1)

        def step_and_reset(action: Tensor) -> None:
            _, _, terminated, truncated, _ = vector.step(inner._to_engine(action.numpy()))
            if (ended := terminated | truncated).any():
                vector.reset(options={"reset_mask": ended})

        return step_and_reset
    if env.backend == "mjwarp":
        physics = inner._physics

        def advance(action: Tensor) -> None:
            physics.ctrl.copy_(inner._centre + inner._scale * action)
            physics.step()

        return advance
    if env.backend == "humanoidbench":

        def send_and_wait(action: Tensor) -> None:
            inner._send(action.numpy())
            inner._physics.recv()

        return send_and_wait
    return None


def draw(env: VecEnv) -> list[Tensor]:
    """Return batches of random actions."""
    generator = torch.Generator().manual_seed(0)
    shape = (ACTIONS, env.num_envs)
    if isinstance(env.action_space, Discrete):
        actions = torch.randint(int(env.action_space.n), shape, generator=generator)
    else:
        actions = torch.rand(*shape, *env.action_space.shape, generator=generator) * 2 - 1
    return list(actions.to(env.device))


def turn(advance: Advance, actions: Sequence[Tensor], args: Args) -> float:
    """Return the steps of all environments per second, over a turn."""
    clock, worlds = CLOCKS[args.clock], len(actions[0])
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else lambda: None
    wait()
    begin, end, steps = clock(), time.perf_counter() + args.seconds, 0
    while True:
        for action in actions:
            advance(action)
        wait()
        steps += len(actions)
        if time.perf_counter() >= end:
            return worlds * steps / (clock() - begin)


def memory(device: torch.device) -> float:
    """Return the MiB that this process holds on a device."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:  # not Linux: the most that it has ever held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(task: str, backend: str, worlds: int, args: Args) -> dict[str, Any]:
    """Return a row of results.

    Raises:
        TaskError: the backend cannot make the task.
    """
    device = torch.device(args.device)
    gc.collect()
    before = memory(device)
    options = {"num_threads": args.threads} if args.threads and backend in ("envpool", "humanoidbench") else {}
    begin = time.perf_counter()
    env = envs.make(task, worlds, 0, device, backend, **options)
    env.reset()
    actions = draw(env)
    env.step(actions[0])
    made, held = time.perf_counter() - begin, memory(device) - before
    sides = {"ours": env.step, "engine": raw(env)}
    rates: dict[str, list[float]] = {name: [] for name, advance in sides.items() if advance}
    for repeat in range(args.repeats + 1):
        for name in rates if repeat % 2 else reversed(rates):  # there and back again
            advance = sides[name]
            assert advance is not None
            if name == "ours" and backend in ("mjwarp", "humanoidbench"):
                env.reset()  # the raw loop has left the worlds wherever
            rates[name].append(turn(advance, actions, args))
    env.close()
    row: dict[str, Any] = {"task": task, "backend": backend, "worlds": worlds, "made_s": made, "memory_mib": held}
    for name, seen in rates.items():
        row[name] = {"median": statistics.median(seen[1:]), "min": min(seen[1:]), "max": max(seen[1:]), "turns": seen}
    if "engine" in rates:
        row["adapter"] = 1 - row["ours"]["median"] / row["engine"]["median"]
    return row


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""

    def rate(of: dict[str, float] | None) -> str:
        return f"{of['median']:>11,.0f}  {'[{:,.0f}, {:,.0f}]'.format(of['min'], of['max']):<22}" if of else " " * 35

    share = f"{row['adapter']:7.1%}" if "adapter" in row else " " * 7
    return (
        f"{row['task']:<22}{row['backend']:<14}{row['worlds']:>7,}{rate(row['ours'])}{rate(row.get('engine'))}{share}"
        f"{row['made_s']:9.1f}{row['memory_mib']:9,.0f}"
    ).rstrip()


def main(argv: Sequence[str]) -> None:
    """Time every task with every backend that has it, and print and write the results."""
    args = config.parse(Args, argv=argv).args
    config.positive(args, "seconds", "repeats")
    config.require(all(count > 0 for count in args.worlds), f"--worlds {args.worlds}: each must be above 0")
    if args.out is not None:
        config.require(args.out.parent.is_dir(), f"--out {args.out}: there is no directory {args.out.parent}")
    known = envs.backends()
    for name in args.backends:
        config.require(name in known, f"--backends {name}: installed are {', '.join(known)}")
    try:
        args.device = machine.resolve_device(args.device)
    except ValueError as error:
        config.fail(str(error))
    config.require(
        args.clock == "wall" or args.device == "cpu", f"--clock {args.clock}: does not see a GPU; take --clock wall"
    )
    jobs = [(task, name) for task in args.tasks for name in args.backends or known if task in envs.tasks(name)]
    for task in args.tasks:
        config.require(any(task == job[0] for job in jobs), f"no backend here has the task {task!r}")

    about = manifest()
    print(f"machine  {about['hardware']['cpu']}, {machine.available_cores()} cores, torch {torch.__version__}")
    print(f"clock    {args.clock}; environment steps per second, [least, largest] of {args.repeats} turns\n")
    ours, engine = (f"{name:>11}  {'[least, largest]':<22}" for name in ("ours", "engine"))
    print(f"{'task':<22}{'backend':<14}{'worlds':>7}{ours}{engine}{'adapter':>7}{'made in s':>9}{'MiB':>9}")
    rows = []
    for task, backend in jobs:
        for worlds in args.worlds or ((16, 128) if args.device == "cpu" else (1_024, 4_096)):
            try:
                rows.append(measure(task, backend, worlds, args))
            except TaskError as error:
                print(f"{task:<22}{backend:<14}{worlds:>7,}  {error}")
            else:
                print(line(rows[-1]), flush=True)
    if args.out is not None:
        settings = {name: value for name, value in asdict(args).items() if name != "out"}
        where = {key: about[key] for key in ("time", "git", "versions", "hardware", "torch")}
        args.out.write_text(json.dumps({"settings": settings, "machine": where, "results": rows}, indent=1) + "\n")
        print(f"\nevery number: {args.out}")
