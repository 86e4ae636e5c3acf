"""The losses against one token at a time, and their gradient against plain autograd."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from regraft.adapt import answer_loss as fused
from regraft.adapt.batches import Batch, Row, collate
from regraft.adapt.config import Distil
from regraft.adapt.distil import losses
from regraft.adapt.teacher import Targets
from regraft.base.head import Head

WIDTH, VOCABULARY = 6, 50
ROWS = [Row([3, 4, 5, 6, 7], 2), Row([8, 9, 10], 1), Row([11, 12, 13, 14], 3)]


def make_targets(tmp_path: Path, head: Head) -> Targets:
    lengths = [len(row.ids) for row in ROWS]
    states = np.random.default_rng(0).normal(size=(sum(lengths), WIDTH)).astype(np.float16)
    (tmp_path / "states").write_bytes(states.tobytes())
    return Targets(tmp_path / "states", lengths, WIDTH, head)


def slow(hidden: torch.Tensor, batch: Batch, head: Head, targets: Targets, weights: Distil) -> torch.Tensor:
    squares, kls, nlls = [], [], []
    for place, number in enumerate(batch.rows):
        row, wanted = ROWS[number], targets.hidden(number)
        for t in range(len(row.ids)):
            squares.extend((hidden[place, t] - wanted[t]) ** 2)
            if len(row.ids) - row.num_answer <= t + 1 < len(row.ids):
                log_p = head.logits(hidden[place, t]).log_softmax(-1)
                log_q = targets.head.logits(wanted[t]).log_softmax(-1)
                kls.append((log_q.exp() * (log_q - log_p)).sum())
                nlls.append(-log_p[row.ids[t + 1]])
    means = [torch.stack(terms).mean() for terms in (squares, kls, nlls)]
    return weights.hidden * means[0] + weights.logits * means[1] + weights.answers * means[2]


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize(
    "weights",
    [
        Distil(hidden=1, logits=0, answers=0),
        Distil(hidden=0, logits=1, answers=0),
        Distil(hidden=0, logits=0, answers=1),
        Distil(hidden=0.3, logits=0.7, answers=0.2),
    ],
)
def test_losses_are_those_of_the_slow_loop(
    tmp_path: Path, weights: Distil, cap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", 2 * VOCABULARY)
    torch.manual_seed(0)
    head = Head(torch.randn(VOCABULARY, WIDTH), None, 0.5, cap)
    targets = make_targets(tmp_path, Head(torch.randn(VOCABULARY, WIDTH)))
    batch = collate(ROWS, [2, 0, 1])
    hidden = torch.randn(3, 5, WIDTH, requires_grad=True)
    found, wanted = losses(hidden, head, batch, targets, weights), slow(hidden, batch, head, targets, weights)
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found.total, hidden)[0], torch.autograd.grad(wanted, hidden)[0], atol=1e-6, rtol=1e-4
    )


def test_padding_does_not_matter(tmp_path: Path) -> None:
    head = Head(torch.randn(VOCABULARY, WIDTH))
    targets = make_targets(tmp_path, head)
    hidden = torch.randn(1, 5, WIDTH)
    alone = losses(hidden[:, :3], head, collate(ROWS, [1]), targets, Distil())
    both = collate(ROWS, [1, 0])
    padded = Batch([1], both.ids[:1], both.mask[:1], both.predicts[:1], both.labels[:1])
    beside = losses(hidden, head, padded, targets, Distil())
    assert beside.total.item() == pytest.approx(alone.total.item(), rel=1e-6)


def test_kl_to_itself_is_zero(tmp_path: Path) -> None:
    head = Head(torch.randn(VOCABULARY, WIDTH))
    targets = make_targets(tmp_path, head)
    batch = collate(ROWS, [0])
    found = losses(targets.hidden(0)[None], head, batch, targets, Distil(hidden=1, logits=1))
    assert (found.hidden, found.logits) == (0, pytest.approx(0, abs=1e-6))
    assert found.answers < math.inf
