"""Lift kept: the share of an adapter's gain over the baseline that remains. It has a zero, which retention lacks.

    lift       = teacher - baseline
    lift kept  = (score - baseline) / (teacher - baseline)

The baseline is what can be had without the adapter, on the uncompressed base (:mod:`regraft.evaluate.baseline`). So an
adapter that is no better than that has kept nothing, where retention, ``score / teacher``, gives a guess between two
answers more than half.

A share of next to nothing says nothing: where the lift is below 0.15, or below four standard errors of the paired
difference, there is *no lift*, and the task enters no mean. Means are over rows, then over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.evaluate.bootstrap import ci95, resampled_means
from regraft.evaluate.metrics import Score

MIN_LIFT = 0.15
MIN_ERRORS = 4.0

Means = NDArray[np.float64]  # of score, baseline and teacher, [..., 3]


@dataclass(frozen=True)
class Lift:
    """What a teacher adds to the baseline; ``error`` is the standard error of that, rows being paired."""

    value: float
    error: float

    @property
    def why_none(self) -> str | None:
        """Why no share of it should be stated; None where one may."""
        if self.value < MIN_LIFT:
            where = f"{abs(self.value):.3f} {'below' if self.value < 0 else 'above'} the baseline"
            return f"the teacher is {where}, and {MIN_LIFT} above is the least"
        if math.isinf(self.error):
            return "a single row does not tell"
        if self.value < MIN_ERRORS * self.error:
            return (
                f"the teacher is {self.value / self.error:.2f} standard errors above the baseline, not {MIN_ERRORS:g}"
            )
        return None


@dataclass(frozen=True)
class TaskRows:
    """One task's values by row, the same rows in each: what is judged, the baseline, the teacher."""

    values: Sequence[float]
    baseline: Sequence[float]
    teacher: Sequence[float]

    @property
    def lift(self) -> Lift:
        """What there is to keep."""
        return lift(self.teacher, self.baseline)


@dataclass(frozen=True)
class MacroMean:
    """A mean over tasks with the ends of its 95 % confidence interval; ``n`` tasks are in it."""

    value: float
    ci95: tuple[float, float]
    n: int


def lift(teacher: Sequence[float], baseline: Sequence[float]) -> Lift:
    """The mean paired difference and its standard error; of a single row nothing is known, so that is infinite."""
    differences = np.subtract(teacher, baseline, dtype=np.float64)
    n = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    return Lift(float(differences.mean()), error)


def lift_kept(rows: TaskRows, *, seed: int = 0) -> Score | None:
    """The share of the lift that is kept; None where there is no lift.

    Resamples take score, baseline and teacher of a row together. The baseline stays the one that was best.
    """
    share = share_kept(rows)
    if share is None:
        return None
    return Score(share, ci95(_resampled(rows, kept_share, seed)), len(rows.values))


def share_kept(rows: TaskRows) -> float | None:
    """The same without its interval, which takes two thousand resamples."""
    return None if rows.lift.why_none is not None else float(kept_share(_means(rows)))


def macro_mean(
    tasks: Sequence[TaskRows], share: Callable[[Means], NDArray[np.float64]] | None = None, *, seed: int = 0
) -> MacroMean | None:
    """The mean over tasks of a share of each, :func:`kept_share` if not said otherwise.

    Tasks without lift are left out; None where none is left. Rows are resampled within each task: the interval says
    how sure the mean over these tasks is, and nothing of other tasks.
    """
    share = share or kept_share
    lifted = [rows for rows in tasks if rows.lift.why_none is None]
    if not lifted:
        return None
    value = float(np.mean([share(_means(rows)) for rows in lifted]))
    resampled = [_resampled(rows, share, (seed, number)) for number, rows in enumerate(lifted)]
    return MacroMean(value, ci95(np.mean(resampled, axis=0)), len(lifted))


def kept_share(means: Means) -> NDArray[np.float64]:
    """``(score - baseline) / (teacher - baseline)``."""
    score, baseline, teacher = np.moveaxis(means, -1, 0)
    return np.asarray((score - baseline) / (teacher - baseline))


def retained_share(means: Means) -> NDArray[np.float64]:
    """``score / teacher``."""
    score, _, teacher = np.moveaxis(means, -1, 0)
    return np.asarray(score / teacher)


def _means(rows: TaskRows) -> Means:
    return np.array([np.mean(rows.values), np.mean(rows.baseline), np.mean(rows.teacher)])


def _resampled(
    rows: TaskRows, share: Callable[[Means], NDArray[np.float64]], seed: int | tuple[int, int]
) -> NDArray[np.float64]:
    """The share in each resample; where one has no lift, which is rarer than one in 10,000, that of all rows."""
    means = resampled_means(rows.values, rows.baseline, rows.teacher, seed=seed)
    means[means[:, 2] <= means[:, 1]] = _means(rows)
    return share(means)
