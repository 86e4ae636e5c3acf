"""Adapters that a base is compressed for, and rows of their tasks, as calibration reads them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator

from regraft.bypass.directory import read_adapter
from regraft.compress.reading import Part
from regraft.compress.recipe import AdapterRows
from regraft.errors import DataError
from regraft.evaluate.dataset import encode, read_examples
from regraft.formats.adapter.kinds import LORA
from regraft.formats.base_record import AdapterRows as AdapterRowsRecord
from regraft.models.load import Base
from regraft.train.batches import Row


def read_adapter_rows(
    base: Base, settings: AdapterRows, seed: int, note: Callable[[str], None]
) -> tuple[Part, AdapterRowsRecord]:
    """Rows of a task, each a sequence by itself, and the adapter that is attached while they are read.

    Args:
        base: the original, which the adapter is of.
        settings: which adapter, which rows, how many.
        seed: of the rows that are drawn.
        note: told if there are fewer rows than asked for.

    Raises:
        UsageError, FormatError, IncompatibleAdapterError: see :func:`regraft.bypass.directory.read_adapter`.
        DataError: the rows cannot be read, or all of them are too long.
    """
    adapter = read_adapter(settings.adapter, base)
    rows = []
    for row in _drawn(base, settings, seed):
        rows.append(row)
        if len(rows) == settings.num_sequences:
            break
    limit = f"of at most {settings.max_tokens} tokens"
    if not rows:
        raise DataError(str(settings.data), expected=f"rows {limit}", found="longer ones only")
    if len(rows) < settings.num_sequences:
        note(f"{settings.data.name} has only {len(rows)} of the {settings.num_sequences} rows {limit} asked for")
    part = Part(rows, adapter.of(LORA))
    told = [[row.ids, row.num_answer] for row in rows]
    record = AdapterRowsRecord(
        name=adapter.name,
        sha256=adapter.digest(),
        rows_sha256=hashlib.sha256(json.dumps(told).encode()).hexdigest(),
        num_sequences=len(rows),
        num_tokens=part.num_tokens,
    )
    return part, record


def _drawn(base: Base, settings: AdapterRows, seed: int) -> Iterator[Row]:
    """Rows that are not too long, in random order, each turned into tokens when it is asked for."""
    examples = read_examples(settings.data)
    random.Random(seed).shuffle(examples)
    for example in examples:
        row = Row.of(encode(example, base.tokenizer))
        if len(row.ids) <= settings.max_tokens:
            yield row
