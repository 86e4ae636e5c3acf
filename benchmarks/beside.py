"""Decode speed of a base beside another, round by round in one run."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from regraft.bench.session import Session

WORKLOADS = ("decode-1", "decode-8")


def beside(
    method: str, folder: Path, other: str, other_folder: Path, *, rounds: int, steps: int = 32
) -> dict[str, Any]:
    """Tokens per second of a method's base and of another's: medians, and the median of the rounds' ratios."""
    folders, rates = {method: folder, other: other_folder}, dict[tuple[str, str], list[float]]()
    found: dict[str, Any] = {"beside": other}
    with tempfile.TemporaryDirectory() as work:
        sessions = {name: Session(base, Path(work) / name, steps=steps) for name, base in folders.items()}
        for _ in range(rounds):
            for workload in WORKLOADS:
                for name, session in sessions.items():
                    timing = session.run(workload)
                    rates.setdefault((name, workload), []).append(timing.tokens / timing.seconds)
        for workload in WORKLOADS:
            pairs = zip(rates[method, workload], rates[other, workload], strict=True)
            found[workload] = {
                "tokens_per_s": {name: median(rates[name, workload]) for name in sessions},
                "ratio": median(ours / theirs for ours, theirs in pairs),
                "bytes_per_token": {name: session.bytes_per_token(workload) for name, session in sessions.items()},
            }
        for session in sessions.values():
            session.close()
    return found
