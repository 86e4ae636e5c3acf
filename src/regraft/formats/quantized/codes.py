"""Codes of 2 to 8 bits in int32 words: ``pack-quantized`` of compressed-tensors.

:mod:`regraft.models.quantized_tensor` writes it.

This is the only reader of that layout.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_LANE = 8  # codes that are whole bytes together, whatever their width
_WORD = 32  # bits


def packed_length(count: int, bits: int) -> int:
    """Words that ``count`` codes take."""
    return -(-count * bits // _WORD)


def unpack(packed: NDArray[Any], bits: int, count: int) -> NDArray[np.uint8]:
    """int32 ``[rows, packed_length(count, bits)]`` → uint8 ``[rows, count]``."""
    stream = np.ascontiguousarray(packed).view(np.uint8)
    codes = _unpack_within_bytes(stream, bits) if 8 % bits == 0 else _unpack_across_bytes(stream, bits, count)
    return np.ascontiguousarray(codes[:, :count])


def _unpack_within_bytes(stream: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    each, mask = 8 // bits, (1 << bits) - 1
    codes = np.empty((len(stream), stream.shape[1] * each), np.uint8)
    for i in range(each):
        codes[:, i::each] = (stream >> (i * bits)) & mask
    return codes


def _unpack_across_bytes(stream: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Eight codes are ``bits`` bytes: each such run is widened to an integer that all eight are shifted out of."""
    rows, lanes = len(stream), -(-count // _LANE)
    runs = np.zeros((rows, lanes * bits), np.uint8)
    used = min(stream.shape[1], lanes * bits)
    runs[:, :used] = stream[:, :used]
    wide = np.zeros((rows, lanes, 8), np.uint8)
    wide[..., :bits] = runs.reshape(rows, lanes, bits)
    joined, mask = wide.view("<u8")[..., 0], np.uint64((1 << bits) - 1)
    codes = np.empty((rows, lanes * _LANE), np.uint8)
    for i in range(_LANE):
        codes[:, i::_LANE] = (joined >> np.uint64(i * bits)) & mask
    return codes
