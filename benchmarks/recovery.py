"""How much of an adapter's quality each way of carrying it over keeps: ``python -m benchmarks.recovery``.

Reads ``recovery.yaml``, appends one JSON line per finished arm to ``results/recovery.jsonl``, and skips what is there:
a stopped sweep is taken up by the same command, and several of them may run at once. Learning rates are chosen on dev
rows by short runs; the test rows of a row and arm are read once, with the chosen rate.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml

import regraft
from regraft.adapt.arms import open_sides, score_arm
from regraft.adapt.config import AdaptConfig
from regraft.adapt.job import Job
from regraft.adapt.material import Material
from regraft.adapt.run import (
    Lesson,
    gather,
    learn,
    load_teacher,
    make_closed_form,
    plugged_in,
    record_of,
    train_student,
)
from regraft.adapt.student import make_student
from regraft.bypass.bypass import Bypass
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.compress.recipe import load_recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.evaluate.build_card import ArmRun
from regraft.evaluate.metrics import make_metric, retention, score_answers
from regraft.formats.adapter.record import AdapterRecord
from regraft.models.load import Base, load_base
from regraft.progress import silent
from regraft.train.student import Student
from regraft.train.teacher import Teacher
from regraft.train.trainer import State
from zoo.prepare import ROOT, TASKS, prepare
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "recovery.jsonl"
WORK = ROOT / "data" / "recovery"


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
    """The plan, and the results so far, which other processes may add to."""

    def __init__(self, plan: dict[str, Any], results: Path) -> None:
        self.plan, self.results = plan, results

    @property
    def done(self) -> dict[Run, dict[str, Any]]:
        """The lines there are by now."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return {Run.of(line): line for line in map(json.loads, lines)}

    def record(self, run: Run, found: dict[str, Any]) -> None:
        """Append a run's line."""
        line = {key: value for key, value in asdict(run).items() if value is not None} | found
        print(json.dumps(line), flush=True)
        line |= {"version": regraft.__version__, "torch": torch.__version__, "machine": _machine()}
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def runs(self) -> Iterator[Run]:
        """All that the plan asks for, in the order of its worth."""
        for row in self.plan["rows"]:
            for task in row["tasks"]:
                for arm in row.get("arms", ["plugged_in", *self.plan["arms"]]):
                    yield from self.selection(row["recipe"], arm)
                    yield Run("test", row["recipe"], task, arm)
        spread = self.plan["spread"]
        for seed in spread["seeds"]:
            for arm in spread["arms"]:
                yield Run("test", spread["recipe"], spread["task"], arm, seed)

    def selection(self, recipe: str, arm: str) -> list[Run]:
        """The short runs that choose an arm's learning rate with bases of a recipe."""
        if not self.is_trained(arm):
            return []
        select = self.plan["select"]
        rates = self.plan["arms"][arm].get("learning_rates", self.plan["learning_rates"])
        chosen_at = select["recipes"].get(recipe, select["recipe"])
        return [Run("select", chosen_at, select["task"], arm, 0, rate) for rate in rates]

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

    def tokens(self, recipe: str) -> int:
        """What each arm of a row is trained on."""
        return int(self.plan.get("tokens_of", {}).get(recipe, self.plan["tokens"]))

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


