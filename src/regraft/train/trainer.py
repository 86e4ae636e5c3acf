"""One training loop for every arm: token budget, dev-picked checkpoint, early stop, resumable after a kill."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regraft
from regraft.bypass.attach import attached
from regraft.errors import RegraftError
from regraft.models.load import Base
from regraft.models.output_head import Head
from regraft.progress import Advance, Progress, silent
from regraft.train.batches import Batch, Row, make_batches, training_batches
from regraft.train.distil import Losses, losses
from regraft.train.int8_gradients import int8_gradients
from regraft.train.settings import Distil, Training
from regraft.train.student import Student
from regraft.train.teacher import Targets

CHECKPOINT = "checkpoint.pt"


@dataclass
class State:
    """Where a training stands; ``best`` holds the factors of the best dev score so far."""

    tokens: int = 0
    steps: int = 0
    evaluations: int = 0
    dev: list[float] = field(default_factory=list)
    best_dev: float = math.inf
    best_tokens: int = 0
    since_best: int = 0
    seconds: float = 0.0
    loss: float = math.nan

    @property
    def record(self) -> dict[str, Any]:
        """What the adapter's provenance keeps of the training; JSON has no word for what is not finite."""
        kept = asdict(self)
        kept.pop("since_best")
        for key, value in kept.items():
            if isinstance(value, float):
                kept[key] = round(value, 5) if math.isfinite(value) else None
        return kept


@dataclass
class Trainer:
    """Trains a student's bypasses in place.

    Args:
        base: the compressed base, left as it was at the end.
        student: the bypasses; they hold the best dev checkpoint when :meth:`run` returns.
        config: everything else.
        train, dev: rows; dev picks the checkpoint.
        targets: the teacher's outputs for ``train``; None where no loss term needs them.
        folder: where the checkpoint lies; a training found there with the same job is resumed.
    """

    base: Base
    student: Student
    config: Training
    train: Sequence[Row]
    dev: Sequence[Row]
    targets: Targets | None
    folder: Path
    progress: Progress = silent

    def run(self) -> State:
        """Train until the token budget is spent or the dev score has stopped falling.

        Raises:
            RegraftError: the loss is no longer finite.
        """
        settings = self.config.train
        parameters = [parameter for _, parameter in self.student.named_parameters()]
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay)
        state, best = self._resume(optimiser)
        with attached(self.base.model, self.student.bypasses), self.progress.track(settings.tokens, "adapt") as advance:
            advance(state.tokens)
            if not state.dev:
                self._evaluate(state, best)
            batches = islice(training_batches(self.train, settings.batch_tokens, self.config.seed), state.steps, None)
            with int8_gradients(self.base.model, enabled=settings.gradients == "int8"):
                self._spend(state, best, optimiser, batches, advance)
        self._load(best)
        for parameter in parameters:
            parameter.requires_grad_(False)
        return state

    def _spend(
        self,
        state: State,
        best: dict[str, Tensor],
        optimiser: torch.optim.Optimizer,
        batches: Iterator[Batch],
        advance: Advance,
    ) -> None:
        settings = self.config.train
        start = time.monotonic() - state.seconds
        while state.tokens < settings.tokens and state.since_best < settings.patience:
            batch = next(batches).to(self.base.model.device)
            step = self._step(optimiser, batch, state.tokens / settings.tokens)
            state.tokens += batch.num_tokens
            state.steps += 1
            state.loss = step.total.item()
            state.seconds = time.monotonic() - start
            due = settings.tokens * (state.evaluations + 1) / settings.evaluations
            if state.tokens >= min(due, settings.tokens):
                state.evaluations += 1
                self._evaluate(state, best)
                self._save(state, best, optimiser)
            advance(batch.num_tokens, loss=f"{state.loss:.3f}", dev=f"{state.dev[-1]:.3f}")

    def _step(self, optimiser: torch.optim.Optimizer, batch: Batch, done: float) -> Losses:
        settings = self.config.train
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * schedule(done, settings.warmup)
        step = losses(self._hidden(batch), self._head, batch, self.targets, self.config.distil)
        if not torch.isfinite(step.total):
            raise RegraftError(
                f"the loss is not finite after {done:.0%} of the training", hint="Try a smaller train.learning_rate."
            )
        step.total.backward()
        parameters = optimiser.param_groups[0]["params"]
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimiser.step()
        optimiser.zero_grad()
        return step

    def _hidden(self, batch: Batch) -> Tensor:
        decoder = self.base.model.get_decoder()
        return decoder(input_ids=batch.ids, use_cache=False).last_hidden_state

    @cached_property
    def _head(self) -> Head:
        return Head.of(self.base.model)

    @torch.no_grad()
    def dev_score(self) -> float:
        """Mean negative log-likelihood of the dev answers, nats per token."""
        total, count = 0.0, 0
        only_answers = Distil(hidden=0, logits=0, answers=1)
        for padded in make_batches(self.dev, batch_tokens=2048):
            batch = padded.to(self.base.model.device)
            step = losses(self._hidden(batch), self._head, batch, None, only_answers)
            total, count = total + step.answers * len(batch.labels), count + len(batch.labels)
        return total / count

    def _evaluate(self, state: State, best: dict[str, Tensor]) -> None:
        score = self.dev_score()
        state.dev.append(score)
        state.since_best += 1
        if score < state.best_dev:
            state.best_dev, state.best_tokens, state.since_best = score, state.tokens, 0
            best.update({name: tensor.detach().clone() for name, tensor in self.student.named_parameters()})

    def _load(self, factors: dict[str, Tensor]) -> None:
        for name, parameter in self.student.named_parameters():
            parameter.data.copy_(factors[name])

    @cached_property
    def _job(self) -> str:
        """Names all that the training depends on; the teacher is the base's original with the student's origin."""
        rows = [[(row.ids, row.num_answer) for row in part] for part in (self.train, self.dev)]
        described = [self.config.model_dump(), self.base.fingerprint, self.student.origin, rows, regraft.__version__]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def _save(self, state: State, best: dict[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
        now = {name: tensor.detach() for name, tensor in self.student.named_parameters()}
        partial = self.folder / f"{CHECKPOINT}.partial"
        torch.save(
            {"job": self._job, "state": asdict(state), "now": now, "best": best, "optimiser": optimiser.state_dict()},
            partial,
        )
        partial.replace(self.folder / CHECKPOINT)

    def _resume(self, optimiser: torch.optim.Optimizer) -> tuple[State, dict[str, Tensor]]:
        path, job = self.folder / CHECKPOINT, self._job  # named now, while nothing stands on the base
        if not path.exists():
            return State(), {}
        kept = torch.load(path, map_location="cpu", weights_only=True)
        if kept["job"] != job:
            self.progress.note("found a checkpoint of another job; starting afresh")
            return State(), {}
        self._load(kept["now"])
        optimiser.load_state_dict(kept["optimiser"])
        state = State(**kept["state"])
        self.progress.note(f"resuming at {state.tokens:,} tokens, dev {state.dev[-1]:.4f}")
        return state, kept["best"]


def schedule(done: float, warmup: float) -> float:
    """Share of the peak learning rate at ``done`` (0 to 1): linear warm-up, then a cosine down to a twentieth."""
    if done < warmup:
        return max(done / warmup, 0.05)
    through = (done - warmup) / max(1 - warmup, 1e-9)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(through, 1.0)))
