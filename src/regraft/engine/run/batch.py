"""One step of the native core: a ragged batch of sequences, each with its own mix of adapters; then its logits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray

from regraft.engine.mix import Mix
from regraft.native import _core

LOGITS_BYTES = 1 << 26  # all that run decode at once within this, unless the vocabulary is larger than 262,144 tokens


@dataclass(frozen=True)
class Chunk:
    """What one sequence adds to a step: consecutive tokens, one while decoding, many in prefill.

    Attributes:
        tokens: their ids, at least one.
        start: position of the first.
        pages: the sequence's pages of the arena, from its position 0 to the last token here.
        mix: adapters that act on it.
        logits: after how many of the last tokens logits are wanted.
    """

    tokens: Sequence[int]
    start: int
    pages: Sequence[int]
    mix: Mix[_core.Adapter] = field(default_factory=Mix)
    logits: int = 1


def run_step(
    core: _core.Core,
    model: _core.Model,
    arena: NDArray[np.uint8],
    chunks: Sequence[Chunk],
    *,
    float_activations: bool = False,
) -> NDArray[np.float32]:
    """Run a step; keys and values go to the chunks' pages.

    Args:
        core: threads and kernels.
        model: the base.
        arena: ``[pages, page_bytes]``, written to.
        chunks: at least one.
        float_activations: multiply quantised weights with float32 activations instead of 8-bit ones.

    Returns:
        Last hidden states, after the final norm, ``[sum of chunk.logits, hidden]``, in the order of the chunks.

    Raises:
        ValueError: a token, page or adapter does not fit the model or the arena.
    """
    adapters = list(dict.fromkeys(adapter for chunk in chunks for adapter, _ in chunk.mix))
    number = {adapter: index for index, adapter in enumerate(adapters)}
    first_row = _offsets([len(chunk.tokens) for chunk in chunks])
    wanted = [range(end - chunk.logits, end) for chunk, end in zip(chunks, first_row[1:], strict=True)]
    return core.step(
        model=model,
        arena=arena,
        tokens=_joined([chunk.tokens for chunk in chunks]),
        first_row=np.array(first_row, np.int32),
        first_position=np.array([chunk.start for chunk in chunks], np.int32),
        first_page=np.array(_offsets([len(chunk.pages) for chunk in chunks]), np.int32),
        pages=_joined([chunk.pages for chunk in chunks]),
        wanted=_joined(wanted),
        adapters=adapters,
        first_mix=np.array(_offsets([len(chunk.mix) for chunk in chunks]), np.int32),
        mix_adapter=np.array([number[adapter] for chunk in chunks for adapter, _ in chunk.mix], np.int32),
        mix_weight=np.array([weight for chunk in chunks for _, weight in chunk.mix], np.float32),
        float_activations=float_activations,
    )


def logits_of(
    core: _core.Core,
    model: _core.Model,
    states: NDArray[np.float32],
    *,
    float_activations: bool = False,
    most_bytes: int = LOGITS_BYTES,
) -> Iterator[NDArray[np.float32]]:
    """The logits of each of a step's hidden states, ``[vocabulary]``, made for so many at a time as fit the memory.

    Args:
        core: as for the step.
        model: as for the step.
        states: ``[rows, hidden]``.
        float_activations: as for the step.
        most_bytes: of the logits that are in memory at once; never less than one row's.
    """
    count = max(1, most_bytes // (4 * model.vocabulary))
    for first in range(0, len(states), count):
        yield from core.head(model, states[first : first + count], float_activations)


def _joined(parts: Iterable[Iterable[int]]) -> NDArray[np.int32]:
    return np.array([*chain.from_iterable(parts)], np.int32)


def _offsets(lengths: Iterable[int]) -> list[int]:
    return [*accumulate(lengths, initial=0)]
