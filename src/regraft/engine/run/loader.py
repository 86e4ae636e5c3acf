"""Loading of adapters: at once, while the step waits, or on a thread of its own, while steps go on."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable

from regraft.engine.schedule.residency import AdapterRef
from regraft.native import _core

Load = Callable[[], _core.Adapter]
Loaded = tuple[AdapterRef, _core.Adapter | Exception]  # or why it could not be loaded


class Loader:
    """Loads at once, on the caller's thread. All methods are for that thread alone."""

    def __init__(self) -> None:
        self._loaded: deque[Loaded] = deque()
        self.num_begun = 0  # of which the results are still to be taken

    @property
    def has_results(self) -> bool:
        """Whether :meth:`take` would give any."""
        return bool(self._loaded)

    def begin(self, adapter: AdapterRef, load: Load) -> None:
        """Load an adapter; what ``load`` raises becomes its result."""
        self.num_begun += 1
        self._run(adapter, load)

    def take(self) -> list[Loaded]:
        """The results that have come since this was last asked, in the order of beginning."""
        loaded = [self._loaded.popleft() for _ in range(len(self._loaded))]
        self.num_begun -= len(loaded)
        return loaded

    def close(self) -> None:
        """Return when no load is under way; none may be begun afterwards."""

    def _run(self, adapter: AdapterRef, load: Load) -> None:
        try:
            self._loaded.append((adapter, load()))
        except Exception as error:  # whatever it was, it is only about this adapter
            self._loaded.append((adapter, error))


class BackgroundLoader(Loader):
    """Loads one after the other on a thread, which begins with the first.

    Args:
        notify: called on that thread after each load; it may neither raise nor wait for the loader.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        super().__init__()
        self._notify = notify
        self._asked: queue.SimpleQueue[tuple[AdapterRef, Load] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def begin(self, adapter: AdapterRef, load: Load) -> None:
        """Let an adapter be loaded after those that were begun before."""
        self.num_begun += 1
        self._asked.put((adapter, load))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="regraft-loader", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Return when the load under way has ended; those that have not begun are dropped."""
        self._closed = True
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None and not self._closed:
            self._run(*asked)
            self._notify()
