"""Full KV pages that later requests with the same beginning need not compute again.

A page is found by a digest that is chained over everything its keys and values depend on (as in vLLM's automatic prefix
caching):

    root    = H(base fingerprint, ((adapter content digest, weight), …))
    digestᵢ = H(digestᵢ₋₁, tokens of page i)

(:meth:`regraft.engine.mix.Mix.digest`), so nothing is shared between mixes, weights, or versions of an adapter of one
name. Sharing is by reference: the cache is one owner of the page in the pool, each sequence that uses it another.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence as SequenceOf

from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.sequence import Sequence


def page_digest(parent: bytes, tokens: SequenceOf[int]) -> bytes:
    """The key of a page after the one whose key is ``parent``."""
    return hashlib.sha256(parent + array("q", tokens).tobytes()).digest()


class PrefixCache:
    """Pages by digest; those that no sequence uses are idle and can be evicted.

    The pages form a tree, in which whoever uses a page uses all pages before it. Sequences give them back from the end,
    so the page that is idle longest has no other behind it: the least recently used page is always a leaf.
    """

    def __init__(self, pool: Pool, page_tokens: int) -> None:
        self._pool, self._page_tokens = pool, page_tokens
        self._pages: dict[bytes, int] = {}
        self._idle: OrderedDict[bytes, int] = OrderedDict()  # since which step; the longest idle first

    def __len__(self) -> int:
        return len(self._pages)

    @property
    def idle_since(self) -> int | None:
        """The step since which the page that :meth:`evict` would take is idle, None if there is none to take."""
        return next(iter(self._idle.values()), None)

    @property
    def num_idle(self) -> int:
        """Pages that no sequence uses."""
        return len(self._idle)

    def match(self, sequence: Sequence) -> list[int]:
        """Cached pages of the tokens that a sequence would compute next.

        None of them has a token after which logits are wanted, such as the last one: that has to be computed.
        """
        first = len(sequence.cached_pages)
        pages: list[int] = []
        if len(sequence.pages) > first:
            return pages  # the next page is its own already
        for number in range(first, sequence.num_passed // self._page_tokens):
            page = self._pages.get(self._digest(sequence, number))
            if page is None:
                break
            pages.append(page)
        return pages

    def adopt(self, sequence: Sequence) -> None:
        """Append to a sequence the pages that :meth:`match` finds, as computed."""
        pages = self.match(sequence)
        for number in range(len(sequence.pages), len(sequence.pages) + len(pages)):
            self._idle.pop(self._digest(sequence, number), None)
        self._pool.share(sequence, pages)
        sequence.pages += pages
        sequence.cached_pages.update(pages)
        sequence.num_computed += len(pages) * self._page_tokens

    def insert(self, sequence: Sequence) -> None:
        """Let others share the pages that a sequence has filled.

        Where another was faster, the sequence keeps its own page to itself, and all after it.
        """
        for number in range(len(sequence.cached_pages), sequence.num_computed // self._page_tokens):
            digest, page = self._digest(sequence, number), sequence.pages[number]
            if digest in self._pages:
                break
            self._pages[digest] = page
            self._pool.share(self, [page])
            sequence.cached_pages.add(page)

    def retire(self, sequence: Sequence, step: int) -> None:
        """Take all its pages from a sequence; those in the cache stay, and are idle if no other uses them."""
        self._pool.release(sequence)
        for number in reversed(range(len(sequence.cached_pages))):
            if self._pool.references(sequence.pages[number]) == 1:
                self._idle[self._digest(sequence, number)] = step

    def evict(self) -> None:
        """Free the page that is idle longest.

        Raises:
            KeyError: none is idle.
        """
        digest, _ = self._idle.popitem(last=False)
        self._pool.release(self, [self._pages.pop(digest)])

    def _digest(self, sequence: Sequence, number: int) -> bytes:
        while len(sequence.digests) <= number + 1:
            start = (len(sequence.digests) - 1) * self._page_tokens
            tokens = sequence.tokens[start : start + self._page_tokens]
            sequence.digests.append(page_digest(sequence.digests[-1], tokens))
        return sequence.digests[number + 1]
