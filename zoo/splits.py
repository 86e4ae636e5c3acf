"""Train, dev and test, apart by source and without near-twins.

The hash of a source decides its split, whatever other rows there are; so one source shared by several tasks (a string
in three languages) is in the same split of each. A row of two sources is kept where both say the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from zoo.rows import Row
from zoo.twins import find_twin_rows

NUM_DEV = 200
NUM_TEST = 240


class SplitError(RuntimeError):
    """A task's rows do not make three splits, or those are not apart."""


@dataclass(frozen=True)
class Counts:
    """How many rows a task had, and why some are in no split.

    Attributes:
        rows: distinct prompts.
        straddling: of two sources that belong to different splits.
        twins_dev: dev rows dropped as near-twins of a test row.
        twins_train: train rows dropped as near-twins of a dev or test row.
        spare: beyond the number wanted.
    """

    rows: int
    straddling: int
    twins_dev: int
    twins_train: int
    spare: int

    def to_json(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


@dataclass(frozen=True)
class Splits:
    """The rows of each split, and the count of those that were left out."""

    train: list[Row]
    dev: list[Row]
    test: list[Row]
    counts: Counts


def split(rows: Iterable[Row], shares: tuple[float, float], max_train: int) -> Splits:
    """Split rows by the hash of their sources.

    Args:
        rows: of one task; of rows with one prompt the first is taken.
        shares: of the sources that go to test, and to dev.
        max_train: train rows at most.

    Raises:
        SplitError: too few rows for test or dev.
    """
    distinct = list({row.prompt: row for row in reversed(list(rows))}.values())
    parts: dict[str, list[Row]] = {"test": [], "dev": [], "train": [], "none": []}
    for row in sorted(distinct, key=lambda row: _digest(row.prompt)):
        names = {_part(source, shares) for source in row.sources}
        parts[names.pop() if len(names) == 1 else "none"].append(row)
    test = parts["test"][:NUM_TEST]
    apart = _without_twins(parts["dev"], test)
    dev = apart[:NUM_DEV]
    if len(test) < NUM_TEST or len(dev) < NUM_DEV:
        raise SplitError(f"{len(test)} test and {len(dev)} dev rows; expected {NUM_TEST} and {NUM_DEV}")
    learnt = _without_twins(parts["train"], [*test, *dev])
    train = learnt[:max_train]
    counts = Counts(
        rows=len(distinct),
        straddling=len(parts["none"]),
        twins_dev=len(parts["dev"]) - len(apart),
        twins_train=len(parts["train"]) - len(learnt),
        spare=sum(map(len, (parts["test"], apart, learnt))) - len(test) - len(dev) - len(train),
    )
    return Splits(train, dev, test, counts)


def check_apart(train: Sequence[Row], dev: Sequence[Row], test: Sequence[Row]) -> None:
    """Refuse splits that share a source, or hold near-twins of each other's rows.

    Raises:
        SplitError: naming the first pair.
    """
    for name, rows, others in (("dev", dev, test), ("train", train, [*dev, *test])):
        shared = {source for row in rows for source in row.sources} & {s for row in others for s in row.sources}
        if shared:
            raise SplitError(f"source {min(shared)!r} is in {name} and in a split that is held out from it")
        for place, other in find_twin_rows(rows, others).items():
            raise SplitError(f"near-twins: {rows[place].text!r} in {name}, {others[other].text!r} held out from it")


def _without_twins(rows: list[Row], held_out: list[Row]) -> list[Row]:
    twins = find_twin_rows(rows, held_out)
    return [row for place, row in enumerate(rows) if place not in twins]


def _part(source: str, shares: tuple[float, float]) -> str:
    test, dev = shares
    place = int(_digest(source)[:12], 16) / 16**12  # in [0, 1)
    if place < test:
        return "test"
    return "dev" if place < test + dev else "train"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
