"""``regraft check``: a gate for CI on an adapter's report card."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.console import out, print_json
from regraft.cli.options import JsonOption

GATE_NOT_MET = 3


def check(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapted adapter's directory.")],
    min_retention: Annotated[float, typer.Option(help="Smallest adapted / teacher score that passes.")] = 0.97,
    json_output: JsonOption = False,
) -> None:
    """Exit 0 if the adapter kept enough of its teacher's score, 3 if not."""
    from regraft.errors import UsageError
    from regraft.evaluate.report_card import read_report_card

    if not adapter.is_dir():
        raise UsageError(f"there is no adapter directory {adapter}")
    card = read_report_card(adapter)
    met = card.retention is not None and card.retention >= min_retention
    if json_output:
        print_json({"retention": card.retention, "min_retention": min_retention, "met": met})
    else:
        verdict = "[green]met[/]" if met else "[red]not met[/]"
        kept = "unknown" if card.retention is None else f"{card.retention:.1%}"
        out.print(f"retention {kept} of the teacher, at least {min_retention:.1%} asked: {verdict}")
    if not met:
        raise typer.Exit(GATE_NOT_MET)
