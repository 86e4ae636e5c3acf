"""The weights of an MLP expert by expert, so that what a token takes of it is read in as few long pieces as may be.

With a router an expert's record has its rows of gate and up and its columns of down. A threshold looks at all gates
first, so that these have records of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regraft.formats.weights import Dense, Weight
from regraft.native.layout import ALIGNMENT, Tiles

GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
LINEARS = (GATE, UP, DOWN)
READ_TOGETHER: Mapping[Literal["moefication", "cats"], tuple[tuple[str, ...], ...]] = {
    "moefication": (LINEARS,),
    "cats": ((GATE,), (UP, DOWN)),
}


@dataclass(frozen=True)
class Records:
    """Linear maps of experts in memory ``[experts, bytes]``, and where each array begins in a record."""

    memory: NDArray[np.uint8]
    offsets: dict[str, dict[str, int]]


def lay_out(linears: Mapping[str, Tiles]) -> Records:
    """Records of linear maps, by name, that are cut in experts; their arrays in the order given."""
    size, parts, offsets = 0, list[NDArray[np.uint8]](), {name: dict[str, int]() for name in linears}
    for name, tiles in linears.items():
        for array_name, array in tiles.arrays():
            part = np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)
            parts.append(np.pad(part, ((0, 0), (0, -part.shape[1] % ALIGNMENT))))
            offsets[name][array_name] = size
            size += parts[-1].shape[1]
    return Records(np.concatenate(parts, axis=1), offsets)


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
