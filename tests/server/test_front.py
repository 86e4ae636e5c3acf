"""The front, before replicas that are applications in this process and can be told to die."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message

from regraft.server.cluster.forward import Forwarded, adapter_of, answered
from regraft.server.cluster.front import Front, ReplicaDied
from regraft.server.cluster.merged import merge_metrics, merge_states
from regraft.server.errors import ApiError
from regraft.server.left_out import header_of
from regraft.server.settings import Settings
from tests.server.running import Reply

SETTINGS = Settings(max_body_bytes=1000)


class Local:
    """Replicas without processes; ``dies_after`` counts messages, and then a replica dies, once for each number."""

    def __init__(self, *apps: ASGIApp) -> None:
        self.apps, self.dies_after, self.asked = apps, list[int](), list[str]()
        self.cancelled = 0

    async def stream(self, forwarded: Forwarded, adapter: str) -> AsyncGenerator[list[Message]]:
        self.asked.append(adapter)
        left = self.dies_after.pop(0) if self.dies_after else None
        is_whole = False
        try:
            async for messages in answered(self.apps[0], forwarded):
                for message in messages:
                    if left == 0:
                        raise ReplicaDied
                    left = left and left - 1
                    yield [message]
            is_whole = True
        finally:
            self.cancelled += not is_whole

    async def all(self, forwarded: Forwarded) -> list[list[Message]]:
        return [[m async for messages in answered(app, forwarded) for m in messages] for app in self.apps]


async def _echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"path": request.url.path, "query": request.url.query, "body": body.decode()}, 201)


async def _count(request: Request) -> Response:
    async def events() -> AsyncGenerator[str]:
        for number in range(int(request.query_params["to"])):
            yield f"data: {number}\n\n"
            await asyncio.sleep(0)
        yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream")


async def _without_tools(_: Request) -> Response:
    return JSONResponse({}, headers=header_of({"tools": "they are heavy"}))


async def _fail(_: Request) -> Response:
    raise ValueError("a bug")


def _app(**state: Any) -> Starlette:
    async def told(_: Request) -> Response:
        return JSONResponse(state, state.get("status", 200))

    return Starlette(
        routes=[
            Route("/echo", _echo, methods=["GET", "POST"]),
            Route("/count", _count),
            Route("/fail", _fail),
            Route("/without_tools", _without_tools),
            Route("/page/state", told),
        ]
    )


@pytest.fixture
def local() -> Iterator[Local]:
    yield Local(
        _app(time_s=5.0, num=1, memory={"free": 3}, names=["b"]),
        _app(time_s=7.0, num=2, memory={"free": 4}, names=["a", "b"]),
    )


def ask(local: Local, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Reply:
    """One request to a front, without sockets."""
    sent: list[Message] = []
    coming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not coming:
            await asyncio.Event().wait()
        return coming.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    plain = {"host": "127.0.0.1", "content-type": "application/json", **(headers or {})}
    place, _, query = path.partition("?")
    scope = {"type": "http", "method": method, "path": place, "query_string": query.encode()}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in plain.items()]
    asyncio.run(asyncio.wait_for(Front(local, SETTINGS, ("127.0.0.1",), base_name="base")(scope, receive, send), 20))
    found = {bytes(name).decode(): bytes(value).decode() for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:]))


def test_a_request_and_its_answer_pass_unchanged(local: Local) -> None:
    reply = ask(local, "POST", "/echo?a=%20b", b'{"model":"x*0.5 + y"}')
    assert reply.status == 201
    assert reply.json == {"path": "/echo", "query": "a=%20b", "body": '{"model":"x*0.5 + y"}'}
    assert local.asked == ["x"]


def test_what_a_replica_left_out_is_logged_here(local: Local, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="regraft.server")
    assert ask(local, "GET", "/without_tools").headers["regraft-left-out"] == 'tools;reason="they are heavy"'
    assert [record.getMessage() for record in caplog.records] == [
        '/without_tools: left out tools;reason="they are heavy"'
    ]


def test_a_stream_passes_event_by_event(local: Local) -> None:
    reply = ask(local, "GET", "/count?to=30")
    assert reply.data.decode() == "".join(f"data: {n}\n\n" for n in range(30)) + "data: [DONE]\n\n"
    assert reply.headers["content-type"].startswith("text/event-stream") and local.cancelled == 0


def test_the_base_is_asked_of_any(local: Local) -> None:
    ask(local, "POST", "/echo", b'{"model":"base"}')
    assert local.asked == [""]


@pytest.mark.parametrize("deaths", [[0], [0, 0]])
def test_what_has_not_begun_is_asked_again(local: Local, deaths: list[int]) -> None:
    local.dies_after = list(deaths)
    assert ask(local, "GET", "/echo").status == 201
    assert len(local.asked) == 1 + len(deaths)


def test_not_for_ever(local: Local) -> None:
    local.dies_after = [0] * 10
    reply = ask(local, "GET", "/echo")
    assert (reply.status, reply.json["error"]["code"]) == (503, "replica_died")
    assert reply.headers["retry-after"] == "1" and len(local.asked) == 3


def test_a_stream_that_had_begun_ends_with_an_error_event(local: Local) -> None:
    local.dies_after = [4]
    *events, error, last = ask(local, "GET", "/count?to=30").data.decode().split("\n\n")
    assert events == ["data: 0", "data: 1", "data: 2"] and last == ""
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_died"
    assert len(local.asked) == 1


def test_a_whole_answer_that_had_begun_is_broken_off(local: Local) -> None:
    local.dies_after = [1]
    with pytest.raises(ApiError, match="has died"):  # uvicorn then closes the connection before the body's end
        ask(local, "GET", "/echo")


def test_a_bug_in_a_replica_is_a_500(local: Local) -> None:
    reply = ask(local, "GET", "/fail")
    assert reply.status == 500


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"body": b"x" * 1001}, 413),
        ({"body": b"{}", "headers": {"content-type": "text/plain"}}, 415),
    ],
)
def test_bodies_are_judged_before_any_replica_is_asked(local: Local, more: dict[str, Any], status: int) -> None:
    assert ask(local, "POST", "/echo", **more).status == status
    assert not local.asked


def test_other_hosts_names_are_refused(local: Local) -> None:
    assert ask(local, "GET", "/echo", headers={"host": "evil.example"}).status == 400


def test_the_page_sees_the_sum_of_all(local: Local) -> None:
    found = ask(local, "GET", "/page/state").json
    assert found == {"time_s": 5.0, "num": 3, "memory": {"free": 7}, "names": ["a", "b"], "replicas": 2}


def test_a_refusal_of_one_is_that_of_all() -> None:
    reply = ask(Local(_app(), _app(status=401)), "GET", "/page/state")
    assert (reply.status, reply.json) == (401, {"status": 401})


def test_without_replicas_there_is_no_state() -> None:
    assert ask(Local(), "GET", "/page/state").status == 503


def test_a_client_that_goes_away_cancels_and_a_shutdown_says_so(local: Local) -> None:
    async def run(is_shutdown: bool) -> list[Message]:
        front, sent = Front(local, SETTINGS, None, base_name="base"), list[Message]()
        leave = asyncio.Event()

        async def receive() -> Message:
            await leave.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            sent.append(message)
            if len(sent) == 5:
                front.end_all() if is_shutdown else leave.set()

        scope = {"type": "http", "method": "GET", "path": "/count", "query_string": b"to=100000", "headers": []}
        await asyncio.wait_for(front(scope, receive, send), 20)
        return sent

    assert len(asyncio.run(run(is_shutdown=False))) < 100_000 and local.cancelled == 1
    last = asyncio.run(run(is_shutdown=True))[-1]
    assert b"shutting_down" in last["body"] and not last["more_body"] and local.cancelled == 2


@pytest.mark.parametrize(
    ("body", "adapter"),
    [
        (b'{"model": "names"}', "names"),
        (b'{"model": "names*0.3+films"}', "names"),
        (b'{"model": "", "adapters": {"films": 1}}', "films"),
        (b'{"model": 3}', ""),
        (b"[]", ""),
        (b"{", ""),
        (b"\xff", ""),
        (b"", ""),
        (b'{"model": "' + b"x" * 500 + b'"}', "x" * 64),
    ],
)
def test_the_adapter_of_a_body(body: bytes, adapter: str) -> None:
    assert adapter_of(body) == adapter


def test_metrics_say_whose_they_are() -> None:
    text = b'# HELP n_total N.\n# TYPE n_total counter\nn_total{a="b"} %d.0\n# TYPE g gauge\ng %d.0\n'
    merged = merge_metrics([text % (1, 2), text % (3, 4)]).decode()
    for line in ('n_total{a="b",replica="0"} 1.0', 'n_total{a="b",replica="1"} 3.0', 'g{replica="1"} 4.0'):
        assert line in merged.splitlines()
    assert merged.count("# TYPE") == 2


def test_states_are_added_up() -> None:
    assert json.loads(merge_states([b'{"time_s": 1, "n": 2}']))["n"] == 2
