"""Ten minutes of everything at once: ``python -m benchmarks.soak [--minutes 10]`` → ``results/soak.json``.

Callers come at random, leave at random and set deadlines that are missed; adapters are added, replaced and removed; the
memory is too small for the load. Nothing is timed: it is looked for leaks, wrong tokens and requests that starve.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import random
import statistics
import sys
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import regraft
from benchmarks.serving import read_prompts
from regraft import Completion, Engine
from regraft.engine.prompt import Prompt, encode_prompt
from regraft.engine.schedule.limits import Limits
from regraft.storage import write_json
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
TASKS = ("home", "names", "topics")
RESULTS = Path(__file__).resolve().parent / "results" / "soak.json"
MEMORY_BYTES = 48 << 20
CHECKED = 400  # answers, drawn evenly from all, that are computed again, alone
SETTLED = 0.4  # of the time; after that the process may grow no more
MOST_GROWTH_KIB_PER_MINUTE = 256
SHORTEST_S = 300.0  # below, memory is still touched for the first time, and its growth is stated but not judged
M_ARENA_MAX = -8  # of malloc.h
LONGEST_WAIT_S = 60.0  # for a first token, and for the last answer once no more requests come


@dataclass(frozen=True)
class Asked:
    """One request, and what came of it; an adapter is written as the directory that its name then stood for."""

    prompt: Prompt
    mix: tuple[tuple[Path, float], ...]
    options: dict[str, Any]
    completion: Completion


@dataclass
class Soak:
    """A load on an engine.

    Args:
        engine: under test.
        adapters: directories; each has a name that stays, others come and go.
        prompts: to choose from.
        seconds: how long requests come.
        clients: how many callers there are, each with one request at a time.
        pause_s: the mean time between a caller's requests.
        checked: how many answers to keep; what is kept of the others does not grow with their number.
        seed: of all that is random, but for the threads' timing.
    """

    engine: Engine
    adapters: Sequence[Path]
    prompts: Sequence[Prompt]
    seconds: float
    clients: int = 24
    pause_s: float = 0.3
    checked: int = CHECKED
    seed: int = 0
    sample: list[Asked] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    waits_s: array[float] = field(default_factory=lambda: array("d"))  # for first tokens, where there is no deadline
    num_tokens: int = 0
    errors: list[str] = field(default_factory=list)
    churn: Counter[str] = field(default_factory=Counter)
    rss_kib: list[tuple[float, int]] = field(default_factory=list)
    num_answers: int = 0  # with tokens
    num_left: int = 0
    num_loads: int = 0

    def __post_init__(self) -> None:
        self._known: dict[str, Path] = {}
        self._names = threading.Lock()  # a name stands for the same directory while a request is made of it
        self._notes = threading.Lock()  # over all that callers write down
        self._kept = random.Random(self.seed)
        self._end = 0.0
        for number, path in enumerate(self.adapters):
            self._add(f"stays {number}", path)
        self._count_loads()

    def run(self) -> None:
        """Until the time is over and the last answer has come, or has not come for too long."""
        self._end = time.monotonic() + self.seconds
        work = [self._ask] * self.clients + [self._come_and_go, self._watch]
        threads = [threading.Thread(target=self._guarded, args=pair, daemon=True) for pair in enumerate(work)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self._end + LONGEST_WAIT_S - time.monotonic()))
        while not self.engine._loop.is_idle and time.monotonic() < self._end + LONGEST_WAIT_S:
            time.sleep(0.01)
        if hung := sum(thread.is_alive() for thread in threads) or not self.engine._loop.is_idle:
            self.errors.append(f"{int(hung)} callers or requests have not ended")

    def pages_left(self) -> int:
        """Pages in use once all that is idle has left; it should be none."""
        scheduler = self.engine._loop.scheduler
        scheduler._memory.make_room(scheduler._pool.num_pages)
        return scheduler._pool.num_used + scheduler._pool.num_pinned

    def _guarded(self, number: int, work: Callable[[random.Random], None]) -> None:
        try:
            work(random.Random(1000 * self.seed + number))
        except Exception as error:  # whatever it is, the soak has failed, and goes on to say so
            self.errors.append(f"{type(error).__name__}: {error}")

    def _ask(self, rng: random.Random) -> None:
        for prompt in self.prompts:  # tokenizers keeps a cache of words for each thread; it would pass for a leak
            encode_prompt(self.engine.base.tokenizer, prompt, self.engine.base.architecture.vocabulary)
        while time.monotonic() < self._end:
            time.sleep(rng.expovariate(1 / self.pause_s))
            prompt, options = rng.choice(self.prompts), self._some_options(rng)
            listens_for = rng.randint(0, 10) if rng.random() < 0.2 else None  # pieces, before the caller leaves
            with self._names:
                names = sorted(rng.sample(sorted(self._known), rng.choice((0, 1, 1, 1, 2))))
                weights = {name: rng.choice((1.0, 1.0, 0.5)) for name in names}
                mix = tuple((self._known[name], weight) for name, weight in weights.items())
                submitted = time.monotonic()
                pieces = self.engine.stream(prompt, weights, **options)
            first, last = None, None
            with pieces:
                for number, piece in enumerate(pieces):
                    if number == listens_for:
                        break
                    last = piece.completion
                    if first is None and (last is None or last.tokens):
                        first = time.monotonic()
            wait = None if first is None or "timeout_s" in options else first - submitted
            self._note(None if last is None else Asked(prompt, mix, options, last), wait)

    def _note(self, asked: Asked | None, wait_s: float | None) -> None:
        """What came of a request, None if its caller left; of answers with tokens an even sample is kept."""
        with self._notes:
            if wait_s is not None:
                self.waits_s.append(wait_s)
            if asked is None:
                self.num_left += 1
                return
            self.reasons[asked.completion.finish_reason] += 1
            self.num_tokens += len(asked.completion.tokens)
            if asked.completion.tokens:
                self.num_answers += 1
                place = self._kept.randrange(self.num_answers)
                if len(self.sample) < self.checked:
                    self.sample.append(asked)
                elif place < self.checked:
                    self.sample[place] = asked

    def _some_options(self, rng: random.Random) -> dict[str, Any]:
        options: dict[str, Any] = {"max_tokens": rng.randint(1, 32), "priority": rng.choice((0, 0, 0, 1))}
        if rng.random() < 0.3:
            options |= {"temperature": 0.8, "top_p": 0.95, "seed": rng.randrange(2**31)}
        if rng.random() < 0.25:
            options["timeout_s"] = rng.uniform(0.0, 4.0)
        return options

    def _come_and_go(self, rng: random.Random) -> None:
        """Replace adapters, or remove them for new ones: as many are known at any time, so memory may not grow."""
        passing = [f"passes {number}" for number in range(len(self.adapters))]
        for name, path in zip(passing, self.adapters, strict=True):
            with self._names:
                self._add(name, path)
        while time.monotonic() < self._end:
            time.sleep(rng.expovariate(1 / self.pause_s))
            place = rng.randrange(len(passing))
            with self._names:
                if rng.random() < 0.5:
                    self.churn["replace"] += 1
                else:
                    self.engine.remove_adapter(passing[place])
                    del self._known[passing[place]]
                    self.churn["remove"] += 1
                    self.churn["add"] += 1
                    passing[place] = f"passes {len(passing) + self.churn['add']}"
                self._add(passing[place], rng.choice(self.adapters))

    def _add(self, name: str, path: Path) -> None:
        self.engine.add_adapter(name, path)
        self._known[name] = path

    def _watch(self, _: random.Random) -> None:
        start = time.monotonic()
        while time.monotonic() < self._end:
            give_back_free_memory()
            self.rss_kib.append((time.monotonic() - start, rss_kib()))
            time.sleep(min(1.0, self.seconds / 100))

    def _count_loads(self) -> None:
        load = self.engine._loop._load_adapter

        def counted(*arguments: Any) -> Any:
            self.num_loads += 1
            return load(*arguments)

        self.engine._loop._load_adapter = counted


def share_one_heap() -> None:
    """One heap for all threads, where glibc gives each a heap of its own: what those keep would pass for a leak."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def give_back_free_memory() -> None:
    """What the heap keeps though nobody uses it would pass for a leak too."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def rss_kib() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def num_threads() -> int:
    """Threads of this process, native ones too."""
    return len(os.listdir("/proc/self/task"))


def growth_kib_per_minute(samples: Sequence[tuple[float, int]]) -> float:
    """The slope of the resident memory over the time after the first ``SETTLED`` of it."""
    settled = np.array([sample for sample in samples if sample[0] >= SETTLED * samples[-1][0]])
    return float(60 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0])


def wrong_answers(engine: Engine, answers: Sequence[Asked]) -> list[str]:
    """Those that are not what the engine answers to each alone; of one that was cut short, its beginning."""
    wrong = []
    for asked in answers:
        weights = {}
        for number, (path, weight) in enumerate(asked.mix):  # two names may have stood for one directory
            name = f"{number} {path}"
            if name not in engine.adapters:
                engine.add_adapter(name, path)
            weights[name] = weight
        options = {key: value for key, value in asked.options.items() if key not in ("timeout_s", "priority")}
        alone, found = engine.generate(asked.prompt, weights, **options).tokens, asked.completion.tokens
        is_cut = asked.completion.finish_reason not in ("stop", "length")
        if found != (alone[: len(found)] if is_cut else alone):
            wrong.append(f"{asked.prompt} {asked.mix} {options}: {found}, alone {alone}")
    return wrong


def report(soak: Soak, wrong: Sequence[str], threads: tuple[int, int], pages_left: int) -> dict[str, Any]:
    """What was done and found."""
    pool = soak.engine._loop.scheduler._pool
    result: dict[str, Any] = {
        "minutes": soak.seconds / 60,
        "clients": soak.clients,
        "memory_bytes": pool.num_pages * pool.page_bytes,
        "pages": pool.num_pages,
        "most_pages_used": pool.peak_used,
        "finish_reasons": dict(sorted(soak.reasons.items())),
        "callers_left": soak.num_left,
        "tokens": soak.num_tokens,
        "adapters": dict(sorted(soak.churn.items())) | {"loads": soak.num_loads},
        "answers_with_tokens": soak.num_answers,
        "answers_checked": len(soak.sample),
        "answers_wrong": len(wrong),
        "median_wait_s": round(statistics.median(soak.waits_s), 3),
        "longest_wait_s": round(max(soak.waits_s), 3),
        "rss_mib": [[round(at), round(rss / 1024, 1)] for at, rss in soak.rss_kib[:: max(1, len(soak.rss_kib) // 40)]],
        "rss_growth_kib_per_minute": round(growth_kib_per_minute(soak.rss_kib), 1),
        "pages_left": pages_left,
        "threads": {"before": threads[0], "after": threads[1]},
        "errors": soak.errors,
    }
    checks = {
        "every answer is that of a single run": not wrong,
        "no caller failed": not soak.errors,
        "no page is left": pages_left == 0,
        "no thread is left": threads[0] == threads[1],
        "deadlines were missed, callers left, adapters came and went": soak.num_left > 0
        and soak.reasons["deadline"] > 0
        and all(soak.churn[action] for action in ("add", "replace", "remove")),
        f"no wait above {LONGEST_WAIT_S:g} s": max(soak.waits_s) <= LONGEST_WAIT_S,
        "the memory was too small": pool.peak_used == pool.num_pages and soak.num_loads > len(soak.adapters),
        f"no growth above {MOST_GROWTH_KIB_PER_MINUTE} KiB a minute, over {SHORTEST_S / 60:g} minutes or more": (
            soak.seconds < SHORTEST_S or result["rss_growth_kib_per_minute"] <= MOST_GROWTH_KIB_PER_MINUTE
        ),
    }
    return result | {"checks": checks}


def main() -> None:
    """Soak, check, write; exit code 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    share_one_heap()
    limits = Limits(context_tokens=1024, max_sequences=16, step_tokens=128)
    adapters = sorted(path.parent for path in ADAPTERS.glob("*/adapter_config.json"))
    prompts, before = read_prompts(TASKS), num_threads()
    engine = Engine(BASE, memory_bytes=MEMORY_BYTES, limits=limits)
    soak = Soak(engine, adapters, prompts, 60 * args.minutes)
    soak.run()
    pages_left = soak.pages_left()
    engine.close()
    gc.collect()
    time.sleep(0.1)  # a thread that was joined is gone a moment later
    after = num_threads()
    with Engine(BASE) as alone:
        wrong = wrong_answers(alone, soak.sample)
    result = report(soak, wrong, (before, after), pages_left) | {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {"regraft": regraft.__version__, "numpy": np.__version__, "python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, result)
    print(json.dumps({key: value for key, value in result.items() if key != "rss_mib"}, indent=2))
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(not all(result["checks"].values()))


if __name__ == "__main__":
    main()
