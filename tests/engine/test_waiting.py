from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.schedule.fairness import TokenCounters
from regraft.engine.schedule.sequence import Sequence
from regraft.engine.schedule.waiting_queue import WaitingQueue
from tests.engine.made import waiting_sequence

NEVER = 10**6


class Queue:
    """A queue with its counters; whoever is admitted is charged its prompt."""

    def __init__(self, turn_every: int = NEVER) -> None:
        self.counters = TokenCounters()
        self.waiting = WaitingQueue(self.counters, turn_every=turn_every)

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.waiting.add(sequence)

    def admit(self, sequence: Sequence) -> None:
        self.waiting.admit(sequence)
        self.counters.charge(sequence.tenant, prompt_tokens=len(sequence.request.prompt))

    def tried(self, fits: str = "", lookahead: int = 100, keep: str = "", **options: object) -> list[str]:
        """The ids of those tried, of which those in ``fits`` are admitted, and those in ``keep`` keep their place."""
        tried, kept = [], set[Sequence]()
        for sequence in self.waiting.candidates(lookahead, kept=kept, **options):  # type: ignore[arg-type]
            tried.append(sequence.id)
            if sequence.id in fits.split():
                self.admit(sequence)
            elif sequence.id in keep.split():
                kept.add(sequence)
        return tried


def test_one_tenants_requests_are_tried_by_age() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(id) for id in "xayb"))
    assert queue.tried("x a y b") == ["x", "a", "y", "b"]


def test_the_greater_priority_goes_first_whatever_the_counters() -> None:
    queue = Queue()
    queue.counters.charge(("b",), prompt_tokens=100)
    queue.add(
        waiting_sequence("a", "a"), waiting_sequence("b", "b", priority=1), waiting_sequence("c", "c", priority=-1)
    )
    assert queue.tried("a b c") == ["b", "a", "c"]


def test_the_least_counter_goes_first_and_each_admission_counts() -> None:
    queue = Queue()
    queue.add(
        *(waiting_sequence(f"{mix}{i}", mix, prompt=size) for i in range(3) for mix, size in (("a", 4), ("b", 10)))
    )
    assert queue.tried("a0 a1 a2 b0 b1 b2") == ["a0", "b0", "a1", "a2", "b1", "b2"]


def test_one_that_does_not_fit_is_passed_by_other_tenants_before_its_own() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(f"{mix}{i}", mix) for mix in "ab" for i in range(3)))
    assert queue.tried() == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert queue.tried(lookahead=3) == ["a0", "b0", "a1"]
    assert queue.tried("b0 a1", lookahead=3) == ["a0", "b0", "b1", "a1", "b2"]


def test_what_was_tried_in_vain_keeps_its_place() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(mix, mix) for mix in "abcd"))
    assert [queue.tried(lookahead=2) for _ in range(3)] == [["a", "b"]] * 3


def test_newest_first_turns_each_tenant_round() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(f"{mix}{i}", mix) for mix in "ab" for i in range(2)))
    assert queue.tried("a0 a1 b0 b1", newest_first=True) == ["a1", "b1", "a0", "b0"]


def test_preferred_tenants_come_before_all_others_once() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(f"{mix}{i}", mix, priority=int(mix == "a")) for i in range(2) for mix in "abc"))
    assert queue.tried("c0", preferred=[("c",), ("z",)]) == ["c0", "c1", "a0", "b0", "a1", "b1"]


def test_a_turn_goes_round_the_tenants_and_is_passed_by_nobody() -> None:
    queue = Queue(turn_every=3)
    queue.add(*(waiting_sequence(f"a{i}", "a", priority=9) for i in range(9)), waiting_sequence("b", "b"))
    assert queue.tried("a0 a1 a2 a3 a4") == ["a0", "a1", "a2", "a3", "a4", "b"]
    assert queue.tried("a5 a6") == ["b"]
    assert queue.tried("b a5 a6") == ["b", "a5", "a6", "a7"]


def test_one_whose_place_is_kept_is_no_misfit() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(mix, mix) for mix in "abcde"))
    assert queue.tried(keep="a c", lookahead=2) == ["a", "b", "c", "d"]


def test_a_turn_whose_place_is_kept_holds_up_nobody_and_is_the_next() -> None:
    queue = Queue(turn_every=3)
    queue.add(*(waiting_sequence(f"a{i}", "a", priority=9) for i in range(9)), waiting_sequence("b", "b"))
    assert queue.tried("a0 a1 a2 a3 a4 a5", keep="b") == [*(f"a{i}" for i in range(5)), "b", "a5", "a6", "a7", "a8"]
    assert queue.tried("a6", keep="b") == ["b", "a6", "a7", "a8"]
    assert queue.tried("b a7 a8") == ["b", "a7", "a8"]


