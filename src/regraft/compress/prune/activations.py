"""Activations that enter slots from heads and neurons: means, variances and norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regraft.compress.reading import Text, parts_of


@dataclass(frozen=True)
class Inputs:
    """Statistics of a linear's inputs over all calibration tokens, each float64 ``[in]``.

    ``norm`` is ``||X_j||_2``, the root of the sum of squares.
    """

    mean: Tensor
    variance: Tensor
    norm: Tensor


@torch.no_grad()
def measure_inputs(model: nn.Module, linears: Mapping[str, nn.Linear], text: Text) -> dict[str, Inputs]:
    """Statistics of the inputs of the named linears, while the model reads ``text``."""
    parts, device = parts_of(text), next(model.parameters()).device
    sums: dict[str, list[Tensor]] = {}

    def listen(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).double()
            added = [x.sum(0), x.square().sum(0)]
            sums[name] = [a + b for a, b in zip(sums[name], added, strict=True)] if name in sums else added

        return hook

    handles = [linear.register_forward_pre_hook(listen(name)) for name, linear in linears.items()]
    try:
        for part in parts:
            with part.attached(model):
                for ids in part.batches(device):
                    model.get_decoder()(input_ids=ids, use_cache=False)  # type: ignore[operator]
    finally:
        for handle in handles:
            handle.remove()
    count = sum(part.num_tokens for part in parts)
    return {name: _inputs(total, squares, count) for name, (total, squares) in sums.items()}


def _inputs(total: Tensor, squares: Tensor, count: int) -> Inputs:
    mean = total / count
    return Inputs(mean.cpu(), (squares / count - mean.square()).clamp(min=0).cpu(), squares.sqrt().cpu())
