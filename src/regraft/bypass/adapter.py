"""The adapter: a named set of bypasses for one base, read from and written to a PEFT directory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from regraft.bypass.attach import Bypass
from regraft.bypass.lora import LoRA
from regraft.bypass.recovery import Recovery
from regraft.formats.adapter.record import AdapterRecord


@dataclass
class Adapter:
    """Bypasses by slot. ``record`` is None for an adapter that regraft did not make.

    ``sha256`` is the hash of the PEFT weights file that it was read from, or of ``recovery.safetensors`` where there is
    no other; ``peft_config`` is what PEFT wrote beside it.
    """

    name: str
    lora: dict[str, LoRA] = field(default_factory=dict)
    recovery: dict[str, Recovery] = field(default_factory=dict)
    peft_config: Mapping[str, Any] = field(default_factory=dict)
    record: AdapterRecord | None = None
    path: Path | None = None
    sha256: str | None = None

    @property
    def bypasses(self) -> dict[str, list[Bypass]]:
        """Slot → all that this adapter adds there."""
        slots = [*self.lora, *(slot for slot in self.recovery if slot not in self.lora)]
        return {slot: [part[slot] for part in (self.lora, self.recovery) if slot in part] for slot in slots}

    def parameters(self) -> Iterator[nn.Parameter]:
        """Every factor, LoRA first."""
        for part in (self.lora, self.recovery):
            for bypass in part.values():
                yield from bypass.parameters()

    def digest(self) -> str:
        """Hex sha256 over slots, kinds, scales and factors: what the adapter computes, whatever its files say."""
        digest = hashlib.sha256()
        for slot, added in self.bypasses.items():
            for bypass in added:
                digest.update(f"{slot} {type(bypass).__name__} {bypass.rank} {bypass.scale!r}\n".encode())
                for factor in bypass.parameters():
                    digest.update(factor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def num_parameters(self) -> int:
        """Numbers in all factors."""
        return sum(parameter.numel() for parameter in self.parameters())
