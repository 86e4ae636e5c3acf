"""A tiny base and some adapters, made once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from regraft.models.load import load_base
from tests.server.running import Running, running
from tests.tiny import make_base


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base``, and ``loras`` with ``lora0``, ``lora1`` and ``lora2``; read-only."""
    root = tmp_path_factory.mktemp("server")
    make_base(root / "base")
    for number in range(3):
        torch.manual_seed(number)
        config = LoraConfig(
            r=2, lora_alpha=16, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        get_peft_model(load_base(root / "base").model, config).save_pretrained(root / "loras" / f"lora{number}")
    return root


@pytest.fixture
def loras(made: Path, tmp_path: Path) -> Path:
    """A copy of the adapters, to be changed."""
    return Path(shutil.copytree(made / "loras", tmp_path / "loras"))


@pytest.fixture(scope="session")
def server(made: Path) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with running(made / "base", made / "loras") as each:
        yield each
