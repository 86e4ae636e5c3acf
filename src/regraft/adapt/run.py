"""CA-LoRA end to end (Zhao et al. 2023, arXiv 2307.07705): inherit, recover, distil; then measure what that gave.

    teacher  =  base + LoRA                             (uncompressed)
    student  =  compressed base + LoRA + recovery       (starts from the same LoRA)

The adapter directory appears when all of it is there: factors, provenance, report card.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import regraft
from regraft.adapt.arms import Asked, Sides, ask, encoded_rows, open_sides, score_arm
from regraft.adapt.closed_form import eora, svd
from regraft.adapt.config import AdaptConfig, override
from regraft.adapt.cost import estimate
from regraft.adapt.job import Job
from regraft.adapt.material import Material, calibration_batches, from_examples, from_nothing, from_prompts
from regraft.adapt.student import inherit, make_student
from regraft.bypass.adapter import Adapter
from regraft.bypass.bypass import Bypass
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.bypass.lora import LoRA
from regraft.errors import RegraftError, UsageError
from regraft.evaluate.answers import Answers, Runtime, find_schema, usable_schema
from regraft.evaluate.build_card import ArmRun, build_report_card
from regraft.evaluate.html import render_html
from regraft.evaluate.metrics import make_metric
from regraft.evaluate.report_card import REPORT_CARD_NAME, ReportCard
from regraft.formats.adapter.kinds import LORA
from regraft.formats.adapter.record import AdapterRecord, Parent
from regraft.models.load import Base, load_base
from regraft.progress import Progress, silent
from regraft.storage import check_output, output_directory, work_directory, write_bytes, write_json
from regraft.train.settings import Distil, Train
from regraft.train.student import Student
from regraft.train.teacher import Targets, Teacher, teach
from regraft.train.trainer import State, Trainer


@dataclass
class Lesson:
    """All that the teacher has to say; after this it can be let go."""

    material: Material
    targets: Targets | None
    test_targets: Targets
    closed_form: dict[str, LoRA] | None
    asked: Asked
    seconds: dict[str, float]


def run(job: Job, out: Path, *, overwrite: bool = False, progress: Progress = silent) -> ReportCard:
    """Adapt an adapter to a compressed base and write its directory.

    Args:
        job: what to adapt, to what, on what.
        out: the directory to write; a killed run leaves nothing there, and the same call takes its training up again.
        overwrite: replace ``out``.
        progress: told of costs, phases and losses.

    Raises:
        UsageError, FormatError, DataError, IncompatibleAdapterError: bad input; nothing is written then.
    """
    job.check()
    check_output(out, overwrite=overwrite)
    job.check_output(out)
    student_base = load_base(job.compressed, device=job.device, progress=progress)
    if not student_base.is_compressed:
        raise UsageError(f"{job.compressed} is not compressed", hint="Make one: regraft compress BASE -o DIR.")
    teacher = load_teacher(job, student_base, progress)
    job, shared = take_shared(job, student_base, progress)
    sides = open_sides(job, teacher.base, student_base, progress)
    material = gather(job, teacher, sides.original, progress)
    make_metric(material.metric, [row.reference for row in material.test])  # fails now rather than after the training
    _note_costs(job, student_base, teacher, material, progress)
    folder = work_directory(out)
    card = _adapt(job, out, student_base, teacher, sides, shared, material, folder, overwrite, progress)
    shutil.rmtree(folder, ignore_errors=True)  # not on failure: the next call takes up what is there
    return card


def _note_costs(job: Job, student_base: Base, teacher: Teacher, material: Material, progress: Progress) -> None:
    train = job.config.train
    if train.tokens == 0 and (train != Train(tokens=0) or job.config.distil != Distil()):
        progress.note("train.tokens is 0: the other settings of train and distil are not looked at")
    progress.note(estimate(student_base, teacher.base, job.config, material))


def take_shared(job: Job, compressed: Base, progress: Progress = silent) -> tuple[Job, Adapter | None]:
    """The shared recovery, if one is given, and the job with its kind.

    Raises:
        UsageError: the adapter carries a task, or its recovery is not of the kind that is asked for.
    """
    if job.shared is None:
        return job, None
    shared = read_adapter(job.shared, compressed)
    if shared.record is None or shared.record.parent is not None:
        raise UsageError(
            f"{job.shared} is no shared recovery", hint="Make one: regraft adapt, without --adapter, on any text."
        )
    found, asked = shared.record.recovery, job.config.recover.kind
    if asked == "gelu" and found != asked:
        raise UsageError(f"{job.shared} is a {found} recovery, but recover.kind is {asked}")
    if found != asked:
        progress.note(f"the shared recovery is {found}, so this adapter's is")
    return replace(job, config=override(job.config, {"recover.kind": found})), shared


def load_teacher(job: Job, compressed: Base, progress: Progress = silent) -> Teacher:
    """The uncompressed base and the existing adapter, each checked against the compressed base."""
    base = load_base(job.teacher, device=job.device, progress=progress)
    Teacher(base, None).check(compressed)
    adapter = read_adapter(job.adapter, base) if job.adapter else None
    return Teacher(base, adapter)


def gather(job: Job, teacher: Teacher, answers: Answers, progress: Progress = silent) -> Material:
    """The rows to train on and to be scored on; ``answers`` is the teacher's base."""
    limits, seed = job.config.data, job.config.seed
    if job.data:
        schema = find_schema(job.schema, job.test or job.data, job.metric)
        usable = usable_schema(schema, answers, is_asked=job.schema is not None, progress=progress)
        rows = from_examples(job.data, job.dev, job.test, job.metric, teacher.base.tokenizer, limits, seed)
        return replace(rows, schema=usable)
    if job.prompts:
        return from_prompts(job.prompts, job.metric, teacher, answers, limits, seed, progress)
    return from_nothing(teacher, answers, limits, seed, progress)


