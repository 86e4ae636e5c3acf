"""A real server on real sockets, in a thread of the test's process."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from regraft.engine.engine import Engine
from regraft.server.run import Server, listen, serve_one
from regraft.server.service import Service
from regraft.server.settings import Settings
from tests.processes import PATIENCE_S, until

MESSAGES: Any = [{"role": "user", "content": "the quick brown fox"}]
# A schema whose answers are as long as the context allows, whatever the random model likes to say.
LONG: Any = {
    "type": "json_schema",
    "json_schema": {"name": "long", "schema": {"type": "string", "minLength": 5000, "pattern": "^[a-z ]*$"}},
}


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, of which every part is there."""
        error: dict[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    service: Service
    server: Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S, **options)

    def send(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        """``body`` is JSON, or bytes that are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=PATIENCE_S)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Reply:
        return self.send("POST", path, body, headers)

    def models(self, key: str = "none") -> list[str]:
        return [model.id for model in self.client(key).models.list()]


@contextmanager
def running(
    base: Path, adapters: Path | None = None, settings: Settings | None = None, **rest: Any
) -> Iterator[Running]:
    """Serve for as long as the context lasts."""
    with Engine(base, memory_bytes=4 << 20, threads=1) as engine:
        service = Service(engine, adapters, settings=settings or Settings(poll_s=0.05), **rest)
        server = serve_one(service, listen("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        try:
            until(lambda: server.started or not thread.is_alive())
            yield Running(service, server)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
