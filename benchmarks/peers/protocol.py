"""How benchmarks/engine.py talks with a contender: a line of JSON each way, over the pipes of a long-lived process.

The contender says what it is, once it is ready; then it answers ``{"run": WORKLOAD}`` with seconds, tokens, and the
bytes that a token reads from memory. Imported in both environments, so nothing here is beyond the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

SEQUENCES = 8
PROMPT = 128
PREFILL = 512
RANK = 16


@dataclass(frozen=True)
class Answer:
    """One run of a workload; ``tokens`` is 0 where it makes none."""

    seconds: float
    tokens: int
    bytes_per_token: float | None


class Contender(Protocol):
    """An engine that has loaded its model."""

    def facts(self) -> dict[str, Any]:
        """What it is: ``version``, ``workloads``, and ``bits`` per weight of layers and head."""

    def run(self, workload: str) -> Answer:
        """Run a workload once; what is not to be measured is done before the clock starts."""


def arguments() -> argparse.Namespace:
    """What every contender is told: the model's folder, the variant, threads, and tokens to decode."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    return parser.parse_args()


def serve(contender: Contender, pipe: Any) -> None:
    """Answer until the pipe is closed."""
    print(json.dumps(contender.facts()), file=pipe, flush=True)
    for line in sys.stdin:
        answer = contender.run(json.loads(line)["run"])
        print(json.dumps(vars(answer)), file=pipe, flush=True)


def take_stdout() -> Any:
    """Stdout for the protocol alone: what a library prints goes to stderr from here on."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


def prompts(vocabulary: int, length: int) -> list[list[int]]:
    """A prompt of random tokens for each sequence."""
    rng = random.Random(0)
    return [[rng.randrange(100, vocabulary) for _ in range(length)] for _ in range(SEQUENCES)]


def decode_bytes(weights: float, adapters: Sequence[float], kv: float, *, tokens_per_pass: int, steps: int) -> float:
    """Bytes per decoded token.

    Args:
        weights: bytes that a pass reads.
        adapters: bytes of each adapter of a pass.
        kv: bytes of one token's keys and values.
        tokens_per_pass: how many tokens share a pass.
        steps: decoded after the prompt; keys and values are counted at their middle.
    """
    return (weights + sum(adapters)) / tokens_per_pass + kv * (PROMPT + 1 + (steps - 1) / 2)
