"""Answers and divergence of each arm on the test rows, and what is answered without the adapter."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from regraft.adapt.job import Job
from regraft.adapt.material import Material, TestRow
from regraft.bypass.attach import attached
from regraft.bypass.bypass import Bypass
from regraft.bypass.describe import adapter_bytes
from regraft.errors import UnsupportedBaseError
from regraft.evaluate.answers import Answers
from regraft.evaluate.baseline import BaselineAnswers, answer_without_adapter
from regraft.evaluate.build_card import ArmRun, Baselines
from regraft.evaluate.engine_answers import EngineAnswers
from regraft.evaluate.torch_answers import TorchAnswers
from regraft.models.load import Base
from regraft.models.output_head import Head
from regraft.progress import Progress, silent
from regraft.train.batches import Row, make_batches
from regraft.train.distil import losses
from regraft.train.settings import Distil
from regraft.train.teacher import Targets, Teacher


@dataclass(frozen=True)
class Sides:
    """What answers for the uncompressed base, and what for the compressed one: the engine for both, or torch."""

    original: Answers
    compressed: Answers


@dataclass(frozen=True)
class Asked:
    """What the teacher answers to the test rows, and what its base does without the adapter, or why that is nothing."""

    teacher: ArmRun
    baseline: Baselines | str


def open_sides(job: Job, original: Base, compressed: Base, progress: Progress = silent) -> Sides:
    """The engine, as answers are served by it; torch on other devices than the CPU, or where it does not run a base.

    Raises:
        FormatError: a base's files are damaged.
    """
    if job.device != "cpu":
        progress.note(f"torch answers the test rows, as the engine does not run on {job.device}")
        return Sides(TorchAnswers(original), TorchAnswers(compressed))
    threads = torch.get_num_threads()
    try:
        return Sides(
            EngineAnswers(job.teacher, threads=threads, progress=progress),
            EngineAnswers(job.compressed, threads=threads, progress=progress),
        )
    except UnsupportedBaseError as error:
        progress.note(f"torch answers the test rows, as the engine does not run this base: {error}")
        return Sides(TorchAnswers(original), TorchAnswers(compressed))


def answer_rows(answers: Answers, adapter: Path | None, material: Material, progress: Progress = silent) -> ArmRun:
    """An arm's answers to the test rows, free and held to the schema where there is one; their seconds, and bytes."""
    encoded = [row.encoded for row in material.test]
    limit, start = material.max_new_tokens, time.monotonic()
    free = answers.answer(encoded, adapter, max_new_tokens=limit, progress=progress)
    seconds = round(time.monotonic() - start, 1)
    held = None
    if material.schema is not None:
        held = answers.answer(encoded, adapter, max_new_tokens=limit, schema=material.schema, progress=progress)
    return ArmRun(free, held, bytes=adapter_bytes(adapter) if adapter else 0, seconds=seconds)


def ask(answers: Answers, teacher: Teacher, material: Material, seed: int, progress: Progress = silent) -> Asked:
    """Let the uncompressed base answer the test rows, with the adapter and without; ``seed`` draws the examples."""
    said = replace(answer_rows(answers, teacher.path, material, progress), kl=0.0)
    if teacher.adapter is None:
        return Asked(said, "there is no adapter, so the teacher is the baseline")
    return Asked(said, _baselines(answers, material, seed, progress))


def _baselines(answers: Answers, material: Material, seed: int, progress: Progress) -> Baselines:
    def said(held: bool) -> BaselineAnswers:
        return answer_without_adapter(
            answers,
            [row.encoded for row in material.test],
            [row.example for row in material.test if row.example is not None],
            material.examples,
            max_new_tokens=material.max_new_tokens,
            schema=material.schema if held else None,
            seed=seed,
            progress=progress,
        )

    return Baselines(said(False), said(True) if material.schema is not None else None)


def score_arm(
    answers: Answers,
    adapter: Path | None,
    base: Base,
    bypasses: Mapping[str, Sequence[Bypass]],
    material: Material,
    targets: Targets,
    *,
    progress: Progress = silent,
) -> ArmRun:
    """Answers, KL, bytes and seconds of one arm.

    Args:
        answers: the arm's base.
        adapter: its adapter's directory.
        base: the same in torch, which has the states that the KL compares.
        bypasses: the adapter's there.
        material: the rows.
        targets: what the teacher says to the test rows.
        progress: told of the answers.
    """
    said = answer_rows(answers, adapter, material, progress)
    return replace(said, kl=divergence(base, bypasses, material.test, targets))


@torch.no_grad()
def divergence(
    base: Base, bypasses: Mapping[str, Sequence[Bypass]], test: Sequence[TestRow], targets: Targets
) -> float:
    """Mean KL(teacher || student) over the test rows' answer tokens, nats."""
    rows, total, count = encoded_rows(test), 0.0, 0
    head = Head.of(base.model)
    with attached(base.model, bypasses):
        for padded in make_batches(rows, batch_tokens=1024):
            batch = padded.to(base.model.device)
            hidden = base.model.get_decoder()(input_ids=batch.ids, use_cache=False).last_hidden_state
            terms = losses(hidden, head, batch, targets, Distil(hidden=0, logits=1))
            total, count = total + terms.logits * len(batch.labels), count + len(batch.labels)
    return total / count


def encoded_rows(test: Sequence[TestRow]) -> list[Row]:
    """Test rows as those that are trained on."""
    return [Row.of(row.encoded) for row in test]
