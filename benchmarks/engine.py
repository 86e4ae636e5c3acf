"""How fast the engine is beside its peers: ``python -m benchmarks.engine`` → ``results/engine.json``.

Every contender is a process that loads its model once. Rounds are interleaved, workload by workload, and while one runs
the others are stopped, so that no thread of theirs spins. Medians over rounds; just before each run regraft's own
threads measure what a plain read of the memory takes, and a share of the roofline is of that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.models import DATA, MODELS, PEERS, REAL, ROOT, TINY, make
from benchmarks.peers.protocol import Answer
from regraft.bench.run import Row
from regraft.bench.session import Timing
from regraft.bench.traffic import read_bandwidth
from regraft.bench.workloads import WORKLOADS
from regraft.native import _core
from regraft.storage import write_json

RESULTS = Path(__file__).resolve().parent / "results" / "engine.json"
STEPS = {"smollm2-135m": 32, "llama-1.1b": 16, TINY: 4}  # tokens that each sequence decodes


@dataclass(frozen=True)
class Variant:
    """One contender: who runs, and what."""

    engine: str
    variant: str
    module: str
    python: Path = PEERS

    def __str__(self) -> str:
        return f"{self.engine} {self.variant}"


OURS = Path(sys.executable)
VARIANTS = [
    Variant("regraft", "q4_0", "regraft_worker", OURS),
    Variant("regraft", "q4_1", "regraft_worker", OURS),
    Variant("llama.cpp", "q4_0", "llama_worker"),
    Variant("llama.cpp", "q4_1", "llama_worker"),
    Variant("ONNX Runtime", "int4", "onnx_worker"),
    Variant("transformers + PEFT", "float32", "transformers_worker"),
    Variant("transformers + PEFT", "bfloat16", "transformers_worker"),
]


class Worker:
    """A contender's process, stopped unless it is asked for something."""

    def __init__(self, variant: Variant, folder: Path, *, threads: int, steps: int) -> None:
        self._log = folder / f"{variant.module}-{variant.variant}.log"
        module = f"benchmarks.peers.{variant.module}"
        command = [variant.python, "-m", module, folder, variant.variant, "--threads", threads, "--steps", steps]
        self._process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=_plain_environment() | {"OMP_NUM_THREADS": str(threads), "REGRAFT_CACHE": str(DATA / "cache")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
        )
        self.facts = self._read()

    def run(self, workload: str) -> Answer:
        """Run a workload once."""
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps({"run": workload}) + "\n")
        self._process.stdin.flush()
        return Answer(**self._read())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._log.read_text(errors="replace").splitlines()
            raise SystemExit("\n".join([*lines[-15:], f"the contender ended; see {self._log.relative_to(ROOT)}"]))
        self._process.send_signal(signal.SIGSTOP)
        return dict(json.loads(line))


@dataclass
class Series:
    """The answers of one contender to one workload."""

    engine: str
    variant: str
    workload: str
    answers: list[Answer] = field(default_factory=list)
    bandwidths: list[float] = field(default_factory=list)  # bytes per second, before each

    def row(self) -> dict[str, Any]:
        """The line of the results: medians, and every round, in tokens per second or else in seconds."""
        timings = [Timing(answer.seconds, answer.tokens) for answer in self.answers]
        row = Row.of(self.workload, self.engine, timings, self.answers[-1].bytes_per_token, self.bandwidths)
        rounds = [timing.tokens / timing.seconds if timing.tokens else timing.seconds for timing in timings]
        return row.to_json() | {"variant": self.variant, "rounds": rounds}


@contextmanager
def started(
    variants: Sequence[Variant], folder: Path, *, threads: int, steps: int
) -> Iterator[list[tuple[Variant, Worker]]]:
    """All contenders, loaded one after the other, and ended whatever happens."""
    with ExitStack() as stack:
        workers = []
        for variant in variants:
            worker = Worker(variant, folder, threads=threads, steps=steps)
            stack.callback(worker.close)
            print(f"{folder.name}: {variant} is ready", flush=True)
            workers.append((variant, worker))
        yield workers


def measure(
    model: str, variants: Sequence[Variant], *, rounds: int, steps: int, core: _core.Core
) -> Iterator[dict[str, Any]]:
    """The results of one model after each round; ``steps`` are the tokens that each sequence decodes."""
    series: dict[tuple[Variant, str], Series] = {}
    with started(variants, make(model), threads=core.threads, steps=steps) as workers:
        facts = {str(variant): worker.facts for variant, worker in workers}
        for number in range(-1, rounds):
            for workload in WORKLOADS:
                for variant, worker in workers:
                    is_warming = number < 0  # the prompts are computed, and whatever else comes but once
                    if workload not in worker.facts["workloads"] or (is_warming and "decode" not in workload):
                        continue
                    bandwidth = read_bandwidth(core, repeats=3)
                    answer = worker.run(workload)
                    if is_warming:
                        continue
                    found = series.setdefault((variant, workload), Series(variant.engine, variant.variant, workload))
                    found.answers.append(answer)
                    found.bandwidths.append(bandwidth)
                    rate = f"{answer.tokens / answer.seconds:9.2f} tokens/s" if answer.tokens else ""
                    print(f"{model} {number} {workload:18} {variant!s:30} {answer.seconds:8.3f} s {rate}", flush=True)
            if number >= 0:
                yield {
                    "rounds": number + 1,
                    "steps": steps,
                    "bandwidth": median(chain.from_iterable(found.bandwidths for found in series.values())),
                    "contenders": facts,
                    "rows": [found.row() for found in series.values()],
                }


def _plain_environment() -> dict[str, str]:
    """Without what the caller has set for OpenMP and malloc: OMP_WAIT_POLICY=passive, say, halves llama.cpp's speed."""
    tuned = ("OMP_", "GOMP_", "KMP_", "MALLOC_")
    return {name: value for name, value in os.environ.items() if not name.startswith(tuned)}


def machine(core: _core.Core) -> dict[str, Any]:
    """What it ran on."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "threads": core.threads,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Measure, and write the results after each round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of two tokens, to see that it runs")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--models", nargs="*", default=REAL, choices=list(MODELS))
    parser.add_argument("--contenders", nargs="*", default=None, help="part of a name, such as regraft or q4_0")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    wanted = [v for v in VARIANTS if args.contenders is None or any(part in str(v) for part in args.contenders)]
    core = _core.Core(args.threads)
    rounds = 1 if args.quick else args.rounds
    result: dict[str, Any] = {"machine": machine(core), "models": {}}
    if args.output.exists() and (before := json.loads(args.output.read_text()))["machine"] == result["machine"]:
        result = before  # what was measured of other models stays
    for model in args.models:
        steps = 2 if args.quick else STEPS[model]
        for found in measure(model, wanted, rounds=rounds, steps=steps, core=core):
            result["models"][model] = found
            result["created"] = datetime.now(UTC).isoformat(timespec="seconds")
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.output, result)


if __name__ == "__main__":
    main()
