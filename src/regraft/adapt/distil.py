"""The losses of adapting (CA-LoRA, arXiv 2307.07705, section 3.4, and logit distillation beside it).

    L = w_h · mean_t (h_t - h*_t)² + w_l · mean_a KL(p*_a || p_a) + w_a · mean_a -log p_a(y_a)

with h the final hidden state of token t, averaged over real tokens only, and a the tokens of the answers. The star
marks the teacher. The paper uses the first and the last term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from regraft.adapt.batches import Batch
from regraft.adapt.config import Distil
from regraft.adapt.teacher import Targets
from regraft.base.head import Head


@dataclass(frozen=True)
class Losses:
    """A batch's terms, unweighted; ``answers`` is the mean negative log-likelihood in nats."""

    total: Tensor
    hidden: float
    logits: float
    answers: float


def losses(hidden: Tensor, head: Head, batch: Batch, targets: Targets | None, weights: Distil) -> Losses:
    """The weighted loss of one batch.

    Args:
        hidden: the student's final hidden states ``[B, T, d]``.
        head: the student's.
        batch: ids, masks and labels.
        targets: the teacher's outputs; None where no term needs them.
        weights: of the three terms.
    """
    answer_hidden = hidden[batch.predicts]  # [N, d]: logits are formed only where an answer token is predicted
    log_probs = functional.log_softmax(head.logits(answer_hidden), dim=-1)  # [N, V]
    answers = functional.nll_loss(log_probs, batch.labels)
    total = weights.answers * answers
    hidden_term = logits_term = 0.0
    if targets is not None and weights.needs_teacher:
        wanted = padded_hidden(targets, batch)
        if weights.hidden:
            mse = (hidden[batch.mask] - wanted[batch.mask]).square().mean()
            total, hidden_term = total + weights.hidden * mse, mse.item()
        if weights.logits:
            with torch.no_grad():
                wanted_log_probs = functional.log_softmax(targets.head.logits(wanted[batch.predicts]), dim=-1)
            kl = functional.kl_div(log_probs, wanted_log_probs, reduction="batchmean", log_target=True)
            total, logits_term = total + weights.logits * kl, kl.item()
    return Losses(total, hidden_term, logits_term, answers.item())


def padded_hidden(targets: Targets, batch: Batch) -> Tensor:
    """The teacher's hidden states of a batch, ``[B, T, d]``, zero at padding."""
    wanted = torch.zeros(*batch.ids.shape, targets.head.weight.shape[1])
    for place, row in enumerate(batch.rows):
        states = targets.hidden(row)
        wanted[place, : len(states)] = states
    return wanted
