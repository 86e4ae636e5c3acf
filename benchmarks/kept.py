"""What each way of carrying an adapter over keeps, as macro means over tasks, and the controls that stand beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.lines import BYTES, CALIBRATED, ORIGINAL, Line, lines_of
from regraft.evaluate.lift import MacroMean, TaskRows, macro_mean, retained_share


@dataclass(frozen=True)
class Way:
    """One row of the tables: an arm, on the recipe's base or on a variant of it."""

    label: str
    arm: str
    variant: str = ""

    def recipe(self, name: str) -> str:
        """The base that it runs on, where the table is of recipe ``name``."""
        return ORIGINAL if self.variant == ORIGINAL else name + self.variant


WAYS = {
    "plugged_in": Way("plugged in, as it is", "plugged_in"),
    "more_bits": Way("plugged in, more bits: as large as base and recovery", "plugged_in", BYTES),
    "calibrated": Way("plugged in, base calibrated on the tasks", "plugged_in", CALIBRATED),
    "closed_form": Way("inherited + EoRA, no training", "closed_form"),
    "new_lora": Way("new LoRA, as many parameters", "new_lora"),
    "continued": Way("the same LoRA, trained on", "continued"),
    "recovery_undistilled": Way("inherited + GELU recovery, no teacher", "recovery_undistilled"),
    "ca_lora_gelu": Way("**CA-LoRA**, GELU recovery (the paper's)", "ca_lora_gelu"),
    "ca_lora_linear": Way("**CA-LoRA**, linear recovery from EoRA", "ca_lora_linear"),
    "calibrated_ca_lora": Way("**CA-LoRA**, base calibrated on the tasks", "ca_lora_linear", CALIBRATED),
    "trained_on": Way("the teacher, trained on as long", "continued", ORIGINAL),
}
MAIN = ("plugged_in", "closed_form", "ca_lora_linear")


@dataclass(frozen=True)
class Comparison:
    """Ways of one recipe on the same tasks, so that their means can be compared."""

    tasks: Sequence[str]
    ways: Sequence[str]
    found: dict[tuple[str, str], Line]

    def mean(self, way: str, what: str) -> float:
        """A number of the way's lines, mean over the tasks."""
        return mean(self.found[task, way][what] for task in self.tasks)

    def lift_kept(self, way: str) -> MacroMean | None:
        """Over the tasks with a lift; None if there is none."""
        return macro_mean([task_rows(self.found[task, way]) for task in self.tasks])

    def retention(self, way: str) -> MacroMean | None:
        """The same of the teacher's score, over the same tasks."""
        return macro_mean([task_rows(self.found[task, way]) for task in self.tasks], retained_share)

    @property
    def headline(self) -> str:
        """The tasks, with what is to be known of them."""
        return ", ".join(marked(task, self.found[task, self.ways[0]]) for task in self.tasks)


def task_rows(line: Line) -> TaskRows:
    """The values of a line's rows."""
    return TaskRows(**line["rows"])


def marked(task: str, line: Line) -> str:
    """A task's name; two classes are said, since a guess gets half of them right, and so is a lift that is none."""
    marks = [mark for mark, holds in (("2 classes", line["classes"] == 2), ("no lift", line["no_lift"])) if holds]
    return f"{task} ({', '.join(marks)})" if marks else task


def judged_lines(*, seeds: bool = False) -> list[Line]:
    """The lines of test rows that say what each row is worth; of seed 0, or of the further seeds."""
    lines = [line for line in lines_of("recovery") if line["phase"] == "test" and "rows" in line]
    return [line for line in lines if bool(line["seed"]) == seeds]


def tests(recipe: str, *, seeds: bool = False) -> dict[tuple[str, str], list[Line]]:
    """(task, way) → its lines."""
    found: dict[tuple[str, str], list[Line]] = {}
    for name, way in WAYS.items():
        for line in judged_lines(seeds=seeds):
            if (line["recipe"], line["arm"]) == (way.recipe(recipe), way.arm):
                found.setdefault((line["task"], name), []).append(line)
    return found


def comparisons(recipe: str) -> list[Comparison]:
    """The main ways, and what else was run on all of their tasks; where others were run on fewer, all on these."""
    found = {key: lines[-1] for key, lines in tests(recipe).items()}
    ways = [way for way in WAYS if way in {way for _, way in found}]
    tasks = _shared(found, [way for way in ways if way in MAIN])
    complete = [way for way in ways if all((task, way) in found for task in tasks)]
    made = [Comparison(tasks, complete, found)]
    if complete != ways:
        made.append(Comparison(_shared(found, ways), ways, found))
    return [one for one in made if one.tasks and "plugged_in" in one.ways]


def _shared(found: dict[tuple[str, str], Line], ways: Sequence[str]) -> list[str]:
    """The tasks that all of the ways have been run on."""
    return [task for task in dict.fromkeys(task for task, _ in found) if all((task, way) in found for way in ways)]
