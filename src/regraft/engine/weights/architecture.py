"""The architecture of a decoder, read from ``config.json``. A family is a row of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from regraft.engine.weights.rope import Rope, make_rope
from regraft.errors import FormatError, UnsupportedBaseError
from regraft.formats.base_record import Pruned
from regraft.formats.experts import Experts, read_experts


@dataclass(frozen=True)
class Family:
    """Where a family departs from Llama.

    Attributes:
        unit_norms: norms multiply by ``1 + weight``.
        post_norms: each block's output is normalised as well before it is added.
        head_norms: queries and keys are normalised per head.
        scaled_embeddings: embeddings are multiplied by ``sqrt(hidden)``.
        windows: when layers see a window only: ``never``, ``all`` (wherever ``sliding_window`` is set), or ``typed``
            (those that ``layer_types`` names).
        biases: slots that may have a bias: ``inputs`` are queries, keys and values, always; ``stated`` are those of
            attention where ``attention_bias`` says so; ``mlp`` also those of the MLP, by ``mlp_bias``.
        theta: RoPE's base where the config says none.
        window_theta: that of layers with a window, which scaling passes over; None if they share the others'.
    """

    unit_norms: bool = False
    post_norms: bool = False
    head_norms: bool = False
    scaled_embeddings: bool = False
    windows: str = "never"
    biases: str = "never"
    theta: float = 10000.0
    window_theta: float | None = None


FAMILIES = {
    "llama": Family(biases="mlp"),
    "mistral": Family(windows="all"),
    "qwen2": Family(windows="typed", biases="inputs"),
    "qwen3": Family(windows="typed", biases="stated", head_norms=True),
    "gemma3_text": Family(
        windows="typed",
        biases="stated",
        head_norms=True,
        unit_norms=True,
        post_norms=True,
        scaled_embeddings=True,
        theta=1000000.0,
        window_theta=10000.0,
    ),
}
_ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_tanh": "gelu_tanh"}
# Above what any model has, and below what makes a list of layers or a table of angles fill the memory.
_MOST_WIDTH, _MOST_LAYERS, _MOST_TOKENS, _MOST_POSITIONS = 1 << 20, 1 << 12, 1 << 24, 1 << 24


@dataclass(frozen=True)
class Architecture:
    """A decoder's sizes and kinds.

    Attributes:
        heads, kv_heads, mlp: per layer.
        windows: per layer, the tokens that a row sees, itself included; 0 is all.
        ropes: RoPE tables.
        rope_of: per layer, the index of its table.
        experts: what MLPs are cut in, or None.
    """

    family: Family
    hidden: int
    head_dim: int
    vocabulary: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlp: tuple[int, ...]
    epsilon: float
    activation: str
    embedding_scale: float
    attention_scale: float
    max_positions: int
    tied: bool
    windows: tuple[int, ...]
    ropes: tuple[Rope, ...]
    rope_of: tuple[int, ...]
    experts: Experts | None = None

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self.windows)


def read_architecture(config: Mapping[str, Any], pruned: Pruned | None = None) -> Architecture:
    """Read a Hugging Face config, and for a pruned base what its record says of widths.

    Raises:
        UnsupportedBaseError: a family, or a part of one, that the engine does not know.
        FormatError: an entry that is missing or not understood.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise UnsupportedBaseError(
            "config.json: model_type",
            expected=f"one that the engine runs: {', '.join(FAMILIES)}",
            found=repr(kind)[:60],
        )
    try:
        return _read(config, FAMILIES[kind], pruned)
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"config.json is not understood: {type(error).__name__} {error}") from None


