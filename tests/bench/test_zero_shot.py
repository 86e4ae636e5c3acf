"""The zero-shot suite: rows of the package become questions, recipes become bases, results a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lines
from benchmarks.zero_shot import TASKS, Made, questions, recipe_of
from benchmarks.zero_shot_table import METRICS, zero_shot
from regraft.evaluate.choices import read_questions
from tests.bench.test_tables import cells

BOOLQ = {"passage": "Foxes are quick.", "question": "are foxes quick", "answer": "True"}
PIQA = {"question": "open a jar", "options": "A. A. B. lid \nB. shake", "answer": "A. A. B. lid "}
OPENBOOK = {"question": "Foxes eat ", "options": "A. rock\nB. hens\nC. tar\nD. ice", "answer": "B. hens"}


@pytest.mark.parametrize(
    ("task", "row", "prompt", "choices", "answer"),
    [
        ("BoolQ", BOOLQ, "Foxes are quick.\nQuestion: are foxes quick?\nAnswer:", (" no", " yes"), 1),
        ("PIQA", PIQA, "Question: open a jar\nAnswer:", (" A. B. lid ", " shake"), 0),
        ("OpenBookQA", OPENBOOK, "Foxes eat", (" rock", " hens", " tar", " ice"), 1),
    ],
)
def test_a_row_is_asked_as_the_harness_does(
    tmp_path: Path, task: str, row: Any, prompt: str, choices: tuple[str, ...], answer: int
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(TASKS[task].ask(row)))
    (question,) = read_questions(path)
    assert (question.prompt, question.choices, question.answer) == (prompt, choices, answer)


def test_fewer_questions_are_drawn_alike_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.zero_shot.DATA", tmp_path)
    (tmp_path / "zero_shot").mkdir()
    rows = [TASKS["BoolQ"].ask(BOOLQ | {"question": f"q{number}"}) for number in range(50)]
    (tmp_path / "zero_shot" / "BoolQ.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    some = questions("BoolQ", 10)
    assert some == questions("BoolQ", 10) and len(some) == 10 and some != questions("BoolQ", None)[:10]
    assert len(questions("BoolQ", None)) == len(questions("BoolQ", 99)) == 50


@pytest.mark.parametrize(("tokens", "found"), [(None, 60_000), (20_480, 20_480), (0, None)])
def test_a_recipe_recovers_on_as_many_tokens_as_are_wanted(tokens: int | None, found: int | None) -> None:
    steps = recipe_of(Made("prune25", tokens)).steps
    assert [step.name for step in steps if step.name != "recover"] == ["prune", "quantize"]
    assert [step.recover.train.tokens for step in steps if step.recover] == ([] if found is None else [found])


def test_the_table_has_each_base_beside_the_uncompressed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    assert zero_shot() == ""
    scores = {"chance": 0.5, "majority": None, "acc_ci95": [0.1, 0.9], "acc_norm_ci95": [0.2, 0.8], "n": 4}
    right = {"uncompressed": ("1110", "1100"), "int4": ("1100", "1000")}
    found = [
        {"base": base, "task": task, **scores, "acc": one.count("1") / 4, "right": one}
        | {"acc_norm": norm.count("1") / 4, "right_norm": norm}
        for base, (one, norm) in right.items()
        for task in METRICS
    ]
    (tmp_path / "zero_shot.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    _, _, guess, dense, small, *theirs = cells(zero_shot())
    assert guess[1:] == ["0.500", "0.500", "0.500", "0.500", ""]
    assert dense[1:] == ["0.750 [0.100, 0.900]"] * 2 + ["0.500 [0.200, 0.800]", "0.667", ""]
    assert small[4] == "0.417" and small[5].startswith("-25.0 [-")
    assert [row[4:] for row in theirs] == [["0.646", ""], ["0.576", "-7.1"], ["0.605", "-4.1"]]
