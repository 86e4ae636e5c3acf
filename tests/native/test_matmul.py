"""The kernels beside a few plain lines of numpy, on random shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.native import _core, layout

BITS = range(2, 9)
GROUPS = [32, 64, 128, 0]  # 0: one group per row


@pytest.fixture(scope="module", params=_core.kernels())
def core(request: Any) -> _core.Core:
    return _core.Core(2, request.param)


def to_eight_bits(x: Any) -> Any:
    """Activations as the kernels see them: 8 bits by blocks of 32, in float32 arithmetic as theirs."""
    blocks = x.reshape(len(x), -1, 32)
    peak = np.abs(blocks).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), peak, out=np.zeros_like(peak), where=peak > 0)
    return (np.rint(blocks * inverse) * (peak / np.float32(127))).reshape(x.shape)


def make_quantized(rng: Any, out: int, width: int, groups: int, bits: int, offset: str) -> tuple[Any, layout.Tiles]:
    """A weight in float64, and its tiles."""
    codes = rng.integers(0, 2**bits, (out, width)).astype(np.uint8)
    scale = rng.random((out, groups)).astype(np.float16)
    zero = rng.integers(0, 2**bits, (out, groups)).astype(np.uint8) if offset == "zero" else None
    minimum = rng.standard_normal((out, groups)).astype(np.float16) if offset == "minimum" else None

    def spread(values: Any) -> Any:
        return np.repeat(values.astype(np.float64), width // groups, axis=1)

    if minimum is not None:
        weight = spread(scale) * codes + spread(minimum)
    else:
        weight = spread(scale) * (codes.astype(float) - (2 ** (bits - 1) if zero is None else spread(zero)))
    return weight, layout.pack_codes(codes, bits, scale, zero, minimum)


def assert_product(found: Any, x: Any, weight: Any) -> None:
    """Equal but for the rounding of float32 sums, of which a minimum and the codes above it are two."""
    terms = np.abs(x).astype(np.float64).sum(-1, keepdims=True) * np.abs(weight).max()
    assert (np.abs(found - x.astype(np.float64) @ weight.T) <= 2e-6 * terms + 1e-6).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("offset", ["symmetric", "zero", "minimum"])
@pytest.mark.parametrize("group", GROUPS)
def test_quantized_product(core: _core.Core, group: int, offset: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits, out, rows = int(rng.choice(BITS)), int(rng.integers(1, 40)), int(rng.integers(1, 20))
    width = group * int(rng.integers(1, 4)) if group else int(rng.integers(1, 150))
    weight, tiles = make_quantized(rng, out, width, width // group if group else 1, bits, offset)
    x = np.zeros((rows, tiles.columns), np.float32)
    x[:, :width] = rng.standard_normal((rows, width))
    linear = tiles.linear()
    assert_product(core.matmul(linear, x, float_activations=True), x[:, :width], weight)
    assert_product(core.matmul(linear, x), to_eight_bits(x)[:, :width], weight)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_dense_product(core: _core.Core, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    out, width, rows = int(rng.integers(1, 40)), int(rng.integers(1, 150)), int(rng.integers(1, 20))
    weight, bias = rng.standard_normal((out, width)).astype(dtype), rng.standard_normal(out).astype(np.float32)
    tiles = layout.pack_dense(weight, bias=bias)
    x = np.zeros((rows, tiles.columns), np.float32)
    x[:, :width] = rng.standard_normal((rows, width))
    assert_product(
        core.matmul(tiles.linear(), x, float_activations=True) - bias, x[:, :width], weight.astype(np.float64)
    )


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_bytes_may_end_within_a_block(core: _core.Core, seed: int) -> None:
    rng = np.random.default_rng(seed)
    out, width, rows = int(rng.integers(1, 40)), int(rng.integers(1, 80)), int(rng.integers(1, 20))
    codes, scale = rng.integers(0, 256, (out, width)).astype(np.uint8), rng.random((out, 1)).astype(np.float16)
    tiles = layout.pack_codes(codes, 8, scale, columns=layout.padded(width, 8))
    x = np.zeros((rows, layout.padded(width, 32)), np.float32)
    x[:, :width] = rng.standard_normal((rows, width))
    weight = scale.astype(float) * (codes.astype(float) - 128)
    assert_product(core.matmul(tiles.linear(), x), to_eight_bits(x)[:, :width], weight)


@pytest.mark.parametrize("float_activations", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_does_not_depend_on_its_neighbours(core: _core.Core, bits: int, float_activations: bool) -> None:
    rng = np.random.default_rng(bits)
    _, tiles = make_quantized(rng, 24, 192, 3, bits, "zero")
    linear, x = tiles.linear(), rng.standard_normal((33, 192)).astype(np.float32)
    together = core.matmul(linear, x, float_activations)
    alone = [core.matmul(linear, row[None], float_activations)[0] for row in x]
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_largest_codes_and_activations_do_not_overflow(core: _core.Core, bits: int) -> None:
    codes = np.full((8, 64), 2**bits - 1, np.uint8)
    tiles = layout.pack_codes(codes, bits, np.ones((8, 1), np.float16), np.zeros((8, 1), np.uint8))
    x = np.ones((1, 64), np.float32)
    assert core.matmul(tiles.linear(), x)[0, 0] == pytest.approx(64 * (2**bits - 1), rel=1e-6)
    lowest = layout.pack_codes(np.zeros((8, 64), np.uint8), bits, np.ones((8, 1), np.float16))
    assert core.matmul(lowest.linear(), -x)[0, 0] == pytest.approx(64 * 2 ** (bits - 1), rel=1e-6)


@pytest.mark.parametrize("bits", [3, 5])
def test_odd_bits_around_their_middle_need_no_zeros(core: _core.Core, bits: int) -> None:
    weight, tiles = make_quantized(np.random.default_rng(bits), 24, 64, 2, bits, "symmetric")
    assert tiles.zero is None
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    assert_product(core.matmul(tiles.linear(), x), to_eight_bits(x), weight)


def test_zero_activations_are_zero(core: _core.Core) -> None:
    _, tiles = make_quantized(np.random.default_rng(0), 8, 64, 1, 4, "symmetric")
    assert not core.matmul(tiles.linear(), np.zeros((2, 64), np.float32)).any()


def test_wrong_sizes_are_refused() -> None:
    tiles = layout.pack_dense(np.ones((8, 32), np.float16))
    with pytest.raises(ValueError, match="wrong size"):
        _core.Linear("f16", 16, 32, 32, tiles.data)
    with pytest.raises(ValueError, match="scales"):
        _core.Linear("u4", 8, 128, 128, tiles.data)
    with pytest.raises(ValueError, match="codes"):
        _core.Linear("u5", 8, 32, 32, tiles.data)


def test_the_fastest_kernels_are_first_and_taken_by_default() -> None:
    assert _core.kernels()[-1] == "portable"
    assert _core.Core(1).kernels == _core.kernels()[0]


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="sse9"):
        _core.Core(1, "sse9")


def test_pieces_are_no_map_and_must_be_contiguous() -> None:
    tiles = make_quantized(np.random.default_rng(0), 32, 64, 2, 4, "zero")[1].cut(2)
    linear, x = tiles.linear(), np.ones((1, 64), np.float32)
    assert linear.nbytes == 2 * sum(array[0].nbytes for _, array in tiles.arrays())
    with pytest.raises(ValueError, match="expected one linear map, found pieces"):
        _core.Core(1).matmul(linear, x)
    for wrong, message in [
        ({"data": tiles.data[:, ::2]}, "contiguous"),
        ({"data": tiles.data[:, :-32]}, "data are of a wrong size"),
        ({"scale": tiles.scale[:1]}, "scales are not one for each piece"),  # type: ignore[index]
        ({"scale": tiles.scale.astype(np.float32)}, "scales are of a wrong type"),  # type: ignore[union-attr]
    ]:
        with pytest.raises(ValueError, match=message):
            replace(tiles, **wrong).linear()
    with pytest.raises(ValueError, match="32 rows are not 3 times whole tiles"):
        make_quantized(np.random.default_rng(0), 32, 64, 2, 4, "zero")[1].cut(3)
