"""Slots: the linear maps inside a model's decoder layers, by name (``layers.3.mlp.down_proj``)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

_LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")


def slot_of(module_path: str) -> str | None:
    """The slot name in a module path (``model.layers.3.mlp.up_proj`` → ``layers.3.mlp.up_proj``), if it is one."""
    match = _LAYER.search(module_path)
    return match.group(1) if match else None


def iter_slots(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield ``(slot name, linear)`` in the model's own order; the head and the embeddings are no slots."""
    for path, module in model.named_modules():
        slot = slot_of(path)
        if slot is not None and isinstance(module, nn.Linear):
            yield slot, module


def slot_paths(model: nn.Module) -> dict[str, str]:
    """Slot name → full module path, as PEFT and safetensors files write it."""
    return {
        slot: path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and (slot := slot_of(path)) is not None
    }


def slot_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Slot name → (out features, in features)."""
    return {slot: (linear.out_features, linear.in_features) for slot, linear in iter_slots(model)}


def layer_index(slot: str) -> int:
    """The decoder layer that a slot stands in."""
    return int(slot.split(".")[1])


def leaf(slot: str) -> str:
    """The last part of a slot's name: what PEFT calls a target module (``down_proj``)."""
    return slot.rsplit(".", 1)[-1]
