"""Answers from the engine: what ``regraft serve`` would say, many prompts in one batch, without torch.

The engine is opened for each round of answers, with the memory that these may take, and closed after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from regraft.engine.answer import Stream
from regraft.engine.engine import Engine
from regraft.engine.schedule.limits import Limits
from regraft.engine.weights.native_model import PAGE_TOKENS
from regraft.engine.weights.open_base import open_base
from regraft.errors import DataError, IncompatibleAdapterError
from regraft.evaluate.answers import BATCH, Runtime, Schema, longest_answer
from regraft.evaluate.dataset import Encoded
from regraft.formats.text.tokenizer import Tokenizer
from regraft.progress import Progress, silent

if TYPE_CHECKING:
    from regraft.engine.vocabulary import JsonConstraint

MAX_MEMORY_BYTES = 1 << 30  # of keys, values and the adapter, unless a single sequence needs more
STEP_TOKENS = 256
ADAPTER = "adapter"
PROBE = tuple(range(3, 11))  # tokens whose last state tells whether an adapter acts


class EngineTokenizer:
    """The engine's tokenizer as :func:`regraft.evaluate.dataset.encode` calls that of ``transformers``."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.chat_template = tokenizer.chat_template
        self.all_special_ids = sorted(tokenizer.special_ids)
        self.bos_token_id = self._named("bos_token")
        self.eos_token_id = self._named("eos_token")

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """``{"input_ids": …}``."""
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens)}

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], *, tokenize: bool = False, add_generation_prompt: bool = False
    ) -> str:
        """The text of a conversation; its tokens are never asked for."""
        assert not tokenize
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)

    def _named(self, name: str) -> int | None:
        token = self._tokenizer.special_tokens.get(name)
        return None if token is None else self._tokenizer.encode(token, add_special_tokens=False)[0]


class EngineAnswers:
    """A base in the engine, see :class:`regraft.evaluate.answers.Answers`.

    Args:
        base: a BASE argument.
        batch_size: prompts that are answered side by side.
        threads: of the native core; by default one per core.
        exact: multiply in float32, see :class:`regraft.engine.engine.Engine`. Not what is served: for comparisons.
        progress: told of a first packing.

    Raises:
        UsageError: there is no such base.
        UnsupportedBaseError: the engine does not run it.
        FormatError: a file is missing or damaged.
    """

    runtime: Runtime = "engine"

    def __init__(
        self,
        base: str | Path,
        *,
        batch_size: int = BATCH,
        threads: int | None = None,
        exact: bool = False,
        progress: Progress = silent,
    ) -> None:
        opened = open_base(base, head_bits=16 if exact else 8, progress=progress)
        self._base, self._batch_size, self._threads, self._exact = base, batch_size, threads, exact
        self._token_bytes = -(-opened.model.kv_page_bytes // PAGE_TOKENS)
        self.name, self.context_tokens = opened.name, opened.architecture.max_positions
        self.tokenizer = EngineTokenizer(opened.tokenizer)

    def answer(
        self,
        encoded: Sequence[Encoded],
        adapter: Path | None = None,
        *,
        max_new_tokens: int | None = None,
        schema: Schema | None = None,
        progress: Progress = silent,
    ) -> list[str]:
        """See :meth:`regraft.evaluate.answers.Answers.answer`."""
        limit = longest_answer(encoded) if max_new_tokens is None else max_new_tokens
        self._check_room(encoded)
        with self._engine(encoded, limit, adapter) as engine:
            acting = ADAPTER if adapter else None
            if acting:
                _check_acts(engine)
            constraint = _constraint(engine, schema)
            streams = [
                engine.stream(
                    row.prompt_ids, acting, max_tokens=limit, constraint=constraint.another() if constraint else None
                )
                for row in encoded
            ]
            answers = []
            with progress.track(len(streams), "answers") as advance:
                for stream in streams:
                    answers.append(_text(stream))
                    advance()
            return answers

    def _check_room(self, encoded: Sequence[Encoded]) -> None:
        for row in encoded:
            if len(row.prompt_ids) >= self.context_tokens:
                where = f"{row.source}: " if row.source else ""
                expected = f"fewer tokens than the context's {self.context_tokens}"
                raise DataError(f"{where}a prompt that is too long", expected=expected, found=f"{len(row.prompt_ids)}")

    def _engine(self, encoded: Sequence[Encoded], limit: int, adapter: Path | None) -> Engine:
        longest = max((len(row.prompt_ids) for row in encoded), default=0) + max(limit, len(PROBE))
        one = (min(longest, self.context_tokens) + 2 * PAGE_TOKENS) * self._token_bytes
        factors = sum(file.stat().st_size for file in adapter.glob("*.safetensors")) if adapter else 0
        several = min(MAX_MEMORY_BYTES, 2 * factors + self._batch_size * one)
        return Engine(
            self._base,
            {ADAPTER: adapter} if adapter else {},
            memory_bytes=max(several, 2 * factors + one),
            threads=self._threads,
            exact=self._exact,
            huge_pages=False,  # reading the weights once more takes longer than a round of answers
            limits=Limits(
                context_tokens=self.context_tokens,
                max_sequences=self._batch_size,
                step_tokens=max(STEP_TOKENS, self._batch_size),
            ),
        )


def _check_acts(engine: Engine) -> None:
    """Raise IncompatibleAdapterError if the adapter leaves the base's states as they are."""
    plain, changed = (
        engine.generate(PROBE, acting, max_tokens=1, hidden=True, stop_token_ids=()).hidden
        for acting in (None, ADAPTER)
    )
    if plain is not None and changed is not None and np.array_equal(plain, changed):
        raise IncompatibleAdapterError(f"the adapter has no effect on {engine.base.name}: the states are the same")


def _constraint(engine: Engine, schema: Schema | None) -> JsonConstraint | None:
    if schema is None:
        return None
    from regraft.engine.vocabulary import Vocabulary

    return Vocabulary(engine.base.tokenizer).json_constraint(schema)


def _text(stream: Stream) -> str:
    *_, last = stream
    assert last.completion is not None
    return last.completion.text
