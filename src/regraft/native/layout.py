"""Weights as the native core reads them: output rows in tiles of 8, each tile's numbers interleaved.

``core/linear.hpp`` describes the layout; this is its writer, but for the factors of adapters, which the core packs
itself because they come and go. Everything here is numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.native import _core

TILE: int = _core.TILE
BLOCK: int = _core.BLOCK
ALIGNMENT = 64
ARRAYS = ("data", "scale", "zero", "minimum", "bias")

Array = NDArray[Any]


@dataclass(frozen=True)
class Tiles:
    """A linear map in the core's layout: arrays that may lie in memory, in a mapped file, or in an arena's page.

    Or several maps of one shape: then all arrays have one more axis before the others, along which they need not be
    contiguous.

    Attributes:
        codes: ``u2``, ``u4``, ``u8``, ``f16`` or ``f32``.
        out: output rows of one map, unpadded.
        columns: input columns, padded.
        group: columns that share a scale.
        data: uint8, one-dimensional, aligned to 32 bytes.
        scale: float16 ``[tiles, groups, 8]``, with codes only.
        zero: uint8, like ``scale``; or None.
        minimum: float16, like ``scale``; or None.
        bias: float32 ``[8 * tiles]``, or None.
    """

    codes: str
    out: int
    columns: int
    group: int
    data: Array
    scale: Array | None = None
    zero: Array | None = None
    minimum: Array | None = None
    bias: Array | None = None

    def linear(self) -> _core.Linear:
        """The core's view of these arrays; it keeps them alive."""
        return _core.Linear(
            self.codes, self.out, self.columns, self.group, self.data, self.scale, self.zero, self.minimum, self.bias
        )

    def arrays(self) -> Iterator[tuple[str, Array]]:
        """Those that there are, by name."""
        for name in ARRAYS:
            if (array := getattr(self, name)) is not None:
                yield name, array

    def cut(self, count: int) -> Tiles:
        """As many maps of as many rows each, whole tiles; views of the same memory."""
        if self.out % (count * TILE):
            raise ValueError(f"{self.out} rows are not {count} times whole tiles of {TILE}")
        parts: dict[str, Any] = {name: array.reshape(count, -1, *array.shape[1:]) for name, array in self.arrays()}
        return replace(self, out=self.out // count, **parts)


def pack_dense(weight: Array, *, columns: int | None = None, bias: Array | None = None) -> Tiles:
    """Tiles of a float16 or float32 weight ``[out, in]``, padded to ``columns`` (by default to whole blocks of 32)."""
    out, width = weight.shape
    columns = columns or padded(width, BLOCK)
    tiles = _tiles(weight, columns).transpose(0, 2, 1)
    codes = {2: "f16", 4: "f32"}[weight.dtype.itemsize]
    return Tiles(codes, out, columns, columns, aligned(tiles), bias=_bias(bias, out))


def pack_codes(
    codes: Array,
    bits: int,
    scale: Array,
    zero: Array | None = None,
    minimum: Array | None = None,
    *,
    columns: int | None = None,
    bias: Array | None = None,
) -> Tiles:
    """Tiles of a quantised weight: ``scale * (codes - zero)``, or ``scale * codes + minimum``.

    Args:
        codes: uint8 ``[out, in]``, each below ``2**bits``.
        bits: 2 to 8; stored in the next of 2, 4 and 8 bits, around the middle of these if ``zero`` is None.
        scale: float16 ``[out, groups]``.
        zero: uint8 ``[out, groups]``, or None for ``2**(bits-1)`` throughout.
        minimum: float16 ``[out, groups]``, instead of ``zero``.
        columns: padded width, by default whole blocks of 32.
        bias: ``[out]``.
    """
    out, width = codes.shape
    columns = columns or padded(width, BLOCK)
    groups = scale.shape[1]
    stored = next(b for b in (2, 4, 8) if b >= bits)
    if zero is None and minimum is None:
        codes = codes + np.uint8((1 << (stored - 1)) - (1 << (bits - 1)))
    return Tiles(
        f"u{stored}",
        out,
        columns,
        width // groups if groups > 1 else columns,
        aligned(_interleave(_tiles(codes, columns), stored)),
        _by_tile(scale),
        None if zero is None else _by_tile(zero),
        None if minimum is None else _by_tile(minimum),
        _bias(bias, out),
    )


def padded(width: int, to: int) -> int:
    """``width`` rounded up to a multiple of ``to``."""
    return -(-width // to) * to


def aligned(array: Array) -> Array:
    """The bytes of an array, contiguous, at an address that vector loads want."""
    (result,) = _aligned(np.empty(array.nbytes + ALIGNMENT, np.uint8), 1)
    result.view(array.dtype).reshape(array.shape)[...] = array
    return result


def zeros_aligned(rows: int, row_bytes: int) -> NDArray[np.uint8]:
    """Zeros ``[rows, row_bytes]`` at such an address; whole lines of a cache in a row keep all rows aligned."""
    return _aligned(np.zeros(rows * row_bytes + ALIGNMENT, np.uint8), rows)


def _aligned(memory: NDArray[np.uint8], rows: int) -> NDArray[np.uint8]:
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + len(memory) - ALIGNMENT].reshape(rows, -1)


def _tiles(rows: Array, columns: int) -> Array:
    """``[tiles, 8, columns]``, padded by zeros."""
    out, width = rows.shape
    whole = np.zeros((padded(out, TILE), columns), rows.dtype)
    whole[:out, :width] = rows
    return whole.reshape(-1, TILE, columns)


def _interleave(tiles: Array, bits: int) -> Array:
    """``[tiles, 8, columns]`` codes → bytes: four columns of eight rows, several times over in one byte."""
    fields = 8 // bits
    parts = tiles.reshape(len(tiles), TILE, -1, fields, 4).transpose(3, 0, 2, 1, 4)  # [fields, tiles, words, 8, 4]
    joined = parts[0].copy()
    for field in range(1, fields):
        joined |= parts[field] << (bits * field)
    return joined


def _by_tile(values: Array) -> Array:
    """``[out, groups]`` → ``[tiles, groups, 8]``."""
    return np.ascontiguousarray(_tiles(values, values.shape[1]).transpose(0, 2, 1))


def _bias(bias: Array | None, out: int) -> Array | None:
    if bias is None:
        return None
    whole = np.zeros(padded(out, TILE), np.float32)
    whole[:out] = bias
    return whole
