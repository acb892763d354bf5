"""Search settings of an agent on a task with Optuna, and go on with the search until all of its trials are done.

    python benchmarks/tune.py --agent fasttd3 --task WalkerWalk-v1 --trials 20 --seeds 2 --out runs/tune-walker \\
        --search actor_lr=log:1e-4:1e-2 gamma=uniform:0.95:0.999 num_updates=int:1:8 sem_actor_groups=choice:1,2,4,8 \\
        -- --sem --total-timesteps 80000                   # after -- come flags of all runs
    python benchmarks/status.py runs/tune-walker           # from another shell

A trial is a setting, trained with each of the same few seeds, 1000 and up: 0 to 999 are for reporting, and a search
that uses one of them is refused. Every run is a process of its own as in a sweep, in OUT/runs/TASK/AGENT__trialN/seedK.

The score of a run is that of a report, the mean of its evaluations in the last 10% of its frames; that of a trial is
the mean over its seeds. Trial 0 is the agent's own settings for the task. The others are drawn by Optuna's
tree-structured Parzen estimator, the first ten at random, none twice. Each has a random stream of its own, so with one
trial at a time (--slots 1 or --at-once 1) the same command draws the same trials, across interruptions too. After each
seed but the last, a trial whose mean so far is below the median of what the others had with as many seeds is pruned,
once there are five of them (--no-prune trains all seeds).

A run that fails by itself, is killed three times, or whose last evaluations are not finite gives its trial a score of
minus infinity: it is counted, listed, and the sampler keeps away from there. If the trial of the agent's own settings
fails, or five in a row do, the search stops: then something else is wrong.

Give the same command again, after a crash, a reboot or a kill: trials that were under way go on in their directories,
and more --trials may be asked for. Another space, other settings or other code are refused in a folder that holds a
search, unless you say so with --mismatch. Ctrl-C or SIGTERM let all runs save.

In OUT: trials.csv, a row per trial; plots/history.png; study.journal, which Optuna and its dashboard read (the study
is called "tune"); tune.json, what was asked. The last lines are a sweep that compares the best trial with the agent's
own settings on fresh seeds: the best of many trials is flattered by the seeds that it was chosen by.

Exit status: 0 all trials done, 1 something is not, 75 stopped by a signal, 2 bad input. Optuna is installed by
pip install 'semrl[tune]'.
"""

import csv
import io
import math
import os
import shlex
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from agents import config
from benchmarks import engines, status, sweep
from benchmarks.engines import Job, Verdict
from benchmarks.plots import MEANINGS, Plot, save
from benchmarks.space import Dimension, ask, parse
from benchmarks.status import read_json, write_json
from benchmarks.study import BASELINE, FAINT, INK, NO_VARIANT, PALETTE, digits_for, number
from benchmarks.trials import Record, Trial, metric_of, optuna, score_of

REPORTING = range(1000)
"""seeds that no search may use"""
FRESH = "1-10"
"""seeds of the sweep that is printed in the end"""
PRUNE_FROM = 5
"""trials to compare with, before one is pruned"""
IN_A_ROW = 5
"""failed trials that end the search"""
SHOWN = 5
"""trials in the table"""
JOURNAL = "study.journal"
"""file of the record"""


