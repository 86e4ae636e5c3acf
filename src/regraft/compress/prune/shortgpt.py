"""ShortGPT's block influence (Men et al. 2024, arXiv 2403.03853, eq. 1): a layer that hardly turns its input may go.

    BI_l = 1 - mean_t cos(x_{l,t}, x_{l+1,t})

with x_l the hidden state that enters layer l.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from regraft.base.walk import LayerWalk

_BATCH = 8  # sequences that go through a layer together


@torch.no_grad()
def block_influence(model: PreTrainedModel, sequences: Tensor) -> list[Tensor]:
    """``BI`` of each layer, ``[1]``, on ``sequences [N, T]``."""
    walk = LayerWalk(model, sequences.to(model.device).split(_BATCH))
    scores = []
    for layer in range(len(walk.layers)):
        before = walk.states
        walk.advance(layer)
        cosines = [
            functional.cosine_similarity(x.double(), y.double(), dim=-1).sum()
            for x, y in zip(before, walk.states, strict=True)
        ]
        scores.append((1 - sum(cosines) / sequences.numel()).reshape(1).cpu())  # type: ignore[union-attr]
    return scores
