"""The plan of :mod:`benchmarks.recovery`, the results so far, and what is still missing."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import regraft
from regraft.adapt.config import AdaptConfig
from regraft.config import parse, suggest
from regraft.errors import UsageError
from zoo.prepare import TASKS

Plan = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One line of the results: a short run on the dev rows (``select``), or an arm on the test rows (``test``)."""

    phase: str
    recipe: str
    task: str
    arm: str
    seed: int = 0
    learning_rate: float | None = None

    def __str__(self) -> str:
        words = (self.phase, self.recipe, self.task, self.arm, self.seed, self.learning_rate or "")
        return "-".join(map(str, words)).strip("-")

    @classmethod
    def of(cls, line: dict[str, Any]) -> Run:
        """The run that a line of the results is of; a test's rate is an outcome, not a part of its name."""
        rate = line["learning_rate"] if line["phase"] == "select" else None
        return cls(line["phase"], line["recipe"], line["task"], line["arm"], line["seed"], rate)


class Sweep:
    """The plan, and the results so far, which other processes may add to.

    Raises:
        UsageError: the plan names a task that the zoo does not have, or an arm that the plan does not describe.
    """

    def __init__(self, plan: Plan, results: Path) -> None:
        self.plan, self.results = plan, results
        arms = {"plugged_in", *plan["arms"]}
        for row in [*plan["rows"], *plan.get("spread", [])]:
            for names, known, what in ((row["tasks"], TASKS, "task"), (row["arms"], arms, "arm")):
                for name in names:
                    if name not in known:
                        raise UsageError(f"the sweep names {what} {name!r}", hint=suggest(name, known))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All result lines by now."""
        return [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.exists() else []

    @property
    def done(self) -> dict[Run, dict[str, Any]]:
        """Run → its line; one that does not say which rows it was on is of an earlier yardstick, and not done."""
        return {Run.of(line): line for line in self.lines if "data" in line}

    def record(self, run: Run, found: dict[str, Any]) -> None:
        """Append a run's line."""
        line = {key: value for key, value in asdict(run).items() if value is not None} | found
        print(json.dumps({key: value for key, value in line.items() if key != "rows"}), flush=True)
        line |= {"version": regraft.__version__, "torch": torch.__version__, "machine": _machine()}
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def runs(self) -> Iterator[Run]:
        """All that the plan asks for, in the order of its worth."""
        for row in self.plan["rows"]:
            for task in row["tasks"]:
                for arm in row["arms"]:
                    yield from self.selection(row["recipe"], arm)
                    yield Run("test", row["recipe"], task, arm)
        for row in self.plan.get("spread", []):
            for seed in row["seeds"]:
                for task in row["tasks"]:
                    for arm in row["arms"]:
                        yield Run("test", row["recipe"], task, arm, seed)

    def selection(self, recipe: str, arm: str) -> list[Run]:
        """The short runs that choose an arm's learning rate with bases of a recipe."""
        if not self.is_trained(arm):
            return []
        select = self.plan["select"]
        rates = self.plan["arms"][arm].get("learning_rates", self.plan["learning_rates"])
        chosen_at = select["recipes"].get(recipe, select["recipe"])
        return [Run("select", chosen_at, select["task"], arm, 0, rate) for rate in rates]

    def tasks_of(self, recipe: str) -> list[str]:
        """The tasks that a recipe is measured on."""
        rows = [row for row in self.plan["rows"] if row["recipe"] == recipe]
        return list(dict.fromkeys(task for row in rows for task in row["tasks"]))

    def is_trained(self, arm: str) -> bool:
        """Whether an arm has a learning rate at all."""
        return bool(arm in self.plan["arms"] and self.config(arm, 1, self.plan["tokens"], 0).train.tokens)

    def rate(self, recipe: str, arm: str) -> float | None:
        """The chosen learning rate; None as long as a short run is missing."""
        done, runs = self.done, self.selection(recipe, arm)
        if any(run not in done for run in runs):
            return None
        return min(runs, key=lambda run: float(done[run]["best_dev"])).learning_rate

    @property
    def open(self) -> list[Run]:
        """The runs that are missing."""
        done = self.done
        return [run for run in dict.fromkeys(self.runs()) if run not in done]

    def is_ready(self, run: Run) -> bool:
        """Whether all that a run needs is there."""
        return run.phase == "select" or not self.is_trained(run.arm) or self.rate(run.recipe, run.arm) is not None

    def tokens(self, run: Run) -> int:
        """What a run is trained on."""
        if not self.is_trained(run.arm):
            return 0
        if run.phase == "select":
            return int(self.plan["select"]["tokens"])
        return int(self.plan.get("tokens_of", {}).get(run.recipe, self.plan["tokens"]))

    def config(self, arm: str, learning_rate: float, tokens: int, seed: int) -> AdaptConfig:
        """An arm's settings."""
        plan = self.plan
        data: dict[str, Any] = {
            "inherit": {"rank": plan["rank"]},
            "recover": {"rank": plan["rank"]},
            "distil": {},
            "train": {"tokens": tokens, "learning_rate": learning_rate, "patience": 99},
            "data": {key: plan[key] for key in ("max_examples", "dev_examples", "test_examples")},
            "seed": seed,
        }
        for section, values in plan["arms"].get(arm, {}).items():
            if section in data:
                data[section] |= values
        return parse(AdaptConfig, data, f"arm {arm}")


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
