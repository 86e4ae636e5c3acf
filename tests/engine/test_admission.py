from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.engine.mix import Mix
from regraft.engine.schedule.forecast import Demand, Forecast, peak_pages
from regraft.engine.schedule.sequence import Sequence
from tests.engine.made import Driver, request

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))  # tokens, left


def pages_held(demand: Demand, num_generated: int, page_tokens: int) -> set[object]:
    """Those it shares, then its own."""
    num_pages = -(-(demand.tokens + num_generated) // page_tokens)
    own = [(id(demand), number) for number in range(num_pages - len(demand.shared))]
    return {*demand.shared, *own}


def simulated_peak(demands: list[Demand], page_tokens: int) -> int:
    """Every sequence is held up as long as it may be, but only once it is grown: the worst."""
    peak = 0
    for step in range(max((demand.last_step for demand in demands), default=-1) + 1):
        held: set[object] = set()
        for demand in demands:
            if step <= demand.last_step:
                held |= pages_held(demand, min(step, demand.left - 1), page_tokens)
        peak = max(peak, len(held))
    return peak


def demand(tokens: int, left: int, delay: int = 0, shared: frozenset[int] = frozenset()) -> Demand:
    return Demand(tokens, left, left - 1 + delay, shared)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9)), max_size=12), st.integers(1, 9))
def test_the_peak_is_that_of_a_simulation(sizes: list[tuple[int, int, int]], page_tokens: int) -> None:
    demands = [demand(*size) for size in sizes]
    assert peak_pages(demands, page_tokens) == simulated_peak(demands, page_tokens)


@given(st.lists(st.tuples(SIZES, st.integers(0, 5), st.integers(0, 3)), max_size=10), st.integers(1, 5))
def test_a_shared_page_counts_once(sizes: list[tuple[tuple[int, int], int, int]], page_tokens: int) -> None:
    demands = []
    for (tokens, left), num_shared, family in sizes:
        shared = frozenset(family * 100 + number for number in range(min(num_shared, tokens // page_tokens)))
        demands.append(demand(tokens, left, 0, shared))
    assert peak_pages(demands, page_tokens) == simulated_peak(demands, page_tokens)


@given(st.lists(SIZES, min_size=1, max_size=12))
def test_with_pages_of_one_token_it_is_s_loras_formula(sizes: list[tuple[int, int]]) -> None:
    # left_i · i + Σ run_j, in the order of left; S-LoRA's left has one less, of the last token nothing is kept.
    runs = sorted(sizes, key=lambda size: -size[1])
    need = max((left - 1) * i + sum(run for run, _ in runs[:i]) for i, (_, left) in enumerate(runs, 1))
    assert peak_pages([demand(*size) for size in sizes], 1) == need


@given(st.lists(st.tuples(SIZES, st.integers(0, 9)), max_size=8), st.integers(1, 9), st.integers(0, 2**32))
def test_no_way_of_holding_sequences_up_needs_more(
    sizes: list[tuple[tuple[int, int], int]], page_tokens: int, seed: int
) -> None:
    rng = random.Random(seed)
    demands = [demand(*size, delay) for size, delay in sizes]
    delays, generated = [delay for _, delay in sizes], [0] * len(sizes)
    bound = peak_pages(demands, page_tokens)
    while any(done < each.left for done, each in zip(generated, demands, strict=True)):
        running = [i for i, each in enumerate(demands) if generated[i] < each.left]
        assert sum(len(pages_held(demands[i], generated[i], page_tokens)) for i in running) <= bound
        for i in running:
            if delays[i] and rng.random() < 0.5:
                delays[i] -= 1
            else:
                generated[i] += 1


@given(st.lists(SIZES, min_size=1, max_size=12), st.integers(1, 6))
def test_the_forecast_is_what_the_scheduler_comes_to_use(sizes: list[tuple[int, int]], page_tokens: int) -> None:
    driver = Driver(num_pages=1000, page_tokens=page_tokens, step_tokens=1000)
    sequences = [
        driver.submit(request(str(number), prompt=prompt, max_tokens=max_tokens))
        for number, (prompt, max_tokens) in enumerate(sizes)
    ]
    forecast = Forecast(sequences, step_tokens=1000, page_tokens=page_tokens).peak_pages()
    used = 0
    while driver.scheduler.num_waiting or driver.scheduler.num_running:
        plan = driver.plan()
        used = max(used, len({page for row in plan.rows for page in row.sequence.pages}))
        driver.commit(plan)
    assert used == forecast


def as_after(num_computed: int, num_generated: int, prompt: int, max_tokens: int) -> Sequence:
    made = request("r", prompt=prompt, max_tokens=max_tokens)
    sequence = Sequence(made, Mix(), max_tokens=max_tokens, root_digest=b"")
    sequence.tokens += [0] * num_generated
    sequence.num_computed = num_computed
    return sequence


def test_prefill_is_as_long_as_it_takes_beside_the_others_decoding() -> None:
    decoding = as_after(num_computed=8, num_generated=1, prompt=8, max_tokens=4)
    prefilling = as_after(num_computed=0, num_generated=0, prompt=8, max_tokens=1)
    # With a step of 9 the prompt is through at once; with one of 3 it takes 4 steps, when the other has ended.
    assert Forecast([decoding, prefilling], step_tokens=9, page_tokens=1).peak_pages() == 17
    assert Forecast([decoding, prefilling], step_tokens=3, page_tokens=1).peak_pages() == 19


def test_hits_are_neither_computed_nor_counted_again() -> None:
    running = as_after(num_computed=8, num_generated=1, prompt=8, max_tokens=9)
    running.cached_pages = set(range(8))
    newcomer = as_after(num_computed=0, num_generated=0, prompt=9, max_tokens=1)
    forecast = Forecast([running], step_tokens=2, page_tokens=1)
    assert forecast.peak_pages(newcomer, hits=range(8)) == 16
    assert forecast.peak_pages(newcomer) == 25
    assert forecast.fits(16, newcomer, range(8))
    assert not forecast.fits(15, newcomer, range(8))


@pytest.mark.parametrize("num_running", [0, 1, 3])
def test_without_a_newcomer_the_forecast_is_of_what_runs(num_running: int) -> None:
    running = [as_after(num_computed=4, num_generated=1, prompt=4, max_tokens=3) for _ in range(num_running)]
    assert Forecast(running, step_tokens=3, page_tokens=2).peak_pages() == 3 * num_running
