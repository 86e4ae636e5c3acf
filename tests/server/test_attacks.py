"""What a server on a network is sent sooner or later; each fails as it should, and the server goes on."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from regraft.errors import UsageError
from regraft.formats.source import locate
from regraft.formats.text.tokenizer import open_tokenizer
from regraft.server.folder import inside
from regraft.server.renderer import Renderer
from regraft.server.settings import Settings
from tests.processes import PATIENCE_S, until
from tests.server.running import LONG, MESSAGES, Running, running
from tests.tiny import CHAT_TEMPLATE

TOKEN = "an-admin-token-of-the-tests"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
SETTINGS = Settings(
    poll_s=0.05,
    max_body_bytes=100_000,
    body_timeout_s=0.5,
    header_timeout_s=0.5,
    stall_timeout_s=0.5,
    max_answers=2,
    template_timeout_s=1.0,
)


@pytest.fixture(scope="module")
def guarded(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with small limits that may load adapters from ``root``."""
    root = tmp_path_factory.mktemp("root")
    shutil.copytree(made / "loras" / "lora0", root / "good")
    shutil.copytree(made / "loras" / "lora1", root / "linked")
    outside = tmp_path_factory.mktemp("outside") / "secret"
    shutil.copytree(made / "loras" / "lora1", outside)
    (root / "link").symlink_to(outside)
    (root / "inner").symlink_to(root / "good")
    (root / "linked" / "adapter_model.safetensors").unlink()
    (root / "linked" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    (root / "circle").symlink_to(root / "circle")
    (root / "file").write_text("x")
    with running(made / "base", settings=SETTINGS, load_root=root, admin_token=TOKEN) as each:
        yield each


@pytest.fixture(autouse=True)
def _still_answers(guarded: Running) -> Iterator[None]:
    yield
    reply = guarded.post("/v1/completions", {"prompt": "the", "max_tokens": 1})
    assert reply.status == 200


def load(server: Running, name: str, path: str, headers: dict[str, str] = ADMIN) -> Any:
    return server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": path}, headers)


def test_adapters_are_loaded_replaced_and_unloaded(guarded: Running) -> None:
    reply = load(guarded, "mine", "good")
    assert (reply.status, reply.data) == (200, b"Success: LoRA adapter 'mine' added successfully.")
    assert guarded.models() == ["base", "mine"]
    assert guarded.post("/v1/completions", {"model": "mine", "prompt": "the", "max_tokens": 1}).status == 200
    assert load(guarded, "mine", "good").error["code"] == "already_loaded"
    body = {"lora_name": "mine", "lora_path": "inner", "load_inplace": True}
    assert guarded.post("/v1/load_lora_adapter", body, ADMIN).status == 200
    assert guarded.post("/v1/unload_lora_adapter", {"lora_name": "mine"}, ADMIN).status == 200
    assert guarded.models() == ["base"]
    assert guarded.post("/v1/unload_lora_adapter", {"lora_name": "mine"}, ADMIN).status == 404


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "good/../../outside",
        "/etc",
        "link",
        "linked",
        "circle",
        "file",
        "missing",
        ".",
        "",
        "good\0",
        "~",
        "http://a.invalid/x",
        "file:///etc",
        "a" * 5000,
        "%2e%2e/outside",
    ],
)
def test_no_path_leads_out_of_the_root(guarded: Running, path: str) -> None:
    error = load(guarded, "mine", path).error
    assert error["code"] == "adapter_refused" and "directory below the server's folder" in error["message"]
    assert guarded.models() == ["base"]


@pytest.mark.parametrize("name", ["", "a/b", "..", "a*2", "a+b", "x" * 65, "base", "a b", "\n", "ä"])
def test_names_that_could_be_something_else_are_refused(guarded: Running, name: str) -> None:
    assert "an adapter's name" in load(guarded, name, "good").error["message"]


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
def test_loading_needs_the_token(guarded: Running, header: dict[str, str]) -> None:
    for path in ("load", "unload"):
        reply = guarded.post(f"/v1/{path}_lora_adapter", {"lora_name": "mine", "lora_path": "good"}, header)
        assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert reply.error["code"] == "invalid_api_key"
    assert guarded.models() == ["base"]


