"""The losses against one token at a time, and their gradient against plain autograd."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.adapt.arms import divergence
from regraft.adapt.material import TestRow as Scored
from regraft.bypass.lora import LoRA
from regraft.evaluate.dataset import Encoded
from regraft.models.load import Base
from regraft.models.output_head import Head
from regraft.train import answer_loss as fused
from regraft.train.batches import Batch, Row, collate
from regraft.train.distil import losses, padded_hidden
from regraft.train.settings import Distil
from regraft.train.teacher import Targets, Teacher, teach
from tests.tiny import make_model, make_tokenizer

WEIGHTS = [
    Distil(hidden=1, logits=0, answers=0),
    Distil(hidden=0, logits=1, answers=0),
    Distil(hidden=0, logits=0, answers=1),
    Distil(hidden=0.3, logits=0.7, answers=0.2),
]


def make_rows(rng: random.Random, count: int, vocabulary: int) -> list[Row]:
    lengths = [rng.randint(2, 9) for _ in range(count)]
    return [Row([rng.randrange(vocabulary) for _ in range(n)], rng.randint(1, n - 1)) for n in lengths]


def make_targets(path: Path, rows: list[Row], head: Head) -> Targets:
    lengths, width = [len(row.ids) for row in rows], head.weight.shape[1]
    path.write_bytes(np.random.default_rng(0).normal(size=(sum(lengths), width)).astype(np.float16).tobytes())
    return Targets(path, lengths, width, head)


def slow(hidden: torch.Tensor, batch: Batch, rows: list[Row], head: Head, targets: Targets) -> list[torch.Tensor]:
    """MSE, KL and NLL, one token at a time."""
    squares, kls, nlls = [], [], []
    for place, number in enumerate(batch.rows):
        row, wanted = rows[number], targets.hidden(number)
        for t in range(len(row.ids)):
            squares.extend((hidden[place, t] - wanted[t]) ** 2)
            if len(row.ids) - row.num_answer <= t + 1 < len(row.ids):
                log_p = head.logits(hidden[place, t]).log_softmax(-1)
                log_q = targets.head.logits(wanted[t]).log_softmax(-1)
                kls.append(sum(q.exp() * (q - p) for p, q in zip(log_p, log_q, strict=True)))
                nlls.append(-log_p[row.ids[t + 1]])
    return [torch.stack(terms).mean() for terms in (squares, kls, nlls)]  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("weights", WEIGHTS, ids=["hidden", "logits", "answers", "all"])
def test_losses_are_those_of_the_slow_loop(
    tmp_path: Path, weights: Distil, cap: float | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    width, vocabulary = rng.randint(2, 8), rng.randint(5, 40)
    monkeypatch.setattr(fused, "CHUNK_ELEMENTS", rng.randint(1, 4) * vocabulary)
    rows = make_rows(rng, 5, vocabulary)
    head = Head(torch.randn(vocabulary, width), torch.randn(vocabulary) if seed % 2 else None, 0.5, cap)
    targets = make_targets(tmp_path / "states", rows, Head(torch.randn(vocabulary, width), cap=cap))
    batch = collate(rows, rng.sample(range(5), 3))
    hidden = torch.randn(*batch.ids.shape, width, requires_grad=True)
    found, terms = losses(hidden, head, batch, targets, weights), slow(hidden, batch, rows, head, targets)
    wanted = weights.hidden * terms[0] + weights.logits * terms[1] + weights.answers * terms[2]
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert found.hidden == (pytest.approx(terms[0].item(), rel=1e-5) if weights.hidden else 0)
    assert found.logits == (pytest.approx(terms[1].item(), rel=1e-4) if weights.logits else 0)
    assert found.answers == pytest.approx(terms[2].item(), rel=1e-5)
    gradient = torch.autograd.grad(found.total, hidden)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, hidden)[0], atol=1e-6, rtol=1e-4)
    assert not gradient[~batch.mask].any()


@pytest.mark.parametrize("weights", WEIGHTS, ids=["hidden", "logits", "answers", "all"])
@pytest.mark.parametrize("more", [1, 7])
def test_padding_does_not_matter(tmp_path: Path, weights: Distil, more: int) -> None:
    torch.manual_seed(0)
    rows = make_rows(random.Random(0), 4, 30)
    head = Head(torch.randn(30, 6))
    targets = make_targets(tmp_path / "states", rows, head)
    batch = collate(rows, [0, 1, 2, 3])
    hidden = torch.randn(*batch.ids.shape, 6)
    pad = (0, more)
    wider = Batch(
        batch.rows,
        torch.nn.functional.pad(batch.ids, pad, value=17),
        torch.nn.functional.pad(batch.mask, pad),
        torch.nn.functional.pad(batch.predicts, pad),
        batch.labels,
    )
    garbage = torch.cat([hidden, 1e3 * torch.randn(4, more, 6)], dim=1)
    garbage[~wider.mask] = 1e3
    narrow, wide = (losses(h, head, b, targets, weights).total.item() for h, b in ((hidden, batch), (garbage, wider)))
    assert wide == pytest.approx(narrow, rel=1e-6)


def test_one_row_alone_or_beside_a_longer_one_has_the_same_loss(tmp_path: Path) -> None:
    rows = [Row([8, 9, 10], 1), Row([3, 4, 5, 6, 7], 2)]
    head = Head(torch.randn(30, 6))
    targets = make_targets(tmp_path / "states", rows, head)
    hidden = torch.randn(2, 5, 6)
    both, alone = collate(rows, [0, 1]), collate(rows, [0])
    first = Batch([0], both.ids[:1], both.mask[:1], both.predicts[:1], both.labels[:1])
    found = [
        losses(h, head, b, targets, Distil()).total.item() for h, b in ((hidden[:1, :3], alone), (hidden[:1], first))
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_teacher_s_own_states_leave_nothing_to_learn(tmp_path: Path) -> None:
    rows = make_rows(random.Random(1), 3, 30)
    head = Head(torch.randn(30, 6))
    targets = make_targets(tmp_path / "states", rows, head)
    batch = collate(rows, [0, 1, 2])
    hidden = padded_hidden(targets, batch).requires_grad_(True)
    found = losses(hidden, head, batch, targets, Distil(hidden=1, logits=1))
    assert found.hidden == 0
    assert found.logits == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(found.total, hidden)[0].abs().max() < 1e-6


def test_teacher_s_head_rests_where_no_term_needs_its_logits(tmp_path: Path) -> None:
    class Untouchable(Head):
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            raise AssertionError

    rows = make_rows(random.Random(1), 3, 30)
    targets = make_targets(tmp_path / "states", rows, Untouchable(torch.randn(30, 6)))
    batch = collate(rows, [0, 1, 2])
    hidden = torch.randn(*batch.ids.shape, 6)
    head = Head(torch.randn(30, 6))
    assert losses(hidden, head, batch, targets, Distil(hidden=1, logits=0, answers=1)).hidden > 0
    assert losses(hidden, head, batch, None, Distil(hidden=0, logits=0, answers=1)).answers > 0


def test_batches_and_targets_go_where_the_model_is(tmp_path: Path) -> None:
    rows = make_rows(random.Random(1), 3, 30)
    targets = make_targets(tmp_path / "states", rows, Head(torch.randn(30, 6)))
    batch = collate(rows, [0, 1, 2]).to(torch.device("meta"))
    tensors = (batch.ids, batch.mask, batch.predicts, batch.labels, padded_hidden(targets, batch))
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def make_tiny(family: str, seed: int, cap: float | None) -> Base:
    model: Any = make_model(family, seed=seed)
    if cap is not None:
        model.config.final_logit_softcapping = cap
    return Base(f"{family}-{seed}", Path(), model, make_tokenizer())


@pytest.mark.parametrize(("family", "cap"), [("llama", None), ("gemma3", None), ("gemma3", 0.7)])
def test_divergence_is_that_of_the_slow_loop(tmp_path: Path, family: str, cap: float | None) -> None:
    original, changed = make_tiny(family, 0, cap), make_tiny(family, 1, cap)
    rows = make_rows(random.Random(2), 7, 300)
    test = [Scored("", Encoded(row.ids[: -row.num_answer], row.ids[-row.num_answer :]), "") for row in rows]
    targets = teach(Teacher(original, None), rows, tmp_path)
    kls = []
    for row in rows:
        for t in range(len(row.ids) - row.num_answer, len(row.ids)):
            with torch.no_grad():
                log_q, log_p = (
                    base.model(input_ids=torch.tensor([row.ids[:t]])).logits[0, -1].double().log_softmax(-1)
                    for base in (original, changed)
                )
            kls.append((log_q.exp() * (log_q - log_p)).sum().item())
    assert divergence(changed, {}, test, targets) == pytest.approx(sum(kls) / len(kls), rel=2e-3)
    assert divergence(original, {}, test, targets) == pytest.approx(0, abs=1e-5)


def test_soft_cap_moves_the_divergence(tmp_path: Path) -> None:
    rows = make_rows(random.Random(2), 7, 300)
    test = [Scored("", Encoded(row.ids[: -row.num_answer], row.ids[-row.num_answer :]), "") for row in rows]
    found = []
    for cap in (None, 0.7):
        targets = teach(Teacher(make_tiny("gemma3", 0, cap), None), rows, tmp_path)
        found.append(divergence(make_tiny("gemma3", 1, cap), {}, test, targets))
    assert found[1] < 0.8 * found[0]


def test_divergence_sees_the_bypasses_and_takes_them_off_again(tmp_path: Path) -> None:
    base = make_tiny("llama", 0, None)
    rows = make_rows(random.Random(3), 4, 300)
    test = [Scored("", Encoded(row.ids[:1], row.ids[1:]), "") for row in rows]
    targets = teach(Teacher(base, None), rows, tmp_path)
    lora = {"layers.1.mlp.up_proj": [LoRA(torch.randn(2, 64), torch.randn(128, 2), 1.0)]}
    assert divergence(base, lora, test, targets) > 0.01
    assert divergence(base, {}, test, targets) == pytest.approx(0, abs=1e-5)
