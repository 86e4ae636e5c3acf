"""The content of an adapter: slot → bypasses, each of a kind; their factors are arrays, or parameters in torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from regraft.formats.adapter.kinds import KINDS
from regraft.formats.adapter.record import AdapterRecord
from regraft.formats.kept import Kept

Array = NDArray[Any]


class SlotBypass(Protocol):
    """What a bypass says of itself, in numpy as in torch."""

    @property
    def kind(self) -> str:
        """Its row in :data:`regraft.formats.adapter.kinds.KINDS`."""

    @property
    def rank(self) -> int:
        """Width between the factors."""

    @property
    def scale(self) -> float:
        """The *effective* scale, already divided by the rank."""

    def arrays(self) -> tuple[Array, Array]:
        """``down [r, in]`` and ``up [out, r]``."""

    def cut(self, rows: Array, columns: Array) -> Self:
        """The same for some output rows and some input columns: ``up[rows]`` and ``down[:, columns]``."""


AnyBypass = TypeVar("AnyBypass", bound=SlotBypass)


@dataclass
class AdapterContent(Generic[AnyBypass]):
    """An adapter. ``record`` is None for one that regraft did not make.

    Attributes:
        name: of its directory.
        bypasses: slot → all that it adds there, in the order of the table of kinds.
        peft_config: what PEFT wrote beside its weights.
        path: its directory.
    """

    name: str
    bypasses: dict[str, list[AnyBypass]] = field(default_factory=dict)
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    record: AdapterRecord | None = None
    path: Path | None = None

    def of(self, kind: str) -> dict[str, AnyBypass]:
        """Slot → its bypass of one kind."""
        return {slot: one for slot, added in self.bypasses.items() for one in added if one.kind == kind}

    def add(self, found: Mapping[str, AnyBypass]) -> None:
        """Add a bypass to each of some slots, after those that are there."""
        for slot, bypass in found.items():
            self.bypasses.setdefault(slot, []).append(bypass)

    def __iter__(self) -> Iterator[AnyBypass]:
        """Every bypass, slot by slot."""
        for added in self.bypasses.values():
            yield from added

    def digest(self) -> str:
        """Hex sha256 of what the adapter computes: slots, kinds, scales, and factors as float32."""
        digest = hashlib.sha256()
        for slot, added in self.bypasses.items():
            for bypass in added:
                word = KINDS[bypass.kind].word
                digest.update(f"{slot} {word} {bypass.rank} {bypass.scale!r}\n".encode())
                for factor in bypass.arrays():
                    digest.update(np.ascontiguousarray(factor, np.float32).data)
        return digest.hexdigest()

    def sliced(self, kept: Kept) -> Self:
        """An adapter of the original base, for what pruning has left of it, exactly."""
        return replace(self, bypasses=sliced(self.bypasses, kept))


def sliced(bypasses: Mapping[str, list[AnyBypass]], kept: Kept) -> dict[str, list[AnyBypass]]:
    """Bypasses of the original base, for what pruning has left of it."""
    return {
        slot: [one.cut(kept.rows(slot), kept.columns(slot)) for one in bypasses[source]]
        for slot, source in kept.carried(bypasses).items()
    }


@dataclass(frozen=True)
class Factors:
    """One bypass as it is stored: ``y += scale · up f(down x)``, where f belongs to the kind.

    Attributes:
        kind: its row in the table of kinds.
        down: A or P1, ``[r, in]``, float16 or float32; perhaps a view of a mapped file.
        up: B or P2, ``[out, r]``.
        scale: s, the *effective* scale, already divided by the rank.
    """

    kind: str
    down: Array
    up: Array
    scale: float

    @property
    def rank(self) -> int:
        """r."""
        return int(self.down.shape[0])

    def arrays(self) -> tuple[Array, Array]:
        """Down and up."""
        return self.down, self.up

    def cut(self, rows: Array, columns: Array) -> Factors:
        """``up[rows]`` and ``down[:, columns]``."""
        return replace(self, down=self.down[:, columns], up=self.up[rows])

    def has_effect(self) -> bool:
        """Whether the bypass adds anything: ``s · up down`` is not zero, judged by the factors' Gram matrices."""
        down, up = self.down.astype(np.float64), self.up.astype(np.float64)
        if not KINDS[self.kind].is_linear:  # opposite neurons cancel in the product, but not behind a GELU
            return self.scale != 0 and bool(down.any() and up.any())
        return abs(self.scale) * float(((down @ down.T) * (up.T @ up)).sum()) > 0


StoredAdapter = AdapterContent[Factors]
