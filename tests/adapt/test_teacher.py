"""The teacher speaks once, is remembered by what it is and what it read, and must be the right one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.errors import IncompatibleAdapterError
from regraft.models.load import Base, load_base
from regraft.train.batches import Row
from regraft.train.teacher import Targets, Teacher, teach
from tests.adapt.made import Listener, Made, counted_forwards, make_lora, stop_at
from tests.tiny import make_base

ROWS = [Row([3 + n, *range(20, 20 + n % 9), 2], 1) for n in range(60)]


@pytest.fixture
def adapter(made: Made, base: Base) -> Adapter:
    return read_adapter(made.lora, base)


@torch.no_grad()
def assert_live(targets: Targets, base: Base, adapter: Adapter | None) -> None:
    with attached(base.model, adapter.bypasses if adapter else {}):
        for number, row in enumerate(ROWS):
            live = base.model.get_decoder()(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
            torch.testing.assert_close(targets.hidden(number), live, atol=2e-3, rtol=2e-3)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("alone", [True, False])
def test_kept_outputs_are_those_of_a_live_pass(base: Base, adapter: Adapter, tmp_path: Path, alone: bool) -> None:
    acting = None if alone else adapter
    assert_live(teach(Teacher(base, acting), ROWS, tmp_path), base, acting)


def test_teacher_speaks_once(base: Base, adapter: Adapter, tmp_path: Path) -> None:
    with counted_forwards(base) as calls:
        teach(Teacher(base, adapter), ROWS, tmp_path)
        spoken = len(calls)
        again = teach(Teacher(base, adapter), ROWS, tmp_path)
    assert len(calls) == spoken > 0
    assert len(files(tmp_path)) == 1
    assert_live(again, base, adapter)


def test_other_rows_and_other_adapters_have_other_files(
    made: Made, base: Base, adapter: Adapter, tmp_path: Path
) -> None:
    rescaled = Path(shutil.copytree(made.lora, tmp_path / "rescaled"))
    config = json.loads((rescaled / "adapter_config.json").read_text())
    (rescaled / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": config["lora_alpha"] * 2}))
    teachers = [None, adapter, read_adapter(make_lora(tmp_path / "other", made.base, seed=1), base)]
    teachers.append(read_adapter(rescaled, base))  # the same weights file, which PEFT's config scales otherwise
    folder = tmp_path / "targets"
    folder.mkdir()
    for count, acting in enumerate(teachers, 1):
        assert_live(teach(Teacher(base, acting), ROWS, folder), base, acting)
        assert len(files(folder)) == count
    teach(Teacher(base, adapter), ROWS[1:], folder)
    teach(Teacher(base, adapter), ROWS[::-1], folder)
    assert len(files(folder)) == len(teachers) + 2


@pytest.mark.parametrize("size", [0, 1000])
def test_truncated_file_is_written_anew(base: Base, adapter: Adapter, tmp_path: Path, size: int) -> None:
    teach(Teacher(base, adapter), ROWS, tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:size])
    assert_live(teach(Teacher(base, adapter), ROWS, tmp_path), base, adapter)


def test_interrupted_teacher_is_not_taken_for_a_finished_one(base: Base, adapter: Adapter, tmp_path: Path) -> None:
    rows = ROWS * 10
    with pytest.raises(KeyboardInterrupt):
        teach(Teacher(base, adapter), rows, tmp_path, Listener("teacher", stop_at(1)))
    assert not [name for name in files(tmp_path) if name.endswith(".f16")]
    teach(Teacher(base, adapter), rows, tmp_path)
    assert [Path(name).suffix for name in files(tmp_path)] == [".f16"]


def test_base_is_left_as_it_was(base: Base, adapter: Adapter, tmp_path: Path) -> None:
    modules, weights = dict(base.model.named_modules()), {k: v.clone() for k, v in base.model.state_dict().items()}
    teach(Teacher(base, adapter), ROWS, tmp_path)
    assert dict(base.model.named_modules()) == modules
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())


def test_right_teacher_is_taken(base: Base, small: Base, adapter: Adapter) -> None:
    Teacher(base, adapter).check(small)


def test_compressed_teacher_is_refused(small: Base) -> None:
    with pytest.raises(
        IncompatibleAdapterError, match=r"^teacher small is compressed itself: expected the uncompressed base$"
    ):
        Teacher(small, None).check(small)


def test_teacher_of_another_base_is_refused(small: Base, tmp_path: Path) -> None:
    other = load_base(make_base(tmp_path / "other", seed=3))
    with pytest.raises(IncompatibleAdapterError) as caught:
        Teacher(other, None).check(small)
    expected = f"expected base (fingerprint {small.original_fingerprint[:12]}), found {other.fingerprint[:12]}"
    assert str(caught.value) == f"teacher other is not the model that small was made from: {expected}"


def test_adapter_s_digest_is_of_what_it_computes(adapter: Adapter) -> None:
    assert replace(adapter, name="renamed", sha256=None, path=None).digest() == adapter.digest()
    slot, lora = next(iter(adapter.of("lora").items()))
    for change in ("scale", "up"):
        copy = type(lora)(lora.down.data, lora.up.data, lora.scale)
        changed = replace(adapter, bypasses={**adapter.bypasses, slot: [copy]})
        if change == "scale":
            copy.scale *= 2
        else:
            copy.up.data = lora.up.data * 2
        assert changed.digest() != adapter.digest()
