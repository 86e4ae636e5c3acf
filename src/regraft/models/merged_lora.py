"""The LoRA that a recipe trained after pruning and merged into the weights, kept for those who compare with them.

What rounding took from a merged weight is the distance to ``W + B A``; without B and A it cannot be told from recovery.
Only ``regraft adapt`` reads the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft.errors import FormatError
from regraft.formats.base_record import Recovered
from regraft.storage import file_sha256

RECOVERED_NAME = "recovered.safetensors"


def write_recovered(factors: Mapping[str, tuple[Tensor, Tensor]], folder: Path, dtype: torch.dtype) -> str:
    """Write B ``[out, r]`` and A ``[r, in]`` by slot, scales folded into B; returns the file's sha256."""
    tensors = {
        f"{slot}.{name}": factor.to("cpu", dtype).contiguous()
        for slot, pair in factors.items()
        for name, factor in zip(("up", "down"), pair, strict=True)
    }
    save_file(tensors, folder / RECOVERED_NAME, metadata={"format": "pt"})
    return file_sha256(folder / RECOVERED_NAME)


def read_recovered(folder: Path, recovered: Recovered) -> dict[str, tuple[Tensor, Tensor]]:
    """What :func:`write_recovered` wrote, in float32.

    Raises:
        FormatError: the file is missing, or not the one that the base's record was written with.
    """
    path = folder / RECOVERED_NAME
    if not path.exists():
        raise FormatError(f"{path} is missing", hint="It belongs to the base; copy it again.")
    if file_sha256(path) != recovered.sha256:
        raise FormatError(f"{path} has changed since it was written: it is not that of regraft.json")
    tensors = load_file(path)
    slots = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
    return {slot: (tensors[f"{slot}.up"].float(), tensors[f"{slot}.down"].float()) for slot in slots}
