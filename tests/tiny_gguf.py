"""Tiny models as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from transformers import PreTrainedModel

from tests.tiny import make_tokenizer

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    kinds: Mapping[str, GGMLQuantizationType] | None = None,
    tokenizer: Any = None,
    **metadata: Any,
) -> Path:
    """Write a model and a byte-level tokenizer.

    Args:
        path: the file.
        model: of a family in ``ARCHITECTURES``.
        kinds: part of a parameter's name → type of those matrices; others are F32.
        tokenizer: of ``transformers``; by default that of ``tests.tiny``.
        metadata: more entries, named as in the file but for ``__`` instead of dots.
    """
    architecture = ARCHITECTURES[model.config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    _add_config(writer, model.config)
    _add_tokenizer(writer, tokenizer or make_tokenizer())
    for key, value in metadata.items():
        _add_value(writer, key.replace("__", "."), value)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        base, _, suffix = name.rpartition(".")
        values = _as_converted(name, tensor.float().numpy(), model.config)
        kind = _kind(name, values, kinds or {})
        writer.add_tensor(f"{names.get_name(base)}.{suffix}", _encode(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])  # Gemma has two
    writer.add_rope_dimension_count(config.head_dim)
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any) -> None:
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    added = {token.content: 3 if token.special else 4 for token in tokenizer.added_tokens_decoder.values()}
    writer.add_token_types([added.get(token, 1) for token in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
    }
    writer.kv_data[0].pop(key, None)
    writer.add_key_value(key, value, kinds[type(value)])


def _as_converted(name: str, values: Any, config: Any) -> Any:
    """What llama.cpp's converter does to values: it pairs the rows of q and k, and adds Gemma's one to norms."""
    module = name.split(".")[-2]
    if config.model_type == "llama" and module in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return values + 1 if config.model_type == "gemma3_text" and "norm" in module else values


def _kind(name: str, values: Any, kinds: Mapping[str, GGMLQuantizationType]) -> GGMLQuantizationType:
    fitting = [kind for part, kind in kinds.items() if part in name and values.ndim == 2]
    return fitting[0] if fitting else GGMLQuantizationType.F32


def _encode(values: Any, kind: GGMLQuantizationType) -> Any:
    if kind is GGMLQuantizationType.Q6_K:  # the package only decodes it: any bytes will do, under a small scale
        blocks = np.random.default_rng(0).integers(0, 256, (values.shape[0], values.shape[1] // 256, 210), np.uint8)
        blocks[..., 208:] = np.frombuffer(np.float16(1e-4).tobytes(), np.uint8)
        return blocks.reshape(values.shape[0], -1)
    if kind in PLAIN:
        return np.ascontiguousarray(values, np.float32 if kind is GGMLQuantizationType.F32 else np.float16)
    return gguf.quantize(np.ascontiguousarray(values, np.float32), kind)
