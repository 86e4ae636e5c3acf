"""The kinds of bypasses: how each is stored in an adapter's directory. A new kind is one row of this table.

Two more things belong to a kind: its module in torch (:mod:`regraft.bypass.kinds`), and its function in the native
core (``native/core/bypass_kinds.hpp``), without which the engine refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass

PEFT_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Kind:
    """One kind: ``y += scale · up f(down x)``.

    Attributes:
        name: in records and in the engine.
        word: in digests, which must not change when names do.
        file: where its factors are stored, as ``SLOT.down`` and ``SLOT.up``; those of a LoRA as PEFT names them.
        is_linear: whether f is the identity, so that the bypass may be folded into a LoRA.
    """

    name: str
    word: str
    file: str
    is_linear: bool = False


LORA, GELU = "lora", "gelu"
KINDS = {
    LORA: Kind(LORA, "LoRA", PEFT_WEIGHTS, is_linear=True),
    GELU: Kind(GELU, "Recovery", "recovery.safetensors"),
}


def register_kind(kind: Kind) -> None:
    """Add a kind to the table.

    Raises:
        ValueError: its name or its file is another's.
    """
    if any(kind.name == other.name or kind.file == other.file for other in KINDS.values()):
        raise ValueError(f"there is a kind {kind.name}, or one in {kind.file}, already")
    KINDS[kind.name] = kind