def test_with_every_admission_a_turn_the_tenants_take_turns() -> None:
    queue = Queue(turn_every=1)
    queue.add(*(waiting_sequence(f"{mix}{i}", mix, prompt=i + 1) for mix in "abc" for i in range(2)))
    assert queue.tried("a0 a1 b0 b1 c0 c1") == ["a0", "b0", "c0", "a1", "b1", "c1"]


def test_deadlines_come_due_in_their_order() -> None:
    queue = Queue()
    late, soon, never, gone = (waiting_sequence(str(at), deadline_s=at) for at in (9.0, 5.0, None, 1.0))
    queue.add(late, soon, never, gone)
    queue.waiting.remove(gone)
    assert queue.waiting.due_by(4.9) is None
    assert queue.waiting.due_by(5.0) is soon
    queue.waiting.remove(soon)
    assert [queue.waiting.due_by(at) for at in (8.9, 9.0)] == [None, late]


def test_an_iterator_left_early_loses_nobody() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(mix, mix) for mix in "abc"))
    candidates: Iterator[Sequence] = queue.waiting.candidates(9)
    assert [next(candidates).id, next(candidates).id] == ["a", "b"]
    del candidates
    assert queue.tried() == ["a", "b", "c"]


def test_of_ten_thousand_no_more_are_looked_at_than_asked_for() -> None:
    queue = Queue()
    queue.add(*(waiting_sequence(str(i), f"a{i % 3000}", priority=i % 2) for i in range(10_000)))
    assert len(queue.tried(lookahead=8)) == 8
    assert len(queue.waiting) == len(list(queue.waiting)) == 10_000


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.integers(1, 9)), min_size=1, max_size=25),
    st.booleans(),
    st.sampled_from(["", "a", "bc"]),
    st.integers(0, 2**32),
)
def test_nobody_is_lost_tried_twice_or_admitted_twice(
    turn_every: int, work: list[tuple[str, int, int]], newest_first: bool, preferred: str, seed: int
) -> None:
    rng, queue = random.Random(seed), Queue(turn_every)
    sequences = {
        str(i): waiting_sequence(str(i), mix, priority=priority, prompt=prompt)
        for i, (mix, priority, prompt) in enumerate(work)
    }
    queue.add(*sequences.values())
    admitted: list[str] = []
    while len(admitted) < len(work):
        fits = [id for id in sequences if rng.random() < 0.5]
        keep = " ".join(id for id in sequences if rng.random() < 0.3)
        waiting_before = len(queue.waiting)
        tenants = [(name,) for name in preferred]
        tried = queue.tried(" ".join(fits), keep=keep, newest_first=newest_first, preferred=tenants)
        taken = [id for id in tried if id in fits]
        assert len(set(taken)) == len(taken)
        assert not set(taken) & set(admitted)
        assert len(tried) <= waiting_before + 1  # the one whose turn it is may be tried once more
        admitted += taken
        assert len(queue.waiting) == len(work) - len(admitted)
    assert sorted(admitted, key=int) == list(sequences)


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("preferred", ["", "a"])
@given(
    turn_every=st.integers(1, 5),
    num_tenants=st.integers(1, 5),
    num_older=st.integers(0, 4),
    skipped=st.integers(0, 20),
    seed=st.integers(0, 2**32),
)
def test_nobody_waits_for_more_admissions_than_the_bound(
    turn_every: int, num_tenants: int, num_older: int, skipped: int, seed: int, newest_first: bool, preferred: str
) -> None:
    """Against it: endless traffic of every tenant, of greater priority, newer, preferred, and its own tenant's."""
    rng, queue = random.Random(seed), Queue(turn_every)
    tenants = "abcde"[:num_tenants]
    victims = rng.choice(tenants)
    queue.waiting._admissions_since_turn = skipped % turn_every

    def add_traffic() -> None:
        for mix in tenants:
            queue.add(waiting_sequence(f"{mix}{rng.random()}", mix, priority=rng.choice((1, 2)), prompt=1))

    if rng.random() < 0.5:
        queue.add(*(waiting_sequence(f"before {mix}", mix) for mix in tenants if mix != victims))
    queue.add(*(waiting_sequence(f"older {i}", victims, prompt=999) for i in range(num_older)))
    victim = waiting_sequence("victim", victims, prompt=999)
    queue.add(victim)
    num_admitted = 0
    while victim in queue.waiting:
        add_traffic()
        candidates = queue.waiting.candidates(99, newest_first=newest_first, preferred=[(name,) for name in preferred])
        queue.admit(next(candidates))
        candidates.close()  # type: ignore[attr-defined]
        num_admitted += 1
    assert num_admitted <= turn_every * num_tenants * (num_older + 1)
