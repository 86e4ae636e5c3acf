"""The student: a compressed base, the inherited LoRA, and the recovery bypasses beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from regraft.adapt.config import AdaptConfig
from regraft.base.load import Base
from regraft.base.slots import slot_shapes
from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import Bypass
from regraft.bypass.lora import LoRA, stack
from regraft.bypass.recovery import Recovery

NEW_LORA_SCALE = 2.0  # alpha / r of a new LoRA, PEFT's and CA-LoRA's habit (alpha 16, r 8)


@dataclass
class Student:
    """The bypasses in training: ``lora`` carries the task, ``recovery`` what compression lost.

    ``origin`` names the adapters that it was made from, by what they compute.
    """

    lora: dict[str, LoRA] = field(default_factory=dict)
    recovery: dict[str, LoRA | Recovery] = field(default_factory=dict)
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
        """The result: a linear recovery is folded into the LoRA as extra rank, a GELU one stays beside it."""
        lora = {slot: _copy_lora(bypass) for slot, bypass in self.lora.items()}
        recovery: dict[str, Recovery] = {}
        for slot, bypass in self.recovery.items():
            if isinstance(bypass, Recovery):
                recovery[slot] = _copy_recovery(bypass)
            else:
                lora[slot] = stack(lora[slot], bypass) if slot in lora else _copy_lora(bypass)
        order = {slot: lora[slot] for slot in sorted(lora, key=_by_layer)}
        return Adapter(name, order, recovery)


def _by_layer(slot: str) -> tuple[int, str]:
    return int(slot.split(".")[1]), slot


def _copy_lora(lora: LoRA) -> LoRA:
    return LoRA(lora.down.detach().clone(), lora.up.detach().clone(), lora.scale)


def inherit(adapter: Adapter) -> dict[str, LoRA]:
    """CA-LoRA's inheritance (arXiv 2307.07705, section 3.2): the existing factors and scales, as they are.

    Quantization keeps every slot's shape, so the existing LoRA fits the compressed base unchanged; it stays trainable.
    """
    return {slot: _copy_lora(lora) for slot, lora in adapter.lora.items()}


def new_lora(base: Base, adapter: Adapter | None, rank: int, generator: torch.Generator) -> dict[str, LoRA]:
    """A fresh LoRA with the parameters of CA-LoRA: ``rank`` on every linear, and the existing rank on top of it."""
    existing = adapter.lora if adapter else {}
    return {
        slot: _fresh(shape, rank + (existing[slot].rank if slot in existing else 0), generator)
        for slot, shape in slot_shapes(base.model).items()
    }


def _fresh(shape: tuple[int, int], rank: int, generator: torch.Generator) -> LoRA:
    zero = Recovery.zero(shape, rank, generator)  # Kaiming-uniform A, zero B, as PEFT starts a LoRA
    return LoRA(zero.down.data, zero.up.data, NEW_LORA_SCALE)


def make_student(
    base: Base,
    adapter: Adapter | None,
    config: AdaptConfig,
    closed_form: Mapping[str, LoRA] | None = None,
    shared: Adapter | None = None,
) -> Student:
    """Assemble the bypasses that training starts from.

    Args:
        base: the compressed base.
        adapter: the existing adapter; None trains a recovery for the base alone, to be shared by all adapters.
        config: ``inherit`` and ``recover`` are read.
        closed_form: slot → linear recovery of the compression error, for ``recover.start`` other than zero.
        shared: a shared recovery adapter to start from instead.
    """
    generator = torch.Generator().manual_seed(config.seed)
    if config.inherit.start == "new":
        lora = new_lora(base, adapter, config.inherit.rank, generator)
    else:
        lora = inherit(adapter) if adapter else {}
    origin = tuple(given.digest() if given else None for given in (adapter, shared))
    student = Student(lora, _recovery(base, config, closed_form, shared, generator), origin)
    for _, parameter in student.named_parameters():
        parameter.data = parameter.data.to(base.model.device)
    return student


def _recovery(
    base: Base,
    config: AdaptConfig,
    closed_form: Mapping[str, LoRA] | None,
    shared: Adapter | None,
    generator: torch.Generator,
) -> dict[str, LoRA | Recovery]:
    recover = config.recover
    if recover.kind == "none":
        return {}
    if shared is not None:
        return {
            **{slot: _copy_lora(bypass) for slot, bypass in shared.lora.items()},
            **{slot: _copy_recovery(bypass) for slot, bypass in shared.recovery.items()},
        }
    if recover.start != "zero":
        assert closed_form is not None
        linear = {slot: _copy_lora(lora) for slot, lora in closed_form.items()}
        if recover.kind == "linear":
            return dict(linear)
        return {slot: Recovery.from_linear(lora.down.data, lora.scale * lora.up.data) for slot, lora in linear.items()}
    shapes = slot_shapes(base.model)
    if recover.kind == "linear":
        return {slot: _fresh(shape, recover.rank, generator) for slot, shape in shapes.items()}
    return {slot: Recovery.zero(shape, recover.rank, generator, NEW_LORA_SCALE) for slot, shape in shapes.items()}


def _copy_recovery(bypass: Recovery) -> Recovery:
    return Recovery(bypass.down.detach().clone(), bypass.up.detach().clone(), bypass.scale)
