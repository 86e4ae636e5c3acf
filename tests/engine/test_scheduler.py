from __future__ import annotations

from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.request import FinishReason, Scoring
from regraft.errors import CapacityError, UsageError
from tests.engine.made import Driver, adapter, request, waiting_sequence


def rows_of(driver: Driver) -> dict[str, tuple[int, int, bool]]:
    return {row.sequence.id: (row.first, row.count, row.draws) for row in driver.step().rows}


def reasons(driver: Driver) -> dict[str, str]:
    return {id: str(sequence.finish_reason) for id, sequence in driver.finished.items()}


# What a step computes


def test_a_request_is_prefilled_then_decoded_to_its_end() -> None:
    driver = Driver()
    sequence = driver.submit(request("r", prompt=3, max_tokens=3))
    assert [rows_of(driver)["r"] for _ in range(3)] == [(0, 3, True), (3, 1, True), (4, 1, True)]
    assert (sequence.num_generated, reasons(driver)) == (3, {"r": "length"})
    assert driver.scheduler.num_running == driver.pool.num_pinned == 0


def test_a_long_prompt_is_computed_in_chunks_beside_the_others_decoding() -> None:
    driver = Driver(step_tokens=5, max_sequences=3)
    driver.submit(request("short", prompt=2, max_tokens=9))
    driver.step()
    driver.submit(request("long", prompt=10))
    steps = [rows_of(driver) for _ in range(4)]
    assert [step["short"] for step in steps] == [(2 + i, 1, True) for i in range(4)]
    assert [step["long"] for step in steps] == [(0, 4, False), (4, 4, False), (8, 2, True), (10, 1, True)]


def test_a_scored_prompt_is_computed_but_for_its_last_token_and_shares_what_is_not_scored() -> None:
    driver = Driver(step_tokens=5, max_sequences=3)
    prompt, scored = tuple(range(1, 14)), Scoring(tokens=4)
    rows = []
    for name in ("first", "again"):
        sequence = driver.submit(request(name, prompt=prompt, max_tokens=0, scoring=scored))
        rows.append([(row.first, row.count, row.num_logits, row.draws) for _ in range(3) for row in driver.step().rows])
        assert sequence.finish_reason == FinishReason.LENGTH
    assert rows[0] == [(0, 5, 0, False), (5, 5, 2, False), (10, 2, 2, True)]
    assert rows[1] == [(8, 4, 4, True)]  # two pages of four, as tokens 8 to 11 are those after which one is scored


def test_a_long_prompt_holds_up_no_short_one() -> None:
    driver = Driver(step_tokens=8, max_sequences=3)
    driver.submit(request("long", prompt=100))
    driver.submit(request("short", prompt=4))
    assert rows_of(driver)["short"] == (0, 4, True)


def test_a_plan_that_was_not_committed_is_made_again() -> None:
    driver = Driver()
    driver.submit(request("r", prompt=9))
    first, second = driver.plan(), driver.plan()
    assert first.rows == second.rows
    assert driver.pool.num_used == 3
    driver.commit(second)
    driver.run()
    assert reasons(driver) == {"r": "length"}


def test_an_answer_ends_with_its_context() -> None:
    driver = Driver(context_tokens=10)
    sequence = driver.submit(request("r", prompt=7, max_tokens=100))
    driver.run()
    assert (len(sequence.tokens), sequence.finish_reason) == (10, "length")


def test_a_stop_token_ends_an_answer() -> None:
    driver = Driver()
    sequence = driver.submit(request("r", max_tokens=9, stop_token_ids=frozenset({2})))
    while not driver.finished:
        driver.step(draw=lambda sequence: sequence.num_generated)
    assert (sequence.tokens[-3:], sequence.finish_reason) == ([0, 1, 2], "stop")


def test_the_engine_can_end_a_request_between_steps() -> None:
    driver = Driver()
    driver.submit(request("r"))
    driver.step()
    assert driver.scheduler.finish("r", FinishReason.ERROR, "the step failed").error == "the step failed"
    assert driver.scheduler.num_running == 0
    with pytest.raises(KeyError):
        driver.scheduler.finish("r", FinishReason.STOP)


# What is refused


def test_what_can_never_fit_is_refused_at_once_with_the_arithmetic() -> None:
    driver = Driver(num_pages=10)
    with pytest.raises(CapacityError) as error:
        driver.submit(request("r", prompt=20, max_tokens=10, mix="a"), num_pages=3)
    assert str(error.value) == (
        "r, a prompt of 20 tokens and up to 10 more in 8 pages and adapters of 192 bytes in 3, can never fit:"
        " expected at most 10 pages of 64 bytes, found 11 pages, 704 bytes in all."
        " Ask for less, or give the engine 64 bytes more."
    )
    driver.submit(request("r", prompt=20, max_tokens=9, mix="a"), num_pages=3)  # of the last token nothing is kept
    driver.run()
    assert reasons(driver) == {"r": "length"}


