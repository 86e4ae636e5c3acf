"""The parameters that a base must have to be run: held against its files before anything is packed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from regraft.engine.weights.architecture import Architecture
from regraft.formats.base_record import Pruned, slot_shapes_of
from regraft.formats.slots import AXES
from regraft.formats.weights import EMBEDDING, HEAD, Weights

_ATTENTION = [slot for slot in AXES if slot.startswith("self_attn.")]
_INPUTS = [slot for slot in _ATTENTION if AXES[slot][1] == "channels"]
_MLP = [slot for slot in AXES if slot.startswith("mlp.")]
_CHOOSER = ".mlp.chooser."  # of experts; the network itself says what belongs there

Shape = tuple[int, ...]


def check_parameters(weights: Weights, architecture: Architecture, pruned: Pruned | None = None) -> None:
    """Hold a base's parameters against those of its architecture.

    Raises:
        FormatError: one is missing, too many, or of another shape; names the file and the tensor.
    """
    shapes = dict(_shapes(weights.config, architecture, pruned))
    shapes |= {name: weights.shape(name) for name in weights if _CHOOSER in name}
    weights.check(shapes)


def _shapes(config: Mapping[str, Any], a: Architecture, pruned: Pruned | None) -> Iterator[tuple[str, Shape]]:
    yield EMBEDDING, (a.vocabulary, a.hidden)
    yield "model.norm.weight", (a.hidden,)
    if not a.tied:
        yield HEAD, (a.vocabulary, a.hidden)
    for layer in range(a.layers):
        prefix = f"model.layers.{layer}."
        slots = slot_shapes_of(a.hidden, a.head_dim, a.heads[layer], a.kv_heads[layer], a.mlp[layer])
        biased = {*_biased(config, a), *(pruned.layers[layer].biases if pruned else ())}
        for name, shape in slots.items():
            yield f"{prefix}{name}.weight", shape
            if name in biased:
                yield f"{prefix}{name}.bias", shape[:1]
        for name, width in _norms(a):
            yield f"{prefix}{name}.weight", (width,)


def _norms(a: Architecture) -> Iterator[tuple[str, int]]:
    yield "input_layernorm", a.hidden
    yield "post_attention_layernorm", a.hidden
    if a.family.post_norms:
        yield "pre_feedforward_layernorm", a.hidden
        yield "post_feedforward_layernorm", a.hidden
    if a.family.head_norms:
        yield "self_attn.q_norm", a.head_dim
        yield "self_attn.k_norm", a.head_dim


def _biased(config: Mapping[str, Any], a: Architecture) -> Iterator[str]:
    """Slots whose outputs have a bias."""
    kind = a.family.biases
    if kind == "inputs":
        yield from _INPUTS
    if kind in ("stated", "mlp") and config.get("attention_bias"):
        yield from _ATTENTION
    if kind == "mlp" and config.get("mlp_bias"):
        yield from _MLP
