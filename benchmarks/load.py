"""A server under load, a replica killed: ``python -m benchmarks.load [--minutes 10]`` → ``results/load.json``.

64 clients stream answers from ``regraft serve --replicas 2`` with 200 adapters, and some that come and go; at two
fifths of the time a replica gets SIGKILL. Each stream has to end with ``[DONE]`` or with an error, and each answer has
to be what the engine says alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving import read_prompts
from regraft import Engine, __version__
from regraft.engine.prompt import Prompt
from regraft.storage import write_json
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
TASKS = ("home", "names", "topics")
RESULTS = Path(__file__).resolve().parent / "results" / "load.json"
REPLICA = b"ray::ServeReplica:regraft"
ALLOWED = {"replica_died", "queue_full", "deadline_exceeded", "model_not_found"}  # errors that this load may cause


@dataclass(frozen=True)
class Plan:
    """The load."""

    minutes: float = 10.0
    clients: int = 64
    adapters: int = 200
    passing: int = 10  # adapters that come and go
    replicas: int = 2
    memory: str = "64MiB"  # of each replica; all adapters together are larger
    pause_s: float = 6.0  # mean time between a client's requests
    max_tokens: int = 32
    killed_at: float = 0.4  # of the time
    checked: int = 400  # answers that are computed again
    seed: int = 0


@dataclass
class Answer:
    """What came of one request; ``text`` is None where an error came instead of the end."""

    prompt: Prompt
    adapter: str
    max_tokens: int
    began_s: float
    first_s: float | None = None
    total_s: float = 0.0
    text: str | None = None
    error: str | None = None


@dataclass
class Load:
    """Clients that ask a server for a while.

    Args:
        plan: how many, how often, how long.
        port: of the server.
        folder: of its adapters.
        prompts: to choose from.
    """

    plan: Plan
    port: int
    folder: Path
    prompts: Sequence[Prompt]
    answers: list[Answer] = field(default_factory=list)
    churn: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    killed_s: float | None = None  # since the start
    healed_s: float | None = None

    def run(self) -> None:
        """Until the time is over, and all have ended."""
        self._start = time.monotonic()
        self._end = self._start + 60 * self.plan.minutes
        self._names = [f"a{number:03}" for number in range(self.plan.adapters)]
        work = [self._ask] * self.plan.clients + [self._come_and_go, self._kill]
        threads = [threading.Thread(target=self._guarded, args=pair, daemon=True) for pair in enumerate(work)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(1.0, self._end + 120 - time.monotonic()))
        if hung := sum(thread.is_alive() for thread in threads):
            self.problems.append(f"{hung} clients have not ended")

    def _guarded(self, number: int, work: Any) -> None:
        try:
            work(random.Random(1000 * self.plan.seed + number))
        except Exception as error:  # whatever it is, the run has failed, and goes on to say so
            self.problems.append(f"{type(error).__name__}: {error}")

    def _ask(self, rng: random.Random) -> None:
        while time.monotonic() < self._end:
            time.sleep(rng.expovariate(1 / self.plan.pause_s))
            passing = rng.random() < 0.05
            adapter = f"p{rng.randrange(self.plan.passing)}" if passing else rng.choice(self._names)
            asked = Answer(rng.choice(self.prompts), adapter, rng.randint(4, self.plan.max_tokens), time.monotonic())
            try:
                stream(self.port, asked)
            except (OSError, http.client.HTTPException) as error:
                asked.error = f"connection: {type(error).__name__}"
            asked.total_s = time.monotonic() - asked.began_s
            asked.began_s -= self._start
            self.answers.append(asked)

    def _come_and_go(self, rng: random.Random) -> None:
        while time.monotonic() < self._end:
            time.sleep(rng.expovariate(1 / 3.0))
            number = rng.randrange(self.plan.passing)
            place = self.folder / f"p{number}"
            if place.exists():
                gone = place.rename(self.folder / f".gone-{number}")
                shutil.rmtree(gone)
                self.churn["remove"] += 1
            else:
                copy(sources()[number % len(sources())], place)
                self.churn["add"] += 1

    def _kill(self, rng: random.Random) -> None:
        time.sleep(60 * self.plan.minutes * self.plan.killed_at)
        before = replicas()
        os.kill(rng.choice(sorted(before)), signal.SIGKILL)
        self.killed_s = time.monotonic() - self._start
        while time.monotonic() < self._end:
            now = replicas()
            if len(now) == self.plan.replicas and now != before:
                self.healed_s = time.monotonic() - self._start
                return
            time.sleep(0.2)


def stream(port: int, asked: Answer) -> None:
    """Ask, and write down what comes; raises OSError or HTTPException if the connection breaks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    body: dict[str, Any] = {"model": asked.adapter, "temperature": 0, "max_tokens": asked.max_tokens, "stream": True}
    is_text = isinstance(asked.prompt, str)
    body |= {"prompt": asked.prompt} if is_text else {"messages": asked.prompt}
    path = "/v1/completions" if is_text else "/v1/chat/completions"
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        asked.error = _said(json.load(response)["error"])
        return
    text, is_done = "", False
    for line in response:
        if line == b"data: [DONE]\n":
            is_done = True
        elif line.startswith(b"data: "):
            data = json.loads(line[6:])
            if "error" in data:
                asked.error = _said(data["error"])
                return
            asked.first_s = asked.first_s or time.monotonic() - asked.began_s
            text += "".join((c["text"] if is_text else c["delta"].get("content")) or "" for c in data["choices"])
    if is_done:
        asked.text = text
    else:
        asked.error = "lost: the stream ended without a word"


