"""The engine: one base, many adapters, many requests at once, each streamed to whoever asked."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from regraft.engine.answer import Answer, Completion, Deliver, Piece, Stream
from regraft.engine.checks import check, check_integer, check_items, check_number
from regraft.engine.likelihood import Likelihood, measure
from regraft.engine.mix import Adapters, to_mix
from regraft.engine.prompt import Continuation, Prompt, encode_continuations, encode_prompt
from regraft.engine.request import FinishReason, Request, SamplingParams
from regraft.engine.run.loader import BackgroundLoader
from regraft.engine.run.loop import Loop, make_arena
from regraft.engine.schedule.limits import Limits
from regraft.engine.schedule.pool import Pool
from regraft.engine.schedule.residency import AdapterRef
from regraft.engine.schedule.scheduler import Scheduler
from regraft.engine.schedule.sequence import Sequence as Running
from regraft.engine.stats import EngineStats, read_stats
from regraft.engine.weights.adapter_packing import Bits, Pages, digest_of, fill_own, plan_packing
from regraft.engine.weights.huge_pages import Mover, are_worth_it
from regraft.engine.weights.native_model import PAGE_TOKENS, KvBits
from regraft.engine.weights.open_base import OpenedBase, open_base
from regraft.errors import FormatError, RegraftError, UsageError
from regraft.formats.adapter.content import StoredAdapter
from regraft.native import _core
from regraft.native.layout import ALIGNMENT, padded
from regraft.progress import Progress, silent
from regraft.storage import directory_state

GLANCE_S = 0.05


class Engine:
    """Runs requests over one base, inside one memory budget.

    Args:
        base: a BASE argument, as of the command line.
        adapters: name → directory.
        memory_bytes: for keys, values and adapters; the weights and about 128 MiB for everything else come on top.
        threads: of the native core; by default one per core of the machine.
        kernels: one of ``_core.kernels()``, or the empty string for the fastest.
        exact: multiply with float32 activations, and keep adapters, embeddings and head in float16. By default all of
            these are rounded to 8 bits, activations by blocks of 32, which is faster and moves logits a little.
        kv_bits: 16, or 8 to keep nearly twice as many tokens in the memory; that moves logits a little.
        huge_pages: read the weights into huge pages, in the background, and drop the mapped file then, which is
            slower but in memory once for all processes. By default where the system has such pages and enough memory.
        limits: the scheduler's; its context is the base's by default.
        progress: told of a first packing, and if the weights could not be moved to huge pages.

    Raises:
        UsageError, FormatError: see :func:`regraft.engine.weights.open_base.open_base`; also a memory below one page.
    """

    def __init__(
        self,
        base: str | Path,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        memory_bytes: int = 1 << 30,
        threads: int | None = None,
        kernels: str = "",
        exact: bool = False,
        kv_bits: KvBits = 16,
        huge_pages: bool | None = None,
        limits: Limits | None = None,
        progress: Progress = silent,
    ) -> None:
        check(kv_bits in (8, 16), "kv_bits", expected="8 or 16", found=kv_bits)
        self.base: OpenedBase = open_base(base, head_bits=16 if exact else 8, kv_bits=kv_bits, progress=progress)
        self._page_bytes = padded(self.base.model.kv_page_bytes, ALIGNMENT)
        check_integer("memory_bytes, which a page has to fit in", memory_bytes, self._page_bytes)
        pool = Pool(memory_bytes // self._page_bytes, self._page_bytes)
        limits = limits or Limits(context_tokens=self.base.architecture.max_positions)
        scheduler = Scheduler(pool, replace(limits, page_tokens=PAGE_TOKENS), fingerprint=self.base.state)
        core = _core.Core(threads or default_threads(), kernels)
        arena = make_arena(pool.num_pages, self._page_bytes)
        self._wake = threading.Condition()  # never held while a step runs; guards what has arrived and what is asked
        loader = BackgroundLoader(self._notify)
        self._loop = Loop(
            scheduler, core, self.base.model, arena, self._load_adapter, loader=loader, float_activations=exact
        )
        self._adapter_bits: Bits = 16 if exact else 8
        self._adapters: dict[str, AdapterRef] = {}
        self._last_read: tuple[AdapterRef, _core.Adapter] | None = None  # likely to be loaded next
        self._answers: dict[str, Answer] = {}  # the engine's thread's alone
        self._numbers = itertools.count()
        self._arrived: list[tuple[Running, Answer]] = []
        self._asked: list[queue.SimpleQueue[EngineStats]] = []
        self._closed = False
        self._cancelled: deque[str] = deque()  # without a lock, since a garbage collector may cancel at any point
        for name, path in (adapters or {}).items():
            self.add_adapter(name, path)
        is_moving = are_worth_it(self.base.num_bytes) if huge_pages is None else huge_pages
        self._mover = Mover(self.base.in_huge_pages, self._notify, progress.note) if is_moving else None
        self._thread = threading.Thread(target=self._work, name="regraft-engine", daemon=True)
        self._thread.start()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the known adapters."""
        return tuple(self._adapters)

    @property
    def is_closed(self) -> bool:
        """Whether it takes no more requests: it was closed, or it failed."""
        return self._closed

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Make an adapter known, or replace the one of that name; requests under way keep the old one.

        Its directory is read again whenever it has left the memory and is asked for, so it has to stay as it is.

        Raises:
            UsageError, FormatError, IncompatibleAdapterError: it cannot be read, or is not for this base.
        """
        state = directory_state(Path(path))
        digest, adapter = self._read(Path(path))
        ref = AdapterRef(name, digest, len(adapter.pages), Path(path), state)
        with self._wake:
            self._adapters[name] = ref
        self._last_read = ref, adapter

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; requests under way keep it, and its memory goes to whoever needs it next.

        Raises:
            UsageError: it is not known.
        """
        with self._wake:
            del self._adapters[self._known(name).name]

    def stats(self) -> EngineStats:
        """What waits, what runs, and what the memory holds, between two steps; waits for the one under way.

        Raises:
            UsageError: the engine is closed.
        """
        told: queue.SimpleQueue[EngineStats] = queue.SimpleQueue()
        with self._wake:
            if self._closed:
                raise UsageError("the engine is closed")
            self._asked.append(told)
            self._wake.notify()
        return told.get()

    def stream(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> Stream:
        """Answer a prompt piece by piece; ending the iteration early cancels the request.

        Args:
            prompt: text, messages for the chat template, or token ids.
            adapter: a name, a mix of names with weights, or None for the base alone.
            options: ``max_tokens`` (256), ``stop``, ``stop_token_ids``, ``priority``, ``timeout_s``, ``constraint``
                (:class:`regraft.engine.constraint.Constraint`), ``hidden`` (for the prompt's last hidden state),
                ``scoring`` (:class:`Scoring`, for log probabilities of the prompt's own tokens), and the fields of
                :class:`SamplingParams`.

        Raises:
            UsageError: an unknown adapter or option, or a value out of its range; a prompt that fills the context.
            CapacityError: the memory is too small for it.
            RequestError: it was begun, and failed.
        """
        pieces: queue.SimpleQueue[Piece | RegraftError] = queue.SimpleQueue()
        request = self._request(prompt, adapter, options)
        self._submit(request, pieces.put)
        return Stream(pieces, lambda: self.cancel(request.id))

    def generate(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> Completion:
        """Answer a prompt; see :meth:`stream`."""
        *_, last = self.stream(prompt, adapter, **options)
        assert last.completion is not None
        return last.completion

    async def astream(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> AsyncIterator[Piece]:
        """:meth:`stream` for an event loop, which it does not hold up."""
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Piece | RegraftError]()

        def deliver(piece: Piece | RegraftError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
                loop.call_soon_threadsafe(pieces.put_nowait, piece)

        request = await asyncio.to_thread(self._request, prompt, adapter, options)
        self._submit(request, deliver)
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, RegraftError):
                    raise piece
                yield piece
                if piece.completion is not None:
                    return
        finally:
            self.cancel(request.id)

    async def agenerate(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> Completion:
        """:meth:`generate` for an event loop."""
        last = None
        async for piece in self.astream(prompt, adapter, **options):
            last = piece.completion
        assert last is not None
        return last

    def log_likelihood(
        self,
        prompt: Prompt,
        continuations: Sequence[Continuation],
        adapter: Adapters = None,
        *,
        likeliest: int = 1,
        **options: Any,
    ) -> tuple[Likelihood, ...]:
        """How likely each continuation of a prompt is; nothing is generated.

        Args:
            prompt: see :meth:`stream`.
            continuations: texts, which are tokenised as they stand behind the prompt, or lists of token ids.
            adapter: see :meth:`stream`.
            likeliest: so many likeliest tokens are told beside each; at least 1.
            options: ``priority``, ``timeout_s``.

        Raises:
            UsageError, CapacityError, RequestError: see :meth:`stream`; also where the time was too short.
        """
        tokenizer, vocabulary = self.base.tokenizer, self.base.architecture.vocabulary
        start, parts = encode_continuations(tokenizer, prompt, continuations, vocabulary)
        return measure(partial(self.stream, adapter=adapter, max_tokens=0, **options), start, parts, likeliest)

    def cancel(self, request_id: str) -> None:
        """End a request early, before the next step; nothing if it has ended. Never waits."""
        self._cancelled.append(request_id)

    def close(self) -> None:
        """Stop after the step that runs; requests under way end with an error. Memory and threads are given back."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()
        if self._mover:
            self._mover.close()

    def _submit(self, request: Request, deliver: Deliver) -> None:
        answer = Answer(request, self.base.tokenizer.stream(), deliver)
        with self._wake:
            if self._closed:
                raise UsageError("the engine is closed")
            sequence = self._loop.scheduler.prepare(request, [self._known(name) for name in request.mix.adapters])
            self._arrived.append((sequence, answer))
            self._wake.notify()

    def _request(self, prompt: Prompt, adapter: Adapters, options: Mapping[str, Any]) -> Request:
        own = {"max_tokens", "stop", "stop_token_ids", "priority", "timeout_s", "constraint", "hidden", "scoring"}
        known = own | set(SamplingParams.__dataclass_fields__)
        if unknown := sorted(set(options) - known):
            raise UsageError(f"option {unknown[0]}", expected=f"one of {', '.join(sorted(known))}")
        timeout_s, stop = options.get("timeout_s"), options.get("stop", ())
        if timeout_s is not None:
            check_number("timeout_s", timeout_s, "a finite number of seconds")
        stop_ids = options.get("stop_token_ids")
        return Request(
            id=f"request {next(self._numbers)}",
            prompt=tuple(encode_prompt(self.base.tokenizer, prompt, self.base.architecture.vocabulary)),
            max_tokens=options.get("max_tokens", 256),
            mix=to_mix(adapter),
            stop=(stop,) if isinstance(stop, str) else check_items("stop", stop),
            stop_token_ids=frozenset(
                self.base.tokenizer.eos_ids if stop_ids is None else check_items("stop_token_ids", stop_ids)
            ),
            priority=options.get("priority", 0),
            deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
            sampling=SamplingParams(**{key: value for key, value in options.items() if key not in own}),
            constraint=options.get("constraint"),
            hidden=options.get("hidden", False),
            scoring=options.get("scoring"),
        )

    def _known(self, name: str) -> AdapterRef:
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise UsageError(f"there is no adapter {name!r}", expected=f"one of those given to the engine: {known}")
        return self._adapters[name]

    def _plan(self, path: Path) -> tuple[StoredAdapter, _core.Packing]:
        """An adapter's factors, and where they go."""
        stored, layers = self.base.read_adapter(path), self.base.architecture.layers
        return stored, plan_packing(layers, stored.bypasses, bits=self._adapter_bits, page_bytes=self._page_bytes)

    def _read(self, path: Path) -> tuple[str, _core.Adapter]:
        """An adapter in memory of its own, and its digest."""
        stored, packing = self._plan(path)
        adapter = fill_own(packing)
        return digest_of(stored.bypasses, adapter), adapter

    def _load_adapter(self, ref: AdapterRef, pages: Pages) -> _core.Adapter:
        """Fill pages with an adapter, if it is still what it was: by its files' states, or else by what they hold."""
        last, self._last_read = self._last_read, None
        if last and last[0] == ref:
            return last[1].copy_to(pages)
        assert ref.path is not None
        if ref.state and directory_state(ref.path) == ref.state:
            _, packing = self._plan(ref.path)
            if directory_state(ref.path) == ref.state:
                return packing.fill(pages)
        digest, adapter = self._read(ref.path)
        if digest != ref.digest:
            raise FormatError(
                f"{ref.path} is no longer what it was when adapter {ref.name} was added", hint="Add it again."
            )
        return adapter.copy_to(pages)

    def _work(self) -> None:
        """The engine's thread: steps as long as there is work; whatever ends it, nobody waits for ever."""
        error = "the engine was closed"
        try:
            while self._take_in():
                self._step()
        except BaseException as failure:
            error = f"the engine failed: {failure}"
            raise
        finally:
            with self._wake:
                self._closed = True
            for answer in [*self._answers.values(), *(answer for _, answer in self._arrived)]:
                answer.fail(error)
            for told in self._asked:
                told.put(read_stats(self._loop.scheduler, self._loop.adapter_bytes))
            self._answers.clear()
            self._loop.close()

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify()

    def _is_wanted(self) -> bool:
        has_moved = self._mover and self._mover.has_moved
        return bool(self._closed or self._arrived or self._asked or has_moved or self._loop.has_work)

    def _take_in(self) -> bool:
        """Wait for work, and hand over what has come; False once the engine is closed."""
        with self._wake:  # those that wait for an adapter may be cancelled or come due, of which nobody notifies
            timeout_s = None if self._loop.is_idle else GLANCE_S
            self._wake.wait_for(self._is_wanted, timeout_s)
            if self._closed:
                return False
            # Whatever is cancelled by now has arrived by now.
            cancelled = [self._cancelled.popleft() for _ in range(len(self._cancelled))]
            arrived, self._arrived = self._arrived, []
            asked, self._asked = self._asked, []
        if self._mover and (moved := self._mover.take()):
            self.base = replace(self.base, model=moved)
            self._loop.use(moved)
        for sequence, answer in arrived:
            self._answers[sequence.id] = answer
            self._loop.scheduler.enqueue(sequence)
        for request_id in cancelled:
            self._loop.scheduler.cancel(request_id)
        for told in asked:
            told.put(read_stats(self._loop.scheduler, self._loop.adapter_bytes))
        return True

    def _step(self) -> None:
        result = self._loop.step(time.monotonic())
        for sequence, drawn in result.drawn:
            if self._answers[sequence.id].push(drawn) and sequence.finish_reason is None:
                self._end(self._loop.finish(sequence.id, FinishReason.STOP))
        for sequence in result.finished:
            self._end(sequence)

    def _end(self, sequence: Running) -> None:
        answer, reason = self._answers.pop(sequence.id), sequence.finish_reason
        assert reason is not None
        if reason is FinishReason.ERROR:
            answer.fail(sequence.error or "the request failed")
        else:
            answer.finish(reason)


def default_threads() -> int:
    """One per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
