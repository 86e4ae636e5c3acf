"""An adapter's linear part as a GGUF file, which llama.cpp adds to a base by ``--lora``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from regraft.errors import ExportError
from regraft.export.gguf.base import GgufTarget
from regraft.formats.adapter.content import AdapterContent, AnyBypass, StoredAdapter
from regraft.formats.adapter.kinds import KINDS, LORA

_MOST_HALF = 1e4


def write_gguf_lora(adapter: StoredAdapter, target: GgufTarget, path: Path) -> None:
    """Write an adapter as a GGUF file, scales folded into B.

    Args:
        adapter: of a base.
        target: what that base is in GGUF.
        path: the file to write; there is none yet.

    Raises:
        ExportError: the adapter has a non-linear part.
    """
    check_linear(adapter)
    writer = gguf.GGUFWriter(path, target.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)  # 0: what a user sets is the scale, whatever the rank
    for slot, factors in adapter.of(LORA).items():
        name = target.tensor(f"model.{slot}.weight")
        up = factors.scale * factors.up.astype(np.float32)
        writer.add_tensor(f"{name}.lora_a", _narrow(np.ascontiguousarray(factors.down, np.float32)))
        writer.add_tensor(f"{name}.lora_b", _narrow(target.rows(name, up)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _narrow(factor: NDArray[np.float32]) -> NDArray[Any]:
    """In float16, where it stays in its range."""
    return factor.astype(np.float16) if np.abs(factor).max() < _MOST_HALF else factor


def check_linear(adapter: AdapterContent[AnyBypass]) -> None:
    """Refuse an adapter that no other engine computes.

    Raises:
        ExportError: it has a non-linear part.
    """
    if not all(KINDS[bypass.kind].is_linear for bypass in adapter):
        raise ExportError(
            f"adapter {adapter.name} has a non-linear recovery part, which only regraft runs",
            hint="Adapt it with `recover: {kind: linear}`, whose result is a plain LoRA.",
        )
