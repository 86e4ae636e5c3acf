"""The plan of one step: a ragged batch of prefill chunks and decode tokens.

A long prompt is computed in chunks beside the others' decoding, so that nobody's next token waits for it (Agrawal et
al. 2024, "Sarathi-Serve", arXiv 2403.02310).
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.sequence import Sequence


@dataclass(frozen=True)
class Row:
    """The ``count`` tokens of a sequence from position ``first``, which its pages reach.

    ``draws`` says that the last of them is the last one known: a token is to be drawn after it.
    """

    sequence: Sequence
    first: int
    count: int
    draws: bool

    @property
    def num_logits(self) -> int:
        """After how many of its last tokens logits are wanted: the one to draw after, and all to score after."""
        return max(self.first + self.count - max(self.first, self.sequence.num_passed), 0)


@dataclass(frozen=True)
class Load:
    """An adapter to be written into these pages."""

    adapter: AdapterRef
    pages: tuple[int, ...]


@dataclass(frozen=True)
class StepPlan:
    """What to do before and in a step, in this order.

    Args:
        finished: sequences that have ended without a further token: cancelled, or past their deadline.
        evicted: adapters whose pages are others' from now on.
        loads: adapters of requests that would fit now; they start once the adapters are reported as loaded.
        prefetches: adapters of requests that do not fit yet; loading them may take its time.
        rows: the batch, each sequence at most once, those that decode first.
    """

    finished: tuple[Sequence, ...] = ()
    evicted: tuple[AdapterRef, ...] = ()
    loads: tuple[Load, ...] = ()
    prefetches: tuple[Load, ...] = ()
    rows: tuple[Row, ...] = ()


def split_prefill(budget_tokens: int, remaining: SequenceOf[int]) -> list[int]:
    """How many of its remaining prompt tokens each sequence computes; the first one is the first that was admitted.

    It gets half of the budget, so that it never stands still. The other half goes to the shortest first, so that a long
    prompt holds up no short one. Nothing of the budget is left over while there are tokens.
    """
    chunks = [0] * len(remaining)
    if remaining:
        chunks[0] = min(remaining[0], -(-budget_tokens // 2))
        budget_tokens -= chunks[0]
    for number in sorted(range(len(remaining)), key=lambda number: remaining[number] - chunks[number]):
        extra = min(remaining[number] - chunks[number], budget_tokens)
        chunks[number] += extra
        budget_tokens -= extra
    return chunks
