"""``regraft bench``: all workloads in interleaved rounds, medians, and their share of what memory allows."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from regraft.bench.session import Session, Timing
from regraft.bench.traffic import read_bandwidth
from regraft.bench.workloads import WORKLOADS
from regraft.engine.engine import default_threads
from regraft.native import _core
from regraft.progress import Progress, silent


@dataclass(frozen=True)
class Row:
    """One workload's result; what does not apply to it is None.

    Attributes:
        workload: its name.
        engine: who ran it.
        tokens_per_s: median over rounds.
        bytes_per_token: that memory has to give, see :mod:`regraft.bench.traffic`.
        roofline_share: bytes read per second over those that a plain read takes.
        seconds: of the median round.
    """

    workload: str
    engine: str
    tokens_per_s: float | None
    bytes_per_token: float | None
    roofline_share: float | None
    seconds: float

    @classmethod
    def of(
        cls, workload: str, engine: str, timings: list[Timing], bytes_per_token: float | None, bandwidth: float
    ) -> Row:
        """The median of some rounds, beside a read bandwidth in bytes per second."""
        seconds = median(timing.seconds for timing in timings)
        if not timings[0].tokens:
            return cls(workload, engine, None, None, None, seconds)
        rate = median(timing.tokens / timing.seconds for timing in timings)
        share = None if bytes_per_token is None else rate * bytes_per_token / bandwidth
        return cls(workload, engine, rate, bytes_per_token, share, seconds)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Report:
    """All rows, and the machine's part: kernels, threads, and the median read bandwidth in bytes per second."""

    rows: list[Row]
    kernels: str
    threads: int
    bandwidth: float


def bench(
    base: str,
    *,
    memory_bytes: int = 1 << 30,
    threads: int | None = None,
    rounds: int = 5,
    progress: Progress = silent,
) -> Report:
    """Measure all workloads on this machine.

    Args:
        base: a BASE argument, as of the command line.
        memory_bytes: of the engine.
        threads: of the engine and of the plain read; by default one per core.
        rounds: each runs every workload once.
        progress: told of the workloads.

    Raises:
        UsageError, FormatError, CapacityError: see :class:`regraft.bench.session.Session`.
    """
    core = _core.Core(threads or default_threads())
    timings: dict[str, list[Timing]] = {name: [] for name in WORKLOADS}
    bandwidths = []
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        session = Session(base, Path(folder), memory_bytes=memory_bytes, threads=core.threads, progress=progress)
        try:
            with progress.track(rounds * len(WORKLOADS), "bench") as advance:
                for _ in range(rounds):
                    bandwidths.append(read_bandwidth(core))
                    for name in WORKLOADS:
                        timings[name].append(session.run(name))
                        advance(workload=name)
            bandwidth = median(bandwidths)
            rows = [
                Row.of(name, "regraft", found, session.bytes_per_token(name), bandwidth)
                for name, found in timings.items()
            ]
        finally:
            session.close()
    return Report(rows, core.kernels, core.threads, bandwidth)
