"""Layer by layer gives what the whole model gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regraft.models.layer_walk import LayerWalk
from tests.tiny import FAMILIES, make_model

BATCHES = [torch.arange(3, 27).view(2, 12), torch.arange(40, 60).view(1, 20)]


def make(family: str) -> Any:
    """Seven layers, so that Gemma 3 has local and global ones, and windows that matter."""
    model = make_model(family, layers=7)
    if getattr(model.config, "sliding_window", None):
        model.config.sliding_window = 4
        for layer in model.model.layers:
            if getattr(layer.self_attn, "sliding_window", None):
                layer.self_attn.sliding_window = 4
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_state_is_that_of_the_whole_model(family: str) -> None:
    model = make(family)
    walk = LayerWalk(model, BATCHES)
    for number, batch in enumerate(BATCHES):
        assert torch.equal(walk.states[number], model(batch, output_hidden_states=True).hidden_states[0])
    for index in range(7):
        walk.advance(index)
    for number, batch in enumerate(BATCHES):
        assert torch.equal(
            model.model.norm(walk.states[number]), model(batch, output_hidden_states=True).hidden_states[-1]
        )


@torch.no_grad()
def test_grams_are_sums_over_the_inputs_of_each_linear() -> None:
    model = make("gemma3")
    index, layer = 6, model.model.layers[6]
    names = ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]
    linears = {name: layer.get_submodule(name) for name in names}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    handles = [
        linear.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0].flatten(0, -2)))
        for name, linear in linears.items()
    ]
    for batch in BATCHES:
        model(batch)
    for handle in handles:
        handle.remove()
    walk = LayerWalk(model, BATCHES)
    for before in range(index):
        walk.advance(before)
    for name, gram in walk.grams(index, linears).items():
        x = torch.cat(seen[name])
        torch.testing.assert_close(gram, x.T @ x, rtol=1e-4, atol=1e-4, msg=name)


def test_a_changed_layer_changes_what_follows() -> None:
    model = make("llama")
    plain, changed = LayerWalk(model, BATCHES), LayerWalk(model, BATCHES)
    plain.advance(0)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    changed.advance(0)
    assert not torch.allclose(plain.states[0], changed.states[0])
