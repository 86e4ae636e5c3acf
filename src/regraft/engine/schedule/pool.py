"""The arena in pages: who owns which, what is shared, what may not leave.

KV cache and adapters are tenants of one pool (S-LoRA's unified paging; Sheng et al. 2023, arXiv 2311.03285). The pool
counts pages and knows owners, so any shape of either fits; what a page means is its owner's business: for KV, so many
tokens of one sequence in all layers; for an adapter, any part of its factors. An owner's pages need not be neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from regraft.engine.checks import check_integer
from regraft.errors import CapacityError


class Pool:
    """Equal pages of one arena, numbered from 0. Every operation takes O(1) per page.

    Args:
        num_pages: how many there are.
        page_bytes: the size of each.

    Raises:
        UsageError: either is less than 1.
    """

    def __init__(self, num_pages: int, page_bytes: int) -> None:
        check_integer("pages of the pool", num_pages, 1)
        check_integer("bytes of a page", page_bytes, 1)
        self.num_pages, self.page_bytes = num_pages, page_bytes
        self.peak_used = 0  # the most pages that were ever in use at once
        self.num_pinned = 0  # pages of pinned owners
        self._free = list(range(num_pages - 1, -1, -1))
        self._references = [0] * num_pages
        self._pages: dict[Hashable, dict[int, None]] = {}
        self._pins: dict[Hashable, int] = {}

    @property
    def num_free(self) -> int:
        """Pages without an owner."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Pages with an owner, each counted once."""
        return self.num_pages - len(self._free)

    def pages_for(self, num_bytes: int) -> int:
        """How many pages hold so many bytes."""
        return -(-num_bytes // self.page_bytes)

    def pages(self, owner: Hashable) -> list[int]:
        """What ``owner`` has, in the order in which it came by it."""
        return list(self._pages.get(owner, ()))

    def references(self, page: int) -> int:
        """How many owners a page has."""
        return self._references[page]

    def is_pinned(self, owner: Hashable) -> bool:
        """Whether the owner's pages may not be released."""
        return owner in self._pins

    def check_capacity(self, num_pages: int, what: str) -> None:
        """Nothing, if the whole pool has so many pages.

        Raises:
            CapacityError: it never will; the message is about ``what`` and has the arithmetic.
        """
        if num_pages > self.num_pages:
            raise CapacityError(
                f"{what} can never fit",
                expected=f"at most {self.num_pages} pages of {self.page_bytes} bytes",
                found=f"{num_pages} pages, {num_pages * self.page_bytes} bytes in all",
                hint=f"Ask for less, or give the engine {self._bytes_missing(num_pages)} bytes more.",
            )

    def take(self, owner: Hashable, num_pages: int) -> list[int] | None:
        """Give so many free pages to ``owner``, or none at all.

        Returns:
            The pages, or None if fewer are free at present.

        Raises:
            CapacityError: the pool has fewer, free or not.
        """
        self.check_capacity(num_pages, f"a demand for {num_pages} pages")
        self._check_unpinned(owner)
        if num_pages > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(num_pages)]
        self._refer(owner, pages)
        self.peak_used = max(self.peak_used, self.num_used)
        return pages

    def share(self, owner: Hashable, pages: Iterable[int]) -> None:
        """Make ``owner`` one more owner of pages that are in use.

        Raises:
            ValueError: one of them is free, or already this owner's.
        """
        self._check_unpinned(owner)
        pages = list(pages)
        for page in pages:
            if not self._references[page] or page in self._pages.get(owner, ()):
                raise ValueError(f"page {page} cannot be shared with {owner!r}")
        self._refer(owner, pages)

    def release(self, owner: Hashable, pages: Iterable[int] | None = None) -> None:
        """Take pages from ``owner``, all by default; those that no other owner has become free.

        Raises:
            ValueError: the owner is pinned, or one of the pages is not its.
        """
        self._check_unpinned(owner)
        owned = self._pages.get(owner, {})
        for page in list(owned) if pages is None else pages:
            if page not in owned:
                raise ValueError(f"page {page} is not of {owner!r}")
            del owned[page]
            self._references[page] -= 1
            if not self._references[page]:
                self._free.append(page)
        if not owned:
            self._pages.pop(owner, None)

    def pin(self, owner: Hashable) -> None:
        """Let nothing of ``owner`` be released until it was unpinned as often as it was pinned.

        Raises:
            ValueError: it has no pages.
        """
        if owner not in self._pages:
            raise ValueError(f"{owner!r} has no pages to pin")
        if owner not in self._pins:
            self.num_pinned += len(self._pages[owner])
        self._pins[owner] = self._pins.get(owner, 0) + 1

    def unpin(self, owner: Hashable) -> None:
        """Undo one :meth:`pin`.

        Raises:
            ValueError: there is none to undo.
        """
        if owner not in self._pins:
            raise ValueError(f"{owner!r} is not pinned")
        self._pins[owner] -= 1
        if not self._pins[owner]:
            del self._pins[owner]
            self.num_pinned -= len(self._pages[owner])

    def _refer(self, owner: Hashable, pages: list[int]) -> None:
        if pages:
            self._pages.setdefault(owner, {}).update(dict.fromkeys(pages))
        for page in pages:
            self._references[page] += 1

    def _check_unpinned(self, owner: Hashable) -> None:
        if owner in self._pins:
            raise ValueError(f"{owner!r} is pinned")

    def _bytes_missing(self, num_pages: int) -> int:
        return (num_pages - self.num_pages) * self.page_bytes
