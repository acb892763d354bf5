"""The trials of a search: what was tried and what it scored, kept in a journal that Optuna reads and draws from.

A trial is written down in one line before its first run starts, with all that its runs need, and once more when it
ends. So a search can be killed at any moment: what the journal does not know yet is in the directories of the runs.
The draw of a trial depends on its number and on what is written down before it, and on no state of a process.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import numpy as np

from benchmarks import engines
from benchmarks.records import NOTHING, RETURN, read_run
from benchmarks.space import Dimension
from benchmarks.study import REFERENCES, look_up, read_references, score

STUDY = "tune"
DRAWS = 200
"""how often a setting is drawn that was tried already, before all of a space counts as tried"""
IMPORTANCE_FROM = 20
"""complete trials, before anything is said about what mattered"""


@dataclass
class Trial:
    """One setting and what has become of it."""

    number: int
    values: dict[str, str]
    """name -> value as text, also of trial 0, whose runs are given none of them"""
    words: list[str]
    """the same on the agent's command line"""
    flags: list[str]
    """of all runs, as they were when it began"""
    state: str = "running"
    """running; complete, pruned, failed"""
    scores: dict[int, float] = field(default_factory=dict)
    """seed -> score"""
    why: str = ""
    """it has failed"""

    def mean(self, seeds: Sequence[int]) -> float:
        """Mean score over these seeds; NaN while one is not known, minus infinity where the trial failed before it."""
        known = [self.scores[seed] for seed in seeds if seed in self.scores]
        if len(known) < len(seeds):
            return -math.inf if self.state == "failed" else math.nan
        return fmean(known)


# ---- scores ----------------------------------------------------------------------------------------------------------


def metric_of(task: str, asked: str) -> str:
    """Return what is scored on a task: as asked, else that of its scale in references.csv, else the return."""
    reference = look_up(task, read_references(REFERENCES))
    return asked if asked != "auto" else f"eval/{reference.metric}" if reference else RETURN


def score_of(run_dir: Path, metric: str) -> tuple[float, str]:
    """Return the score of a run that is done, or NaN and why it has none.

    It is the score of a report. What a report takes for the score of a run without a finite evaluation in its last
    10%, the last one before, would be that of a policy which has been lost since.
    """
    run = read_run(run_dir, str(run_dir), [metric])
    data = run.series.get(metric, NOTHING) if run else NOTHING
    if run is None or not (len(data.steps) or run.broken):
        return math.nan, f"no {metric} in metrics.csv"
    if run.broken or not data.steps[-1] * 10 > run.planned * 9:
        return math.nan, f"{metric} is not finite, or missing in the last 10% of the frames"
    return score(data, run.planned, cut=False)[0], ""


# ---- Optuna ----------------------------------------------------------------------------------------------------------