def learn(
    student_base: Base,
    teacher: Teacher,
    answers: Answers,
    config: AdaptConfig,
    material: Material,
    folder: Path,
    progress: Progress,
    *,
    shared: bool = False,
) -> Lesson:
    """Everything that needs the teacher's weights: targets, closed form, its own answers and its base's.

    ``shared`` says that there is a shared recovery, which stands in for the closed form.
    """
    seconds: dict[str, float] = {}
    start = time.monotonic()
    train = config.train.tokens > 0 and config.distil.needs_teacher
    kept = student_base.kept
    targets = teach(teacher, material.train, folder, progress, kept=kept) if train else None
    test_targets = teach(teacher, encoded_rows(material.test), folder, progress, kept=kept)
    seconds["teacher"] = time.monotonic() - start
    start = time.monotonic()
    closed_form = None
    if config.recover.kind != "none" and config.recover.start != "zero" and not shared:
        closed_form = make_closed_form(student_base, teacher, config, material, progress)
    seconds["closed_form"] = time.monotonic() - start
    start = time.monotonic()
    asked = ask(answers, teacher, material, config.seed, progress)
    seconds["answers"] = time.monotonic() - start
    return Lesson(material, targets, test_targets, closed_form, asked, seconds)


def make_closed_form(
    student_base: Base, teacher: Teacher, config: AdaptConfig, material: Material, progress: Progress = silent
) -> dict[str, LoRA]:
    """The linear recovery to start from; a GELU one needs a pair of neurons for each of its ranks."""
    rank = config.recover.rank if config.recover.kind == "linear" else config.recover.rank // 2
    if config.recover.start == "svd":
        return svd(student_base, teacher.base, rank)
    chosen = calibration_batches(material.train, config.recover.calibration_tokens)
    batches = [batch.to(student_base.model.device) for batch in chosen]
    return eora(student_base, teacher.base, rank, batches, plugged_in(teacher.adapter, student_base), progress)


