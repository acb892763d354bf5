"""Statistics of scores over seeds and tasks: point estimates, and intervals that say how sure they are.

    tasks = [[0.71, 0.90, 0.88], [0.64, 0.71]]         # normalised scores: a row per task, a number per seed
    bootstrap(tasks, iqm)                              # Estimate(value, low, high)
    improvement(tasks, others)                         # probability that a run of these beats one of the others
    t_interval([710, 905, 880])                        # the mean of a single task

The measures are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(NeurIPS 2021), with the point estimates of their package rliable. Tasks may have different numbers of seeds, which is
where that package stops: a task weighs the same, however many seeds it has.

Intervals over several tasks are a stratified bootstrap: seeds are drawn anew, with replacement, within each task. It
is computed as a weight of each run in each resample, so that a mean is a product of matrices and only the scores
themselves are ever sorted. The same seed gives the same numbers; NumPy's global random state stays alone.

A percentile bootstrap of few seeds is too narrow, for reasons that are known: the spread of n values around their own
mean is too small by sqrt((n - 1) / n), and it ignores that the spread is estimated too (Student's t). `expand` moves
the percentiles outwards by just that (Hesterberg, "What Teachers Should Know about the Bootstrap", 2015). Without it
the intervals are rliable's. For a single task there is `t_interval`: nobody should bootstrap three to five seeds.

How often these intervals hold the truth, and what they cost beside rliable's, is measured by `benchmarks/intervals.py`;
`docs/sweeps.md` has the tables. With five seeds, a 95% interval over five tasks or more holds it in 93 to 96 of 100
experiments; over two tasks with three seeds in 80, so these are too few, whatever the method.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Tasks = Sequence[ArrayLike]
"""Scores: for each task those of its seeds [n], or [n, P] for P points at once, with an n of its own for each task."""
Statistic = Callable[[Array, Array, Sequence[int]], Array]
"""Of the scores [N, P] of all runs, one task after the other; of weights [R, N] in rows that sum to 1; and of the
number of runs of each task. Returns [R, P]."""


class Estimate(NamedTuple):
    """A number, or one for each point [P], and the interval around it. Its ends are NaN where a task has one seed."""

    value: Array
    low: Array
    high: Array


class Bootstrap(NamedTuple):
    """How intervals are made."""

    reps: int = 10_000
    """R, resamples"""
    seed: int = 0
    """of the resamples"""
    level: float = 0.95
    """share of repeated experiments whose interval should hold the truth"""
    expand: bool = True
    """widen for few seeds; False gives plain percentiles"""


HOW = Bootstrap()

# ---- statistics ------------------------------------------------------------------------------------------------------


def mean(scores: Array, weights: Array, sizes: Sequence[int]) -> Array:
    """Return the mean over tasks of the mean over seeds."""
    return weights @ scores


def median(scores: Array, weights: Array, sizes: Sequence[int]) -> Array:
    """Return the median over tasks of the mean over seeds."""
    ends = np.cumsum(sizes)
    means = [weights[:, end - n : end] @ scores[end - n : end] for n, end in zip(sizes, ends, strict=True)]
    return np.median(means, axis=0) * len(sizes)


def iqm(scores: Array, weights: Array, sizes: Sequence[int]) -> Array:
    """Return the interquartile mean: the mean of all runs but the lowest and the highest quarter.

    A quarter is rounded down to whole runs, as in `scipy.stats.trim_mean`, and is a share of the weight. Where tasks
    have as many seeds each, the two are the same.
    """
    runs = len(scores)
    trim = runs // 4 / runs
    out = np.empty((len(weights), scores.shape[1]))
    for point, values in enumerate(scores.T):
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        upto = np.cumsum(weights[:, order[:-1]], axis=1)  # weight of a run and of all below it
        np.clip(upto, trim, 1 - trim, out=upto)
        # Sum of what is kept of each weight times its score, by parts: nothing but `upto` has R rows.
        out[:, point] = (1 - trim) * ordered[-1] - trim * ordered[0] - upto @ np.diff(ordered)
    return out / (1 - 2 * trim)


def optimality_gap(scores: Array, weights: Array, sizes: Sequence[int]) -> Array:
    """Return by how much scores fall short of 1 on average, where above 1 does not make up for below."""
    return weights @ (1 - np.minimum(scores, 1))


AGGREGATES: Mapping[str, Statistic] = {"iqm": iqm, "median": median, "mean": mean, "optimality_gap": optimality_gap}

# ---- several tasks ---------------------------------------------------------------------------------------------------


def bootstrap(tasks: Tasks, statistic: Statistic, how: Bootstrap = HOW) -> Estimate:
    """Return a statistic of all runs, and its interval.

    Raises:
        ValueError: no task, a task without seeds, or scores that are not finite.
    """
    scores, sizes = _stack(tasks)
    (drawn,) = _resamples((tuple(sizes),), how.reps, how.seed)
    draws = statistic(scores, drawn, sizes)
    return _estimate(tasks, statistic(scores, _weights(sizes), sizes), draws, sizes, how)


def difference(x: Tasks, y: Tasks, statistic: Statistic, how: Bootstrap = HOW) -> Estimate:
    """Return a statistic of x minus that of y: the same tasks, other runs.

    Raises:
        ValueError: as `bootstrap`, or x and y differ in their number of tasks.
    """
    return _pair(x, y, lambda a, v, n, b, w, m: statistic(a, v, n) - statistic(b, w, m), how)


def improvement(x: Tasks, y: Tasks, how: Bootstrap = HOW) -> Estimate:
    """Return the probability of improvement: that a run of x beats one of y on a task drawn by lot. A tie is half.

    Only ranks within a task count, so scores need not be normalised.

    Raises:
        ValueError: as `difference`.
    """

    def beats(a: Array, v: Array, n: Sequence[int], b: Array, w: Array, m: Sequence[int]) -> Array:
        total = np.zeros((len(v), a.shape[1]))
        for size, end, other, last in zip(n, np.cumsum(n), m, np.cumsum(m), strict=True):
            mine, theirs = slice(end - size, end), slice(last - other, last)
            for point in range(a.shape[1]):
                above, below = a[mine, None, point], b[None, theirs, point]
                wins = (above > below) + 0.5 * (above == below)
                total[:, point] += ((v[:, mine] @ wins) * w[:, theirs]).sum(1)
        return total * len(n)  # a product of two weights, each of which holds the task's share

    return _pair(x, y, beats, how)


def profile(tasks: Tasks, thresholds: ArrayLike, how: Bootstrap = HOW) -> Estimate:
    """Return the share of runs that score above each threshold [P], tasks weighing the same.

    Raises:
        ValueError: as `bootstrap`.
    """
    at = np.asarray(thresholds, float)
    _stack(tasks)  # comparing with NaN would give an answer
    return bootstrap([np.asarray(scores, float)[:, None] > at for scores in tasks], mean, how)


def _pair(x: Tasks, y: Tasks, statistic: Callable[..., Array], how: Bootstrap) -> Estimate:
    """Estimate of a statistic of two sets of runs, which are drawn independently."""
    (a, n), (b, m) = _stack(x), _stack(y)
    if len(n) != len(m):
        raise ValueError(f"{len(n)} tasks and {len(m)}: they must be the same")
    v, w = _resamples((tuple(n), tuple(m)), how.reps, how.seed)
    draws = statistic(a, v, n, b, w, m)
    return _estimate(x, statistic(a, _weights(n), n, b, _weights(m), m), draws, [*n, *m], how)


def _stack(tasks: Tasks) -> tuple[Array, list[int]]:
    """Scores of all runs [N, P], and the number of runs of each task."""
    arrays = [np.asarray(scores, float) for scores in tasks]
    if not arrays or not all(len(scores) for scores in arrays):
        raise ValueError("each of at least one task needs a score")
    stacked = np.concatenate(arrays).reshape(sum(map(len, arrays)), -1)
    if not np.isfinite(stacked).all():
        raise ValueError("scores must be finite")
    return stacked, [len(scores) for scores in arrays]


def _weights(sizes: Sequence[int]) -> Array:
    """Weights [1, N] of the runs as they are: those of a task share 1 / tasks."""
    return np.repeat([1 / (n * len(sizes)) for n in sizes], sizes)[None]


@lru_cache(maxsize=2)  # a report asks for the same ones again and again
def _resamples(samples: tuple[tuple[int, ...], ...], reps: int, seed: int) -> list[Array]:
    """Weights [R, N] of resamples of each sample: within each task, as many draws with replacement as it has runs."""
    rng = np.random.default_rng(seed)
    counts = [np.concatenate([_counts(n, reps, rng) for n in sizes], axis=1) for sizes in samples]
    return [many * _weights(sizes) for many, sizes in zip(counts, samples, strict=True)]


def _counts(n: int, reps: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """How often each of n runs is in each of R samples of n with replacement: [R, n]."""
    picks = rng.integers(0, n, (reps, n)) + n * np.arange(reps)[:, None]
    return np.bincount(picks.ravel(), minlength=reps * n).reshape(reps, n)


def _estimate(tasks: Tasks, value: Array, draws: Array, sizes: Sequence[int], how: Bootstrap) -> Estimate:
    """Point estimate [1, P] and percentiles of the draws [R, P], as numbers where the tasks have one point."""
    if min(sizes) < 2:  # one seed shows no spread, and its resamples are all alike
        low = high = np.full(value.shape[1], math.nan)
    else:
        low, high = np.quantile(draws, _tails(sizes, how), axis=0)
    shape = () if value.shape[1] == 1 and np.ndim(tasks[0]) == 1 else (-1,)
    return Estimate(value.reshape(shape), low.reshape(shape), high.reshape(shape))


def _tails(sizes: Sequence[int], how: Bootstrap) -> tuple[float, float]:
    """The two percentiles that an interval goes to."""
    tail = (1 - how.level) / 2
    if how.expand:
        n = len(sizes) / sum(1 / size for size in sizes)  # harmonic: that of the variance of a mean over tasks
        t = t_quantile(1 - tail, sum(sizes) - len(sizes))
        tail = NormalDist().cdf(-t * math.sqrt(n / (n - 1)))
    return tail, 1 - tail


# ---- one task --------------------------------------------------------------------------------------------------------


def t_interval(values: ArrayLike, level: float = HOW.level) -> Estimate:
    """Return the mean of [n] or [n, P] values over n, and its Student-t interval; of one value its ends are NaN."""
    x = np.asarray(values, float)
    centre, n = x.mean(0), len(x)
    if n < 2:
        return Estimate(centre, centre * math.nan, centre * math.nan)
    half = t_quantile((1 + level) / 2, n - 1) * x.std(0, ddof=1) / math.sqrt(n)
    return Estimate(centre, centre - half, centre + half)


def welch(x: ArrayLike, y: ArrayLike, level: float = HOW.level) -> Estimate:
    """Return mean of x minus mean of y and its interval, without equal variances (Welch); NaN with a single value."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    value = np.asarray(a.mean() - b.mean())
    n, m = len(a), len(b)
    if min(n, m) < 2:
        return Estimate(value, value * math.nan, value * math.nan)
    u, v = a.var(ddof=1) / n, b.var(ddof=1) / m
    if u + v == 0:
        return Estimate(value, value, value)
    freedom = (u + v) ** 2 / (u**2 / (n - 1) + v**2 / (m - 1))
    half = t_quantile((1 + level) / 2, float(freedom)) * math.sqrt(u + v)
    return Estimate(value, value - half, value + half)


@cache
def t_quantile(p: float, freedom: float) -> float:
    """Return the p-quantile of Student's t with any positive number of degrees of freedom, to 1e-9 of itself."""
    if not 0 < p < 1 or freedom <= 0:
        raise ValueError(f"p {p} must be within 0 and 1, and {freedom} degrees of freedom above 0")
    if p < 0.5:
        return -t_quantile(1 - p, freedom)
    low, high = 0.0, 1.0
    while _t_tail(high, freedom) > 1 - p:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_tail(middle, freedom) > 1 - p else (low, middle)
    return (low + high) / 2


def _t_tail(t: float, freedom: float) -> float:
    """Probability that Student's t exceeds t >= 0: half an incomplete beta function, by its continued fraction."""
    a, b = freedom / 2, 0.5
    x = freedom / (freedom + t * t)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
        if x < 1
        else -math.inf
    )
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a / 2
    return 0.5 - front * _beta_fraction(b, a, 1 - x) / b / 2


def _beta_fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function (Abramowitz and Stegun 26.5.8), by Lentz's method."""
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 1000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value
