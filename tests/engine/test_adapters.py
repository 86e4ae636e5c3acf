from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.residency import AdapterRef, Residency
from regraft.engine.schedule.step_plan import Load, StepPlan
from regraft.errors import UsageError
from tests.engine.made import Driver, adapter, request

A, B, C = (adapter(name) for name in "abc")


def residency(num_pages: int = 6) -> tuple[Pool, Residency]:
    pool = Pool(num_pages, 64)
    return pool, Residency(pool)


def test_a_loading_adapter_has_its_pages_and_is_not_ready() -> None:
    pool, resident = residency()
    assert len(resident.load(A)) == pool.num_used == pool.num_pinned == 2
    assert resident.is_resident(A)
    assert not resident.is_ready(A)
    resident.loaded(A, step=1)
    assert resident.is_ready(A)
    assert pool.num_pinned == 0


def test_the_least_recently_used_idle_adapter_leaves() -> None:
    _, resident = residency()
    for step, loaded in enumerate((A, B, C)):
        resident.load(loaded)
        resident.loaded(loaded, step)
    resident.use(B)
    resident.touch(A, step=5)
    assert resident.idle_since == 2
    assert [resident.evict(), resident.evict()] == [C, A]
    assert resident.idle_since is None
    with pytest.raises(KeyError):
        resident.evict()


def test_an_adapter_is_pinned_until_its_last_user_has_gone() -> None:
    pool, resident = residency()
    resident.load(A)
    resident.loaded(A, step=1)
    resident.use(A)
    resident.use(A)
    resident.disuse(A, step=2)
    assert (resident.num_in_use, pool.num_pinned, resident.idle_since) == (1, 2, None)
    resident.disuse(A, step=3)
    assert (resident.num_in_use, pool.num_pinned, resident.idle_since) == (0, 0, 3)


def test_a_failed_load_leaves_nothing_behind() -> None:
    pool, resident = residency()
    resident.load(A)
    resident.load_failed(A)
    assert pool.num_used == pool.num_pinned == 0
    assert not resident.is_resident(A)
    resident.load(A)  # it may be tried again


def test_versions_of_an_adapter_are_two_adapters() -> None:
    pool, resident = residency()
    for version in (1, 2):
        resident.load(adapter("a", version=version))
        resident.loaded(adapter("a", version=version), version)
    assert pool.num_used == 4


def test_nothing_is_loaded_twice_or_without_room_or_used_before() -> None:
    _, resident = residency(3)
    with pytest.raises(ValueError, match="is not loaded"):
        resident.use(A)
    resident.load(A)
    with pytest.raises(ValueError, match="cannot be loaded"):
        resident.load(A)
    with pytest.raises(ValueError, match="with 1 free pages"):
        resident.load(B)
    with pytest.raises(ValueError, match="is not loaded"):
        resident.use(A)


