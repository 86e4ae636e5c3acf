"""Keys of ``config.json`` that a family does not know are refused where they may change what a model computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import GraniteConfig, SmolLM3Config

from regraft.engine.weights.open_base import open_base
from regraft.errors import FormatError
from regraft.formats.config_keys import check_keys
from regraft.models.load import load_base
from tests.tiny import FAMILIES, make_base, make_model

SILENT = {
    "_name_or_path": "some/where",
    "unsloth_fixed": True,
    "unsloth_version": "2026.1",
    "transformers_version": "4.40.0",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
    "is_llama_config": True,
    "rope_interleaved": False,
    "pretraining_tp": 1,
    "use_mrope": False,
    "cache_implementation": "hybrid",
    "temperature": 0.6,
    "image_token_id": 7,
    "residual_multiplier": 1.0,
    "logits_scaling": 1,
    "no_rope_layers": [],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_that_transformers_writes_pass(family: str) -> None:
    check_keys(make_model(family).config.to_dict() | SILENT, "config.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("residual_multiplier", 0.22),
        ("embedding_multiplier", 12),
        ("logits_scaling", 8.0),
        ("logit_scale", 0.0625),
        ("no_rope_layers", [1, 1, 1, 0]),
        ("no_rope_layer_interval", 4),
        ("final_logit_softcapping", 30.0),
        ("attn_logit_softcapping", 50.0),
        ("partial_rotary_factor", 0.5),
        ("num_local_experts", 8),
        ("use_qk_norm", True),
        ("norm_type", "layernorm"),
        ("query_pre_attn_scalar", 256),
        ("hidden_activation", "gelu"),
    ],
)
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_key_that_may_change_the_model_is_named(tmp_path: Path, family: str, key: str, value: Any) -> None:
    folder = make_base(tmp_path / "base", family)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=f"config.json: {key} = .*no key that a {family} does not know"):
            load(folder)


@pytest.mark.parametrize("kind", [SmolLM3Config, GraniteConfig])
def test_another_family_under_a_false_name_is_refused(kind: Any) -> None:
    config = kind(logits_scaling=8.0) if kind is GraniteConfig else kind()
    check_keys(config.to_dict(), "config.json")  # under its own name transformers runs it, and knows its keys
    with pytest.raises(FormatError, match="no key that a llama does not know"):
        check_keys(config.to_dict() | {"model_type": "llama"}, "config.json")


def test_bidirectional_attention_is_refused() -> None:
    config = make_model("gemma3").config.to_dict() | {"use_bidirectional_attention": True}
    with pytest.raises(FormatError, match="use_bidirectional_attention = True"):
        check_keys(config, "config.json")
