"""The scheduler: the rows of each step, the requests that start, the adapters that are loaded.

Continuous batching (Yu et al. 2022, "Orca", OSDI): sequences join and leave the batch between any two steps. All that
run decode one token in every step, and prompts are computed in chunks with what the others leave of the step's tokens.
A sequence starts only if all that run will then fit to their declared ends (:mod:`.forecast`), so none
is ever preempted. Which one is next, :mod:`.waiting_queue` says.

The scheduler knows no clock and no thread: times are passed in, and calls come one after another.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as SequenceOf

from regraft.engine.checks import check
from regraft.engine.request import FinishReason, Request, Tenant
from regraft.engine.schedule.fairness import TokenCounters
from regraft.engine.schedule.forecast import Forecast
from regraft.engine.schedule.limits import Limits
from regraft.engine.schedule.overload import Overload
from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.sequence import Sequence
from regraft.engine.schedule.step_plan import Load, Row, StepPlan, split_prefill
from regraft.engine.schedule.tenants import Memory
from regraft.engine.schedule.waiting_queue import WaitingQueue


class Scheduler:
    """Takes requests, and gives one plan a step until they have ended.

    A step is :meth:`plan`, the work, :meth:`commit`. While the work is under way no running sequence ends:
    :meth:`finish` is for between the steps, and :meth:`cancel`, which may be called at any time, acts in the next plan.
    Loads may take as many steps as they like; :meth:`loaded` or :meth:`load_failed` tells how each has ended.

    Args:
        pool: the arena; nobody else may take pages of it.
        limits: what to keep to.
        fingerprint: the base's, for the prefix cache's keys.
        weights: tenants' shares in what is served, by the sorted names of a mix's adapters; 1 for those not in it.
    """

    def __init__(
        self, pool: Pool, limits: Limits, *, fingerprint: str, weights: Mapping[Tenant, float] | None = None
    ) -> None:
        self._pool, self._limits, self._fingerprint = pool, limits, fingerprint
        self._memory = Memory(pool, limits.page_tokens)
        self._counters = TokenCounters(weights)
        self._waiting = WaitingQueue(self._counters, turn_every=limits.turn_every)
        self._overload = Overload()
        self._sequences: dict[str, Sequence] = {}  # by request id: those that wait or run
        self._running: dict[Sequence, None] = {}  # in the order of admission
        self._cancelled: list[Sequence] = []
        self._num_submitted = 0  # since the last plan
        self._step = 0

    @property
    def num_waiting(self) -> int:
        """Requests that have not started."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Requests that have started and not ended."""
        return len(self._running)

    @property
    def pool(self) -> Pool:
        """The arena."""
        return self._pool

    @property
    def num_idle_pages(self) -> int:
        """Pages that are kept in case they are of use again, and leave when their room is needed."""
        return self._memory.num_idle_pages

    @property
    def waiting_adapters(self) -> set[str]:
        """Names of the adapters that waiting requests are for."""
        return {name for sequence in self._waiting for name in sequence.request.mix.adapters}

    @property
    def running_adapters(self) -> set[str]:
        """Names of the adapters that running requests use."""
        return {name for sequence in self._running for name in sequence.request.mix.adapters}

    def submit(self, request: Request, adapters: SequenceOf[AdapterRef] = ()) -> Sequence:
        """:meth:`prepare` a request and :meth:`enqueue` it."""
        sequence = self.prepare(request, adapters)
        self.enqueue(sequence)
        return sequence

    def prepare(self, request: Request, adapters: SequenceOf[AdapterRef] = ()) -> Sequence:
        """Check a request; nothing of the scheduler changes, so any thread may do it while a step is under way.

        Args:
            request: what is asked.
            adapters: the present versions of its mix's adapters, in the mix's order.

        Raises:
            UsageError: the prompt leaves no room for an answer in the context, or if only scored, is longer than it.
            CapacityError: the pool is too small for it, were it alone.
        """
        name, num_prompt, context = request.id, len(request.prompt), self._limits.context_tokens
        num_known = num_prompt if request.max_tokens else num_prompt - 1
        wanted, given = list(request.mix.adapters), [adapter.name for adapter in adapters]
        check(given == wanted, f"{name}: adapters", expected=f"those of its mix, {wanted}", found=given)
        fewer = f"{'fewer' if request.max_tokens else 'no more'} tokens than the context's {context}"
        check(num_known < context, f"{name}: prompt", expected=fewer, found=num_prompt, hint="Shorten the prompt.")
        mix = request.mix.bound({adapter.name: adapter for adapter in adapters}.__getitem__)
        sequence = Sequence(
            request,
            mix,
            max_tokens=min(max(request.max_tokens, 1), context - num_known),
            root_digest=mix.digest(self._fingerprint, lambda adapter: adapter.digest),
        )
        self._check_capacity(sequence)
        return sequence

    def enqueue(self, sequence: Sequence) -> None:
        """Let a prepared request wait for its turn.

        Raises:
            UsageError: another request of this id waits or runs.
        """
        check(
            sequence.id not in self._sequences, "a request's id", expected="one that is not in use", found=sequence.id
        )
        self._sequences[sequence.id] = sequence
        self._waiting.add(sequence)
        self._num_submitted += 1

    def cancel(self, request_id: str) -> None:
        """End a request with the next plan; nothing if it has ended already."""
        if request_id in self._sequences:
            self._cancelled.append(self._sequences[request_id])

    def loaded(self, adapter: AdapterRef) -> None:
        """The pages of a load or prefetch are filled."""
        self._memory.residency.loaded(adapter, self._step)

    def load_failed(self, adapter: AdapterRef, error: str) -> tuple[Sequence, ...]:
        """A load or prefetch came to nothing.

        Returns:
            The requests that waited for it; they have ended with ``error``.
        """
        self._memory.residency.load_failed(adapter)
        waiting = [sequence for sequence in self._waiting if adapter in sequence.adapters]
        return tuple(self._end(sequence, FinishReason.ERROR, error) for sequence in waiting)

    def plan(self, now_s: float) -> StepPlan:
        """Decide what the next step does.

        Work that is not committed is planned again; the rest of a plan is said but once.
        """
        finished = self._end_cancelled() + self._end_overdue(now_s)
        self._step += 1  # what those give up is idle since the last one, not wanted in this one
        num_running = len(self._running)
        forecast = self._forecast(self._running if self._waiting else ())  # of use to those that wait alone
        loads, misfits = self._admit(forecast)
        self._overload.observe(self._num_submitted, len(self._running) - num_running)
        self._num_submitted = 0
        wanted = self._wanted(misfits)
        rows = self._make_rows()
        prefetches = self._prefetch(wanted, forecast)
        return StepPlan(tuple(finished), self._memory.take_evicted(), tuple(loads), tuple(prefetches), tuple(rows))

    def commit(self, plan: StepPlan, tokens: Mapping[str, int]) -> tuple[Sequence, ...]:
        """Take over what a step computed.

        Args:
            plan: the last one.
            tokens: the token that was drawn for each row that draws, by request id.

        Returns:
            The sequences that have ended with that token.
        """
        finished = []
        for row in plan.rows:
            sequence = row.sequence
            sequence.num_computed = row.first + row.count
            self._memory.prefix_cache.insert(sequence)
            if row.draws:
                token = tokens[sequence.id]
                sequence.tokens.append(token)
                self._counters.charge(sequence.tenant, generated_tokens=1)
                if sequence.request.max_tokens and token in sequence.request.stop_token_ids:
                    finished.append(self._end(sequence, FinishReason.STOP))
                elif sequence.num_left == 0:
                    finished.append(self._end(sequence, FinishReason.LENGTH))
        return tuple(finished)

    def finish(self, request_id: str, reason: FinishReason, error: str | None = None) -> Sequence:
        """End a request at once: a stop string was found, or its step failed.

        Raises:
            KeyError: no such request waits or runs.
        """
        return self._end(self._sequences[request_id], reason, error)

    def _end(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> Sequence:
        if sequence in self._running:
            del self._running[sequence]
            self._memory.prefix_cache.retire(sequence, self._step)
            for adapter in sequence.adapters:
                self._memory.residency.disuse(adapter, self._step)
        else:
            self._waiting.remove(sequence)
        del self._sequences[sequence.id]
        sequence.finish_reason, sequence.error = reason, error
        return sequence

    def _end_cancelled(self) -> list[Sequence]:
        cancelled, self._cancelled = dict.fromkeys(self._cancelled), []
        return [self._end(sequence, FinishReason.CANCELLED) for sequence in cancelled if not sequence.finish_reason]

    def _end_overdue(self, now_s: float) -> list[Sequence]:
        overdue = []
        while (sequence := self._waiting.due_by(now_s + self._limits.margin_s)) is not None:
            overdue.append(self._end(sequence, FinishReason.DEADLINE))
        for sequence in list(self._running):
            deadline_s = sequence.request.deadline_s
            if deadline_s is not None and deadline_s <= now_s:
                overdue.append(self._end(sequence, FinishReason.DEADLINE))
        return overdue

    def _forecast(self, running: Iterable[Sequence]) -> Forecast:
        return Forecast(running, step_tokens=self._limits.step_tokens, page_tokens=self._limits.page_tokens)

    def _admit(self, forecast: Forecast) -> tuple[list[Load], list[Sequence]]:
        """Start what fits; return the loads that others only wait for, and all that were tried and still wait."""
        loads: list[Load] = []
        misfits: list[Sequence] = []
        kept: set[Sequence] = set()
        candidates = self._waiting.candidates(
            self._limits.lookahead,
            kept=kept,
            newest_first=self._limits.newest_first and self._overload.is_on,
            preferred=self._clustered_tenants(),
        )
        residency = self._memory.residency
        for sequence in candidates:
            if not self._fits(sequence, forecast):
                misfits.append(sequence)
                continue
            if all(residency.is_ready(adapter) for adapter in sequence.adapters):
                self._start(sequence)
            else:
                misfits.append(sequence)
                kept.add(sequence)
                loads += self._load_absent(sequence)
            forecast.add(sequence)  # while its adapters load, its place is kept
        return loads, misfits

    def _clustered_tenants(self) -> Collection[Tenant]:
        least = self._limits.cluster_adapters
        if least is None or self._memory.residency.num_in_use < least:
            return ()
        return dict.fromkeys(sequence.tenant for sequence in self._running)

    def _fits(self, sequence: Sequence, forecast: Forecast) -> bool:
        if len(forecast) == self._limits.max_sequences:
            return False
        new_pages = sum(adapter.num_pages for adapter in sequence.adapters if not self._pool.is_pinned(adapter))
        kv_pages = self._pool.num_pages - self._pool.num_pinned - new_pages
        return forecast.fits(kv_pages, sequence, self._memory.prefix_cache.match(sequence))

    def _start(self, sequence: Sequence) -> None:
        self._waiting.admit(sequence)
        self._running[sequence] = None
        for adapter in sequence.adapters:
            self._memory.residency.use(adapter)
        self._memory.prefix_cache.adopt(sequence)
        self._counters.charge(sequence.tenant, prompt_tokens=sequence.num_uncomputed)

    def _load_absent(self, sequence: Sequence) -> list[Load]:
        """As many of its adapters as there is room for without taking what it, or one tried before it, waits with."""
        residency = self._memory.residency
        for adapter in sequence.adapters:
            residency.touch(adapter, self._step)
        absent = [adapter for adapter in sequence.adapters if not residency.is_resident(adapter)]
        loads = [self._memory.load(adapter, idle_before=self._step) for adapter in absent]
        return [load for load in loads if load is not None]

    def _check_capacity(self, sequence: Sequence) -> None:
        kv_pages = self._forecast([]).peak_pages(sequence)
        adapter_pages = sum(adapter.num_pages for adapter in sequence.adapters)
        prompt = f"a prompt of {len(sequence.tokens)} tokens and up to {sequence.num_left} more in {kv_pages} pages"
        adapters = f"adapters of {adapter_pages * self._pool.page_bytes} bytes in {adapter_pages}"
        self._pool.check_capacity(kv_pages + adapter_pages, f"{sequence.id}, {prompt} and {adapters},")

    def _make_rows(self) -> list[Row]:
        prefilling = [sequence for sequence in self._running if sequence.is_prefilling]
        rows = [
            Row(sequence, sequence.num_computed, 1, True) for sequence in self._running if not sequence.is_prefilling
        ]
        for sequence in prefilling:
            self._memory.prefix_cache.adopt(sequence)  # another may have computed some of it meanwhile
        remaining = [sequence.num_uncomputed for sequence in prefilling]
        chunks = split_prefill(self._limits.step_tokens - len(rows), remaining)
        rows += [
            Row(sequence, sequence.num_computed, chunk, chunk == sequence.num_uncomputed)
            for sequence, chunk in zip(prefilling, chunks, strict=True)
            if chunk
        ]
        for row in rows:
            self._memory.grow(row.sequence, row.first + row.count)
        return rows

    def _wanted(self, misfits: Collection[Sequence]) -> list[AdapterRef]:
        """What the next requests will use, soonest first, which is the last to be evicted."""
        wanted = list(dict.fromkeys(adapter for sequence in misfits for adapter in sequence.adapters))
        for adapter in reversed(wanted):
            self._memory.residency.touch(adapter, self._step)
        return wanted

    def _prefetch(self, wanted: Collection[AdapterRef], forecast: Forecast) -> list[Load]:
        """Begin to load what is wanted, where it is in the way neither of those that run nor of those wanted sooner."""
        residency = self._memory.residency
        if all(residency.is_resident(adapter) for adapter in wanted):
            return []
        prefetches: list[Load] = []
        room = self._pool.num_pages - self._pool.num_pinned - forecast.peak_pages()
        for adapter in wanted:
            if self._pool.is_pinned(adapter) or adapter.num_pages > room:
                continue
            room -= adapter.num_pages
            if not residency.is_resident(adapter):
                load = self._memory.load(adapter, idle_before=self._step)
                prefetches += [load] if load is not None else []
        return prefetches
