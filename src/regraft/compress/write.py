"""Write a compressed base as a directory that stock loaders understand wherever they can."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from regraft.compress.prune.slice import is_uniform
from regraft.compress.slots import Packed
from regraft.errors import FormatError
from regraft.formats.base_record import ExpertsRecord, Pruned
from regraft.formats.quantized.compressed_tensors_config import Scheme, to_config
from regraft.formats.safetensors_file import WEIGHTS_NAME
from regraft.models.expert_mlp import Projection
from regraft.models.load import Base
from regraft.models.state import as_stored
from regraft.storage import read_json, write_json

_WHOLE_WORD_BITS = (2, 4, 8)  # widths that every version of compressed-tensors packs in the same way


def write_base(folder: Path, base: Base, packed: Packed) -> int:
    """Write all but ``regraft.json``; returns the bytes of all tensors.

    Raises:
        FormatError: a weight that is not packed is not finite.
    """
    tensors = packed.tensors | _unpacked(base.model, packed)
    save_file(tensors, folder / WEIGHTS_NAME, metadata={"format": "pt"})
    _write_config(folder, base, packed)
    if base.model.generation_config is not None:
        write_json(folder / "generation_config.json", json.loads(base.model.generation_config.to_json_string()))
    base.tokenizer.save_pretrained(folder)
    return sum(tensor.nbytes for tensor in tensors.values())


def _unpacked(model: nn.Module, packed: Packed) -> dict[str, Tensor]:
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    tensors = {}
    for name, tensor in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        if name in tied or (leaf == "weight" and path in packed.schemes):
            continue
        if not tensor.isfinite().all():
            raise FormatError(f"weight {name}", expected="finite values", found="inf or nan")
        tensors[name] = as_stored(tensor).cpu().contiguous()
    return tensors


def _write_config(folder: Path, base: Base, packed: Packed) -> None:
    base.model.config.save_pretrained(folder)
    config = read_json(folder / "config.json")
    config["architectures"] = [type(base.model).__name__]
    config["dtype"] = _own_dtype(base) or config.get("dtype")
    linears = [path for path, module in base.model.named_modules() if isinstance(module, nn.Linear | Projection)]
    if packed.schemes:
        config["quantization_config"] = to_config(packed.schemes, linears)
    write_json(folder / "config.json", config)


def _own_dtype(base: Base) -> str | None:
    """What the base says it computes in; loading it has overwritten that with the type it was loaded in."""
    if not (base.path / "config.json").is_file():
        return None
    config: dict[str, Any] = read_json(base.path / "config.json")
    return config.get("dtype") or config.get("torch_dtype")


def stock_loadable(packed: Packed, pruned: Pruned | None, experts: ExpertsRecord | None) -> tuple[bool, str | None]:
    """Whether plain transformers loads what was pruned, cut and packed, and why not or what it takes."""
    if experts is not None:
        return False, "each token takes some experts of an MLP, and transformers would compute all of it"
    if pruned is not None and not is_uniform(pruned):
        return False, "layers differ in width or have biases for what was pruned, and config.json cannot say that"
    slots: list[Scheme] = [scheme for path, scheme in packed.schemes.items() if path not in packed.embeddings]
    if packed.embeddings:
        return False, "embeddings are packed, and transformers loads packed linears only"
    if any(not scheme.symmetric for scheme in slots):
        return False, "zero points are packed, which transformers 5 with compressed-tensors 0.20 fails to load"
    if odd := sorted({scheme.bits for scheme in slots} - set(_WHOLE_WORD_BITS)):
        widths = ", ".join(map(str, odd))
        return True, f"needs compressed-tensors 0.20 or newer: older versions pack {widths} bits in another way"
    return True, None
