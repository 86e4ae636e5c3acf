"""S-LoRA's arrivals: gaps, popularity and lengths are of the laws that they are said to be of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.trace import make_trace

COUNT = 20_000


def trace(**changed: Any) -> Any:
    options: dict[str, Any] = {
        "count": COUNT,
        "rate": 4.0,
        "cv": 1.0,
        "alpha": 0.3,
        "adapters": 50,
        "prompts": 7,
        "lengths": (8, 64),
        "seed": 0,
    }
    return make_trace(**options | changed)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.5, 10.0])
def test_gaps_have_the_mean_and_the_variation_asked_for(rate: float, cv: float) -> None:
    times = np.array([arrival.time_s for arrival in trace(rate=rate, cv=cv)])
    gaps = np.diff(times, prepend=0)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_popularity_is_the_power_law(alpha: float) -> None:
    adapters = 50
    counts = np.bincount([arrival.adapter for arrival in trace(alpha=alpha)], minlength=adapters)
    edges = (np.arange(adapters + 1) / adapters) ** alpha
    wanted = COUNT * np.diff(edges)
    assert len(counts) == adapters
    assert (np.abs(counts - wanted) < 5 * np.sqrt(wanted) + 1).all()


def test_one_adapter_takes_everything() -> None:
    assert {arrival.adapter for arrival in trace(adapters=1)} == {0}


def test_prompts_and_lengths_are_uniform_between_their_ends() -> None:
    arrivals = trace()
    lengths, prompts = ([getattr(arrival, name) for arrival in arrivals] for name in ("max_tokens", "prompt"))
    assert (min(lengths), max(lengths)) == (8, 64) and np.mean(lengths) == pytest.approx(36, rel=0.02)
    assert set(prompts) == set(range(7))


def test_more_adapters_leave_times_prompts_and_lengths_as_they_are() -> None:
    few, many = trace(adapters=5, alpha=0.1), trace(adapters=1000, alpha=1.0)
    assert [(a.time_s, a.prompt, a.max_tokens) for a in few] == [(a.time_s, a.prompt, a.max_tokens) for a in many]
    assert [a.adapter for a in few] != [a.adapter for a in many]
    assert trace(seed=1) != trace() == trace()