def test_a_prompt_without_room_for_an_answer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected fewer tokens than the context's 8, found 8\. Shorten the prompt\."):
        Driver(context_tokens=8).submit(request("r", prompt=8))


def test_an_id_is_taken_until_its_request_has_ended() -> None:
    driver = Driver()
    driver.submit(request("r"))
    with pytest.raises(UsageError, match="a request's id: expected one that is not in use, found 'r'"):
        driver.submit(request("r"))
    driver.run()
    driver.submit(request("r"))


def test_adapters_are_those_of_the_mix() -> None:
    with pytest.raises(UsageError, match=r"r: adapters: expected those of its mix, \['a'\], found \['b'\]"):
        Driver().scheduler.submit(request("r", mix="a"), [adapter("b")])


# Cancelling and deadlines


def test_cancelled_requests_end_with_the_next_plan_wherever_they_are() -> None:
    driver = Driver(max_sequences=1, step_tokens=8)
    running, waiting = (driver.submit(request(id, max_tokens=9)) for id in "ab")
    plan = driver.plan()
    for id in "abbz":
        driver.scheduler.cancel(id)
    driver.commit(plan)  # the step was under way
    assert running.num_generated == 1
    assert driver.plan().finished == (running, waiting)
    assert reasons(driver) == {"a": "cancelled", "b": "cancelled"}


def test_a_cancel_that_comes_too_late_does_not_hit_a_successor() -> None:
    driver = Driver()
    driver.submit(request("r", max_tokens=1))
    plan = driver.plan()
    driver.scheduler.cancel("r")
    driver.commit(plan)
    driver.submit(request("r"))
    assert driver.plan().finished == ()


def test_a_waiting_request_is_given_up_half_a_second_before_its_deadline() -> None:
    driver = Driver(max_sequences=1, step_tokens=8)
    driver.submit(request("running", max_tokens=99, deadline_s=20.0))
    driver.step()
    driver.submit(request("waiting", deadline_s=10.0))
    driver.now_s = 9.4
    assert driver.step().finished == ()
    driver.now_s = 9.5
    driver.step()
    assert reasons(driver) == {"waiting": "deadline"}


def test_a_running_request_ends_at_its_deadline_with_what_it_has() -> None:
    driver = Driver()
    sequence = driver.submit(request("r", max_tokens=99, deadline_s=10.0))
    for driver.now_s in (9.0, 9.9):
        driver.step()
    driver.now_s = 10.0
    assert driver.step().finished == (sequence,)
    assert (sequence.num_generated, sequence.finish_reason) == (2, "deadline")


@pytest.mark.parametrize("newest_first", [False, True])
def test_under_overload_the_newest_are_served_if_so_wished(newest_first: bool) -> None:
    driver = Driver(max_sequences=1, step_tokens=8, newest_first=newest_first)
    for number in range(40):
        driver.submit(request(f"{number}", max_tokens=2))
        driver.step()
    assert driver.admitted[:5] == ["0", "1", "2", "3", "4"]  # before overload shows
    assert (int(driver.admitted[-1]) > 35) == newest_first


def in_time_under_overload(newest_first: bool) -> int:
    driver = Driver(max_sequences=2, step_tokens=8, newest_first=newest_first)
    for number in range(200):
        driver.submit(request(f"{number}", max_tokens=8, deadline_s=driver.now_s + 1.5))
        driver.step()
        driver.now_s += 0.125
    driver.run()
    return Counter(reasons(driver).values())["length"]


def test_serving_the_newest_keeps_more_deadlines_under_overload() -> None:
    assert in_time_under_overload(newest_first=True) > 1.5 * in_time_under_overload(newest_first=False)


# Who is next


@given(st.lists(st.integers(1, 20), min_size=1, max_size=30), st.integers(1, 4))
def test_requests_of_one_tenant_that_fit_are_served_in_their_order(prompts: list[int], max_sequences: int) -> None:
    driver = Driver(max_sequences=max_sequences, step_tokens=64)
    for number, prompt in enumerate(prompts):
        driver.submit(request(str(number), prompt=prompt))
    driver.run()
    assert driver.admitted == [str(number) for number in range(len(prompts))]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=30))
def test_clustering_by_no_number_of_adapters_is_the_plain_order(work: list[tuple[str, int, int]]) -> None:
    orders = []
    for cluster_adapters in (None, 10**9):
        driver = Driver(num_pages=16, max_sequences=3, step_tokens=9, cluster_adapters=cluster_adapters)
        for number, (mix, prompt, max_tokens) in enumerate(work):
            driver.submit(request(str(number), prompt=prompt, max_tokens=max_tokens, mix=mix))
        driver.run()
        orders.append(driver.admitted)
    assert orders[0] == orders[1]


