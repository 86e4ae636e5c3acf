"""An adapter as it is stored: factors in numpy, by slot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regraft.formats.adapter.record import AdapterRecord
from regraft.formats.kept import Kept

Kind = Literal["lora", "gelu"]


@dataclass(frozen=True)
class Factors:
    """One bypass: ``y += scale · up f(down x)``, with f the identity (``lora``) or GELU (``gelu``).

    Attributes:
        kind: which f.
        down: A or P1, ``[r, in]``, float16 or float32; perhaps a view of a mapped file.
        up: B or P2, ``[out, r]``.
        scale: s, the *effective* scale, already divided by the rank.
    """

    kind: Kind
    down: NDArray[Any]
    up: NDArray[Any]
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return int(self.down.shape[0])

    def has_effect(self) -> bool:
        """Whether the bypass adds anything: ``s · up down`` is not zero, judged by the factors' Gram matrices."""
        down, up = self.down.astype(np.float64), self.up.astype(np.float64)
        if self.kind == "gelu":  # opposite neurons cancel in the product, but not behind a GELU
            return self.scale != 0 and bool(down.any() and up.any())
        return abs(self.scale) * float(((down @ down.T) * (up.T @ up)).sum()) > 0


@dataclass
class StoredAdapter:
    """All that an adapter's directory holds; the fields are those of :class:`regraft.bypass.adapter.Adapter`."""

    name: str
    path: Path
    lora: dict[str, Factors] = field(default_factory=dict)
    recovery: dict[str, Factors] = field(default_factory=dict)
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    record: AdapterRecord | None = None

    @property
    def bypasses(self) -> dict[str, list[Factors]]:
        """Slot → all that this adapter adds there, LoRA first."""
        slots = dict.fromkeys([*self.lora, *self.recovery])
        return {slot: [part[slot] for part in (self.lora, self.recovery) if slot in part] for slot in slots}


def sliced(adapter: StoredAdapter, kept: Kept) -> StoredAdapter:
    """An adapter of the original base, for what pruning has left of it: ``B[rows]`` and ``A[:, columns]``, exactly."""
    lora = {}
    for slot, source in kept.carried(adapter.lora).items():
        factors = adapter.lora[source]
        lora[slot] = replace(factors, down=factors.down[:, kept.columns(slot)], up=factors.up[kept.rows(slot)])
    return replace(adapter, lora=lora)
