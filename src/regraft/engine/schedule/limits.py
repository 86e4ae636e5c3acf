"""Limits of a scheduler."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.engine.checks import check_integer, check_number


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sizes and policies of a scheduler.

    Args:
        context_tokens: the most tokens of prompt and answer together.
        page_tokens: tokens whose keys and values a page holds.
        max_sequences: the most that run at once.
        step_tokens: the most tokens of a step, at least ``max_sequences``.
        lookahead: how many waiting requests that do not fit are looked at in a step; others pass them, and their
            adapters are prefetched.
        turn_every: one in so many admissions goes round the adapters, see :mod:`regraft.engine.schedule.waiting_queue`.
        margin_s: a waiting request is given up when its deadline is no further away; S-LoRA's half a second.
        newest_first: under overload, serve each adapter's newest requests first (:mod:`.overload`).
        cluster_adapters: once so many distinct adapters run, requests for what runs are tried before all others, which
            get the room that those leave (S-LoRA's clustering, with its d); None for never.

    Raises:
        UsageError: a value out of its range.
    """

    context_tokens: int
    page_tokens: int = 16
    max_sequences: int = 64
    step_tokens: int = 256
    lookahead: int = 8
    turn_every: int = 16
    margin_s: float = 0.5
    newest_first: bool = False
    cluster_adapters: int | None = None

    def __post_init__(self) -> None:
        check_integer("context_tokens", self.context_tokens, 2)
        for name in ("page_tokens", "max_sequences", "lookahead", "turn_every"):
            check_integer(name, getattr(self, name), 1)
        check_integer("step_tokens, of which each running sequence needs one", self.step_tokens, self.max_sequences)
        check_number("margin_s", self.margin_s, "a finite number of at least 0", lambda value: value >= 0)
        if self.cluster_adapters is not None:
            check_integer("cluster_adapters", self.cluster_adapters, 1)
