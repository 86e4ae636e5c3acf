"""An adapter's factors as the native core reads them, in pages of the arena or in memory of their own.

Both factors of a bypass are tiles like any weight: ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``, in float16, or
in 8 bits with one scale per row. Where they go, and that a factor larger than a page becomes several, is the core's
affair (``core/packing.hpp``), which packs a whole adapter in one call, beside other threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from regraft.engine.weights.native_model import SLOTS
from regraft.errors import IncompatibleAdapterError
from regraft.formats.adapter.content import Factors
from regraft.native import _core
from regraft.native.layout import TILE, padded, zeros_aligned

Bypasses = Mapping[str, Sequence[Factors]]  # by slot, as in layers.3.mlp.down_proj
Bits = Literal[8, 16]
_RUN = _core.bypass_kinds()
Pages = Sequence[NDArray[np.uint8]]  # of one size, aligned as tiles are


def plan_packing(layers: int, bypasses: Bypasses, *, bits: Bits = 16, page_bytes: int = 0) -> _core.Packing:
    """Where an adapter's factors go.

    Args:
        layers: decoder layers of the base.
        bypasses: what the adapter adds; the plan keeps its arrays.
        bits: 16 for float16 factors, 8 for int8 ones.
        page_bytes: of each page; 0 for one page that has all.

    Raises:
        IncompatibleAdapterError: a bypass is of a kind or at a slot that the engine does not have, or eight ranks of a
            factor are more than a page.
    """
    items = []
    for slot, added in bypasses.items():
        layer, number = _place(slot, layers)
        for part in added:
            if page_bytes:
                widest = padded(max(part.down.shape[1], part.up.shape[0]), TILE)
                _check_fits(slot, TILE * widest * bits // 8, page_bytes)
            if part.kind not in _RUN:
                raise IncompatibleAdapterError(
                    f"slot {slot}: a bypass of kind {part.kind}",
                    expected=f"one that the engine runs: {', '.join(_RUN)}",
                )
            items.append((layer, number, part.kind, part.down, part.up, part.scale))
    return _core.Packing(layers, items, bits, page_bytes)


def fill_own(packing: _core.Packing) -> _core.Adapter:
    """A planned adapter in memory of its own, whose unused bytes are zero."""
    return packing.fill(list(zeros_aligned(packing.pages, packing.page_bytes)))


def build_adapter(layers: int, bypasses: Bypasses, *, bits: Bits = 16, page_bytes: int = 0) -> _core.Adapter:
    """An adapter in memory of its own; see :func:`plan_packing`."""
    return fill_own(plan_packing(layers, bypasses, bits=bits, page_bytes=page_bytes))


def digest_of(bypasses: Bypasses, adapter: _core.Adapter) -> str:
    """Hex sha256 of all that an adapter computes: its slots, kinds, scales and ranks, and the bytes of its factors.

    Args:
        bypasses: what the adapter was built of.
        adapter: it, by :func:`build_adapter`. What is rounded alike is alike.
    """
    digest = hashlib.sha256()
    for slot, added in bypasses.items():
        for part in added:
            digest.update(f"{slot} {part.kind} {part.rank} {part.scale!r}\n".encode())
    for page in adapter.pages:
        digest.update(page.data)
    return digest.hexdigest()


def _check_fits(slot: str, num_bytes: int, page_bytes: int) -> None:
    if num_bytes > page_bytes:
        raise IncompatibleAdapterError(
            f"slot {slot}: {TILE} ranks take more than a page of the engine's memory",
            expected=f"at most {page_bytes} bytes",
            found=f"{num_bytes}",
        )


def _place(slot: str, layers: int) -> tuple[int, int]:
    word, _, rest = slot.partition(".")
    number, _, name = rest.partition(".")
    if word != "layers" or not number.isdecimal() or int(number) >= layers or name not in SLOTS:
        raise IncompatibleAdapterError(
            f"slot {slot} is not one that the engine runs", expected=f"layers.N. and {', '.join(SLOTS)}"
        )
    return int(number), SLOTS.index(name)
