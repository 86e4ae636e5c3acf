"""Requests that nobody would send: by schemathesis from the server's own OpenAPI document, and mutated ones of ours."""

from __future__ import annotations

import copy
import http.client
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from regraft.server.settings import Settings
from tests.processes import PATIENCE_S
from tests.server.running import MESSAGES, Running, running

SHORT = {"max_tokens": 2}
BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "base", "messages": MESSAGES, "temperature": 0.5, "seed": 1, **SHORT}),
    ("/v1/chat/completions", {"messages": MESSAGES, "stream": True, "stream_options": {}, **SHORT}),
    ("/v1/chat/completions", {"messages": MESSAGES, "logprobs": True, "top_logprobs": 3, "n": 2, **SHORT}),
    ("/v1/chat/completions", {"messages": MESSAGES, "response_format": {"type": "json_object"}, **SHORT}),
    ("/v1/chat/completions", {
        "messages": MESSAGES, **SHORT,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "integer"}}},
    }),
    ("/v1/completions", {"model": "lora0*0.7+lora1*0.3", "prompt": "the quick", "stop": ["x"], "logprobs": 2, **SHORT}),
    ("/v1/completions", {"prompt": [[5, 6], [7]], "adapters": {"lora0": 0.5}, "top_k": 3, "min_p": 0.1, **SHORT}),
    ("/v1/embeddings", {"model": "lora1", "input": ["a", "b"], "dimensions": 8, "encoding_format": "base64"}),
    ("/tokenize", {"prompt": "the quick brown fox", "add_special_tokens": True}),
    ("/tokenize", {"messages": MESSAGES, "add_generation_prompt": False}),
    ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "lora0"}),
    ("/v1/unload_lora_adapter", {"lora_name": "a"}),
]  # fmt: skip
JUNK: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 0.0, -0.0, 1e308, 1e-320, 0.1, "", " ", "\x00",
    "\ud800", "\U0010ffff" * 3, "../../etc/passwd", "lora0*1e999", "base", "lora0+lora0", "{{ 7*7 }}", "<|im_end|>",
    "x" * 5000, [], [[]], [None], [0], [-1], [399, 400], ["a"] * 200, {}, {"a": {}}, {"type": "text", "text": "t"},
    {"role": "user", "content": [{"type": "text", "text": "x"}]}, {"$ref": "#"}, {"type": "json_schema"},
    {"type": "string", "pattern": "(a*)*$"}, {"allOf": [{"$ref": "#/x"}]},
]  # fmt: skip
FINE = {*range(200, 500), 503, 504}  # 503: it stops; 504: a deadline that the request asked for


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from places(inner)


def mutated(draw: random.Random) -> tuple[str, str, bytes, dict[str, str]]:
    """Method, path, body, headers."""
    path, body = copy.deepcopy(draw.choice(BODIES))
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(list(places(body)) or [(body, "model")])
        kind = draw.randrange(5)
        if kind == 0 and key in (container if isinstance(container, dict) else range(len(container))):
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[draw.choice(["n", "x", "", "model", "max_tokens", "stop", "timeout_s"])] = copy.deepcopy(
                draw.choice(JUNK)
            )
        else:
            container[key] = (
                copy.deepcopy(draw.choice(JUNK))
                if kind < 4
                else {"a": copy.deepcopy(container.get(key, 0))}
                if isinstance(container, dict)
                else copy.deepcopy(draw.choice(JUNK))
            )
        if not body:
            break
    data = bytearray(json.dumps(body).encode("utf-8", "surrogatepass"))
    if draw.random() < 0.2:
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(data))
            data[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 3))
            if not data:
                break
    kinds = ["application/json"] * 20 + ["text/plain", "", "application/json; charset=\xff", "multipart/form-data"]
    headers = {"Content-Type": draw.choice(kinds)}
    if draw.random() < 0.1:
        headers["Authorization"] = draw.choice(["Bearer", "Bearer \xff", "Basic x", "x" * 3000])
    method = draw.choice(["POST"] * 20 + ["GET", "PUT", "DELETE", "OPTIONS", "HEAD"])
    if draw.random() < 0.05:
        path = draw.choice(["/v1/models/", "/page/"]) + draw.choice(["..", "%2e%2e%2fapp.py", "%00", "%ff", "a" * 500])
        method = "GET"
    return method, path, bytes(data), headers


def check_alive(server: Running) -> None:
    assert server.send("GET", "/health").status == 200
    assert server.post("/v1/completions", {"prompt": "the", "max_tokens": 2, "temperature": 0}).status == 200


@pytest.fixture(scope="module")
def fuzzed(made: Path) -> Iterator[Running]:
    with running(made / "base", made / "loras", settings=Settings(default_max_tokens=4)) as each:
        yield each


@pytest.mark.parametrize(
    ("seed", "count"), [pytest.param(0, 300, id="300"), pytest.param(1, 10_000, id="10000", marks=pytest.mark.slow)]
)
def test_mutated_requests_break_nothing(fuzzed: Running, seed: int, count: int) -> None:
    draw, statuses = random.Random(seed), set()
    connection = http.client.HTTPConnection("127.0.0.1", fuzzed.server.port, timeout=PATIENCE_S)
    for number in range(count):
        method, path, body, headers = mutated(draw)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            said = response.read()
        except (http.client.HTTPException, ConnectionError) as error:
            connection.close()
            assert isinstance(error, http.client.RemoteDisconnected | ConnectionError), (number, error)
            continue
        statuses.add(response.status)
        assert response.status in FINE, (number, method, path, body, said)
        if response.status >= 400 and method != "HEAD":
            assert set(json.loads(said)["error"]) == {"message", "type", "param", "code"}
        assert b"Traceback" not in said
    connection.close()
    check_alive(fuzzed)
    assert {200, 400} <= statuses


@pytest.mark.parametrize("examples", [pytest.param(5, id="5"), pytest.param(200, id="200", marks=pytest.mark.slow)])
def test_schemathesis_breaks_nothing(fuzzed: Running, examples: int) -> None:
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    for found in schema.get_all_operations():
        operation = found.ok()

        @settings(
            max_examples=examples, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
        )
        @given(case=operation.as_strategy())
        def send(case: Any) -> None:
            response = case.call(base_url=fuzzed.url, timeout=PATIENCE_S)
            assert response.status_code in FINE, (case.body, response.text)

        send()
    check_alive(fuzzed)
