"""The workloads on a tiny base: what they ask of the engine, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from regraft.bench.prompts import make_prompt
from regraft.bench.run import Row, bench
from regraft.bench.session import Session, Timing
from regraft.bench.workloads import PREFILL_TOKENS, PROMPT_TOKENS, WORKLOADS
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.schedule.pool import CapacityError
from tests.tiny import make_base

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bench") / "base", positions=1024)


@pytest.fixture(scope="module")
def session(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = Session(folder, tmp_path_factory.mktemp("adapters"), memory_bytes=32 << 20, threads=1, steps=STEPS)
    yield session
    session.close()


@pytest.mark.parametrize("name", [name for name, workload in WORKLOADS.items() if workload.kind == "decode"])
def test_every_sequence_decodes_all_its_steps(session: Session, name: str) -> None:
    assert session.run(name).tokens == STEPS * WORKLOADS[name].sequences


def test_a_prompt_is_computed_anew_each_time(session: Session) -> None:
    first, second = session.run("prefill-512"), session.run("prefill-512")
    assert PREFILL_TOKENS <= first.tokens < PREFILL_TOKENS + 10 and second.tokens >= PREFILL_TOKENS


@pytest.mark.parametrize("name", ["load", "adapter"])
def test_loads_make_no_tokens(session: Session, name: str) -> None:
    timing = session.run(name)
    assert timing.tokens == 0 and 0 <= timing.seconds < 60
    assert session.bytes_per_token(name) is None


def test_an_adapter_that_is_timed_is_one_that_was_not_there(session: Session) -> None:
    before = set(session.engine.stats().adapter_bytes)
    session.run("adapter")
    fresh = set(session.engine.stats().adapter_bytes) - before
    assert [name for name in fresh if name.startswith("fresh")]


def test_each_sequence_has_an_adapter_of_its_own(session: Session) -> None:
    plain, lora, recovery = (f"decode-8{rest}" for rest in ("", "-lora", "-recovery"))
    for name in (plain, lora, recovery):
        session.run(name)
    sizes = session.engine.stats().adapter_bytes
    added = {kind: sum(sizes[f"{kind} {n}"] for n in range(8)) for kind in ("lora", "recovery")}
    without = session.bytes_per_token(plain)
    assert without is not None
    assert session.bytes_per_token(lora) == pytest.approx(without + added["lora"] / 8)
    assert session.bytes_per_token(recovery) == pytest.approx(without + added["recovery"] / 8)
    assert added["recovery"] > added["lora"] > 0


def test_prompts_begin_differently_and_have_their_length(session: Session) -> None:
    tokenizer = session.engine.base.tokenizer
    prompts = [make_prompt(tokenizer, PROMPT_TOKENS, seed) for seed in range(8)]
    assert all(PROMPT_TOKENS <= len(tokenizer.encode(prompt)) < PROMPT_TOKENS + 10 for prompt in prompts)
    assert len({tuple(tokenizer.encode(prompt)[:16]) for prompt in prompts}) == 8


def test_a_pruned_base_is_measured_too(folder: Path, tmp_path: Path) -> None:
    recipe = parse(Recipe, {"steps": [{"prune": {"importance": "l2", "groups": ["neurons"], "ratio": 0.25}}]}, "test")
    compress(folder, tmp_path / "pruned", recipe)
    session = Session(tmp_path / "pruned", tmp_path / "adapters", memory_bytes=32 << 20, threads=1, steps=2)
    assert session.run("decode-8-lora").tokens == session.run("decode-8-recovery").tokens == 16
    session.close()


def test_a_row_is_of_medians() -> None:
    row = Row.of("decode-1", "x", [Timing(1.0, 10), Timing(2.0, 10), Timing(4.0, 10)], 100.0, [1000.0, 500.0, 1000.0])
    assert (row.tokens_per_s, row.seconds, row.roofline_share) == (5.0, 2.0, 1.0)  # 100, 100 and 25 %


def test_a_memory_that_is_too_small_is_said(folder: Path) -> None:
    with pytest.raises(CapacityError, match="page"):
        bench(str(folder), memory_bytes=1 << 15, threads=1, rounds=1)
