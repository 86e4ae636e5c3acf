"""What each way of carrying an adapter over keeps of the uncompressed teacher, on the mean over tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from benchmarks.lines import Line, compression, lines_of

ARMS = {
    "plugged_in": "plugged in, as it is",
    "closed_form": "inherited + EoRA, no training",
    "new_lora": "new LoRA, as many parameters",
    "continued": "the same LoRA, trained on",
    "recovery_undistilled": "inherited + GELU recovery, no teacher",
    "ca_lora_gelu": "**CA-LoRA**, GELU recovery (the paper's)",
    "ca_lora_linear": "**CA-LoRA**, linear recovery from EoRA",
}
MAIN_ARMS = ("plugged_in", "closed_form", "ca_lora_linear")


@dataclass(frozen=True)
class Comparison:
    """Arms of one recipe on the same tasks, so that their means can be compared."""

    tasks: Sequence[str]
    arms: Sequence[str]
    found: dict[tuple[str, str], Line]

    def mean(self, arm: str, what: str) -> float:
        """A number of the arm's lines, mean over the tasks."""
        return mean(self.found[task, arm][what] for task in self.tasks)

    def kept(self, arm: str) -> float:
        """The share of the teacher's score."""
        return self.mean(arm, "score") / self.mean(arm, "teacher")

    def won_back(self, arm: str) -> float | None:
        """The share of what plugging in lost; None if that is next to nothing, of which a share says nothing."""
        lost = 1 - self.kept("plugged_in") if "plugged_in" in self.arms else 0.0
        return None if lost < 0.05 else 1 - (1 - self.kept(arm)) / lost


def tests(recipe: str) -> dict[tuple[str, str], Line]:
    """(task, arm) → the line of seed 0."""
    lines = [line for line in lines_of("recovery") if (line["phase"], line["recipe"]) == ("test", recipe)]
    return {(line["task"], line["arm"]): line for line in lines if line["seed"] == 0}


def comparisons(recipe: str) -> list[Comparison]:
    """The main arms, and what else was run on all of their tasks; where other arms were run on fewer, all on these."""
    found = tests(recipe)
    arms = [arm for arm in ARMS if arm in {arm for _, arm in found}]
    tasks = _shared(found, [arm for arm in arms if arm in MAIN_ARMS])
    complete = [arm for arm in arms if all((task, arm) in found for task in tasks)]
    made = [Comparison(tasks, complete, found)]
    if complete != arms:
        made.append(Comparison(_shared(found, arms), arms, found))
    return [one for one in made if one.tasks]


def _shared(found: dict[tuple[str, str], Line], arms: Sequence[str]) -> list[str]:
    """The tasks that all of the arms have been run on."""
    return [task for task in dict.fromkeys(task for task, _ in found) if all((task, arm) in found for arm in arms)]


def teacher_scores() -> dict[str, float]:
    """Task → the uncompressed teacher's score on its test rows."""
    found = {line["task"]: line["teacher"] for line in lines_of("recovery") if line["phase"] == "test"}
    named = {name.partition("; "): line["score"] for name, line in compression("adapters").items()}
    return found | {task: score for (who, _, task), score in named.items() if who == "teacher"}
