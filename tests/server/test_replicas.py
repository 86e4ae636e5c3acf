"""Two real replicas by Ray Serve, behind ``regraft serve --replicas 2``; one of them is killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from openai import APIError, OpenAI

from tests.server.running import LONG, MESSAGES, until
from tests.tiny import make_base

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="replicas are found by /proc")


class Served:
    """The command, and what it says of itself."""

    def __init__(self, base: Path, adapters: Path) -> None:
        options = ["--adapters", adapters, "--replicas", "2", "--port", "0", "--memory", "64MiB", "--drain", "2"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "regraft", "serve", str(base), *map(str, options)],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        until(lambda: self.url or self.process.poll() is not None, timeout_s=120)
        assert self.url, self.log

    @property
    def url(self) -> str | None:
        found = [match[1] for line in self.log if (match := re.search(r"serving .* on (http\S+)", line))]
        return found[0] if found else None

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=60)

    @property
    def replicas(self) -> set[int]:
        """Process ids."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if words.startswith(b"ray::ServeReplica:regraft"):
                found.add(int(folder.name))
        return found

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)


@pytest.fixture(scope="module")
def served(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    base = make_base(tmp_path_factory.mktemp("replicas") / "base", positions=4096)  # for answers that take seconds
    server = Served(base, made / "loras")
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


def _say(client: OpenAI, model: str) -> str:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=6)
    return str(answer.choices[0].message.content)


def test_the_replicas_answer_as_one(served: Served) -> None:
    client = served.client
    assert [model.id for model in client.models.list()] == ["base", "lora0", "lora1", "lora2"]
    said = {model: _say(client, model) for model in ("base", "lora0", "lora1", "lora0*0.5+lora1")}
    assert len(set(said.values())) == 4
    with ThreadPoolExecutor(8) as pool:  # more at once than one replica is given
        for model, answer in said.items():
            assert set(pool.map(lambda _, model=model: _say(client, model), range(8))) == {answer}
    stream = client.chat.completions.create(model="lora0", messages=MESSAGES, temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == said["lora0"]


def _taken(client: OpenAI, model: str) -> Counter[str]:
    """Requests for a model that each replica has answered."""
    taken = Counter[str]()
    for line in client.get("/../metrics", cast_to=str).splitlines():
        if line.startswith("regraft_request_success_total") and f'model_name="{model}"' in line:
            taken[re.search(r'replica="(\d)"', line)[1]] += int(float(line.rsplit(" ", 1)[1]))  # type: ignore[index]
    return taken


def test_an_adapter_stays_with_a_replica(served: Served) -> None:
    _say(served.client, "lora2")
    time.sleep(3)  # Ray tells its router, and nobody else: asked sooner, the other replica might come to have it too
    for _ in range(19):
        _say(served.client, "lora2")
    taken = _taken(served.client, "lora2")
    assert taken.total() == 20 and max(taken.values()) >= 18, taken


def test_a_killed_replica_ends_no_stream_without_a_word(served: Served) -> None:
    begun, outcomes = threading.Semaphore(0), Counter[str]()

    def listen() -> None:
        stream = served.client.chat.completions.create(
            model="base", messages=MESSAGES, max_tokens=2500, response_format=LONG, stream=True
        )
        reason: str | None = None
        try:
            for number, chunk in enumerate(stream):
                if number == 1:
                    begun.release()
                reason = chunk.choices[0].finish_reason
        except APIError as error:
            reason = str(error.code)
        outcomes[str(reason)] += 1

    listeners = [threading.Thread(target=listen) for _ in range(24)]
    for each in listeners:
        each.start()
    for _ in listeners:  # all have begun, and none has ended
        assert begun.acquire(timeout=60)
    victim = min(served.replicas)
    os.kill(victim, signal.SIGKILL)
    for each in listeners:
        each.join(60)
    assert outcomes.total() == 24 and set(outcomes) <= {"stop", "length", "replica_died"}, outcomes
    assert 0 < outcomes["replica_died"] < 24, outcomes
    assert _say(served.client, "base")  # the other one is there
    until(lambda: len(served.replicas) == 2 and victim not in served.replicas, timeout_s=90)


def test_it_ends_when_told_to_and_leaves_nothing(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(60) == 0, served.log
    until(lambda: not served.replicas, timeout_s=30)
    assert not any("Traceback" in line or "***" in line for line in served.log), served.log
