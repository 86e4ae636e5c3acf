from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.schedule.step_plan import split_prefill


@given(st.integers(0, 100), st.lists(st.integers(1, 60), max_size=10))
def test_the_budget_is_used_up_and_the_first_gets_half(budget: int, remaining: list[int]) -> None:
    chunks = split_prefill(budget, remaining)
    assert sum(chunks) == min(budget, sum(remaining))
    assert all(0 <= chunk <= rest for chunk, rest in zip(chunks, remaining, strict=True))
    assert not remaining or chunks[0] >= min(remaining[0], budget / 2)


@pytest.mark.parametrize(
    ("budget", "remaining", "chunks"),
    [
        (8, [20], [8]),
        (8, [20, 3], [5, 3]),
        (8, [20, 9, 3], [4, 1, 3]),
        (8, [2, 9, 3], [2, 3, 3]),
        (1, [20, 3], [1, 0]),
        (0, [20, 3], [0, 0]),
    ],
)
def test_what_the_first_leaves_goes_to_the_shortest(budget: int, remaining: list[int], chunks: list[int]) -> None:
    assert split_prefill(budget, remaining) == chunks
