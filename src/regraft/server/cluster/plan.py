"""What replicas are told to serve: plain data, that can be sent to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from regraft.engine.network import KvBits
from regraft.server.keys import Keys
from regraft.server.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What each replica serves.

    Attributes:
        base: a BASE argument, as of the command line; a path is absolute.
        adapters: a folder of adapters, absolute, which each replica watches.
        base_name: what requests call the base.
        keys: who may call.
        memory_bytes, kv_bits, threads: of each replica's engine.
        settings: limits.
    """

    base: str
    adapters: Path | None = None
    base_name: str | None = None
    keys: Keys = field(default_factory=Keys)
    memory_bytes: int = 1 << 30
    kv_bits: KvBits = 16
    threads: int = 1
    settings: Settings = field(default_factory=Settings)
