"""Every variant of a PEFT LoRA acts here as it acts in PEFT; and what is written here, PEFT reads the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.bypass.lora import LoRA, stack
from regraft.models.load import Base, load_base
from regraft.models.slots import slot_shapes
from tests.tiny import FAMILIES, make_base

TOLERANCE = 1e-4
IDS = torch.arange(3, 23).view(2, 10)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "rslora": {"use_rslora": True},
    "rank_pattern": {"rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 6}},
    "alpha_pattern": {"alpha_pattern": {"up_proj": 3, r"layers\.0\..*": 32}},
    "both_patterns_rslora": {"rank_pattern": {"o_proj": 5}, "alpha_pattern": {"o_proj": 7}, "use_rslora": True},
    "regex": {"target_modules": r".*\.1\.mlp\.(up|down)_proj"},
    "all_linear": {"target_modules": "all-linear"},
    "one_layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "one_layer_by_number": {"layers_to_transform": 0},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
}


def save_peft(base: Path, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj", "down_proj", "o_proj"]} | options
    torch.manual_seed(1)
    config = LoraConfig(**settings, init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_base(base).model, config).save_pretrained(folder)
    weights = folder / "adapter_model.safetensors"
    save_file({k: v.to(dtype) for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return folder


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=IDS).logits


def ours(base: Base, adapter: Adapter) -> torch.Tensor:
    with attached(base.model, adapter.bypasses):
        return logits(base.model)


def theirs(base: Path, folder: Path) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(load_base(base).model, folder))


def assert_same(base: Path, folder: Path) -> None:
    loaded = load_base(base)
    bare, found = logits(loaded.model), ours(loaded, read_adapter(folder, loaded))
    assert (found - theirs(base, folder)).abs().max() < TOLERANCE
    assert (found - bare).abs().max() > 100 * TOLERANCE  # an adapter that did nothing would agree too
    assert torch.equal(logits(loaded.model), bare)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_acts_as_in_peft(tmp_path: Path, variant: str) -> None:
    base = make_base(tmp_path / "base")
    assert_same(base, save_peft(base, tmp_path / "lora", **VARIANTS[variant]))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_acts_as_in_peft_on_every_family(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    assert_same(base, save_peft(base, tmp_path / "lora", target_modules="all-linear", use_rslora=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapter_of_any_dtype_acts_as_in_peft(tmp_path: Path, dtype: torch.dtype) -> None:
    base = make_base(tmp_path / "base")
    assert_same(base, save_peft(base, tmp_path / "lora", dtype))


def linear_recovery(base: Base, slots: list[str], seed: int = 5) -> dict[str, LoRA]:
    generator = torch.Generator().manual_seed(seed)
    shapes = slot_shapes(base.model)
    return {
        slot: LoRA(
            torch.randn(3, shapes[slot][1], generator=generator) / 8,
            torch.randn(shapes[slot][0], 3, generator=generator) / 8,
            0.5,
        )
        for slot in slots
    }


@pytest.mark.parametrize("variant", ["plain", "rslora", "both_patterns_rslora", "one_layer"])
@pytest.mark.parametrize("covered", ["every slot", "one layer"])
def test_written_adapter_with_folded_recovery_acts_in_peft_as_here(tmp_path: Path, variant: str, covered: str) -> None:
    path = make_base(tmp_path / "base")
    base = load_base(path)
    adapter = read_adapter(save_peft(path, tmp_path / "lora", **VARIANTS[variant]), base)
    slots = [slot for slot in slot_shapes(base.model) if covered == "every slot" or slot.startswith("layers.1.")]
    for slot, recovery in linear_recovery(base, slots).items():
        lora = adapter.of("lora").get(slot)
        adapter.bypasses[slot] = [stack(lora, recovery) if lora else recovery]
    out = tmp_path / "out"
    out.mkdir()
    write_adapter(adapter, out, base)
    written = read_adapter(out, base)
    assert (ours(base, written) - theirs(path, out)).abs().max() < TOLERANCE
    assert (ours(base, written) - ours(base, adapter)).abs().max() < 0.02  # float16 on disk
    assert {lora.scale for lora in written.of("lora").values()} == {1.0}
