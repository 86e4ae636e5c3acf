"""4-bit checkpoints of bitsandbytes (Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3).

    weight[n] = quant_map[code[n]] * absmax[n // blocksize]                 codes two a byte, the first in the high half
    absmax[b] = nested_quant_map[code[b]] * nested_absmax[b // 256] + offset   where absmax is quantised once more

Both maps, sizes and the weight's shape stand beside it; ``quant_state`` is JSON in bytes.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from regraft.errors import FormatError
from regraft.formats.quantized.entries import Settings, dense_entry, finite
from regraft.formats.safetensors_file import Array, Tensors
from regraft.formats.weights import Dense, Entry

_STATE = ".quant_state.bitsandbytes__"
_PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")


def bitsandbytes_entries(tensors: Tensors, settings: Settings) -> dict[str, Entry]:
    """Parameter name → entry.

    Raises:
        FormatError: 8 bits, or a weight whose parts are missing or do not fit each other.
    """
    if not settings.get("load_in_4bit", settings.get("_load_in_4bit")):
        raise FormatError(
            f"{tensors.path}: quantised by bitsandbytes",
            expected="load_in_4bit",
            found="another width",
            hint="Give the model that it was made from.",
        )
    states = {name.partition(_STATE)[0]: name for name in tensors if _STATE in name}
    entries = {}
    for name in tensors:
        if name in states:
            entries[name] = _entry(tensors, name, _state(tensors, states[name]))
        elif tensors.info(name).dtype == "U8" and name.endswith(".weight"):
            raise FormatError(
                f"{tensors.path}: quantised by bitsandbytes, but tensor {name}{_STATE}… is missing",
                hint="Give the model that it was made from.",
            )
        elif _STATE not in name and not (name.endswith(_PARTS) and name.rpartition(".")[0] in states):
            entries[name] = dense_entry(tensors, name)
    return entries


def _state(tensors: Tensors, name: str) -> dict[str, Any]:
    try:
        state = json.loads(tensors.stored(name).tobytes().decode("utf-8"))
        numbers = [*state["shape"], state["blocksize"]]
        if len(numbers) != 3 or not all(type(n) is int and n > 0 for n in numbers):
            raise ValueError("no shape of rows and columns")
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{tensors.path}: tensor {name} is not understood: {error}") from None
    return dict(state)


def _entry(tensors: Tensors, name: str, state: dict[str, Any]) -> Entry:
    (out, width), block = state["shape"], state["blocksize"]
    count = out * width
    if tensors.info(name).dtype != "U8" or np.prod(tensors.info(name).shape) != -(-count // 2):
        raise FormatError(
            f"{tensors.path}: tensor {name}", expected=f"{-(-count // 2)} bytes", found=str(tensors.info(name))
        )
    blocks = -(-count // block)
    if tensors.info(f"{name}.absmax").shape != (blocks,) or tensors.info(f"{name}.quant_map").shape != (16,):
        raise FormatError(
            f"{tensors.path}: tensor {name}.absmax", expected=f"[{blocks}]", found=str(tensors.info(f"{name}.absmax"))
        )
    return Entry((out, width), lambda: Dense(_read(tensors, name, (out, width), block, state)))


def _read(tensors: Tensors, name: str, shape: tuple[int, int], block: int, state: dict[str, Any]) -> Array:
    count = shape[0] * shape[1]
    packed = tensors.stored(name).reshape(-1)
    codes = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]
    values = finite(tensors, f"{name}.quant_map").astype(np.float32)[codes]
    largest = _absmax(tensors, name, state)
    return (values * np.repeat(largest, block)[:count]).reshape(shape)


def _absmax(tensors: Tensors, name: str, state: dict[str, Any]) -> Array:
    if tensors.info(f"{name}.absmax").dtype != "U8":
        return finite(tensors, f"{name}.absmax").astype(np.float32)
    codes = tensors.stored(f"{name}.absmax")
    block, offset = int(state.get("nested_blocksize", 256)), np.float32(state.get("nested_offset", 0.0))
    values = tensors.expect(f"{name}.nested_quant_map", "F32", (256,))[codes]
    outer = np.repeat(finite(tensors, f"{name}.nested_absmax").astype(np.float32), block)
    if len(outer) < len(codes):
        raise FormatError(
            f"{tensors.path}: tensor {name}.nested_absmax",
            expected=f"{-(-len(codes) // block)} scales",
            found=str(len(outer) // block),
        )
    return values * outer[: len(codes)] + offset
