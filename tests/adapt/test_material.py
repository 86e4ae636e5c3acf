"""Rows from files, from prompts and from nothing: apart from each other, within their limits, and on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.adapt import material as module
from regraft.adapt.config import Data
from regraft.adapt.material import (
    Material,
    calibration_batches,
    from_examples,
    from_nothing,
    from_prompts,
    read_prompts,
)
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.errors import DataError, UsageError
from regraft.evaluate.dataset import data_hash, encode, read_examples
from regraft.evaluate.generate import generate
from regraft.evaluate.torch_answers import TorchAnswers
from regraft.models.load import Base
from regraft.train.batches import Row
from regraft.train.teacher import Teacher
from tests.adapt.made import Listener, Made, write_rows
from tests.tiny import make_tokenizer

TOKENIZER = make_tokenizer()


def read(data: Path, dev: Path | None = None, test: Path | None = None, seed: int = 0, **limits: Any) -> Material:
    return from_examples(data, dev, test, "exact", TOKENIZER, Data(**limits), seed)


def as_rows(path: Path) -> list[Row]:
    return [Row.of(encode(example, TOKENIZER)) for example in read_examples(path)]


def test_rows(material: Material) -> list[Row]:
    return [Row.of(row.encoded) for row in material.test]


test_rows.__test__ = False  # type: ignore[attr-defined]


def prompts_of(rows: list[Row]) -> set[tuple[int, ...]]:
    return {tuple(row.ids[: -row.num_answer]) for row in rows}


@pytest.mark.parametrize("seed", range(3))
def test_splits_of_one_file_share_no_prompt_and_lose_no_row(tmp_path: Path, seed: int) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 30)
    path.write_text(path.read_text() * 2)  # each prompt twice
    found = read(path, seed=seed)
    parts = [prompts_of(rows) for rows in (found.train, found.dev, test_rows(found))]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 30
    assert len(found.train) + len(found.dev) + len(found.test) == 60
    assert found.num_tokens == sum(len(row.ids) for row in found.train)


def test_splits_are_the_seed_s(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", 40)
    one, same, other = (read(path, seed=seed) for seed in (1, 1, 2))
    assert one == same
    assert one.dev != other.dev


def test_files_that_are_given_are_taken_whole(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{start}.jsonl", 5, start) for start in (0, 5, 10)]
    found = read(*paths)
    assert [found.train, found.dev, test_rows(found)] == [as_rows(path) for path in paths]
    assert [row.reference for row in found.test] == [f" fox {n % 3}" for n in range(10, 15)]
    assert [row.prompt for row in found.test] == [f"the quick {n}" for n in range(10, 15)]


def test_file_that_is_not_given_is_split_off(tmp_path: Path) -> None:
    data, dev = write_rows(tmp_path / "data.jsonl", 20), write_rows(tmp_path / "dev.jsonl", 3, 90)
    found = read(data, dev)
    assert found.dev == as_rows(dev)
    assert len(found.test) == 2
    assert len(found.train) == 18


@pytest.mark.parametrize("name", ["dev", "test"])
def test_prompt_in_two_files_is_refused(tmp_path: Path, name: str) -> None:
    data, other = write_rows(tmp_path / "data.jsonl", 20), write_rows(tmp_path / "other.jsonl", 3, 100)
    other.write_text(other.read_text() + '{"prompt": "the quick 7", "completion": "another answer"}\n')
    with pytest.raises(DataError) as caught:
        read(data, **{name: other})
    hint = "Train, dev and test must not share prompts: the report would flatter the adapter."
    # The data's own part without a file may hold it just as well.
    assert str(caught.value).endswith(f"rows too. {hint}")
    assert f"{other}:4: this prompt is in the" in str(caught.value) or "data.jsonl:8: this" in str(caught.value)


def test_prompt_in_dev_and_test_is_refused(tmp_path: Path) -> None:
    data, other = write_rows(tmp_path / "data.jsonl", 20), write_rows(tmp_path / "other.jsonl", 3, 100)
    with pytest.raises(DataError, match=r"other\.jsonl:1: this prompt is in the dev rows too"):
        read(data, other, other)


@pytest.mark.parametrize(("count", "name"), [(1, "dev"), (2, "test")])
def test_too_few_rows_to_split_are_refused(tmp_path: Path, count: int, name: str) -> None:
    with pytest.raises(DataError, match=rf"^no {name} rows are left\. Give more rows, or --dev and --test files\.$"):
        read(write_rows(tmp_path / "rows.jsonl", count))


def test_limits_are_kept(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{start}.jsonl", 20, start) for start in (0, 20, 40)]
    found = read(*paths, max_examples=7, dev_examples=5, test_examples=3)
    assert found.train == as_rows(paths[0])[:7]
    assert found.dev == as_rows(paths[1])[:5]
    assert test_rows(found) == as_rows(paths[2])[:3]
    with pytest.raises(DataError, match=r"0\.jsonl:\d+: too long: \d+ tokens, the limit is 8"):
        read(*paths, max_tokens=8)


def test_record_names_the_file_and_hashes_what_was_taken(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / f"{start}.jsonl", 6, start) for start in (0, 20, 40)]
    taken = [read_examples(path)[:4] for path in paths]
    assert read(*paths, max_examples=4, dev_examples=4, test_examples=4).record == {
        "source": "0.jsonl",
        **{
            name: {"rows": 4, "sha256": data_hash(rows)}
            for name, rows in zip(("train", "dev", "test"), taken, strict=True)
        },
    }


@pytest.fixture
def teacher(made: Made, base: Base) -> Teacher:
    return Teacher(base, read_adapter(made.lora, base))


def write_prompts(path: Path, count: int = 12) -> Path:
    prompts = ["the dog " * (n % 4) + f"jumps over {n}" for n in range(count)]
    jsonl = path.suffix == ".jsonl"
    path.write_text("".join((json.dumps({"prompt": p}) if jsonl else p) + "\n" for p in prompts))
    return path


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_TOKENS", 6)


def say(monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
    monkeypatch.setattr(TorchAnswers, "answer", lambda self, encoded, *_, **__: list(answers) * len(encoded))


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_prompts_are_answered_by_the_teacher(tmp_path: Path, teacher: Teacher, name: str) -> None:
    progress = Listener()
    found = from_prompts(write_prompts(tmp_path / name), "f1", teacher, TorchAnswers(teacher.base), Data(), 0, progress)
    assert progress.notes == ["prompts left out, as the teacher's answer is empty: 1"]
    assert found.metric == "f1"
    assert found.max_new_tokens == 6
    assert found.record["source"] == name
    assert found.record["answers"] == "written by the teacher"
    assert sum(found.record[part]["rows"] for part in ("train", "dev", "test")) == 11
    parts = [prompts_of(rows) for rows in (found.train, found.dev, test_rows(found))]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 11
    assert teacher.adapter
    with attached(teacher.base.model, teacher.adapter.bypasses):
        live = generate(teacher.base.model, TOKENIZER, [row.encoded for row in found.test], max_new_tokens=6)
    assert [row.reference for row in found.test] == live


def test_text_and_json_prompts_are_the_same_material(tmp_path: Path, teacher: Teacher) -> None:
    one, other = (
        from_prompts(write_prompts(tmp_path / name), "f1", teacher, TorchAnswers(teacher.base), Data(), 0)
        for name in ("p.txt", "p.jsonl")
    )
    assert (one.train, one.dev, test_rows(one)) == (other.train, other.dev, test_rows(other))


def test_prompts_that_are_given_twice_count_once(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, " fox fox")
    path = write_prompts(tmp_path / "p.txt", 5)
    path.write_text(path.read_text() * 2)
    found = from_prompts(path, "f1", teacher, TorchAnswers(teacher.base), Data(), 0)
    assert len(found.train) + len(found.dev) + len(found.test) == 5


def test_prompts_that_only_their_answer_makes_too_long_are_left_out(
    tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch, " fox fox")
    path = write_prompts(tmp_path / "p.txt", 8)
    long = "a much longer one, which few tokens cover: 0123456789"
    path.write_text(path.read_text() + long + "\n")
    limit = len(TOKENIZER(long)["input_ids"]) + 2
    progress = Listener()
    found = from_prompts(path, "f1", teacher, TorchAnswers(teacher.base), Data(max_tokens=limit), 0, progress)
    assert progress.notes == ["prompts left out, as they exceed data.max_tokens with their answer: 1"]
    assert len(found.train) + len(found.dev) + len(found.test) == 8


def test_prompt_that_is_too_long_by_itself_is_refused_by_name(tmp_path: Path, teacher: Teacher) -> None:
    path = write_prompts(tmp_path / "p.txt", 8)
    with pytest.raises(DataError, match=r"p\.txt: '.*jumps over \d': too long: \d+ tokens, the limit is 8"):
        from_prompts(path, "f1", teacher, TorchAnswers(teacher.base), Data(max_tokens=8), 0)


def test_too_few_prompts_are_refused(tmp_path: Path, teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"expected at least 3 distinct prompts, found 2$"):
        from_prompts(write_prompts(tmp_path / "p.txt", 2), "f1", teacher, TorchAnswers(teacher.base), Data(), 0)
    say(monkeypatch, " ")
    with pytest.raises(DataError, match=r"the teacher gave an empty answer to nearly every prompt$"):
        from_prompts(write_prompts(tmp_path / "p.txt", 5), "f1", teacher, TorchAnswers(teacher.base), Data(), 0)
    say(monkeypatch, "word " * 50)
    with pytest.raises(DataError, match=r"nearly every prompt is too long with its answer\. Raise data\.max_tokens\.$"):
        from_prompts(
            write_prompts(tmp_path / "p.txt", 5), "f1", teacher, TorchAnswers(teacher.base), Data(max_tokens=40), 0
        )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b" \n\n", "expected a prompt a line, found an empty file"),
        ("p.txt", b"\xff\n", "is not UTF-8 text"),
        ("p.txt", None, "cannot be read: No such file"),
        ("p.jsonl", b'{"prompt": "a"}\nx\n', r"p\.jsonl:2: not JSON"),
        ("p.jsonl", b'{"text": "a"}\n', r'p\.jsonl:1: expected \{"prompt": "…"\}'),
        ("p.jsonl", b'{"prompt": " "}\n', r'p\.jsonl:1: expected \{"prompt"'),
        ("p.jsonl", b"[1]\n", r'p\.jsonl:1: expected \{"prompt"'),
    ],
)
def test_unusable_prompt_file_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_prompts(tmp_path / name)


LIMITS = Data(max_examples=20, dev_examples=6, test_examples=6, max_tokens=50)


def test_teacher_writes_its_own_text_where_there_is_none(teacher: Teacher) -> None:
    progress = Listener()
    found = from_nothing(teacher, TorchAnswers(teacher.base), LIMITS, 0, progress)
    assert progress.notes == ["no data: the teacher writes 32 texts of 50 tokens; their continuations score by rougeL"]
    assert found.record == {"source": "texts written by the teacher", "rows": 32, "tokens_each": 50}
    assert (found.metric, found.max_new_tokens) == ("rougeL", module.CONTINUATION)
    assert (len(found.test), len(found.dev), len(found.train)) == (6, 3, 23)
    for row in (*found.train, *found.dev):
        assert (len(row.ids), row.num_answer) == (50, 49)
    starts = [row.encoded.prompt_ids for row in found.test]
    assert {len(start) for start in starts} == {50 - module.CONTINUATION}
    others = {tuple(row.ids[: 50 - module.CONTINUATION]) for row in (*found.train, *found.dev)}
    assert not others & set(map(tuple, starts))


def test_references_of_own_texts_are_the_teacher_s_answers(teacher: Teacher) -> None:
    found = from_nothing(teacher, TorchAnswers(teacher.base), LIMITS, 0)
    assert teacher.adapter
    with attached(teacher.base.model, teacher.adapter.bypasses):
        encoded = [row.encoded for row in found.test]
        live = generate(teacher.base.model, TOKENIZER, encoded, max_new_tokens=module.CONTINUATION)
    assert [row.reference for row in found.test] == live


def test_documents_and_conversations_are_both_trained_on_and_scored(teacher: Teacher) -> None:
    found = from_nothing(teacher, TorchAnswers(teacher.base), LIMITS, 0)
    turn = TOKENIZER("<|im_start|>user", add_special_tokens=False)["input_ids"]
    for rows in (found.train, [*found.dev, *test_rows(found)]):
        assert {row.ids[: len(turn)] == turn for row in rows} == {True, False}


def test_own_texts_are_the_seed_s(teacher: Teacher) -> None:
    one, same, other = (from_nothing(teacher, TorchAnswers(teacher.base), LIMITS, seed) for seed in (1, 1, 2))
    assert one == same
    assert one.train != other.train


def test_teacher_without_words_is_refused(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^data\.max_tokens: 40 is too short for texts that the teacher writes"):
        from_nothing(teacher, TorchAnswers(teacher.base), Data(max_tokens=40), 0)
    say(monkeypatch, "\n")
    with pytest.raises(UsageError, match=r"goes on with no text that it began\. Give --data or --prompts\.$"):
        from_nothing(teacher, TorchAnswers(teacher.base), LIMITS, 0)
    monkeypatch.setattr(module, "write_text", lambda *_, **__: [[5] * 50] * 32)
    with pytest.raises(UsageError, match=r"the same text again and again\. Give --data or --prompts\.$"):
        from_nothing(teacher, TorchAnswers(teacher.base), LIMITS, 0)


def test_calibration_takes_the_first_rows_without_padding() -> None:
    rows = [Row([n] * length, 1) for n, length in enumerate((4, 6, 4, 5, 9))]
    found = calibration_batches(rows, 15)
    assert [batch.tolist() for batch in found] == [[[0] * 4, [2] * 4], [[1] * 6], [[3] * 5]]
    assert sum(batch.numel() for batch in calibration_batches(rows, 10_000)) == 28
    assert all(batch.dtype == torch.long for batch in found)
