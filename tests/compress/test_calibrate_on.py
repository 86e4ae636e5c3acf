"""Recipes that name adapters: what is read, what is refused, what the record says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from regraft.bypass.directory import read_adapter
from regraft.compress.calibrate import CalibrationText, read_calibration
from regraft.compress.checkpoints import Checkpoints
from regraft.compress.recipe import Calibration, Recipe, load_recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import ConfigError, DataError, IncompatibleAdapterError, RegraftError, UsageError
from regraft.evaluate.dataset import encode, read_examples
from regraft.formats.base_record import Calibration as CalibrationRecord
from regraft.models.load import Base, load_base
from regraft.progress import silent
from tests.tiny import make_base

GPTQ = {"quantize": {"method": "gptq", "bits": 4, "group_size": 32}}
PRUNE = {"prune": {"importance": "taylor", "ratio": 0.3, "groups": ["neurons"], "multiple": 32}}
MOEFY = {"moefy": {"active": 0.5, "split": "activations"}}


def save_lora(base: Path, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(load_base(base).model, config).save_pretrained(folder)
    return folder


def save_rows(path: Path, count: int, words: str = "fox") -> Path:
    rows = [{"prompt": f"the quick {number} " + "dog " * (number % 5), "completion": words} for number in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two of its adapters with rows, and an adapter of a wider base; read-only."""
    root = tmp_path_factory.mktemp("adapters")
    base = make_base(root / "base", intermediate=256)
    for number, name in enumerate(("one", "two")):
        save_lora(base, root / name, number)
        save_rows(root / f"{name}.jsonl", 12, f"fox {name}")
    save_lora(make_base(root / "wide", hidden=96), root / "foreign", 3)
    return root


@pytest.fixture(scope="module")
def base(root: Path) -> Base:
    return load_base(root / "base")


def calibration(root: Path, *names: str, **options: Any) -> Calibration:
    adapters = [{"adapter": root / name, "data": root / f"{name}.jsonl", "num_sequences": 8} for name in names]
    return parse(Calibration, {"num_sequences": 4, "sequence_length": 24, "adapters": adapters, **options}, "test")


def read(base: Base, settings: Calibration) -> CalibrationText:
    return read_calibration(base, settings, pytest.fail, silent)


def test_each_row_is_a_sequence_with_its_adapter(root: Path, base: Base) -> None:
    text = read(base, calibration(root, "one", "two"))
    general, *tasks = text.on(base)
    assert torch.equal(torch.tensor([row.ids for row in general.rows]), text.sequences)
    assert not general.lora
    for name, part in zip(("one", "two"), tasks, strict=True):
        encoded = [encode(example, base.tokenizer) for example in read_examples(root / f"{name}.jsonl")]
        whole = {(*row.prompt_ids, *row.answer_ids): len(row.answer_ids) for row in encoded}
        assert len({tuple(row.ids) for row in part.rows}) == len(part.rows) == 8
        assert all(whole[tuple(row.ids)] == row.num_answer for row in part.rows)
        expected = read_adapter(root / name, base).of("lora")
        assert part.lora.keys() == expected.keys()
        assert all(torch.equal(part.lora[slot].delta(), expected[slot].delta()) for slot in expected)


def test_the_record_says_which_adapters_and_how_much_of_them(root: Path, base: Base) -> None:
    record = read(base, calibration(root, "one", "two")).record
    parts = read(base, calibration(root, "one", "two")).adapted
    assert [one.name for one in record.adapters] == ["one", "two"]
    assert [one.sha256 for one in record.adapters] == [read_adapter(root / n, base).digest() for n in ("one", "two")]
    assert [one.num_sequences for one in record.adapters] == [8, 8]
    assert [one.num_tokens for one in record.adapters] == [sum(len(row.ids) for row in part.rows) for part in parts]
    assert (record.source, record.num_tokens) == ("self", 4 * 24)
    other = read(base, calibration(root, "one", "two", seed=1)).record
    assert all(a.rows_sha256 != b.rows_sha256 for a, b in zip(record.adapters, other.adapters, strict=True))


def test_general_text_is_the_same_with_adapters_and_without(root: Path, base: Base) -> None:
    with_adapters, without = read(base, calibration(root, "one")), read(base, calibration(root))
    assert torch.equal(with_adapters.sequences, without.sequences)
    assert with_adapters.record.sha256 == without.record.sha256


def test_general_text_can_be_left_out(root: Path, base: Base) -> None:
    text = read(base, calibration(root, "one", num_sequences=0))
    assert len(text.on(base)) == 1
    assert (text.record.source, text.record.num_tokens) == ("none", 0)
    with pytest.raises(ConfigError, match="expected num_sequences above 0, or adapters"):
        calibration(root, num_sequences=0)


