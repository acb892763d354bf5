"""Train a grid of agents x tasks x variants x seeds, and go on with it until all of it is done.

    python benchmarks/sweep.py --agents fasttd3 --tasks WalkerWalk-v1 CheetahRun-v1 \\
        --variants "sem-off:" "sem-on:--sem" "sem-actor:--sem --no-sem-critic" --seeds 1-5 \\
        --out runs/walker -- --total-timesteps 100000      # after -- come flags of the agents
    python benchmarks/sweep.py benchmarks/suites/dmc-small.toml --gpus 0,1 --per-gpu 2
    python benchmarks/status.py runs/walker                # from another shell

Every run is a process of its own, `python agents/x.py --run-dir OUT/runs/TASK/AGENT__VARIANT/seedK ...`. All tasks and
variants of the first seed come first, so that what a sweep has done is a fair comparison whenever it stops.

Give the same command again, after a crash, a reboot or a kill: what is done is skipped, what is half done goes on from
its checkpoint, and what still runs is waited for and not started twice. A run that was killed is started again, twice
at most; one that has failed by itself is not, unless you say --retry-failed. Runs of other settings or of other code
are not mixed with these, unless you say so with --mismatch. Ctrl-C or SIGTERM let all runs save.

Exit status: 0 all done, 1 something is not (listed, with its last lines), 75 stopped by a signal, 2 bad input.

Engines: local, this machine, nothing to install; ray, the machines of a Ray cluster (pip install 'semrl[ray]'); slurm,
array jobs (pip install 'semrl[slurm]').
"""

import difflib
import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import tyro

from agents import config
from benchmarks import engines, programs, status
from benchmarks.engines import ROOT, Job, Verdict
from benchmarks.records import SEEDS_OF_SWEEP, seeds_link
from benchmarks.status import read_json, write_json

RESERVED = ("--env-id", "--seed", "--exp-name", "--run-dir", "--run-root", "--resume")
"""what the grid decides"""
IGNORED = ("--run-dir", "--threads", "--quiet", "--keep-checkpoints")
"""flags that may differ between two lives of a run"""
IGNORED_WHEN_DONE = ("--log-every", "--save-every", "--save-replay", "--env-threads")
"""flags that no result depends on"""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Args:
    """Train a grid of agents x tasks x variants x seeds. Flags of the agents come last, after --."""

    suite: tyro.conf.Positional[str] = ""
    """TOML file with agents, tasks, variants, seeds and flags, see benchmarks/suites; the flags here win"""

    # ---- the grid ----
    agents: tuple[str, ...] = ("fasttd3",)
    """agents by name, or paths of programs that take the same flags"""
    tasks: tuple[str, ...] = ()
    """tasks, by the names that `python -m envs` lists"""
    variants: tuple[str, ...] = ("default:",)
    """variants to compare, each a name, a colon and flags: "sem-off:" "sem-on:--sem" """
    seeds: tuple[str, ...] = ("1-5",)
    """seeds, single or from-to"""

    # ---- where ----
    out: str = ""
    """directory of the sweep; by default runs/ and the name of the suite"""
    engine: Literal["local", "ray", "slurm"] = "local"
    """what decides where a run runs"""
    gpus: str = "auto"
    """GPUs by number, 0,1 for instance; auto for all of this machine, none for the CPU; any, with ray and slurm, for a
    share of some GPU for each run"""
    per_gpu: int = 1
    """runs that share a GPU; more than the memory holds are not started"""
    slots: int = 0
    """runs side by side on the CPU; 0 for as many as there are cores. With slurm: within one task, by default 1"""
    ranks: int = 1
    """processes that train each run together, started by torchrun; on GPUs each has one of its own"""
    threads: int = 0
    """CPU threads of each process's learner; 0 for an equal share of the cores"""
    ray_address: str = ""
    """Ray cluster to join; empty for the one that runs here, or a new one"""
    slurm: tuple[str, ...] = ()
    """parameters of submitit, key=value: timeout_min=720 gpus_per_node=1 cpus_per_task=8 slurm_partition=gpu"""

    # ---- what to do about what is there ----
    retries: int = 2
    """how often a run that was killed, or has saved itself, is started again"""
    retry_failed: bool = False
    """also start again what has failed by itself"""
    mismatch: Literal["refuse", "keep", "rerun"] = "refuse"
    """what to do about runs that were made with other settings or other code: refuse to go on, keep them and go on, or
    put them aside in OUT/replaced and run them again"""
    dry_run: bool = False
    """print the commands that would be run, and do nothing"""