@pytest.mark.parametrize(
    ("digest", "num_pages", "message"),
    [("", 1, "adapter a: expected a digest"), ("d", 0, "adapter a: pages: expected an integer of at least 1, found 0")],
)
def test_adapters_without_content_are_refused(digest: str, num_pages: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdapterRef("a", digest, num_pages)


def test_adapters_stay_while_there_is_room() -> None:
    driver = Driver(num_pages=100)
    for number in range(20):
        driver.submit(request(f"r{number}", mix=f"a{number}"))
        driver.run()
    driver.submit(request("again", mix="a0"))
    plan = driver.plan()
    assert not (plan.loads or plan.prefetches or plan.evicted)
    assert [row.sequence.id for row in plan.rows] == ["again"]


def test_the_longest_idle_adapter_leaves_when_room_is_needed() -> None:
    driver = Driver(num_pages=7)
    for name in ("a", "b", "a", "c"):
        driver.submit(request(f"{name}{driver.now_s}", prompt=1, max_tokens=1, mix=name))
        driver.now_s += 1
        driver.run()
    driver.submit(request("d", prompt=8, max_tokens=1, mix="d"))
    assert driver.plan().evicted == (adapter("b"),)


@pytest.mark.parametrize(("first", "evicted"), [("adapter", True), ("page", False)])
def test_of_cached_pages_and_adapters_the_longest_idle_leaves(first: str, evicted: bool) -> None:
    driver = Driver(num_pages=6)
    work = [request("adapter", prompt=1, max_tokens=1, mix="a"), request("page", prompt=9, max_tokens=1)]
    for made in work if first == "adapter" else reversed(work):
        driver.submit(made)
        driver.run()
    driver.submit(request("more", prompt=13, max_tokens=1))
    assert bool(driver.plan().evicted) == evicted


def test_what_a_cancelled_request_gives_up_is_room_in_the_same_plan() -> None:
    driver = Driver(num_pages=4)
    for mix in "ab":
        driver.submit(request(mix, mix=mix))
    driver.run(2)
    driver.scheduler.cancel("a")
    assert [load.adapter for load in driver.plan().loads] == [B]


def test_adapters_of_queued_requests_are_fetched_ahead_with_what_room_there_is() -> None:
    driver = Driver(num_pages=12, max_sequences=1, step_tokens=8)
    for name in "abcdefg":
        driver.submit(request(name, prompt=8, max_tokens=8, mix=name))
    plan = driver.plan()
    assert [load.adapter.name for load in plan.loads] == ["a"]
    # a has 2 pages, and its request will come to have 4; b, c and d fit beside them.
    assert [load.adapter.name for load in plan.prefetches] == ["b", "c", "d"]
    plan = driver.step()
    assert [row.sequence.id for row in plan.rows] == ["a"]
    assert plan.prefetches == ()


def test_prefetching_evicts_nothing_that_is_wanted_as_soon() -> None:
    driver = Driver(num_pages=12, max_sequences=1, step_tokens=8)
    for name in "abcdefg":
        driver.submit(request(name, prompt=8, max_tokens=8, mix=name))
    evicted, loaded = [], []
    while driver.scheduler.num_waiting:
        plan = driver.step()
        evicted += [gone.name for gone in plan.evicted]
        loaded += [load.adapter.name for load in (*plan.loads, *plan.prefetches)]
    assert loaded == list("abcdefg")
    assert evicted == loaded[: len(evicted)]


class SlowDriver(Driver):
    """One load ends in each step, the one that was begun first."""

    def __init__(self, **limits: Any) -> None:
        super().__init__(**limits)
        self.pending: deque[Load] = deque()

    def load(self, load: Load) -> None:
        self.pending.append(load)

    def plan(self) -> StepPlan:
        if self.pending:
            super().load(self.pending.popleft())
        return super().plan()


def test_an_adapter_on_its_way_holds_up_nobody() -> None:
    driver = SlowDriver(max_sequences=8, lookahead=2, turn_every=2)
    for name in "abcd":
        driver.submit(request(name, mix=name))
    for number in range(4):
        driver.submit(request(f"base {number}"))
    assert len(driver.step().rows) == 4
    assert driver.admitted == [f"base {number}" for number in range(4)]
    driver.run(4)
    assert driver.admitted[4:] == list("abcd")


def test_adapters_on_their_way_keep_their_requests_places() -> None:
    driver = SlowDriver(max_sequences=2)
    driver.submit(request("a", mix="a"))
    driver.submit(request("b", mix="b"))
    driver.step()
    for number in range(4):
        driver.submit(request(f"late {number}"))
    driver.run(2)
    assert driver.admitted == ["a", "b"]


def test_with_a_long_queue_the_next_adapter_is_there_when_a_place_is_free() -> None:
    driver = SlowDriver(num_pages=100, max_sequences=8, step_tokens=64)
    for number in range(150):
        driver.submit(request(f"{number}", prompt=2, max_tokens=8 + number % 5, mix=f"a{number}"), num_pages=1)
    driver.run(20)  # they come one by one
    while driver.scheduler.num_waiting:
        assert len(driver.step().rows) == 8


def test_a_cancelled_request_leaves_a_load_that_others_may_use() -> None:
    driver = SlowDriver(num_pages=4)
    driver.submit(request("gone", mix="a"))
    driver.step()
    driver.scheduler.cancel("gone")
    driver.submit(request("next", mix="a"))
    assert driver.pool.is_pinned(adapter("a"))
    assert driver.step().loads == ()
    driver.run(4)
    assert driver.finished["next"].finish_reason == "length" and driver.pool.num_pinned == 0


def test_a_failing_load_ends_its_own_requests_only() -> None:
    driver = Driver()
    for number, name in enumerate(("bad", "good", "bad", "")):
        driver.submit(request(f"{name}{number}", mix=name or ()))
    driver.submit(request("both", mix=(("good", 0.5), ("bad", 0.5))))
    plan = driver.scheduler.plan(0.0)
    assert [load.adapter.name for load in plan.loads] == ["bad", "good"]
    failed = driver.scheduler.load_failed(plan.loads[0].adapter, "it is no adapter")
    assert {(sequence.id, sequence.finish_reason, sequence.error) for sequence in failed} == {
        (id, "error", "it is no adapter") for id in ("bad0", "bad2", "both")
    }
    driver.load(plan.loads[1])
    driver.commit(plan)
    driver.run()
    assert {id: sequence.finish_reason for id, sequence in driver.finished.items()} == {
        "good1": "length",
        "3": "length",
    }
    assert driver.pool.num_pinned == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 6)), min_size=1, max_size=30))
def test_with_more_adapters_than_room_each_request_is_served(work: list[tuple[str, int]]) -> None:
    driver = Driver(num_pages=5, max_sequences=2, step_tokens=2)
    for number, (name, max_tokens) in enumerate(work):
        driver.submit(request(f"r{number}", prompt=2, max_tokens=max_tokens, mix=name))
    driver.run()
    assert len(driver.finished) == len(work)
