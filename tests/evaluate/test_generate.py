"""Batched answers are those of one prompt at a time."""

from __future__ import annotations

import random
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from regraft.evaluate.answers import longest_answer
from regraft.evaluate.dataset import Encoded
from regraft.evaluate.generate import generate, stop_ids
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
