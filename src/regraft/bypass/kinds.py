"""The module of each kind of bypass; the kinds themselves are rows of :mod:`regraft.formats.adapter.kinds`."""

from __future__ import annotations

import numpy as np
import torch

from regraft.bypass.bypass import Bypass
from regraft.bypass.lora import LoRA
from regraft.bypass.recovery import Recovery
from regraft.formats.adapter.content import Factors

MODULES: dict[str, type[Bypass]] = {LoRA.kind: LoRA, Recovery.kind: Recovery}


def register_module(module: type[Bypass]) -> None:
    """Say which module runs a kind; ``module.kind`` names it.

    Raises:
        ValueError: another does.
    """
    if MODULES.setdefault(module.kind, module) is not module:
        raise ValueError(f"kind {module.kind} has a module already")


def to_torch(factors: Factors) -> Bypass:
    """The module of a stored bypass, its factors in float32 and in memory of their own."""
    down, up = (torch.from_numpy(factor.astype(np.float32)) for factor in factors.arrays())
    return MODULES[factors.kind](down, up, factors.scale)
