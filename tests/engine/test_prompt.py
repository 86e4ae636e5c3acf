"""Continuations as tokens: as they stand behind their prompt, and all behind the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.engine.prompt import encode_continuations, encode_prompt
from regraft.formats.source import locate
from regraft.formats.text.tokenizer import Tokenizer, open_tokenizer

VOCABULARY = 400


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return open_tokenizer(locate(str(folder / "base")))


def test_a_text_is_tokenised_behind_its_prompt(tokenizer: Tokenizer) -> None:
    start, parts = encode_continuations(tokenizer, "the quick", [" brown", " fox jumps"], VOCABULARY)
    assert start == tokenizer.encode("the quick")
    assert [tokenizer.decode([*start, *part]) for part in parts] == ["the quick brown", "the quick fox jumps"]
    assert [*start, *parts[0]] == tokenizer.encode("the quick brown")


def test_where_tokens_join_across_the_border_all_begin_before_it(tokenizer: Tokenizer) -> None:
    prompt = "the quick br"
    assert tokenizer.encode("the quick brown")[:-1] == tokenizer.encode("the quick")  # brown is one token
    start, parts = encode_continuations(tokenizer, prompt, ["own", "x"], VOCABULARY)
    assert start == tokenizer.encode("the quick")
    assert [tokenizer.decode(part) for part in parts] == [" brown", " brx"]


def test_a_conversation_is_continued_by_its_answer(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "the quick"}]
    start, (part,) = encode_continuations(tokenizer, messages, ["positive"], VOCABULARY)
    assert start == encode_prompt(tokenizer, messages, VOCABULARY)
    assert tokenizer.decode(part) == "positive"


def test_tokens_and_texts_may_meet(tokenizer: Tokenizer) -> None:
    start, parts = encode_continuations(tokenizer, [5, 6], [[7, 8], "fox"], VOCABULARY)
    assert (start, parts) == ([5, 6], [[7, 8], tokenizer.encode("fox", add_special_tokens=False)])
