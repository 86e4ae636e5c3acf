"""The plan of a recipe, before anything runs: sizes on disk and in memory, and bytes read for a token.

Counted from the shapes of the base alone. A global ranking and a threshold decide by what the base computes; of them
the mean that was asked for is taken. A budget of bytes is spread evenly over the slots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from regraft.compress.moefy.settings import Moefy, check_size
from regraft.compress.prune.groups import Group
from regraft.compress.prune.rank import count_kept
from regraft.compress.prune.settings import Prune
from regraft.compress.recipe import DENSE, Recipe, SlotPlan, plan_slots
from regraft.engine.weights.architecture import read_architecture
from regraft.errors import ConfigError, FormatError
from regraft.formats.base_record import slot_shapes_of
from regraft.formats.open_weights import open_weights
from regraft.formats.slots import AXES, leaf, within_layer
from regraft.formats.source import locate
from regraft.formats.weights import EMBEDDING, HEAD, Weights
from regraft.native.layout import BLOCK, TILE, padded

_HALF, _FLOAT = 2, 4  # bytes


@dataclass(frozen=True)
class Prediction:
    """Bytes, for the whole model.

    Attributes:
        disk: of weights.
        memory: of weights in the engine; KV cache and adapters come on top.
        read: of weights that a token reads while one sequence decodes.
        kv: of keys and values per token of context.
        parameters: that are left.
    """

    disk: float
    memory: float
    read: float
    kv: float
    parameters: int

    def bytes_per_token(self, context: int) -> float:
        """Bytes that a token reads with so many tokens before it."""
        return self.read + self.kv * context


@dataclass(frozen=True)
class _Layer:
    kv_heads: int
    mlp: int


@dataclass(frozen=True)
class _Shape:
    """A decoder by its sizes; ``heads`` are those that share a KV head."""

    hidden: int
    head_dim: int
    heads: int
    vocabulary: int
    ends: int  # embedding and head: 1 if they are tied
    layers: tuple[_Layer, ...]
    moefy: Moefy | None = None
    vectors: int = field(default=0)

    def slots(self, layer: int) -> dict[str, tuple[int, int]]:
        """Slot name → (out features, in features), of one layer."""
        one = self.layers[layer]
        shapes = slot_shapes_of(self.hidden, self.head_dim, one.kv_heads * self.heads, one.kv_heads, one.mlp)
        return {f"layers.{layer}.{name}": shape for name, shape in shapes.items()}

    @property
    def all_slots(self) -> dict[str, tuple[int, int]]:
        """The same, of all layers."""
        return {slot: shape for layer in range(len(self.layers)) for slot, shape in self.slots(layer).items()}


def plan(argument: str, recipe: Recipe) -> tuple[Prediction, Prediction]:
    """What the base is, in 16 bits, and what the recipe will make of it.

    Raises:
        UsageError: there is no such base.
        FormatError: it cannot be read, or is not of a family that the engine runs.
        ConfigError: the recipe does not fit it.
    """
    shape = _read(open_weights(locate(argument)))
    before = _predict(shape, plan_slots(None, {slot: width for slot, (_, width) in shape.all_slots.items()}), DENSE)
    for step in recipe.steps:
        if step.prune is not None:
            shape = _pruned(shape, step.prune)
        elif step.moefy is not None:
            for layer in shape.layers:
                check_size(layer.mlp, step.moefy)
            shape = replace(shape, moefy=step.moefy)
    plans = plan_slots(recipe.quantize, {slot: width for slot, (_, width) in shape.all_slots.items()})
    ends = recipe.quantize.embeddings if recipe.quantize else DENSE
    target = recipe.quantize.target_bytes if recipe.quantize else None
    return before, _predict(shape, plans, ends) if target is None else _spread(shape, plans, ends, target)


def _spread(shape: _Shape, plans: Mapping[str, SlotPlan], embedding_bits: int, target: int) -> Prediction:
    """Between two widths for all slots, one that fits the budget and one that does not."""
    found = []
    for bits in (2, 3, 4, 8):
        some = {
            slot: plan if plan.is_fixed or plan.is_dense else replace(plan, bits=min(bits, plan.bits))
            for slot, plan in plans.items()
        }
        found.append(_predict(shape, some, embedding_bits))
    if found[0].disk > target:
        raise ConfigError(f"quantize.target_bytes {target}", expected=f"at least {round(found[0].disk)}")
    above = next((one for one in found if one.disk > target), found[-1])
    below = [one for one in found if one.disk <= target][-1]
    share = (target - below.disk) / (above.disk - below.disk) if above.disk > below.disk else 0.0

    def between(name: str) -> float:
        low, high = getattr(below, name), getattr(above, name)
        return float(low + share * (high - low))

    return replace(below, disk=between("disk"), memory=between("memory"), read=between("read"))


def _read(weights: Weights) -> _Shape:
    a = read_architecture(weights.config)
    shape = _Shape(
        a.hidden,
        a.head_dim,
        a.heads[0] // a.kv_heads[0],
        a.vocabulary,
        1 if a.tied else 2,
        tuple(_Layer(kv_heads, mlp) for kv_heads, mlp in zip(a.kv_heads, a.mlp, strict=True)),
        vectors=sum(weights.shape(name)[0] for name in weights if len(weights.shape(name)) == 1),
    )
    matrices = {name for name in weights if len(weights.shape(name)) == 2} - {EMBEDDING, HEAD}
    if len(matrices) != len(shape.all_slots):
        raise FormatError(f"{weights.path}: matrices", expected=str(len(shape.all_slots)), found=str(len(matrices)))
    return shape


def _pruned(shape: _Shape, prune: Prune) -> _Shape:
    layers = len(shape.layers)
    if prune.groups == ("layers",):
        left = layers - round(prune.ratio * layers)
        return replace(shape, layers=shape.layers[:left], vectors=shape.vectors * left // layers)
    if prune.groups == ("channels",):
        step = math.lcm(prune.multiple, shape.heads * shape.layers[0].kv_heads)
        hidden = max(step, step * round((1 - prune.ratio) * shape.hidden / step))
        return replace(shape, hidden=hidden, vectors=shape.vectors * hidden // shape.hidden)
    groups = [group for layer in range(layers) for group in _groups(shape, layer) if group.kind in prune.groups]
    total = sum(out * width for out, width in shape.all_slots.values())
    kept = {(group.kind, group.layer): count for group, count in count_kept(groups, prune, layers, total).items()}
    smaller = (
        _Layer(kept.get(("heads", number), layer.kv_heads), kept.get(("neurons", number), layer.mlp))
        for number, layer in enumerate(shape.layers)
    )
    return replace(shape, layers=tuple(smaller))


def _groups(shape: _Shape, layer: int) -> list[Group]:
    one, slots = shape.layers[layer], shape.slots(layer)
    cost = {kind: 0 for kind in ("neurons", "heads")}
    for slot, (out, width) in slots.items():
        cost["neurons" if "neurons" in AXES[within_layer(slot)] else "heads"] += out * width
    units = {"heads": one.kv_heads, "neurons": one.mlp}
    return [Group(kind, layer, units[kind], (), cost[kind] // units[kind]) for kind in ("heads", "neurons")]


def _predict(shape: _Shape, plans: Mapping[str, SlotPlan], embedding_bits: int) -> Prediction:
    slots = shape.all_slots
    ends, eight = shape.vocabulary * shape.hidden, 1 + _HALF / BLOCK  # bytes of a number, its share of a scale included
    disk = shape.ends * ends * (_HALF if embedding_bits == DENSE else eight) + _HALF * shape.vectors
    memory, read = shape.ends * ends * eight + _FLOAT * shape.vectors, ends * eight + _FLOAT * shape.vectors
    for slot, (out, width) in slots.items():
        stored, held = _slot_bytes(out, width, plans[slot])
        disk, memory = disk + stored, memory + held
        read += held * _share(shape, slot)
    counts = _routed_experts(shape)
    routers = sum(count * (shape.hidden + count) for count in counts)
    held = sum(padded(count, TILE) * (eight * shape.hidden + _HALF * padded(count, BLOCK)) for count in counts)
    disk, memory, read = disk + _HALF * routers, memory + held, read + held
    parameters = shape.ends * ends + sum(out * width for out, width in slots.values()) + shape.vectors + routers
    kv = sum(2 * layer.kv_heads * shape.head_dim * _HALF for layer in shape.layers)
    return Prediction(disk, memory, read, kv, parameters)


def _slot_bytes(out: int, width: int, plan: SlotPlan) -> tuple[float, float]:
    """Bytes of a slot on disk and in the engine, which stores 2, 4 and 8 bits."""
    if plan.is_dense:
        return _HALF * out * width, _HALF * out * width
    groups = out * width / (plan.group_size or width)
    zeros = 0.0 if plan.symmetric else groups * plan.bits / 8
    stored = next(bits for bits in (2, 4, 8) if bits >= plan.bits)
    shifted = 0.0 if plan.symmetric and stored == plan.bits else groups
    return out * width * plan.bits / 8 + _HALF * groups + zeros, out * width * stored / 8 + _HALF * groups + shifted


def _share(shape: _Shape, slot: str) -> float:
    """The share of a slot that a token reads."""
    moefy = shape.moefy
    if moefy is None or "neurons" not in AXES[within_layer(slot)]:
        return 1.0
    if moefy.method == "cats":
        return 1.0 if leaf(slot) == "gate_proj" else moefy.active
    count = shape.layers[int(slot.split(".")[1])].mlp // moefy.size
    return max(1, round(moefy.active * count)) / count


def _routed_experts(shape: _Shape) -> list[int]:
    """Of each layer with a router, its experts."""
    if shape.moefy is None or shape.moefy.method == "cats":
        return []
    return [layer.mlp // shape.moefy.size for layer in shape.layers]


def to_json(prediction: Prediction, context: int) -> dict[str, Any]:
    """A prediction as plain data."""
    return {
        "bytes_on_disk": round(prediction.disk),
        "bytes_in_memory": round(prediction.memory),
        "bytes_per_token": round(prediction.bytes_per_token(context)),
        "bytes_kv_per_token": round(prediction.kv),
        "parameters": prediction.parameters,
    }
