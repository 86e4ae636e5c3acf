"""Multiple choice: rows of every shape in, and scores that are those of torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft import Engine
from regraft.errors import DataError
from regraft.evaluate.choices import Question, read_questions, score_choices, write_likelihoods
from regraft.evaluate.dataset import Example
from regraft.models.load import load_base
from tests.engine.test_likelihood import theirs
from tests.tiny import make_base

USER = {"role": "user", "content": "Is it green?"}
ASSISTANT = {"role": "assistant", "content": "yes"}
BOTH = {"choices": ["no", "yes"], "answer": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("choices"))


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[Engine]:
    with Engine(base, memory_bytes=1 << 20, exact=True) as engine:
        yield engine


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def some_questions(tmp_path: Path, count: int = 12) -> list[Question]:
    words = ["fox", "the lazy dog", "quick", "brown fox jumps", "positive", "negative"]
    rows = [
        {
            "prompt": f"the quick {' '.join(words[number % 5 :])} {number}",
            "choices": [words[number % 6], words[(number + 1) % 6], words[(number + 3) % 6]][: 2 + number % 2],
            "answer": number % 2,
        }
        for number in range(count)
    ]
    return read_questions(write(tmp_path / "rows.jsonl", *rows))


@pytest.mark.parametrize(
    ("row", "prompt", "choices", "answer"),
    [
        ({"prompt": "Q:", **BOTH}, "Q:", (" no", " yes"), 1),
        ({"prompt": "Q: ", **BOTH}, "Q: ", ("no", "yes"), 1),
        ({"prompt": "Q:", "choices": ["\nno", "yes"], "answer": 0}, "Q:", ("\nno", " yes"), 0),
        ({"prompt": "Q:", "choices": ["1", "0"], "answer": "1"}, "Q:", (" 1", " 0"), 0),
        ({"messages": [USER], "id": 3, **BOTH}, (USER,), ("no", "yes"), 1),
        ({"prompt": [USER], **BOTH}, (USER,), ("no", "yes"), 1),
    ],
)
def test_a_row_is_read(tmp_path: Path, row: Any, prompt: Any, choices: tuple[str, ...], answer: int) -> None:
    is_text = isinstance(prompt, str)
    example = Example(None if is_text else prompt, prompt if is_text else None, choices[answer])
    assert read_questions(write(tmp_path / "a.jsonl", row)) == [Question(example, choices, answer)]


def test_rows_of_answers_have_all_distinct_ones_as_choices(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{number}:", "completion": f" {answer}"} for number, answer in enumerate("baab")]
    questions = read_questions(write(tmp_path / "a.jsonl", *rows))
    assert [(question.choices, question.answer) for question in questions] == [((" a", " b"), n) for n in (1, 0, 0, 1)]


FEW = "PATH:1: choices: expected at least two different texts, found "
WHICH = "PATH:1: answer: expected one of the choices, or its number from 0 to 1, found "


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        *(
            ([{"prompt": "a", "choices": few, "answer": 0}], FEW)
            for few in (["b"], ["b", "b"], ["b", " "], ["b", 3], "bc")
        ),
        *(
            ([{"prompt": "a", "choices": ["b", "c"], "answer": no}], WHICH + repr(no))
            for no in (2, -1, True, "d", None)
        ),
        ([{"prompt": "a", "choices": ["b", "c"]}], WHICH + "None"),
        ([{"prompt": " ", **BOTH}], "PATH:1: empty prompt"),
        ([{"prompt": 3, **BOTH}], "PATH:1: prompt: expected a text or a list of messages, found a number"),
        ([{"messages": [], **BOTH}], "PATH:1: messages: expected a list of at least one, found an empty list"),
        ([{"messages": [USER, ASSISTANT], **BOTH}], "PATH:1: last message: expected the one before the answer"),
        ([{"messages": [USER], "tools": [1], **BOTH}], "PATH:1: tools are not supported"),
        ([{"prompt": "a", **BOTH}, {"prompt": "b", "completion": "c"}], "PATH:2: no choices, though other rows have"),
        ([{"prompt": "b", "completion": "c"}] * 2, "PATH: choices: expected answers of at least two kinds, found 'c'"),
        ([3], 'PATH:1: expected a JSON object with "prompt" or "messages", "choices" and "answer"'),
        ([], "an empty file"),
    ],
)
def test_a_bad_row_is_refused_in_one_line(tmp_path: Path, rows: list[Any], message: str) -> None:
    path = write(tmp_path / "a.jsonl", *rows)
    with pytest.raises(DataError) as error:
        read_questions(path)
    assert message.replace("PATH", str(path)) in str(error.value) and "\n" not in str(error.value)


@torch.no_grad()
def test_scores_are_those_of_torch(engine: Engine, base: Path, tmp_path: Path) -> None:
    questions, tokenizer = some_questions(tmp_path), load_base(base).tokenizer
    scores = score_choices(engine, questions)
    right, right_norm = [], []
    for question, found in zip(questions, scores.log_likelihoods, strict=True):
        prompt, values = tokenizer(question.example.prompt)["input_ids"], []
        for choice in question.choices:
            ids = tokenizer(question.example.prompt + choice)["input_ids"]
            assert ids[: len(prompt)] == prompt
            logprobs = theirs(base, ids)[len(prompt) - 1 : -1]
            values.append(float(logprobs[range(len(ids) - len(prompt)), ids[len(prompt) :]].sum()))
        assert found == pytest.approx(values, abs=2e-2)
        sizes = [len(choice.strip()) for choice in question.choices]
        right.append(np.argmax(values) == question.answer)
        right_norm.append(np.argmax(np.array(values) / sizes) == question.answer)
    assert (scores.acc.value, scores.acc_norm.value) == (np.mean(right), np.mean(right_norm))
    assert scores.right == "".join(str(int(each)) for each in right)
    assert scores.right != scores.right_norm
    assert scores.chance == pytest.approx(0.5 * 0.5 + 0.5 / 3) and scores.majority is None


@pytest.mark.parametrize("batch_size", [1, 5])
def test_no_score_depends_on_who_is_asked_beside_it(engine: Engine, tmp_path: Path, batch_size: int) -> None:
    questions = some_questions(tmp_path)
    found = score_choices(engine, questions, batch_size=batch_size)
    assert found.log_likelihoods == score_choices(engine, questions).log_likelihoods


def test_the_majority_is_known_where_all_choose_from_the_same(engine: Engine, tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{number}:", "completion": " yes" if number else " no"} for number in range(4)]
    scores = score_choices(engine, read_questions(write(tmp_path / "a.jsonl", *rows)))
    assert (scores.chance, scores.majority) == (0.5, 0.75)


def test_a_question_beyond_the_context_is_refused_before_any_is_asked(tmp_path: Path) -> None:
    rows = [{"prompt": "the quick", **BOTH}, {"prompt": "zzz " * 400, **BOTH}]
    path = write(tmp_path / "a.jsonl", *rows)
    with Engine(make_base(tmp_path / "base", positions=64), memory_bytes=1 << 20) as engine:
        with pytest.raises(DataError, match=r"a.jsonl:2: prompt and choice: expected at most 64 tokens, found \d+"):
            score_choices(engine, read_questions(path))
        assert next(engine._numbers) == 0


def test_log_likelihoods_are_written_beside_their_choices(engine: Engine, tmp_path: Path) -> None:
    questions = some_questions(tmp_path, count=2)
    scores = score_choices(engine, questions)
    write_likelihoods(tmp_path / "out.jsonl", questions, scores)
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["log_likelihoods"] for line in lines] == scores.log_likelihoods
    assert [tuple(line["choices"]) for line in lines] == [question.choices for question in questions]
