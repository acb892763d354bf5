"""Frames and seconds until a policy is good: ours, and TD3 and SAC of CleanRL and Stable-Baselines3.

    python benchmarks/speed.py reach --cleanrl CHECKOUT --sb3-python PYTHON --out results.json

Every program trains with its own settings in a process of its own, one after the other, until the deterministic policy
of an evaluation has at least the mean return that is asked for. A row has the median over seeds with the least and the
largest behind it; a seed that has not got there within --frames counts as more than all others.

Evaluations are the same for all: as many frames apart, as many episodes, on EnvPool. The time that they take is not
counted. All else is, from the start of Python on. What the programs are:

1. Ours are run as users do, `python agents/fasttd3.py`, with the small sizes that are the default on a CPU. The rows
   with `--num-envs 4` learn from each frame four times as often.
2. CleanRL's `td3_continuous_action.py` is run as it is, and Stable-Baselines3's TD3 and SAC with their defaults, and
   the exploration noise of the paper on TD3 (0.1), which has none by default. All of them have one environment, EnvPool
   in the place of Gymnasium's, and one update for each frame.

This file imports neither torch nor anything of ours: it is also what runs in the other interpreters.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from benchmarks.rivals import (
    ROOT,
    THREADS,
    Missing,
    Pool,
    Program,
    Restarting,
    Task,
    module,
    mute,
    need,
    run_script,
    versions,
)

EVAL_SEED = 1_000


@dataclass
class Args:
    """Train until a policy reaches a return, with ours and with others, and count frames and seconds."""

    env_id: str = "WalkerWalk-v1"
    """task of EnvPool with continuous actions and episodes of a fixed length"""
    goal: float = 800.0
    """mean return of an evaluation that ends the training"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds of each program"""
    frames: int = 300_000
    """where a program that has not got there is stopped"""
    every: int = 5_000
    """frames between evaluations"""
    episodes: int = 10
    """of an evaluation"""
    programs: tuple[str, ...] = ()
    """names of rows, as the table has them; all of them where none is given"""
    cleanrl: Path | None = None
    """checkout of github.com/vwxyzjn/cleanrl to compare with"""
    sb3_python: Path | None = None
    """interpreter that has stable-baselines3, envpool and torch; by default the one that runs this"""
    threads: int = 1
    """threads of torch, and as many of the simulator"""
    clock: Literal["wall", "cpu"] = "wall"
    """which seconds the table has: wall-clock, or processor time of all threads. Both are written"""
    out: Path | None = None
    """JSON file for settings, machine and every evaluation; what it holds already is not measured again"""


class Order(NamedTuple):
    """What a process is to do."""

    program: str
    """a key of PROGRAMS"""
    env_id: str
    seed: int
    every: int
    episodes: int
    threads: int
    started: float
    """when, in seconds since 1970"""
    flags: tuple[str, ...] = ()
    """of ours the agent and its flags, of Stable-Baselines3 the agent"""
    checkout: str = ""
    """of CleanRL"""


class Evaluation(NamedTuple):
    """What a policy was worth, and what it had cost until then."""

    frames: int
    episodic_return: float
    wall_s: float
    cpu_s: float


# ---- the programs, each in its own process ---------------------------------------------------------------------------


