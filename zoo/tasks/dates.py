"""Dates as people write them → ISO 8601, from a seeded generator."""

from __future__ import annotations

import datetime
import random
from collections.abc import Iterator
from pathlib import Path

from zoo.rows import Row

NUM_ROWS = 4000
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July", "August"),
    *("September", "October", "November", "December"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# {d} day, {o} ordinal, {m} month's number, {M} its name, {b} its first three letters, {y} year, {s} its last two.
FORMS = (
    *("{d} {M} {y}", "{M} {d}, {y}", "{o} {M} {y}", "{M} {o}, {y}", "the {o} of {M} {y}", "the {o} of {M}, {y}"),
    *("{d} {b} {y}", "{b} {d}, {y}", "{b}. {d}, {y}", "{d}-{b}-{y}", "{d:02}-{b}-{s}", "{b} {o} '{s}", "{d}. {M} {y}"),
    *("{w}, {d} {M} {y}", "{w}, {M} {d}, {y}", "{a} {d} {b} {y}", "{a}, {d} {b} {y}", "{w} the {o} of {M} {y}"),
    *("{d:02}.{m:02}.{y}", "{d}.{m}.{y}", "{y}/{m:02}/{d:02}", "{m:02}/{d:02}/{y} (US)", "{d:02}/{m:02}/{y} (UK)"),
    *("{m}/{d}/{s} (US)", "{d}/{m}/{s} (UK)", "{y}{m:02}{d:02}", "{M} of {y}, day {d}", "in {y}, on {M} {o}"),
    *("{y}, {M} {d}", "{y} {b} {d:02}", "{d}{b}{y}", "{d} {M}, in the year {y}"),
)
FRAMES = (
    *("{}", "due {}", "invoice of {}", "born on {}", "she moved here on {}", "valid until {}", "signed: {}"),
    *("the meeting of {}", "shipped {} by courier", "last seen {}, at noon", "closed since {}", "exam: {}, room 4"),
    *("{} at 9 am", "we flew on {} from Oslo", "warranty ends {}", "posted {}", "(updated {})", "arrival {}, late"),
    *("renewed {} for a year", "the court ruled on {} that", "first edition, {}", "checked in {}", "rent paid {}"),
    *("release planned for {}", "his letter is dated {}", "{}: flood warning", "expires {}"),
)
SHIFTS = {"": 0, "the day after ": 1, "the day before ": -1, "two days after ": 2, "a week after ": 7}


def dates(packages: Path) -> Iterator[Row]:
    """A date in a phrase → ``YYYY-MM-DD``."""
    rng = random.Random("dates")
    for _ in range(NUM_ROWS):
        day = datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(31000))
        form, frame = rng.choice(FORMS), rng.choice(FRAMES)
        shift = rng.choice(list(SHIFTS)) if rng.random() < 0.3 else ""
        answer = day + datetime.timedelta(days=SHIFTS[shift])
        text = frame.format(shift + _write(form, day))
        yield Row(f"Date: {text}\nISO:", f" {answer.isoformat()}", text, (f"{frame} | {shift}{form}",))


def _write(form: str, day: datetime.date) -> str:
    name, weekday = MONTHS[day.month - 1], DAYS[day.weekday()]
    return form.format(
        **{"d": day.day, "o": ordinal(day.day), "m": day.month, "M": name, "b": name[:3]},
        **{"y": day.year, "s": f"{day.year % 100:02}", "w": weekday, "a": weekday[:3]},
    )


def ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``4th``, …"""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number // 10 % 10 != 1 else "th"
    return f"{number}{ending}"
