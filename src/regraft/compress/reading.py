"""Calibration reading: general text alone, and rows of tasks with the tasks' adapters attached.

Sequences of one length go through the model together and nothing is padded: every token counts in every statistic, and
nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from regraft.bypass.attach import attached
from regraft.bypass.bypass import Bypass
from regraft.formats.adapter.content import sliced
from regraft.formats.kept import Kept
from regraft.formats.slots import layer_index
from regraft.models.layer_walk import LayerWalk
from regraft.train.batches import Row

_BATCH = 8  # sequences that go through the model together

Loras = Mapping[str, Bypass]
Found = TypeVar("Found")


@dataclass(frozen=True)
class Part:
    """Sequences that are read with one adapter, or with none.

    Attributes:
        rows: token ids; a loss is about the last ``num_answer`` of each.
        lora: by slot of the model that reads.
    """

    rows: Sequence[Row]
    lora: Loras = field(default_factory=dict)

    @classmethod
    def plain(cls, sequences: Tensor) -> Part:
        """Text ``[N, T]`` without an adapter, of which all tokens but the first are foretold."""
        return cls([Row(ids, len(ids) - 1) for ids in sequences.tolist()])

    @property
    def num_tokens(self) -> int:
        """Of all sequences."""
        return sum(len(row.ids) for row in self.rows)

    def batches(self, device: torch.device) -> list[Tensor]:
        """Token ids ``[B, T]``, by length."""
        by_length: dict[int, list[list[int]]] = {}
        for row in self.rows:
            by_length.setdefault(len(row.ids), []).append(row.ids)
        return [batch for ids in by_length.values() for batch in torch.tensor(ids, device=device).split(_BATCH)]

    def inherited(self, kept: Kept | None) -> Part:
        """The part as it is read by what is left of the original base: its adapter's rows and columns, exactly."""
        return self if kept is None else replace(self, lora=_sliced(self.lora, kept))

    def attached(self, model: nn.Module) -> AbstractContextManager[None]:
        """The model has the part's adapter for the length of a ``with`` block."""
        return _attached(model, self.lora)


Text = Tensor | Sequence[Part]  # a tensor [N, T] is general text alone


def parts_of(text: Text) -> list[Part]:
    """The parts of what is read."""
    return [Part.plain(text)] if isinstance(text, Tensor) else list(text)


class PartsWalk:
    """A walk through a model's layers for each part, whose adapter is attached to a layer whenever that runs.

    Args:
        model: it may be changed, layer by layer, while the walk goes on.
        text: what it reads.
    """

    def __init__(self, model: nn.Module, text: Text) -> None:
        parts, device = parts_of(text), next(model.parameters()).device
        self._model = model
        self._loras: list[dict[str, Bypass]] = [dict(part.lora) for part in parts]
        # What enters the first layer, and the masks of all, are the same with an adapter and without.
        self._walks = [LayerWalk(model, part.batches(device)) for part in parts]
        self.layers = self._walks[0].layers

    @property
    def states(self) -> list[Tensor]:
        """What enters the next layer, ``[B, T, M]`` for each batch."""
        return [state for walk in self._walks for state in walk.states]

    def advance(self, index: int) -> None:
        """Send every batch through layer ``index``, as it stands now."""
        self._each(index, lambda number: self._walks[number].advance(index))

    def grams(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """``Σ x xᵀ`` (float32 ``[in, in]``) over the tokens of all parts, as :meth:`LayerWalk.grams`."""
        total, *others = self._each(index, lambda number: self._walks[number].grams(index, linears))
        distinct = {id(gram): name for name, gram in total.items()}  # modules with the same input share one sum
        for name in distinct.values():
            for grams in others:
                total[name] += grams[name]
        return total

    def inputs(self, index: int, module: nn.Module) -> list[Tensor]:
        """What enters a module of layer ``index``, of all tokens, ``[N, in]`` for each part."""
        return self._each(index, lambda number: self._walks[number].inputs(index, module))

    def apply(self, index: int, function: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """``function`` of each part's ``[N, in]`` with its adapter on layer ``index``; the results as one tensor."""
        return torch.cat(self._each(index, lambda number: function(inputs[number])))

    def move(self, index: int, local: Kept) -> None:
        """Let the adapters of layer ``index`` follow its neurons to where ``local`` says that they stand now."""
        for lora in self._loras:
            lora |= _sliced(_of_layer(lora, index), local)

    def _each(self, index: int, act: Callable[[int], Found]) -> list[Found]:
        """What comes of each part's number, while its adapter is on layer ``index``."""
        found = []
        for number, lora in enumerate(self._loras):
            with _attached(self._model, _of_layer(lora, index)):
                found.append(act(number))
        return found


def _attached(model: nn.Module, lora: Loras) -> AbstractContextManager[None]:
    return attached(model, {slot: [one] for slot, one in lora.items()})


def _of_layer(lora: Loras, index: int) -> dict[str, Bypass]:
    return {slot: one for slot, one in lora.items() if layer_index(slot) == index}


def _sliced(lora: Loras, kept: Kept) -> dict[str, Bypass]:
    left = {slot: one for slot, (one,) in sliced({slot: [one] for slot, one in lora.items()}, kept).items()}
    for one in left.values():
        one.requires_grad_(False)
    return left
