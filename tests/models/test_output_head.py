from __future__ import annotations

import pytest
import torch

from regraft.models.output_head import Head
from tests.tiny import FAMILIES, make_model

IDS = torch.arange(3, 27).view(2, 12)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_of_chosen_rows_are_the_models_own(family: str, tie: bool) -> None:
    model = make_model(family, tie=tie)
    output = model(IDS, output_hidden_states=True)
    rows = output.hidden_states[-1].flatten(0, 1)[[1, 5, 20]]
    torch.testing.assert_close(Head.of(model).logits(rows), output.logits.flatten(0, 1)[[1, 5, 20]])


@pytest.mark.parametrize(("factor", "cap"), [(1.0, None), (0.25, None), (1.0, 2.0), (3.0, 1.5)])
def test_pulled_back_slopes_are_those_of_autograd(factor: float, cap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(30, 8, generator=generator), torch.randn(30, generator=generator), factor, cap)
    hidden = torch.randn(5, 8, generator=generator).requires_grad_()
    logits = head.logits(hidden)
    slope = torch.randn(5, 30, generator=generator)
    (wanted,) = torch.autograd.grad(logits, hidden, slope)
    torch.testing.assert_close(head.pull_back(slope, logits.detach()), wanted, rtol=1e-4, atol=1e-4)
