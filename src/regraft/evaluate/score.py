"""Answer a test set and score the answers: what ``regraft eval`` does, and each arm of a report card."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.evaluate.dataset import Example, encode
from regraft.evaluate.generate import generate
from regraft.evaluate.metrics import Score, make_metric, score_answers
from regraft.models.load import Base
from regraft.progress import Progress, silent
from regraft.storage import write_bytes


@dataclass(frozen=True)
class Scored:
    """A metric's score, the answers that earned it, and the seconds they took."""

    metric: str
    score: Score
    answers: list[str]
    seconds: float
    base: str
    adapter: str | None

    def to_json(self) -> dict[str, Any]:
        """``{"metric", "score", "ci95", "n", …}``."""
        return {
            "metric": self.metric,
            "score": self.score.value,
            "ci95": list(self.score.ci95),
            "n": self.score.n,
            "base": self.base,
            "adapter": self.adapter,
            "seconds": round(self.seconds, 2),
        }


def score_examples(
    base: Base,
    examples: Sequence[Example],
    *,
    metric: str,
    adapter: Adapter | None = None,
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    progress: Progress = silent,
) -> Scored:
    """Generate an answer to every example, greedily, and score it against the reference.

    Raises:
        UsageError: no such metric.
    """
    start = time.monotonic()
    encoded = [encode(example, base.tokenizer) for example in examples]
    with attached(base.model, adapter.bypasses if adapter else {}):
        answers = generate(
            base.model,
            base.tokenizer,
            encoded,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )
    references = [example.answer for example in examples]
    score = score_answers(make_metric(metric, references), answers, references)
    seconds = time.monotonic() - start
    return Scored(metric, score, answers, seconds, base.name, adapter.name if adapter else None)


def write_answers(path: Path, examples: Sequence[Example], answers: Sequence[str]) -> None:
    """One JSON line per example: its prompt or messages, the reference, and the answer."""
    lines = [
        {"prompt": example.prompt_text, "reference": example.answer, "answer": answer}
        for example, answer in zip(examples, answers, strict=True)
    ]
    write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
