"""Model families in GGUF files: configuration keys, parameter names, and the order of rows.

The names and rules are those of ``transformers`` (``modeling_gguf_pytorch_utils.py``). It passes over scaled RoPE and
over keys that it does not know; here these are read (:mod:`regraft.formats.gguf.rope`) or refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from regraft.errors import ExportError, FormatError
from regraft.formats.gguf.file import GgufFile
from regraft.formats.gguf.metadata import check_metadata
from regraft.formats.gguf.rope import FACTORS, rope_scaling
from regraft.formats.weights import EMBEDDING, HEAD

CONVERT = "Convert it on a machine with regraft[adapt]: regraft compress."

_NEEDED = {
    "context_length",
    "block_count",
    "feed_forward_length",
    "embedding_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
}
_KEYS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "vocab_size": "vocab_size",
}
_ENDS_OF_ANSWERS = ("eos", "eot", "eom")  # of a text, of a turn, of a message: llama.cpp stops at each
_TOKENS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
_ENDS = {"token_embd.weight": EMBEDDING, "output_norm.weight": "model.norm.weight", "output.weight": HEAD}
_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_POST_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_IN_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_PARAMETER = re.compile(r"model\.layers\.(\d+)\.([\w.]+)\.(weight|bias)")


@dataclass(frozen=True)
class GgufFamily:
    """How a family is stored.

    Attributes:
        model_type: its name in ``transformers``.
        keys: configuration keys beyond those that all families share.
        modules: modules beyond, or other than, those of Llama.
        interleaved: rows of q and k stand in pairs, as GGML's rotary embedding wants them.
        norms_plus_one: norms are stored as ``1 + weight``.
    """

    model_type: str
    keys: Mapping[str, str] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    norms_plus_one: bool = False

    def parameter(self, name: str) -> str | None:
        """The name of a tensor in ``transformers``; None if it has no place in the model."""
        if name in _ENDS:
            return _ENDS[name]
        match = _IN_LAYER.fullmatch(name)
        module = {**_MODULES, **self.modules}.get(match[2]) if match else None
        return f"model.layers.{match[1]}.{module}.{match[3]}" if match and module else None

    def tensor(self, parameter: str) -> str | None:
        """The name of a parameter of ``transformers`` in a file; None if it has none."""
        ends = {renamed: name for name, renamed in _ENDS.items()}
        if parameter in ends:
            return ends[parameter]
        match = _PARAMETER.fullmatch(parameter)
        modules = {renamed: name for name, renamed in {**_MODULES, **self.modules}.items()}
        return f"blk.{match[1]}.{modules[match[2]]}.{match[3]}" if match and match[2] in modules else None


_FAMILIES = {
    "llama": GgufFamily("llama", {"rope.dimension_count": "head_dim"}, interleaved=True),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3", {"attention.key_length": "head_dim"}, _HEAD_NORMS),
    "gemma3": GgufFamily(
        "gemma3_text",
        {
            "attention.key_length": "head_dim",
            "attention.sliding_window": "sliding_window",
            "attention.sliding_window_pattern": "sliding_window_pattern",
            "rope.freq_base_swa": "rope_local_base_freq",
        },
        {**_HEAD_NORMS, **_POST_NORMS},
        norms_plus_one=True,
    ),
}
_WRITTEN = ("llama", "qwen2", "qwen3")


def has_family(file: GgufFile) -> bool:
    """Whether a file's family is one that is read here."""
    return file.metadata.get("general.architecture") in _FAMILIES


def family_of(file: GgufFile) -> GgufFamily:
    """The family of a file.

    Raises:
        FormatError: it is none that is read here.
    """
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in _FAMILIES:
        raise FormatError(
            f"{file.path}: architecture",
            expected=f"one of {', '.join(_FAMILIES)}",
            found=repr(architecture),
            hint=CONVERT,
        )
    return _FAMILIES[architecture]


def family_for(model_type: str) -> tuple[str, GgufFamily]:
    """GGUF's name for a family of ``transformers``, and the family.

    Raises:
        ExportError: it is none that is written here.
    """
    wanted = "llama" if model_type == "mistral" else model_type
    for name in _WRITTEN:
        if _FAMILIES[name].model_type == wanted:
            return name, _FAMILIES[name]
    raise ExportError(f"a {model_type} cannot be written as GGUF", expected=f"one of mistral, {', '.join(_WRITTEN)}")


def gguf_config(file: GgufFile) -> dict[str, Any]:
    """The Hugging Face config that ``transformers`` derives from a file's metadata.

    ``rope_scaling`` and the tokens that end an answer beside ``eos`` are added to it.

    Raises:
        FormatError: the family is none that is read here, or a key that changes what the model computes is not.
    """
    family, metadata = family_of(file), file.metadata
    architecture = metadata["general.architecture"]
    name = metadata.get("general.name")
    # Llama.cpp has no architecture of Mistral's own; transformers goes by this one name.
    model_type = "mistral" if (architecture, name) == ("llama", "mistral") else family.model_type
    config: dict[str, Any] = {"model_type": model_type, "tie_word_embeddings": "output.weight" not in file.tensors}
    if name is not None:
        config["_model_name_or_path"] = name
    own = {**_KEYS, **family.keys}
    keys = {f"{architecture}.{key}": renamed for key, renamed in own.items()} | _TOKENS
    config |= {renamed: metadata[key] for key, renamed in keys.items() if key in metadata}
    for key in own:
        if key in _NEEDED and f"{architecture}.{key}" not in metadata:
            raise FormatError(f"{file.path}: {architecture}.{key} is missing")
    check_metadata(file, architecture, own, config)
    if any(name.startswith("blk.") and name.endswith("attn_output.bias") for name in file.tensors):
        config["attention_bias"] = True
    if scaling := rope_scaling(file, architecture):
        config["rope_scaling"] = scaling
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in _ENDS_OF_ANSWERS]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    if len(ends) > 1:
        config["eos_token_id"] = ends
    tokens = metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        config.setdefault("vocab_size", len(tokens))
    return config


def parameter_names(file: GgufFile) -> dict[str, str]:
    """Parameter name in ``transformers`` → tensor name in the file.

    Raises:
        FormatError: a tensor has no place in the model.
    """
    family, names = family_of(file), {}
    for name in file.tensors:
        if name == FACTORS:
            continue  # no parameter; gguf_config reads it
        parameter = family.parameter(name)
        if parameter is None:
            raise FormatError(f"{file.path}: tensor {name} belongs to nothing in a {family.model_type}", hint=CONVERT)
        names[parameter] = name
    return names