def _said(error: dict[str, Any]) -> str:
    """An error's code; of one that this load should not cause, what it says too."""
    return error["code"] if error["code"] in ALLOWED else f"{error['code']}: {error['message']}"


def sources() -> list[Path]:
    """The zoo's adapters."""
    return sorted(path.parent for path in ADAPTERS.glob("*/adapter_config.json"))


def copy(source: Path, place: Path) -> None:
    """An adapter under another name, there at one moment."""
    partial = place.with_name(f".{place.name}")
    shutil.copytree(source, partial)
    partial.rename(place)


def replicas() -> set[int]:
    """Process ids of Ray's replicas on this machine."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(REPLICA):
                found.add(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found


@contextmanager
def serving(plan: Plan, folder: Path) -> Iterator[int]:
    """A server in a process of its own; yields its port. It has to end well."""
    options = ["--adapters", folder, "--port", 0, "--replicas", plan.replicas, "--memory", plan.memory]
    command = [sys.executable, "-m", "regraft", "serve", BASE, *map(str, options)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        found = None
        while found is None:
            line = server.stderr.readline()
            assert line, "the server has ended"
            found = re.search(r"serving .*:(\d+)/v1", line)
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield int(found[1])
        server.terminate()
        assert server.wait(120) == 0, "the server did not end well"
    finally:
        server.kill()


def wrong_answers(answers: Sequence[Answer]) -> list[str]:
    """Those that are not what the engine answers to each alone."""
    wrong = []
    with Engine(BASE, {path.name: path for path in sources()}) as engine:
        for asked in answers:
            number = int(asked.adapter[1:])
            name = sources()[number % len(sources())].name
            alone = engine.generate(asked.prompt, name, max_tokens=asked.max_tokens).text
            if alone != asked.text:
                wrong.append(f"{asked.adapter} ({name}): {asked.text!r}, alone {alone!r}")
    return wrong


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """In seconds."""
    return {f"p{share}": round(float(np.percentile(values, share)), 3) for share in (50, 90, 99, 100)}


def report(load: Load, wrong: Sequence[str], num_checked: int) -> dict[str, Any]:
    """What was done and found."""
    whole = [answer for answer in load.answers if answer.text is not None]
    codes = Counter(answer.error for answer in load.answers if answer.error is not None)
    lost = {code: count for code, count in codes.items() if code.partition(":")[0] not in ALLOWED}
    checks = {
        "every stream ended with [DONE] or an error of its own": not lost,
        "every answer is that of the engine alone": not wrong,
        "a replica was killed and replaced": load.killed_s is not None and load.healed_s is not None,
        "adapters came and went": load.churn["add"] > 0 and load.churn["remove"] > 0,
        "no client failed": not load.problems,
    }
    first = [answer.first_s for answer in whole if answer.first_s is not None]
    return {
        "plan": asdict(load.plan),
        "requests": len(load.answers),
        "whole_answers": len(whole),
        "errors": dict(codes),
        "answers_checked": num_checked,
        "answers_wrong": len(wrong),
        "requests_per_s": round(len(whole) / (60 * load.plan.minutes), 2),
        "first_text_s": percentiles(first),
        "whole_answer_s": percentiles([answer.total_s for answer in whole]),
        "killed_at_s": load.killed_s and round(load.killed_s, 1),
        "replaced_at_s": load.healed_s and round(load.healed_s, 1),
        "churn": dict(load.churn),
        "problems": load.problems,
        "checks": checks,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, clients included",
        "version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def main() -> None:
    """Load, check, write; exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    plan, prompts = Plan(minutes=args.minutes), read_prompts(TASKS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(plan.adapters):
            copy(sources()[number % len(sources())], folder / f"a{number:03}")
        with serving(plan, folder) as port:
            load = Load(plan, port, folder, prompts)
            load.run()
    whole = [answer for answer in load.answers if answer.text is not None]
    checked = random.Random(plan.seed).sample(whole, min(plan.checked, len(whole)))
    wrong = wrong_answers(checked)
    result = report(load, wrong, len(checked))
    write_json(args.output, result)
    print(json.dumps(result, indent=2))
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(not all(result["checks"].values()))


if __name__ == "__main__":
    main()
