"""The tasks that need no download hold their promises; all of them do, where their packages can be had."""

import datetime
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from regraft.evaluate.dataset import read_examples
from regraft.evaluate.metrics import METRICS
from zoo.catalogue import FAMILY, TASKS
from zoo.prepare import SPLITS, prepare
from zoo.rows import Row, from_json
from zoo.tasks import dates, numbers
from zoo.train import ADAPTERS

GENERATED = ("logs", "dates", "cron", "numbers", "pii", "sql")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def read_rows(folder: Path, split: str) -> list[Row]:
    return [from_json(json.loads(line)) for line in (folder / f"{split}.jsonl").open(encoding="utf-8")]


def greatest_jaccard(rows: list[Row], others: list[Row]) -> float:
    """Of all pairs of texts, by one product of matrices of which 5-grams each holds."""
    names: dict[str, int] = {}
    held = []
    for row in (*rows, *others):
        text = " ".join(row.text.casefold().split())
        held.append({names.setdefault(text[n : n + 5], len(names)) for n in range(max(1, len(text) - 4))})
    matrix = np.zeros((len(held), len(names)), np.float32)
    for place, columns in enumerate(held):
        matrix[place, list(columns)] = 1
    common = matrix[: len(rows)] @ matrix[len(rows) :].T
    sizes = matrix.sum(1)
    return float((common / (sizes[: len(rows), None] + sizes[None, len(rows) :] - common)).max())


def assert_apart(folder: Path) -> None:
    """No source in two splits, and no two texts alike."""
    rows = {split: read_rows(folder, split) for split in SPLITS}
    for inner, outer in (("dev", ("test",)), ("train", ("dev", "test"))):
        held_out = [row for split in outer for row in rows[split]]
        assert not {s for row in rows[inner] for s in row.sources} & {s for row in held_out for s in row.sources}
        assert greatest_jaccard(rows[inner], held_out) < 0.8 + 1e-6


def assert_sound(task: str, folder: Path) -> None:
    """Enough rows, that regraft reads, of short prompts, with answers that suit the metric and the schema."""
    record = json.loads((folder / "splits.json").read_text())
    examples = {split: read_examples(folder / f"{split}.jsonl") for split in SPLITS}
    assert (len(examples["dev"]), len(examples["test"])) == (200, 240)
    assert len(examples["train"]) == record["train"]["rows"] > 200
    references = [example.answer for example in examples["test"]]
    metric = METRICS[TASKS[task].metric](references)
    assert all(metric(reference, reference) == 1 for reference in references)
    if TASKS[task].metric == "json-fields":
        schema = json.loads((folder / "schema.json").read_text())
        order = list(schema["properties"])
        for example in (*examples["train"], *examples["dev"], *examples["test"]):
            answer = json.loads(example.answer)
            jsonschema.validate(answer, schema)
            assert sorted(answer, key=order.index) == list(answer)


@pytest.mark.parametrize("task", GENERATED)
def test_generated_tasks_are_sound_and_apart(task: str, data: Path) -> None:
    folder = prepare(task, data)
    assert_sound(task, folder)
    assert_apart(folder)


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task not in GENERATED])
def test_all_tasks_are_sound_and_apart(task: str) -> None:
    folder = prepare(task)
    assert_sound(task, folder)
    assert_apart(folder)


@pytest.mark.slow
def test_a_string_is_in_the_same_split_of_each_language() -> None:
    parts: dict[str, set[str]] = {}
    for task in ("strings_fr", "strings_de", "strings_es"):
        for split in SPLITS:
            for row in read_rows(prepare(task), split):
                parts.setdefault(row.sources[0], set()).add(split)
    assert all(len(split) == 1 for split in parts.values())


def test_prepared_rows_are_the_same_each_time(data: Path, tmp_path: Path) -> None:
    first, second = prepare("cron", data), prepare("cron", tmp_path)
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in ("train.jsonl", "splits.json"))


