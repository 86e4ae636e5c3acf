from __future__ import annotations

import pytest
import torch

from regraft.compress.quantize import rtn
from regraft.compress.quantize.grid import Grid, round_scale


def rtn_slowly(row: list[float], bits: int, symmetric: bool) -> list[float]:
    """One group, in plain Python."""
    top, middle = 2**bits - 1, 2 ** (bits - 1)

    def stored(scale: float) -> float:
        return float(torch.tensor(scale).half())

    def rounded(scale: float, zero: int) -> list[float]:
        return [(min(max(round(w / scale + zero), 0), top) - zero) * scale for w in row]

    if symmetric:
        largest = max(abs(w) for w in row)
        tries = [rounded(stored(largest / (middle - short)), middle) for short in (0.0, 0.5, 1.0)]
        return min(tries, key=lambda q: sum((a - b) ** 2 for a, b in zip(row, q, strict=True)))
    low, high = min(0.0, *row), max(0.0, *row)
    scale = stored((high - low) / top)
    return rounded(scale, min(max(round(-low / scale), 0), top))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rtn_is_its_definition(bits: int, symmetric: bool) -> None:
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(bits))
    quantized = rtn.quantize(weight, Grid(bits, 8, symmetric))
    slow = [
        value
        for row in weight.tolist()
        for g in range(3)
        for value in rtn_slowly(row[8 * g : 8 * g + 8], bits, symmetric)
    ]
    torch.testing.assert_close(quantized.dequantize(), torch.tensor(slow).view(6, 24), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("short", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_fit_is_no_worse_than_any_fixed_span(bits: int, short: float) -> None:
    groups = torch.randn(50, 4, 32, generator=torch.Generator().manual_seed(0))
    grid = Grid(bits, 32, True)
    scale, zero = grid.fit(groups)
    fixed = round_scale(groups.abs().amax(-1, keepdim=True) / (grid.middle - short))

    def error(scale: torch.Tensor) -> torch.Tensor:
        return (groups - grid.round(groups, scale, zero)).square().sum(-1)

    assert (error(scale) <= error(fixed) + 1e-7).all()


@pytest.mark.parametrize("symmetric", [True, False])
def test_search_is_no_worse_than_fit_where_it_matters(symmetric: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    groups, importance = torch.randn(30, 2, 32, generator=generator), torch.rand(1, 2, 32, generator=generator) + 0.1
    grid = Grid(3, 32, symmetric)
    costs = []
    for scale, zero in (grid.fit(groups), grid.search(groups, importance)):
        costs.append((importance * (groups - grid.round(groups, scale, zero)).square()).sum(-1))
    assert (costs[1] <= costs[0]).all()
    assert costs[1].sum() < 0.95 * costs[0].sum()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("value", [0.0, 1e-9, 1e-6, 1.0, 1e5, -3.0])
def test_constant_groups_come_through(value: float, symmetric: bool) -> None:
    weight = torch.full((2, 8), value)
    quantized = rtn.quantize(weight, Grid(8, 8, symmetric))
    assert quantized.scale.isfinite().all()
    assert (quantized.scale > 0).all()
    # A step of the smallest float16 is all the error that values below its range have.
    torch.testing.assert_close(quantized.dequantize(), weight, rtol=0.005, atol=2.0**-24)


def test_zeros_stay_exactly_zero_on_an_asymmetric_grid() -> None:
    weight = torch.tensor([[3.0, 5.0, 0.0, 4.0], [-3.0, -5.0, 0.0, -1.0], [0.3, -0.1, 0.0, 0.2]])
    assert (rtn.quantize(weight, Grid(3, 4, False)).dequantize()[:, 2] == 0).all()
