"""Times of the learners of FastTD3 and FastSAC: what SEM costs, what bfloat16 gains, and how their authors' compare.

    python benchmarks/speed.py                                          # this repository alone
    python benchmarks/speed.py --reference CHECKOUT --out results.json  # beside the authors' code
    python benchmarks/speed.py --agent fastsac                          # FastSAC's learner
    python benchmarks/speed.py ppo --help                               # PPO and SAC in training: benchmarks/rivals.py
    python benchmarks/speed.py reach --help                             # time to a return: benchmarks/reach.py
    python benchmarks/speed.py envs --help                              # environments: benchmarks/simulators.py
    python benchmarks/speed.py together --help                          # seeds side by side: benchmarks/together.py
    python benchmarks/speed.py parts --help                             # without each optimisation: benchmarks/parts.py
    python benchmarks/speed.py gpu --out FOLDER                         # all of it on a GPU, within ten minutes

CHECKOUT is a copy of github.com/younggyoseo/FastTD3, or of github.com/amazon-far/holosoma with `--agent fastsac`, which
stays outside of this repository.

All contestants of a task take turns call by call in one process, there and back again, so that whatever else the
machine does hits them alike. A repeat is the median of some calls; the table shows median, least and largest repeat.
Ratios are of medians, with the least and largest ratio within a repeat behind them; below 1 is faster. On a machine
that is shared, trust the ratios and not the times; `--clock cpu --threads 1` counts processor time, which other
processes hardly touch.

The tasks: one update of the critics on a normalised batch (loss, gradient, optimiser); the same of the actor; a whole
update of both as training takes it (normalisation, critics, actor, target); drawing a batch from a full replay buffer;
storing one step of all environments, which for theirs includes the TensorDict that it has to come in.

`floor` is the least time that the machine at hand would need for an update with SEM off: the multiplications of its
matrix products at the rate of the best product that it can do, or the bytes of weights, gradients, moments and batch at
the rate of a copy, whichever takes longer. `off again` is another agent like `off`: their ratio is what noise alone
does.

What is taken from the checkout, and what is like it, is told in `benchmarks/authors.py`. Both sides keep freed memory,
as our agents do and theirs do not: it is a setting of the process. Before anything is timed, both sides get the same
weights and batch, and must compute the same losses.
"""

import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from gymnasium.spaces import Box
from tensordict import TensorDict
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from agents import config, fastsac, fasttd3, machine
from agents.compiled import TOLERANCE
from agents.manifest import git_revision, manifest
from agents.replay import ReplayBuffer
from benchmarks import authors, parts, reach, rivals, simulators, together
from benchmarks.authors import LOSS_TOLERANCE, SEM_PLACES, Code, to_reference, to_transition, with_sem
from benchmarks.rivals import ratio
from envs.base import Step, VecEnv, vector_space

CONTROL = "off again"
UPDATES = ("critic update", "actor update", "critic and actor update")
AGENTS: dict[str, Any] = {"fasttd3": fasttd3, "fastsac": fastsac}
Agent = fasttd3.FastTD3 | fastsac.FastSAC
Settings = fasttd3.Args | fastsac.Args
LEARNERS: dict[str, Any] = {"fasttd3": fasttd3.FastTD3, "fastsac": fastsac.FastSAC}
REPEAT_S = 0.05  # a repeat has as many calls as take one contestant this long, within CALLS
CALLS = (3, 200)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Args:
    """Time one update, one replay sample and one replay add of an agent, beside the authors' code if there is some.

    With `ppo` as the first word: the training of PPO and SAC. With `reach`: time to a return. With `envs`: steps of
    environments. With `together`: seeds side by side. With `gpu`: all of it on a GPU. Each has flags of its own.
    """

    agent: Literal["fasttd3", "fastsac"] = "fasttd3"
    """whose learner"""
    reference: Path | None = None
    """checkout of github.com/younggyoseo/FastTD3, or of github.com/amazon-far/holosoma for fastsac, to compare with"""
    batch_size: int = 2048
    """B, transitions per update and sample"""
    size: Literal["reference", "small"] = "reference"
    """networks, atoms and number of environments: the paper's, or those for a CPU"""
    obs_dim: int = 151
    """D, size of an observation"""
    action_dim: int = 61
    """A, size of an action"""
    slots: int = 1024
    """S, steps of each environment that the replay buffers hold"""
    threads: int = 0
    """CPU threads of both sides, 0 for all cores that the process may use"""
    repeats: int = 7
    """numbers per contestant"""
    clock: Literal["wall", "cpu"] = "wall"
    """what is counted: wall-clock time, or processor time of all threads, which needs --device cpu"""
    folder: str = ""
    """a folder: time a replay buffer too that is kept in a file there"""
    compile: bool = False
    """compile both sides with torch.compile; takes minutes before the first number"""
    out: Path | None = None
    """JSON file for settings, machine and every number"""
    device: str = "cpu"
    """where everything lives: cpu, cuda, cuda:1"""


