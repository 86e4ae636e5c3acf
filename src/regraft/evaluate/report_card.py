"""The report card of an adapter that was carried over: three arms that answered the same examples.

    teacher     the adapter on the uncompressed base
    plugged_in  the same adapter, put on the compressed base as it is
    adapted     the adapter that was made for the compressed base

Nothing here runs a model: the answers come in, the card comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regraft.config import Strict, parse
from regraft.errors import ConfigError, FormatError
from regraft.evaluate.metrics import agreement, exact, make_metric, mean_score, retention
from regraft.storage import read_json

REPORT_CARD_NAME = "report_card.json"
NUM_EXAMPLES = 3


@dataclass(frozen=True)
class ArmRun:
    """What came out of running one arm.

    Attributes:
        answers: the generated texts, one per example.
        kl: mean KL(teacher || arm) over the answer tokens, in nats; None where it was not measured.
        bytes: what the arm's adapter takes on disk; None if unknown.
        seconds: that generating the answers took; None if unknown.
    """

    answers: Sequence[str]
    kl: float | None = None
    bytes: int | None = None
    seconds: float | None = None


class ArmResult(Strict):
    """One arm's numbers. ``agreement`` is the share of examples on which it says what the teacher says."""

    score: float
    ci95: tuple[float, float]
    agreement: float
    kl: float | None = None
    bytes: int | None = None
    seconds: float | None = None


class ExampleAnswers(Strict):
    """One example with what each arm said to it."""

    prompt: str
    reference: str
    teacher: str
    plugged_in: str
    adapted: str


class ReportCard(Strict):
    """How much of a teacher's quality an adapter keeps on a compressed base.

    Attributes:
        metric: name of the metric behind every score.
        n: number of examples.
        teacher, plugged_in, adapted: the three arms.
        retention: ``adapted / teacher``; None where the teacher scores 0.
        retention_ci95: its 95 % confidence interval, both arms resampled together.
        won_back: share of ``teacher - plugged_in`` that the adapted arm wins back; None where nothing was lost.
        examples: a few rows, see :func:`choose_examples`.
        adapter, base: names.
        settings: what else is needed to make this card again: fingerprints, data hash, seed, versions.
        created: when, ISO 8601.
    """

    metric: str
    n: int
    teacher: ArmResult
    plugged_in: ArmResult
    adapted: ArmResult
    retention: float | None
    retention_ci95: tuple[float, float] | None
    won_back: float | None
    examples: tuple[ExampleAnswers, ...]
    adapter: str
    base: str
    settings: dict[str, Any]
    created: str

    def to_json(self) -> dict[str, Any]:
        """The card as plain JSON data."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, data: Any, source: str = "report card") -> ReportCard:
        """The card that :meth:`to_json` wrote.

        Raises:
            FormatError: it is no report card; names ``source`` and the key.
        """
        try:
            return parse(cls, data, source)
        except ConfigError as error:
            raise FormatError(str(error)) from None


def read_report_card(folder: Path) -> ReportCard:
    """The report card in an adapter's directory.

    Raises:
        FormatError: there is none, or it is no report card.
    """
    path = folder / REPORT_CARD_NAME
    return ReportCard.from_json(read_json(path), str(path))


def build_report_card(
    prompts: Sequence[str],
    references: Sequence[str],
    *,
    teacher: ArmRun,
    plugged_in: ArmRun,
    adapted: ArmRun,
    metric: str,
    adapter: str,
    base: str,
    settings: dict[str, Any],
    created: str,
    seed: int = 0,
) -> ReportCard:
    """Score three arms' answers to the same prompts; ``seed`` is the bootstrap's.

    Raises:
        UsageError: unknown metric.
        DataError: the references do not suit the metric, or there are none.
    """
    measure = make_metric(metric, references)
    arms = (teacher, plugged_in, adapted)
    values = [[measure(said, wanted) for said, wanted in zip(arm.answers, references, strict=True)] for arm in arms]
    results = [_result(arm, scored, teacher, seed) for arm, scored in zip(arms, values, strict=True)]
    kept = retention(values[2], values[0], seed=seed)
    return ReportCard(
        metric=metric,
        n=len(references),
        teacher=results[0],
        plugged_in=results[1],
        adapted=results[2],
        retention=kept.value if kept else None,
        retention_ci95=kept.ci95 if kept else None,
        won_back=won_back(*(result.score for result in results)),
        examples=tuple(choose_examples(prompts, references, *(arm.answers for arm in arms))),
        adapter=adapter,
        base=base,
        settings=settings,
        created=created,
    )


def _result(arm: ArmRun, values: list[float], teacher: ArmRun, seed: int) -> ArmResult:
    score = mean_score(values, seed=seed)
    return ArmResult(
        score=score.value,
        ci95=score.ci95,
        agreement=agreement(arm.answers, teacher.answers),
        kl=arm.kl,
        bytes=arm.bytes,
        seconds=arm.seconds,
    )


def won_back(teacher: float, plugged_in: float, adapted: float) -> float | None:
    """``(adapted - plugged_in) / (teacher - plugged_in)``; None where plugging in lost nothing.

    Above 1 where the adapted arm beats the teacher, below 0 where adapting did harm.
    """
    return (adapted - plugged_in) / (teacher - plugged_in) if teacher > plugged_in else None


def choose_examples(
    prompts: Sequence[str],
    references: Sequence[str],
    teacher: Sequence[str],
    plugged_in: Sequence[str],
    adapted: Sequence[str],
) -> list[ExampleAnswers]:
    """Three rows to look at: first those where plugging in changed the teacher's answer, in the order of their hashes.

    The adapted arm's answers have no say in it, so its failures are shown as often as they come.
    """
    rows = [
        ExampleAnswers(**{name: text.strip() for name, text in zip(ExampleAnswers.model_fields, texts, strict=True)})
        for texts in zip(prompts, references, teacher, plugged_in, adapted, strict=True)
    ]

    def key(row: ExampleAnswers) -> tuple[float, str]:
        return exact(row.plugged_in, row.teacher), hashlib.sha256(row.prompt.encode()).hexdigest()

    return sorted(rows, key=key)[:NUM_EXAMPLES]
