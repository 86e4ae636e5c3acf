"""The engine: one base, many adapters, many requests at once, each streamed to whoever asked."""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.base.stream_decoder import StreamDecoder
from regraft.bypass.factors import StoredAdapter
from regraft.engine.adapters import AdapterRef
from regraft.engine.bypasses import Bits, build_adapter, count_pages
from regraft.engine.limits import Limits
from regraft.engine.loop import Loop, Pages, make_arena
from regraft.engine.network import PAGE_TOKENS
from regraft.engine.opened import OpenedBase, open_base
from regraft.engine.pool import Pool
from regraft.engine.request import FinishReason, Mix, Request, SamplingParams
from regraft.engine.sampler import Drawn
from regraft.engine.scheduler import Scheduler
from regraft.engine.sequence import Sequence as Running
from regraft.engine.stop import StopStrings
from regraft.errors import RegraftError, UsageError
from regraft.native import _core
from regraft.native.layout import ALIGNMENT, padded
from regraft.progress import Progress, silent

Prompt = str | Sequence[Mapping[str, str]]  # text as it is, or a conversation for the base's chat template
Adapters = str | Mapping[str, float] | None  # one, a weighted mix, or the base alone


class RequestError(RegraftError):
    """A request that was accepted and could not be answered."""


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
        text: without the stop string.
        tokens: ids of all tokens that were drawn.
        finish_reason: why it ended.
        num_prompt_tokens: tokens of the prompt.
        logprobs: one entry per token, where they were asked for.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    logprobs: tuple[Drawn, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some more text of an answer; the last piece has the whole completion."""

    text: str
    completion: Completion | None = None


class _Answer:
    """What becomes of one request; the engine's thread fills it, the caller's reads it."""

    def __init__(self, decoder: StreamDecoder, request: Request) -> None:
        self.pieces: queue.SimpleQueue[Piece | RegraftError] = queue.SimpleQueue()
        self._decoder, self._request = decoder, request
        self._stop = StopStrings(request.stop)
        self._text: list[str] = []
        self._drawn: list[Drawn] = []

    def push(self, drawn: Drawn) -> bool:
        """Take a token; returns whether a stop string has come."""
        self._drawn.append(drawn)
        if drawn.token not in self._request.stop_token_ids:
            self._show(self._stop.push(self._decoder.push(drawn.token)))
        return self._stop.found

    def finish(self, reason: FinishReason, error: str | None) -> None:
        """The last piece, or the error."""
        if reason is FinishReason.ERROR:
            self.pieces.put(RequestError(error or "the request failed"))
            return
        self._show(self._stop.push(self._decoder.flush()) + self._stop.flush())
        reason = FinishReason.STOP if self._stop.found else reason
        logprobs = tuple(self._drawn) if self._request.sampling.logprobs is not None else ()
        tokens = tuple(drawn.token for drawn in self._drawn)
        completion = Completion("".join(self._text), tokens, reason, len(self._request.prompt), logprobs)
        self.pieces.put(Piece("", completion))

    def _show(self, text: str) -> None:
        if text:
            self._text.append(text)
            self.pieces.put(Piece(text))


class Engine:
    """Runs requests over one base, inside one memory budget.

    Args:
        base: a BASE argument, as of the command line.
        adapters: name → directory.
        memory_bytes: for keys, values and adapters; weights come on top.
        threads: of the native core; by default one per core of the machine.
        kernels: one of ``_core.kernels()``, or the empty string for the fastest.
        exact: multiply with float32 activations, and keep adapters, embeddings and head in float16. By default all of
            these are rounded to 8 bits, activations by blocks of 32, which is faster and moves logits a little.
        limits: the scheduler's; its context is the base's by default.
        progress: told of a first packing.

    Raises:
        UsageError, FormatError: see :func:`regraft.engine.opened.open_base`; also a memory below one page.
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
        limits: Limits | None = None,
        progress: Progress = silent,
    ) -> None:
        self.base: OpenedBase = open_base(base, head_bits=16 if exact else 8, progress=progress)
        self._page_bytes = padded(self.base.model.kv_page_bytes, ALIGNMENT)
        pool = Pool(memory_bytes // self._page_bytes, self._page_bytes)
        limits = limits or Limits(context_tokens=self.base.architecture.max_positions)
        scheduler = Scheduler(pool, replace(limits, page_tokens=PAGE_TOKENS), fingerprint=self.base.state)
        core = _core.Core(threads or default_threads(), kernels)
        arena = make_arena(pool.num_pages, self._page_bytes)
        self._loop = Loop(scheduler, core, self.base.model, arena, self._load_adapter, float_activations=exact)
        self._adapter_bits: Bits = 16 if exact else 8
        self._adapters: dict[str, tuple[AdapterRef, Path]] = {}
        self._stored: dict[AdapterRef, StoredAdapter] = {}  # read to be described, and not yet loaded
        self._answers: dict[str, _Answer] = {}
        self._numbers = itertools.count()
        self._wake = threading.Condition()
        self._closed = False
        for name, path in (adapters or {}).items():
            self.add_adapter(name, path)
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
    def adapter_bytes(self) -> dict[str, int]:
        """Bytes of the factors of each adapter that is in memory now; a step that uses it reads them all."""
        with self._wake:
            return {ref.name: count for ref, count in self._loop.adapter_bytes.items()}

    def add_adapter(self, name: str, path: str | Path) -> None:
        """Make an adapter known, or replace the one of that name; requests under way keep the old one.

        Raises:
            UsageError, FormatError, IncompatibleAdapterError: it cannot be read, or is not for this base.
        """
        stored = self.base.read_adapter(Path(path))
        digest = f"{stored.sha256} {stored.record.base_fingerprint if stored.record else ''}"
        ref = AdapterRef(name, digest, count_pages(stored.bypasses, self._page_bytes, bits=self._adapter_bits))
        with self._wake:
            self._adapters[name] = ref, Path(path)
            self._stored[ref] = stored

    def stream(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> Iterator[Piece]:
        """Answer a prompt piece by piece; ending the iteration early cancels the request.

        Args:
            prompt: text, or messages for the chat template.
            adapter: a name, a mix of names with weights, or None for the base alone.
            options: ``max_tokens`` (256), ``stop``, ``stop_token_ids``, ``priority``, ``timeout_s``, and the fields of
                :class:`SamplingParams`.

        Raises:
            UsageError: an unknown adapter or option, or a value out of its range; a prompt that fills the context.
            CapacityError: the memory is too small for it.
            RequestError: it was begun, and failed.
        """
        request, answer = self._submit(prompt, adapter, options)
        return self._pieces(request, answer)

    def generate(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> Completion:
        """Answer a prompt; see :meth:`stream`."""
        *_, last = self.stream(prompt, adapter, **options)
        assert last.completion is not None
        return last.completion

    async def astream(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> AsyncIterator[Piece]:
        """:meth:`stream` for an event loop, which it does not hold up."""
        request, answer = self._submit(prompt, adapter, options)
        pieces = self._pieces(request, answer)
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield piece
        finally:
            self.cancel(request.id)

    async def agenerate(self, prompt: Prompt, adapter: Adapters = None, **options: Any) -> Completion:
        """:meth:`generate` for an event loop."""
        async for piece in self.astream(prompt, adapter, **options):
            if piece.completion is not None:
                return piece.completion
        raise RequestError("the engine was closed")

    def cancel(self, request_id: str) -> None:
        """End a request early; nothing if it has ended."""
        with self._wake:
            self._loop.scheduler.cancel(request_id)
            self._wake.notify()

    def close(self) -> None:
        """Stop; requests under way end with an error."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _pieces(self, request: Request, answer: _Answer) -> Iterator[Piece]:
        try:
            while True:
                piece = answer.pieces.get()
                if isinstance(piece, RegraftError):
                    raise piece
                yield piece
                if piece.completion is not None:
                    return
        finally:
            self.cancel(request.id)

    def _submit(self, prompt: Prompt, adapter: Adapters, options: dict[str, Any]) -> tuple[Request, _Answer]:
        request = self._request(prompt, adapter, options)
        answer = _Answer(self.base.tokenizer.stream(), request)
        with self._wake:
            if self._closed:
                raise UsageError("the engine is closed")
            refs = [self._known(name) for name, _ in request.mix]
            self._loop.submit(request, refs)
            self._answers[request.id] = answer
            self._wake.notify()
        return request, answer

    def _request(self, prompt: Prompt, adapter: Adapters, options: dict[str, Any]) -> Request:
        own = {"max_tokens", "stop", "stop_token_ids", "priority", "timeout_s"}
        known = own | set(SamplingParams.__dataclass_fields__)
        if unknown := sorted(set(options) - known):
            raise UsageError(f"option {unknown[0]}", expected=f"one of {', '.join(sorted(known))}")
        timeout_s, stop = options.get("timeout_s"), options.get("stop", ())
        stop_ids = options.get("stop_token_ids")
        tokens = tuple(self._encode(prompt))
        if outside := [token for token in tokens if token >= self.base.architecture.vocabulary]:
            most = self.base.architecture.vocabulary - 1
            raise UsageError("a token of the prompt", expected=f"an id of at most {most}", found=str(outside[0]))
        return Request(
            id=f"request {next(self._numbers)}",
            prompt=tokens,
            max_tokens=options.get("max_tokens", 256),
            mix=_mix(adapter),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stop_token_ids=frozenset(self.base.tokenizer.eos_ids if stop_ids is None else stop_ids),
            priority=options.get("priority", 0),
            deadline_s=None if timeout_s is None else time.monotonic() + timeout_s,
            sampling=SamplingParams(**{key: value for key, value in options.items() if key not in own}),
        )

    def _encode(self, prompt: Prompt) -> list[int]:
        tokenizer = self.base.tokenizer
        if isinstance(prompt, str):
            return tokenizer.encode(prompt)
        return tokenizer.encode(tokenizer.apply_chat_template([dict(m) for m in prompt]), add_special_tokens=False)

    def _known(self, name: str) -> AdapterRef:
        if name not in self._adapters:
            known = ", ".join(self._adapters) or "none"
            raise UsageError(f"there is no adapter {name!r}", expected=f"one of those given to the engine: {known}")
        return self._adapters[name][0]

    def _load_adapter(self, ref: AdapterRef, pages: Pages) -> _core.Adapter:
        stored = self._stored.pop(ref, None)
        if stored is None:  # it was loaded before, and evicted
            stored = self.base.read_adapter(self._adapters[ref.name][1])
        return build_adapter(self.base.architecture.layers, stored.bypasses, bits=self._adapter_bits, pages=pages)

    def _work(self) -> None:
        """The engine's thread: steps as long as there is work."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or not self._loop.is_idle)
                if self._closed:
                    for answer in self._answers.values():
                        answer.finish(FinishReason.ERROR, "the engine was closed")
                    return
                try:
                    self._step()
                except Exception as error:  # whatever it was, nobody may wait for ever
                    self._closed = True
                    for answer in self._answers.values():
                        answer.finish(FinishReason.ERROR, f"the engine failed: {error}")
                    raise

    def _step(self) -> None:
        result = self._loop.step(time.monotonic())
        for sequence, drawn in result.drawn:
            if self._answers[sequence.id].push(drawn) and sequence.finish_reason is None:
                self._loop.finish(sequence.id, FinishReason.STOP)
                self._end(sequence, FinishReason.STOP)
        for sequence in result.finished:
            assert sequence.finish_reason is not None
            self._end(sequence, sequence.finish_reason)

    def _end(self, sequence: Running, reason: FinishReason) -> None:
        self._answers.pop(sequence.id).finish(reason, sequence.error)


def _mix(adapter: Adapters) -> Mix:
    if adapter is None:
        return ()
    return ((adapter, 1.0),) if isinstance(adapter, str) else tuple(adapter.items())


def default_threads() -> int:
    """One per core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
