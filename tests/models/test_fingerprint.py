from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from regraft.models.fingerprint import fingerprint
from tests.tiny import make_model, make_tokenizer


def of(model: Any, tokenizer: Any = None) -> str:
    return fingerprint(model, tokenizer or make_tokenizer())


def test_it_is_of_the_content() -> None:
    assert of(make_model()) == of(make_model())


@pytest.mark.parametrize("tie", [True, False])
def test_one_changed_weight_shows(tie: bool) -> None:
    changed = make_model(tie=tie)
    with torch.no_grad():
        changed.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    assert of(changed) != of(make_model(tie=tie))


def test_swapped_weights_show() -> None:
    changed = make_model()
    attention = changed.model.layers[0].self_attn
    attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
    assert of(changed) != of(make_model())


def test_configuration_shows_where_it_is_computed_with() -> None:
    changed = make_model()
    changed.config.rms_norm_eps = 1e-3
    assert of(changed) != of(make_model())
    changed = make_model()
    changed.config._name_or_path, changed.config.use_cache = "elsewhere", False
    assert of(changed) == of(make_model())


def test_vocabulary_and_chat_template_show() -> None:
    model, tokenizer = make_model(), copy.deepcopy(make_tokenizer())
    tokenizer.chat_template += " "
    assert of(model, tokenizer) != of(model)
    tokenizer = copy.deepcopy(make_tokenizer())
    tokenizer.add_tokens(["<new>"])
    assert of(model, tokenizer) != of(model)


def test_storage_type_does_not_show() -> None:
    model = make_model().bfloat16()
    assert of(model) == of(copy.deepcopy(model).float())
