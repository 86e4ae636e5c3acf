"""Read safetensors files with numpy alone: names to views of the mapped file, each header checked as if hostile.

    8 bytes: N, little-endian | N bytes: JSON, name → dtype, shape, [begin, end) | the tensors, without gaps

numpy has no bfloat16: such tensors are widened to float32, which holds them exactly.
"""

from __future__ import annotations

import functools
import json
import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.storage import read_json

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_LARGEST_HEADER = 100_000_000  # bytes; what the format's own library allows
_MOST_AXES, _MOST_VALUES = 8, 2**48  # far above any model, and within what numpy can index
_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
}
FLOAT8 = ("F8_E4M3", "F8_E5M2")
_ITEM_BYTES = {name: np.dtype(code).itemsize for name, code in _DTYPES.items()}
FLOATS = ("F64", "F32", "F16", "BF16", *FLOAT8)

Bytes = mmap.mmap | bytes
Array = NDArray[Any]


class TensorInfo(NamedTuple):
    """What a header says of a tensor; ``begin`` and ``end`` are bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Tensors:
    """The tensors of one or more mapped files, by name; nothing is read before it is asked for."""

    def __init__(self, path: Path, files: Mapping[str, tuple[Bytes, TensorInfo]]) -> None:
        self.path = path
        self._files = files

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor.

        Raises:
            FormatError: there is no such tensor.
        """
        return self._find(name)[1]

    def stored(self, name: str) -> Array:
        """A tensor as it is stored, read-only and mostly without a copy; BF16 as uint16 bits, 8-bit floats as uint8.

        Raises:
            FormatError: there is no such tensor.
        """
        data, info = self._find(name)
        array = np.frombuffer(data, _DTYPES[info.dtype], math.prod(info.shape), info.begin).reshape(info.shape)
        return array if array.flags.aligned else array.copy()

    def floats(self, name: str) -> Array:
        """A tensor as float16 (if it is stored so) or float32.

        Raises:
            FormatError: there is no such tensor, or it is not floating point.
        """
        dtype = self.info(name).dtype
        if dtype not in FLOATS:
            raise FormatError(f"{self.path}: tensor {name}", expected="floating point", found=str(self.info(name)))
        stored = self.stored(name)
        if dtype == "BF16":
            return widen_bfloat16(stored)
        if dtype in FLOAT8:
            return _float8_values(dtype)[stored]
        if dtype == "F64":
            with np.errstate(over="ignore"):  # beyond float32 is infinity, as everywhere
                return stored.astype(np.float32)
        return stored

    def expect(self, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
        """A tensor that must have this type (``I32``) and shape.

        Raises:
            FormatError: it has not, or there is none.
        """
        info = self.info(name)
        if (info.dtype, info.shape) != (dtype, shape):
            raise FormatError(f"{self.path}: tensor {name}", expected=f"{dtype} {list(shape)}", found=str(info))
        return self.stored(name)

    def _find(self, name: str) -> tuple[Bytes, TensorInfo]:
        if name not in self._files:
            raise FormatError(f"{self.path}: tensor {name} is missing")
        return self._files[name]


def widen_bfloat16(bits: Array) -> NDArray[np.float32]:
    """The float32 values of bfloat16 numbers given as uint16."""
    return np.left_shift(bits, 16, dtype=np.uint32).view(np.float32)


@functools.cache
def _float8_values(dtype: str) -> NDArray[np.float32]:
    """The value of each byte (Micikevicius et al. 2022, arXiv 2209.05433, table 1)."""
    exponent_bits, mantissa_bits = (4, 3) if dtype == "F8_E4M3" else (5, 2)
    byte = np.arange(256)
    mantissa = (byte & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = (byte >> mantissa_bits) & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    size = np.where(exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias))
    if dtype == "F8_E4M3":  # no infinity, and one NaN
        size[(byte & 127) == 127] = np.nan
    else:
        top = exponent == 31
        size[top] = np.where(mantissa[top] == 0, np.inf, np.nan)
    return np.where(byte & 128, -size, size).astype(np.float32)


def open_tensors(path: Path, *, mapped: bool = True) -> Tensors:
    """Open one safetensors file.

    Args:
        path: the file.
        mapped: leave its bytes on disk until they are used. Not for a file that may be overwritten meanwhile: what is
            read would change, and a file that gets shorter ends the process.

    Raises:
        FormatError: it is missing, cut short or damaged; the cause is in the error's ``found``.
    """
    data = map_file(path) if mapped else _read_file(path)
    header, start = _header(path, data)
    infos = {name: _info(path, name, entry, start) for name, entry in header.items() if name != "__metadata__"}
    _check_cover(path, infos, start, len(data))
    return Tensors(path, {name: (data, info) for name, info in infos.items()})


def open_model_tensors(folder: Path) -> Tensors:
    """Map the weights of a model directory, in one file or in several with an index.

    Raises:
        FormatError: a file is missing, cut short or damaged, or the index is not of these files.
    """
    if (folder / WEIGHTS_NAME).exists() or not (folder / INDEX_NAME).exists():
        return open_tensors(folder / WEIGHTS_NAME)
    index = folder / INDEX_NAME
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
        raise FormatError(str(index), expected="a weight_map of tensor names to file names")
    files: dict[str, tuple[Bytes, TensorInfo]] = {}
    for name in sorted(set(where.values())):
        if Path(name).name != name:
            raise FormatError(str(index), expected="names of files beside it", found=repr(name))
        shard = open_tensors(folder / name)
        for tensor in shard:
            if where.get(tensor) != name:
                raise FormatError(f"{shard.path}: tensor {tensor} is not in the index")
            files[tensor] = shard._files[tensor]
    if missing := sorted(where.keys() - files.keys()):
        raise FormatError(f"{folder / where[missing[0]]}: tensor {missing[0]} is missing")
    return Tensors(index, files)


def map_file(path: Path) -> mmap.mmap:
    """Map a file's bytes, read-only.

    Raises:
        FormatError: it is missing, empty, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except ValueError:  # nothing cannot be mapped
        raise damaged(path, "an empty file") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None


def _read_file(path: Path) -> bytes:
    """A copy of a file's bytes; raises what :func:`map_file` does."""
    with map_file(path):
        return path.read_bytes()


def damaged(path: Path, found: str) -> FormatError:
    """The error for a file whose bytes are not what its format wants."""
    return FormatError(f"{path} is truncated or damaged", found=found)


def _header(path: Path, data: Bytes) -> tuple[dict[str, Any], int]:
    """The header's entries, and where the tensors begin."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(len(data) - 8, _LARGEST_HEADER):
        raise damaged(path, f"{len(data)} bytes, of which {length} should be the header")
    try:
        header = json.loads(data[8 : 8 + length].decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"a header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise damaged(path, "a header that is no JSON object")
    return header, 8 + length


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a name stands twice")
    return entries


def _info(path: Path, name: str, entry: Any, start: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, begin, end]
        sound = isinstance(shape, list) and set(map(type, numbers)) == {int} and min(numbers) >= 0
        sound = sound and len(shape) <= _MOST_AXES and math.prod([n or 1 for n in shape]) < _MOST_VALUES
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise damaged(path, f"tensor {name} without a dtype, a shape and offsets")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FormatError(f"{path}: tensor {name}", expected=f"one of {', '.join(_DTYPES)}", found=str(dtype)[:40])
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise damaged(path, f"tensor {name}, {dtype} {shape}, in {end - begin} bytes")
    return TensorInfo(dtype, tuple(shape), start + begin, start + end)


def _check_cover(path: Path, infos: Mapping[str, TensorInfo], start: int, size: int) -> None:
    """The tensors stand one after the other, from the header to the end of the file."""
    place = start
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.end > size:
            raise damaged(path, f"tensor {name} up to byte {info.end} of {size}")
        if info.begin != place:
            kind = "over another" if info.begin < place else "after a gap"
            raise damaged(path, f"tensor {name} {kind}")
        place = info.end
    if place != size:
        raise damaged(path, f"{size - place} bytes that belong to no tensor")
