"""Inflection: lemminflect's table of English forms (MIT)."""

from __future__ import annotations

import gzip
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from zoo.packages import fetch, read_member
from zoo.rows import Row

# Where a form stands among those of its part of speech, and what a prompt calls it.
FORMS = {
    ("noun", 0): "plural",
    ("verb", 0): "past",
    ("verb", 2): "gerund",
    ("verb", 3): "third person",
    ("adj", 0): "comparative",
    ("adj", 1): "superlative",
}
PER_FORM = 500


def inflection(packages: Path) -> Iterator[Row]:
    """A lemma and the name of a form → the form."""
    table = gzip.decompress(read_member(fetch("lemminflect", packages), "resources/infl_lu.csv.gz")).decode()
    lines = table.splitlines()
    random.Random("inflection").shuffle(lines)
    seen: Counter[str] = Counter()
    for line in lines:
        lemma, part, *forms = line.split(",")
        for (wanted, place), name in FORMS.items():
            form = forms[place] if part == wanted and place < len(forms) else ""
            # With a slash there are two spellings; equal to the lemma ("sheep", "put"), nothing is asked.
            if form.isalpha() and lemma.isalpha() and lemma.islower() and form != lemma and seen[name] < PER_FORM:
                seen[name] += 1
                yield Row(f"{lemma}, {name}:", f" {form}", f"{lemma}, {name}", (lemma,))
