"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them (Frantar et al. 2022, arXiv 2210.17323).

    weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]),   g = g_idx[i]

``qweight`` holds the codes ``[in * bits / 32, out]`` of int32, least significant bits first down a column; ``qzeros``
the zeros ``[G, out * bits / 32]`` along a row, less one in the format ``gptq``, as they are in ``gptq_v2``.
"""

from __future__ import annotations

import numpy as np

from regraft.errors import FormatError
from regraft.formats.quantized.codes import unpack
from regraft.formats.quantized.entries import Settings, affine, bits_of, by_module, check_groups, finite
from regraft.formats.safetensors_file import Tensors
from regraft.formats.weights import Entry, Weight

_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")
_ZEROS_LESS = {"gptq": 1, "gptq_v2": 0}


def gptq_entries(tensors: Tensors, settings: Settings) -> dict[str, Entry]:
    """Parameter name → entry.

    Raises:
        FormatError: another way of packing, or tensors that do not fit each other.
    """
    packed = settings.get("checkpoint_format") or "gptq"
    if packed not in _ZEROS_LESS:
        raise FormatError(
            f"{tensors.path}: checkpoint_format", expected=f"one of {', '.join(_ZEROS_LESS)}", found=repr(packed)
        )
    return by_module(tensors, _PARTS, lambda path: _entry(tensors, path, _ZEROS_LESS[packed]))


def _entry(tensors: Tensors, path: str, less: int) -> Entry:
    index, scales = tensors.info(f"{path}.g_idx"), tensors.info(f"{path}.scales")
    if len(index.shape) != 1 or len(scales.shape) != 2:
        raise FormatError(f"{tensors.path}: module {path}", expected="g_idx [in], scales [G, out]", found=str(scales))
    width, (groups, out) = index.shape[0], scales.shape
    words = tensors.info(f"{path}.qweight").shape[0]
    bits = bits_of(tensors, f"{path}.qweight", words, width)
    tensors.expect(f"{path}.qweight", "I32", (words, out))
    tensors.expect(f"{path}.qzeros", "I32", (groups, out * bits // 32))
    group_of = tensors.expect(f"{path}.g_idx", "I32", (width,))
    check_groups(tensors, f"{path}.g_idx", group_of, groups)
    return Entry((out, width), lambda: _read(tensors, path, bits, less))


def _read(tensors: Tensors, path: str, bits: int, less: int) -> Weight:
    scale, group_of = finite(tensors, f"{path}.scales").T, tensors.stored(f"{path}.g_idx")
    codes = unpack(tensors.stored(f"{path}.qweight").T, bits, len(group_of))
    zero = unpack(tensors.stored(f"{path}.qzeros"), bits, len(scale)).T
    zero = (zero + np.uint8(less)) & np.uint8((1 << bits) - 1)  # what was 0 went round
    return affine(codes, scale, bits, zero, group_of=group_of)
