"""Two real replicas by Ray Serve, behind ``regraft serve --replicas 2``; one of them is killed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from openai import APIError, OpenAI

from tests.processes import PATIENCE_S, family, regraft_process, until, words_of
from tests.server.running import LONG, MESSAGES
from tests.tiny import make_base

STAYING = ["stays0", "stays1", "stays2", "stays3"]


class Served:
    """The command, and what it says of itself."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def url(self) -> str | None:
        found = [match[1] for line in self.log if (match := re.search(r"serving .* on (http\S+)", line))]
        return found[0] if found else None

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=self.url, api_key="none", max_retries=0, timeout=PATIENCE_S)

    @property
    def replicas(self) -> set[int]:
        """Process ids."""
        return {each.pid for each in self.processes if words_of(each).startswith("ray::ServeReplica:regraft")}

    @property
    def processes(self) -> list[psutil.Process]:
        """All that the command has started, and itself."""
        return family(self.process.pid)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)


@contextmanager
def starting(base: Path, adapters: Path) -> Iterator[Served]:
    """The command, not yet ready."""
    options = ["--adapters", adapters, "--replicas", 2, "--port", 0, "--memory", "64MiB", "--drain", 2]
    with regraft_process("serve", base, *options, stderr=subprocess.PIPE) as process:
        yield Served(process)


@pytest.fixture(scope="module")
def served(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("replicas")
    base = make_base(root / "base", positions=4096)  # for answers that take seconds
    shutil.copytree(made / "loras", root / "loras")
    for adapter in STAYING:
        shutil.copytree(made / "loras" / "lora2", root / "loras" / adapter)
    with starting(base, root / "loras") as server:
        until(lambda: server.url or server.process.poll() is not None)
        assert server.url, server.log
        yield server


def _say(client: OpenAI, model: str) -> str:
    answer = client.chat.completions.create(model=model, messages=MESSAGES, temperature=0, max_tokens=6)
    return str(answer.choices[0].message.content)


def test_the_replicas_answer_as_one(served: Served) -> None:
    client = served.client
    assert [model.id for model in client.models.list()] == ["base", "lora0", "lora1", "lora2", *STAYING]
    said = {model: _say(client, model) for model in ("base", "lora0", "lora1", "lora0*0.5+lora1")}
    assert len(set(said.values())) == 4
    with ThreadPoolExecutor(8) as pool:  # more at once than one replica is given
        for model, answer in said.items():
            assert set(pool.map(lambda _, model=model: _say(client, model), range(8))) == {answer}
    stream = client.chat.completions.create(model="lora0", messages=MESSAGES, temperature=0, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == said["lora0"]


def test_replicas_are_as_nice_as_the_command(served: Served) -> None:
    assert {psutil.Process(each).nice() for each in served.replicas} == {psutil.Process(served.process.pid).nice()}


def _taken(client: OpenAI, model: str) -> Counter[str]:
    """Requests for a model that each replica has answered."""
    taken = Counter[str]()
    for line in client.get("/../metrics", cast_to=str).splitlines():
        if line.startswith("regraft_request_success_total") and f'model_name="{model}"' in line:
            taken[re.search(r'replica="(\d)"', line)[1]] += int(float(line.rsplit(" ", 1)[1]))  # type: ignore[index]
    return taken


def test_an_adapter_stays_with_a_replica(served: Served) -> None:
    # Ray tells its router, and nobody else: asked sooner, the other replica comes to have the adapter too, for good.
    assert any(
        _stays(served.client, adapter, pause_s) for adapter, pause_s in zip(STAYING, (3, 10, 30, 90), strict=True)
    )


def _stays(client: OpenAI, adapter: str, pause_s: float) -> bool:
    """Whether one replica answers 20 requests, but for two at the most, if the second comes after a pause."""
    _say(client, adapter)
    time.sleep(pause_s)
    for _ in range(19):
        _say(client, adapter)
    taken = _taken(client, adapter)
    return taken.total() == 20 and max(taken.values()) >= 18


def test_a_killed_replica_ends_no_stream_without_a_word(served: Served) -> None:
    begun, outcomes = threading.Semaphore(0), Counter[str]()
    client, is_killed = served.client, threading.Event()

    def listen() -> None:
        stream = client.chat.completions.create(
            model="base", messages=MESSAGES, max_tokens=2500, response_format=LONG, stream=True
        )
        reason: str | None = None
        try:
            for number, chunk in enumerate(stream):
                if number == 1:
                    begun.release()
                    is_killed.wait(PATIENCE_S)  # reading on would keep others from beginning before this one ends
                reason = chunk.choices[0].finish_reason
        except APIError as error:
            reason = str(error.code)
        outcomes[str(reason)] += 1

    listeners = [threading.Thread(target=listen) for _ in range(24)]
    for each in listeners:
        each.start()
    for _ in listeners:  # all have begun, and none has ended
        assert begun.acquire(timeout=PATIENCE_S)
    victim = min(served.replicas)
    os.kill(victim, signal.SIGKILL)
    is_killed.set()
    for each in listeners:
        each.join(PATIENCE_S)
    assert outcomes.total() == 24 and set(outcomes) <= {"stop", "length", "replica_died"}, outcomes
    assert 0 < outcomes["replica_died"] < 24, outcomes
    assert _say(served.client, "base")  # the other one is there
    until(lambda: len(served.replicas) == 2 and victim not in served.replicas)


def test_it_ends_when_told_to_and_leaves_nothing(served: Served) -> None:
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(PATIENCE_S) == 0, served.log
    until(lambda: not served.processes)
    assert not any("Traceback" in line or "***" in line for line in served.log), served.log


def test_a_start_that_fails_leaves_nothing(made: Path) -> None:
    with pytest.raises(AssertionError, match="as a fixture's"), starting(made / "base", made / "loras") as server:
        until(lambda: any("raylet" in words_of(each) for each in server.processes))
        raise AssertionError("as a fixture's that has lost its patience")
    assert not server.processes


@pytest.mark.slow  # Ray's agents take up to a minute to notice that they are alone
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_command_that_is_ended_while_it_starts_leaves_nothing(made: Path, sent: signal.Signals) -> None:
    with starting(made / "base", made / "loras") as server:
        until(lambda: any("raylet" in words_of(each) for each in server.processes))
        server.process.send_signal(sent)
        server.process.wait(PATIENCE_S)
        until(lambda: not server.processes)
        assert not any("Traceback" in line or "***" in line for line in server.log), server.log
