"""Sampling beside transformers' processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from regraft.engine.request import SamplingParams
from regraft.engine.run.sampler import NonFiniteLogitsError, Sampler

VOCABULARY = 600


def make_logits(seed: int, size: int = VOCABULARY) -> Any:
    return (3 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def theirs(logits: Any, seen: list[int], params: SamplingParams) -> Any:
    """The distribution that transformers would draw from."""
    steps: list[Any] = [RepetitionPenaltyLogitsProcessor(params.repetition_penalty)] if seen else []
    steps.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k is not None:
        steps.append(TopKLogitsWarper(params.top_k))
    steps += [TopPLogitsWarper(params.top_p), MinPLogitsWarper(params.min_p)]
    ids = torch.tensor([seen], dtype=torch.long)
    return LogitsProcessorList(steps)(ids, torch.tensor(logits)[None]).softmax(-1)[0].numpy()


def ours(logits: Any, seen: list[int], params: SamplingParams) -> Any:
    sampler = Sampler(params, seen)
    tokens, weights = sampler._kept(sampler._tempered(sampler._penalised(logits)))
    result = np.zeros(len(logits))
    result[tokens] = weights / weights.sum()
    return result


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.2, 3),
    top_k=st.none() | st.integers(1, 700),
    top_p=st.just(1.0) | st.floats(0.05, 0.99),
    min_p=st.just(0.0) | st.floats(0.001, 0.9),
    penalty=st.just(1.0) | st.floats(0.5, 2),
    seen=st.lists(st.integers(0, VOCABULARY - 1), max_size=20),
)
def test_the_distribution_is_that_of_transformers(
    seed: int, temperature: float, top_k: int | None, top_p: float, min_p: float, penalty: float, seen: list[int]
) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty)
    logits = make_logits(seed)
    found, wanted = ours(logits, seen, params), theirs(logits, seen, params)
    # A token at the very edge of a cut may fall on either side of it.
    differing = (found > 0) != (wanted > 0)
    assert differing.sum() <= 1
    assert np.abs(found - wanted).max() < (1e-4 if not differing.any() else wanted.max() * 0.5 + 0.5)


@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_a_flat_distribution_keeps_more_than_the_head(top_p: float) -> None:
    params = SamplingParams(temperature=1.0, top_p=top_p)
    logits = make_logits(0, 4000) / 100
    assert (ours(logits, [], params) > 0).sum() == pytest.approx((theirs(logits, [], params) > 0).sum(), abs=1)


def test_draws_follow_the_distribution() -> None:
    logits = make_logits(1, 12)
    sampler = Sampler(SamplingParams(temperature=1.5, top_k=6, seed=3))
    counts = np.bincount([sampler.draw(logits).token for _ in range(20000)], minlength=12)
    expected = theirs(logits, [], SamplingParams(temperature=1.5, top_k=6))
    assert np.abs(counts / 20000 - expected).max() < 0.02
    assert not counts[expected == 0].any()


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = np.array([1, 5, 2, 5, 0], np.float32)
    assert Sampler(SamplingParams()).draw(logits).token == 1


def test_a_seed_repeats_the_draws_and_none_does_not() -> None:
    logits = make_logits(2) / 10

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed))
        return [sampler.draw(logits).token for _ in range(20)]

    assert draws(5) == draws(5) != draws(6)
    assert draws(None) != draws(None)


def test_frequency_and_presence_count_the_answer_only() -> None:
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    sampler = Sampler(params, prompt=[0, 0, 0])
    logits = np.array([1.0, 0.9, 0.0], np.float32)
    # 1.0 .9 → 0; .25 .9 → 1; .25 .15 → 0; -.25 .15 → 1; -.25 -.35 0 → 2; -.25 -.35 -.75 → 0
    assert [sampler.draw(logits).token for _ in range(6)] == [0, 1, 0, 1, 2, 0]


def test_logprobs_are_of_the_distribution_before_any_change() -> None:
    logits = make_logits(4)
    wanted = torch.tensor(logits).log_softmax(-1).numpy()
    drawn = Sampler(SamplingParams(temperature=2.0, repetition_penalty=1.5, logprobs=3, seed=0), [7]).draw(logits)
    assert drawn.logprob == pytest.approx(wanted[drawn.token], abs=1e-4)
    order = np.argsort(-wanted)[:3]
    assert [token for token, _ in drawn.likeliest] == order.tolist()
    assert [value for _, value in drawn.likeliest] == pytest.approx(wanted[order], abs=1e-4)
    assert Sampler(SamplingParams(logprobs=0)).draw(logits).likeliest == ()
    assert Sampler(SamplingParams()).draw(logits).logprob is None


def test_logits_stay_as_they_are() -> None:
    logits = make_logits(5)
    before = logits.copy()
    Sampler(SamplingParams(temperature=1.0, repetition_penalty=2.0, top_p=0.5), [1, 2]).draw(logits)
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_an_error(value: float) -> None:
    logits = make_logits(6)
    logits[17] = value
    with pytest.raises(NonFiniteLogitsError):
        Sampler(SamplingParams(temperature=1.0)).draw(logits)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-45, 1e-20, 1.0, 9e18])
@pytest.mark.parametrize(
    "others",
    [
        {},
        {"top_p": 5e-324},
        {"min_p": 1.0},
        {"min_p": 5e-324},
        {"top_k": 1},
        {"top_k": 2**63 - 1},
        {"repetition_penalty": 5e-324},
        {"repetition_penalty": 9e18},
        {"frequency_penalty": 2.0, "presence_penalty": -2.0},
    ],
    ids=str,
)
def test_extreme_parameters_draw_what_they_say(temperature: float, others: dict[str, Any]) -> None:
    logits = make_logits(4)
    best, seen = int(logits.argmax()), int(np.argsort(logits)[-2])
    sampler = Sampler(SamplingParams(temperature=temperature, seed=2**63 - 1, logprobs=20, **others), [seen, best])
    drawn = [sampler.draw(logits) for _ in range(4)]
    if "frequency_penalty" in others:
        return
    if others.get("repetition_penalty") == 9e18:
        assert not {best, seen} & {each.token for each in drawn} or temperature == 9e18
    elif others.get("repetition_penalty"):
        assert {each.token for each in drawn} <= {best, seen}  # both are as likely as anything can be
    elif temperature < 1e-19 or others.get("top_k") == 1 or "top_p" in others:
        assert {each.token for each in drawn} == {best}
    assert all(np.isfinite([each.logprob, *(logprob for _, logprob in each.likeliest)]).all() for each in drawn)


class Alternating:
    """Allows even tokens, then odd ones, and so on."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def allowed(self) -> NDArray[np.bool_]:
        return np.arange(8) % 2 == len(self.accepted) % 2

    def accept(self, token: int) -> None:
        self.accepted.append(token)


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=1.0, top_p=0.9, top_k=5, seed=1)])
def test_a_constraint_rules_out_tokens_and_is_told_of_each(params: SamplingParams) -> None:
    constraint = Alternating()
    sampler = Sampler(params, constraint=constraint)
    logits = np.linspace(0, 3, 10, dtype=np.float32)  # two more than the constraint knows
    drawn = [sampler.draw(logits).token for _ in range(20)]
    assert [token % 2 for token in drawn] == [0, 1] * 10
    assert drawn == constraint.accepted
    assert max(drawn) < 8
