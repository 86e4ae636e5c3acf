"""Text comes out as it is complete, and no character in two halves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.formats.text.stream_decoder import BROKEN, StreamDecoder
from tests.tiny import make_tokenizer


@pytest.mark.parametrize("text", ["naïve «café» 東京 🧶🪡!", "plain words, and  spaces", "👩🏽‍💻 done"])
def test_pieces_never_break_a_character(text: str) -> None:
    tokenizer = make_tokenizer()
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = StreamDecoder(tokenizer.decode)
    shown = [pieces.push(token) for token in tokens]
    assert "".join(shown) == text
    assert not any(BROKEN in piece for piece in shown)
    assert pieces.flush() == ""


def test_character_that_never_ends_comes_out_at_the_end() -> None:
    tokenizer = make_tokenizer()
    pieces = StreamDecoder(tokenizer.decode)
    first_byte = tokenizer("東", add_special_tokens=False)["input_ids"][0]
    assert [pieces.push(first_byte), pieces.flush()] == ["", BROKEN]


def spaced(tokens: list[int]) -> str:
    """Like SentencePiece: words carry a space in front, which decoding drops where a text begins."""
    return "".join(f" w{token}" for token in tokens).removeprefix(" ")


def test_pieces_keep_the_spaces_between_words() -> None:
    pieces = StreamDecoder(spaced)
    assert [pieces.push(token) for token in (1, 2, 3)] == ["w1", " w2", " w3"]


@given(st.lists(st.integers(0, 399), max_size=40))
def test_pieces_of_any_tokens_make_what_they_decode_to_together(tokens: list[int]) -> None:
    decode = make_tokenizer().decode
    pieces = StreamDecoder(decode)
    shown = [pieces.push(token) for token in tokens]
    assert not any(piece.endswith(BROKEN) for piece in shown)
    assert "".join(shown) + pieces.flush() == decode(tokens)
