"""LLM-Pruner's importances (Ma et al. 2023, arXiv 2305.11627, section 3.2) of a group's unit, low ones go first.

With w the unit's weights, g = ∂L/∂w the gradient of the mean loss L over the calibration sequences, and the diagonal
Fisher information F = mean_j (∂L_j/∂w)² in place of the Hessian:

    element, first    Σ_k |g_k w_k|                 (eq. 5 without its second term)
    element, second   Σ_k |½ w_k² F_kk|
    element, mixed    Σ_k |g_k w_k - ½ w_k² F_kk|   (eq. 5)
    vector            the same with Σ_v |Σ_{k in v} …|  over the unit's rows and columns v       (eq. 3)
    magnitude         Σ_v ||w_v||_p,  p = 1 or 2

L_j is the mean over all tokens of general text, but over the answer alone where a row is read with its adapter. Prompts
are given to an adapter, not foretold by it: those trained on answers are so bad at them (SmolLM2 on headlines: 8 nats a
token over all, 0.2 over answers) that their gradients would drown those of what the adapter is for. How a prompt is
read still counts, as far as the answer depends on it.

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
from regraft.compress.reading import Text, parts_of
from regraft.progress import Progress, silent
from regraft.train.batches import Row


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
    text: Text,
    *,
    order: str,
    level: str,
    progress: Progress = silent,
) -> list[Tensor]:
    """The estimated change of the loss without each unit.

    Args:
        model: its weights and what they require are as before when this returns.
        groups: of which the units are judged.
        text: calibration text.
        order: ``first``, ``second`` or ``mixed``.
        level: ``element`` or ``vector``.
        progress: told of each sequence.

    Cost:
        Memory: the groups' weights once more as gradients, with ``second`` and ``mixed`` twice.
    """
    names = {member.parameter for group in groups for member in group.members}
    weights = {name: parameter for name, parameter in model.named_parameters() if name in names}
    gradients = measure_gradients(model, weights, text, fisher=order != "first", progress=progress)
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
    text: Text,
    *,
    fisher: bool,
    progress: Progress = silent,
) -> Gradients:
    """Gradients of the loss on each sequence by itself, averaged; each counts the same, however long it is."""
    parts = parts_of(text)
    count = sum(len(part.rows) for part in parts)
    mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()} if fisher else None
    with progress.track(count, "gradients") as advance:
        for part in parts:
            with part.attached(model):
                for row in part.rows:
                    for name, gradient in zip(weights, _gradient(model, list(weights.values()), row), strict=True):
                        mean[name] += gradient / count
                        if squares is not None:
                            squares[name] += gradient.square() / count
                    advance()
    return Gradients(mean, squares)


def _gradient(model: PreTrainedModel, weights: list[torch.nn.Parameter], row: Row) -> tuple[Tensor, ...]:
    ids, first = torch.tensor(row.ids, device=model.device), len(row.ids) - row.num_answer
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        logits = model(input_ids=ids[None], use_cache=False).logits[0, first - 1 : -1]
        return torch.autograd.grad(functional.cross_entropy(logits.float(), ids[first:]), weights)
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
