"""Widths by slot under a budget."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from regraft.compress.plan import plan
from regraft.compress.quantize.grid import Grid
from regraft.compress.quantize.mixed import WIDTHS, choose_widths, rounding_losses
from regraft.compress.quantize.rtn import quantize
from regraft.compress.recipe import Recipe, load_recipe, plan_slots, with_options
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import ConfigError, UsageError
from regraft.models.load import load_base
from regraft.models.slots import iter_slots, slot_shapes
from regraft.progress import silent
from tests.compress.prune.made import sequences
from tests.tiny import make_base


def recipe(target: int | None, **options: Any) -> Recipe:
    quantize = {"method": "rtn", "bits": 8, "group_size": 32, "target_bytes": target, **options}
    calibration = {"num_sequences": 4, "sequence_length": 16}
    return parse(Recipe, {"steps": [{"quantize": quantize}], "calibration": calibration}, "test")


def test_greedy_is_near_the_best_of_all_choices() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes, hurts = torch.randint(10, 100, (4,), generator=generator), torch.rand(4, generator=generator) + 0.1
    slots = [f"slot{n}" for n in range(4)]
    costs = {slot: {bits: float(size * bits) for bits in WIDTHS} for slot, size in zip(slots, sizes, strict=True)}
    losses = {
        slot: {bits: float(hurt) * 4.0**-bits for bits in WIDTHS} for slot, hurt in zip(slots, hurts, strict=True)
    }
    for budget in range(int(2 * sizes.sum()), int(8 * sizes.sum()), 37):
        chosen = choose_widths(losses, costs, budget)
        spent = sum(costs[slot][bits] for slot, bits in chosen.items())
        assert spent <= budget
        fitting = (
            sum(losses[slot][bits] for slot, bits in zip(slots, widths, strict=True))
            for widths in itertools.product(WIDTHS, repeat=4)
            if sum(costs[slot][bits] for slot, bits in zip(slots, widths, strict=True)) <= budget
        )
        narrowest = sum(by_width[2] for by_width in losses.values())
        assert sum(losses[slot][bits] for slot, bits in chosen.items()) <= min(fitting) + 0.25 * narrowest


def test_a_budget_is_kept_and_used(tmp_path: Path) -> None:
    source = str(make_base(tmp_path / "base", layers=4, intermediate=256))
    four = plan(source, recipe(None, bits=4))[1].disk
    record = compress(source, tmp_path / "out", recipe(round(1.1 * four)))
    assert 0.93 * 1.1 * four < record.sizes.bytes_after <= 1.1 * four
    assert len({slot.bits for slot in record.slots.values()}) > 1
    assert any(note.startswith("slots by bits: ") for note in record.notes)


def test_what_an_override_says_is_left(tmp_path: Path) -> None:
    source = str(make_base(tmp_path / "base", layers=4, intermediate=256))
    four = plan(source, recipe(None, bits=4))[1].disk
    overrides = {"q_proj": {"bits": 5}, r"layers\.0\.": {"bits": 16}}
    record = compress(source, tmp_path / "out", recipe(round(2 * four), overrides=overrides, bits=4))
    for slot, entry in record.slots.items():
        fixed = 16 if slot.startswith("layers.0.") else 5 if "q_proj" in slot else None
        assert entry.bits == fixed or (fixed is None and entry.bits in (2, 3, 4))
    assert record.sizes.bytes_after <= 2 * four


def test_what_rounding_costs_is_the_formula_written_out(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path / "base"))
    ids = sequences(3)
    plans = plan_slots(recipe(None).quantize, {slot: shape[1] for slot, shape in slot_shapes(base.model).items()})
    widths: dict[str, dict[int, float]] = {slot: {2: 0.0, 8: 0.0} for slot in plans}
    found = rounding_losses(base, widths, plans, ids, silent)
    for slot, linear in iter_slots(base.model):
        weight = linear.weight.requires_grad_(True)
        squares = torch.zeros_like(weight)
        for sequence in ids:
            logits = base.model(input_ids=sequence[None]).logits[0, :-1]
            squares += torch.autograd.grad(functional.cross_entropy(logits, sequence[1:]), weight)[0].square() / 3
        weight.requires_grad_(False)
        for bits in (2, 8):
            error = weight - quantize(weight.data, Grid(bits, 32, True)).dequantize()
            assert found[slot][bits] == pytest.approx(float((squares * error.square()).sum()) / 2, rel=1e-3)
        assert found[slot][8] < found[slot][2]


def test_a_budget_below_the_narrowest_is_refused(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base")
    with pytest.raises(ConfigError, match=r"quantize.target_bytes 1000: expected at least \d+"):
        compress(source, tmp_path / "out", recipe(1000))
    with pytest.raises(ConfigError, match=r"quantize.target_bytes 1000: expected at least \d+"):
        plan(str(source), recipe(1000))


def test_a_plan_keeps_the_budget_too(tmp_path: Path) -> None:
    source = str(make_base(tmp_path / "base", layers=4, intermediate=256))
    three, eight = (plan(source, recipe(None, bits=bits))[1].disk for bits in (3, 8))
    found = plan(source, recipe(round((three + eight) / 2)))[1]
    assert found.disk == pytest.approx((three + eight) / 2, rel=1e-3)


def test_a_budget_belongs_to_rounding() -> None:
    moved = with_options(load_recipe("int4"), target_bytes=10**8)
    assert moved.quantize is not None
    assert moved.quantize.target_bytes == 10**8
    prune = parse(Recipe, {"steps": [{"prune": {"importance": "l1", "ratio": 0.2}}]}, "test")
    with pytest.raises(UsageError, match="--target-size is about rounding"):
        with_options(prune, target_bytes=10**8)
