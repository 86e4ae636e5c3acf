"""A base as the native core runs it: every parameter of the checkpoint placed, none left over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from regraft.engine.weights.architecture import Architecture
from regraft.errors import FormatError
from regraft.formats.experts import Experts
from regraft.formats.slots import AXES
from regraft.native import _core
from regraft.native.layout import Tiles

SLOTS = tuple(AXES)
PAGE_TOKENS: int = _core.PAGE_TOKENS
KvBits = Literal[8, 16]


class Parameters:
    """Hands out a base's parameters by name, once each.

    Args:
        linears: module path (``model.layers.0.mlp.up_proj``) → its tiles, biases included.
        vectors: parameter name of each norm, threshold, and bias of experts' down → float32.
    """

    def __init__(self, linears: Mapping[str, Tiles], vectors: Mapping[str, NDArray[np.float32]]) -> None:
        self._linears, self._vectors = dict(linears), dict(vectors)

    def linear(self, path: str) -> _core.Linear:
        """A module's linear map.

        Raises:
            FormatError: it is missing.
        """
        if path not in self._linears:
            raise FormatError(f"tensor {path}.weight is missing")
        return self._linears.pop(path).linear()

    def __contains__(self, name: object) -> bool:
        return name in self._vectors

    def vector(self, name: str, *, plus_one: bool = False) -> NDArray[np.float32]:
        """A norm's weight, as it multiplies, or another vector.

        Raises:
            FormatError: it is missing.
        """
        if name not in self._vectors:
            raise FormatError(f"tensor {name} is missing")
        return np.ascontiguousarray(self._vectors.pop(name) + np.float32(plus_one), np.float32)

    def check_all_used(self) -> None:
        """Raise FormatError if a parameter belongs to nothing."""
        if left := sorted([f"{path}.weight" for path in self._linears] + list(self._vectors)):
            raise FormatError(f"tensor {left[0]} belongs to nothing in the model")


def build(architecture: Architecture, parameters: Parameters, *, kv_bits: KvBits = 16) -> _core.Model:
    """The native model of ``architecture``.

    Args:
        architecture: sizes and kinds.
        parameters: all of the model's, and no more.
        kv_bits: keys and values are kept in float16, or as 8-bit integers with a scale per token and head.

    Raises:
        FormatError: a parameter is missing, of a wrong shape, or too many.
    """
    a = architecture
    try:
        model = _core.Model(
            a.hidden,
            a.head_dim,
            a.vocabulary,
            a.epsilon,
            a.embedding_scale,
            a.attention_scale,
            a.activation,
            [(rope.frequencies.tolist(), rope.factor) for rope in a.ropes],
            kv_bits,
        )
        embedding = parameters.linear("model.embed_tokens")
        head = embedding if a.tied else parameters.linear("lm_head")
        model.set_ends(embedding, head, parameters.vector("model.norm.weight", plus_one=a.family.unit_norms))
        for layer in range(a.layers):
            _add_layer(model, a, layer, parameters)
    except ValueError as error:  # the core's own checks of sizes
        raise FormatError(f"the weights do not fit config.json: {error}") from None
    parameters.check_all_used()
    return model


def _add_layer(model: _core.Model, a: Architecture, layer: int, parameters: Parameters) -> None:
    prefix = f"model.layers.{layer}."

    def norm(name: str) -> NDArray[np.float32]:
        return parameters.vector(f"{prefix}{name}.weight", plus_one=a.family.unit_norms)

    model.add_layer(
        slots=[parameters.linear(prefix + slot) for slot in SLOTS],
        heads=a.heads[layer],
        kv_heads=a.kv_heads[layer],
        mlp=a.mlp[layer],
        window=a.windows[layer],
        rope=a.rope_of[layer],
        **_norms(a, norm),
        **(_experts(a.experts, layer, prefix, parameters) if a.experts else {}),
    )


def _experts(experts: Experts, layer: int, prefix: str, parameters: Parameters) -> dict[str, Any]:
    bias, chooser = f"{prefix}mlp.down_proj.bias", f"{prefix}mlp.chooser"
    made: dict[str, Any] = {"expert_size": experts.size}
    if bias in parameters:
        made["down_bias"] = parameters.vector(bias)
    if experts.method == "cats":
        return made | {"threshold": float(parameters.vector(f"{chooser}.threshold")[0])}
    router = (parameters.linear(f"{chooser}.first"), parameters.linear(f"{chooser}.second"))
    return made | {"active_experts": int(experts.active[layer]), "router": router}


def _norms(a: Architecture, norm: Callable[[str], NDArray[np.float32]]) -> dict[str, Any]:
    norms = {"attention_norm": norm("input_layernorm")}
    if a.family.post_norms:
        norms["attention_post_norm"] = norm("post_attention_layernorm")
        norms["mlp_norm"] = norm("pre_feedforward_layernorm")
        norms["mlp_post_norm"] = norm("post_feedforward_layernorm")
    else:
        norms["mlp_norm"] = norm("post_attention_layernorm")
    if a.family.head_norms:
        norms["query_norm"] = norm("self_attn.q_norm")
        norms["key_norm"] = norm("self_attn.k_norm")
    return norms
