"""Directories that ``mlx_lm.convert -q`` writes: ``mlx.core.quantize`` in its mode ``affine``.

    weight[o, i] = scales[o, g] * code[o, i] + biases[o, g],   g = i // group_size

The codes of a row are one stream in uint32 words, least significant bits first.
"""

from __future__ import annotations

import numpy as np

from regraft.errors import FormatError
from regraft.formats.quantized.codes import unpack
from regraft.formats.quantized.entries import Settings, affine, bits_of, dense_entry, expect_blocks, finite
from regraft.formats.safetensors_file import Tensors
from regraft.formats.weights import Entry, Weight


def mlx_entries(tensors: Tensors, settings: Settings) -> dict[str, Entry]:
    """Parameter name → entry.

    Raises:
        FormatError: another mode, or tensors that do not fit each other.
    """
    modes = {own.get("mode", "affine") for own in (settings, *settings.values()) if isinstance(own, dict)}
    if other := sorted(map(str, modes - {"affine"})):
        raise FormatError(f"{tensors.path}: quantised by mlx", expected="mode affine", found=other[0])
    entries = {}
    for name in tensors:
        path, _, leaf = name.rpartition(".")
        if f"{path}.scales" not in tensors:
            entries[name] = dense_entry(tensors, name)
        elif leaf == "weight":
            entries[name] = _entry(tensors, path, settings)
        elif leaf not in ("scales", "biases"):
            entries[name] = dense_entry(tensors, name)
    return entries


def _entry(tensors: Tensors, path: str, settings: Settings) -> Entry:
    own = settings.get(path)
    group_size = (own if isinstance(own, dict) else settings).get("group_size")
    scales, packed = tensors.info(f"{path}.scales"), tensors.info(f"{path}.weight")
    if type(group_size) is not int or group_size < 1 or len(scales.shape) != 2 or len(packed.shape) != 2:
        raise FormatError(
            f"{tensors.path}: module {path}", expected="weight [out, words], scales [out, G]", found=str(packed)
        )
    out, groups = scales.shape
    words, width = packed.shape[1], groups * group_size
    bits = bits_of(tensors, f"{path}.weight", words, width)
    tensors.expect(f"{path}.weight", "U32", (out, words))
    expect_blocks(tensors, f"{path}.biases", (out, groups))
    return Entry((out, width), lambda: _read(tensors, path, bits, width))


def _read(tensors: Tensors, path: str, bits: int, width: int) -> Weight:
    codes = unpack(tensors.stored(f"{path}.weight").view(np.int32), bits, width)
    scale, minimum = (finite(tensors, f"{path}.{part}") for part in ("scales", "biases"))
    return affine(codes, scale, bits, minimum=minimum)
