"""An adapter's factors as the native core reads them.

Both factors are tiles like any weight: ``down`` ``[rank, in]`` and ``up`` ``[out, rank]``, in float16, or in 8 bits
with one scale per row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.engine.network import SLOTS
from regraft.errors import IncompatibleAdapterError
from regraft.native import _core
from regraft.native.layout import TILE, Tiles, pack_codes, pack_dense, padded

Matrix = NDArray[np.float16] | NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """One bypass: ``y += scale * up f(down x)`` at a slot, f the identity, or GELU for a recovery.

    Attributes:
        slot: as in ``layers.3.mlp.down_proj``.
        down: ``[rank, in]``.
        up: ``[out, rank]``.
        scale: the effective scale.
        gelu: whether it is CA-LoRA's non-linear recovery.
    """

    slot: str
    down: Matrix
    up: Matrix
    scale: float
    gelu: bool = False


def build_adapter(layers: int, factors: Iterable[Factors], *, bits: int = 16) -> _core.Adapter:
    """The native form of an adapter.

    Args:
        layers: decoder layers of the base.
        factors: in any order; several may stand at one slot.
        bits: 16 for float16 factors, 8 for int8 ones.

    Raises:
        IncompatibleAdapterError: a factor stands at a slot that the engine does not have.
    """
    adapter = _core.Adapter(layers)
    for layer, slot, part in sorted(
        ((*_place(part.slot, layers), part) for part in factors), key=lambda item: item[:2]
    ):
        pack = _pack_half if bits == 16 else _pack_int8
        # The down factor's columns are the base's padded inputs; the up factor's its own ranks, in whole tiles.
        down = pack(part.down, padded(part.down.shape[1], TILE))
        up = pack(part.up, padded(part.up.shape[1], TILE))
        adapter.add(layer, slot, down.linear(), up.linear(), part.scale, part.gelu)
    return adapter


def _place(slot: str, layers: int) -> tuple[int, int]:
    word, _, rest = slot.partition(".")
    number, _, name = rest.partition(".")
    if word != "layers" or not number.isdecimal() or int(number) >= layers or name not in SLOTS:
        raise IncompatibleAdapterError(
            f"slot {slot} is not one that the engine runs", expected=f"layers.N. and {', '.join(SLOTS)}"
        )
    return int(number), SLOTS.index(name)


def _pack_half(matrix: Matrix, columns: int) -> Tiles:
    return pack_dense(matrix.astype(np.float16), columns=columns)


def _pack_int8(matrix: Matrix, columns: int) -> Tiles:
    scale = (np.abs(matrix).max(axis=1, keepdims=True).astype(np.float32) / 127).astype(np.float16)
    unit = np.where(scale > 0, scale, 1).astype(np.float32)
    codes = (np.clip(np.rint(matrix / unit), -127, 127) + 128).astype(np.uint8)
    return pack_codes(codes, 8, scale, columns=columns)
