from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from regraft.compress import run
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import ConfigError, DataError, FormatError, UsageError
from regraft.formats.base_record import BaseRecord
from regraft.models.load import Base, load_base
from regraft.models.slots import iter_slots, slot_shapes
from regraft.progress import silent
from tests.tiny import FAMILIES, make_base, make_model

TEXT = "the quick brown fox jumps over the lazy dog. " * 20
CALIBRATION = {"num_sequences": 8, "sequence_length": 32}


def recipe(method: str = "rtn", bits: int = 4, calibration: dict[str, Any] | None = None, **options: Any) -> Recipe:
    quantize = {"method": method, "bits": bits, "group_size": 32, **options}
    return parse(Recipe, {"steps": [{"quantize": quantize}], "calibration": CALIBRATION | (calibration or {})}, "test")


def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(ids).logits


def stock(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "base")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "bits"), [("gptq", 4), ("rtn", 8)])
def test_stock_transformers_computes_what_regraft_computes(family: str, method: str, bits: int, tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", family)
    report = compress(source, tmp_path / "out", recipe(method, bits))
    loaded = load_base(tmp_path / "out")
    assert report.stock_loadable
    assert report.stock_loadable_reason is None
    torch.testing.assert_close(logits(stock(tmp_path / "out")), logits(loaded.model), rtol=0, atol=1e-4)
    assert loaded.fingerprint == report.fingerprint
    assert loaded.original_fingerprint == load_base(source).fingerprint
    assert loaded.model.generation_config.eos_token_id == make_model(family).generation_config.eos_token_id


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 2},
        {"bits": 3},
        {"bits": 5},
        {"bits": 7},
        {"group_size": 0},
        {"method": "hqq"},
        {"overrides": {"down_proj": {"bits": 8, "group_size": 0}, "layers.1.self_attn": {"bits": 16}}},
    ],
    ids=str,
)
def test_other_grids_load_in_stock_transformers_too(options: dict[str, Any], base: Path, tmp_path: Path) -> None:
    report = compress(base, tmp_path / "out", recipe(**options))
    assert report.stock_loadable
    assert (report.stock_loadable_reason is not None) == (options.get("bits") in (3, 5, 7))
    found, expected = logits(stock(tmp_path / "out")), logits(load_base(tmp_path / "out").model)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize(
    ("options", "reason"),
    [({"embeddings": 8}, "embeddings are packed"), ({"symmetric": False}, "zero points are packed")],
)
def test_what_stock_transformers_cannot_load_is_marked(
    options: dict[str, Any], reason: str, tie: bool, tmp_path: Path
) -> None:
    source = make_base(tmp_path / "base", tie=tie)
    report = compress(source, tmp_path / "out", recipe(**options))
    assert not report.stock_loadable
    assert report.stock_loadable_reason is not None
    assert report.stock_loadable_reason.startswith(reason)
    # If this stops failing, transformers has learnt it: the mark can go.
    with pytest.raises(Exception, match=r"weight|mismatch"):
        logits(stock(tmp_path / "out"))
    difference = (logits(load_base(tmp_path / "out").model) - logits(load_base(source).model)).abs().mean()
    assert 0 < difference < 0.5


