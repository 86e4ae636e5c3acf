"""Bytes per token, counted by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from regraft.bench.adapters import write_lora, write_recovered
from regraft.bench.traffic import decode_bytes, kv_bytes, prefill_bytes, read_bandwidth, weight_bytes
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.weights.adapter_packing import build_adapter
from regraft.engine.weights.open_base import OpenedBase, open_base
from regraft.native import _core
from tests.tiny import make_base

HIDDEN, MLP, LAYERS, HEAD_DIM, KV_HEADS = 64, 128, 2, 16, 2
NORMS = (2 * LAYERS + 1) * HIDDEN * 4
SLOTS = LAYERS * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KV_HEADS * HEAD_DIM + 3 * HIDDEN * MLP)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> OpenedBase:
    return open_base(make_base(tmp_path_factory.mktemp("traffic") / "base", hidden=HIDDEN, intermediate=MLP))


def test_a_step_reads_slots_head_and_norms_in_float16(base: OpenedBase) -> None:
    assert base.model.step_bytes == NORMS + 2 * (SLOTS + base.architecture.vocabulary * HIDDEN)


def test_embeddings_of_their_own_are_not_counted(tmp_path: Path, base: OpenedBase) -> None:
    untied = open_base(make_base(tmp_path / "base", hidden=HIDDEN, intermediate=MLP, tie=False))
    assert untied.model.step_bytes == base.model.step_bytes
    assert untied.num_bytes > base.num_bytes + 2 * base.architecture.vocabulary * HIDDEN


@pytest.mark.parametrize("bits", [8, 16])
def test_an_adapters_bytes_are_its_padded_factors(base: OpenedBase, tmp_path: Path, bits: int) -> None:
    folder = write_lora(tmp_path / "lora", base.slot_shapes, rank=8, seed=0, targets=["q_proj", "down_proj"])
    adapter = build_adapter(LAYERS, base.read_adapter(folder).bypasses, bits=16 if bits == 16 else 8)
    shapes = [(HIDDEN, HIDDEN), (HIDDEN, MLP)] * LAYERS
    numbers = sum(8 * (out + width) for out, width in shapes)
    scales = sum(2 * (out + 8) for out, _ in shapes) if bits == 8 else 0  # one per row of either factor
    assert adapter.nbytes == numbers * bits // 8 + scales


def test_a_recovery_bypass_is_read_beside_the_lora(base: OpenedBase, tmp_path: Path) -> None:
    shapes = base.slot_shapes
    known = replace(base, fingerprint="f")
    plain = write_lora(tmp_path / "lora", shapes, rank=8, seed=0)
    both = write_recovered(tmp_path / "both", shapes, rank=8, recovery_rank=8, seed=0, fingerprint="f")
    sizes = [build_adapter(LAYERS, known.read_adapter(folder).bypasses).nbytes for folder in (plain, both)]
    assert sizes[1] == 2 * sizes[0]


def test_keys_and_values_grow_up_to_the_window(base: OpenedBase) -> None:
    per_token = 2 * KV_HEADS * HEAD_DIM * 2
    assert kv_bytes(base.architecture, 9) == LAYERS * 10 * per_token
    assert kv_bytes(replace(base.architecture, windows=(0, 4)), 9) == (10 + 4) * per_token


def test_a_batch_shares_the_weights_and_not_the_keys(base: OpenedBase) -> None:
    found = decode_bytes(base.model, base.architecture, adapters=[1000, 600], sequences=4, prompt=11, steps=3)
    assert found == (base.model.step_bytes + 1600) / 4 + LAYERS * 12 * 2 * KV_HEADS * HEAD_DIM * 2


def test_a_prompt_reads_the_weights_once_a_step(base: OpenedBase) -> None:
    found = prefill_bytes(base.model, base.architecture, tokens=512, step_tokens=200)
    assert found == base.model.step_bytes * 3 / 512


def test_of_experts_those_are_read_that_some_row_takes(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", hidden=HIDDEN, intermediate=MLP)
    settings = {"steps": [{"moefy": {"active": 0.25}}], "calibration": {"num_sequences": 4, "sequence_length": 16}}
    compress(source, tmp_path / "out", parse(Recipe, settings, "test"))
    base = open_base(tmp_path / "out")
    matrices = LAYERS * 3 * HIDDEN * MLP * 2
    assert sum(base.model.expert_bytes) == matrices
    assert weight_bytes(base.model, base.architecture, 1) == base.model.step_bytes - 3 / 4 * matrices
    assert weight_bytes(base.model, base.architecture, 2) == base.model.step_bytes - 9 / 16 * matrices


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 17, 1 << 17, (3 << 17) + 5])
def test_the_plain_read_reads_every_word(threads: int, count: int) -> None:
    words = np.random.default_rng(count).integers(0, 2**63, count, np.uint64)
    assert _core.Core(threads).read(words.view(np.uint8)) == int(words.sum(dtype=np.uint64))


def test_a_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < read_bandwidth(_core.Core(1), repeats=3, num_bytes=16 << 20) < 1e13
