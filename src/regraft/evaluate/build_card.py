"""Makes a report card of answers. Nothing here runs a model: the answers come in, the card comes out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.evaluate.answers import Runtime
from regraft.evaluate.baseline import Baseline, BaselineAnswers, Kind, best_kind
from regraft.evaluate.lift import TaskRows, lift_kept, share_kept
from regraft.evaluate.metrics import Metric, agreement, exact, make_metric, mean_score, retention, row_values
from regraft.evaluate.report_card import ArmResult, Constrained, ExampleAnswers, ReportCard

NUM_EXAMPLES = 3

Values = dict[str, list[float]]  # arm → value of each row


@dataclass(frozen=True)
class ArmRun:
    """What came out of running one arm.

    Attributes:
        answers: the generated texts, one per example.
        constrained: those that were held to a schema; None where there is none.
        kl: mean KL(teacher || arm) over the answer tokens, in nats; None where it was not measured.
        bytes: what the arm's adapter takes on disk; None if unknown.
        seconds: that generating the answers took; None if unknown.
    """

    answers: Sequence[str]
    constrained: Sequence[str] | None = None
    kl: float | None = None
    bytes: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Baselines:
    """What is answered without the adapter: freely, and held to the schema where there is one."""

    free: BaselineAnswers
    constrained: BaselineAnswers | None = None


def build_report_card(
    prompts: Sequence[str],
    references: Sequence[str],
    *,
    teacher: ArmRun,
    plugged_in: ArmRun,
    adapted: ArmRun,
    baseline: Baselines | str,
    metric: str,
    adapter: str,
    base: str,
    settings: dict[str, Any],
    created: str,
    runtime: Runtime | None = None,
    seed: int = 0,
) -> ReportCard:
    """Score three arms' answers to the same prompts.

    Args:
        prompts: one per example.
        references: the right answers.
        teacher: the first arm.
        plugged_in: the second.
        adapted: the third, which the card is of.
        baseline: what is answered without the adapter; or why there is nothing of the kind.
        metric: its name.
        adapter: name of the adapter.
        base: name of the compressed base.
        settings: what is needed to make the card again.
        created: when, ISO 8601.
        runtime: what gave the answers.
        seed: the bootstrap's.

    Raises:
        UsageError: unknown metric.
        DataError: the references do not suit the metric, or there are none.
    """
    measure = make_metric(metric, references)
    arms = {"teacher": teacher, "plugged_in": plugged_in, "adapted": adapted}
    values = {name: row_values(measure, arm.answers, references) for name, arm in arms.items()}
    zero = baseline if isinstance(baseline, str) else _Zero.of(baseline.free, measure, references)
    results = {name: _result(arm, values[name], teacher, seed) for name, arm in arms.items()}
    shares = _shares_kept(values, zero)
    return ReportCard(
        **_kept(values, zero, seed),
        metric=metric,
        n=len(references),
        answers=runtime,
        **{name: result.model_copy(update={"lift_kept": shares.get(name)}) for name, result in results.items()},
        constrained=_constrained(arms, baseline, measure, references, seed),
        won_back=won_back(*(result.score for result in results.values())),
        examples=tuple(choose_examples(prompts, references, *(arm.answers for arm in arms.values()))),
        adapter=adapter,
        base=base,
        settings=settings,
        created=created,
    )


@dataclass(frozen=True)
class _Zero:
    """The values of each kind of baseline by row, and what is to be known of it."""

    values: Mapping[Kind, list[float]]
    notes: Mapping[Kind, str]

    @classmethod
    def of(cls, answers: BaselineAnswers, measure: Metric, references: Sequence[str]) -> _Zero:
        return cls(answers.values(measure, references), answers.notes)

    @property
    def best(self) -> list[float]:
        return self.values[best_kind(self.values)]

    def baseline(self, rows: TaskRows) -> Baseline:
        kind, found = best_kind(self.values), rows.lift
        scores: dict[Kind, float] = {kind: float(np.mean(values)) for kind, values in self.values.items()}
        return Baseline(
            kind=kind,
            score=scores[kind],
            lift=found.value,
            lift_error=found.error if math.isfinite(found.error) else None,
            scores=scores,
            notes=dict(self.notes),
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


def _kept(values: Values, zero: _Zero | str, seed: int) -> dict[str, Any]:
    """The fields of :class:`regraft.evaluate.report_card.Kept`."""
    retained = retention(values["adapted"], values["teacher"], seed=seed)
    fields: dict[str, Any] = {
        "retention": retained.value if retained else None,
        "retention_ci95": retained.ci95 if retained else None,
    }
    if isinstance(zero, str):
        return fields | {"no_lift": zero}
    rows = TaskRows(values["adapted"], zero.best, values["teacher"])
    kept = lift_kept(rows, seed=seed)
    return fields | {
        "lift_kept": kept.value if kept else None,
        "lift_kept_ci95": kept.ci95 if kept else None,
        "no_lift": rows.lift.why_none,
        "baseline": zero.baseline(rows),
    }


def _shares_kept(values: Values, zero: _Zero | str) -> dict[str, float]:
    """Arm → lift kept; empty where there is no lift."""
    if isinstance(zero, str):
        return {}
    kept = {name: share_kept(TaskRows(scored, zero.best, values["teacher"])) for name, scored in values.items()}
    return {name: share for name, share in kept.items() if share is not None}


def _constrained(
    arms: Mapping[str, ArmRun], baseline: Baselines | str, measure: Metric, references: Sequence[str], seed: int
) -> Constrained | None:
    answers = {name: arm.constrained for name, arm in arms.items()}
    values = {name: row_values(measure, said, references) for name, said in answers.items() if said is not None}
    if values.keys() != arms.keys():
        return None
    if isinstance(baseline, str) or baseline.constrained is None:
        zero: _Zero | str = baseline if isinstance(baseline, str) else "no baseline was held to the schema"
    else:
        zero = _Zero.of(baseline.constrained, measure, references)
    scores = {name: float(np.mean(scored)) for name, scored in values.items()}
    return Constrained(**scores, **_kept(values, zero, seed))


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