class RandomEnv(VecEnv):
    """Observations and rewards that are noise: what a learner can be timed with, without a simulator.

    An episode ends at the time limit, or by chance once in 500 steps, which soon spreads the truncations.
    """

    deterministic = True

    def __init__(
        self, num_envs: int, seed: int, device: torch.device | str, obs_dim: int, action_dim: int, limit: int = 200
    ) -> None:
        self.task, self.backend, self.num_envs, self.device = "random", "speed", num_envs, torch.device(device)
        self.obs_space = self.critic_obs_space = vector_space(obs_dim)
        self.action_space = Box(-1, 1, (action_dim,))
        self.max_episode_steps = self._limit = limit
        self._generator = torch.Generator().manual_seed(seed)

    def reset(self, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the first observations."""
        if seed is not None:
            self._generator.manual_seed(seed)
        self._age = torch.zeros(self.num_envs, dtype=torch.int64)
        obs = self._observe()
        return obs, obs

    def step(self, action: Tensor) -> Step:
        """Return noise, whatever the action."""
        self._age += 1
        terminated = torch.rand(self.num_envs, generator=self._generator) < 1 / 500
        truncated = ~terminated & (self._age >= self._limit)
        done = terminated | truncated
        self._age[done] = 0
        next_obs = self._observe()
        obs = torch.where(done[:, None].to(self.device), self._observe(), next_obs)
        reward = torch.randn(self.num_envs, generator=self._generator)
        reward, terminated, truncated = (x.to(self.device) for x in (reward, terminated, truncated))
        return Step(obs, obs, reward, terminated, truncated, next_obs, next_obs, torch.ones_like(terminated))

    def _observe(self) -> Tensor:
        return torch.randn(self.num_envs, *self.obs_space.shape, generator=self._generator).to(self.device)


# ---- contestants -----------------------------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """Who is timed."""

    side: Literal["ours", "reference"]
    precision: str
    sem: str = ""
    """one of SEM_PLACES or CONTROL, or nothing where there are no networks"""


Call = Callable[[], object]
Calls = dict[Contestant, Call]


def agent_of(args: Settings) -> str:
    """Return the name of the agent that has these settings."""
    return next(name for name, agent in AGENTS.items() if isinstance(args, agent.Args))


def settings(args: Args) -> Settings:
    """Return our agent's settings for what is timed: those of the size, of no task, with every update one of both.

    Beside a reference each hidden layer has half the units of the one before, since its classes have no others.

    Raises:
        ValueError: a value is out of range, or the device is absent.
    """
    agent = AGENTS[args.agent]
    ours = agent.Args(env_id="random", size=args.size, device=args.device)
    for _, overrides in agent.presets(ours):
        ours = replace(ours, **overrides)
    if args.reference is not None:
        actor, critic = ((units[0], units[0] // 2, units[0] // 4) for units in (ours.actor_hidden, ours.critic_hidden))
        ours = replace(ours, actor_hidden=actor, critic_hidden=critic)
    ours = replace(ours, batch_size=args.batch_size, compile=args.compile, policy_frequency=1, n_step=1)
    resolved: Settings = agent.resolve(replace(ours, reward_norm=False))
    return resolved


def update_calls(
    args: Settings, code: Code | None, env: VecEnv, batch: TensorDict, recorded: list[str]
) -> dict[str, Calls]:
    """Return, for each of UPDATES, what each contestant does with the batch; `recorded` gets what is said of graphs."""
    tasks: dict[str, Calls] = {name: {} for name in UPDATES}
    theirs, learner = to_reference(batch), LEARNERS[agent_of(args)]
    for sem in (*SEM_PLACES, CONTROL):  # next to each other: what is to be compared
        for precision, amp in (("float32", "off"), ("bfloat16", "bfloat16")):
            agent = learner(with_sem(replace(args, amp=amp), sem), env)  # type: ignore[arg-type]
            agent.learn_norms(batch["obs"], batch["critic_obs"])
            if agent.compiled is not None:
                said = agent.compiled.verify(TOLERANCE[amp], partial(agent.gradient, batch))
                config.require(said.startswith("compiled"), f"ours, {precision}, SEM {sem}: {said}")
            if agent.recorded is not None:
                said = agent.recorded.verify(TOLERANCE[amp], batch.copy, agent.variants)
                recorded.append(f"{precision}, SEM {sem}: {said}")
                print(f"ours, {recorded[-1]}")
            for name, call in zip(UPDATES, our_updates(agent, batch), strict=True):
                tasks[name][Contestant("ours", precision, sem)] = call
        if code is not None and (code.sem or sem == "off") and sem in SEM_PLACES:
            rival = authors.OTHERS[agent_of(args)].learner(code, args, sem, env)
            precision = "bfloat16" if rival.amp else "float32"
            for name, call in zip(UPDATES, rival.updates(theirs), strict=True):
                tasks[name][Contestant("reference", precision, sem)] = call
    return tasks


def our_updates(agent: Agent, batch: TensorDict) -> tuple[Call, ...]:
    """Return an update of the critics, with FastSAC's temperature, of the actor, and a whole one."""
    prepared = agent.prepare(batch)
    if isinstance(agent, fasttd3.FastTD3):
        return (
            lambda: agent._descend(0, *agent.critic_gradient(prepared), agent.critic_flat, agent.critic_optimizer),
            lambda: agent._descend(1, *agent.actor_gradient(prepared), agent.actor_flat, agent.actor_optimizer),
            lambda: agent.update(batch),
        )

    def critics() -> None:
        loss, gradient, log_prob = agent.critic_gradient(prepared)
        agent._descend("qf_loss", loss, gradient, agent.critic_flat, agent.critic_optimizer)
        agent._descend("alpha_loss", *agent.alpha_gradient(log_prob), agent.alpha_flat, agent.alpha_optimizer)

    return (
        critics,
        lambda: agent._descend("actor_loss", *agent.actor_gradient(prepared), agent.actor_flat, agent.actor_optimizer),
        lambda: agent.update(batch),
    )


def replay_calls(
    args: Settings, code: Code | None, env: VecEnv, slots: int, n_step: int, storage: str = "device"
) -> tuple[ReplayBuffer, Calls, Calls]:
    """Return our replay buffer, and what each side does to sample a batch and to add a step. All buffers are full."""
    spaces = env.obs_space, env.critic_obs_space, env.action_space
    limit = env.max_episode_steps
    replay = ReplayBuffer(
        *(env.num_envs, slots, *spaces, env.device),
        max_episode_steps=limit,
        n_step=n_step,
        gamma=args.gamma,
        storage=storage,
    )
    obs, critic_obs = env.reset(seed=0)
    replay.start(obs, critic_obs)
    action = torch.rand(env.num_envs, *env.action_space.shape, device=env.device) * 2 - 1  # type: ignore[misc]
    ours, theirs = Contestant("ours", "float32"), Contestant("reference", "float32")
    sample: Calls = {ours: lambda: replay.sample(args.batch_size)}
    buffer = None
    if code is not None:
        sizes = {"n_obs": env.obs_space.shape[0], "n_critic_obs": env.obs_space.shape[0], "n_act": action.shape[1]}
        windows = {"n_steps": n_step, "gamma": args.gamma, "device": env.device}
        buffer = code.utils.SimpleReplayBuffer(n_env=env.num_envs, buffer_size=slots, **sizes, **windows)
        per_env = args.batch_size // env.num_envs
        sample[theirs] = lambda: buffer.sample(per_env)
    for _ in range(slots + slots // 2):  # the write head is in the middle
        before, step = obs, env.step(action)
        replay.add(action, step)
        if buffer is not None:
            buffer.extend(to_transition(before, action, step))
        obs = step.obs
    add: Calls = {ours: lambda: replay.add(action, step)}
    if buffer is not None:
        add[theirs] = lambda: buffer.extend(to_transition(before, action, step))
    return replay, sample, add


# ---- the floor -------------------------------------------------------------------------------------------------------


class Rates(NamedTuple):
    """What a machine can do."""

    flops: dict[str, float]
    """per precision, floating-point operations of a matrix product per second"""
    copied: float
    """bytes read or written per second, by a copy of what no cache holds"""


def rates(device: torch.device, repeats: int, clock: Callable[[], float]) -> Rates:
    """Measure the machine: the best of some square products in each precision, and of copies of 256 MiB."""
    flops = {}
    source = torch.ones(64 << 20, device=device)
    copy = torch.empty_like(source)
    for precision in ("float32", "bfloat16"):
        squares = [torch.randn(2, n, n, device=device, dtype=getattr(torch, precision)) for n in (512, 1024, 2048)]
        products = [lambda a=a, b=b: torch.mm(a, b) for a, b in squares]
        best = (min(seen) for seen in measure(products, repeats, device, clock))
        flops[precision] = max(2e3 * len(a) ** 3 / ms for (a, _), ms in zip(squares, best, strict=True))
    ((*seen,),) = measure([lambda: copy.copy_(source)], repeats, device, clock)
    return Rates(flops, 2e3 * source.nbytes / min(seen))


def floors(agent: Agent, batch: TensorDict, machine_rates: Rates) -> dict[str, dict[str, Any]]:
    """Return, for each of UPDATES, its floating-point operations, its bytes, and the least ms in each precision.

    Operations are those of the matrix products that the agent really does. Of the bytes only what nobody could save:
    AdamW reads and writes a weight and its two moments and reads its gradient, which was written; other weights and the
    batch are read, and the target is written too in a whole update.
    """
    actor, critic = (4 * sum(p.numel() for p in net.parameters()) for net in (agent.actor, agent.critic))
    tensors = (x for x in batch.values() if isinstance(x, Tensor))
    data = sum({x.data_ptr(): x.nbytes for x in tensors}.values())  # critic_obs may be obs
    of_critics, of_actor = 8 * critic + critic + actor, 8 * actor + critic
    out = {}
    bytes_of = (of_critics + data, of_actor + data, of_critics + of_actor + critic + data)
    for name, call, moved in zip(UPDATES, our_updates(agent, batch), bytes_of, strict=True):
        with FlopCounterMode(display=False) as counter:
            call()
        flops = counter.get_total_flops()
        copying = moved / machine_rates.copied
        least = {kind: 1e3 * max(flops / rate, copying) for kind, rate in machine_rates.flops.items()}
        out[name] = {"flops": flops, "bytes": moved, "floor_ms": least}
    return out


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(calls: Sequence[Call], repeats: int, device: torch.device, clock: Callable[[], float]) -> list[list[float]]:
    """Return, for each call, its median time in ms in each repeat. The calls take turns, there and back again."""

    def timed(call: Call) -> float:
        begin = clock()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - begin

    for _ in range(2):  # the first call allocates, and compiles
        longest = max(timed(call) for call in calls)
    rounds = min(max(CALLS[0], math.ceil(REPEAT_S / longest)), CALLS[1])
    out: list[list[float]] = [[] for _ in calls]
    gc.collect()
    gc.disable()  # not while the clock runs
    try:
        for _ in range(repeats):
            times: list[list[float]] = [[] for _ in calls]
            for turn in range(rounds):
                for index in range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls))):
                    times[index].append(1e3 * timed(calls[index]))
            for index, seen in enumerate(times):
                out[index].append(statistics.median(seen))
    finally:
        gc.enable()
    return out


