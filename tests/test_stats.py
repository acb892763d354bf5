"""benchmarks/stats.py against closed forms, brute force, scipy, and what rliable gave where it still ran."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from benchmarks import intervals, report, stats
from benchmarks.intervals import Case
from benchmarks.stats import AGGREGATES, Bootstrap, bootstrap, difference, improvement, profile, t_interval, welch
from benchmarks.study import Study

PLAIN = Bootstrap(expand=False)
ONE = Bootstrap(reps=1)


def scores(seed: int, runs: int, tasks: int) -> np.ndarray:
    """[runs, tasks], in which tasks differ in mean and spread."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.1, 1.1, tasks) + rng.uniform(0.05, 0.4, tasks) * rng.standard_normal((runs, tasks))


def value(tasks: Sequence[np.ndarray], name: str) -> float:
    return float(bootstrap(tasks, AGGREGATES[name], ONE).value)


# ---- point estimates -------------------------------------------------------------------------------------------------


def trimmed_mean(x: np.ndarray) -> float:
    """What scipy.stats.trim_mean(x, 0.25, axis=None) is, written out."""
    ordered = sorted(x.ravel().tolist())
    cut = int(0.25 * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


RLIABLE: dict[str, Callable[[np.ndarray], float]] = {
    # rliable.metrics, of scores [runs, tasks]
    "iqm": trimmed_mean,
    "median": lambda x: float(np.median(np.mean(x, axis=0))),
    "mean": lambda x: float(np.mean(np.mean(x, axis=0))),
    "optimality_gap": lambda x: float(1.0 - np.mean(np.minimum(x, 1.0))),
}


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.tuples(st.integers(1, 9), st.integers(1, 7)), elements=st.floats(-3, 3, width=32)))
@pytest.mark.parametrize("name", AGGREGATES)
def test_point_estimates_are_those_of_rliable(name: str, x: np.ndarray) -> None:
    assert value(list(x.T), name) == pytest.approx(RLIABLE[name](x), abs=1e-9)


def test_iqm_is_scipys_trimmed_mean() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for runs, tasks in itertools.product((1, 2, 3, 5, 10), (1, 2, 8)):
        x = scores(runs, runs, tasks)
        assert value(list(x.T), "iqm") == pytest.approx(scipy.trim_mean(x, 0.25, axis=None), abs=1e-12)


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_task_weighs_the_same_however_many_seeds_it_has(name: str) -> None:
    # A task whose seeds are all there twice says what it said before. 8 + 12 runs: a quarter is the same share.
    rng = np.random.default_rng(0)
    a, b = rng.random(4), rng.random(4)
    assert value([a, np.tile(b, 2)], name) == pytest.approx(value([a, b], name), abs=1e-12)
    assert value([np.tile(a, 3), np.tile(b, 2)], name) == pytest.approx(value([a, b], name), abs=1e-12)
    assert np.mean(np.concatenate([a, np.tile(b, 2)])) != pytest.approx(value([a, b], "mean"), abs=1e-3)


def test_iqm_of_unequal_tasks_by_hand() -> None:
    # Weights 1/6, 1/6, 1/6 and 1/2; 4 runs, so that a quarter of the weight goes at each end: of 0 and half of 1, and
    # of 9. What is left: 1/12 at 1, 1/6 at 2 and 1/4 at 9.
    assert value([np.array([0.0, 1.0, 2.0]), np.array([9.0])], "iqm") == pytest.approx((1 / 12 + 2 / 6 + 9 / 4) * 2)


def test_improvement_is_the_share_of_pairs_that_are_won() -> None:
    rng = np.random.default_rng(1)
    x = [rng.integers(0, 4, n).astype(float) for n in (3, 5, 1)]
    y = [rng.integers(0, 4, n).astype(float) for n in (4, 2, 6)]
    by_task = [
        np.mean([1.0 if p > q else 0.5 if p == q else 0.0 for p in a for q in b]) for a, b in zip(x, y, strict=True)
    ]
    assert float(improvement(x, y, ONE).value) == pytest.approx(np.mean(by_task), abs=1e-12)
    assert float(improvement(y, x, ONE).value) == pytest.approx(1 - np.mean(by_task), abs=1e-12)


