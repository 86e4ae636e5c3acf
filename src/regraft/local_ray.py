"""Ray, started on this machine or joined on the cluster that ``RAY_ADDRESS`` names, and left again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray

from regraft.errors import RegraftError

_STORE_BYTES = 128 << 20  # what passes through it here is small
# Ray's own choices would have its workers wait for whatever else the machine does, and give up those that start late.
_ON_A_BUSY_MACHINE = {"RAY_worker_niceness": "0", "RAY_worker_register_timeout_seconds": "600"}


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
    try:
        _init(options)
        yield
    finally:
        ray.shutdown()


def _init(options: Mapping[str, Any]) -> None:
    try:
        ray.init(**options)
    except Exception as error:  # of whatever type: a port, a time limit, an address
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RegraftError(f"Ray does not start: {reason}", hint="Its logs are in /tmp/ray.") from None
