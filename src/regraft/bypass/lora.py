"""LoRA: a low-rank linear bypass (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    y += s · B A x          A: [r, in]   B: [out, r]

with the scale s = alpha / r, or alpha / sqrt(r) for rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).
"""

from __future__ import annotations

import torch
from torch import Tensor

from regraft.bypass.bypass import Bypass
from regraft.formats.adapter.kinds import LORA


class LoRA(Bypass):
    """One slot's LoRA; ``down`` is A, ``up`` is B."""

    kind = LORA

    def activate(self, hidden: Tensor) -> Tensor:
        """Nothing stands between A and B."""
        return hidden

    def delta(self) -> Tensor:
        """The dense equivalent ``s · B A``, ``[out, in]``."""
        return self.scale * self.up @ self.down

    def effect(self) -> float:
        """``||s · B A||_F``, from the Gram matrices of the factors: the dense product is never formed."""
        down, up = self.down.detach().double(), self.up.detach().double()
        squared = torch.sum((down @ down.T) * (up.T @ up)).item()
        return abs(self.scale) * max(squared, 0.0) ** 0.5


def stack(first: LoRA, second: LoRA) -> LoRA:
    """The sum of two LoRAs as one of rank ``r1 + r2``, scales folded into B."""
    down = torch.cat([first.down.detach(), second.down.detach()])
    up = torch.cat([first.scale * first.up.detach(), second.scale * second.up.detach()], dim=1)
    return LoRA(down, up, 1.0)
