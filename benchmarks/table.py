"""Write the README's tables from the result files: ``python -m benchmarks.table``; ``--check`` only compares."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
ARMS = {
    "plugged_in": "plugged in, as it is",
    "continued": "the same LoRA, trained on",
    "new_lora": "new LoRA, as many parameters",
    "recovery_undistilled": "inherited + GELU recovery, no teacher",
    "closed_form": "inherited + EoRA, no training",
    "ca_lora_gelu": "**CA-LoRA**, GELU recovery (the paper's)",
    "ca_lora_linear": "**CA-LoRA**, linear recovery from EoRA",
}


def recovery_table(lines: list[dict[str, Any]]) -> str:
    """Retention (arm / teacher) by recipe and task; a cell that was not run yet is empty."""
    tests = [line for line in lines if line["phase"] == "test" and line["seed"] == 0]
    columns = list(dict.fromkeys((line["recipe"], line["task"]) for line in tests))
    header = ["", *(f"{recipe}, {task}" for recipe, task in columns)]
    cells = {(line["recipe"], line["task"], line["arm"]): line for line in tests}
    metrics = {(line["recipe"], line["task"]): line for line in tests}
    rows = [["teacher: uncompressed", *(f"{metrics[column]['teacher']:.3f}" for column in columns)]]
    for arm, label in ARMS.items():
        found = [cells.get((*column, arm)) for column in columns]
        if any(found):
            rows.append([label, *(_cell(line) for line in found)])
    return _markdown(header, rows)


def _cell(line: dict[str, Any] | None) -> str:
    return "" if line is None else f"{line['score']:.3f} ({line['retention']:.1%})"


def quantize_table(result: dict[str, Any]) -> str:
    """Perplexity and size by method and width."""
    rows = [
        [row["name"], f"{row['bits_per_weight']:.2f}", f"{row['perplexity']:.2f}", f"{row['seconds']:.0f}"]
        for row in result["rows"]
    ]
    return _markdown(["", "bits per weight", "perplexity", "seconds"], rows)


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rows])


def filled(readme: str) -> str:
    """The README with each ``<!-- table: NAME -->`` block renewed, where its result file exists."""
    makers = {"recovery": recovery_table, "quantize": quantize_table}
    for name, make in makers.items():
        lines, whole = RESULTS / f"{name}.jsonl", RESULTS / f"{name}.json"
        if lines.exists():
            table = make([json.loads(line) for line in lines.read_text().splitlines()])  # type: ignore[operator]
        elif whole.exists():
            table = make(json.loads(whole.read_text()))  # type: ignore[operator]
        else:
            continue
        block = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        readme = block.sub(lambda match, table=table: match[1] + table + "\n" + match[2], readme)  # type: ignore[misc]
    return readme


def main() -> None:
    """Renew the tables, or say that they are stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if the README is not what the results say")
    wanted = filled(README.read_text(encoding="utf-8"))
    if parser.parse_args().check:
        sys.exit(wanted != README.read_text(encoding="utf-8"))
    README.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
