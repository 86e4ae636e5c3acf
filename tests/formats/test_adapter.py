"""Adapters read without torch: the factors that PEFT acts by, and the checks that torch-land makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from regraft.bypass.adapter import Adapter
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.bypass.lora import LoRA
from regraft.bypass.recovery import Recovery
from regraft.errors import FormatError, IncompatibleAdapterError, RegraftError, UsageError
from regraft.formats.adapter.content import Factors, StoredAdapter
from regraft.formats.adapter.peft_directory import read_factor_file
from regraft.formats.adapter.read import read_factors
from regraft.formats.adapter.record import AdapterRecord
from regraft.formats.open_weights import open_weights
from regraft.formats.source import locate
from regraft.models.load import Base, load_base
from regraft.storage import file_sha256
from tests.bypass.test_peft_parity import VARIANTS, save_peft
from tests.tiny import FAMILIES, make_base

WEIGHTS = "adapter_model.safetensors"
RECOVERY_NAME = "recovery.safetensors"
CONFIG = "adapter_config.json"
A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
SLOT = "layers.0.self_attn.q_proj"
FINGERPRINT = "f" * 64


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def loaded(base: Path) -> Base:
    return load_base(base)


def read(folder: Path, base: Path, fingerprint: str | None = None) -> StoredAdapter:
    weights = open_weights(locate(base))
    return read_factors(
        folder, weights.slot_paths, weights.slot_shapes, base_name=base.name, base_fingerprint=fingerprint
    )


# What is read


@pytest.mark.parametrize("variant", VARIANTS)
def test_factors_are_those_that_peft_acts_by(tmp_path: Path, base: Path, variant: str) -> None:
    folder = save_peft(base, tmp_path / "lora", **VARIANTS[variant])
    stored = read(folder, base)
    model = get_peft_model(load_base(base).model, LoraConfig.from_pretrained(folder))
    theirs = {path: module for path, module in model.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert {f"model.{slot}" for slot in stored.bypasses} == set(theirs)
    written = load_file(folder / WEIGHTS)
    for slot, (factors,) in stored.bypasses.items():
        assert factors.kind == "lora"
        assert factors.scale == pytest.approx(theirs[f"model.{slot}"].scaling["default"])
        assert factors.rank == theirs[f"model.{slot}"].r["default"]
        key = f"base_model.model.model.{slot}.lora_"
        assert np.array_equal(factors.down, written[f"{key}A.weight"])
        assert np.array_equal(factors.up, written[f"{key}B.weight"])


@pytest.mark.parametrize("family", FAMILIES)
def test_torch_s_adapter_is_made_of_them(tmp_path: Path, family: str) -> None:
    base = make_base(tmp_path / "base", family)
    folder = save_peft(base, tmp_path / "lora", target_modules="all-linear")
    stored, adapter = read(folder, base), read_adapter(folder, load_base(base))
    assert set(adapter.bypasses) == set(stored.bypasses)
    for slot, lora in adapter.of("lora").items():
        assert np.array_equal(lora.down.detach(), stored.of("lora")[slot].down)
        assert np.array_equal(lora.up.detach(), stored.of("lora")[slot].up)
        assert lora.scale == stored.of("lora")[slot].scale
    assert (adapter.name, adapter.sha256) == (stored.name, file_sha256(folder / "adapter_model.safetensors"))
    assert (adapter.peft_config, adapter.path) == (stored.peft_config, folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf, 65504.0, -65504.0, 6e-8, -0.0])
def test_any_value_is_told_from_none(tmp_path: Path, dtype: torch.dtype, value: float) -> None:
    tensor = torch.full((3, 5), 0.5, dtype=dtype)
    tensor[2, 1] = value
    save_file({"a": tensor}, tmp_path / "file")
    if np.isfinite(value):
        assert read_factor_file(tmp_path / "file")["a"].shape == (3, 5)
    else:
        with pytest.raises(FormatError, match="a holds values that are not finite"):
            read_factor_file(tmp_path / "file")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_stays_half_and_other_types_are_widened(tmp_path: Path, base: Path, dtype: torch.dtype) -> None:
    folder = save_peft(base, tmp_path / "lora", dtype)
    half = dtype == torch.float16
    for (factors,) in read(folder, base).bypasses.values():
        assert factors.down.dtype == factors.up.dtype == (np.float16 if half else np.float32)
    expected = load_file(folder / WEIGHTS)[A_KEY].float()
    assert np.array_equal(read(folder, base).of("lora")[SLOT].down.astype(np.float32), expected)


def record(**changes: Any) -> AdapterRecord:
    stated = {
        "regraft_version": "0",
        "base_name": "small",
        "base_fingerprint": FINGERPRINT,
        "teacher_fingerprint": "0" * 64,
        "recovery": "gelu",
        "seed": 0,
    }
    return AdapterRecord(**{**stated, **changes})


def write_adapted(folder: Path, loaded: Base, *, lora: bool = True) -> Adapter:
    """A regraft adapter with a recovery, and a LoRA if wanted."""
    torch.manual_seed(3)
    made, recovery = Adapter("made"), Recovery(torch.randn(6, 64), torch.randn(64, 6), 0.5)
    if lora:
        made.add({SLOT: LoRA(torch.randn(2, 64), torch.randn(64, 2), 1.0)})
    made.add({SLOT: recovery})
    made.record = record(recovery_scales={SLOT: 0.5})
    folder.mkdir()
    write_adapter(made, folder, loaded)
    return made


@pytest.mark.parametrize("lora", [True, False])
def test_recovery_is_read_beside_the_lora(tmp_path: Path, base: Path, loaded: Base, lora: bool) -> None:
    made = write_adapted(tmp_path / "adapted", loaded, lora=lora)
    stored = read(tmp_path / "adapted", base, FINGERPRINT)
    kinds = [factors.kind for factors in stored.bypasses[SLOT]]
    assert kinds == (["lora", "gelu"] if lora else ["gelu"])
    factors = stored.bypasses[SLOT][-1]
    assert (factors.scale, factors.rank) == (0.5, 6)
    assert np.array_equal(factors.down, made.of("gelu")[SLOT].down.detach().half())
    assert np.array_equal(factors.up, made.of("gelu")[SLOT].up.detach().half())
    assert stored.record == made.record


def test_recovery_without_its_record_is_not_passed_over(tmp_path: Path, base: Path, loaded: Base) -> None:
    write_adapted(tmp_path / "adapted", loaded)
    (tmp_path / "adapted" / "regraft.json").unlink()
    with pytest.raises(FormatError, match="gives its scales"):
        read(tmp_path / "adapted", base, FINGERPRINT)


@pytest.mark.parametrize(
    ("factors", "effect"),
    [
        (Factors("lora", np.ones((2, 3)), np.ones((4, 2)), 1.0), True),
        (Factors("lora", np.ones((2, 3)), np.zeros((4, 2)), 1.0), False),
        (Factors("lora", np.ones((2, 3)), np.ones((4, 2)), 0.0), False),
        (Factors("lora", np.ones((2, 3)), np.array([[1.0, -1.0]]), 1.0), False),
        (Factors("gelu", np.array([[1.0], [-1.0]]), np.array([[1.0, -1.0]]), 1.0), True),
        (Factors("gelu", np.array([[1.0], [-1.0]]), np.array([[1.0, 1.0]]), 1.0), True),
        (Factors("gelu", np.ones((2, 3)), np.zeros((4, 2)), 1.0), False),
    ],
)
def test_effect(factors: Factors, effect: bool) -> None:
    assert factors.has_effect() is effect


# What is refused, here and in torch-land alike


def change(name: str, edit: Any) -> Any:
    def damage(folder: Path) -> None:
        if name.endswith(".json"):
            data = json.loads((folder / name).read_text())
            edit(data)
            (folder / name).write_text(json.dumps(data))
        else:
            tensors = load_file(folder / name)
            edit(tensors)
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)

    return damage


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-9])


def pickle(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


DAMAGES = [
    (lambda folder: (folder / CONFIG).unlink(), FormatError, "it has no adapter_config.json"),
    (lambda folder: (folder / WEIGHTS).unlink(), FormatError, f"{WEIGHTS} is missing"),
    (pickle, FormatError, r"adapter_model\.bin is a pickle"),
    (cut, FormatError, r"adapter_model\.safetensors cannot be read: found .*\. It may be cut short"),
    (lambda folder: save_file({}, folder / WEIGHTS), FormatError, "holds no tensors"),
    (change(WEIGHTS, lambda t: t[A_KEY].fill_(torch.nan)), FormatError, f"{A_KEY} holds values that are not finite"),
    (change(WEIGHTS, lambda t: t.update({A_KEY: t[A_KEY].int()})), FormatError, "expected floating point, found I32"),
    (change(WEIGHTS, lambda t: t.pop(B_KEY)), FormatError, f"slot {SLOT} has no lora_B tensor"),
    (change(WEIGHTS, lambda t: [t.pop(A_KEY), t.pop(B_KEY)]), FormatError, f"have no tensors, first {SLOT}"),
    (
        change(WEIGHTS, lambda t: t.update({A_KEY: torch.ones(4, 65)})),
        IncompatibleAdapterError,
        r"expected shape \[r, 64\] for this base, found \[4, 65\]",
    ),
    (change(WEIGHTS, lambda t: t.update({B_KEY: torch.ones(64)})), IncompatibleAdapterError, r"found \[64\]"),
    (change(WEIGHTS, lambda t: t.update({A_KEY: torch.ones(3, 64)})), IncompatibleAdapterError, "expected rank 4"),
    (
        change(WEIGHTS, lambda t: t.update({A_KEY.replace("lora_A", "lora_magnitude_vector"): torch.ones(4)})),
        IncompatibleAdapterError,
        "it is a DoRA magnitude",
    ),
    (
        change(WEIGHTS, lambda t: t.update({A_KEY.replace("layers.0", "layers.7"): torch.ones(4, 64)})),
        IncompatibleAdapterError,
        "expected a linear inside the base's decoder layers",
    ),
    (
        change(WEIGHTS, lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k]),
        IncompatibleAdapterError,
        "has no effect: B A is zero at every slot",
    ),
    (change(CONFIG, lambda c: c.update(use_dora=True)), IncompatibleAdapterError, "uses DoRA"),
    (change(CONFIG, lambda c: c.update(target_modules=["c_attn"])), IncompatibleAdapterError, "'c_attn' is not in"),
    (change(CONFIG, lambda c: c.update(target_modules=["q_proj"])), IncompatibleAdapterError, "does not target it"),
    (change(CONFIG, lambda c: c.update(target_modules="(")), FormatError, "adapter_config.json is not understood"),
    (change(CONFIG, lambda c: c.update(rank_pattern={"(": 4})), FormatError, "adapter_config.json is not understood"),
    (change(CONFIG, lambda c: c.update(rank_pattern={"q_proj": 0})), IncompatibleAdapterError, "expected rank 0"),
    (change(CONFIG, lambda c: c.update(alpha_pattern={"q_proj": "x"})), FormatError, "is not understood: ValueError"),
    (change(CONFIG, lambda c: c.update(alpha_pattern={"q_proj": 1e999})), FormatError, f"scale of {SLOT}"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGES, ids=[message for _, _, message in DAMAGES])
def test_damaged_lora_is_refused(
    tmp_path: Path, base: Path, loaded: Base, damage: Any, kind: type[RegraftError], message: str
) -> None:
    folder = save_peft(base, tmp_path / "lora")
    damage(folder)
    with pytest.raises(kind, match=message) as ours:
        read(folder, base)
    with pytest.raises(kind) as theirs:
        read_adapter(folder, loaded)
    assert str(ours.value) == str(theirs.value)


RECOVERY_DAMAGES = [
    (lambda folder: (folder / RECOVERY_NAME).unlink(), FormatError, f"{RECOVERY_NAME} is missing"),
    (change(RECOVERY_NAME, lambda t: t.pop(f"{SLOT}.up")), FormatError, f"tensor {SLOT}.up is missing"),
    (change(RECOVERY_NAME, lambda t: t.update(x=torch.ones(1))), FormatError, "tensor x is not named in regraft.json"),
    (change(RECOVERY_NAME, lambda t: t[f"{SLOT}.up"].fill_(torch.inf)), FormatError, "values that are not finite"),
    (
        change(RECOVERY_NAME, lambda t: t.update({f"{SLOT}.up": torch.ones(64, 5)})),
        FormatError,
        r"expected down \[r, in\] and up \[out, r\], found \[6, 64\] and \[64, 5\]",
    ),
    (change(RECOVERY_NAME, lambda t: t.update({f"{SLOT}.up": torch.ones(64)})), FormatError, r"and \[64\]"),
    (
        change(RECOVERY_NAME, lambda t: t.update({f"{SLOT}.up": torch.ones(65, 6)})),
        FormatError,
        r"maps 64 to 65: expected \(64, 64\)",
    ),
    (
        change(RECOVERY_NAME, lambda t: t[f"{SLOT}.up"].zero_()),
        IncompatibleAdapterError,
        "has no effect: its factors are zero, or there are none",
    ),
    (change("regraft.json", lambda r: r["recovery_scales"].update({SLOT: 1e999})), FormatError, f"scale of {SLOT}"),
    (change("regraft.json", lambda r: r.update(recovery_scales={})), FormatError, "gives its scales"),
    (
        change("regraft.json", lambda r: r.update(base_fingerprint="a" * 64)),
        IncompatibleAdapterError,
        r"adapted for another base: expected small \(fingerprint aaaaaaaaaaaa\), found base \(ffffffffffff\)",
    ),
    (change("regraft.json", lambda r: r.update(format_version=9)), FormatError, "of format 9: expected at most 1"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), RECOVERY_DAMAGES, ids=[m for _, _, m in RECOVERY_DAMAGES])
def test_damaged_recovery_is_refused(
    tmp_path: Path, base: Path, loaded: Base, damage: Any, kind: type[RegraftError], message: str
) -> None:
    write_adapted(tmp_path / "adapted", loaded, lora=False)
    damage(tmp_path / "adapted")
    with pytest.raises(kind, match=message):
        read(tmp_path / "adapted", base, FINGERPRINT)


def test_adapter_of_a_compressed_base_is_not_for_one_that_is_not(tmp_path: Path, base: Path, loaded: Base) -> None:
    write_adapted(tmp_path / "adapted", loaded)
    with pytest.raises(IncompatibleAdapterError, match=r"expected small .* found base \(not compressed\)"):
        read(tmp_path / "adapted", base)


@pytest.mark.parametrize("make", [lambda path: path / "none", lambda path: path / "file"])
def test_what_is_no_directory_is_refused(tmp_path: Path, base: Path, make: Any) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="there is no adapter directory"):
        read(make(tmp_path), base)


def test_everything_is_read_where_torch_is_not_installed(tmp_path: Path, base: Path, loaded: Base) -> None:
    lora = save_peft(base, tmp_path / "lora")
    write_adapted(tmp_path / "adapted", loaded)
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["torch", "transformers", "peft", "safetensors.torch"]))
from pathlib import Path
from regraft.formats.source import locate
from regraft.formats.open_weights import open_weights
from regraft.formats.text.tokenizer import open_tokenizer
from regraft.formats.adapter.read import read_factors
weights, tokenizer = open_weights(locate({str(base)!r})), open_tokenizer(locate({str(base)!r}))
total = sum(weights[name].dense().size for name in weights)
prompt = tokenizer.apply_chat_template([dict(role="user", content="hi")])
for folder, fingerprint in (({str(lora)!r}, None), ({str(tmp_path / "adapted")!r}, {FINGERPRINT!r})):
    read_factors(
        Path(folder), weights.slot_paths, weights.slot_shapes, base_name="base", base_fingerprint=fingerprint
    )
print(total, len(tokenizer.encode(prompt)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    prompt = loaded.tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=False
    )
    assert done.stdout.split() == [str(loaded.model.num_parameters()), str(len(prompt))]
