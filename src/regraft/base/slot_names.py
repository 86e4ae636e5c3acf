"""Names of slots, the linear maps inside a model's decoder layers (``layers.3.mlp.down_proj``)."""

from __future__ import annotations

import re

_LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")


def slot_of(module_path: str) -> str | None:
    """The slot name in a module path (``model.layers.3.mlp.up_proj`` → ``layers.3.mlp.up_proj``), if it is one."""
    match = _LAYER.search(module_path)
    return match.group(1) if match else None


def layer_index(slot: str) -> int:
    """The decoder layer that a slot stands in."""
    return int(slot.split(".")[1])


def leaf(slot: str) -> str:
    """The last part of a slot's name: what PEFT calls a target module (``down_proj``)."""
    return slot.rsplit(".", 1)[-1]
