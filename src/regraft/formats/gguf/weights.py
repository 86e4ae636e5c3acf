"""The weights of a GGUF file under the names and in the row order of ``transformers``.

    Q4_0   scale * (code - 8)          Q4_1   scale * code + minimum          Q8_0   scale * (code - 128)

in groups of 32 are taken as they are, codes and all; other types are turned into floats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.formats.gguf.family import family_of, gguf_config, parameter_names
from regraft.formats.gguf.file import BF16, F16, F32, Q4_0, Q4_1, Q8_0, GgufFile, GgufTensor
from regraft.formats.safetensors_file import widen_bfloat16
from regraft.formats.weights import Affine, Dense, Entry, Weight, Weights

GROUP = 32
_FLOATS = {F32: "<f4", F16: "<f2"}
_AFFINE = (Q4_0, Q4_1, Q8_0)

Rows = Callable[[NDArray[Any]], NDArray[Any]]


def open_gguf(file: GgufFile) -> Weights:
    """Open the weights of a GGUF file.

    Raises:
        FormatError: a family that is not read here, or a tensor that has no place in it.
    """
    family, names = family_of(file), parameter_names(file)
    config = gguf_config(file)
    heads = config.get("num_attention_heads")
    per_module = {"attn_q": heads, "attn_k": config.get("num_key_value_heads", heads)}
    entries = {}
    for parameter, name in names.items():
        tensor = file.tensors[name]
        paired = per_module.get(name.split(".")[-2]) if family.interleaved else None
        rows = _whole if paired is None else _halves(file, tensor, paired)
        minus = 1 if family.norms_plus_one and name.endswith("norm.weight") else 0
        entries[parameter] = _entry(file, tensor, rows, minus)
    return Weights(file.path, config, entries)


def _entry(file: GgufFile, tensor: GgufTensor, rows: Rows, minus: int) -> Entry:
    def read() -> Weight:
        if tensor.kind in _AFFINE and len(tensor.shape) == 2:
            return _affine(file, tensor, rows)
        values = rows(_floats(file, tensor).reshape(tensor.shape))
        _check(file, tensor, values)
        return Dense(values - np.float32(minus) if minus else values)

    return Entry(tensor.shape, read)


def _affine(file: GgufFile, tensor: GgufTensor, rows: Rows) -> Affine:
    out, width = tensor.shape
    blocks = file.bytes_of(tensor).reshape(out, width // GROUP, -1)
    scale = _half(blocks, 0)
    _check(file, tensor, scale)
    if tensor.kind == Q8_0:
        codes = (blocks[..., 2:] ^ 128).reshape(out, width)  # int8 + 128
        return Affine(rows(codes), rows(scale), 8, GROUP)
    minimum = None
    if tensor.kind == Q4_1:
        minimum = _half(blocks, 2)
        _check(file, tensor, minimum)
        minimum = rows(minimum)
    nibbles = blocks[..., -GROUP // 2 :]
    codes = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(out, width)
    return Affine(rows(codes), rows(scale), 4, GROUP, minimum=minimum)


def _half(blocks: NDArray[np.uint8], start: int) -> NDArray[np.float16]:
    return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0]


def _floats(file: GgufFile, tensor: GgufTensor) -> NDArray[Any]:
    data = file.bytes_of(tensor)
    if tensor.kind in _FLOATS:
        return np.require(data.view(_FLOATS[tensor.kind]), requirements="A")  # a file may align to less than a float
    if tensor.kind == BF16:
        return widen_bfloat16(data.view("<u2"))
    from gguf import GGMLQuantizationType, dequantize  # a third of a second, for rarer types only

    try:
        return dequantize(data, GGMLQuantizationType(tensor.kind))
    except NotImplementedError:
        kind = GGMLQuantizationType(tensor.kind).name
        raise FormatError(f"{file.path}: tensor {tensor.name} is of type {kind}, which cannot be read") from None


def _check(file: GgufFile, tensor: GgufTensor, values: NDArray[Any]) -> None:
    if not np.isfinite(values).all():
        raise FormatError(f"{file.path}: tensor {tensor.name}", expected="finite values", found="inf or nan")


def _whole(array: NDArray[Any]) -> NDArray[Any]:
    return array


def _halves(file: GgufFile, tensor: GgufTensor, heads: Any) -> Rows:
    """Undo the pairing of a head's rows: ``0 1 2 3 … → 0 2 … 1 3 …``."""
    out = tensor.shape[0]
    if type(heads) is not int or heads < 1 or out % (2 * heads):
        raise FormatError(f"{file.path}: tensor {tensor.name}", expected=f"rows of {heads} heads", found=f"{out} rows")

    def rows(array: NDArray[Any]) -> NDArray[Any]:
        pairs = array.reshape(heads, out // heads // 2, 2, *array.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(array.shape)

    return rows
