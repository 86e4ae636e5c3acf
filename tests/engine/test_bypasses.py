"""Adapters that lie in pages act as those that lie anywhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.engine.run.batch import Chunk
from regraft.engine.run.loop import make_arena
from regraft.engine.weights.adapter_packing import build_adapter, digest_of, fill_own, plan_packing
from regraft.errors import IncompatibleAdapterError
from regraft.formats.adapter.content import Factors
from regraft.native import _core
from regraft.native.layout import Tiles, pack_codes, pack_dense, padded, zeros_aligned
from tests.engine.networks import factors_of, make_bypasses, make_twin, random_ids

TWIN = make_twin(layers=2)
CHUNK = Chunk(random_ids(20), 0, [0, 1], logits=20)


def factors(seed: int, rank: int) -> dict[str, list[Factors]]:
    return factors_of(make_bypasses(TWIN.model, seed=seed, rank=rank))


def logits_with(adapter: Any) -> Any:
    return TWIN.step(Chunk(CHUNK.tokens, 0, CHUNK.pages, mix=((adapter, 1.0),), logits=20))


@settings(max_examples=20)
@given(rank=st.integers(1, 40), page_bytes=st.sampled_from([2048, 4096, 20032, 10**6]), bits=st.sampled_from([8, 16]))
def test_pages_change_nothing(rank: int, page_bytes: int, bits: Literal[8, 16]) -> None:
    parts = factors(rank, rank)
    packing = plan_packing(2, parts, bits=bits, page_bytes=page_bytes)
    in_pages = packing.fill(list(make_arena(packing.pages, page_bytes)))
    # Sums over ranks are cut, which half-precision keys round differently; and a row of 8 bits has a scale per part.
    difference = np.abs(logits_with(in_pages) - logits_with(build_adapter(2, parts, bits=bits))).max()
    assert difference < (3e-3 if bits == 16 else 0.4)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_plan_s_pages_are_those_that_are_filled(bits: Literal[8, 16]) -> None:
    parts = factors(0, 24)
    packing = plan_packing(2, parts, bits=bits, page_bytes=2048)
    pages = list(make_arena(packing.pages, 2048))
    assert packing.fill(pages).nbytes <= packing.pages * 2048
    assert all(page.any() for page in pages)
    for wrong in (pages[:-1], [*pages, pages[0]]):
        with pytest.raises(ValueError, match=f"expected {packing.pages} pages"):
            packing.fill(wrong)
    for wrong in ([page[:-64] for page in pages], [np.zeros(2049, np.uint8)[1:] for _ in pages]):
        with pytest.raises(ValueError, match="a page is"):
            packing.fill(wrong)


def test_a_page_that_is_too_small_is_refused() -> None:
    with pytest.raises(IncompatibleAdapterError, match="more than a page"):
        plan_packing(2, factors(0, 2), page_bytes=1024)
    with pytest.raises(ValueError, match="more than a page"):
        _core.Packing(1, [(0, 0, "lora", np.ones((1, 64), "f2"), np.ones((64, 1), "f2"), 1.0)], 16, 1023)


@pytest.mark.parametrize("bits", [8, 16])
def test_a_copied_or_reloaded_adapter_gives_the_same_bits(bits: Literal[8, 16]) -> None:
    packing = plan_packing(2, factors(3, 8), bits=bits, page_bytes=4096)
    arena = make_arena(2 * packing.pages + 1, 4096)
    own = fill_own(packing)
    wanted = logits_with(own)
    for chosen in (arena[: packing.pages], arena[packing.pages + 1 :]):
        arena[:] = 255
        assert np.array_equal(logits_with(packing.fill(list(chosen))), wanted)
        arena[:] = 255
        assert np.array_equal(logits_with(own.copy_to(list(chosen))), wanted)
        assert np.array_equal(chosen, own.pages)


def test_a_digest_is_of_all_that_an_adapter_computes() -> None:
    def digest(parts: Any) -> str:
        return digest_of(parts, build_adapter(2, parts, bits=8, page_bytes=4096))

    parts, (slot, other, *_) = factors(1, 4), factors(1, 4)
    first, *rest = parts[slot]
    changes = [
        parts | {slot: [replace(first, scale=first.scale * 1.5), *rest]},
        parts | {slot: [replace(first, kind="gelu"), *rest]},
        parts | {slot: [replace(first, up=-first.up), *rest]},
        parts | {slot: [replace(first, down=first.down[:3], up=first.up[:, :3]), *rest]},
        parts | {slot: parts[other], other: parts[slot]},
        {name: added for name, added in parts.items() if name != slot},
    ]
    assert digest(parts) == digest(factors(1, 4))
    assert len({digest(changed) for changed in [parts, *changes]}) == 1 + len(changes)


def piece(page: Any, offset: int, size: int) -> tuple[Any, int]:
    """Some bytes of a page, and where the next piece begins."""
    return page[offset : offset + size], offset + padded(size, 64)


@settings(max_examples=40)
@given(
    rank=st.integers(1, 20),
    wide=st.integers(1, 70),
    out=st.integers(1, 40),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from(["f2", "f4"]),
    bits=st.sampled_from([8, 16]),
)
def test_factors_are_packed_as_numpy_packs_them(
    rank: int, wide: int, out: int, seed: int, dtype: str, bits: Literal[8, 16]
) -> None:
    random = np.random.default_rng(seed)
    down, up = (random.standard_normal(shape).astype(dtype) for shape in ((rank, wide), (out, rank)))
    up[out // 2] = 0
    packing = _core.Packing(1, [(0, 0, "lora", down, up, 1.0)], bits, 0)
    memory = zeros_aligned(1, packing.page_bytes)
    memory[:] = 7
    packing.fill(list(memory))
    offset = 0
    for matrix in (down, up):
        wanted = in_bytes(matrix) if bits == 8 else pack_dense(matrix.astype("f2"), columns=padded(matrix.shape[1], 8))
        found, offset = piece(memory[0], offset, wanted.data.nbytes)
        assert np.array_equal(found, wanted.data)
        if wanted.scale is not None:
            found, offset = piece(memory[0], offset, wanted.scale.nbytes)
            assert np.array_equal(found.view(np.float16), wanted.scale.ravel())
    assert offset == packing.page_bytes


def in_bytes(matrix: Any) -> Tiles:
    """A factor in 8 bits, with one scale per row."""
    columns, width = matrix.shape[1], padded(matrix.shape[1], 8)
    scale = (np.abs(matrix).max(1, keepdims=True).astype(np.float32) / np.float32(127)).astype(np.float16)
    unit = np.where(scale > 0, scale, 1).astype(np.float32)
    plain = np.clip(np.rint(matrix.astype(np.float32) / unit), -127, 127) + 128
    wide = np.pad(plain, ((0, 0), (0, width - columns)), constant_values=128)
    return pack_codes(wide.astype(np.uint8), 8, scale, columns=width)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": np.ones((4, 64))}, "float16 or float32"),
        ({"down": np.ones((3, 64), np.float32)}, "ranks do not agree"),
        ({"down": np.ones((4, 0), np.float32)}, "a factor has no size"),
        ({"layer": 2}, "no such slot"),
        ({"slot": 7}, "no such slot"),
        ({"bits": 4}, "8 or 16 bits"),
        ({"kind": "tanh"}, "no such kind of bypass: tanh"),
    ],
)
def test_what_cannot_be_packed_is_refused(change: dict[str, Any], message: str) -> None:
    factor = np.ones((4, 64), np.float32)
    given = {"layer": 0, "slot": 0, "kind": "lora", "down": factor, "up": factor.T, "bits": 8} | change
    item = (given["layer"], given["slot"], given["kind"], given["down"], given["up"], 1.0)
    with pytest.raises(ValueError, match=message):
        _core.Packing(2, [item], given["bits"], 4096)


def test_a_number_that_is_none_is_found() -> None:
    fine = [np.ones((3, 70), "f2"), np.ones((3, 70), "f4"), np.ones((0, 3), "f4")]
    assert _core.first_not_finite(fine) == 3
    for dtype in ("f2", "f4"):
        for value in (np.nan, -np.inf):
            bad = np.full((3, 70), np.finfo(dtype).max, dtype)
            bad[2, 69] = value
            assert _core.first_not_finite([*fine, bad, bad]) == 3
    with pytest.raises(ValueError, match="float16 or float32"):
        _core.first_not_finite([np.ones(3, np.float64)])
