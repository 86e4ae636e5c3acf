"""The packaged model and the zoo's adapters, for real: minutes each, so only in ``make test-all``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from regraft.adapt.closed_form import eora
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.evaluate.perplexity import default_text, perplexity
from regraft.evaluate.self_text import write_text
from regraft.models.load import Base, load_base
from zoo.train import ADAPTERS

pytestmark = pytest.mark.slow

BASE = "smollm2-135m"
PROMPT = "The capital of France is"
ZOO = sorted(path.parent.name for path in ADAPTERS.glob("*/training.json"))


@pytest.fixture(scope="module")
def base() -> Base:
    return load_base(BASE)


@pytest.fixture(scope="module", params=[4, 8])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / f"int{request.param}"
    recipe = parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": request.param}}]}, "test")
    compress(BASE, folder, recipe)
    return folder


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_packaged_base_answers(base: Base) -> None:
    ids = base.tokenizer(PROMPT, return_tensors="pt").input_ids
    assert base.tokenizer.decode(logits(base.model, ids)[0, -1].argmax()) == " Paris"


def test_plain_transformers_loads_the_compressed_directory_with_the_same_logits(small: Path) -> None:
    ours = load_base(small)
    stock = AutoModelForCausalLM.from_pretrained(small, dtype=torch.float32)
    ids = ours.tokenizer(PROMPT, return_tensors="pt").input_ids
    assert (logits(ours.model, ids) - logits(stock, ids)).abs().max() < 1e-3


@pytest.mark.parametrize("name", ZOO)
def test_zoo_adapter_has_the_logits_that_peft_gives_it(base: Base, name: str) -> None:
    ids = base.tokenizer(PROMPT, return_tensors="pt").input_ids
    with attached(base.model, read_adapter(ADAPTERS / name, base).bypasses):
        ours = logits(base.model, ids)
    theirs = PeftModel.from_pretrained(load_base(BASE).model, ADAPTERS / name)  # type: ignore[arg-type]
    assert (ours - logits(theirs, ids)).abs().max() < 1e-3


@pytest.mark.parametrize("name", ZOO)
def test_zoo_adapter_names_its_base_and_no_path(name: str) -> None:
    config = json.loads((ADAPTERS / name / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == BASE


def test_closed_form_lowers_the_perplexity_of_a_rounded_base(base: Base, tmp_path: Path) -> None:
    folder = tmp_path / "int4"
    recipe = parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 4}}]}, "test")
    plain = compress(BASE, folder, recipe, text=default_text()).perplexity
    assert plain is not None
    small = load_base(folder)
    texts = write_text(base.model, base.tokenizer, num_sequences=32, sequence_length=128, seed=0)
    repairs = eora(small, base, 8, [torch.tensor(texts)], {})
    with attached(small.model, {slot: [repair] for slot, repair in repairs.items()}):
        repaired = perplexity(small.model, small.tokenizer, default_text(), max_tokens=8192)
    assert plain.before < repaired.value < plain.after
