"""CA-LoRA's recovery bypass: a non-linear bottleneck beside a compressed linear (arXiv 2307.07705, section 3.3).

    y += s · P2 gelu(P1 x)          P1: [r, in]   P2: [out, r]

without biases; P2 starts at zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from regraft.bypass.bypass import Bypass
from regraft.formats.adapter.kinds import GELU


class Recovery(Bypass):
    """One slot's recovery bypass; it cannot be merged into a weight. ``down`` is P1, ``up`` is P2."""

    kind = GELU

    def activate(self, hidden: Tensor) -> Tensor:
        """GELU, between P1 and P2."""
        return functional.gelu(hidden)

    @classmethod
    def zero(cls, shape: tuple[int, int], rank: int, generator: torch.Generator, scale: float = 1.0) -> Recovery:
        """CA-LoRA's start: P1 Kaiming-uniform with a = sqrt(5), P2 zero, so that nothing is added at step 0."""
        out_features, in_features = shape
        bound = 1 / math.sqrt(in_features)  # Kaiming-uniform with a = sqrt(5) comes to this
        down = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
        return cls(down, torch.zeros(out_features, rank), scale)

    @classmethod
    def from_linear(cls, down: Tensor, up: Tensor) -> Recovery:
        """A bottleneck of rank 2r that equals the linear map ``up @ down`` of rank r.

        ``gelu(z) - gelu(-z) = z Φ(z) + z Φ(-z) = z``, so a pair of opposite neurons is one linear one. This lets a
        closed-form, linear recovery be the start of a non-linear one.
        """
        return cls(torch.cat([down, -down]), torch.cat([up, -up], dim=1))
