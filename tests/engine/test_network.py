from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from regraft.engine.weights.adapter_packing import build_adapter
from regraft.engine.weights.architecture import read_architecture
from regraft.engine.weights.native_model import build
from regraft.errors import FormatError, IncompatibleAdapterError
from regraft.formats.adapter.content import Factors
from regraft.native import layout
from tests.engine.networks import parameters_of
from tests.tiny import make_model


def broken(change: str) -> None:
    """Build a model with one parameter wrong."""
    model = make_model()
    parameters = parameters_of(model)
    linears, vectors = parameters._linears, parameters._vectors
    if change == "missing linear":
        del linears["model.layers.1.mlp.up_proj"]
    elif change == "missing norm":
        del vectors["model.layers.1.input_layernorm.weight"]
    elif change == "extra":
        vectors["model.layers.1.self_attn.q_norm.weight"] = vectors["model.norm.weight"]
    elif change == "transposed":
        weight = model.model.layers[0].mlp.up_proj.weight.detach().numpy()
        linears["model.layers.0.mlp.up_proj"] = layout.pack_dense(weight.T.copy())
    elif change == "short norm":
        vectors["model.norm.weight"] = vectors["model.norm.weight"][:-8]
    build(read_architecture(model.config.to_dict()), parameters)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("missing linear", r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        ("missing norm", r"model\.layers\.1\.input_layernorm\.weight is missing"),
        ("extra", r"self_attn\.q_norm\.weight belongs to nothing"),
        ("transposed", r"up_proj: expected 128 x 64, found 64 x 128"),
        ("short norm", r"norm is of a wrong size"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change: str, named: str) -> None:
    with pytest.raises(FormatError, match=named):
        broken(change)


@pytest.mark.parametrize("slot", ["layers.2.mlp.up_proj", "layers.x.mlp.up_proj", "layers.0.mlp.router", "lm_head"])
def test_a_bypass_at_no_slot_is_refused(slot: str) -> None:
    factor: Any = np.ones((4, 64), np.float16)
    with pytest.raises(IncompatibleAdapterError, match=slot):
        build_adapter(2, {slot: [Factors("lora", factor, factor.T.copy(), 1.0)]})
