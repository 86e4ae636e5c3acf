"""Material to adapt on: your rows, prompts that the teacher answers, or text that it writes itself."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.adapt.config import Data
from regraft.bypass.attach import attached
from regraft.errors import DataError, UsageError
from regraft.evaluate.answers import Answers, Schema
from regraft.evaluate.dataset import Encoded, Example, data_hash, encode, read_examples, split_examples
from regraft.evaluate.self_text import write_text
from regraft.progress import Progress, silent
from regraft.train.batches import Row
from regraft.train.teacher import Teacher

SHARE = 0.1  # of the rows, for each of dev and test, where the user gives only one file
ANSWER_TOKENS = 128  # longest answer that the teacher writes to a prompt
TEXT_TOKENS = 96  # length of a text that the teacher writes from nothing
CONTINUATION = 24  # tokens of such a text that a test row asks for


@dataclass(frozen=True)
class TestRow:
    """One row of the report card; ``example`` is what it was encoded from, None if there are tokens only."""

    prompt: str
    encoded: Encoded
    reference: str
    example: Example | None = None


@dataclass(frozen=True)
class Material:
    """Rows to train on, rows that pick the checkpoint, rows that are scored once at the end.

    ``max_new_tokens`` is where an answer is cut; None stands for the longest reference and a little. Where the
    references are the teacher's own, it is what cut those. ``examples`` are the train rows before they were encoded;
    answers to the test rows are scored once more held to ``schema``.
    """

    train: list[Row]
    dev: list[Row]
    test: list[TestRow]
    metric: str
    record: dict[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None
    examples: Sequence[Example] = ()
    schema: Schema | None = None

    @property
    def num_tokens(self) -> int:
        """Distinct training tokens."""
        return sum(len(row.ids) for row in self.train)


def from_examples(
    data: Path, dev: Path | None, test: Path | None, metric: str, tokenizer: Any, limits: Data, seed: int
) -> Material:
    """The user's own rows; what is not given is split off by a hash of the prompt.

    Raises:
        DataError: a file that cannot be used, or the same prompt in two of the files.
    """
    train = read_examples(data)
    named = {"dev": read_examples(dev) if dev else None, "test": read_examples(test) if test else None}
    for name, rows in named.items():
        if rows is None:
            train, named[name] = split_examples(train, SHARE, seed)
    splits = {"train": train, **{name: rows or [] for name, rows in named.items()}}
    _check_apart(splits)
    return _material(splits, metric, tokenizer, limits, {"source": data.name})


def _check_apart(splits: dict[str, list[Example]]) -> None:
    for name, rows in splits.items():
        if not rows:
            raise DataError(f"no {name} rows are left", hint="Give more rows, or --dev and --test files.")
    seen: dict[Any, str] = {}
    for name, rows in splits.items():
        for row in rows:
            key = json.dumps([row.messages, row.prompt])
            if seen.setdefault(key, name) != name:
                raise DataError(
                    f"{row.source}: this prompt is in the {seen[key]} rows too",
                    hint="Train, dev and test must not share prompts: the report would flatter the adapter.",
                )


def _material(
    splits: dict[str, list[Example]], metric: str, tokenizer: Any, limits: Data, record: dict[str, Any]
) -> Material:
    most = {"train": limits.max_examples, "dev": limits.dev_examples, "test": limits.test_examples}
    kept = {name: rows[: most[name]] for name, rows in splits.items()}
    encoded = {
        name: [encode(row, tokenizer, max_length=limits.max_tokens) for row in rows] for name, rows in kept.items()
    }
    record |= {name: {"rows": len(rows), "sha256": data_hash(rows)} for name, rows in kept.items()}
    test = [
        TestRow(row.prompt_text, ids, row.answer, row) for row, ids in zip(kept["test"], encoded["test"], strict=True)
    ]
    train, dev = ([Row.of(row) for row in encoded[name]] for name in ("train", "dev"))
    return Material(train, dev, test, metric, record, examples=kept["train"])


def from_prompts(
    path: Path,
    metric: str,
    teacher: Teacher,
    answers: Answers,
    limits: Data,
    seed: int,
    progress: Progress = silent,
) -> Material:
    """Prompts without answers: the teacher's greedy answers are the references, for the report card too.

    Args:
        path: see :func:`read_prompts`.
        metric: of the report card.
        teacher: whose adapter acts.
        answers: its base.
        limits: how many, and how long.
        seed: of the split.
        progress: told of what is left out.

    Raises:
        DataError: an unusable file, a prompt that is too long by itself, or too few prompts with an answer.
    """
    prompts = list(dict.fromkeys(read_prompts(path)))[
        : limits.max_examples + limits.dev_examples + limits.test_examples
    ]
    if len(prompts) < 3:
        raise DataError(str(path), expected="at least 3 distinct prompts", found=str(len(prompts)))
    base = teacher.base
    asked = [Example(None, prompt, "?", f"{path}: {prompt[:40]!r}") for prompt in prompts]
    encoded = [encode(example, base.tokenizer, max_length=limits.max_tokens) for example in asked]
    said = answers.answer(encoded, teacher.path, max_new_tokens=ANSWER_TOKENS, progress=progress)
    answered = [replace(example, answer=answer) for example, answer in zip(asked, said, strict=True) if answer.strip()]
    if unanswered := len(asked) - len(answered):
        progress.note(f"prompts left out, as the teacher's answer is empty: {unanswered}")
    if len(answered) < 3:
        raise DataError(f"{path}: the teacher gave an empty answer to nearly every prompt")
    fitting = [example for example in answered if _fits(example, base.tokenizer, limits.max_tokens)]
    if dropped := len(answered) - len(fitting):
        progress.note(f"prompts left out, as they exceed data.max_tokens with their answer: {dropped}")
    if len(fitting) < 3:
        raise DataError(f"{path}: nearly every prompt is too long with its answer", hint="Raise data.max_tokens.")
    rest, test = split_examples(fitting, SHARE, seed)
    train, dev = split_examples(rest, SHARE, seed)
    record = {"source": path.name, "answers": "written by the teacher"}
    splits = {"train": train, "dev": dev, "test": test}
    return replace(_material(splits, metric, base.tokenizer, limits, record), max_new_tokens=ANSWER_TOKENS)


def _fits(example: Example, tokenizer: Any, max_tokens: int) -> bool:
    encoded = encode(example, tokenizer)
    return len(encoded.prompt_ids) + len(encoded.answer_ids) <= max_tokens


def read_prompts(path: Path) -> list[str]:
    """One prompt a line: plain text, or JSON ``{"prompt": …}``.

    Raises:
        DataError: unreadable, empty, or a JSON line without a prompt.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None
    if not lines:
        raise DataError(str(path), expected="a prompt a line", found="an empty file")
    if path.suffix not in (".jsonl", ".json"):
        return lines
    return [_prompt(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _prompt(line: str, source: str) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{source}: not JSON: {error}") from None
    prompt = row.get("prompt") if isinstance(row, dict) else None
    if not isinstance(prompt, str) or not prompt.strip():
        raise DataError(source, expected='{"prompt": "…"}', found=line[:60])
    return prompt


def from_nothing(teacher: Teacher, answers: Answers, limits: Data, seed: int, progress: Progress = silent) -> Material:
    """No data at all: the teacher writes texts from its own start token and chat template.

    Test rows ask for the continuation of such a text; the reference is the teacher's own, so its score is 1.

    Raises:
        UsageError: texts of ``limits.max_tokens`` are too short to be continued, or the teacher writes nothing.
    """
    base, length = teacher.base, min(TEXT_TOKENS, limits.max_tokens)
    if length < 2 * CONTINUATION:
        raise UsageError(f"data.max_tokens: {length} is too short for texts that the teacher writes by itself")
    count = min(limits.max_examples, 256) + limits.dev_examples + min(limits.test_examples, 64)
    progress.note(f"no data: the teacher writes {count} texts of {length} tokens; their continuations score by rougeL")
    with attached(base.model, teacher.adapter.bypasses if teacher.adapter else {}):
        texts = write_text(
            base.model, base.tokenizer, num_sequences=count, sequence_length=length, seed=seed, progress=progress
        )
    texts = [list(text) for text in dict.fromkeys(map(tuple, texts))]
    random.Random(seed).shuffle(texts)  # they come by kind: documents, then conversations
    if len(texts) < 3:
        raise UsageError("the teacher writes the same text again and again", hint="Give --data or --prompts.")
    num_test = max(1, min(64, limits.test_examples, len(texts) // 5))
    starts = [Encoded(text[:-CONTINUATION], [base.tokenizer.eos_token_id]) for text in texts[:num_test]]
    said = answers.answer(starts, teacher.path, max_new_tokens=CONTINUATION, progress=progress)
    test = [_continuation(base.tokenizer, start, answer) for start, answer in zip(starts, said, strict=True)]
    test = [row for row in test if row.reference.strip()]
    if not test:
        raise UsageError("the teacher goes on with no text that it began", hint="Give --data or --prompts.")
    rows = [Row(text, len(text) - 1) for text in texts[num_test:]]
    num_dev = max(1, min(limits.dev_examples, len(rows) // 8))
    record = {"source": "texts written by the teacher", "rows": len(texts), "tokens_each": length}
    return Material(rows[num_dev:], rows[:num_dev], test, "rougeL", record, CONTINUATION)


def _continuation(tokenizer: Any, start: Encoded, answer: str) -> TestRow:
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"] or start.answer_ids
    return TestRow(tokenizer.decode(start.prompt_ids), Encoded(start.prompt_ids, ids), answer)


def calibration_batches(rows: Sequence[Row], num_tokens: int) -> list[Tensor]:
    """The first rows that together reach ``num_tokens``, as ``[B, T]`` without padding: by length."""
    by_length: dict[int, list[list[int]]] = {}
    total = 0
    for row in rows:
        by_length.setdefault(len(row.ids), []).append(row.ids)
        total += len(row.ids)
        if total >= num_tokens:
            break
    return [torch.tensor(ids) for ids in by_length.values()]