def test_loading_is_off_by_default(server: Running) -> None:
    assert load(server, "mine", "lora0").error["code"] == "loading_is_off"


def test_a_link_out_of_the_watched_folder_is_left_out(made: Path, loras: Path, tmp_path: Path) -> None:
    (loras / "away").symlink_to(made / "loras" / "lora0")
    with running(made / "base", loras) as each:
        assert each.models() == ["base", "lora0", "lora1", "lora2"]
        assert each.service.folder is not None and "links included" in each.service.folder.rejected["away"]


def test_inside_takes_what_is_inside(made: Path, loras: Path) -> None:
    assert inside(loras, "lora0") == inside(loras, loras / "lora0") == (loras / "lora0").resolve()
    with pytest.raises(UsageError):
        inside(loras / "nowhere", "lora0")


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_that_is_too_long_is_not_read(guarded: Running, declared: bool) -> None:
    with socket.create_connection(("127.0.0.1", guarded.server.port), timeout=PATIENCE_S) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if declared:
            client.sendall(f"{head}Content-Length: 999999999999\r\n\r\n".encode())
        else:
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + b"4000\r\n" + b" " * 0x4000)
            for _ in range(6):
                client.sendall(b"\r\n4000\r\n" + b" " * 0x4000)
        assert b" 413 " in client.recv(1000).split(b"\r\n")[0]


def test_a_body_that_does_not_come_is_given_up(guarded: Running) -> None:
    with socket.create_connection(("127.0.0.1", guarded.server.port), timeout=PATIENCE_S) as client:
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + b'{"prompt"')
        assert b" 408 " in client.recv(1000).split(b"\r\n")[0]


@pytest.mark.parametrize("beginning", [b"", b"GET /health HTTP/1.1\r\nHost: lo"])
def test_headers_that_do_not_come_are_given_up(guarded: Running, beginning: bytes) -> None:
    with socket.create_connection(("127.0.0.1", guarded.server.port), timeout=PATIENCE_S) as client:
        client.sendall(beginning)
        with suppress(ConnectionResetError):
            assert client.recv(1000) == b""
    until(lambda: not guarded.server.server_state.connections)


def test_a_client_that_reads_nothing_is_given_up(made: Path) -> None:
    settings = Settings(stall_timeout_s=0.3, poll_s=0.05)
    with running(made / "base", settings=settings) as each, socket.socket() as client:
        # Connections inherit it; or the system would take the whole response, and wait in the server's stead.
        each.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", each.server.port))
        body = b'{"prompt": "' + b"0 " * 100_000 + b'"}'
        head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: each.server.server_state.tasks)
        until(lambda: not each.server.server_state.tasks and not each.server.server_state.connections)
        head_of_reply, _, received = b"".join(iter(lambda: client.recv(65536), b"")).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head_of_reply)
        assert length is not None and len(received) < int(length[1])  # it was cut off, and not sent to its end


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"prompt": "\xff\xfe"}', "invalid_json"),
        (b'{"prompt": "\xed\xa0\x80"}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b'{"prompt"', "invalid_json"),
        (b"", "invalid_json"),
        (b"[" * 50_000, "invalid_json"),
        (b'{"prompt": "a", "temperature": 1e999}', "invalid_value"),
        (b'{"prompt": "a", "seed": ' + b"9" * 4000 + b"}", "invalid_value"),
        (b'{"prompt": [99999999]}', "invalid_value"),
        (b'{"prompt": ["a", 5]}', "invalid_value"),
        (b"null", "invalid_value"),
    ],
)
def test_bytes_that_are_no_request_are_refused(guarded: Running, body: bytes, code: str) -> None:
    reply = guarded.post("/v1/completions", body)
    assert (reply.status, reply.error["code"]) == (400, code)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_web_page_of_another_host_cannot_post(guarded: Running, kind: str) -> None:
    reply = guarded.post("/v1/completions", {"prompt": "a"}, {"Content-Type": kind})
    assert reply.status == 415
    assert "access-control-allow-origin" not in reply.headers


