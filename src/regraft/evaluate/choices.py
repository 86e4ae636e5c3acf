"""Multiple choice by log-likelihood, as lm-evaluation-harness scores it (Gao et al. 2021, doi:10.5281/zenodo.10256836).

    acc:       argmaxᵢ log p(choiceᵢ | prompt)
    acc_norm:  argmaxᵢ log p(choiceᵢ | prompt) / bytes(choiceᵢ)

Nothing is generated, and no end of sequence is scored: a choice need only begin what would be said. Rows are

    {"prompt": "…", "choices": ["yes", "no"], "answer": 0}
    {"messages": [{"role": "user", "content": "…"}], "choices": ["yes", "no"], "answer": "yes"}

or rows of prompts and answers (:mod:`regraft.evaluate.dataset`), whose distinct answers are the choices.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from regraft.engine.engine import Engine
from regraft.engine.prompt import Prompt, encode_continuations
from regraft.errors import DataError, UsageError
from regraft.evaluate.dataset import Example, example_of, read_rows
from regraft.evaluate.metrics import Score, mean_score
from regraft.progress import Progress, silent
from regraft.storage import write_bytes

SHAPES = '"prompt" or "messages", "choices" and "answer"; or prompts with their answers'
BATCH = 32  # questions that are asked side by side


@dataclass(frozen=True)
class Question:
    """A prompt, what may follow it, and which of it is right.

    Attributes:
        example: the prompt, and the right answer.
        choices: as they stand right behind the prompt.
        answer: number of the right choice.
    """

    example: Example
    choices: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> Prompt:
        """For the engine."""
        return self.example.prompt or "" if self.example.messages is None else self.example.messages


@dataclass(frozen=True)
class ChoiceScores:
    """Scores of one base, and what earned them.

    Attributes:
        acc: share of the questions whose likeliest choice is right.
        acc_norm: the same, each log-likelihood divided by the bytes of its choice.
        chance: what guessing evenly scores.
        majority: what the most frequent answer scores, where all questions have the same choices.
        right, right_norm: a character for each question, 1 where ``acc`` or ``acc_norm`` has it right, else 0.
        log_likelihoods: of each question's choices.
        seconds: that it took.
    """

    acc: Score
    acc_norm: Score
    chance: float
    majority: float | None
    right: str
    right_norm: str
    log_likelihoods: list[list[float]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """``{"acc", "acc_ci95", "acc_norm", …, "n"}``."""
        return {
            "acc": self.acc.value,
            "acc_ci95": list(self.acc.ci95),
            "acc_norm": self.acc_norm.value,
            "acc_norm_ci95": list(self.acc_norm.ci95),
            "n": self.acc.n,
            "chance": self.chance,
            "majority": self.majority,
            "seconds": round(self.seconds, 2),
        }


def read_questions(path: Path) -> list[Question]:
    """Read a JSON-lines file of questions, or of prompts with answers, which then are all rows' choices.

    Raises:
        DataError: the file is missing or empty, or a row cannot be used; the message starts with ``file:line``.
    """
    rows = read_rows(path, _row, shapes=SHAPES)
    questions = [row for row in rows if isinstance(row, Question)]
    examples = [row for row in rows if isinstance(row, Example)]
    if not examples:
        return questions
    if questions:
        raise DataError(f"{examples[0].source}: no choices, though other rows have some")
    choices = tuple(sorted({example.answer for example in examples}))
    if len(choices) < 2:
        raise DataError(f"{path}: choices", expected="answers of at least two kinds", found=repr(choices[0])[:60])
    return [Question(example, choices, choices.index(example.answer)) for example in examples]


def _row(row: dict[str, Any], source: str) -> Question | Example:
    if "choices" not in row:
        return example_of(row, source)
    choices = row["choices"]
    is_right = isinstance(choices, list) and all(isinstance(choice, str) and choice.strip() for choice in choices)
    if not is_right or len(set(choices)) < max(len(choices), 2):
        raise DataError(f"{source}: choices", expected="at least two different texts", found=repr(choices)[:60])
    number = _answer(row.get("answer"), choices, source)
    prompt = row.get("messages", row.get("prompt"))
    if isinstance(prompt, list) and any(map(_is_answer, prompt[-1:])):
        raise DataError(f"{source}: last message", expected="the one before the answer", found="role 'assistant'")
    if isinstance(prompt, str) and not prompt[-1:].isspace():  # lm-evaluation-harness puts a space between them, too
        choices = [choice if choice[0].isspace() else f" {choice}" for choice in choices]
    example = example_of({"prompt": prompt, "completion": choices[number], "tools": row.get("tools")}, source)
    return Question(example, tuple(choices), number)


def _is_answer(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _answer(answer: Any, choices: Sequence[str], source: str) -> int:
    if type(answer) is int and 0 <= answer < len(choices):
        return answer
    if isinstance(answer, str) and answer in choices:
        return choices.index(answer)
    raise DataError(
        f"{source}: answer",
        expected=f"one of the choices, or its number from 0 to {len(choices) - 1}",
        found=repr(answer)[:60],
    )


def score_choices(
    engine: Engine,
    questions: Sequence[Question],
    mix: Mapping[str, float] | None = None,
    *,
    batch_size: int = BATCH,
    progress: Progress = silent,
) -> ChoiceScores:
    """Score questions by log-likelihood.

    Args:
        engine: has the base and the adapters.
        questions: at least one.
        mix: weights by adapter name; None for the base alone.
        batch_size: questions that are asked side by side; no score depends on it.
        progress: counts questions.

    Raises:
        DataError: a question cannot be tokenised, or does not fit the context; the message starts with its source.
        Further errors: see :meth:`regraft.engine.engine.Engine.log_likelihood`.
    """
    start = time.monotonic()
    encoded = [_encoded(engine, question) for question in questions]  # all, before the first is asked
    found: list[list[float]] = []
    with ThreadPoolExecutor(batch_size) as threads, progress.track(len(questions), "questions") as advance:
        asked = [threads.submit(engine.log_likelihood, *each, dict(mix or {})) for each in encoded]
        try:
            for each in asked:
                found.append([likelihood.total for likelihood in each.result()])
                advance()
        finally:  # of one that fails, the others need not be waited for
            threads.shutdown(wait=False, cancel_futures=True)
    return _scores(questions, found, time.monotonic() - start)


def _encoded(engine: Engine, question: Question) -> tuple[list[int], list[list[int]]]:
    base, source = engine.base, question.example.source
    try:
        start, parts = encode_continuations(
            base.tokenizer, question.prompt, question.choices, base.architecture.vocabulary
        )
    except UsageError as error:
        raise DataError(f"{source}: {error}") from None
    longest, context = len(start) + max(map(len, parts)), base.architecture.max_positions
    if longest > context:
        raise DataError(f"{source}: prompt and choice", expected=f"at most {context} tokens", found=str(longest))
    return start, parts


def _scores(questions: Sequence[Question], found: list[list[float]], seconds: float) -> ChoiceScores:
    plain, normed = [], []
    for question, values in zip(questions, found, strict=True):
        sizes = [len(choice.strip().encode()) for choice in question.choices]
        plain.append(int(np.argmax(values) == question.answer))
        normed.append(int(np.argmax(np.divide(values, sizes)) == question.answer))
    answers = Counter(question.choices[question.answer] for question in questions)
    is_one_set = len({frozenset(question.choices) for question in questions}) == 1
    return ChoiceScores(
        acc=mean_score(plain),
        acc_norm=mean_score(normed),
        chance=float(np.mean([1 / len(question.choices) for question in questions])),
        majority=max(answers.values()) / len(questions) if is_one_set else None,
        right="".join(map(str, plain)),
        right_norm="".join(map(str, normed)),
        log_likelihoods=found,
        seconds=seconds,
    )


def write_likelihoods(path: Path, questions: Sequence[Question], scores: ChoiceScores) -> None:
    """One JSON line per question: its prompt, its choices with their log-likelihoods, and the right one's number."""
    lines = [
        {
            "prompt": question.example.prompt_text,
            "choices": question.choices,
            "log_likelihoods": values,
            "answer": question.answer,
        }
        for question, values in zip(questions, scores.log_likelihoods, strict=True)
    ]
    write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
