"""Weights of 8-bit floats with a scale per block, as DeepSeek V3 has them (2024, arXiv 2412.19437, section 3.3).

    weight[o, i] = value[o, i] * weight_scale_inv[o // 128, i // 128]

``transformers`` calls this ``fp8``. Activations are rounded too while such a base is served; here they are not.
"""

from __future__ import annotations

import numpy as np

from regraft.errors import FormatError
from regraft.formats.quantized.entries import OF_ACTIVATIONS, Settings, dense_entry, expect_blocks, finite
from regraft.formats.safetensors_file import FLOAT8, Array, Tensors
from regraft.formats.weights import Dense, Entry

_SCALE = "_scale_inv"


def fp8_entries(tensors: Tensors, settings: Settings) -> dict[str, Entry]:
    """Parameter name → entry.

    Raises:
        FormatError: a weight without its scales, or scales that do not fit it.
    """
    block = settings.get("weight_block_size")
    if not (isinstance(block, list) and len(block) == 2 and all(type(n) is int and n > 0 for n in block)):
        raise FormatError(f"{tensors.path}: weight_block_size", expected="two whole numbers", found=repr(block)[:60])
    entries = {}
    for name in tensors:
        if tensors.info(name).dtype in FLOAT8:
            entries[name] = _entry(tensors, name, (block[0], block[1]))
        elif not name.endswith((_SCALE, *OF_ACTIVATIONS)) or name.removesuffix(_SCALE) not in tensors:
            entries[name] = dense_entry(tensors, name)
    return entries


def _entry(tensors: Tensors, name: str, block: tuple[int, int]) -> Entry:
    shape = tensors.info(name).shape
    if len(shape) != 2:
        raise FormatError(f"{tensors.path}: tensor {name}", expected="rows and columns", found=str(tensors.info(name)))
    expect_blocks(tensors, name + _SCALE, (-(-shape[0] // block[0]), -(-shape[1] // block[1])))
    return Entry(shape, lambda: Dense(in_blocks(finite(tensors, name), finite(tensors, name + _SCALE), block)))


def in_blocks(values: Array, scale: Array, block: tuple[int, int]) -> Array:
    """``values [out, in]`` times the scale of their block; the last blocks may be smaller."""
    rows, columns = (np.arange(size) // step for size, step in zip(values.shape, block, strict=True))
    return values * scale.astype(np.float32)[np.ix_(rows, columns)]
