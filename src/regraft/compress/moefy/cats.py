"""CATS (Lee et al. 2024, arXiv 2404.08763): of a gated MLP compute the gates, and the rest only where they are large.

    y = W_down (1[|g| >= τ] ∘ g ∘ W_up x)    g = act(W_gate x), τ the quantile of |g| over calibration tokens

The paper decides for each neuron. Memory is read in whole blocks, so here an expert's neurons decide together, by
``Σ |g_n|``; those that are large together should stand together, as ``split: activations`` has them.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 1 << 24  # elements that torch.quantile takes


def threshold(scores: Tensor, active: float) -> Tensor:
    """τ ``[1]``, so that the share ``active`` of ``scores [N, E]`` comes to it."""
    flat = scores.flatten()
    step = -(-len(flat) // MOST)
    return torch.quantile(flat[::step].float(), 1 - active).reshape(1)
