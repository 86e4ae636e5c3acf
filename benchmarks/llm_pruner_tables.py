"""The tables of ``results/llm_pruner.jsonl``: our perplexities beside those that LLM-Pruner's authors publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from benchmarks.lines import lines_of, markdown

MAIN = "heads and neurons"
RANDOM = tuple(f"random, seed {seed}" for seed in range(3))


@dataclass(frozen=True)
class Row:
    """One way to judge: its arms here, and the authors' perplexities on WikiText-2 in windows of 128 or 2048 tokens.

    Those of LLaMA-7B are of table 1 of arXiv 2305.11627, those of TinyLlama-1.1B of the repository's ``more_results``.
    """

    label: str
    judges: tuple[str, ...]
    parts: str = MAIN
    llama: float | None = None
    llama_recovered: float | None = None
    tinyllama: float | None = None
    tinyllama_2048: float | None = None


DENSE = Row("nothing goes", ("nothing",), "nothing", 12.62, None, 16.78, 7.71)
ROWS = [
    DENSE,
    Row("element, first order", ("element, first",), MAIN, 19.09, 17.58, 33.19, 17.22),
    Row("the same, on text that the base wrote", ("element, first, on self-written text",)),
    Row("element, second order", ("element, second",), MAIN, 19.77, 17.37),
    Row("element, both orders", ("element, mixed",)),
    Row("vector", ("vector",), MAIN, 22.28, 18.84),
    Row("random, mean of the draws", RANDOM, MAIN, 27.51),
    Row("L2", ("L2",), MAIN, 582.41, None, 66.56, 76.44),
    Row("channels: element, first order", ("element, first",), "channels", 74.63, 22.02),
]
PARTS = {
    MAIN: "a KV head of three, and neurons",
    "heads": "a KV head of three alone",
    "neurons": "a quarter of the neurons alone",
    "neurons, as many parameters": "a third of the neurons alone",
    "channels": "a quarter of the channels",
}


def judges() -> str:
    """Perplexity by what judges heads and neurons, and how many times the uncompressed model's it is."""
    found = _perplexities()
    rows = []
    for row in ROWS:
        ours = [
            _cell(found, row.parts, row.judges, recovered, length)
            for recovered, length in ((False, "128"), (True, "128"), (False, "2048"))
        ]
        if any(ours):
            theirs = [
                (row.llama, DENSE.llama),
                (row.llama_recovered, DENSE.llama),
                (row.tinyllama, DENSE.tinyllama),
                (row.tinyllama_2048, DENSE.tinyllama_2048),
            ]
            rows.append([row.label, *ours, *(_times([value], dense) for value, dense in theirs)])
    header = ["128 tokens", "128, recovered", "2048 tokens", "LLaMA-7B, 128", "128, recovered"]
    header += ["TinyLlama-1.1B, 128", "2048"]
    return markdown(["judged by", *header], rows)


def parts() -> str:
    """Perplexity in windows of 128 tokens by which parts go."""
    found = _perplexities()
    columns = {
        "element, first order": ("element, first",),
        "element, second order": ("element, second",),
        "random": RANDOM,
        "L2": ("L2",),
    }
    rows = []
    for name, label in PARTS.items():
        cells = [_cell(found, name, judges, False, "128") for judges in columns.values()]
        if any(cells):
            removed = next(line["removed"] for line in lines_of("llm_pruner") if line["parts"] == name)
            rows.append([label, f"{removed:.1%}", *cells])
    return markdown(["what goes", "of the layers' parameters", *columns], rows)


_Found = dict[tuple[str, str, bool, str], float]


def _perplexities() -> _Found:
    """(parts, judge, whether recovered, tokens of a window) → perplexity."""
    return {
        (line["parts"], line["judge"], line["recovered"], length): value
        for line in lines_of("llm_pruner")
        for length, value in line["perplexity"].items()
    }


def _cell(found: _Found, parts: str, judges: Sequence[str], recovered: bool, length: str) -> str:
    keys = [(parts, judge, recovered, length) for judge in judges]
    values = [found[key] for key in keys if key in found]
    return _times(values, found[DENSE.parts, DENSE.judges[0], False, length])


def _times(values: Sequence[float | None], dense: float | None) -> str:
    """The mean, how many times the uncompressed model's that is, and the ends where there are several."""
    known = [value for value in values if value is not None]
    if not known or dense is None:
        return ""
    mean = geometric_mean(known)
    ends = f", {min(known):,.0f} to {max(known):,.0f}" if len(known) > 1 else ""
    return f"{mean:,.{2 if mean < 1000 else 0}f} ({mean / dense:.{2 if mean < 10 * dense else 0}f}×{ends})"