def test_improvement_is_mann_whitneys_u_as_rliable_has_it() -> None:
    scipy = pytest.importorskip("scipy.stats")
    x, y = scores(1, 6, 5), scores(2, 4, 5)
    u = [
        scipy.mannwhitneyu(a, b, alternative="greater").statistic / (len(a) * len(b))
        for a, b in zip(x.T, y.T, strict=True)
    ]
    assert float(improvement(list(x.T), list(y.T), ONE).value) == pytest.approx(np.mean(u), abs=1e-12)


def test_profile_is_the_share_of_runs_above() -> None:
    tasks = [np.array([0.1, 0.5]), np.array([0.5, 0.7, 0.9, 2.0])]
    found = profile(tasks, [0.0, 0.5, 0.8, 2.0], ONE)
    assert found.value.tolist() == pytest.approx([1.0, 0.375, 0.25, 0.0])  # above, not from there on
    assert found.value.shape == found.low.shape == (4,)


def test_points_of_a_curve_are_estimated_one_by_one() -> None:
    rng = np.random.default_rng(3)
    curves = [rng.random((n, 7)) for n in (4, 6)]
    for statistic in AGGREGATES.values():
        together = bootstrap(curves, statistic)
        for point in range(7):
            alone = bootstrap([curve[:, point] for curve in curves], statistic)
            for all_points, one in zip(together, alone, strict=True):
                assert all_points[point] == pytest.approx(float(one), abs=1e-12)


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_resamples_of_two_seeds_are_all_there_is() -> None:
    # Two tasks of two seeds: a resample has of each task both (one half), twice the first or twice the second.
    (weights,) = stats._resamples(((2, 2),), 40_000, 0)
    assert np.unique(weights).tolist() == [0, 0.25, 0.5]
    assert weights[:, :2].sum(1) == pytest.approx(0.5) and weights.sum(1) == pytest.approx(1.0)
    both = (weights[:, 0] == 0.25) & (weights[:, 2] == 0.25)
    assert both.mean() == pytest.approx(0.25, abs=0.01), "tasks are drawn independently"


def test_percentiles_agree_with_every_resample_there_is() -> None:
    # All 27 * 4 resamples of three and two seeds with their mean, against percentiles of a random draw of them.
    a, b = np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0])
    every = [
        (np.mean(p) + np.mean(q)) / 2 for p in itertools.product(a, repeat=3) for q in itertools.product(b, repeat=2)
    ]
    found = bootstrap([a, b], stats.mean, Bootstrap(reps=40_000, level=0.8, expand=False))
    assert [float(found.low), float(found.high)] == pytest.approx(np.quantile(every, [0.1, 0.9]).tolist(), abs=0.05)


