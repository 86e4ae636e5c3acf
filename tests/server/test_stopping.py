"""SIGTERM: streams end, nothing is half-written, and the process ends as one that did its work."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import PATIENCE_S, regraft_process
from tests.server.running import LONG, MESSAGES, running


@contextmanager
def serving(base: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``regraft serve`` as a process of its own, and the port it has found."""
    arguments = ["serve", base, "--port", "0", "--memory", "4MiB", *options]
    with regraft_process(*arguments, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"with 0 adapters on http://127\.0\.0\.1:(\d+)/v1", line):
                yield process, int(found[1])
                return
        raise AssertionError("it never started")


def begin_stream(port: int) -> socket.socket:
    """A connection on which a long answer has begun."""
    body = json.dumps({"messages": MESSAGES, "stream": True, "response_format": LONG}).encode()
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return client


def read_on(client: socket.socket, received: bytes) -> list[str]:
    """The stream's events, once its end has come; the last is no part of one."""
    while part := client.recv(65536):
        received += part
    assert received.endswith(b"0\r\n\r\n")  # the chunked body is complete
    return [line.removeprefix("data: ") for line in received.decode().splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("drain", ["600", "0"])
def test_streams_end_and_the_server_after_them(made: Path, drain: str) -> None:
    with serving(made / "base", "--drain", drain) as (process, port), begin_stream(port) as client:
        received = client.recv(65536)
        process.send_signal(signal.SIGTERM)
        events = read_on(client, received)
        assert process.wait(PATIENCE_S) == 0
    assert all(json.loads(event) for event in events[:-1])
    if drain == "600":
        assert events[-1] == "[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    else:
        assert json.loads(events[-1])["error"]["code"] == "shutting_down"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port))


def test_a_server_whose_engine_has_stopped_says_so(made: Path) -> None:
    with running(made / "base") as server:
        assert server.send("GET", "/health").status == 200
        server.service.engine.close()
        assert server.send("GET", "/health").status == 503
        reply = server.post("/v1/completions", {"prompt": "the", "max_tokens": 1})
        assert reply.status == 503 and reply.error["code"] == "engine_stopped"
