"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round column by column, and let the later columns make up for it.

With ``H = Σ x xᵀ + λ I`` and ``U`` the upper Cholesky factor of ``H⁻¹`` (``UᵀU = H⁻¹``), for each column ``i``:

    q_i = round(w_i);   e = (w_i - q_i) / U_ii;   w_j ← w_j - e U_ij   for all j > i          (algorithm 1)

which is the optimal update of equation 2 for rounding in a fixed order. Columns are done in blocks of 128, and a
block's update of all later columns is one product.

Each group's scale is found when its first column is reached, for the weights as they stand by then: the one with the
least ``Σ (w_i - q_i)² / U_ii²``, which is what the group will add to the loss (equation 3). With ``act_order`` the
columns with the largest ``H_ii`` come first; the groups stay the original columns, so their scales are found
beforehand ("static groups" of the authors' code), and what is stored needs no permutation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.compress.quantize.grid import Grid
from regraft.errors import FormatError
from regraft.models.quantized_tensor import QuantizedTensor

DAMPING = 0.01  # λ as a share of H's mean diagonal: "percdamp" of the authors' code
_MORE_DAMPING = (0.1, 1.0, 10.0)
_BLOCK = 128  # columns


def quantize(
    weight: Tensor,
    grid: Grid,
    gram: Tensor,
    *,
    act_order: bool = False,
    note: Callable[[str], None] = lambda text: None,
) -> QuantizedTensor:
    """Round ``weight`` so that ``tr((W - Q) H (W - Q)ᵀ)`` stays small.

    Args:
        weight: float32 ``[out, in]``.
        grid: what to round to.
        gram: ``Σ x xᵀ`` over calibration tokens, float32 ``[in, in]``, in any unit. A column that was never active
            is rounded by itself.
        act_order: take the columns by falling ``H_ii``.
        note: told when ``H`` needed more damping than :data:`DAMPING`.

    Raises:
        FormatError: ``gram`` is not finite, or no damping makes it positive definite.
    """
    width = weight.shape[1]
    order = (
        gram.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(width, device=gram.device)
    )
    back = order.argsort()
    factor = inverse_factor(gram[order][:, order], note)
    importance = factor.diagonal().square().reciprocal()
    scale = zero = torch.empty(len(weight), width // grid.group_size, 1, device=weight.device)  # filled on the way
    if act_order:
        scale, zero = grid.search(grid.split(weight), grid.split(importance[back].unsqueeze(0)))
    sweep = _Sweep(
        grid=grid,
        factor=factor,
        importance=importance,
        group_of=(order // grid.group_size).tolist(),
        refit=not act_order,
        work=weight[:, order].clone(),
        codes=torch.empty_like(weight),
        scale=scale.squeeze(-1).clone(),
        zero=zero.squeeze(-1).clone(),
    )
    length = _BLOCK if act_order else _block_length(grid, width)
    for start in range(0, width, length):
        sweep.block(start, min(start + length, width))
    codes = grid.split(sweep.codes[:, back])
    return grid.store(codes, sweep.scale.unsqueeze(-1), sweep.zero.unsqueeze(-1))


@dataclass
class _Sweep:
    """One pass over the columns, in the order of ``factor``; ``scale`` and ``zero`` are ``[out, G]``."""

    grid: Grid
    factor: Tensor
    importance: Tensor
    group_of: list[int]
    refit: bool
    work: Tensor
    codes: Tensor
    scale: Tensor
    zero: Tensor

    def block(self, start: int, stop: int) -> None:
        """Round the columns ``start`` to ``stop``, then send their errors on to all later ones."""
        errors = torch.empty_like(self.work[:, start:stop])
        for i in range(start, stop):
            if self.refit and i % self.grid.group_size == 0:
                self._fit(i)
            error = (self.work[:, i] - self._round(i)) / self.factor[i, i]
            self.work[:, i:stop] -= error.unsqueeze(1) * self.factor[i, i:stop]
            errors[:, i - start] = error
        self.work[:, stop:] -= errors @ self.factor[start:stop, stop:]

    def _fit(self, i: int) -> None:
        columns = slice(i, i + self.grid.group_size)
        scale, zero = self.grid.search(self.work[:, columns], self.importance[columns])
        group = self.group_of[i]
        self.scale[:, group], self.zero[:, group] = scale.squeeze(-1), zero.squeeze(-1)

    def _round(self, i: int) -> Tensor:
        scale, zero = self.scale[:, self.group_of[i]], self.zero[:, self.group_of[i]]
        self.codes[:, i] = self.grid.encode(self.work[:, i], scale, zero)
        return (self.codes[:, i] - zero) * scale


def _block_length(grid: Grid, width: int) -> int:
    """Columns per block: groups start where a block starts or lie inside one, so that each is fitted up to date."""
    if grid.group_size == width:
        return _BLOCK
    return grid.group_size * max(1, _BLOCK // grid.group_size)


def inverse_factor(gram: Tensor, note: Callable[[str], None]) -> Tensor:
    """``U``, upper triangular, with ``UᵀU = (gram + λ I)⁻¹``; λ grows tenfold while that is no positive matrix."""
    if not gram.isfinite().all():
        raise FormatError("calibration inputs", expected="finite values", found="inf or nan")
    gram = gram.float().clone()
    diagonal = gram.diagonal()
    dead = diagonal == 0
    mean = diagonal[~dead].mean() if not dead.all() else torch.ones((), device=gram.device)
    diagonal[dead] = mean
    for damping in (DAMPING, *_MORE_DAMPING):
        damped = gram.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        upper, failed_too = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed and not failed_too and upper.isfinite().all():
            if damping > DAMPING:
                note(f"GPTQ damping raised from {DAMPING} to {damping}: the calibration inputs are nearly dependent")
            return upper
    raise FormatError("calibration inputs", expected="a positive definite sum of x xᵀ", found="an indefinite one")
