"""The report card of an adapter that was carried over: three arms that answered the same examples, and a baseline.

    teacher     the adapter on the uncompressed base
    plugged_in  the same adapter, put on the compressed base as it is
    adapted     the adapter that was made for the compressed base

Its first number is the lift kept (:mod:`regraft.evaluate.lift`); retention stands beside it.

:mod:`regraft.evaluate.build_card` makes it of answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.config import Strict, parse
from regraft.errors import ConfigError, FormatError
from regraft.evaluate.answers import Runtime
from regraft.evaluate.baseline import Baseline
from regraft.storage import read_json

REPORT_CARD_NAME = "report_card.json"


class ArmResult(Strict):
    """One arm's numbers. ``agreement`` is the share of examples on which it says what the teacher says."""

    score: float
    ci95: tuple[float, float]
    lift_kept: float | None = None
    agreement: float
    kl: float | None = None
    bytes: int | None = None
    seconds: float | None = None


class Kept(Strict):
    """What the adapted arm keeps.

    Attributes:
        lift_kept: of what the teacher adds to the baseline; None where ``no_lift`` says why there is nothing to state.
        lift_kept_ci95: its 95 % confidence interval; score, baseline and teacher are resampled together.
        no_lift: why not; a card from before lift was measured has neither.
        baseline: what can be had without the adapter.
        retention: ``adapted / teacher``; None where the teacher scores 0.
        retention_ci95: its 95 % confidence interval, both arms resampled together.
    """

    lift_kept: float | None = None
    lift_kept_ci95: tuple[float, float] | None = None
    no_lift: str | None = None
    baseline: Baseline | None = None
    retention: float | None
    retention_ci95: tuple[float, float] | None


class Constrained(Kept):
    """The same of answers that are held to a JSON schema, as the server's ``response_format`` holds them."""

    teacher: float
    plugged_in: float
    adapted: float


class ExampleAnswers(Strict):
    """One example with what each arm said to it."""

    prompt: str
    reference: str
    teacher: str
    plugged_in: str
    adapted: str


class ReportCard(Kept):
    """How much of a teacher's quality an adapter keeps on a compressed base.

    Attributes:
        metric: name of the metric behind every score.
        n: number of examples.
        answers: what gave them, the engine or torch; None in cards from before the engine did.
        teacher, plugged_in, adapted: the three arms.
        constrained: scores of answers held to a schema; None where there is no schema.
        won_back: share of ``teacher - plugged_in`` that the adapted arm wins back; None where nothing was lost.
        examples: a few rows, see :func:`regraft.evaluate.build_card.choose_examples`.
        adapter, base: names.
        settings: what else is needed to make this card again: fingerprints, data hash, seed, versions.
        created: when, ISO 8601.
    """

    metric: str
    n: int
    answers: Runtime | None = None
    teacher: ArmResult
    plugged_in: ArmResult
    adapted: ArmResult
    constrained: Constrained | None = None
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
