"""Every key of a GGUF file that says how its model computes is read, or known to change nothing, or refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.errors import FormatError
from regraft.formats.gguf.file import GgufFile

# Keys of an architecture that change nothing: hints for tools, and what the tensors' shapes say already.
_SILENT = {
    "vocab_size",
    "tensor_data_layout",
    "expert_used_count",
}
_HEAD = ("rope.dimension_count", "attention.key_length", "attention.value_length")
# Multipliers at which a multiplication changes nothing; any other key is neutral at nothing, false or zero.
_ONE = {"logit_scale", "residual_scale", "embedding_scale", "rope.scale"}
_TRUE = {"attention.causal"}


def check_metadata(file: GgufFile, architecture: str, read: Mapping[str, str], config: Mapping[str, Any]) -> None:
    """Hold the architecture's keys against those that were read.

    Args:
        file: the file.
        architecture: the prefix of its keys.
        read: keys, without the prefix, that the config was made of.
        config: that config.

    Raises:
        FormatError: a key that may change what the model computes is not read here.
    """
    prefix = f"{architecture}."
    size = _head_size(config)
    for key, value in sorted(file.metadata.items()):
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or name in _SILENT or name.startswith("rope.scal"):
            continue
        if name in _HEAD:  # those that the family reads, too: they are held against each other
            if value != size:
                raise FormatError(f"{file.path}: {key}", expected=f"the size of a head, {size}", found=repr(value)[:60])
        elif name not in read and not _is_neutral(name, value, config):
            raise FormatError(
                f"{file.path}: {key} = {value!r} is not read here",
                hint="The model would compute something else without it. Take a Hugging Face directory of it.",
            )


def _head_size(config: Mapping[str, Any]) -> Any:
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if config.get("head_dim") is not None:
        return config["head_dim"]
    return hidden // heads if type(hidden) is type(heads) is int and heads else None


def _is_neutral(name: str, value: Any, config: Mapping[str, Any]) -> bool:
    if name == "attention.sliding_window":  # a window of the whole context is none
        context = config.get("max_position_embeddings")
        return not value or (type(value) is int and type(context) is int and value >= context)
    if name in _TRUE:
        return bool(value)
    return value in (None, 0, "") or value == [] or (name in _ONE and value == 1)
