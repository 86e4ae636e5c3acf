"""Carry existing LoRA adapters over to a compressed LLM, and recover what the compression cost them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from regraft.engine.answer import Completion, Piece, Stream
    from regraft.engine.engine import Engine

__version__ = "0.1.0"
__all__ = ["Completion", "Engine", "Piece", "Stream", "__version__"]

_LAZY = {
    "Completion": "regraft.engine.answer",
    "Engine": "regraft.engine.engine",
    "Piece": "regraft.engine.answer",
    "Stream": "regraft.engine.answer",
}


def __getattr__(name: str) -> Any:
    """The public classes, imported when they are first asked for: ``import regraft`` alone brings nothing."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
