"""Draw the next token from a row of logits.

The order is that of transformers: penalties, temperature, top-k, top-p, min-p. Top-p is nucleus sampling (Holtzman et
al. 2019, arXiv 1904.09751), min-p Nguyen et al. 2024 (arXiv 2407.01082), the repetition penalty CTRL's (Keskar et al.
2019, arXiv 1909.05858).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from regraft.engine.constraint import Constraint
from regraft.engine.request import SamplingParams
from regraft.errors import RegraftError

_SMALLEST, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_HEAD = 256  # the likeliest tokens, which nearly always are all that top-p keeps


class NonFiniteLogitsError(RegraftError):
    """The base, or an adapter, computed something that is no number."""


@dataclass(frozen=True)
class Drawn:
    """A token, and where asked for, what the base thought of it.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability before penalties, temperature and cuts; None if not asked for.
        likeliest: (token, log probability) of the likeliest tokens, in that order.
        hidden: float32 ``[hidden]``, what the base's head made it of; None if not asked for.
    """

    token: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()
    hidden: NDArray[np.float32] | None = field(default=None, compare=False)


class Sampler:
    """One sequence's sampling: its parameters, its random state, and the tokens that penalties are for.

    Args:
        params: how to draw.
        prompt: token ids of the prompt, which the repetition penalty is for as well.
        constraint: what else the answer keeps to.
    """

    def __init__(
        self, params: SamplingParams, prompt: Sequence[int] = (), constraint: Constraint | None = None
    ) -> None:
        self._params, self._constraint = params, constraint
        self._random = np.random.default_rng(params.seed) if params.temperature > 0 else None
        self._seen = set(prompt) if params.repetition_penalty != 1.0 else set()
        self._counts: Counter[int] = Counter()

    def draw(self, logits: NDArray[np.float32]) -> Drawn:
        """Draw from ``logits`` ``[vocabulary]``, which stay as they are, and remember what was drawn.

        Raises:
            NonFiniteLogitsError: a logit is infinite or not a number.
            ConstraintError: see :class:`regraft.engine.constraint.Constraint`.
        """
        _check_finite(logits)
        token = self._choose(self._constrained(self._penalised(logits)))
        if self._constraint is not None:
            self._constraint.accept(token)
        self._seen.add(token)
        self._counts[token] += 1
        return Drawn(token) if self._params.logprobs is None else _reported(token, logits, self._params.logprobs)

    def _choose(self, logits: NDArray[np.float32]) -> int:
        if self._random is None:
            return int(logits.argmax())
        tokens, probabilities = self._kept(self._tempered(logits))
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        place = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(tokens[min(int(place), len(tokens) - 1)])

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        p = self._params
        if (p.repetition_penalty, p.frequency_penalty, p.presence_penalty) == (1.0, 0.0, 0.0):
            return logits
        logits = logits.copy()
        seen = np.fromiter(self._seen, np.int64, len(self._seen))
        values = logits[seen].astype(np.float64)
        with np.errstate(over="ignore"):  # to infinity, which is cut to the largest number
            values = np.where(values > 0, values / p.repetition_penalty, values * p.repetition_penalty)
        logits[seen] = np.clip(values, -_LARGEST, _LARGEST)
        if self._counts:
            drawn = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            times = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            logits[drawn] -= p.frequency_penalty * times + p.presence_penalty
        return logits

    def _constrained(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._constraint is None:
            return logits
        allowed = self._constraint.allowed()
        masked = np.full_like(logits, -np.inf)
        np.copyto(masked[: len(allowed)], logits[: len(allowed)], where=allowed[: len(logits)])
        return masked

    def _tempered(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits over temperature, the largest moved to 0 first: at the least of temperatures nothing else is left."""
        with np.errstate(over="ignore"):  # to -inf, whose probability is 0
            return (logits - logits.max()) / np.float32(max(self._params.temperature, _SMALLEST))

    def _kept(self, logits: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The tokens that may be drawn, likeliest first if any are cut, and their probabilities up to a factor."""
        p = self._params
        if p.top_k is None and p.top_p == 1.0 and p.min_p == 0.0:
            return np.arange(len(logits)), np.exp(logits - logits.max())
        total = None
        if p.top_k is not None and p.top_k < len(logits):
            tokens = _likeliest(logits, p.top_k)
        else:
            total = float(np.exp(logits - logits.max()).sum(dtype=np.float64))
            tokens = _likeliest(logits, min(_HEAD, len(logits)))
            if not self._suffices(logits, tokens, total):
                tokens = _likeliest(logits, len(logits))
        weights = np.exp(logits[tokens] - logits[tokens[0]])
        share = weights / (total if total is not None else weights.sum(dtype=np.float64))
        count = len(tokens)
        if p.top_p < 1.0:  # those before which less than top_p has come together
            count = max(1, int(np.searchsorted(np.cumsum(share) - share, p.top_p, side="left")))
        if p.min_p > 0.0:
            count = min(count, max(1, int((weights >= p.min_p).sum())))
        return tokens[:count], weights[:count]

    def _suffices(self, logits: NDArray[np.float32], tokens: NDArray[np.int64], total: float) -> bool:
        """Whether every token that the cuts keep is among the likeliest ``tokens``."""
        if len(tokens) == len(logits):
            return True
        weights = np.exp(logits[tokens] - logits[tokens[0]])
        by_top_p = self._params.top_p < 1.0 and weights.sum(dtype=np.float64) / total >= self._params.top_p
        return bool(by_top_p or weights[-1] < self._params.min_p)


def score(token: int, logits: NDArray[np.float32], likeliest: int) -> Drawn:
    """A token that was given, as if it had been drawn from ``logits`` ``[vocabulary]``.

    Raises:
        NonFiniteLogitsError: a logit is infinite or not a number.
    """
    _check_finite(logits)
    return _reported(token, logits, likeliest)


def _check_finite(logits: NDArray[np.float32]) -> None:
    if not (math.isfinite(logits.max()) and math.isfinite(logits.min())):  # any that is none becomes the maximum
        what = "the logits are not finite: the base or an adapter of the mix computes no numbers for this prompt"
        raise NonFiniteLogitsError(what, hint="An adapter that diverged does that.")


def _reported(token: int, logits: NDArray[np.float32], num_likeliest: int) -> Drawn:
    peak = logits.max()
    normaliser = float(peak) + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    likeliest = _likeliest(logits, min(num_likeliest, len(logits))) if num_likeliest else ()
    pairs = tuple((int(t), float(logits[t]) - normaliser) for t in likeliest)
    return Drawn(token, float(logits[token]) - normaliser, pairs)


def _likeliest(logits: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The ``count`` tokens of the largest logits, largest first; of equal ones the lower id first."""
    if count == 1:
        return np.array([logits.argmax()])
    if count < len(logits):
        least = np.partition(logits, len(logits) - count)[len(logits) - count]
        tokens = np.flatnonzero(logits >= least)
    else:
        tokens = np.arange(len(logits))
    return tokens[np.argsort(-logits[tokens], kind="stable")][:count]
