"""Every row in its turn, within the budget, with the right marks; and the same again for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
import torch

from regraft.evaluate.dataset import Encoded
from regraft.train.batches import Batch, Row, collate, make_batches, training_batches


def make_rows(seed: int, count: int = 37, longest: int = 30) -> list[Row]:
    rng = random.Random(seed)
    lengths = [rng.randint(2, longest) for _ in range(count)]
    return [Row([rng.randrange(3, 400) for _ in range(n)], rng.randint(1, n - 1)) for n in lengths]


def epochs(rows: Sequence[Row], budget: int, seed: int, count: int) -> Iterator[list[Batch]]:
    """Cut the endless stream where as many rows as there are have come."""
    stream = training_batches(rows, budget, seed)
    for _ in range(count):
        epoch: list[Batch] = []
        while sum(len(batch.rows) for batch in epoch) < len(rows):
            epoch.append(next(stream))
        yield epoch


def test_row_is_prompt_then_answer() -> None:
    assert Row.of(Encoded([1, 2, 3], [4, 5])) == Row([1, 2, 3, 4, 5], 2)


@pytest.mark.parametrize("seed", range(5))
def test_collated_rows_are_padded_and_marked(seed: int) -> None:
    rows = make_rows(seed)
    numbers = random.Random(seed).sample(range(len(rows)), 6)
    batch = collate(rows, numbers)
    assert batch.rows == numbers
    assert batch.ids.shape == batch.mask.shape == batch.predicts.shape == (6, max(len(rows[n].ids) for n in numbers))
    assert batch.num_tokens == sum(len(rows[n].ids) for n in numbers)
    labels = []
    for place, number in enumerate(numbers):
        row = rows[number]
        assert batch.ids[place][batch.mask[place]].tolist() == row.ids
        assert batch.mask[place].tolist() == [t < len(row.ids) for t in range(batch.ids.shape[1])]
        first = len(row.ids) - row.num_answer
        predicts = [first <= t + 1 < len(row.ids) for t in range(batch.ids.shape[1])]
        assert batch.predicts[place].tolist() == predicts
        labels += row.ids[first:]
    assert batch.labels.tolist() == labels


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [30, 64, 1000])
def test_every_row_comes_once_in_an_epoch_and_the_budget_is_kept(seed: int, budget: int) -> None:
    rows = make_rows(seed)
    for batches in (list(make_batches(rows, budget)), *epochs(rows, budget, seed, 3)):
        assert sorted(number for batch in batches for number in batch.rows) == list(range(len(rows)))
        assert max(batch.ids.numel() for batch in batches) <= budget


def test_row_longer_than_the_budget_is_a_batch_by_itself() -> None:
    rows = [Row([3] * 5, 1), Row([3] * 50, 1), Row([3] * 6, 1)]
    for batches in (list(make_batches(rows, 16)), *epochs(rows, 16, 0, 2)):
        assert [batch.rows for batch in batches if batch.ids.numel() > 16] == [[1]]
        assert sorted(number for batch in batches for number in batch.rows) == [0, 1, 2]


def test_given_order_is_kept() -> None:
    rows = make_rows(0)
    order = list(reversed(range(len(rows))))
    assert [number for batch in make_batches(rows, 64, order) for number in batch.rows] == order


def test_rows_of_like_length_stand_together() -> None:
    rows = make_rows(0, count=400)
    batches = next(epochs(rows, 200, 0, 1))
    padded, real = sum(batch.ids.numel() for batch in batches), sum(batch.num_tokens for batch in batches)
    assert real / padded > 0.85


def test_same_seed_gives_the_same_batches_and_another_does_not() -> None:
    rows = make_rows(0)
    one, same, other = ([b.rows for b in islice(training_batches(rows, 64, seed), 40)] for seed in (3, 3, 4))
    assert one == same != other


def test_epochs_differ() -> None:
    first, second = epochs(make_rows(0), 64, 0, 2)
    assert [batch.rows for batch in first] != [batch.rows for batch in second]


@pytest.mark.parametrize("done", [1, 13, 50])
def test_stream_taken_up_later_goes_on_as_if_it_had_not_stopped(done: int) -> None:
    rows = make_rows(0)
    whole = list(islice(training_batches(rows, 64, 5), done + 20))
    resumed = list(islice(islice(training_batches(rows, 64, 5), done, None), 20))
    assert [batch.rows for batch in resumed] == [batch.rows for batch in whole[done:]]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(resumed, whole[done:], strict=True))
