"""A base is the same model however it is stored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import FormatError, UsageError
from regraft.models.load import load_base
from tests.tiny import FAMILIES, make_base, make_model, make_tokenizer
from tests.tiny_gguf import write_gguf

IDS = torch.arange(3, 40)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_directory_gives_the_model_that_was_saved(tmp_path: Path, family: str) -> None:
    base = load_base(make_base(tmp_path / "base", family, layers=3))
    assert torch.equal(base.model(IDS).logits, make_model(family, layers=3)(IDS).logits)
    assert base.tokenizer.get_vocab() == make_tokenizer().get_vocab()
    assert not base.is_compressed and not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_shards_and_one_file_are_one_model(tmp_path: Path) -> None:
    model = make_model()
    for name, size in (("one", "1GB"), ("many", "50KB")):
        model.save_pretrained(tmp_path / name, max_shard_size=size)
        make_tokenizer().save_pretrained(tmp_path / name)
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    one, many = load_base(tmp_path / "one"), load_base(tmp_path / "many")
    assert torch.equal(one.model(IDS).logits, many.model(IDS).logits)
    assert one.fingerprint == many.fingerprint


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_model().to(dtype)
    model.save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    loaded = load_base(tmp_path / "base").model
    assert loaded.dtype == torch.float32
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter.float()), name


def test_a_compressed_directory_names_its_original(tmp_path: Path) -> None:
    original = load_base(make_base(tmp_path / "base"))
    compress(
        tmp_path / "base",
        tmp_path / "small",
        parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 4}}]}, "test"),
    )
    small = load_base(tmp_path / "small")
    assert small.is_compressed
    assert small.original_fingerprint == original.fingerprint != small.fingerprint
    assert not torch.equal(small.model(IDS).logits, original.model(IDS).logits)


def test_a_gguf_file_gives_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    model = make_model(tie=False)
    base = load_base(write_gguf(tmp_path / "tiny.gguf", model))
    torch.testing.assert_close(base.model(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)
    assert load_base(tmp_path / "tiny.gguf").fingerprint == base.fingerprint  # from the cache


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_a_format_error(tmp_path: Path, name: str) -> None:
    folder = make_base(tmp_path / "base")
    (folder / name).unlink()
    with pytest.raises(FormatError, match="base"):
        load_base(folder)


def test_an_unknown_name_is_answered_with_a_known_one() -> None:
    with pytest.raises(UsageError, match="smollm2-135m"):
        load_base("smollm2-135")


def test_a_changed_compressed_directory_is_refused(tmp_path: Path) -> None:
    make_base(tmp_path / "base")
    compress(
        tmp_path / "base",
        tmp_path / "small",
        parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 4}}]}, "test"),
    )
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    config["rms_norm_eps"] = 0.1
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="has changed since it was written"):
        load_base(tmp_path / "small")
