"""Embeddings by the ``openai`` package, and by torch."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from regraft.engine.run.batch import Chunk
from tests.engine.networks import make_twin, random_ids
from tests.server.running import Running
from tests.tiny import FAMILIES

TEXTS = ["the quick brown fox", "positive", "the lazy dog jumps over the fox"]


@torch.no_grad()
def oracle(base: Path, ids: Any) -> Any:
    """The last hidden state of the last token, scaled to length 1."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    last = model.model(torch.as_tensor(ids)[None]).last_hidden_state[0, -1].float().numpy()
    return last / np.linalg.norm(last)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_core_gives_the_hidden_states_of_torch(family: str) -> None:
    twin, ids = make_twin(family), random_ids(40)
    hidden = twin.states(Chunk(ids, 0, [0, 1, 2], logits=3))
    with torch.no_grad():
        wanted = twin.model.model(torch.as_tensor(ids)[None]).last_hidden_state[0, -3:].numpy()
    assert np.abs(hidden - wanted).max() < 5e-3


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_those_of_torch(server: Running, made: Path, encoding: Any) -> None:
    answer = server.client().embeddings.create(model="base", input=TEXTS, encoding_format=encoding)
    tokenizer = server.service.engine.base.tokenizer
    assert [each.index for each in answer.data] == [0, 1, 2]
    for text, each in zip(TEXTS, answer.data, strict=True):
        vector = (
            np.asarray(each.embedding)
            if encoding == "float"
            else np.frombuffer(base64.b64decode(str(each.embedding)), "<f4")
        )
        assert vector @ oracle(made / "base", tokenizer.encode(text)) > 0.999
    assert answer.usage.prompt_tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)


def test_an_adapter_changes_them_and_the_prefix_cache_does_not(server: Running) -> None:
    def vector(model: str) -> Any:
        return np.asarray(server.client().embeddings.create(model=model, input=TEXTS[0]).data[0].embedding)

    assert np.array_equal(vector("base"), vector("base"))
    assert vector("base") @ vector("lora0") < 0.99


def test_fewer_dimensions(server: Running) -> None:
    client = server.client()
    short = client.embeddings.create(model="base", input=[5, 6, 7], dimensions=16).data[0].embedding
    assert len(short) == 16 and abs(np.linalg.norm(short) - 1) < 1e-5
    with pytest.raises(openai.BadRequestError, match="64 dimensions"):
        client.embeddings.create(model="base", input="x", dimensions=65)


@pytest.mark.parametrize("wrong", ["", [], [[]], [9999], "word " * 3000])
def test_what_cannot_be_embedded_is_refused(server: Running, wrong: Any) -> None:
    with pytest.raises(openai.BadRequestError):
        server.client().embeddings.create(model="base", input=wrong)
