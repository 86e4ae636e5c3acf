"""The engine's inner loop: plan a step, bring adapters, run it, draw tokens. Tokens in, tokens out."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from regraft.engine.request import FinishReason, Request
from regraft.engine.run.batch import Chunk, logits_of, run_step
from regraft.engine.run.loader import Loader
from regraft.engine.run.sampler import Drawn, Sampler, score
from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.scheduler import Scheduler
from regraft.engine.schedule.sequence import Sequence
from regraft.engine.schedule.step_plan import Load, Row
from regraft.engine.weights.adapter_packing import Pages
from regraft.errors import RegraftError, UsageError
from regraft.native import _core

LoadAdapter = Callable[[AdapterRef, Pages], _core.Adapter]
Computed = tuple[Row, NDArray[np.float32] | Exception]  # the last hidden states that are wanted, [num_logits, hidden]


def make_arena(num_pages: int, page_bytes: int) -> NDArray[np.uint8]:
    """Memory for the pool's pages ``[num_pages, page_bytes]``; the system gives it as it is first written to.

    Raises:
        UsageError: it is more than the system has addresses for.
    """
    count = num_pages * page_bytes
    try:
        # Private, where the system knows the difference: a page that is shared takes longer to be had.
        flags = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        return np.frombuffer(mmap.mmap(-1, count, **flags), np.uint8).reshape(num_pages, page_bytes)
    except (OSError, OverflowError):
        raise UsageError(f"a memory of {count} bytes is not to be had here", hint="Ask for less.") from None


@dataclass(frozen=True)
class StepResult:
    """What came of a step.

    Attributes:
        drawn: the token of each sequence that came as far; before it those of its prompt that this step has scored.
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
        load_adapter: writes an adapter into pages, and gives its native form; if it fails, the requests that wait for
            the adapter end, and no others.
        loader: calls it; a plain one at once, so that an adapter is there in the next step.
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
        loader: Loader | None = None,
        float_activations: bool = False,
    ) -> None:
        self.scheduler = scheduler
        self._core, self._model, self._arena = core, model, arena
        self._load_adapter, self._loader = load_adapter, loader or Loader()
        self._float_activations = float_activations
        self._adapters: dict[AdapterRef, _core.Adapter] = {}
        self._samplers: dict[Sequence, Sampler] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no request waits or runs."""
        return self.scheduler.num_waiting + self.scheduler.num_running == 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do something; not if those that wait all do so for adapters that are being loaded."""
        scheduler, loader = self.scheduler, self._loader
        return bool(scheduler.num_running or loader.has_results or (scheduler.num_waiting and not loader.num_begun))

    @property
    def adapter_bytes(self) -> dict[AdapterRef, int]:
        """Bytes of the factors of each adapter that is in memory."""
        return {ref: adapter.nbytes for ref, adapter in self._adapters.items()}

    def submit(self, request: Request, adapters: SequenceOf[AdapterRef] = ()) -> Sequence:
        """Let a request wait for its turn; raises what :meth:`Scheduler.submit` does."""
        return self.scheduler.submit(request, adapters)

    def finish(self, request_id: str, reason: FinishReason) -> Sequence:
        """End a request between two steps."""
        sequence = self.scheduler.finish(request_id, reason)
        self._forget([sequence])
        return sequence

    def step(self, now_s: float) -> StepResult:
        """Do one step; ``now_s`` is on the clock that requests' deadlines are on.

        What fails ends the requests that it is about, with an error, and no others.
        """
        finished = self._take_loaded()
        plan = self.scheduler.plan(now_s)
        finished += plan.finished
        for adapter in plan.evicted:
            del self._adapters[adapter]
        for load in (*plan.loads, *plan.prefetches):
            self._begin(load)
        drawn, failed = self._run(plan.rows)
        done = replace(plan, rows=tuple(row for row in plan.rows if row.sequence not in failed))
        finished += self.scheduler.commit(done, {sequence.id: each.token for sequence, each in drawn})
        finished += [self.scheduler.finish(each.id, FinishReason.ERROR, error) for each, error in failed.items()]
        self._forget(finished)
        return StepResult(tuple(drawn), tuple(finished))

    def use(self, model: _core.Model) -> None:
        """Go on with the same weights, which lie elsewhere."""
        self._model = model

    def close(self) -> None:
        """Give the memory and the threads back, once no page is being filled; no step may follow."""
        self._loader.close()
        self._adapters.clear()
        self._samplers.clear()
        del self._core, self._model, self._arena, self._load_adapter

    def _begin(self, load: Load) -> None:
        pages = [self._arena[page] for page in load.pages]
        self._loader.begin(load.adapter, partial(self._load_adapter, load.adapter, pages))

    def _take_loaded(self) -> list[Sequence]:
        """Let the scheduler know what has been loaded; returns the sequences that ended because that failed."""
        failed: list[Sequence] = []
        for ref, adapter in self._loader.take():
            if isinstance(adapter, Exception):
                failed += self.scheduler.load_failed(ref, _line(adapter))
            else:
                self._adapters[ref] = adapter
                self.scheduler.loaded(ref)
        return failed

    def _run(self, rows: SequenceOf[Row]) -> tuple[list[tuple[Sequence, Drawn]], dict[Sequence, str]]:
        """Compute rows, and draw the tokens that follow; of sequences that failed there is the reason instead."""
        drawn: list[tuple[Sequence, Drawn]] = []
        failed: dict[Sequence, str] = {}
        wanted: list[tuple[Sequence, int]] = []  # and the position of the token to come
        states: list[NDArray[np.float32]] = []
        for row, found in self._compute(rows):
            if isinstance(found, Exception):
                failed[row.sequence] = _line(found)
            elif row.num_logits:
                end = row.first + row.count + 1
                wanted += [(row.sequence, position) for position in range(end - row.num_logits, end)]
                states.append(found)
        joined = np.concatenate(states) if states else np.empty((0, 0), np.float32)
        made = logits_of(self._core, self._model, joined, float_activations=self._float_activations)
        for (sequence, position), state, logits in zip(wanted, joined, made, strict=True):
            try:
                if sequence not in failed:
                    drawn.append((sequence, self._next(sequence, position, state, logits)))
            except Exception as error:  # whatever it was, it is only about this sequence
                failed[sequence] = _line(error)
        return drawn, failed

    def _next(
        self, sequence: Sequence, position: int, state: NDArray[np.float32], logits: NDArray[np.float32]
    ) -> Drawn:
        """The token at a position: the prompt's own with its score, or one that is drawn."""
        request = sequence.request
        if request.scoring and position < len(request.prompt):
            return score(request.prompt[position], logits, request.scoring.likeliest)
        drawn = self._sampler(sequence).draw(logits)
        return replace(drawn, hidden=state) if request.hidden else drawn

    def _compute(self, rows: SequenceOf[Row]) -> list[Computed]:
        """The hidden states that rows want; if the step fails, each row is computed alone, to fail alone."""
        if not rows:
            return []
        try:
            chunks = [self._chunk(row) for row in rows]
            states = run_step(self._core, self._model, self._arena, chunks, float_activations=self._float_activations)
            ends = np.cumsum([chunk.logits for chunk in chunks])[:-1]
            return list(zip(rows, np.split(states, ends), strict=True))
        except Exception as error:
            return [(rows[0], error)] if len(rows) == 1 else [one for row in rows for one in self._compute([row])]

    def _sampler(self, sequence: Sequence) -> Sampler:
        """A sequence's own; made when it is first needed, since ten thousand may wait."""
        if sequence not in self._samplers:
            request = sequence.request
            self._samplers[sequence] = Sampler(request.sampling, request.prompt, request.constraint)
        return self._samplers[sequence]

    def _chunk(self, row: Row) -> Chunk:
        sequence, end = row.sequence, row.first + row.count
        mix = sequence.mix.bound(self._adapters.__getitem__)
        return Chunk(sequence.tokens[row.first : end], row.first, sequence.pages, mix, row.num_logits)

    def _forget(self, sequences: Iterable[Sequence]) -> None:
        for sequence in sequences:
            self._samplers.pop(sequence, None)


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, RegraftError) else f"{type(error).__name__}: {error}"
