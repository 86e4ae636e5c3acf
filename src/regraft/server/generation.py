"""Answers over HTTP, whole or streamed: what chat and completions have in common.

A stream is server-sent events, each with one JSON object; the last says ``[DONE]``. An error before the first piece is
a status, one after it an event with OpenAI's error object, and no ``[DONE]``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from regraft.engine.answer import Completion, Piece
from regraft.errors import RequestError
from regraft.server import left_out
from regraft.server.answers import Ask
from regraft.server.errors import as_api_error, bad_request, no_such_model
from regraft.server.schema import Generation
from regraft.server.service import Service

Json = dict[str, Any]
T = TypeVar("T")


class Shape(Protocol):
    """How one kind of endpoint writes an answer."""

    kind: str  # the objects' name
    chunk_kind: str  # that of a stream's
    id_prefix: str

    def whole(self, index: int, completion: Completion) -> Json:
        """A choice."""

    def pieces(self, index: int, piece: Piece) -> list[Json]:
        """What a stream says of a piece: no choice, or some."""


@dataclass(frozen=True)
class Job:
    """One request, understood.

    Attributes:
        body: as it came.
        asks: one for each choice.
        num_prompts: that the asks share between them.
        shape: how to write the answers.
        endpoint: for metrics.
        left_out: fields that the answers are made without, each with the reason.
    """

    body: Generation
    asks: Sequence[Ask]
    num_prompts: int
    shape: Shape
    endpoint: str
    left_out: Mapping[str, str] = field(default_factory=dict)


def check_choices(service: Service, num_choices: int) -> None:
    """Refuse more choices than one request may have, or than there is room for; raises ApiError."""
    if num_choices > service.settings.max_choices:
        message = f"A request has at most {service.settings.max_choices} choices, prompts times n, not {num_choices}."
        raise bad_request(message, "n")
    service.gate.check(num_choices)  # before the work of encoding


async def respond(service: Service, request: Request, job: Job) -> Response:
    """Answer a request; raises ApiError and RegraftError, see :meth:`regraft.server.answers.Answers.pieces`."""
    if job.body.stream_options is not None and not job.body.stream:
        raise bad_request("stream_options goes with stream: true.", "stream_options")
    run, headers = _Run(service, job), left_out.header_of(job.left_out)
    left_out.log(request.url.path, headers)
    if not job.body.stream:
        return JSONResponse(await until_gone(request, run.whole()), headers=headers)
    events = run.events()
    try:
        first = await until_gone(request, anext(events))
    except BaseException:
        await events.aclose()
        raise
    return EventStream(_chained(first, events), headers)


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do some work for as long as the client is there to hear of it.

    Raises:
        ClientDisconnect: it has gone; the work was cancelled.
    """
    working, listening = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, listening}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return await working
    finally:
        for task in (working, listening):
            task.cancel()
        await asyncio.gather(working, listening, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events; whatever ends the response ends what makes them."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[str], headers: Mapping[str, str]) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        async with aclosing(self._events):
            await super().__call__(scope, receive, send)


async def _chained(first: str, rest: AsyncGenerator[str]) -> AsyncGenerator[str]:
    async with aclosing(rest):
        yield first
        async for event in rest:
            yield event


class _Run:
    """One request being answered."""

    def __init__(self, service: Service, job: Job) -> None:
        self._service, self._job = service, job
        self._start = time.monotonic()
        self._head = {
            "id": f"{job.shape.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": job.body.model or service.catalogue.base_name,
        }
        self._completions: dict[int, Completion] = {}

    async def whole(self) -> Json:
        """The response."""
        async with aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        choices = [self._job.shape.whole(index, self._completions[index]) for index in range(len(self._job.asks))]
        return {**self._head, "object": self._job.shape.kind, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncGenerator[str]:
        """The stream's events; only what comes before the first one raises."""
        options = self._job.body.stream_options
        include_usage = bool(options and options.include_usage)
        begun = False
        try:
            async with aclosing(self._pieces()) as pieces:
                async for index, piece in pieces:
                    for choice in self._job.shape.pieces(index, piece):
                        yield _event(self._chunk([choice], {"usage": None} if include_usage else {}))
                        begun = True
        except Exception as error:
            if not begun:
                raise
            yield _event(as_api_error(error).body)
            return
        if include_usage:
            yield _event(self._chunk([], {"usage": self._usage()}))
        yield "data: [DONE]\n\n"

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece]]:
        """The engine's pieces, counted."""
        metrics, label = self._service.metrics, self._service.metrics.labels.of_mix(self._job.asks[0].mix)
        is_first = True
        try:
            with self._service.gate.enter(len(self._job.asks)):
                async with aclosing(self._service.answers.pieces(self._job.asks)) as pieces:
                    async for index, piece in pieces:
                        if is_first:
                            metrics.first_token.observe(time.monotonic() - self._start)
                            is_first = False
                        self._note(label, index, piece)
                        yield index, piece
        except Exception as error:
            told = self._explained(error)
            metrics.failures.labels(self._job.endpoint, as_api_error(told).code).inc()
            if told is error:
                raise
            raise told from error
        finally:
            metrics.latency.observe(time.monotonic() - self._start)
            metrics.prompt_tokens.labels(label).inc(self._num_prompt_tokens)

    def _explained(self, error: Exception) -> Exception:
        """What failed because its adapter was removed meanwhile is of a model that there is not."""
        name = self._service.catalogue.gone(self._job.asks[0].mix) if isinstance(error, RequestError) else None
        return error if name is None else no_such_model(name)

    def _note(self, label: str, index: int, piece: Piece) -> None:
        self._service.metrics.num_generated += len(piece.drawn)
        if piece.completion is not None:
            self._completions[index] = piece.completion
            self._service.metrics.generation_tokens.labels(label).inc(len(piece.completion.tokens))
            self._service.metrics.requests.labels(label, str(piece.completion.finish_reason)).inc()

    @property
    def _num_prompt_tokens(self) -> int:
        each = len(self._job.asks) // self._job.num_prompts
        return sum(len(ask.prompt) for ask in self._job.asks[::each])

    def _usage(self) -> Json:
        prompt, answer = self._num_prompt_tokens, sum(len(c.tokens) for c in self._completions.values())
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _chunk(self, choices: list[Json], more: Mapping[str, Any]) -> Json:
        return {**self._head, "object": self._job.shape.chunk_kind, "choices": choices, **more}


def _event(data: Json) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"
