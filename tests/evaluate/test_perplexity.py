"""Perplexity against a plain slow loop over one token at a time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.errors import DataError
from regraft.evaluate.perplexity import default_text, perplexity, perplexity_of, read_text, windows
from tests.tiny import make_model, make_tokenizer

TEXT = "the quick brown fox jumps over the lazy dog, and then it sleeps. " * 6


def log_probs(model: Any, ids: list[int], position: int) -> torch.Tensor:
    """What the model expects after ``ids[: position + 1]``, from a pass over no more than these."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids[: position + 1]])).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize("sequence_length", [16, 50, 4096])
def test_perplexity_is_that_of_the_slow_loop(sequence_length: int) -> None:
    model, tokenizer = make_model(), make_tokenizer()
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    losses = []
    for start in range(0, len(ids), sequence_length):
        window = ids[start : start + sequence_length]
        losses += [-log_probs(model, window, t)[window[t + 1]].item() for t in range(len(window) - 1)]
    found = perplexity(model, tokenizer, TEXT, sequence_length=sequence_length)
    assert found.num_tokens == len(losses)
    assert found.nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.value == pytest.approx(math.exp(found.nll))


def test_several_texts_are_joined_by_empty_lines() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    assert perplexity(model, tokenizer, ["one text", "two"]) == perplexity(model, tokenizer, "one text\n\ntwo")


def test_windows_cover_the_text_once() -> None:
    tokenizer = make_tokenizer()
    cut = windows(tokenizer, TEXT, 10)
    assert [len(window) for window in cut[:-1]] == [10] * (len(cut) - 1)
    assert tokenizer.decode([token for window in cut for token in window]) == TEXT


def test_every_window_starts_as_the_tokenizer_starts_a_text() -> None:
    class WithStart:
        bos_token_id = 1

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}

    assert windows(WithStart(), "abcde", 3) == [[1, 97, 98], [1, 99, 100], [1, 101]]


def test_text_that_is_too_short_is_refused() -> None:
    with pytest.raises(DataError, match=r"^perplexity: expected a text of at least two tokens, found a shorter one$"):
        perplexity_of(make_model(), [[5]])


def test_packaged_text_is_a_novel_without_its_publisher_s_words() -> None:
    text = default_text()
    assert text.startswith("CHAPTER VI.")
    assert 50_000 < len(text) < 60_000
    assert "gutenberg" not in text.lower()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file"),
        (b" \n", "expected some text, found an empty file"),
        (b"ab\xff", "text encoding: expected UTF-8, found byte 0xff at 2"),
    ],
)
def test_unusable_text_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(path)
