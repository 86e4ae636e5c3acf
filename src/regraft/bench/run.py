"""``regraft bench``: all workloads in interleaved rounds, medians, and their share of what memory allows."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
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
        cls,
        workload: str,
        engine: str,
        timings: Sequence[Timing],
        bytes_per_token: float | None,
        bandwidths: Sequence[float],
    ) -> Row:
        """The medians of some rounds.

        Args:
            workload: its name.
            engine: who ran it.
            timings: of each round.
            bytes_per_token: see above.
            bandwidths: what a plain read took just before each of them, in bytes per second: neighbours on the same
                memory can halve it from one minute to the next.
        """
        seconds = median(timing.seconds for timing in timings)
        if not timings[0].tokens:
            return cls(workload, engine, None, None, None, seconds)
        rates = [timing.tokens / timing.seconds for timing in timings]
        share = None
        if bytes_per_token is not None:
            share = median(rate * bytes_per_token / most for rate, most in zip(rates, bandwidths, strict=True))
        return cls(workload, engine, median(rates), bytes_per_token, share, seconds)

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
    bandwidths: dict[str, list[float]] = {name: [] for name in WORKLOADS}
    with tempfile.TemporaryDirectory(prefix="regraft-bench-") as folder:
        session = Session(base, Path(folder), memory_bytes=memory_bytes, threads=core.threads, progress=progress)
        try:
            with progress.track(rounds * len(WORKLOADS), "bench") as advance:
                for _ in range(rounds):
                    for name in WORKLOADS:
                        bandwidths[name].append(read_bandwidth(core))
                        timings[name].append(session.run(name))
                        advance(workload=name)
            rows = [
                Row.of(name, "regraft", found, session.bytes_per_token(name), bandwidths[name])
                for name, found in timings.items()
            ]
        finally:
            session.close()
    return Report(rows, core.kernels, core.threads, median(chain.from_iterable(bandwidths.values())))
