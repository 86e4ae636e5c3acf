"""A base from disk, packed and mapped, computes what torch computes."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.run.batch import Chunk, run_step
from regraft.engine.weights import huge_pages
from regraft.engine.weights.architecture import read_architecture
from regraft.engine.weights.engine_file import PackedBase, read_packed, write_packed
from regraft.engine.weights.native_model import build
from regraft.errors import FormatError
from regraft.formats.open_weights import open_weights
from regraft.formats.source import locate
from regraft.models.load import load_base
from regraft.native import _core
from tests.engine.networks import random_ids
from tests.tiny import FAMILIES, make_base

IDS = random_ids(40)


def native_logits(folder: Path, packed: Path, head_bits: Literal[8, 16] = 16) -> Any:
    write_packed(open_weights(locate(folder)), packed, "source", head_bits=head_bits)
    return logits_of(read_packed(packed))


def logits_of(found: PackedBase) -> Any:
    architecture = read_architecture(found.config)
    model = build(architecture, found.parameters)
    arena = np.zeros((3, model.kv_page_bytes), np.uint8)
    chunk = Chunk(IDS, 0, [0, 1, 2], logits=len(IDS))
    core = _core.Core(2)
    return core.head(model, run_step(core, model, arena, [chunk], float_activations=True), True)


def torch_logits(folder: Path) -> Any:
    with torch.no_grad():
        return load_base(folder).model(torch.tensor(IDS)[None]).logits[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dense_base(tmp_path: Path, family: str) -> None:
    folder = make_base(tmp_path / "base", family, layers=2)
    assert np.abs(native_logits(folder, tmp_path / "packed") - torch_logits(folder)).max() < 2e-2  # float16 weights


@pytest.mark.parametrize("hidden", [64, 96])
@pytest.mark.parametrize("tie", [True, False])
def test_heads_in_eight_bits(tmp_path: Path, tie: bool, hidden: int) -> None:
    folder = make_base(tmp_path / "base", hidden=hidden, tie=tie)
    rounded, wanted = native_logits(folder, tmp_path / "small", 8), torch_logits(folder)
    assert 0 < np.abs(rounded - native_logits(folder, tmp_path / "packed")).max() < 0.02 * np.abs(wanted).max()
    assert np.abs(rounded - wanted).max() < 0.03 * np.abs(wanted).max()
    assert (tmp_path / "small").stat().st_size < (tmp_path / "packed").stat().st_size


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(8, 32), (4, 32), (4, 64), (3, 32), (2, 0), (4, 16)])
def test_a_compressed_base(tmp_path: Path, bits: int, group: int, symmetric: bool) -> None:
    quantize = {"method": "rtn", "bits": bits, "group_size": group, "symmetric": symmetric, "embeddings": 8}
    make_base(tmp_path / "base", "qwen2")
    compress(tmp_path / "base", tmp_path / "small", parse(Recipe, {"steps": [{"quantize": quantize}]}, "test"))
    found, wanted = native_logits(tmp_path / "small", tmp_path / "packed"), torch_logits(tmp_path / "small")
    assert np.abs(found - wanted).max() < 1e-2


def test_what_a_file_is_packed_from_is_kept(tmp_path: Path) -> None:
    weights = open_weights(locate(make_base(tmp_path / "base")))
    write_packed(weights, tmp_path / "packed", "that of 5 o'clock")
    assert read_packed(tmp_path / "packed").source == "that of 5 o'clock"
    assert {path.name for path in tmp_path.iterdir()} == {"base", "packed"}


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux'")
def test_huge_pages_hold_what_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "packed"
    write_packed(open_weights(locate(make_base(tmp_path / "base"))), path, "source")
    copied = read_packed(path, huge_pages.read_into_memory(path))
    wanted = logits_of(read_packed(path))
    path.write_bytes(b"")  # what is read does not lie in the file
    assert copied.num_bytes > 0
    np.testing.assert_array_equal(logits_of(copied), wanted)


@pytest.mark.parametrize("damage", ["cut", "empty", "other", "long index", "far array", "missing"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "packed"
    write_packed(open_weights(locate(make_base(tmp_path / "base"))), path, "source")
    whole = path.read_bytes()
    changed = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "other": b"x" * 100,
        "long index": whole[:-8] + (2**40).to_bytes(8, "little"),
        "far array": whole.replace(b'"offset": 64', b'"offset": 6400000000000000'),
    }
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(changed[damage])
    with pytest.raises(FormatError, match="packed"):
        read_packed(path)


def test_several_may_pack_at_once(tmp_path: Path) -> None:
    folder, path = make_base(tmp_path / "base"), tmp_path / "packed"
    with ThreadPoolExecutor(8) as pool:
        for made in [pool.submit(write_packed, open_weights(locate(folder)), path, "source") for _ in range(8)]:
            made.result()
    assert read_packed(path).source == "source"
    assert {each.name for each in tmp_path.iterdir()} == {"base", "packed"}
