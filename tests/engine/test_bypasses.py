"""Adapters that lie in pages act as those that lie anywhere."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.bypass.factors import Factors
from regraft.engine.bypasses import build_adapter, count_pages
from regraft.engine.loop import make_arena
from regraft.engine.step import Chunk
from regraft.errors import IncompatibleAdapterError
from regraft.native import _core
from regraft.native.layout import pack_codes, padded
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
    count = count_pages(parts, page_bytes, bits=bits)
    pages = make_arena(count, page_bytes)
    in_pages = build_adapter(2, parts, bits=bits, pages=list(pages))
    # Sums over ranks are cut, which half-precision keys round differently; and a row of 8 bits has a scale per part.
    difference = np.abs(logits_with(in_pages) - logits_with(build_adapter(2, parts, bits=bits))).max()
    assert difference < (3e-3 if bits == 16 else 0.4)


def test_the_count_is_what_is_filled() -> None:
    parts = factors(0, 24)
    count = count_pages(parts, 2048)
    pages = list(make_arena(count, 2048))
    assert sum(48 * (f.down.shape[1] + f.up.shape[0]) for added in parts.values() for f in added) <= count * 2048
    with pytest.raises(IndexError):
        build_adapter(2, parts, pages=pages[:-1])


def test_a_page_that_is_too_small_is_refused() -> None:
    with pytest.raises(IncompatibleAdapterError, match="more than a page"):
        count_pages(factors(0, 2), 1024)


def test_a_reloaded_adapter_gives_the_same_bits() -> None:
    parts = factors(3, 8)
    count = count_pages(parts, 4096)
    arena = make_arena(2 * count + 1, 4096)
    first = logits_with(build_adapter(2, parts, pages=list(arena[:count])))
    arena[:count] = 255
    assert np.array_equal(logits_with(build_adapter(2, parts, pages=list(arena[count + 1 :]))), first)


@settings(max_examples=30)
@given(
    rows=st.integers(1, 40), columns=st.integers(1, 70), seed=st.integers(0, 2**31), dtype=st.sampled_from(["f2", "f4"])
)
def test_bytes_are_packed_as_numpy_packs_them(rows: int, columns: int, seed: int, dtype: str) -> None:
    wide = np.random.default_rng(seed).standard_normal((rows, columns + 3)).astype(dtype)
    wide[rows // 2] = 0
    matrix = wide[:, 1:-2]  # as a cut by ranks is
    height, width = padded(rows, 8), padded(columns, 8)
    codes, scales = np.full(height * width, 7, np.uint8), np.full(height * 2, 7, np.uint8)
    _core.pack_bytes(matrix, codes, scales)

    scale = (np.abs(matrix).max(1, keepdims=True).astype(np.float32) / np.float32(127)).astype(np.float16)
    unit = np.where(scale > 0, scale, 1).astype(np.float32)
    plain = np.clip(np.rint(matrix.astype(np.float32) / unit), -127, 127) + 128
    wide_plain = np.pad(plain, ((0, 0), (0, width - columns)), constant_values=128)
    wanted = pack_codes(wide_plain.astype(np.uint8), 8, scale, columns=width)
    assert np.array_equal(codes, wanted.data)
    assert wanted.scale is not None and np.array_equal(scales.view(np.float16), wanted.scale.ravel())


def test_wrong_sizes_are_refused() -> None:
    matrix = np.ones((8, 8), np.float32)
    for codes, scales in ((63, 16), (64, 15), (32, 16)):
        with pytest.raises(ValueError, match="wrong size"):
            _core.pack_bytes(matrix, np.zeros(codes, np.uint8), np.zeros(scales, np.uint8))
    with pytest.raises(ValueError, match="float16 or float32"):
        _core.pack_bytes(matrix.astype(np.float64), np.zeros(64, np.uint8), np.zeros(16, np.uint8))
