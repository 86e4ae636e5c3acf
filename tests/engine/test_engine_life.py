"""Callers that leave, adapters that come and go, an engine that is closed: each touches only its own."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from regraft import Completion, Engine
from regraft.engine.engine import GLANCE_S
from regraft.engine.request import FinishReason
from regraft.errors import FormatError, RequestError, UsageError

LONG: dict[str, Any] = {"max_tokens": 400, "stop_token_ids": ()}
SHORT: dict[str, Any] = {"max_tokens": 6, "stop_token_ids": ()}


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    adapters = {f"lora{number}": folder / f"lora{number}" for number in range(3)}
    with Engine(folder / "base", adapters, memory_bytes=1 << 20, exact=True) as engine:
        yield engine


def is_idle(engine: Engine) -> bool:
    """Whether nothing is left, once what was cancelled before has been noticed."""
    engine.generate("a", max_tokens=1)
    return engine._loop.is_idle


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def threads_return_to(count: int) -> bool:
    """A thread that was joined is gone a moment later."""
    return any(num_threads() <= count or time.sleep(0.01) for _ in range(500))


def scaled(adapter: Path, to: Path, alpha: int) -> Path:
    """A copy with another scale; the weights file is the same."""
    shutil.copytree(adapter, to, dirs_exist_ok=True)
    config = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))
    return to


# Callers


def test_a_stream_that_nobody_reads_is_cancelled(engine: Engine) -> None:
    engine.stream("the quick", **LONG)  # let go of at once
    gc.collect()
    assert is_idle(engine)


def test_a_stream_that_somebody_stops_reading_is_cancelled(engine: Engine) -> None:
    for piece in engine.stream("the quick", "lora0", **LONG):
        assert piece.text
        break
    assert is_idle(engine)


def test_a_closed_stream_is_over(engine: Engine) -> None:
    with engine.stream("the quick", **LONG) as pieces:
        next(pieces)
    assert list(pieces) == []
    assert is_idle(engine)


def test_a_cancelled_request_keeps_what_it_has(engine: Engine) -> None:
    pieces = engine.stream("the quick", **LONG)
    next(pieces)
    engine.cancel("request 0")
    *_, last = pieces
    assert last.completion is not None and last.completion.finish_reason is FinishReason.CANCELLED
    assert 0 < len(last.completion.tokens) < 400


def test_submitting_does_not_wait_for_what_runs(engine: Engine) -> None:
    longest = engine.stream("the lazy dog", **LONG)
    next(longest)
    others = [engine.stream(f"the {n}", "lora1", **SHORT) for n in range(30)]
    assert engine._loop.scheduler.num_running + engine._loop.scheduler.num_waiting > 0  # it still runs
    assert all(list(other)[-1].completion for other in others)
    *_, last = longest
    assert last.completion is not None and len(last.completion.tokens) == 400


def test_a_deadline_shorter_than_a_step(engine: Engine) -> None:
    late = [engine.generate("the quick", timeout_s=timeout_s, **SHORT) for timeout_s in (-1.0, 0.0, 1e-9)]
    assert [(answer.finish_reason, answer.tokens) for answer in late] == [(FinishReason.DEADLINE, ())] * 3
    assert engine.generate("the quick", timeout_s=100.0, **SHORT).finish_reason is FinishReason.LENGTH


def test_ten_thousand_requests_wait_their_turn(engine: Engine) -> None:
    alone = [engine.generate(f"the {n}", **SHORT).tokens[:1] for n in range(5)]
    streams = [engine.stream(f"the {n % 5}", max_tokens=1, stop_token_ids=()) for n in range(10_000)]
    for number, pieces in enumerate(streams):
        *_, last = pieces
        assert last.completion is not None and last.completion.tokens == alone[number % 5]


# Event loops


def test_waiting_streams_take_no_threads(engine: Engine) -> None:
    async def ask() -> list[Completion]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        with engine._wake:  # so no step begins
            asked = [asyncio.create_task(engine.agenerate(f"the {n}", **SHORT)) for n in range(64)]
            await asyncio.sleep(0)
            assert await asyncio.to_thread(lambda: 42) == 42
            assert not any(task.done() for task in asked)
        return await asyncio.gather(*asked)

    answers = asyncio.run(ask())
    assert [answer.text for answer in answers] == [engine.generate(f"the {n}", **SHORT).text for n in range(64)]


def test_a_cancelled_task_cancels_its_request(engine: Engine) -> None:
    async def ask() -> None:
        begun = asyncio.Event()

        async def listen() -> None:
            async for _ in engine.astream("the quick", **LONG):
                begun.set()

        task = asyncio.create_task(listen())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    assert is_idle(engine)


def test_a_loop_that_was_closed_harms_nobody(engine: Engine) -> None:
    loop = asyncio.new_event_loop()
    pieces = engine.astream("the quick", **LONG)
    loop.run_until_complete(anext(pieces))
    loop.close()
    assert engine.generate("the quick", **SHORT).tokens


def test_errors_reach_async_callers(engine: Engine) -> None:
    with pytest.raises(UsageError, match="there is no adapter"):
        asyncio.run(engine.agenerate("the quick", "nobody"))


# Adapters


def test_a_removed_adapter_stays_with_those_that_use_it(engine: Engine) -> None:
    wanted = engine.generate("the quick", "lora2", **SHORT).tokens
    under_way = [engine.stream("the quick", "lora2", **SHORT) for _ in range(5)]
    engine.remove_adapter("lora2")
    assert "lora2" not in engine.adapters
    for pieces in under_way:
        *_, last = pieces
        assert last.completion is not None and last.completion.tokens == wanted
    for call in (lambda: engine.remove_adapter("lora2"), lambda: engine.generate("the quick", "lora2")):
        with pytest.raises(UsageError, match="there is no adapter 'lora2'"):
            call()


def test_a_replaced_adapter_stays_with_those_that_asked_before(engine: Engine, folder: Path) -> None:
    old, new = (engine.generate("the quick", name, **SHORT).tokens for name in ("lora0", "lora1"))
    assert old != new
    before = [engine.stream("the quick", "lora0", **SHORT) for _ in range(5)]
    engine.add_adapter("lora0", folder / "lora1")
    for pieces in before:
        *_, last = pieces
        assert last.completion is not None and last.completion.tokens == old
    assert engine.generate("the quick", "lora0", **SHORT).tokens == new


def test_another_scale_is_another_version(engine: Engine, folder: Path, tmp_path: Path) -> None:
    prompt = "the quick brown fox jumps over the lazy dog " * 4  # whole pages, which the prefix cache keeps
    answers = []
    for name, alpha in (("changing", 16), ("changing", 0), ("changing", -30)):
        if alpha:
            engine.add_adapter(name, scaled(folder / "lora2", tmp_path / str(alpha), alpha))
        answers.append(engine.generate(prompt, name, **SHORT).tokens)
    assert answers[0] == answers[1] != answers[2]
    with Engine(folder / "base", {"alone": tmp_path / "-30"}, memory_bytes=1 << 20, exact=True) as fresh:
        assert answers[2] == fresh.generate(prompt, "alone", **SHORT).tokens


def test_an_adapter_that_changed_on_disk_is_not_taken_for_the_old_one(folder: Path, tmp_path: Path) -> None:
    path = scaled(folder / "lora2", tmp_path / "changing", 16)
    others = {name: folder / name for name in ("lora0", "lora1")}
    with Engine(folder / "base", {"changing": path, **others}, memory_bytes=1 << 20, exact=True) as engine:
        before = engine.generate("the quick", "changing", **SHORT).tokens
        scaled(folder / "lora2", path, -30)
        assert engine.generate("the quick", "changing", **SHORT).tokens == before  # it is in memory
        engine._loop.scheduler._memory.make_room(engine._loop.scheduler._pool.num_pages)
        with pytest.raises(RequestError, match=r"is no longer what it was when adapter changing was added\. Add it"):
            engine.generate("the quick", "changing", **SHORT)
        engine.add_adapter("changing", path)
        assert engine.generate("the quick", "changing", **SHORT).tokens != before


def test_files_of_the_same_size_and_time_are_told_apart(folder: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(folder / "lora2", tmp_path / "changing"))
    file = path / "adapter_model.safetensors"
    was, held = file.stat(), file.read_bytes()
    with Engine(folder / "base", {"changing": path, "lora0": folder / "lora0"}, memory_bytes=1 << 20) as engine:
        file.touch()  # written again, with what it held
        assert engine.generate("the quick", "changing", **SHORT).tokens
        engine._loop.scheduler._memory.make_room(engine._loop.scheduler._pool.num_pages)
        file.write_bytes(held[:-1] + bytes([held[-1] ^ 0x80]))  # the last number's sign
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        with pytest.raises(RequestError, match="is no longer what it was"):
            engine.generate("the quick", "changing", **SHORT)


def test_an_adapter_whose_files_have_gone_fails_its_own_requests(folder: Path, tmp_path: Path) -> None:
    path = scaled(folder / "lora2", tmp_path / "going", 16)
    with Engine(folder / "base", {"going": path, "lora0": folder / "lora0"}, memory_bytes=1 << 20) as engine:
        shutil.rmtree(path)
        with pytest.raises(RequestError, match="going"):
            engine.generate("the quick", "going", **SHORT)
        assert engine.generate("the quick", "lora0", **SHORT).tokens


def test_known_adapters_take_no_memory(folder: Path, tmp_path: Path) -> None:
    with Engine(folder / "base", memory_bytes=1 << 20, exact=True) as engine:
        for number in range(20):
            engine.add_adapter(f"a{number}", folder / f"lora{number % 3}")
        arrays = [array for array in gc.get_objects() if type(array).__name__ == "StoredAdapter"]
        assert len(arrays) <= 1


# Adapters on their way


class Held:
    """Lets an engine load one adapter only when it is let go."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self._load, self._name = engine._load_adapter, name
        engine._loop._load_adapter = self

    def __call__(self, ref: Any, pages: Any) -> Any:
        if ref.name == self._name:
            self.begun.set()
            assert self.let_go.wait(20)
        return self._load(ref, pages)


