"""The student: a smaller base and the bypasses beside it that are trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from regraft.bypass.adapter import Adapter
from regraft.bypass.bypass import Bypass
from regraft.bypass.lora import LoRA, stack
from regraft.bypass.recovery import Recovery

NEW_LORA_SCALE = 2.0  # alpha / r of a new LoRA, PEFT's and CA-LoRA's habit (alpha 16, r 8)


@dataclass
class Student:
    """The bypasses in training: ``lora`` carries the task, ``recovery`` what compression lost.

    ``origin`` names the adapters that it was made from, by what they compute.
    """

    lora: dict[str, LoRA] = field(default_factory=dict)
    recovery: dict[str, Bypass] = field(default_factory=dict)
    origin: tuple[str | None, ...] = ()

    @property
    def bypasses(self) -> dict[str, list[Bypass]]:
        """Slot → its bypasses, task first."""
        slots = {**self.lora, **self.recovery}
        return {slot: [part[slot] for part in (self.lora, self.recovery) if slot in part] for slot in slots}

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """``lora.SLOT.down`` … in a fixed order."""
        for part, bypasses in (("lora", self.lora), ("recovery", self.recovery)):
            for slot, bypass in bypasses.items():
                for name, parameter in bypass.named_parameters():
                    yield f"{part}.{slot}.{name}", parameter

    @property
    def num_parameters(self) -> int:
        """Numbers in training."""
        return sum(parameter.numel() for _, parameter in self.named_parameters())

    @property
    def is_empty(self) -> bool:
        """Whether no bypass adds anything."""
        return not any(bypass.up.any() for part in (self.lora, self.recovery) for bypass in part.values())

    def to_adapter(self, name: str) -> Adapter:
        """The result: a linear recovery is folded into the LoRA as extra rank, any other stays beside it."""
        lora = {slot: bypass.copy() for slot, bypass in self.lora.items()}
        beside: dict[str, Bypass] = {}
        for slot, bypass in self.recovery.items():
            if isinstance(bypass, LoRA):
                lora[slot] = stack(lora[slot], bypass) if slot in lora else bypass.copy()
            else:
                beside[slot] = bypass.copy()
        adapter = Adapter(name)
        adapter.add({slot: lora[slot] for slot in sorted(lora, key=_by_layer)})
        adapter.add(beside)
        return adapter


def _by_layer(slot: str) -> tuple[int, str]:
    return int(slot.split(".")[1]), slot


def fresh_lora(shape: tuple[int, int], rank: int, generator: torch.Generator) -> LoRA:
    """A new LoRA for a slot of ``(out, in)``, as PEFT starts one: Kaiming-uniform A, zero B."""
    zero = Recovery.zero(shape, rank, generator)
    return LoRA(zero.down.data, zero.up.data, NEW_LORA_SCALE)
