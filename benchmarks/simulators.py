"""Environment steps per second of each backend, beside a raw loop of its engine.

    python benchmarks/speed.py envs                                         # some tasks, every backend that has them
    python benchmarks/speed.py envs --tasks HalfCheetah-v5 --worlds 16 1024  # one task at several sizes
    python benchmarks/speed.py envs --tasks Humanoid-v5 --device cuda --worlds 1024 4096 16384 --out results.json
    python benchmarks/speed.py envs --tasks h1-walk-v0 --against humanoidbench_upstream  # backends side by side

The raw loop does what the engine cannot be without: the own step of EnvPool, Gymnasium, mjlab and the HumanoidBench
package with their own resets, Playground's without, and for MuJoCo Warp and HumanoidBench's native tasks the physics
alone, without observations, rewards, ends and resets. It is the ceiling;
`adapter` is the share of the time of a step that goes to what this library puts around it. Both sides get the same
random actions and take turns. A row has the median of the turns, with the least and the largest behind it, after a
first turn that does not count. `MiB` is what the environments have added to the memory of this process and those that
they have started.

With `--against` there is no raw loop. Every backend has a process of its own, so that none profits from what another
has loaded, and all take turns with the same actions. A ratio is of medians, with the least and largest ratio of turns
side by side behind it. Memory is that of the process and all that it has started, interpreter and libraries included,
after the last turn; what processes share counts once (Linux's PSS). `per env` is what environments have added, the
simulator included, and `share` the ratio of all memory.
"""

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from gymnasium.spaces import Discrete
from torch import Tensor

import envs
from agents import config, machine
from agents.manifest import manifest
from benchmarks.rivals import ratio
from envs.base import TaskError, VecEnv

ROOT = Path(__file__).resolve().parents[1]
ACTIONS = 16  # batches of actions, used in turn


@dataclass
class Args:
    """Time the steps of environments, beside the engine alone."""

    tasks: tuple[str, ...] = ("HalfCheetah-v5", "WalkerWalk-v1", "Pong-v5", "PointMass-v0")
    """tasks, by the names that `python -m envs.list` shows"""
    backends: tuple[str, ...] = ()
    """only these; by default each that has the task"""
    against: str = ""
    """a backend that the others are compared with, in speed and in memory, instead of with their engines"""
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
    """what steps are divided by: wall-clock time, or processor time of all threads and processes"""
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
    if env.backend in ("gymnasium", "humanoidbench_upstream"):
        twin: Any = envs.make(env.task, env.num_envs, 1, backend=env.backend) if env.backend == "gymnasium" else env
        vector = twin._vector
        vector.reset(seed=1)

        def step_and_reset(action: Tensor) -> None:
            _, _, terminated, truncated, _ = vector.step(inner._to_engine(action.numpy()))
            if (ended := terminated | truncated).any():
                vector.reset(options={"reset_mask": ended})

        return step_and_reset
    if env.backend == "mjlab":
        engine = inner._engine

        def step_and_restart(action: Tensor) -> None:
            _, _, terminated, timed_out, _ = engine.step(action)
            if len(rows := (terminated | timed_out).nonzero()[:, 0]):
                engine.reset(env_ids=rows)

        return step_and_restart
    if env.backend == "playground":
        return bare(inner._engine, inner._worlds["state"])
    if env.backend in ("mjwarp", "humanoidbench_warp"):
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


def bare(engine: Any, state: Any) -> Advance:
    """Return a step of Playground's own environments from a state; they go on after their ends."""
    jax = engine._jax
    together = jax.jit(jax.vmap(engine._env.step))

    def advance(action: Tensor) -> None:
        nonlocal state
        with jax.default_device(engine._device):
            actions = jax.numpy.from_dlpack(action)
            for _ in range(engine._repeat):
                state = together(state, actions)
        if action.device.type == "cpu":
            state.done.block_until_ready()

    return advance


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
    clock, worlds = time.perf_counter if args.clock == "wall" else processor_time, len(actions[0])
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
    """Return the MiB that are held on a device: on a CPU by this process and all that it has started."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return (total - free) / 2**20
    held = 0
    for process in family():
        with suppress(OSError):  # it has just ended
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            held += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return (held or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 2**10  # not Linux: the most that it ever held


def processor_time() -> float:
    """Return the seconds that this process and all that it has started have been computing."""
    ticks = 0
    for process in family()[1:]:
        with suppress(OSError):  # it has just ended
            ticks += sum(map(int, status(process)[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def family() -> list[int]:
    """Return the numbers of this process and of all that it has started."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = int(status(int(path.name))[1])
    kin = [os.getpid()]
    for one in kin:
        kin += [child for child, parent in parents.items() if parent == one]
    return kin


