"""What a line of the results says of an arm's answers: lift kept, retention, and the values that they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from regraft.adapt.arms import Asked
from regraft.adapt.material import Material
from regraft.evaluate.baseline import BaselineAnswers, best_kind
from regraft.evaluate.build_card import ArmRun
from regraft.evaluate.lift import TaskRows, lift_kept
from regraft.evaluate.metrics import Metric, agreement, exact, make_metric, mean_score, retention, row_values

DIGITS = 4


def judged(material: Material, asked: Asked, arm: ArmRun) -> dict[str, Any]:
    """The findings of one arm on the test rows; with a schema, those of answers that are held to it as well."""
    references = [row.reference for row in material.test]
    measure = make_metric(material.metric, references)
    assert not isinstance(asked.baseline, str)
    found = _scored(measure, references, arm.answers, asked.teacher.answers, asked.baseline.free)
    held = None
    if arm.constrained is not None and asked.teacher.constrained is not None and asked.baseline.constrained is not None:
        held = _scored(measure, references, arm.constrained, asked.teacher.constrained, asked.baseline.constrained)
    return {
        "metric": material.metric,
        "classes": len(set(references)) if material.metric == "choice" else None,
        "n": len(references),
        **found,
        "constrained": held,
        "exact": float(np.mean([exact(said, wanted) for said, wanted in zip(arm.answers, references, strict=True)])),
        "agreement": agreement(arm.answers, asked.teacher.answers),
        "kl": arm.kl,
        "bytes": arm.bytes,
        "answer_seconds": arm.seconds,
    }


def _scored(
    measure: Metric,
    references: Sequence[str],
    answers: Sequence[str],
    teacher: Sequence[str],
    without: BaselineAnswers,
) -> dict[str, Any]:
    kinds = without.values(measure, references)
    kind = best_kind(kinds)
    values, teacher_values = row_values(measure, answers, references), row_values(measure, teacher, references)
    rows = TaskRows(values, kinds[kind], teacher_values)
    score, kept, retained = mean_score(values), lift_kept(rows), retention(values, teacher_values)
    return {
        "score": score.value,
        "ci95": score.ci95,
        "teacher": float(np.mean(teacher_values)),
        "baseline": {name: float(np.mean(scored)) for name, scored in kinds.items()} | {"best": kind},
        "notes": dict(without.notes),
        "lift": rows.lift.value,
        "lift_error": rows.lift.error,
        "lift_kept": kept.value if kept else None,
        "lift_kept_ci95": kept.ci95 if kept else None,
        "no_lift": rows.lift.why_none,
        "retention": retained.value if retained else None,
        "retention_ci95": retained.ci95 if retained else None,
        "rows": {name: _short(column) for name, column in vars(rows).items()},
    }


def _short(column: Sequence[float]) -> list[float]:
    """Values as a file keeps them: a whole number without its point."""
    return [int(value) if value == int(value) else round(value, DIGITS) for value in column]