# ---- the grid --------------------------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """What is to be trained."""

    scripts: dict[str, str]
    """agent -> program"""
    tasks: list[str]
    variants: dict[str, list[str]]
    """name -> flags"""
    seeds: list[int]
    flags: list[str]
    """of all runs"""


def grid_of(args: Args, explicit: set[str], flags: Sequence[str]) -> Grid:
    """Return the grid that a suite and the command line ask for.

    Raises:
        ValueError: it makes no sense.
    """
    suite: dict[str, Any] = {}
    if args.suite:
        try:
            suite = tomllib.loads(Path(args.suite).read_text())
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot read the suite {args.suite}: {error}") from error
        if unknown := sorted(suite.keys() - {"agents", "tasks", "variants", "seeds", "flags"}):
            raise ValueError(f"{args.suite}: unknown key {unknown[0]}; legal are agents, tasks, variants, seeds, flags")
        check_suite(args.suite, suite)

    def ask(name: str, given: Any) -> Any:
        return given if name in explicit else suite.get(name, given)

    tasks = [str(task) for task in ask("tasks", args.tasks)]
    if stray := [task for task in tasks if task.endswith(".toml")]:
        raise ValueError(f"{stray[0]} is among the tasks: name the suite before the flags")
    if not tasks:
        raise ValueError("no tasks: name some with --tasks, or a suite (--help says more)")
    stems = Counter(Path(agent).stem for agent in ask("agents", args.agents))
    if twice := [name for name, count in stems.items() if count > 1]:
        raise ValueError(f"--agents: {twice[0]} is there twice; runs are told apart by the names of the files")
    scripts = {Path(agent).stem: script_of(agent) for agent in ask("agents", args.agents)}
    grid = Grid(
        scripts,
        tasks,
        _variants(ask("variants", args.variants)),
        _seeds(ask("seeds", args.seeds)),
        [*shlex.split(suite.get("flags", "")), *flags],
    )
    for words in (grid.flags, *grid.variants.values()):
        refuse_reserved(words)
    folders: dict[str, str] = {}
    for task in tasks:
        if (other := folders.setdefault(_slug(task), task)) != task:
            raise ValueError(f"--tasks: {other} and {task} would share the directory {_slug(task)}")
    if len(folders) < len(tasks):
        raise ValueError(f"--tasks: {next(task for task in tasks if tasks.count(task) > 1)} is there twice")
    return grid


def check_suite(name: str, suite: Mapping[str, Any]) -> None:
    """Let nothing pass that has the wrong type.

    Raises:
        ValueError: something has; says what is legal.
    """

    def texts(x: Any) -> bool:
        return isinstance(x, list) and all(isinstance(each, str) for each in x)

    def table(x: Any) -> bool:
        return isinstance(x, dict) and all(isinstance(each, str) for each in x.values())

    seeds = [str, int, list]
    legal = {
        "agents": (texts, 'a list of names: ["fasttd3"]'),
        "tasks": (texts, 'a list of names: ["WalkerWalk-v1"]'),
        "variants": (lambda x: texts(x) or table(x), 'a table of flags: [variants], on = "--sem"'),
        "seeds": (lambda x: type(x) in seeds, 'a number, "1-5", or a list of them'),
        "flags": (lambda x: isinstance(x, str), 'one text: "--size small"'),
    }
    for key, value in suite.items():
        fits, expected = legal[key]
        if not fits(value):
            raise ValueError(f"{name}: {key} is {value!r}; expected {expected}")