def test_rows_that_are_too_long_are_passed_over(root: Path, base: Base) -> None:
    said: list[str] = []
    one = {"adapter": root / "one", "data": root / "one.jsonl", "max_tokens": 14}
    part = read_calibration(base, calibration(root, adapters=[one]), said.append, silent).adapted[0]
    assert 0 < len(part.rows) < 12
    assert all(len(row.ids) <= 14 for row in part.rows)
    assert said == [f"one.jsonl has only {len(part.rows)} of the 32 rows of at most 14 tokens asked for"]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"adapter": "nowhere"}, UsageError, "there is no adapter directory"),
        ({"adapter": "foreign"}, IncompatibleAdapterError, "Was the adapter trained on another model?"),
        ({"data": "nowhere.jsonl"}, DataError, "nowhere.jsonl cannot be read"),
        ({"data": "empty.jsonl"}, DataError, "found an empty file"),
        ({"max_tokens": 8}, DataError, "one.jsonl: expected rows of at most 8 tokens, found longer ones only"),
    ],
)
def test_what_cannot_be_read_is_one_line_and_leaves_nothing(
    change: dict[str, Any], error: type[RegraftError], says: str, root: Path, tmp_path: Path
) -> None:
    (root / "empty.jsonl").touch()
    paths = {key: root / value if isinstance(value, str) else value for key, value in change.items()}
    one = {"adapter": root / "one", "data": root / "one.jsonl", **paths}
    recipe = parse(Recipe, {"steps": [GPTQ], "calibration": {"adapters": [one]}}, "test")
    with pytest.raises(error) as caught:
        compress(root / "base", tmp_path / "out", recipe)
    assert says in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_adapter_made_for_another_base_is_refused(root: Path, base: Base, tmp_path: Path) -> None:
    folder = save_lora(root / "base", tmp_path / "adapted", 0)
    record = {"regraft_version": "0", "base_name": "small", "base_fingerprint": "f" * 64, "teacher_fingerprint": "t"}
    (folder / "regraft.json").write_text(json.dumps({**record, "recovery": "linear", "seed": 0, "kind": "adapter"}))
    one = {"adapter": folder, "data": root / "one.jsonl"}
    with pytest.raises(IncompatibleAdapterError, match="was adapted for another base: expected small"):
        read(base, calibration(root, adapters=[one]))


def test_misspelt_keys_are_explained(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'adapters.0.date'. Did you mean 'data'"):
        calibration(root, adapters=[{"adapter": "a", "date": "b"}])
    with pytest.raises(ConfigError, match=r"unknown key 'adaptors'. Did you mean 'adapters'"):
        calibration(root, adaptors=[])


def test_names_of_checkpoints_depend_on_adapters_only_where_there_are_some(root: Path, base: Base) -> None:
    steps = load_recipe("prune25").steps

    def name(record: CalibrationRecord) -> str:
        return Checkpoints(Path("out")).names("fingerprint", steps, record)[0]

    plain = CalibrationRecord(source="self", sha256="ab", num_tokens=8192)
    assert plain.model_dump(exclude_defaults=True) == {"source": "self", "sha256": "ab", "num_tokens": 8192}
    with_one, with_two = (read(base, calibration(root, n)).record.adapters for n in ("one", "two"))
    records = [plain, *(plain.model_copy(update={"adapters": adapters}) for adapters in (with_one, with_two))]
    assert len({name(record) for record in records}) == 3


def test_a_whole_recipe_is_calibrated_on_adapters(root: Path, tmp_path: Path) -> None:
    def made(*names: str) -> Base:
        settings = calibration(root, *names).model_dump()
        recipe = parse(Recipe, {"steps": [PRUNE, MOEFY, GPTQ], "calibration": settings}, "test")
        folder = tmp_path / "-".join(["out", *names])
        compress(root / "base", folder, recipe)
        return load_base(folder)

    plain, one, again = made(), made("one"), made("one", "two")
    assert len({base.fingerprint for base in (plain, one, again)}) == 3
    assert plain.record is not None and plain.record.calibration is not None
    assert plain.record.calibration.adapters == []
    assert again.record is not None and again.record.calibration is not None
    assert [told.name for told in again.record.calibration.adapters] == ["one", "two"]
    assert read_adapter(root / "one", again).of("lora")  # the adapters fit what was calibrated on them


def test_adapters_that_no_step_looks_at_are_noted(root: Path, tmp_path: Path) -> None:
    rtn = {"quantize": {"method": "rtn", "bits": 4, "group_size": 32}}
    settings = calibration(root, "one").model_dump()
    report = compress(root / "base", tmp_path / "out", parse(Recipe, {"steps": [rtn], "calibration": settings}, "test"))
    assert report.notes == [f"{root / 'one'} is not looked at: no step of the recipe is calibrated"]
    assert report.calibration is None


def test_an_adapter_is_not_replaced_by_the_base_that_is_calibrated_on_it(root: Path) -> None:
    settings = calibration(root, "one").model_dump()
    recipe = parse(Recipe, {"steps": [GPTQ], "calibration": settings}, "test")
    with pytest.raises(UsageError, match="is an adapter itself"):
        compress(root / "base", root / "one", recipe, overwrite=True)
