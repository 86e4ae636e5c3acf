"""What HTTP costs the engine: ``python -m benchmarks.server`` → ``results/server.json``.

The same requests, each with one of the zoo's adapters, by so many callers at once: in the engine's own process, then
over HTTP from another one, as whole answers and as streams. Rounds are interleaved; answers have to be the same.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serving import read_prompts
from regraft import Engine, __version__
from regraft.storage import write_json
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
RESULTS = Path(__file__).resolve().parent / "results" / "server.json"
WAYS = ("engine", "whole", "stream")


@dataclass(frozen=True)
class Plan:
    """The workload: how many requests, by how many callers, how many tokens each may have."""

    requests: int = 128
    callers: int = 16
    max_tokens: int = 48
    rounds: int = 5


Request = tuple[str, list[dict[str, str]]]  # adapter, conversation
Answer = tuple[str, int]  # text, tokens


def make_requests(plan: Plan) -> list[Request]:
    """Test rows of the zoo's home task, asked of each adapter in turn."""
    names = sorted(path.parent.name for path in ADAPTERS.glob("*/adapter_config.json"))
    prompts = [prompt for prompt in read_prompts(("home",)) if isinstance(prompt, list)]
    return [(names[n % len(names)], prompts[n % len(prompts)]) for n in range(plan.requests)]


def drive(ask: Callable[[Request], Answer], requests: Sequence[Request], callers: int) -> tuple[float, list[Answer]]:
    """Seconds until the last answer, and the answers; each caller asks when its last request is answered."""
    with ThreadPoolExecutor(callers) as pool:
        start = time.perf_counter()
        answers = list(pool.map(ask, requests))
        return time.perf_counter() - start, answers


def over_http(
    port: int, requests: Sequence[Request], callers: int, max_tokens: int, stream: bool
) -> tuple[float, list[Answer]]:
    """The same over HTTP; runs in a process of its own."""

    def ask(request: Request) -> Answer:
        name, messages = request
        body: dict[str, Any] = {"model": name, "messages": messages, "max_tokens": max_tokens, "temperature": 0}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        answer = _streamed(response) if stream else _whole(response)
        connection.close()
        return answer

    return drive(ask, requests, callers)


def _whole(response: http.client.HTTPResponse) -> Answer:
    data = json.load(response)
    return data["choices"][0]["message"]["content"], data["usage"]["completion_tokens"]


def _streamed(response: http.client.HTTPResponse) -> Answer:
    text, tokens = "", 0
    for line in response:
        if not line.startswith(b"data: {"):
            continue
        data = json.loads(line[6:])
        text += "".join(choice["delta"].get("content") or "" for choice in data["choices"])
        tokens = (data.get("usage") or {}).get("completion_tokens", tokens)
    return text, tokens


@contextmanager
def serving() -> Iterator[int]:
    """A server of its own; yields its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--adapters", str(ADAPTERS), "--port", str(port), "--quiet"]
    server = subprocess.Popen([sys.executable, "-m", "regraft", "serve", BASE, *options])
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield port
    finally:
        server.terminate()
        server.wait(60)


def measure(plan: Plan) -> dict[str, Any]:
    """Tokens per second of each way, round by round."""
    requests = make_requests(plan)
    adapters = {path.parent.name: path.parent for path in ADAPTERS.glob("*/adapter_config.json")}
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        serving() as port,
        Engine(BASE, adapters) as engine,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as other,
    ):

        def ask(request: Request) -> Answer:
            name, messages = request
            completion = engine.generate(messages, name, max_tokens=plan.max_tokens)
            return completion.text, len(completion.tokens)

        def run(way: str) -> tuple[float, list[Answer]]:
            if way == "engine":
                return drive(ask, requests, plan.callers)
            options = (port, requests, plan.callers, plan.max_tokens, way == "stream")
            return other.submit(over_http, *options).result()

        expected = {way: run(way)[1] for way in WAYS}  # all is loaded now
        for _ in range(plan.rounds):
            for way in WAYS:
                seconds, answers = run(way)
                rates[way].append(sum(tokens for _, tokens in answers) / seconds)
    same = {way: sum(a[0] == b[0] for a, b in zip(expected[way], expected["engine"], strict=True)) for way in WAYS}
    return {
        "plan": asdict(plan),
        "tokens_per_s": {way: median(rates[way]) for way in WAYS},
        "of_the_engine": {way: median(a / b for a, b in zip(rates[way], rates["engine"], strict=True)) for way in WAYS},
        "rounds": rates,
        "same_answers": {way: f"{count} of {plan.requests}" for way, count in same.items()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--requests", type=int, default=Plan.requests)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    result = measure(Plan(rounds=args.rounds, requests=args.requests))
    write_json(args.output, result)
    print(json.dumps({key: result[key] for key in ("tokens_per_s", "of_the_engine", "same_answers")}, indent=2))


if __name__ == "__main__":
    main()
