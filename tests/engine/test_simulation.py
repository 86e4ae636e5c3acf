"""The scheduler under random load, with an arena that notices every page that is not what it should be."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.engine.mix import Mix
from regraft.engine.request import FinishReason, Request, Scoring
from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.sequence import Sequence
from regraft.engine.schedule.step_plan import Load, StepPlan
from regraft.errors import CapacityError
from tests.engine.made import Draw, Driver, adapter, draw_zero

SIZES = {"a": 1, "b": 1, "c": 2, "d": 3, "broken": 2}
BEGINNINGS = [(), (1, 1, 1, 1, 1, 1), (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2), (3,) * 20]
MOST_STEPS = 5000  # a request that waits for so long would wait for ever


class Simulation(Driver):
    """Loads take a while and may fail; requests come, are cancelled and miss their deadlines at any time.

    Args:
        rng: draws all that happens.
        num_requests: that come.
        pace: how likely it is that a load ends in a step.
        in_turn: loads end in the order in which they were begun, one in a step at most, as on a thread of their own.
        limits: the scheduler's.
    """

    def __init__(
        self, rng: random.Random, num_requests: int, *, pace: float = 0.6, in_turn: bool = False, **limits: object
    ) -> None:
        num_pages, page_tokens = rng.randint(4, 40), rng.randint(1, 5)
        super().__init__(num_pages, context_tokens=num_pages * page_tokens + 1, page_tokens=page_tokens, **limits)
        self.rng, self.num_left, self.num_refused = rng, num_requests, 0
        self.pace, self.in_turn = pace, in_turn
        self.submitted: list[str] = []
        self.resident: set[AdapterRef] = set()
        self.pending: list[Load] = []
        self.version = 1
        self.decoding: list[Sequence] = []
        self.told: dict[Sequence, list[int]] = defaultdict(list)  # positions of the tokens that there were logits for

    def evict(self, evicted: AdapterRef) -> None:
        super().evict(evicted)
        self.resident.remove(evicted)

    def load(self, load: Load) -> None:
        self.pending.append(load)
        self.resident.add(load.adapter)

    def play(self) -> None:
        for _ in range(MOST_STEPS):
            if not (self.num_left or self.scheduler.num_waiting or self.scheduler.num_running):
                return
            self.now_s += self.rng.random()
            self.come_and_go()
            self.finish_loads()
            plan = self.plan()
            self.check(plan)
            if self.rng.random() < 0.1:
                continue  # the step failed; the next plan has its work again
            self.commit(plan, draw=lambda sequence: self.rng.randint(1, 3))
            self.decoding = [row.sequence for row in plan.rows if row.draws and not row.sequence.finish_reason]
        raise AssertionError("somebody starves")

    def commit(self, plan: StepPlan, draw: Draw = draw_zero) -> None:
        for row in plan.rows:
            end = row.first + row.count + 1
            self.told[row.sequence] += range(end - row.num_logits, end)
        super().commit(plan, draw)

    def come_and_go(self) -> None:
        while self.num_left and self.rng.random() < 0.5:
            self.num_left -= 1
            self.submit_some(self.some_request())
        if self.rng.random() < 0.05:
            self.version += 1  # an adapter is replaced while it is in use
        if self.submitted and self.rng.random() < 0.1:
            self.scheduler.cancel(self.rng.choice(self.submitted))
        self.decoding = [sequence for sequence in self.decoding if not sequence.finish_reason]
        if self.decoding and self.rng.random() < 0.1:
            stopped = self.decoding.pop()
            self._note_finished([self.scheduler.finish(stopped.id, FinishReason.STOP)])

    def some_request(self) -> Request:
        rng = self.rng
        tail = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 12)))
        names = rng.sample(sorted(SIZES), rng.choice((0, 1, 1, 1, 2)))
        mix = Mix(tuple((name, rng.choice((0.5, 1.0))) for name in names))
        prompt = (rng.choice(BEGINNINGS) + tail)[: self.limits.context_tokens - 1]
        is_scored = len(prompt) > 1 and rng.random() < 0.3
        return Request(
            id=str(self.num_left),
            prompt=prompt,
            max_tokens=0 if is_scored and rng.random() < 0.7 else rng.randint(1, 30),
            scoring=Scoring(tokens=rng.randint(1, len(prompt) - 1)) if is_scored else None,
            mix=mix,
            priority=rng.choice((0, 0, 1)),
            deadline_s=self.now_s + rng.uniform(0.1, 30) if rng.random() < 0.3 else None,
        )

    def submit_some(self, request: Request) -> None:
        adapters = [adapter(name, SIZES[name], self.version if name == "a" else 1) for name, _ in request.mix]
        try:
            self.scheduler.submit(request, adapters)
            self.submitted.append(request.id)
        except CapacityError:
            self.num_refused += 1

    def finish_loads(self) -> None:
        for load in self.pending[:1] if self.in_turn else list(self.pending):
            if self.rng.random() < self.pace:
                self.pending.remove(load)
                if load.adapter.name == "broken":
                    self.resident.remove(load.adapter)
                    failed = self.scheduler.load_failed(load.adapter, "broken")
                    assert all(load.adapter in sequence.adapters for sequence in failed)
                    self._note_finished(failed)
                else:
                    self.arena.write_adapter(load)
                    self.scheduler.loaded(load.adapter)

    def check(self, plan: StepPlan) -> None:
        rows = {row.sequence: row for row in plan.rows}
        assert len(rows) == len(plan.rows)
        assert sum(row.count for row in plan.rows) <= self.limits.step_tokens
        assert self.scheduler.num_running <= self.limits.max_sequences
        for sequence, row in rows.items():
            assert row.draws == (row.first + row.count == len(sequence.tokens))
            assert row.first + row.count <= len(sequence.pages) * self.limits.page_tokens
            assert len(set(sequence.pages)) == len(sequence.pages)
            if row.first == 0 and sequence.request.deadline_s is not None and not sequence.num_generated:
                assert sequence.request.deadline_s > self.now_s
        # All that decode do so in each step, which is what admission counts on.
        for sequence in self.decoding:
            assert sequence.finish_reason or rows[sequence].count == 1
        assert plan.rows or self.pending or not self.scheduler.num_waiting
        self.check_memory()

    def check_memory(self) -> None:
        """Pages in use are those of running sequences, of the prefix cache, and of resident adapters."""
        running = list(self.scheduler._running)
        kv_pages = {page for sequence in running for page in sequence.pages}
        kv_pages |= set(self.scheduler._memory.prefix_cache._pages.values())
        assert self.pool.num_used == len(kv_pages) + sum(used.num_pages for used in self.resident)
        assert all(self.pool.pages(used) for used in self.resident)
        in_use = {used for sequence in running for used in sequence.adapters}
        assert in_use <= self.resident - {load.adapter for load in self.pending}
        assert self.pool.num_pinned == sum(used.num_pages for used in in_use | {load.adapter for load in self.pending})


LIMITS = st.fixed_dictionaries(
    {
        "max_sequences": st.integers(1, 6),
        "step_tokens": st.integers(6, 40),
        "lookahead": st.integers(1, 5),
        "turn_every": st.integers(1, 8),
        "newest_first": st.booleans(),
        "cluster_adapters": st.none() | st.integers(1, 3),
    }
)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    num_requests=st.integers(1, 60),
    pace=st.sampled_from([0.05, 0.3, 0.6, 1.0]),
    in_turn=st.booleans(),
    limits=LIMITS,
)
def test_every_request_ends_once_and_no_page_is_lost_or_mistaken(
    seed: int, num_requests: int, pace: float, in_turn: bool, limits: dict[str, Any]
) -> None:
    simulation = Simulation(random.Random(seed), num_requests, pace=pace, in_turn=in_turn, **limits)
    simulation.play()
    assert len(simulation.finished) + simulation.num_refused == num_requests
    assert sorted(simulation.finished) == sorted(simulation.submitted)
    lengths = [s for s in simulation.finished.values() if s.finish_reason == FinishReason.LENGTH]
    assert all(not sequence.num_left for sequence in lengths)
    for sequence in lengths:  # logits came once for each token that was to be scored, and for each that was drawn
        num_prompt, scoring = len(sequence.request.prompt), sequence.request.scoring
        first = num_prompt - (scoring.tokens if scoring else 0)
        assert (
            simulation.told[sequence]
            == [*range(first, num_prompt + sequence.request.max_tokens)][: len(sequence.tokens) - first]
        )
    # A request for the whole pool gets it: whatever is left there is idle.
    while simulation.pending:
        simulation.finish_loads()
    num_tokens = simulation.pool.num_pages * simulation.limits.page_tokens
    whole = simulation.scheduler.submit(Request(id="whole", prompt=(9,) * num_tokens, max_tokens=1))
    simulation.run(num_tokens)
    assert whole.finish_reason == FinishReason.LENGTH
    assert simulation.pool.peak_used == simulation.pool.num_pages