class Record:
    """The trials, in Optuna's journal: each is there before its first run starts, with all that its runs need."""

    def __init__(self, path: Path, space: Sequence[Dimension], seed: int) -> None:
        """Open or make the journal.

        Raises:
            ValueError: Optuna is missing, or the journal is damaged.
        """
        self.optuna = optuna()
        self.space = {dimension.name: dimension for dimension in space}
        self.seed = seed
        _mend(path)
        journal = self.optuna.storages.journal
        try:
            self.storage: Any = self.optuna.storages.JournalStorage(journal.JournalFileBackend(str(path)))
            self.study: Any = self.optuna.create_study(
                storage=self.storage, study_name=STUDY, direction="maximize", load_if_exists=True
            )
            self.frozen()
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); use another --out, or --mismatch rerun") from error

    def frozen(self) -> list[Any]:
        """Return the trials as Optuna has them; those that people have added by other means are not ours."""
        return [x for x in self.study.get_trials(deepcopy=False) if "words" in x.user_attrs]

    def trials(self) -> list[Trial]:
        """Return all trials, by number."""
        found = []
        for x in self.frozen():
            said = x.user_attrs
            trial = Trial(x.number, said["values"], said["words"], said["flags"])
            if x.state != self.optuna.trial.TrialState.RUNNING:
                trial.state, trial.why = said["state"], said["why"]
                trial.scores = {int(seed): value for seed, value in said["scores"].items()}
            found.append(trial)
        return found

    def begin(self, values: Mapping[str, str], words: Sequence[str], flags: Sequence[str]) -> Trial:
        """Write down a new trial, in a single line of the journal: it is there or it is not."""
        known = self._inside(values)
        trial = self.optuna.trial.create_trial(
            state=self.optuna.trial.TrialState.RUNNING,
            params={name: self.space[name].value(text) for name, text in known.items()},
            distributions={name: self._distribution(self.space[name]) for name in known},
            user_attrs={"values": dict(values), "words": list(words), "flags": list(flags)},
        )
        self.study.add_trial(trial)
        return self.trials()[-1]

    def report(self, trial: Trial, step: int, value: float) -> None:
        """Write down the mean over the first `step` seeds, once."""
        of = self._frozen(trial.number)
        if step not in of.intermediate_values:
            self.storage.set_trial_intermediate_value(of._trial_id, step, value)

    def end(self, trial: Trial, value: float) -> None:
        """Write down what has become of a trial."""
        of, states = self._frozen(trial.number), self.optuna.trial.TrialState
        said = {"state": trial.state, "why": trial.why, "scores": {str(k): v for k, v in trial.scores.items()}}
        for name, content in said.items():
            self.storage.set_trial_user_attr(of._trial_id, name, content)
        if trial.state == "pruned":
            self.study.tell(trial.number, state=states.PRUNED)
        else:
            self.study.tell(trial.number, value)

    def draw(self, tried: Sequence[Mapping[str, str]]) -> dict[str, str] | None:
        """Return a setting that was not tried yet; None where none is found.

        It depends on the trials so far and on the number of the new one, and on nothing that a kill could lose.
        """
        order = len(self.study.get_trials(deepcopy=False))
        samplers, memory = self.optuna.samplers, self._memory()
        space = {name: self._distribution(x) for name, x in self.space.items()}
        for attempt in range(DRAWS):
            seed = int(np.random.SeedSequence([self.seed, order, attempt]).generate_state(1)[0])
            # In a finite space that is nearly used up, the estimator proposes the best again and again.
            estimates = attempt < DRAWS // 10
            memory.sampler = samplers.TPESampler(seed=seed) if estimates else samplers.RandomSampler(seed=seed)
            drawn = memory.ask(space).params
            values = {name: x.text(drawn[name]) for name, x in self.space.items()}
            if values not in tried:
                return values
        return None

    def importances(self) -> dict[str, float]:
        """Return shares of what mattered for being among the best 5 trials or 10%; nothing while trials are few."""
        memory = self._memory()
        complete = [x for x in memory.get_trials(deepcopy=False) if x.values and math.isfinite(x.value)]
        if len(complete) < IMPORTANCE_FROM or len(self.space) < 2:
            return {}
        importance = self.optuna.importance
        evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=max(0.1, 5 / len(complete)))
        return importance.get_param_importances(memory, evaluator=evaluator)

    def _memory(self) -> Any:
        """A copy of the study that leaves no traces, of the trials that lie in the space as it is now."""
        study = self.optuna.create_study(direction="maximize")
        states = self.optuna.trial.TrialState
        for x in self.frozen():
            known = self._inside(x.user_attrs["values"])
            if len(known) < len(self.space):
                continue
            copy = self.optuna.trial.create_trial(
                state=x.state,
                value=x.value if x.state == states.COMPLETE else None,
                params={name: self.space[name].value(known[name]) for name in self.space},
                distributions={name: self._distribution(y) for name, y in self.space.items()},
                intermediate_values=x.intermediate_values,
            )
            study.add_trial(copy)
        return study

    def _inside(self, values: Mapping[str, str]) -> dict[str, str]:
        """Those of the values that lie in the space."""
        found = {}
        for name, x in self.space.items():
            text = values.get(name, "")
            try:
                inside = text in x.options if x.options else x.low <= float(text) <= x.high
                x.value(text)
            except ValueError:
                continue
            if inside:
                found[name] = text
        return found

    def _distribution(self, x: Dimension) -> Any:
        kinds = self.optuna.distributions
        if x.options:
            return kinds.CategoricalDistribution(x.options)
        if x.whole:
            return kinds.IntDistribution(round(x.low), round(x.high), log=x.kind == "log")
        return kinds.FloatDistribution(x.low, x.high, log=x.kind == "log")

    def _frozen(self, number: int) -> Any:
        return next(x for x in self.frozen() if x.number == number)


def optuna() -> ModuleType:
    """Return Optuna.

    Raises:
        ValueError: it is not installed; says how.
    """
    package = engines.extra("optuna", "tune", "tune.py")
    package.logging.set_verbosity(package.logging.ERROR)
    return package


def _mend(path: Path) -> None:
    """Take away what a killed search has left: half a line, which would run into the next, and Optuna's lock."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    data = path.read_bytes() if path.exists() else b""
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
