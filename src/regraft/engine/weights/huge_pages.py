"""Huge pages for weights, on Linux.

A step reads every weight once, and looks up where each page of them lies on the way; of pages of 2 MiB there are few. A
mapped file has pages of 4 KiB, so the weights are read into memory of the process's own. That may take a second, and is
done while the mapped ones are in use.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from regraft.errors import RegraftError
from regraft.native import _core

Move = Callable[[Callable[[], bool]], _core.Model | None]

_CHUNK = 1 << 24
_OFFERED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_SYSTEM = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup/memory.max")


def are_worth_it(num_bytes: int) -> bool:
    """Whether this system gives huge pages to who asks, and has room for so many bytes beside their file."""
    if sys.platform != "linux":
        return False
    try:
        return "[never]" not in _OFFERED.read_text() and 2 * num_bytes <= _available()
    except (OSError, ValueError, IndexError):
        return False


def read_into_memory(path: Path, goes_on: Callable[[], bool] = lambda: True) -> NDArray[np.uint8] | None:
    """A file's bytes, in huge pages where the system has them.

    Args:
        path: the file, which is not empty.
        goes_on: asked now and then; once it says no, nothing comes of it.

    Raises:
        OSError: it cannot be read, or there is no memory for it, or no such pages on this system.
        ValueError: it is empty.
    """
    if sys.platform != "linux":
        raise OSError("huge pages are for Linux")
    with path.open("rb", buffering=0) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # none that is shared has them
        memory.madvise(mmap.MADV_HUGEPAGE)
        rest = memoryview(memory)
        while rest:
            if not goes_on():
                return None
            count = file.readinto(rest[:_CHUNK])
            if not count:
                raise OSError(f"{path} was cut while it was read")
            rest = rest[count:]
    array = np.frombuffer(memory, np.uint8)
    array.flags.writeable = False
    return array


class Mover:
    """Moves a base's weights on a thread of its own; where that cannot be, those in the mapped file do as well.

    Args:
        move: makes the model once more, with its weights in huge pages; see :meth:`OpenedBase.in_huge_pages`.
        notify: called on that thread once there is something to take.
        note: told there why nothing came of it.
    """

    def __init__(self, move: Move, notify: Callable[[], None], note: Callable[[str], None]) -> None:
        self._notify, self._note = notify, note
        self._moved: _core.Model | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, args=(move,), name="regraft-weights", daemon=True)
        self._thread.start()

    @property
    def has_moved(self) -> bool:
        """Whether :meth:`take` would give something."""
        return self._moved is not None

    def take(self) -> _core.Model | None:
        """The model, once."""
        moved, self._moved = self._moved, None
        return moved

    def close(self) -> None:
        """Return when nothing is under way any more."""
        self._closed = True
        self._thread.join()
        self._moved = None

    def _work(self, move: Move) -> None:  # which is not kept, since it has the mapped file
        try:
            self._moved = move(lambda: not self._closed)
        except (RegraftError, OSError, ValueError, MemoryError) as error:
            self._note(f"the weights stay in the mapped file, which is slower: {str(error) or type(error).__name__}")
        else:
            self._notify()


def _available() -> int:
    """Bytes that this process could have, by the system and by its control group."""
    lines = dict(line.split(":") for line in _SYSTEM.read_text().splitlines())
    system = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        return min(system, int(_GROUP.read_text()) - int(_GROUP.with_name("memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or no limit
        return system
