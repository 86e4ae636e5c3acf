"""Metrics: how close an answer is to its reference, in [0, 1].

    exact        equal but for white space around
    f1           token F1 after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1)
    rougeL       F-measure of the longest common subsequence of words (Lin 2004, ROUGE, section 3.1)
    json-fields  F1 over the (path, value) pairs of two JSON objects; what is no JSON object scores 0
    choice       the label that the text starts with, of the distinct answers in the data, upper and lower case alike

A score is a metric's mean over the examples, with its confidence interval.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from regraft.config import suggest
from regraft.errors import DataError, UsageError
from regraft.evaluate.bootstrap import ci95, resampled_means

Metric = Callable[[str, str], float]  # (prediction, reference) -> [0, 1]

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Score:
    """An estimate from ``n`` examples, with the ends of its 95 % confidence interval."""

    value: float
    ci95: tuple[float, float]
    n: int


def make_metric(name: str, references: Sequence[str]) -> Metric:
    """The named metric, made for data with these reference answers.

    Raises:
        UsageError: there is no such metric.
        DataError: the references do not suit it.
    """
    if name not in METRICS:
        raise UsageError(f"unknown metric {name!r}", hint=suggest(name, METRICS))
    return METRICS[name](references)


def score_answers(metric: Metric, answers: Sequence[str], references: Sequence[str], *, seed: int = 0) -> Score:
    """The metric's mean over the answers; ``seed`` is the bootstrap's.

    Raises:
        DataError: there are none.
    """
    return mean_score(row_values(metric, answers, references), seed=seed)


def row_values(metric: Metric, answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """The metric of each answer."""
    return [metric(answer, wanted) for answer, wanted in zip(answers, references, strict=True)]


def mean_score(values: Sequence[float], *, seed: int = 0) -> Score:
    """The mean of per-example values.

    Raises:
        DataError: there are none.
    """
    if not values:
        raise DataError("nothing to score", expected="at least one answer", found="none")
    return Score(float(np.mean(values)), ci95(resampled_means(values, seed=seed)[:, 0]), len(values))


def retention(values: Sequence[float], teacher: Sequence[float], *, seed: int = 0) -> Score | None:
    """How much of the teacher's score is kept, ``mean(values) / mean(teacher)`` on the same examples.

    None where the teacher scores nothing; resamples in which it scores nothing are left out of the interval.
    """
    whole = float(np.mean(teacher))
    if whole == 0:
        return None
    means = resampled_means(values, teacher, seed=seed)
    means = means[means[:, 1] > 0]
    return Score(float(np.mean(values)) / whole, ci95(means[:, 0] / means[:, 1]), len(values))


def agreement(answers: Sequence[str], others: Sequence[str]) -> float:
    """Share of the examples on which two models say the same."""
    return float(np.mean([exact(answer, other) for answer, other in zip(answers, others, strict=True)]))


def exact(prediction: str, reference: str) -> float:
    """1 if both are equal but for white space around, else 0."""
    return float(prediction.strip() == reference.strip())


def f1(prediction: str, reference: str) -> float:
    """SQuAD's token F1: lower case, without punctuation and English articles."""
    found, wanted = _squad_tokens(prediction), _squad_tokens(reference)
    if not found or not wanted:
        return float(found == wanted)
    return _counter_f1(Counter(found), Counter(wanted))


def _squad_tokens(text: str) -> list[str]:
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L with β = 1, no stemming.

    Words are runs of letters and digits of any script; the ``rouge_score`` package knows only a-z and 0-9, which cuts
    French words at their accents. Texts without a word are compared as they stand.
    """
    found, wanted = (re.findall(r"\w+", text.lower()) for text in (prediction, reference))
    if not found or not wanted:
        return exact(prediction, reference)
    return _f_measure(_lcs_length(found, wanted), len(found), len(wanted))


def _lcs_length(a: Sequence[str], b: Sequence[str]) -> int:
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def json_fields(prediction: str, reference: str) -> float:
    """F1 over (path, value) pairs; the order of keys does not matter, that of lists does."""
    found, wanted = parse_object(prediction), parse_object(reference)
    if found is None or wanted is None:
        return 0.0
    return _counter_f1(Counter(_leaves(found)), Counter(_leaves(wanted)))


def parse_object(text: str) -> dict[str, Any] | None:
    """The JSON object that the text is, or None if it is anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _leaves(root: Any) -> Iterator[tuple[tuple[str | int, ...], Hashable]]:
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), root)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict | list) and value:
            items = value.items() if isinstance(value, dict) else enumerate(value)
            stack.extend(((*path, key), inner) for key, inner in items)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            yield path, value
        else:  # Python takes True == 1, and cannot hash {}
            yield path, (json.dumps(value),)


def _make_json_fields(references: Sequence[str]) -> Metric:
    for reference in references:
        if parse_object(reference) is None:
            raise DataError("metric json-fields", expected="answers that are JSON objects", found=repr(reference[:60]))
    return json_fields


def _make_choice(references: Sequence[str]) -> Metric:
    # Longest first: "interest rates" must not be taken for "interest".
    labels = sorted({_label(reference) for reference in references}, key=lambda label: (-len(label), label))

    def choice(prediction: str, reference: str) -> float:
        """1 if the prediction starts with the reference's label, and with no longer one."""
        text = _label(prediction)
        return float(next((label for label in labels if text.startswith(label)), None) == _label(reference))

    return choice


def _label(text: str) -> str:
    return text.strip().casefold()


def _counter_f1(found: Counter[Any], wanted: Counter[Any]) -> float:
    return _f_measure((found & wanted).total(), found.total(), wanted.total())


def _f_measure(common: int, num_found: int, num_wanted: int) -> float:
    """``2 P R / (P + R)`` with ``P = common / num_found`` and ``R = common / num_wanted``."""
    return 2 * common / (num_found + num_wanted)


METRICS: dict[str, Callable[[Sequence[str]], Metric]] = {
    "exact": lambda references: exact,
    "f1": lambda references: f1,
    "rougeL": lambda references: rouge_l,
    "json-fields": _make_json_fields,
    "choice": _make_choice,
}
