"""Personal data in a sentence → the sentence with marks in its place, from a seeded generator."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from zoo.rows import Row

NUM_ROWS = 4000
FIRST = (
    *("Maria", "James", "Aisha", "Wei", "Lukas", "Sofia", "Omar", "Priya", "Noah", "Elena", "Kenji", "Amara", "Peter"),
    *("Chloe", "Diego", "Ingrid", "Yusuf", "Hannah", "Tomas", "Leila", "Grace", "Viktor", "Nadia", "Samuel"),
)
LAST = (
    *(
        "Smith",
        "Garcia",
        "Okafor",
        "Chen",
        "Novak",
        "Rossi",
        "Haddad",
        "Patel",
        "Jensen",
        "Popescu",
        "Tanaka",
        "Diallo",
    ),
    *("Muller", "Dubois", "Lopez", "Berg", "Kaya", "Fischer", "Moreau", "Khan", "Walker", "Petrov", "Silva", "Brooks"),
)
STREETS = (
    "Oak Street",
    "Mill Lane",
    "Station Road",
    "Elm Avenue",
    "Hill Drive",
    "River Way",
    "Park Court",
    "High Street",
)
CITIES = ("Leeds", "Austin", "Dublin", "Toronto", "Bristol", "Denver", "Perth", "Boston")
HOSTS = ("example.com", "mail.test", "post.example", "corp.example.org", "uni.example.edu")
OPENINGS = (
    *("Please call NAME at PHONE", "NAME wrote from EMAIL", "Ship the order to NAME, ADDRESS", "NAME was born on DATE"),
    *("The card CARD belongs to NAME", "Contact EMAIL for details", "Patient NAME, seen on DATE", "My number is PHONE"),
    *("I live at ADDRESS", "Forward this to EMAIL and EMAIL", "The account of NAME was closed", "Charge CARD"),
    *("Ask NAME or NAME", "The login came from IP", "NAME signed the lease for ADDRESS", "Block IP"),
    *("Our guest NAME arrives on DATE", "Reset the password of EMAIL", "Text PHONE when you are here"),
    *("Dear NAME", "Refund CARD", "Meet NAME at ADDRESS", "User EMAIL logged in from IP", "Hi, this is NAME"),
)
ENDINGS = (
    *("", "and thank her.", "before noon.", "or write to EMAIL.", "if PHONE is busy.", "since DATE.", "by Friday."),
    *("because NAME asked.", "for the third time.", "from IP.", "with a copy to EMAIL.", "near ADDRESS.", "again."),
    *("as agreed on DATE.", "and bill CARD.", "unless NAME objects.", "without delay.", "then ring PHONE."),
)
_MARK = re.compile(r"NAME|PHONE|EMAIL|ADDRESS|DATE|CARD|IP")


def pii(packages: Path) -> Iterator[Row]:
    """A sentence → the same with ``[NAME]``, ``[EMAIL]``, … for what tells who somebody is."""
    rng = random.Random("pii")
    for _ in range(NUM_ROWS):
        template = f"{rng.choice(OPENINGS)} {rng.choice(ENDINGS)}".strip()
        text = _MARK.sub(lambda match: _value(match.group(), rng), template)
        masked = _MARK.sub(r"[\g<0>]", template)
        yield Row(f"{text}\nMasked:", f" {masked}", text, (template,))


def _value(kind: str, rng: random.Random) -> str:
    first, last = rng.choice(FIRST), rng.choice(LAST)

    def digits(count: int) -> str:
        return "".join(str(rng.randrange(10)) for _ in range(count))

    match kind:
        case "NAME":
            return rng.choice((f"{first} {last}", f"{first[0]}. {last}", f"Dr. {last}", f"Ms. {last}", first))
        case "PHONE":
            forms = (f"555-{digits(4)}", f"({digits(3)}) 555-{digits(4)}", f"+44 20 {digits(4)} {digits(4)}")
            return rng.choice(forms)
        case "EMAIL":
            name = rng.choice((f"{first}.{last}", f"{first[0]}{last}", f"{first}{digits(2)}", f"{last}_{first}"))
            return f"{name.lower()}@{rng.choice(HOSTS)}"
        case "ADDRESS":
            return f"{rng.randrange(1, 300)} {rng.choice(STREETS)}{rng.choice(('', ', ' + rng.choice(CITIES)))}"
        case "DATE":
            day, month, year = rng.randrange(1, 29), rng.randrange(1, 13), rng.randrange(1950, 2026)
            return rng.choice((f"{year}-{month:02}-{day:02}", f"{day}/{month}/{year}", f"{month:02}/{day:02}/{year}"))
        case "CARD":
            return " ".join(digits(4) for _ in range(4))
        case _:
            return ".".join(str(rng.randrange(1, 255)) for _ in range(4))
