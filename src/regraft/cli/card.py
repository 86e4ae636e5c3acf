"""A report card in the terminal."""

from __future__ import annotations

from rich.markup import escape

from regraft.cli.console import human_bytes, make_table, out
from regraft.evaluate.report_card import ReportCard

ARMS = {"teacher": "teacher (uncompressed)", "plugged_in": "plugged in, unadapted", "adapted": "adapted"}


def print_card(card: ReportCard) -> None:
    """The table of the three arms, the retention, and the examples side by side."""
    table = make_table("", card.metric, "95 % CI", "agrees", "KL", "size", title=f"{card.n} test rows")
    for key, label in ARMS.items():
        arm = getattr(card, key)
        table.add_row(
            label,
            f"{arm.score:.3f}",
            f"{arm.ci95[0]:.3f} to {arm.ci95[1]:.3f}",
            f"{arm.agreement:.1%}",
            "" if arm.kl is None else f"{arm.kl:.3f}",
            "" if arm.bytes is None else human_bytes(arm.bytes),
        )
    out.print(table)
    if card.retention is None or card.retention_ci95 is None:
        out.print("\nthe teacher scores 0, so there is nothing to retain\n")
    else:
        low, high = card.retention_ci95
        won = "" if card.won_back is None else f"; {card.won_back:.0%} of what plugging in lost is won back"
        out.print(f"\nretention [bold]{card.retention:.1%}[/] (95 % CI {low:.1%} to {high:.1%}){won}\n")
    for example in card.examples:
        out.print(f"[bold]prompt[/]      {escape(example.prompt)}", soft_wrap=True)
        for key in ("reference", *ARMS):
            out.print(f"{key.replace('_', ' '):<11} {escape(getattr(example, key))}", soft_wrap=True)
        out.print()
