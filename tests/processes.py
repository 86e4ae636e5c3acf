"""Processes that tests start, and what tests wait for: patient on a busy machine, and nothing is left in the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import psutil

# Far more than anything takes on a machine that others keep busy; only what has failed takes so long.
PATIENCE_S = 600.0


def until(holds: Callable[[], Any], *, every_s: float = 0.01) -> None:
    """Wait for what another thread or process brings about."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(every_s)


def regraft_process(*arguments: object, **options: Any) -> AbstractContextManager[subprocess.Popen[str]]:
    """``regraft ARGUMENTS``, as :func:`started_process`."""
    return started_process(sys.executable, "-m", "regraft", *arguments, **options)


@contextmanager
def started_process(*command: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command in a session of its own; however the context ends, all of its processes end with it.

    Args:
        command: its words.
        options: of :class:`subprocess.Popen`.
    """
    process = subprocess.Popen([*map(str, command)], text=True, start_new_session=True, **options)
    try:
        yield process
    finally:
        end_family(process.pid)
        process.communicate()


def family(leader: int) -> list[psutil.Process]:
    """The living processes of a session, and what these have started in further ones."""
    members = [process for process in psutil.process_iter() if _session(process.pid) == leader]
    found = set(members)
    for member in members:
        with suppress(psutil.NoSuchProcess):
            found |= set(member.children(recursive=True))
    return [process for process in found if _lives(process)]


def end_family(leader: int) -> None:
    """Kill a session's processes, those too that are started meanwhile, and see them end."""
    ending = set[psutil.Process]()

    def has_ended() -> bool:
        ending.update(family(leader))
        for process in ending:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return not any(_lives(process) for process in ending)

    until(has_ended)


def words_of(process: psutil.Process) -> str:
    """Its command line; empty for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:  # it has just ended
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
