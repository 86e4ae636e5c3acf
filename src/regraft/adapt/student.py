"""The student before training: the inherited LoRA, and the recovery bypasses beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from regraft.adapt.config import AdaptConfig
from regraft.bypass.adapter import Adapter
from regraft.bypass.bypass import Bypass
from regraft.bypass.lora import LoRA
from regraft.bypass.recovery import Recovery
from regraft.formats.adapter.kinds import LORA
from regraft.models.load import Base
from regraft.models.slots import slot_shapes
from regraft.train.student import NEW_LORA_SCALE, Student, fresh_lora


def inherit(adapter: Adapter, base: Base) -> dict[str, LoRA]:
    """CA-LoRA's inheritance (arXiv 2307.07705, section 3.2): the existing factors and scales; they stay trainable.

    Quantization keeps every slot's shape, so the existing LoRA fits the compressed base as it is. Of a pruned base it
    is the rows and columns that are left, which is what the LoRA does there.
    """
    if base.kept is not None:
        adapter = adapter.sliced(base.kept)
    return {slot: one.copy() for slot, one in adapter.of(LORA).items() if isinstance(one, LoRA)}


def new_lora(base: Base, adapter: Adapter | None, rank: int, generator: torch.Generator) -> dict[str, LoRA]:
    """A fresh LoRA with the parameters of CA-LoRA: ``rank`` on every linear, and the existing rank on top of it."""
    existing = inherit(adapter, base) if adapter else {}
    return {
        slot: fresh_lora(shape, rank + (existing[slot].rank if slot in existing else 0), generator)
        for slot, shape in slot_shapes(base.model).items()
    }


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
        lora = inherit(adapter, base) if adapter else {}
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
) -> dict[str, Bypass]:
    recover = config.recover
    if recover.kind == "none":
        return {}
    if shared is not None:
        return {slot: added[-1].copy() for slot, added in shared.bypasses.items()}
    if recover.start != "zero":
        assert closed_form is not None
        linear = {slot: lora.copy() for slot, lora in closed_form.items()}
        if recover.kind == "linear":
            return dict(linear)
        return {slot: Recovery.from_linear(lora.down.data, lora.scale * lora.up.data) for slot, lora in linear.items()}
    shapes = slot_shapes(base.model)
    if recover.kind == "linear":
        return {slot: fresh_lora(shape, recover.rank, generator) for slot, shape in shapes.items()}
    return {slot: Recovery.zero(shape, recover.rank, generator, NEW_LORA_SCALE) for slot, shape in shapes.items()}
