"""Recovery after pruning: it learns, what is merged is what was trained, and a killed training goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.adapt.closed_form import original_weights
from regraft.compress.prune.step import prune
from regraft.compress.recipe import Recipe
from regraft.compress.recover import recover
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import FormatError
from regraft.formats.base_record import read_record
from regraft.models.load import load_base
from regraft.models.merged_lora import RECOVERED_NAME, read_recovered
from regraft.models.slots import iter_slots
from tests.adapt.made import Listener, stop_at
from tests.compress.prune.made import logits, settings
from tests.tiny import make_base

PRUNE = {"prune": {"importance": "random", "ratio": 0.3, "multiple": 8}}
RECOVER: dict[str, Any] = {
    "recover": {
        "rank": 4,
        "text": {"num_sequences": 40, "sequence_length": 24},
        "train": {"tokens": 3000, "batch_tokens": 96, "evaluations": 4, "learning_rate": 0.003},
    }
}
INT8 = {"quantize": {"method": "rtn", "bits": 8, "group_size": 32}}


def recipe(*steps: dict[str, Any]) -> Recipe:
    return parse(Recipe, {"steps": list(steps)}, "test")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base", intermediate=96)


@pytest.mark.parametrize("distil", [{"hidden": 0.05, "logits": 1}, {"hidden": 0, "logits": 0, "answers": 1}])
@pytest.mark.parametrize("groups", [["heads", "neurons"], ["channels"]])
def test_what_is_merged_brings_the_base_nearer(
    source: Path, groups: list[str], distil: dict[str, float], tmp_path: Path
) -> None:
    original = load_base(source)
    small, _ = prune(original, settings(groups=groups, ratio=0.4))
    before = {slot: linear.weight.clone() for slot, linear in iter_slots(small.model)}
    asked = recipe(PRUNE, {"recover": {**RECOVER["recover"], "distil": distil}}).steps[1].recover
    assert asked is not None
    merged = recover(small, original, asked, tmp_path, note=pytest.fail)
    assert merged.state.best_dev < merged.state.dev[0] - 0.01
    for slot, linear in iter_slots(small.model):
        up, down = merged.factors[slot]
        assert up.shape[1] == down.shape[0] == 4
        torch.testing.assert_close(linear.weight, before[slot] + up @ down, rtol=1e-4, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in small.model.parameters())


def test_record_and_factors_are_on_disk(source: Path, tmp_path: Path) -> None:
    record = compress(source, tmp_path / "out", recipe(PRUNE, RECOVER, INT8))
    assert record == read_record(tmp_path / "out")
    assert record.recovered is not None
    assert record.recovered.rank == 4
    assert record.recovered.training["best_dev"] < record.recovered.training["dev"][0]
    assert record.calibration is None  # only the recovery looked at text, and says at which
    assert record.recovered.text.num_tokens == 40 * 24
    small, original = load_base(tmp_path / "out"), load_base(source)
    for slot, linear in iter_slots(small.model):
        wanted = original_weights(small, original)[slot]
        assert float((linear.weight - wanted).norm() / wanted.norm()) < 0.01  # what 8 bits take, and no more
    assert record.sizes.bytes_after == (tmp_path / "out" / "model.safetensors").stat().st_size


def test_a_killed_training_goes_on(source: Path, tmp_path: Path) -> None:
    steps = recipe(PRUNE, RECOVER, INT8)
    whole = compress(source, tmp_path / "whole", steps)
    with pytest.raises(KeyboardInterrupt):
        compress(source, tmp_path / "out", steps, progress=Listener("adapt", stop_at(25)))
    assert not (tmp_path / "out").exists()
    listener = Listener()
    again = compress(source, tmp_path / "out", steps, progress=listener)
    assert [note.split(" at ")[0] for note in listener.notes[:2]] == ["going on after step 1, prune", "resuming"]
    assert again.fingerprint == whole.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "whole"]


def test_a_finished_training_is_not_repeated(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    steps = recipe(PRUNE, RECOVER, INT8)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("regraft.compress.run.round_slots", killed)
        compress(source, tmp_path / "out", steps)
    listener = Listener()
    record = compress(source, tmp_path / "out", steps, progress=listener)
    assert "going on after step 2, recover" in listener.notes
    assert "adapt" not in listener.phases
    assert record.recovered is not None
    assert read_recovered(tmp_path / "out", record.recovered)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_factors_that_are_not_those_of_the_base_are_refused(source: Path, tmp_path: Path, damage: str) -> None:
    compress(source, tmp_path / "out", recipe(PRUNE, RECOVER))
    path = tmp_path / "out" / RECOVERED_NAME
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes([*path.read_bytes()[:-1], path.read_bytes()[-1] ^ 1]))
    small = load_base(tmp_path / "out")
    assert logits(small.model).isfinite().all()  # the base itself runs without them
    with pytest.raises(FormatError, match=r"recovered\.safetensors (is missing|has changed)"):
        original_weights(small, load_base(source))
