"""The tables of the engine's measurements, from small result files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import lines, table
from tests.bench.judged import judged, write_lines


def row(engine: str, variant: str, workload: str, rate: float | None, **rest: Any) -> dict[str, Any]:
    known = {"engine": engine, "variant": variant, "workload": workload, "tokens_per_s": rate, "seconds": 0.5}
    return known | {"bytes_per_token": rate and 7e7, "roofline_share": rate and 0.8, "rounds": [rate]} | rest


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lines, "RESULTS", tmp_path)
    return tmp_path


def write_engine(folder: Path) -> None:
    rows = [
        row("regraft", "q4_0", "decode-8", 400.0),
        row("regraft", "q4_1", "decode-8", 380.0),
        row("regraft", "q4_0", "decode-8-lora", 320.0),
        row("regraft", "q4_0", "prefill-512", 900.0),
        row("llama.cpp", "q4_0", "decode-8", 150.0),
        row("llama.cpp", "q4_1", "decode-8", 200.0),
        row("regraft", "q4_0", "load", None, seconds=0.123),
    ]
    names = {f"{one['engine']} {one['variant']}" for one in rows}
    contenders = {name: {"bits": {"layers": 4.5, "head": 8.5}} for name in names}
    models = {"smollm2-135m": {"rows": rows, "contenders": contenders}}
    (folder / "engine.json").write_text(json.dumps({"models": models}))


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]


@pytest.mark.parametrize("name", ["engine", "engine, smollm2-135m", "serving", "server", "load"])
def test_without_results_there_is_no_table(results: Path, name: str) -> None:
    assert table.TABLES[name]() == ""


def test_each_engine_stands_with_its_best_variant_and_our_lead(results: Path) -> None:
    write_engine(results)
    header, _, *rows = cells(table.engine())
    assert header == ["", "regraft", "llama.cpp", "ONNX Runtime", "transformers + PEFT", "regraft / llama.cpp"]
    assert rows[0] == ["SmolLM2-135M: decode, batch 8", "400 (80%)", "200 (80%)", "", "", "2.0×"]
    assert rows[1][1:] == ["320 (80%)", "", "", "", ""]
    assert rows[2][1:] == ["900", "", "", "", ""]
    assert rows[3][1:] == ["0.123 s", "", "", "", ""]


def test_details_say_bits_bytes_and_what_adapters_cost(results: Path) -> None:
    write_engine(results)
    assert table.engine_details("llama-1.1b") == ""
    _, _, *rows = cells(table.engine_details("smollm2-135m"))
    assert rows[0][1:] == ["regraft q4_0, 4.5 / 8.5 bits", "400.0", "70.0", "80%", ""]
    assert rows[2][-1] == "-20%"
    assert rows[-1][2:] == ["0.123 s", "", "", ""]


def test_serving_shows_the_share_of_the_first_point(results: Path) -> None:
    waits = {"p50": 0.2, "p90": 0.4, "p99": 1.25, "mean": 0.3}
    point = {"adapters_asked_for": 7, "requests_per_s": 4.0, "first_text_s": waits}
    points = [
        point | {"adapters": 5, "tokens_per_s": 300.0, "share": 1.0},
        point | {"adapters": 1000, "tokens_per_s": 291.0, "share": 0.97},
    ]
    (results / "serving.json").write_text(json.dumps({"points": points}))
    assert cells(table.serving())[-1] == ["1,000", "7", "291 (97%)", "4.00", "0.20", "0.40", "1.25"]


def write_compression(folder: Path) -> None:
    found = [
        {"phase": "importances", "name": "dense", "perplexity": 40.0},
        {"phase": "importances", "name": "random; neurons; 0.25", "perplexity": 400.0},
        {"phase": "importances", "name": "l2; neurons; 0.25", "perplexity": 4000.0},
        {"phase": "importances", "name": "random; neurons; 0.1", "perplexity": 60.0},
        {"phase": "quality", "name": "int4", "perplexity": 41.0, "bytes_after": 113_000_000},
        {"phase": "quality", "name": "moe", "perplexity": 50.0, "bytes_after": 118_400_000},
        {"phase": "speed", "name": "moe", "beside": "int4", "decode-1": {"ratio": 1.31}},
    ]
    write_lines(folder / "compression.jsonl", found)


def test_importances_stand_beside_what_is_left_whole(results: Path) -> None:
    assert table.importances() == ""
    write_compression(results)
    assert table.importances().splitlines() == [
        "| judged by | neurons, 25% | neurons, 10% |",
        "| --- | ---: | ---: |",
        "| nothing goes | 40.0 | 40.0 |",
        "| random | 400.0 | 60.0 |",
        "| l2 | 4000.0 |  |",
    ]


def test_a_recipe_stands_beside_its_dense_companion(results: Path) -> None:
    write_compression(results)
    assert table.methods().splitlines()[2:] == [
        "| `int4` | 113 | 41.00 |  |  |  |",
        "| `moe` | 118 | 50.00 | 1.31× int4 |  |  |",
    ]
    write_lines(results / "recovery.jsonl", [judged("moe", "home", "plugged_in", 0.5)])
    assert table.methods().splitlines()[3] == "| `moe` | 118 | 50.00 | 1.31× int4 | 50.0% of 1 |  |"


def test_parity_is_the_paired_difference_of_both_scores(results: Path) -> None:
    assert table.parity() == ""
    line = {"task": "home", "engine": 0.96, "torch": 0.95, "difference": 0.01, "error": 0.02, "same": 0.9}
    write_lines(results / "parity.jsonl", [line])
    assert cells(table.parity())[2] == ["home", "0.960", "0.950", "+0.010 ± 0.020", "90%"]
