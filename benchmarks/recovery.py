"""How much of an adapter's quality each way of carrying it over keeps: ``python -m benchmarks.recovery``.

Reads ``recovery.yaml``, appends one JSON line per finished arm to ``results/recovery.jsonl``, and skips what is there:
a stopped sweep is taken up by the same command. Learning rates are chosen on dev rows by short runs; the test rows of
a row and arm are read once, with the chosen rate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml

import regraft
from regraft.adapt.config import AdaptConfig
from regraft.adapt.material import Material
from regraft.adapt.run import Job, Lesson, gather, learn, load_teacher, make_closed_form, score_arm, train_student
from regraft.adapt.student import Student, make_student
from regraft.adapt.teacher import Teacher
from regraft.adapt.trainer import State
from regraft.base.load import Base, load_base
from regraft.bypass.adapter_directory import write_adapter
from regraft.compress.recipe import load_recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.evaluate.metrics import make_metric, retention, score_answers
from regraft.evaluate.report_card import ArmRun
from regraft.progress import silent
from zoo.prepare import ROOT, TASKS, prepare
from zoo.train import ADAPTERS

BASE = "smollm2-135m"
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "recovery.jsonl"
WORK = ROOT / "data" / "recovery"
UNTRAINED = ("teacher", "plugged_in")


class Sweep:
    """The plan, and the results so far."""

    def __init__(self, plan: dict[str, Any], results: Path) -> None:
        self.plan, self.results = plan, results
        lines = results.read_text().splitlines() if results.exists() else []
        self.done = {_key(line): line for line in map(json.loads, lines)}

    def record(self, line: dict[str, Any]) -> dict[str, Any]:
        """Append one line, unless it is there."""
        line |= {"version": regraft.__version__, "torch": torch.__version__, "machine": _machine()}
        self.done[_key(line)] = line
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps({k: v for k, v in line.items() if k not in ("machine", "torch", "version")}), flush=True)
        return line

    def jobs(self) -> Iterator[tuple[str, str, str, int]]:
        """(recipe, task, arm, seed) in the order of their worth."""
        for row in self.plan["rows"]:
            for task in row["tasks"]:
                for arm in row.get("arms", [*UNTRAINED[1:], *self.plan["arms"]]):
                    yield row["recipe"], task, arm, 0
        spread = self.plan["spread"]
        for seed in spread["seeds"]:
            for arm in self.plan["arms"]:
                yield spread["recipe"], spread["task"], arm, seed

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


def _key(line: dict[str, Any]) -> tuple[Any, ...]:
    rate = line["learning_rate"] if line["phase"] == "select" else None
    return line["phase"], line["recipe"], line["task"], line["arm"], line["seed"], rate


def _machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def compressed(recipe: str) -> Path:
    """The base compressed by a recipe, made on first use."""
    folder = WORK / "bases" / recipe
    if not folder.exists():
        report = compress(BASE, folder, load_recipe(recipe))
        print(json.dumps({"recipe": recipe, "sizes": report.sizes.model_dump()}), flush=True)
    return folder


class Setting:
    """One row: a compressed base, the teacher, the task's rows, and what the teacher says to them."""

    def __init__(self, sweep: Sweep, recipe: str, task: str) -> None:
        folder = prepare(task)
        config = sweep.config("plugged_in", 1e-3, sweep.plan["tokens"], 0)
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
        self.material: Material = gather(self.job, self.teacher)
        self.folder = WORK / "teacher" / task
        self.folder.mkdir(parents=True, exist_ok=True)
        no_recovery = sweep.config("continued", 1e-3, sweep.plan["tokens"], 0)
        taught = no_recovery.model_copy(update={"distil": AdaptConfig().distil})
        self.lesson: Lesson = learn(self.base, self.teacher, taught, self.material, self.folder, silent)
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