@pytest.mark.parametrize("name", ["iqm", "mean", "median"])
def test_intervals_are_those_of_scipys_bootstrap(name: str) -> None:
    scipy = pytest.importorskip("scipy.stats")
    tasks = [scores(4, 10, 1)[:, 0] + 0.2, scores(5, 6, 1)[:, 0], scores(6, 8, 1)[:, 0]]  # seeds differ

    def statistic(*samples: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = np.broadcast_shapes(*(sample.shape[:-1] for sample in samples))
        flat = [np.broadcast_to(sample, (*rows, sample.shape[-1])).reshape(-1, sample.shape[-1]) for sample in samples]
        out = [value([sample[row] for sample in flat], name) for row in range(len(flat[0]))]
        return np.array(out).reshape(rows)

    theirs = scipy.bootstrap(tasks, statistic, method="percentile", n_resamples=3000, rng=np.random.default_rng(1))
    ours = bootstrap(tasks, AGGREGATES[name], PLAIN)
    width = float(ours.high - ours.low)
    assert float(ours.low) == pytest.approx(theirs.confidence_interval.low, abs=0.06 * width)
    assert float(ours.high) == pytest.approx(theirs.confidence_interval.high, abs=0.06 * width)


def test_a_mean_has_the_interval_that_the_normal_law_gives() -> None:
    # 50 seeds in each of 4 tasks: the percentile bootstrap of a mean is normal, with the spread of n and not of n - 1.
    x = scores(7, 50, 4)
    spread = math.sqrt((x.var(0) / 50).sum()) / 4
    plain = bootstrap(list(x.T), stats.mean, Bootstrap(reps=40_000, expand=False))
    assert float(plain.value - plain.low) == pytest.approx(1.95996 * spread, rel=0.03)
    assert float(plain.high - plain.value) == pytest.approx(1.95996 * spread, rel=0.03)


def test_expanding_gives_the_interval_of_student() -> None:
    # One task of 12 seeds: what is widened is, but for the shape of the resamples, the t interval.
    x = np.random.default_rng(8).standard_normal(12)
    student, widened = t_interval(x), bootstrap([x], stats.mean, Bootstrap(reps=60_000))
    plain = bootstrap([x], stats.mean, Bootstrap(reps=60_000, expand=False))
    half = float(student.high - student.low) / 2
    assert float(widened.high - widened.low) / 2 == pytest.approx(half, rel=0.06)
    assert float(plain.high - plain.low) / 2 < 0.9 * half


def test_expanding_goes_by_the_number_of_seeds() -> None:
    # Hesterberg (2015), section 5.2: the normal quantile of sqrt(n / (n - 1)) t, here with the freedom of all tasks.
    few, many = (stats._tails([n] * 3, Bootstrap())[0] for n in (3, 1000))
    assert few == pytest.approx(0.5 * math.erfc(math.sqrt(3 / 2) * 2.4469118 / math.sqrt(2)), rel=1e-6)
    assert many == pytest.approx(0.025, abs=2e-4) and stats._tails([3], PLAIN) == (pytest.approx(0.025), 0.975)


def test_a_difference_is_as_wide_as_both_together() -> None:
    x, y = scores(9, 40, 3), scores(10, 30, 3)
    how = Bootstrap(reps=20_000, expand=False)
    found = difference(list(x.T), list(y.T), stats.mean, how)
    alone = [bootstrap(list(z.T), stats.mean, how) for z in (x, y)]
    assert float(found.value) == pytest.approx(float(alone[0].value - alone[1].value), abs=1e-12)
    assert float(found.high - found.low) == pytest.approx(math.hypot(*(float(z.high - z.low) for z in alone)), rel=0.03)


def test_two_equal_variants_are_drawn_independently() -> None:
    x = list(scores(11, 10, 4).T)
    same = difference(x, x, stats.iqm)
    assert float(same.value) == 0 and float(same.high - same.low) > 0.05
    even = improvement(x, x)
    assert float(even.value) == pytest.approx(0.5) and float(even.low) < 0.45 and float(even.high) > 0.55


def test_the_same_seed_gives_the_same_numbers_and_leaves_numpys_state_alone() -> None:
    x, y = list(scores(12, 5, 3).T), list(scores(13, 4, 3).T)
    before = np.random.get_state()  # noqa: NPY002  it is what must not change
    results = []
    for seed in (0, 0, 1):
        stats._resamples.cache_clear()
        how = Bootstrap(seed=seed, reps=500)
        results.append([*bootstrap(x, stats.iqm, how), *improvement(x, y, how), *difference(x, y, stats.mean, how)])
    assert results[0] == results[1] != results[2]
    after = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_one_seed_shows_no_spread() -> None:
    found = bootstrap([[0.5, 0.6], [0.7]], stats.mean)
    assert float(found.value) == pytest.approx(0.625) and math.isnan(float(found.low)) and math.isnan(float(found.high))
    assert math.isnan(float(improvement([[1.0, 2.0]], [[0.0]]).low))
    assert np.isnan(profile([[0.5]], [0.1, 0.9]).low).all()


@pytest.mark.parametrize("tasks", [[], [[]], [[0.5, 0.6], []], [[0.5, math.nan]], [[math.inf], [0.5]]])
def test_no_score_is_made_of_none(tasks: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"needs a score|finite"):
        bootstrap(tasks, stats.mean)
    with pytest.raises(ValueError, match=r"needs a score|finite"):
        profile(tasks, [0.5])
    with pytest.raises(ValueError, match=r"the same|needs a score|finite"):
        improvement(tasks, [[0.5, 0.6]])


def test_variants_must_have_the_same_tasks() -> None:
    with pytest.raises(ValueError, match="1 tasks and 2"):
        improvement([[0.5, 0.6]], [[0.5, 0.6], [0.1, 0.2]])


# rliable 1.2.0 with pandas < 3 and arch < 8, 50,000 resamples, on scores(seed, runs, tasks): point, low and high.
RLIABLE_1_2_0 = {
    (20, 10, 8): {
        "iqm": (0.391551, 0.3364, 0.4503),
        "median": (0.450756, 0.3149, 0.5325),
        "mean": (0.436901, 0.3831, 0.4884),
        "optimality_gap": (0.577108, 0.5278, 0.6288),
    },
    (21, 5, 10): {
        "iqm": (0.692374, 0.6225, 0.7639),
        "median": (0.759917, 0.6485, 0.8589),
        "mean": (0.689193, 0.6351, 0.7437),
        "optimality_gap": (0.345328, 0.3054, 0.387),
    },
    (22, 3, 26): {
        "iqm": (0.551888, 0.5051, 0.5955),
        "median": (0.536623, 0.4898, 0.6011),
        "mean": (0.552135, 0.5078, 0.5957),
        "optimality_gap": (0.482159, 0.4414, 0.5235),
    },
}


@pytest.mark.parametrize("data", RLIABLE_1_2_0)
def test_what_rliable_gave(data: tuple[int, int, int]) -> None:
    tasks = list(scores(*data).T)
    for name, theirs in RLIABLE_1_2_0[data].items():
        ours = bootstrap(tasks, AGGREGATES[name], Bootstrap(reps=50_000, expand=False))
        assert float(ours.value) == pytest.approx(theirs[0], abs=1e-6)
        assert [float(ours.low), float(ours.high)] == pytest.approx(theirs[1:], abs=0.002)


# The same for improvement over scores of a seed three further, also of 50,000 resamples. Its values are counts of won
# pairs, so that ends of intervals are whole steps apart: 1/800, 1/250 and 1/234 here.
IMPROVEMENT_1_2_0 = {
    (20, 10, 8): (0.42875, 0.36, 0.49875),
    (21, 5, 10): (0.52, 0.436, 0.6),
    (22, 3, 26): (0.547008547, 0.478632, 0.615385),
}


@pytest.mark.parametrize("data", IMPROVEMENT_1_2_0)
def test_what_rliable_gave_for_improvement(data: tuple[int, int, int]) -> None:
    seed, *size = data
    how = Bootstrap(reps=50_000, expand=False)
    found = improvement(list(scores(*data).T), list(scores(seed + 3, *size).T), how)
    point, *ends = IMPROVEMENT_1_2_0[data]
    assert float(found.value) == pytest.approx(point, abs=1e-9)
    assert [float(found.low), float(found.high)] == pytest.approx(ends, abs=0.002)


def test_how_often_intervals_hold_the_truth() -> None:
    # Three seeds, where it is hardest, written out; benchmarks/intervals.py has the same with more of everything.
    rng = np.random.default_rng(1)
    one = t_interval(rng.standard_normal((3, 2000)))
    assert 0.935 < np.mean((one.low <= 0) & (one.high >= 0)) < 0.965
    hits = {True: 0, False: 0}
    for trial in range(200):
        tasks = list(rng.standard_normal((5, 3)))
        for expand in hits:
            found = bootstrap(tasks, stats.mean, Bootstrap(reps=400, seed=trial, expand=expand))
            hits[expand] += bool(found.low <= 0 <= found.high)
    assert 0.89 < hits[True] / 200 < 0.98 and hits[False] / 200 < hits[True] / 200 - 0.04


def result(name: str) -> dict[str, Any]:
    return json.loads((Path(intervals.__file__).parent / "results" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    ("case", "seeds", "failing"),
    [
        (Case(1, "t"), 3, True),
        (Case(1, "welch"), 5, False),
        (Case(2, "iqm"), 3, False),
        (Case(2, "iqm", plain=True), 3, False),
        (Case(10, "median"), 5, False),
        (Case(10, "improvement, apart"), 3, True),
    ],
)
def test_the_table_of_coverage_is_what_a_simulation_gives(case: Case, seeds: int, failing: bool) -> None:
    table = result("coverage")
    assert table["settings"]["experiments"] >= 2000
    (row,) = (row for row in table["results"] if Case(*(row[name] for name in Case._fields)) == case)
    said, trials = row["failing" if failing else "normal"][str(seeds)], 300
    found = intervals.coverage(case, seeds, failing, trials, reps=300, seed=1)  # other experiments than the table's
    assert abs(found - said) < 3.5 * math.sqrt(said * (1 - said) / trials) + 0.01


def test_the_truth_of_a_simulation() -> None:
    # One task: normal around 0.65, and symmetric, so that the middle half has the same mean as all.
    assert intervals.truth(Case(1, "t"), False) == pytest.approx(0.65, abs=1e-3)
    assert intervals.truth(Case(1, "iqm"), False) == pytest.approx(0.65, abs=1e-3)
    near_0 = 0.02 * math.sqrt(2 / math.pi)
    assert intervals.truth(Case(10, "mean"), True) == pytest.approx(0.8 * 0.65 + 0.2 * near_0, abs=1e-3)
    # Apart by a deviation: the difference of two runs is normal with mean 1 and variance 2.
    known = 0.5 * (1 + math.erf(0.5))
    assert intervals.truth(Case(10, "improvement, apart"), False) == pytest.approx(known)
    scores = intervals.draw(np.random.default_rng(0), Case(5, "mean"), (4, 7), failing=True)
    assert [x.shape for x in scores] == [(4, 7)] * 5


def test_rliable_was_given_the_same_and_gave_the_same() -> None:
    for row in result("bootstrap")["results"]:
        assert row["points_differ"] < 1e-9 and row["ends_differ"] < 0.002, "50,000 resamples of each"
        tasks = list(intervals.scores(*next(x for x in intervals.DATA if x[1:] == (row["seeds"], row["tasks"]))).T)
        assert len(tasks) == row["tasks"] and {len(x) for x in tasks} == {row["seeds"]}


def test_without_rliable_our_side_is_timed_and_it_is_said_how_to_get_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    intervals.main(["bootstrap", "--reps", "50", "--repeats", "1", "--out", str(tmp_path / "x.json")])
    assert "pip install 'rliable==1.2.0'" in capsys.readouterr().out
    found = json.loads((tmp_path / "x.json").read_text())["results"]
    assert [row["seeds"] for row in found] == [10, 5, 3] and all(row["ours_s"] > 0 for row in found)
    with pytest.raises(SystemExit):
        intervals.main(["bootstrap", "--rliable", str(tmp_path / "python")])
    assert "there is no such interpreter" in capsys.readouterr().err


def test_the_runs_of_the_large_report_are_runs(tmp_path: Path) -> None:
    intervals.write_sweep(tmp_path, runs=41, points=3)
    found = Study(report.collect([tmp_path], "auto"), report.Args(dirs=(tmp_path,)))
    assert len(found.runs) == 41 and len(found.tasks) == 10 and len(found.variants) == 4
    assert {len(run.data.steps) for run in found.runs} == {3} and found.counts() == {"done": 41}
    assert len(found.together) == 10 and len(found.comparisons) == 3, "so that all plots are drawn"


# ---- one task --------------------------------------------------------------------------------------------------------

# Fisher and Yates, two-sided 5% and one-sided 0.5%; the Cauchy law is Student's with one degree of freedom.
TABLE = {(0.975, 1): 12.7062, (0.975, 2): 4.30265, (0.975, 9): 2.26216, (0.975, 30): 2.04227, (0.995, 5): 4.03214}


@pytest.mark.parametrize(("p", "freedom"), TABLE)
def test_quantiles_of_student_in_the_table(p: float, freedom: int) -> None:
    assert stats.t_quantile(p, freedom) == pytest.approx(TABLE[p, freedom], rel=2e-6)
    assert stats.t_quantile(1 - p, freedom) == pytest.approx(-TABLE[p, freedom], rel=2e-6)


def test_quantiles_of_student_in_closed_form() -> None:
    for p in (0.5, 0.51, 0.7, 0.9, 0.99, 0.9999, 0.2):
        assert stats.t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-8, abs=1e-12)
        two = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
        assert stats.t_quantile(p, 2) == pytest.approx(two, rel=1e-8, abs=1e-12)
    assert stats.t_quantile(0.975, 1e7) == pytest.approx(1.959964, abs=1e-5)


def test_quantiles_of_student_are_scipys_for_broken_freedom_too() -> None:
    scipy = pytest.importorskip("scipy.stats")
    for p, freedom in itertools.product((0.55, 0.9, 0.975, 0.99995), (0.5, 1.5, 3.3, 17.2, 250.0)):
        assert stats.t_quantile(p, freedom) == pytest.approx(scipy.t.ppf(p, freedom), rel=1e-8)


@pytest.mark.parametrize(("p", "freedom"), [(0.0, 3), (1.0, 3), (0.9, 0), (math.nan, 3)])
def test_quantiles_that_do_not_exist(p: float, freedom: float) -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        stats.t_quantile(p, freedom)


def test_t_interval_by_hand() -> None:
    # 1, 2, 3: mean 2, deviation 1, t 4.30265 with two degrees of freedom
    found = t_interval([1.0, 2.0, 3.0])
    assert [float(x) for x in found] == pytest.approx([2, 2 - 4.3026527 / math.sqrt(3), 2 + 4.3026527 / math.sqrt(3)])
    points = t_interval([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
    assert points.low.tolist() == pytest.approx([float(found.low), 5.0])
    assert np.isnan(t_interval([7.0]).low) and float(t_interval([7.0]).value) == 7


def test_welch_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.stats")
    x, y = [3.0, 4.5, 9.1, 2.2], [1.0, 1.1, 0.7, 1.4, 0.9, 1.2]
    theirs = scipy.ttest_ind(x, y, equal_var=False).confidence_interval(0.9)
    ours = welch(x, y, level=0.9)
    assert [float(ours.low), float(ours.high)] == pytest.approx([theirs.low, theirs.high], rel=1e-8)


def test_welch_at_its_borders() -> None:
    same = welch([1.0, 1.0], [0.25, 0.25, 0.25])
    assert [float(x) for x in same] == [0.75, 0.75, 0.75]
    alone = welch([1.0], [0.0, 2.0])
    assert float(alone.value) == 0 and math.isnan(float(alone.low))
    # Equal sizes and variances: the degrees of freedom of Student's own test, 2 n - 2.
    x = np.array([0.0, 1.0, 2.0])
    half = stats.t_quantile(0.975, 4) * math.sqrt(2 / 3)
    assert float(welch(x, x + 5).high) == pytest.approx(-5 + half)
