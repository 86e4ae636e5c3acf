"""S-LoRA's workload, 5 to 1,000 adapters in one memory: ``python -m benchmarks.serving`` → ``results/serving.json``.

Each point is measured twice over: with all requests waiting from the start, which gives the throughput, and with
requests that come one by one, which gives the time to the first text. Adapters are distinct LoRAs on q and v, on disk
until they are asked for; prompts are test rows of the zoo's tasks. Rounds go up and down the list in turn; medians over
rounds.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np

from benchmarks.engine import machine
from benchmarks.trace import Arrival, make_trace
from regraft import __version__
from regraft.bench.adapters import write_lora
from regraft.engine.engine import Engine, default_threads
from regraft.engine.prompt import Prompt
from regraft.engine.weights.open_base import OpenedBase, open_base
from regraft.native import _core
from regraft.storage import write_json
from zoo.prepare import ROOT, prepare

BASE = "smollm2-135m"
RESULTS = Path(__file__).resolve().parent / "results" / "serving.json"
FOLDER = ROOT / "data" / "serving"
TASKS = ("home", "topics")
TARGETS = ("q_proj", "v_proj")
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Plan:
    """The workload; lengths in tokens."""

    adapters: tuple[int, ...] = (5, 20, 100, 500, 1000)
    rounds: int = 2
    rank: int = 16
    memory_bytes: int = 1 << 30
    rate: float = 3.0
    seconds: float = 30.0
    waiting: int = 150
    cv: float = 2.0
    alpha: float = 0.3
    shortest: int = 8
    longest: int = 64
    seed: int = 42


QUICK = Plan(adapters=(2, 5), rounds=1, rate=2.0, seconds=3.0, waiting=6, longest=12)


@dataclass
class Served:
    """When a request came, when its first text did, and when its last, in seconds of one clock."""

    came: float
    first: float = 0.0
    end: float = 0.0
    tokens: int = 0


def read_prompts(tasks: Sequence[str] = TASKS) -> list[Prompt]:
    """The test rows of some tasks, without their answers."""
    prompts: list[Prompt] = []
    for task in tasks:
        for line in (prepare(task) / "test.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            prompts.append(row["messages"][:-1] if "messages" in row else row["prompt"])
    return prompts


def write_adapters(base: OpenedBase, count: int, rank: int) -> dict[str, Path]:
    """Name → directory of as many LoRAs, made if they are missing."""
    paths = {f"lora {seed}": FOLDER / f"rank {rank}" / f"{seed:04}" for seed in range(count)}
    for seed, path in enumerate(paths.values()):
        if not (path / "adapter_config.json").exists():  # written last
            write_lora(path, base.slot_shapes, rank=rank, seed=seed, targets=TARGETS)
    return paths


def saturated(engine: Engine, trace: Sequence[Arrival], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """All requests at once: tokens per second until the last is answered."""
    start = time.perf_counter()
    streams = [_ask(engine, arrival, prompt) for arrival, prompt in zip(trace, prompts, strict=True)]
    ends = [list(pieces)[-1].completion for pieces in streams]
    seconds = time.perf_counter() - start
    tokens = sum(len(end.tokens) for end in ends if end is not None)
    return {
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_s": tokens / seconds,
        "requests_per_s": len(ends) / seconds,
    }


def arriving(engine: Engine, trace: Sequence[Arrival], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Requests as they come: the time from each one's arrival to its first text."""
    start = time.perf_counter()
    served = [Served(start + arrival.time_s) for arrival in trace]
    callers = [
        threading.Thread(target=_call, args=(engine, arrival, prompt, one))
        for arrival, prompt, one in zip(trace, prompts, served, strict=True)
    ]
    for caller, one in zip(callers, served, strict=True):
        time.sleep(max(0.0, one.came - time.perf_counter()))
        caller.start()
    for caller in callers:
        caller.join()
    waits = [one.first - one.came for one in served]
    seconds = max(one.end for one in served) - start
    return {
        "requests": len(served),
        "tokens_per_s": sum(one.tokens for one in served) / seconds,
        "first_text_s": {f"p{p}": float(np.percentile(waits, p)) for p in PERCENTILES} | {"mean": mean(waits)},
    }


