"""Answers from torch: for bases that the engine does not run, for other devices, and to hold the engine's against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.errors import UsageError
from regraft.evaluate.answers import BATCH, Runtime, Schema
from regraft.evaluate.dataset import Encoded
from regraft.evaluate.generate import generate
from regraft.models.load import Base
from regraft.progress import Progress, silent


class TorchAnswers:
    """A base in torch, see :class:`regraft.evaluate.answers.Answers`."""

    runtime: Runtime = "torch"

    def __init__(self, base: Base, *, batch_size: int = BATCH) -> None:
        self._base, self._batch_size = base, batch_size

    @property
    def name(self) -> str:
        """The base's."""
        return self._base.name

    @property
    def tokenizer(self) -> Any:
        """That of ``transformers``."""
        return self._base.tokenizer

    @property
    def context_tokens(self) -> int:
        """Positions that the model was made for."""
        return int(self._base.model.config.max_position_embeddings)

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
        if schema is not None:
            raise UsageError("answers that keep to a schema need the engine", hint="Leave out --runtime torch.")
        base = self._base
        with attached(base.model, read_adapter(adapter, base).bypasses if adapter else {}):
            return generate(
                base.model,
                base.tokenizer,
                encoded,
                max_new_tokens=max_new_tokens,
                batch_size=self._batch_size,
                progress=progress,
            )
