"""Read a GGUF file (versions 2 and 3, little-endian) with numpy: its metadata, and its tensors as mapped bytes.

A model that ``gguf-split`` cut into several files is read as one, from the first of them.

The reader of the ``gguf`` package makes several arrays for every word of the vocabulary and takes seconds; this one
takes a tenth of one, and holds every length against the file before it believes it.
"""

from __future__ import annotations

import glob
import math
import mmap
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.formats.safetensors_file import damaged, map_file

F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30  # ggml's numbers of its types
_BLOCKS = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q8_0: (32, 34), BF16: (1, 2)}
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MOST_AXES = 4
_DEFAULT_ALIGNMENT = 32
_PART = re.compile(r"(.*-)(\d{5})(-of-\d{5}\.gguf)")


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    ``shape`` is in numpy's order, ``kind`` ggml's number of its type, ``begin`` a byte of the file numbered ``part``.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    begin: int
    nbytes: int
    part: int = 0


class GgufFile:
    """A mapped GGUF file, or several that are one model.

    Attributes:
        path: where it lies; the first of several.
        paths: all of them.
        metadata: key → number, text, or list of them; of the first.
        tensors: name → where the tensor lies.

    Raises:
        FormatError: a file is missing, cut short, damaged, of another format or version, or a later one of several.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parts = [map_file(path)]
        self.metadata, self.tensors = _read_part(path, self._parts[0])
        self.paths = gguf_parts(path, self.metadata)
        for number, other in enumerate(self.paths[1:], 1):
            self._add_part(number, other)
        expected = self.metadata.get("split.tensors.count", len(self.tensors))
        if expected != len(self.tensors):
            raise FormatError(
                f"{path}: tensors of all {len(self.paths)} files", expected=str(expected), found=str(len(self.tensors))
            )

    def _add_part(self, number: int, path: Path) -> None:
        data = map_file(path)
        metadata, tensors = _read_part(path, data)
        if (metadata.get("split.no"), metadata.get("split.count")) != (number, len(self.paths)):
            found = f"{metadata.get('split.no')} of {metadata.get('split.count')}"
            raise FormatError(f"{path}: split.no", expected=f"{number} of {len(self.paths)}", found=found)
        if twice := sorted(tensors.keys() & self.tensors.keys()):
            raise damaged(path, f"tensor {twice[0]}, which another file has too")
        self._parts.append(data)
        self.tensors |= {name: replace(tensor, part=number) for name, tensor in tensors.items()}

    def bytes_of(self, tensor: GgufTensor) -> NDArray[np.uint8]:
        """The bytes of a tensor ``[rows, bytes of a row]``, read-only and without a copy."""
        flat = np.frombuffer(self._parts[tensor.part], np.uint8, tensor.nbytes, tensor.begin)
        return flat.reshape(math.prod(tensor.shape[:-1]), -1)


def gguf_parts(path: Path, metadata: dict[str, Any]) -> list[Path]:
    """The files that the model in ``path`` stands in, itself first.

    Raises:
        FormatError: it is one of several, but not the first, or is not named as one of several.
    """
    count, number = metadata.get("split.count", 1), metadata.get("split.no", 0)
    if type(count) is not int or count <= 1:
        return [path]
    match = _PART.fullmatch(path.name)
    if match is None:
        raise FormatError(
            f"{path} is one of {count} files of a model",
            expected=f"a name that ends in -00001-of-{count:05}.gguf",
            found=path.name,
        )
    first = path.with_name(f"{match[1]}00001{match[3]}")
    if number != 0:
        raise FormatError(f"{path} is one of {count} files of a model, not the first", hint=f"Give {first}.")
    return [path.with_name(f"{match[1]}{place + 1:05}{match[3]}") for place in range(count)]


def parts_by_name(path: Path) -> list[Path]:
    """The files that belong to ``path`` by their names alone, which takes no reading."""
    match = _PART.fullmatch(path.name)
    return sorted(path.parent.glob(f"{glob.escape(match[1])}*{match[3]}")) if match else [path]


def _read_part(path: Path, data: mmap.mmap) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    try:
        return _read(_Cursor(path, data))
    except (struct.error, UnicodeDecodeError) as error:
        raise damaged(path, f"metadata that cannot be read: {error}") from None


class _Cursor:
    """A place in the file; what is read there moves it on."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.place = path, data, 0

    def numbers(self, form: str, count: int = 1) -> tuple[Any, ...]:
        self.need(count)  # each takes at least a byte; struct itself would build any format
        form = f"<{count}{form}"
        values = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return values

    def number(self, form: str) -> Any:
        return self.numbers(form)[0]

    def text(self) -> str:
        length = self.number("Q")
        self.need(length)
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind != _ARRAY:
            raise damaged(self.path, f"a value of type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            self.need(count)
            return [self.text() for _ in range(count)]
        if kind not in _SCALARS:
            raise damaged(self.path, f"an array of type {kind}")
        return list(self.numbers(_SCALARS[kind], count))

    def need(self, count: int) -> None:
        if count > len(self.data) - self.place:
            raise damaged(self.path, f"{len(self.data)} bytes, of which {self.place + count} are spoken of")


def _read(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    magic, version = cursor.data[:4], int.from_bytes(cursor.data[4:8], "little")
    if magic != b"GGUF" or version not in (2, 3):
        raise FormatError(
            f"{cursor.path} cannot be read as GGUF",
            expected="GGUF of version 2 or 3, little-endian",
            found=f"{magic!r}, version {version}",
        )
    cursor.place = 8
    tensors, pairs = cursor.numbers("Q", 2)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = cursor.text()
        if key in metadata:
            raise damaged(cursor.path, f"{key} twice")
        metadata[key] = cursor.value(cursor.number("I"))
    infos = [_tensor_info(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise damaged(cursor.path, f"general.alignment {alignment!r}")
    start = -(-cursor.place // alignment) * alignment
    return metadata, _place(cursor, infos, start)


_Info = tuple[str, tuple[int, ...], int, int]  # name, shape, kind, offset


def _tensor_info(cursor: _Cursor) -> _Info:
    name, axes = cursor.text(), cursor.number("I")
    if not 1 <= axes <= _MOST_AXES:
        raise damaged(cursor.path, f"tensor {name} with {axes} axes")
    shape = cursor.numbers("Q", axes)[::-1]  # ggml names the fastest axis first
    return name, shape, cursor.number("I"), cursor.number("Q")


def _place(cursor: _Cursor, infos: list[_Info], start: int) -> dict[str, GgufTensor]:
    """Tensors by name; none may lie over another or beyond the end."""
    placed: dict[str, GgufTensor] = {}
    free, size = start, len(cursor.data)
    for name, shape, kind, offset in sorted(infos, key=lambda info: info[3]):
        values, block = _block_of(cursor.path, name, kind)
        begin, nbytes = start + offset, math.prod(shape) // values * block
        fits = free <= begin and begin + nbytes <= size and nbytes and shape[-1] % values == 0
        if name in placed or not fits:
            raise damaged(cursor.path, f"tensor {name} {list(shape)} at byte {begin} of {size}")
        placed[name] = GgufTensor(name, shape, kind, begin, nbytes)
        free = begin + nbytes
    return placed


def _block_of(path: Path, name: str, kind: int) -> tuple[int, int]:
    """Values and bytes of one block of a ggml type."""
    if kind in _BLOCKS:
        return _BLOCKS[kind]
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType  # a third of a second, for rarer types only

    try:
        values, block = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise FormatError(f"{path}: tensor {name}", expected="a known ggml type", found=f"type {kind}") from None
    return values, block
