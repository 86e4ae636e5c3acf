"""A base in the native core's layout, as one file that is mapped: the second start reads nothing.

    magic, arrays each aligned to 64 bytes, index (JSON), length of the index (8 bytes, little-endian)

Arrays of experts stand expert by expert in records, see :mod:`regraft.engine.weights.expert_records`.

The index comes last because what a weight takes is known once it is read, and weights are read one at a time.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from regraft.engine.weights.expert_records import DOWN, LINEARS, READ_TOGETHER, by_expert, lay_out
from regraft.engine.weights.native_model import Parameters
from regraft.errors import FormatError
from regraft.formats.experts import CONFIG_KEY
from regraft.formats.weights import EMBEDDING, HEAD, Affine, Dense, Weights
from regraft.native.layout import ALIGNMENT, ARRAYS, BLOCK, Tiles, pack_codes, pack_dense, padded
from regraft.progress import Progress, silent
from regraft.storage import own_partial

MAGIC = b"regraft engine 3\n"
_ROUTER = "mlp.chooser.first"  # read whole, like the head
_NEARLY = 1e-3  # relative error up to which float16 will do: twice its rounding, so only range can exceed it


@dataclass(frozen=True)
class PackedBase:
    """What a packed file holds.

    Attributes:
        config: the Hugging Face config.
        source: what the file was packed from; see :func:`write_packed`.
        parameters: they lie in the mapped file, or in the memory given.
        num_bytes: of the file.
    """

    config: dict[str, Any]
    source: str
    parameters: Parameters
    num_bytes: int


def write_packed(
    weights: Weights, path: Path, source: str, *, head_bits: Literal[8, 16] = 16, progress: Progress = silent
) -> None:
    """Pack a base's weights; the file appears whole or not at all, also if others make it at the same time.

    Args:
        weights: read one at a time.
        path: the file to write.
        source: any string that changes when the base does.
        head_bits: 8 rounds embeddings, head and routers to 8 bits by blocks of 32, unless they are quantised already.
            They are read whole for each token, and of a small model a third of all bytes.
        progress: told of each parameter.
    """
    with own_partial(path) as partial, partial.open("wb") as file:
        file.write(MAGIC)
        parameters = _write_parameters(weights, file, head_bits, progress)
        index = {"config": weights.config, "source": source, **parameters}
        encoded = json.dumps(index).encode()
        file.write(encoded + len(encoded).to_bytes(8, "little"))


def read_packed(path: Path, memory: NDArray[np.uint8] | None = None) -> PackedBase:
    """Map a packed file.

    Args:
        path: the file.
        memory: what it holds, aligned to 64 bytes, if that has been read already.

    Raises:
        FormatError: the file is missing, truncated, or not a packed base.
    """
    try:
        if memory is None:
            with path.open("rb") as file:
                memory = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        index = _read_index(memory)
        linears = {name: _tiles(memory, entry) for name, entry in index["linears"].items()}
        vectors = {name: _array(memory, entry) for name, entry in index["vectors"].items()}
        return PackedBase(index["config"], index["source"], Parameters(linears, vectors), memory.nbytes)
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} is no packed base: {error}", hint="Remove it; it is made again.") from None


def _read_index(memory: NDArray[np.uint8]) -> dict[str, Any]:
    if memory[: len(MAGIC)].tobytes() != MAGIC:
        raise ValueError("it begins otherwise")
    length = int.from_bytes(memory[-8:].tobytes(), "little")
    if length > memory.nbytes - len(MAGIC) - 8:
        raise ValueError("it ends before its index")
    index = json.loads(memory[-8 - length : -8].tobytes())
    if not isinstance(index, dict):
        raise ValueError("its index is no object")
    return index


def _tiles(memory: NDArray[np.uint8], entry: Mapping[str, Any]) -> Tiles:
    if "records" in entry:
        memory = _array(memory, entry["records"])
    arrays = {name: _array(memory, entry[name]) for name in ARRAYS if name in entry}
    return Tiles(entry["codes"], entry["out"], entry["columns"], entry["group"], **arrays)


def _array(memory: NDArray[np.uint8], entry: Mapping[str, Any]) -> NDArray[Any]:
    """An array in memory, or in each of the records ``[records, bytes]``."""
    dtype, count = np.dtype(entry["dtype"]), int(np.prod(entry["shape"], dtype=np.int64))
    start, end = entry["offset"], entry["offset"] + count * dtype.itemsize
    if dtype.kind not in "uf" or not 0 <= start <= end <= memory.shape[-1] or start % ALIGNMENT:
        raise ValueError("an array lies outside the file")
    return memory[..., start:end].view(dtype).reshape(*memory.shape[:-1], *entry["shape"])


def _write_parameters(weights: Weights, file: BinaryIO, head_bits: int, progress: Progress) -> dict[str, Any]:
    linears: dict[str, Any] = {}
    vectors: dict[str, Any] = {}
    experts = weights.config.get(CONFIG_KEY)
    waiting: dict[str, Tiles] = {}  # linears of experts, until those are there that are read with them
    with progress.track(len(weights), "pack") as advance:
        for name in weights:
            path, _, leaf = name.rpartition(".")
            if leaf == "bias":
                advance()
                continue  # it goes with its weight
            weight = weights[name]
            if len(weights.shape(name)) == 1:
                vectors[name] = _write(file, weight.dense())
            else:
                bias = weights[f"{path}.bias"].dense() if f"{path}.bias" in weights else None
                if head_bits == 8 and (name in (EMBEDDING, HEAD) or path.endswith(_ROUTER)):
                    weight = _in_eight_bits(weight)
                if experts and path.endswith(LINEARS):
                    if (is_down := path.endswith(DOWN)) and bias is not None:
                        vectors[f"{path}.bias"], bias = _write(file, bias), None
                    shape = weights.shape(name)
                    waiting[path] = _pack_experts(weight, bias, shape, experts["size"], is_down=is_down)
                    linears |= _write_complete(waiting, path, experts["method"], file)
                else:
                    linears[path] = _write_tiles(file, _pack(weight, bias))
            advance()
    return {"linears": linears, "vectors": vectors}


def _pack(weight: Dense | Affine, bias: NDArray[np.float32] | None) -> Tiles:
    if isinstance(weight, Affine) and (weight.group_size % 32 == 0 or weight.scale.shape[1] == 1):
        return pack_codes(weight.codes, weight.bits, weight.scale, weight.zero, weight.minimum, bias=bias)
    return pack_dense(_as_half(weight.dense()), bias=bias)


def _pack_experts(
    weight: Dense | Affine, bias: NDArray[np.float32] | None, shape: tuple[int, ...], size: int, *, is_down: bool
) -> Tiles:
    rows, columns = shape
    if is_down:
        return _pack(by_expert(weight, size), bias).cut(columns // size)
    return _pack(weight, bias).cut(rows // size)


def _in_eight_bits(weight: Dense | Affine) -> Affine:
    """Symmetric codes with a scale per block of 32 columns, or per row if that does not divide it."""
    if isinstance(weight, Affine):
        return weight
    values = weight.dense()
    size = BLOCK if values.shape[1] % BLOCK == 0 else values.shape[1]
    groups = values.reshape(len(values), -1, size)
    scale = (np.abs(groups).max(-1) / 127).astype(np.float16)
    unit = np.where(scale > 0, scale, 1).astype(np.float32)[:, :, None]
    codes = (np.clip(np.rint(groups / unit), -127, 127) + 128).astype(np.uint8)
    return Affine(codes.reshape(values.shape), scale, 8, size)


def _as_half(array: NDArray[np.float32]) -> NDArray[Any]:
    """Float16, unless its range does not do."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    error = np.linalg.norm(half.astype(np.float32) - array)
    return half if error <= _NEARLY * np.linalg.norm(array) else array


