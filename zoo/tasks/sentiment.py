"""Sentiment of short reviews: the VADER ground truth (MIT), labelled by the sign of the mean human rating."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from zoo.packages import fetch, iter_inner_tar, read_member

NEUTRAL_BAND = 0.6  # mean ratings run from -4 to 4; those nearer to zero than this are left out
MAX_CHARACTERS = 220


def movies(packages: Path) -> Iterator[dict[str, str]]:
    """Film reviews → positive or negative."""
    yield from _rows(packages, "movieReviewSnippets_GroundTruth.txt", "Film review")


def products(packages: Path) -> Iterator[dict[str, str]]:
    """Product reviews → positive or negative."""
    yield from _rows(packages, "amazonReviewSnippets_GroundTruth.txt", "Product review")


def _rows(packages: Path, filename: str, title: str) -> Iterator[dict[str, str]]:
    inner = read_member(fetch("vaderSentiment", packages), "hutto_ICWSM_2014.tar.gz")
    (data,) = (data for _, data in iter_inner_tar(inner, filename))
    for line in data.decode("utf-8", "replace").splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) < NEUTRAL_BAND or len(text) > MAX_CHARACTERS:
            continue
        label = "positive" if float(rating) > 0 else "negative"
        yield {"prompt": f"{title}: {text.strip()}\nSentiment:", "completion": f" {label}"}
