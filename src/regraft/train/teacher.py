"""The teacher: the *uncompressed* base with the existing LoRA, and its outputs kept on disk.

What is kept of each token is the final hidden state (float16): the hidden-state loss needs it as it is, and the
logits follow from it by one product with the teacher's head. So an epoch after the first runs no teacher, nor does a
second training on the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.errors import IncompatibleAdapterError
from regraft.formats.kept import Kept
from regraft.models.load import Base
from regraft.models.output_head import Head
from regraft.progress import Progress, silent
from regraft.train.batches import Row, make_batches


@dataclass(frozen=True)
class Teacher:
    """An uncompressed base with the adapter to learn from; None stands for the base alone."""

    base: Base
    adapter: Adapter | None

    @property
    def path(self) -> Path | None:
        """The adapter's directory."""
        return self.adapter.path if self.adapter else None

    def check(self, compressed: Base) -> None:
        """Raise unless ``compressed`` was made from this very teacher.

        A teacher that is itself compressed would teach the damage (this is what CA-LoRA's own LLaMA-2 script did).

        Raises:
            IncompatibleAdapterError: another fingerprint, or a compressed teacher.
        """
        if self.base.is_compressed:
            raise IncompatibleAdapterError(
                f"teacher {self.base.name} is compressed itself", expected="the uncompressed base"
            )
        if self.base.fingerprint != compressed.original_fingerprint:
            original = compressed.record.original.name if compressed.record else compressed.name
            raise IncompatibleAdapterError(
                f"teacher {self.base.name} is not the model that {compressed.name} was made from",
                expected=f"{original} (fingerprint {compressed.original_fingerprint[:12]})",
                found=f"{self.base.fingerprint[:12]}",
            )

    def digest(self, rows: Sequence[Row]) -> str:
        """Names the outputs of this teacher on these rows."""
        adapter = self.adapter.digest() if self.adapter else None
        text = json.dumps([self.base.fingerprint, adapter, [row.ids for row in rows]])
        return hashlib.sha256(text.encode()).hexdigest()[:24]


class Targets:
    """Teacher hidden states by row, and the head that turns them into logits.

    ``channels`` are those of them that a pruned student has, ascending; None for all.
    """

    def __init__(
        self, path: Path, lengths: Sequence[int], width: int, head: Head, channels: Tensor | None = None
    ) -> None:
        self._states = np.memmap(path, dtype=np.float16, mode="r", shape=(sum(lengths), width))
        self._starts = np.cumsum([0, *lengths])
        self.head, self.channels = head, channels

    def hidden(self, row: int) -> Tensor:
        """Final hidden states of a row's tokens, float32 ``[T, d]``."""
        states = self._states[self._starts[row] : self._starts[row + 1]]
        return torch.from_numpy(np.asarray(states, dtype=np.float32))


@torch.no_grad()
def teach(
    teacher: Teacher, rows: Sequence[Row], folder: Path, progress: Progress = silent, *, kept: Kept | None = None
) -> Targets:
    """Run the teacher over ``rows`` once, or find what it said before in ``folder``; ``kept`` is the student's."""
    model = teacher.base.model
    head = Head.of(model)
    lengths, width = [len(row.ids) for row in rows], head.weight.shape[1]
    path = folder / f"teacher-{teacher.digest(rows)}.f16"
    if not path.exists() or path.stat().st_size != 2 * sum(lengths) * width:
        partial = path.with_suffix(".partial")
        states = np.memmap(partial, dtype=np.float16, mode="w+", shape=(sum(lengths), width))
        starts = np.cumsum([0, *lengths])
        bypasses = teacher.adapter.bypasses if teacher.adapter else {}
        with attached(model, bypasses), progress.track(len(rows), "teacher") as advance:
            for batch in make_batches(rows, batch_tokens=2048):
                hidden = model.get_decoder()(input_ids=batch.ids.to(model.device), use_cache=False).last_hidden_state
                for place, number in enumerate(batch.rows):
                    states[starts[number] : starts[number + 1]] = hidden[place, : lengths[number]].half().cpu().numpy()
                advance(len(batch.rows))
        states.flush()
        partial.replace(path)
    channels = torch.from_numpy(kept.channels) if kept is not None and len(kept.channels) < width else None
    return Targets(path, lengths, width, head, channels)
