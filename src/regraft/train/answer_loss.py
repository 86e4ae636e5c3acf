"""The answer terms of the loss and their gradient in one pass over chunks of tokens.

With z the student's logits at an answer token, p = softmax(z) and p* the teacher's,

    d KL(p* || p) / dz = p - p*          d (-log p(y)) / dz = p - onehot(y)

so the gradient is at hand as soon as the logits are. Written as plain autograd, a batch would hold half a dozen
``[N, V]`` tensors, hundreds of megabytes at a vocabulary of 50,000 and most of the time of a small model's step; here
a chunk's are gone before the next one's come. (Liger-Kernel, arXiv 2410.10989, section 3.2, fuses cross-entropy the
same way.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from regraft.models.output_head import Head

CHUNK_ELEMENTS = 4_000_000  # of one [rows, V] tensor: below what allocators hand back to the system each time


@dataclass(frozen=True)
class AnswerTask:
    """What answer tokens are compared with.

    Attributes:
        head: the student's.
        labels: the right tokens, ``[N]``.
        wanted: the teacher's final hidden states ``[N, d]``, and its head; None leaves the KL out.
        logits, answers: weights of the two terms.
    """

    head: Head
    labels: Tensor
    wanted: tuple[Tensor, Head] | None
    logits: float
    answers: float


def answer_loss(hidden: Tensor, task: AnswerTask) -> tuple[Tensor, float, float]:
    """``(w_l · KL + w_a · NLL, KL, NLL)``, means over the N answer tokens; the first carries the gradient.

    Args:
        hidden: the student's final hidden states at the answer positions, ``[N, d]``.
        task: labels, teacher and weights.
    """
    sums: list[float] = []
    total: Tensor = _AnswerLoss.apply(hidden, task, sums)
    kl, nll = sums
    return total, kl, nll


class _AnswerLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, task: AnswerTask, sums: list[float]) -> Tensor:
        count = len(hidden)
        gradient = torch.zeros_like(hidden)
        kl = nll = 0.0
        for rows in torch.arange(count).split(max(1, CHUNK_ELEMENTS // len(task.head.weight))):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            logits = task.head.logits(hidden[part])
            log_p = functional.log_softmax(logits, dim=-1)
            nll += functional.nll_loss(log_p, task.labels[part], reduction="sum").item()
            slope = torch.zeros_like(log_p)
            if task.answers:
                slope += task.answers * log_p.exp()
                slope[torch.arange(len(rows), device=slope.device), task.labels[part]] -= task.answers
            if task.wanted is not None:
                kl += _add_kl(slope, log_p, task.wanted[0][part], task.wanted[1], task.logits)
            if ctx.needs_input_grad[0]:
                gradient[part] = task.head.pull_back(slope, logits)
        ctx.save_for_backward(gradient / count)
        sums.extend((kl / count, nll / count))
        return hidden.new_tensor((task.logits * kl + task.answers * nll) / count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None


def _add_kl(slope: Tensor, log_p: Tensor, wanted: Tensor, head: Head, weight: float) -> float:
    """Add ``weight · (p - p*)`` to ``slope``; returns Σ KL(p* || p)."""
    log_q = functional.log_softmax(head.logits(wanted), dim=-1)
    q = log_q.exp()
    kl = float((q * (log_q - log_p)).sum())
    if weight:
        slope.add_(log_p.exp().sub_(q), alpha=weight)
    return kl
