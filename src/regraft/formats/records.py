"""``regraft.json``: one reader for the records of every kind, each of which has its own version."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, TypeVar

from regraft.config import Strict, parse
from regraft.errors import ConfigError, FormatError
from regraft.storage import read_json

RECORD_NAME = "regraft.json"


class Record(Strict):
    """What a directory says of itself. Subclasses name the noun they are of, and their newest version."""

    noun: ClassVar[str]
    newest: ClassVar[int]


AnyRecord = TypeVar("AnyRecord", bound=Record)


def record_kind(folder: Path) -> str | None:
    """The kind of a directory's record (``base``, ``adapter``); None if it has no record."""
    path = folder / RECORD_NAME
    return str(read_json(path).get("kind")) if path.is_file() else None


def read_record_of(folder: Path, kind: str, model: type[AnyRecord]) -> AnyRecord | None:
    """The directory's record, or None if it has none.

    Raises:
        FormatError: there is a record, but it is of another kind, or of a newer format, or damaged.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    data: dict[str, Any] = read_json(path)
    if data.get("kind") != kind:
        raise FormatError(str(path), expected=f"the record of {model.noun}", found=f"kind {data.get('kind')!r}")
    if data.get("format_version", 0) > model.newest:
        raise FormatError(
            f"{path} is of format {data['format_version']}", expected=f"at most {model.newest}", hint="Upgrade regraft."
        )
    try:
        return parse(model, data, str(path))
    except ConfigError as error:
        raise FormatError(str(error)) from None
