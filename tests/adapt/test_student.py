"""The student begins where it should, with the parameters it should have, and ends as the same function on disk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regraft.adapt.closed_form import svd
from regraft.adapt.config import AdaptConfig
from regraft.adapt.student import inherit, make_student, new_lora
from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import Bypasses, attached
from regraft.bypass.directory import read_adapter
from regraft.bypass.recovery import Recovery
from regraft.config import parse
from regraft.models.load import Base
from regraft.models.slots import slot_shapes
from regraft.train.student import Student
from tests.adapt.made import Made

IDS = torch.arange(3, 43).view(2, 20)


def make_config(inherit: dict[str, Any] | None = None, **recover: Any) -> AdaptConfig:
    return parse(AdaptConfig, {"inherit": inherit or {}, "recover": {"start": "zero", "rank": 3} | recover}, "test")


@torch.no_grad()
def logits(base: Base, bypasses: Bypasses) -> torch.Tensor:
    with attached(base.model, bypasses):
        found: torch.Tensor = base.model(input_ids=IDS).logits
    return found


@torch.no_grad()
def disturb(student: Student, seed: int = 0) -> Student:
    """Stands for training: moves every factor."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in student.named_parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return student


@pytest.fixture
def adapter(made: Made, base: Base) -> Adapter:
    return read_adapter(made.lora, base)


def test_inherited_factors_and_scales_are_the_existing_ones_but_not_the_same_tensors(
    adapter: Adapter, base: Base
) -> None:
    inherited = inherit(adapter, base)
    assert list(inherited) == list(adapter.of("lora"))
    for slot, lora in adapter.of("lora").items():
        assert torch.equal(inherited[slot].down, lora.down)
        assert torch.equal(inherited[slot].up, lora.up)
        assert inherited[slot].scale == lora.scale == 4.0
        inherited[slot].up.data += 1
        assert not torch.equal(inherited[slot].up, lora.up)


@pytest.mark.parametrize("kind", ["linear", "gelu", "none"])
def test_student_that_starts_from_zero_is_the_adapter_plugged_in(small: Base, adapter: Adapter, kind: str) -> None:
    student = make_student(small, adapter, make_config(kind=kind))
    assert set(student.recovery) == (set() if kind == "none" else set(slot_shapes(small.model)))
    assert {bypass.rank for bypass in student.recovery.values()} <= {3}
    plugged_in = logits(small, adapter.bypasses)
    torch.testing.assert_close(logits(small, student.bypasses), plugged_in, atol=1e-6, rtol=0)
    assert not torch.equal(plugged_in, logits(small, {}))


def test_recovery_alone_starts_as_the_base_itself(small: Base) -> None:
    student = make_student(small, None, make_config(kind="gelu"))
    assert student.lora == {}
    assert student.is_empty
    torch.testing.assert_close(logits(small, student.bypasses), logits(small, {}), atol=1e-6, rtol=0)
    assert not disturb(student).is_empty


@pytest.mark.parametrize("kind", ["linear", "gelu"])
@pytest.mark.parametrize("rank", [1, 8])
def test_new_lora_has_the_parameters_of_the_existing_one_and_a_recovery(
    small: Base, adapter: Adapter, kind: str, rank: int
) -> None:
    carried = make_student(small, adapter, make_config(kind=kind, rank=rank))
    new = make_student(small, adapter, make_config({"start": "new", "rank": rank}, kind="none"))
    assert new.num_parameters == carried.num_parameters
    assert new.num_parameters == adapter.num_parameters + rank * sum(map(sum, slot_shapes(small.model).values()))
    assert new.recovery == {}
    assert new.is_empty


def test_new_lora_is_the_seed_s(small: Base, adapter: Adapter) -> None:
    one, same, other = (
        new_lora(small, adapter, 2, torch.Generator().manual_seed(seed))["layers.0.mlp.up_proj"].down
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "alone"), [("linear", True), ("gelu", True), ("linear", False), ("gelu", False), ("none", False)]
)
def test_adapter_computes_what_the_student_does(small: Base, adapter: Adapter, kind: str, alone: bool) -> None:
    student = disturb(make_student(small, None if alone else adapter, make_config(kind=kind)))
    made = student.to_adapter("made")
    torch.testing.assert_close(logits(small, made.bypasses), logits(small, student.bypasses), atol=1e-5, rtol=1e-5)
    assert bool(made.of("gelu")) == (kind == "gelu")
    assert made.num_parameters == student.num_parameters
    if kind == "linear":
        ranks = {slot: lora.rank for slot, lora in made.of("lora").items()}
        assert ranks == {
            slot: 3 + (2 if not alone and slot in adapter.bypasses else 0) for slot in slot_shapes(small.model)
        }


def test_adapter_keeps_its_factors_when_the_student_trains_on(small: Base, adapter: Adapter) -> None:
    student = disturb(make_student(small, adapter, make_config(kind="gelu")))
    made = student.to_adapter("made")
    before = logits(small, made.bypasses)
    disturb(student, seed=1)
    assert torch.equal(logits(small, made.bypasses), before)


def test_slots_of_an_adapter_go_up_by_layer_also_beyond_nine(small: Base) -> None:
    slots = [f"layers.{n}.mlp.up_proj" for n in (10, 2, 1)]
    lora = next(iter(svd(small, small, 1).values()))
    assert list(Student(recovery=dict.fromkeys(slots, lora)).to_adapter("a").of("lora")) == slots[::-1]


@pytest.mark.parametrize("kind", ["linear", "gelu"])
def test_shared_recovery_is_started_from_whole(small: Base, adapter: Adapter, kind: str) -> None:
    shared = disturb(make_student(small, None, make_config(kind=kind))).to_adapter("shared")
    student = make_student(small, adapter, make_config(kind=kind), shared=shared)
    assert {isinstance(bypass, Recovery) for bypass in student.recovery.values()} == {kind == "gelu"}
    both = {slot: [*adapter.bypasses.get(slot, ()), *added] for slot, added in shared.bypasses.items()}
    torch.testing.assert_close(logits(small, student.bypasses), logits(small, both), atol=1e-5, rtol=1e-5)
    disturb(student, seed=1)
    assert shared.digest() == disturb(make_student(small, None, make_config(kind=kind))).to_adapter("shared").digest()


def test_origin_names_the_adapters_that_it_was_made_from(small: Base, adapter: Adapter) -> None:
    shared = disturb(make_student(small, None, make_config())).to_adapter("shared")
    alone, carried, on_shared = (
        make_student(small, *given)
        for given in ((None, make_config()), (adapter, make_config()), (adapter, make_config(), None, shared))
    )
    assert alone.origin == (None, None)
    assert carried.origin == (adapter.digest(), None)
    assert on_shared.origin == (adapter.digest(), shared.digest())


def test_parameters_are_named_by_part_slot_and_factor(small: Base, adapter: Adapter) -> None:
    names = [name for name, _ in make_student(small, adapter, make_config(kind="gelu")).named_parameters()]
    assert len(set(names)) == len(names) == 2 * (2 + 14)
    assert "lora.layers.1.mlp.down_proj.up" in names
    assert "recovery.layers.0.mlp.down_proj.down" in names
