"""The losses of adapting (CA-LoRA, arXiv 2307.07705, section 3.4, and logit distillation beside it).

    L = w_h · mean_t (h_t - h*_t)² + w_l · mean_a KL(p*_a || p_a) + w_a · mean_a -log p_a(y_a)

with h the final hidden state of token t, averaged over real tokens only, and a the tokens of the answers. The star
marks the teacher; a student that has lost hidden channels is compared in those that it has. The paper uses the first
and the last term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from regraft.models.output_head import Head
from regraft.train.answer_loss import AnswerTask, answer_loss
from regraft.train.batches import Batch
from regraft.train.settings import Distil
from regraft.train.teacher import Targets


@dataclass(frozen=True)
class Losses:
    """A batch's terms, unweighted; ``answers`` is the mean negative log-likelihood in nats.

    ``hidden`` and ``logits`` are 0 where their weight is.
    """

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
    wanted: Tensor | None = None
    at_answers: tuple[Tensor, Head] | None = None
    if targets is not None and weights.needs_teacher:
        wanted = padded_hidden(targets, batch)
        at_answers = (wanted[batch.predicts], targets.head) if weights.logits else None
    task = AnswerTask(
        head=head,
        labels=batch.labels,
        wanted=at_answers,
        logits=weights.logits,
        answers=weights.answers,
    )
    total, kl, nll = answer_loss(hidden[batch.predicts], task)  # logits are formed at answer tokens only
    mse = 0.0
    if wanted is not None and weights.hidden:
        assert targets is not None
        if targets.channels is not None:
            wanted = wanted[..., targets.channels]
        squared = (hidden[batch.mask] - wanted[batch.mask]).square().mean()
        total, mse = total + weights.hidden * squared, squared.item()
    return Losses(total, mse, kl, nll)


def padded_hidden(targets: Targets, batch: Batch) -> Tensor:
    """The teacher's hidden states of a batch, ``[B, T, d]``, zero at padding."""
    wanted = torch.zeros(*batch.ids.shape, targets.head.weight.shape[1], device=batch.ids.device)
    for place, row in enumerate(batch.rows):
        states = targets.hidden(row)
        wanted[place, : len(states)] = states
    return wanted
