"""Serve until told to stop; then let answers end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from regraft.errors import UsageError
from regraft.server.app import LOOPBACK, make_app
from regraft.server.connection import guarded
from regraft.server.service import Service

_log = logging.getLogger("regraft.server")
_AFTER_DRAIN_S = 5.0  # for the last events to reach their clients


class Server(uvicorn.Server):
    """uvicorn's server, with a shutdown that lets streams end.

    On SIGTERM or SIGINT it takes no more requests, gives answers some time, and then ends them with an error.

    Args:
        service: what to serve.
        listener: see :func:`listen`; it is closed in the end.
    """

    def __init__(self, service: Service, listener: socket.socket) -> None:
        settings = service.settings
        self._service, self._listener = service, listener
        host, self.port = listener.getsockname()[:2]
        config = uvicorn.Config(
            make_app(service, hosts=LOOPBACK if is_loopback(host) else None),
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
        catalogue = self._service.catalogue
        host = self._listener.getsockname()[0]
        shown = f"[{host}]" if ":" in host else host
        _log.info(
            "serving %s with %d adapters on http://%s:%d/v1", catalogue.base_name, len(catalogue), shown, self.port
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain."""
        timer = asyncio.get_running_loop().call_later(self._service.settings.drain_s, self._service.answers.end_all)
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