class Stopwatch:
    """Seconds since a process was started, without those of evaluations."""

    def __init__(self, started: float) -> None:
        self._now = lambda: np.array([time.time() - started, time.process_time()])
        self._paused = np.zeros(2)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count what happens within."""
        before = self._now()
        yield
        self._paused += self._now() - before

    def read(self) -> tuple[float, float]:
        """Return seconds of the wall-clock, and of all threads together."""
        wall_s, cpu_s = self._now() - self._paused
        return float(wall_s), float(cpu_s)


class Judge:
    """Evaluates the policies of the others when it is time, and tells the benchmark."""

    def __init__(self, order: Order, watch: Stopwatch, report: Callable[[Evaluation], None]) -> None:
        self._order, self._watch, self._report = order, watch, report
        self._next = order.every

    def __call__(self, frames: int, policy: Callable[[np.ndarray], np.ndarray]) -> None:
        """Evaluate a policy, from observations to actions, if as many frames have gone by."""
        if frames < self._next:
            return
        self._next = frames - frames % self._order.every + self._order.every
        with self._watch.paused():
            score = rollout(self._order, policy)
        self._report(Evaluation(frames, score, *self._watch.read()))


def rollout(order: Order, policy: Callable[[np.ndarray], np.ndarray]) -> float:
    """Return the mean return of an episode in each of several environments, all of the same length."""
    pool = Pool(task_of(order, order.episodes), order.threads, normalise=False, seed=EVAL_SEED)
    obs, _ = pool.reset()
    total, ended = np.zeros(order.episodes), False
    while not ended:
        obs, reward, terminated, truncated, _ = pool.step(policy(obs))
        total += reward
        ends = terminated | truncated
        ended = bool(ends.all())
        if ends.any() and not ended:
            raise Missing(f"{order.env_id}: its episodes are not all of the same length")
    pool.close()
    return float(total.mean())


def task_of(order: Order, num_envs: int) -> Task:
    """Return what a pool of environments is made from."""
    return Task("SAC", order.env_id, num_envs, (), (0, 0, 0, 0))


def run_ours(order: Order, watch: Stopwatch, report: Callable[[Evaluation], None]) -> None:
    """Train with an agent of this repository, by its own command line."""
    episodes, run = need("agents.episodes"), need("agents.run").Run
    evaluate, log = episodes.evaluate, run.log

    def unclocked(*args: Any, **options: Any) -> Any:
        with watch.paused():
            return evaluate(*args, **options)

    def told(self: Any, step: int, metrics: Mapping[str, Any]) -> Any:
        score = metrics.get("eval/episodic_return")
        if score is not None:
            report(Evaluation(step, float(score), *watch.read()))
        return log(self, step, metrics)

    episodes.evaluate, run.log = unclocked, told
    agent, *flags = order.flags
    common = {"env-id": order.env_id, "seed": order.seed, "eval-every": order.every, "eval-envs": order.episodes}
    common |= {"threads": order.threads, "env-threads": order.threads, "size": "small", "device": "cpu"}
    words = [word for name, value in common.items() for word in (f"--{name}", value)]
    run_script(ROOT / "agents" / f"{agent}.py", [*words, "--quiet", *flags])


def run_cleanrl(order: Order, watch: Stopwatch, report: Callable[[Evaluation], None]) -> None:
    """Train with CleanRL's TD3, by its own command line."""
    path = Path(order.checkout) / "cleanrl" / "td3_continuous_action.py"
    if not path.is_file():
        raise Missing(f"{order.checkout} is no checkout of github.com/vwxyzjn/cleanrl: there is no cleanrl/{path.name}")
    torch = need("torch")
    need("tyro")
    sys.path.insert(0, order.checkout)
    judge = Judge(order, watch, report)

    class Writer:
        """In the place of TensorBoard's: of all that the script logs, what ends an iteration."""

        def add_scalar(self, tag: str, _: float, step: int) -> None:
            if tag == "charts/SPS":
                actor = sys._getframe(1).f_globals["actor"]
                with torch.no_grad():
                    judge(step, lambda obs: actor(torch.from_numpy(obs)).numpy())

        def add_text(self, *_: object) -> None:
            pass

    sys.modules["torch.utils.tensorboard"] = module("tensorboard", SummaryWriter=lambda *_: Writer())
    need("gymnasium").vector.SyncVectorEnv = lambda thunks: SameStep(order)
    need("cleanrl_utils.buffers")
    run_script(path, ["--no-cuda", "--env-id", order.env_id, "--seed", order.seed])


class SameStep(Restarting):
    """As Gymnasium's vector environments were when CleanRL's script was written: they restart within the step."""

    def __init__(self, order: Order) -> None:
        super().__init__(task_of(order, 1), order.threads, normalise=False, seed=order.seed)
        self.num_envs = 1

    def reset(self, **_: Any) -> Any:
        """Return the first observation."""
        return super().reset(), {}

    def step(self, actions: np.ndarray) -> Any:
        """Return five values; an episode's last observation is in the sixth, a dict."""
        self.step_async(actions)
        obs, reward, done, infos = self.step_wait()
        truncated = np.array([bool(info.get("TimeLimit.truncated")) for info in infos])
        final = np.array([info.get("terminal_observation") for info in infos], object)
        return obs, reward, done & ~truncated, truncated, {"final_observation": final} if done.any() else {}


