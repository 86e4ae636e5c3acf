"""Wanda-sp: Wanda (Sun et al. 2023, arXiv 2306.11695) for whole structures, as An et al. define it (arXiv 2312.11983).

    I_u = Σ_{j in u} Σ_i |W_ij| · ||X_j||_2

over the columns j that a unit has in the slot where it ends: a head's in o_proj, a neuron's in down_proj. X are the
inputs of that slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from regraft.compress.prune.activations import Inputs
from regraft.compress.prune.endings import Ending


def wanda_sp(endings: Sequence[Ending], inputs: Sequence[Inputs]) -> list[Tensor]:
    """The importance of each group's units."""
    return [
        ending.per_unit(ending.weight.detach().double().abs().sum(0).cpu() * seen.norm)
        for ending, seen in zip(endings, inputs, strict=True)
    ]
