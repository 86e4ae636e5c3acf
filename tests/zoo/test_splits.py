import hashlib

import pytest

from zoo import splits
from zoo.rows import Row, from_json
from zoo.splits import SplitError, check_apart, split

SHARES = (0.3, 0.3)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "NUM_TEST", 20)
    monkeypatch.setattr(splits, "NUM_DEV", 10)


def make_rows(count: int = 200, per_source: int = 2) -> list[Row]:
    """Rows of 40 random letters, which have no twins."""
    texts = [hashlib.sha1(b"%d" % number).hexdigest() for number in range(count)]
    return [Row(text, " yes", text, (f"s{number // per_source}",)) for number, text in enumerate(texts)]


def test_splits_share_no_source() -> None:
    made = split(make_rows(), SHARES, 50)
    sources = [{source for row in rows for source in row.sources} for rows in (made.train, made.dev, made.test)]
    assert not sources[0] & sources[1] and not sources[0] & sources[2] and not sources[1] & sources[2]
    assert (len(made.train), len(made.dev), len(made.test)) == (50, 10, 20)


def test_every_row_is_counted_once() -> None:
    made = split(make_rows(), SHARES, 50)
    counts = made.counts
    left_out = counts.straddling + counts.twins_dev + counts.twins_train + counts.spare
    assert counts.rows == 200 == 50 + 10 + 20 + left_out


def test_the_order_of_rows_and_the_presence_of_others_do_not_move_a_source() -> None:
    def home_of(rows: list[Row]) -> dict[str, str]:
        made = split(rows, SHARES, 1000)
        named = (("train", made.train), ("dev", made.dev), ("test", made.test))
        return {source: name for name, rows in named for row in rows for source in row.sources}

    rows = make_rows()
    whole, part = home_of(rows[::-1]), home_of(rows[:150])
    assert home_of(rows) == whole
    assert all(whole.get(source, name) == name for source, name in part.items())


def test_a_row_whose_two_sources_disagree_is_in_no_split() -> None:
    rows = [Row(row.prompt, row.answer, row.text, (*row.sources, f"t{n % 40}")) for n, row in enumerate(make_rows(900))]
    made = split(rows, SHARES, 1000)
    check_apart(made.train, made.dev, made.test)
    assert made.counts.straddling > 100


def test_planted_twins_leave_train_and_dev_and_are_counted() -> None:
    plain = split(make_rows(), SHARES, 1000)
    victims = {"train": plain.test[0], "dev": plain.test[1]}
    free = {}  # a source of each split, for the twins to come from
    for number in range(1000):
        free.setdefault(splits._part(f"free{number}", SHARES), f"free{number}")
    planted = [Row(f"{row.text}!", row.answer, f"{row.text}!", (free[name],)) for name, row in victims.items()]
    made = split([*make_rows(), *planted], SHARES, 1000)
    assert (made.counts.twins_train, made.counts.twins_dev) == (1, 1)
    assert not {row.text for row in (*made.train, *made.dev)} & {row.text for row in planted}


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(SplitError, match="expected 20 and 10"):
        split(make_rows(30), SHARES, 50)


def test_splits_with_a_shared_source_are_refused() -> None:
    a, b = Row("one", " x", "one", ("s",)), Row("other", " x", "other", ("s",))
    with pytest.raises(SplitError, match="source 's' is in dev"):
        check_apart([], [a], [b])


def test_splits_with_near_twins_are_refused() -> None:
    a = Row("turn on the kitchen light now", " x", "turn on the kitchen light now", ("s",))
    b = Row("turn on the kitchen light now!", " x", "turn on the kitchen light now!", ("t",))
    with pytest.raises(SplitError, match="near-twins: 'turn on the kitchen light now' in train"):
        check_apart([a], [], [b])


@pytest.mark.parametrize("system", [None, "Answer in JSON."])
def test_a_row_reads_back_as_it_was_written(system: str | None) -> None:
    row = Row("Où?", " là", "Où", ("a", "b"), system)
    assert from_json(row.to_json()) == row
