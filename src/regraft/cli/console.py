"""The only place that draws: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from regraft.progress import Advance

# A pipe or a log has no width of its own; the 80 columns that rich assumes would cut tables.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
errors = Console(stderr=True, highlight=False)


def print_json(data: Any) -> None:
    """Machine-readable result, nothing else on stdout."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


class TerminalProgress:
    """Bars on stderr, where stderr is a terminal; notes always, unless ``quiet``."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet

    def note(self, text: str) -> None:
        """One dim line."""
        if not self._quiet:
            errors.print(f"[dim]· {text}[/]", soft_wrap=True)

    @contextmanager
    def track(self, total: int, label: str) -> Iterator[Advance]:
        """A bar with counts, time left and the fields it is told of."""
        columns = [
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[extra]}"),
        ]
        hidden = self._quiet or not errors.is_terminal
        with Bars(*columns, console=errors, transient=True, disable=hidden) as bars:
            task = bars.add_task(label, total=total, extra="")

            def advance(n: int = 1, **fields: object) -> None:
                bars.update(task, advance=n, extra=" ".join(f"{k} {v}" for k, v in fields.items()))

            yield advance


def make_table(*columns: str, title: str | None = None) -> Table:
    """A plain table: the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def human_bytes(count: float) -> str:
    """``1234567`` → ``1.2 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"
