"""The engine's inner loop: plan a step, bring adapters, run it, draw tokens. Tokens in, tokens out, no threads."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from regraft.engine.adapters import AdapterRef
from regraft.engine.plan import Load, Row, StepPlan
from regraft.engine.request import FinishReason, Request
from regraft.engine.sampler import Drawn, NonFiniteLogitsError, Sampler
from regraft.engine.scheduler import Scheduler
from regraft.engine.sequence import Sequence
from regraft.engine.step import Chunk, run_step
from regraft.errors import RegraftError
from regraft.native import _core

Pages = SequenceOf[NDArray[np.uint8]]
LoadAdapter = Callable[[AdapterRef, Pages], _core.Adapter]


def make_arena(num_pages: int, page_bytes: int) -> NDArray[np.uint8]:
    """Memory for the pool's pages ``[num_pages, page_bytes]``; the system gives it as it is first written to."""
    return np.frombuffer(mmap.mmap(-1, num_pages * page_bytes), np.uint8).reshape(num_pages, page_bytes)


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Attributes:
        drawn: one token for each sequence that came as far.
        finished: sequences that have ended, with or without a token in this step.
    """

    drawn: tuple[tuple[Sequence, Drawn], ...] = ()
    finished: tuple[Sequence, ...] = ()


class Loop:
    """Drives a scheduler and the native core.

    Args:
        scheduler: it has the arena's pool.
        core: threads and kernels.
        model: the base.
        arena: see :func:`make_arena`.
        load_adapter: writes an adapter into pages, and gives its native form; a RegraftError from it ends the requests
            that wait for the adapter, and no others.
        float_activations: multiply with float32 activations instead of 8-bit ones.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        core: _core.Core,
        model: _core.Model,
        arena: NDArray[np.uint8],
        load_adapter: LoadAdapter,
        *,
        float_activations: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self._core, self._model, self._arena = core, model, arena
        self._load_adapter, self._float_activations = load_adapter, float_activations
        self._adapters: dict[AdapterRef, _core.Adapter] = {}
        self._samplers: dict[Sequence, Sampler] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return self.scheduler.num_waiting + self.scheduler.num_running == 0

    @property
    def adapter_bytes(self) -> dict[AdapterRef, int]:
        """Bytes of the factors of each adapter that is in memory."""
        return {ref: adapter.nbytes for ref, adapter in self._adapters.items()}

    def submit(self, request: Request, adapters: SequenceOf[AdapterRef] = ()) -> Sequence:
        """Let a request wait for its turn; raises what :meth:`Scheduler.submit` does."""
        sequence = self.scheduler.submit(request, adapters)
        self._samplers[sequence] = Sampler(request.sampling, request.prompt)
        return sequence

    def finish(self, request_id: str, reason: FinishReason) -> Sequence:
        """End a request between two steps."""
        sequence = self.scheduler.finish(request_id, reason)
        self._forget([sequence])
        return sequence

    def step(self, now_s: float) -> StepResult:
        """Do one step; ``now_s`` is on the clock that requests' deadlines are on."""
        plan = self.scheduler.plan(now_s)
        for adapter in plan.evicted:
            del self._adapters[adapter]
        finished = [*plan.finished]
        for load in (*plan.loads, *plan.prefetches):
            finished += self._load(load)
        drawn, failed = self._run(plan)
        finished += self.scheduler.commit(plan, {sequence.id: each.token for sequence, each in drawn + failed})
        finished += [self._fail(sequence) for sequence, _ in failed if sequence.finish_reason is None]
        self._forget(finished)
        return StepResult(tuple(drawn), tuple(finished))

    def _load(self, load: Load) -> tuple[Sequence, ...]:
        """Fill an adapter's pages; returns the sequences that ended because that failed."""
        try:
            self._adapters[load.adapter] = self._load_adapter(load.adapter, [self._arena[page] for page in load.pages])
        except RegraftError as error:
            return self.scheduler.load_failed(load.adapter, str(error))
        self.scheduler.loaded(load.adapter)
        return ()

    def _run(self, plan: StepPlan) -> tuple[list[tuple[Sequence, Drawn]], list[tuple[Sequence, Drawn]]]:
        """The tokens that were drawn; and apart from them, those of sequences whose logits are no numbers."""
        drawn: list[tuple[Sequence, Drawn]] = []
        failed: list[tuple[Sequence, Drawn]] = []
        if not plan.rows:
            return drawn, failed
        chunks = [self._chunk(row) for row in plan.rows]
        logits = run_step(self._core, self._model, self._arena, chunks, float_activations=self._float_activations)
        wanted = [row.sequence for row in plan.rows if row.needs_logits]
        for sequence, row in zip(wanted, logits, strict=True):
            try:
                drawn.append((sequence, self._samplers[sequence].draw(row)))
            except NonFiniteLogitsError:
                failed.append((sequence, Drawn(0)))
        return drawn, failed

    def _chunk(self, row: Row) -> Chunk:
        sequence, end = row.sequence, row.first + row.count
        weights = [weight for _, weight in sequence.request.mix]
        mix = [(self._adapters[ref], weight) for ref, weight in zip(sequence.adapters, weights, strict=True)]
        return Chunk(sequence.tokens[row.first : end], row.first, sequence.pages, mix, int(row.needs_logits))

    def _fail(self, sequence: Sequence) -> Sequence:
        error = "the logits are not finite: the base or an adapter of the mix computes no numbers for this prompt"
        return self.scheduler.finish(sequence.id, FinishReason.ERROR, error)

    def _forget(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._samplers.pop(sequence, None)
