"""Translation of user-interface strings from English: Django and Wagtail message catalogues (BSD-3-Clause)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from zoo.packages import fetch, iter_members
from zoo.rows import Row

MAX_CHARACTERS = 80
_ENTRY = re.compile(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n?)+)', re.MULTILINE)


def strings_fr(packages: Path) -> Iterator[Row]:
    """English interface string → French."""
    return _rows(packages, "fr", "French")


def strings_de(packages: Path) -> Iterator[Row]:
    """English interface string → German."""
    return _rows(packages, "de", "German")


def strings_es(packages: Path) -> Iterator[Row]:
    """English interface string → Spanish."""
    return _rows(packages, "es", "Spanish")


def _rows(packages: Path, code: str, language: str) -> Iterator[Row]:
    for package in ("Django", "wagtail"):
        for _, data in iter_members(fetch(package, packages), f"locale/{code}/LC_MESSAGES/django.po"):
            for english, other in _pairs(data.decode()):
                if english and other and "\n" not in english + other and len(english) <= MAX_CHARACTERS:
                    # "Save" and "save…" are one source.
                    source = re.sub(r"[\W_]+", " ", english.casefold()).strip() or english
                    yield Row(f"English: {english}\n{language}:", f" {other}", english, (source,))


def _pairs(catalogue: str) -> Iterator[tuple[str, str]]:
    for match in _ENTRY.finditer(catalogue):
        english, other = ("".join(ast.literal_eval(line) for line in group.splitlines()) for group in match.groups())
        yield english, other
