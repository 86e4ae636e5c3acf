"""Confidence intervals by the percentile bootstrap (Efron 1979, Annals of Statistics 7(1), section 2).

    θ* = θ(x_{i_1}, …, x_{i_n}),  i_j drawn with replacement;  ci95 = the 2.5 % and 97.5 % quantiles of many θ*

Models that answered the same examples are resampled together, so that what makes an example hard for both cancels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 2000
ROUND = 100  # resamples that are drawn at once
QUANTILES = (2.5, 97.5)


def resampled_means(*columns: Sequence[float], seed: int | Sequence[int]) -> NDArray[np.float64]:
    """Means of k columns of n values over resampled rows, ``[NUM_RESAMPLES, k]``; a draw of rows serves all columns."""
    values = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)  # [n, k]
    rng, n = np.random.default_rng(seed), len(values)
    rounds = np.diff([*range(0, NUM_RESAMPLES, ROUND), NUM_RESAMPLES])
    return np.concatenate([values[rng.integers(0, n, (count, n))].mean(axis=1) for count in rounds])


def ci95(estimates: NDArray[np.float64]) -> tuple[float, float]:
    """The interval that holds the middle 95 % of the estimates."""
    low, high = np.percentile(estimates, QUANTILES)
    return float(low), float(high)
