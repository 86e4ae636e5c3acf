"""Slots of a model in torch: the linear maps inside its decoder layers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from regraft.formats.slots import slot_of


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
