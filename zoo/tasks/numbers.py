"""Numbers in English words → digits, from a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from zoo.rows import Row

NUM_ROWS = 4000
UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
SCALES = ((1_000_000_000, "billion"), (1_000_000, "million"), (1000, "thousand"))
IRREGULAR = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}


def numbers(packages: Path) -> Iterator[Row]:
    """An amount, ordinal, decimal, percentage or fraction in words → figures."""
    rng = random.Random("numbers")
    for _ in range(NUM_ROWS):
        text, answer = rng.choice(_KINDS)(rng)
        yield Row(f"Words: {text}\nFigures:", f" {answer}", text, (text,))


def in_words(number: int, *, british: bool = False) -> str:
    """A number of at most twelve digits as it is said; ``british`` puts an "and" before the tens."""
    for size, name in SCALES:
        if number >= size:
            rest = number % size
            joint = " and " if british and size == 1000 and 0 < rest < 100 else " "
            tail = joint + in_words(rest, british=british) if rest else ""
            return f"{in_words(number // size, british=british)} {name}{tail}"
    if number >= 100:
        rest = number % 100
        tail = (" and " if british else " ") + in_words(rest) if rest else ""
        return f"{UNITS[number // 100]} hundred{tail}"
    if number >= 20:
        return TENS[number // 10] + (f"-{UNITS[number % 10]}" if number % 10 else "")
    return UNITS[number]


def _ordinal_words(number: int) -> str:
    head, joint, last = in_words(number).rpartition(" ")
    tens, hyphen, unit = last.rpartition("-")
    ending = IRREGULAR.get(unit) or (unit[:-1] + "ieth" if unit.endswith("y") else unit.removesuffix("e") + "th")
    if unit == "twelve":
        ending = "twelfth"
    return f"{head}{joint}{tens}{hyphen}{ending}"


def _drawn(rng: random.Random, digits: int) -> int:
    """A number of up to so many digits, with zeros more often than by chance."""
    text = "".join(
        str(rng.choice((0, rng.randrange(10)))) if rng.random() < 0.3 else str(rng.randrange(10))
        for _ in range(rng.randint(1, digits))
    )
    return int(text)


def _cardinal(rng: random.Random) -> tuple[str, str]:
    number = _drawn(rng, 9)
    return in_words(number, british=rng.random() < 0.5), str(number)


def _ordinal(rng: random.Random) -> tuple[str, str]:
    number = rng.randrange(1, 1000)
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number // 10 % 10 != 1 else "th"
    return f"the {_ordinal_words(number)}", f"{number}{ending}"


def _money(rng: random.Random) -> tuple[str, str]:
    whole, cents = _drawn(rng, 5), rng.randrange(1, 100)
    unit, part, sign = rng.choice((("dollars", "cents", "$"), ("pounds", "pence", "£"), ("euros", "cents", "€")))
    return f"{in_words(whole)} {unit} and {in_words(cents)} {part}", f"{sign}{whole}.{cents:02}"


def _decimal(rng: random.Random) -> tuple[str, str]:
    whole, digits = _drawn(rng, 4), [rng.randrange(10) for _ in range(rng.randint(1, 4))]
    told = " ".join(UNITS[digit] for digit in digits)
    return f"{in_words(whole)} point {told}", f"{whole}.{''.join(map(str, digits))}"


def _percent(rng: random.Random) -> tuple[str, str]:
    whole, tenth = rng.randrange(1, 400), rng.randrange(1, 10)
    return f"{in_words(whole)} point {UNITS[tenth]} percent", f"{whole}.{tenth}%"


def _minus(rng: random.Random) -> tuple[str, str]:
    number = _drawn(rng, 6) + 1
    return f"minus {in_words(number)}", f"-{number}"


def _scaled(rng: random.Random) -> tuple[str, str]:
    (size, name), whole, tenth = rng.choice(SCALES), rng.randrange(1, 100), rng.randrange(1, 10)
    return f"{in_words(whole)} point {UNITS[tenth]} {name}", str(whole * size + tenth * size // 10)


_KINDS: tuple[Callable[[random.Random], tuple[str, str]], ...] = (
    *(_cardinal, _cardinal, _cardinal, _ordinal, _money, _decimal, _percent, _minus, _scaled),
)