def refuse_reserved(words: Sequence[str]) -> None:
    """Let nobody set what the grid decides.

    Raises:
        ValueError: somebody does.
    """
    for word in words:
        if (flag := word.partition("=")[0].replace("_", "-")) in RESERVED:
            raise ValueError(f"{flag} is what the sweep sets itself")


def script_of(agent: str) -> str:
    """Return the path of an agent's program.

    Raises:
        ValueError: there is none.
    """
    path = Path(agent) if agent.endswith(".py") else ROOT / "agents" / f"{agent}.py"
    if not path.is_file():
        names = [p.stem for p in (ROOT / "agents").glob("*.py") if "PRESETS" in p.read_text()]
        near = difflib.get_close_matches(agent, names, n=1)
        raise ValueError(
            f"no agent {agent!r}{f'; did you mean {near[0]}?' if near else ''}: {', '.join(sorted(names))}"
        )
    return str(path.resolve())


def _variants(asked: Any) -> dict[str, list[str]]:
    """Name -> flags, from a table or from "name:flags"."""
    pairs = list(asked.items()) if isinstance(asked, dict) else [str(text).partition(":")[::2] for text in asked]
    for name, _ in pairs:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", name):
            raise ValueError(f"variant {name!r}: write it as name:flags, the name of letters, digits and . + - _")
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise ValueError(f"two variants are called {twice[0]}")
    found = {}
    for name, flags in pairs:
        try:
            found[name] = shlex.split(flags)
        except ValueError as error:
            raise ValueError(f"variant {name}: {flags}: {error}") from error
    return found


def _seeds(asked: Any) -> list[int]:
    """Numbers from "1-5", "7" or 7."""
    found: list[int] = []
    for text in asked if isinstance(asked, (list, tuple)) else [asked]:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(text))
        if not match:
            raise ValueError(f"--seeds {text}: expected numbers, single or from-to")
        first, last = int(match[1]), int(match[2] or match[1])
        found += range(first, last + 1)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"--seeds {asked}: expected at least one, and none twice")
    return found


def settings_of(words: Sequence[str], kind: str = "cpu") -> dict[str, str]:
    """Return flags in a form that can be compared: `--no-sem` is `--sem` "no", of two equal ones the last counts.

    The device counts as cpu or gpu, since sizes are chosen by it; its number does not.
    """
    found: dict[str, str] = {}
    flag = ""
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            flag = flag.replace("_", "-")
            if flag.startswith("--no-"):
                flag, value, equals = f"--{flag[5:]}", "no", "="
            found[flag] = value if equals else ""
        elif flag:
            found[flag] = f"{found[flag]} {word}".strip()
    found["--device"] = "cpu" if found.get("--device") == "cpu" else kind
    return {flag: value for flag, value in sorted(found.items()) if flag not in IGNORED}


