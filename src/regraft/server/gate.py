"""Admission of answers: a limit on those that wait or run, and a time to come again above it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from regraft.server.errors import ApiError

_NEW_SHARE = 0.2
_LONGEST_S = 60


class Gate:
    """Lets so many answers in.

    Args:
        max_answers: at once.
    """

    def __init__(self, max_answers: int) -> None:
        self._max_answers = max_answers
        self._seconds = 1.0  # that a request took of late
        self.num_inside = 0

    def check(self, num_answers: int) -> None:
        """Nothing, if there is room for a request's answers.

        Raises:
            ApiError: 429: there is none, with the seconds after which there may be.
        """
        if self.num_inside + num_answers > self._max_answers:
            wait_s = min(max(math.ceil(self._seconds), 1), _LONGEST_S)
            message = f"The server has {self.num_inside} answers to give and takes at most {self._max_answers}."
            raise ApiError(429, message, code="queue_full", retry_after_s=wait_s)

    @contextmanager
    def enter(self, num_answers: int) -> Iterator[None]:
        """Count a request's answers for as long as the context lasts; raises what :meth:`check` does."""
        self.check(num_answers)
        self.num_inside += num_answers
        start = time.monotonic()
        try:
            yield
        finally:
            self.num_inside -= num_answers
            self._seconds += _NEW_SHARE * (time.monotonic() - start - self._seconds)
