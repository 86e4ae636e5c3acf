"""Residency of adapters in the pool.

They come when a request needs or will need them, stay while any sequence uses them, and afterwards for as long as
nobody needs the room: the least recently used idle one leaves first. (LoRAX sends idle ones away as soon as any other
waits, room or not.) Two versions of one adapter are two adapters, so replacing one does not touch what is under way.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from regraft.engine.checks import check, check_integer
from regraft.engine.schedule.pool import Pool


@dataclass(frozen=True)
class AdapterRef:
    """One version of an adapter.

    Args:
        name: what requests call it.
        digest: of its content; it tells versions apart.
        num_pages: how many pages of the pool it takes, at least 1.
        path: where it is read from; the same content is the same version wherever it lies.
        state: of its files when it was read (:func:`regraft.storage.directory_state`).

    Raises:
        UsageError: no digest, or no pages.
    """

    name: str
    digest: str
    num_pages: int
    path: Path | None = field(default=None, compare=False)
    state: tuple[object, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        check(bool(self.digest), f"adapter {self.name}", expected="a digest of its content", found=self.digest)
        check_integer(f"adapter {self.name}: pages", self.num_pages, 1)


class Residency:
    """Adapters in the pool: loading or in use, which are pinned; or idle, which can be evicted.

    Steps are the scheduler's count of them; they tell what was used last.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._loading: set[AdapterRef] = set()
        self._in_use: dict[AdapterRef, int] = {}  # how many sequences use it
        self._idle: OrderedDict[AdapterRef, int] = OrderedDict()  # since which step; the longest idle first

    @property
    def idle_since(self) -> int | None:
        """The step since which the adapter that :meth:`evict` would take is idle, None if there is none to take."""
        return next(iter(self._idle.values()), None)

    @property
    def num_in_use(self) -> int:
        """How many distinct adapters running sequences use."""
        return len(self._in_use)

    @property
    def num_idle_pages(self) -> int:
        """Pages of the adapters that no sequence uses."""
        return sum(adapter.num_pages for adapter in self._idle)

    def is_ready(self, adapter: AdapterRef) -> bool:
        """Whether it is in the pool and loaded."""
        return adapter in self._in_use or adapter in self._idle

    def is_resident(self, adapter: AdapterRef) -> bool:
        """Whether it has its pages, loaded or not."""
        return self.is_ready(adapter) or adapter in self._loading

    def load(self, adapter: AdapterRef) -> tuple[int, ...]:
        """Take pages for an absent adapter, of which enough must be free; they are for the caller to fill.

        Raises:
            ValueError: it is there already, or the room is not.
        """
        pages = None if self.is_resident(adapter) else self._pool.take(adapter, adapter.num_pages)
        if pages is None:
            raise ValueError(f"{adapter} cannot be loaded with {self._pool.num_free} free pages")
        self._pool.pin(adapter)
        self._loading.add(adapter)
        return tuple(pages)

    def loaded(self, adapter: AdapterRef, step: int) -> None:
        """Its pages are filled."""
        self._loading.remove(adapter)
        self._pool.unpin(adapter)
        self._idle[adapter] = step

    def load_failed(self, adapter: AdapterRef) -> None:
        """Its pages will not be filled; they are free again."""
        self._loading.remove(adapter)
        self._pool.unpin(adapter)
        self._pool.release(adapter)

    def use(self, adapter: AdapterRef) -> None:
        """One more sequence uses a loaded adapter.

        Raises:
            ValueError: it is not loaded.
        """
        if not self.is_ready(adapter):
            raise ValueError(f"{adapter} is not loaded")
        self._idle.pop(adapter, None)
        self._pool.pin(adapter)
        self._in_use[adapter] = self._in_use.get(adapter, 0) + 1

    def disuse(self, adapter: AdapterRef, step: int) -> None:
        """Undo one :meth:`use`; what nobody uses is idle."""
        self._in_use[adapter] -= 1
        self._pool.unpin(adapter)
        if not self._in_use[adapter]:
            del self._in_use[adapter]
            self._idle[adapter] = step

    def touch(self, adapter: AdapterRef, step: int) -> None:
        """A waiting request will use it: of the idle ones it is to leave last."""
        if adapter in self._idle:
            self._idle[adapter] = step
            self._idle.move_to_end(adapter)

    def evict(self) -> AdapterRef:
        """Free the pages of the adapter that is idle longest, and say which it was.

        Raises:
            KeyError: none is idle.
        """
        adapter, _ = self._idle.popitem(last=False)
        self._pool.release(adapter)
        return adapter
