"""Requests, adapters and schedulers for the tests, and an arena that notices a wrong page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from zlib import crc32

from regraft.engine.mix import Mix, to_mix
from regraft.engine.request import Request
from regraft.engine.schedule.limits import Limits
from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.scheduler import Scheduler
from regraft.engine.schedule.sequence import Sequence
from regraft.engine.schedule.step_plan import Load, Row, StepPlan

Draw = Callable[[Sequence], int]


def adapter(name: str, num_pages: int = 2, version: int = 1) -> AdapterRef:
    return AdapterRef(name, f"{name}-v{version}", num_pages)


Given = str | tuple[tuple[str, float], ...]


def request(id: str, prompt: int | Iterable[int] = 4, max_tokens: int = 4, mix: Given = (), **rest: Any) -> Request:
    """``prompt`` as a number stands for that many tokens that no other request has; ``mix`` as text for one adapter."""
    tokens = [crc32(id.encode()) % 2**31] * prompt if isinstance(prompt, int) else prompt
    wanted = to_mix(mix) if isinstance(mix, str) else Mix(mix)
    return Request(id=id, prompt=tuple(tokens), max_tokens=max_tokens, mix=wanted, **rest)


def waiting_sequence(id: str, mix: Given = (), **rest: Any) -> Sequence:
    made = request(id, mix=mix, **rest)
    return Sequence(made, made.mix.bound(adapter), max_tokens=made.max_tokens, root_digest=b"")


def draw_zero(sequence: Sequence) -> int:
    return 0


class Driver:
    """A scheduler with its pool, and what the engine around it does; loads are over at once."""

    def __init__(self, num_pages: int = 100, *, context_tokens: int = 1000, page_tokens: int = 4, **rest: Any) -> None:
        weights = rest.pop("weights", None)
        self.limits = Limits(context_tokens=context_tokens, page_tokens=page_tokens, **rest)
        self.pool = Pool(num_pages, 64)
        self.scheduler = Scheduler(self.pool, self.limits, fingerprint="base", weights=weights)
        self.arena = Arena(page_tokens)
        self.admitted: list[str] = []  # request ids in the order of admission
        self.finished: dict[str, Sequence] = {}
        self.now_s = 0.0

    def submit(self, made: Request, *, num_pages: int = 2, version: int = 1) -> Sequence:
        return self.scheduler.submit(made, [adapter(name, num_pages, version) for name, _ in made.mix])

    def plan(self) -> StepPlan:
        plan = self.scheduler.plan(self.now_s)
        self._note_finished(plan.finished)
        self.admitted += [row.sequence.id for row in plan.rows if row.sequence.id not in self.admitted]
        for evicted in plan.evicted:
            self.evict(evicted)
        for load in (*plan.loads, *plan.prefetches):
            self.load(load)
        return plan

    def evict(self, evicted: AdapterRef) -> None:
        self.arena.forget_adapter(evicted)

    def load(self, load: Load) -> None:
        self.arena.write_adapter(load)
        self.scheduler.loaded(load.adapter)

    def commit(self, plan: StepPlan, draw: Draw = draw_zero) -> None:
        for row in plan.rows:
            self.arena.compute(row)
        tokens = {row.sequence.id: draw(row.sequence) for row in plan.rows if row.draws}
        self._note_finished(self.scheduler.commit(plan, tokens))

    def step(self, draw: Draw = draw_zero) -> StepPlan:
        plan = self.plan()
        self.commit(plan, draw)
        return plan

    def run(self, num_steps: int = 10_000) -> None:
        """Step until nothing waits or runs, or so often."""
        while num_steps and (self.scheduler.num_waiting or self.scheduler.num_running):
            self.step()
            num_steps -= 1

    def _note_finished(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            assert sequence.finish_reason is not None
            assert sequence.id not in self.finished
            self.finished[sequence.id] = sequence


class Arena:
    """What is written in each page, and checks that it is still there whenever it is read."""

    def __init__(self, page_tokens: int) -> None:
        self._page_tokens = page_tokens
        self._keys: dict[tuple[int, int], object] = {}  # by page and place in it: all that the key there depends on
        self._adapters: dict[int, object] = {}
        self._loaded: dict[AdapterRef, tuple[int, ...]] = {}

    def write_adapter(self, load: Load) -> None:
        self._loaded[load.adapter] = load.pages
        for number, page in enumerate(load.pages):
            self._adapters[page] = (load.adapter, number)
            for place in range(self._page_tokens):
                self._keys.pop((page, place), None)

    def forget_adapter(self, evicted: AdapterRef) -> None:
        del self._loaded[evicted]

    def compute(self, row: Row) -> None:
        """Read the row's adapters and all earlier keys, write the new ones."""
        sequence = row.sequence
        for used in sequence.adapters:
            assert [self._adapters[page] for page in self._loaded[used]] == [(used, i) for i in range(used.num_pages)]
        weights = tuple(weight for _, weight in sequence.request.mix)
        key: object = ("base", tuple(used.digest for used in sequence.adapters), weights)
        for position in range(row.first + row.count):
            page, place = sequence.pages[position // self._page_tokens], position % self._page_tokens
            key = hash((key, sequence.tokens[position]))
            if position < row.first:
                assert self._keys[page, place] == key, f"{sequence.id} reads a stranger's key at {position}"
            else:
                self._adapters.pop(page, None)
                self._keys[page, place] = key
