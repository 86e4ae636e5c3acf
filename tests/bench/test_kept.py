"""Tables and plot of lift kept: macro means over tasks, retention beside them, controls, and what is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import kept, kept_tables, lines, plot, table
from tests.bench.judged import judged, write_lines

MAIN = (("plugged_in", 0.5), ("closed_form", 0.8), ("ca_lora_linear", 0.96))
Lines = list[dict[str, Any]]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    return tmp_path


def main_lines(recipe: str, *tasks: str) -> Lines:
    return [judged(recipe, task, arm, share) for task in tasks for arm, share in MAIN]


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


@pytest.mark.parametrize(
    "name", ["recovery", "recovery, int3", "recovery, constrained", "recovery, bytes", "lift", "calibrated"]
)
def test_without_lines_there_is_no_table(results: Path, name: str) -> None:
    assert table.TABLES[name]() == ""
    old = {"phase": "test", "recipe": "int3", "task": "home", "arm": "plugged_in", "seed": 0, "score": 0.5}
    write_lines(results / "recovery.jsonl", [old])  # of the yardstick before
    assert table.TABLES[name]() == ""


def test_means_are_over_tasks_with_retention_beside_them(results: Path) -> None:
    found = [*main_lines("int3", "home"), *main_lines("int3", "movies")]
    found[3:] = [line | {"classes": 2} for line in found[3:]]
    found[3] |= judged("int3", "movies", "plugged_in", 0.3, classes=2)
    write_lines(results / "recovery.jsonl", found)
    header, _, *rows = cells(kept_tables.recipes({"int3": "3 bits"}))
    assert header[1] == "3 bits: home, movies (2 classes)"
    assert rows[0][0] == "plugged in, as it is"
    share, rest = rows[0][1].split(" [")
    assert share == "40.0%"
    assert rest.endswith("] / 60%")
    assert rows[2][1].startswith("96.0% [")


def test_a_task_without_lift_is_said_and_enters_no_mean(results: Path) -> None:
    flat = [judged("int3", "movies", arm, 0.0, teacher=0.3) for arm, _ in MAIN]
    write_lines(results / "recovery.jsonl", [*main_lines("int3", "home"), *flat])
    header, _, *rows = cells(kept_tables.recipes({"int3": "3 bits"}))
    assert header[1] == "3 bits: home, movies (no lift)"
    assert rows[0][1].startswith("50.0% [")
    assert cells(kept_tables.by_task("int3"))[4][1:] == [
        "50% [40, 60], score 0.500, KL 0.125",
        "no lift, score 0.250, KL 0.125",
    ]
    write_lines(results / "recovery.jsonl", flat)
    assert cells(kept_tables.recipes({"int3": "3 bits"}))[2][1] == "no lift"


def test_controls_stand_beside_the_arms_that_they_are_controls_of(results: Path) -> None:
    controls = [
        judged("original", "home", "continued", 1.04),
        judged("int3+bytes", "home", "plugged_in", 0.6),
        judged("int3+calibrated", "home", "plugged_in", 0.7),
        judged("int3+calibrated", "home", "ca_lora_linear", 0.98),
        judged("int4", "home", "plugged_in", 0.9),
    ]
    write_lines(results / "recovery.jsonl", [*main_lines("int3", "home"), *controls])
    rows = {row[0]: row[1].split(" [")[0] for row in cells(kept_tables.recipes({"int3": "3 bits"}))[2:]}
    assert rows == {
        "plugged in, as it is": "50.0%",
        "plugged in, more bits: as large as base and recovery": "60.0%",
        "plugged in, base calibrated on the tasks": "70.0%",
        "inherited + EoRA, no training": "80.0%",
        "**CA-LoRA**, linear recovery from EoRA": "96.0%",
        "**CA-LoRA**, base calibrated on the tasks": "98.0%",
        "the teacher, trained on as long": "104.0%",
    }


def test_arms_that_ran_on_fewer_tasks_get_a_column_of_their_own(results: Path) -> None:
    found = [*main_lines("int3", "home", "names"), judged("int3", "home", "new_lora", 0.9)]
    write_lines(results / "recovery.jsonl", found)
    header, _, *rows = cells(kept_tables.recipes({"int3": "3 bits"}))
    assert header[1:] == ["3 bits: home, names", "3 bits: home"]
    new = next(row for row in rows if row[0].startswith("new LoRA"))
    assert new[1] == "" and new[2].startswith("90.0%")


def test_further_seeds_stand_after_the_first(results: Path) -> None:
    found = [judged("int3", "home", "plugged_in", 0.5), judged("int3", "home", "plugged_in", 0.4, seed=1)]
    write_lines(results / "recovery.jsonl", found)
    rows = cells(kept_tables.by_task("int3"))[2:]
    assert rows[0] == ["teacher: uncompressed", "0.750"]
    assert rows[1] == ["baseline", "0.250, five-shot"]
    assert rows[2] == ["plugged in, as it is", "50% [40, 60]; 40%, score 0.500, KL 0.125"]


def test_tasks_are_listed_with_what_there_is_to_keep(results: Path) -> None:
    found = [
        judged("int3", "home", "plugged_in", 0.5),
        judged("int4", "movies", "plugged_in", 0.5, classes=2, teacher=0.3),
    ]
    write_lines(results / "recovery.jsonl", found)
    assert cells(kept_tables.tasks())[2:] == [
        ["home", "exact", "", "0.000", "**0.250**", "0.100", "0.750", "0.500 ± 0.050"],
        ["movies", "exact", "2", "0.000", "**0.250**", "0.100", "0.300", "0.050 ± 0.050, no lift"],
    ]


def test_free_and_held_answers_stand_side_by_side(results: Path) -> None:
    held = {"score": 0.7, "lift_kept": 0.9, "lift_kept_ci95": [0.8, 1.0]}
    found = [judged("int3", "home", "plugged_in", 0.5, constrained=held), judged("int3", "movies", "plugged_in", 0.5)]
    write_lines(results / "recovery.jsonl", found)
    assert cells(kept_tables.constrained("int3"))[0] == ["free → held to the schema", "home"]
    assert cells(kept_tables.constrained("int3"))[2][1] == "0.500 → 0.700, lift kept 50% → 90%"


def test_bytes_of_base_and_adapter_are_added_up(results: Path) -> None:
    controls = [judged("original", "home", "continued", 1.0), judged("int3+bytes", "home", "plugged_in", 0.6)]
    controls[1] |= {"base_bytes": 104_000_000}
    write_lines(results / "recovery.jsonl", [*main_lines("int3", "home"), *controls])
    rows = cells(kept_tables.sizes("int3"))[2:]
    assert rows[0] == ["plugged in, as it is", "99.0", "1.0", "100.0"]
    assert rows[1] == ["plugged in, more bits: as large as base and recovery", "104.0", "1.0", "105.0"]
    assert "the teacher, trained on as long" not in {row[0] for row in rows}


def test_a_base_calibrated_on_the_tasks_stands_below_the_one_that_was_not(results: Path) -> None:
    found = [judged("int3", "home", "plugged_in", 0.5), judged("int3+calibrated", "home", "plugged_in", 0.9)]
    write_lines(results / "recovery.jsonl", found)
    rows = cells(kept_tables.calibrated({"int3": "3 bits", "int4": "4 bits"}))[2:]
    assert [row[:2] for row in rows] == [["3 bits", "50%"], ["the same, calibrated on the tasks", "90%"]]


def test_rates_are_of_the_short_runs_of_this_yardstick(results: Path) -> None:
    short = {"phase": "select", "recipe": "int3", "task": "home", "arm": "ca_lora_linear", "seed": 0}
    found = [
        short | {"learning_rate": rate, "best_dev": loss, "data": {}} for rate, loss in ((0.001, 0.2), (0.003, 0.1))
    ]
    write_lines(results / "recovery.jsonl", [*found, short | {"learning_rate": 0.01, "best_dev": 0.01}])
    assert cells(kept_tables.rates())[2] == [
        "`int3`: **CA-LoRA**, linear recovery from EoRA",
        "0.001: 0.2000, 0.003: 0.1000",
        "0.003",
    ]


def test_the_plot_shows_lift_kept_with_its_interval(results: Path) -> None:
    quality = {"phase": "quality", "name": "int3", "bytes_after": 99_000_000, "bytes_float16": 269_000_000}
    write_lines(results / "compression.jsonl", [quality])
    write_lines(results / "recovery.jsonl", main_lines("int3", "home", "names"))
    found = {point.arm: point for point in plot.points()}
    assert [round(found[arm].kept) for arm, _ in MAIN] == [50, 80, 96]
    assert all(point.low < point.kept < point.high for point in found.values())
    assert found["plugged_in"].megabytes == 100
    assert plot.draw(list(found.values())).axes[0].get_ylabel().startswith("mean lift kept")
    assert kept.comparisons("int4") == []
