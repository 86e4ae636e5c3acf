"""Log-likelihoods are those of torch, and each is the same to the bit whoever runs beside it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft import Engine
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.engine.request import FinishReason, Scoring
from regraft.engine.run.batch import logits_of
from regraft.engine.schedule.limits import Limits
from regraft.errors import RequestError, UsageError
from regraft.models.load import load_base
from tests.engine.networks import make_twin, random_ids
from tests.tiny import FAMILIES, make_base

CONTEXT = 128
Ask = tuple[list[int], list[list[int]], Any]  # prompt, continuations, adapter


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with make_engine(folder) as engine:
        yield engine


def make_engine(folder: Path, *, exact: bool = True, memory_bytes: int = 1 << 20, **limits: Any) -> Engine:
    adapters = {f"lora{number}": folder / f"lora{number}" for number in range(3)}
    chosen = Limits(context_tokens=CONTEXT, **limits)
    return Engine(folder / "base", adapters, memory_bytes=memory_bytes, exact=exact, limits=chosen)


@torch.no_grad()
def theirs(base: Path, ids: list[int], adapter: Path | None = None) -> torch.Tensor:
    """Log probabilities by torch after each token, ``[tokens, vocabulary]``, in float16 weights as the engine's."""
    loaded = load_base(base)
    with attached(loaded.model, read_adapter(adapter, loaded).bypasses if adapter else {}):
        return loaded.model.half().float()(torch.tensor([ids])).logits[0].log_softmax(-1)


def some_asks(count: int) -> list[Ask]:
    """Questions of many lengths, some of which begin alike, with one to four continuations each."""
    rng = random.Random(0)
    adapters: list[Any] = [None, "lora0", "lora1", {"lora0": 0.5, "lora2": 0.5}]
    asks: list[Ask] = []
    for number in range(count):
        parts = [random_ids(rng.randint(1, 20), seed=rng.randint(0, 99)) for _ in range(rng.randint(1, 4))]
        asks.append((random_ids(rng.randint(1, 90), seed=number % 5), parts, adapters[number % 4]))
    return asks


@pytest.mark.parametrize("family", FAMILIES)
def test_the_log_probabilities_are_those_of_torch(tmp_path: Path, family: str) -> None:
    base, prompt, parts = make_base(tmp_path, family), random_ids(40), [random_ids(n, seed=n) for n in (1, 5, 20)]
    with Engine(base, memory_bytes=1 << 20, exact=True, huge_pages=False) as engine:
        found = engine.log_likelihood(prompt, parts, likeliest=3)
    for part, likelihood in zip(parts, found, strict=True):
        wanted = theirs(base, prompt + part)[len(prompt) - 1 : -1]
        values = wanted[range(len(part)), part]
        assert [token.token for token in likelihood.tokens] == part
        assert [token.logprob for token in likelihood.tokens] == pytest.approx(values.tolist(), abs=5e-3)
        assert likelihood.total == pytest.approx(float(values.sum()), abs=2e-2)
        top = wanted.topk(3)
        for token, ids, logprobs in zip(likelihood.tokens, top.indices.tolist(), top.values.tolist(), strict=True):
            assert [each for _, each in token.likeliest] == pytest.approx(logprobs, abs=5e-3)
            assert token.likeliest[0][0] == ids[0] or logprobs[0] - logprobs[1] < 5e-3


@pytest.mark.parametrize("adapter", ["lora0", "lora2"])
def test_an_adapter_acts_on_the_likelihood(engine: Engine, folder: Path, adapter: str) -> None:
    prompt, part = random_ids(30), random_ids(6, seed=1)
    (found,), (plain,) = engine.log_likelihood(prompt, [part], adapter), engine.log_likelihood(prompt, [part])
    wanted = theirs(folder / "base", prompt + part, folder / adapter)[len(prompt) - 1 : -1][range(6), part]
    logprobs = [token.logprob for token in found.tokens]
    assert logprobs == pytest.approx(wanted.tolist(), abs=0.1)  # of random factors, which enlarge what halves round off
    assert logprobs != pytest.approx([token.logprob for token in plain.tokens], abs=0.5)


@pytest.mark.parametrize("exact", [True, False])
def test_together_is_alone_to_the_bit(folder: Path, exact: bool) -> None:
    asks = some_asks(24)
    with make_engine(folder, exact=exact) as alone:
        wanted = [alone.log_likelihood(*ask) for ask in asks]
    with (
        make_engine(folder, exact=exact, memory_bytes=1 << 18, step_tokens=23, max_sequences=7) as crowd,
        ThreadPoolExecutor(12) as threads,
    ):
        assert list(threads.map(lambda ask: crowd.log_likelihood(*ask), asks)) == wanted
        assert crowd._loop.is_idle and not crowd._answers
    assert len({likelihood.total for found in wanted for likelihood in found}) > 40


@pytest.mark.parametrize("step_tokens", [1, 15, 16, 17, 31])
def test_nothing_depends_on_where_a_prompt_is_cut(engine: Engine, folder: Path, step_tokens: int) -> None:
    ask = random_ids(35), [random_ids(30, seed=1), random_ids(1, seed=2)]
    with make_engine(folder, step_tokens=step_tokens, max_sequences=1) as chunked:
        assert chunked.log_likelihood(*ask) == engine.log_likelihood(*ask)


