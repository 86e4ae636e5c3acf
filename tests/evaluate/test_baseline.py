"""What is answered without the adapter: which shots, in which place, and what is said where they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.evaluate.answers import longest_answer
from regraft.evaluate.baseline import (
    NUM_SHOTS,
    Shots,
    answer_without_adapter,
    best_kind,
    cut_shots,
    encode_with_shots,
    majority_answer,
    with_shots,
)
from regraft.evaluate.dataset import Encoded, Example, encode
from regraft.evaluate.torch_answers import TorchAnswers
from regraft.models.load import load_base
from tests.tiny import make_base, make_tokenizer

TOKENIZER = make_tokenizer()


def plain(number: int, answer: str | None = None) -> Example:
    return Example(None, f"the quick {number}", answer or f" fox {number}")


def chat(number: int, system: str | None = None) -> Example:
    turns = [("system", system), ("user", f"the lazy {number}")]
    messages = tuple({"role": role, "content": text} for role, text in turns if text)
    return Example(messages, None, f"dog {number}")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> TorchAnswers:
    return TorchAnswers(load_base(make_base(tmp_path_factory.mktemp("baseline") / "base")))


def test_plain_shots_come_before_with_a_blank_line_after_each() -> None:
    found = with_shots(plain(9), [plain(1), plain(2)])
    assert found.prompt == "the quick 1 fox 1\n\nthe quick 2 fox 2\n\nthe quick 9"
    assert (found.answer, found.messages) == (" fox 9", None)


def test_shots_of_a_conversation_are_earlier_turns_behind_its_own_system_message() -> None:
    found = with_shots(chat(9, "be brief"), [chat(1, "be long"), chat(2)])
    assert found.messages is not None
    assert [(turn["role"], turn["content"]) for turn in found.messages] == [
        ("system", "be brief"),
        *(("user", "the lazy 1"), ("assistant", "dog 1"), ("user", "the lazy 2"), ("assistant", "dog 2")),
        ("user", "the lazy 9"),
    ]
    without = with_shots(chat(9), [chat(1, "be long")])
    assert without.messages is not None and without.messages[0] == {"role": "user", "content": "the lazy 1"}


def test_shots_are_the_seed_s_and_of_the_row_s_own_form() -> None:
    train = [make(number) for number in range(40) for make in (plain, chat)]
    shots = Shots.choose(train, 1)
    assert shots == Shots.choose(train, 1) != Shots.choose(train, 2)
    assert len(shots.of(plain(99))) == len(shots.of(chat(99))) == NUM_SHOTS
    assert all(shot.messages is None for shot in shots.of(plain(99)))
    assert all(shot.messages is not None for shot in shots.of(chat(99)))
    assert all(shot in train for shot in shots.of(plain(99)))
    assert Shots.choose([plain(1)], 0).of(plain(2)) == (plain(1),)


@pytest.mark.parametrize("make", [plain, chat])
def test_a_row_has_as_many_shots_as_fit(make: type) -> None:
    shots = Shots.choose([make(number) for number in range(9)], 0)
    rows = [make(90), make(91)]
    lengths = [
        len(encode(with_shots(rows[0], shots.of(rows[0])[:count]), TOKENIZER).prompt_ids)
        for count in range(NUM_SHOTS + 1)
    ]
    assert encode_with_shots(rows, shots, TOKENIZER, lengths[5])[1] == ""
    found, note = encode_with_shots(rows[:1], shots, TOKENIZER, lengths[3])
    assert len(found[0].prompt_ids) == lengths[3]
    assert note == "1 of 1 rows have fewer than 5 shots, the fewest 3"
    found, note = encode_with_shots(rows[:1], shots, TOKENIZER, lengths[0] - 1)  # too long by itself: as it is
    assert len(found[0].prompt_ids) == lengths[0]
    assert note.endswith("the fewest 0")


def test_answers_after_plain_shots_end_at_the_blank_line() -> None:
    rows = [plain(1), plain(2), plain(3, "a\n\nb"), chat(4)]
    said = ["\n\n fox 1\n\nthe quick 7", "fox 2", "a\n\nb", "a\n\nb"]
    assert cut_shots(rows, said) == ["fox 1", "fox 2", "a\n\nb", "a\n\nb"]


def test_the_majority_is_the_most_common_answer_and_of_equals_the_first() -> None:
    assert majority_answer([plain(1, " b"), plain(2, "a"), plain(3, "b ")]) == "b"
    assert majority_answer([plain(1, "b"), plain(2, "a")]) == "b"


def test_the_best_kind_is_taken_and_of_equals_the_first() -> None:
    assert best_kind({"zero_shot": [0, 0], "five_shot": [1, 0], "majority": [0, 1]}) == "five_shot"
    assert best_kind({"zero_shot": [0, 0], "majority": [0, 0]}) == "zero_shot"


def test_all_three_answer_every_row(answers: TorchAnswers) -> None:
    train, test = [plain(number, f" fox {number % 2}") for number in range(20)], [plain(n) for n in range(30, 36)]
    encoded = [encode(row, answers.tokenizer) for row in test]
    found = answer_without_adapter(answers, encoded, test, train, seed=3)
    shots = Shots.choose(train, 3)
    shown = [encode(with_shots(row, shots.of(row)), answers.tokenizer) for row in test]
    assert found.answers["zero_shot"] == answers.answer(encoded)
    assert found.answers["five_shot"] == cut_shots(test, answers.answer(shown, max_new_tokens=longest_answer(encoded)))
    assert found.answers["majority"] == ["fox 0"] * 6
    assert found.notes == {}
    values = found.values(lambda said, wanted: float(len(said) > 0), [row.answer for row in test])
    assert values["majority"] == [1.0] * 6


def test_the_shots_leave_room_for_the_answer(answers: TorchAnswers) -> None:
    long = Example(None, "the quick " * 100, " fox")
    train = [long] * 9
    found = answer_without_adapter(answers, [encode(long, answers.tokenizer)], [long], train)
    assert found.notes["five_shot"].startswith("1 of 1 rows have fewer than 5 shots")


def test_without_train_rows_only_zero_shot_is_known(answers: TorchAnswers) -> None:
    for test, train in (([plain(1)], []), ([], [plain(1)])):
        found = answer_without_adapter(answers, [Encoded([5, 6], [4])], test, train)
        missing = "not known: there are no train rows of prompt and answer"
        assert (list(found.answers), found.notes) == (["zero_shot"], {"five_shot": missing, "majority": missing})


def test_a_template_that_takes_no_earlier_answers_leaves_the_others(tmp_path: Path) -> None:
    base = load_base(make_base(tmp_path / "base"))
    base.tokenizer.chat_template = (
        "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0]['content'] }}"
    )
    test, train = [chat(1)], [chat(n) for n in range(2, 9)]
    found = answer_without_adapter(TorchAnswers(base), [Encoded([5, 6], [4])], test, train)
    assert list(found.answers) == ["zero_shot", "majority"]
    assert found.notes["five_shot"] == "not known: the base's chat template refuses it: one turn"
