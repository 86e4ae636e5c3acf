"""An adapter's factors as the native core reads them, in memory of their own or in pages of the arena.

Both factors of a bypass are tiles like any weight: ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``, in float16, or
in 8 bits with one scale per row. Ranks may be cut anywhere, since ``up f(down x)`` is a sum over ranks; so a factor
that is larger than a page becomes several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regraft.bypass.factors import Factors
from regraft.engine.network import SLOTS
from regraft.errors import IncompatibleAdapterError
from regraft.native import _core
from regraft.native.layout import ALIGNMENT, TILE, Tiles, empty_aligned, pack_dense, padded

Matrix = NDArray[Any]  # float16 or float32
Bypasses = Mapping[str, Sequence[Factors]]  # by slot, as in layers.3.mlp.down_proj
Bits = Literal[8, 16]
Allocate = Callable[[int], NDArray[np.uint8]]  # so many bytes, aligned as tiles are


def count_pages(bypasses: Bypasses, page_bytes: int, *, bits: Bits = 16) -> int:
    """How many pages :func:`build_adapter` fills; only shapes are looked at.

    Raises:
        IncompatibleAdapterError: eight ranks of a factor are more than a page.
    """
    pages = _Filling(page_bytes)
    for slot, added in bypasses.items():
        for whole in added:
            for part in _cut(slot, whole, page_bytes, bits):
                for size in _sizes(part, part.rank, bits):
                    pages.place(size)
    return pages.count


def build_adapter(
    layers: int,
    bypasses: Bypasses,
    *,
    bits: Bits = 16,
    pages: Sequence[NDArray[np.uint8]] | None = None,
) -> _core.Adapter:
    """The native form of an adapter.

    Args:
        layers: decoder layers of the base.
        bypasses: slots in the order that :func:`count_pages` saw them in.
        bits: 16 for float16 factors, 8 for int8 ones.
        pages: memory to lie in, as much as :func:`count_pages` says, of one size; None for memory of its own.

    Raises:
        IncompatibleAdapterError: a factor stands at a slot that the engine does not have.
    """
    adapter = _core.Adapter(layers)
    allocate = _in_pages(pages) if pages else empty_aligned
    made = []
    for slot, added in bypasses.items():
        place = _place(slot, layers)
        for whole in added:
            for part in _cut(slot, whole, len(pages[0]), bits) if pages else [whole]:
                down, up = (_pack(factor, bits, allocate).linear() for factor in (part.down, part.up))
                made.append((place, down, up, part.scale, part.kind == "gelu"))
    for (layer, number), down_linear, up_linear, scale, gelu in sorted(made, key=lambda item: item[0]):
        adapter.add(layer, number, down_linear, up_linear, scale, gelu)
    return adapter


class _Filling:
    """Fills pages one after the other, each piece within one."""

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes, self._page, self._offset = page_bytes, -1, page_bytes

    @property
    def count(self) -> int:
        return self._page + 1

    def place(self, size: int) -> tuple[int, int]:
        """The page and the offset of the next piece."""
        if self._offset + size > self._page_bytes:
            self._page, self._offset = self._page + 1, 0
        offset = self._offset
        self._offset += padded(size, ALIGNMENT)
        return self._page, offset


def _cut(slot: str, whole: Factors, page_bytes: int, bits: Bits) -> Iterator[Factors]:
    """A bypass in parts, by ranks, of which neither factor is more than a page."""
    row = padded(max(whole.down.shape[1], whole.up.shape[0]), TILE) * bits // 8
    most = page_bytes // row // TILE * TILE
    if most == 0 or max(_sizes(whole, min(whole.rank, TILE), bits)) > page_bytes:
        raise IncompatibleAdapterError(
            f"slot {slot}: {TILE} ranks take more than a page of the engine's memory",
            expected=f"at most {page_bytes} bytes",
            found=f"{TILE * row}",
        )
    if whole.rank <= most:
        yield whole
        return
    for first in range(0, whole.rank, most):
        last = first + most
        yield replace(whole, down=whole.down[first:last], up=whole.up[:, first:last])


def _sizes(bypass: Factors, rank: int, bits: Bits) -> list[int]:
    """Bytes of the arrays that :func:`_pack` makes of both factors, in its order, if they had this rank."""
    sizes = []
    for out, columns in ((rank, bypass.down.shape[1]), (bypass.up.shape[0], rank)):
        sizes.append(padded(out, TILE) * padded(columns, TILE) * bits // 8)
        if bits == 8:
            sizes.append(padded(out, TILE) * 2)
    return sizes


def _in_pages(pages: Sequence[NDArray[np.uint8]]) -> Allocate:
    """Hands out memory of the pages, in the order of :func:`count_pages`."""
    filling = _Filling(len(pages[0]))

    def allocate(count: int) -> NDArray[np.uint8]:
        page, offset = filling.place(count)
        return pages[page][offset : offset + count]

    return allocate


def _place(slot: str, layers: int) -> tuple[int, int]:
    word, _, rest = slot.partition(".")
    number, _, name = rest.partition(".")
    if word != "layers" or not number.isdecimal() or int(number) >= layers or name not in SLOTS:
        raise IncompatibleAdapterError(
            f"slot {slot} is not one that the engine runs", expected=f"layers.N. and {', '.join(SLOTS)}"
        )
    return int(number), SLOTS.index(name)


def _pack(matrix: Matrix, bits: Bits, allocate: Allocate) -> Tiles:
    """A factor's tiles; its columns are padded to whole tiles, as the rows of the factor before it are."""
    rows, columns = (padded(size, TILE) for size in matrix.shape)
    if bits == 16:
        tiles = pack_dense(matrix.astype(np.float16), columns=columns)
        data = allocate(tiles.data.nbytes)
        data[...] = tiles.data
        return replace(tiles, data=data)
    codes, scales = allocate(rows * columns), allocate(rows * 2)
    _core.pack_bytes(matrix, codes, scales)
    return Tiles("u8", matrix.shape[0], columns, columns, codes, scales.view(np.float16))
