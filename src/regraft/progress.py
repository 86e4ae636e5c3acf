"""Progress of long work: the library reports, the command line draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Report ``n`` more units done; fields (``loss=…``) are shown beside the bar."""

    def __call__(self, n: int = 1, **fields: object) -> None:
        """Advance by ``n``."""


class Progress(Protocol):
    """Draws bars and notes; :data:`silent` draws nothing."""

    def track(self, total: int, label: str) -> AbstractContextManager[Advance]:
        """A context manager that yields :class:`Advance` for ``total`` units of work."""

    def note(self, text: str) -> None:
        """Say one line: a cost, a choice made for the user, a fallback."""


class _Silent:
    @contextmanager
    def track(self, total: int, label: str) -> Iterator[Advance]:
        yield lambda n=1, **fields: None

    def note(self, text: str) -> None:
        return None


silent: Progress = _Silent()
