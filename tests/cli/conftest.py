"""A tiny base, its compressed form, a LoRA and data, made once for all tests of the command line."""

from __future__ import annotations

import json
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model

from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.models.load import load_base
from tests.cli.run import Kit
from tests.tiny import make_base


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """Read-only: tests copy what they damage."""
    root = tmp_path_factory.mktemp("kit")
    made = Kit(root)
    make_base(made.base)
    make_base(made.other, seed=7)
    make_base(made.wide, hidden=96)
    recipe = parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}]}, "test")
    compress(made.base, made.small, recipe)
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_base(made.base).model, config).save_pretrained(made.lora)
    rng = random.Random(0)
    rows = [
        {"prompt": f"the quick {number} {rng.choice('abc')}", "completion": f" fox {number % 3}"}
        for number in range(40)
    ]
    made.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made
