"""The answer of one request: tokens go in on the engine's thread, text comes out at the caller."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from regraft.engine.request import FinishReason, Request
from regraft.engine.run.sampler import Drawn
from regraft.engine.stop import StopStrings
from regraft.errors import RegraftError, RequestError
from regraft.formats.text.stream_decoder import StreamDecoder


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without the stop string.
        tokens: ids of all tokens that were drawn.
        finish_reason: why it ended.
        num_prompt_tokens: tokens of the prompt.
        logprobs: one entry per token, where they were asked for.
        hidden: float32 ``[hidden]``, the last hidden state of the prompt, where it was asked for.
        scored: one entry for each token of the prompt that was to be scored, in their order; fewer if the request ended
            before.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    logprobs: tuple[Drawn, ...] = ()
    hidden: NDArray[np.float32] | None = field(default=None, compare=False)
    scored: tuple[Drawn, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer; the last piece has the whole completion.

    Attributes:
        text: what may be shown of the tokens that have come.
        completion: of the last piece.
        drawn: the tokens since the piece before, some of whose text may still be held back.
    """

    text: str
    completion: Completion | None = None
    drawn: tuple[Drawn, ...] = ()


Deliver = Callable[[Piece | RegraftError], None]  # called on the engine's thread; it must neither wait nor raise


class Answer:
    """Makes pieces of the tokens of one request.

    Args:
        request: what was asked.
        decoder: fresh.
        deliver: takes the pieces; an error is the last of them.
    """

    def __init__(self, request: Request, decoder: StreamDecoder, deliver: Deliver) -> None:
        self._request, self._decoder, self._deliver = request, decoder, deliver
        self._stop = StopStrings(request.stop)
        self._text: list[str] = []
        self._scored: list[Drawn] = []
        self._num_to_score = request.scoring.tokens if request.scoring else 0
        self._drawn: list[Drawn] = []
        self._num_told = 0  # tokens that pieces have had

    def push(self, drawn: Drawn) -> bool:
        """Take a token, first of all those of the prompt that are scored; returns whether a stop string has come."""
        if len(self._scored) < self._num_to_score:
            self._scored.append(drawn)
            return False
        self._drawn.append(drawn)
        if drawn.token not in self._request.stop_token_ids:
            self._show(self._stop.push(self._decoder.push(drawn.token)))
        return self._stop.found

    def finish(self, reason: FinishReason) -> None:
        """The last piece."""
        self._show(self._stop.push(self._decoder.flush()) + self._stop.flush())
        reason = FinishReason.STOP if self._stop.found else reason
        logprobs = tuple(self._drawn) if self._request.sampling.logprobs is not None else ()
        tokens = tuple(drawn.token for drawn in self._drawn)
        hidden = self._drawn[0].hidden if self._drawn else None
        text, num_prompt, scored = "".join(self._text), len(self._request.prompt), tuple(self._scored)
        completion = Completion(text, tokens, reason, num_prompt, logprobs, hidden, scored)
        self._deliver(Piece("", completion, self._untold()))

    def fail(self, error: str) -> None:
        """No answer, or no more of it."""
        self._deliver(RequestError(error))

    def _show(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._deliver(Piece(text, drawn=self._untold()))

    def _untold(self) -> tuple[Drawn, ...]:
        drawn, self._num_told = tuple(self._drawn[self._num_told :]), len(self._drawn)
        return drawn


class Stream(Iterator[Piece]):
    """The pieces of one answer as they come. Closing it early, or letting go of it, cancels the request.

    Args:
        pieces: what an :class:`Answer` delivers.
        cancel: must not wait, as it may be called by the garbage collector.
    """

    def __init__(self, pieces: queue.SimpleQueue[Piece | RegraftError], cancel: Callable[[], None]) -> None:
        self._pieces, self._cancel = pieces, cancel
        self._is_over = False

    def __next__(self) -> Piece:
        if self._is_over:
            raise StopIteration
        piece = self._pieces.get()
        self._is_over = not isinstance(piece, Piece) or piece.completion is not None
        if isinstance(piece, RegraftError):
            raise piece
        return piece

    def close(self) -> None:
        """Cancel the request, unless it has ended."""
        if not self._is_over:
            self._is_over = True
            self._cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
