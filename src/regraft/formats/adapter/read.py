"""Read an adapter's directory, PEFT's or our own, for a base: without torch, and with every check that needs none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from regraft.errors import FormatError, IncompatibleAdapterError
from regraft.formats.adapter.content import Factors, StoredAdapter
from regraft.formats.adapter.kinds import KINDS, LORA
from regraft.formats.adapter.peft_directory import WEIGHTS_NAME, Shape, read_factor_file, read_peft
from regraft.formats.adapter.record import AdapterRecord, read_record
from regraft.formats.kept import Kept
from regraft.formats.records import RECORD_NAME

FACTORS = ("down", "up")  # of each bypass in a file of its kind: SLOT.down, SLOT.up


def read_factors(
    folder: Path,
    paths: Mapping[str, str],
    shapes: Mapping[str, Shape],
    *,
    base_name: str,
    base_fingerprint: str | None,
    kept: Kept | None = None,
) -> StoredAdapter:
    """Read a PEFT or regraft adapter directory for a base.

    An adapter without a record knows nothing of compression: where the base is pruned, it is one of the original base,
    and what it does to the parts that are left is taken from it.

    Args:
        folder: the directory.
        paths: slot → module path of the base.
        shapes: slot → (out, in) of the base.
        base_name: what errors call the base.
        base_fingerprint: None for a base that has none known; no regraft adapter is for such a one.
        kept: what a pruned base has kept of the original; None for any other.

    Raises:
        UsageError, FormatError, IncompatibleAdapterError: see
            :func:`regraft.formats.adapter.peft_directory.read_peft`; also a regraft adapter made for another base, and
            one whose files are at odds with each other.
    """
    record = read_record(folder) if folder.is_dir() else None
    _check_kinds(folder, record)
    if record is None:
        if kept is None:
            return read_peft(folder, paths, shapes)
        return _left_of(folder, paths, kept, base_name)
    _check_base(folder, record, base_name, base_fingerprint)
    adapter = StoredAdapter(folder.resolve().name, path=folder)
    if (folder / WEIGHTS_NAME).exists():
        adapter = read_peft(folder, paths, shapes)
    adapter.record = record
    for name, scales in record.scales_of_kinds().items():
        adapter.add(_read_kind(folder / KINDS[name].file, name, scales, shapes))
    if not any(factors.has_effect() for factors in adapter):
        raise IncompatibleAdapterError(f"{folder} has no effect: its factors are zero, or there are none")
    return adapter


def _check_kinds(folder: Path, record: AdapterRecord | None) -> None:
    """No file of factors is passed over, and no kind is unknown."""
    scales = record.scales_of_kinds() if record else {}
    for kind in KINDS.values():
        if kind.name != LORA and (folder / kind.file).exists() and kind.name not in scales:
            raise FormatError(
                f"{folder} has a {kind.file}, but no {RECORD_NAME} that gives its scales",
                hint="Copy the whole directory; or remove that file, for the LoRA alone.",
            )
    if unknown := sorted(scales.keys() - KINDS.keys()):
        raise FormatError(
            f"{folder / RECORD_NAME}: bypasses of kind {unknown[0]}",
            expected=f"kinds {', '.join(KINDS)}",
            hint="Upgrade regraft.",
        )


def _left_of(folder: Path, paths: Mapping[str, str], kept: Kept, base_name: str) -> StoredAdapter:
    """What a pruned base has left of an adapter of the original."""
    slot, path = next(iter(paths.items()))
    prefix = path.removesuffix(slot)
    shapes = kept.original_slot_shapes
    adapter = read_peft(folder, {slot: f"{prefix}{slot}" for slot in shapes}, shapes).sliced(kept)
    if not any(factors.has_effect() for factors in adapter):
        raise IncompatibleAdapterError(f"{folder} has no effect on {base_name}: all that it changes is pruned")
    return adapter


def _check_base(folder: Path, record: AdapterRecord, name: str, fingerprint: str | None) -> None:
    if record.base_fingerprint != fingerprint:
        raise IncompatibleAdapterError(
            f"{folder} was adapted for another base",
            expected=f"{record.base_name} (fingerprint {record.base_fingerprint[:12]})",
            found=f"{name} ({fingerprint[:12] if fingerprint else 'not compressed'})",
            hint="Give that base, or adapt the original adapter to this one.",
        )


def _read_kind(path: Path, kind: str, scales: Mapping[str, float], shapes: Mapping[str, Shape]) -> dict[str, Factors]:
    """Slot → its bypass of a kind that is stored in a file of its own."""
    tensors = read_factor_file(path)
    expected = {f"{slot}.{factor}" for slot in scales for factor in FACTORS}
    if difference := sorted(expected ^ tensors.keys()):
        found = "missing" if difference[0] in expected else "not named in regraft.json"
        raise FormatError(f"{path}: tensor {difference[0]} is {found}")
    found_factors = {}
    for slot, scale in scales.items():
        down, up = (tensors[f"{slot}.{factor}"] for factor in FACTORS)
        factors = Factors(kind, down, up, scale)
        _check_factors(path, slot, factors, shapes.get(slot))
        found_factors[slot] = factors
    return found_factors


def _check_factors(path: Path, slot: str, factors: Factors, shape: Shape | None) -> None:
    down, up = factors.arrays()
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
        raise FormatError(
            f"{path}: {slot}", expected="down [r, in] and up [out, r]", found=f"{list(down.shape)} and {list(up.shape)}"
        )
    if (up.shape[0], down.shape[1]) != shape:
        raise FormatError(
            f"{path}: {slot} maps {down.shape[1]} to {up.shape[0]}", expected=str(shape or "no such slot")
        )
    if not math.isfinite(factors.scale):
        raise FormatError(
            f"{path.with_name(RECORD_NAME)}: scale of {slot}", expected="a number", found=str(factors.scale)
        )