def test_an_adapter_on_its_way_holds_up_nobody_else(engine: Engine) -> None:
    wanted = engine.generate("the quick", "lora1", **SHORT).tokens
    held = Held(engine, "lora0")
    late = engine.stream("the quick", "lora0", **SHORT)
    assert held.begun.wait(10)
    assert engine.generate("the quick", "lora1", **SHORT).tokens == wanted
    assert len(engine.generate("the quick", **LONG).tokens) == 400
    assert engine.stats().num_waiting == 1
    held.let_go.set()
    *_, last = late
    assert last.completion is not None and len(last.completion.tokens) == 6


def test_an_engine_that_waits_for_an_adapter_only_glances(engine: Engine) -> None:
    held, times, many, step = Held(engine, "lora0"), list[float](), threading.Event(), engine._loop.step

    def noted(now_s: float) -> Any:
        times.append(time.monotonic())
        if len(times) == 6:
            many.set()
        return step(now_s)

    engine._loop.step = noted  # type: ignore[method-assign]
    late = engine.stream("the quick", "lora0", **SHORT)
    assert held.begun.wait(10) and many.wait(10)
    held.let_go.set()
    assert list(late)
    assert times[5] - times[1] >= 4 * GLANCE_S


def test_a_request_whose_adapter_is_on_its_way_can_be_cancelled_or_come_due(engine: Engine) -> None:
    held = Held(engine, "lora0")
    cancelled = engine.stream("the quick", "lora0", **SHORT)
    late = engine.stream("the quick", "lora0", timeout_s=0.6, **SHORT)
    assert held.begun.wait(10)
    engine.cancel("request 0")
    for pieces, reason in ((cancelled, FinishReason.CANCELLED), (late, FinishReason.DEADLINE)):
        *_, last = pieces
        assert last.completion is not None and last.completion.finish_reason is reason
    held.let_go.set()
    assert engine.generate("the quick", "lora0", **SHORT).tokens


