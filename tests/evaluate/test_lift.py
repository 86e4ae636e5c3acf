"""Lift kept against its definition, row by row and resample by resample."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from regraft.evaluate.bootstrap import NUM_RESAMPLES, QUANTILES
from regraft.evaluate.lift import (
    MIN_ERRORS,
    MIN_LIFT,
    TaskRows,
    kept_share,
    lift,
    lift_kept,
    macro_mean,
    retained_share,
)

SCORES = st.integers(0, 8).map(lambda eighths: eighths / 8)
TABLES = st.lists(st.tuples(SCORES, SCORES, SCORES), min_size=2, max_size=40)


def rows_of(table: list[tuple[float, float, float]]) -> TaskRows:
    values, baseline, teacher = zip(*table, strict=True)
    return TaskRows(values, baseline, teacher)


def lifted(n: int = 60, *, kept: float = 0.5, seed: int = 0) -> TaskRows:
    """A baseline of about 0.2, a teacher of about 0.8, and an arm that answers like the one or the other."""
    rng = np.random.default_rng(seed)
    baseline, teacher = (rng.random((2, n)) < [[0.2], [0.8]]).astype(float)
    values = np.where(rng.random(n) < kept, teacher, baseline)
    return TaskRows(values.tolist(), baseline.tolist(), teacher.tolist())


@given(TABLES)
def test_lift_is_the_paired_difference_with_its_standard_error(table: list[tuple[float, float, float]]) -> None:
    rows = rows_of(table)
    differences = [t - b for t, b in zip(rows.teacher, rows.baseline, strict=True)]
    assert rows.lift.value == pytest.approx(statistics.mean(differences))
    assert rows.lift.error == pytest.approx(statistics.stdev(differences) / math.sqrt(len(differences)), abs=1e-12)


@given(TABLES)
def test_what_is_kept_is_the_definition_in_fractions(table: list[tuple[float, float, float]]) -> None:
    rows = rows_of(table)
    score, baseline, teacher = (
        sum(map(Fraction, column)) / len(table) for column in (rows.values, rows.baseline, rows.teacher)
    )
    kept = lift_kept(rows)
    if kept is None:
        assert teacher - baseline < MIN_LIFT or float(teacher - baseline) <= MIN_ERRORS * rows.lift.error * (1 + 1e-9)
    else:
        assert teacher - baseline >= Fraction(MIN_LIFT) - Fraction(1, 10**9)
        assert kept.value == pytest.approx(float((score - baseline) / (teacher - baseline)))
        assert kept.n == len(table)


@given(st.floats(0, 1), st.integers(0, 5))
def test_an_arm_like_the_teacher_keeps_all_and_one_like_the_baseline_nothing(share: float, seed: int) -> None:
    rows = lifted(kept=share, seed=seed)
    whole = lift_kept(TaskRows(rows.teacher, rows.baseline, rows.teacher))
    none = lift_kept(TaskRows(rows.baseline, rows.baseline, rows.teacher))
    assert whole and none
    assert (whole.value, whole.ci95) == (1, (1, 1))
    assert (none.value, none.ci95) == (0, (0, 0))


@given(st.floats(-3, 3), st.floats(0.3, 3))
def test_a_score_s_zero_and_unit_do_not_matter(zero: float, unit: float) -> None:
    plain = lifted()
    other = TaskRows(*([zero + unit * value for value in column] for column in vars(plain).values()))
    assume(other.lift.why_none is None)
    ours, theirs = lift_kept(plain), lift_kept(other)
    assert ours and theirs
    assert theirs.value == pytest.approx(ours.value)
    assert theirs.ci95 == pytest.approx(ours.ci95)


def test_the_interval_is_that_of_rows_drawn_together() -> None:
    rows = lifted()
    kept = lift_kept(rows, seed=3)
    rng, n, shares = np.random.default_rng(3), len(rows.values), []
    for _ in range(NUM_RESAMPLES):
        drawn = rng.integers(0, n, n)
        s, b, t = (statistics.mean(column[i] for i in drawn) for column in (rows.values, rows.baseline, rows.teacher))
        shares.append((s - b) / (t - b))
    assert kept
    assert kept.ci95 == pytest.approx(tuple(np.percentile(shares, QUANTILES)))
    assert kept.ci95[0] < kept.value < kept.ci95[1]


@pytest.mark.parametrize(
    ("teacher", "baseline", "says"),
    [
        ([1.0] * 14 + [0.0] * 86, [0.0] * 100, "the teacher is 0.140 above the baseline, and 0.15 above is the least"),
        ([0.0] * 9, [0.25] * 9, "the teacher is 0.250 below the baseline, and 0.15 above is the least"),
        ([1.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0], "the teacher is 1.73 standard errors above the baseline, not 4"),
        ([1.0], [0.0], "a single row does not tell"),
        ([1.0] * 4, [0.5] * 4, None),
        ([1.0] * 30 + [0.0] * 70, [0.0] * 100, None),
    ],
)
def test_a_small_or_unsure_lift_is_none(teacher: list[float], baseline: list[float], says: str | None) -> None:
    found = lift(teacher, baseline)
    assert found.why_none == says
    assert (lift_kept(TaskRows(baseline, baseline, teacher)) is None) == (says is not None)


def test_a_mean_is_over_tasks_however_many_rows_they_have() -> None:
    tasks = [lifted(40, kept=0.9, seed=1), lifted(400, kept=0.3, seed=2)]
    single = [lift_kept(rows) for rows in tasks]
    found = macro_mean(tasks)
    assert found and found.n == 2
    assert found.value == pytest.approx(statistics.mean(kept.value for kept in single if kept))
    retained = macro_mean(tasks, retained_share)
    expected = [statistics.mean(rows.values) / statistics.mean(rows.teacher) for rows in tasks]
    assert retained and retained.value == pytest.approx(statistics.mean(expected))


def test_the_interval_of_a_mean_resamples_rows_within_each_task() -> None:
    tasks = [lifted(50, seed=number) for number in range(3)]
    found = macro_mean(tasks, seed=5)
    means = []
    generators = [np.random.default_rng((5, number)) for number in range(3)]
    for _ in range(NUM_RESAMPLES):
        shares = []
        for rng, rows in zip(generators, tasks, strict=True):
            drawn = rng.integers(0, 50, 50)
            shares.append(kept_share(np.array([[np.take(column, drawn).mean() for column in vars(rows).values()]]))[0])
        means.append(statistics.mean(shares))
    assert found
    assert found.ci95 == pytest.approx(tuple(np.percentile(means, QUANTILES)))
    single = lift_kept(tasks[0])
    assert single and found.ci95[1] - found.ci95[0] < single.ci95[1] - single.ci95[0]


def test_a_task_without_lift_enters_no_mean() -> None:
    tasks = [lifted(seed=1), lifted(seed=2)]
    flat = TaskRows([0.9] * 60, [0.5] * 60, [0.6] * 60)
    assert macro_mean([*tasks, flat]) == macro_mean(tasks)
    assert macro_mean([flat]) is None
    assert macro_mean([]) is None
    assert macro_mean([flat], retained_share) is None


def test_a_resample_without_lift_leaves_the_interval_finite() -> None:
    rows = TaskRows([1.0] + [0.0] * 3, [0.0] * 4, [1.0, 1.0, 1.0, 0.9])
    kept = lift_kept(rows)
    assert kept and all(map(math.isfinite, kept.ci95))
