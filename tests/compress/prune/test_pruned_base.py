"""A pruned base on disk: every reader takes it, adapters of the original fit it, and a killed call goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.compress import run
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.mix import Mix
from regraft.engine.run.batch import Chunk, logits_of, run_step
from regraft.engine.weights.adapter_packing import build_adapter
from regraft.engine.weights.open_base import open_base
from regraft.errors import FormatError, IncompatibleAdapterError
from regraft.formats.base_record import read_record
from regraft.formats.kept import KEPT_NAME
from regraft.models.load import load_base
from regraft.models.slots import slot_shapes
from regraft.native import _core
from tests.adapt.made import Listener
from tests.compress.prune.made import logits, mask, sequences
from tests.tiny import FAMILIES, make_base

PRUNE: dict[str, Any] = {"importance": "taylor", "ratio": 0.3, "multiple": 8, "ranking": "global", "protect_first": 1}
INT8 = {"quantize": {"method": "rtn", "bits": 8, "group_size": 32}}
IDS = sequences(1, 30)[0]


def recipe(*steps: dict[str, Any]) -> Recipe:
    calibration = {"num_sequences": 4, "sequence_length": 16}
    return parse(Recipe, {"steps": list(steps), "calibration": calibration}, "test")


def make(folder: Path, family: str = "llama") -> Path:
    return make_base(folder / "base", family, layers=4, intermediate=96)


def make_lora(folder: Path, base: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    settings = {"r": 3, "target_modules": "all-linear", "init_lora_weights": False, **options}
    get_peft_model(load_base(base).model, LoraConfig(task_type="CAUSAL_LM", **settings)).save_pretrained(folder)
    return folder


def engine_logits(folder: Path, adapter: Path | None = None) -> Any:
    base = open_base(folder)
    mix: Mix[_core.Adapter] = Mix()
    if adapter:
        stored = base.read_adapter(adapter)
        mix = Mix(((build_adapter(base.architecture.layers, stored.bypasses), 1.0),))
    arena = np.zeros((2, base.model.kv_page_bytes), np.uint8)
    chunk = Chunk(IDS.tolist(), 0, [0, 1], logits=len(IDS), mix=mix)
    core = _core.Core(1)
    states = run_step(core, base.model, arena, [chunk], float_activations=True)
    return np.stack([*logits_of(core, base.model, states, float_activations=True)])


def torch_logits(folder: Path, adapter: Path | None = None) -> Any:
    base = load_base(folder)
    with attached(base.model, read_adapter(adapter, base).bypasses if adapter else {}):
        return logits(base.model, IDS[None])[0].numpy()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "steps",
    [
        [{"prune": PRUNE}, INT8],
        [{"prune": {**PRUNE, "importance": "flap"}}],
        [{"prune": {"importance": "l2", "ratio": 0.5, "groups": ["channels"], "multiple": 8}}, INT8],
        [{"prune": {"importance": "block-influence", "ratio": 0.25, "groups": ["layers"]}}, {"prune": PRUNE}, INT8],
    ],
    ids=["taylor+int8", "flap", "channels+int8", "layers+taylor+int8"],
)
def test_engine_and_torch_agree_with_an_adapter_of_the_original(
    family: str, steps: list[dict[str, Any]], tmp_path: Path
) -> None:
    source = make(tmp_path, family)
    lora = make_lora(tmp_path / "lora", source)
    record = compress(source, tmp_path / "out", recipe(*steps))
    assert record == read_record(tmp_path / "out")
    assert record.pruned is not None
    shapes = slot_shapes(load_base(tmp_path / "out").model)
    assert shapes == record.pruned.slot_shapes == open_base(tmp_path / "out").slot_shapes
    plain, adapted = torch_logits(tmp_path / "out"), torch_logits(tmp_path / "out", lora)
    assert np.abs(engine_logits(tmp_path / "out") - plain).max() < 1e-2
    assert np.abs(engine_logits(tmp_path / "out", lora) - adapted).max() < 2e-2
    assert np.abs(adapted - plain).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [["heads", "neurons"], ["channels"]], ids="+".join)
def test_an_inherited_lora_is_that_of_the_masked_original(family: str, groups: list[str], tmp_path: Path) -> None:
    source = make(tmp_path, family)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-12}))
    lora = make_lora(tmp_path / "lora", source, rank_pattern={"q_proj": 5}, alpha_pattern={"up_proj": 3})
    compress(
        source,
        tmp_path / "out",
        recipe({"prune": {"importance": "random", "ratio": 0.4, "groups": groups, "multiple": 8}}),
    )
    small, whole = load_base(tmp_path / "out"), load_base(source)
    small.model.load_state_dict(_exact(small, whole))
    assert small.kept is not None
    theirs = PeftModel.from_pretrained(whole.model, lora).merge_and_unload()  # type: ignore[arg-type]
    mask(load_like(whole, theirs), small.kept)
    with attached(small.model, read_adapter(lora, small).bypasses):
        found = logits(small.model)
    torch.testing.assert_close(found, logits(theirs), rtol=1e-3, atol=1e-4)


def _exact(small: Any, whole: Any) -> Any:
    """What is left of the original in float32, where the directory holds float16."""
    from regraft.compress.prune.slice import sliced_state

    state = sliced_state(whole.model, small.kept)
    return state | {name: state["model.embed_tokens.weight"] for name in ["lm_head.weight"]}


def load_like(base: Any, model: Any) -> Any:
    """The base with another model in it."""
    base.model = model
    return base


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "prune",
    [
        {"importance": "taylor", "ratio": 0.3, "multiple": 8, "uniform": True},
        {"importance": "flap", "compensate": False, "ratio": 0.3, "multiple": 8, "uniform": True},
        {"importance": "l1", "ratio": 0.5, "multiple": 8, "groups": ["channels"]},
        {"importance": "block-influence", "ratio": 0.5, "groups": ["layers"]},
    ],
    ids=["taylor", "flap", "channels", "layers"],
)
def test_plain_transformers_loads_what_is_uniform(family: str, prune: dict[str, Any], tmp_path: Path) -> None:
    record = compress(make(tmp_path, family), tmp_path / "out", recipe({"prune": prune}))
    assert record.stock_loadable
    assert record.stock_loadable_reason is None
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(stock), logits(load_base(tmp_path / "out").model), rtol=0, atol=1e-5)


def test_uniform_and_quantised_loads_too(tmp_path: Path) -> None:
    prune = {"importance": "l2", "ratio": 0.3, "multiple": 32, "uniform": True}
    assert compress(make(tmp_path), tmp_path / "out", recipe({"prune": prune}, INT8)).stock_loadable
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(stock), logits(load_base(tmp_path / "out").model), rtol=0, atol=1e-4)


def test_what_is_not_uniform_is_marked(tmp_path: Path) -> None:
    record = compress(make(tmp_path), tmp_path / "out", recipe({"prune": PRUNE}))
    assert not record.stock_loadable
    assert (record.stock_loadable_reason or "").startswith("layers differ in width")
    with pytest.raises(Exception, match=r"mismatch"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("stopped", ["second prune", "quantize"])
def test_a_killed_call_goes_on_after_the_last_finished_step(
    stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, listener = make(tmp_path), Listener()
    steps = recipe({"prune": {**PRUNE, "ratio": 0.15}}, {"prune": {**PRUNE, "ratio": 0.15}}, INT8)
    whole = compress(source, tmp_path / "whole", steps)
    real, calls = run.prune, []

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if stopped == "second prune" and len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "prune", counted)
        if stopped == "quantize":
            patch.setattr(run, "round_slots", killed)
        compress(source, tmp_path / "out", steps)
    assert len(calls) == 2
    assert not (tmp_path / "out").exists()
    assert compress(source, tmp_path / "out", steps, progress=listener).fingerprint == whole.fingerprint
    assert f"going on after step {1 if stopped == 'second prune' else 2}, prune" in listener.notes
    assert not (tmp_path / ".out.work").exists()
    first, second = (load_file(tmp_path / name / KEPT_NAME) for name in ("whole", "out"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_recipe_does_not_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, listener = make(tmp_path), Listener()

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "round_slots", killed)
        compress(source, tmp_path / "out", recipe({"prune": PRUNE}, INT8))
    compress(source, tmp_path / "out", recipe({"prune": {**PRUNE, "ratio": 0.2}}, INT8), progress=listener)
    assert not any("going on" in note for note in listener.notes)


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    compress(make(tmp_path), tmp_path / "out", recipe({"prune": PRUNE}, INT8))
    return tmp_path / "out"


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_indices_that_are_not_those_of_the_base_are_refused(pruned: Path, damage: str) -> None:
    path = pruned / KEPT_NAME
    if damage == "missing":
        path.unlink()
    else:
        masks = load_file(path)
        masks["layers.1.neurons"] = masks["layers.1.neurons"].flip(0)
        save_file(masks, path)
    says = "kept.safetensors is missing" if damage == "missing" else "has changed since it was written"
    for reader in (load_base, open_base):
        with pytest.raises(FormatError, match=says):
            reader(pruned)


def test_packed_weights_without_their_configuration_are_refused(pruned: Path) -> None:
    config = json.loads((pruned / "config.json").read_text())
    del config["quantization_config"]
    (pruned / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match="no quantization_config, but there are packed weights"):
        load_base(pruned)


def test_an_adapter_whose_parts_are_all_gone_is_refused(tmp_path: Path) -> None:
    source = make(tmp_path)
    prune = {"importance": "random", "ratio": 0.25, "groups": ["layers"], "protect_first": 3}
    compress(source, tmp_path / "out", recipe({"prune": prune}))
    lora = make_lora(tmp_path / "lora", source, target_modules=["q_proj"], layers_to_transform=[3])
    for read in (
        lambda: read_adapter(lora, load_base(tmp_path / "out")),
        lambda: open_base(tmp_path / "out").read_adapter(lora),
    ):
        with pytest.raises(IncompatibleAdapterError, match="has no effect on out: all that it changes is pruned"):
            read()


def test_what_is_removed_is_what_the_record_says(pruned: Path) -> None:
    record, base = read_record(pruned), load_base(pruned)
    assert record is not None
    assert record.pruned is not None
    left = sum(out * width for out, width in slot_shapes(base.model).values())
    whole = 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    assert record.pruned.removed == pytest.approx(1 - left / whole)
    assert record.pruned.removed == pytest.approx(0.3, abs=0.03)
    assert record.pruned.layers[0].model_dump() == {"source": 0, "heads": 4, "kv_heads": 2, "mlp": 96, "biases": []}
