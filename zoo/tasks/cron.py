"""A schedule in words → a cron expression, from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.rows import Row
from zoo.tasks.dates import DAYS, MONTHS, ordinal

NUM_ROWS = 4000
JOBS = (
    *("{}", "back up the database {}", "send the report {}", "rotate logs {}", "{}, run the tests", "sync files {}"),
    *("{}, clean the cache", "poll the queue {}", "renew certificates {}", "please {}: deploy", "build docs {}"),
    *("restart the worker {}", "{}, mail the team", "scan for viruses {}", "refresh the index {}", "a job {}"),
    *("{}, check the disks", "export invoices {}", "water the plants {}", "{} import orders", "warm the cache {}"),
)
Draw = Callable[[random.Random], tuple[str, str]]


def cron(packages: Path) -> Iterator[Row]:
    """When a job should run, in words → five cron fields."""
    rng = random.Random("cron")
    for _ in range(NUM_ROWS):
        job = rng.choice(JOBS)
        name, (days, day_fields) = _pick(rng, _DAYS)
        if rng.random() < 0.35:
            kind, (when, fields) = _pick(rng, _REPEATS)
        else:
            kind, (when, fields) = _pick(rng, _TIMES)
        text = job.format(f"{when} {days}" if rng.random() < 0.5 or kind in _REPEATS else f"{days} {when}")
        yield Row(f"Schedule: {text}\nCron:", f" {fields} {day_fields}", text, (f"{job} | {kind} | {name}",))


def _pick(rng: random.Random, choices: dict[str, Draw]) -> tuple[str, tuple[str, str]]:
    name = rng.choice(list(choices))
    return name, choices[name](rng)


def _clock(rng: random.Random) -> tuple[int, int]:
    return rng.choice((0, 0, 5, 10, 15, 20, 30, 30, 40, 45, 50, rng.randrange(60))), rng.randrange(24)


def _at_24(rng: random.Random) -> tuple[str, str]:
    minute, hour = _clock(rng)
    return f"at {hour:02}:{minute:02}", f"{minute} {hour}"


def _at_12(rng: random.Random) -> tuple[str, str]:
    minute, hour = _clock(rng)
    told = f"{hour % 12 or 12}:{minute:02}" if minute else f"{hour % 12 or 12}"
    return f"at {told} {'am' if hour < 12 else 'pm'}", f"{minute} {hour}"


def _at_noon(rng: random.Random) -> tuple[str, str]:
    return rng.choice((("at noon", "0 12"), ("at midnight", "0 0"), ("at half past noon", "30 12")))


def _past(rng: random.Random) -> tuple[str, str]:
    hour = rng.randrange(1, 12)
    minute, told = rng.choice(((30, "half past"), (15, "a quarter past"), (10, "ten past"), (20, "twenty past")))
    morning = rng.random() < 0.5
    return f"at {told} {hour} in the {'morning' if morning else 'afternoon'}", f"{minute} {hour + 12 * (not morning)}"


def _every_minutes(rng: random.Random) -> tuple[str, str]:
    step = rng.choice((2, 3, 4, 5, 6, 10, 12, 15, 20, 30))
    return f"every {step} minutes", f"*/{step} *"


def _every_hours(rng: random.Random) -> tuple[str, str]:
    step, minute = rng.choice((2, 3, 4, 6, 8, 12)), rng.randrange(60)
    return f"every {step} hours at minute {minute}", f"{minute} */{step}"


def _hourly(rng: random.Random) -> tuple[str, str]:
    minute = rng.randrange(1, 60)
    return f"{minute} minutes past every hour", f"{minute} *"


def _between(rng: random.Random) -> tuple[str, str]:
    start = rng.randrange(0, 20)
    end, step = rng.randrange(start + 1, 24), rng.choice((5, 10, 15, 20, 30))
    return f"every {step} minutes from {start}:00 to {end}:59", f"*/{step} {start}-{end}"


def _weekday(rng: random.Random) -> tuple[str, str]:
    day = rng.randrange(7)
    return f"every {DAYS[day]}", f"* * {(day + 1) % 7}"


def _two_weekdays(rng: random.Random) -> tuple[str, str]:
    first, second = sorted(rng.sample(range(6), 2))
    return f"on {DAYS[first]} and {DAYS[second]}", f"* * {first + 1},{second + 1}"


def _span(rng: random.Random) -> tuple[str, str]:
    first = rng.randrange(4)
    last = rng.randrange(first + 1, 6)
    return f"{DAYS[first]} to {DAYS[last]}", f"* * {first + 1}-{last + 1}"


def _monthly(rng: random.Random) -> tuple[str, str]:
    day = rng.randrange(1, 29)
    return f"on the {ordinal(day)} of every month", f"{day} * *"


def _yearly(rng: random.Random) -> tuple[str, str]:
    month, day = rng.randrange(12), rng.randrange(1, 29)
    return f"on {MONTHS[month]} {day}", f"{day} {month + 1} *"


def _in_month(rng: random.Random) -> tuple[str, str]:
    month = rng.randrange(12)
    return f"every day in {MONTHS[month]}", f"* {month + 1} *"


_TIMES: dict[str, Draw] = {"at 24": _at_24, "at 12": _at_12, "noon": _at_noon, "past": _past}
_REPEATS: dict[str, Draw] = {
    "every minutes": _every_minutes,
    "every hours": _every_hours,
    "hourly": _hourly,
    "between": _between,
}
_DAYS: dict[str, Draw] = {
    "daily": lambda rng: ("every day", "* * *"),
    "weekdays": lambda rng: ("on weekdays", "* * 1-5"),
    "weekend": lambda rng: ("on weekends", "* * 0,6"),
    "weekday": _weekday,
    "two weekdays": _two_weekdays,
    "span": _span,
    "monthly": _monthly,
    "yearly": _yearly,
    "in month": _in_month,
}