@contextmanager
def claim(name: str, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone has ``name``; the claim ends with the process, however it ends."""
    path = WORK / "claims" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def compressed(recipe: str) -> Path:
    """The base compressed by a recipe of the package or of the zoo, made on first use."""
    folder, own = WORK / "bases" / recipe, ROOT / "zoo" / "recipes" / f"{recipe}.yaml"
    with claim(f"base-{recipe}", wait=True):
        if not folder.exists():
            report = compress(BASE, folder, load_recipe(str(own) if own.exists() else recipe))
            print(json.dumps({"recipe": recipe, "sizes": report.sizes.model_dump()}), flush=True)
    return folder


class Setting:
    """One row: a compressed base, the teacher, the task's rows, and what the teacher says to them."""

    def __init__(self, sweep: Sweep, recipe: str, task: str) -> None:
        self.recipe, self.task = recipe, task
        folder = prepare(task)
        config = sweep.config("plugged_in", 1e-3, sweep.tokens(recipe), 0)
        self.job = Job(
            compressed=str(compressed(recipe)),
            teacher=BASE,
            adapter=str(ADAPTERS / task),
            data=folder / "train.jsonl",
            dev=folder / "dev.jsonl",
            test=folder / "test.jsonl",
            metric=TASKS[task].metric,
            config=config,
        )
        self.base: Base = load_base(self.job.compressed)
        self.teacher: Teacher = load_teacher(self.job, self.base)
        self.sides = open_sides(self.job, self.teacher.base, self.base)
        self.material: Material = gather(self.job, self.teacher, self.sides.original)
        self.folder = WORK / "teacher" / task
        self.folder.mkdir(parents=True, exist_ok=True)
        no_recovery = sweep.config("continued", 1e-3, sweep.tokens(recipe), 0)
        taught = no_recovery.model_copy(update={"distil": AdaptConfig().distil})
        with claim(f"teacher-{task}", wait=True):
            self.lesson: Lesson = learn(
                self.base, self.teacher, self.sides.original, taught, self.material, self.folder, silent
            )
        self._closed_form: dict[str, Any] | None = None

    def student(self, config: AdaptConfig) -> Student:
        """The bypasses of an arm before training."""
        if config.recover.kind != "none" and config.recover.start != "zero" and self._closed_form is None:
            self._closed_form = make_closed_form(self.base, self.teacher, config, self.material)
        return make_student(self.base, self.teacher.adapter, config, self._closed_form)

    def train(self, config: AdaptConfig, name: str) -> tuple[Student, State, float]:
        """Train an arm; the seconds include its closed form, where it starts from one that is not there yet."""
        start = time.monotonic()
        student = self.student(config)
        folder = WORK / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        state = train_student(student, self.base, config, self.lesson, folder, silent)
        return student, state, time.monotonic() - start

    def score(self, adapter: Path | None, bypasses: Mapping[str, Sequence[Bypass]]) -> ArmRun:
        """An arm's answers and KL."""
        answers, targets = self.sides.compressed, self.lesson.test_targets
        return score_arm(answers, adapter, self.base, bypasses, self.material, targets)

    def record(self, config: AdaptConfig, student: Student, state: State) -> AdapterRecord:
        """Without it, a pruned base or one of experts would take an arm's result for an adapter of the original."""
        provenance = {"teacher_fingerprint": self.teacher.base.fingerprint}
        job, original = replace(self.job, config=config), self.teacher.adapter
        return record_of(job, student, self.base, original, None, self.material, state, provenance)


def run_one(sweep: Sweep, setting: Setting, run: Run) -> dict[str, Any]:
    """Train and score; returns the line's findings."""
    if run.phase == "select":
        assert run.learning_rate is not None
        config = sweep.config(run.arm, run.learning_rate, sweep.plan["select"]["tokens"], run.seed)
        _, state, seconds = setting.train(config, str(run))
        return {"dev": state.dev, "best_dev": state.best_dev, "train_seconds": round(seconds, 1)}
    adapter = setting.teacher.adapter
    assert adapter is not None
    if run.arm == "plugged_in":
        return _scores(setting, setting.score(adapter.path, plugged_in(adapter, setting.base)))
    rate = sweep.rate(run.recipe, run.arm) if sweep.is_trained(run.arm) else None
    config = sweep.config(run.arm, rate or 1.0, sweep.tokens(run.recipe), run.seed)
    student, state, seconds = setting.train(config, str(run))
    out = WORK / "adapters" / str(run)
    out.mkdir(parents=True, exist_ok=True)
    made = student.to_adapter(str(run))
    made.record = setting.record(config, student, state)
    write_adapter(made, out, setting.base)
    written = read_adapter(out, setting.base)  # what is scored is what is on disk, in its precision
    trained = {
        "learning_rate": rate,
        "tokens": state.tokens,
        "parameters": student.num_parameters,
        "dev": state.dev,
        "train_seconds": round(seconds, 1),
    }
    return trained | _scores(setting, setting.score(out, written.bypasses))


def _scores(setting: Setting, run: ArmRun) -> dict[str, Any]:
    references = [row.reference for row in setting.material.test]
    measure = make_metric(setting.job.metric, references)
    values = {
        name: [measure(answer, wanted) for answer, wanted in zip(answers, references, strict=True)]
        for name, answers in (("arm", run.answers), ("teacher", setting.lesson.teacher.answers))
    }
    score, teacher = score_answers(measure, run.answers, references), sum(values["teacher"]) / len(references)
    kept = retention(values["arm"], values["teacher"])
    return {
        "metric": setting.job.metric,
        "n": score.n,
        "score": score.value,
        "ci95": score.ci95,
        "teacher": teacher,
        "retention": kept.value if kept else None,
        "retention_ci95": kept.ci95 if kept else None,
        "exact": sum(a.strip() == r.strip() for a, r in zip(run.answers, references, strict=True)) / len(references),
        "agreement": sum(
            a.strip() == t.strip() for a, t in zip(run.answers, setting.lesson.teacher.answers, strict=True)
        )
        / len(references),
        "kl": run.kl,
        "bytes": run.bytes,
    }


def main() -> None:
    """Run what is missing, or list it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--plan", type=Path, default=HERE / "recovery.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--recipes", nargs="*", default=None, help="only these recipes")
    parser.add_argument("--minutes", type=float, default=None, help="start no further run after so many")
    args = parser.parse_args()
    sweep = Sweep(yaml.safe_load(args.plan.read_text()), args.results)
    end = time.monotonic() + 60 * (args.minutes or 1e9)
    if args.list:
        print("\n".join(map(str, sweep.open)))
        return
    setting: Setting | None = None
    while time.monotonic() < end:
        wanted = [run for run in sweep.open if not args.recipes or run.recipe in args.recipes]
        if not wanted:
            return
        ready = [run for run in wanted if sweep.is_ready(run)]
        if setting is not None:  # the order stays, but what can be done without loading anything comes first
            here = setting.recipe, setting.task
            ready.sort(key=lambda run: (run.recipe, run.task) != here)
        for run in ready:
            with claim(str(run)) as mine:
                if not mine or run in sweep.done:
                    continue
                if setting is None or (setting.recipe, setting.task) != (run.recipe, run.task):
                    setting = None  # two models in float32: let go of them before the next ones are read
                    setting = Setting(sweep, run.recipe, run.task)
                sweep.record(run, run_one(sweep, setting, run))
                break
        else:
            time.sleep(10)  # what is left waits for, or belongs to, another process


if __name__ == "__main__":
    main()
