"""Forecast of KV pages: the most that running sequences will hold at once, if each generates all it may.

S-LoRA admits by this (Sheng et al. 2023, arXiv 2311.03285; `req_queue.py` of the released code). With the sequences
sorted by the tokens they have left, longest first, they need

    maxᵢ ( leftᵢ · i + Σ_{j ≤ i} tokensⱼ )

cells, since all decode in step and the sum grows until one of them ends. Here the same in pages:

    maxᵢ ( Σ_{j ≤ i} ⌈(tokensⱼ + min(tᵢ, leftⱼ − 1)) / page_tokens⌉ − pages counted twice ),    tᵢ = leftᵢ − 1 + delayᵢ

where steps are counted from the coming one, tᵢ is the last in which sequence i holds pages, and delayᵢ the steps that
its prefill may take beyond the first. A sequence that is held up has at no time more pages than one that is not but
stays as much longer; so this is a bound, and without delays it is the peak itself. A page that several sequences share
is counted for the one that stays longest. While the bound is within the pool, nobody has to be preempted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from operator import attrgetter
from typing import NamedTuple

from regraft.engine.schedule.sequence import Sequence


class Demand(NamedTuple):
    """What one sequence will need, steps being counted from the coming one.

    Args:
        tokens: whose keys and values it holds after the coming step, if it is not held up.
        left: tokens to generate, at least 1: one in the coming step and in each after it, if it is not held up.
        last_step: the last one that it may take part in: ``left - 1``, and later by as much as it may be held up.
        shared: the pages it has that others may have, too; the same set elements in all that share.
    """

    tokens: int
    left: int
    last_step: int
    shared: Set[int] = frozenset()


def peak_pages(demands: Collection[Demand], page_tokens: int) -> int:
    """The most distinct pages that the sequences hold at once; takes O(n (log n + page_tokens))."""
    by_left = sorted(demands, key=attrgetter("left"), reverse=True)
    num_growing = pages_growing = pages_grown = peak = 0
    remainders = [0] * page_tokens  # of the growing, by how far each is into its last page
    counted: set[int] = set()
    for demand in sorted(demands, key=attrgetter("last_step"), reverse=True):
        pages_grown += _pages_when_grown(demand, page_tokens)
        if demand.shared:
            pages_grown -= len(counted & demand.shared)
            counted |= demand.shared
        # What still generates in this step is not grown yet; all of it has been counted above, or is about to be.
        while num_growing < len(by_left) and by_left[num_growing].left > demand.last_step:
            pages_grown -= _pages_when_grown(by_left[num_growing], page_tokens)
            pages, remainder = divmod(by_left[num_growing].tokens - 1, page_tokens)
            pages_growing += pages + 1
            remainders[remainder] += 1
            num_growing += 1
        pages, remainder = divmod(demand.last_step, page_tokens)
        num_one_more = sum(remainders[page_tokens - remainder :])
        peak = max(peak, pages_grown + pages_growing + num_growing * pages + num_one_more)
    return peak


class Forecast:
    """The peak of what runs in one step, and what it would be with one more.

    Args:
        running: the sequences that run.
        step_tokens: the most tokens of a step; those that decode come first, prefill takes all that they leave.
        page_tokens: the tokens of a page.
    """

    def __init__(self, running: Iterable[Sequence], *, step_tokens: int, page_tokens: int) -> None:
        self._step_tokens, self._page_tokens = step_tokens, page_tokens
        self._decoding: list[Demand] = []
        self._prefilling: list[Sequence] = []
        self._sum_pages = 0  # of all when grown
        for sequence in running:
            if sequence.is_prefilling:
                self.add(sequence)
            else:
                demand = _demand(sequence, 0, sequence.cached_pages)
                self._decoding.append(demand)
                self._sum_pages += _pages_when_grown(demand, page_tokens)

    def __len__(self) -> int:
        return len(self._decoding) + len(self._prefilling)

    def add(self, sequence: Sequence) -> None:
        """Count one more, which has not computed all of its prompt."""
        self._prefilling.append(sequence)
        self._sum_pages += _pages_when_grown(_demand(sequence, 0), self._page_tokens)

    def fits(self, num_pages: int, newcomer: Sequence, hits: Collection[int]) -> bool:
        """Whether with the newcomer :meth:`peak_pages` is at most ``num_pages``; fast while memory is plenty."""
        sum_pages = self._sum_pages + _pages_when_grown(_demand(newcomer, 0), self._page_tokens)
        return sum_pages <= num_pages or self.peak_pages(newcomer, hits) <= num_pages

    def peak_pages(self, newcomer: Sequence | None = None, hits: Collection[int] = ()) -> int:
        """The most KV pages held at once.

        Args:
            newcomer: counted as if it started in this step.
            hits: the pages that it would have from the prefix cache.
        """
        num_prompt_tokens = sum(sequence.num_uncomputed for sequence in self._prefilling)
        num_others = len(self) - 1
        if newcomer:
            num_prompt_tokens += newcomer.num_uncomputed - len(hits) * self._page_tokens
            num_others += 1
        # While one prefills at most all others decode: each step computes so many tokens of prompts, or all there are.
        num_steps = -(-num_prompt_tokens // (self._step_tokens - num_others))
        delay = max(num_steps - 1, 0)
        demands = self._decoding + [_demand(sequence, delay, sequence.cached_pages) for sequence in self._prefilling]
        if newcomer:
            demands.append(_demand(newcomer, delay, frozenset(hits)))
        return peak_pages(demands, self._page_tokens)


def _demand(sequence: Sequence, delay: int, shared: Set[int] = frozenset()) -> Demand:
    left = sequence.num_left
    return Demand(len(sequence.tokens), left, left - 1 + delay, shared)


def _pages_when_grown(demand: Demand, page_tokens: int) -> int:
    return -(-(demand.tokens + demand.left - 1) // page_tokens)
