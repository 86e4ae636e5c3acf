"""Statistics of a running engine, for metrics and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.scheduler import Scheduler


@dataclass(frozen=True)
class EngineStats:
    """One moment.

    Attributes:
        num_waiting: requests that have not started.
        num_running: requests that have.
        waiting_adapters: names of the adapters of the former.
        running_adapters: of the latter.
        num_pages: of the memory.
        num_free_pages: of them without an owner.
        num_idle_pages: of them that hold what may be of use again, and leave when their room is needed.
        page_bytes: the size of one.
        adapter_bytes: name → bytes of the factors, of each adapter in memory; a step that uses it reads them all.
    """

    num_waiting: int
    num_running: int
    waiting_adapters: tuple[str, ...]
    running_adapters: tuple[str, ...]
    num_pages: int
    num_free_pages: int
    num_idle_pages: int
    page_bytes: int
    adapter_bytes: dict[str, int]

    @property
    def memory_use(self) -> float:
        """The share of the memory that what runs keeps, in [0, 1]."""
        return 1 - (self.num_free_pages + self.num_idle_pages) / self.num_pages


def read_stats(scheduler: Scheduler, adapter_bytes: Mapping[AdapterRef, int]) -> EngineStats:
    """Look at a scheduler, and at the adapters that its loop has, between two steps."""
    return EngineStats(
        num_waiting=scheduler.num_waiting,
        num_running=scheduler.num_running,
        waiting_adapters=tuple(sorted(scheduler.waiting_adapters)),
        running_adapters=tuple(sorted(scheduler.running_adapters)),
        num_pages=scheduler.pool.num_pages,
        num_free_pages=scheduler.pool.num_free,
        num_idle_pages=scheduler.num_idle_pages,
        page_bytes=scheduler.pool.page_bytes,
        adapter_bytes={adapter.name: count for adapter, count in adapter_bytes.items()},
    )
