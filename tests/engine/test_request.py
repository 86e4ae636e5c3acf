from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from regraft.engine.mix import Mix
from regraft.engine.request import FinishReason, Request, SamplingParams, Scoring
from regraft.engine.schedule.limits import Limits
from regraft.errors import UsageError

RIGHT: dict[str, Any] = {"id": "r", "prompt": (1, 2), "max_tokens": 3}
BIG = 10**400


def test_defaults_are_greedy_on_the_base_alone() -> None:
    request = Request(**RIGHT)
    assert (request.mix, request.sampling.temperature, request.deadline_s) == (Mix(), 0.0, None)


def test_requests_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Request(**RIGHT).max_tokens = 4  # type: ignore[misc]


def test_finish_reasons_are_their_own_text() -> None:
    assert [*FinishReason] == ["stop", "length", "cancelled", "deadline", "error"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("id", "", "a request's id: expected a string, found ''"),
        ("prompt", (), "r: prompt: expected at least one token, found (). A prompt that says nothing still begins"),
        ("prompt", (1, -1), "r: prompt: expected ids from 0 to 2147483647, found [-1]"),
        ("prompt", (1, 2**31), "r: prompt: expected ids"),
        ("prompt", (1, 2.0), "r: prompt: expected ids"),
        ("prompt", (1, True), "r: prompt: expected ids"),
        ("max_tokens", 0, "r: max_tokens: expected an integer of at least 1, found 0"),
        ("max_tokens", -1, "r: max_tokens: expected"),
        ("max_tokens", 1.5, "r: max_tokens: expected"),
        ("max_tokens", True, "r: max_tokens: expected"),
        ("priority", 0.5, "r: priority: expected an integer"),
        ("deadline_s", math.nan, "r: deadline_s: expected a finite number of seconds, found nan"),
        ("deadline_s", math.inf, "r: deadline_s: expected"),
        ("deadline_s", "soon", "r: deadline_s: expected"),
        ("deadline_s", BIG, "r: deadline_s: expected"),
        ("stop", ("",), "r: stop: expected strings of text, found ''"),
        ("stop_token_ids", frozenset({-1}), "r: stop_token_ids: expected ids"),
        ("mix", Mix((("a", math.nan),)), "r: weight of adapter a: expected a finite number, found nan"),
        ("mix", Mix((("a", math.inf),)), "r: weight of adapter a: expected"),
        ("mix", Mix((("a", 0.5), ("a", 0.5))), "r: mix: expected each adapter once, found ['a', 'a']"),
        ("mix", Mix((("", 1.0),)), "r: mix: expected adapters by name"),
        ("scoring", Scoring(tokens=2), "r: tokens to score: expected fewer than the prompt's 2, whose first nothing"),
        ("scoring", 1, "r: scoring: expected Scoring, found 1"),
    ],
)
def test_wrong_requests_are_refused_in_one_line(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Request(**RIGHT | {field: value})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "temperature: expected a finite number of at least 0, found -0.1"),
        ("temperature", math.nan, "temperature: expected"),
        ("temperature", math.inf, "temperature: expected"),
        ("temperature", BIG, "temperature: expected"),
        ("temperature", None, "temperature: expected"),
        ("top_k", 0, "top_k: expected an integer of at least 1, found 0"),
        ("top_k", -1, "top_k: expected"),
        ("top_p", 0.0, "top_p: expected a number above 0 and at most 1, found 0.0"),
        ("top_p", 1.1, "top_p: expected"),
        ("min_p", -0.1, "min_p: expected a number between 0 and 1, found -0.1"),
        ("min_p", math.nan, "min_p: expected"),
        ("repetition_penalty", 0.0, "repetition_penalty: expected a finite number above 0, found 0.0"),
        ("frequency_penalty", 2.1, "frequency_penalty: expected a number between -2 and 2, found 2.1"),
        ("presence_penalty", -math.inf, "presence_penalty: expected a number between -2 and 2, found -inf"),
        ("seed", -1, "seed: expected an integer of at least 0, found -1"),
        ("seed", 1.0, "seed: expected"),
        ("logprobs", 21, "logprobs: expected an integer between 0 and 20, found 21"),
    ],
)
def test_wrong_sampling_is_refused_in_one_line(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as error:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize(
    "right",
    [
        {"temperature": 0, "top_k": 1, "top_p": 1, "min_p": 0, "seed": 0, "logprobs": 0},
        {"temperature": 2.5, "top_k": None, "top_p": 1e-9, "min_p": 1.0, "repetition_penalty": 0.5, "logprobs": 20},
        {"frequency_penalty": -2, "presence_penalty": 2},
    ],
)
def test_bounds_belong_to_the_range(right: dict[str, Any]) -> None:
    assert SamplingParams(**right).temperature >= 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("context_tokens", 1, "context_tokens: expected an integer of at least 2"),
        ("page_tokens", 0, "page_tokens: expected"),
        ("max_sequences", 0, "max_sequences: expected"),
        (
            "step_tokens",
            63,
            "step_tokens, of which each running sequence needs one: expected an integer of at least 64",
        ),
        ("lookahead", 0, "lookahead: expected"),
        ("turn_every", 0, "turn_every: expected"),
        ("margin_s", -1.0, "margin_s: expected"),
        ("margin_s", math.nan, "margin_s: expected"),
        ("cluster_adapters", 0, "cluster_adapters: expected"),
    ],
)
def test_wrong_limits_are_refused_in_one_line(field: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as error:
        Limits(**{"context_tokens": 100} | {field: value})  # type: ignore[arg-type]
    assert message in str(error.value)


def test_only_what_is_scored_may_go_without_an_answer() -> None:
    scored = {**RIGHT, "max_tokens": 0, "scoring": Scoring(tokens=1)}
    assert Request(**scored).max_tokens == 0
    with pytest.raises(UsageError, match="r: max_tokens: expected an integer of at least 1, found 0"):
        Request(**scored, hidden=True)


@pytest.mark.parametrize(("field", "value"), [("tokens", 0), ("tokens", True), ("likeliest", -1), ("likeliest", 21)])
def test_wrong_scorings_are_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match="expected an integer"):
        Scoring(**{"tokens": 1, field: value})  # type: ignore[arg-type]
