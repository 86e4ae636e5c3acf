"""Description of an adapter for ``regraft info``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.bypass.adapter import Adapter
from regraft.bypass.lora import LoRA
from regraft.formats.adapter.peft_config import CONFIG_NAME, effective_scale, read_config
from regraft.formats.adapter.peft_directory import WEIGHTS_NAME
from regraft.formats.adapter.record import read_record
from regraft.formats.safetensors_file import open_tensors
from regraft.formats.slots import leaf, slot_of
from regraft.models.load import Base


def adapter_bytes(folder: Path) -> int:
    """Bytes of an adapter's weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def describe_files(folder: Path) -> dict[str, Any]:
    """What an adapter's own files tell, without a base: ranks, scales, targets, provenance.

    Raises:
        FormatError, IncompatibleAdapterError: as reading it would.
    """
    record = read_record(folder)
    slots: dict[str, dict[str, Any]] = {}
    if (folder / CONFIG_NAME).exists():
        config = read_config(folder)
        for path, shape in _factor_shapes(folder / WEIGHTS_NAME).items():
            name = slot_of(path) or path
            slots[name] = {"rank": shape[0], "scale": effective_scale(config, path)}
    for kind, scales in (record.scales_of_kinds() if record else {}).items():
        for slot in scales:
            slots.setdefault(slot, {})["recovery"] = kind
    return _summary(folder.resolve().name, folder, slots, record.model_dump() if record else None)


def _factor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    tensors = open_tensors(path)
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): tensors.info(name).shape
        for name in tensors
        if name.endswith(".lora_A.weight")
    }


def describe_adapter(adapter: Adapter, base: Base) -> dict[str, Any]:
    """The same of an adapter that was read for a base, with each slot's effect ``||s B A||_F``."""
    slots: dict[str, dict[str, Any]] = {}
    for slot, added in adapter.bypasses.items():
        for one in added:
            if isinstance(one, LoRA):
                slots[slot] = {"rank": one.rank, "scale": one.scale, "effect": one.effect()}
            else:
                slots.setdefault(slot, {})["recovery"] = f"{one.kind}, rank {one.rank}"
    record = adapter.record.model_dump() if adapter.record else None
    assert adapter.path is not None
    return {**_summary(adapter.name, adapter.path, slots, record), "checked_against": base.name}


def _summary(
    name: str, folder: Path, slots: dict[str, dict[str, Any]], record: dict[str, Any] | None
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "kind": "adapter",
        "name": name,
        "targets": sorted({leaf(slot) for slot in slots}),
        "slots_covered": len(slots),
        "ranks": sorted({slot["rank"] for slot in slots.values() if "rank" in slot}),
        "scales": sorted({round(slot["scale"], 4) for slot in slots.values() if "scale" in slot}),
        "bytes_on_disk": adapter_bytes(folder),
        "slots": slots,
    }
    if record:
        keys = (
            "base_name",
            "base_fingerprint",
            "teacher_fingerprint",
            "parent",
            "recovery",
            "data",
            "training",
            "seed",
        )
        summary |= {key: record[key] for key in keys}
    return summary
