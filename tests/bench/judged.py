"""Result lines of the recovery sweep, as :mod:`benchmarks.judge` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

N = 100


def judged(recipe: str, task: str, arm: str, kept: float, **changes: Any) -> dict[str, Any]:
    """A line whose arm keeps so much of a lift from 0.25 to 0.75, of 100 rows."""
    teacher, baseline = changes.pop("teacher", 0.75), changes.pop("baseline", 0.25)
    score = baseline + kept * (teacher - baseline)
    has_lift = teacher - baseline >= 0.15
    known = {"phase": "test", "recipe": recipe, "task": task, "arm": arm, "seed": 0, "n": N, "metric": "exact"}
    found = {
        "classes": None,
        "score": score,
        "teacher": teacher,
        "baseline": {"zero_shot": 0.0, "five_shot": baseline, "majority": 0.1, "best": "five_shot"},
        "lift": teacher - baseline,
        "lift_error": 0.05,
        "lift_kept": kept if has_lift else None,
        "lift_kept_ci95": [kept - 0.1, kept + 0.1] if has_lift else None,
        "no_lift": None if has_lift else "too little",
        "retention": score / teacher,
        "constrained": None,
        "rows": {"values": right(score), "baseline": right(baseline), "teacher": right(teacher)},
        "kl": 0.125,
        "bytes": 1_000_000,
        "base_bytes": None if recipe == "original" else 99_000_000,
        "data": {"test": "0" * 16},
    }
    return known | found | changes


def right(share: float) -> list[int]:
    """Values of rows, of which so many are right."""
    return [int(number < round(share * N)) for number in range(N)]


def write_lines(path: Path, found: list[dict[str, Any]]) -> None:
    """A result file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
