"""uvicorn's HTTP/1.1 connection, that does not wait for ever for a client who sends or reads nothing."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from regraft.server.settings import Settings


def guarded(settings: Settings) -> type[H11Protocol]:
    """A connection class with two limits that uvicorn has not.

    Args:
        settings: ``header_timeout_s`` for the headers of a request, from the connection or the first byte on;
            ``stall_timeout_s`` for reading what is sent.
    """

    class Guarded(H11Protocol):
        _headers_due: asyncio.TimerHandle | None = None
        _reading_due: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_headers()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_headers_timer()
            self._stop_reading_timer()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._reading_due = self.loop.call_later(settings.stall_timeout_s, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop_reading_timer()
            super().resume_writing()

        def _watch_headers(self) -> None:
            """One timer while a request's headers are awaited. Between two requests uvicorn's own is shorter."""
            if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
                self._stop_headers_timer()
            elif self._headers_due is None:
                self._headers_due = self.loop.call_later(settings.header_timeout_s, self.transport.abort)

        def _stop_headers_timer(self) -> None:
            if self._headers_due is not None:
                self._headers_due.cancel()
                self._headers_due = None

        def _stop_reading_timer(self) -> None:
            if self._reading_due is not None:
                self._reading_due.cancel()
                self._reading_due = None

    return Guarded
