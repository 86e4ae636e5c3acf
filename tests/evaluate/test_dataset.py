"""Datasets: TRL's shapes in, token ids out, and errors that name file and line."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import DataError, UsageError
from regraft.evaluate.dataset import Encoded, Example, data_hash, encode, read_examples, split_examples
from tests.tiny import make_tokenizer

USER = {"role": "user", "content": "Is it green?"}
ASSISTANT = {"role": "assistant", "content": "yes"}
SYSTEM = {"role": "system", "content": "Answer."}
SHAPES = '"messages", or "prompt" and "completion"'


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q:", "completion": " yes"}, Example(None, "Q:", " yes")),
        ({"messages": [SYSTEM, USER, ASSISTANT], "id": 7}, Example((SYSTEM, USER), None, "yes")),
        ({"prompt": [USER], "completion": [ASSISTANT]}, Example((USER,), None, "yes")),
        ({"prompt": [USER], "completion": "yes"}, Example((USER,), None, "yes")),
        ({"prompt": "Q:", "completion": [ASSISTANT]}, Example(None, "Q:", "yes")),
    ],
)
def test_row_is_read(tmp_path: Path, row: Any, expected: Example) -> None:
    assert read_examples(write(tmp_path / "a.jsonl", row)) == [expected]


def test_source_is_file_and_line_and_blank_lines_count(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\n{"prompt": "c", "completion": "d"}')
    assert [example.source for example in read_examples(path)] == [f"{path}:1", f"{path}:3"]


def test_unicode_line_separators_inside_a_text_do_not_cut_it(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a\u2028b\x85", "completion": "c"}\n', encoding="utf-8")
    assert read_examples(path)[0].prompt == "a\u2028b\x85"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", f"PATH: expected JSON lines with {SHAPES}, found an empty file"),
        (b"\n \n", f"PATH: expected JSON lines with {SHAPES}, found an empty file"),
        (b'{"prompt": "a"', "PATH:1: not JSON: Expecting ',' delimiter at column 15"),
        (b"[\n", "PATH:1: not JSON: Expecting value at column 2. A JSON array has to be written one object a line."),
        (b"[1]", f"PATH:1: expected a JSON object with {SHAPES}, found a list"),
        (b'{"text": "a", "label": 1}', f'PATH:1: wrong keys: expected {SHAPES}, found "text", "label"'),
        (b'{"prompt": "a"}', f'PATH:1: wrong keys: expected {SHAPES}, found "prompt"'),
        (b"{}", f"PATH:1: wrong keys: expected {SHAPES}, found an empty object"),
        (b'{"prompt": "\xff"}', "PATH:1: text encoding: expected UTF-8, found byte 0xff at column 13"),
        (
            b'{"prompt": "\\ud800", "completion": "b"}',
            "PATH:1: text encoding: expected Unicode, found half of a surrogate pair",
        ),
        (b'{"prompt": "a", "completion": " "}', "PATH:1: empty answer. Drop the row, or say what should be answered."),
        (b'{"prompt": "", "completion": "b"}', "PATH:1: empty prompt"),
        (b'{"prompt": 1, "completion": "b"}', "PATH:1: prompt: expected a text or a list of messages, found a number"),
        (
            b'{"prompt": "a", "completion": null}',
            "PATH:1: completion: expected a text or a list of messages, found nothing",
        ),
        (b'{"messages": []}', "PATH:1: messages: expected a list of at least one, found an empty list"),
        (b'{"messages": "hi"}', "PATH:1: messages: expected a list of at least one, found a text"),
        (b'{"messages": ["hi"]}', 'PATH:1: message: expected "role" and "content", found a text'),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}',
            "PATH:1: message's 'content': expected a text, found a list",
        ),
        (b'{"messages": [{"content": "a"}]}', "PATH:1: message's 'role': expected a text, found nothing"),
        (
            b'{"messages": [{"role": "user", "content": "a"}]}',
            "PATH:1: last message: expected role 'assistant', found role 'user'",
        ),
        (b'{"messages": [{"role": "assistant", "content": "a"}]}', "PATH:1: empty prompt"),
        (
            b'{"prompt": "a", "completion": [{"role": "user", "content": "b"}]}',
            "PATH:1: completion: expected one assistant message, found user",
        ),
        (
            b'{"messages": [], "tools": [{"name": "f"}]}',
            "PATH:1: tools are not supported. Write them into the system message.",
        ),
    ],
)
def test_unusable_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value) == message.replace("PATH", str(path))


def test_the_line_of_a_later_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}, {"text": "c"})
    with pytest.raises(DataError, match=r"a\.jsonl:2: wrong keys"):
        read_examples(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file or directory"):
        read_examples(tmp_path / "none.jsonl")


def test_plain_prompt_is_taken_as_it_stands() -> None:
    tokenizer = make_tokenizer()
    encoded = encode(Example(None, "the quick", " brown"), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids) == "the quick"
    assert tokenizer.decode(encoded.answer_ids) == " brown<|im_end|>"


def test_empty_answer_is_an_end_of_sequence() -> None:
    tokenizer = make_tokenizer()
    assert encode(Example(None, "the quick", ""), tokenizer).answer_ids == [tokenizer.eos_token_id]


def test_conversation_goes_through_the_chat_template() -> None:
    tokenizer = make_tokenizer()
    encoded = encode(Example((SYSTEM, USER), None, "yes"), tokenizer)
    assert tokenizer.decode(encoded.prompt_ids) == (
        "<|im_start|>system\nAnswer.<|im_end|>\n<|im_start|>user\nIs it green?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.decode(encoded.answer_ids) == "yes<|im_end|>"


def test_answer_ends_as_the_template_ends_a_turn() -> None:
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.eos_token = "<unk>"  # an end of sequence that the template does not write
    assert tokenizer.decode(encode(Example((USER,), None, "yes"), tokenizer).answer_ids) == "yes<|im_end|>"
    assert tokenizer.decode(encode(Example(None, "a", "yes"), tokenizer).answer_ids) == "yes<unk>"


BOS = 1


class WordMarks:
    """Like Llama's SentencePiece: BOS, then a mark in front of a text that is tokenised alone; ``ab`` merges."""

    eos_token_id = None
    chat_template: str | None = None

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {
            "input_ids": [
                *([BOS] if add_special_tokens else []),
                0,
                *(ord(letter) for letter in text.replace("ab", "X")),
            ]
        }


