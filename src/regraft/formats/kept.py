"""Parts of the original base that a pruned one has kept, and so the place of each of its weights in the original.

A slot of the pruned base is the original's with some rows and columns only, ``W' = W[rows][:, columns]``; so is what a
LoRA adds there, exactly: ``(B A)[rows][:, columns] = B[rows] A[:, columns]``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from regraft.errors import FormatError
from regraft.formats.base_record import LayerWidths, Pruned, Widths, slot_shapes_of
from regraft.formats.safetensors_file import Tensors, open_tensors
from regraft.formats.slots import AXES, layer_index, within_layer
from regraft.storage import file_sha256

KEPT_NAME = "kept.safetensors"

Indices = NDArray[np.int64]  # ascending, but for neurons that stand by expert


@dataclass(frozen=True)
class KeptLayer:
    """One layer: which of the original's it is, and what is left of it.

    Attributes:
        source: its number in the original.
        heads: KV heads, each with all of its query heads.
        neurons: of the MLP.
    """

    source: int
    heads: Indices
    neurons: Indices


@dataclass(frozen=True)
class Kept:
    """What is left of a base.

    Attributes:
        original: sizes of the original.
        layers: in order.
        channels: of the residual stream.
    """

    original: Widths
    layers: tuple[KeptLayer, ...]
    channels: Indices

    @classmethod
    def everything(cls, original: Widths) -> Kept:
        """Nothing is gone yet."""
        layers = (
            KeptLayer(source, np.arange(original.kv_heads), np.arange(original.mlp))
            for source in range(original.layers)
        )
        return cls(original, tuple(layers), np.arange(original.hidden))

    def then(self, later: Kept) -> Kept:
        """What is left when ``later``, whose numbers count what is left here, is applied to it."""
        layers = []
        for layer in later.layers:
            before = self.layers[layer.source]
            layers.append(KeptLayer(before.source, before.heads[layer.heads], before.neurons[layer.neurons]))
        return replace(self, layers=tuple(layers), channels=self.channels[later.channels])

    def source(self, slot: str) -> str:
        """The slot of the original that ``slot`` was."""
        return f"layers.{self.layers[layer_index(slot)].source}.{within_layer(slot)}"

    def carried(self, sources: Collection[str]) -> dict[str, str]:
        """Each slot that was one of ``sources`` of the original → which."""
        slots = (f"layers.{number}.{name}" for number in range(len(self.layers)) for name in AXES)
        return {slot: source for slot in slots if (source := self.source(slot)) in sources}

    def rows(self, slot: str) -> Indices:
        """The original's output features that ``slot`` has."""
        return self._side(slot, 0)

    def columns(self, slot: str) -> Indices:
        """The original's input features that ``slot`` has."""
        return self._side(slot, 1)

    def _side(self, slot: str, side: int) -> Indices:
        layer = self.layers[layer_index(slot)]
        what = AXES[within_layer(slot)][side]
        if what == "channels":
            return self.channels
        if what == "neurons":
            return layer.neurons
        per_head = self.original.heads // self.original.kv_heads if what == "queries" else 1
        width = per_head * self.original.head_dim
        return (layer.heads[:, None] * width + np.arange(width)).reshape(-1)

    @property
    def original_slot_shapes(self) -> dict[str, tuple[int, int]]:
        """Slot name → (out features, in features) of the original."""
        w = self.original
        shapes = slot_shapes_of(w.hidden, w.head_dim, w.heads, w.kv_heads, w.mlp)
        return {f"layers.{layer}.{name}": shape for layer in range(w.layers) for name, shape in shapes.items()}

    def widths(self, layer: KeptLayer, biases: list[str]) -> LayerWidths:
        """The sizes of one of the layers."""
        count = len(layer.heads)
        return LayerWidths(
            source=layer.source,
            heads=count * (self.original.heads // self.original.kv_heads),
            kv_heads=count,
            mlp=len(layer.neurons),
            biases=biases,
        )


def write_kept(kept: Kept, folder: Path) -> str:
    """Write ``kept.safetensors``, true where a part is kept; returns its sha256.

    Where neurons do not stand in their old order, ``layers.N.order`` says where each stood among those that are left.
    """
    tensors: dict[str, NDArray[Any]] = {"channels": _mask(kept.channels, kept.original.hidden)}
    for number, layer in enumerate(kept.layers):
        tensors[f"layers.{number}.heads"] = _mask(layer.heads, kept.original.kv_heads)
        tensors[f"layers.{number}.neurons"] = _mask(layer.neurons, kept.original.mlp)
        order = np.argsort(np.argsort(layer.neurons)).astype(np.int32)
        if (np.diff(order) != 1).any():
            tensors[f"layers.{number}.order"] = order
    save_file(tensors, folder / KEPT_NAME)
    return file_sha256(folder / KEPT_NAME)


def _mask(indices: Indices, width: int) -> NDArray[np.bool_]:
    mask = np.zeros(width, np.bool_)
    mask[indices] = True
    return mask


def read_kept(folder: Path, pruned: Pruned) -> Kept:
    """Read what a pruned base has kept.

    Raises:
        FormatError: the file is missing, or not the one that the base's record was written with.
    """
    path, original = folder / KEPT_NAME, pruned.original
    tensors = open_tensors(path)
    if file_sha256(path) != pruned.kept_sha256:
        raise FormatError(
            f"{path} has changed since it was written: it is not that of regraft.json",
            hint="Compress the base again.",
        )
    layers = tuple(
        KeptLayer(
            layer.source,
            _indices(tensors, f"layers.{number}.heads", original.kv_heads, layer.kv_heads),
            _neurons(tensors, number, original.mlp, layer.mlp),
        )
        for number, layer in enumerate(pruned.layers)
    )
    return Kept(original, layers, _indices(tensors, "channels", original.hidden, pruned.hidden))


def _indices(tensors: Tensors, name: str, width: int, count: int) -> Indices:
    indices = np.flatnonzero(tensors.expect(name, "BOOL", (width,)))
    if len(indices) != count:
        raise FormatError(
            f"{tensors.path}: {name}", expected=f"{count} kept, as regraft.json says", found=str(len(indices))
        )
    return indices


def _neurons(tensors: Tensors, layer: int, width: int, count: int) -> Indices:
    neurons = _indices(tensors, f"layers.{layer}.neurons", width, count)
    name = f"layers.{layer}.order"
    if name not in tensors:
        return neurons
    order = tensors.expect(name, "I32", (count,))
    if not np.array_equal(np.sort(order), np.arange(count)):
        raise FormatError(f"{tensors.path}: {name}", expected=f"each of {count} places once", found="something else")
    return neurons[order]
