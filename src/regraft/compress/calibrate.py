"""The text that a calibrated method sees, and the statistics of what it makes enter each slot."""

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

from regraft.base.load import Base
from regraft.base.record import Calibration as CalibrationRecord
from regraft.base.walk import LayerWalk
from regraft.compress.recipe import Calibration
from regraft.errors import DataError
from regraft.evaluate.dataset import encode, read_examples
from regraft.evaluate.perplexity import read_text, windows
from regraft.evaluate.self_text import write_text
from regraft.progress import Progress
from regraft.storage import cache_home, write_bytes

_TEXT_VERSION = 1  # of how a base writes: another one, and what is in the cache counts no more
_BATCH = 8  # sequences that go through a layer together
_PROBE = 8  # tokens are enough to see which slots share their input


@dataclass(frozen=True)
class CalibrationText:
    """Token ids ``[N, T]`` and where they are from."""

    sequences: Tensor
    record: CalibrationRecord


def read_calibration(
    base: Base, settings: Calibration, note: Callable[[str], None], progress: Progress
) -> CalibrationText:
    """Write or read the calibration text; ``note`` is told if a file has less of it than asked for.

    Raises:
        DataError: the file cannot be read, or is shorter than one sequence.
        UsageError: the base cannot write text by itself.
    """
    if settings.source == "self":
        sequences = _self_written(base, settings, progress)
    else:
        sequences = _from_file(base, settings, note)
    digest = hashlib.sha256(json.dumps(sequences).encode()).hexdigest()
    source = settings.source if settings.source == "self" else Path(settings.source).name
    record = CalibrationRecord(source=source, sha256=digest, num_tokens=sum(map(len, sequences)))
    return CalibrationText(torch.tensor(sequences), record)


def _self_written(base: Base, settings: Calibration, progress: Progress) -> list[list[int]]:
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


def _from_file(base: Base, settings: Calibration, note: Callable[[str], None]) -> list[list[int]]:
    path, length = Path(settings.source), settings.sequence_length
    if path.suffix == ".jsonl":
        rows = [encode(example, base.tokenizer) for example in read_examples(path)]
        ids = [token for row in rows for token in (*row.prompt_ids, *row.answer_ids)]
        cut = [ids[begin : begin + length] for begin in range(0, len(ids), length)]
    else:
        cut = windows(base.tokenizer, read_text(path), length)
    whole = [window for window in cut if len(window) == length]
    if not whole:
        raise DataError(str(path), expected=f"at least {length} tokens", found=str(sum(map(len, cut))))
    if len(whole) < settings.num_sequences:
        note(f"{path.name} has only {len(whole)} of the {settings.num_sequences} calibration sequences asked for")
        return whole
    return random.Random(settings.seed).sample(whole, settings.num_sequences)


class SlotInputs:
    """``Σ x xᵀ`` of the inputs of each slot, with all that stands before it as it is by then."""

    def __init__(self, base: Base, text: CalibrationText) -> None:
        ids = text.sequences.to(base.model.device)
        self._walk = LayerWalk(base.model, ids.split(_BATCH))
        self._probe = LayerWalk(base.model, [ids[:1, :_PROBE]])

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
