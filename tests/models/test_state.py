from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import FormatError
from regraft.models.load import load_base
from regraft.models.state import as_stored, read_compressed_state
from tests.tiny import make_base, make_model

RECIPE = parse(
    Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32, "symmetric": False}}]}, "test"
)


@pytest.fixture
def compressed(tmp_path: Path) -> Path:
    compress(make_base(tmp_path / "base"), tmp_path / "out", RECIPE)
    return tmp_path / "out"


def change_tensor(folder: Path, name: str, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors.pop(name) if name in tensors else None)
    if changed is not None:
        tensors[name] = changed.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


PACKED = "model.layers.0.mlp.up_proj.weight_packed"
ZERO = "model.layers.0.mlp.up_proj.weight_zero_point"
NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (PACKED, lambda t: None, f"tensor {PACKED} is missing"),
        (
            PACKED,
            lambda t: t[:, 1:],
            rf"tensor {PACKED}: expected I32 \[128, 8\], found I32 \[128, 7\]",
        ),
        (PACKED, lambda t: t.float(), f"tensor {PACKED}: expected I32"),
        (ZERO, lambda t: None, f"tensor {ZERO} is missing"),
        (NORM, lambda t: None, f"tensor {NORM} is missing"),
        (NORM, lambda t: t[1:], rf"tensor {NORM}: expected shape \[64\], found \[63\]"),
        (NORM, lambda t: t.int(), f"tensor {NORM}: expected floating point"),
        (NORM, lambda t: t * torch.inf, f"tensor {NORM}: expected finite values"),
        ("lm_head.weight", lambda t: torch.zeros(320, 64), "tensor lm_head.weight belongs to nothing in the model"),
        ("model.extra", lambda t: torch.zeros(3), "tensor model.extra belongs to nothing in the model"),
    ],
)
def test_damaged_weights_are_named(compressed: Path, name: str, change: Any, message: str) -> None:
    change_tensor(compressed, name, change)
    with pytest.raises(FormatError, match=f"model.safetensors: {message}"):
        read_compressed_state(compressed)
    with pytest.raises(FormatError, match=message):
        load_base(compressed)


@pytest.mark.parametrize("keep", [0, 4, 200, 20_000])
def test_truncated_weights_are_named(compressed: Path, keep: int) -> None:
    path = compressed / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"model\.safetensors is truncated or damaged"):
        load_base(compressed)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", None, "model.safetensors is missing"),
        ("config.json", None, "config.json is missing"),
        ("config.json", "{}", "config.json describes no model"),
        ("config.json", '{"quantization_config": {}, "model_type": "none"}', "config.json describes no model"),
    ],
)
def test_damaged_directories_are_named(compressed: Path, file: str, content: str | None, message: str) -> None:
    if content is None:
        (compressed / file).unlink()
    else:
        (compressed / file).write_text(content)
    with pytest.raises(FormatError, match=message):
        read_compressed_state(compressed)


def test_changed_content_is_noticed(compressed: Path) -> None:
    change_tensor(compressed, NORM, lambda t: t + 0.5)
    with pytest.raises(FormatError, match="has changed since it was written"):
        load_base(compressed)


def test_group_size_that_does_not_divide_is_refused(compressed: Path) -> None:
    config = json.loads((compressed / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["group_size"] = 48
    (compressed / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=r"module model\.\S+: expected a group size that divides \d+, found 48"):
        read_compressed_state(compressed)


def test_state_is_the_whole_model_in_float32(compressed: Path) -> None:
    state = read_compressed_state(compressed)
    assert set(state) == set(make_model().state_dict()) - {"lm_head.weight"}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.0, 0.1, 3e-8], torch.float16),
        ([0.0, 0.0], torch.float16),
        ([65504.0, 1.0], torch.float16),
        ([2.0**17, 1.0], torch.bfloat16),
        ([2.0**-30, 2.0**-31], torch.bfloat16),
        ([1e5 + 1, 1.0], torch.float32),
    ],
)
def test_unpacked_tensors_take_the_smallest_type_that_holds_them(values: list[float], dtype: torch.dtype) -> None:
    assert as_stored(torch.tensor(values)).dtype == dtype
