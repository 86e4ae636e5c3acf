"""Translation of user-interface strings, English to French: Django and Wagtail message catalogues (BSD-3-Clause)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from zoo.packages import fetch, iter_members

MAX_CHARACTERS = 80
_ENTRY = re.compile(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n?)+)', re.MULTILINE)


def strings(packages: Path) -> Iterator[dict[str, str]]:
    """English interface string → French."""
    for package in ("Django", "wagtail"):
        for _, data in iter_members(fetch(package, packages), "locale/fr/LC_MESSAGES/django.po"):
            for english, french in _pairs(data.decode()):
                if english and french and "\n" not in english and len(english) <= MAX_CHARACTERS:
                    yield {"prompt": f"English: {english}\nFrench:", "completion": f" {french}"}


def _pairs(catalogue: str) -> Iterator[tuple[str, str]]:
    for match in _ENTRY.finditer(catalogue):
        english, french = ("".join(ast.literal_eval(line) for line in group.splitlines()) for group in match.groups())
        yield english, french
