"""Perplexity, size and time of each rounding method: ``python -m benchmarks.quantize`` → ``results/quantize.json``.

GPTQ calibrates on text that the base writes itself; the perplexity is measured on a novel that none of the methods saw.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import regraft
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.evaluate.perplexity import default_text
from regraft.storage import write_json

BASE = "smollm2-135m"
RESULTS = Path(__file__).resolve().parent / "results" / "quantize.json"
METHODS: list[dict[str, Any]] = [
    {"method": "rtn", "bits": 8},
    {"method": "rtn", "bits": 4},
    {"method": "hqq", "bits": 4},
    {"method": "gptq", "bits": 4, "act_order": True},
    {"method": "rtn", "bits": 3},
    {"method": "hqq", "bits": 3},
    {"method": "gptq", "bits": 3, "act_order": True},
]


def main() -> None:
    """Measure what is missing from the result file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", default=BASE)
    args = parser.parse_args()
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for settings in METHODS:
        name = f"{settings['method'].upper()} int{settings['bits']}, group 64"
        if name in [row["name"] for row in result["rows"]]:
            continue
        recipe = parse(Recipe, {"steps": [{"quantize": settings}]}, name)
        with tempfile.TemporaryDirectory() as folder:
            report = compress(args.base, Path(folder) / "small", recipe, text=default_text())
        assert report.perplexity is not None
        row = {
            "name": name,
            "bits_per_weight": report.sizes.bits_per_weight,
            "perplexity": report.perplexity.after,
            "error": sum(slot.error for slot in report.slots.values()) / len(report.slots),
            "seconds": sum(v for k, v in report.seconds.items() if k in ("calibration text", "quantize")),
        }
        dense = {"name": "uncompressed", "bits_per_weight": 32.0, "perplexity": report.perplexity.before, "seconds": 0}
        result["rows"] = (result["rows"] or [dense]) + [row]
        result |= {
            "base": args.base,
            "num_tokens": report.perplexity.num_tokens,
            "version": regraft.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        write_json(RESULTS, result)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
