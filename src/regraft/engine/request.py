"""Requests to the engine: a prompt, a mix of adapters, limits, and sampling parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from regraft.engine.checks import MAX_INTEGER, check, check_integer, check_number
from regraft.engine.constraint import Constraint
from regraft.engine.mix import Mix, check_mix

MAX_LOGPROBS = 20  # OpenAI's limit
MAX_PENALTY = 2.0  # OpenAI's limit, either way, for the frequency and the presence penalty
MAX_TOKEN_ID = 2**31 - 1  # the native core's int32

Tenant = tuple[str, ...]  # who is counted in what is served


class FinishReason(StrEnum):
    """Why a sequence has ended."""

    STOP = "stop"  # a stop string or token
    LENGTH = "length"  # max_tokens, or the end of the context
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next token is drawn from the logits.

    Args:
        temperature: divides the logits; 0 is greedy.
        top_k: only the so many likeliest tokens; None for all.
        top_p: only the likeliest tokens that reach this probability together, in (0, 1].
        min_p: only tokens of at least this share of the likeliest one's probability, in [0, 1].
        repetition_penalty: divides positive logits of tokens seen in prompt or answer, multiplies negative ones.
        frequency_penalty: subtracted from a token's logit for each time that the answer has it, in [-2, 2].
        presence_penalty: subtracted once if the answer has the token, in [-2, 2].
        seed: makes the draw repeatable; None for another one each time.
        logprobs: report the drawn token's log probability and those of so many likeliest ones; None for neither.

    Raises:
        UsageError: a value out of its range, or not finite.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, "a finite number of at least 0", lambda value: value >= 0)
        check_number("top_p", self.top_p, "a number above 0 and at most 1", lambda value: 0 < value <= 1)
        check_number("min_p", self.min_p, "a number between 0 and 1", lambda value: 0 <= value <= 1)
        check_number("repetition_penalty", self.repetition_penalty, "a finite number above 0", lambda value: value > 0)
        for name in ("frequency_penalty", "presence_penalty"):
            expected = f"a number between -{MAX_PENALTY:g} and {MAX_PENALTY:g}"
            check_number(name, getattr(self, name), expected, lambda value: abs(value) <= MAX_PENALTY)
        for name, least, most in (("top_k", 1, MAX_INTEGER), ("seed", 0, MAX_INTEGER), ("logprobs", 0, MAX_LOGPROBS)):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), least, most)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """Which tokens of a prompt get a log probability, as if the base had drawn them.

    Args:
        tokens: the last so many of the prompt; all but its first at the most, which nothing comes before.
        likeliest: report so many likeliest tokens beside each.

    Raises:
        UsageError: a value out of its range.
    """

    tokens: int
    likeliest: int = 1

    def __post_init__(self) -> None:
        check_integer("tokens to score", self.tokens, 1)
        check_integer("likeliest tokens of each that is scored", self.likeliest, 0, MAX_LOGPROBS)


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to be continued.

    Args:
        id: names the request while it is in the engine.
        prompt: token ids, at least one.
        max_tokens: how many tokens the answer may have; the context may end it earlier. At least 1, or 0 where the
            prompt is scored and nothing else is wanted.
        mix: which adapters act, each with its weight; empty for the base alone.
        tenant: whose turn it is, and whose counter grows; None for the adapters of the mix together.
        stop: strings that end the answer.
        stop_token_ids: tokens that end it; the base's end-of-sequence tokens are not implied.
        priority: the greater goes first.
        deadline_s: when the answer stops being of use, on the clock whose times the scheduler is given, in seconds.
        sampling: how tokens are drawn.
        constraint: what the answer keeps to, for this request alone.
        hidden: whether the last hidden state of the prompt is wanted; it is not to be had where max_tokens is 0.
        scoring: which tokens of the prompt are scored.

    Raises:
        UsageError: a value out of its range, or not finite; an adapter named twice.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    mix: Mix[str] = field(default_factory=Mix)
    tenant: Tenant | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    deadline_s: float | None = None
    sampling: SamplingParams = SamplingParams()
    constraint: Constraint | None = None
    hidden: bool = False
    scoring: Scoring | None = None

    def __post_init__(self) -> None:
        check(bool(self.id) and isinstance(self.id, str), "a request's id", expected="a string", found=self.id)
        self._check_tokens()
        check_mix(self.mix, self.id)
        check_integer(f"{self.id}: max_tokens", self.max_tokens, 0 if self.scoring and not self.hidden else 1)
        if self.scoring is not None:
            check(isinstance(self.scoring, Scoring), f"{self.id}: scoring", expected="Scoring", found=self.scoring)
            fewer = f"fewer than the prompt's {len(self.prompt)}, whose first nothing comes before"
            is_right = self.scoring.tokens < len(self.prompt)
            check(is_right, f"{self.id}: tokens to score", expected=fewer, found=self.scoring.tokens)
        check_integer(f"{self.id}: priority", self.priority, -MAX_INTEGER)
        if self.deadline_s is not None:
            check_number(f"{self.id}: deadline_s", self.deadline_s, "a finite number of seconds")
        for text in self.stop:
            check(bool(text) and isinstance(text, str), f"{self.id}: stop", expected="strings of text", found=text)

    def _check_tokens(self) -> None:
        hint = "A prompt that says nothing still begins with the base's first token."
        check(len(self.prompt) > 0, f"{self.id}: prompt", expected="at least one token", found=self.prompt, hint=hint)
        for name, tokens in (("prompt", self.prompt), ("stop_token_ids", self.stop_token_ids)):
            wrong = [token for token in tokens if type(token) is not int or not 0 <= token <= MAX_TOKEN_ID]
            check(not wrong, f"{self.id}: {name}", expected=f"ids from 0 to {MAX_TOKEN_ID}", found=wrong[:3])
