"""A tiny base, and adapters for it as PEFT writes them, made once for all tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from regraft.models.load import load_base
from tests.tiny import make_base


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("engine")
    make_base(root / "base")
    make_base(root / "wide", hidden=128)
    for number in range(3):
        torch.manual_seed(number)
        config = LoraConfig(
            r=2 + number, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        get_peft_model(load_base(root / "base").model, config).save_pretrained(root / f"lora{number}")
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_base(root / "wide").model, config).save_pretrained(root / "foreign")
    return root
