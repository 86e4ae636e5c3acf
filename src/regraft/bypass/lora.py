"""LoRA: a low-rank linear bypass (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    y += s · B A x          A: [r, in]   B: [out, r]

with the scale s = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regraft.formats.kept import Kept


class LoRA(nn.Module):
    """One slot's LoRA.

    Args:
        down: A, ``[r, in]``.
        up: B, ``[out, r]``.
        scale: s, the *effective* scale, already divided by the rank.
    """

    is_linear = True

    def __init__(self, down: Tensor, up: Tensor, scale: float) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.scale = scale

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    def activate(self, hidden: Tensor) -> Tensor:
        """What stands between A and B: nothing."""
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        """``s · B A x`` for ``x [..., in]``."""
        return self.scale * (x @ self.down.T) @ self.up.T

    def delta(self) -> Tensor:
        """The dense equivalent ``s · B A``, ``[out, in]``."""
        return self.scale * self.up @ self.down

    def effect(self) -> float:
        """``||s · B A||_F``, from the Gram matrices of the factors: the dense product is never formed."""
        down, up = self.down.detach().double(), self.up.detach().double()
        squared = torch.sum((down @ down.T) * (up.T @ up)).item()
        return abs(self.scale) * max(squared, 0.0) ** 0.5


def sliced(lora: Mapping[str, LoRA], kept: Kept) -> dict[str, LoRA]:
    """LoRAs of the original base, for what pruning has left of it: ``B[rows]`` and ``A[:, columns]``, exactly."""
    left = {}
    for slot, source in kept.carried(lora).items():
        whole = lora[source]
        down, up = whole.down.detach()[:, kept.columns(slot)], whole.up.detach()[kept.rows(slot)]
        left[slot] = LoRA(down, up, whole.scale)
    return left


def stack(first: LoRA, second: LoRA) -> LoRA:
    """The sum of two LoRAs as one of rank ``r1 + r2``, scales folded into B."""
    down = torch.cat([first.down.detach(), second.down.detach()])
    up = torch.cat([first.scale * first.up.detach(), second.scale * second.up.detach()], dim=1)
    return LoRA(down, up, 1.0)
