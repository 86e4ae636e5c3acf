"""``regraft eval --choices``: multiple choice by log-likelihood, in the engine."""

from __future__ import annotations

from pathlib import Path

from regraft.cli.console import TerminalProgress, out, print_json
from regraft.cli.options import parse_weights
from regraft.errors import UsageError


def refuse_what_generates(**options: object) -> None:
    """Say of options that are set, but do nothing beside ``--choices``.

    Raises:
        UsageError: there are such.
    """
    for name, value in options.items():
        if value:
            raise UsageError(
                f"--{name.replace('_', '-')} is about answers that are generated, --choices generates none"
            )


def evaluate_choices(
    base: str,
    data: Path,
    adapters: list[str] | None,
    limit: int | None,
    batch_size: int,
    answers: Path | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Score the rows of a file; the arguments are those of the command."""
    from regraft.engine.engine import Engine
    from regraft.evaluate.choices import read_questions, score_choices, write_likelihoods

    mix, progress = parse_weights(adapters or []), TerminalProgress(quiet=quiet)
    questions = read_questions(data)[:limit]
    with Engine(base, {path: path for path in mix}, progress=progress) as engine:
        scores = score_choices(engine, questions, mix, batch_size=batch_size, progress=progress)
        name = engine.base.name
    if answers:
        write_likelihoods(answers, questions, scores)
    if as_json:
        print_json({"metric": "choices", **scores.to_json(), "base": name, "adapters": mix})
        return
    for label, score in (("acc", scores.acc), ("acc_norm", scores.acc_norm)):
        low, high = score.ci95
        out.print(f"{label} {score.value:.3f}  (95 % CI {low:.3f} to {high:.3f}, n = {score.n})")
    majority = "" if scores.majority is None else f", the most frequent answer {scores.majority:.3f}"
    out.print(f"guessing scores {scores.chance:.3f}{majority}")
