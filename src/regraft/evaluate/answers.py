"""Answers to test rows: from the engine, as ``regraft serve`` gives them, or from torch where it cannot run a base.

Both get the tokens of :func:`regraft.evaluate.dataset.encode`, take the likeliest token, and stop at the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from regraft.errors import UsageError
from regraft.evaluate.dataset import Encoded
from regraft.progress import Progress, silent
from regraft.storage import read_json

Runtime = Literal["engine", "torch"]
Schema = Mapping[str, Any]

SCHEMA_NAME = "schema.json"
SPARE_TOKENS = 8  # an answer may be this much longer than the longest reference before it is cut
BATCH = 32  # prompts that are answered side by side


class Answers(Protocol):
    """A base that answers prompts, with or without an adapter."""

    @property
    def runtime(self) -> Runtime:
        """Which of the two it is."""

    @property
    def name(self) -> str:
        """The base's."""

    @property
    def tokenizer(self) -> Any:
        """For :func:`regraft.evaluate.dataset.encode`."""

    @property
    def context_tokens(self) -> int:
        """The most tokens of prompt and answer together."""

    def answer(
        self,
        encoded: Sequence[Encoded],
        adapter: Path | None = None,
        *,
        max_new_tokens: int | None = None,
        schema: Schema | None = None,
        progress: Progress = silent,
    ) -> list[str]:
        """Answer every prompt greedily.

        Args:
            encoded: the prompts; the answers serve only to tell how long an answer may be.
            adapter: the directory of the one that acts; None for the base alone.
            max_new_tokens: where an answer is cut; default :func:`longest_answer`.
            schema: a JSON schema that answers keep to.
            progress: counts answers.

        Returns:
            The answers in the order of ``encoded``, without special tokens, white space as generated.

        Raises:
            UsageError, FormatError, IncompatibleAdapterError: the adapter cannot be read, or does not act on the base.
            UsageError: the schema is not understood, or torch is to keep to one.
            DataError: a prompt leaves no room for an answer in the context.
        """


def longest_answer(encoded: Sequence[Encoded]) -> int:
    """The default for ``max_new_tokens``: the longest reference answer, and a few tokens to spare."""
    return max((len(row.answer_ids) for row in encoded), default=0) + SPARE_TOKENS


def find_schema(given: Path | None, data: Path | None, metric: str) -> Schema | None:
    """The JSON schema that answers are held to when they are scored once more.

    Args:
        given: a file that was named.
        data: where none was, ``schema.json`` beside this file of rows, if the metric is ``json-fields``.
        metric: of the score.

    Raises:
        FormatError: the file is missing, or no JSON object.
        UsageError: answers are not scored as JSON, so a schema would change more than their form.
    """
    if given is not None and metric != "json-fields":
        raise UsageError(f"--schema goes with --metric json-fields, not {metric}")
    path = given
    if path is None and data is not None and metric == "json-fields" and (data.parent / SCHEMA_NAME).is_file():
        path = data.parent / SCHEMA_NAME
    if path is None:
        return None
    return read_json(path)


def usable_schema(
    schema: Schema | None, answers: Answers, *, is_asked: bool, progress: Progress = silent
) -> Schema | None:
    """The schema, if these answers can be held to one; ``is_asked`` says that a user named it.

    Raises:
        UsageError: it was named, and torch answers.
    """
    if schema is None or answers.runtime == "engine":
        return schema
    if is_asked:
        raise UsageError("--schema holds the engine's answers, but torch answers here")
    progress.note(f"torch answers, so there is no score of answers held to {SCHEMA_NAME}")
    return None
