"""Tables of lift kept, with retention beside it: of recipes, of one recipe's tasks, and of the tasks themselves."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.kept import WAYS, Comparison, comparisons, judged_lines, marked, task_rows, tests
from benchmarks.lines import CALIBRATED, Line, lines_of, markdown
from regraft.evaluate.lift import MacroMean, lift_kept, macro_mean

KINDS = {"zero_shot": "zero-shot", "five_shot": "five-shot", "majority": "majority"}


def recipes(titles: dict[str, str]) -> str:
    """By recipe and way: macro mean of lift kept with its interval, then of retention."""
    columns = [(title, one) for recipe, title in titles.items() for one in comparisons(recipe)]
    header = ["lift kept [95 %] / retention", *(f"{title}: {one.headline}" for title, one in columns)]
    rows = [[way.label, *(_mean_cell(one, name) for _, one in columns)] for name, way in WAYS.items()]
    return markdown(header, [row for row in rows if any(row[1:])])


def _mean_cell(comparison: Comparison, way: str) -> str:
    if way not in comparison.ways:
        return ""
    kept, retained = comparison.lift_kept(way), comparison.retention(way)
    return "no lift" if kept is None or retained is None else f"{_share(kept)} / {retained.value:.0%}"


def _share(kept: MacroMean) -> str:
    low, high = (100 * end for end in kept.ci95)
    return f"{kept.value:.1%} [{low:.0f}, {high:.0f}]"


def by_task(recipe: str) -> str:
    """Lift kept with its interval, score, and KL, by way and task; lift kept of further seeds after a semicolon."""
    found, more = tests(recipe), tests(recipe, seeds=True)
    names = list(dict.fromkeys(task for task, _ in found))
    if not names:
        return ""
    first = {task: next(lines[-1] for (of, _), lines in found.items() if of == task) for task in names}
    rows = [
        ["teacher: uncompressed", *(f"{first[task]['teacher']:.3f}" for task in names)],
        ["baseline", *(_baseline(first[task]) for task in names)],
    ]
    for name, way in WAYS.items():
        cells = [_cell(found.get((task, name), []), more.get((task, name), [])) for task in names]
        if any(cells):
            rows.append([way.label, *cells])
    return markdown(["", *(marked(task, first[task]) for task in names)], rows)


def _baseline(line: Line) -> str:
    best = line["baseline"]["best"]
    return f"{line['baseline'][best]:.3f}, {KINDS[best]}"


def _cell(lines: Sequence[Line], others: Sequence[Line]) -> str:
    if not lines:
        return ""
    line = lines[-1]
    kept = [_kept(line), *(_kept(other, short=True) for other in others)]
    return f"{'; '.join(kept)}, score {line['score']:.3f}, KL {line['kl']:.3f}"


def _kept(line: Line, *, short: bool = False) -> str:
    if line["lift_kept"] is None:
        return "no lift"
    low, high = (100 * end for end in line["lift_kept_ci95"])
    return f"{line['lift_kept']:.0%}" + ("" if short else f" [{low:.0f}, {high:.0f}]")


def tasks() -> str:
    """What there is to keep of each task, best baseline in bold."""
    first: dict[str, Line] = {}
    for line in judged_lines():
        first.setdefault(line["task"], line)
    rows = []
    for task, line in first.items():
        kinds = [_kind(line, kind) for kind in KINDS]
        lift = f"{line['lift']:.3f} ± {line['lift_error']:.3f}" + (", no lift" if line["no_lift"] else "")
        classes = "" if line["classes"] is None else str(line["classes"])
        rows.append([task, line["metric"], classes, *kinds, f"{line['teacher']:.3f}", lift])
    return markdown(["", "metric", "classes", *KINDS.values(), "teacher", "lift"], rows)


def _kind(line: Line, kind: str) -> str:
    score = line["baseline"].get(kind)
    text = "" if score is None else f"{score:.3f}"
    return f"**{text}**" if kind == line["baseline"]["best"] else text


def constrained(recipe: str) -> str:
    """JSON tasks: scores of free answers, and of those that are held to the schema, with the lift that each keeps."""
    found = {key: lines[-1] for key, lines in tests(recipe).items() if lines[-1]["constrained"]}
    names = list(dict.fromkeys(task for task, _ in found))
    rows = []
    for name, way in WAYS.items():
        lines = [found.get((task, name)) for task in names]
        if any(lines):
            rows.append([way.label, *(_both(line) for line in lines)])
    return markdown(["free → held to the schema", *names], rows)


def _both(line: Line | None) -> str:
    if line is None:
        return ""
    free, held = line, line["constrained"]
    return f"{free['score']:.3f} → {held['score']:.3f}, lift kept {_kept(free, short=True)} → {_kept(held, short=True)}"


def sizes(recipe: str) -> str:
    """Megabytes on disk of base and adapter, mean over tasks: whether the control of equal bytes is one."""
    rows = []
    for comparison in comparisons(recipe)[-1:]:
        for name in comparison.ways:
            if comparison.found[comparison.tasks[0], name]["base_bytes"] is not None:
                base, adapter = (comparison.mean(name, what) / 1e6 for what in ("base_bytes", "bytes"))
                rows.append([WAYS[name].label, f"{base:.1f}", f"{adapter:.1f}", f"{base + adapter:.1f}"])
    return markdown(["MB on disk", "base", "adapter", "together"], rows)


def calibrated(titles: dict[str, str]) -> str:
    """Lift kept by task and on the mean, plugged in, on bases that were calibrated on the tasks and on those not."""
    rows, names = [], list(dict.fromkeys(line["task"] for line in judged_lines() if CALIBRATED in line["recipe"]))
    for recipe, title in titles.items():
        for variant, label in (("", title), (CALIBRATED, "the same, calibrated on the tasks")):
            lines = {
                line["task"]: line
                for line in judged_lines()
                if (line["recipe"], line["arm"]) == (recipe + variant, "plugged_in")
            }
            if all(task in lines for task in names):
                kept = macro_mean([task_rows(lines[task]) for task in names])
                cells = [_task_share(lines[task]) for task in names]
                rows.append([label, *cells, "no lift" if kept is None else _share(kept)])
    return markdown(["lift kept", *names, "mean [95 %]"], rows) if names else ""


def _task_share(line: Line) -> str:
    kept = lift_kept(task_rows(line))
    return "no lift" if kept is None else f"{kept.value:.0%}"


def rates() -> str:
    """Dev loss of the short runs that chose each arm's learning rate, by the base that they were at."""
    labels = {way.arm: way.label for way in WAYS.values() if not way.variant}
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines_of("recovery"):
        if line["phase"] == "select" and "data" in line:
            found.setdefault((line["recipe"], line["arm"]), []).append(line)
    rows = []
    for recipe, arm in sorted(found, key=lambda key: (key[0], list(labels).index(key[1]))):
        lines = sorted(found[recipe, arm], key=lambda line: float(line["learning_rate"]))
        best = min(lines, key=lambda line: float(line["best_dev"]))
        cells = ", ".join(f"{line['learning_rate']:g}: {line['best_dev']:.4f}" for line in lines)
        rows.append([f"`{recipe}`: {labels[arm]}", cells, f"{best['learning_rate']:g}"])
    return markdown(["", "dev loss by learning rate, nats per answer token", "taken"], rows)


def mean_kept(recipe: str, way: str) -> str:
    """Macro mean of lift kept, and of how many tasks; empty where it was not run."""
    for comparison in comparisons(recipe)[:1]:
        kept = comparison.lift_kept(way) if way in comparison.ways else None
        if kept is not None:
            return f"{kept.value:.1%} of {kept.n}"
    return ""