def test_closing_waits_for_an_adapter_on_its_way(engine: Engine) -> None:
    held = Held(engine, "lora0")
    pieces = engine.stream("the quick", "lora0", **SHORT)
    assert held.begun.wait(10)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(RequestError, match="the engine was closed"):
        list(pieces)
    assert closing.is_alive()
    held.let_go.set()
    closing.join(10)
    assert not closing.is_alive()


# The end


def test_closing_ends_what_is_under_way_and_gives_all_back(folder: Path) -> None:
    before, errors = num_threads(), []
    engine = Engine(folder / "base", memory_bytes=1 << 20, threads=3)

    def ask(number: int) -> None:
        with pytest.raises(RequestError, match="the engine was closed") as caught:
            for _ in engine.stream(f"the {number}", max_tokens=480, stop_token_ids=()):
                begun.set()
        errors.append(str(caught.value))

    begun, callers = threading.Event(), [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for caller in callers:
        caller.start()
    begun.wait()
    for _ in range(2):  # once more does nothing
        engine.close()
    for caller in callers:
        caller.join()
    assert len(errors) == 8
    assert threads_return_to(before)
    with pytest.raises(UsageError, match="the engine is closed"):
        engine.stream("the quick")


def test_an_engine_that_cannot_begin_leaves_no_threads(folder: Path) -> None:
    before = num_threads()
    with pytest.raises(FormatError):
        Engine(folder / "base", {"a": make_empty(folder)}, memory_bytes=1 << 20, threads=3)
    gc.collect()
    assert threads_return_to(before)


def make_empty(folder: Path) -> Path:
    (folder / "empty").mkdir(exist_ok=True)
    return folder / "empty"
