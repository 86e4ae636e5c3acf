"""Overload: whether more requests come than are served, so that only the newest can still make their deadlines.

S-LoRA's early abort (Sheng et al. 2023, arXiv 2311.03285; `abort_req_queue.py` of the released code): serve
newest-first if `rate ≥ batch`, where

    rate  ← ⌊0.7 · arrivals since the last admission + 0.3 · rate⌋
    batch ← max(⌊0.7 · requests admitted + 0.3 · batch⌋, 1)

are looked at once in a round. A round is 10 steps, which is how long S-LoRA decodes between two looks at its queue.
"""

from __future__ import annotations

ROUND_STEPS = 10
NEW_SHARE = 0.7


class Overload:
    """The two running estimates, fed once a step."""

    def __init__(self) -> None:
        self._rate, self._batch = 0, 1
        self._num_steps = self._num_arrived = self._num_admitted = 0

    @property
    def is_on(self) -> bool:
        """Whether requests come at least as fast as they are admitted, as of the last whole round."""
        return self._rate >= self._batch

    def observe(self, num_arrived: int, num_admitted: int) -> None:
        """Count a step's new requests and admissions."""
        self._num_steps += 1
        self._num_arrived += num_arrived
        self._num_admitted += num_admitted
        if self._num_steps == ROUND_STEPS:
            self._end_round()

    def _end_round(self) -> None:
        self._rate = _smooth(self._num_arrived, self._rate)
        if self._num_admitted:
            self._batch = max(_smooth(self._num_admitted, self._batch), 1)
            self._num_arrived = self._num_admitted = 0
        self._num_steps = 0


def _smooth(new: int, old: int) -> int:
    return int(NEW_SHARE * new + (1 - NEW_SHARE) * old)
