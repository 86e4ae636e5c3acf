"""The arrivals of S-LoRA's synthetic workload (Sheng et al. 2023, arXiv 2311.03285; its benchmarks/trace.py).

    gaps       Gamma with shape 1/cv² and scale cv²/rate: mean 1/rate, coefficient of variation cv
    adapters   floor(n x), x of density a x^(a-1) on (0, 1], so P(i) = ((i+1)/n)^a - (i/n)^a; a = 1 is uniform
    answers    uniform lengths

Prompts are real ones here, where S-LoRA repeats a word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, in seconds; numbers of its adapter and its prompt; the length of its answer."""

    time_s: float
    adapter: int
    prompt: int
    max_tokens: int


def make_trace(
    *,
    count: int,
    rate: float,
    cv: float,
    alpha: float,
    adapters: int,
    prompts: int,
    lengths: tuple[int, int],
    seed: int,
) -> list[Arrival]:
    """A trace, in the order of arrival.

    Args:
        count: of requests.
        rate: mean requests per second.
        cv: coefficient of variation of the gaps; 1 is Poisson's.
        alpha: how even the adapters' popularity is; the smaller, the more the first ones are asked for.
        adapters: how many there are.
        prompts: how many there are; all are alike in popularity.
        lengths: of answers, the least and the most tokens.
        seed: of everything random. Times, prompts and lengths do not depend on ``adapters`` or ``alpha``.
    """
    random = [np.random.default_rng([seed, part]) for part in range(4)]
    times = np.cumsum(random[0].gamma(1 / cv**2, cv**2 / rate, count))
    chosen = np.minimum(adapters - 1, adapters * (1 - random[1].random(count)) ** (1 / alpha)).astype(int)
    asked = random[2].integers(0, prompts, count)
    answers = random[3].integers(lengths[0], lengths[1] + 1, count)
    rows = zip(times.tolist(), chosen.tolist(), asked.tolist(), answers.tolist(), strict=True)
    return [Arrival(*row) for row in rows]