def test_a_folder_of_another_version_is_written_anew(tmp_path: Path) -> None:
    folder = tmp_path / "dates"
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text("{}\n")
    assert len(read_rows(prepare("dates", tmp_path), "test")) == 240


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (15, "fifteen"),
        (80, "eighty"),
        (342, "three hundred forty-two"),
        (12_000, "twelve thousand"),
        (7_000_019, "seven million nineteen"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert numbers.in_words(number) == words


def test_british_numbers_say_and() -> None:
    assert numbers.in_words(1_004_305, british=True) == "one million four thousand three hundred and five"
    assert numbers.in_words(2_008, british=True) == "two thousand and eight"


def value_of(words: str) -> int:
    """Another way from words to a number."""
    total = group = 0
    for word in re.findall(r"[a-z]+", words):
        scale = {"thousand": 10**3, "million": 10**6, "billion": 10**9}.get(word)
        if scale:
            total, group = total + group * scale, 0
        elif word == "hundred":
            group *= 100
        elif word != "and":
            group += numbers.UNITS.index(word) if word in numbers.UNITS else 10 * numbers.TENS.index(word)
    return total + group


def test_cardinals_are_the_numbers_that_their_words_say(data: Path) -> None:
    plain = [row for row in read_rows(prepare("numbers", data), "train") if row.answer.strip().isdigit()]
    said = [row for row in plain if " point " not in row.text]
    assert len(said) > 300
    assert all(value_of(row.text) == int(row.answer) for row in said)


@pytest.mark.parametrize(("number", "word"), [(1, "1st"), (12, "12th"), (22, "22nd"), (113, "113th"), (33, "33rd")])
def test_ordinals(number: int, word: str) -> None:
    assert dates.ordinal(number) == word


def test_dates_are_dates_and_plain_ones_are_in_the_text(data: Path) -> None:
    for row in read_rows(prepare("dates", data), "train"):
        day = datetime.date.fromisoformat(row.answer.strip())
        if not re.search("after|before", row.text):
            assert str(day.day) in row.text and f"{day.year % 100:02}" in row.text


def test_cron_fields_are_in_range(data: Path) -> None:
    limits = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
    for row in read_rows(prepare("cron", data), "train"):
        fields = row.answer.split()
        assert len(fields) == 5
        for field, (low, high) in zip(fields, limits, strict=True):
            assert re.fullmatch(r"\*|(\*/)?\d+|(\d+[-,]\d+)|\*/\d+", field)
            assert all(low <= int(number) <= high for number in re.findall(r"\d+", field))


def test_masked_sentences_hold_no_digit_and_no_address(data: Path) -> None:
    rows = read_rows(prepare("pii", data), "train")
    assert not any(re.search(r"\d|@", row.answer) for row in rows)


def test_queries_end_as_they_began(data: Path) -> None:
    for row in read_rows(prepare("sql", data), "train"):
        assert row.answer.count("(") == row.answer.count(")") and row.answer.count("'") % 2 == 0
        top = re.search(r"TOP (\d+)", row.text)
        assert (f"LIMIT {top.group(1)}" in row.answer) if top else ("LIMIT" not in row.answer)


def test_the_family_is_of_tasks_that_may_be_given_away() -> None:
    assert len(FAMILY) == 6 and all(TASKS[task].redistribute for task in FAMILY)


def test_groups_are_large_enough_for_mixing() -> None:
    sizes: dict[str, int] = {}
    for task in TASKS.values():
        sizes[task.group] = sizes.get(task.group, 0) + 1
    assert sizes["sentiment"] >= 4 and min(sizes["strings"], sizes["parsers"], sizes["yes or no"]) >= 3
    metrics: dict[str, Any] = {group: {t.metric for t in TASKS.values() if t.group == group} for group in sizes}
    assert all(len(metrics[group]) == 1 for group in ("sentiment", "strings", "parsers", "yes or no"))


def test_at_least_ten_adapters_have_the_most_common_settings_and_some_are_rank_stabilised() -> None:
    loras = [task.lora for task in TASKS.values()]
    assert sum((lora.r, lora.alpha, lora.targets, lora.rslora) == (16, 32, "all-linear", False) for lora in loras) >= 10
    assert sum(lora.rslora for lora in loras) >= 2


def test_adapters_on_data_that_may_not_be_passed_on_are_ignored_by_git() -> None:
    lines = (ADAPTERS / ".gitignore").read_text().splitlines()
    ignored = {line.strip("/") for line in lines if not line.startswith("#")}
    assert ignored == {name for name, task in TASKS.items() if not task.redistribute}
