"""Adapters are loaded one after the other; what goes wrong with one is its result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from regraft.engine.run.loader import BackgroundLoader, Loader
from regraft.errors import FormatError
from tests.engine.made import adapter

A, B, C = (adapter(name) for name in "abc")


def giving(value: str) -> Any:
    return lambda: value


def failing() -> Any:
    raise FormatError("it is broken")


class Gate:
    """A load that says when it begins, and ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> Any:
        self.begun.set()
        assert self.may_end.wait(10)
        return "late"


class Results:
    """Waits for a loader's results."""

    def __init__(self) -> None:
        self.semaphore = threading.Semaphore(0)
        self.loader = BackgroundLoader(self.semaphore.release)

    def take(self, count: int) -> list[Any]:
        assert all(self.semaphore.acquire(timeout=10) for _ in range(count))
        return self.loader.take()


@pytest.mark.parametrize("make", [Loader, lambda: Results().loader])
def test_a_loader_that_was_given_nothing_has_nothing(make: Callable[[], Loader]) -> None:
    loader = make()
    assert not loader.has_results and loader.take() == [] and loader.num_begun == 0
    loader.close()


def test_a_plain_loader_loads_at_once() -> None:
    loader = Loader()
    loader.begin(A, giving("a"))
    loader.begin(B, failing)
    assert loader.has_results and loader.num_begun == 2
    (first, loaded), (second, error) = loader.take()
    assert (first, loaded, second, str(error)) == (A, "a", B, "it is broken")
    assert not loader.has_results and loader.num_begun == 0


def test_a_thread_loads_in_order_and_survives_failures() -> None:
    results = Results()
    for ref, load in ((A, giving("a")), (B, failing), (C, giving("c"))):
        results.loader.begin(ref, load)
    found = results.take(3)
    assert [ref for ref, _ in found] == [A, B, C]
    assert [str(result) for _, result in found] == ["a", "it is broken", "c"]
    results.loader.close()


def test_whoever_begins_a_load_does_not_wait_for_it() -> None:
    results, gate = Results(), Gate()
    results.loader.begin(A, gate)
    assert gate.begun.wait(10)
    assert not results.loader.has_results and results.loader.take() == [] and results.loader.num_begun == 1
    gate.may_end.set()
    assert results.take(1) == [(A, "late")]
    results.loader.close()


def test_closing_waits_for_the_load_under_way_and_drops_the_others() -> None:
    results, gate, ran = Results(), Gate(), []
    results.loader.begin(A, gate)
    results.loader.begin(B, lambda: ran.append("b"))
    assert gate.begun.wait(10)
    closing = threading.Thread(target=results.loader.close)
    closing.start()
    assert closing.is_alive()
    gate.may_end.set()
    closing.join(10)
    assert not closing.is_alive() and results.loader.take() == [(A, "late")] and ran == []
