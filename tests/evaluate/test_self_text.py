from __future__ import annotations

import copy

import pytest
import torch

from regraft.errors import UsageError
from regraft.evaluate.self_text import write_text
from tests.tiny import FAMILIES, make_model, make_tokenizer

EOS = 2


@pytest.mark.parametrize("family", FAMILIES)
def test_sequences_have_the_length_and_number_asked_for(family: str) -> None:
    texts = write_text(make_model(family), make_tokenizer(), num_sequences=7, sequence_length=30, seed=0)
    assert [len(text) for text in texts] == [30] * 7


def test_half_start_a_document_and_half_a_conversation() -> None:
    tokenizer = make_tokenizer()
    turn = tokenizer("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    texts = write_text(make_model(), tokenizer, num_sequences=9, sequence_length=30, seed=0)
    assert [text[: len(turn)] == turn for text in texts] == [False] * 5 + [True] * 4
    assert all(text[0] == tokenizer.bos_token_id for text in texts)


def test_seed_decides_and_the_caller_s_random_state_is_kept() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    state = torch.get_rng_state()
    first, again, other = (
        write_text(model, tokenizer, num_sequences=4, sequence_length=20, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_text_goes_on_after_an_end_of_sequence() -> None:
    model = make_model()
    weight = model.get_input_embeddings().weight.data
    likeliest = model(torch.tensor([[1]])).logits[0, -1].argmax()
    weight[EOS] = 1.5 * weight[likeliest]
    texts = write_text(model, make_tokenizer(), num_sequences=32, sequence_length=40, seed=0)
    ends = [text.index(EOS) for text in texts if EOS in text[:-1]]
    assert ends
    assert any(len(set(text[end + 1 :])) > 1 for text, end in zip(texts, ends, strict=False))
    assert {len(text) for text in texts} == {40}


def test_without_a_chat_template_all_start_a_document() -> None:
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.chat_template = None
    tokenizer.bos_token = None
    texts = write_text(make_model(), tokenizer, num_sequences=3, sequence_length=10, seed=0)
    assert [text[0] for text in texts] == [EOS] * 3


def test_tokenizer_without_a_start_is_refused() -> None:
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(UsageError, match="expected a tokenizer with a BOS or an end-of-sequence token"):
        write_text(make_model(), tokenizer, num_sequences=1, sequence_length=10, seed=0)


def test_sequence_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="sequence_length: expected at least 2 tokens, found 1"):
        write_text(make_model(), make_tokenizer(), num_sequences=1, sequence_length=1, seed=0)
