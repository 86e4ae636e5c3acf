"""Requests that run together answer as each does alone, whatever comes, leaves and is evicted between."""

from __future__ import annotations

import random
import threading
from collections import deque
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from regraft.bypass.attach import attached
from regraft.engine.mix import Mix, to_mix
from regraft.engine.request import FinishReason, Request, SamplingParams, Scoring
from regraft.engine.run.loader import BackgroundLoader, Loader
from regraft.engine.run.loop import Loop, make_arena
from regraft.engine.schedule.limits import Limits
from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.scheduler import Scheduler
from regraft.engine.weights.adapter_packing import plan_packing
from regraft.errors import FormatError
from tests.engine.networks import Twin, factors_of, make_bypasses, make_twin, native_adapter, random_ids

NUM_ADAPTERS = 5


class LateLoader(Loader):
    """Loads when it is asked for results, the first that was begun, and not every time."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random, self._begun = random.Random(seed), deque[Any]()

    def begin(self, adapter: AdapterRef, load: Any) -> None:
        self.num_begun += 1
        self._begun.append((adapter, load))

    def take(self) -> list[Any]:
        if self._begun and self._random.random() < 0.3:
            self._run(*self._begun.popleft())
        return super().take()


class Rig:
    """A loop over a tiny twin, with adapters of unlike ranks."""

    def __init__(self, twin: Twin, num_pages: int = 80, loader: Loader | None = None, **limits: Any) -> None:
        self.twin = twin
        self.page_bytes = -(-twin.native.kv_page_bytes // 64) * 64
        self.pool = Pool(num_pages, self.page_bytes)
        scheduler = Scheduler(self.pool, Limits(context_tokens=200, **limits), fingerprint="tiny")
        arena = make_arena(num_pages, self.page_bytes)
        self.loop = Loop(scheduler, twin.core, twin.native, arena, self.load, loader=loader, float_activations=True)
        self.bypasses = {f"a{i}": make_bypasses(twin.model, seed=i, rank=1 + i) for i in range(NUM_ADAPTERS)}
        self.factors = {name: factors_of(bypasses) for name, bypasses in self.bypasses.items()}
        self.refs = {
            name: AdapterRef(name, f"digest of {name}", self.packing(factors).pages)
            for name, factors in self.factors.items()
        }
        self.loads: list[str] = []

    def load(self, ref: AdapterRef, pages: Any) -> Any:
        self.loads.append(ref.name)
        if ref.name == "broken":
            raise FormatError("adapter broken cannot be read")
        return self.packing(self.factors[ref.name]).fill(pages)

    def packing(self, factors: Any) -> Any:
        return plan_packing(self.twin.layers, factors, page_bytes=self.page_bytes)

    def submit(self, request: Request) -> Any:
        return self.loop.submit(request, [self.refs[name] for name, _ in request.mix])

    def run(self, steps: int = 10_000) -> dict[str, Any]:
        """Until all have ended."""
        finished = {}
        for step in range(steps):
            if self.loop.is_idle:
                return finished
            finished |= {sequence.id: sequence for sequence in self.loop.step(step).finished}
        raise AssertionError("requests are left")


def make_requests(count: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    requests = []
    for number in range(count):
        names = rng.sample([f"a{i}" for i in range(NUM_ADAPTERS)], rng.choice([0, 1, 1, 1, 2]))
        mix = Mix(tuple((name, rng.choice([1.0, 0.5])) for name in names))
        prompt = tuple(random_ids(rng.randint(1, 60), seed=number % 7))  # some share their beginnings
        requests.append(Request(id=f"r{number}", prompt=prompt, max_tokens=rng.randint(1, 12), mix=mix))
    return requests


def answer(sequence: Any) -> list[int]:
    return sequence.tokens[len(sequence.request.prompt) :]


@pytest.fixture(scope="module")
def twin() -> Twin:
    return make_twin(layers=2)


def test_greedy_answers_are_those_of_transformers(twin: Twin) -> None:
    rig = Rig(twin)
    for request in (requests := make_requests(12)):
        rig.submit(request)
    finished = rig.run()
    for request in requests:
        parts = [rig.bypasses[name] for name, _ in request.mix]
        for part, (_, weight) in zip(parts, request.mix, strict=True):
            scale_all(part, weight)
        joined = {slot: [b for part in parts for b in part[slot]] for slot in (parts[0] if parts else {})}
        found = answer(finished[request.id])
        wanted = greedy(twin, list(request.prompt), joined, len(found))
        for part, (_, weight) in zip(parts, request.mix, strict=True):
            scale_all(part, 1 / weight)
        assert found == wanted, request


def scale_all(bypasses: Any, factor: float) -> None:
    for parts in bypasses.values():
        for bypass in parts:
            bypass.scale *= factor


def greedy(twin: Twin, ids: list[int], bypasses: Any, count: int) -> list[int]:
    with attached(twin.model, bypasses):
        for _ in range(count):
            ids = [*ids, int(twin.oracle(ids)[-1].argmax())]
    return ids[-count:]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("num_pages", [45, 60, 200])
def test_together_is_one_by_one(twin: Twin, num_pages: int, late: bool) -> None:
    requests = make_requests(40, seed=1)
    crowd = Rig(twin, num_pages, LateLoader() if late else None, step_tokens=48, max_sequences=8)
    for request in requests:
        crowd.submit(request)
    together = crowd.run()
    assert crowd.pool.peak_used <= num_pages
    for request in requests:
        alone = Rig(twin)
        alone.submit(request)
        assert answer(together[request.id]) == answer(alone.run()[request.id]), request
    if num_pages == 45:
        assert len(crowd.loads) > NUM_ADAPTERS  # some were evicted and came again


def test_together_is_one_by_one_beside_a_thread_that_loads(twin: Twin) -> None:
    requests, notified = make_requests(40, seed=1), threading.Event()
    loader = BackgroundLoader(notified.set)
    crowd = Rig(twin, 45, loader, step_tokens=48, max_sequences=8)
    for request in requests:
        crowd.submit(request)
    together: dict[str, Any] = {}
    while not crowd.loop.is_idle:
        notified.clear()
        if not crowd.loop.has_work:
            assert notified.wait(10)
        together |= {sequence.id: sequence for sequence in crowd.loop.step(0.0).finished}
    crowd.loop.close()
    for request in requests:
        alone = Rig(twin)
        alone.submit(request)
        assert answer(together[request.id]) == answer(alone.run()[request.id]), request
    assert len(crowd.loads) > NUM_ADAPTERS


@pytest.mark.parametrize("late", [False, True])
def test_a_broken_adapter_ends_its_own_requests_only(twin: Twin, late: bool) -> None:
    rig = Rig(twin, loader=LateLoader() if late else None)
    rig.refs["broken"] = AdapterRef("broken", "digest", 1)
    for number, name in enumerate(("a1", "broken", "a2", "broken")):
        rig.submit(Request(id=f"{name} {number}", prompt=(5, 6), max_tokens=3, mix=to_mix(name)))
    for request_id, sequence in rig.run().items():
        broken = request_id.startswith("broken")
        assert sequence.finish_reason == (FinishReason.ERROR if broken else FinishReason.LENGTH)
        assert ("cannot be read" in (sequence.error or "")) == broken


def test_logits_that_are_no_numbers_end_their_request_only(twin: Twin) -> None:
    rig = Rig(twin)
    for slot, added in rig.factors["a0"].items():
        rig.factors["a0"][slot] = [replace(part, up=np.full_like(part.up, np.nan)) for part in added]
    rig.submit(Request(id="bad", prompt=(5, 6, 7), max_tokens=3, mix=to_mix("a0")))
    rig.submit(Request(id="good", prompt=(5, 6, 7), max_tokens=3))
    finished = rig.run()
    assert finished["bad"].finish_reason == FinishReason.ERROR and "not finite" in finished["bad"].error
    assert answer(finished["good"]) == greedy(twin, [5, 6, 7], {}, 3)


def test_scores_that_are_no_numbers_end_their_request_only(twin: Twin) -> None:
    rig = Rig(twin, step_tokens=5, max_sequences=2)
    for slot, added in rig.factors["a0"].items():
        rig.factors["a0"][slot] = [replace(part, up=np.full_like(part.up, np.nan)) for part in added]
    for name, mix in (("bad", to_mix("a0")), ("good", Mix())):
        rig.submit(Request(id=name, prompt=(5, 6, 7, 8, 9), max_tokens=0, mix=mix, scoring=Scoring(tokens=4)))
    finished = rig.run()
    assert finished["bad"].finish_reason == FinishReason.ERROR and "not finite" in finished["bad"].error
    assert finished["good"].finish_reason == FinishReason.LENGTH


def test_a_failure_is_no_stop_whatever_ends_an_answer(twin: Twin) -> None:
    rig = Rig(twin)
    for slot, added in rig.factors["a0"].items():
        rig.factors["a0"][slot] = [replace(part, up=np.full_like(part.up, np.nan)) for part in added]
    every_token = frozenset(range(twin.model.config.vocab_size))
    rig.submit(Request(id="bad", prompt=(5, 6), max_tokens=3, mix=to_mix("a0"), stop_token_ids=every_token))
    assert rig.run()["bad"].finish_reason == FinishReason.ERROR


def test_a_step_that_fails_ends_who_made_it_fail_and_spoils_no_cache(twin: Twin) -> None:
    other = make_twin(hidden=128, layers=2)
    rig = Rig(twin)
    rig.refs["foreign"] = AdapterRef("foreign", "digest", 1)
    load = rig.load

    def load_foreign(ref: AdapterRef, pages: Any) -> Any:
        return native_adapter(other, make_bypasses(other.model, seed=0)) if ref.name == "foreign" else load(ref, pages)

    rig.loop._load_adapter = load_foreign
    prompt = tuple(random_ids(40))
    for number, name in enumerate(("", "a1", "foreign", "a2", "")):
        rig.submit(Request(id=f"{number} {name}", prompt=prompt, max_tokens=5, mix=to_mix(name or None)))
    finished = rig.run()
    assert finished["2 foreign"].finish_reason == FinishReason.ERROR and "wrong shape" in finished["2 foreign"].error
    alone = {}
    for name in ("", "a1", "a2"):
        one = Rig(twin)
        one.submit(Request(id="one", prompt=prompt, max_tokens=5, mix=to_mix(name or None)))
        alone[name] = answer(one.run()["one"])
    assert {id: answer(finished[id]) for id in ("0 ", "1 a1", "3 a2", "4 ")} == {
        "0 ": alone[""], "1 a1": alone["a1"], "3 a2": alone["a2"], "4 ": alone[""],
    }  # fmt: skip
    # What was never computed is in no cache.
    rig.loop._adapters[rig.refs["foreign"]] = native_adapter(twin, rig.bypasses["a1"])
    rig.submit(Request(id="again", prompt=prompt, max_tokens=5, mix=to_mix("foreign")))
    assert answer(rig.run()["again"]) == alone["a1"]


@pytest.mark.parametrize("late", [False, True])
def test_cancels_deadlines_and_churn_leave_nothing_behind(twin: Twin, late: bool) -> None:
    rng = random.Random(3)
    rig = Rig(twin, 45, LateLoader() if late else None, step_tokens=32, max_sequences=6)
    waiting = [
        Request(**{**vars(request), "deadline_s": rng.choice([None, 40.0, 400.0])})
        for request in make_requests(60, seed=2)
    ]
    finished: dict[str, Any] = {}
    for step in range(5000):
        if waiting and rng.random() < 0.5:
            rig.submit(waiting.pop())
        if rng.random() < 0.05 and finished.keys() != (known := {f"r{n}" for n in range(60)}):
            rig.loop.scheduler.cancel(rng.choice(sorted(known - finished.keys())))
        finished |= {sequence.id: sequence for sequence in rig.loop.step(float(step)).finished}
        if not waiting and rig.loop.is_idle and not rig.loop._loader.num_begun:
            break
    assert len(finished) == 60
    assert {s.finish_reason for s in finished.values()} >= {FinishReason.LENGTH, FinishReason.CANCELLED}
    assert rig.pool.num_pinned == 0 and not rig.loop._samplers
    for sequence in finished.values():
        if sequence.finish_reason == FinishReason.LENGTH:
            alone = Rig(twin)
            alone.submit(Request(**{**vars(sequence.request), "deadline_s": None}))
            assert answer(alone.run()[sequence.id]) == answer(sequence)


def test_a_seed_draws_the_same_in_any_company(twin: Twin) -> None:
    request = Request(
        id="drawn", prompt=tuple(random_ids(9)), max_tokens=12, sampling=SamplingParams(temperature=1.0, seed=11)
    )
    alone, crowd = Rig(twin), Rig(twin)
    for rig in (alone, crowd):
        rig.submit(request)
    for other in make_requests(6):
        crowd.submit(other)
    assert answer(alone.run()["drawn"]) == answer(crowd.run()["drawn"])
