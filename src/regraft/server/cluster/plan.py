"""The plan of a server: its base, adapters and options, as plain data for replicas."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from regraft.engine.engine import Engine
from regraft.engine.weights.native_model import KvBits
from regraft.progress import Progress, silent
from regraft.server.keys import Keys
from regraft.server.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What a server, or each of its replicas, serves.

    Attributes:
        base: a BASE argument, as of the command line.
        adapters: a folder of adapters, which is watched.
        base_name: what requests call the base.
        keys: who may call.
        memory_bytes, kv_bits, threads, huge_pages: of each engine; see there.
        settings: limits.
    """

    base: str
    adapters: Path | None = None
    base_name: str | None = None
    keys: Keys = field(default_factory=Keys)
    memory_bytes: int = 1 << 30
    kv_bits: KvBits = 16
    threads: int | None = None
    huge_pages: bool | None = None
    settings: Settings = field(default_factory=Settings)

    def engine(self, progress: Progress = silent) -> Engine:
        """An engine of its own; raises as :class:`regraft.engine.engine.Engine` does."""
        return Engine(
            self.base,
            memory_bytes=self.memory_bytes,
            kv_bits=self.kv_bits,
            threads=self.threads,
            huge_pages=self.huge_pages,
            progress=progress,
        )
