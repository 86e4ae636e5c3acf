"""A request and its response on their way between the front and a replica: plain data, that can be sent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Receive, Scope

_SCOPE_KEYS = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")


@dataclass(frozen=True)
class Forwarded:
    """One HTTP request, whole.

    Attributes:
        scope: what of ASGI's scope can be sent.
        body: all bytes.
    """

    scope: Mapping[str, Any]
    body: bytes

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> Forwarded:
        """A request as the front has it."""
        return cls({key: scope[key] for key in _SCOPE_KEYS if key in scope}, body)


def adapter_of(body: bytes) -> str:
    """The first adapter that a request names, empty for none: a hint for routing, checked by whoever answers."""
    try:
        data = from_json(body)
    except ValueError:
        return ""
    if not isinstance(data, dict):
        return ""
    named = data.get("adapters")
    if isinstance(named, dict) and named:
        return str(next(iter(named)))[:64]
    model = data.get("model")
    return re.split(r"[*+]", model[:80], maxsplit=1)[0].strip()[:64] if isinstance(model, str) else ""


async def answered(app: ASGIApp, forwarded: Forwarded) -> AsyncGenerator[list[Message]]:
    """The ASGI messages by which an application answers, as many at a time as there are; closing it is a disconnect.

    What an application raises after its response has begun ends the messages before the last one.
    """
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    running = asyncio.create_task(_run(app, forwarded, sent))
    try:
        while True:
            messages = [await sent.get()]
            while not sent.empty():
                messages.append(sent.get_nowait())
            if found := [message for message in messages if message is not None]:
                yield found
            if messages[-1] is None:
                return
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def _run(app: ASGIApp, forwarded: Forwarded, sent: asyncio.Queue[Message | None]) -> None:
    try:
        await app(dict(forwarded.scope), _receiver(forwarded.body), _put_in(sent))
    except Exception:  # Starlette's outermost layer has logged it, and answered if nothing was sent
        return
    finally:
        sent.put_nowait(None)


def _put_in(sent: asyncio.Queue[Message | None]) -> Any:
    async def send(message: Message) -> None:
        sent.put_nowait(message)

    return send


def _receiver(body: bytes) -> Receive:
    """Gives the body, and then nothing until it is cancelled."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets")

    return receive