def run_sb3(order: Order, watch: Stopwatch, report: Callable[[Evaluation], None]) -> None:
    """Train with Stable-Baselines3."""
    sb3 = need("stable_baselines3", "stable-baselines3")
    base = need("stable_baselines3.common.vec_env").VecEnv
    callback = need("stable_baselines3.common.callbacks").BaseCallback
    env = type("Env", (Restarting, base), {})(task_of(order, 1), order.threads, False, order.seed)
    base.__init__(env, 1, env.single_observation_space, env.single_action_space)
    judge = Judge(order, watch, report)

    class Tick(callback):  # type: ignore[misc, valid-type]
        def _on_step(self) -> bool:
            judge(self.num_timesteps, lambda obs: self.model.predict(obs, deterministic=True)[0])
            return True

    env.seed = lambda _: None  # it has been given
    if order.flags == ("TD3",):
        size = env.single_action_space.shape
        noise = need("stable_baselines3.common.noise").NormalActionNoise(np.zeros(size), np.full(size, 0.1))
        model = sb3.TD3("MlpPolicy", env, action_noise=noise, seed=order.seed, device="cpu")
    else:
        model = sb3.SAC("MlpPolicy", env, seed=order.seed, device="cpu")
    model.learn(10**9, callback=Tick(), log_interval=None)


PROGRAMS: dict[str, Callable[[Order, Stopwatch, Callable[[Evaluation], None]], None]] = {
    "ours": run_ours,
    "CleanRL": run_cleanrl,
    "SB3": run_sb3,
}


def serve(text: str) -> None:
    """Be one of the programs, as the order says, and tell the benchmark over stdout of every evaluation."""
    fields = json.loads(text)
    order = Order(**{**fields, "flags": tuple(fields["flags"])})
    watch = Stopwatch(order.started)
    reports = mute()
    print(json.dumps(versions()), file=reports, flush=True)
    try:
        need("torch").set_num_threads(order.threads)
        PROGRAMS[order.program](order, watch, lambda seen: print(json.dumps(seen), file=reports, flush=True))
    except Missing as missing:
        sys.exit(str(missing))


# ---- the benchmark ---------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A program, by the name that the table gives it."""

    name: str
    python: str
    program: str
    flags: tuple[str, ...] = ()


def lineup(args: Args) -> list[Row]:
    """Return all programs."""
    more, here, there = ("--num-envs", "4"), sys.executable, str(args.sb3_python or sys.executable)
    rows = [
        Row(f"{title}{' --sem' if sem else ''}{' --num-envs 4' if often else ''}", here, "ours", (agent, *sem, *often))
        for often in ((), more)
        for title, agent in (("FastTD3", "fasttd3"), ("FastSAC", "fastsac"))
        for sem in ((), ("--sem",))
    ]
    rows += [Row("CleanRL TD3", here, "CleanRL")] if args.cleanrl is not None else []
    rows += [Row(f"SB3 {name}", there, "SB3", (name,)) for name in ("TD3", "SAC")]
    return [row for row in rows if not args.programs or row.name in args.programs]


def train(args: Args, row: Row, seed: int) -> tuple[dict[str, str | None], list[Evaluation]]:
    """Return the versions of a program's packages, and its evaluations until it is there or stopped.

    Raises:
        Missing: it has ended by itself before; its last word.
    """
    order = Order(row.program, args.env_id, seed, args.every, args.episodes, args.threads, time.time(), row.flags)
    order = order._replace(checkout=str(args.cleanrl.resolve()) if args.cleanrl else "")
    env = {"PYTHONPATH": str(ROOT), **dict.fromkeys(THREADS, str(args.threads))}
    command = [row.python, "-m", "benchmarks.reach", json.dumps(order._asdict())]
    seen: list[Evaluation] = []
    with tempfile.TemporaryDirectory() as folder, Program(command, Path(folder), env) as program:
        installed = program.read()
        while not seen or (seen[-1].episodic_return < args.goal and seen[-1].frames < args.frames):
            try:
                seen.append(Evaluation(*program.read()))
            except Missing:
                if not seen or not program.finished:
                    raise
                break
    return installed, seen


