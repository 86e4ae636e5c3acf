"""The weights of a compressed directory, packed or not, read as one dense state dict.

Nothing is let pass: every tensor that the model has must be there, whole and finite, and no other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from regraft.base.quantized import QuantizedTensor
from regraft.base.scheme import Scheme, scheme_of
from regraft.errors import FormatError
from regraft.storage import read_json

WEIGHTS_NAME = "model.safetensors"
_NEARLY = 1e-3  # relative error up to which float16 will do: twice its rounding, so only range can exceed it


def as_stored(tensor: Tensor) -> Tensor:
    """A tensor that is not packed, in the type that it is stored in.

    That is float16; where its range does not do, bfloat16 if that is exact, and else float32.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if (half.float() - tensor.float()).norm() <= _NEARLY * tensor.float().norm():
        return half
    brain = tensor.bfloat16()
    return brain if torch.equal(brain.float(), tensor.float()) else tensor.float()


def read_compressed_state(folder: Path) -> dict[str, Tensor]:
    """Parameter name → dense float32 tensor, for every parameter of the model; tied ones once.

    Raises:
        FormatError: ``config.json`` or ``model.safetensors`` is missing, damaged, or not what the other says; names
            the file and the tensor.
    """
    config = read_json(folder / "config.json")
    packing = config.pop("quantization_config", None)
    if not isinstance(packing, dict):
        raise FormatError(f"{folder / 'config.json'} has no quantization_config")
    skeleton = _skeleton(folder)
    path = folder / WEIGHTS_NAME
    tensors = _open(path)
    try:
        return _dense(skeleton, packing, tensors)
    except FormatError as error:
        raise FormatError(f"{path}: {error.what}", expected=error.expected, found=error.found) from None


def _skeleton(folder: Path) -> nn.Module:
    """The model of ``folder`` without storage for its parameters."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        del config.quantization_config
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{folder / 'config.json'} describes no model: {error}") from None


def _open(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FormatError(f"{path} is missing")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is truncated or damaged: {error}") from None


def _dense(skeleton: nn.Module, packing: Mapping[str, Any], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the model's tensors out of ``tensors``, and refuse what remains."""
    state = {}
    classes = {path: type(module).__name__ for path, module in skeleton.named_modules()}
    tied = set(getattr(skeleton, "all_tied_weights_keys", {}))
    for name, wanted in skeleton.state_dict().items():
        if name in tied:
            continue
        path, _, leaf = name.rpartition(".")
        scheme = scheme_of(packing, path, classes[path]) if leaf == "weight" else None
        if scheme is None:
            state[name] = _take_plain(tensors, name, wanted)
        else:
            state[name] = _take_packed(tensors, path, wanted, scheme)
    if tensors:
        raise FormatError(f"tensor {min(tensors)} belongs to nothing in the model")
    return state


def _take_plain(tensors: dict[str, Tensor], name: str, wanted: Tensor) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise FormatError(f"tensor {name} is missing")
    if tensor.shape != wanted.shape or not tensor.is_floating_point():
        raise FormatError(
            f"tensor {name}",
            expected=f"floating point {list(wanted.shape)}",
            found=f"{tensor.dtype} {list(tensor.shape)}",
        )
    if not tensor.isfinite().all():
        raise FormatError(f"tensor {name}", expected="finite values", found="inf or nan")
    return tensor.float()


def _take_packed(tensors: dict[str, Tensor], path: str, wanted: Tensor, scheme: Scheme) -> Tensor:
    out, width = wanted.shape
    group_size = scheme.group_size or width
    if width % group_size:
        raise FormatError(f"module {path}", expected=f"a group size that divides {width}", found=str(group_size))
    quantized = QuantizedTensor.from_tensors(
        tensors, path, shape=(out, width), bits=scheme.bits, group_size=group_size, symmetric=scheme.symmetric
    )
    for name in ("packed", "scale", "shape", *([] if scheme.symmetric else ["zero_point"])):
        del tensors[f"{path}.weight_{name}"]
    return quantized.dequantize()