def _slug(text: str) -> str:
    """A name for a directory."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII)


def jobs_of(grid: Grid, root: Path, kind: str, any_code: bool = False, ranks: int = 1) -> list[Job]:
    """Return the runs, in the order in which they start: all of the first seed, then all of the next."""
    git = git_version()
    code = {agent: engines.code_version(script) for agent, script in grid.scripts.items()}
    jobs = []
    for seed in grid.seeds:
        for task in grid.tasks:
            for agent, script in grid.scripts.items():
                for variant, own in grid.variants.items():
                    name = f"{agent}__{variant}"
                    key = f"{_slug(task)}/{name}/seed{seed}"
                    flags = ["--env-id", task, "--seed", str(seed), "--exp-name", name]
                    flags += ["--run-dir", str(root / "runs" / key), *grid.flags, *own]
                    jobs.append(
                        Job(
                            key=key,
                            dir=root / "runs" / key,
                            script=script,
                            flags=tuple(flags),
                            settings=settings_of(flags, kind) | ({"ranks": str(ranks)} if ranks > 1 else {}),
                            code=code[agent],
                            git=git,
                            any_code=any_code,
                            cwd=os.getcwd(),
                            ranks=ranks,
                        )
                    )
    return jobs


def git_version() -> str:
    """Commit of this checkout, and whether files differ from it; empty outside of git."""
    try:
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


# ---- what is there already -------------------------------------------------------------------------------------------


def difference(job: Job) -> str:
    """How a run that is there was made differently from what is asked now, in words; empty if it was not."""
    launch = read_json(job.dir / "launch.json")
    settings = launch.get("settings")
    if not isinstance(settings, dict):
        data = any((job.dir / name).exists() for name in ("config.json", "status.json", "result.json"))
        return "there is no record of its settings" if data else ""
    ignored = IGNORED_WHEN_DONE if status.done(job.dir) else ()
    changes = [
        f"{flag} was {settings.get(flag, 'not given') or 'on'}, is {job.settings.get(flag, 'not given') or 'on'}"
        for flag in sorted(settings.keys() | job.settings.keys())
        if settings.get(flag) != job.settings.get(flag) and flag not in ignored
    ]
    if changes:
        return f"other settings: {', '.join(changes)}"
    if launch.get("source") != job.code:
        before = f"git {launch.get('git') or 'unknown'}, source {launch.get('source')}"
        return f"other code: it ran with {before}; this is git {job.git or 'unknown'}, source {job.code}"
    return ""


def mismatched(jobs: Sequence[Job], root: Path, policy: str) -> list[Job]:
    """Return the runs to be put aside, since they are of other settings or other code. Says what becomes of them.

    Raises:
        ValueError: there are some, and they are to be refused, or run at this moment.
    """
    differing = [(job, text) for job in jobs if (text := difference(job))]
    if not differing:
        return []
    job, text = differing[0]
    count = f"{len(differing)} of {len(jobs)} runs in {root} differ from what is asked; {job.key}: {text}"
    if policy == "refuse":
        raise ValueError(f"{count}. Use another --out, or --mismatch keep, or --mismatch rerun")
    running = [job.key for job, _ in differing if status.alive(job.dir)] if policy == "rerun" else []
    if running:
        raise ValueError(f"{count}. It cannot be replaced while it runs: {running[0]}")
    print(f"{count}: {'kept' if policy == 'keep' else 'put aside in ' + str(root / 'replaced')}", file=sys.stderr)
    return [job for job, _ in differing] if policy == "rerun" else []


def put_aside(jobs: Sequence[Job], root: Path) -> None:
    """Move runs out of the way."""
    aside = root / "replaced" / time.strftime("%Y%m%d-%H%M%S")
    for job in jobs:
        target = aside / job.key
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(job.dir, target)


def to_do(jobs: Sequence[Job], aside: Sequence[Job], retry_failed: bool) -> list[Job]:
    """Return the runs that are to be started, or gone on with."""
    skipped = ("done",) if retry_failed else ("done", "failed")
    anew = {job.key for job in aside}
    return [job for job in jobs if job.key in anew or status.look(job.key, job.dir).state not in skipped]


def check_flags(jobs: Sequence[Job], args: Args, slots: Sequence[str]) -> None:
    """Let each agent read the flags that it will get, so that a slip of the pen costs no runs.

    Raises:
        ValueError: it refuses them.
    """
    env = engines.environment(slots[0] if slots else "", args.threads or engines.cores(), Path())
    del env["TORCHINDUCTOR_CACHE_DIR"]
    if args.ranks > 1:  # as torchrun says it to each of its processes
        env |= {"TORCHELASTIC_RUN_ID": "asked", "WORLD_SIZE": str(args.ranks)}
    lines: dict[str, dict[str, list[str]]] = {}
    for job in jobs:
        words = job.argv(threads_of(args, slots))
        name = job.key.rpartition("/seed")[0]
        lines.setdefault(job.script, {}).setdefault(name, words[words.index(job.script) + 1 :])
    for script, own in lines.items():
        programs.check(script, own, env, here=args.engine == "local", gpu=bool(slots and slots[0]))


@contextmanager
def folder_of(root: Path) -> Iterator[None]:
    """Make a folder, and take it away again if the sweep is refused before it has begun a run."""
    made = [path for path in (root, *root.parents) if not path.exists()]
    root.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except (ValueError, OSError) as refused:
        begun = any((root / name).exists() for name in ("runs", "slurm.json"))
        if isinstance(refused, OSError):  # a full disk, perhaps while a queue has the sweep's tasks
            begun = begun or (root / "sweep.json").exists()
        if made and not begun:
            shutil.rmtree(root, ignore_errors=True)
            for path in made[1:]:
                with suppress(OSError):
                    path.rmdir()
        raise


def lock(root: Path) -> IO[str]:
    """Hold the directory against a second sweep; two would fill the same slots.

    Raises:
        ValueError: there is one.
    """
    file = open(root / ".sweep.lock", "a+")  # noqa: SIM115  lives as long as the sweep
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = file.read().strip() or "another process"
        raise ValueError(f"{holder} works on {root} already; python {status.called(status.__file__)} {root}") from error
    except OSError as error:
        print(f"{root}: no locks on this file system ({error}); start no second sweep there", file=sys.stderr)
    file.truncate(0)
    file.write(f"process {os.getpid()} of {socket.gethostname()}")
    file.flush()
    return file


# ---- the sweep -------------------------------------------------------------------------------------------------------


def places(args: Args) -> tuple[list[str], str]:
    """Return the slots of this machine, each the names of a run's GPUs or empty, and whether runs are on gpu or cpu.

    Raises:
        ValueError: there are no such GPUs, or a run needs more of them than there are, or shares in several.
    """
    names = [] if args.gpus == "none" else engines.gpus() if args.gpus == "auto" else _gpus(args)
    if not names:
        return [""] * (args.slots or max(1, engines.cores() // (max(args.threads, 1) * args.ranks))), "cpu"
    if args.ranks > 1 and args.per_gpu > 1:
        raise ValueError(f"--ranks {args.ranks} --per-gpu {args.per_gpu}: runs on several GPUs share none")
    if args.ranks > len(names) and args.engine == "local":
        raise ValueError(f"--ranks {args.ranks}: a run needs as many GPUs, there are {len(names)}")
    return engines.groups(names, args.ranks) * args.per_gpu, "gpu"


def _gpus(args: Args) -> list[str]:
    """Names of GPUs from "0,1"."""
    names = [name.strip() for name in args.gpus.split(",")]
    if args.gpus == "any" and args.engine != "local":
        return names
    if not all(re.fullmatch(r"\d+|(GPU|MIG)-[\w/.-]+", name) for name in names):
        legal = "auto, none, or GPUs by number: 0,1" + ("" if args.engine == "local" else "; or any")
        raise ValueError(f"--gpus {args.gpus}: expected {legal}")
    if len(set(names)) < len(names):
        raise ValueError(f"--gpus {args.gpus}: one is there twice; --per-gpu says how many runs share a GPU")
    if args.engine == "local" and (missing := engines.missing_gpus(names)):
        raise ValueError(f"--gpus {args.gpus}: this machine has no GPU {missing[0]} (nvidia-smi lists those it has)")
    return names


def threads_of(args: Args, slots: Sequence[str]) -> int | None:
    """Return how many CPU threads a run is told to use; None where it decides itself, or a task of Slurm does."""
    if args.engine == "ray":
        return args.threads or 1
    runs = len(slots) * args.ranks if args.engine == "local" else 1
    return args.threads or (max(1, engines.cores() // runs) if runs > 1 else None)


def engine_of(args: Args, root: Path, slots: Sequence[str], kind: str, screen: status.Screen) -> engines.Engine:
    """Return the engine that is asked for.

    Raises:
        ValueError: something is missing, or wrong.
    """
    cache = root / ".cache" / "torchinductor"
    if args.engine == "ray":
        share = args.ranks / args.per_gpu if kind == "gpu" else 0.0
        return engines.Ray(args.ray_address, share, threads_of(args, slots) or 1, cache, root / ".stop", args.ranks)
    if args.engine == "slurm":
        parameters = dict(text.partition("=")[::2] for text in args.slurm)
        count = parameters.get("gpus_per_node", "1")
        on_gpus = kind == "gpu" and count.isdigit()
        side_by_side = max(args.per_gpu * int(count) // args.ranks, 1) if on_gpus else max(args.slots, 1)
        per_gpu = args.per_gpu if kind == "gpu" else 0
        return engines.Slurm(root, parameters, per_gpu, side_by_side, threads_of(args, slots))
    return engines.Local(slots, threads_of(args, slots), cache, screen.say)


def describe(jobs: Sequence[Job], todo: Sequence[Job], args: Args, slots: Sequence[str]) -> str:
    """One line about what is going to happen."""
    if args.engine == "local":
        gpus = sorted({slot for slot in slots if slot})
        where = f"{args.per_gpu} per GPU on GPU {', '.join(gpus)}" if gpus else f"{len(slots)} side by side on the CPU"
        where = f"on GPUs {' and '.join(gpus)}" if gpus and args.ranks > 1 else where
        where += f", {args.ranks} processes each" if args.ranks > 1 else ""
    else:
        where = f"on {args.engine}"
    return f"{len(jobs)} runs, {len(todo)} to do, {where}"


def report(jobs: Sequence[Job], verdicts: Mapping[str, Verdict], root: Path) -> None:
    """Print what is not done, with the last lines of what has failed, and what to do about it."""
    count = Counter(verdict.state for verdict in verdicts.values())
    parts = [f"{count['done']} of {len(jobs)} done", *(f"{count[v]} {v}" for v in ("failed", "unfinished") if count[v])]
    print(f"{root}: {', '.join(parts)}")
    for job in jobs:
        if verdicts[job.key].state == "failed":
            print(f"\nfailed   {job.key}  {verdicts[job.key].why}")
            for line in status.last_lines(job.dir / "log.txt", 3):
                print(f"         {line[:200]}")
            if (log := job.dir / "log.txt").is_file():  # else it was never started
                print(f"         log: {log}")
    if count["failed"]:
        print("\nThe same command with --retry-failed starts the failed runs again.")
    if count["unfinished"]:
        print("\nThe same command goes on with what is unfinished.")
    print(f"learning curves  tensorboard --logdir {shlex.quote(str(root / 'runs'))}")
    print(f"seeds of a variant in one colour  {seeds_link(SEEDS_OF_SWEEP)}")
    report = shlex.quote(status.called(str(ROOT / "benchmarks" / "report.py")))
    print(f"report           python {report} {shlex.quote(str(root))}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sweep; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parsed = config.parse(Args, argv=words[:cut])
    args = parsed.args
    config.positive(args, "per_gpu", "ranks")
    config.require(min(args.slots, args.threads, args.retries) >= 0, "--slots, --threads and --retries: 0 or above")
    config.require("out" not in parsed.explicit or bool(args.out.strip()), "--out is empty")
    root = Path(args.out or Path("runs") / (Path(args.suite).stem if args.suite else "sweep")).absolute()
    try:
        slots, kind = places(args)
        if args.engine == "slurm" and any(text.startswith(("gpus_per_node=", "slurm_gpus")) for text in args.slurm):
            kind = "gpu"
        grid = grid_of(args, parsed.explicit, words[cut + 1 :])
        jobs = jobs_of(grid, root, kind, args.mismatch == "keep", args.ranks)
        if args.dry_run:
            return rehearse(args, jobs, root, slots)
        with folder_of(root), lock(root):
            return sweep(args, jobs, root, slots, kind, [status.called(__file__), *words])
    except ValueError as error:
        config.fail(str(error))
    except OSError as error:
        config.fail(f"cannot write in {root}: {error.strerror or error}")


def rehearse(args: Args, jobs: Sequence[Job], root: Path, slots: Sequence[str]) -> int:
    """Print the commands that a sweep would start, each a line, and on stderr what it would do with them.

    Raises:
        ValueError: it would be refused.
    """
    todo = to_do(jobs, mismatched(jobs, root, args.mismatch), args.retry_failed)
    check_flags(todo, args, slots)
    print(f"{root}: {describe(jobs, todo, args, slots)}", file=sys.stderr, flush=True)
    if args.engine == "slurm" and not args.threads:
        print("where several runs share a task, it adds --threads: an equal share of its cores", file=sys.stderr)
    for job in todo:
        print(shlex.join(job.argv(threads_of(args, slots))))
    return 0


@contextmanager
def hearing(stop: engines.Stop, screen: status.Screen, engine: engines.Engine) -> Iterator[None]:
    """Let signals ask runs to stop; in the end take the table away and release what the engine holds."""
    before = {number: signal.signal(number, stop.heard) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        screen.close()
        engine.close()
        for number, handler in before.items():
            signal.signal(number, handler)


def sweep(args: Args, jobs: Sequence[Job], root: Path, slots: Sequence[str], kind: str, command: list[str]) -> int:
    """Run what is not done of these; returns the exit status.

    Raises:
        ValueError: something is missing, or the runs that are there do not belong to these.
        OSError: the disk refuses before anything is started.
    """
    aside = mismatched(jobs, root, args.mismatch)
    todo = to_do(jobs, aside, args.retry_failed)
    check_flags(todo, args, slots)
    screen = status.Screen(root, [job.key for job in jobs])
    engine = engine_of(args, root, slots, kind, screen) if todo else None
    put_aside(aside, root)
    seen = {job.key: status.look(job.key, job.dir) for job in jobs}
    verdicts = {
        key: Verdict(run.state if run.state in ("done", "failed") else "unfinished", run.why)
        for key, run in seen.items()
    }
    record = read_json(root / "sweep.json")
    known = record.get("runs") if isinstance(record.get("runs"), list) else []
    session = {
        "command": command,
        "cwd": os.getcwd(),
        "host": socket.gethostname(),
        "engine": args.engine,
        "slots": len(slots) if args.engine == "local" else None,
        "per_gpu": args.per_gpu if kind == "gpu" else None,
        "git": jobs[0].git,
        "started": time.time(),
    }
    sessions = [*(record.get("sessions") or []), session]
    runs = list(dict.fromkeys([*(known or []), *seen]))
    stop = engines.Stop()
    if engine is not None:
        write_json(root / "sweep.json", {"runs": runs, "sessions": sessions})
        with hearing(stop, screen, engine):
            screen.look()
            screen.say(f"{root}: {describe(jobs, todo, args, slots)}")
            try:
                verdicts |= engines.Drive(todo, engine, args.retries, stop, screen.say, screen.refresh).run()
            finally:  # a session without an end was killed
                session |= {"ended": time.time(), "stopped": stop.name}
                try:
                    write_json(root / "sweep.json", {"runs": runs, "sessions": sessions})
                except OSError as error:  # what has come of the runs is yet to be told
                    screen.say(f"{root / 'sweep.json'} does not say how this session ended: {error.strerror}")
        if stop.name and not engine.waits_on_stop:
            print(engine.farewell())
    report(jobs, verdicts, root)
    if all(verdict.state == "done" for verdict in verdicts.values()):
        return 0
    return engines.SAVED if stop.name else 1


if __name__ == "__main__":
    config.program(main)
