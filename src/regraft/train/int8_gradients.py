"""8-bit products for the gradients that pass through frozen linears: ``dx = Wᵀ dy`` in int8, sums in int32.

The weight is quantized once, a scale per input column; a gradient is quantized per token: each row is divided by its
largest magnitude before, and the product multiplied by it after (vector-wise quantization: LLM.int8(), Dettmers et al.
2022, arXiv 2208.07339). The forward products stay in float, so the loss is exact and only its gradient is rounded:
on SmolLM2 the gradient of the bypasses keeps a cosine of 0.999. Forward products in int8 as well were tried and left
out: activations have outlier channels that gradients lack, and the loss itself was off by a fifth.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.models.slots import iter_slots

SMALLEST = 1e-20  # stands in for the largest magnitude of a row of zeros


class PackedWeight:
    """A weight ``[out, in]``, packed for torch's int8 kernels (x86 and ARM)."""

    def __init__(self, weight: Tensor) -> None:
        scale = weight.abs().amax(dim=1).clamp(min=SMALLEST).double() / 127
        zero = torch.zeros(len(scale), dtype=torch.long)
        with warnings.catch_warnings():  # torch means to move these tensors to torchao; its kernels stay
            warnings.simplefilter("ignore")
            codes = torch.quantize_per_channel(weight.float().contiguous(), scale, zero, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(codes, None)

    def product(self, x: Tensor) -> Tensor:
        """``x Wᵀ`` for ``x [N, in]``, each row of x quantized by itself."""
        largest = x.abs().amax(dim=1, keepdim=True).clamp(min=SMALLEST)
        # reduce_range: without VNNI the kernels add pairs of products in 16 bits, which 8 + 8 bits would overflow.
        product: Tensor = torch.ops.quantized.linear_dynamic(x / largest, self._packed, True)
        return product.mul_(largest)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: nn.Linear, transposed: PackedWeight) -> Tensor:
        ctx.transposed = transposed
        return functional.linear(x, linear.weight, linear.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        flat = gradient.flatten(0, -2)
        return ctx.transposed.product(flat).unflatten(0, gradient.shape[:-1]), None, None


class Int8GradientLinear(nn.Module):
    """A frozen linear: its forward product as it was, its gradient in 8 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self._transposed = PackedWeight(linear.weight.T)

    def forward(self, x: Tensor) -> Tensor:
        """``W x + b``."""
        y: Tensor = _Linear.apply(x, self.linear, self._transposed)
        return y


@contextmanager
def int8_gradients(model: nn.Module, *, enabled: bool = True) -> Iterator[None]:
    """Swap the linears of all slots for :class:`Int8GradientLinear` for the length of a ``with`` block.

    Works inside :func:`regraft.bypass.attach.attached` too: the linear within a bypassed slot is swapped.
    """
    frozen = {id(linear) for _, linear in iter_slots(model)} if enabled else set()
    swapped = {path: module for path, module in model.named_modules() if id(module) in frozen}
    for path, linear in swapped.items():
        assert isinstance(linear, nn.Linear)
        model.set_submodule(path, Int8GradientLinear(linear))
    try:
        yield
    finally:
        for path, linear in swapped.items():
            model.set_submodule(path, linear)
