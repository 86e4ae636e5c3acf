"""Serve until told to stop; then let answers end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from regraft.errors import UsageError
from regraft.server.app import LOOPBACK, make_app
from regraft.server.connection import guarded
from regraft.server.service import Service
from regraft.server.settings import Settings

_log = logging.getLogger("regraft.server")
_AFTER_DRAIN_S = 5.0  # for the last events to reach their clients


class Server(uvicorn.Server):
    """uvicorn's server, with a shutdown that lets streams end.

    On SIGTERM or SIGINT it takes no more requests, gives answers some time, and then ends them with an error.

    Args:
        app: what to serve.
        listener: see :func:`listen`; it is closed in the end.
        settings: limits.
        end_answers: ends, with an error, what is still being answered.
        describe: what is served, for the log, once it is.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        settings: Settings,
        *,
        end_answers: Callable[[], None],
        describe: Callable[[], str],
    ) -> None:
        self._listener, self._drain_s, self._end_answers, self._describe = (
            listener,
            settings.drain_s,
            end_answers,
            describe,
        )
        self.port: int = listener.getsockname()[1]
        config = uvicorn.Config(
            app,
            http=guarded(settings),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            timeout_graceful_shutdown=int(settings.drain_s + _AFTER_DRAIN_S),
        )
        super().__init__(config)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on the listener, and on no other socket."""
        super().run([self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        host = self._listener.getsockname()[0]
        shown = f"[{host}]" if ":" in host else host
        _log.info("serving %s on http://%s:%d/v1", self._describe(), shown, self.port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain."""
        timer = asyncio.get_running_loop().call_later(self._drain_s, self._end_answers)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """As uvicorn's, but a signal that was obeyed is over with: the process ends as one that did its work."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {sig: signal.signal(sig, self.handle_exit) for sig in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for sig, handler in before.items():
                signal.signal(sig, handler)


def serve_one(service: Service, listener: socket.socket) -> Server:
    """A server of one engine in this process."""

    def describe() -> str:
        return f"{service.catalogue.base_name} with {len(service.catalogue)} adapters"

    app = make_app(service, hosts=hosts_of(listener))
    return Server(app, listener, service.settings, end_answers=service.answers.end_all, describe=describe)


def hosts_of(listener: socket.socket) -> tuple[str, ...] | None:
    """The names by which a server there may be called, None for any; see :func:`regraft.server.app.make_app`."""
    return LOOPBACK if is_loopback(listener.getsockname()[0]) else None


def listen(host: str, port: int) -> socket.socket:
    """Take a port, 0 for any free one.

    Raises:
        UsageError: it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        hint = "Give another --port; 0 takes any free one."
        reason = (error.strerror or "").partition(" (while")[0]  # asked for which address is said already
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}", hint=hint) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in ("localhost", "::1") or host.startswith("127.")
