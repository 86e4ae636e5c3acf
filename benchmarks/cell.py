"""One cell of :mod:`benchmarks.recovery`: a base and a task, with the arms that are trained and scored there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

import regraft
from benchmarks.bases import BASE, ORIGINAL, WORK, claim, make_base, weight_bytes
from benchmarks.judge import judged
from benchmarks.sweep import Run, Sweep
from regraft.adapt.arms import Asked, ask, encoded_rows, open_sides, score_arm
from regraft.adapt.config import AdaptConfig
from regraft.adapt.job import Job
from regraft.adapt.material import Material
from regraft.adapt.run import (
    Lesson,
    gather,
    load_teacher,
    make_closed_form,
    plugged_in,
    record_of,
    train_student,
)
from regraft.adapt.student import make_student
from regraft.bypass.bypass import Bypass
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.evaluate.dataset import data_hash
from regraft.formats.adapter.record import AdapterRecord
from regraft.models.load import Base, load_base
from regraft.progress import silent
from regraft.storage import write_bytes
from regraft.train.student import Student
from regraft.train.teacher import Teacher, teach
from regraft.train.trainer import State
from zoo.prepare import TASKS, prepare
from zoo.train import ADAPTERS


class Cell:
    """A base, the teacher, the task's rows, and what the teacher and its base alone answer to them.

    On the base ``original`` the teacher itself is what is trained on.
    """

    def __init__(self, sweep: Sweep, recipe: str, task: str) -> None:
        self.recipe, self.task = recipe, task
        data, config = prepare(task), sweep.config("plugged_in", 1e-3, 1, 0)
        path = make_base(recipe, tasks=sweep.tasks_of(recipe), rank=int(sweep.plan["rank"]))
        self.job = Job(
            compressed=path,
            teacher=BASE,
            adapter=str(ADAPTERS / task),
            data=data / "train.jsonl",
            dev=data / "dev.jsonl",
            test=data / "test.jsonl",
            metric=TASKS[task].metric,
            config=config,
        )
        compressed = None if recipe == ORIGINAL else load_base(path)
        self.teacher: Teacher = load_teacher(self.job, compressed or load_base(BASE))
        self.base: Base = compressed or self.teacher.base
        self.base_bytes = weight_bytes(Path(path)) if compressed else None
        self.sides = open_sides(self.job, self.teacher.base, self.base)
        self.material: Material = gather(self.job, self.teacher, self.sides.original)
        self.lesson = self._learn()
        self._closed_form: dict[str, Any] | None = None

    def _learn(self) -> Lesson:
        """What the teacher says, kept for all bases and processes; closed forms are made when an arm wants one."""
        folder = WORK / "teacher" / self.task
        folder.mkdir(parents=True, exist_ok=True)
        with claim(f"teacher-{self.task}", wait=True):
            kept, rows = self.base.kept, encoded_rows(self.material.test)
            targets = teach(self.teacher, self.material.train, folder, silent, kept=kept)
            test_targets = teach(self.teacher, rows, folder, silent, kept=kept)
            asked = self._asked(folder)
        return Lesson(self.material, targets, test_targets, None, asked, {})

    def _asked(self, folder: Path) -> Asked:
        rows = encoded_rows(self.material.test)
        named = [self.teacher.digest(rows), data_hash(self.material.examples), self.material.schema]
        named += [self.sides.original.runtime, regraft.__version__]
        path = folder / f"asked-{hashlib.sha256(repr(named).encode()).hexdigest()[:24]}.json"
        kind = TypeAdapter(Asked)
        if not path.exists():
            write_bytes(path, kind.dump_json(ask(self.sides.original, self.teacher, self.material, 0)))
        return kind.validate_json(path.read_bytes())

    def run(self, sweep: Sweep, run: Run) -> dict[str, Any]:
        """Train and score; returns the line's findings."""
        if run.phase == "select":
            assert run.learning_rate is not None
            config = sweep.config(run.arm, run.learning_rate, sweep.tokens(run), run.seed)
            _, state, seconds = self._train(config, str(run))
            found = {"dev": state.dev, "best_dev": state.best_dev, "tokens": state.tokens}
            return found | {"train_seconds": round(seconds, 1), "data": self._data}
        adapter = self.teacher.adapter
        assert adapter is not None
        if run.arm == "plugged_in":
            return self._score(self.teacher.path, plugged_in(adapter, self.base))
        rate = sweep.rate(run.recipe, run.arm) if sweep.is_trained(run.arm) else None
        config = sweep.config(run.arm, rate or 1.0, sweep.tokens(run), run.seed)
        student, state, seconds = self._train(config, str(run))
        out = WORK / "adapters" / str(run)
        out.mkdir(parents=True, exist_ok=True)
        made = student.to_adapter(str(run))
        made.record = self._record(config, student, state)
        write_adapter(made, out, self.base)
        written = read_adapter(out, self.base)  # what is scored is what is on disk, in its precision
        trained = {
            "learning_rate": rate,
            "tokens": state.tokens,
            "parameters": student.num_parameters,
            "dev": state.dev,
            "train_seconds": round(seconds, 1),
        }
        return trained | self._score(out, written.bypasses)

    def _student(self, config: AdaptConfig) -> Student:
        """The bypasses of an arm before training."""
        if config.recover.kind != "none" and config.recover.start != "zero" and self._closed_form is None:
            self._closed_form = make_closed_form(self.base, self.teacher, config, self.material)
        return make_student(self.base, self.teacher.adapter, config, self._closed_form)

    def _train(self, config: AdaptConfig, name: str) -> tuple[Student, State, float]:
        """Train an arm; the seconds include its closed form, where it starts from one that is not there yet."""
        start = time.monotonic()
        student = self._student(config)
        folder = WORK / "runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        state = train_student(student, self.base, config, self.lesson, folder, silent)
        return student, state, time.monotonic() - start

    def _score(self, adapter: Path | None, bypasses: Mapping[str, Sequence[Bypass]]) -> dict[str, Any]:
        answers, targets = self.sides.compressed, self.lesson.test_targets
        arm = score_arm(answers, adapter, self.base, bypasses, self.material, targets)
        found = judged(self.material, self.lesson.asked, arm)
        return found | {"base_bytes": self.base_bytes, "answers": answers.runtime, "data": self._data}

    @property
    def _data(self) -> dict[str, str]:
        """Split → hash of its rows."""
        return {name: self.material.record[name]["sha256"][:16] for name in ("train", "dev", "test")}

    def _record(self, config: AdaptConfig, student: Student, state: State) -> AdapterRecord | None:
        """Without it, a pruned base or one of experts would take an arm's result for an adapter of the original."""
        if not self.base.is_compressed:
            return None
        provenance = {"teacher_fingerprint": self.teacher.base.fingerprint}
        job, original = replace(self.job, config=config), self.teacher.adapter
        return record_of(job, student, self.base, original, None, self.material, state, provenance)
