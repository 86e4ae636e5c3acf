"""Write the tables of README.md and benchmarks/README.md from the result files: ``python -m benchmarks.table``.

``--check`` writes nothing, and exits with 1 if a page is not what the results say.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

from benchmarks import kept_tables, llm_pruner_tables
from benchmarks.lines import HERE, Line, compression, lines_of, markdown, whole
from benchmarks.speed_table import speeds
from benchmarks.zero_shot_table import zero_shot
from regraft.bench.workloads import WORKLOADS

PAGES = [HERE.parent / "README.md", HERE / "README.md"]
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
ENGINES = ["regraft", "llama.cpp", "ONNX Runtime", "transformers + PEFT"]
MODELS = {"smollm2-135m": "SmolLM2-135M", "llama-1.1b": "Llama 1.1B"}
PLAIN = "decode-8"
ROUNDED = {"int4": "4 bits (`int4`)", "int3": "3 bits (`int3`)", "int3-hqq": "3 bits, HQQ"}
SMALLER = {
    "prune25": "a quarter pruned, 4 bits (`prune25`)",
    "moe": "3 of 10 experts, 4 bits (`moe`)",
    "mix": "both, half of the experts, 3 bits (`mix`)",
}


def quantize() -> str:
    """Perplexity and size by method and width."""
    result = whole("quantize")
    rows = [
        [row["name"], f"{row['bits_per_weight']:.2f}", f"{row['perplexity']:.2f}", f"{row['seconds']:.0f}"]
        for row in (result["rows"] if result else [])
    ]
    return markdown(["", "bits per weight", "perplexity", "seconds"], rows)


def importances() -> str:
    """Perplexity by what judges the parts that go, by parts and share; of two random draws both."""
    found = compression("importances")
    cells: dict[str, dict[str, str]] = {}
    for name, line in found.items():
        if name == "dense":
            continue
        judge, units, ratio = name.split("; ")
        cells.setdefault(judge, {})[f"{units}, {float(ratio):.0%}"] = f"{line['perplexity']:.1f}"
    columns = list(dict.fromkeys(column for by_column in cells.values() for column in by_column))
    rows = [[judge, *(by_column.get(column, "") for column in columns)] for judge, by_column in cells.items()]
    dense = [["nothing goes", *(f"{found['dense']['perplexity']:.1f}" for _ in columns)]] if "dense" in found else []
    return markdown(["judged by", *columns], dense + rows) if rows else ""


def methods() -> str:
    """Size, perplexity, speed beside the dense companion, and mean lift kept of the zoo's adapters, by recipe."""
    speeds, rows = compression("speed"), []
    for name, line in compression("quality").items():
        ratio = f"{speeds[name]['decode-1']['ratio']:.2f}× {speeds[name]['beside']}" if name in speeds else ""
        kept = [kept_tables.mean_kept(name, way) for way in ("plugged_in", "ca_lora_linear")]
        rows.append([f"`{name}`", f"{line['bytes_after'] / 1e6:.0f}", f"{line['perplexity']:.2f}", ratio, *kept])
    header = ["", "MB on disk", "perplexity", "decode, batch 1", "lift kept, plugged in", "lift kept, adapted"]
    return markdown(header, rows)


def parity() -> str:
    """Scores by the engine and by torch, and their paired difference."""
    rows = [
        [
            line["task"],
            *(f"{line[side]:.3f}" for side in ("engine", "torch")),
            f"{line['difference']:+.3f} ± {line['error']:.3f}",
            f"{line['same']:.0%}",
        ]
        for line in lines_of("parity")
    ]
    return markdown(["", "engine", "torch", "engine − torch", "same answers"], rows)


def adapt_speed() -> str:
    """Tokens per second of training, and the ratio to the peer."""
    result = whole("adapt_speed")
    if not result:
        return ""
    rows = [[name, f"{rate:.0f}", f"{result['ratio'][name]:.2f}"] for name, rate in result["median"].items()]
    return markdown(["", "tokens/s", "ratio"], rows)


def engine() -> str:
    """Tokens per second and share of the roofline of each engine's best variant, and our lead over llama.cpp."""
    models = (whole("engine") or {"models": {}})["models"]
    lines = []
    for model, found in sorted(models.items(), key=lambda item: [*MODELS, item[0]].index(item[0])):
        best = _best(found["rows"])
        for workload in _workloads(found["rows"]):
            cells = [_rate_cell(best.get((name, workload))) for name in ENGINES]
            if any(cells):
                lines.append(
                    [f"{MODELS.get(model, model)}: {WORKLOADS[workload].title}", *cells, _lead(best, workload)]
                )
    return markdown(["", *ENGINES, "regraft / llama.cpp"], lines)


def engine_details(model: str) -> str:
    """Every variant on one model: medians, bytes per token, bits per weight, and what adapters cost."""
    found = (whole("engine") or {"models": {}})["models"].get(model)
    if not found:
        return ""
    plain = {(row["engine"], row["variant"]): row["rounds"] for row in found["rows"] if row["workload"] == PLAIN}
    lines = []
    for row in found["rows"]:
        name = f"{row['engine']} {row['variant']}"
        without = plain.get((row["engine"], row["variant"]))
        bits = found["contenders"][name]["bits"]
        lines.append(
            [
                WORKLOADS[row["workload"]].title,
                f"{name}, {bits['layers']:.2g} / {bits['head']:.2g} bits",
                f"{row['seconds']:.3f} s" if row["tokens_per_s"] is None else f"{row['tokens_per_s']:.1f}",
                "" if row["bytes_per_token"] is None else f"{row['bytes_per_token'] / 1e6:.1f}",
                "" if row["roofline_share"] is None else f"{row['roofline_share']:.0%}",
                f"{median(x / y for x, y in zip(row['rounds'], without, strict=True)) - 1:+.0%}"
                if row["workload"].startswith(f"{PLAIN}-") and without
                else "",
            ]
        )
    header = ["", "engine, bits per weight of layers / head", "tokens/s", "MB read per token", "of the roofline"]
    return markdown([*header, "against no adapters"], lines)


