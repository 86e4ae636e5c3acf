"""What adapters keep when plugged into a base that was calibrated on their tasks, and into one that was not."""

from __future__ import annotations

from benchmarks.lines import compression, markdown
from benchmarks.retention import teacher_scores, tests

RECIPES = {"int3": "3 bits (`int3`)", "prune25": "a quarter pruned, 4 bits (`prune25`)"}
MARK = ", adapters; "


def calibrated() -> str:
    """Scores of the plugged-in adapters by task, and the share of the teacher's score on their mean."""
    aware: dict[str, dict[str, float]] = {}
    for name, line in compression("adapters").items():
        recipe, mark, task = name.partition(MARK)
        if mark:
            aware.setdefault(recipe, {})[task] = line["score"]
    if not aware:
        return ""
    teacher, tasks = teacher_scores(), list(next(iter(aware.values())))
    rows = [_row("teacher: uncompressed", None, teacher, teacher, tasks)]
    for recipe, title in RECIPES.items():
        if recipe in aware:
            plain = {task: line["score"] for (task, arm), line in tests(recipe).items() if arm == "plugged_in"}
            rows.append(_row(title, recipe, plain, teacher, tasks))
            rows.append(
                _row(
                    "the same, calibrated on the adapters' tasks", f"{recipe}, adapters", aware[recipe], teacher, tasks
                )
            )
    return markdown(["", "perplexity", *tasks, "kept, mean"], rows)


def _row(
    title: str, method: str | None, scores: dict[str, float], teacher: dict[str, float], tasks: list[str]
) -> list[str]:
    perplexity = f"{compression('quality')[method]['perplexity']:.2f}" if method else ""
    cells = [f"{scores[task]:.3f}" if task in scores else "" for task in tasks]
    kept = f"{sum(scores[task] for task in tasks) / sum(teacher[task] for task in tasks):.1%}" if all(cells) else ""
    return [title, perplexity, *cells, kept]
