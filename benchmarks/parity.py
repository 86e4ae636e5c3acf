"""What scoring by the engine rather than by torch changes: ``python -m benchmarks.parity [TASK …]``.

The zoo's adapters on the uncompressed base, the first 60 test rows of each task, the same tokens and the same end of
answers; one JSON line per task in ``results/parity.jsonl``. The engine rounds activations, adapters, embeddings and
head to 8 bits, as it does when it serves.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.lines import RESULTS
from regraft.evaluate.dataset import encode, read_examples
from regraft.evaluate.engine_answers import EngineAnswers
from regraft.evaluate.lift import lift
from regraft.evaluate.metrics import agreement, make_metric
from regraft.evaluate.torch_answers import TorchAnswers
from regraft.models.load import load_base
from zoo.prepare import TASKS, prepare
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
NUM_ROWS = 60


def compared(engine: EngineAnswers, torch: TorchAnswers, task: str, rows: int) -> dict[str, Any]:
    """Both scores, their paired difference with its standard error, and how often both say the same."""
    examples = read_examples(prepare(task) / "test.jsonl")[:rows]
    references = [example.answer for example in examples]
    measure = make_metric(TASKS[task].metric, references)
    encoded = [encode(example, torch.tokenizer) for example in examples]
    said = [side.answer(encoded, ADAPTERS / task) for side in (engine, torch)]
    values = [[measure(text, wanted) for text, wanted in zip(texts, references, strict=True)] for texts in said]
    difference = lift(*values)
    return {
        "task": task,
        "metric": TASKS[task].metric,
        "n": len(examples),
        "engine": sum(values[0]) / len(examples),
        "torch": sum(values[1]) / len(examples),
        "difference": difference.value,
        "error": difference.error,
        "same": agreement(*said),
    }


def main() -> None:
    """Compare the named tasks, or all that have an adapter and no line yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK")
    parser.add_argument("--rows", type=int, default=NUM_ROWS)
    parser.add_argument("--results", type=Path, default=RESULTS / "parity.jsonl")
    args = parser.parse_args()
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    there = {json.loads(line)["task"] for line in lines}
    names = args.tasks or [task for task in TASKS if (ADAPTERS / task).is_dir() and task not in there]
    engine, torch = EngineAnswers(BASE), TorchAnswers(load_base(BASE))
    for task in names:
        line = json.dumps(compared(engine, torch, task, args.rows))
        print(line, flush=True)
        with args.results.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
