"""A report card as one HTML page that needs nothing but itself: no script, no font, no other host."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined

from regraft.evaluate.differences import Part, compare, fields
from regraft.evaluate.metrics import exact
from regraft.evaluate.report_card import ArmResult, ExampleAnswers, ReportCard

ARMS = {"teacher": "Teacher", "plugged_in": "Plugged in", "adapted": "Adapted"}
BASELINES = {
    "zero_shot": "the base alone",
    "five_shot": "the base with five examples",
    "majority": "the most common answer",
}
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Bar:
    """One arm of the plot; lengths are percentages of the axis from 0 to 1."""

    arm: str
    title: str
    score: str
    interval: str
    length: float
    low: float
    high: float


@dataclass(frozen=True)
class Column:
    """One arm's answer to an example."""

    arm: str
    title: str
    is_same: bool
    parts: list[Part]


def render_html(card: ReportCard) -> str:
    """The page. Everything that comes from the card is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("regraft.evaluate").joinpath("templates/report_card.html").read_text(encoding="utf-8")
    results: dict[str, ArmResult] = {arm: getattr(card, arm) for arm in ARMS}
    num_changed = round((1 - card.plugged_in.agreement) * card.n)
    return environment.from_string(source).render(
        card=card,
        arms=ARMS,
        baselines=BASELINES,
        lift=_number(card.baseline.lift if card.baseline else None, 3),
        lift_kept=percent(card.lift_kept),
        lift_kept_ci95=[percent(end) for end in card.lift_kept_ci95 or ()],
        plugged_in_lift=percent(card.plugged_in.lift_kept),
        zero=round(100 * card.baseline.score, 3) if card.baseline else None,
        constrained_lift_kept=percent(card.constrained.lift_kept if card.constrained else None),
        constrained_retention=percent(card.constrained.retention if card.constrained else None),
        plugged_in_kept=percent(card.plugged_in.score / card.teacher.score if card.teacher.score else None),
        retention=percent(card.retention),
        retention_ci95=[percent(end) for end in card.retention_ci95 or ()],
        won_back=percent(card.won_back),
        bars=[_bar(arm, result) for arm, result in results.items()],
        table=_table(card, list(results.values())),
        num_changed=num_changed,
        examples=[(example, _columns(example)) for example in card.examples],
        settings={key: _setting(value) for key, value in card.settings.items()},
    )


def percent(share: float | None) -> str:
    """``0.9837`` → ``98.4%``; a dash for None."""
    return NOTHING if share is None else f"{share:.1%}"


def size(count: int | None) -> str:
    """``1234567`` → ``1.2 MB``; a dash for None."""
    if count is None:
        return NOTHING
    number, unit = (count / 1e6, "MB") if count >= 1e6 else (count / 1e3, "kB")
    return f"{number:,.1f}\N{NO-BREAK SPACE}{unit}"


def interval(low: float, high: float) -> str:
    """``0.924 to 0.960``."""
    return f"{low:.3f} to {high:.3f}"


def _bar(arm: str, result: ArmResult) -> Bar:
    low, high = (round(100 * end, 3) for end in result.ci95)
    return Bar(
        arm=arm,
        title=ARMS[arm],
        score=f"{result.score:.3f}",
        interval=interval(*result.ci95),
        length=round(100 * result.score, 3),
        low=low,
        high=high,
    )


def _table(card: ReportCard, results: list[ArmResult]) -> list[tuple[str, list[str]]]:
    """Rows of label and one cell per arm; what no arm knows is left out."""
    rows = [
        ("Score", [f"{result.score:.3f}" for result in results]),
        ("95% interval", [interval(*result.ci95) for result in results]),
        ("Lift kept", [percent(result.lift_kept) for result in results]),
        ("Score, held to the schema", [_number(getattr(card.constrained, arm, None), 3) for arm in ARMS]),
        ("Same answer as the teacher", [NOTHING, *(percent(result.agreement) for result in results[1:])]),
        ("KL from the teacher, nats", [NOTHING, *(_number(result.kl, 4) for result in results[1:])]),
        ("Adapter on disk", [size(result.bytes) for result in results]),
        (f"Seconds for {card.n} answers", [_number(result.seconds, 1) for result in results]),
    ]
    return [(label, cells) for label, cells in rows if set(cells) != {NOTHING}]


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _columns(example: ExampleAnswers) -> list[Column]:
    answers = {arm: getattr(example, arm) for arm in ARMS}
    return [
        Column(arm, ARMS[arm], bool(exact(answer, example.teacher)), compare(answer, example.teacher))
        for arm, answer in answers.items()
    ]


def _setting(value: Any) -> str:
    if isinstance(value, dict) and value:
        return ", ".join(f"{path} {literal}" for path, literal in fields(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
