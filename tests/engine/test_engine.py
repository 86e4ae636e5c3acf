"""The engine as its callers use it: text in, text out, many at once."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft import Engine
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.engine.request import FinishReason
from regraft.errors import CapacityError, IncompatibleAdapterError, UsageError
from regraft.models.load import load_base

MESSAGES = [{"role": "user", "content": "the quick brown fox"}]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    adapters = {f"lora{number}": folder / f"lora{number}" for number in range(3)}
    with Engine(folder / "base", adapters, memory_bytes=1 << 20, exact=True) as engine:
        yield engine


@torch.no_grad()
def theirs(folder: Path, adapter: str | None, count: int) -> str:
    """The greedy answer of torch, in float16 weights as the engine packs them."""
    base = load_base(folder / "base")
    base.model.half().float()
    ids = base.tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    start = len(ids)
    bypasses = read_adapter(folder / adapter, base).bypasses if adapter else {}
    with attached(base.model, bypasses):
        while len(ids) < start + count and (len(ids) == start or ids[-1] != base.tokenizer.eos_token_id):
            ids.append(int(base.model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(base.tokenizer.decode(ids[start:], skip_special_tokens=True))


@pytest.mark.parametrize("adapter", [None, "lora0", "lora2"])
def test_an_answer_is_that_of_torch(engine: Engine, folder: Path, adapter: str | None) -> None:
    completion = engine.generate(MESSAGES, adapter, max_tokens=16)
    assert completion.text == theirs(folder, adapter, 16)
    assert len(completion.tokens) <= 16


def test_pieces_join_to_the_answer(engine: Engine) -> None:
    pieces = list(engine.stream("the lazy dog", "lora1", max_tokens=12))
    assert "".join(piece.text for piece in pieces) == pieces[-1].completion.text  # type: ignore[union-attr]
    assert all(piece.completion is None for piece in pieces[:-1])


def test_many_callers_get_their_own_answers(engine: Engine) -> None:
    asked: list[tuple[str, Any]] = [
        (f"the quick {n}", [None, "lora0", "lora1", {"lora0": 0.5, "lora2": 0.5}][n % 4]) for n in range(24)
    ]
    alone = [engine.generate(prompt, adapter, max_tokens=8).text for prompt, adapter in asked]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda ask: engine.generate(*ask, max_tokens=8).text, asked))
    assert together == alone
    assert len(set(alone)) > 8


def test_async_callers_do_not_wait_for_each_other(engine: Engine) -> None:
    async def ask() -> list[str]:
        tasks = [engine.agenerate("the quick", name, max_tokens=8) for name in (None, "lora0", "lora1")]
        return [completion.text for completion in await asyncio.gather(*tasks)]

    assert asyncio.run(ask()) == [engine.generate("the quick", n, max_tokens=8).text for n in (None, "lora0", "lora1")]


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    whole = engine.generate("the quick", max_tokens=24).text
    stop = whole[len(whole) // 2 : len(whole) // 2 + 2]
    completion = engine.generate("the quick", max_tokens=24, stop=stop)
    assert completion.text == whole[: whole.index(stop)]
    assert completion.finish_reason is FinishReason.STOP


def test_eight_bits_keep_twice_the_tokens_and_answer(folder: Path) -> None:
    adapters = {"lora0": folder / "lora0"}
    found = []
    for kv_bits in (16, 8):
        with Engine(folder / "base", adapters, memory_bytes=1 << 20, exact=True, kv_bits=kv_bits) as engine:
            found.append((engine.generate("the quick brown", "lora0", max_tokens=1).text, engine.stats().num_pages))
    (text, pages), (text_8, pages_8) = found
    assert text == text_8 and pages_8 > 1.7 * pages
    with pytest.raises(UsageError, match="kv_bits: expected 8 or 16"):
        Engine(folder / "base", kv_bits=4)  # type: ignore[arg-type]


def test_who_stops_listening_frees_the_memory(engine: Engine) -> None:
    for _ in range(3):
        pieces = engine.stream("the quick", "lora0", max_tokens=400)
        next(pieces)
        pieces.close()  # type: ignore[attr-defined]
    engine.generate("the end", max_tokens=2)
    assert engine._loop.is_idle and not engine._answers


def test_a_timeout_is_a_deadline(engine: Engine) -> None:
    assert engine.generate("the quick", max_tokens=400, timeout_s=0.0).finish_reason is FinishReason.DEADLINE


def test_logprobs_come_with_each_token(engine: Engine) -> None:
    completion = engine.generate("the quick", max_tokens=5, logprobs=2)
    assert len(completion.logprobs) == len(completion.tokens)
    assert all(drawn.logprob == drawn.likeliest[0][1] for drawn in completion.logprobs)  # greedy


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        (("hello", "nobody"), {}, "there is no adapter 'nobody'"),
        (("hello",), {"temprature": 1.0}, "option temprature"),
        (("hello",), {"temperature": -1.0}, "temperature"),
        (("hello",), {"max_tokens": 0}, "max_tokens"),
        (("",), {}, "at least one token"),
        (("the " * 2000,), {}, "context"),
        (([],), {}, "message"),
    ],
)
def test_bad_requests_are_refused_at_once(engine: Engine, arguments: Any, options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        engine.stream(*arguments, **options)


def test_an_adapter_of_another_base_is_refused(engine: Engine, folder: Path) -> None:
    with pytest.raises(IncompatibleAdapterError):
        engine.add_adapter("foreign", folder / "foreign")
    assert "foreign" not in engine.adapters


def test_what_can_never_fit_is_refused_with_the_arithmetic(folder: Path) -> None:
    with Engine(folder / "base", {"lora0": folder / "lora0"}, memory_bytes=1 << 15) as small:
        with pytest.raises(CapacityError, match="pages"):
            small.stream("hello", "lora0")
        assert small.generate("hello", max_tokens=2).tokens


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = Engine(folder / "base", memory_bytes=1 << 20)
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.generate("hello")


def test_no_torch_is_needed(folder: Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "peft"]))
from regraft import Engine
with Engine({str(folder / "base")!r}, {{"lora0": {str(folder / "lora0")!r}}}, memory_bytes=1 << 20) as engine:
    print(len(engine.generate("the quick", "lora0", max_tokens=3).tokens))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