def results(args: Args, runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the table shows of each program: frames and seconds, [median, least, largest] over its seeds.

    Those of a seed that has not got there are infinite, in JSON null. `speedup` and `sparing` are how many times less
    seconds and frames ours takes than whichever other one takes least.
    """
    by_name: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        last = Evaluation(*run["evaluations"][-1])
        there = last.episodic_return >= args.goal
        seconds = last.cpu_s if args.clock == "cpu" else last.wall_s
        by_name.setdefault(run["program"], []).append((last.frames, seconds) if there else (math.inf, math.inf))
    medians = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)] for name, pairs in by_name.items()
    }
    others = {run["program"] for run in runs if run["side"] == "rival"}
    best = [min((medians[name][i] for name in others & medians.keys()), default=math.nan) for i in (0, 1)]
    rows = []
    for name, pairs in by_name.items():
        spreads = {
            what: [statistics.median(column), min(column), max(column)]
            for what, column in zip(("frames", "seconds"), zip(*pairs, strict=True), strict=True)
        }
        ratios = dict.fromkeys(("sparing", "speedup"))
        if name not in others:
            times = (least / mine for least, mine in zip(best, medians[name], strict=True))
            ratios = dict(zip(ratios, (x if math.isfinite(x) else None for x in times), strict=True))
        rows.append({"program": name, "seeds": len(pairs), **spreads, **ratios})
    return rows


def table(rows: list[dict[str, Any]], clock: str) -> str:
    """Return the results as text."""

    def spread(of: list[float]) -> str:
        shown = ["never" if math.isinf(x) else f"{x:,.0f}" for x in of]
        return f"{shown[0]:>9}  {f'[{shown[1]}, {shown[2]}]':<20}"

    columns = [f"{name:>9}  {'[least, largest]':<20}" for name in ("frames", f"{clock} s")]
    lines = [f"{'':<26}{''.join(columns)}{'x fewer':>9}{'x faster':>9}"]
    for row in rows:
        ratios = "".join(f"{row[key]:>9.2f}" if row[key] else " " * 9 for key in ("sparing", "speedup"))
        lines.append(f"{row['program']:<26}{spread(row['frames'])}{spread(row['seconds'])}{ratios}".rstrip())
    return "\n".join(lines)


def run(args: Args, report: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Train what `runs` does not have yet, adding to it and to the file after each, and print the table.

    Raises:
        Missing: a program of ours does not run.
    """
    missing = {}
    if args.cleanrl is None and (not args.programs or "CleanRL TD3" in args.programs):
        missing["CleanRL TD3"] = "not installed: git clone https://github.com/vwxyzjn/cleanrl, and --cleanrl cleanrl"
    have = {(run["program"], run["seed"]) for run in runs}
    for seed in args.seeds:
        for row in lineup(args):
            if (row.name, seed) in have or row.name in missing:
                continue
            try:
                installed, seen = train(args, row, seed)
            except Missing as reason:
                if row.program == "ours":
                    raise Missing(f"{row.name} does not run: {reason}") from None
                missing[row.name] = str(reason)
                continue
            last = seen[-1]
            print(
                f"{row.name}, seed {seed}: {last.episodic_return:.0f} after {last.frames:,} frames, "
                f"{last.wall_s:,.0f} s, {last.cpu_s:,.0f} s of processor time",
                flush=True,
            )
            evaluations = [list(each) for each in seen]
            side = "ours" if row.program == "ours" else "rival"
            of = {"program": row.name, "side": side, "seed": seed, "versions": installed}
            runs.append({**of, "evaluations": evaluations})
            write(args, report, runs)
    if runs:
        print(f"\n{table(results(args, runs), args.clock)}")
    for name, why in missing.items():
        print(f"{name:<26}{why}")
    if args.out is not None and runs:
        write(args, report, runs)
        print(f"\nevery number: {args.out}")


def write(args: Args, report: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    """Write the file, if one is asked for; what was never reached is null."""
    if args.out is None:
        return
    rows = results(args, runs)
    finite = [
        {**row, **{key: [x if math.isfinite(x) else None for x in row[key]] for key in ("frames", "seconds")}}
        for row in rows
    ]
    part = args.out.with_suffix(".part")
    part.write_text(json.dumps({**report, "results": finite, "runs": runs}, indent=1) + "\n")
    part.replace(args.out)


if __name__ == "__main__":
    serve(sys.argv[1])
