"""Serve until told to stop; then let answers end."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from regraft.server.app import LOOPBACK, make_app
from regraft.server.connection import guarded
from regraft.server.service import Service

_AFTER_DRAIN_S = 5.0  # for the last events to reach their clients


class Server(uvicorn.Server):
    """uvicorn's server, with a shutdown that lets streams end.

    On SIGTERM or SIGINT it takes no more requests, gives answers some time, and then ends them with an error.

    Args:
        service: what to serve.
        host: the address to listen on.
        port: 0 for any free one.
    """

    def __init__(self, service: Service, host: str, port: int) -> None:
        settings = service.settings
        self._service = service
        config = uvicorn.Config(
            make_app(service, hosts=LOOPBACK if is_loopback(host) else None),
            host=host,
            port=port,
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

    @property
    def port(self) -> int:
        """The one that is listened on, once ``started``."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

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


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in ("localhost", "::1") or host.startswith("127.")
