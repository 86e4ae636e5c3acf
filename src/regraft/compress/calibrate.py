"""Calibration text, and the statistics of each slot's inputs on it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from regraft.compress import reading
from regraft.compress.adapter_rows import read_adapter_rows
from regraft.compress.reading import Part, PartsWalk, parts_of
from regraft.compress.recipe import Calibration, Text
from regraft.errors import DataError
from regraft.evaluate.dataset import encode, read_examples
from regraft.evaluate.perplexity import read_text as read_plain
from regraft.evaluate.perplexity import windows
from regraft.evaluate.self_text import write_text
from regraft.formats.base_record import Calibration as CalibrationRecord
from regraft.formats.base_record import Text as TextRecord
from regraft.models.layer_walk import LayerWalk
from regraft.models.load import Base
from regraft.progress import Progress
from regraft.storage import cache_home, write_bytes

_TEXT_VERSION = 1  # of how a base writes: another one, and what is in the cache counts no more
_PROBE = 8  # tokens are enough to see which slots share their input


@dataclass(frozen=True)
class GeneralText:
    """Token ids ``[N, T]`` and where they are from."""

    sequences: Tensor
    record: TextRecord


@dataclass(frozen=True)
class CalibrationText:
    """What calibrated steps read.

    Attributes:
        sequences: general text, ``[N, T]``; N may be 0.
        adapted: rows of tasks, with their adapters as they are of the original base.
        record: where all of it is from.
    """

    sequences: Tensor
    adapted: tuple[Part, ...]
    record: CalibrationRecord

    def on(self, base: Base) -> list[Part]:
        """The same with the adapters as ``base``, which steps have made of the original, inherits them."""
        general = [Part.plain(self.sequences)] if len(self.sequences) else []
        return [*general, *(part.inherited(base.kept) for part in self.adapted)]


def read_calibration(
    base: Base, settings: Calibration, note: Callable[[str], None], progress: Progress
) -> CalibrationText:
    """Read the adapters with their rows, then write or read the general text.

    Args:
        base: the original.
        settings: what to read, and how much of it.
        note: told if a file has less than asked for.
        progress: told of the text that the base writes.

    Raises:
        UsageError, FormatError, IncompatibleAdapterError: an adapter that is none, or of another base.
        DataError: a file cannot be read, or has not one sequence.
        UsageError: the base cannot write text by itself.
    """
    adapted = [read_adapter_rows(base, one, settings.seed, note) for one in settings.adapters]
    text = read_text(base, settings, note, progress)
    record = CalibrationRecord(**text.record.model_dump(), adapters=[told for _, told in adapted])
    return CalibrationText(text.sequences, tuple(part for part, _ in adapted), record)


def read_text(base: Base, settings: Text, note: Callable[[str], None], progress: Progress) -> GeneralText:
    """Write or read text without an adapter; ``note`` is told if a file has less of it than asked for.

    Raises:
        DataError: the file cannot be read, or is shorter than one sequence.
        UsageError: the base cannot write text by itself.
    """
    source = settings.source
    if not settings.num_sequences:
        source, sequences = "none", []
    elif source == "self":
        sequences = _self_written(base, settings, progress)
    else:
        source, sequences = Path(source).name, _from_file(base, settings, note)
    digest = hashlib.sha256(json.dumps(sequences).encode()).hexdigest()
    record = TextRecord(source=source, sha256=digest, num_tokens=sum(map(len, sequences)))
    return GeneralText(torch.tensor(sequences), record)


def _self_written(base: Base, settings: Text, progress: Progress) -> list[list[int]]:
    """What the base writes, kept in the cache: it takes minutes, and several recipes ask for the same."""
    shape = {"num_sequences": settings.num_sequences, "sequence_length": settings.sequence_length}
    asked = json.dumps([_TEXT_VERSION, base.fingerprint, shape, settings.seed])
    path = cache_home() / "texts" / f"{hashlib.sha256(asked.encode()).hexdigest()[:20]}.json"
    if path.exists():
        kept: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))
        return kept
    sequences = write_text(base.model, base.tokenizer, **shape, seed=settings.seed, progress=progress)
    with suppress(OSError):  # no room, or not ours to write to: then it is written anew the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(sequences).encode())
    return sequences


def _from_file(base: Base, settings: Text, note: Callable[[str], None]) -> list[list[int]]:
    path, length = Path(settings.source), settings.sequence_length
    if path.suffix == ".jsonl":
        rows = [encode(example, base.tokenizer) for example in read_examples(path)]
        ids = [token for row in rows for token in (*row.prompt_ids, *row.answer_ids)]
        cut = [ids[begin : begin + length] for begin in range(0, len(ids), length)]
    else:
        cut = windows(base.tokenizer, read_plain(path), length)
    whole = [window for window in cut if len(window) == length]
    if not whole:
        raise DataError(str(path), expected=f"at least {length} tokens", found=str(sum(map(len, cut))))
    if len(whole) < settings.num_sequences:
        note(f"{path.name} has only {len(whole)} of the {settings.num_sequences} calibration sequences asked for")
        return whole
    return random.Random(settings.seed).sample(whole, settings.num_sequences)


class SlotInputs:
    """``Σ x xᵀ`` of the inputs of each slot, with all that stands before it as it is by then."""

    def __init__(self, base: Base, text: reading.Text) -> None:
        parts = parts_of(text)
        some = torch.tensor([parts[0].rows[0].ids[:_PROBE]], device=base.model.device)
        self._walk = PartsWalk(base.model, parts)
        self._probe = LayerWalk(base.model, [some])

    def stages(self, layer: int, linears: Mapping[str, nn.Linear]) -> list[list[str]]:
        """The slots of a layer in order, those with the same input together: q, k, v; o; gate, up; down."""
        grams = self._probe.grams(layer, linears)
        stages: dict[int, list[str]] = {}
        for slot, gram in grams.items():
            stages.setdefault(id(gram), []).append(slot)
        return list(stages.values())

    def grams(self, layer: int, linears: Mapping[str, nn.Linear]) -> dict[str, Tensor]:
        """Float32 ``[in, in]`` by slot; slots with the same input share one tensor."""
        return self._walk.grams(layer, linears)

    def advance(self, layer: int) -> None:
        """Go on to the next layer, through this one as it is now."""
        self._walk.advance(layer)
