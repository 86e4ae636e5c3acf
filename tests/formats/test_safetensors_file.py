"""safetensors files read with numpy: the same values as the format's own library gives, and no crash on any bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from regraft.errors import FormatError
from regraft.formats.safetensors_file import open_model_tensors, open_tensors
from tests.tiny import make_model

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
WHOLE = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
shapes = st.lists(st.integers(0, 5), max_size=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 4, generator=generator),
        "b": torch.randn(5, generator=generator).bfloat16(),
        "c": torch.arange(6).view(2, 3),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    return tmp_path / "x.safetensors"


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@given(st.lists(st.tuples(st.sampled_from(FLOATS + WHOLE), shapes), max_size=6), st.integers(0, 99))
def test_values_are_those_of_the_library(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[torch.dtype, list[int]]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    given = {
        f"tensor {number}": (100 * torch.randn(shape, generator=generator)).to(dtype)
        for number, (dtype, shape) in enumerate(kinds)
    }
    file = tmp_path_factory.mktemp("tensors") / "x.safetensors"
    save_file(given, file)
    found = open_tensors(file)
    assert set(found) == set(given)
    assert len(found) == len(given)
    for name, tensor in given.items():
        assert found.info(name).shape == tuple(tensor.shape)
        if tensor.is_floating_point():
            exact = torch.float16 if tensor.dtype == torch.float16 else torch.float32
            values = found.floats(name)
            assert values.dtype == (np.float16 if exact == torch.float16 else np.float32)
            assert np.array_equal(values, tensor.to(exact).numpy())
        else:
            assert np.array_equal(found.stored(name), tensor.numpy())


def test_every_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16)
    save_file({"x": bits.view(torch.bfloat16)}, tmp_path / "x.safetensors")
    found = open_tensors(tmp_path / "x.safetensors").floats("x")
    expected = bits.view(torch.bfloat16).float().numpy()
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_views_are_of_the_file_and_cannot_be_written(path: Path) -> None:
    array = open_tensors(path).floats("a")
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    values = np.arange(3, dtype=np.float32)
    header = {"x": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}
    text = json.dumps(header).encode()
    file = write(tmp_path / "x", text + b" " * (-len(text) % 8 + 3), values.tobytes())
    assert np.array_equal(open_tensors(file).floats("x"), values)
    assert open_tensors(file).floats("x").flags.aligned


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda tensors: tensors.stored("z"), "x.safetensors: tensor z is missing"),
        (lambda tensors: tensors.floats("c"), r"tensor c: expected floating point, found I64 \[2, 3\]"),
        (lambda tensors: tensors.expect("a", "F32", (4, 3)), r"tensor a: expected F32 \[4, 3\], found F32 \[3, 4\]"),
        (lambda tensors: tensors.expect("a", "F16", (3, 4)), r"tensor a: expected F16 \[3, 4\], found F32 \[3, 4\]"),
    ],
)
def test_what_is_not_there_is_named(path: Path, ask: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        ask(open_tensors(path))


def entry(begin: Any = 0, end: Any = 8, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "a header that is not JSON"),
        (b"\xff\xfe", "a header that is not JSON"),
        (b"[" * 100_000, "a header that is not JSON"),
        (b'{"x": 1, "x": 2}', "a name stands twice"),
        ([], "a header that is no JSON object"),
        ({"x": 1}, "tensor x without a dtype, a shape and offsets"),
        ({"x": {"dtype": "F32", "shape": [2]}}, "tensor x without"),
        ({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0]}}, "tensor x without"),
        ({"x": entry(shape=2)}, "tensor x without"),
        ({"x": entry(shape=[2.0])}, "tensor x without"),
        ({"x": entry(shape=[True, 2])}, "tensor x without"),
        ({"x": entry(shape=[-2])}, "tensor x without"),
        ({"x": entry(shape=[1] * 99 + [2])}, "tensor x without"),
        ({"x": entry(shape=[0, 2**70], end=0)}, "tensor x without"),
        ({"x": entry(begin=-8, end=0)}, "tensor x without"),
        ({"x": entry(begin=8, end=0)}, r"tensor x, F32 \[2\], in -8 bytes"),
        ({"x": entry(end=12)}, r"tensor x, F32 \[2\], in 12 bytes"),
        ({"x": entry(shape=[2**40], end=2**42)}, "tensor x up to byte"),
        ({"x": entry(begin=2**62, end=2**62 + 8)}, "tensor x up to byte"),
        ({"x": entry(dtype="F8_E8M0")}, "tensor x: expected one of F64, .*, found F8_E8M0"),
        ({"x": entry(dtype=["F32"])}, "tensor x: expected one of"),
        ({"x": entry(), "y": entry(4, 12)}, "tensor y over another"),
        ({"x": entry(), "y": entry(0, 8)}, "tensor y over another"),
        ({"x": entry(4, 12)}, "tensor x after a gap"),
        ({"x": entry(0, 8)}, "4 bytes that belong to no tensor"),
        ({}, "12 bytes that belong to no tensor"),
    ],
)
def test_hostile_headers_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        open_tensors(write(tmp_path / "x.safetensors", header, bytes(12)))


@pytest.mark.parametrize("length", [3, 2**31, 2**62, 2**64 - 1])
def test_header_length_is_held_against_the_file(tmp_path: Path, length: int) -> None:
    with pytest.raises(FormatError, match=r"x\.safetensors is truncated or damaged: found"):
        open_tensors(write(tmp_path / "x.safetensors", {"x": entry()}, bytes(8), length))


def test_files_cut_anywhere_are_refused(path: Path) -> None:
    whole = path.read_bytes()
    for keep in range(len(whole)):
        path.write_bytes(whole[:keep])
        with pytest.raises(FormatError, match="truncated or damaged"):
            open_tensors(path)


@given(st.integers(0, 250), st.binary(min_size=1, max_size=8))
def test_any_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, place: int, damage: bytes) -> None:
    file = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5).half()}, file)
    data = bytearray(file.read_bytes())
    data[place : place + len(damage)] = damage
    file.write_bytes(data)
    try:
        tensors = open_tensors(file)
    except FormatError as error:
        assert str(file) in str(error)
        return
    for name in tensors:
        tensors.stored(name)


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path])
def test_missing_files_and_directories_are_refused(tmp_path: Path, make: Any) -> None:
    with pytest.raises(FormatError, match=r"is missing|cannot be read"):
        open_tensors(make(tmp_path))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    make_model().save_pretrained(tmp_path, max_shard_size="100KB")
    return tmp_path


def change_index(folder: Path, change: Any) -> None:
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    change(data)
    index.write_text(json.dumps(data))


def test_shards_are_one(sharded: Path) -> None:
    files = sorted(sharded.glob("*.safetensors"))
    expected = {name: tensor for file in files for name, tensor in load_file(file).items()}
    found = open_model_tensors(sharded)
    assert len(files) > 1
    assert set(found) == set(expected)
    assert all(np.array_equal(found.floats(name), tensor.numpy()) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "expected a weight_map"),
        (lambda index: index.update(weight_map={"x": 3}), "expected a weight_map"),
        (lambda index: index["weight_map"].popitem(), "is not in the index"),
        (lambda index: index["weight_map"].update(x="../x.safetensors"), "expected names of files beside it"),
        (lambda index: index["weight_map"].update(x="/etc/passwd"), "expected names of files beside it"),
        (lambda index: index["weight_map"].update(x="none.safetensors"), "none.safetensors is missing"),
        (
            lambda index: index["weight_map"].update(x=next(iter(index["weight_map"].values()))),
            "safetensors: tensor x is missing",
        ),
    ],
)
def test_index_is_held_against_the_shards(sharded: Path, change: Any, message: str) -> None:
    change_index(sharded, change)
    with pytest.raises(FormatError, match=message):
        open_model_tensors(sharded)


def test_missing_shard_is_named(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(FormatError, match=f"{shard.name} is missing"):
        open_model_tensors(sharded)


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"model\.safetensors is missing"):
        open_model_tensors(tmp_path)
