"""Directories in the formats of compressed-tensors: regraft's own, and those of llm-compressor and vLLM.

    pack-quantized     codes of 2 to 8 bits in int32 words, as :mod:`regraft.formats.quantized.codes` says
    int-quantized      int8 codes, as they are          weight = (code - zero) * scale
    float-quantized    8-bit floats                     weight = value * scale
    naive-quantized    either of the two

Scales belong to a row, a group of columns, a block, or the whole weight. What such a base says of activations
(``W8A8``) is passed over: here they stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.formats.quantized.codes import packed_length, unpack
from regraft.formats.quantized.compressed_tensors_config import Scheme, group_of, group_scheme
from regraft.formats.quantized.entries import OF_ACTIVATIONS, Settings, affine, check_groups, dense_entry, finite
from regraft.formats.quantized.fp8 import in_blocks
from regraft.formats.safetensors_file import FLOAT8, Tensors
from regraft.formats.weights import Dense, Entry, Weight

_PACKED = "pack-quantized"
_PLAIN = ("int-quantized", "float-quantized", "naive-quantized")
_GROUPS = ".weight_g_idx"
_PARTS = (".weight_packed", ".weight_scale", ".weight_shape", ".weight_zero_point", _GROUPS)


def compressed_tensors_entries(tensors: Tensors, settings: Settings) -> dict[str, Entry]:
    """Parameter name → entry, quantised or not.

    Args:
        tensors: of the directory.
        settings: the ``quantization_config``.

    Raises:
        FormatError: the configuration is not understood, or is not that of these tensors.
    """
    _refuse_what_changes_weights(settings)
    entries: dict[str, Entry] = {}
    for name in tensors:
        path, part = _split(name)
        group = _group(tensors, settings, path, part)
        if group is not None:
            if f"{path}.weight" not in entries:
                entries[f"{path}.weight"] = _entry(tensors, path, group, settings)
        elif part is not None:
            raise FormatError(f"{tensors.path}: tensor {name}", found="a module that is not packed by config.json")
        elif not name.endswith(OF_ACTIVATIONS):
            entries[name] = dense_entry(tensors, name)
    return entries


def is_packed(name: str) -> bool:
    """Whether a tensor's name is that of a part of a packed weight."""
    return name.endswith(_PARTS)


def _refuse_what_changes_weights(settings: Settings) -> None:
    """Sparse weights are stored apart, and rotations are undone while the model runs: neither is read here."""
    sparse = settings.get("sparsity_config") or {}
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        raise FormatError("quantization_config: sparsity_config", expected="format dense", found=repr(sparse["format"]))
    if settings.get("transform_config"):
        raise FormatError("quantization_config: transform_config", expected="none", found="transforms of weights")


def _split(name: str) -> tuple[str, str | None]:
    """A module path, and which part of its quantised weight the name is, if it is one."""
    for part in _PARTS:
        if name.endswith(part):
            return name.removesuffix(part), part
    return name.removesuffix(".weight"), None


def _group(tensors: Tensors, settings: Settings, path: str, part: str | None) -> dict[str, Any] | None:
    """The config group of the module that a tensor belongs to, if its weight is quantised."""
    if part is None and not (f"{path}.weight" in tensors and len(tensors.info(f"{path}.weight").shape) == 2):
        return None  # a norm or a bias: what the configuration means by "Linear" has rows and columns
    return group_of(settings, path, "Embedding" if path.endswith("embed_tokens") else "Linear")


