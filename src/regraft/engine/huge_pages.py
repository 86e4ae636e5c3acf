"""Huge pages for weights, on Linux.

A step reads every weight once, and looks up where each page of them lies on the way. With pages of 2 MiB instead of
4 KiB a step that waits for memory takes an eighth less time. A mapped file has small ones, so the weights are read into
memory of the process's own.
"""

from __future__ import annotations

import mmap
import sys
from pathlib import Path
from typing import BinaryIO

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


def read_into_memory(file: BinaryIO, num_bytes: int) -> mmap.mmap:
    """So many bytes of an open file, in huge pages where the system has them.

    Raises:
        ValueError: the file is shorter, or empty.
    """
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # no shared memory has huge pages
    memory.madvise(mmap.MADV_HUGEPAGE)
    if file.readinto(memory) != num_bytes:  # type: ignore[attr-defined]  # every file of open() has it
        raise ValueError("it changed while it was read")
    return memory


def _available() -> int:
    """Bytes that this process could have, by the system and by its control group."""
    lines = dict(line.split(":") for line in _SYSTEM.read_text().splitlines())
    system = 1024 * int(lines["MemAvailable"].split()[0])
    try:
        return min(system, int(_GROUP.read_text()) - int(_GROUP.with_name("memory.current").read_text()))
    except (OSError, ValueError):  # no such group, or no limit
        return system