@dataclass
class Args:
    """Search settings of an agent on a task. Flags of the agent come last, after --."""

    # ---- what is searched ----
    agent: str = "fasttd3"
    """agent by name, or path of a program that takes the same flags"""
    task: str = ""
    """task, by the name that `python -m envs.list` lists"""
    search: tuple[str, ...] = ()
    """settings and where to search them: actor_lr=log:1e-4:1e-2 gamma=uniform:0.95:0.999 num_updates=int:1:8
    sem_actor_groups=choice:1,2,4,8"""
    trials: int = 20
    """settings to try, the agent's own among them; may be more when the command is given again"""
    seeds: int = 2
    """runs of each trial"""
    first_seed: int = 1000
    """first of their seeds, which are the same for all trials"""
    metric: str = "auto"
    """what is scored, more being better; auto: eval/episodic_return, or eval/success_rate where a task goes by it"""
    prune: bool = True
    """train further seeds of a trial only while it is no worse than the median"""
    sampler_seed: int = 0
    """seed of the draws"""

    # ---- where ----
    out: str = "runs/tune"
    """directory of the search"""
    at_once: int = 0
    """trials under way at the same time; 0 for as many as keep all slots busy, 1 for each to know all before it"""
    gpus: str = "auto"
    """GPUs by number, 0,1 for instance; auto for all of this machine, none for the CPU"""
    per_gpu: int = 1
    """runs that share a GPU; more than the memory holds are not started"""
    slots: int = 0
    """runs side by side on the CPU; 0 for as many as there are cores"""
    threads: int = 0
    """CPU threads of each run's learner; 0 for an equal share of the cores"""

    # ---- what to do about what is there ----
    retries: int = 2
    """how often a run that was killed, or has saved itself, is started again"""
    mismatch: Literal["refuse", "keep", "rerun"] = "refuse"
    """what to do about a search with another space, other settings or other code in this directory: refuse to go on,
    keep its trials and go on, or put it aside in OUT/replaced and begin again"""


# ---- the search ------------------------------------------------------------------------------------------------------


class Search:
    """Decides which runs come next: those of trials under way first, then those of new trials."""

    def __init__(
        self,
        args: Args,
        record: Record,
        flags: Sequence[str],
        make: Callable[[Trial], list[Job]],
        room: int,
        say: Callable[[str], None] = print,
    ) -> None:
        """Nothing is begun yet.

        Args:
            args: settings of the search.
            record: the trials so far.
            flags: of all runs.
            make: given a trial, returns its runs in the order of the seeds.
            room: runs that fit side by side.
            say: takes lines about what happens.
        """
        self.args = args
        self.record = record
        self.flags = list(flags)
        self.make = make
        self.room = room
        self.say = say
        self.seeds = seeds_of(args)
        self.trials = record.trials()
        self.jobs: dict[int, list[Job]] = {}
        """number of a trial -> its runs"""
        self.open: dict[str, tuple[Trial, int]] = {}
        """runs that were handed out and have not ended"""
        self.in_a_row = 0
        """trials that have failed since one did not"""
        self.why = ""
        """nothing more is started, since something is wrong"""
        self.used_up = False
        """no setting is left to try"""

    @property
    def over(self) -> bool:
        """Whether all trials are done."""
        enough = self.used_up or len(self.trials) >= self.args.trials
        return enough and all(trial.state != "running" for trial in self.trials)

    def next(self) -> list[Job]:
        """Return the runs to start, as many as there is room for; begins trials and ends them.

        Raises:
            ValueError: a run that is there was made with other settings.
            OSError: the disk refuses.
        """
        jobs: list[Job] = []
        while len(self.open) < self.room and not self.why:
            under_way = [trial for trial in self.trials if trial.state == "running"]
            job = next((job for trial in under_way if (job := self._next_of(trial))), None)
            if job:
                jobs.append(job)
            elif any(trial.state != "running" for trial in under_way):
                continue  # one has ended without a run: all its runs were there
            elif 0 < self.args.at_once <= len(under_way) or not self._begin():
                break
        write_csv(self.args, self.trials)
        return jobs

    def follow(self, job: Job, verdict: Verdict) -> list[Job]:
        """Take note of a run that has ended for good, and return the runs to start.

        Raises:
            ValueError, OSError: as `next` does.
        """
        trial, seed = self.open.pop(job.key)
        self._note(trial, seed, job, verdict)
        self._end_if_over(trial)
        return self.next()

    def _begin(self) -> bool:
        """Begin a trial; False where there are enough, or none is left."""
        if self.used_up or len(self.trials) >= self.args.trials:
            return False
        space = self.record.space
        if not self.trials:
            own = {name: x.default for name, x in space.items()}
            self.trials.append(self.record.begin(own, [], self.flags))
            return True
        values = self.record.draw([trial.values for trial in self.trials])
        if values is None:
            self.used_up = True
            self.say(f"all {len(self.trials)} settings that were found in this space have been tried")
            return False
        words = [word for name, x in space.items() for word in x.words(values[name])]
        self.trials.append(self.record.begin(values, words, self.flags))
        return True

    def _next_of(self, trial: Trial) -> Job | None:
        """The next run of a trial; None if it has to wait for others, or is over."""
        if trial.number not in self.jobs:
            self.jobs[trial.number] = self.make(trial)
        for seed, job in zip(self.seeds, self.jobs[trial.number], strict=True):
            if trial.why or seed in trial.scores or job.key in self.open:
                continue
            if self.args.prune and any(of is trial for of, _ in self.open.values()):
                return None
            seen = status.look(job.key, job.dir)
            if seen.state not in ("done", "failed"):
                self.open[job.key] = trial, seed
                return job
            self._note(trial, seed, job, Verdict(seen.state, seen.why))  # a search was killed before it did
            self._end_if_over(trial)
            if trial.state != "running":
                return None
        self._end_if_over(trial)
        return None

    def _note(self, trial: Trial, seed: int, job: Job, verdict: Verdict) -> None:
        """Take note of what a run has scored."""
        value, why = score_of(job.dir, self.args.metric) if verdict.state == "done" else (math.nan, verdict.why)
        if why:
            trial.why = trial.why or f"seed {seed}: {why}"
            return
        trial.scores[seed] = value
        for step in range(1, len(self.seeds) + 1):
            mean = trial.mean(self.seeds[:step])
            if not math.isnan(mean):
                self.record.report(trial, step, mean)

    def _end_if_over(self, trial: Trial) -> None:
        """End a trial that has failed, is pruned or has all its scores, once nothing of it runs any more."""
        if trial.state != "running" or any(of is trial for of, _ in self.open.values()):
            return
        mean = trial.mean(self.seeds)
        if trial.why:
            trial.state, mean = "failed", -math.inf
        elif not math.isnan(mean):
            trial.state = "complete"
        elif self.args.prune and self._below_median(trial):
            trial.state = "pruned"
        else:
            return
        self.record.end(trial, mean)
        said = trial.why or number(fmean(trial.scores.values()))
        values = " ".join(f"{name}={value}" for name, value in trial.values.items())
        self.say(f"{trial.state:<8} trial {trial.number}  {said}  ({values if trial.number else 'default settings'})")
        self.in_a_row = self.in_a_row + 1 if trial.state == "failed" else 0
        if trial.state == "failed" and trial.number == 0:
            self.why = "the default settings have failed, so something other than the settings is wrong"
        elif self.in_a_row >= IN_A_ROW:
            self.why = f"{IN_A_ROW} trials in a row have failed, so something other than their settings is wrong"

    def _below_median(self, trial: Trial) -> bool:
        """Whether the mean of a trial so far is below the median of what all had with as many seeds."""
        seeds = [seed for seed in self.seeds if seed in trial.scores]
        others = [other.mean(seeds) for other in self.trials if other is not trial]
        known = [mean for mean in others if not math.isnan(mean)]
        return bool(seeds) and len(known) >= PRUNE_FROM and trial.mean(seeds) < median(known)


