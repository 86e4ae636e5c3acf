from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regraft.compress.quantize import hqq, rtn
from regraft.compress.quantize.grid import Grid


def heavy_tailed(out: int, width: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(out, width, generator=generator)
    return normal * torch.randn(out, width, generator=generator).abs()


def hqq_slowly(row: list[float], grid: Grid) -> list[float]:
    """One group, in plain Python and double precision; starts, like the real one, at RTN's grid."""
    start = rtn.quantize(torch.tensor([row]), grid)
    scale, zero = float(start.scale), int(start.zero)

    def codes(scale: float, zero: int) -> list[int]:
        return [min(max(round(w / scale + zero), 0), grid.top) for w in row]

    def values(scale: float, zero: int) -> list[float]:
        return [(q - zero) * scale for q in codes(scale, zero)]

    def error(scale: float, zero: int) -> float:
        return sum(abs(w - v) ** 0.7 for w, v in zip(row, values(scale, zero), strict=True))

    best, beta = (error(scale, zero), scale, zero), 10.0
    for _ in range(20):
        now = codes(scale, zero)
        targets = []
        for w, q in zip(row, now, strict=True):
            x = w / scale - (q - zero)
            kept = max(abs(x) - max(abs(x), 1e-8) ** -0.3 / beta, 0.0)
            targets.append(w - scale * math.copysign(kept, x))
        if not grid.symmetric:
            mean = sum(q - t / scale for q, t in zip(now, targets, strict=True)) / len(row)
            zero = min(max(round(mean), 0), grid.top)
        energy = sum((q - zero) ** 2 for q in now)
        fitted = sum((q - zero) * t for q, t in zip(now, targets, strict=True)) / max(energy, 1)
        if fitted > 0:
            scale = float(torch.tensor(fitted).half())
        if error(scale, zero) < best[0]:
            best = (error(scale, zero), scale, zero)
        beta *= 1.01
    return values(best[1], best[2])


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_hqq_is_its_definition(bits: int, symmetric: bool) -> None:
    weight, grid = heavy_tailed(4, 32, seed=bits), Grid(bits, 16, symmetric)
    slow = [v for row in weight.tolist() for g in (0, 16) for v in hqq_slowly(row[g : g + 16], grid)]
    torch.testing.assert_close(
        hqq.quantize(weight, grid).dequantize(), torch.tensor(slow).view(4, 32), rtol=1e-5, atol=1e-6
    )


@given(st.integers(2, 8), st.booleans(), st.integers(0, 2**31))
def test_no_group_has_a_larger_lp_error_than_with_rtn(bits: int, symmetric: bool, seed: int) -> None:
    weight, grid = heavy_tailed(8, 64, seed), Grid(bits, 32, symmetric)
    errors = [
        hqq.lp_error(grid.split(weight - quantize(weight, grid).dequantize()))
        for quantize in (hqq.quantize, rtn.quantize)
    ]
    assert (errors[0] <= errors[1]).all()


@pytest.mark.parametrize(("bits", "most"), [(2, 0.9), (3, 0.97), (4, 0.99)])
def test_hqq_lowers_the_lp_error(bits: int, most: float) -> None:
    weight, grid = heavy_tailed(64, 256, seed=0), Grid(bits, 64, True)
    better, plain = (hqq.lp_error(weight - q.quantize(weight, grid).dequantize()).sum() for q in (hqq, rtn))
    assert better < most * plain


def test_result_does_not_depend_on_the_unit_of_the_weight() -> None:
    weight, grid = heavy_tailed(8, 64, seed=3), Grid(3, 32, False)
    large, small = hqq.quantize(weight, grid), hqq.quantize(weight / 64, grid)
    assert torch.equal(large.codes, small.codes)


def test_shrinkage_solves_its_proximal_problem_better_than_its_neighbours() -> None:
    assert hqq.shrink(torch.tensor([0.05, -0.1]), 10.0).abs().max() == 0
    x = torch.tensor([2.0, -3.0])
    kept = hqq.shrink(x, 10.0)
    assert (kept.abs() < x.abs()).all()
    assert (kept.sign() == x.sign()).all()
