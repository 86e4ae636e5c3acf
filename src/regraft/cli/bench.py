"""``regraft bench``: how fast the engine is on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli.console import TerminalProgress, human_bytes, make_table, out, print_json
from regraft.cli.options import BaseArgument, JsonOption, MemoryOption, QuietOption, ThreadsOption, parse_bytes

if TYPE_CHECKING:
    from regraft.bench.run import Report


def bench(
    base: BaseArgument,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of all workloads; their medians are printed.")] = 5,
    memory: MemoryOption = "1GiB",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Measure the engine on this machine: decoding, prefill, adapters, loading; and how near memory's limit it is."""
    from regraft.bench.run import bench as measure

    progress = TerminalProgress(quiet=quiet)
    report = measure(base, memory_bytes=parse_bytes(memory), threads=threads, rounds=rounds, progress=progress)
    if json_output:
        print_json([row.to_json() for row in report.rows])
    else:
        _draw(base, report)


def _draw(base: str, report: Report) -> None:
    from regraft.bench.workloads import WORKLOADS

    threads = f"{report.threads} thread{'s' * (report.threads > 1)}"
    out.print(f"[bold]{base}[/], {report.kernels} kernels, {threads}; they read {human_bytes(report.bandwidth)}/s")
    table = make_table("", "tokens/s", "seconds", "read per token", "of the roofline")
    for row in report.rows:
        table.add_row(
            WORKLOADS[row.workload].title,
            "" if row.tokens_per_s is None else f"{row.tokens_per_s:.1f}",
            f"{row.seconds:.3f}",
            "" if row.bytes_per_token is None else human_bytes(row.bytes_per_token),
            "" if row.roofline_share is None else f"{row.roofline_share:.0%}",
        )
    out.print(table)
