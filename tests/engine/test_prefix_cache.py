from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.mix import Mix
from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.prefix_cache import PrefixCache, page_digest
from regraft.engine.schedule.sequence import Sequence
from tests.engine.made import Driver, adapter, request

PAGE_TOKENS = 2


def root_digest(base: str, members: Iterable[tuple[str, float]]) -> bytes:
    """Of a mix of adapters that are told apart by their content digests."""
    return Mix(tuple(members)).digest(base, str)


ROOT = root_digest("base", [])
Prefix = tuple[int, ...]


def sequence_of(tokens: SequenceOf[int], root: bytes = ROOT) -> Sequence:
    made = request("r", prompt=tokens)
    return Sequence(made, Mix(), max_tokens=made.max_tokens, root_digest=root)


class Cached:
    """A cache, and sequences that compute what it does not have."""

    def __init__(self, num_pages: int = 100) -> None:
        self.pool = Pool(num_pages, 64)
        self.cache = PrefixCache(self.pool, PAGE_TOKENS)

    def start(self, sequence: Sequence) -> Sequence:
        self.cache.adopt(sequence)
        return sequence

    def compute(self, sequence: Sequence) -> Sequence:
        """The rest of its tokens."""
        pages = self.pool.take(sequence, -(-len(sequence.tokens) // PAGE_TOKENS) - len(sequence.pages))
        assert pages is not None
        sequence.pages += pages
        sequence.num_computed = len(sequence.tokens)
        self.cache.insert(sequence)
        return sequence

    def hits(self, tokens: SequenceOf[int], root: bytes = ROOT) -> int:
        return len(self.cache.match(sequence_of(tokens, root)))


def test_a_later_sequence_shares_the_full_pages_of_an_equal_beginning() -> None:
    cached = Cached()
    first = cached.compute(cached.start(sequence_of([1, 2, 3, 4, 5])))
    second = cached.start(sequence_of([1, 2, 3, 4, 6, 7]))
    assert second.pages == first.pages[:2]
    assert second.num_computed == 4
    assert cached.pool.num_used == 3


@pytest.mark.parametrize(("num_tokens", "num_hits"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2)])
def test_the_last_token_is_always_left_to_compute(num_tokens: int, num_hits: int) -> None:
    cached = Cached()
    cached.compute(sequence_of([1, 2, 3, 4, 5, 6]))
    assert cached.hits([1, 2, 3, 4, 5, 6][:num_tokens]) == num_hits


def test_what_is_not_computed_yet_is_not_shared() -> None:
    cached = Cached()
    sequence = sequence_of([1, 2, 3, 4, 5])
    sequence.pages = cached.pool.take(sequence, 3) or []
    sequence.num_computed = 3
    cached.cache.insert(sequence)
    assert cached.hits([1, 2, 3, 4, 5]) == 1


@pytest.mark.parametrize(
    ("base", "mix"),
    [
        pytest.param("another base", [("a-v1", 1.0)], id="another base"),
        pytest.param("base", [("a-v2", 1.0)], id="an adapter replaced under its name, vLLM #42125"),
        pytest.param("base", [("b-v1", 1.0)], id="another adapter, llama.cpp #26207"),
        pytest.param("base", [("a-v1", 0.5)], id="another weight"),
        pytest.param("base", [("a-v1", 1.0), ("b-v1", 1.0)], id="one adapter more"),
        pytest.param("base", [], id="no adapter"),
    ],
)
def test_nothing_is_shared_with_another_base_mix_weight_or_version(base: str, mix: list[tuple[str, float]]) -> None:
    cached = Cached()
    cached.compute(sequence_of([1, 2, 3], root_digest("base", [("a-v1", 1.0)])))
    assert cached.hits([1, 2, 3], root_digest("base", [("a-v1", 1)])) == 1
    assert cached.hits([1, 2, 3], root_digest(base, mix)) == 0


def test_digests_depend_on_each_token_and_all_before() -> None:
    digests = {
        page_digest(parent, tokens) for parent in (b"x", b"y") for tokens in ([1, 2], [2, 1], [1], [258], [2**31])
    }
    assert len(digests) == 10


def test_pages_are_given_up_from_the_end_and_the_least_recently_used_first() -> None:
    cached = Cached()
    old = cached.compute(sequence_of([1, 2, 3, 4, 5]))
    new = cached.compute(sequence_of([6, 7, 8]))
    cached.cache.retire(old, step=1)
    cached.cache.retire(new, step=2)
    left = []
    for _ in range(3):
        left.append((cached.cache.idle_since, cached.hits([1, 2, 3, 4, 0]), cached.hits([6, 7, 0])))
        cached.cache.evict()
    assert left == [(1, 2, 1), (1, 1, 1), (2, 0, 1)]
    assert (cached.cache.idle_since, cached.pool.num_used) == (None, 0)


def test_pages_in_use_are_never_idle() -> None:
    cached = Cached()
    first = cached.compute(sequence_of([1, 2, 3]))
    second = cached.start(sequence_of([1, 2, 4]))
    cached.cache.retire(first, step=1)
    assert cached.cache.idle_since is None
    with pytest.raises(KeyError):
        cached.cache.evict()
    cached.cache.retire(second, step=2)
    assert cached.cache.idle_since == 2


def test_the_slower_of_two_equals_keeps_its_pages_to_itself() -> None:
    cached = Cached()
    faster, slower = sequence_of([1, 2, 3, 4, 5]), sequence_of([1, 2, 3, 4, 6, 7, 8])
    cached.compute(faster)
    cached.compute(slower)
    assert cached.hits([1, 2, 3, 4, 6, 7, 8]) == 2
    cached.cache.retire(slower, step=1)
    assert cached.pool.num_used == 3


def test_a_sequence_takes_over_what_another_computed_while_it_waited_for_its_chunk() -> None:
    driver = Driver(step_tokens=8, max_sequences=2)
    driver.submit(request("a", prompt=range(16)))
    driver.step()
    late = driver.submit(request("b", prompt=[*range(16), 99]))
    driver.step()
    assert late.num_computed == 8  # what the step before had computed; this one went to the shorter rest
    driver.step()
    assert late.num_computed == 17


def test_an_answer_is_shared_with_the_next_turn_of_its_conversation() -> None:
    driver = Driver()
    first = driver.submit(request("a", prompt=range(6), max_tokens=7))
    driver.run()
    driver.submit(request("b", prompt=[*first.tokens, 1, 2]))
    (row,) = driver.step().rows
    assert row.first == 12


def test_a_replaced_adapter_shares_no_page_with_its_former_version() -> None:
    driver = Driver()
    mix = (("a", 1.0),)
    for version, first in ((1, 0), (1, 4), (2, 0), (2, 4), (1, 4)):
        driver.submit(request(f"r{driver.now_s}", prompt=range(6), mix=mix), version=version)
        driver.now_s += 1
        rows = driver.step().rows or driver.step().rows  # the adapter may have to come first
        assert [(row.first, row.sequence.adapters) for row in rows] == [(first, (adapter("a", version=version),))]
        driver.run()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("run"), st.lists(st.integers(0, 1), min_size=1, max_size=9).map(tuple)),
            st.tuples(st.just("retire"), st.integers(0, 9)),
            st.tuples(st.just("evict"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_the_cache_is_a_tree_of_which_the_longest_idle_leaf_leaves(actions: list[tuple[str, Prefix | int]]) -> None:
    cached = Cached()
    users: dict[Prefix, int] = {}  # of each cached page, by all tokens up to its end
    idle: dict[Prefix, int] = {}
    running: list[tuple[Sequence, list[Prefix]]] = []
    for step, (action, argument) in enumerate(actions):
        if action == "run" and isinstance(argument, tuple):
            sequence = cached.compute(cached.start(sequence_of(argument)))
            used = [argument[:end] for end in range(2, 2 * len(sequence.cached_pages) + 1, 2)]
            running.append((sequence, used))
            for prefix in used:
                users[prefix] = users.get(prefix, 0) + 1
                idle.pop(prefix, None)
        elif action == "retire" and running and isinstance(argument, int):
            sequence, used = running.pop(argument % len(running))
            cached.cache.retire(sequence, step)
            for prefix in used:
                users[prefix] -= 1
                if not users[prefix]:
                    idle[prefix] = step
        elif action == "evict" and idle:
            cached.cache.evict()
            (gone,) = [prefix for prefix in users if cached.hits([*prefix, 0]) < len(prefix) // 2]
            assert idle[gone] == min(idle.values())
            del users[gone], idle[gone]
        assert len(cached.cache) == len(users)
        assert cached.cache.idle_since == min(idle.values(), default=None)
        assert all(cached.hits([*prefix, 0]) == len(prefix) // 2 for prefix in users)
    for sequence, _ in running:
        cached.cache.retire(sequence, len(actions))
    while cached.cache.idle_since is not None:
        cached.cache.evict()
    assert (len(cached.cache), cached.pool.num_used) == (0, 0)
