"""Clusters of one size: k-means on the sphere, where each round deals the vectors out under that bound.

    assign   argmax Σ_i <v_i, c_(a_i)>  with  |{i: a_i = e}| = S        c_e = Σ_(a_i = e) v_i, normalised

MoEfication (arXiv 2110.01786, section 3.2) solves the assignment as a flow. Here vectors ask for the nearest cluster
that has not refused them, and a full one keeps its nearest: a stable assignment, not always the best, in no time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ROUNDS = 20


def balanced_kmeans(vectors: Tensor, clusters: int, *, seed: int, rounds: int = ROUNDS) -> Tensor:
    """The cluster of each vector, int64 ``[F]``, all of size ``F / clusters``.

    Args:
        vectors: ``[F, D]``; their lengths do not count.
        clusters: a divisor of F.
        seed: of the first centres, which are vectors drawn at random.
        rounds: at most; it ends when nothing moves.
    """
    units = functional.normalize(vectors.float(), dim=1)
    generator = torch.Generator().manual_seed(seed)
    centres = units[torch.randperm(len(units), generator=generator)[:clusters].to(units.device)]
    assigned = torch.empty(0)
    for _ in range(rounds):
        before, assigned = assigned, deal(units @ centres.T)
        if torch.equal(before, assigned):
            break
        sums = torch.zeros_like(centres).index_add_(0, assigned, units)
        centres = functional.normalize(sums, dim=1)
    return assigned


def deal(similarity: Tensor) -> Tensor:
    """A stable assignment: ``similarity [F, E]`` → ``[F]``, each of E taken ``F / E`` times."""
    count, clusters = similarity.shape
    size = count // clusters
    wishes = similarity.clone()
    assigned = torch.full((count,), -1, device=similarity.device)
    while (free := assigned < 0).any():
        assigned[free] = wishes[free].argmax(1)
        full = assigned.bincount(minlength=clusters) > size
        for cluster in full.nonzero().flatten().tolist():
            members = (assigned == cluster).nonzero().flatten()
            refused = members[similarity[members, cluster].argsort(descending=True, stable=True)[size:]]
            assigned[refused] = -1
            wishes[refused, cluster] = -torch.inf
    return assigned
