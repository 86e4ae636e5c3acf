"""Directories that appear whole or not at all, long work that can be taken up again, and what files hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regraft.errors import FormatError, UsageError


def check_output(path: Path, *, overwrite: bool = False) -> None:
    """Fail early if ``path`` cannot become an output directory.

    Raises:
        UsageError: it exists and ``overwrite`` is off, or its parent cannot be written.
    """
    if path.is_file():
        raise UsageError(f"output {path}", expected="a directory to make", found="a file")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise UsageError(
            f"output {path} exists", hint="Choose another directory, or pass --overwrite to replace this one."
        )
    parent = path.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make {parent}: {error.strerror}") from None
    if not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write to {parent}: permission denied")


@contextmanager
def output_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty sibling directory that is renamed to ``path`` at the end, and removed if an exception escapes.

    A process killed in between leaves only the hidden sibling, which the next call clears.
    """
    check_output(path, overwrite=overwrite)
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _open_to_others(partial)
        _replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def output_file(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a hidden sibling that is renamed to ``path`` at the end, and removed if an exception escapes.

    Raises:
        UsageError: ``path`` exists and ``overwrite`` is off, is a directory, or cannot be written.
    """
    if path.is_dir():
        raise UsageError(f"output {path}", expected="a file to make", found="a directory")
    if path.exists() and not overwrite:
        raise UsageError(f"output {path} exists", hint="Choose another, or pass --overwrite to replace this one.")
    check_output(path.with_name(f".{path.name}.none"))
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _open_to_others(folder: Path) -> None:
    """Give files the permissions that any new file gets: safetensors keeps its own to their owner."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _replace(new: Path, path: Path) -> None:
    if not path.exists():
        new.rename(path)
        return
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def work_path(path: Path) -> Path:
    """The hidden sibling of ``path`` where a long job keeps what it needs to be resumed, be it there or not."""
    path = path.resolve()
    return path.with_name(f".{path.name}.work")


def work_directory(path: Path) -> Path:
    """The same, made if missing."""
    folder = work_path(path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_json(path: Path, data: Any) -> None:
    """Write JSON under a temporary name, then rename."""
    write_bytes(path, (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, then rename."""
    with own_partial(path) as partial:
        partial.write_bytes(data)


@contextmanager
def own_partial(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling of its own for a file that several processes may make at once; renamed at the end."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FormatError: the file is missing, unreadable, or holds no JSON object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path} is missing") from None
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise FormatError(f"{path} is nested too deeply to be read") from None
    if not isinstance(data, dict):
        raise FormatError(str(path), expected="a JSON object", found=type(data).__name__)
    return data


def directory_state(folder: Path) -> tuple[tuple[object, ...], ...]:
    """Names, sizes, times and places on disk of a directory's files: another state wherever something was written."""
    try:
        files = sorted(os.scandir(folder), key=lambda entry: entry.name)
        stats = [(entry.name, os.stat(entry.path)) for entry in files]
    except OSError:
        return ()
    return tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_dev, s.st_ino) for name, s in stats)


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_home() -> Path:
    """Where converted bases are kept: ``$REGRAFT_CACHE``, or ``regraft`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if own := os.environ.get("REGRAFT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regraft"
