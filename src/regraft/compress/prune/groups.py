"""Dependency groups: what goes together when one part of a decoder goes (LLM-Pruner, arXiv 2305.11627, section 3.1).

LLM-Pruner traces the network to find them. Here they follow from the slots: two sides of slots that stand for the same
thing (:data:`regraft.formats.slots.AXES`) are of one group.

    neurons    a row of gate and up, a column of down
    heads      a KV head: rows of k and v, and for all of its query heads rows of q and columns of o
    channels   a row or a column of every slot, of embedding and head, an entry of the norms
    layers     all of a layer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from regraft.errors import FormatError
from regraft.formats.base_record import Widths
from regraft.formats.kept import Kept
from regraft.formats.slots import AXES, layer_index, within_layer
from regraft.models.slots import slot_paths, slot_shapes

_SIDES = {"heads": ("queries", "keys"), "neurons": ("neurons",), "channels": ("channels",)}


@dataclass(frozen=True)
class Member:
    """A weight that a group's units share out: unit u has the ``width`` indices of ``axis`` from ``u * width`` on."""

    parameter: str
    axis: int
    width: int


@dataclass(frozen=True)
class Group:
    """Parts that are alike and go one by one.

    Attributes:
        kind: ``heads``, ``neurons``, ``channels`` or ``layers``; a layer is a group of one unit.
        layer: None for channels, which run through all layers.
        units: how many there are.
        members: the matrices that they are made of; biases and norms go along, but do not count.
        cost: parameters of one unit within slots.
    """

    kind: str
    layer: int | None
    units: int
    members: tuple[Member, ...]
    cost: int

    def per_unit(self, saliency: Mapping[str, Tensor], *, vectors: bool = False) -> Tensor:
        """Sum over each unit's weights, ``[units]``.

        Args:
            saliency: a number for each weight of each member, by parameter name.
            vectors: sums over a unit's single rows and columns are taken as absolute values first.
        """
        total = torch.zeros(self.units, dtype=torch.float64)
        for member in self.members:
            sums = saliency[member.parameter].double().sum(1 - member.axis)
            total += (sums.abs() if vectors else sums).view(self.units, member.width).sum(1).cpu()
        return total


def widths_of(model: PreTrainedModel) -> Widths:
    """The sizes of a decoder that is not pruned yet.

    Raises:
        FormatError: its slots are not those that pruning knows, or not of these sizes.
    """
    config, shapes = model.config, slot_shapes(model)
    widths = Widths(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        heads=config.num_attention_heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        mlp=config.intermediate_size,
    )
    expected = Kept.everything(widths).original_slot_shapes
    if different := sorted(slot for slot in {**expected, **shapes} if expected.get(slot) != shapes.get(slot)):
        slot = different[0]
        raise FormatError(
            f"a model with {slot} of {shapes.get(slot, 'no shape')} cannot be pruned",
            expected=f"{expected.get(slot, 'no such slot')}, all layers being alike",
        )
    return widths


def find_groups(model: PreTrainedModel, kinds: Sequence[str], widths: Widths) -> list[Group]:
    """The groups of the given kinds, layer by layer.

    Args:
        model: perhaps pruned before.
        kinds: ``heads``, ``neurons``, ``channels``, ``layers``.
        widths: of the original, of which heads keep their size.
    """
    slots: dict[int, dict[str, tuple[str, tuple[int, int]]]] = {}
    shapes = slot_shapes(model)
    for slot, path in slot_paths(model).items():
        slots.setdefault(layer_index(slot), {})[within_layer(slot)] = (f"{path}.weight", shapes[slot])
    groups = []
    for kind in kinds:
        if kind == "channels":
            groups.append(_channels(model, slots))
        elif kind == "layers":
            groups += [_layer(number, layer) for number, layer in slots.items()]
        else:
            groups += [_within(kind, number, layer, widths) for number, layer in slots.items()]
    return sorted(groups, key=lambda group: -1 if group.layer is None else group.layer)


_Slots = Mapping[str, tuple[str, tuple[int, int]]]


def _within(kind: str, number: int, layer: _Slots, widths: Widths) -> Group:
    per_unit = {
        "queries": widths.heads // widths.kv_heads * widths.head_dim,
        "keys": widths.head_dim,
        "neurons": 1,
    }
    members, units, cost = [], 0, 0
    for name, (parameter, shape) in layer.items():
        for axis, what in enumerate(AXES[name]):
            if what in _SIDES[kind]:
                members.append(Member(parameter, axis, per_unit[what]))
                units = shape[axis] // per_unit[what]
                cost += per_unit[what] * shape[1 - axis]
    return Group(kind, number, units, tuple(members), cost)


def _layer(number: int, layer: _Slots) -> Group:
    members = tuple(Member(parameter, 0, shape[0]) for parameter, shape in layer.values())
    return Group("layers", number, 1, members, sum(shape[0] * shape[1] for _, shape in layer.values()))


def _channels(model: PreTrainedModel, slots: Mapping[int, _Slots]) -> Group:
    members = [Member(name, 1, 1) for name in _ends(model)]
    cost = 0
    for layer in slots.values():
        for name, (parameter, shape) in layer.items():
            axis = AXES[name].index("channels")
            members.append(Member(parameter, axis, 1))
            cost += shape[1 - axis]
    return Group("channels", None, model.config.hidden_size, tuple(members), cost)


def _ends(model: PreTrainedModel) -> Iterator[str]:
    """The names of embedding and head; one if they are tied."""
    ends = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return (name for name, parameter in model.named_parameters() if id(parameter) in ends)
