"""What is exported computes what it was made from: read by transformers, PEFT and, where it is installed, llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.bypass.recovery import Recovery
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import ExportError, RegraftError, UsageError
from regraft.export.parity import compare
from regraft.export.run import Export, export_adapter, export_base
from regraft.formats.source import locate
from regraft.formats.text.tokenizer import open_tokenizer
from regraft.models.load import Base, load_base
from regraft.models.slots import slot_shapes
from tests.bypass.test_peft_parity import save_peft
from tests.formats.test_adapter import record
from tests.tiny import make_base

IDS = torch.randint(3, 300, (2, 40), generator=torch.Generator().manual_seed(0))
HALF = 3e-3  # what float16 weights do to logits, relatively
TEXT = 'the quick brown fox {"number": "12"} <|im_end|>'


def quantized(base: Path, out: Path, **options: Any) -> Path:
    step = {"quantize": {"method": "rtn", "bits": 4, "group_size": 32, **options}}
    compress(base, out, parse(Recipe, {"steps": [step]}, "test"))
    return out


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def apart(theirs: torch.Tensor, ours: torch.Tensor) -> float:
    return float((theirs - ours).norm() / ours.norm())


def stock(path: Path) -> Any:
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()


def kinds(path: Path) -> set[str]:
    return {tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("tie", [True, False])
def test_gguf_of_every_family_is_what_transformers_reads_from_it(family: str, tie: bool, tmp_path: Path) -> None:
    hidden = 512 if family == "qwen3" else 64  # transformers takes its heads to be 128 wide, whatever the file says
    source = make_base(tmp_path / "base", family, tie=tie, hidden=hidden)
    export_base(Export(source, tmp_path / "out.gguf", "gguf", check=False))
    assert apart(logits(stock(tmp_path / "out.gguf")), logits(load_base(source).model)) < HALF
    tokenizer, original = open_tokenizer(locate(tmp_path / "out.gguf")), open_tokenizer(locate(source))
    assert tokenizer.encode(TEXT) == original.encode(TEXT)
    assert tokenizer.chat_template == original.chat_template
    assert tokenizer.eos_ids == original.eos_ids


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"bits": 4}, "Q4_0"),
        ({"bits": 3, "group_size": 64}, "Q4_0"),
        ({"bits": 2}, "Q4_0"),
        ({"bits": 4, "symmetric": False}, "Q4_1"),
        ({"bits": 2, "symmetric": False}, "Q4_1"),
        ({"bits": 8}, "Q8_0"),
        ({"bits": 8, "symmetric": False}, "F16"),
    ],
)
def test_quantised_weights_stay_packed(options: dict[str, Any], kind: str, tmp_path: Path) -> None:
    small = quantized(make_base(tmp_path / "base"), tmp_path / "small", **options)
    export_base(Export(small, tmp_path / "out.gguf", "gguf", check=False))
    assert kinds(tmp_path / "out.gguf") == {kind, "F16", "F32"}
    assert apart(logits(stock(tmp_path / "out.gguf")), logits(load_base(small).model)) < HALF


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_directory_is_what_plain_transformers_loads(bits: int, tmp_path: Path) -> None:
    small = quantized(make_base(tmp_path / "base"), tmp_path / "small", bits=bits)
    done = export_base(Export(small, tmp_path / "out", "hf"))
    assert done.parity is not None and done.parity.engine.startswith("transformers") and done.parity.error < 0.01
    assert apart(logits(stock(tmp_path / "out")), logits(load_base(small).model)) < HALF
    assert not (tmp_path / "out" / "regraft.json").exists()


@pytest.mark.parametrize("groups", [["neurons"], ["heads", "neurons"]])
def test_evenly_pruned_base_is_exported(groups: list[str], tmp_path: Path) -> None:
    small = pruned(make_base(tmp_path / "base"), tmp_path / "small", groups=groups)
    export_base(Export(small, tmp_path / "out.gguf", "gguf", check=False))
    export_base(Export(small, tmp_path / "out", "hf"))
    expected = logits(load_base(small).model)
    assert apart(logits(stock(tmp_path / "out.gguf")), expected) < HALF
    assert apart(logits(stock(tmp_path / "out")), expected) < HALF


def pruned(base: Path, out: Path, **options: Any) -> Path:
    step = {"prune": {"importance": "l2", "ratio": 0.5, "multiple": 32, "groups": ["neurons"], **options}}
    compress(base, out, parse(Recipe, {"steps": [step]}, "test"))
    return out


def deltas(path: Path, target: dict[str, tuple[int, int]], heads: dict[str, int]) -> dict[str, Any]:
    """Dense deltas of a GGUF LoRA by slot, with llama.cpp's scale, rows back in the order of transformers."""
    reader = gguf.GGUFReader(path)
    alpha = reader.get_field("adapter.lora.alpha")
    assert alpha is not None and alpha.contents() == 0  # llama.cpp: the scale is 1, whatever the rank
    tensors = {tensor.name: tensor.data.astype(np.float64) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    found = {}
    for slot in target:
        name = f"{names.get_name(f'model.{slot}')}.weight"
        if f"{name}.lora_a" not in tensors:
            continue
        up = tensors.pop(f"{name}.lora_b")
        if count := heads.get(slot.split(".")[-1]):
            up = up.reshape(count, -1, 2, up.shape[1]).swapaxes(1, 2).reshape(up.shape)
        found[slot] = up @ tensors.pop(f"{name}.lora_a")
    assert not tensors
    return found


def test_gguf_lora_adds_what_the_adapter_adds(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base")
    lora = save_peft(
        source, tmp_path / "lora", target_modules="all-linear", use_rslora=True, rank_pattern={"q_proj": 2}
    )
    export_adapter(Export(source, tmp_path / "lora.gguf", "gguf", check=False), lora)
    base = load_base(source)
    adapter = read_adapter(lora, base)
    found = deltas(tmp_path / "lora.gguf", slot_shapes(base.model), {"q_proj": 4, "k_proj": 2})
    assert found.keys() == adapter.of("lora").keys()
    for slot, delta in found.items():
        expected = adapter.of("lora")[slot].delta().detach().numpy()
        assert np.abs(delta - expected).max() < 2e-3 * np.abs(expected).max()


def test_peft_directory_acts_on_a_pruned_base_as_the_adapter_does(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base")
    lora = save_peft(source, tmp_path / "lora", target_modules="all-linear")
    small = pruned(source, tmp_path / "small")
    export_base(Export(small, tmp_path / "hf", "hf"))
    done = export_adapter(Export(small, tmp_path / "peft", "peft"), lora)
    assert done.parity is not None and done.parity.error < 0.01
    base = load_base(small)
    with attached(base.model, read_adapter(lora, base).bypasses):
        expected = logits(base.model)
    theirs = logits(PeftModel.from_pretrained(stock(tmp_path / "hf"), tmp_path / "peft"))
    assert apart(theirs, expected) < HALF
    assert apart(theirs, logits(base.model)) > 10 * HALF


def gelu(base: Base, folder: Path) -> Path:
    """An adapter of a compressed base, with a non-linear recovery part."""
    lora = read_adapter(save_peft(base.path, folder.parent / "plain"), base).bypasses
    slot, (out, width) = next(iter(slot_shapes(base.model).items()))
    recovery = {slot: Recovery(torch.ones(2, width), torch.ones(out, 2))}
    folder.mkdir()
    made = record(base_name=base.name, base_fingerprint=base.fingerprint, recovery_scales={slot: 1.0})
    gelu = Adapter("gelu", lora, record=made)
    gelu.add(recovery)
    write_adapter(gelu, folder, base)
    return folder


def experts(base: Path, out: Path) -> Path:
    calibration = {"num_sequences": 8, "sequence_length": 32}
    step = {"moefy": {"method": "moefication", "active": 0.5, "size": 32}}
    compress(base, out, parse(Recipe, {"steps": [step], "calibration": calibration}, "test"))
    return out


def test_what_cannot_be_said_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base")
    gemma, small = make_base(tmp_path / "gemma", "gemma3"), quantized(source, tmp_path / "small")
    sparse, bent = experts(source, tmp_path / "sparse"), gelu(load_base(small), tmp_path / "gelu")
    out = tmp_path / "out"
    out.mkdir()
    (out / "there.gguf").write_text("mine")
    refused: list[tuple[type[RegraftError], str, Any]] = [
        (ExportError, "experts", lambda: export_base(Export(sparse, out / "a.gguf", "gguf"))),
        (ExportError, "experts", lambda: export_base(Export(sparse, out / "a", "hf"))),
        (ExportError, "gemma3_text", lambda: export_base(Export(gemma, out / "a.gguf", "gguf"))),
        (ExportError, "non-linear", lambda: export_adapter(Export(small, out / "a.gguf", "gguf"), bent)),
        (ExportError, "non-linear", lambda: export_adapter(Export(small, out / "a", "peft"), bent)),
        (UsageError, ".gguf", lambda: export_base(Export(source, out / "a.bin", "gguf"))),
        (UsageError, "exists", lambda: export_base(Export(source, out / "there.gguf", "gguf"))),
        (UsageError, "hf or gguf", lambda: export_base(Export(source, out / "a", "peft"))),
        (UsageError, "peft or gguf", lambda: export_adapter(Export(small, out / "a", "hf"), bent)),
    ]
    for error, message, call in refused:
        with pytest.raises(error, match=message):
            call()
    assert [path.name for path in out.iterdir()] == ["there.gguf"]
    assert (out / "there.gguf").read_text() == "mine"


def test_logits_that_are_others_are_an_error() -> None:
    ours = np.random.default_rng(0).normal(size=(4, 10)).astype(np.float32)
    assert compare(ours, ours + 3, "x", tolerance=0.01).error < 1e-6  # logits mean the same up to a constant
    for wrong in (2 * ours, ours[::-1], ours * np.nan, ours[:, :9]):
        with pytest.raises(ExportError):
            compare(ours, wrong, "x", tolerance=0.1)
