from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from regraft.compress.calibrate import SlotInputs, read_calibration
from regraft.compress.recipe import Calibration
from regraft.errors import DataError
from regraft.formats.slots import layer_index
from regraft.models.load import Base, load_base
from regraft.models.slots import iter_slots
from regraft.progress import silent
from tests.tiny import FAMILIES, make_base

SETTINGS = Calibration(num_sequences=11, sequence_length=24, seed=1)


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return load_base(make_base(tmp_path / "base", request.param))


def layers_of(base: Base) -> dict[int, dict[str, nn.Linear]]:
    layers: dict[int, dict[str, nn.Linear]] = {}
    for slot, linear in iter_slots(base.model):
        layers.setdefault(layer_index(slot), {})[slot] = linear
    return layers


def grams_slowly(base: Base, sequences: Tensor) -> dict[str, Tensor]:
    """Whole passes through the whole model, one sequence at a time, in double precision."""
    grams: dict[str, Tensor] = {}

    def listen(slot: str) -> object:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).double()
            grams[slot] = grams.get(slot, 0) + x.T @ x

        return hook

    handles = [linear.register_forward_pre_hook(listen(slot)) for slot, linear in iter_slots(base.model)]
    with torch.no_grad():
        for sequence in sequences:
            base.model(sequence[None])
    for handle in handles:
        handle.remove()
    return grams


def test_layer_by_layer_statistics_are_those_of_whole_passes(base: Base) -> None:
    text = read_calibration(base, SETTINGS, pytest.fail, silent)
    slow = grams_slowly(base, text.sequences)
    inputs = SlotInputs(base, text.sequences)
    for layer, linears in layers_of(base).items():
        for stage in inputs.stages(layer, linears):
            for slot, gram in inputs.grams(layer, {slot: linears[slot] for slot in stage}).items():
                torch.testing.assert_close(gram.double(), slow[slot], rtol=1e-3, atol=1e-3 * slow[slot].abs().max())
        inputs.advance(layer)


def test_statistics_follow_what_was_changed_before(base: Base) -> None:
    text = read_calibration(base, SETTINGS, pytest.fail, silent)
    layers, inputs = layers_of(base), None
    inputs = SlotInputs(base, text.sequences)
    layers[0]["layers.0.self_attn.v_proj"].weight.data.mul_(0.5)
    slow = grams_slowly(base, text.sequences)
    gram = inputs.grams(0, {"layers.0.self_attn.o_proj": layers[0]["layers.0.self_attn.o_proj"]})
    inputs.advance(0)
    gram |= inputs.grams(1, {"layers.1.mlp.up_proj": layers[1]["layers.1.mlp.up_proj"]})
    for slot, found in gram.items():
        torch.testing.assert_close(found.double(), slow[slot], rtol=1e-3, atol=1e-3 * slow[slot].abs().max())


def test_slots_with_the_same_input_form_a_stage(base: Base) -> None:
    text = read_calibration(base, SETTINGS, pytest.fail, silent)
    stages = SlotInputs(base, text.sequences).stages(1, layers_of(base)[1])
    leaves = [[slot.removeprefix("layers.1.") for slot in stage] for stage in stages]
    assert leaves == [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]


@pytest.fixture
def llama(tmp_path: Path) -> Base:
    return load_base(make_base(tmp_path / "base", "llama"))


def test_text_of_the_base_itself_is_reproducible(llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_calibration(llama, SETTINGS, pytest.fail, silent)
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "empty"))
    again = read_calibration(llama, SETTINGS, pytest.fail, silent)
    other = read_calibration(llama, SETTINGS.model_copy(update={"seed": 2}), pytest.fail, silent)
    assert first.sequences.shape == (11, 24)
    assert (first.record.source, first.record.num_tokens) == ("self", 11 * 24)
    assert torch.equal(first.sequences, again.sequences)
    assert first.record == again.record
    assert first.record.sha256 != other.record.sha256


def test_text_of_the_base_itself_is_written_once(llama: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    first = read_calibration(llama, SETTINGS, pytest.fail, silent)
    monkeypatch.setattr("regraft.compress.calibrate.write_text", lambda *_, **__: [[7] * 24] * 11)
    again = read_calibration(llama, SETTINGS, pytest.fail, silent)
    assert torch.equal(first.sequences, again.sequences) and first.record == again.record
    other_base = load_base(make_base(tmp_path / "other", "llama", seed=5))
    for base, settings in ((llama, SETTINGS.model_copy(update={"seed": 2})), (other_base, SETTINGS)):
        assert (read_calibration(base, settings, pytest.fail, silent).sequences == 7).all()


def test_text_is_cut_from_a_file(llama: Base, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    settings = SETTINGS.model_copy(update={"source": str(path)})
    text = read_calibration(llama, settings, pytest.fail, silent)
    assert text.sequences.shape == (11, 24)
    assert text.record.source == "text.txt"
    assert len({tuple(row) for row in text.sequences.tolist()}) > 1


def test_short_file_gives_what_it_has_and_says_so(llama: Base, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": "the quick", "completion": "brown fox " * 8}) for _ in range(4)))
    said: list[str] = []
    text = read_calibration(llama, SETTINGS.model_copy(update={"source": str(path)}), said.append, silent)
    count = len(text.sequences)
    assert 0 < count < 11
    assert said == [f"rows.jsonl has only {count} of the 11 calibration sequences asked for"]


def test_file_shorter_than_a_sequence_is_refused(llama: Base, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("too short")
    with pytest.raises(DataError, match=r"text.txt: expected at least 24 tokens, found \d+"):
        read_calibration(llama, SETTINGS.model_copy(update={"source": str(path)}), pytest.fail, silent)
