"""LLM-Pruner's importances (Ma et al. 2023, arXiv 2305.11627, section 3.2) of a group's unit, low ones go first.

With w the unit's weights, g = ∂L/∂w the gradient of the mean loss over the calibration sequences, and the diagonal
Fisher information F = mean_j (∂L_j/∂w)² in place of the Hessian:

    element, first    Σ_k |g_k w_k|                 (eq. 5 without its second term)
    element, second   Σ_k |½ w_k² F_kk|
    element, mixed    Σ_k |g_k w_k - ½ w_k² F_kk|   (eq. 5)
    vector            the same with Σ_v |Σ_{k in v} …|  over the unit's rows and columns v       (eq. 3)
    magnitude         Σ_v ||w_v||_p,  p = 1 or 2

The first-order term stays because calibration text is not what the model was trained to a minimum on. The authors'
code leaves out the ½ where the second term stands alone, which changes no ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from regraft.compress.prune.groups import Group
from regraft.progress import Progress, silent


def magnitude(model: PreTrainedModel, groups: Sequence[Group], p: int) -> list[Tensor]:
    """``Σ_v ||w_v||_p`` of each group's units."""
    weights = dict(model.named_parameters())
    scores = []
    for group in groups:
        total = torch.zeros(group.units, dtype=torch.float64)
        for member in group.members:
            norms = weights[member.parameter].detach().double().norm(p=p, dim=1 - member.axis)
            total += norms.view(group.units, member.width).sum(1).cpu()
        scores.append(total)
    return scores


@dataclass(frozen=True)
class Gradients:
    """By parameter name: ``mean``, of the mean loss; ``fisher``, the mean of squares over single sequences, or None."""

    mean: dict[str, Tensor]
    fisher: dict[str, Tensor] | None


def taylor(
    model: PreTrainedModel,
    groups: Sequence[Group],
    sequences: Tensor,
    *,
    order: str,
    level: str,
    progress: Progress = silent,
) -> list[Tensor]:
    """The estimated change of the loss without each unit.

    Args:
        model: its weights and what they require are as before when this returns.
        groups: of which the units are judged.
        sequences: token ids ``[N, T]``.
        order: ``first``, ``second`` or ``mixed``.
        level: ``element`` or ``vector``.
        progress: told of each sequence.

    Cost:
        Memory: the groups' weights once more as gradients, with ``second`` and ``mixed`` twice.
    """
    names = {member.parameter for group in groups for member in group.members}
    weights = {name: parameter for name, parameter in model.named_parameters() if name in names}
    gradients = measure_gradients(model, weights, sequences, fisher=order != "first", progress=progress)
    saliency = {}
    for name, weight in weights.items():
        first = gradients.mean[name] * weight.detach()
        second = torch.zeros_like(first)
        if gradients.fisher is not None:
            second = 0.5 * weight.detach().square() * gradients.fisher[name]
        change = {"first": first, "second": second, "mixed": first - second}[order]
        saliency[name] = change if level == "vector" else change.abs()
    return [group.per_unit(saliency, vectors=level == "vector") for group in groups]


def measure_gradients(
    model: PreTrainedModel,
    weights: dict[str, torch.nn.Parameter],
    sequences: Tensor,
    *,
    fisher: bool,
    progress: Progress = silent,
) -> Gradients:
    """Gradients of the loss on each sequence by itself, averaged."""
    mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()} if fisher else None
    with progress.track(len(sequences), "gradients") as advance:
        for ids in sequences.to(model.device):
            for name, gradient in zip(weights, _gradient(model, list(weights.values()), ids), strict=True):
                mean[name] += gradient / len(sequences)
                if squares is not None:
                    squares[name] += gradient.square() / len(sequences)
            advance()
    return Gradients(mean, squares)


def _gradient(model: PreTrainedModel, weights: list[torch.nn.Parameter], ids: Tensor) -> tuple[Tensor, ...]:
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        return torch.autograd.grad(functional.cross_entropy(logits.float(), ids[1:]), weights)
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