def numbered(prompts: Sequence[Prompt], trace: Sequence[Arrival], first: int) -> list[Prompt]:
    """The prompt of each request, none of which begins as another does.

    S-LoRA's do not either; here much of a prompt would lie in the prefix cache with five adapters, and little with a
    thousand, since what one adapter has made of a beginning is of no use to another.
    """
    asked: list[Prompt] = []
    for number, arrival in enumerate(trace, first):
        prompt = prompts[arrival.prompt]
        if isinstance(prompt, str):
            asked.append(f"{number}. {prompt}")
        else:
            head, *rest = (dict(message) for message in prompt if isinstance(message, Mapping))
            asked.append([head | {"content": f"{number}. {head['content']}"}, *rest])
    return asked


def _ask(engine: Engine, arrival: Arrival, prompt: Prompt) -> Any:
    name, options = f"lora {arrival.adapter}", {"max_tokens": arrival.max_tokens, "stop_token_ids": ()}
    return engine.stream(prompt, name, **options)


def _call(engine: Engine, arrival: Arrival, prompt: Prompt, served: Served) -> None:
    for piece in _ask(engine, arrival, prompt):
        served.first = served.first or time.perf_counter()
        if piece.completion is not None:
            served.end, served.tokens = time.perf_counter(), len(piece.completion.tokens)


def measure(plan: Plan, count: int, number: int, paths: dict[str, Path], prompts: Sequence[Prompt]) -> dict[str, Any]:
    """One point, once: an engine of its own, opened with ``count`` adapters."""
    common: dict[str, Any] = {
        "rate": plan.rate,
        "cv": plan.cv,
        "alpha": plan.alpha,
        "adapters": count,
        "prompts": len(prompts),
        "lengths": (plan.shortest, plan.longest),
    }
    waiting = make_trace(count=plan.waiting, seed=plan.seed + 2 * number, **common)
    coming = make_trace(count=int(plan.rate * plan.seconds), seed=plan.seed + 2 * number + 1, **common)
    start = time.perf_counter()
    adapters = {name: paths[name] for name in list(paths)[:count]}
    with Engine(BASE, adapters, memory_bytes=plan.memory_bytes) as engine:
        opened = time.perf_counter() - start
        engine.generate(prompts[0], max_tokens=4)  # touches the weights
        found = {
            "saturated": saturated(engine, waiting, numbered(prompts, waiting, 0)),
            "arriving": arriving(engine, coming, numbered(prompts, coming, len(waiting))),
        }
    asked = len({arrival.adapter for arrival in (*waiting, *coming)})
    return {"adapters": count, "round": number, "opened_s": opened, "adapters_asked_for": asked, **found}


def summary(rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds by number of adapters, and the throughput's share of the first point's."""
    points = []
    for count in sorted({one["adapters"] for one in rounds}):
        mine = [one for one in rounds if one["adapters"] == count]
        waits = [one["arriving"]["first_text_s"] for one in mine]
        points.append(
            {
                "adapters": count,
                "adapters_asked_for": median(one["adapters_asked_for"] for one in mine),
                "tokens_per_s": median(one["saturated"]["tokens_per_s"] for one in mine),
                "requests_per_s": median(one["saturated"]["requests_per_s"] for one in mine),
                "first_text_s": {key: median(wait[key] for wait in waits) for key in waits[0]},
            }
        )
    for point in points:
        point["share"] = point["tokens_per_s"] / points[0]["tokens_per_s"]
    return points


def main() -> None:
    """Measure all points, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few requests and adapters, to see that it runs")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--rate", type=float, default=None, help="requests per second that come one by one")
    parser.add_argument("--alpha", type=float, default=None, help="1: all adapters are asked for alike")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    own = {name: getattr(args, name) for name in ("rounds", "rate", "alpha") if getattr(args, name) is not None}
    plan = Plan(**(asdict(QUICK if args.quick else Plan()) | own))
    prompts = read_prompts()
    paths = write_adapters(open_base(BASE, head_bits=8), max(plan.adapters), plan.rank)
    rounds = []
    for number in range(plan.rounds):
        for count in plan.adapters if number % 2 == 0 else reversed(plan.adapters):
            rounds.append(measure(plan, count, number, paths, prompts))
            print(json.dumps(rounds[-1]), flush=True)
    result = {
        "base": BASE,
        "plan": asdict(plan),
        "machine": machine(_core.Core(default_threads())),
        "versions": {"regraft": __version__},
        "points": summary(rounds),
        "rounds": rounds,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, result)


if __name__ == "__main__":
    main()
