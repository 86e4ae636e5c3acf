"""Metrics, by table; scores and their intervals against what is known of coin tosses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from regraft.errors import DataError, UsageError
from regraft.evaluate.metrics import METRICS, Score, agreement, make_metric, mean_score, retention, score_answers

LABELS = ["interest", " interest rates", "Trade"]


@pytest.mark.parametrize(
    ("name", "prediction", "reference", "expected"),
    [
        ("exact", " yes\n", "yes", 1),
        ("exact", "Yes", "yes", 0),
        ("f1", "The Eiffel tower!", "eiffel tower", 1),
        ("f1", "the big tower", "tower of Paris", 2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3)),
        ("f1", "no no no", "no", 0.5),
        ("f1", "", "yes", 0),
        ("f1", "the", "a", 1),
        ("f1", "", "...", 1),
        ("rougeL", "police kill the gunman", "police killed the gunman", 0.75),
        ("rougeL", "the gunman kill police", "police killed the gunman", 0.5),
        ("rougeL", "Modèle supprimé", "modèle créé", 0.5),
        ("rougeL", "100 %", "100 %", 1),
        ("rougeL", "%", "%", 1),
        ("rougeL", "!", "%", 0),
        ("rougeL", "", "yes", 0),
        ("json-fields", ' {"b": 2, "a": "x"}', '{"a": "x", "b": 2}', 1),
        ("json-fields", '{"a": "x"}', '{"a": "x", "b": 2}', 2 / 3),
        ("json-fields", '{"a": "x", "b": "2"}', '{"a": "x", "b": 2}', 0.5),
        ("json-fields", '{"a": 2.0}', '{"a": 2}', 1),
        ("json-fields", '{"a": true}', '{"a": 1}', 0),
        ("json-fields", '{"a": null}', '{"a": "null"}', 0),
        ("json-fields", '{"a": {"b": [1, 2]}}', '{"a": {"b": [1, 3]}}', 0.5),
        ("json-fields", '{"a": {}}', '{"a": []}', 0),
        ("json-fields", "{}", "{}", 1),
        ("json-fields", '{"a": "x"', '{"a": "x"}', 0),
        ("json-fields", '{"a": "x"} and', '{"a": "x"}', 0),
        ("json-fields", '["a"]', '{"a": "x"}', 0),
        ("json-fields", "[" * 100_000, '{"a": "x"}', 0),
        ("choice", "Trade, surely", "Trade", 1),
        ("choice", " trade", "Trade", 1),
        ("choice", "interest rates", "interest", 0),
        ("choice", "interest rates", " interest rates", 1),
        ("choice", "interesting", "interest", 1),
        ("choice", "the trade", "Trade", 0),
        ("choice", "", "Trade", 0),
    ],
)
def test_metric(name: str, prediction: str, reference: str, expected: float) -> None:
    references = LABELS if name == "choice" else [reference]
    assert make_metric(name, references)(prediction, reference) == pytest.approx(expected)


@pytest.mark.parametrize("name", METRICS)
def test_reference_scores_one_against_itself(name: str) -> None:
    reference = '{"a": ["x", {"b": 1.5}], "c": false}'
    assert make_metric(name, [reference])(reference, reference) == 1


def test_deeply_nested_json_is_compared() -> None:
    deep = '{"a": ' * 500 + "1" + "}" * 500
    assert make_metric("json-fields", [deep])(deep, deep) == 1


def test_unknown_metric_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"^unknown metric 'rouge-l'\. Did you mean 'rougeL'\?$"):
        make_metric("rouge-l", ["x"])


def test_json_fields_wants_json_references() -> None:
    with pytest.raises(DataError, match=r"expected answers that are JSON objects, found 'yes'"):
        make_metric("json-fields", ["{}", "yes"])


def test_agreement_is_the_share_of_equal_answers() -> None:
    assert agreement(["a ", "b", "c", "d"], ["a", "b", "C", "x"]) == 0.5


def test_score_is_the_mean_over_answers() -> None:
    metric = make_metric("exact", [])
    assert score_answers(metric, ["a", "b", "c"], ["a", "x", "c"]).value == pytest.approx(2 / 3)


def test_no_answers_are_refused() -> None:
    with pytest.raises(DataError, match=r"^nothing to score: expected at least one answer, found none$"):
        mean_score([])


def test_interval_of_coin_tosses_is_that_of_the_normal_approximation() -> None:
    n, p = 400, 0.7
    tosses = [1.0] * round(n * p) + [0.0] * round(n * (1 - p))
    score = mean_score(tosses)
    half = 1.96 * math.sqrt(p * (1 - p) / n)
    assert score.value == pytest.approx(p)
    assert score.ci95 == pytest.approx((p - half, p + half), abs=0.006)
    assert score.n == n


def test_interval_covers_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(0)
    scores = [mean_score(rng.binomial(1, 0.6, size=120).astype(float).tolist()) for _ in range(40)]
    assert 35 <= sum(score.ci95[0] <= 0.6 <= score.ci95[1] for score in scores) <= 40


def test_score_depends_on_the_seed_only_through_its_interval() -> None:
    values = [0.0, 0.3, 1.0, 0.8, 0.1] * 9
    assert mean_score(values, seed=1) == mean_score(values, seed=1)
    assert mean_score(values, seed=1).ci95 != mean_score(values, seed=2).ci95


def test_retention_is_the_ratio_of_means() -> None:
    kept = retention([1.0, 0.0, 0.5], [1.0, 0.5, 0.5])
    assert kept is not None
    assert kept.value == pytest.approx(0.75)


def test_retention_of_an_equal_arm_is_certain_as_rows_are_paired() -> None:
    values = [0.0, 1.0, 0.4, 1.0, 0.0, 0.7]
    assert retention(values, values) == Score(1.0, (1.0, 1.0), 6)


def test_retention_of_nothing_is_none() -> None:
    assert retention([0.5], [0.0]) is None


def test_resamples_without_any_teacher_score_are_left_out() -> None:
    kept = retention([1.0, 0.0], [1.0, 0.0])
    assert kept is not None
    assert kept.ci95 == (1.0, 1.0)
