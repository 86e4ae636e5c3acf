"""The application that clients see: it hands each request to a replica, and the answer back as it comes.

A replica that dies ends its streams, each with an error event; what had not begun is asked of another.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from regraft.server import left_out
from regraft.server.body import read_body
from regraft.server.cluster.forward import Forwarded, adapter_of
from regraft.server.cluster.merged import merge_metrics, merge_states
from regraft.server.errors import ApiError, as_api_error
from regraft.server.settings import Settings

_log = logging.getLogger("regraft.server")
_ATTEMPTS = 3
_AGAIN_S = 1
MERGED: dict[str, Callable[[Sequence[bytes]], bytes]] = {"/metrics": merge_metrics, "/page/state": merge_states}


class Replicas(Protocol):
    """Where requests are sent."""

    def stream(self, forwarded: Forwarded, adapter: str) -> AsyncGenerator[list[Message]]:
        """The answer of the replica that suits an adapter; closing it cancels the request.

        Raises:
            ReplicaDied: there is no more to come, and the answer is not whole.
        """

    def all(self, forwarded: Forwarded) -> Awaitable[list[list[Message]]]:
        """The answers of all that live."""


class ReplicaDied(Exception):
    """The process that answered has ended."""


class Front:
    """An ASGI application.

    Args:
        replicas: where requests are sent.
        settings: limits.
        hosts: the names under which it may be called, None for any; see :func:`regraft.server.app.make_app`.
        base_name: what requests call the base, which lies with every replica.
    """

    def __init__(
        self, replicas: Replicas, settings: Settings, hosts: tuple[str, ...] | None, *, base_name: str
    ) -> None:
        self._replicas, self._settings, self._base_name = replicas, settings, base_name
        self._app: ASGIApp = TrustedHostMiddleware(self._answer, allowed_hosts=list(hosts or "*"), www_redirect=False)
        self._under_way: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or the lifespan's events."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await self._app(scope, receive, send)

    def end_all(self) -> None:
        """Let every stream end with an error."""
        for task in self._under_way:
            task.cancel()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await read_body(request, self._settings) if request.method == "POST" else b""
        except ClientDisconnect:
            return
        except ApiError as error:
            await _respond(error, scope, receive, send)
            return
        sent = _Sent(send)
        work = self._merge if request.url.path in MERGED and request.method == "GET" else self._forward
        task = asyncio.create_task(work(Forwarded.of(scope, body), sent))
        listening = asyncio.create_task(_gone(receive))
        self._under_way.add(task)
        try:
            await asyncio.wait({task, listening}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                return
            await _end(task, sent, scope, receive)
        finally:
            self._under_way.discard(task)
            for each in (task, listening):
                each.cancel()
            await asyncio.gather(task, listening, return_exceptions=True)

    async def _forward(self, forwarded: Forwarded, sent: _Sent) -> None:
        adapter = adapter_of(forwarded.body)
        if adapter == self._base_name:  # as an adapter that nobody has, all of it would go to one replica
            adapter = ""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                async with aclosing(self._replicas.stream(forwarded, adapter)) as answer:
                    async for messages in answer:
                        for message in messages:
                            if message["type"] == "http.response.start":  # what replicas log stays with them
                                left_out.log(forwarded.scope["path"], Headers(raw=message["headers"]))
                            await sent(message)
                return
            except ReplicaDied:
                _log.warning("a replica died with a request to %s", forwarded.scope["path"])
                if sent.has_begun or attempt == _ATTEMPTS:
                    raise

    async def _merge(self, forwarded: Forwarded, sent: _Sent) -> None:
        """Ask all replicas; of an answer that is no 200 the first is given."""
        answers = await self._replicas.all(forwarded)
        if not answers:
            raise ReplicaDied
        refused = [answer for answer in answers if answer[0]["status"] != 200]
        if refused:
            for message in refused[0]:
                await sent(message)
            return
        bodies = [b"".join(message.get("body", b"") for message in answer) for answer in answers]
        merged = MERGED[forwarded.scope["path"]](bodies)
        headers = [pair for pair in answers[0][0]["headers"] if bytes(pair[0]).lower() != b"content-length"]
        headers.append((b"content-length", str(len(merged)).encode()))
        await sent({**answers[0][0], "headers": headers})
        await sent({"type": "http.response.body", "body": merged, "more_body": False})


class _Sent:
    """Sends, and knows how far it got."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_begun = self.is_stream = self.has_ended = False

    async def __call__(self, message: Message) -> None:
        await self._send(message)
        if message["type"] == "http.response.start":
            self.has_begun = True
            kinds = [bytes(value) for name, value in message["headers"] if bytes(name).lower() == b"content-type"]
            self.is_stream = any(kind.startswith(b"text/event-stream") for kind in kinds)
        elif not message.get("more_body"):
            self.has_ended = True


async def _end(task: asyncio.Task[None], sent: _Sent, scope: Scope, receive: Receive) -> None:
    """Say what went wrong, if something did: by a status, by an event, or by breaking the connection off."""
    if sent.has_ended:
        return
    error = _error_of(task)
    if not sent.has_begun:
        await _respond(error, scope, receive, sent)
    elif sent.is_stream:
        event = f"data: {json.dumps(error.body, separators=(',', ':'))}\n\n".encode()
        await sent({"type": "http.response.body", "body": event, "more_body": False})
    else:
        raise error


def _error_of(task: asyncio.Task[None]) -> ApiError:
    if task.cancelled():
        return ApiError(503, "The server is shutting down.", code="shutting_down", retry_after_s=_AGAIN_S)
    found = task.exception()
    if isinstance(found, ReplicaDied) or found is None:
        message = "The replica that answered has died; the answer is not whole."
        return ApiError(503, message, code="replica_died", retry_after_s=_AGAIN_S)
    return as_api_error(found) if isinstance(found, Exception) else ApiError(500, "It failed.", code="internal_error")


async def _respond(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse(error.body, error.status, error.headers)(scope, receive, send)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message: dict[str, Any] = dict(await receive())
        with suppress(OSError):
            await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
