"""Ray, started on this machine or joined on the cluster that ``RAY_ADDRESS`` names, and left again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psutil
import ray
from ray._private import services

from regraft.errors import RegraftError

_STORE_BYTES = 128 << 20  # what passes through it here is small
# Ray's own choices would have its workers wait for whatever else the machine does, and give up what starts late.
_ON_A_BUSY_MACHINE = {
    "RAY_worker_niceness": "0",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_gcs_server_port_wait_time_s": "600",
}
_START_S = 300.0


@contextmanager
def started(num_cpus: int) -> Iterator[None]:
    """Ray for as long as the context lasts; what it has started ends with it.

    Args:
        num_cpus: that tasks and replicas will ask for together; a Ray of our own has at least so many.

    Raises:
        RegraftError: it does not start, or cannot be joined.
    """
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", **_ON_A_BUSY_MACHINE}.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        cpus = max(num_cpus, os.cpu_count() or 1)
        options |= {"num_cpus": cpus, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _init(options)
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # which Ray has made its own


def _init(options: Mapping[str, Any]) -> None:
    before = _children()
    try:
        with _patience():
            ray.init(**options)
    except Exception as error:  # of whatever type: a port, a time limit, an address
        _end(_children() - before)
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RegraftError(f"Ray does not start: {reason}", hint="Its logs are in /tmp/ray.") from None


@contextmanager
def _patience() -> Iterator[None]:
    """Wait longer for Ray's node than the 30 s that it gives itself, and that no option changes."""
    find = services.get_node

    def find_late(*args: Any, **options: Any) -> Any:
        end = time.monotonic() + _START_S
        while True:
            try:
                return find(*args, **options)
            except RuntimeError:  # it has not registered yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.1)

    services.get_node = find_late
    try:
        yield
    finally:
        services.get_node = find


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end(processes: set[psutil.Process]) -> None:
    """Kill what a start has left that failed, and wait for its end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes)
