"""Batched answers are those of one prompt at a time, streamed ones too."""

from __future__ import annotations

import random
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from regraft.evaluate.dataset import Encoded
from regraft.evaluate.generate import BROKEN, Pieces, generate, longest_answer, stop_ids, stream
from tests.tiny import make_model, make_tokenizer

EOS = 2


def make_prompts(count: int, seed: int = 0) -> list[Encoded]:
    rng = random.Random(seed)
    return [Encoded([rng.randrange(3, 300) for _ in range(rng.randrange(1, 24))], [5, EOS]) for _ in range(count)]


def greedy(model: PreTrainedModel, prompt: list[int], limit: int, stops: set[int]) -> list[int]:
    """The slow truth: the whole sequence through the model for every token."""
    ids = list(prompt)
    with torch.no_grad():
        while len(ids) < len(prompt) + limit:
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token in stops:
                break
            ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batched_answers_are_those_of_the_slow_loop(family: str, batch_size: int) -> None:
    model, tokenizer = make_model(family), make_tokenizer()
    prompts = make_prompts(7)
    expected = [tokenizer.decode(greedy(model, row.prompt_ids, 12, {EOS})) for row in prompts]
    assert generate(model, tokenizer, prompts, max_new_tokens=12, batch_size=batch_size) == expected


def test_answers_differ_between_prompts() -> None:
    assert len(set(generate(make_model(), make_tokenizer(), make_prompts(7), max_new_tokens=12))) > 3


def test_answer_ends_at_any_of_the_model_s_stop_tokens() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    prompts = make_prompts(5)
    free = [greedy(model, row.prompt_ids, 12, {EOS}) for row in prompts]
    model.generation_config.eos_token_id = [EOS, free[0][4]]
    assert stop_ids(model, tokenizer) == sorted({EOS, free[0][4]})
    expected = [tokenizer.decode(greedy(model, row.prompt_ids, 12, set(stop_ids(model, tokenizer)))) for row in prompts]
    assert expected[0] != tokenizer.decode(free[0])
    assert generate(model, tokenizer, prompts, max_new_tokens=12) == expected
    assert "".join(stream(model, tokenizer, prompts[0].prompt_ids, max_new_tokens=12)) == expected[0]


def test_the_model_s_own_penalties_and_sampling_are_left_out() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    expected = generate(model, tokenizer, make_prompts(5), max_new_tokens=12)
    model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=9.0, no_repeat_ngram_size=1)
    assert generate(model, tokenizer, make_prompts(5), max_new_tokens=12) == expected


def test_longest_answer_leaves_a_little_room() -> None:
    rows = [Encoded([3], [4, 5, EOS]), Encoded([3], [4, EOS])]
    assert longest_answer(rows) == 3 + 8
    assert generate(make_model(), make_tokenizer(), []) == []


def test_default_length_is_that_of_the_longest_answer() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    rows = make_prompts(3)
    assert generate(model, tokenizer, rows) == generate(model, tokenizer, rows, max_new_tokens=10)


@pytest.mark.parametrize("number", range(4))
def test_streamed_pieces_make_the_answer(number: int) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    row = make_prompts(4)[number]
    pieces = list(stream(model, tokenizer, row.prompt_ids, max_new_tokens=12))
    assert "".join(pieces) == generate(model, tokenizer, [row], max_new_tokens=12)[0]
    assert all(pieces)


def test_sampling_goes_by_seed_and_temperature() -> None:
    model, tokenizer = make_model(), make_tokenizer()

    def sample(temperature: float, seed: int) -> str:
        return "".join(stream(model, tokenizer, [7, 8, 9], max_new_tokens=16, temperature=temperature, seed=seed))

    assert sample(1.0, seed=1) == sample(1.0, seed=1)
    assert sample(1.0, seed=1) != sample(1.0, seed=2)
    assert sample(1e-4, seed=1) == sample(0.0, seed=2)


@pytest.mark.parametrize("text", ["naïve «café» 東京 🧶🪡!", "plain words, and  spaces", "👩🏽‍💻 done"])
def test_pieces_never_break_a_character(text: str) -> None:
    tokenizer = make_tokenizer()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer)
    shown = [pieces.push(token) for token in tokens]
    assert "".join(shown) == text
    assert not any(BROKEN in piece for piece in shown)
    assert pieces.flush() == ""


def test_character_that_never_ends_comes_out_at_the_end() -> None:
    tokenizer = make_tokenizer()
    pieces = Pieces(tokenizer)
    first_byte = tokenizer("東", add_special_tokens=False)["input_ids"][0]
    assert [pieces.push(first_byte), pieces.flush()] == ["", BROKEN]


class Spaced:
    """Like SentencePiece: words carry a space in front, which decoding drops where a text begins."""

    def decode(self, tokens: list[int], **options: Any) -> str:
        return "".join(f" w{token}" for token in tokens).removeprefix(" ")


def test_pieces_keep_the_spaces_between_words() -> None:
    pieces = Pieces(Spaced())
    assert [pieces.push(token) for token in (1, 2, 3)] == ["w1", " w2", " w3"]


def test_progress_counts_answers() -> None:
    class Counting:
        seen = 0

        def track(self, total: int, label: str) -> Any:
            @contextmanager
            def tracking() -> Any:
                def advance(n: int = 1, **fields: object) -> None:
                    self.seen += n

                yield advance

            return tracking()

        def note(self, text: str) -> None: ...

    progress = Counting()
    generate(make_model(), make_tokenizer(), make_prompts(5), max_new_tokens=1, batch_size=2, progress=progress)
    assert progress.seen == 5


def test_prompts_of_like_length_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, widths = make_model(), []
    own = type(model).generate

    def listen(self: Any, **options: Any) -> Any:
        widths.append(options["input_ids"].shape[1])
        return own(self, **options)

    monkeypatch.setattr(type(model), "generate", listen)
    generate(model, make_tokenizer(), make_prompts(9), max_new_tokens=1, batch_size=2)
    assert all(longer >= shorter for longer, shorter in pairwise(widths))
