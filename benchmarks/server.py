"""What HTTP costs the engine: ``python -m benchmarks.server`` → ``results/server.json``.

The same requests, each with one of the zoo's adapters, by so many callers at once: in the engine's own process, then
over HTTP from another one, as whole answers and as streams; and of llama.cpp's server, with the same weights, the same
adapters as GGUF and ``lora`` in each request. Rounds are interleaved, and who is not asked is stopped. Our answers have
to be the same each way; llama.cpp rounds activations otherwise, so of its answers it is told how many are.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.models import PEERS
from benchmarks.serving import read_prompts
from regraft import Engine, __version__
from regraft.export.run import Export, export_adapter, export_base
from regraft.storage import write_json
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
RESULTS = Path(__file__).resolve().parent / "results" / "server.json"
LLAMA_SERVER = PEERS.parent / "llama-server"  # by benchmarks/peers/install.sh
OURS = ("engine", "whole", "stream")
THEIRS = "llama.cpp"


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
    port: int, ids: Mapping[str, int] | None, requests: Sequence[Request], plan: Plan, stream: bool
) -> tuple[float, list[Answer]]:
    """The same over HTTP; runs in a process of its own."""

    def ask(request: Request) -> Answer:
        name, messages = request
        body: dict[str, Any] = {"messages": messages, "max_tokens": plan.max_tokens, "temperature": 0}
        body |= {"model": name} if ids is None else {"lora": [{"id": ids[name], "scale": 1.0}]}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        answer = _streamed(response) if stream else _whole(response)
        connection.close()
        return answer

    return drive(ask, requests, plan.callers)


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


class Server:
    """A server in a process of its own, stopped unless it is asked for something.

    Args:
        command: what starts it, but for its port.
        ids: adapter → its number in ``lora``; without, the adapter is the request's ``model``.
    """

    def __init__(self, command: Sequence[str | Path], ids: Mapping[str, int] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.ids = ids
        words = [*map(str, command), "--port", str(self.port)]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(600):
            if self._is_ready():
                break
            assert self._process.poll() is None, f"{words[0]} has ended"
            time.sleep(0.1)
        self._process.send_signal(signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Let it run for as long as the context lasts."""
        self._process.send_signal(signal.SIGCONT)
        yield
        self._process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def our_server() -> Server:
    """``regraft serve`` with the zoo's adapters."""
    return Server([sys.executable, "-m", "regraft", "serve", BASE, "--adapters", ADAPTERS, "--quiet"])


def llama_server(folder: Path, plan: Plan) -> Server:
    """llama.cpp's, with the same weights and adapters; each caller has a slot of its own."""
    names = sorted(path.parent.name for path in ADAPTERS.glob("*/adapter_config.json"))
    export_base(Export(BASE, folder / "base.gguf", "gguf", check=False))
    for name in names:
        export_adapter(Export(BASE, folder / f"{name}.gguf", "gguf", check=False), ADAPTERS / name)
    loras = ",".join(str(folder / f"{name}.gguf") for name in names)
    options = ["--model", folder / "base.gguf", "--lora", loras, "--lora-init-without-apply", "--jinja"]
    options += ["--threads", os.cpu_count(), "--parallel", plan.callers, "--ctx-size", 1024 * plan.callers]
    return Server([LLAMA_SERVER, *map(str, options)], {name: number for number, name in enumerate(names)})


class Contest:
    """All ways to have the same requests answered, each when it is its turn."""

    def __init__(self, plan: Plan, engine: Engine, servers: Mapping[str, Server], client: ProcessPoolExecutor) -> None:
        self._plan, self._engine, self._servers, self._client = plan, engine, servers, client
        self._requests = make_requests(plan)
        self.ways = [*OURS, *(way for way in servers if way not in OURS)]

    def run(self, way: str) -> tuple[float, list[Answer]]:
        """Seconds and answers."""
        if way == "engine":
            return drive(self._ask, self._requests, self._plan.callers)
        server = self._servers[way]
        with server.awake():
            options = (server.port, server.ids, self._requests, self._plan, way != "whole")
            return self._client.submit(over_http, *options).result()

    def _ask(self, request: Request) -> Answer:
        name, messages = request
        completion = self._engine.generate(messages, name, max_tokens=self._plan.max_tokens)
        return completion.text, len(completion.tokens)


def measure(plan: Plan) -> dict[str, Any]:
    """Tokens per second of each way, round by round."""
    adapters = {path.parent.name: path.parent for path in ADAPTERS.glob("*/adapter_config.json")}
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(our_server()) as ours,
        closing(llama_server(Path(folder), plan)) as theirs,
        Engine(BASE, adapters) as engine,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as client,
    ):
        contest = Contest(plan, engine, {"whole": ours, "stream": ours, THEIRS: theirs}, client)
        expected = {way: contest.run(way)[1] for way in contest.ways}  # all is loaded now
        rates: dict[str, list[float]] = {way: [] for way in contest.ways}
        for number in range(plan.rounds):
            for way in contest.ways:
                seconds, answers = contest.run(way)
                rates[way].append(sum(tokens for _, tokens in answers) / seconds)
                print(f"{number} {way:10} {rates[way][-1]:8.1f} tokens/s", flush=True)
    same = {
        way: sum(a[0] == b[0] for a, b in zip(answers, expected["engine"], strict=True))
        for way, answers in expected.items()
    }
    return {
        "plan": asdict(plan),
        "tokens_per_s": {way: median(rates[way]) for way in rates},
        "of_the_engine": {
            way: median(a / b for a, b in zip(rates[way], rates["engine"], strict=True)) for way in rates
        },
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
