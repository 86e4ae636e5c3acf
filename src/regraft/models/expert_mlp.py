"""An MLP whose neurons are cut in experts: all are computed, and those that a token does not take are put to zero.

    y = W_down (m(x) ∘ act(W_gate x) ∘ W_up x)          m: the neurons of the experts that are taken

Bypasses on gate and up act before the mask, so they wake no neuron that was not taken; one on down sees what it leaves.
This is the slow truth of the engine, which reads the experts that are taken and no other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.formats.experts import Experts


class Projection(nn.Module):
    """``W x``; not an ``nn.Linear``, because those are slots.

    Args:
        weight: ``[out, in]``.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` → ``[..., out]``."""
        return functional.linear(x, self.weight)


class Router(nn.Module):
    """Takes the ``active`` experts of the highest scores ``W_2 tanh(W_1 x)`` (MoEfication, arXiv 2110.01786)."""

    def __init__(self, first: Tensor, second: Tensor, active: int) -> None:
        super().__init__()
        self.first, self.second = Projection(first), Projection(second)
        self.active = active

    def scores(self, x: Tensor) -> Tensor:
        """``[..., M]`` → ``[..., E]``."""
        scores: Tensor = self.second(torch.tanh(self.first(x)))
        return scores

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Which experts are taken, ``[..., E]``; the gates are not looked at."""
        scores = self.scores(x)
        chosen = torch.zeros_like(scores, dtype=torch.bool)
        return chosen.scatter_(-1, scores.topk(self.active, dim=-1).indices, True)


class Threshold(nn.Module):
    """Takes the experts whose gates ``Σ |act(W_gate x)|`` come to the threshold (CATS, arXiv 2404.08763)."""

    def __init__(self, threshold: Tensor, size: int) -> None:
        super().__init__()
        self.threshold = nn.Parameter(threshold)
        self.size = size

    def scores(self, gates: Tensor) -> Tensor:
        """``[..., F]`` → ``[..., E]``."""
        return gates.abs().unflatten(-1, (-1, self.size)).sum(-1)

    def forward(self, x: Tensor, gates: Tensor) -> Tensor:
        """Which experts are taken, ``[..., E]``; the input is not looked at."""
        return self.scores(gates) >= self.threshold


class ExpertMLP(nn.Module):
    """Stands in for a decoder layer's gated MLP, whose linears it takes over under their names."""

    def __init__(self, mlp: nn.Module, chooser: Router | Threshold, size: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn
        self.chooser = chooser
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., M]`` → ``[..., M]``."""
        gates = self.act_fn(self.gate_proj(x))  # type: ignore[operator]
        hidden = gates * self.up_proj(x)  # type: ignore[operator]
        mask = self.chooser(x, gates).repeat_interleave(self.size, dim=-1)
        y: Tensor = self.down_proj(hidden * mask)  # type: ignore[operator]
        return y


def place_experts(model: nn.Module, experts: Experts) -> None:
    """Replace the MLPs of a model; routers and thresholds are still to be loaded."""
    layers = model.get_decoder().layers  # type: ignore[operator]
    for layer, active in zip(layers, experts.active, strict=True):
        weight: Tensor = layer.mlp.gate_proj.weight
        neurons, width = weight.shape
        count = neurons // experts.size
        chooser: Router | Threshold
        if experts.method == "moefication":
            chooser = Router(weight.new_zeros(count, width), weight.new_zeros(count, count), int(active))
        else:
            chooser = Threshold(weight.new_zeros(1), experts.size)
        layer.mlp = ExpertMLP(layer.mlp, chooser, experts.size)
