from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.stop import StopStrings

LETTERS = st.text("ab\n", max_size=12)


@given(text=LETTERS, stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), seed=st.integers(0, 99))
def test_pieces_end_where_the_whole_text_does(text: str, stops: list[str], seed: int) -> None:
    rng, watcher, shown, rest = random.Random(seed), StopStrings(stops), "", text
    while rest:
        cut = rng.randint(1, len(rest))
        shown += watcher.push(rest[:cut])
        assert text.startswith(shown)
        rest = rest[cut:]
    shown += watcher.flush()
    places = [text.find(stop) for stop in stops if stop in text]
    assert watcher.found == bool(places)
    if not places:
        assert shown == text
    else:  # the piece that completes a stop string may hold an earlier end of a longer one
        assert shown == text[: len(shown)] and not any(stop in shown for stop in stops)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    watcher = StopStrings(["###"])
    assert [watcher.push(piece) for piece in ("ab#", "#c", "#", "##x", "more")] == ["ab", "##c", "", "", ""]
    assert watcher.found


@pytest.mark.parametrize("stops", [[], ["zz"]])
def test_without_a_stop_everything_is_shown(stops: list[str]) -> None:
    watcher = StopStrings(stops)
    assert watcher.push("abc") + watcher.push("z") + watcher.flush() == "abcz"
