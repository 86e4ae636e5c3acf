"""``regraft check``: a gate for CI on an adapter's report card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli.console import out, print_json
from regraft.cli.options import JsonOption

if TYPE_CHECKING:
    from regraft.evaluate.report_card import ReportCard

GATE_NOT_MET = 3
MIN_LIFT_KEPT = 0.9


def check(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="An adapted adapter's directory.")],
    min_lift_kept: Annotated[
        float | None,
        typer.Option(
            help="Smallest share of what the teacher adds to the baseline that passes; "
            f"{MIN_LIFT_KEPT} where neither this nor --min-retention is given."
        ),
    ] = None,
    min_retention: Annotated[
        float | None, typer.Option(help="Smallest adapted / teacher score that passes, alone or beside the other.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Exit 0 if the adapter kept enough of what its teacher can do, 3 if not or if that cannot be judged."""
    from regraft.errors import UsageError
    from regraft.evaluate.report_card import read_report_card

    if not adapter.is_dir():
        raise UsageError(f"there is no adapter directory {adapter}")
    card = read_report_card(adapter)
    if min_lift_kept is None and min_retention is None:
        min_lift_kept = MIN_LIFT_KEPT
    gates = {"lift kept": (card.lift_kept, min_lift_kept), "retention": (card.retention, min_retention)}
    met = all(least is None or (share is not None and share >= least) for share, least in gates.values())
    if json_output:
        shares = {"lift_kept": card.lift_kept, "min_lift_kept": min_lift_kept, "no_lift": card.no_lift}
        print_json(shares | {"retention": card.retention, "min_retention": min_retention, "met": met})
    else:
        for name, (share, least) in gates.items():
            out.print(f"{name} {_told(name, share, least, card)}", soft_wrap=True)
    if not met:
        raise typer.Exit(GATE_NOT_MET)


def _told(name: str, share: float | None, least: float | None, card: ReportCard) -> str:
    if share is None:
        reason = _why_unknown(card) if name == "lift kept" else "the teacher scores 0"
        return f"unknown, as {reason}" if least is None else f"[red]cannot be judged[/]: {reason}"
    if least is None:
        return f"{share:.1%}"
    return f"{share:.1%}, at least {least:.1%} asked: {'[green]met[/]' if share >= least else '[red]not met[/]'}"


def _why_unknown(card: ReportCard) -> str:
    if card.no_lift is None:
        return "the card was written before lift was measured; adapt again, or ask for --min-retention"
    return f"there is no lift: {card.no_lift}"