def _read(config: Mapping[str, Any], family: Family, pruned: Pruned | None) -> Architecture:
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in _ACTIVATIONS:
        raise UnsupportedBaseError(
            "config.json: hidden_act", expected=f"one of {', '.join(_ACTIVATIONS)}", found=repr(activation)
        )
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(key):
            raise UnsupportedBaseError(f"config.json: {key}", expected="none", found=str(config[key]))
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = _size({"head_dim": hidden // heads, **_given(config, "head_dim")}, "head_dim")
    max_positions = _size(config, "max_position_embeddings", most=_MOST_POSITIONS)
    types = _layer_types(config, family)
    widths = _widths(config, heads, len(types), pruned)
    kinds = sorted(set(types))
    return Architecture(
        family=family,
        hidden=hidden,
        head_dim=head_dim,
        vocabulary=_size(config, "vocab_size", most=_MOST_TOKENS),
        heads=widths[0],
        kv_heads=widths[1],
        mlp=widths[2],
        epsilon=_small(config.get("rms_norm_eps", 1e-6)),
        activation=_ACTIVATIONS[activation],
        embedding_scale=hidden**0.5 if family.scaled_embeddings else 1.0,
        attention_scale=float(config.get("query_pre_attn_scalar") or head_dim) ** -0.5,
        max_positions=max_positions,
        tied=bool(config.get("tie_word_embeddings", family.scaled_embeddings)),
        windows=tuple(
            _size(config, "sliding_window", most=_MOST_POSITIONS) if kind == "sliding_attention" else 0
            for kind in types
        ),
        ropes=tuple(make_rope(_rope_parameters(config, family, kind), head_dim, max_positions) for kind in kinds),
        rope_of=tuple(kinds.index(kind) for kind in types),
        experts=read_experts(config, list(widths[2])),
    )


def _size(config: Mapping[str, Any], key: str, *, most: int = _MOST_WIDTH) -> int:
    """A whole number from 1 on that no memory is lost to, whatever the file says."""
    value = config[key]
    if type(value) is not int or not 1 <= value <= most:
        raise FormatError(f"config.json: {key}", expected=f"a whole number from 1 to {most}", found=repr(value)[:60])
    return value


def _given(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The entry, if there is one that says anything."""
    return {key: config[key]} if config.get(key) is not None else {}


def _small(value: Any) -> float:
    """The epsilon of norms."""
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise FormatError("config.json: rms_norm_eps", expected="a number from 0 to 1", found=repr(value)[:60])
    return float(value)


def _widths(config: Mapping[str, Any], heads: int, layers: int, pruned: Pruned | None) -> list[tuple[int, ...]]:
    """Query heads, KV heads and MLP width, each per layer."""
    if pruned is None:
        kv_heads = _size({"num_key_value_heads": heads, **_given(config, "num_key_value_heads")}, "num_key_value_heads")
        return [(width,) * layers for width in (heads, kv_heads, _size(config, "intermediate_size"))]
    if len(pruned.layers) != layers:
        raise FormatError("regraft.json: pruned.layers", expected=f"{layers}", found=str(len(pruned.layers)))
    return [tuple(getattr(layer, name) for layer in pruned.layers) for name in ("heads", "kv_heads", "mlp")]


def _layer_types(config: Mapping[str, Any], family: Family) -> list[str]:
    """Per layer ``full_attention`` or ``sliding_attention``; older configs imply it."""
    full, sliding = "full_attention", "sliding_attention"
    layers = _size(config, "num_hidden_layers", most=_MOST_LAYERS)
    if family.windows == "all":
        return [sliding if config.get("sliding_window") else full] * layers
    if family.windows == "never":
        return [full] * layers
    if types := config.get("layer_types"):
        if len(types) != layers or set(types) - {full, sliding}:
            raise FormatError(
                "config.json: layer_types", expected=f"{layers} of {full} and {sliding}", found=str(types)
            )
        return list(types)
    if pattern := config.get("sliding_window_pattern", 6 if family.post_norms else None):
        return [sliding if (layer + 1) % pattern else full for layer in range(layers)]
    if not config.get("use_sliding_window") or not config.get("sliding_window"):
        return [full] * layers
    return [sliding if layer >= config.get("max_window_layers", layers) else full for layer in range(layers)]


def _rope_parameters(config: Mapping[str, Any], family: Family, kind: str) -> dict[str, Any]:
    """A layer type's RoPE parameters; before ``rope_parameters`` they stood in the config itself."""
    apart = kind == "sliding_attention" and family.window_theta is not None
    if (parameters := config.get("rope_parameters")) is not None:
        own = parameters.get(kind, parameters) if isinstance(parameters, Mapping) else parameters
        if not isinstance(own, Mapping):
            raise FormatError("config.json: rope_parameters", expected="a JSON object", found=repr(own)[:60])
        return {"rope_theta": family.window_theta if apart else family.theta, **own}
    if apart:
        return {"rope_theta": config.get("rope_local_base_freq", family.window_theta)}
    return {"rope_theta": config.get("rope_theta", family.theta), **(config.get("rope_scaling") or {})}