def seeds_of(args: Args) -> range:
    """Return the seeds of each trial."""
    return range(args.first_seed, args.first_seed + args.seeds)


# ---- what is written -------------------------------------------------------------------------------------------------


def ranked(trials: Sequence[Trial], seeds: Sequence[int]) -> list[Trial]:
    """Return the trials with all these scores, the best first; of equal ones the earlier."""
    complete = [trial for trial in trials if trial.state == "complete" and not math.isnan(trial.mean(seeds))]
    return sorted(complete, key=lambda trial: -trial.mean(seeds))


def write_csv(args: Args, trials: Sequence[Trial]) -> None:
    """Write a row per trial: number, state, score, settings, the score of each seed, and why it has failed."""
    path, seeds = Path(args.out) / "trials.csv", seeds_of(args)
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    file = io.StringIO()
    rows = csv.writer(file, lineterminator="\n")
    scored = [trial.number for trial in ranked(trials, seeds)]
    rows.writerow(["trial", "state", "score", *names, *(f"seed{seed}" for seed in seeds), "why"])
    for trial in trials:
        mean = repr(trial.mean(seeds)) if trial.number in scored else ""
        scores = [repr(trial.scores[seed]) if seed in trial.scores else "" for seed in seeds]
        values = [trial.values.get(name, "") for name in names]
        rows.writerow([trial.number, trial.state, mean, *values, *scores, trial.why])
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(file.getvalue())
    os.replace(temporary, path)