def serving() -> str:
    """Throughput and time to the first text by number of adapters."""
    result = whole("serving")
    rows = [
        [
            f"{point['adapters']:,}",
            f"{point['adapters_asked_for']:.0f}",
            f"{point['tokens_per_s']:.0f} ({point['share']:.0%})",
            f"{point['requests_per_s']:.2f}",
            *(f"{point['first_text_s'][key]:.2f}" for key in ("p50", "p90", "p99")),
        ]
        for point in (result["points"] if result else [])
    ]
    waits = [f"first text, {name}, s" for name in ("median", "90 %", "99 %")]
    return markdown(["adapters", "of which asked for", "tokens/s", "requests/s", *waits], rows)


def server() -> str:
    """What HTTP leaves of the engine's throughput."""
    result = whole("server")
    labels = {
        "engine": "engine, in its own process",
        "whole": "`regraft serve`, whole answers",
        "stream": "`regraft serve`, streams",
        "llama.cpp": "llama.cpp's server, streams",
    }
    rows = [
        [
            label,
            f"{result['tokens_per_s'][way]:.0f}",
            f"{result['of_the_engine'][way]:.0%}",
            result["same_answers"][way],
        ]
        for way, label in (labels.items() if result else ())
    ]
    return markdown(["", "tokens/s", "of the engine", "same answers"], rows)


def load() -> str:
    """What the clients of a server saw, of which a replica was killed."""
    result = whole("load")
    if not result:
        return ""
    errors = ", ".join(f"{count} {code}" for code, count in sorted(result["errors"].items())) or "none"
    rows = [
        ["requests, of them answered in whole", f"{result['requests']:,}, {result['whole_answers']:,}"],
        ["errors", errors],
        ["answers computed again, of them wrong", f"{result['answers_checked']}, {result['answers_wrong']}"],
        ["answers a second", f"{result['requests_per_s']}"],
        *(
            [
                f"{label}, s: 50, 90, 99, 100 %",
                ", ".join(f"{result[key][p]:.2f}" for p in ("p50", "p90", "p99", "p100")),
            ]
            for key, label in (("first_text_s", "first text"), ("whole_answer_s", "whole answer"))
        ),
        ["replica killed, another there, s", f"{result['killed_at_s']}, {result['replaced_at_s']}"],
    ]
    return markdown(["", ""], rows)


def _workloads(rows: Sequence[Line]) -> list[str]:
    found = {row["workload"] for row in rows}
    return [name for name in WORKLOADS if name in found]


def _best(rows: Sequence[Line]) -> dict[tuple[str, str], Line]:
    """(engine, workload) → the row of the fastest variant."""
    best: dict[tuple[str, str], Line] = {}
    for row in sorted(rows, key=lambda row: (row["tokens_per_s"] or 0, -row["seconds"])):
        best[row["engine"], row["workload"]] = row
    return best


def _rate_cell(row: Line | None) -> str:
    if row is None:
        return ""
    if row["tokens_per_s"] is None:
        return f"{row['seconds']:.3f} s"
    share = f" ({row['roofline_share']:.0%})" if row["workload"].startswith("decode") else ""  # prefill computes
    return f"{row['tokens_per_s']:.0f}{share}"


def _lead(best: dict[tuple[str, str], Line], workload: str) -> str:
    rates = [best[name, workload]["tokens_per_s"] for name in ENGINES[:2] if (name, workload) in best]
    return f"{rates[0] / rates[1]:.1f}×" if len(rates) == 2 else ""


TABLES: dict[str, Callable[[], str]] = {
    "recovery": partial(kept_tables.recipes, ROUNDED),
    "recovery, smaller": partial(kept_tables.recipes, SMALLER),
    **{f"recovery, {recipe}": partial(kept_tables.by_task, recipe) for recipe in (*ROUNDED, "int8", *SMALLER)},
    "recovery, constrained": partial(kept_tables.constrained, "int3"),
    "lift": kept_tables.tasks,
    "parity": parity,
    "learning rates": kept_tables.rates,
    "quantize": quantize,
    "importances": importances,
    "methods": methods,
    "speeds": speeds,
    "calibrated": partial(kept_tables.calibrated, ROUNDED | SMALLER),
    "llm-pruner": llm_pruner_tables.judges,
    "llm-pruner, parts": llm_pruner_tables.parts,
    "zero-shot": zero_shot,
    "adapt speed": adapt_speed,
    "engine": engine,
    "load": load,
    **{f"engine, {model}": partial(engine_details, model) for model in MODELS},
    "serving": serving,
    "server": server,
}


def filled(page: str) -> str:
    """The page with each ``<!-- table: NAME -->`` block renewed."""
    return BLOCK.sub(lambda match: match[1] + (TABLES[match[2]]() + "\n").lstrip("\n") + match[3], page)


def main() -> None:
    """Renew the tables, or say that they are stale."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 if a page is not what the results say")
    args = parser.parse_args()
    stale = False
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        stale |= filled(page) != page
        if not args.check:
            path.write_text(filled(page), encoding="utf-8")
    sys.exit(args.check and stale)


if __name__ == "__main__":
    main()
