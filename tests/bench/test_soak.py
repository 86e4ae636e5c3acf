"""A few seconds of the soak on a tiny model: nothing leaks, no token is wrong, and the soak notices when one is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from benchmarks.soak import Soak, growth_kib_per_minute, num_threads, report, wrong_answers
from regraft import Engine
from regraft.bench.adapters import write_lora
from regraft.engine.schedule.limits import Limits
from regraft.engine.weights.open_base import open_base
from tests.tiny import make_base

LIMITS = Limits(context_tokens=128, max_sequences=6, step_tokens=16)
PROMPTS = ["the quick brown fox", "the lazy dog " * 6, [{"role": "user", "content": "positive"}]]


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Soak]:
    """After three seconds."""
    folder = tmp_path_factory.mktemp("soak")
    shapes = open_base(make_base(folder / "base")).slot_shapes
    adapters = [write_lora(folder / f"lora{seed}", shapes, rank=16, seed=seed) for seed in range(4)]
    with Engine(folder / "base", memory_bytes=1 << 18, limits=LIMITS) as engine:
        soak = Soak(engine, adapters, PROMPTS, 3.0, clients=10, pause_s=0.02, checked=60)
        soak.run()
        yield soak


@pytest.fixture(scope="module")
def alone(soak: Soak) -> Iterator[Engine]:
    with Engine(soak.adapters[0].parent / "base", memory_bytes=1 << 22) as engine:
        yield engine


def test_all_is_well(soak: Soak, alone: Engine) -> None:
    found = report(soak, wrong_answers(alone, soak.sample), (num_threads(),) * 2, soak.pages_left())
    assert len(soak.sample) == min(60, soak.num_answers) and soak.num_answers > 20
    assert all(found["checks"].values()), found


def test_a_wrong_token_is_noticed(soak: Soak, alone: Engine) -> None:
    asked = next(asked for asked in soak.sample if asked.completion.finish_reason == "length")
    tokens = asked.completion.tokens
    wrong = replace(asked, completion=replace(asked.completion, tokens=(*tokens[:-1], tokens[-1] ^ 1)))
    assert len(wrong_answers(alone, [asked, wrong])) == 1


def test_growth_is_that_of_the_settled_part() -> None:
    start = [(float(second), 1000 * second) for second in range(40)]
    assert growth_kib_per_minute([*start, *((float(second), 40_000 + 2 * second) for second in range(40, 101))]) == (
        pytest.approx(120)
    )
