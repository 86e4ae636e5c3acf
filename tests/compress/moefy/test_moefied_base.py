"""A base of experts on disk: every reader takes it, adapters of the original fit it, and a killed call goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.compress import run
from regraft.compress.recipe import Recipe, with_options
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.weights.open_base import open_base
from regraft.errors import ConfigError, FormatError
from regraft.formats.base_record import read_record
from regraft.formats.experts import CONFIG_KEY
from regraft.formats.kept import KEPT_NAME
from regraft.models.load import load_base
from tests.adapt.made import Listener
from tests.compress.prune.made import logits
from tests.compress.prune.test_pruned_base import IDS, engine_logits, make_lora, torch_logits
from tests.tiny import make_base

PRUNE = {"prune": {"importance": "flap", "ratio": 0.2, "multiple": 32}}
RECOVER: dict[str, Any] = {
    "recover": {
        "rank": 2,
        "text": {"num_sequences": 6, "sequence_length": 16},
        "train": {"tokens": 200, "batch_tokens": 32, "learning_rate": 0.003},
    }
}
MOEFY = {"moefy": {"active": 0.5}}
CATS = {"moefy": {"method": "cats", "active": 0.5, "split": "activations", "size": 64}}
INT4 = {"quantize": {"method": "gptq", "bits": 4, "group_size": 64, "act_order": True}}


def recipe(*steps: dict[str, Any]) -> Recipe:
    calibration = {"num_sequences": 6, "sequence_length": 16}
    return parse(Recipe, {"steps": list(steps), "calibration": calibration}, "test")


def make(folder: Path) -> Path:
    return make_base(folder / "base", layers=2, intermediate=256)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "steps",
    [[MOEFY], [CATS, INT4], [PRUNE, RECOVER, MOEFY, INT4], [PRUNE, MOEFY, RECOVER, INT4]],
    ids=["experts", "cats+int4", "all three", "recovery last"],
)
def test_engine_and_torch_agree_with_an_adapter_of_the_original(steps: list[dict[str, Any]], tmp_path: Path) -> None:
    source = make(tmp_path)
    lora = make_lora(tmp_path / "lora", source)
    record = compress(source, tmp_path / "out", recipe(*steps))
    assert record == read_record(tmp_path / "out")
    assert record.experts is not None
    assert (
        record.experts.model_dump(include={"method", "size", "active"})
        == (json.loads((tmp_path / "out" / "config.json").read_text())[CONFIG_KEY])
    )
    assert not record.stock_loadable
    for adapter in (None, lora):
        expected = torch_logits(tmp_path / "out", adapter)
        assert np.abs(engine_logits(tmp_path / "out", adapter) - expected).max() < 2e-2
    assert np.abs(torch_logits(tmp_path / "out", lora) - torch_logits(tmp_path / "out")).max() > 0.1


@torch.no_grad()
def test_an_inherited_lora_is_that_of_the_original_with_the_other_neurons_at_zero(tmp_path: Path) -> None:
    source = make(tmp_path)
    lora = make_lora(tmp_path / "lora", source)
    compress(source, tmp_path / "out", recipe(MOEFY))
    small, whole = load_base(tmp_path / "out"), load_base(source)
    assert small.kept is not None
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    for number, layer in enumerate(small.kept.layers):
        with attached(small.model, read_adapter(lora, small).bypasses):
            cut = small.model.get_decoder().layers[number].mlp
            found = cut(x)
            chosen = cut.chooser(x, cut.act_fn(cut.gate_proj(x))).repeat_interleave(32, dim=1)
        with attached(whole.model, read_adapter(lora, whole).bypasses):
            mlp = whole.model.get_decoder().layers[number].mlp
            mask = torch.zeros(5, 256)
            mask[:, torch.from_numpy(layer.neurons)] = chosen.float()
            expected = mlp.down_proj(mask * mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))
        torch.testing.assert_close(found, expected, rtol=1e-2, atol=5e-3)  # the directory holds float16


@pytest.mark.parametrize("stopped", ["moefy", "quantize"])
def test_a_killed_call_goes_on_after_the_last_finished_step(
    stopped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, listener = make(tmp_path), Listener()
    steps = recipe(PRUNE, RECOVER, MOEFY, INT4)
    whole = compress(source, tmp_path / "whole", steps)

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run, "moefy" if stopped == "moefy" else "round_slots", killed)
        compress(source, tmp_path / "out", steps)
    assert compress(source, tmp_path / "out", steps, progress=listener).fingerprint == whole.fingerprint
    assert f"going on after step {'2, recover' if stopped == 'moefy' else '3, moefy'}" in listener.notes


def test_what_the_config_says_of_experts_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    compress(make(tmp_path), tmp_path / "out", recipe(MOEFY))
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config[CONFIG_KEY]["active"][0] = 1
    path.write_text(json.dumps(config))
    with pytest.raises(FormatError, match="has changed since it was written"):
        load_base(tmp_path / "out")
    config[CONFIG_KEY]["active"][0] = 99
    path.write_text(json.dumps(config))
    for reader in (load_base, open_base):
        with pytest.raises(FormatError, match="regraft_experts, layer 0: expected some of the experts"):
            reader(tmp_path / "out")


def test_an_order_of_neurons_that_is_none_is_refused(tmp_path: Path) -> None:
    compress(make(tmp_path), tmp_path / "out", recipe(MOEFY))
    path, record = tmp_path / "out" / KEPT_NAME, tmp_path / "out" / "regraft.json"
    tensors = load_file(path)
    tensors["layers.0.order"][0] = tensors["layers.0.order"][1]
    save_file(tensors, path)
    with pytest.raises(FormatError, match="has changed since it was written"):
        open_base(tmp_path / "out")
    from regraft.storage import file_sha256

    data = json.loads(record.read_text())
    data["pruned"]["kept_sha256"] = file_sha256(path)
    record.write_text(json.dumps(data))
    with pytest.raises(FormatError, match=r"layers\.0\.order: expected each of 256 places once"):
        open_base(tmp_path / "out")


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ([MOEFY, MOEFY], "moefy once"),
        ([MOEFY, PRUNE], "moefy once, after all prune steps"),
        ([INT4, MOEFY], "nothing after quantize"),
        ([RECOVER, MOEFY], "recover once"),
        ([PRUNE, RECOVER, MOEFY, RECOVER], "recover once"),
        ([PRUNE, RECOVER, PRUNE, MOEFY], "recover once"),
    ],
)
def test_orders_that_mean_nothing_are_refused(steps: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe(*steps)


def test_a_seed_is_that_of_the_experts_too() -> None:
    moved = with_options(recipe(MOEFY), seed=7)
    assert moved.steps[0].moefy is not None
    assert moved.steps[0].moefy.seed == 7


def test_moefying_an_unknown_shape_is_refused_whole(tmp_path: Path) -> None:
    source = make_base(tmp_path / "base", layers=2, intermediate=144)
    with pytest.raises(ConfigError, match=r"moefy.size 32: expected a part of the 144 neurons"):
        compress(source, tmp_path / "out", recipe(MOEFY))
    assert not (tmp_path / "out").exists()


def test_logits_differ_from_the_dense_base(tmp_path: Path) -> None:
    source = make(tmp_path)
    compress(source, tmp_path / "out", recipe(MOEFY))
    small, whole = load_base(tmp_path / "out"), load_base(source)
    assert (logits(small.model, IDS[None]) - logits(whole.model, IDS[None])).abs().max() > 1e-3