def run_arm(sweep: Sweep, setting: Setting, recipe: str, task: str, arm: str, seed: int) -> None:
    """Train and score one arm, and record its line."""
    line: dict[str, Any] = {"phase": "test", "recipe": recipe, "task": task, "arm": arm, "seed": seed}
    adapter = setting.teacher.adapter
    assert adapter is not None
    if arm == "plugged_in":
        scored = score_arm(setting.base, adapter.bypasses, setting.lesson, adapter.path)
    else:
        rate = choose_rate(sweep, recipe, arm) if sweep.config(arm, 1, sweep.plan["tokens"], 0).train.tokens else 1.0
        config = sweep.config(arm, rate, sweep.plan["tokens"], seed)
        name = f"{recipe}-{task}-{arm}-{seed}"
        student, state, seconds = setting.train(config, name)
        result = student.to_adapter(name)
        out = WORK / "adapters" / name
        out.mkdir(parents=True, exist_ok=True)
        write_adapter(result, out, setting.base)
        scored = score_arm(setting.base, _halves(result), setting.lesson, out)
        line |= {
            "learning_rate": rate,
            "tokens": state.tokens,
            "parameters": student.num_parameters,
            "dev": state.dev,
            "train_seconds": round(seconds, 1),
        }
    sweep.record(line | _scores(setting, scored))


def _halves(adapter: Any) -> Any:
    for parameter in adapter.parameters():
        parameter.data = parameter.data.half().float()  # what is scored is what was written
    return adapter.bypasses


def _scores(setting: Setting, run: ArmRun) -> dict[str, Any]:
    references = [row.reference for row in setting.material.test]
    measure = make_metric(setting.job.metric, references)
    values = {
        name: [measure(answer, wanted) for answer, wanted in zip(answers, references, strict=True)]
        for name, answers in (("arm", run.answers), ("teacher", setting.lesson.answers))
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
        "agreement": sum(a.strip() == t.strip() for a, t in zip(run.answers, setting.lesson.answers, strict=True))
        / len(references),
        "kl": run.kl,
        "bytes": run.bytes,
    }


def choose_rate(sweep: Sweep, recipe: str, arm: str) -> float:
    """The learning rate of an arm at a recipe: the best dev score of short runs on ``select_task``."""
    task, plan = sweep.plan["select_task"], sweep.plan
    for rate in plan["arms"][arm].get("learning_rates", plan["learning_rates"]):
        line = {"phase": "select", "recipe": recipe, "task": task, "arm": arm, "seed": 0, "learning_rate": rate}
        if _key(line) not in sweep.done:
            config = sweep.config(arm, rate, plan["select_tokens"], 0)
            _, state, seconds = setting_of(sweep, recipe, task).train(config, f"select-{recipe}-{arm}-{rate}")
            sweep.record(line | {"dev": state.dev, "best_dev": state.best_dev, "train_seconds": round(seconds, 1)})
    rows = [
        line for line in sweep.done.values() if (line["phase"], line["recipe"], line["arm"]) == ("select", recipe, arm)
    ]
    return float(min(rows, key=lambda line: line["best_dev"])["learning_rate"])


@cache
def setting_of(sweep: Sweep, recipe: str, task: str) -> Setting:
    """Settings are kept: two models in float32 each."""
    return Setting(sweep, recipe, task)


def main() -> None:
    """Run what is missing, or list it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--list", action="store_true", help="say what is missing, and stop")
    parser.add_argument("--plan", type=Path, default=HERE / "recovery.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--arms", nargs="*", default=None, help="only these arms")
    parser.add_argument("--recipes", nargs="*", default=None, help="only these recipes")
    parser.add_argument("--minutes", type=float, default=None, help="start no further arm after so many")
    args = parser.parse_args()
    sweep = Sweep(yaml.safe_load(args.plan.read_text()), args.results)
    start = time.monotonic()
    for recipe, task, arm, seed in sweep.jobs():
        skipped = (args.arms and arm not in args.arms) or (args.recipes and recipe not in args.recipes)
        if skipped or ("test", recipe, task, arm, seed, None) in sweep.done:
            continue
        if args.list:
            print(recipe, task, arm, seed)
        elif not (ADAPTERS / task / "training.json").exists():
            print(f"skipped: adapter {task} is not trained yet")
        elif args.minutes is None or time.monotonic() - start < 60 * args.minutes:
            run_arm(sweep, setting_of(sweep, recipe, task), recipe, task, arm, seed)


if __name__ == "__main__":
    main()
