"""The pool with its tenants: KV pages, of which the prefix cache keeps some, and adapters.

Nothing leaves before its room is needed. Then whatever was least recently used goes first, a cached page or an adapter.
"""

from __future__ import annotations

from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.prefix_cache import PrefixCache
from regraft.engine.schedule.residency import AdapterRef, Residency
from regraft.engine.schedule.sequence import Sequence
from regraft.engine.schedule.step_plan import Load


class Memory:
    """Makes room in the pool, and hands it out."""

    def __init__(self, pool: Pool, page_tokens: int) -> None:
        self.pool, self._page_tokens = pool, page_tokens
        self.prefix_cache = PrefixCache(pool, page_tokens)
        self.residency = Residency(pool)
        self._evicted: list[AdapterRef] = []

    @property
    def num_idle_pages(self) -> int:
        """Pages that :meth:`make_room` could free."""
        return self.prefix_cache.num_idle + self.residency.num_idle_pages

    def make_room(self, num_pages: int, *, idle_before: int | None = None) -> bool:
        """Evict until so many pages are free, or nothing is left that may leave.

        Args:
            num_pages: how many have to be free.
            idle_before: evict only what was last used in an earlier step.

        Returns:
            Whether so many are free.
        """
        while self.pool.num_free < num_pages:
            stamps = [tenant.idle_since for tenant in (self.prefix_cache, self.residency)]
            oldest = min((stamp for stamp in stamps if stamp is not None), default=None)
            if oldest is None or (idle_before is not None and oldest >= idle_before):
                return False
            if stamps[0] == oldest:
                self.prefix_cache.evict()
            else:
                self._evicted.append(self.residency.evict())
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Give a sequence pages for its first so many tokens; admission has seen to it that there is room."""
        num_pages = -(-num_tokens // self._page_tokens) - len(sequence.pages)
        if num_pages > 0:
            self.make_room(num_pages)
            pages = self.pool.take(sequence, num_pages)
            assert pages is not None, f"{sequence.id} was admitted without room for {num_pages} pages"
            sequence.pages += pages

    def load(self, adapter: AdapterRef, *, idle_before: int) -> Load | None:
        """Give an absent adapter its pages, or nothing if there is no room once the idle have left (see make_room)."""
        if not self.make_room(adapter.num_pages, idle_before=idle_before):
            return None
        return Load(adapter, self.residency.load(adapter))

    def take_evicted(self) -> tuple[AdapterRef, ...]:
        """The adapters that were evicted since this was last asked."""
        evicted, self._evicted = tuple(self._evicted), []
        return evicted
