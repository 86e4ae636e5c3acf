"""Training-free recovery: the best linear bypass of rank r for what compression took from each slot.

Plain SVD of the error (LoftQ's first step, arXiv 2310.08659; ZeroQuant-V2):

    min ||E - B A||_F,  E = W - W_c         E = U S Vᵀ,  B = U_r S_r^½,  A = S_r^½ V_rᵀ

Activation-weighted (EoRA, arXiv 2410.21271; QERA-exact, arXiv 2410.06040, theorem 1), with C = mean x xᵀ over the
slot's inputs *in the already compressed and compensated prefix* and its Cholesky factor C = L Lᵀ:

    min ||(E - B A) L||_F                   E L = U S Vᵀ,  B = U_r S_r^½,  A = S_r^½ V_rᵀ L⁻¹

EoRA uses the eigenvectors of C where we use Cholesky: any square root of C gives the same B A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from regraft.bypass.attach import attached
from regraft.bypass.bypass import Bypass
from regraft.bypass.lora import LoRA
from regraft.formats.slots import layer_index, slot_of
from regraft.models.layer_walk import LayerWalk
from regraft.models.load import Base
from regraft.models.merged_lora import read_recovered
from regraft.models.slots import iter_slots
from regraft.progress import Progress, silent

DAMPING = 1e-2  # share of C's mean diagonal that is added to it: rarely seen directions stay cheap, not free


def low_rank(error: Tensor, rank: int, gram: Tensor | None = None) -> LoRA:
    """The best ``B A`` of ``rank`` for ``error [out, in]``, weighted by ``gram = Σ x xᵀ [in, in]`` if given."""
    if error.device.type == "mps":  # it has neither float64 nor eigenvectors
        found = low_rank(error.cpu(), rank, None if gram is None else gram.cpu())
        return found.to(error.device)
    if gram is None:
        return _truncate(error, rank)
    damped = gram.double()
    damped = damped + DAMPING * damped.diagonal().mean().clamp(min=1e-12) * torch.eye(len(damped)).to(damped)
    root = torch.linalg.cholesky(damped).float()
    whitened = _truncate(error @ root, rank)
    down = torch.linalg.solve_triangular(root, whitened.down.data, upper=False, left=False)
    return LoRA(down, whitened.up.data, 1.0)


def _truncate(matrix: Tensor, rank: int) -> LoRA:
    """Truncated SVD by the eigenvectors of the smaller Gram matrix: many times faster than a full SVD."""
    tall = matrix.shape[0] > matrix.shape[1]
    side = matrix.T if tall else matrix
    _, vectors = torch.linalg.eigh((side @ side.T).double())
    left = vectors[:, -rank:].flip(1).float()  # eigh sorts upwards
    right = left.T @ side  # = S Vᵀ
    balance = right.norm(dim=1).clamp(min=1e-12).sqrt()
    left, right = left * balance, right / balance[:, None]
    return LoRA(left.T.contiguous(), right.T.contiguous(), 1.0) if tall else LoRA(right, left, 1.0)


def original_weights(compressed: Base, original: Base) -> dict[str, Tensor]:
    """Slot of the compressed base → the weight that it was made from: where it is pruned, the part that is left.

    What pruning took away is no error of the weights that stay, and no closed form brings it back; nor is what a
    recovery after it has put into them.
    """
    weights = {slot: linear.weight.detach() for slot, linear in iter_slots(original.model)}
    kept = compressed.kept
    if kept is None:
        return weights
    made_from = {}
    for slot, source in kept.carried(weights).items():
        made_from[slot] = weights[source][kept.rows(slot)][:, kept.columns(slot)]
    if compressed.record is not None and compressed.record.recovered is not None:
        for slot, (up, down) in read_recovered(compressed.path, compressed.record.recovered).items():
            made_from[slot] += (up @ down).to(made_from[slot])
    return made_from


def svd(compressed: Base, original: Base, rank: int) -> dict[str, LoRA]:
    """Slot → SVD of its compression error; needs no data."""
    weights = original_weights(compressed, original)
    return {slot: low_rank(weights[slot] - linear.weight, rank) for slot, linear in iter_slots(compressed.model)}


@torch.no_grad()
def eora(
    compressed: Base,
    original: Base,
    rank: int,
    batches: Sequence[Tensor],
    bypasses: Mapping[str, Sequence[Bypass]],
    progress: Progress = silent,
) -> dict[str, LoRA]:
    """Slot → activation-weighted recovery, layer after layer, each seeing the repaired layers before it.

    Args:
        compressed: the base to repair; it is left as it was.
        original: the base that it was made from.
        rank: r of each bypass.
        batches: token ids ``[B, T]`` without padding, the task's own text.
        bypasses: what else stands on the compressed base, i.e. the inherited LoRA.
        progress: told of each layer.
    """
    weights = original_weights(compressed, original)
    linears = dict(iter_slots(compressed.model))
    repairs = {slot: _nothing(linear, rank) for slot, linear in linears.items()}
    with attached(compressed.model, {slot: [*bypasses.get(slot, ()), repairs[slot]] for slot in linears}):
        walk = LayerWalk(compressed.model, batches)
        paths = {slot_of(path): module for path, module in compressed.model.named_modules() if slot_of(path)}
        with progress.track(len(walk.layers), "closed form") as advance:
            for index in range(len(walk.layers)):
                here = {slot: paths[slot] for slot in linears if layer_index(slot) == index}
                for slot, gram in walk.grams(index, here).items():
                    found = low_rank(weights[slot] - linears[slot].weight, rank, gram)
                    repairs[slot].down.data, repairs[slot].up.data = found.down.data, found.up.data
                walk.advance(index)
                advance()
    return repairs


def _nothing(linear: nn.Linear, rank: int) -> LoRA:
    zeros = linear.weight.new_zeros
    return LoRA(zeros(rank, linear.in_features), zeros(linear.out_features, rank), 1.0)
