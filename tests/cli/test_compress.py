"""``regraft compress``: options that change a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.run import Kit, regraft

RECIPE = (
    "steps: [quantize: {method: gptq, bits: 4, group_size: 32}]\ncalibration: {num_sequences: 4, sequence_length: 16}"
)


def test_calibrate_on_adapters(kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    given = ["--recipe", recipe, "--calibrate-on", f"{kit.lora}={kit.data}", "--calibrate-on", f"{kit.lora}={kit.data}"]
    done = regraft(capsys, "compress", kit.base, "-o", tmp_path / "out", "--no-perplexity", "--json", *given)
    assert done.code == 0
    assert [one["name"] for one in json.loads(done.out)["calibration"]["adapters"]] == ["lora", "lora"]


def test_a_plan_reads_no_adapter(kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--plan", "--calibrate-on", f"{tmp_path / 'none'}={tmp_path / 'none.jsonl'}", "--json"]
    done = regraft(capsys, "compress", kit.base, *given)
    assert done.code == 0
    assert json.loads(done.out)["kind"] == "plan"
