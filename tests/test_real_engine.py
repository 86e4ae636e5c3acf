"""The engine on the packaged model: with float activations its tokens are those of torch, on two hundred prompts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.serving import read_prompts
from regraft import Engine
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.prompt import Prompt, encode_prompt
from regraft.models.load import Base, load_base
from zoo.train import ADAPTERS

pytestmark = pytest.mark.slow

BASE = "smollm2-135m"
ASKED = (None, "home", "topics", "spam", "names")  # the zoo's, in turn
NUM_PROMPTS, NUM_TOKENS = 200, 8
NEAR = 0.05  # in logits, which are of the order of 20: float16 keys, values, embeddings and head move them so much
MOST_NEAR_TIES = 0.01  # of the tokens, may be torch's second choice by less than NEAR


@pytest.fixture(scope="module", params=["as it is", "int4"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str | Path:
    if request.param == "as it is":
        return BASE
    folder = tmp_path_factory.mktemp("small") / "int4"
    compress(BASE, folder, parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 4}}]}, "test"))
    return folder


@pytest.fixture(scope="module")
def base(path: str | Path) -> Base:
    return load_base(path)


@pytest.fixture(scope="module")
def engine(path: str | Path) -> Iterator[Engine]:
    adapters = {name: ADAPTERS / name for name in ASKED if name}
    with Engine(path, adapters, memory_bytes=1 << 28, exact=True) as engine:
        yield engine


def shortfalls(base: Base, prompt: list[int], tokens: tuple[int, ...]) -> list[float]:
    """By how much each token's logit is below torch's greatest, after the prompt and the tokens before it."""
    ids = torch.tensor([[*prompt, *tokens]])
    with torch.no_grad():
        logits = base.model(input_ids=ids, logits_to_keep=len(tokens) + 1).logits[0, :-1]
    return (logits.amax(-1) - logits[range(len(tokens)), list(tokens)]).tolist()


def test_two_hundred_answers_are_those_of_torch(base: Base, engine: Engine) -> None:
    prompts: list[Prompt] = read_prompts()[:: len(read_prompts()) // NUM_PROMPTS][:NUM_PROMPTS]
    names = [ASKED[number % len(ASKED)] for number in range(NUM_PROMPTS)]
    streams = [
        engine.stream(prompt, name, max_tokens=NUM_TOKENS) for prompt, name in zip(prompts, names, strict=True)
    ]  # all at once, so that batches are mixed
    answers = [list(pieces)[-1].completion for pieces in streams]
    short: list[float] = []
    for name in ASKED:
        with attached(base.model, read_adapter(ADAPTERS / name, base).bypasses if name else {}):
            for prompt, its_name, answer in zip(prompts, names, answers, strict=True):
                if its_name == name:
                    assert answer is not None and answer.tokens
                    short += shortfalls(
                        base,
                        encode_prompt(engine.base.tokenizer, prompt, engine.base.architecture.vocabulary),
                        answer.tokens,
                    )
    ties = [one for one in short if one > 0]
    print(f"{len(short)} tokens, {len(ties)} near ties: {sorted(ties)}")
    assert len(prompts) == NUM_PROMPTS and len(short) > 3 * NUM_PROMPTS
    assert max(short) < NEAR
    assert len(ties) <= MOST_NEAR_TIES * len(short)


def test_log_likelihoods_are_those_of_torch(base: Base, engine: Engine) -> None:
    prompts: list[Prompt] = read_prompts()[:: len(read_prompts()) // 20][:20]
    for number, prompt in enumerate(prompts):
        name = ASKED[number % len(ASKED)]
        (likelihood,) = engine.log_likelihood(prompt, [' {"name": "kitchen"} and so on'], name)
        tokens = [token.token for token in likelihood.tokens]
        ids = torch.tensor(
            [[*encode_prompt(engine.base.tokenizer, prompt, engine.base.architecture.vocabulary), *tokens]]
        )
        with torch.no_grad(), attached(base.model, read_adapter(ADAPTERS / name, base).bypasses if name else {}):
            wanted = base.model(input_ids=ids, logits_to_keep=len(tokens) + 1).logits[0, :-1].log_softmax(-1)
        values = wanted[range(len(tokens)), tokens].tolist()
        assert [token.logprob for token in likelihood.tokens] == pytest.approx(values, abs=NEAR)
