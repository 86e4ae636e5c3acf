"""Differences between an answer and the teacher's, for marking: JSON field by field, text word by word."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from regraft.evaluate.metrics import parse_object

Kind = Literal["same", "changed", "missing"]

# Below this, what two texts have in common is accident, and marks between it would only confuse.
MIN_LIKENESS = 0.4


@dataclass(frozen=True)
class Part:
    """A stretch of an answer, or what the teacher has there and the answer has not; ``path`` is a JSON field's."""

    text: str
    kind: Kind
    path: str | None = None


def compare(answer: str, teacher: str) -> list[Part]:
    """The parts of ``answer``, marked where it differs from ``teacher``."""
    said, wanted = parse_object(answer), parse_object(teacher)
    if said and wanted:
        return _compare_fields(dict(fields(said)), dict(fields(wanted)))
    return _compare_words(answer.strip(), teacher.strip())


def fields(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of JSON data as (path, JSON literal); a path reads ``a.b[0]``."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from fields(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for index, inner in enumerate(value):
            yield from fields(inner, f"{path}[{index}]")
    else:
        yield path, json.dumps(value, ensure_ascii=False)


def _compare_fields(said: dict[str, str], wanted: dict[str, str]) -> list[Part]:
    """The teacher's fields in the teacher's order, then those that it has not."""
    parts = []
    for path, value in wanted.items():
        kind: Kind = "missing" if path not in said else "same" if said[path] == value else "changed"
        parts.append(Part(said.get(path, value), kind, path))
    return parts + [Part(value, "changed", path) for path, value in said.items() if path not in wanted]


def _compare_words(answer: str, teacher: str) -> list[Part]:
    said, wanted = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (answer, teacher))
    matcher = difflib.SequenceMatcher(None, wanted, said, autojunk=False)
    if matcher.ratio() < MIN_LIKENESS:
        return [Part(answer, "changed")] if answer else [Part(teacher, "missing")]
    parts = []
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "delete":
            parts.append(Part("".join(wanted[i1:i2]), "missing"))
        else:
            parts.append(Part("".join(said[j1:j2]), "same" if tag == "equal" else "changed"))
    return parts
