"""The adapter in torch: a named set of bypasses for one base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from regraft.bypass.bypass import Bypass
from regraft.formats.adapter.content import AdapterContent


@dataclass
class Adapter(AdapterContent[Bypass]):
    """Bypasses by slot.

    ``sha256`` is the hash of the PEFT weights file that it was read from, or of the first file of another kind where
    there is no such.
    """

    sha256: str | None = None

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every factor."""
        for bypass in self:
            yield from bypass.parameters()

    @property
    def num_parameters(self) -> int:
        """Numbers in all factors."""
        return sum(parameter.numel() for parameter in self.parameters())
