"""Answer a test set and score the answers: what ``regraft eval`` does."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.evaluate.answers import Answers, Runtime, Schema
from regraft.evaluate.dataset import Example, encode
from regraft.evaluate.metrics import Score, make_metric, score_answers
from regraft.progress import Progress, silent
from regraft.storage import write_bytes


@dataclass(frozen=True)
class Scored:
    """A metric's score, the answers that earned it, and the seconds they took.

    ``constrained`` is the score of answers that keep to a schema, where there is one.
    """

    metric: str
    score: Score
    answers: list[str]
    seconds: float
    base: str
    adapter: str | None
    runtime: Runtime
    constrained: Score | None = None

    def to_json(self) -> dict[str, Any]:
        """``{"metric", "score", "ci95", "n", …}``."""
        held = self.constrained
        return {
            "metric": self.metric,
            "score": self.score.value,
            "ci95": list(self.score.ci95),
            "n": self.score.n,
            "constrained": held and {"score": held.value, "ci95": list(held.ci95)},
            "base": self.base,
            "adapter": self.adapter,
            "answers": self.runtime,
            "seconds": round(self.seconds, 2),
        }


def score_examples(
    answers: Answers,
    examples: Sequence[Example],
    *,
    metric: str,
    adapter: Path | None = None,
    max_new_tokens: int | None = None,
    schema: Schema | None = None,
    progress: Progress = silent,
) -> Scored:
    """Answer every example, greedily, and score the answers against the references; with a schema, once more by it.

    Raises:
        UsageError: no such metric.
        DataError: an example that does not fit the base.
        Further errors: see :meth:`regraft.evaluate.answers.Answers.answer`.
    """
    start = time.monotonic()
    references = [example.answer for example in examples]
    measure = make_metric(metric, references)
    encoded = [encode(example, answers.tokenizer) for example in examples]

    def said(schema: Schema | None) -> list[str]:
        return answers.answer(encoded, adapter, max_new_tokens=max_new_tokens, schema=schema, progress=progress)

    free = said(None)
    held = score_answers(measure, said(schema), references) if schema is not None else None
    seconds = time.monotonic() - start
    score = score_answers(measure, free, references)
    name = adapter.name if adapter else None
    return Scored(metric, score, free, seconds, answers.name, name, answers.runtime, held)


def write_answers(path: Path, examples: Sequence[Example], answers: Sequence[str]) -> None:
    """One JSON line per example: its prompt or messages, the reference, and the answer."""
    lines = [
        {"prompt": example.prompt_text, "reference": example.answer, "answer": answer}
        for example, answer in zip(examples, answers, strict=True)
    ]
    write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