def test_another_hosts_name_is_refused_on_loopback(guarded: Running) -> None:
    assert guarded.send("GET", "/v1/models", headers={"Host": "evil.invalid"}).status == 400
    assert guarded.send("GET", "/v1/models", headers={"Host": "localhost:1234"}).status == 200


def test_more_answers_than_there_is_room_for_come_again_later(guarded: Running) -> None:
    reply = guarded.post("/v1/completions", {"prompt": "a", "n": 3, "max_tokens": 1})
    assert reply.status == 429 and reply.error["code"] == "queue_full"
    assert 1 <= int(reply.headers["retry-after"]) <= 60


def test_the_queue_counts_what_is_under_way_and_who_leaves_is_cancelled(guarded: Running) -> None:
    client = guarded.client()
    options: Any = {"model": "base", "messages": MESSAGES, "n": 2, "response_format": LONG}
    stream = client.chat.completions.create(stream=True, **options)
    next(iter(stream))
    assert guarded.service.gate.num_inside == 2
    assert guarded.post("/v1/completions", {"prompt": "a", "max_tokens": 1}).status == 429
    stream.close()
    until(lambda: guarded.service.gate.num_inside == 0)
    guarded.service.engine.generate("a", max_tokens=1)  # a plan later: what was cancelled before has been noticed
    assert guarded.service.engine.stats().num_running == 0
    assert guarded.service.engine.stats().memory_use == 0.0  # pages are free, or kept for the next who begins so


def test_who_leaves_before_a_whole_answer_is_cancelled(guarded: Running) -> None:
    body = str({"model": "base", "messages": MESSAGES, "response_format": LONG}).replace("'", '"').encode()
    with socket.create_connection(("127.0.0.1", guarded.server.port), timeout=PATIENCE_S) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        until(lambda: guarded.service.engine.stats().num_running == 1)
    until(lambda: guarded.service.gate.num_inside == 0)
    guarded.service.engine.generate("a", max_tokens=1)  # a plan later: what was cancelled before has been noticed
    assert guarded.service.engine.stats().num_running == 0


BOMBS = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "padded": "{{ 'a'.ljust(9999999999) }}",
    "long": "{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}",
    "recursive": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "escaping": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "importing": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_is_a_bomb_costs_its_own_request_only(made: Path, tmp_path: Path, name: str) -> None:
    base = Path(shutil.copytree(made / "base", tmp_path / "base"))
    (base / "chat_template.jinja").write_text(
        "{% if messages[0].content == 'boom' %}" + BOMBS[name] + "{% endif %}" + CHAT_TEMPLATE
    )
    settings = Settings(template_timeout_s=1.0, template_memory_bytes=1 << 29, poll_s=0.05)
    with running(base, settings=settings) as each:
        chat = {"model": "", "messages": [{"role": "user", "content": "boom"}], "max_tokens": 1}
        reply = each.post("/v1/chat/completions", chat)
        assert reply.status == 400 and "chat template" in reply.error["message"]
        assert each.post("/v1/chat/completions", {**chat, "messages": MESSAGES}).status == 200


def test_a_template_process_that_starts_late_has_its_time_all_the_same(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = tmp_path / "python"
    late.write_text(f'#!/bin/sh\nsleep 1.5\nexec {sys.executable} "$@"\n')
    late.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(late))
    with running(made / "base", settings=Settings(template_timeout_s=1.0)) as each:
        assert each.post("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 1}).status == 200


def test_a_template_process_that_does_not_start_is_one_line(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", shutil.which("false"))
    renderer = Renderer(open_tokenizer(locate(made / "base")), Settings())
    with pytest.raises(UsageError, match="does not start"):
        asyncio.run(renderer.render(MESSAGES))


def test_odd_paths_lead_nowhere(guarded: Running) -> None:
    for path in ("/v1/models/%2e%2e%2f%2e%2e", "/v1/models/%00", "/%ff", "//", "/v1/../../etc/passwd"):
        assert guarded.send("GET", path).status == 404
