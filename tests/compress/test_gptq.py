from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regraft.compress.quantize import gptq, hqq, rtn
from regraft.compress.quantize.grid import Grid
from regraft.errors import FormatError


def correlated(width: int, seed: int = 0, tokens: int = 512) -> Tensor:
    """``Σ x xᵀ`` of inputs with a falling spectrum and unequal columns, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    spectrum = torch.arange(1, width + 1).rsqrt()
    x = torch.randn(tokens, width, generator=generator) * spectrum @ basis.T
    x = x * torch.randn(width, generator=generator).exp()
    return x.T @ x


def loss(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    error = weight - rounded
    return float(((error @ gram) * error).sum())


def obq_in_fixed_order(weight: Tensor, grid: Grid, gram: Tensor, order: list[int], static: bool) -> Tensor:
    """Optimal brain quantisation, one column at a time, H⁻¹ downdated explicitly (equations 2 and 3 of GPTQ)."""
    work, width = weight.double().clone(), len(gram)
    damped = gram.double() + gptq.DAMPING * gram.double().diagonal().mean() * torch.eye(width, dtype=torch.float64)
    inverse = torch.linalg.inv(damped)
    importance, downdated = torch.zeros(width), inverse.clone()
    for i in order:
        importance[i] = float(1 / downdated[i, i])
        downdated -= torch.outer(downdated[:, i], downdated[i]) / downdated[i, i]
    size, scales = grid.group_size, {}
    result = torch.zeros_like(work)
    for i in order:
        group = slice(i // size * size, i // size * size + size)
        if group.start not in scales:
            now = weight if static else work.float()
            scales[group.start] = grid.search(now[:, group], importance[group])
        scale, zero = scales[group.start]
        result[:, i] = grid.round(work[:, [i]].float(), scale, zero)[:, 0].double()
        error = (work[:, i] - result[:, i]) / inverse[i, i]
        work -= torch.outer(error, inverse[i])
        inverse -= torch.outer(inverse[:, i], inverse[i]) / inverse[i, i]
    return result.float()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("width", "group_size"), [(16, 4), (24, 24), (320, 64), (384, 192), (160, 160), (300, 12)])
def test_blocks_and_cholesky_give_what_obq_gives(width: int, group_size: int, symmetric: bool, act_order: bool) -> None:
    weight = torch.randn(3, width, generator=torch.Generator().manual_seed(width))
    gram, grid = correlated(width, tokens=4 * width), Grid(3, group_size, symmetric)
    order = gram.diagonal().argsort(descending=True).tolist() if act_order else list(range(width))

    fast = gptq.quantize(weight, grid, gram, act_order=act_order)
    slow = obq_in_fixed_order(weight, grid, gram, order, static=act_order)

    # Once a value lies on the border between two levels, float32 and float64 part ways, to equally good results.
    if width <= 24:
        torch.testing.assert_close(fast.dequantize(), slow, rtol=1e-5, atol=1e-6)
    assert loss(weight, fast.dequantize(), gram) == pytest.approx(loss(weight, slow, gram), rel=0.05)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [3, 6, 8, 12, 24])
def test_groups_and_blocks_may_overlap_in_any_way(
    group_size: int, act_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gptq, "_BLOCK", 8)
    weight = torch.randn(4, 24, generator=torch.Generator().manual_seed(5))
    gram, grid = correlated(24), Grid(3, group_size, True)
    order = gram.diagonal().argsort(descending=True).tolist() if act_order else list(range(24))
    fast = gptq.quantize(weight, grid, gram, act_order=act_order)
    slow = obq_in_fixed_order(weight, grid, gram, order, static=act_order)
    torch.testing.assert_close(fast.dequantize(), slow, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_has_less_weighted_error_than_methods_without_data(bits: int, symmetric: bool, act_order: bool) -> None:
    weight = torch.randn(32, 128, generator=torch.Generator().manual_seed(bits))
    gram, grid = correlated(128), Grid(bits, 32, symmetric)
    least = min(loss(weight, q.quantize(weight, grid).dequantize(), gram) for q in (rtn, hqq))
    assert loss(weight, gptq.quantize(weight, grid, gram, act_order=act_order).dequantize(), gram) < 0.7 * least


def test_columns_without_input_are_rounded_by_themselves() -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    gram = correlated(32)
    dead = [0, 7, 31]
    gram[dead] = 0
    gram[:, dead] = 0
    quantized = gptq.quantize(weight, Grid(8, 8, False), gram)
    assert (quantized.dequantize() - weight)[:, dead].abs().max() < 0.02
    assert (quantized.dequantize() - weight).abs().max() < 0.1


def test_columns_without_input_are_not_given_away() -> None:
    # Their inputs may come yet: a large weight there must not be clipped to make the others finer.
    weight = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    weight[:, 3] *= 4
    gram = correlated(32)
    gram[3] = gram[:, 3] = 0
    rounded = gptq.quantize(weight, Grid(3, 32, True), gram).dequantize()
    assert (rounded - weight)[:, 3].norm() < 0.3 * weight[:, 3].norm()


def test_no_input_at_all_is_rounding_to_nearest() -> None:
    weight, grid = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), Grid(4, 8, True)
    quantized = gptq.quantize(weight, grid, torch.zeros(32, 32))
    scale, zero = grid.search(grid.split(weight), torch.ones(1, 1, 8))
    assert torch.equal(quantized.codes, grid.encode(grid.split(weight), scale, zero).flatten(1).to(torch.uint8))


def test_result_does_not_depend_on_the_number_of_tokens() -> None:
    weight, gram = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), correlated(32)
    grid = Grid(3, 8, True)
    assert torch.equal(gptq.quantize(weight, grid, gram).codes, gptq.quantize(weight, grid, gram * 1024).codes)


def test_damping_is_raised_until_cholesky_works_and_said() -> None:
    indefinite = correlated(16)
    indefinite -= 0.05 * indefinite.diagonal().mean() * torch.eye(16)  # as rounding errors can do
    said: list[str] = []
    weight = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    assert gptq.quantize(weight, Grid(4, 8, True), indefinite, note=said.append).dequantize().isfinite().all()
    assert said == ["GPTQ damping raised from 0.01 to 0.1: the calibration inputs are nearly dependent"]


@pytest.mark.parametrize(
    ("gram", "message"),
    [
        (torch.full((8, 8), torch.nan), "calibration inputs: expected finite values, found inf or nan"),
        (-100 * torch.eye(8) + 50, "expected a positive definite sum"),
    ],
)
def test_unusable_statistics_are_refused(gram: Tensor, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        gptq.quantize(torch.ones(2, 8), Grid(4, 8, True), gram)