@pytest.mark.parametrize("tie", [True, False])
def test_packed_embeddings_are_close_to_the_real_ones(tie: bool, tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", tie=tie)
    report = compress(source, tmp_path / "out", recipe(bits=8, embeddings=8))
    before, after = load_base(source).model, load_base(tmp_path / "out").model
    ends = [model.get_input_embeddings().weight for model in (before, after)]
    assert (ends[0] - ends[1]).norm() / ends[0].norm() < 0.01
    assert (after.get_output_embeddings().weight.data_ptr() == ends[1].data_ptr()) == tie
    assert list(report.embeddings) == ["model.embed_tokens"] + ([] if tie else ["lm_head"])
    assert 8 < report.sizes.bits_per_weight_model < 9.5


def test_slots_hold_the_rounded_weights_and_all_else_is_as_before(base: Path, tmp_path: Path) -> None:
    report = compress(base, tmp_path / "out", recipe(bits=4))
    before, after = load_base(base).model, load_base(tmp_path / "out").model
    slots = dict(iter_slots(before))
    for slot, linear in iter_slots(after):
        weight = slots[slot].weight
        error = float((weight - linear.weight).norm() / weight.norm())
        assert report.slots[slot].error == pytest.approx(error, rel=1e-4)
        assert 0.03 < error < 0.12
    expected = before.state_dict()
    for name, tensor in after.state_dict().items():
        if not name.startswith("model.layers") or "norm" in name:
            assert torch.equal(tensor, expected[name].half().float())


def test_record_and_sizes_are_those_of_the_directory(base: Path, tmp_path: Path) -> None:
    report = compress(base, tmp_path / "out", recipe("gptq", 4), text=TEXT)
    on_disk = BaseRecord.model_validate(json.loads((tmp_path / "out" / "regraft.json").read_text()))
    assert on_disk == report
    assert report.sizes.bytes_before == (base / "model.safetensors").stat().st_size
    assert report.sizes.bytes_after == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert report.sizes.bits_per_weight == 4.5  # 4, and a float16 scale for every 32 weights
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    bits = 8 * sum(tensor.nbytes for tensor in tensors.values())
    assert report.sizes.bits_per_weight_model == pytest.approx(bits / make_model().num_parameters())
    assert report.calibration is not None
    assert report.calibration.num_tokens == 8 * 32
    assert all(entry.weighted_error and entry.weighted_error < entry.error for entry in report.slots.values())
    assert report.recipe["steps"][0]["quantize"]["method"] == "gptq"
    assert set(report.seconds) >= {"load", "quantize", "write", "verify", "perplexity before", "perplexity after"}
    assert report.notes == []


def test_perplexities_are_those_of_the_two_models(base: Path, tmp_path: Path) -> None:
    report = compress(base, tmp_path / "out", recipe(bits=2), text=[TEXT, TEXT])
    assert report.perplexity is not None
    for folder, value in ((base, report.perplexity.before), (tmp_path / "out", report.perplexity.after)):
        loaded = load_base(folder)
        assert value == pytest.approx(run.perplexity(loaded.model, loaded.tokenizer, [TEXT, TEXT]).value)
    assert compress(base, tmp_path / "other", recipe(bits=2)).perplexity is None


def test_gptq_disturbs_the_model_less_than_rtn(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", hidden=128, intermediate=256)
    distances = {}
    for method in ("rtn", "gptq"):
        # Many tokens, or the few directions that they do not cover are given away.
        compress(source, tmp_path / method, recipe(method, 3, {"num_sequences": 64, "sequence_length": 64}))
        distances[method] = (
            (logits(load_base(tmp_path / method).model) - logits(load_base(source).model)).square().mean()
        )
    assert distances["gptq"] < 0.8 * distances["rtn"]


def test_same_seed_same_result(base: Path, tmp_path: Path) -> None:
    prints = [
        compress(base, tmp_path / str(number), recipe("gptq", 3, {"seed": seed})).fingerprint
        for number, seed in enumerate((1, 1, 2))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_group_sizes_that_do_not_fit_are_noted_and_recorded(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", hidden=96, intermediate=200)
    report = compress(source, tmp_path / "out", recipe(group_size=64))
    assert report.notes == [
        "group size 32 in place of 64, which does not divide the rows of "
        "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        "group size 200 in place of 64, which does not divide the rows of down_proj",
    ]
    assert {entry.group_size for entry in report.slots.values()} == {32, 200}
    torch.testing.assert_close(
        logits(stock(tmp_path / "out")), logits(load_base(tmp_path / "out").model), rtol=0, atol=1e-4
    )


def test_calibration_that_is_not_looked_at_is_noted(base: Path, tmp_path: Path) -> None:
    report = compress(base, tmp_path / "out", recipe(calibration={"source": "some.txt"}))
    assert report.notes == ["some.txt is not looked at: no step of the recipe is calibrated"]


def test_dense_slots_are_listed_but_not_counted(base: Path, tmp_path: Path) -> None:
    report = compress(base, tmp_path / "out", recipe(overrides={"layers.0": {"bits": 16}}))
    dense = [slot for slot, entry in report.slots.items() if entry.method == "none"]
    assert len(dense) == 7
    assert all(report.slots[slot].bits == 16 and report.slots[slot].error < 1e-3 for slot in dense)
    assert report.sizes.bits_per_weight == 4.5
    assert list(report.slots) == list(slot_shapes(load_base(base).model))


def test_weights_beyond_float16_keep_their_range(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base")
    state = load_file(source / "model.safetensors")
    state["model.norm.weight"][0] = 2.0**20
    state["model.layers.0.input_layernorm.weight"][1] = 1e5 + 1
    save_file(state, source / "model.safetensors", metadata={"format": "pt"})
    compress(source, tmp_path / "out", recipe())
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written["model.norm.weight"].dtype == torch.bfloat16
    assert written["model.layers.0.input_layernorm.weight"].dtype == torch.float32
    assert written["model.layers.1.input_layernorm.weight"].dtype == torch.float16
    after = load_base(tmp_path / "out").model.state_dict()
    assert torch.equal(after["model.norm.weight"], state["model.norm.weight"])


def test_type_that_the_base_computes_in_is_kept_for_stock_loaders(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base")
    make_model().bfloat16().save_pretrained(source)
    compress(source, tmp_path / "out", recipe())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.mlp.up_proj.weight", "weight of layers.1.mlp.up_proj: expected finite values"),
        ("model.norm.weight", "weight model.norm.weight: expected finite values"),
    ],
)
def test_weights_that_are_not_finite_leave_nothing(name: str, message: str, base: Path, tmp_path: Path) -> None:
    state = load_file(base / "model.safetensors")
    state[name].view(-1)[3] = math.nan
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match=message):
        compress(base, tmp_path / "out", recipe())
    assert left_over(tmp_path) == []


def test_interrupted_run_leaves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        assert left_over(tmp_path) == [".out.partial"]
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "write_base", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compress(base, tmp_path / "out", recipe())
    assert left_over(tmp_path) == []


def test_existing_output_is_kept_unless_told(base: Path, tmp_path: Path) -> None:
    compress(base, tmp_path / "out", recipe(bits=8))
    with pytest.raises(UsageError, match="exists"):
        compress(base, tmp_path / "out", recipe(bits=4))
    assert next(iter(load_base(tmp_path / "out").record.slots.values())).bits == 8  # type: ignore[union-attr]
    compress(base, tmp_path / "out", recipe(bits=4), overwrite=True)
    assert next(iter(load_base(tmp_path / "out").record.slots.values())).bits == 4  # type: ignore[union-attr]


def test_compressed_base_is_not_compressed_again(base: Path, tmp_path: Path) -> None:
    compress(base, tmp_path / "out", recipe())
    with pytest.raises(UsageError, match="is compressed already"):
        compress(tmp_path / "out", tmp_path / "twice", recipe())
    assert left_over(tmp_path) == ["out"]


def test_base_is_not_replaced_by_its_own_result(base: Path) -> None:
    with pytest.raises(UsageError, match="is the base itself"):
        compress(base, base, recipe(), overwrite=True)
    assert load_base(base).record is None


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (recipe(overrides={"nothing": {"bits": 8}}), ConfigError, "override 'nothing' fits no slot"),
        (recipe("gptq", calibration={"source": "missing.txt"}), DataError, "missing.txt cannot be read"),
    ],
)
def test_recipe_that_does_not_fit_leaves_nothing(
    wanted: Recipe, error: type[Exception], message: str, base: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        compress(base, tmp_path / "out", wanted)
    assert left_over(tmp_path) == []


def test_report_is_what_load_base_gives_as_record(base: Path, tmp_path: Path) -> None:
    report = compress(str(base), tmp_path / "deep" / "out", recipe(bits=8), progress=silent)
    loaded: Base = load_base(tmp_path / "deep" / "out")
    assert loaded.record == report
    assert loaded.is_compressed
