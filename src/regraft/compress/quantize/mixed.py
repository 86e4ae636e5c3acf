"""Widths by slot under a budget of bytes: where rounding hurts the loss, weights get more bits.

    L(W') - L(W) ≈ ½ Σ_k F_kk (w_k - w'_k)²       F_kk = mean_j (dL_j / dw_k)²

with the diagonal Fisher of LLM-Pruner's second order (arXiv 2305.11627) in place of HAWQ-V2's Hessian trace (Dong et
al. 2019, arXiv 1911.03852), and the weight rounded to nearest at each width. From the narrowest widths on, the step
that saves most loss per byte is taken, until no step fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import replace

import torch

from regraft.compress.prune.llm_pruner import measure_gradients
from regraft.compress.quantize.grid import Grid
from regraft.compress.quantize.rtn import quantize
from regraft.compress.reading import Text
from regraft.compress.recipe import SlotPlan
from regraft.errors import ConfigError
from regraft.models.load import Base
from regraft.models.slots import iter_slots, slot_paths
from regraft.progress import Progress, silent

WIDTHS = (2, 3, 4, 8)
_HEADER_BYTES = 160  # of safetensors, for each tensor

ByWidth = Mapping[str, Mapping[int, float]]  # slot → bits → loss, or bytes


def fit_widths(
    base: Base,
    plans: Mapping[str, SlotPlan],
    text: Text,
    target_bytes: int,
    *,
    embedding_bits: int,
    progress: Progress = silent,
) -> dict[str, SlotPlan]:
    """The plans with widths of at most theirs, so that all weights on disk take ``target_bytes`` at most.

    Args:
        base: not rounded yet.
        plans: those whose width an override gave are left as they are.
        text: calibration text, its adapters those of ``base``.
        target_bytes: of the weight file.
        embedding_bits: 16, or 8 for packed ones.
        progress: told of the gradients.

    Raises:
        ConfigError: the narrowest widths take more.
    """
    free = {slot: plan for slot, plan in plans.items() if not (plan.is_fixed or plan.is_dense)}
    shapes = {slot: (linear.out_features, linear.in_features) for slot, linear in iter_slots(base.model)}
    costs = {
        slot: {bits: _bytes(shapes[slot], replace(plan, bits=bits)) for bits in WIDTHS if bits <= plan.bits}
        for slot, plan in free.items()
    }
    left = target_bytes - _other_bytes(base, embedding_bits, shapes)
    left -= sum(_bytes(shapes[slot], plan) for slot, plan in plans.items() if slot not in free)
    least = sum(min(by_width.values()) for by_width in costs.values())
    if least > left:
        raise ConfigError(
            f"quantize.target_bytes {target_bytes}", expected=f"at least {round(target_bytes - left + least)}"
        )
    chosen = choose_widths(rounding_losses(base, costs, free, text, progress), costs, left)
    return {slot: replace(plan, bits=chosen.get(slot, plan.bits)) for slot, plan in plans.items()}


def choose_widths(losses: ByWidth, costs: ByWidth, budget: float) -> dict[str, int]:
    """The bits of each slot: greedy, by loss saved per byte, from the narrowest on."""
    chosen = {slot: min(by_width) for slot, by_width in costs.items()}
    left = budget - sum(costs[slot][bits] for slot, bits in chosen.items())
    offers: list[tuple[float, str, int, int]] = []

    def offer(slot: str) -> None:
        now = chosen[slot]
        for bits in costs[slot]:
            if bits > now and (saved := losses[slot][now] - losses[slot][bits]) > 0:
                heapq.heappush(offers, (-saved / (costs[slot][bits] - costs[slot][now]), slot, now, bits))

    for slot in chosen:
        offer(slot)
    while offers:
        _, slot, now, bits = heapq.heappop(offers)
        more = costs[slot][bits] - costs[slot][now]
        if now == chosen[slot] and more <= left:
            chosen[slot], left = bits, left - more
            offer(slot)
    return chosen


@torch.no_grad()
def rounding_losses(
    base: Base, costs: ByWidth, plans: Mapping[str, SlotPlan], text: Text, progress: Progress
) -> dict[str, dict[int, float]]:
    """What rounding each slot to each width adds to the loss."""
    paths, parameters = slot_paths(base.model), dict(base.model.named_parameters())
    weights = {f"{paths[slot]}.weight": parameters[f"{paths[slot]}.weight"] for slot in costs}
    with torch.enable_grad():
        fisher = measure_gradients(base.model, weights, text, fisher=True, progress=progress).fisher
    assert fisher is not None
    losses: dict[str, dict[int, float]] = {}
    for slot, by_width in costs.items():
        name, plan = f"{paths[slot]}.weight", plans[slot]
        weight = weights[name].detach().float()
        losses[slot] = {}
        for bits in by_width:
            rounded = quantize(weight, Grid(bits, plan.group_size, plan.symmetric)).dequantize()
            losses[slot][bits] = 0.5 * float((fisher[name] * (weight - rounded).square()).sum())
    return losses


def _bytes(shape: tuple[int, int], plan: SlotPlan) -> float:
    out, width = shape
    if plan.is_dense:
        return 2 * out * width + _HEADER_BYTES
    groups = out * width // (plan.group_size or width)
    zeros = 0 if plan.symmetric else groups * plan.bits / 8
    return out * width * plan.bits / 8 + 2 * groups + zeros + (3 if plan.symmetric else 4) * _HEADER_BYTES


def _other_bytes(base: Base, embedding_bits: int, shapes: Mapping[str, tuple[int, int]]) -> float:
    """Of all that is no slot."""
    in_slots = sum(out * width for out, width in shapes.values())
    ends = {id(module.weight): module.weight for module in (base.model.get_input_embeddings(), base.model.lm_head)}
    in_ends = sum(weight.numel() for weight in ends.values())
    rest = base.model.num_parameters() - in_slots - in_ends
    headers = _HEADER_BYTES * (len(list(base.model.parameters())) + len(ends))
    return 2 * rest + in_ends * (2 if embedding_bits == 16 else 1 + 2 / 32) + headers
