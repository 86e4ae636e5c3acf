"""Description of a base for ``regraft info``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.formats.base_record import Pruned
from regraft.formats.slots import leaf
from regraft.models.load import Base
from regraft.models.slots import iter_slots


def describe_base(base: Base) -> dict[str, Any]:
    """Sizes, bits per weight, slots and provenance of a base, as plain data."""
    shapes = {slot: list(linear.weight.shape) for slot, linear in iter_slots(base.model)}
    in_slots = sum(out * into for out, into in shapes.values())
    described: dict[str, Any] = {
        "kind": "base",
        "name": base.name,
        "family": base.model.config.model_type,
        "fingerprint": base.fingerprint,
        "parameters": base.model.num_parameters(),
        "parameters_in_slots": in_slots,
        "layers": base.model.config.num_hidden_layers,
        "targets": sorted({leaf(slot) for slot in shapes}),
        "bytes_on_disk": weight_bytes(base.path),
        "compressed": base.is_compressed,
        "slots": {slot: {"shape": shape} for slot, shape in shapes.items()},
    }
    if base.record:
        record = base.record
        described |= {
            "original": record.original.model_dump(),
            "bits_per_weight": record.sizes.bits_per_weight,
            "bits_per_weight_model": record.sizes.bits_per_weight_model,
            "bytes_before": record.sizes.bytes_before,
            "bytes_float16": record.sizes.bytes_float16,
            "perplexity": record.perplexity.model_dump() if record.perplexity else None,
            "recipe": record.recipe,
            "loads_in_plain_transformers": record.stock_loadable,
            "slots": {slot: {"shape": shapes[slot], **entry.model_dump()} for slot, entry in record.slots.items()},
        }
        if record.pruned:
            described["pruned"] = _describe_pruned(record.pruned)
        if record.experts:
            described["experts"] = record.experts.model_dump()
    return described


def _describe_pruned(pruned: Pruned) -> dict[str, Any]:
    """What is left, the widths layer by layer."""
    columns = ("source", "heads", "kv_heads", "mlp")
    by_layer = {column: [getattr(layer, column) for layer in pruned.layers] for column in columns}
    return {"removed": pruned.removed, "original": pruned.original.model_dump(), "hidden": pruned.hidden, **by_layer}


def weight_bytes(path: Path) -> int:
    """Bytes of the weight files at a base's path."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("model*.safetensors"))
