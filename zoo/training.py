"""What the HF Trainer is given: batches with logits at the answers alone, when to stop, and where to go on from."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MULTIPLE = 8
POOL = 16  # batches whose rows are sorted together
PATIENCE = 3
FLAT = 0.01  # an evaluation less than this share below the best before it counts as flat


class AnswerCollator:
    """Left-pads a batch, so that the answers stand at its end and logits are taken only there.

    Widths are rounded up: on a CPU, every new shape of a product costs the making of a kernel.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        kept = _rounded(max(row["num_answer"] for row in rows) + 1)  # the one before predicts the first answer token
        width = _rounded(max(kept, *(len(row["input_ids"]) for row in rows)))
        ids, mask, labels = [], [], []
        for row in rows:
            sequence, num_answer = row["input_ids"], row["num_answer"]
            padding = width - len(sequence)
            ids.append([self.pad_id] * padding + sequence)
            mask.append([0] * padding + [1] * len(sequence))
            labels.append([-100] * (kept - num_answer) + sequence[-num_answer:])
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
            "logits_to_keep": kept,
        }


class LengthSampler(Sampler[int]):
    """Rows of like length side by side, so that batches pad little, in an order that the epoch alone decides.

    The Trainer's own takes its order from the state of a global generator, which a run that is gone on from has lost.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by ``accelerate`` before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        rng = random.Random(f"{self.seed} {self.epoch}")
        order = list(range(len(self.lengths)))
        rng.shuffle(order)
        pool = POOL * self.batch
        for start in range(0, len(order), pool):
            order[start : start + pool] = sorted(order[start : start + pool], key=lambda row: -self.lengths[row])
        batches = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        last = batches.pop()  # a shorter one anywhere else would shift all that follow
        rng.shuffle(batches)
        return itertools.chain(*batches, last)


class LengthTrainer(Trainer):
    """A Trainer whose batches are those of :class:`LengthSampler`."""

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        lengths = [len(row["input_ids"]) for row in train_dataset or self.train_dataset]
        return LengthSampler(lengths, self.args.train_batch_size, self.args.seed)


def _rounded(width: int) -> int:
    return -(-width // MULTIPLE) * MULTIPLE


def dev_losses(history: Sequence[dict[str, Any]]) -> list[float]:
    """Of each evaluation, in order."""
    return [entry["eval_loss"] for entry in history if "eval_loss" in entry]


def num_flat(losses: Sequence[float]) -> int:
    """How many evaluations at the end were no better than the best before them, but for ``FLAT``."""
    best, flat = float("inf"), 0
    for loss in losses:
        flat = 0 if loss < best * (1 - FLAT) else flat + 1
        best = min(best, loss)
    return flat


def reason_to_stop(history: Sequence[dict[str, Any]], max_seconds: float) -> str | None:
    """``flat`` or ``time``, or None to go on."""
    if num_flat(dev_losses(history)) >= PATIENCE:
        return "flat"
    return "time" if max((entry.get("seconds", 0.0) for entry in history), default=0.0) >= max_seconds else None


class StopWhenFlat(TrainerCallback):
    """Stops when dev loss is flat or the time is up.

    Seconds are the CPU's, per thread: a busy machine cuts no adapter short. They go into the Trainer's history, which
    a checkpoint holds; so a run that is gone on from has those of its beginning.
    """

    def __init__(self, max_seconds: float) -> None:
        self.max_seconds = max_seconds
        self._began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._began = _seconds() - max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        return control

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        state.log_history[-1]["seconds"] = _seconds() - self._began
        if reason_to_stop(state.log_history, self.max_seconds):
            control.should_training_stop = True
        return control


def _seconds() -> float:
    return time.process_time() / torch.get_num_threads()


def find_checkpoint(work: Path) -> str | None:
    """The last whole checkpoint, or None; one that a kill left half-written is removed."""
    by_step = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    while by_step:
        last = by_step.pop()
        if _is_whole(last):
            return str(last)
        shutil.rmtree(last)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True
