"""What a recipe will come to, against what it comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.bench.traffic import kv_bytes, weight_bytes
from regraft.compress.plan import plan
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.weights.open_base import open_base
from regraft.errors import ConfigError
from regraft.formats.safetensors_file import open_model_tensors
from regraft.models.load import load_base
from tests.tiny import FAMILIES, make_base

FLAP = {"prune": {"importance": "flap", "compensate": False, "ratio": 0.3, "multiple": 32}}
INT4 = {"quantize": {"method": "rtn", "bits": 4, "group_size": 32, "embeddings": 8}}
INT3 = {"quantize": {"method": "rtn", "bits": 3, "group_size": 64, "overrides": {"down_proj": {"bits": 8}}}}
CASES: dict[str, list[dict[str, Any]]] = {
    "int4": [INT4],
    "asymmetric": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": False}}],
    "pruned": [FLAP, INT3],
    "layers": [{"prune": {"importance": "random", "ratio": 0.5, "groups": ["layers"]}}],
    "channels": [{"prune": {"importance": "random", "ratio": 0.5, "groups": ["channels"], "multiple": 8}}],
    "experts": [{"moefy": {"active": 0.3}}],
    "all three": [FLAP, {"moefy": {"active": 0.5}}, INT4],
}


def recipe(steps: list[dict[str, Any]]) -> Recipe:
    calibration = {"num_sequences": 4, "sequence_length": 16}
    return parse(Recipe, {"steps": steps, "calibration": calibration}, "test")


@pytest.mark.parametrize("case", CASES)
def test_what_is_predicted_is_what_comes_of_it(case: str, tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", layers=4, intermediate=256)
    _, found = plan(str(source), recipe(CASES[case]))
    compress(source, tmp_path / "out", recipe(CASES[case]))
    tensors = open_model_tensors(tmp_path / "out")
    stored = sum(tensors.stored(name).nbytes for name in tensors if not name.endswith("_shape"))
    opened = open_base(tmp_path / "out", head_bits=8)
    assert found.parameters == pytest.approx(load_base(tmp_path / "out").model.num_parameters(), rel=0.005)
    assert found.disk == pytest.approx(stored, rel=0.01)
    assert found.memory == pytest.approx(opened.num_bytes, rel=0.1)  # an index and padding count in a tiny file
    read = weight_bytes(opened.model, opened.architecture, 1)
    assert found.read == pytest.approx(read, rel=0.02)
    assert found.bytes_per_token(10) == pytest.approx(found.read + kv_bytes(opened.architecture, 9), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_before_is_the_base_in_sixteen_bits(family: str, tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", family)
    before, after = plan(str(source), recipe([INT4]))
    assert before.parameters == load_base(source).model.num_parameters() == after.parameters
    assert before.disk == 2 * before.parameters


def test_what_cannot_be_is_said_before_anything_runs(tmp_path: Path) -> None:
    source = str(make_base(tmp_path / "base", intermediate=144))
    with pytest.raises(ConfigError, match=r"moefy.size 32: expected a part of the 144 neurons"):
        plan(source, recipe([{"moefy": {}}]))
    with pytest.raises(ConfigError, match=r"prune.ratio 0.9: expected at most"):
        plan(source, recipe([{"prune": {"importance": "l1", "ratio": 0.9, "groups": ["neurons"]}}]))