@pytest.mark.parametrize(("cluster_adapters", "order"), [(None, "cdab"), (3, "cdab"), (2, "abcd"), (1, "abcd")])
def test_clustering_prefers_adapters_that_run(cluster_adapters: int | None, order: str) -> None:
    driver = Driver(max_sequences=3, step_tokens=64, cluster_adapters=cluster_adapters)
    for mix in "ab":
        driver.submit(request(f"running {mix}", max_tokens=100, mix=mix))
    driver.run(5)
    for mix in "cdab":
        driver.submit(request(mix, max_tokens=2, mix=mix, priority=int(mix in "cd")))
    driver.run()
    assert "".join(driver.admitted[2:]) == order


@pytest.mark.parametrize("turn_every", [16, 10**9])
def test_backlogged_adapters_are_served_by_their_weights(turn_every: int) -> None:
    driver = Driver(max_sequences=4, step_tokens=64, turn_every=turn_every, weights={("a",): 1.0, ("b",): 3.0})
    numbers, served = count(), Counter({"a": 0, "b": 0})
    sizes = {"a": (4, 6), "b": (10, 2)}
    for _ in range(1000):
        num_waiting = Counter(sequence.tenant[0] for sequence in driver.scheduler._waiting)
        for mix, (prompt, max_tokens) in sizes.items():
            for _ in range(8 - num_waiting[mix]):
                driver.submit(request(f"{mix}{next(numbers)}", prompt=prompt, max_tokens=max_tokens, mix=mix))
        for row in driver.step().rows:
            served[row.sequence.tenant[0]] += 2 + (len(row.sequence.request.prompt) if row.first == 0 else 0)
        # Never further apart than what a batch of four may be served in all.
        assert abs(served["a"] - served["b"] / 3) <= 4 * 16


def test_a_big_request_is_passed_by_small_ones() -> None:
    driver = Driver(num_pages=10)
    driver.submit(request("first", prompt=8, max_tokens=8))
    driver.step()
    driver.submit(request("big", prompt=30, max_tokens=8))
    driver.submit(request("small", prompt=4, max_tokens=4))
    driver.step()
    assert driver.admitted == ["first", "small"]


STARVATION: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # name: limits, the endless traffic's requests, the victim
    "another adapter's": ({}, {"mix": "a"}, {"mix": "b"}),
    "an adapter's, with room for one": ({"num_pages": 8}, {"mix": "a"}, {"mix": "b"}),
    "smaller requests'": ({"num_pages": 10}, {"prompt": 4, "max_tokens": 8}, {"prompt": 36, "max_tokens": 4}),
    "of greater priority": ({}, {"priority": 1}, {}),
    "of greater priority, another adapter's": ({}, {"priority": 1, "mix": "a"}, {"mix": "b"}),
    "newer ones', newest first": ({"newest_first": True}, {}, {}),
    "an adapter's that runs, clustered": ({"cluster_adapters": 1}, {"mix": "a"}, {"mix": "b"}),
}


@pytest.mark.parametrize("turn_every", [1, 4, 16])
@pytest.mark.parametrize("case", STARVATION)
def test_endless_traffic_starves_nobody(case: str, turn_every: int) -> None:
    limits, traffic, victim = STARVATION[case]
    driver = Driver(**{"max_sequences": 4, "step_tokens": 64, "turn_every": turn_every} | limits)
    numbers = count()

    def flood() -> None:
        while driver.scheduler.num_waiting < 6:
            driver.submit(request(f"{next(numbers)}", **traffic))

    for _ in range(20):
        flood()
        driver.step()
    num_before, num_older = len(driver.admitted), driver.scheduler.num_waiting
    driver.submit(request("victim", **victim))
    for _ in range(2000):
        flood()
        driver.submit(request(f"{next(numbers)}", **traffic))
        driver.step()
        if "victim" in driver.admitted:
            break
    same_tenant = traffic.get("mix") == victim.get("mix")
    bound = turn_every * (1 if same_tenant else 2) * (1 + (num_older if same_tenant else 0))
    passing = driver.limits.max_sequences - 1 if "mix" in victim else 0  # while its adapter is loaded
    assert driver.admitted.index("victim") - num_before < bound + passing


def test_ten_thousand_waiting_requests_are_all_served() -> None:
    driver = Driver(num_pages=200, max_sequences=64, step_tokens=512)
    for number in range(10_000):
        driver.submit(request(f"{number}", prompt=1 + number % 3, max_tokens=1, mix=f"a{number % 100}"))
    driver.run()
    assert len(driver.finished) == 10_000


def test_the_tenant_is_whoever_the_request_names() -> None:
    """Two callers share one adapter, and are counted apart: the one that was served less is next."""
    driver = Driver(max_sequences=1)
    for number in range(3):
        driver.submit(request(f"greedy {number}", prompt=4, max_tokens=4, mix="a", tenant=("greedy",)))
    driver.submit(request("modest", prompt=4, max_tokens=4, mix="a", tenant=("modest",)))
    driver.run()
    assert driver.admitted.index("modest") == 1
    assert waiting_sequence("one", (("b", 1.0), ("a", 0.5))).tenant == ("a", "b")
    assert waiting_sequence("two", "a", tenant=("someone",)).tenant == ("someone",)
