"""AWQ checkpoints as AutoAWQ's GEMM version writes them (Lin et al. 2023, arXiv 2306.00978).

    weight[o, i] = scales[g, o] * (code[i, o] - zero[g, o]),   g = i // group_size

``qweight [in, out / 8]`` and ``qzeros [G, out / 8]`` are int32 of eight 4-bit codes each; code n of a word is that of
output row ``_ORDER[n]`` of the word's eight.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.formats.quantized.codes import unpack
from regraft.formats.quantized.entries import Settings, affine, by_module, expect_blocks, finite
from regraft.formats.safetensors_file import Tensors
from regraft.formats.weights import Entry, Weight

_PARTS = (".qweight", ".qzeros", ".scales")
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_BITS, _EACH = 4, 8


def awq_entries(tensors: Tensors, settings: Settings) -> dict[str, Entry]:
    """Parameter name → entry.

    Raises:
        FormatError: another version or width, or tensors that do not fit each other.
    """
    version = str(settings.get("version") or "gemm").lower()
    bits = settings.get("bits", settings.get("w_bit", _BITS))
    if version != "gemm" or bits != _BITS:
        raise FormatError(
            f"{tensors.path}: quantised by awq", expected="version gemm of 4 bits", found=f"{version} of {bits}"
        )
    return by_module(tensors, _PARTS, lambda path: _entry(tensors, path))


def _entry(tensors: Tensors, path: str) -> Entry:
    codes, zeros = tensors.info(f"{path}.qweight"), tensors.info(f"{path}.qzeros")
    if len(codes.shape) != 2 or len(zeros.shape) != 2 or not zeros.shape[0] or codes.shape[0] % zeros.shape[0]:
        raise FormatError(f"{tensors.path}: module {path}", expected="groups that divide its columns", found=str(zeros))
    (width, words), groups = codes.shape, zeros.shape[0]
    tensors.expect(f"{path}.qweight", "I32", (width, words))
    tensors.expect(f"{path}.qzeros", "I32", (groups, words))
    expect_blocks(tensors, f"{path}.scales", (groups, words * _EACH))
    return Entry((words * _EACH, width), lambda: _read(tensors, path))


def _read(tensors: Tensors, path: str) -> Weight:
    codes, zero = (_in_order(tensors.stored(f"{path}.{part}")).T for part in ("qweight", "qzeros"))
    return affine(np.ascontiguousarray(codes), finite(tensors, f"{path}.scales").T, _BITS, zero)


def _in_order(packed: NDArray[np.int32]) -> NDArray[np.uint8]:
    rows, words = packed.shape
    codes = unpack(packed, _BITS, words * _EACH).reshape(rows, words, _EACH)
    return codes[..., np.argsort(_ORDER)].reshape(rows, -1)
