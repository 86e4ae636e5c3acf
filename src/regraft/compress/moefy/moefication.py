"""MoEfication (Zhang et al. 2021, arXiv 2110.01786): a small router foretells which experts of an MLP will matter.

    t_e = Σ_(n in e) |h_n| · ||W_down,n||            what expert e adds at most, h = act(W_gate x) ∘ W_up x
    s   = W_2 tanh(W_1 x)                            W_1 begins as the experts' mean gate rows, W_2 as identity
    min   BCE(sigmoid(s_e), t_e / max_e t_e)         Adam, the paper's settings

and a token takes the k experts of the highest s. The paper sums ReLU activations, and divides by the batch's largest.
SiLU lets nearly all neurons speak a little and in both signs, so ours are absolute values, weighted by what they reach,
and each token's targets are divided by its own. The epoch is kept whose k experts capture most of held-out t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regraft.models.expert_mlp import Router

EPOCHS = 30
BATCH = 512
LEARNING_RATE = 0.01
HELD_OUT = 0.1  # of the tokens; they pick the epoch


@dataclass(frozen=True)
class Trained:
    """A router, and the share of ``Σ t`` that its experts ``captured`` on held-out tokens; ``best``: any k of them."""

    router: Router
    captured: float
    best: float


def train_router(x: Tensor, targets: Tensor, gates: Tensor, active: int, *, seed: int) -> Trained:
    """Train a router on one layer's tokens.

    Args:
        x: what enters the MLP, ``[N, M]``.
        targets: t, ``[N, E]``.
        gates: the experts' mean gate rows, ``[E, M]``.
        active: k.
        seed: of the order and of what is held out.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    held = order[: max(1, round(HELD_OUT * len(x)))]
    rest = order[len(held) :]
    scaled = targets / targets.amax(1, keepdim=True).clamp(min=torch.finfo(targets.dtype).tiny)
    experts = targets.shape[1]
    router = Router(functional.normalize(gates, dim=1), torch.eye(experts, device=x.device), active)
    optimiser = torch.optim.Adam(router.parameters(), lr=LEARNING_RATE)
    best, state = -1.0, router.state_dict()
    for _ in range(EPOCHS):
        shuffled = rest[torch.randperm(len(rest), generator=generator).to(x.device)]
        with torch.enable_grad():
            for batch in shuffled.split(BATCH):
                optimiser.zero_grad()
                loss = functional.binary_cross_entropy_with_logits(router.scores(x[batch]), scaled[batch])
                loss.backward()
                optimiser.step()
        with torch.no_grad():
            found = captured(router.scores(x[held]), targets[held], active)
        if found > best:
            best, state = found, {name: tensor.clone() for name, tensor in router.state_dict().items()}
    router.load_state_dict(state)
    return Trained(router.requires_grad_(False), best, captured(targets[held], targets[held], active))


def captured(scores: Tensor, targets: Tensor, active: int) -> float:
    """The share of ``Σ t`` that the experts of the highest scores have."""
    taken = targets.gather(1, scores.topk(active, dim=1).indices)
    return float(taken.sum() / targets.sum())