def _write_tiles(file: BinaryIO, tiles: Tiles) -> dict[str, Any]:
    return _head(tiles) | {name: _write(file, array) for name, array in tiles.arrays()}


def _head(tiles: Tiles) -> dict[str, Any]:
    return {"codes": tiles.codes, "out": tiles.out, "columns": tiles.columns, "group": tiles.group}


def _write_complete(
    waiting: dict[str, Tiles], path: str, method: Literal["moefication", "cats"], file: BinaryIO
) -> dict[str, Any]:
    """Write the records that ``path`` belongs to if all of their linears wait, which these then no longer do."""
    (leaves,) = (leaves for leaves in READ_TOGETHER[method] if path.endswith(leaves))
    layer = path[: path.rindex("mlp.")]
    if any(layer + leaf not in waiting for leaf in leaves):
        return {}
    linears = {layer + leaf: waiting.pop(layer + leaf) for leaf in leaves}
    records = lay_out(linears)
    where = _write(file, records.memory)
    entries = {}
    for name, tiles in linears.items():
        entries[name] = _head(tiles) | {"records": where}
        for array_name, array in tiles.arrays():
            offset = records.offsets[name][array_name]
            entries[name][array_name] = {"dtype": array.dtype.str, "shape": list(array.shape[1:]), "offset": offset}
    return entries


def _write(file: BinaryIO, array: NDArray[Any]) -> dict[str, Any]:
    start = padded(file.tell(), ALIGNMENT)
    file.write(bytes(start - file.tell()))
    file.write(np.ascontiguousarray(array).data)
    return {"dtype": array.dtype.str, "shape": list(array.shape), "offset": start}
