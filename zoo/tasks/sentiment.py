"""Sentiment in four domains: the VADER ground truth (MIT), labelled by the mean of human ratings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from zoo.packages import fetch, iter_inner_tar, read_member
from zoo.rows import Row

NEUTRAL = 0.45  # mean ratings run from -4 to 4
CLEAR = 0.9  # what lies between is left out
MAX_CHARACTERS = 220
PER_LABEL = 800


def movies(packages: Path) -> Iterator[Row]:
    """Film reviews → positive, neutral or negative."""
    return _rows(packages, "movieReviewSnippets_GroundTruth.txt", "Film review")


def products(packages: Path) -> Iterator[Row]:
    """Product reviews → positive, neutral or negative."""
    return _rows(packages, "amazonReviewSnippets_GroundTruth.txt", "Product review")


def tweets(packages: Path) -> Iterator[Row]:
    """Tweets → positive, neutral or negative."""
    return _rows(packages, "tweets_GroundTruth.txt", "Tweet")


def nyt(packages: Path) -> Iterator[Row]:
    """Sentences of New York Times editorials → positive, neutral or negative."""
    return _rows(packages, "nytEditorialSnippets_GroundTruth.txt", "Editorial")


def _rows(packages: Path, filename: str, title: str) -> Iterator[Row]:
    inner = read_member(fetch("vaderSentiment", packages), "hutto_ICWSM_2014.tar.gz")
    (data,) = (data for _, data in iter_inner_tar(inner, filename))
    seen: Counter[str] = Counter()
    for line in data.decode("utf-8", "replace").splitlines():
        name, rating, text = line.split("\t", 2)
        text, label = text.strip(), _label(float(rating))
        if label is None or not 12 <= len(text) <= MAX_CHARACTERS or seen[label] >= PER_LABEL:
            continue
        seen[label] += 1
        # Sentences of one review or editorial are numbered 116_17, 116_18, …
        source = name.split("_")[0] if "_" in name else text
        yield Row(f"{title}: {text}\nSentiment:", f" {label}", text, (source,))


def _label(rating: float) -> str | None:
    if abs(rating) <= NEUTRAL:
        return "neutral"
    if abs(rating) < CLEAR:
        return None
    return "positive" if rating > 0 else "negative"
