"""What a sweep will cost, said before it starts, from what its runs have cost so far or else from a short probe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.bases import BASE, folder_of
from benchmarks.lines import BYTES, CALIBRATED, ORIGINAL, Line, compression
from benchmarks.sweep import Run, Sweep
from regraft.adapt.cost import TRAIN_FACTOR, seconds_per_token
from regraft.evaluate.dataset import encode, read_examples
from regraft.evaluate.engine_answers import EngineAnswers
from regraft.models.load import load_base
from zoo.prepare import TASKS, prepare
from zoo.train import ADAPTERS

LIMIT_HOURS = 12.0
PROBE_ROWS = 8
OPENING_S = 60.0  # of a cell: two models are read, and the teacher runs over the rows
BASELINE_ROUNDS = 3  # of answers, once for each task: the teacher, its base alone, its base with five examples
BASE_S = 600.0  # of a base that nothing is known of


@dataclass(frozen=True)
class Speeds:
    """Seconds per token of training by recipe and arm, per test row by task, and of closed forms by recipe."""

    tokens: dict[tuple[str, str], float]
    rows: dict[str, float]
    closed_forms: dict[str, float]
    probed: tuple[float, float] | None = None  # per token, per row: where no line says anything

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Speeds:
        """What result lines say; of several the median."""
        tokens: dict[tuple[str, str], list[float]] = {}
        rows: dict[str, list[float]] = {}
        closed: dict[str, list[float]] = {}
        for line in lines:
            if line.get("tokens") and line.get("train_seconds"):
                tokens.setdefault((line["recipe"], line["arm"]), []).append(line["train_seconds"] / line["tokens"])
            elif line.get("train_seconds"):
                closed.setdefault(line["recipe"], []).append(line["train_seconds"])
            if line.get("answer_seconds"):
                rows.setdefault(line["task"], []).append(line["answer_seconds"] / line["n"])
        return cls(_medians(tokens), _medians(rows), _medians(closed))

    @property
    def is_known(self) -> bool:
        """Whether there is anything to go by."""
        return bool(self.probed or (self.tokens and self.rows))

    def token(self, recipe: str, arm: str) -> float:
        """Of the very arm and recipe, of the arm elsewhere, or of any."""
        by_arm = [speed for (_, other), speed in self.tokens.items() if other == arm]
        known = [self.tokens[recipe, arm]] if (recipe, arm) in self.tokens else by_arm or list(self.tokens.values())
        return median(known) if known else (self.probed or (0.0, 0.0))[0]

    def row(self, task: str) -> float:
        """Of the task, or of any."""
        known = [self.rows[task]] if task in self.rows else list(self.rows.values())
        return median(known) if known else (self.probed or (0.0, 0.0))[1]

    def closed_form(self, recipe: str) -> float:
        """Of the recipe, or of any; nothing where none was made yet."""
        known = [self.closed_forms[recipe]] if recipe in self.closed_forms else list(self.closed_forms.values())
        return median(known) if known else 0.0


def _medians(found: dict[Any, list[float]]) -> dict[Any, float]:
    return {key: median(values) for key, values in found.items()}


def probe(task: str) -> tuple[float, float]:
    """Seconds per token of training and per test row, from a short pass and a few answers; less than a minute."""
    per_token = TRAIN_FACTOR * seconds_per_token(load_base(BASE))
    answers, rows = EngineAnswers(BASE), read_examples(prepare(task) / "test.jsonl")[: 3 * PROBE_ROWS]
    encoded, seconds = [encode(row, answers.tokenizer) for row in rows], []
    for part in (encoded[:PROBE_ROWS], encoded[PROBE_ROWS:]):  # what both take is the opening of the engine
        start = time.monotonic()
        answers.answer(part, ADAPTERS / task)
        seconds.append(time.monotonic() - start)
    return per_token, max(0.0, seconds[1] - seconds[0]) / PROBE_ROWS


class Price:
    """Hours of a sweep's runs."""

    def __init__(self, sweep: Sweep, speeds: Speeds) -> None:
        self._sweep, self._speeds = sweep, speeds

    def hours(self, runs: Sequence[Run]) -> float:
        """Of some runs: of each, of opening their cells, of each task's baselines, and of bases that are missing."""
        seconds = sum(map(self.seconds, runs)) + OPENING_S * len({_cell(run) for run in runs})
        asked = {run.task for run in self._sweep.done}
        tested = {run.task for run in runs if run.phase == "test"} - asked
        seconds += sum(BASELINE_ROUNDS * self._answers(task) for task in tested)
        seconds += sum(base_seconds(recipe) for recipe in {run.recipe for run in runs})
        return seconds / 3600

    def seconds(self, run: Run) -> float:
        """Of one run by itself."""
        trained = self._sweep.tokens(run) * self._speeds.token(run.recipe, run.arm)
        settings = self._sweep.config(run.arm, 1.0, self._sweep.tokens(run), 0).recover
        if run.arm != "plugged_in" and settings.kind != "none" and settings.start != "zero":
            trained += self._speeds.closed_form(run.recipe)
        return trained + (self._answers(run.task) if run.phase == "test" else 0.0)

    def _answers(self, task: str) -> float:
        rounds = 2 if TASKS[task].metric == "json-fields" else 1  # free, and held to the schema
        return rounds * int(self._sweep.plan["test_examples"]) * self._speeds.row(task)


def base_seconds(recipe: str) -> float:
    """Of making a base, if it is not there."""
    if recipe == ORIGINAL or folder_of(recipe).exists():
        return 0.0
    made = compression("quality").get(recipe.removesuffix(CALIBRATED).removesuffix(BYTES), {}).get("seconds", {})
    return sum(made.values()) if made else BASE_S


def told(sweep: Sweep, speeds: Speeds, *, limit: float = LIMIT_HOURS) -> list[str]:
    """The price by cell and in all; above the limit, what to leave out."""
    price, runs = Price(sweep, speeds), sweep.open
    lines: list[str] = []
    total, counted = 0.0, list[Run]()
    for cell in dict.fromkeys(map(_cell, runs)):  # a base and a task's baselines are the first cell's that needs them
        here = [run for run in runs if _cell(run) == cell]
        counted += here
        before, total = total, price.hours(counted)
        lines.append(f"{cell[0]}, {cell[1]}: {len(here)} runs, {total - before:.1f} h")
    lines.append(f"in all: {len(runs)} runs, {total:.1f} h on one core as it was measured")
    return lines + (cuts(sweep, price, runs, limit) if total > limit else [])


def cuts(sweep: Sweep, price: Price, runs: list[Run], limit: float) -> list[str]:
    """What to leave out until the limit is met: further seeds, the last first, then starts in the plan's order.

    Tasks and test rows stay whatever it costs.
    """
    seeds = sorted({run.seed for run in runs} - {0}, reverse=True)
    steps: list[tuple[str, Callable[[Run], bool]]] = [
        *((f"seed {seed}", lambda run, seed=seed: run.seed == seed) for seed in seeds),
        *((f"start {arm}", lambda run, arm=arm: run.arm == arm) for arm in sweep.plan.get("starts", ())),
    ]
    lines = [f"that is over {limit:g} h; tasks and test rows stay, so leave out:"]
    for name, is_cut in steps:
        kept = [run for run in runs if not is_cut(run)]
        if len(kept) < len(runs):
            runs = kept
            lines.append(f"  {name}: {price.hours(runs):.1f} h are left")
        if price.hours(runs) <= limit:
            return lines
    return [*lines, "  and it is still more: run it over several nights, it goes on where it was"]


def _cell(run: Run) -> tuple[str, str]:
    return run.recipe, run.task
