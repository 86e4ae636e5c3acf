from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.request import Tenant
from regraft.engine.schedule.fairness import SPARE_COUNTERS, TokenCounters
from regraft.engine.schedule.lazy_heap import LazyHeap
from regraft.engine.schedule.overload import ROUND_STEPS, Overload
from regraft.errors import UsageError

A: Tenant = ("a",)
B: Tenant = ("b",)
C: Tenant = ("c",)


def test_a_counter_grows_by_one_a_prompt_token_and_two_a_generated_one() -> None:
    counters = TokenCounters({B: 4.0})
    for tenant in (A, B):
        counters.charge(tenant, prompt_tokens=10, generated_tokens=3)
    assert (counters[A], counters[B], counters[C]) == (16.0, 4.0, 0.0)


def test_who_comes_back_is_lifted_to_the_least_of_those_waiting() -> None:
    counters = TokenCounters()
    counters.join(A)
    counters.join(B)
    counters.charge(A, prompt_tokens=100)
    counters.charge(B, prompt_tokens=60)
    counters.join(C)
    assert counters[C] == 60.0


def test_who_comes_back_to_an_empty_queue_is_lifted_to_who_waited_last() -> None:
    counters = TokenCounters()
    counters.join(A)
    counters.leave(A)
    counters.charge(A, generated_tokens=50)  # it still runs
    counters.join(B)
    assert counters[B] == 100.0


def test_nobody_is_lowered() -> None:
    counters = TokenCounters()
    counters.charge(A, prompt_tokens=100)
    counters.join(B)
    counters.join(A)
    assert (counters[A], counters[B]) == (100.0, 0.0)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["join", "leave", "charge"]), st.integers(1, 9)), max_size=60)
)
def test_the_lift_is_algorithm_2(actions: list[tuple[int, str, int]]) -> None:
    counters, slow = TokenCounters(), dict.fromkeys(range(5), 0.0)
    waiting: set[int] = set()
    last: int | None = None
    for number, action, tokens in actions:
        tenant = (str(number),)
        if action == "join" and number not in waiting:
            floors = [slow[other] for other in waiting] or [slow[last] if last is not None else 0.0]
            slow[number] = max(slow[number], min(floors))
            waiting.add(number)
            counters.join(tenant)
        elif action == "leave" and number in waiting:
            waiting.remove(number)
            last = number
            counters.leave(tenant)
        elif action == "charge":
            slow[number] += tokens
            counters.charge(tenant, prompt_tokens=tokens)
        assert {n: counters[(str(n),)] for n in range(5)} == slow


def test_counters_that_would_only_be_lifted_are_forgotten() -> None:
    counters = TokenCounters()
    for number in range(20 * SPARE_COUNTERS):
        tenant = (str(number),)
        counters.join(tenant)
        counters.charge(tenant, prompt_tokens=10)
        counters.leave(tenant)
    assert len(counters._counters) <= 2 * SPARE_COUNTERS
    counters.join(A)
    assert counters[A] == 10.0 * 20 * SPARE_COUNTERS


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_weights_are_finite_and_above_0(weight: float) -> None:
    with pytest.raises(UsageError, match=r"weight of a\+b: expected a finite number above 0"):
        TokenCounters({("a", "b"): weight})


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "pop", "grow", "kill"]), st.integers(0, 9), st.integers(0, 9)), max_size=300
    )
)
def test_a_lazy_heap_finds_the_least_live_item(actions: list[tuple[str, int, int]]) -> None:
    keys: dict[int, int] = {}
    heap = LazyHeap[int](lambda item: keys[item], lambda item: item in live)
    live: set[int] = set()
    for action, number, key in actions:
        if action == "push" and number not in live:
            keys[number] = max(key, keys.get(number, 0))
            live.add(number)
            heap.push(number)
        elif action == "pop":
            item = heap.pop()
            assert (item is None) == (not live)
            if item is not None:
                assert keys[item] == min(keys[other] for other in live)
                live.remove(item)
        elif action == "grow" and number in live:
            keys[number] += key
        elif action == "kill":
            live.discard(number)
        least = heap.peek()
        assert (None if least is None else keys[least]) == min((keys[item] for item in live), default=None)


def observe_round(overload: Overload, num_arrived: int, num_admitted: int) -> bool:
    overload.observe(num_arrived, num_admitted)
    for _ in range(ROUND_STEPS - 1):
        overload.observe(0, 0)
    return overload.is_on


def test_overload_is_when_requests_come_as_fast_as_they_are_admitted() -> None:
    overload = Overload()
    assert not overload.is_on
    assert [observe_round(overload, 20, 4) for _ in range(3)] == [True] * 3
    assert [observe_round(overload, 0, 4) for _ in range(5)] == [True, False, False, False, False]


def test_arrivals_add_up_until_somebody_is_admitted() -> None:
    overload = Overload()
    observe_round(overload, 8, 8)  # rate 5, batch 5
    # Rates ⌊0.7 · 3 + 0.3 · 5⌋ = 3, then ⌊0.7 · 9 + 0.3 · 3⌋ = 7.
    assert [observe_round(overload, 3, 0), observe_round(overload, 6, 0)] == [False, True]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=20))
def test_overload_is_s_loras_rule(rounds: list[tuple[int, int]]) -> None:
    overload, rate, batch, arrived = Overload(), 0, 1, 0
    for num_arrived, num_admitted in rounds:
        arrived += num_arrived
        rate = int(0.7 * arrived + (1 - 0.7) * rate)
        if num_admitted:
            batch, arrived = max(int(0.7 * num_admitted + (1 - 0.7) * batch), 1), 0
        assert observe_round(overload, num_arrived, num_admitted) == (rate >= batch)
