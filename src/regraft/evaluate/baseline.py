"""The baseline: answers of the uncompressed base without the adapter, the zero of :mod:`regraft.evaluate.lift`.

    zero-shot   the base's answer to the prompt
    five-shot   its answer where five train rows with their answers come first
    majority    the most common train answer, whatever is asked

The best of them on the test rows is the baseline, so it is the strictest of the three.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from regraft.config import Strict
from regraft.errors import DataError
from regraft.evaluate.answers import Answers, Schema, longest_answer
from regraft.evaluate.dataset import Encoded, Example, encode
from regraft.evaluate.metrics import Metric, row_values
from regraft.progress import Progress, silent

NUM_SHOTS = 5
BLANK_LINE = "\n\n"
Kind = Literal["zero_shot", "five_shot", "majority"]


class Baseline(Strict):
    """The best answerer without the adapter.

    Attributes:
        kind: which of the three it is.
        score: its score.
        lift: the teacher's score minus that; ``lift_error`` is its standard error, None for a single row.
        scores: kind → score, of those that are known.
        notes: kind → why it is not known, or what it does not have.
    """

    kind: Kind
    score: float
    lift: float
    lift_error: float | None
    scores: dict[Kind, float]
    notes: dict[Kind, str] = {}


@dataclass(frozen=True)
class BaselineAnswers:
    """Kind → what it answers to the test rows; kind → what is to be known of it."""

    answers: Mapping[Kind, Sequence[str]]
    notes: Mapping[Kind, str] = field(default_factory=dict)

    def values(self, metric: Metric, references: Sequence[str]) -> dict[Kind, list[float]]:
        """Kind → value of each row."""
        return {kind: row_values(metric, answers, references) for kind, answers in self.answers.items()}


def best_kind(values: Mapping[Kind, Sequence[float]]) -> Kind:
    """The kind with the greatest mean; of equals the first."""
    return max(values, key=lambda kind: float(np.mean(values[kind])))


def answer_without_adapter(
    answers: Answers,
    encoded: Sequence[Encoded],
    examples: Sequence[Example],
    train: Sequence[Example],
    *,
    max_new_tokens: int | None = None,
    schema: Schema | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> BaselineAnswers:
    """What the base answers to test rows.

    Args:
        answers: the uncompressed base.
        encoded: the test rows.
        examples: the same before they were encoded; empty where there is nothing but tokens.
        train: rows that shots and the most common answer are taken from; may be empty.
        max_new_tokens: where an answer is cut.
        schema: what answers are held to.
        seed: which train rows are the shots.
        progress: counts answers.
    """
    limit = longest_answer(encoded) if max_new_tokens is None else max_new_tokens
    found: dict[Kind, Sequence[str]] = {
        "zero_shot": answers.answer(encoded, max_new_tokens=limit, schema=schema, progress=progress)
    }
    notes: dict[Kind, str] = {}
    if not (examples and train):
        missing = "not known: there are no train rows of prompt and answer"
        return BaselineAnswers(found, {"five_shot": missing, "majority": missing})
    most = answers.context_tokens - limit
    try:
        shown, note = encode_with_shots(examples, Shots.choose(train, seed), answers.tokenizer, most)
    except DataError as error:
        notes["five_shot"] = f"not known: {error}"
    else:
        said = answers.answer(shown, max_new_tokens=limit, schema=schema, progress=progress)
        found["five_shot"] = cut_shots(examples, said)
        if note:
            notes["five_shot"] = note
    found["majority"] = [majority_answer(train)] * len(encoded)
    return BaselineAnswers(found, notes)


@dataclass(frozen=True)
class Shots:
    """Train rows that come before each test row: those of its own form, conversation or plain text."""

    chats: tuple[Example, ...]
    plain: tuple[Example, ...]

    @classmethod
    def choose(cls, train: Sequence[Example], seed: int) -> Shots:
        """Five rows of each form, or as many as there are; the same for all test rows."""
        forms = [row for row in train if row.messages is not None], [row for row in train if row.messages is None]
        return cls(*(tuple(random.Random(seed).sample(rows, min(NUM_SHOTS, len(rows)))) for rows in forms))

    def of(self, example: Example) -> tuple[Example, ...]:
        """Those of the example's form."""
        return self.plain if example.messages is None else self.chats


def with_shots(example: Example, shots: Sequence[Example]) -> Example:
    """The example after some others with their answers.

    Those of a conversation are earlier turns, behind the example's own system message. Plain ones come as they are, a
    blank line after each.
    """
    if example.messages is None:
        before = (f"{shot.prompt}{shot.answer}{BLANK_LINE}" for shot in shots)
        return Example(None, "".join([*before, example.prompt or ""]), example.answer, example.source)
    system = tuple(turn for turn in example.messages[:1] if turn["role"] == "system")
    turns = [turn for shot in shots for turn in [*_turns(shot), {"role": "assistant", "content": shot.answer}]]
    return Example((*system, *turns, *example.messages[len(system) :]), None, example.answer, example.source)


def _turns(shot: Example) -> Sequence[dict[str, str]]:
    messages = shot.messages or ()
    return messages[1:] if messages and messages[0]["role"] == "system" else messages


def encode_with_shots(
    examples: Sequence[Example], shots: Shots, tokenizer: Any, most: int
) -> tuple[list[Encoded], str]:
    """Prompts with as many shots as fit into ``most`` tokens, and what is to be known of them.

    Raises:
        DataError: the chat template refuses a conversation with earlier answers.
    """
    encoded, fewer, fewest = [], 0, NUM_SHOTS
    for example in examples:
        own = shots.of(example)
        count = len(own)
        while True:
            row = encode(with_shots(example, own[:count]), tokenizer)
            if len(row.prompt_ids) <= most or count == 0:
                break
            count -= 1
        encoded.append(row)
        fewer, fewest = fewer + (count < NUM_SHOTS), min(fewest, count)
    note = f"{fewer} of {len(examples)} rows have fewer than {NUM_SHOTS} shots, the fewest {fewest}" if fewer else ""
    return encoded, note


def cut_shots(examples: Sequence[Example], answers: Sequence[str]) -> list[str]:
    """Answers to plain prompts up to the blank line that the shots taught; a reference with one is not cut."""
    return [
        answer.lstrip().split(BLANK_LINE)[0]
        if example.messages is None and BLANK_LINE not in example.answer
        else answer
        for example, answer in zip(examples, answers, strict=True)
    ]


def majority_answer(train: Sequence[Example]) -> str:
    """The most common answer of at least one row; of equals the first."""
    return Counter(row.answer.strip() for row in train).most_common(1)[0][0]
