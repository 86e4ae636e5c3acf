"""A result line says of an arm what the rows of it say."""

from __future__ import annotations

import json

import pytest
from pydantic import TypeAdapter

from benchmarks.judge import judged
from benchmarks.kept import task_rows
from regraft.adapt.arms import Asked
from regraft.adapt.material import Material
from regraft.adapt.material import TestRow as Scored
from regraft.evaluate.baseline import BaselineAnswers
from regraft.evaluate.build_card import ArmRun, Baselines
from regraft.evaluate.dataset import Encoded
from regraft.evaluate.lift import lift_kept

N = 40


def right(count: int) -> list[str]:
    return [str(number % 2) if number < count else "?" for number in range(N)]


def material(metric: str = "choice") -> Material:
    return Material([], [], [Scored("", Encoded([1], [2]), str(number % 2)) for number in range(N)], metric)


ASKED = Asked(
    ArmRun(right(36), right(40)),
    Baselines(
        BaselineAnswers({"zero_shot": right(0), "majority": ["1"] * N}, {"five_shot": "not known: no room"}),
        BaselineAnswers({"zero_shot": right(10)}),
    ),
)


def test_a_line_has_shares_and_the_rows_that_they_come_from() -> None:
    found = judged(material(), ASKED, ArmRun(right(30), kl=0.5, bytes=7, seconds=1.5))
    assert json.loads(json.dumps(found)) == found | {key: list(found[key]) for key in found if key.endswith("ci95")}
    assert (found["score"], found["teacher"], found["n"], found["classes"]) == (0.75, 0.9, N, 2)
    assert found["baseline"] == {"zero_shot": 0.0, "majority": 0.5, "best": "majority"}
    assert found["notes"] == {"five_shot": "not known: no room"}
    rows = task_rows(found)
    kept = lift_kept(rows)
    assert kept is not None and found["lift_kept"] == kept.value == pytest.approx((0.75 - 0.5) / (0.9 - 0.5))
    assert found["retention"] == pytest.approx(0.75 / 0.9)
    assert (sum(rows.values), sum(rows.baseline), sum(rows.teacher)) == (30, 20, 36)
    assert (found["constrained"], found["bytes"], found["answer_seconds"]) == (None, 7, 1.5)


def test_answers_that_are_held_to_a_schema_have_a_baseline_of_their_own() -> None:
    found = judged(material("exact"), ASKED, ArmRun(right(30), right(34)))
    assert (found["constrained"]["score"], found["constrained"]["teacher"]) == (0.85, 1.0)
    assert found["constrained"]["lift_kept"] == pytest.approx((0.85 - 0.25) / 0.75)
    assert found["classes"] is None


def test_what_was_asked_once_is_read_again_as_it_was() -> None:
    kind = TypeAdapter(Asked)
    assert kind.validate_json(kind.dump_json(ASKED)) == ASKED
