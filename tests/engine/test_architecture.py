from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Qwen2Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from regraft.engine.weights.architecture import read_architecture
from regraft.engine.weights.rope import make_rope
from regraft.errors import FormatError
from tests.tiny import FAMILIES, make_model

SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
    },
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 8, "truncate": False},
    {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 256, "attention_factor": 1.3},
]


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_scaled_rope_is_that_of_transformers(scaling: dict[str, Any], theta: float) -> None:
    parameters = {**scaling, "rope_theta": theta}
    config = LlamaConfig(
        hidden_size=512, num_attention_heads=8, head_dim=64, max_position_embeddings=4096, rope_parameters=parameters
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    rope = make_rope(parameters, 64, 4096)
    np.testing.assert_allclose(rope.frequencies, frequencies.numpy(), rtol=2e-6)
    assert rope.factor == pytest.approx(factor)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_rope_is_that_of_transformers(family: str) -> None:
    model = make_model(family, layers=7)
    found = {rope.frequencies.tobytes() for rope in read_architecture(model.config.to_dict()).ropes}
    wanted = {
        value.numpy().tobytes()
        for name, value in model.named_buffers()
        if name.endswith("inv_freq") and "original" not in name
    }
    assert found <= wanted


def test_layer_types_of_old_configs_are_those_of_transformers() -> None:
    gemma = {"sliding_window_pattern": 3, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 32}
    qwen = {"use_sliding_window": True, "max_window_layers": 4, "sliding_window": 32}
    for cls, own in ((Gemma3TextConfig, gemma), (Qwen2Config, qwen)):
        config = cls(num_hidden_layers=8, **own)
        found = read_architecture({**_old(config), **own}).windows
        assert [bool(window) for window in found] == [kind == "sliding_attention" for kind in config.layer_types]


def _old(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("layer_types", "rope_parameters")}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mamba"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_parameters"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"final_logit_softcapping": 30.0}, "softcapping"),
    ],
)
def test_what_is_not_known_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(FormatError, match=named):
        read_architecture({**LlamaConfig(head_dim=64).to_dict(), **change})


def test_a_missing_size_is_named() -> None:
    config = LlamaConfig().to_dict()
    del config["intermediate_size"]
    with pytest.raises(FormatError, match="intermediate_size"):
        read_architecture(config)
