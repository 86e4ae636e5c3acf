"""8-bit products for the frozen linears while training: ``y = W x`` and ``dx = Wᵀ dy`` in int8, sums in int32.

The weight is quantized once per row of the product (each direction its own), activations and gradients per token: a
row is divided by its largest magnitude before, and the result multiplied by it after. LLM.int8() (Dettmers et al.
2022, arXiv 2208.07339) calls this vector-wise quantization. The bypasses, the norms and the attention stay in float,
as does every evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from regraft.base.slots import iter_slots

SMALLEST = 1e-20  # rows that are all zero


class PackedWeight:
    """A weight ``[out, in]``, packed for x86's or ARM's int8 kernels of torch."""

    def __init__(self, weight: Tensor) -> None:
        scale = weight.abs().amax(dim=1).clamp(min=SMALLEST).double() / 127
        zero = torch.zeros(len(scale), dtype=torch.long)
        codes = torch.quantize_per_channel(weight.float().contiguous(), scale, zero, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(codes, None)

    def product(self, x: Tensor) -> Tensor:
        """``x Wᵀ`` for ``x [N, in]``, each row of x quantized by itself."""
        largest = x.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST)
        # reduce_range: without VNNI the kernels add pairs of products in 16 bits, which 8 + 8 bits would overflow.
        return torch.ops.quantized.linear_dynamic(x / largest, self._packed, True).mul_(largest)


class _Int8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: PackedWeight, backward: PackedWeight) -> Tensor:
        ctx.backward_weight = backward
        return forward.product(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        flat = gradient.flatten(0, -2)
        return ctx.backward_weight.product(flat).unflatten(0, gradient.shape[:-1]), None, None


class FrozenInt8Linear(nn.Module):
    """A frozen linear whose products are 8-bit in both directions."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._forward = PackedWeight(linear.weight)
        self._backward = PackedWeight(linear.weight.T)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """``W x + b``."""
        y: Tensor = _Int8Product.apply(x, self._forward, self._backward)
        return y if self.bias is None else y + self.bias


@contextmanager
def int8_products(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Swap the linears of all slots for 8-bit ones for the length of a ``with`` block.

    Works inside :func:`regraft.bypass.attach.attached` too: the linear within a bypassed slot is swapped.
    """
    if not enabled:
        yield
        return
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    frozen = {id(linear) for _, linear in iter_slots(model)}
    swapped = {path: linear for path, linear in linears.items() if id(linear) in frozen}
    for path, linear in swapped.items():
        model.set_submodule(path, FrozenInt8Linear(linear))
    try:
        yield
    finally:
        for path, linear in swapped.items():
            model.set_submodule(path, linear)
