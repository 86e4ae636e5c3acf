"""Result files read, and rows of text made a table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
Line = dict[str, Any]

# Bases of the recovery sweep that are no recipe by themselves, see :mod:`benchmarks.bases`.
ORIGINAL = "original"
CALIBRATED, BYTES = "+calibrated", "+bytes"


def lines_of(name: str) -> list[Line]:
    """The lines of a result file; none, if it was not made yet."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def whole(name: str) -> Any:
    """A result file; None, if it was not made yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def compression(phase: str) -> dict[str, Line]:
    """Name → line of one phase of ``benchmarks.compression``."""
    return {line["name"]: line for line in lines_of("compression") if line["phase"] == phase}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, or nothing where there is no row."""
    if not rows:
        return ""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])
