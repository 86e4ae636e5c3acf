from __future__ import annotations

import pytest

from regraft.formats.slots import layer_index, leaf, slot_of
from regraft.models.slots import slot_paths, slot_shapes
from tests.tiny import FAMILIES, make_model

LEAVES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_are_the_linears_of_the_layers(family: str) -> None:
    shapes = slot_shapes(make_model(family, layers=3, tie=False))
    assert [(layer_index(slot), leaf(slot)) for slot in shapes] == [(n, name) for n in range(3) for name in LEAVES]
    assert shapes["layers.1.self_attn.k_proj"] == (32, 64)
    assert shapes["layers.1.mlp.down_proj"] == (64, 128)


def test_paths_lead_to_the_modules() -> None:
    model = make_model()
    for slot, path in slot_paths(model).items():
        assert path == f"model.{slot}"
        assert model.get_submodule(path).weight.shape == slot_shapes(model)[slot]


@pytest.mark.parametrize(
    ("path", "slot"),
    [
        ("model.layers.3.mlp.up_proj", "layers.3.mlp.up_proj"),
        ("layers.12.self_attn.q_proj", "layers.12.self_attn.q_proj"),
        ("model.language_model.layers.0.mlp.up_proj", "layers.0.mlp.up_proj"),
        ("lm_head", None),
        ("model.embed_tokens", None),
        ("model.players.3.mlp.up_proj", None),
    ],
)
def test_slot_of(path: str, slot: str | None) -> None:
    assert slot_of(path) == slot
