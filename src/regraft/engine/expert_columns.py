"""The columns of a down projection by expert, so that those of one expert are read without the others."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.base.weights import Dense, Weight


def by_expert(weight: Weight, size: int) -> Weight:
    """Each expert's columns as a weight of its own, one under the other: ``[out, E * size]`` → ``[E * out, size]``.

    Where a group of columns is larger than an expert, its scale is repeated.
    """
    if isinstance(weight, Dense):
        return Dense(_stacked(weight.array, size))
    group = math.gcd(weight.group_size, size)
    of_group = np.arange(0, weight.codes.shape[1], group) // weight.group_size

    def by_group(values: NDArray[Any]) -> NDArray[Any]:
        return _stacked(values[:, of_group], size // group)

    return replace(
        weight,
        codes=_stacked(weight.codes, size),
        group_size=group,
        scale=by_group(weight.scale),
        zero=None if weight.zero is None else by_group(weight.zero),
        minimum=None if weight.minimum is None else by_group(weight.minimum),
    )


def _stacked(array: NDArray[Any], size: int) -> NDArray[Any]:
    out, width = array.shape
    return np.ascontiguousarray(array.reshape(out, width // size, size).transpose(1, 0, 2)).reshape(-1, size)
