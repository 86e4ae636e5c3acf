"""Random adapters for tiny models, text to read with them, and the slow truth: copies that have them merged."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from regraft.bypass.lora import LoRA
from regraft.compress.reading import Part
from regraft.models.slots import iter_slots
from regraft.train.batches import Row

LENGTHS = [11, 5, 11, 17, 5, 8]


def random_lora(model: nn.Module, seed: int) -> dict[str, LoRA]:
    """On every slot, large enough to matter."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return 0.15 * torch.randn(shape, generator=generator)

    lora = {
        slot: LoRA(noise(3, linear.in_features), noise(linear.out_features, 3), 1.7)
        for slot, linear in iter_slots(model)
    }
    for one in lora.values():
        one.requires_grad_(False)
    return lora


def rows(seed: int, lengths: list[int] = LENGTHS) -> list[Row]:
    """Rows of many lengths, the answers of two to four tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]
    return [Row(row, 2 + number % 3) for number, row in enumerate(ids)]


def two_tasks(model: nn.Module) -> list[Part]:
    """General text, and two adapters with their rows."""
    general = torch.randint(3, 300, (9, 12), generator=torch.Generator().manual_seed(0))
    tasks = [Part(rows(seed), random_lora(model, seed)) for seed in (1, 2)]
    return [Part.plain(general), *tasks]


def merged(model: Any, lora: Mapping[str, LoRA]) -> Any:
    """A copy of the model with ``W + s B A`` in place of ``W``."""
    made = copy.deepcopy(model)
    for slot, linear in iter_slots(made):
        if slot in lora:
            linear.weight.data += lora[slot].delta()
    return made


def read_slowly(model: Any, parts: list[Part]) -> Iterator[tuple[Any, Tensor, int]]:
    """Each sequence by itself: the copy that reads it, its ids ``[1, T]``, and how many answer tokens it ends with."""
    for part in parts:
        reader = merged(model, part.lora)
        for row in part.rows:
            yield reader, torch.tensor([row.ids]), row.num_answer


@torch.no_grad()
def inputs_slowly(model: Any, parts: list[Part]) -> dict[str, Tensor]:
    """Slot → all that enters it, float64 ``[N, in]``."""
    seen: dict[str, list[Tensor]] = {}
    for reader, ids, _ in read_slowly(model, parts):
        handles = [
            linear.register_forward_pre_hook(
                lambda _, x, slot=slot: seen.setdefault(slot, []).append(x[0].flatten(0, -2).double())
            )
            for slot, linear in iter_slots(reader)
        ]
        reader(input_ids=ids)
        for handle in handles:
            handle.remove()
    return {slot: torch.cat(found) for slot, found in seen.items()}
