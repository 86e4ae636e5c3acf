"""The bytes of a request's body, if it is of a kind, a size and a speed that a server can bear."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from regraft.server.errors import ApiError
from regraft.server.settings import Settings


async def read_body(request: Request, settings: Settings) -> bytes:
    """All of it.

    Raises:
        ApiError: 415: it is no JSON; 413: it is too long; 408: it takes too long.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a web page of another host can send without asking is of other types
        raise ApiError(415, "The Content-Type has to be application/json.", code="unsupported_media_type")
    most, data = settings.max_body_bytes, bytearray()
    too_long = ApiError(413, f"The body may have at most {most} bytes.", code="request_too_large")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared[:19]) > most:
        raise too_long
    try:
        async with asyncio.timeout(settings.body_timeout_s):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_long
    except TimeoutError:
        raise ApiError(408, "The body did not come in time.", code="request_timeout") from None
    return bytes(data)
