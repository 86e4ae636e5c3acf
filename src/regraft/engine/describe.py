"""Description of the engine for ``regraft info --engine``: kernels, threads, pages."""

from __future__ import annotations

import mmap
import os
from typing import Any

from regraft.engine.engine import default_threads
from regraft.engine.weights.native_model import PAGE_TOKENS
from regraft.engine.weights.open_base import OpenedBase
from regraft.native import _core


def describe_engine(base: OpenedBase | None = None) -> dict[str, Any]:
    """Facts of the engine as plain data; of a base as well, if there is one."""
    runnable = _core.kernels()
    described: dict[str, Any] = {
        "kind": "engine",
        "kernels": runnable[0],
        "kernels_runnable": runnable,
        "kernels_built": _core.built_kernels(),
        "threads": default_threads(),
        "cores": os.cpu_count(),
        "bytes_system_page": mmap.PAGESIZE,
        "tokens_per_page": PAGE_TOKENS,
    }
    if base:
        described |= {
            "base": base.name,
            "bytes_packed": base.num_bytes,
            "bytes_per_step": base.model.step_bytes,
            "bytes_per_page": base.model.kv_page_bytes,
            "bytes_kv_per_token": base.model.kv_page_bytes // PAGE_TOKENS,
        }
    return described
