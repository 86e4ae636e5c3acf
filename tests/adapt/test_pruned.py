"""Adapting to pruned bases: what is inherited, compared and repaired there, unchanged settings included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from regraft.adapt.closed_form import eora, original_weights, svd
from regraft.adapt.run import run
from regraft.adapt.student import inherit, new_lora
from regraft.bypass.directory import read_adapter
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.models.load import Base, load_base
from regraft.models.output_head import Head
from regraft.models.slots import iter_slots, slot_shapes
from regraft.train.batches import Row, collate
from regraft.train.distil import losses
from regraft.train.settings import Distil
from regraft.train.teacher import Teacher, teach
from tests.adapt.made import Made
from tests.adapt.test_run import make_config, make_job

INT4 = {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "blocks": [{"prune": {"importance": "random", "ratio": 0.3, "multiple": 8, "protect_first": 1}}, INT4],
    "channels": [{"prune": {"importance": "l2", "ratio": 0.25, "multiple": 16, "groups": ["channels"]}}, INT4],
    "layers": [{"prune": {"importance": "random", "ratio": 0.5, "groups": ["layers"], "protect_last": 1}}],
    "recovered": [
        {"prune": {"importance": "random", "ratio": 0.3, "multiple": 8}},
        {
            "recover": {
                "text": {"num_sequences": 20, "sequence_length": 16},
                "train": {"tokens": 600, "batch_tokens": 96, "evaluations": 2},
            }
        },
        INT4,
    ],
}


@pytest.fixture(scope="module", params=RECIPES)
def pruned(request: pytest.FixtureRequest, made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / request.param
    compress(made.base, folder, parse(Recipe, {"steps": RECIPES[request.param]}, "test"))
    return folder


def test_an_adapter_is_carried_over_and_comes_back(pruned: Path, made: Made, tmp_path: Path) -> None:
    job = make_job(made, compressed=str(pruned), config=make_config(recover={"start": "eora"}))
    card = run(job, tmp_path / "out")
    assert card.adapted.kl is not None
    assert card.plugged_in.kl is not None
    assert card.adapted.kl < card.plugged_in.kl
    small = load_base(pruned)
    shapes = slot_shapes(small.model)
    for slot, lora in read_adapter(tmp_path / "out", small).of("lora").items():
        assert (lora.up.shape[0], lora.down.shape[1]) == shapes[slot]
    record = json.loads((tmp_path / "out" / "regraft.json").read_text())
    assert record["base_fingerprint"] == small.fingerprint


def test_inheriting_is_slicing(pruned: Path, made: Made) -> None:
    small, original = load_base(pruned), load_base(made.base)
    adapter = read_adapter(made.lora, original)
    kept = small.kept
    assert kept is not None
    inherited = inherit(adapter, small)
    assert set(inherited) == {slot for slot in slot_shapes(small.model) if kept.source(slot) in adapter.bypasses}
    for slot, lora in inherited.items():
        whole = adapter.of("lora")[kept.source(slot)].delta().detach()
        torch.testing.assert_close(lora.delta(), whole[kept.rows(slot)][:, kept.columns(slot)])
    # Plugged in from its directory it is the same.
    for slot, lora in read_adapter(made.lora, small).of("lora").items():
        assert torch.equal(lora.down, inherited[slot].down)
        assert torch.equal(lora.up, inherited[slot].up)
    ranks = {slot: lora.rank for slot, lora in new_lora(small, adapter, 3, torch.Generator()).items()}
    assert ranks == {slot: 5 if slot in inherited else 3 for slot in slot_shapes(small.model)}


def test_closed_forms_repair_what_rounding_took(pruned: Path, made: Made) -> None:
    small, original = load_base(pruned), load_base(made.base)
    weights = original_weights(small, original)
    ids = torch.randint(3, 300, (4, 32), generator=torch.Generator().manual_seed(0))
    for repairs in (svd(small, original, 32), eora(small, original, 32, [ids], {})):
        for slot, linear in iter_slots(small.model):
            error = (weights[slot] - linear.weight).norm()
            left = (weights[slot] - linear.weight - repairs[slot].delta()).norm()
            assert error < 0.2 * weights[slot].norm()
            assert left < 0.9 * error or error < 1e-3 * weights[slot].norm()


@pytest.mark.parametrize("name", ["channels", "blocks"])
def test_hidden_states_are_compared_in_the_channels_that_are_left(name: str, made: Made, tmp_path: Path) -> None:
    compress(made.base, tmp_path / "small", parse(Recipe, {"steps": RECIPES[name]}, "test"))
    small: Base = load_base(tmp_path / "small")
    original = load_base(made.base)
    rows = [Row(list(range(5, 25)), 8), Row(list(range(40, 52)), 4)]
    targets = teach(Teacher(original, None), rows, tmp_path, kept=small.kept)
    batch = collate(rows, [0, 1])
    assert small.kept is not None
    channels = np.asarray(small.kept.channels)
    with torch.no_grad():
        ours = small.model.get_decoder()(input_ids=batch.ids).last_hidden_state
        theirs = original.model.get_decoder()(input_ids=batch.ids).last_hidden_state
        found = losses(ours, Head.of(small.model), batch, targets, Distil(hidden=1, logits=1))
    squares = (ours - theirs[..., channels])[batch.mask].square()
    assert found.hidden == pytest.approx(float(squares.mean()), rel=1e-2)
    assert ours.shape[-1] == (48 if name == "channels" else 64)
