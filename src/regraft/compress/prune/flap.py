"""FLAP (An et al. 2023, arXiv 2312.11983): remove what hardly fluctuates, and put its mean into a bias.

    S_j = Var(X_j) · ||W_:j||²          (eq. 4), X_j over the calibration tokens
    I_u = Σ_{j in u} S_j,  standardised within the group: (I - mean) / std          (eq. 7)
    b  += Σ_{j removed} W_:j · mean(X_j)                 (eq. 2)

Standardised, units of different layers and kinds can be ranked together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from regraft.compress.prune.activations import Inputs
from regraft.compress.prune.endings import Ending


def flap(endings: Sequence[Ending], inputs: Sequence[Inputs]) -> list[Tensor]:
    """The standardised importance of each group's units."""
    scores = []
    for ending, seen in zip(endings, inputs, strict=True):
        columns = ending.weight.detach().double().square().sum(0).cpu() * seen.variance
        scores.append(_standardised(ending.per_unit(columns)))
    return scores


def _standardised(scores: Tensor) -> Tensor:
    if len(scores) == 1:
        return torch.zeros_like(scores)
    return (scores - scores.mean()) / scores.std().clamp(min=torch.finfo(scores.dtype).tiny)


def compensation(ending: Ending, inputs: Inputs, keep: Tensor) -> Tensor:
    """The bias ``[out]`` that stands in for the columns that are not among ``keep``."""
    removed = torch.ones(len(inputs.mean), dtype=torch.bool)
    removed[keep] = False
    weight = ending.weight.detach()
    return (weight[:, removed.to(weight.device)].double() @ inputs.mean[removed].to(weight.device)).to(weight.dtype)
