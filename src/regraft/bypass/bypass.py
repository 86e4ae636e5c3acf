"""A bypass in torch: what all kinds share.

y += s · up f(down x)          down: [r, in]   up: [out, r]
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class Bypass(nn.Module, ABC):
    """One slot's bypass.

    Args:
        down: ``[r, in]``.
        up: ``[out, r]``.
        scale: s, the *effective* scale, already divided by the rank.
    """

    kind: ClassVar[str]

    def __init__(self, down: Tensor, up: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.down = nn.Parameter(down)
        self.up = nn.Parameter(up)
        self.scale = scale

    @abstractmethod
    def activate(self, hidden: Tensor) -> Tensor:
        """f, of ``[..., r]``."""

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """``s · up f(down x)`` for ``x [..., in]``."""
        return self.scale * self.activate(x @ self.down.T) @ self.up.T

    def copy(self) -> Self:
        """The same factors in memory of their own."""
        return type(self)(self.down.detach().clone(), self.up.detach().clone(), self.scale)

    def times(self, weight: float) -> Self:
        """The bypass with its contribution times ``weight``; the memory of its factors is this one's."""
        return type(self)(self.down.detach(), self.up.detach(), weight * self.scale)

    def arrays(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Both factors as float32 arrays."""
        down, up = (factor.detach().cpu().float().numpy() for factor in (self.down, self.up))
        return down, up

    def cut(self, rows: Any, columns: Any) -> Self:
        """The bypass of some output rows and some input columns: ``up[rows]`` and ``down[:, columns]``."""
        down, up = self.down.detach(), self.up.detach()
        at = [torch.as_tensor(places, device=down.device) for places in (columns, rows)]
        return type(self)(down[:, at[0]], up[at[1]], self.scale)
