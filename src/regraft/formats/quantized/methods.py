"""The formats of quantised bases that are read, by the name that ``config.json`` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from regraft.errors import FormatError
from regraft.formats.quantized.awq import awq_entries
from regraft.formats.quantized.bitsandbytes import bitsandbytes_entries
from regraft.formats.quantized.compressed_tensors import compressed_tensors_entries
from regraft.formats.quantized.entries import Settings
from regraft.formats.quantized.fp8 import fp8_entries
from regraft.formats.quantized.gptq import gptq_entries
from regraft.formats.quantized.mlx import mlx_entries
from regraft.formats.safetensors_file import Tensors
from regraft.formats.weights import Entry
from regraft.storage import read_json

FORMATS: dict[str, Callable[[Tensors, Settings], dict[str, Entry]]] = {
    "awq": awq_entries,
    "bitsandbytes": bitsandbytes_entries,
    "compressed-tensors": compressed_tensors_entries,
    "fp8": fp8_entries,
    "gptq": gptq_entries,
    "mlx": mlx_entries,
}
# Where a directory says that it is quantised: keys of config.json, the first one counts, and files beside it.
KEYS = ("quantization_config", "compression_config", "quantization")
_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq", "hf_quant_config.json": "modelopt"}


def take_quantization(folder: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """How a directory is quantised, taken out of its ``config``; None if it is not.

    ``quant_method`` is always in what is returned.

    Raises:
        FormatError: a format that is not read here, or an entry that is not understood.
    """
    origin = folder / "config.json"
    stated = {key: value for key in KEYS if (value := config.pop(key, None)) is not None}
    key, found = next(iter(stated.items()), ("", None))
    if found is None:
        key, found = next(((name, read_json(folder / name)) for name in _FILES if (folder / name).exists()), ("", None))
        if found is None:
            return None
        origin, found = folder / key, {"quant_method": _FILES[key], **found}
    if not isinstance(found, dict):
        raise FormatError(f"{origin}: {key}", expected="an object", found=repr(found)[:40])
    method = found.get("quant_method") or _unnamed(found)
    if not isinstance(method, str) or method not in FORMATS:
        raise FormatError(
            f"{origin}: the base is quantised by {method or 'a method without a name'}",
            expected=f"one of {', '.join(FORMATS)}, or no quantisation",
            hint="Give the model that it was made from.",
        )
    return {**found, "quant_method": method}


def quantized_entries(tensors: Tensors, settings: Mapping[str, Any]) -> dict[str, Entry]:
    """Parameter name → entry, of a directory that :func:`take_quantization` says is quantised.

    Raises:
        FormatError: the tensors are not those that the settings speak of; names method, file and tensor.
    """
    method = settings["quant_method"]
    try:
        return FORMATS[method](tensors, settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(
            f"{tensors.path.parent}: quantization_config of {method} is not understood: {type(error).__name__} {error}"
        ) from None


def _unnamed(settings: Mapping[str, Any]) -> str | None:
    """The name of a method that does not name itself."""
    return "mlx" if {"bits", "group_size"} <= settings.keys() else None
