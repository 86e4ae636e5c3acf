"""Names of slots, the linear maps inside a model's decoder layers (``layers.3.mlp.down_proj``), and what they span."""

from __future__ import annotations

import re

# What the rows and the columns of each slot stand for. Slots with the same word on a side share that side's width, and
# whatever is taken away there is taken away from all of them.
AXES = {
    "self_attn.q_proj": ("queries", "channels"),
    "self_attn.k_proj": ("keys", "channels"),
    "self_attn.v_proj": ("keys", "channels"),
    "self_attn.o_proj": ("channels", "queries"),
    "mlp.gate_proj": ("neurons", "channels"),
    "mlp.up_proj": ("neurons", "channels"),
    "mlp.down_proj": ("channels", "neurons"),
}

_LAYER = re.compile(r"(?:^|\.)(layers\.\d+\..+)$")


def slot_of(module_path: str) -> str | None:
    """The slot name in a module path (``model.layers.3.mlp.up_proj`` → ``layers.3.mlp.up_proj``), if it is one."""
    match = _LAYER.search(module_path)
    return match.group(1) if match else None


def layer_index(slot: str) -> int:
    """The decoder layer that a slot stands in."""
    return int(slot.split(".")[1])


def within_layer(slot: str) -> str:
    """A slot's name within its layer (``mlp.down_proj``)."""
    return slot.split(".", 2)[2]


def leaf(slot: str) -> str:
    """The last part of a slot's name: what PEFT calls a target module (``down_proj``)."""
    return slot.rsplit(".", 1)[-1]
