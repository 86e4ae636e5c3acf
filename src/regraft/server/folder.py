"""Adapters that come, change and go with a folder's directories, while the server runs.

The folder is looked at every second or so by names, sizes and times. What has changed is read once it has stayed the
same for two looks, so that a directory is not read while it is being copied; one that cannot be read is reported, and
tried again when it changes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from regraft.errors import RegraftError, UsageError
from regraft.formats.adapter.peft_config import CONFIG_NAME
from regraft.formats.records import RECORD_NAME
from regraft.server.catalogue import Catalogue

_log = logging.getLogger("regraft.server")

State = tuple[tuple[str, int, int, int], ...]  # name, size, time in nanoseconds and inode of each file


def inside(root: Path, path: str | Path) -> Path:
    """The real place of ``path``, which is absolute or below ``root``.

    Raises:
        UsageError: it, or one of the files in it, is elsewhere, be it by a symbolic link; or it is no directory.
    """
    try:
        root = root.resolve(strict=True)
        place = (root / path).resolve(strict=True)
        found = [place, *(Path(entry.path).resolve() for entry in os.scandir(place))]
    except (OSError, ValueError, RuntimeError):  # ValueError: a null character; RuntimeError: links in a circle
        raise UsageError("the adapter's path", expected="a directory below the server's folder") from None
    if place == root or not all(each.is_relative_to(root) for each in found):
        raise UsageError("the adapter's path", expected="a directory below the server's folder, links included")
    return place


class Folder:
    """A folder that is watched.

    Args:
        path: its directories are adapters, by their names.
        catalogue: told of what comes and goes.
    """

    def __init__(self, path: Path, catalogue: Catalogue) -> None:
        self._path, self._catalogue = path, catalogue
        self._seen: dict[str, State] = {}  # what was read, or found wanting
        self._pending: dict[str, State] = {}  # what has changed since, as of the last look
        self.rejected: dict[str, str] = {}  # name → what is wrong with it

    def look(self, *, settled: bool = False) -> None:
        """Bring the catalogue up to date; ``settled`` takes what has changed as it is, without a second look."""
        try:
            found = dict(self._directories())
        except OSError as error:  # it may be away for a moment; what was read from it stays
            _log.warning("%s cannot be read: %s", self._path, error.strerror)
            return
        for name in [name for name in self._seen if name not in found]:
            del self._seen[name]
            self.rejected.pop(name, None)
            self._catalogue.drop(name)
            _log.info("adapter %s has gone", name)
        for name, state in found.items():
            if self._seen.get(name) == state:
                self._pending.pop(name, None)
            elif settled or self._pending.get(name) == state:
                self._pending.pop(name, None)
                self._seen[name] = state
                self._read(name)
            else:
                self._pending[name] = state

    async def watch(self, every_s: float) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await asyncio.to_thread(self.look)
            except Exception:  # whatever it was, the next look may go better
                _log.exception("the adapters' folder could not be looked at")

    def _read(self, name: str) -> None:
        try:
            self._catalogue.put(name, inside(self._path, name), name)
        except RegraftError as error:
            self.rejected[name] = str(error)
            self._catalogue.drop(name)
            _log.warning("adapter %s is left out: %s", name, error)
        else:
            self.rejected.pop(name, None)
            _log.info("adapter %s is there", name)

    def _directories(self) -> Iterator[tuple[str, State]]:
        for entry in sorted(os.scandir(self._path), key=lambda entry: entry.name):
            try:
                state = _state(entry)
            except OSError:
                continue  # it has just gone
            if state is not None:
                yield entry.name, state


def _state(entry: os.DirEntry[str]) -> State | None:
    """What a directory looks like, None if it is no adapter's; hidden ones are not ready yet."""
    if entry.name.startswith(".") or not entry.is_dir():
        return None
    files = {file.name: _stat(file) for file in os.scandir(entry.path)}
    if files.keys().isdisjoint((CONFIG_NAME, RECORD_NAME)):
        return None
    return tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ino) for name, stat in sorted(files.items()))


def _stat(file: os.DirEntry[str]) -> os.stat_result:
    """Of what a link points to, and of the link itself where that is nothing."""
    try:
        return file.stat()
    except OSError:
        return file.stat(follow_symlinks=False)
