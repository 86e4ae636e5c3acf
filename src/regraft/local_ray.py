"""Ray, started on this machine or joined on the cluster that ``RAY_ADDRESS`` names, and left again."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

_STORE_BYTES = 128 << 20  # what passes through it here is small


@contextmanager
def started(num_cpus: int) -> Iterator[None]:
    """Ray for as long as the context lasts; what it has started ends with it.

    Args:
        num_cpus: that tasks and replicas will ask for together; a Ray of our own has at least so many.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        cpus = max(num_cpus, os.cpu_count() or 1)
        options |= {"num_cpus": cpus, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    ray.init(**options)
    try:
        yield
    finally:
        ray.shutdown()
