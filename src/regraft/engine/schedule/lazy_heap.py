"""A heap of items whose keys may grow, and which may die, without the heap being told."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from itertools import count
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

SPARE_ENTRIES = 64  # the dead are cleared away when there are so many more of them than of the living


class LazyHeap(Generic[Item]):
    """Finds the live item of least key in O(log n), amortised.

    Args:
        key_of: an item's present key; while the item is in the heap it never becomes less.
        is_live: whether the item still counts. One that died and is pushed anew may be in the heap twice for a while.
    """

    def __init__(self, key_of: Callable[[Item], Any], is_live: Callable[[Item], bool]) -> None:
        self._key_of, self._is_live = key_of, is_live
        self._entries: list[tuple[Any, int, Item]] = []
        self._serials = count()
        self._most_entries = SPARE_ENTRIES

    def push(self, item: Item) -> None:
        """Add an item; of those with equal keys the first pushed comes first."""
        if len(self._entries) >= self._most_entries:
            live = {entry[2]: entry for entry in self._entries if self._is_live(entry[2])}
            self._entries = list(live.values())
            heapq.heapify(self._entries)
            self._most_entries = 2 * len(self._entries) + SPARE_ENTRIES
        heapq.heappush(self._entries, (self._key_of(item), next(self._serials), item))

    def peek(self) -> Item | None:
        """The live item of least key, None if there is none."""
        while self._entries:
            key, serial, item = self._entries[0]
            if not self._is_live(item):
                heapq.heappop(self._entries)
            elif (present := self._key_of(item)) != key:
                heapq.heapreplace(self._entries, (present, serial, item))
            else:
                return item
        return None

    def pop(self) -> Item | None:
        """Remove and return what :meth:`peek` returns."""
        item = self.peek()
        if item is not None:
            heapq.heappop(self._entries)
        return item
