"""Weights are moved to huge pages while the engine answers, and nobody notices."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from regraft import Engine
from regraft.engine.weights import huge_pages
from regraft.engine.weights import open_base as opened
from regraft.progress import silent

GREEDY: dict[str, Any] = {"max_tokens": 40, "stop_token_ids": (), "logprobs": 1}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="huge pages are for Linux")


def has_moved(engine: Engine, before: object) -> bool:
    return any(engine.base.model is not before or time.sleep(0.01) for _ in range(1000))


def maps_the_file(engine: Engine) -> bool:
    return str(engine.base.packed) in Path("/proc/self/maps").read_text()


def test_answers_stay_the_same(folder: Path, tmp_path: Path) -> None:
    adapters = {"lora": folder / "lora0"}
    base = shutil.copytree(folder / "base", tmp_path / "base")  # which no other engine has mapped
    with Engine(base, adapters, memory_bytes=1 << 20, huge_pages=False) as engine:
        wanted = [engine.generate("a prompt", name, **GREEDY) for name in (None, "lora")]
        assert maps_the_file(engine)
    with Engine(base, adapters, memory_bytes=1 << 20, huge_pages=True) as engine:
        assert [engine.generate("a prompt", name, **GREEDY) for name in (None, "lora")] == wanted
        assert any(not maps_the_file(engine) or time.sleep(0.01) for _ in range(1000)), "the mapped file is still held"
        assert [engine.generate("a prompt", name, **GREEDY) for name in (None, "lora")] == wanted


def test_weights_move_while_answers_are_under_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Engine] = []

    def read(path: Path, goes_on: Callable[[], bool]) -> NDArray[np.uint8] | None:
        while not begun:
            time.sleep(0.001)
        return huge_pages.read_into_memory(path, goes_on)

    with Engine(folder / "base", memory_bytes=1 << 20, huge_pages=False) as engine:
        wanted = engine.generate("a", **(GREEDY | {"max_tokens": 400}))
    monkeypatch.setattr(opened, "read_into_memory", read)
    with Engine(folder / "base", memory_bytes=1 << 20, huge_pages=True) as engine:
        mapped = engine.base.model
        pieces = iter(engine.stream("a", **(GREEDY | {"max_tokens": 400})))
        next(pieces)
        assert engine.base.model is mapped
        begun.append(engine)
        assert has_moved(engine, mapped)
        assert list(pieces)[-1].completion == wanted


class Notes:
    """A progress that keeps what it is told."""

    track = silent.track

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize("failure", [OSError("no memory"), MemoryError()])
def test_where_there_are_none_the_file_stays_mapped_and_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    notes = Notes()

    def fail(*_: Any) -> None:
        raise failure

    monkeypatch.setattr(opened, "read_into_memory", fail)
    with Engine(folder / "base", memory_bytes=1 << 20, huge_pages=True, progress=notes) as engine:
        assert engine.generate("a", max_tokens=2).tokens and maps_the_file(engine)
    assert notes.said[-1] == f"the weights stay in the mapped file, which is slower: {str(failure) or 'MemoryError'}"


def test_a_closed_engine_does_not_read_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_CHUNK", 64)
    engine = Engine(folder / "base", memory_bytes=1 << 20, huge_pages=True)
    start = time.monotonic()
    engine.close()
    assert time.monotonic() - start < 10
    assert huge_pages.read_into_memory(engine.base.packed, lambda: False) is None


@pytest.mark.parametrize(
    ("state", "num_bytes", "worth_it"),
    [
        ("always [madvise] never", 1000, True),
        ("[always] madvise never", 1000, True),
        ("always madvise [never]", 1000, False),
        ("always [madvise] never", 2049 * 1024, False),
    ],
)
def test_they_are_taken_where_there_are_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, num_bytes: int, worth_it: bool
) -> None:
    for name, text in (("_OFFERED", state), ("_SYSTEM", "MemTotal: 9999 kB\nMemAvailable:   4096 kB\n")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(huge_pages, name, tmp_path / name)
    group = tmp_path / "memory.max"
    monkeypatch.setattr(huge_pages, "_GROUP", group)
    assert huge_pages.are_worth_it(num_bytes) is worth_it
    group.write_text("max\n")
    assert huge_pages.are_worth_it(num_bytes) is worth_it
    group.write_text("1500\n")
    (tmp_path / "memory.current").write_text("500\n")
    assert not huge_pages.are_worth_it(501), "its control group has less"


def test_no_answer_of_the_system_means_no(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_OFFERED", tmp_path / "none")
    assert not huge_pages.are_worth_it(1)
