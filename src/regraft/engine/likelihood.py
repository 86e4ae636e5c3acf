"""Log-likelihood of continuations after a prompt, by the base's own probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regraft.engine.answer import Stream
from regraft.engine.checks import check_integer
from regraft.engine.request import MAX_LOGPROBS, Scoring
from regraft.engine.run.sampler import Drawn
from regraft.errors import RequestError


@dataclass(frozen=True)
class Likelihood:
    """A continuation's log-likelihood, token by token.

    Attributes:
        tokens: the continuation's, each with its log probability after all that comes before, and the likeliest tokens
            in its place.
    """

    tokens: tuple[Drawn, ...]

    @property
    def total(self) -> float:
        """Natural logarithm of the whole continuation's probability."""
        return math.fsum(token.logprob or 0.0 for token in self.tokens)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have said just this."""
        return all(token.likeliest[0][0] == token.token for token in self.tokens)


def measure(
    ask: Callable[..., Stream], start: Sequence[int], continuations: Sequence[Sequence[int]], likeliest: int
) -> tuple[Likelihood, ...]:
    """The likelihood of each continuation of one beginning.

    Args:
        ask: begins a request for tokens, with :class:`Scoring` as ``scoring``.
        start: token ids.
        continuations: token ids, at least one each.
        likeliest: how many likeliest tokens are told beside each.

    Raises:
        RequestError: a request failed, or ended before its tokens were scored.
    """
    check_integer("likeliest", likeliest, 1, MAX_LOGPROBS)

    def begin(continuation: Sequence[int]) -> tuple[Stream, int]:
        scoring = Scoring(tokens=len(continuation), likeliest=likeliest)
        return ask([*start, *continuation], scoring=scoring), scoring.tokens

    # The first one alone: the others find what it has computed of the prompt in the prefix cache.
    first = [_read(*begin(continuation)) for continuation in continuations[:1]]
    begun = [begin(continuation) for continuation in continuations[1:]]
    return (*first, *(_read(*each) for each in begun))


def _read(stream: Stream, num_tokens: int) -> Likelihood:
    *_, last = stream
    assert last.completion is not None
    scored = last.completion.scored
    if len(scored) < num_tokens:
        raise RequestError(f"it ended before its tokens were scored: {last.completion.finish_reason}")
    return Likelihood(scored)