def test_what_the_prefix_cache_has_changes_nothing(folder: Path) -> None:
    prompt, part = random_ids(64, seed=7), random_ids(20, seed=8)
    with make_engine(folder) as fresh:
        first = fresh.log_likelihood(prompt, [part])
        assert fresh.log_likelihood(prompt, [part]) == first
        assert fresh.generate(prompt + part, max_tokens=1).tokens  # leaves all of it in the cache
        assert fresh.log_likelihood(prompt, [part]) == first
        assert fresh.log_likelihood(prompt[:1], [prompt[1:] + part])[0].tokens[63:] == first[0].tokens


def test_greedy_is_what_greedy_decoding_says(engine: Engine) -> None:
    said = list(engine.generate(random_ids(9), max_tokens=5, stop_token_ids=[]).tokens)
    other = [*said[:-1], said[-1] % 300 + 1]
    found = engine.log_likelihood(random_ids(9), [said, other])
    assert [likelihood.is_greedy for likelihood in found] == [True, False]
    assert found[0].total > found[1].total


def test_a_prompt_is_scored_and_continued_in_one_request(engine: Engine) -> None:
    prompt = random_ids(40)
    plain = engine.generate(prompt, max_tokens=6, logprobs=2)
    both = engine.generate(prompt, max_tokens=6, logprobs=2, scoring=Scoring(tokens=39))
    assert (both.tokens, both.text, both.logprobs) == (plain.tokens, plain.text, plain.logprobs)
    assert both.num_prompt_tokens == 40 and plain.scored == ()
    assert both.scored == engine.log_likelihood(prompt[:1], [prompt[1:]])[0].tokens


def test_what_ends_an_answer_ends_no_scoring(engine: Engine) -> None:
    eos = engine.base.tokenizer.eos_ids[0]
    prompt = [5, eos, 6, eos]
    completion = engine.generate(prompt, max_tokens=0, stop="e", scoring=Scoring(tokens=3))
    assert [drawn.token for drawn in completion.scored] == prompt[1:]
    assert (completion.finish_reason, completion.tokens, completion.text) == (FinishReason.LENGTH, (), "")


def test_a_scored_prompt_may_fill_the_context(engine: Engine) -> None:
    whole = random_ids(CONTEXT)
    (found,) = engine.log_likelihood(whole[:1], [whole[1:]])
    assert len(found.tokens) == CONTEXT - 1
    with pytest.raises(UsageError, match=f"no more tokens than the context's {CONTEXT}, found {CONTEXT + 1}"):
        engine.log_likelihood(whole, [[5]])


def test_who_waits_no_longer_frees_the_memory(engine: Engine) -> None:
    with pytest.raises(RequestError, match="ended before its tokens were scored: deadline"):
        engine.log_likelihood(random_ids(50), [[5], [6]], "lora0", timeout_s=0.0)
    engine.stream(random_ids(90), max_tokens=0, scoring=Scoring(tokens=80)).close()
    engine.generate("the end", max_tokens=2)
    assert engine._loop.is_idle and not engine._answers


@pytest.mark.parametrize(
    ("prompt", "continuations", "options", "says"),
    [
        ([5, 6], [[]], {}, "a continuation: expected a text or token ids, found []"),
        ("the quick", [""], {}, "a continuation: expected a text or token ids, found ''"),
        ("the quick", [None], {}, "a continuation: expected a text or token ids, found None"),
        ("the quick", "brown", {}, "continuations: expected a list of texts"),
        ([5, 6], [[400]], {}, "a token of the continuation: expected an id from 0 to 319, found [400]"),
        ([5, 6], [[7]], {"likeliest": 0}, "likeliest: expected an integer between 1 and 20, found 0"),
        ([5, 6], [[7]], {"likeliest": 21}, "likeliest: expected"),
        ([5, 6], [[7]], {"temprature": 1.0}, "option temprature"),
        ([5, 6], [[7], [-1]], {}, "a token of the continuation: expected an id from 0 to 319, found [-1]"),
        ("", ["a"], {}, "prompt: expected at least one token that every continuation leaves as it is, found ''"),
        (5, ["a"], {}, "prompt: expected a text, a list of messages, or of token ids, found 5"),
    ],
)
def test_bad_questions_are_refused_in_one_line(
    engine: Engine, prompt: Any, continuations: Any, options: Any, says: str
) -> None:
    with pytest.raises(UsageError) as error:
        engine.log_likelihood(prompt, continuations, **options)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_no_continuations_are_no_likelihoods(engine: Engine) -> None:
    assert engine.log_likelihood("the quick", []) == ()


def test_logits_are_made_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = make_twin()
    states = np.random.default_rng(0).standard_normal((10, 64)).astype(np.float32)
    sizes: list[int] = []

    class Noted:
        def head(self, model: Any, states: Any, float_activations: bool) -> Any:
            sizes.append(len(states))
            return twin.core.head(model, states, float_activations)

    found = list(logits_of(Noted(), twin.native, states, most_bytes=4 * 400 * 3))  # type: ignore[arg-type]
    assert sizes == [3, 3, 3, 1]
    assert np.array_equal(found, twin.core.head(twin.native, states))
    with pytest.raises(ValueError, match="as wide as the model"):
        twin.core.head(twin.native, states[:, :32].copy())
