"""Pieces that all readers of quantised bases share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.formats.safetensors_file import Tensors
from regraft.formats.weights import Affine, Dense, Entry, Weight

Settings = Mapping[str, Any]
Array = NDArray[Any]

# Scales of activations and of cached keys and values: they say how a server rounds while it computes, not what the
# weights are. Here activations stay as they are, which is what such a base stands for.
OF_ACTIVATIONS = tuple(
    f".{of}_{what}"
    for of in ("input", "output", "q", "k", "v", "kv_cache", "attn_output")
    for what in ("scale", "zero_point", "global_scale", "observer")
)


def dense_entry(tensors: Tensors, name: str) -> Entry:
    """The entry of a parameter that is stored as it is."""
    return Entry(tensors.info(name).shape, lambda: Dense(finite(tensors, name)))


def finite(tensors: Tensors, name: str) -> Array:
    """A tensor of floats.

    Raises:
        FormatError: it is missing, of whole numbers, or not finite throughout.
    """
    values = tensors.floats(name)
    if not np.isfinite(values).all():
        raise FormatError(f"{tensors.path}: tensor {name}", expected="finite values", found="inf or nan")
    return values


def by_module(tensors: Tensors, parts: Iterable[str], of_module: Callable[[str], Entry]) -> dict[str, Entry]:
    """Parameter name → entry, where the parts of a quantised weight stand beside each other under their module's name.

    Args:
        tensors: of the directory.
        parts: the endings of their names (``.qweight``).
        of_module: module path → the entry of its weight.
    """
    entries: dict[str, Entry] = {}
    for name in tensors:
        path = next((name.removesuffix(part) for part in parts if name.endswith(part)), None)
        if path is not None:
            if f"{path}.weight" not in entries:
                entries[f"{path}.weight"] = of_module(path)
        elif not name.endswith(OF_ACTIVATIONS):
            entries[name] = dense_entry(tensors, name)
    return entries


def affine(
    codes: Array,
    scale: Array,
    bits: int,
    zero: Array | None = None,
    minimum: Array | None = None,
    *,
    group_of: Array | None = None,
) -> Weight:
    """``scale * (codes - zero)`` or ``scale * codes + minimum``, dense only where codes cannot say it.

    That is where float16 does not hold the floats, or where columns of a group do not stand together.

    Args:
        codes: uint8 ``[out, in]``.
        scale: floats ``[out, G]``.
        bits: 2 to 8.
        zero: whole numbers ``[out, G]``; None for ``2**(bits-1)``.
        minimum: floats ``[out, G]``.
        group_of: ``[in]``, the group of each column; None for groups of one size, one after the other.
    """
    width, groups = codes.shape[1], scale.shape[1]
    side_by_side = np.arange(width) // max(width // groups, 1)
    if group_of is None:
        group_of = side_by_side
    scale_half, minimum_half = _half(scale), None if minimum is None else _half(minimum)
    if (
        scale_half is not None
        and (minimum is None or minimum_half is not None)
        and width % groups == 0
        and np.array_equal(group_of, side_by_side)
    ):
        small = None if zero is None else np.ascontiguousarray(zero, np.uint8)
        return Affine(codes, scale_half, bits, width // groups, small, minimum_half)

    def by_column(values: Array) -> NDArray[np.float32]:
        return values.astype(np.float32)[:, group_of]

    if minimum is not None:
        return Dense(codes * by_column(scale) + by_column(minimum))
    middle = np.float32(1 << (bits - 1)) if zero is None else by_column(zero)
    return Dense((codes - middle) * by_column(scale))


def _half(values: Array) -> NDArray[np.float16] | None:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, np.float16)
    return half if np.array_equal(half.astype(np.float32), values) else None


def expect_blocks(tensors: Tensors, name: str, shape: tuple[int, int]) -> None:
    """Raise FormatError unless a tensor of floats has this shape."""
    info = tensors.info(name)
    if info.shape != shape:
        raise FormatError(f"{tensors.path}: tensor {name}", expected=f"shape {list(shape)}", found=str(info))


def check_groups(tensors: Tensors, name: str, group_of: Array, groups: int) -> None:
    """Raise FormatError unless each column's group is one of ``groups``."""
    if len(group_of) and not 0 <= group_of.min() <= group_of.max() < groups:
        raise FormatError(
            f"{tensors.path}: tensor {name}",
            expected=f"groups below {groups}",
            found=f"{group_of.min()} to {group_of.max()}",
        )


def bits_of(tensors: Tensors, name: str, words: int, count: int) -> int:
    """How wide codes are, ``count`` of which fill ``words`` words of 32 bits.

    Raises:
        FormatError: no width from 2 to 8 does.
    """
    bits = 32 * words // count if count else 0
    if not 2 <= bits <= 8 or bits * count != 32 * words:
        raise FormatError(
            f"{tensors.path}: tensor {name}", expected=f"{count} codes of 2 to 8 bits", found=f"{32 * words} bits"
        )
    return bits