def table(trials: Sequence[Trial], seeds: Sequence[int]) -> list[str]:
    """Return lines: the best trials, and the default settings whatever their place."""
    best = ranked(trials, seeds)
    shown = best[:SHOWN] + [trial for trial in best[SHOWN:] if trial.number == 0]
    names = list(dict.fromkeys(name for trial in shown for name in trial.values))
    digits = 1 + digits_for(max(abs(trial.scores[seed]) for trial in shown for seed in seeds))
    rows = [["trial", "score", *(f"seed {seed}" for seed in seeds), *names]]
    for trial in shown:
        scores = [number(x, digits) for x in (trial.mean(seeds), *(trial.scores[seed] for seed in seeds))]
        label = str(trial.number) if trial.number else "default"
        rows.append([label, *scores, *(trial.values.get(name, "") for name in names)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def history(trials: Sequence[Trial], seeds: Sequence[int], metric: str) -> Plot:
    """Return the plot of scores over trials."""
    last = max(trial.number for trial in trials) + 0.5

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        scored = sorted(ranked(trials, seeds), key=lambda trial: trial.number)
        means = [trial.mean(seeds) for trial in scored]
        for trial in trials:
            values = list(trial.scores.values())
            axes.plot([trial.number] * len(values), values, "_", color=FAINT, alpha=0.6, markersize=7)
            if trial.state == "pruned":
                axes.plot(trial.number, fmean(values), "o", color=PALETTE[0], markerfacecolor="white", markersize=5)
            if trial.state == "failed":
                axes.plot(trial.number, 0.03, "x", color=INK, markeredgewidth=1.6, transform=axes.get_xaxis_transform())
        axes.plot([trial.number for trial in scored], means, "o", color=PALETTE[0], markersize=5, zorder=3)
        if scored:
            best = np.maximum.accumulate(means)
            axes.step(
                [*(x.number for x in scored), last], [*best, best[-1]], where="post", color=PALETTE[1], linewidth=2
            )
        if scored and scored[0].number == 0:
            axes.axhline(means[0], color=BASELINE, linewidth=1, linestyle="--")
        axes.grid(axis="y")
        axes.margins(y=0.12)
        axes.set_xlim(-0.5, last)
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set(xlabel="trial", ylabel=MEANINGS.get(metric, metric))

    states = {trial.state for trial in trials}
    said = [f"Dot: mean over {len(seeds)} seeds (dashes) of the evaluations in the last 10% of each run."]
    said += ["Ring: pruned after fewer seeds."] if "pruned" in states else []
    said += ["x: failed."] if "failed" in states else []
    said += ["The best of many is flattered by the seeds that it was chosen by: compare it on fresh ones."]
    legend = [("best so far", PALETTE[1], "-")] if "complete" in states else []
    legend += [("default settings", BASELINE, "--")] if trials[0].state == "complete" else []
    return Plot("history", "Scores of the trials", " ".join(said), 3.2, draw, legend)


def comparison(args: Args, best: Trial, flags: Sequence[str]) -> str:
    """Return the command of a sweep that compares a trial with the default settings on fresh seeds."""
    words = ["python", status.called(sweep.__file__), "--agents", args.agent, "--tasks", args.task]
    words += ["--variants", "default:", f"tuned:{shlex.join(best.words)}", "--seeds", FRESH]
    beside = f"{args.out}-check"
    beside = os.path.relpath(beside) if Path(beside).is_relative_to(Path.cwd()) else beside
    words += ["--out", beside]
    for field in fields(Args):
        if field.name in ("gpus", "per_gpu", "slots", "threads") and getattr(args, field.name) != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(getattr(args, field.name))]
    words += ["--", *flags] if flags else []
    return shlex.join(words)


def report(args: Args, search: Search, root: Path, flags: Sequence[str]) -> None:
    """Print what was found and what has failed, and write the plot."""
    trials, seeds = search.trials, search.seeds
    states = Counter(trial.state for trial in trials)
    ended = len(trials) - states["running"]
    parts = [f"{states[name]} {name}" for name in ("complete", "pruned", "failed", "running") if states[name]]
    print(f"{root}: {ended} of {max(args.trials, ended)} trials done: {', '.join(parts)}")
    print(f"score: mean over {len(seeds)} seeds of {args.metric}, itself the mean over the last 10% of the frames\n")
    if best := ranked(trials, seeds):
        print("\n".join(table(trials, seeds)))
    if shares := search.record.importances():
        print("\nwhat mattered for the best (PED-ANOVA, of complete trials; rough with so few):")
        print("  ".join(f"{name} {100 * share:.0f}%" for name, share in shares.items()))
    for trial in trials:
        if trial.state == "failed":
            print(f"\nfailed   trial {trial.number}  ({shlex.join(trial.words) or 'default settings'})  {trial.why}")
            for log in sorted(root.glob(f"runs/*/*__trial{trial.number:03}/*/log.txt")):
                print(f"         log: {log}")
    if search.why:
        print(f"\nStopped: {search.why}. The same command goes on nevertheless.")
    elif not search.over:
        print("\nThe same command goes on with what is unfinished.")
    if best and best[0].number:
        so_far = "" if search.over else " so far"
        print(f"\nBest{so_far}: trial {best[0].number}, flattered by the seeds that it was chosen by. On fresh ones:")
        print(comparison(args, best[0], flags))
    elif best:
        print(f"\nNo trial is better than the default settings{'' if search.over else ' so far'}.")
    print(f"\ntrials           {root / 'trials.csv'}")
    if any(trial.scores for trial in trials):
        (root / "plots").mkdir(exist_ok=True)
        save(history(trials, seeds, args.metric), root / "plots", f"{Path(args.agent).stem} on {args.task}")
        print(f"plot             {root / 'plots' / 'history.png'}")


# ---- the program -----------------------------------------------------------------------------------------------------


def resolve_mismatch(asked: Mapping[str, Any], root: Path, policy: str) -> None:
    """Keep a search of other settings or other code, or put it aside.

    Raises:
        ValueError: there is one, and it is to be refused, or some of it runs at this moment.
    """
    before = read_json(root / "tune.json").get("asked")
    if not isinstance(before, dict):
        if (root / "runs").exists() or (root / JOURNAL).exists():
            raise ValueError(f"{root} holds runs and no record of a search: use another --out")
        return
    changes = [f"{name} was {before.get(name)}, is {x}" for name, x in asked.items() if before.get(name) != x]
    if not changes:
        return
    text = f"{root} holds a search that differs from what is asked: {changes[0]}"
    if policy == "keep" and any(before.get(name) != asked[name] for name in ("agent", "task", "metric")):
        raise ValueError(f"{text}. Its scores are no use for that: use another --out, or --mismatch rerun")
    if policy == "refuse":
        raise ValueError(f"{text}. Use another --out, or --mismatch keep, or --mismatch rerun")
    if policy == "rerun":
        running = [key for key in status.keys_of(root) if status.alive(root / "runs" / key)]
        if running:
            raise ValueError(f"{text}. It cannot be replaced while it runs: {running[0]}")
        target = root / "replaced" / time.strftime("%Y%m%d-%H%M%S")
        target.mkdir(parents=True)
        for name in ("runs", "plots", JOURNAL, "trials.csv", "tune.json"):
            if (root / name).exists():
                shutil.move(root / name, target / name)
    print(f"{text}: {'kept' if policy == 'keep' else 'put aside in ' + str(root / 'replaced')}", file=sys.stderr)


def tune(
    args: Args, script: str, space: Sequence[Dimension], flags: list[str], slots: Sequence[str], command: list[str]
) -> int:
    """Run what is not done of a search; returns the exit status.

    Raises:
        ValueError: the search that is there is not this one.
        OSError: the disk refuses.
    """
    root = Path(args.out)
    kind = "gpu" if slots[0] else "cpu"
    code, git = engines.code_version(script), sweep.git_version()
    asked = {
        "agent": Path(script).stem,
        "task": args.task,
        "search": list(args.search),
        "settings": sweep.settings_of(flags, kind),
        "seeds": [*seeds_of(args)],
        "metric": args.metric,
        "prune": args.prune,
        "sampler_seed": args.sampler_seed,
        "code": f"source {code}",
    }
    resolve_mismatch(asked, root, args.mismatch)
    record = Record(root / JOURNAL, space, args.sampler_seed)
    session = {
        "command": command,
        "cwd": os.getcwd(),
        "host": socket.gethostname(),
        "slots": len(slots),
        "git": git,
        "started": time.time(),
    }
    sessions = [*(read_json(root / "tune.json").get("sessions") or []), session]
    write_json(root / "tune.json", {"asked": asked, "sessions": sessions})

    def make(trial: Trial) -> list[Job]:
        variant = {f"trial{trial.number:03}": trial.words}
        grid = sweep.Grid({Path(script).stem: script}, [args.task], variant, [*seeds_of(args)], trial.flags)
        jobs = [replace(job, code=code, git=git) for job in sweep.jobs_of(grid, root, kind, args.mismatch == "keep")]
        for job in jobs:
            if args.mismatch != "keep" and (text := sweep.difference(job)):
                raise ValueError(f"{job.key} is there and was made otherwise, {text}. Use another --out")
        return jobs

    stop, screen = engines.Stop(), status.Screen(root, [])
    search = Search(args, record, flags, make, len(slots), screen.say)

    def follow(job: Job, verdict: Verdict) -> list[Job]:
        return shown(search.follow(job, verdict))

    def shown(jobs: list[Job]) -> list[Job]:
        screen.runs.update({job.key: status.Seen(job.key, "waiting") for job in jobs})
        return jobs

    jobs = shown(search.next())
    if jobs:
        engine = sweep.engine_of(where(args), root, slots, kind, screen)
        with sweep.hearing(stop, screen, engine):
            ended = sum(trial.state != "running" for trial in search.trials)
            screen.say(
                f"{root}: {args.trials} trials, {ended} done, {len(slots)} runs side by side on the {kind.upper()}"
            )
            engines.Drive(jobs, engine, args.retries, stop, screen.say, screen.refresh, follow=follow).run()
        session["ended"] = time.time()
        write_json(root / "tune.json", {"asked": asked, "sessions": sessions})
    report(args, search, root, flags)
    if search.over and ranked(search.trials, search.seeds):
        return 0
    return engines.SAVED if stop.name else 1


def where(args: Args) -> sweep.Args:
    """Return where the runs run, as a sweep has it."""
    return sweep.Args(gpus=args.gpus, per_gpu=args.per_gpu, slots=args.slots, threads=args.threads)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a search; returns the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    args, flags = config.parse(Args, argv=words[:cut]).args, words[cut + 1 :]
    config.positive(args, "trials", "seeds", "per_gpu")
    least = min(args.at_once, args.slots, args.threads, args.retries, args.sampler_seed)
    config.require(least >= 0, "--at-once, --slots, --threads, --retries and --sampler-seed: 0 or above")
    config.require(
        args.first_seed >= len(REPORTING),
        f"--first-seed {args.first_seed}: seeds 0 to {REPORTING[-1]} are for reporting, take {len(REPORTING)} or above",
    )
    config.require(bool(args.task), "no task: name one with --task (--help says more)")
    config.require(bool(args.out.strip()), "--out is empty")
    args = replace(args, out=str(Path(args.out).absolute()), metric=metric_of(args.task, args.metric))
    try:
        slots, _ = sweep.places(where(args))
        optuna()
        space, script = parse(args.search), sweep.script_of(args.agent)
        sweep.refuse_reserved(flags)
        given = ["--env-id", args.task, "--seed", str(args.first_seed), *flags]
        env = engines.environment(slots[0], args.threads or engines.cores(), Path(args.out))
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            del env["TORCHINDUCTOR_CACHE_DIR"]  # it lies in OUT, where nothing is written yet
        space = ask(script, given, space, sorted(NO_VARIANT), env)
        Path(args.out).mkdir(parents=True, exist_ok=True)
        with sweep.lock(Path(args.out)):
            return tune(args, script, space, flags, slots, [status.called(__file__), *words])
    except ValueError as error:
        config.fail(str(error))
    except OSError as error:
        config.fail(f"cannot write in {args.out}: {error.strerror or error}")


if __name__ == "__main__":
    config.program(main)
