"""The table of ``results/zero_shot.jsonl``: accuracy by base and task, beside LLM-Pruner's own."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from benchmarks.lines import Line, lines_of, markdown
from regraft.evaluate.bootstrap import ci95, resampled_means

# The metric that LLM-Pruner's table reports of each task.
METRICS = {"BoolQ": "acc", "PIQA": "acc", "OpenBookQA": "acc_norm"}
FIRST = "uncompressed"
# arXiv 2305.11627, table 1: LLaMA-7B, 20 % of all parameters gone, judged by the first order of each element.
THEIRS = {
    "LLaMA-7B: uncompressed": (0.7318, 0.7835, 0.4240),
    "LLaMA-7B: pruned": (0.5706, 0.7568, 0.4000),
    "LLaMA-7B: pruned and recovered": (0.6462, 0.7720, 0.3980),
}
LABELS = {
    FIRST: "uncompressed",
    "int8": "8 bits (`int8`)",
    "int4": "4 bits (`int4`)",
    "int3": "3 bits (`int3`)",
    "prune25, not recovered": "a quarter pruned, 4 bits, before recovery",
    "prune25, recovered on 20,480 tokens": "the same, after recovery on a third of the recipe's tokens",
    "prune25": "the same, after recovery (`prune25`)",
    "moe": "3 of 10 experts, 4 bits (`moe`)",
    "mix": "pruned, half of the experts, 3 bits (`mix`)",
}


def zero_shot() -> str:
    """Accuracy with its interval by task, their mean, and how far that is from the uncompressed base's."""
    found = newest()
    if not all((FIRST, task) in found for task in METRICS):
        return ""
    header = ["", *(f"{task}, `{metric}`" for task, metric in METRICS.items()), "mean", "beside uncompressed, points"]
    rows = [_guessing(found)]
    for name, label in LABELS.items():
        cells = [_cell(found.get((name, task)), metric) for task, metric in METRICS.items()]
        if not any(cells):
            continue
        means = [found[name, task][metric] for task, metric in METRICS.items() if (name, task) in found]
        is_whole = len(means) == len(METRICS)
        difference = _difference(found, name) if is_whole and name != FIRST else ""
        rows.append([label, *cells, f"{np.mean(means):.3f}" if is_whole else "", difference])
    dense = np.mean(THEIRS["LLaMA-7B: uncompressed"])
    for label, scores in THEIRS.items():
        apart = "" if label.endswith("uncompressed") else f"{100 * (np.mean(scores) - dense):+.1f}"
        rows.append([label, *(f"{score:.3f}" for score in scores), f"{np.mean(scores):.3f}", apart])
    return markdown(header, rows)


def newest() -> dict[tuple[str, str], Line]:
    """Base and task → its line of the most questions."""
    lines = sorted(lines_of("zero_shot"), key=lambda line: int(line["n"]))
    return {(line["base"], line["task"]): line for line in lines}


def _guessing(found: Mapping[tuple[str, str], Line]) -> list[str]:
    lines = [found[FIRST, task] for task in METRICS]
    best = [max(line["chance"], line["majority"] or 0.0) for line in lines]
    return ["guessing, or the most frequent answer", *(f"{each:.3f}" for each in best), f"{np.mean(best):.3f}", ""]


def _cell(line: Line | None, metric: str) -> str:
    if line is None:
        return ""
    low, high = line[f"{metric}_ci95"]
    return f"{line[metric]:.3f} [{low:.3f}, {high:.3f}]"


def _difference(found: Mapping[tuple[str, str], Line], name: str) -> str:
    """Points between two bases' means over tasks, with its interval; tasks of unlike questions are not compared."""
    total, drawn = 0.0, np.zeros(1)
    for seed, (task, metric) in enumerate(METRICS.items()):
        one, other = (_right(found[base, task], metric) for base in (name, FIRST))
        if len(one) != len(other):
            return ""
        means = resampled_means(one, other, seed=seed)
        drawn = drawn + (means[:, 0] - means[:, 1]) / len(METRICS)
        total += (sum(one) - sum(other)) / len(one) / len(METRICS)
    low, high = ci95(drawn)
    return f"{100 * total:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _right(line: Line, metric: str) -> list[float]:
    return [float(each) for each in line["right_norm" if metric == "acc_norm" else "right"]]
