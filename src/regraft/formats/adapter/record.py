"""``regraft.json`` of an adapted adapter: for which base, from what, by whom taught, on what data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from regraft.config import Strict, parse
from regraft.errors import ConfigError, FormatError
from regraft.storage import read_json

RECORD_NAME = "regraft.json"
FORMAT_VERSION = 1


class Parent(Strict):
    """The adapter that this one was made from, and the hash of its weights file."""

    name: str
    sha256: str


class AdapterRecord(Strict):
    """Provenance of an adapter. Fingerprints are those of :mod:`regraft.models.fingerprint`.

    ``recovery_scales`` holds the scale of each slot's recovery bypass, whose factors are in ``recovery.safetensors``.
    """

    kind: Literal["adapter"] = "adapter"
    format_version: int = FORMAT_VERSION
    regraft_version: str
    base_name: str
    base_fingerprint: str
    teacher_fingerprint: str
    parent: Parent | None = None
    shared: Parent | None = None
    recovery: Literal["gelu", "linear", "none"]
    recovery_scales: dict[str, float] = {}
    data: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    seed: int
    training: dict[str, Any] = {}


def read_record(folder: Path) -> AdapterRecord | None:
    """The directory's adapter record, or None for a plain PEFT directory.

    Raises:
        FormatError: there is a record, but it is no adapter's, or of a newer format.
    """
    path = folder / RECORD_NAME
    if not path.exists():
        return None
    data = read_json(path)
    if data.get("kind") != "adapter":
        raise FormatError(str(path), expected="the record of an adapter", found=f"kind {data.get('kind')!r}")
    if data.get("format_version", 0) > FORMAT_VERSION:
        raise FormatError(
            f"{path} is of format {data['format_version']}",
            expected=f"at most {FORMAT_VERSION}",
            hint="Upgrade regraft.",
        )
    try:
        return parse(AdapterRecord, data, str(path))
    except ConfigError as error:
        raise FormatError(str(error)) from None
