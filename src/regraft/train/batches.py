"""Rows and batches: length-grouped, padded on the right, filled to a budget of tokens.

With the padding on the right a causal model needs no attention mask: no real token sees a padding one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regraft.evaluate.dataset import Encoded

GROUP = 16  # batches' worth of rows that are sorted by length together; larger pads less and shuffles less


@dataclass(frozen=True)
class Row:
    """One example's token ids; the last ``num_answer`` of them are the answer's."""

    ids: list[int]
    num_answer: int

    @classmethod
    def of(cls, encoded: Encoded) -> Row:
        """The row of an encoded example."""
        return cls([*encoded.prompt_ids, *encoded.answer_ids], len(encoded.answer_ids))


@dataclass(frozen=True)
class Batch:
    """Some rows side by side.

    Attributes:
        rows: their numbers.
        ids: token ids ``[B, T]``, padded on the right.
        mask: bool ``[B, T]``, true at real tokens.
        predicts: bool ``[B, T]``, true where the *next* token is an answer's.
        labels: the answer tokens ``[N]``, in the order of ``predicts``.
    """

    rows: list[int]
    ids: Tensor
    mask: Tensor
    predicts: Tensor
    labels: Tensor

    @property
    def num_tokens(self) -> int:
        """Real tokens."""
        return int(self.mask.sum())

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "mask", "predicts", "labels")}
        return replace(self, **moved)


def make_batches(rows: Sequence[Row], batch_tokens: int, order: Sequence[int] | None = None) -> Iterator[Batch]:
    """Batches of neighbours in ``order`` (by length, if not given), each at most ``batch_tokens`` with padding.

    A row that is longer than that by itself is a batch by itself.
    """
    numbers = order if order is not None else sorted(range(len(rows)), key=lambda number: len(rows[number].ids))
    chosen: list[int] = []
    for number in numbers:
        width = max([len(rows[number].ids), *(len(rows[n].ids) for n in chosen)])
        if chosen and width * (len(chosen) + 1) > batch_tokens:
            yield collate(rows, chosen)
            chosen = []
        chosen.append(number)
    if chosen:
        yield collate(rows, chosen)


def training_batches(rows: Sequence[Row], batch_tokens: int, seed: int) -> Iterator[Batch]:
    """Endless epochs of shuffled batches of rows of like length; the same seed gives the same batches."""
    rng = random.Random(seed)
    per_batch = max(1, batch_tokens * len(rows) // max(1, sum(len(row.ids) for row in rows)))
    while True:
        numbers = list(range(len(rows)))
        rng.shuffle(numbers)
        batches: list[Batch] = []
        for start in range(0, len(numbers), GROUP * per_batch):
            group = sorted(numbers[start : start + GROUP * per_batch], key=lambda number: len(rows[number].ids))
            batches.extend(make_batches(rows, batch_tokens, group))
        rng.shuffle(batches)
        yield from batches


def collate(rows: Sequence[Row], numbers: Sequence[int]) -> Batch:
    """Pad the numbered rows to one batch."""
    width = max(len(rows[number].ids) for number in numbers)
    ids = torch.zeros(len(numbers), width, dtype=torch.long)
    mask = torch.zeros(len(numbers), width, dtype=torch.bool)
    predicts = torch.zeros(len(numbers), width, dtype=torch.bool)
    for place, number in enumerate(numbers):
        row = rows[number]
        length = len(row.ids)
        ids[place, :length] = torch.tensor(row.ids)
        mask[place, :length] = True
        predicts[place, length - row.num_answer - 1 : length - 1] = True
    labels = ids[:, 1:][predicts[:, :-1]]
    return Batch(list(numbers), ids, mask, predicts, labels)