def status(process: int) -> list[str]:
    """Return what Linux tells of a process after its name, see `man proc_pid_stat`, where this begins at field 3."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def make(task: str, backend: str, worlds: int, args: Args) -> tuple[VecEnv, list[Tensor]]:
    """Return environments that have done a step, and actions for them.

    Raises:
        TaskError: the backend cannot make the task.
    """
    options = {"num_threads": args.threads} if args.threads and backend in ("envpool", "humanoidbench") else {}
    env = envs.make(task, worlds, 0, args.device, backend, **options)
    env.reset()
    actions = draw(env)
    env.step(actions[0])
    return env, actions


def measure(task: str, backend: str, worlds: int, args: Args) -> dict[str, Any]:
    """Return a row of results.

    Raises:
        TaskError: the backend cannot make the task.
    """
    device = torch.device(args.device)
    gc.collect()
    before = memory(device)
    begin = time.perf_counter()
    env, actions = make(task, backend, worlds, args)
    made, held = time.perf_counter() - begin, memory(device) - before
    sides = {"ours": env.step, "engine": raw(env)}
    rates: dict[str, list[float]] = {name: [] for name, advance in sides.items() if advance}
    for repeat in range(args.repeats + 1):
        for name in rates if repeat % 2 else reversed(rates):  # there and back again
            advance = sides[name]
            assert advance is not None
            if name == "ours" and backend not in ("envpool", "gymnasium"):
                env.reset()  # the raw loop has left the worlds wherever
            rates[name].append(turn(advance, actions, args))
    env.close()
    row: dict[str, Any] = {"task": task, "backend": backend, "worlds": worlds, "made_s": made, "memory_mib": held}
    row |= {name: spread(seen) for name, seen in rates.items()}
    if "engine" in rates:
        row["adapter"] = 1 - row["ours"]["median"] / row["engine"]["median"]
    return row


def spread(turns: Sequence[float]) -> dict[str, Any]:
    """Return what a row has of some turns, of which the first does not count."""
    seen = turns[1:]
    return {"median": statistics.median(seen), "min": min(seen), "max": max(seen), "turns": list(turns)}


# ---- backends against each other -------------------------------------------------------------------------------------


class Rival:
    """A backend in a process of its own.

    Raises:
        TaskError: the backend cannot make the task.
    """

    def __init__(self, task: str, backend: str, worlds: int, args: Args) -> None:
        words = json.dumps([task, backend, worlds, args.seconds, args.threads, args.clock])
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks import simulators; simulators.contest()"
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, "-c", code, words], **pipes)
        self._name = backend
        self.made: dict[str, Any] = self._answer()
        if "error" in self.made:
            self.__exit__()
            raise TaskError(self.made["error"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # the end of its input is the end of it

    def ask(self, word: str) -> Any:
        """Return the answer of `contest` to a word.

        Raises:
            TaskError: the process has ended.
        """
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            raise TaskError(f"the process of {self._name} has ended ({self._process.wait()})")
        return json.loads(text)


def contest() -> None:
    """Make what the command line says, then answer `turn` with steps per second and `memory` with MiB."""
    answers, sys.stdout = sys.stdout, sys.stderr  # so that no simulator answers

    def answer(what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    task, backend, worlds, seconds, threads, clock = json.loads(sys.argv[1])
    args = Args(seconds=seconds, threads=threads, clock=clock)
    device = torch.device("cpu")
    before, begin = memory(device), time.perf_counter()
    try:
        env, actions = make(task, backend, worlds, args)
    except TaskError as error:
        return answer({"error": str(error)})
    answer({"made_s": time.perf_counter() - begin, "before_mib": before})
    for word in sys.stdin:
        answer(turn(env.step, actions, args) if word.strip() == "turn" else memory(device))
    env.close()


def compare(task: str, backends: Sequence[str], worlds: int, args: Args) -> list[dict[str, Any]]:
    """Return a row for each backend, the one that the others are compared with last.

    Raises:
        TaskError: one of them cannot make the task.
    """
    with ExitStack() as stack:
        rivals = {name: stack.enter_context(Rival(task, name, worlds, args)) for name in (*backends, args.against)}
        rates: dict[str, list[float]] = {name: [] for name in rivals}
        for repeat in range(args.repeats + 1):
            for name in rivals if repeat % 2 else reversed(rivals):
                rates[name].append(rivals[name].ask("turn"))
        held = {name: rival.ask("memory") for name, rival in rivals.items()}
    rows = []
    for name, rival in rivals.items():
        added = held[name] - rival.made["before_mib"]
        row = {"task": task, "backend": name, "worlds": worlds, "made_s": rival.made["made_s"], "memory_mib": added}
        row |= {"total_mib": held[name], "ours": spread(rates[name])}
        if name != args.against:
            row["against"] = args.against
            row["speed_ratio"] = ratio(rates[name][1:], rates[args.against][1:])
            row["memory_ratio"] = held[name] / held[args.against]
        rows.append(row)
    return rows


# ---- reporting -------------------------------------------------------------------------------------------------------


def rate(of: Mapping[str, float] | None) -> str:
    """Return two columns of the table."""
    return f"{of['median']:>11,.0f}  {'[{:,.0f}, {:,.0f}]'.format(of['min'], of['max']):<22}" if of else " " * 35


def line(row: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    begin = f"{row['task']:<22} {row['backend']:<23}{row['worlds']:>7,}{rate(row['ours'])}"
    if "total_mib" not in row:
        share = f"{row['adapter']:7.1%}" if "adapter" in row else " " * 7
        return f"{begin}{rate(row.get('engine'))}{share}{row['made_s']:10.1f}{row['memory_mib']:8,.0f}".rstrip()
    faster = "{ratio:7.2f} [{min:.2f}, {max:.2f}]".format(**row["speed_ratio"]) if "against" in row else ""
    share = f"{row['memory_ratio']:8.3f}" if "against" in row else " " * 8
    each = row["memory_mib"] / row["worlds"]
    return f"{begin}{faster:<22}{row['made_s']:9.1f}{row['total_mib']:9,.0f}{each:9,.1f}{share}".rstrip()


def heading(args: Args) -> str:
    """Return the first line of the table."""
    ours, engine = (f"{name:>11}  {'[least, largest]':<22}" for name in ("ours", "engine"))
    begin = f"{'task':<22} {'backend':<23}{'worlds':>7}"
    if not args.against:
        return f"{begin}{ours}{engine}{'adapter':>7}{'made in s':>10}{'MiB':>8}"
    steps = f"{'steps/s':>11}  {'[least, largest]':<22}"
    return f"{begin}{steps}{'  times as fast':<22}{'made in s':>9}{'MiB':>9}{'per env':>9}{'share':>8}"


def check(args: Args) -> dict[str, list[str]]:
    """Return the backends to time of each task; fails with one line where an argument is wrong."""
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
    if args.against:
        config.require(args.against in known, f"--against {args.against}: installed are {', '.join(known)}")
        config.require(args.device == "cpu", f"--against: compares on a CPU, not on --device {args.device}")
    jobs = {}
    for task in args.tasks:
        having = [name for name in args.backends or known if task in envs.tasks(name)]
        config.require(bool(having), f"no backend here has the task {task!r}")
        jobs[task] = [name for name in having if name != args.against]
        if args.against:
            config.require(task in envs.tasks(args.against), f"--against {args.against}: has no task {task!r}")
            config.require(bool(jobs[task]), f"--against {args.against}: no other backend has the task {task!r}")
    return jobs


def time_group(task: str, group: Sequence[str], worlds: int, args: Args) -> list[dict[str, Any]]:
    """Return the rows of some backends: of all at once against another, or of a single one beside its engine."""
    return compare(task, group, worlds, args) if args.against else [measure(task, group[0], worlds, args)]


def main(argv: Sequence[str]) -> None:
    """Time every task with every backend that has it, and print and write the results."""
    args = config.parse(Args, argv=argv).args
    jobs = check(args)
    about = manifest()
    print(f"machine  {about['hardware']['cpu']}, {machine.available_cores()} cores, torch {torch.__version__}")
    print(f"clock    {args.clock}; environment steps per second, [least, largest] of {args.repeats} turns\n")
    print(heading(args))
    rows = []
    for task, names in jobs.items():
        for group in [names] if args.against else [[name] for name in names]:  # all at once, or one after the other
            for worlds in args.worlds or ((16, 128) if args.device == "cpu" else (1_024, 4_096)):
                try:
                    new = time_group(task, group, worlds, args)
                except TaskError as error:
                    print(f"{task:<22}{' '.join(group):<23}{worlds:>7,}  {error}")
                else:
                    rows += new
                    print("\n".join(map(line, new)), flush=True)
    if args.out is not None:
        settings = {name: value for name, value in asdict(args).items() if name != "out"}
        where = {key: about[key] for key in ("time", "git", "versions", "hardware", "torch")}
        args.out.write_text(json.dumps({"settings": settings, "machine": where, "results": rows}, indent=1) + "\n")
        print(f"\nevery number: {args.out}")
