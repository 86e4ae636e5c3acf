"""HQQ, half-quadratic quantisation (Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/). Needs no data.

    min over the grid's parameters of  φ_p(W - W_r),   φ_p(e) = Σ |e|^p,   p = 0.7

A norm with p < 1 lets a few outliers be wrong, so that all others are right. It is split by an auxiliary ``W_e``:

    W_e ← shrink_p(W - W_r, β),   shrink_p(x, β) = sign(x) max(|x| - |x|^(p-1) / β, 0)
    z   ← mean(W_q - (W - W_e) / s)
    s   ← ⟨W_q - z, W - W_e⟩ / ⟨W_q - z, W_q - z⟩
    β   ← κ β

What differs from the authors: their zero point is a float and their scale is fixed; ours is an integer (or fixed, if
symmetric), so ``z`` is rounded and ``s`` takes the least-squares step instead. Errors are measured in steps of the
grid, which makes the result independent of the weight's scale. Each group keeps its best iterate, the first of which
is RTN: no group ends with a larger ``φ_p`` than RTN's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.compress.quantize.grid import Grid, round_scale
from regraft.models.quantized_tensor import QuantizedTensor

P = 0.7
_BETA = 10.0
_KAPPA = 1.01
_ITERATIONS = 20


def quantize(weight: Tensor, grid: Grid) -> QuantizedTensor:
    """Round ``weight`` (float32 ``[out, in]``) to the grid whose ``φ_p`` error is least."""
    groups = grid.split(weight)
    scale, zero = grid.fit(groups)
    best_scale, best_zero, least = scale, zero, lp_error(groups - grid.round(groups, scale, zero))
    beta = _BETA
    for _ in range(_ITERATIONS):
        scale, zero = _step(groups, scale, zero, grid, beta)
        error = lp_error(groups - grid.round(groups, scale, zero))
        better = error < least
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        least = torch.minimum(error, least)
        beta *= _KAPPA
    return grid.store(grid.encode(groups, best_scale, best_zero), best_scale, best_zero)


def lp_error(error: Tensor) -> Tensor:
    """``φ_p`` of each group: ``[..., g]`` → ``[..., 1]``."""
    return error.abs().pow(P).sum(-1, keepdim=True)


def _step(groups: Tensor, scale: Tensor, zero: Tensor, grid: Grid, beta: float) -> tuple[Tensor, Tensor]:
    codes = grid.encode(groups, scale, zero)
    target = groups - scale * shrink(groups / scale - (codes - zero), beta)
    if not grid.symmetric:
        zero = (codes - target / scale).mean(-1, keepdim=True).round().clamp(0, grid.top)
    levels = codes - zero
    energy = levels.square().sum(-1, keepdim=True)
    fitted = (levels * target).sum(-1, keepdim=True) / energy.clamp(min=1)
    return torch.where(fitted > 0, round_scale(fitted), scale), zero


def shrink(x: Tensor, beta: float) -> Tensor:
    """The generalised soft threshold of ``|·|^p``: what is small becomes zero."""
    size = x.abs()
    return x.sign() * (size - size.clamp(min=1e-8).pow(P - 1) / beta).clamp(min=0)
