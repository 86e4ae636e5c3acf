"""``make demo``: compress SmolLM2-135M, see one of the zoo's adapters suffer, carry it over, see it recovered.

The adapter was trained by PEFT on the uncompressed model; the test rows are real and were seen by nothing.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from zoo.prepare import ROOT, TASKS, prepare
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
TASK = "home"
OUT = ROOT / "demo"
RECIPE = "zoo/recipes/int3-hqq.yaml"
CONFIG = "zoo/recipes/demo-adapt.yaml"


def main() -> None:
    """Run the commands that a user would type, and show each."""
    print(f"preparing the data of task {TASK!r} ({TASKS[TASK].licence})")
    data = prepare(TASK).relative_to(ROOT)
    small, adapted = OUT / "smollm2-small", OUT / TASK
    _run("compress", BASE, "--recipe", RECIPE, "--out", _short(small), "--overwrite")
    _run(
        *("adapt", _short(small), "--teacher", BASE, "--adapter", _short(ADAPTERS / TASK)),
        *("--data", f"{data}/train.jsonl", "--dev", f"{data}/dev.jsonl", "--test", f"{data}/test.jsonl"),
        *("--metric", TASKS[TASK].metric, "--config", CONFIG, "--out", _short(adapted), "--overwrite"),
    )
    _run("check", _short(adapted), "--min-retention", "0.9")
    print(f"\nthe report page: {(adapted / 'report_card.html').resolve()}")


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _run(*arguments: str) -> None:
    print(f"\n$ regraft {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "regraft", *arguments], cwd=ROOT)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
