"""``regraft.json`` of an adapted adapter: for which base, from what, by whom taught, on what data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from regraft.config import Strict
from regraft.formats.adapter.kinds import GELU
from regraft.formats.records import Record, read_record_of

FORMAT_VERSION = 1


class Parent(Strict):
    """The adapter that this one was made from, and the hash of its weights file."""

    name: str
    sha256: str


class AdapterRecord(Record):
    """Provenance of an adapter. Fingerprints are those of :mod:`regraft.models.fingerprint`.

    ``recovery_scales`` holds the scale of each slot's recovery bypass, whose factors are in ``recovery.safetensors``;
    ``scales`` those of any other kind that has a file of its own, by kind and slot.
    """

    noun = "an adapter"
    newest = FORMAT_VERSION

    kind: Literal["adapter"] = "adapter"
    format_version: int = FORMAT_VERSION
    regraft_version: str
    base_name: str
    base_fingerprint: str
    teacher_fingerprint: str
    parent: Parent | None = None
    shared: Parent | None = None
    recovery: Literal["gelu", "linear", "none"]
    recovery_scales: dict[str, float] = {}
    scales: dict[str, dict[str, float]] = {}
    data: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    seed: int
    training: dict[str, Any] = {}

    def scales_of_kinds(self) -> dict[str, dict[str, float]]:
        """Kind → slot → scale, of all kinds but PEFT's own."""
        return {kind: scales for kind, scales in {GELU: self.recovery_scales, **self.scales}.items() if scales}

    def with_scales(self, scales: Mapping[str, Mapping[str, float]]) -> AdapterRecord:
        """The record of an adapter that has these bypasses."""
        others = {kind: dict(by_slot) for kind, by_slot in scales.items() if kind != GELU}
        return self.model_copy(update={"recovery_scales": dict(scales.get(GELU, {})), "scales": others})

    def to_json(self) -> dict[str, Any]:
        """As plain data; without ``scales`` where there are none, which older versions do not know."""
        return self.model_dump(mode="json", exclude=None if self.scales else {"scales"})


def read_record(folder: Path) -> AdapterRecord | None:
    """The directory's adapter record, or None for a plain PEFT directory.

    Raises:
        FormatError: there is a record, but it is no adapter's, or of a newer format.
    """
    return read_record_of(folder, "adapter", AdapterRecord)
