"""Do two addresses mean the same place? usaddress's addresses (MIT), written another way or changed in one part."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from zoo.rows import Row
from zoo.tasks.labelled_xml import addresses

SHORT = {
    **{"street": "St", "avenue": "Ave", "road": "Rd", "drive": "Dr", "boulevard": "Blvd", "lane": "Ln", "court": "Ct"},
    **{"place": "Pl", "circle": "Cir", "highway": "Hwy", "parkway": "Pkwy", "north": "N", "south": "S", "east": "E"},
    **{"west": "W"},
}
LONG = {short.casefold(): word.capitalize() for word, short in SHORT.items()}
Parts = dict[str, str]


def matches(packages: Path) -> Iterator[Row]:
    """Two addresses → yes or no. Each address of the corpus makes one row of either answer."""
    rng = random.Random("matches")
    rows = [row for row in addresses(packages) if {"number", "street", "city"} <= json.loads(row.answer).keys()]
    streets = sorted({json.loads(row.answer)["street"] for row in rows})
    for row in rows:
        parts: Parts = json.loads(row.answer)
        for answer, told in (("yes", parts), ("no", _changed(parts, streets, rng))):
            text = f"A: {row.text}\nB: {_written(told, rng)}"
            yield Row(f"{text}\nSame place:", f" {answer}", text, row.sources)


def _changed(parts: Parts, streets: list[str], rng: random.Random) -> Parts:
    """The parts with another number, or another street."""
    number = parts["number"]
    places = [place for place, letter in enumerate(number) if letter.isdigit()]
    if not places or rng.random() < 0.4:
        mine = parts["street"].casefold()
        return {**parts, "street": rng.choice([street for street in streets if street.casefold() != mine])}
    place = rng.choice(places)
    digit = rng.choice([digit for digit in "123456789" if digit != number[place]])
    return {**parts, "number": number[:place] + digit + number[place + 1 :]}


def _written(parts: Parts, rng: random.Random) -> str:
    """The parts as another clerk would write them."""
    words = SHORT if rng.random() < 0.5 else LONG
    place = [words.get(part.casefold().rstrip("."), part) for part in _named(parts, "number", "direction", "street")]
    place += [words.get(part.casefold().rstrip("."), part) for part in _named(parts, "type")]
    region = _named(parts, "state") + (_named(parts, "zip") if rng.random() < 0.6 else [])
    joint = rng.choice((", ", " ", ", "))
    text = joint.join(filter(None, (" ".join(place), parts["city"], " ".join(region))))
    return rng.choice((str.upper, str.lower, str.title, str))(text)


def _named(parts: Parts, *names: str) -> list[str]:
    return [parts[name] for name in names if name in parts]
