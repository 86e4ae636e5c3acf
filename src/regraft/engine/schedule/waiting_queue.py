"""The requests that wait, and in which order they are tried.

By priority, then by the least token counter of the tenant (:mod:`.fairness`), then by age. A request that
does not fit is passed by others, so that a big one does not hold up small ones.

Nobody starves by either. Each ``turn_every``-th admission is a *turn*: it goes to the oldest request of the tenant
whose last turn is longest ago, whatever its priority, counter or size, and nobody passes it. So, while no more than n
tenants wait at a time, a request with p older ones of its tenant before it is at the latest the

    turn_every · n · (p + 1)-th  to be admitted,

come who may; but for those that are admitted while an adapter for a turn is being loaded, which take nothing of the
place that is kept for it. No admission takes longer than what runs may run and an adapter takes to load, since anything
that waits fits into the empty pool; so the time is bounded as well.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Container, Generator, Iterator
from contextlib import closing
from itertools import count, islice

from regraft.engine.request import Tenant
from regraft.engine.schedule.fairness import TokenCounters
from regraft.engine.schedule.lazy_heap import LazyHeap
from regraft.engine.schedule.sequence import Sequence


class _Flow:
    """The waiting sequences of one tenant and priority, the oldest first; false when there are none."""

    def __init__(self, tenant: Tenant, priority: int) -> None:
        self.tenant, self.priority = tenant, priority
        self.sequences: OrderedDict[Sequence, int] = OrderedDict()  # with their ages, the oldest having the least

    def __len__(self) -> int:
        return len(self.sequences)

    def first(self, num_sequences: int, newest_first: bool) -> list[Sequence]:
        return list(islice(reversed(self.sequences) if newest_first else self.sequences, num_sequences))


class _Tenant:
    """All that a tenant has waiting: by age, and by priority."""

    def __init__(self) -> None:
        self.sequences: OrderedDict[Sequence, None] = OrderedDict()
        self.flows: dict[int, _Flow] = {}


class WaitingQueue:
    """Adding and removing take O(log n), and so does each step of :meth:`candidates`.

    Args:
        counters: of what tenants were served; the queue says who waits.
        turn_every: one in so many admissions is a turn; 1 goes round the tenants and knows no priorities.
    """

    def __init__(self, counters: TokenCounters, *, turn_every: int) -> None:
        self._counters, self._turn_every = counters, turn_every
        self._admissions_since_turn = 0
        self._tenants: OrderedDict[Tenant, _Tenant] = OrderedDict()  # whose last turn is longest ago first
        self._flows: LazyHeap[_Flow] = LazyHeap(self._rank, bool)
        self._deadlines: LazyHeap[Sequence] = LazyHeap(_deadline_s, self.__contains__)
        self._ages = count()
        self._num_sequences = 0

    def __len__(self) -> int:
        return self._num_sequences

    def __contains__(self, sequence: Sequence) -> bool:
        tenant = self._tenants.get(sequence.tenant)
        return tenant is not None and sequence in tenant.sequences

    def __iter__(self) -> Iterator[Sequence]:
        for tenant in self._tenants.values():
            yield from tenant.sequences

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait, as the newest."""
        tenant = self._tenants.get(sequence.tenant)
        if tenant is None:
            tenant = self._tenants[sequence.tenant] = _Tenant()
            self._counters.join(sequence.tenant)
        tenant.sequences[sequence] = None
        flow = tenant.flows.get(sequence.request.priority)
        if flow is None:
            flow = tenant.flows[sequence.request.priority] = _Flow(sequence.tenant, sequence.request.priority)
        flow.sequences[sequence] = next(self._ages)
        if len(flow) == 1:
            self._flows.push(flow)
        if sequence.request.deadline_s is not None:
            self._deadlines.push(sequence)
        self._num_sequences += 1

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence wait no longer, and not run either."""
        tenant = self._tenants[sequence.tenant]
        flow = tenant.flows[sequence.request.priority]
        del tenant.sequences[sequence], flow.sequences[sequence]
        if not flow:
            del tenant.flows[flow.priority]  # the heap may still have it, as a dead one
        if not tenant.sequences:
            del self._tenants[sequence.tenant]
            self._counters.leave(sequence.tenant)
        self._num_sequences -= 1

    def admit(self, sequence: Sequence) -> None:
        """Let a sequence run: the one that :meth:`candidates` has just yielded."""
        if self._is_turn and sequence is self._oldest_of_next_turn():
            self._tenants.move_to_end(sequence.tenant)
            self._admissions_since_turn = 0
        else:
            self._admissions_since_turn += 1
        self.remove(sequence)

    def due_by(self, time_s: float) -> Sequence | None:
        """A sequence with a deadline up to then, the first to be due; None if there is none."""
        sequence = self._deadlines.peek()
        return sequence if sequence is not None and _deadline_s(sequence) <= time_s else None

    def candidates(
        self,
        max_misfits: int,
        *,
        kept: Container[Sequence] = (),
        newest_first: bool = False,
        preferred: Collection[Tenant] = (),
    ) -> Iterator[Sequence]:
        """Yield sequences in the order to try them.

        Whichever is taken has to be admitted before the next is asked for; one that still waits then is a misfit,
        unless it is in ``kept`` by then.

        Args:
            max_misfits: the iterator ends after so many.
            kept: those that have a place which others leave to them, and will soon be admitted.
            newest_first: within a tenant and priority, try the newest first.
            preferred: tenants whose sequences come before all others'.
        """
        tried: set[Sequence] = set()
        num_misfits = 0
        with closing(self._in_order(max_misfits, newest_first, preferred)) as others:
            while num_misfits < max_misfits and self._num_sequences:
                is_turn = self._is_turn and self._oldest_of_next_turn() not in kept
                sequence = self._oldest_of_next_turn() if is_turn else next(others, None)
                if sequence is None:
                    return
                if not is_turn and sequence in tried:
                    continue
                tried.add(sequence)
                yield sequence
                if sequence in self and sequence not in kept:
                    if is_turn:
                        return
                    num_misfits += 1

    @property
    def _is_turn(self) -> bool:
        return self._admissions_since_turn >= self._turn_every - 1

    def _oldest_of_next_turn(self) -> Sequence:
        return next(iter(next(iter(self._tenants.values())).sequences))

    def _in_order(self, depth: int, newest_first: bool, preferred: Collection[Tenant]) -> Generator[Sequence]:
        tenants = [self._tenants[tenant] for tenant in preferred if tenant in self._tenants]
        if tenants:
            flows: LazyHeap[_Flow] = LazyHeap(self._rank, bool)
            for flow in (flow for tenant in tenants for flow in tenant.flows.values()):
                flows.push(flow)
            yield from self._walk(flows, depth, newest_first)
        yield from self._walk(self._flows, depth, newest_first)

    def _walk(self, flows: LazyHeap[_Flow], depth: int, newest_first: bool) -> Iterator[Sequence]:
        """The first of each flow, and the next ones only after all flows have had their try."""
        passed: list[_Flow] = []
        try:
            while (flow := flows.pop()) is not None:
                passed.append(flow)
                (sequence,) = flow.first(1, newest_first)
                yield sequence
                if sequence not in flow.sequences:
                    self._push(flows, passed.pop())  # with its counter as it is now
            behind = [flow.first(depth, newest_first) for flow in passed]
            for place in range(1, depth):
                yield from (waiting[place] for waiting in behind if place < len(waiting) and waiting[place] in self)
        finally:
            for flow in passed:
                self._push(flows, flow)

    def _push(self, flows: LazyHeap[_Flow], flow: _Flow) -> None:
        if flow:
            flows.push(flow)

    def _rank(self, flow: _Flow) -> tuple[int, float, int]:
        return -flow.priority, self._counters[flow.tenant], next(iter(flow.sequences.values()))


def _deadline_s(sequence: Sequence) -> float:
    assert sequence.request.deadline_s is not None  # only those that have one are in the heap
    return sequence.request.deadline_s
