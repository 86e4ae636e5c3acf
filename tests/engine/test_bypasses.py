"""Adapters that lie in pages act as those that lie anywhere."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.engine.bypasses import Factors, build_adapter, count_pages
from regraft.engine.step import Chunk
from regraft.errors import IncompatibleAdapterError
from tests.engine.networks import make_bypasses, make_twin, random_ids

TWIN = make_twin(layers=2)
CHUNK = Chunk(random_ids(20), 0, [0, 1], logits=20)


def factors_of(seed: int, rank: int) -> list[Factors]:
    return [
        Factors(slot, b.down.detach().numpy(), b.up.detach().numpy(), b.scale, gelu=not b.is_linear)
        for slot, parts in make_bypasses(TWIN.model, seed=seed, rank=rank).items()
        for b in parts
    ]


def logits_with(adapter: Any) -> Any:
    return TWIN.step(Chunk(CHUNK.tokens, 0, CHUNK.pages, mix=((adapter, 1.0),), logits=20))


@settings(max_examples=20)
@given(rank=st.integers(1, 40), page_bytes=st.sampled_from([2048, 4096, 20032, 10**6]), bits=st.sampled_from([8, 16]))
def test_pages_change_nothing(rank: int, page_bytes: int, bits: Literal[8, 16]) -> None:
    factors = factors_of(rank, rank)
    count = count_pages(factors, page_bytes, bits=bits)
    memory = np.full(count * page_bytes + 64, 255, np.uint8)
    start = -memory.ctypes.data % 64
    pages = memory[start : start + count * page_bytes].reshape(count, page_bytes)
    in_pages = build_adapter(2, factors, bits=bits, pages=list(pages))
    # A scale of 8-bit rows is over the ranks of a part, so that parts are a little more exact than the whole.
    difference = np.abs(logits_with(in_pages) - logits_with(build_adapter(2, factors, bits=bits))).max()
    assert difference < (1e-4 if bits == 16 else 0.3)


def test_the_count_is_what_is_filled() -> None:
    factors = factors_of(0, 24)
    count = count_pages(factors, 2048)
    pages = [page for page in np.zeros((count, 2048), np.uint8)]
    assert sum(16 * (f.down.shape[1] + f.up.shape[0]) * 3 for f in factors) <= count * 2048
    with pytest.raises(IndexError):
        build_adapter(2, factors, pages=pages[:-1])


def test_a_page_that_is_too_small_is_refused() -> None:
    with pytest.raises(IncompatibleAdapterError, match="more than a page"):
        count_pages(factors_of(0, 2), 1024)


def test_a_reloaded_adapter_gives_the_same_bits() -> None:
    factors = factors_of(3, 8)
    count = count_pages(factors, 4096)
    arena = np.zeros((2 * count + 1, 4096), np.uint8)
    first = logits_with(build_adapter(2, factors, pages=list(arena[:count])))
    arena[:count] = 255
    assert np.array_equal(logits_with(build_adapter(2, factors, pages=list(arena[count + 1 :]))), first)
