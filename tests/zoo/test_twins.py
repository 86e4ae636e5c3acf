import string

from hypothesis import given
from hypothesis import strategies as st

from zoo.rows import Row
from zoo.twins import find_twin_rows, find_twins, grams, jaccard

TEXT = st.text(string.ascii_letters + " ,.", max_size=60)


def slow_twins(texts: list[str], others: list[str], threshold: float) -> set[tuple[int, int]]:
    """Every pair, measured one by one."""

    def five(text: str) -> set[str]:
        plain = " ".join(text.casefold().split())
        return {plain[i : i + 5] for i in range(len(plain) - 4)} or {plain}

    pairs = [(i, j, five(a), five(b)) for i, a in enumerate(texts) for j, b in enumerate(others)]
    return {(i, j) for i, j, a, b in pairs if len(a & b) / len(a | b) > threshold}


@st.composite
def edited(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Texts, and others of which some are the same texts with a few characters changed."""
    texts = draw(st.lists(TEXT, min_size=1, max_size=6))
    others = draw(st.lists(TEXT, max_size=4))
    for text in draw(st.lists(st.sampled_from(texts), max_size=4)):
        place = draw(st.integers(0, len(text)))
        others.append(text[:place] + draw(st.text("xyz", max_size=2)) + text[place + draw(st.integers(0, 2)) :])
    return texts, others


@given(edited(), st.sampled_from([0.3, 0.5, 0.8, 0.9]))
def test_twins_are_those_of_the_slow_truth(sides: tuple[list[str], list[str]], threshold: float) -> None:
    texts, others = sides
    slow = slow_twins(texts, others, threshold)
    firsts = {i: min(j for ii, j in slow if ii == i) for i, _ in slow}
    assert find_twins(texts, others, threshold) == firsts


def test_a_changed_letter_in_a_long_text_is_a_near_twin() -> None:
    text = "the vessel ran aground off the northern coast late on tuesday evening"
    assert find_twins(["something else altogether", text], [text.replace("tuesday", "Thursday")]) == {1: 0}


def test_a_jaccard_of_exactly_the_threshold_is_no_twin() -> None:
    a, b = grams("abcdefgh"), grams("abcdefghi")  # 4 grams, and one more
    assert jaccard(a, b) == 0.8
    assert find_twins(["abcdefgh"], ["abcdefghi"]) == {}
    assert find_twins(["abcdefghi"], ["abcdefghij"]) == {0: 0}


def test_short_texts_are_twins_where_they_are_equal() -> None:
    assert find_twins(["Yes", "no"], ["yes "]) == {0: 0}


def test_whole_prompts_are_compared_where_they_are_mostly_text() -> None:
    def row(text: str, instruction: str) -> Row:
        return Row(f"{text}{instruction}", "a", text, (text,))

    first, second = "open the kitchen window at noon, please", "open the kitchen window at nine, please"
    assert jaccard(grams(first), grams(second)) < 0.8
    assert not find_twins([first], [second])
    instruction = " and tell me which device it was"  # the same in both; with it, four fifths are
    assert find_twin_rows([row(first, instruction)], [row(second, instruction)]) == {0: 0}
    # An instruction that is longer than both makes everything alike, and says nothing.
    assert find_twin_rows([row("cat", " is an animal: yes or no?")], [row("dog", " is an animal: yes or no?")]) == {}
