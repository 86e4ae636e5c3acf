"""How fast a pruned base and one of experts decode at 1.1B: ``python -m benchmarks.large``.

Random weights in TinyLlama's shape with SmolLM2's vocabulary, which is enough for speed: widths are those of the
recipes ``prune25`` and ``moe``, but nothing is trained, and rounding is RTN's. Each beside the dense model in the same
bits, in rounds that are interleaved. Appends to ``results/compression.jsonl``, and skips what is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.beside import beside
from benchmarks.compression import HERE, RESULTS, Plan
from benchmarks.models import random_tinyllama, write_hf
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.evaluate.perplexity import default_text
from regraft.models.load import load_base
from zoo.prepare import ROOT

WORK = ROOT / "data" / "large"
STEPS = 16  # tokens of a sequence; the model is eight times SmolLM2
QUANTIZE = {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "int4": [QUANTIZE],
    "prune25": [
        {"prune": {"importance": "l2", "ratio": 0.25, "groups": ["neurons"], "multiple": 64}},
        QUANTIZE,
    ],
    "moe": [{"moefy": {"method": "moefication", "active": 0.3, "size": 32, "split": "activations"}}, QUANTIZE],
}


def original() -> Path:
    """The random model, made on first use."""
    folder = WORK / "hf"
    if not (folder / "tokenizer.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        small = load_base("smollm2-135m")
        config, tensors = random_tinyllama({"vocab_size": small.model.config.vocab_size})
        write_hf(folder, config, tensors)
        small.tokenizer.save_pretrained(folder)
    return folder


def base(name: str) -> Path:
    """A recipe's base, made on first use."""
    folder = WORK / name
    if not folder.exists():
        text = WORK / "calibration.txt"
        text.parent.mkdir(parents=True, exist_ok=True)
        text.write_text(default_text()[:20_000], encoding="utf-8")
        calibration = {"source": str(text), "num_sequences": 4, "sequence_length": 256}
        compress(original(), folder, parse(Recipe, {"steps": RECIPES[name], "calibration": calibration}, name))
    return folder


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", action="store_true", help="make the bases, and measure nothing")
    args = parser.parse_args()
    folders = {name: base(name) for name in RECIPES}
    if args.make:
        return
    plan = Plan(yaml.safe_load((HERE / "compression.yaml").read_text()), RESULTS)
    work = [(name, partial(_line, plan, folders, name)) for name in ("prune25", "moe")]
    plan.run("speed of 1.1B", iter(work), None)


def _line(plan: Plan, folders: dict[str, Path], name: str) -> dict[str, Any]:
    found = beside(name, folders[name], "int4", folders["int4"], rounds=plan.plan["rounds"], steps=STEPS)
    return found | {"recipe": json.dumps(RECIPES[name])}


if __name__ == "__main__":
    main()
