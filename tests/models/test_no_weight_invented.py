"""Every parameter of the config is found, and every tensor of the file has its place: in torch as in the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.engine.weights.open_base import open_base
from regraft.errors import FormatError
from regraft.models.load import load_base
from regraft.progress import Progress
from tests.cli.run import regraft
from tests.tiny import FAMILIES, make_base, make_model
from tests.tiny_gguf import write_gguf

IDS = torch.arange(3, 40)[None]
WEIGHTS = "model.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
Tensors = dict[str, torch.Tensor]
Change = Callable[[Tensors], object]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def retensored(folder: Path, change: Change) -> Path:
    tensors = load_file(folder / WEIGHTS)
    changed = change(tensors)
    tensors = changed if isinstance(changed, dict) else tensors
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    return folder


def configured(folder: Path, **entries: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


def renamed(change: Callable[[str], str]) -> Change:
    return lambda tensors: {change(name): tensor for name, tensor in tensors.items()}


# what is wrong with the file (before this test existed each was loaded with random or cut weights) → what is said
WRONG: dict[str, tuple[Change, str]] = {
    "a head that is not there": (lambda t: t.pop("lm_head.weight"), "tensor lm_head.weight is missing"),
    "an embedding that is not there": (
        lambda t: t.pop("model.embed_tokens.weight"),
        "tensor model.embed_tokens.weight is missing",
    ),
    "a layer's matrix left out": (lambda t: t.pop(UP), f"tensor {UP} is missing"),
    "a norm left out": (lambda t: t.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
    "a layer left out": (
        lambda t: {name: tensor for name, tensor in t.items() if ".layers.1." not in name},
        r"tensor model.layers.1.\S+ is missing",
    ),
    "a foreign prefix": (
        renamed(lambda name: f"language_model.{name}"),
        r"tensor lm_head.weight is missing. There is a tensor language_model.lm_head.weight",
    ),
    "a wrapper's prefix": (
        renamed(lambda name: f"module.{name}"),
        "tensor lm_head.weight is missing. There is a tensor module.lm_head.weight",
    ),
    "more layers than the config has": (
        lambda t: t.update({UP.replace(".1.", ".2."): t[UP] + 1}),
        r"tensor model.layers.2.mlp.up_proj.weight belongs to nothing in the model",
    ),
    "a bias that the config has not": (
        lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
        "tensor model.layers.0.self_attn.q_proj.bias belongs to nothing in the model",
    ),
    "a foreign tensor": (lambda t: t.update(extra=torch.ones(3)), "tensor extra belongs to nothing in the model"),
    "another shape": (
        lambda t: t.update({UP: torch.ones(3, 64)}),
        rf"tensor {UP}: expected shape \[128, 64\], found \[3, 64\]",
    ),
    "an embedding of fewer tokens": (
        lambda t: t.update({"model.embed_tokens.weight": t["model.embed_tokens.weight"][:-7]}),
        r"tensor model.embed_tokens.weight: expected shape \[320, 64\], found \[313, 64\]",
    ),
    "codes without their scales": (
        lambda t: t.update({UP: (100 * t[UP]).to(torch.int8)}),
        rf"tensor {UP}: expected floating point, found I8 \[128, 64\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_torch_and_engine_name_what_is_wrong_alike(tmp_path: Path, name: str) -> None:
    change, message = WRONG[name]
    folder = retensored(make_base(tmp_path / "base", tie=False), change)
    said = []
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=f"{WEIGHTS}: {message}") as raised:
            load(folder)
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"num_hidden_layers": 1}, r"tensor model.layers.1.\S+ belongs to nothing in the model"),
        ({"num_hidden_layers": 3}, r"tensor model.layers.2.\S+ is missing"),
        ({"attention_bias": True}, r"tensor model.layers.0.self_attn.\w_proj.bias is missing"),
        ({"mlp_bias": True}, r"tensor model.layers.0.mlp.\w+_proj.bias is missing"),
        ({"vocab_size": 500}, r"tensor \S+: expected shape \[500, 64\], found \[320, 64\]"),
        ({"model_type": "qwen2"}, r"tensor model.layers.0.self_attn.\w_proj.bias is missing"),
        ({"model_type": "qwen3"}, r"tensor model.layers.0.self_attn.\w_norm.weight is missing"),
    ],
)
def test_a_config_of_another_model_is_refused(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    folder = configured(make_base(tmp_path / "base", tie=False), **entries)
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=f"{WEIGHTS}: {message}"):
            load(folder)


def test_the_engine_packs_nothing_of_a_base_that_it_refuses(tmp_path: Path) -> None:
    folder = retensored(make_base(tmp_path / "base"), lambda t: t.pop(UP))
    with pytest.raises(FormatError):
        open_base(folder)
    assert not list((tmp_path / "cache").rglob("*.packed"))


@pytest.mark.parametrize("wrong", ["a head that is not there", "more layers than the config has"])
@pytest.mark.parametrize("verb", ["compress", "adapt", "eval", "run", "info"])
def test_every_verb_refuses_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, wrong: str
) -> None:
    change, message = WRONG[wrong]
    folder = retensored(make_base(tmp_path / "base", tie=False), change)
    out, rows = tmp_path / "out", tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the quick", "completion": " fox"}\n' * 3)
    arguments = {
        "compress": [folder, "-o", out],
        "adapt": [folder, "--teacher", folder, "--adapter", tmp_path / "lora", "-o", out],
        "eval": [folder, "--data", rows],
        "run": [folder, "the quick"],
        "info": [folder],
    }
    done = regraft(capsys, verb, *arguments[verb])
    assert done.code == 1
    assert f"{WEIGHTS}: {message}" in done.err.replace("\n", " ")
    assert "Traceback" not in done.err
    assert not out.exists()


# What is right is loaded as before.


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("stored", ["directory", "gguf"])
def test_what_is_right_loads(tmp_path: Path, family: str, tie: bool, stored: str) -> None:
    family = "llama" if (family, stored) == ("mistral", "gguf") else family  # GGUF has no name of its own for it
    model = make_model(family, tie=tie)
    if stored == "gguf":
        base = write_gguf(tmp_path / "tiny.gguf", model)
    else:
        base = make_base(tmp_path / "base", family, tie=tie)
    torch.testing.assert_close(load_base(base).model(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)
    assert open_base(base).architecture.tied is tie


def test_a_decoder_saved_alone_is_the_same_model(tmp_path: Path) -> None:
    folder = retensored(make_base(tmp_path / "base"), renamed(lambda name: name.removeprefix("model.")))
    assert torch.equal(load_base(folder).model(IDS).logits, make_model()(IDS).logits)
    assert open_base(folder).architecture.layers == 2


def test_tensors_that_the_class_passes_over_are_said(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    make_base(tmp_path / "base")
    AutoModelForCausalLM.from_config(GPTNeoXConfig(vocab_size=400, **sizes)).save_pretrained(tmp_path / "base")
    retensored(
        tmp_path / "base",
        lambda t: t.update({"gpt_neox.layers.0.attention.masked_bias": torch.ones(()), "gpt_neox.x": torch.ones(3)}),
    )
    with pytest.raises(FormatError, match=r"tensor gpt_neox\.x belongs to nothing"):
        load_base(tmp_path / "base")
    retensored(tmp_path / "base", lambda t: t.pop("gpt_neox.x"))
    said: list[str] = []

    class Notes(Progress):
        def note(self, text: str) -> None:
            said.append(text)

    load_base(tmp_path / "base", progress=Notes())
    assert "1 tensors are no part of the decoder" in said[0]
