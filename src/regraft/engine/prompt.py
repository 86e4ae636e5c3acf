"""Prompts and continuations as callers give them, turned into tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from regraft.engine.checks import check
from regraft.formats.text.tokenizer import Tokenizer

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]  # text, a conversation for the chat template, or tokens
Continuation = str | Sequence[int]  # text, or tokens


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt, vocabulary: int) -> list[int]:
    """The tokens of a prompt.

    Raises:
        UsageError: it is nothing of the kind; the chat template refuses it; or a token outside the vocabulary.
    """
    if isinstance(prompt, str) or _is_messages(prompt):
        tokens = _tokenised(tokenizer, prompt)
    else:
        check(_is_tokens(prompt), "prompt", expected="a text, a list of messages, or of token ids", found=prompt)
        tokens = list(cast("Sequence[int]", prompt))
    _check_tokens(tokens, vocabulary, "prompt")
    return tokens


def encode_continuations(
    tokenizer: Tokenizer, prompt: Prompt, continuations: Sequence[Continuation], vocabulary: int
) -> tuple[list[int], list[list[int]]]:
    """The tokens of a prompt, and those of each continuation.

    A text is tokenised together with its prompt, as it would stand there. Where that changes the prompt's last tokens,
    they are scored in every continuation, so that all continue the same.

    Raises:
        UsageError: see :func:`encode_prompt`; also a continuation that adds no token.
    """
    start = encode_prompt(tokenizer, prompt, vocabulary)
    expected = "a list of texts, or of lists of token ids"
    is_listed = isinstance(continuations, Sequence) and not isinstance(continuations, str)
    check(is_listed, "continuations", expected=expected, found=continuations)
    wholes = []
    for continuation in continuations:
        is_known = isinstance(continuation, str) or _is_tokens(continuation)
        check(is_known and len(continuation) > 0, "a continuation", expected="a text or token ids", found=continuation)
        whole = _whole(tokenizer, prompt, start, continuation)
        check(whole != start, "a continuation", expected="one that adds a token to the prompt", found=continuation)
        _check_tokens(whole, vocabulary, "continuation")
        wholes.append(whole)
    common = min((_common(start, whole) for whole in wholes), default=len(start))
    expected = "at least one token that every continuation leaves as it is"
    check(common > 0, "prompt", expected=expected, found=prompt, hint="Begin with the base's first token.")
    return start[:common], [whole[common:] for whole in wholes]


def _is_tokens(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, bytes | bytearray)
        and {type(part) for part in value} == {int}
    )


def _is_messages(value: Any) -> bool:
    return isinstance(value, Sequence) and all(isinstance(part, Mapping) for part in value)


def _tokenised(tokenizer: Tokenizer, prompt: Any, continuation: str = "") -> list[int]:
    """The tokens of a text or a conversation, and of a text that follows."""
    if isinstance(prompt, str):
        return tokenizer.encode(prompt + continuation)
    return tokenizer.encode(tokenizer.apply_chat_template(prompt) + continuation, add_special_tokens=False)


def _whole(tokenizer: Tokenizer, prompt: Prompt, start: list[int], continuation: Continuation) -> list[int]:
    if not isinstance(continuation, str):
        return [*start, *continuation]
    if isinstance(prompt, str) or _is_messages(prompt):
        return _tokenised(tokenizer, prompt, continuation)
    return [*start, *tokenizer.encode(continuation, add_special_tokens=False)]


def _common(start: Sequence[int], whole: Sequence[int]) -> int:
    """How many tokens both begin with; not the last of ``whole``, since something has to follow."""
    most = min(len(start), len(whole) - 1)
    return next((number for number in range(most) if start[number] != whole[number]), most)


def _check_tokens(tokens: Sequence[int], vocabulary: int, what: str) -> None:
    outside = [token for token in tokens if not 0 <= token < vocabulary]
    check(not outside, f"a token of the {what}", expected=f"an id from 0 to {vocabulary - 1}", found=outside[:1])
