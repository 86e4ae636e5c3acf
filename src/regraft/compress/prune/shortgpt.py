"""ShortGPT's block influence (Men et al. 2024, arXiv 2403.03853, eq. 1): a layer that hardly turns its input may go.

    BI_l = 1 - mean_t cos(x_{l,t}, x_{l+1,t})

with x_l the hidden state that enters layer l.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from regraft.compress.reading import PartsWalk, Text, parts_of


@torch.no_grad()
def block_influence(model: PreTrainedModel, text: Text) -> list[Tensor]:
    """``BI`` of each layer, ``[1]``, over all tokens of ``text``."""
    walk, num_tokens = PartsWalk(model, text), sum(part.num_tokens for part in parts_of(text))
    scores = []
    for layer in range(len(walk.layers)):
        before = walk.states
        walk.advance(layer)
        cosines = [
            functional.cosine_similarity(x.double(), y.double(), dim=-1).sum()
            for x, y in zip(before, walk.states, strict=True)
        ]
        scores.append((1 - sum(cosines) / num_tokens).reshape(1).cpu())  # type: ignore[union-attr]
    return scores
