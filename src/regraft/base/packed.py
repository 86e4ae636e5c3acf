"""Read the weights of a directory whose ``quantization_config`` says what is packed, and on what grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.base.packing import packed_length, unpack
from regraft.base.scheme import Scheme, scheme_of
from regraft.base.tensors import Tensors
from regraft.base.weights import Affine, Dense, Entry
from regraft.errors import FormatError

_PARTS = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point")


def packed_entries(tensors: Tensors, packing: Mapping[str, Any]) -> dict[str, Entry]:
    """Parameter name → entry, packed or not.

    Args:
        tensors: of the directory.
        packing: the ``quantization_config``.

    Raises:
        FormatError: the configuration is not understood, or is not that of these tensors.
    """
    entries: dict[str, Entry] = {}
    for name in tensors:
        path, part = _split(name)
        scheme = _scheme(tensors, packing, path, part)
        if scheme is not None:
            entries.setdefault(f"{path}.weight", _packed_entry(tensors, path, scheme))
        elif part is not None:
            raise FormatError(f"{tensors.path}: tensor {name}", found="a module that is not packed by config.json")
        else:
            entries[name] = dense_entry(tensors, name)
    return entries


def is_packed(name: str) -> bool:
    """Whether a tensor's name is that of a part of a packed weight."""
    return name.endswith(_PARTS)


def dense_entry(tensors: Tensors, name: str) -> Entry:
    """The entry of a parameter that is stored as it is."""
    return Entry(tensors.info(name).shape, lambda: Dense(_finite(tensors, name)))


def _split(name: str) -> tuple[str, str | None]:
    """A module path, and which part of its packed weight the name is, if it is one."""
    for part in _PARTS:
        if name.endswith(part):
            return name.removesuffix(part), part
    return name.removesuffix(".weight"), None


def _scheme(tensors: Tensors, packing: Mapping[str, Any], path: str, part: str | None) -> Scheme | None:
    """The scheme of the module that a tensor belongs to, if its weight is packed."""
    if part is None and not (f"{path}.weight" in tensors and len(tensors.info(f"{path}.weight").shape) == 2):
        return None  # a norm or a bias: what the configuration means by "Linear" has rows and columns
    return scheme_of(packing, path, "Embedding" if path.endswith("embed_tokens") else "Linear")


def _packed_entry(tensors: Tensors, path: str, scheme: Scheme) -> Entry:
    out, width = tensors.expect(f"{path}.weight_shape", "I64", (2,)).tolist()
    group_size = scheme.group_size or width
    if not 2 <= scheme.bits <= 8:
        raise FormatError(f"{tensors.path}: module {path}", expected="2 to 8 bits", found=str(scheme.bits))
    if group_size < 1 or width % group_size:
        raise FormatError(
            f"{tensors.path}: module {path}", expected=f"a group size that divides {width}", found=str(group_size)
        )
    # Sizes are held against the tensors that are there before anything is made of them.
    tensors.expect(f"{path}.weight_packed", "I32", (out, packed_length(width, scheme.bits)))
    tensors.expect(f"{path}.weight_scale", "F16", (out, width // group_size))
    if not scheme.symmetric:
        tensors.expect(f"{path}.weight_zero_point", "I32", (packed_length(out, scheme.bits), width // group_size))
    return Entry((out, width), lambda: _read(tensors, path, (out, width), scheme.bits, group_size, scheme.symmetric))


def _read(tensors: Tensors, path: str, shape: tuple[int, int], bits: int, group_size: int, symmetric: bool) -> Affine:
    out, width = shape
    zero = None
    if not symmetric:
        packed = tensors.stored(f"{path}.weight_zero_point")
        zero = np.ascontiguousarray(unpack(packed.T, bits, out).T)
    codes = unpack(tensors.stored(f"{path}.weight_packed"), bits, width)
    return Affine(codes, _finite(tensors, f"{path}.weight_scale"), bits, group_size, zero)


def _finite(tensors: Tensors, name: str) -> NDArray[Any]:
    values = tensors.floats(name)
    if not np.isfinite(values).all():
        raise FormatError(f"{tensors.path}: tensor {name}", expected="finite values", found="inf or nan")
    return values
