"""Near-twins: texts whose sets of character 5-grams are alike (Jaccard), found by prefix filtering.

Two sets with a Jaccard of at least ``t`` share one of the ``|a| - ceil(t |a|) + 1`` rarest members of each (Bayardo, Ma
and Srikant 2007, "Scaling up all pairs similarity search", section 4). So only rare grams are looked up, and each pair
that they bring up is then measured exactly.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

from zoo.rows import Row

LENGTH = 5
THRESHOLD = 0.8
SHARE = 0.5  # whole prompts are compared where at least this share of both is the text that varies


def grams(text: str) -> frozenset[str]:
    """The text's character 5-grams, with case and runs of white space made equal; a shorter text is one gram."""
    plain = " ".join(text.casefold().split())
    return frozenset(plain[start : start + LENGTH] for start in range(max(1, len(plain) - LENGTH + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Size of the intersection over that of the union."""
    common = len(a & b)
    return common / (len(a) + len(b) - common)


def find_twins(texts: Sequence[str], others: Sequence[str], threshold: float = THRESHOLD) -> dict[int, int]:
    """For each of ``texts`` that has a near-twin among ``others``: its place, and the place of the first such twin."""
    ours, theirs = [grams(text) for text in texts], [grams(text) for text in others]
    rarity = Counter(gram for row in (*ours, *theirs) for gram in row)
    by_gram = defaultdict(list)
    for place, row in enumerate(theirs):
        for gram in _prefix(row, rarity, threshold):
            by_gram[gram].append(place)
    twins = {}
    for place, row in enumerate(ours):
        candidates = {other for gram in _prefix(row, rarity, threshold) for other in by_gram.get(gram, ())}
        alike = [other for other in candidates if jaccard(row, theirs[other]) > threshold]
        if alike:
            twins[place] = min(alike)
    return twins


def _prefix(row: frozenset[str], rarity: Counter[str], threshold: float) -> list[str]:
    rarest_first = sorted(row, key=lambda gram: (rarity[gram], gram))
    # The small number keeps 0.8 * 5 = 4.000…1 from being rounded up, which would lose pairs.
    return rarest_first[: len(row) - math.ceil(threshold * len(row) - 1e-9) + 1]


def find_twin_rows(rows: Sequence[Row], others: Sequence[Row]) -> dict[int, int]:
    """As ``find_twins``, by the text that varies and, where that is most of the prompt, by the whole prompt."""
    ours, theirs = _whole(rows), _whole(others)
    found = find_twins([rows[place].prompt for place in ours], [others[place].prompt for place in theirs])
    by_prompt = {ours[place]: theirs[other] for place, other in found.items()}
    return by_prompt | find_twins([row.text for row in rows], [row.text for row in others])


def _whole(rows: Sequence[Row]) -> list[int]:
    return [place for place, row in enumerate(rows) if len(row.text) >= SHARE * len(row.prompt)]
