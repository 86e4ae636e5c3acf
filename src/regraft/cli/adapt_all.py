"""``regraft adapt --all``: a folder of adapters, each to a directory of its own."""

from __future__ import annotations

from pathlib import Path

from regraft.adapt.job import Job
from regraft.adapt.many import Outcome, jobs_of, run_all
from regraft.cli.console import TerminalProgress, errors, make_table, out, print_json
from regraft.errors import RegraftError, UsageError


def adapt_all(
    template: Job,
    adapters: Path,
    rows: Path | None,
    output: Path,
    *,
    workers: int,
    overwrite: bool,
    is_json: bool,
    quiet: bool,
) -> None:
    """Adapt all, saying of each what came of it as it ends.

    Raises:
        UsageError: options are at odds; nothing has been done then.
        RegraftError: some could not be adapted; the others are.
    """
    if template.adapter or template.dev or template.test:
        raise UsageError("--adapter, --dev and --test do not go with --all", hint="See --data in the help.")
    outcomes = []
    for outcome in run_all(
        jobs_of(adapters, template, rows),
        output,
        workers=workers,
        overwrite=overwrite,
        progress=TerminalProgress(quiet=quiet),
    ):
        outcomes.append(outcome)
        if not quiet:
            errors.print(f"{outcome.name}: {_told(outcome)}", soft_wrap=True)
    if is_json:
        print_json([_to_json(outcome) for outcome in outcomes])
    else:
        _print(outcomes, output)
    if failed := [outcome.name for outcome in outcomes if outcome.error]:
        raise RegraftError(f"{len(failed)} of {len(outcomes)} adapters failed: {', '.join(failed)}")


def _told(outcome: Outcome) -> str:
    if outcome.error:
        return f"failed: {outcome.error}"
    if outcome.card is None:
        return "is there already"
    if outcome.card.no_lift is not None:
        return f"adapted; no lift to judge it by: {outcome.card.no_lift}"
    kept = outcome.card.lift_kept
    return "adapted" if kept is None else f"adapted, {kept:.1%} of the lift is kept"


def _to_json(outcome: Outcome) -> dict[str, object]:
    return {"adapter": outcome.name, "card": outcome.card and outcome.card.to_json(), "error": outcome.error}


def _print(outcomes: list[Outcome], output: Path) -> None:
    table = make_table("adapter", "teacher", "plugged in", "adapted", "lift kept", "retention")
    for outcome in outcomes:
        if outcome.card is None:
            table.add_row(outcome.name, "", "", "", "", "failed" if outcome.error else "there already")
            continue
        card = outcome.card
        scores = (f"{arm.score:.3f}" for arm in (card.teacher, card.plugged_in, card.adapted))
        lift = "no lift" if card.no_lift is not None else "" if card.lift_kept is None else f"{card.lift_kept:.1%}"
        table.add_row(outcome.name, *scores, lift, "" if card.retention is None else f"{card.retention:.1%}")
    out.print(table)
    out.print(f"written to {output}")