def _entry(tensors: Tensors, path: str, group: dict[str, Any], settings: Settings) -> Entry:
    stored = group.get("format") or settings["format"]
    if stored == _PACKED:
        return _packed_entry(tensors, path, group_scheme(group))
    if stored in _PLAIN:
        return _plain_entry(tensors, path, group)
    raise FormatError(
        "quantization_config",
        expected=f"compressed-tensors in one of the formats {', '.join((_PACKED, *_PLAIN))}",
        found=f"the format {stored}",
    )


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
    _expect_scales(tensors, path, (out, width // group_size))
    if not scheme.symmetric:
        tensors.expect(f"{path}.weight_zero_point", "I32", (packed_length(out, scheme.bits), width // group_size))
    if (group_of := _groups_of(tensors, path, width)) is not None:
        check_groups(tensors, f"{path}{_GROUPS}", group_of, width // group_size)
    return Entry((out, width), lambda: _read_packed(tensors, path, (out, width), scheme))


def _expect_scales(tensors: Tensors, path: str, shape: tuple[int, int]) -> None:
    """Scales are floats of any width; for float16, what regraft itself writes, errors name the type too."""
    info = tensors.info(f"{path}.weight_scale")
    kind = info.dtype if info.dtype in ("BF16", "F32") else "F16"
    tensors.expect(f"{path}.weight_scale", kind, shape)


def _groups_of(tensors: Tensors, path: str, width: int) -> NDArray[Any] | None:
    """The group of each column, where these do not stand together; -1 throughout says that they do."""
    if f"{path}{_GROUPS}" not in tensors:
        return None
    group_of = tensors.expect(f"{path}{_GROUPS}", "I32", (width,))
    return None if (group_of == -1).all() else group_of


def _read_packed(tensors: Tensors, path: str, shape: tuple[int, int], scheme: Scheme) -> Weight:
    out, width = shape
    zero = None
    if not scheme.symmetric:
        packed = tensors.stored(f"{path}.weight_zero_point")
        zero = np.ascontiguousarray(unpack(packed.T, scheme.bits, out).T)
    codes = unpack(tensors.stored(f"{path}.weight_packed"), scheme.bits, width)
    scale = finite(tensors, f"{path}.weight_scale")
    return affine(codes, scale, scheme.bits, zero, group_of=_groups_of(tensors, path, width))


def _plain_entry(tensors: Tensors, path: str, group: dict[str, Any]) -> Entry:
    name, info = f"{path}.weight", tensors.info(f"{path}.weight")
    if info.dtype != "I8" and info.dtype not in FLOAT8:
        raise FormatError(f"{tensors.path}: tensor {name}", expected="int8 or 8-bit floats", found=str(info))
    shape, scale = (info.shape[0], info.shape[1]), tensors.info(f"{path}.weight_scale").shape
    block = _block(shape, scale, group["weights"].get("block_structure"))
    if block is None:
        where = f"{tensors.path}: tensor {path}.weight_scale"
        raise FormatError(where, expected=f"scales of a weight {list(shape)}", found=str(scale))
    return Entry(shape, lambda: _read_plain(tensors, path, block))


def _block(shape: tuple[int, int], scale: tuple[int, ...], stated: Any) -> tuple[int, int] | None:
    """Rows and columns that share a scale."""
    if scale in ((), (1,)):
        return max(shape[0], 1), max(shape[1], 1)
    if stated is not None and isinstance(stated, list) and len(stated) == 2 and min(stated) > 0:
        fits = scale == (-(-shape[0] // stated[0]), -(-shape[1] // stated[1]))
        return (stated[0], stated[1]) if fits else None
    if len(scale) == 1:
        scale = (scale[0], 1)
    return (1, shape[1] // scale[1]) if scale[0] == shape[0] and scale[1] and shape[1] % scale[1] == 0 else None


def _read_plain(tensors: Tensors, path: str, block: tuple[int, int]) -> Weight:
    scale = finite(tensors, f"{path}.weight_scale")
    info = tensors.info(f"{path}.weight")
    scale = scale.reshape(-(-info.shape[0] // block[0]), -(-info.shape[1] // block[1]))
    zeros = f"{path}.weight_zero_point"
    if info.dtype in FLOAT8:
        return Dense(in_blocks(finite(tensors, f"{path}.weight"), scale, block))
    codes = tensors.stored(f"{path}.weight").astype(np.int16)
    zero = tensors.stored(zeros).astype(np.int16).reshape(scale.shape) if zeros in tensors else None
    if block[0] == 1:
        return affine((codes + 128).astype(np.uint8), scale, 8, None if zero is None else (zero + 128).astype(np.uint8))
    centred = codes if zero is None else codes - in_blocks(np.ones(info.shape, np.float32), zero, block)
    return Dense(in_blocks(centred.astype(np.float32), scale, block))
