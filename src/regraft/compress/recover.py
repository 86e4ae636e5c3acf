"""The recovery step: LLM-Pruner's (arXiv 2305.11627, section 3.3), a LoRA on general text, merged into what is left.

    W += s · B A        on every slot, before anything is rounded

LLM-Pruner trains on instructions of others. Here the original base writes the text, and unless told otherwise teaches
its logits too; ``distil: {hidden: 0, logits: 0, answers: 1}`` is LLM-Pruner's loss.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regraft.compress.calibrate import read_text
from regraft.compress.recipe import Recover
from regraft.formats.base_record import Text as TextRecord
from regraft.models.load import Base
from regraft.models.slots import iter_slots, slot_shapes
from regraft.progress import Progress, silent
from regraft.train.batches import Row
from regraft.train.student import Student, fresh_lora
from regraft.train.teacher import Teacher, teach
from regraft.train.trainer import State, Trainer

DEV_SHARE = 0.1  # of the sequences; they pick the checkpoint
Factors = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Merged:
    """What was merged into the slots: ``s B [out, r]`` and ``A [r, in]`` by slot, on what text, by what training."""

    factors: Factors
    text: TextRecord
    state: State


def recover(
    base: Base,
    original: Base,
    settings: Recover,
    folder: Path,
    *,
    note: Callable[[str], None],
    progress: Progress = silent,
) -> Merged:
    """Train a LoRA on every slot of a pruned base, and merge it into ``base`` in place.

    Args:
        base: what pruning left.
        original: writes the text, and teaches.
        settings: rank, text, losses, optimiser.
        folder: where the training's checkpoint lies; one found there is gone on from.
        note: told where there is less text than asked for.
        progress: told of the phases.

    Raises:
        DataError, UsageError: as reading or writing the text does.
        RegraftError: the loss is no longer finite.
    """
    text = read_text(original, settings.text, note, progress)
    rows = [Row(ids, len(ids) - 1) for ids in text.sequences.tolist()]
    random.Random(settings.seed).shuffle(rows)  # self-written ones come by kind: documents, then conversations
    num_dev = max(1, round(DEV_SHARE * len(rows)))
    dev, train = rows[:num_dev], rows[num_dev:]
    taught = settings.distil.needs_teacher
    targets = teach(Teacher(original, None), train, folder, progress, kept=base.kept) if taught else None
    generator = torch.Generator().manual_seed(settings.seed)
    lora = {
        slot: fresh_lora(shape, settings.rank, generator).to(base.model.device)
        for slot, shape in slot_shapes(base.model).items()
    }
    state = Trainer(base, Student(lora), settings, train, dev, targets, folder, progress).run()
    for slot, linear in iter_slots(base.model):
        linear.weight.data += lora[slot].delta().detach()
    factors = {slot: ((one.scale * one.up).detach(), one.down.detach()) for slot, one in lora.items()}
    return Merged(factors, text.record, state)
