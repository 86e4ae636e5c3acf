"""A base's parameters as they are stored, one at a time: quantised ones as codes, scales and offsets, others as floats.

Whatever the base is stored as, parameters have the names and the row order of its ``transformers`` model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.formats.slots import slot_of

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Dense:
    """A parameter that is not quantised: ``array`` is float16 or float32, perhaps a view of a mapped file."""

    array: NDArray[Any]

    def dense(self) -> NDArray[np.float32]:
        """The values, float32."""
        return self.array.astype(np.float32, copy=False)


@dataclass(frozen=True)
class Affine:
    """A quantised weight, with ``g = i // group_size``.

        weight[o, i] = scale[o, g] * (codes[o, i] - zero[o, g])     or     scale[o, g] * codes[o, i] + minimum[o, g]

    Attributes:
        codes: uint8 ``[out, in]``, each in ``[0, 2**bits)``.
        scale: float16 ``[out, G]``.
        bits: 2 to 8.
        group_size: input columns that share a scale; it divides ``in``.
        zero: uint8 ``[out, G]``; None for ``2**(bits-1)`` throughout, unless there is a ``minimum``.
        minimum: float16 ``[out, G]``, or None.
    """

    codes: NDArray[np.uint8]
    scale: NDArray[np.float16]
    bits: int
    group_size: int
    zero: NDArray[np.uint8] | None = None
    minimum: NDArray[np.float16] | None = None

    def dense(self) -> NDArray[np.float32]:
        """The weight, float32 ``[out, in]``."""
        out, groups = self.scale.shape
        weight = self.codes.reshape(out, groups, self.group_size).astype(np.float32)
        if self.minimum is None:
            weight -= np.float32(1 << (self.bits - 1)) if self.zero is None else _spread(self.zero)
        weight *= _spread(self.scale)
        if self.minimum is not None:
            weight += _spread(self.minimum)
        return weight.reshape(out, -1)


def _spread(by_group: NDArray[Any]) -> NDArray[np.float32]:
    return by_group.astype(np.float32)[:, :, None]


Weight = Dense | Affine


@dataclass(frozen=True)
class Entry:
    """One parameter on disk: its shape, and how to read it."""

    shape: tuple[int, ...]
    read: Callable[[], Weight]


class Weights:
    """The parameters of a base, each read when it is asked for; a tied head is not one.

    Attributes:
        path: the file that errors name.
        config: the Hugging Face config; ``tie_word_embeddings`` says what the files hold.
        fingerprint: that of a compressed base's record; None for any other.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], entries: Mapping[str, Entry], fingerprint: str | None = None
    ) -> None:
        self.path, self.config, self.fingerprint = path, config, fingerprint
        self._entries = entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __getitem__(self, name: str) -> Weight:
        """Read one parameter.

        Raises:
            FormatError: there is no such parameter, or what is stored is damaged.
        """
        return self._entry(name).read()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a parameter, which is not read.

        Raises:
            FormatError: there is no such parameter.
        """
        return self._entry(name).shape

    @property
    def slot_paths(self) -> dict[str, str]:
        """Slot name → module path."""
        paths = [
            name.removesuffix(".weight") for name in self if name.endswith(".weight") and len(self.shape(name)) == 2
        ]
        return {slot: path for path in paths if (slot := slot_of(path)) is not None}

    @property
    def slot_shapes(self) -> dict[str, tuple[int, int]]:
        """Slot name → (out features, in features)."""
        shapes = {slot: self.shape(f"{path}.weight") for slot, path in self.slot_paths.items()}
        return {slot: (shape[0], shape[1]) for slot, shape in shapes.items()}

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Hold the parameters against those of a model.

        Raises:
            FormatError: one is missing, too many, or of another shape.
        """
        if lacking := [name for name in shapes if name not in self]:
            raise missing(self.path, lacking, self)
        for name, shape in sorted(shapes.items()):
            if self.shape(name) != shape:
                raise FormatError(
                    f"{self.path}: tensor {name}", expected=f"shape {list(shape)}", found=str(list(self.shape(name)))
                )
        if extra := sorted(name for name in self if name not in shapes):
            raise FormatError(f"{self.path}: tensor {extra[0]} belongs to nothing in the model")

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise missing(self.path, [name], self)
        return self._entries[name]


def missing(path: Path, wanted: Sequence[str], names: Iterable[str]) -> FormatError:
    """The error for parameters that no tensor is named after; where one has another prefix, that is said."""
    there, wanted = sorted(names), sorted(wanted)
    for name in wanted:
        other = next((other for other in there if other.endswith(f".{name}") or name.endswith(f".{other}")), None)
        if other is not None:
            hint = f"There is a tensor {other}: are these weights another model's?"
            return FormatError(f"{path}: tensor {name} is missing", hint=hint)
    return FormatError(f"{path}: tensor {wanted[0]} is missing")