def _adapt(
    job: Job,
    out: Path,
    student_base: Base,
    teacher: Teacher,
    sides: Sides,
    shared: Adapter | None,
    material: Material,
    folder: Path,
    overwrite: bool,
    progress: Progress,
) -> ReportCard:
    lesson = learn(
        student_base, teacher, sides.original, job.config, material, folder, progress, shared=shared is not None
    )
    original = teacher.adapter
    plugged = plugged_in(original, student_base)
    provenance = {"teacher_fingerprint": teacher.base.fingerprint}
    teacher.base.model.to("meta")  # its weights are not needed any more, and may be half of the memory
    student = make_student(student_base, original, job.config, lesson.closed_form, shared)
    state = train_student(student, student_base, job.config, lesson, folder, progress)
    if student.is_empty:
        raise RegraftError(
            "the training gained nothing on the dev rows, so the adapter would do nothing",
            hint="Try more train.tokens, another train.learning_rate, or recover.start: eora.",
        )
    with output_directory(out, overwrite=overwrite) as partial:
        adapter = student.to_adapter(out.name)
        adapter.record = record_of(job, student, student_base, original, shared, material, state, provenance)
        write_adapter(adapter, partial, student_base)
        written = read_adapter(partial, student_base)  # what is scored is what is on disk, in its precision
        arms = {
            name: score_arm(
                sides.compressed, path, student_base, bypasses, material, lesson.test_targets, progress=progress
            )
            for name, path, bypasses in (
                ("plugged_in", teacher.path, plugged),
                ("adapted", partial, written.bypasses),
            )
        }
        card = make_card(job, out.name, student_base.name, sides.compressed.runtime, lesson, arms, state)
        write_json(partial / REPORT_CARD_NAME, card.to_json())
        write_bytes(partial / "report_card.html", render_html(card).encode())
    return card


def plugged_in(original: Adapter | None, base: Base) -> dict[str, list[Bypass]]:
    """The existing adapter on the compressed base, unadapted."""
    return {slot: [lora] for slot, lora in inherit(original, base).items()} if original else {}


def train_student(
    student: Student, base: Base, config: AdaptConfig, lesson: Lesson, folder: Path, progress: Progress
) -> State:
    """Train the student's bypasses in place, unless the budget is zero: then the closed form is the result."""
    if config.train.tokens == 0:
        return State()
    material = lesson.material
    return Trainer(base, student, config, material.train, material.dev, lesson.targets, folder, progress).run()


def make_card(
    job: Job,
    name: str,
    base: str,
    runtime: Runtime,
    lesson: Lesson,
    arms: Mapping[str, ArmRun],
    state: State,
) -> ReportCard:
    """The report card of what was written."""
    return build_report_card(
        [row.prompt for row in lesson.material.test],
        [row.reference for row in lesson.material.test],
        teacher=lesson.asked.teacher,
        plugged_in=arms["plugged_in"],
        adapted=arms["adapted"],
        baseline=lesson.asked.baseline,
        metric=lesson.material.metric,
        adapter=name,
        base=base,
        runtime=runtime,
        settings={
            "teacher": job.teacher,
            "data": lesson.material.record,
            "config": job.config.model_dump(),
            "training": state.record,
            "seconds": {phase: round(spent, 1) for phase, spent in lesson.seconds.items()},
        },
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def record_of(
    job: Job,
    student: Student,
    base: Base,
    original: Adapter | None,
    shared: Adapter | None,
    material: Material,
    state: State,
    provenance: dict[str, Any],
) -> AdapterRecord:
    """What an adapter's directory says of where it comes from; ``provenance`` are the teacher's fields."""
    kinds = {bypass.kind for bypass in student.recovery.values()}
    return AdapterRecord(
        regraft_version=regraft.__version__,
        base_name=base.name,
        base_fingerprint=base.fingerprint,
        parent=_parent(original),
        shared=_parent(shared),
        recovery="none" if not kinds else "linear" if kinds == {LORA} else "gelu",
        data=material.record,
        settings=job.config.model_dump(),
        seed=job.config.seed,
        training=state.record,
        **provenance,
    )


def _parent(adapter: Adapter | None) -> Parent | None:
    return Parent(name=adapter.name, sha256=adapter.sha256 or "") if adapter else None
