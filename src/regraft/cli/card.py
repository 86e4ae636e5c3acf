"""A report card in the terminal."""

from __future__ import annotations

from rich.markup import escape

from regraft.cli.console import human_bytes, make_table, out
from regraft.evaluate.report_card import Kept, ReportCard

ARMS = {"teacher": "teacher (uncompressed)", "plugged_in": "plugged in, unadapted", "adapted": "adapted"}
BASELINES = {
    "zero_shot": "the base without the adapter",
    "five_shot": "the base with five examples",
    "majority": "the most common answer",
}


def print_card(card: ReportCard) -> None:
    """The table of the three arms and the baseline, what is kept, and the examples side by side."""
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
    for kind, score in card.baseline.scores.items() if card.baseline else ():
        mark = ", the baseline" if card.baseline and kind == card.baseline.kind else ""
        table.add_row(f"{BASELINES[kind]}{mark}", f"{score:.3f}", "", "", "", "")
    out.print(table)
    for kind, note in card.baseline.notes.items() if card.baseline else ():
        out.print(f"{BASELINES[kind]}: {note}", soft_wrap=True)
    out.print()
    _print_kept(card)
    if card.won_back is not None:
        out.print(f"{card.won_back:.0%} of what plugging in lost is won back")
    if (held := card.constrained) is not None:
        scores = ", ".join(f"{label} {getattr(held, key):.3f}" for key, label in ARMS.items())
        out.print(f"\nheld to the schema: {scores}", soft_wrap=True)
        _print_kept(held)
    out.print()
    for example in card.examples:
        out.print(f"[bold]prompt[/]      {escape(example.prompt)}", soft_wrap=True)
        for key in ("reference", *ARMS):
            out.print(f"{key.replace('_', ' '):<11} {escape(getattr(example, key))}", soft_wrap=True)
        out.print()


def _print_kept(kept: Kept) -> None:
    """Lift kept, then retention."""
    if kept.lift_kept is not None and kept.lift_kept_ci95 is not None:
        out.print(f"lift kept [bold]{kept.lift_kept:.1%}[/]{_interval(kept.lift_kept_ci95)}")
    elif kept.no_lift is not None:
        out.print(f"no lift: {kept.no_lift}", soft_wrap=True)
    if kept.retention is None or kept.retention_ci95 is None:
        out.print("the teacher scores 0, so there is nothing to retain")
    else:
        out.print(f"retention {kept.retention:.1%}{_interval(kept.retention_ci95)}")


def _interval(ends: tuple[float, float]) -> str:
    return f" (95 % CI {ends[0]:.1%} to {ends[1]:.1%})"
