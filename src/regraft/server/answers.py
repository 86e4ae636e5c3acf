"""Several answers at once, as one stream of pieces that ends when all have ended, or at the first error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from regraft.engine.answer import Completion, Piece
from regraft.engine.engine import Engine
from regraft.engine.request import FinishReason
from regraft.server.errors import ApiError


@dataclass(frozen=True)
class Ask:
    """What is asked of the engine for one answer.

    Attributes:
        prompt: token ids.
        mix: adapter to weight; empty for the base alone.
        options: those of :meth:`regraft.engine.engine.Engine.stream`.
    """

    prompt: tuple[int, ...]
    mix: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


Numbered = tuple[int, Piece]


class Answers:
    """Runs requests, and can end all of them when the server stops."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queues: set[asyncio.Queue[Numbered | Exception]] = set()

    async def pieces(self, asks: Sequence[Ask]) -> AsyncGenerator[Numbered]:
        """Pieces of the answers as they come, each with the number of its ask; closing it cancels what still runs.

        Raises:
            ApiError: 504: the deadline came first; 503: the server stops.
            RegraftError: see :meth:`regraft.engine.engine.Engine.stream`.
        """
        queue: asyncio.Queue[Numbered | Exception] = asyncio.Queue()
        self._queues.add(queue)
        tasks = [asyncio.create_task(self._one(number, ask, queue)) for number, ask in enumerate(asks)]
        num_left = len(asks)
        try:
            while num_left:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                num_left -= item[1].completion is not None
                yield item
        finally:
            self._queues.discard(queue)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def end_all(self) -> None:
        """Let every stream end with an error."""
        for queue in self._queues:
            queue.put_nowait(ApiError(503, "The server is shutting down.", code="shutting_down", retry_after_s=1))

    async def _one(self, number: int, ask: Ask, queue: asyncio.Queue[Numbered | Exception]) -> None:
        try:
            async for piece in self._engine.astream(ask.prompt, dict(ask.mix) or None, **ask.options):
                if piece.completion is not None:
                    _check(piece.completion)
                queue.put_nowait((number, piece))
        except Exception as error:
            failed = ApiError(503, "The engine has stopped; the server's log says why.", code="engine_stopped")
            queue.put_nowait(failed if self._engine.is_closed else error)


def _check(completion: Completion) -> None:
    if completion.finish_reason is FinishReason.DEADLINE:
        raise ApiError(504, "The answer was not there in time.", code="deadline_exceeded")
    if completion.finish_reason is FinishReason.CANCELLED:
        raise ApiError(503, "The answer was cancelled.", code="cancelled")