def test_answer_has_no_word_mark_of_its_own() -> None:
    assert encode(Example(None, "c", "d"), WordMarks()) == Encoded([BOS, 0, ord("c")], [ord("d")])


def test_answer_that_merges_with_the_prompt_is_tokenised_alone() -> None:
    assert encode(Example(None, "a", "b"), WordMarks()).answer_ids == [0, ord("b")]


def test_too_long_example_is_refused() -> None:
    example = Example(None, "prompt", "answer", source="a.jsonl:3")
    encoded = encode(example, make_tokenizer())
    length = len(encoded.prompt_ids) + len(encoded.answer_ids)
    assert encode(example, make_tokenizer(), max_length=length) == encoded
    with pytest.raises(DataError, match=rf"^a\.jsonl:3: too long: {length} tokens, the limit is {length - 1}$"):
        encode(example, make_tokenizer(), max_length=length - 1)


def test_conversation_without_a_template_is_refused() -> None:
    with pytest.raises(DataError, match=r"^a:1: the base's tokenizer has no chat template for messages\. Give plain"):
        encode(Example((USER,), None, "yes", source="a:1"), WordMarks())


def test_what_the_template_refuses_is_refused() -> None:
    class Strict(WordMarks):
        chat_template = "x"

        def apply_chat_template(self, messages: Any, **options: Any) -> str:
            raise ValueError("roles must alternate")

    with pytest.raises(DataError, match=r"^the base's chat template refuses it: roles must alternate$"):
        encode(Example((USER,), None, "yes"), Strict())


ROWS = [Example(None, f"prompt {number // 2}", f"answer {number}") for number in range(40)]


def test_split_shares_no_prompt_and_loses_no_row() -> None:
    train, dev = split_examples(ROWS, 0.25, seed=1)
    assert {row.prompt for row in train}.isdisjoint(row.prompt for row in dev)
    assert len(dev) == 10
    assert sorted([*train, *dev], key=ROWS.index) == ROWS


def test_split_depends_on_content_and_seed_only() -> None:
    train, dev = split_examples(ROWS, 0.25, seed=1)
    again = split_examples(ROWS[::-1], 0.25, seed=1)
    assert (train[::-1], dev[::-1]) == again
    assert split_examples(ROWS, 0.25, seed=2)[1] != dev


@pytest.mark.parametrize(
    ("num_rows", "share", "num_dev"), [(40, 0, 0), (4, 0.01, 2), (2, 0.5, 0), (0, 0.5, 0), (4, 0.99, 2)]
)
def test_small_splits_leave_both_halves_something(num_rows: int, share: float, num_dev: int) -> None:
    train, dev = split_examples(ROWS[:num_rows], share)
    assert (len(train), len(dev)) == (num_rows - num_dev, num_dev)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="at least 0 and below 1"):
        split_examples(ROWS, share)


def test_data_hash_is_of_content_not_of_place(tmp_path: Path) -> None:
    one = read_examples(write(tmp_path / "a.jsonl", {"prompt": "a", "completion": "b"}))
    other = read_examples(write(tmp_path / "b.jsonl", {"completion": "b", "prompt": "a", "id": 1}))
    assert data_hash(one) == data_hash(other)
    assert re.fullmatch("[0-9a-f]{64}", data_hash(one))
    assert data_hash(ROWS) != data_hash(ROWS[::-1])