def results(
    task: str,
    contestants: Iterable[Contestant],
    measured: Sequence[Sequence[float]],
    floor_ms: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each contestant: its times, and their ratios to its yardsticks, None where there is none.

    The yardsticks are the reference with SEM in the same place, the same contestant with SEM off, and the floor in its
    precision.
    """
    times = dict(zip(contestants, measured, strict=True))
    rows = []
    for who, seen in times.items():
        rival = next((x for other, x in times.items() if other.side == "reference" and other.sem == who.sem), None)
        plain = times.get(who._replace(sem="off"))
        rows.append(
            {
                "task": task,
                **who._asdict(),
                "median_ms": statistics.median(seen),
                "min_ms": min(seen),
                "max_ms": max(seen),
                "repeats_ms": seen,
                "to_reference": ratio(seen, rival) if rival and who.side == "ours" else None,
                "to_sem_off": ratio(seen, plain) if plain and who.sem != "off" else None,
                "to_floor": statistics.median(seen) / floor_ms[who.precision] if floor_ms else None,
            }
        )
    return rows


# ---- reporting -------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of one task as text."""

    def cell(of: Mapping[str, float] | None) -> str:
        return f"{of['ratio']:6.3f} [{of['min']:.3f}, {of['max']:.3f}]" if of else ""

    heads = f"{'[least, largest]':<20}{'to reference':>22}{'to SEM off':>24}{'to floor':>10}"
    lines = [f"{rows[0]['task']:<34}{'ms':>9}  {heads}"]
    for row in sorted(rows, key=lambda row: (row["side"], row["precision"] != "float32")):
        name = f"  {row['side']:<10}{row['precision']:<10}{'SEM ' + row['sem'] if row['sem'] else ''}"
        spread = f"[{row['min_ms']:.3f}, {row['max_ms']:.3f}]"
        lines.append(
            f"{name:<34}{row['median_ms']:9.3f}  {spread:<20}"
            f"{cell(row['to_reference']):>22}{cell(row['to_sem_off']):>24}"
            f"{'' if row['to_floor'] is None else format(row['to_floor'], '10.2f')}".rstrip()
        )
    return "\n".join(lines)


def check(args: Args) -> tuple[Settings, Code | None]:
    """Return our settings and the authors' code; fails with one line where an argument is wrong."""
    check_common(args)
    config.positive(args, "batch_size", "obs_dim", "action_dim")
    config.require(args.slots >= 4, f"--slots {args.slots}: must be at least 4, for windows of 3 steps")
    try:
        ours = settings(args)
        code = authors.OTHERS[args.agent].load(args.reference) if args.reference is not None else None
    except ValueError as error:
        config.fail(str(error))
    config.require(
        code is None or args.agent == "fastsac" or args.batch_size % ours.num_envs == 0,
        f"--batch-size {args.batch_size}: the reference draws as many from each of its {ours.num_envs} environments, "
        f"so it must be a multiple of that",
    )
    return ours, code


def check_common(args: Args | rivals.Args) -> None:
    """Fail with one line where an argument that both commands have is wrong."""
    config.positive(args, "repeats")
    config.require(args.threads >= 0, f"--threads {args.threads}: must be 0 or above")
    config.require(args.clock == "wall" or args.device == "cpu", "--clock cpu: does not see a GPU; take --device cpu")
    check_out(args.out)


def check_out(out: Path | None) -> None:
    """Fail with one line where a file cannot be written for want of its folder."""
    if out is not None:
        config.require(out.parent.is_dir(), f"--out {out}: there is no directory {out.parent}")


def check_paths(args: rivals.Args | reach.Args) -> None:
    """Fail with one line where one of the others is not where it is said to be."""
    paths = {"--cleanrl": args.cleanrl, "--leanrl": getattr(args, "leanrl", None), "--sb3-python": args.sb3_python}
    for flag, path in paths.items():
        config.require(path is None or path.exists(), f"{flag} {path}: there is no such file")


def begin(args: Args | rivals.Args | reach.Args | parts.Args, device: str) -> dict[str, Any]:
    """Say what machine it is; returns the report, without results."""
    about = manifest()
    threads = f"{torch.get_num_threads()} threads of {machine.available_cores()} cores"
    print(f"machine    {about['hardware']['cpu']}, {threads}, torch {torch.__version__}, {device}")
    settings = {name: None if isinstance(x, Path) else x for name, x in asdict(args).items()}  # no path of one machine
    return {
        "settings": settings,
        "machine": {key: about[key] for key in ("time", "git", "versions", "hardware", "torch")},
    }


def training(argv: Sequence[str]) -> None:
    """Time PPO and SAC in training, and print and write the results."""
    args = config.parse(rivals.Args, argv=argv).args
    check_common(args)
    config.positive(args, "turn")
    config.require(bool(args.tasks), "--tasks: name at least one")
    check_paths(args)
    try:
        args.device = machine.resolve_device(args.device)
    except ValueError as error:
        config.fail(str(error))
    threads = args.threads or machine.available_cores()
    torch.set_num_threads(threads)
    report = begin(args, args.device)
    for name, path in (("cleanrl", args.cleanrl), ("leanrl", args.leanrl)):
        report[name] = git_revision(path) if path else None
    try:
        rivals.run(replace(args, threads=threads), report)
    except rivals.Missing as missing:
        config.fail(str(missing))


def reaching(argv: Sequence[str]) -> None:
    """Train until a return is reached, and print and write what that took."""
    args = config.parse(reach.Args, argv=argv).args
    config.positive(args, "frames", "every", "episodes", "threads")
    config.require(bool(args.seeds), "--seeds: name at least one")
    check_out(args.out)
    check_paths(args)
    names = [row.name for row in reach.lineup(replace(args, programs=(), cleanrl=args.cleanrl or Path()))]
    for name in args.programs:
        config.require(name in names, f"--programs {name!r}: there are {', '.join(names)}")
    report, runs = begin(args, "cpu"), []
    if args.out is not None and args.out.exists():
        try:
            before = json.loads(args.out.read_text())
            same = {
                key: before["settings"][key] for key in ("env_id", "goal", "frames", "every", "episodes", "threads")
            }
            runs = before["runs"]
        except (ValueError, KeyError, TypeError):
            config.fail(f"--out {args.out}: it is there, and no result of this command; name another file")
        config.require(
            same == {key: getattr(args, key) for key in same},
            f"--out {args.out}: it was measured with other settings, {same}; name another file",
        )
        report["machine"] = before["machine"]
    try:
        reach.run(args, report, runs)
    except rivals.Missing as missing:
        config.fail(str(missing))


def taking_apart(argv: Sequence[str]) -> None:
    """Time training without each of its optimisations, and print and write the results."""
    args = config.parse(parts.Args, argv=argv).args
    config.require(args.repeats > 1, f"--repeats {args.repeats}: must be at least 2, for quartiles")
    config.require(bool(args.tasks), "--tasks: name at least one")
    for name in args.parts:
        config.require(name in parts.PARTS, f"--parts {name!r}: there are {', '.join(parts.PARTS)}")
    check_out(args.out)
    try:
        parts.run(args, begin(args, "cpu"))
    except rivals.Missing as missing:
        config.fail(str(missing))


@dataclass
class GpuArgs:
    """Take every number that this library has of a GPU, one command after the other, each into a file of its own."""

    out: Path = Path("benchmarks/results")
    """folder of the files, which are called gpu-*.json"""
    reference: Path | None = None
    """checkout of github.com/younggyoseo/FastTD3 to compare with"""
    holosoma: Path | None = None
    """checkout of github.com/amazon-far/holosoma to compare with"""
    cleanrl: Path | None = None
    """checkout of github.com/vwxyzjn/cleanrl to compare with"""
    leanrl: Path | None = None
    """checkout of github.com/pytorch-labs/LeanRL to compare with"""
    sb3_python: Path | None = None
    """interpreter that has stable-baselines3"""
    device: str = "cuda"
    """which GPU: cuda, cuda:1"""
    minutes: float = 10.0
    """when the last command is stopped"""


ON_GPU: dict[str, tuple[str, tuple[str, ...]]] = {  # name: command, and which of the flags it takes
    "update": ("--batch-size 32768 --repeats 5 --folder {out}", ("reference",)),
    "update-compiled": ("--batch-size 32768 --repeats 5 --compile", ("reference",)),
    "fastsac-compiled": ("--agent fastsac --batch-size 8192 --repeats 5 --compile", ("holosoma",)),
    "ppo": ("ppo --repeats 5 --turn 8192 --tasks atari cheetah", ("cleanrl", "leanrl", "sb3_python")),
    "envs": ("envs --tasks HalfCheetah-v5 Humanoid-v5 --backends mjwarp --worlds 1024 4096 16384 --repeats 3", ()),
    "together": ("together --size reference --runs 1 2 4 --frames 60000", ()),
    "together-small": ("together --size small --runs 1 2 4 8 --frames 20000", ()),
}


def on_gpu(argv: Sequence[str]) -> int:
    """Run the commands of ON_GPU, as far as the time goes; returns 1 if one of them failed or had no time."""
    args = config.parse(GpuArgs, argv=argv).args
    config.require(args.out.is_dir(), f"--out {args.out}: there is no such folder")
    config.require(args.minutes > 0, f"--minutes {args.minutes}: must be above 0")
    try:
        device = machine.resolve_device(args.device)
    except ValueError as error:
        config.fail(str(error))
    end = time.monotonic() + 60 * args.minutes
    missed = []
    for name, (words, takes) in ON_GPU.items():
        flags = {flag: getattr(args, flag) for flag in takes if getattr(args, flag) is not None}
        words_of = {"holosoma": "--reference", "sb3_python": "--sb3-python"}
        more = [x for flag, value in flags.items() for x in (words_of.get(flag, f"--{flag}"), str(value))]
        out = args.out / f"gpu-{name}.json"
        command = [*words.format(out=args.out).split(), "--device", device, *more, "--out", str(out)]
        print(f"\n$ python benchmarks/speed.py {' '.join(command)}", flush=True)
        try:
            left = max(end - time.monotonic(), 0.0)
            if subprocess.run([sys.executable, __file__, *command], timeout=left).returncode:
                missed.append(f"{name} failed")
        except subprocess.TimeoutExpired:
            missed.append(f"{name} had no time left")
    print("\n" + (f"not measured: {', '.join(missed)}" if missed else "all measured"))
    return int(bool(missed))


def main(argv: Sequence[str] | None = None) -> None:
    """Check that both sides compute the same, time them, and print and write the results."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "ppo":
        return training(argv[1:])
    if argv and argv[0] == "reach":
        return reaching(argv[1:])
    if argv and argv[0] == "envs":
        return simulators.main(argv[1:])
    if argv and argv[0] == "together":
        return together.main(argv[1:])
    if argv and argv[0] == "parts":
        return taking_apart(argv[1:])
    if argv and argv[0] == "gpu":
        sys.exit(on_gpu(argv[1:]))
    args = config.parse(Args, argv=argv).args
    ours, code = check(args)
    machine.keep_freed_memory()
    torch.set_num_threads(args.threads or machine.available_cores())
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # all contestants of the other side share its code
    torch.manual_seed(0)
    env = RandomEnv(ours.num_envs, 0, ours.device, args.obs_dim, args.action_dim)

    buffers = code if args.agent == "fasttd3" else None  # holosoma's is FastTD3's
    replay, *one_step = replay_calls(ours, buffers, env, args.slots, n_step=1)
    _, *three_steps = replay_calls(ours, buffers, env, args.slots, n_step=3)
    batch = replay.sample(args.batch_size)
    report = begin(args, args.device)
    report |= {"networks": {"actor": ours.actor_hidden, "critic": ours.critic_hidden, "atoms": ours.atoms}}
    report |= {"num_envs": ours.num_envs, "freed_memory_kept": ["ours", "reference"], "reference": None, "results": []}
    print(f"networks   actor {ours.actor_hidden}, 2 critics {ours.critic_hidden}, {ours.atoms} atoms")
    print(f"batch      {args.batch_size:,} of {args.obs_dim} observations and {args.action_dim} actions")
    if code is not None:
        found = authors.OTHERS[args.agent].differences(code, ours, env, batch[:1024])
        for name, (seen, tolerated) in found.items():
            config.require(seen <= tolerated, f"the two sides do not compute the same: {name} differs by {seen:.1e}")
        worst = max(each.seen for each in found.values() if each.tolerated == LOSS_TOLERANCE)
        precision = "bfloat16" if authors.OTHERS[args.agent].learner(code, ours, "off", env).amp else "float32"
        runs = f"{precision} (their amp needs CUDA), {'compiled' if args.compile else 'not compiled'}"
        apart = {name: each._asdict() for name, each in found.items()}
        report["reference"] = {"git": code.git, "runs": runs, "differences": apart}
        print(f"reference  {runs}; with the same weights and batch, losses agree to {worst:.0e}")
    print(f"clock      {args.clock}; freed memory is kept on all sides; [least, largest] of {args.repeats} repeats")

    clock = CLOCKS[args.clock]
    machine_rates = rates(env.device, args.repeats, clock)
    plain = LEARNERS[args.agent](replace(ours, amp="off", compile=False), env)
    least = floors(plain, batch, machine_rates)
    report |= {"rates": machine_rates._asdict(), "floors": least}
    whole, per_s = least[UPDATES[-1]], machine_rates.flops
    print(
        f"floor      {whole['flops'] / 1e9:,.1f} GFLOP and {whole['bytes'] / 2**20:,.0f} MiB per update, at "
        f"{per_s['float32'] / 1e9:,.0f} GFLOP/s ({per_s['bfloat16'] / 1e9:,.0f} in bfloat16) and "
        f"{machine_rates.copied / 1e9:,.1f} GB/s\n"
    )

    recorded: list[str] = []
    tasks = update_calls(ours, code, env, batch, recorded)
    report |= {"recorded": recorded} if recorded else {}
    tasks |= {"replay sample, n_step 1": one_step[0], "replay sample, n_step 3": three_steps[0]}
    tasks |= {"replay add": one_step[1]}
    for name, storage in (("host", "host"), ("file", args.folder)):
        if storage and (name == "file" or env.device.type != "cpu"):  # beside a learner on the CPU is on the host
            _, sample, add = replay_calls(ours, None, env, args.slots, 1, storage)
            tasks |= {f"replay sample, {name}": sample, f"replay add, {name}": add}
    for task, calls in tasks.items():
        measured = measure(list(calls.values()), args.repeats, env.device, clock)
        rows = results(task, calls, measured, least[task]["floor_ms"] if task in least else None)
        print(table(rows), flush=True)
        report["results"] += rows
    if args.out is not None:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"\nevery number: {args.out}")


if __name__ == "__main__":
    config.program(main)
