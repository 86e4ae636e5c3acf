"""Keys of ``config.json`` that may change what a model computes, and that its family does not know, are refused.

A false ``model_type``, or a fork's own multiplier, would otherwise give another model, in torch as in the engine,
without a word. Families that are not named here are run by ``transformers`` alone, which knows their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regraft.errors import FormatError
from regraft.formats.experts import CONFIG_KEY

_SIZES = {
    "attention_bias",
    "head_dim",
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "vocab_size",
}
_WINDOWS = {"layer_types", "max_window_layers", "sliding_window", "sliding_window_pattern", "use_sliding_window"}
_FAMILIES = {
    "llama": {"hidden_act", "mlp_bias"},
    "mistral": {"hidden_act", "sliding_window"},
    "qwen2": {"hidden_act", *_WINDOWS},
    "qwen3": {"hidden_act", *_WINDOWS},
    "gemma3_text": {
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_act",
        "hidden_activation",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        *_WINDOWS,
    },
}
# Where a model came from, how it is trained, stored and sampled: nothing of it changes its logits.
_SILENT = {
    CONFIG_KEY,
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "dtype",
    "embd_pdrop",
    "finetuning_task",
    "hidden_dropout",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "license",
    "max_length",
    "max_sequence_length",
    "max_window_layers",  # Qwen's, without use_sliding_window, in configs of its descendants too
    "min_length",
    "model_max_length",
    "model_type",
    "name_or_path",
    "neftune_noise_alpha",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pretraining_tp",
    "problem_type",
    "prefix",
    "resid_pdrop",
    "return_dict",
    "seq_length",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "use_cache",
    "use_flash_attn",
    # How text is drawn, which stood here before generation_config.json:
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "length_penalty",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
}
_SILENT_ENDS = ("_token_id", "_token_ids", "_token", "_tokens", "_version", "_loss_coef")
_SILENT_STARTS = ("_", "unsloth")
_ONE = ("multiplier", "scale", "scaling", "factor")  # what multiplies is neutral at 1, anything else at nothing


def check_keys(config: Mapping[str, Any], origin: str) -> None:
    """Hold a config's keys against those that its family reads.

    Args:
        config: a ``config.json``.
        origin: its path, for the error.

    Raises:
        FormatError: a key that the family does not know says something.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        return
    known = _SIZES | _SILENT | _FAMILIES[family]
    for key, value in config.items():
        if key in known or key.startswith(_SILENT_STARTS) or key.endswith(_SILENT_ENDS) or _is_neutral(key, value):
            continue
        raise FormatError(
            f"{origin}: {key} = {_short(value)}",
            expected=f"no key that a {family} does not know",
            found="one that may change what the model computes",
            hint="Is model_type right? If the key changes nothing, take it out.",
        )


def _is_neutral(key: str, value: Any) -> bool:
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value == (1 if key.endswith(_ONE) else 0)
    return not value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
