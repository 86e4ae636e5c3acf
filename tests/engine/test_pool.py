from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from regraft.engine.schedule.pool import Pool
from regraft.errors import CapacityError, UsageError

NUM_PAGES = 12
OWNERS = st.sampled_from("abcd")


class PoolAgainstLists(RuleBasedStateMachine):
    """The pool beside its definition: each owner's pages in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = Pool(NUM_PAGES, 64)
        self.owned: dict[str, list[int]] = {owner: [] for owner in "abcd"}
        self.pins: Counter[str] = Counter()
        self.peak = 0

    @rule(owner=OWNERS, num_pages=st.integers(0, NUM_PAGES))
    def take(self, owner: str, num_pages: int) -> None:
        num_free = NUM_PAGES - len(self._used())
        if self.pins[owner]:
            with pytest.raises(ValueError, match="is pinned"):
                self.pool.take(owner, num_pages)
        elif num_pages > num_free:
            assert self.pool.take(owner, num_pages) is None
        else:
            pages = self.pool.take(owner, num_pages)
            assert pages is not None
            assert len(set(pages)) == num_pages
            assert not self._used() & set(pages)
            self.owned[owner] += pages
            self.peak = max(self.peak, len(self._used()))

    @rule(owner=OWNERS, other=OWNERS, data=st.data())
    def share(self, owner: str, other: str, data: st.DataObject) -> None:
        pages = [page for page in self.owned[other] if page not in self.owned[owner]]
        if pages and not self.pins[owner]:
            shared = data.draw(st.lists(st.sampled_from(pages), unique=True))
            self.pool.share(owner, shared)
            self.owned[owner] += shared

    @rule(owner=OWNERS, data=st.data())
    def release_some(self, owner: str, data: st.DataObject) -> None:
        if self.owned[owner] and not self.pins[owner]:
            pages = data.draw(st.lists(st.sampled_from(self.owned[owner]), unique=True))
            self.pool.release(owner, pages)
            self.owned[owner] = [page for page in self.owned[owner] if page not in pages]

    @rule(owner=OWNERS)
    def release_all(self, owner: str) -> None:
        if self.pins[owner]:
            with pytest.raises(ValueError, match="is pinned"):
                self.pool.release(owner)
        else:
            self.pool.release(owner)
            self.owned[owner] = []

    @rule(owner=OWNERS)
    def pin(self, owner: str) -> None:
        if self.owned[owner]:
            self.pool.pin(owner)
            self.pins[owner] += 1
        else:
            with pytest.raises(ValueError, match="has no pages"):
                self.pool.pin(owner)

    @rule(owner=OWNERS)
    def unpin(self, owner: str) -> None:
        if self.pins[owner]:
            self.pool.unpin(owner)
            self.pins[owner] -= 1
        else:
            with pytest.raises(ValueError, match="is not pinned"):
                self.pool.unpin(owner)

    @invariant()
    def agrees(self) -> None:
        assert self.pool.num_used == len(self._used()) == NUM_PAGES - self.pool.num_free
        assert self.pool.peak_used == self.peak
        assert {owner: self.pool.pages(owner) for owner in "abcd"} == self.owned
        owners = Counter(page for pages in self.owned.values() for page in pages)
        assert [self.pool.references(page) for page in range(NUM_PAGES)] == [owners[page] for page in range(NUM_PAGES)]
        assert self.pool.num_pinned == sum(len(self.owned[owner]) for owner in "abcd" if self.pins[owner])
        assert all(self.pool.is_pinned(owner) == bool(self.pins[owner]) for owner in "abcd")

    def _used(self) -> set[int]:
        return {page for pages in self.owned.values() for page in pages}


TestPoolAgainstLists = PoolAgainstLists.TestCase
TestPoolAgainstLists.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_demand_beyond_the_pool_is_refused_with_the_arithmetic() -> None:
    with pytest.raises(CapacityError) as error:
        Pool(4, 1024).take("a", 6)
    assert str(error.value) == (
        "a demand for 6 pages can never fit: expected at most 4 pages of 1024 bytes, found 6 pages, 6144 bytes in all."
        " Ask for less, or give the engine 2048 bytes more."
    )


def test_pages_are_given_all_or_none() -> None:
    pool = Pool(4, 1024)
    pool.take("a", 3)
    assert pool.take("b", 2) is None
    assert pool.pages("b") == []
    assert pool.num_free == 1


def test_a_page_is_free_when_its_last_owner_gives_it_back() -> None:
    pool = Pool(4, 1024)
    pages = pool.take("a", 2)
    assert pages is not None
    pool.share("b", pages)
    pool.release("a")
    assert pool.num_used == 2
    pool.release("b")
    assert pool.num_used == 0
    assert pool.peak_used == 2


@pytest.mark.parametrize(("num_bytes", "num_pages"), [(0, 0), (1, 1), (64, 1), (65, 2)])
def test_bytes_are_rounded_up_to_pages(num_bytes: int, num_pages: int) -> None:
    assert Pool(4, 64).pages_for(num_bytes) == num_pages


def test_nobody_gives_back_or_shares_what_is_not_there() -> None:
    pool = Pool(4, 64)
    pages = pool.take("a", 1)
    assert pages is not None
    with pytest.raises(ValueError, match="is not of 'b'"):
        pool.release("b", pages)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share("a", pages)
    pool.release("a")
    with pytest.raises(ValueError, match="is not of 'a'"):
        pool.release("a", pages)
    with pytest.raises(ValueError, match="cannot be shared"):
        pool.share("b", pages)


@pytest.mark.parametrize("sizes", [(0, 64), (4, 0), (-1, 64), (1.5, 64)])
def test_a_pool_of_nothing_is_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="expected an integer of at least 1"):
        Pool(*sizes)
