"""Bypasses add what their formulas say, and leave nothing behind."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regraft.bypass.attach import BypassedLinear, attach, attached
from regraft.bypass.bypass import Bypass
from regraft.bypass.lora import LoRA, stack
from regraft.bypass.recovery import Recovery
from regraft.errors import IncompatibleAdapterError
from regraft.models.slots import slot_shapes
from tests.tiny import make_model

IDS = torch.arange(3, 15).view(2, 6)


def make_bypass(kind: type[LoRA] | type[Recovery], out: int, width: int, rank: int, scale: float) -> Bypass:
    return kind(torch.randn(rank, width), torch.randn(out, rank), scale)


mixes = st.lists(
    st.tuples(st.sampled_from([LoRA, Recovery]), st.integers(1, 5), st.sampled_from([0.5, 1.0, 2.0])),
    min_size=1,
    max_size=4,
)


@given(mix=mixes, out=st.integers(1, 9), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_stacked_products_are_the_sum_of_the_formulas(
    mix: list[tuple[type[LoRA], int, float]], out: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(width, out)
    bypasses = [make_bypass(kind, out, width, rank, scale) for kind, rank, scale in mix]
    x = torch.randn(2, 3, width, requires_grad=True)
    fused, slow = BypassedLinear(linear, bypasses)(x), linear(x) + sum(bypass(x) for bypass in bypasses)
    torch.testing.assert_close(fused, slow, atol=1e-4, rtol=1e-4)
    inputs = [x, *(parameter for bypass in bypasses for parameter in bypass.parameters())]
    weights = torch.randn_like(slow)
    for one, other in zip(
        torch.autograd.grad((fused * weights).sum(), inputs),
        torch.autograd.grad((slow * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_detached_model_has_the_same_modules_and_bits_even_after_an_error() -> None:
    model = make_model()
    modules, before = dict(model.named_modules()), model(input_ids=IDS).logits
    bypasses = {slot: [make_bypass(LoRA, *shape, 2, 1.0)] for slot, shape in slot_shapes(model).items()}
    with pytest.raises(KeyError), attached(model, bypasses):
        assert not torch.equal(model(input_ids=IDS).logits, before)
        raise KeyError
    assert dict(model.named_modules()) == modules
    assert torch.equal(model(input_ids=IDS).logits, before)


def test_gelu_pairs_are_the_linear_map() -> None:
    down, up, x = torch.randn(3, 7), torch.randn(5, 3), torch.randn(4, 7)
    recovery = Recovery.from_linear(down, up)
    assert recovery.rank == 6
    torch.testing.assert_close(recovery(x), x @ down.T @ up.T, atol=1e-5, rtol=1e-5)


def test_recovery_starts_as_nothing() -> None:
    model = make_model()
    before = model(input_ids=IDS).logits
    generator = torch.Generator().manual_seed(0)
    zeros = {slot: [Recovery.zero(shape, 4, generator)] for slot, shape in slot_shapes(model).items()}
    with attached(model, zeros):
        torch.testing.assert_close(model(input_ids=IDS).logits, before, atol=1e-6, rtol=0)


def test_effect_is_the_norm_of_the_delta_and_a_stack_is_the_sum() -> None:
    one, other = LoRA(torch.randn(2, 6), torch.randn(4, 2), 0.5), LoRA(torch.randn(3, 6), torch.randn(4, 3), 2.0)
    assert one.effect() == pytest.approx(one.delta().norm().item(), rel=1e-5)
    torch.testing.assert_close(stack(one, other).delta(), one.delta() + other.delta())


def test_wrong_slots_and_shapes_are_refused() -> None:
    model = make_model()
    with pytest.raises(IncompatibleAdapterError, match=r"the base has no slot layers\.9\.mlp\.up_proj"):
        attach(model, {"layers.9.mlp.up_proj": [LoRA(torch.zeros(1, 64), torch.zeros(128, 1), 1.0)]})
    with pytest.raises(IncompatibleAdapterError, match=r"layers\.0\.mlp\.up_proj.*maps 64 to 64: expected 64 to 128"):
        attach(model, {"layers.0.mlp.up_proj": [LoRA(torch.zeros(1, 64), torch.zeros(64, 1), 1.0)]})
