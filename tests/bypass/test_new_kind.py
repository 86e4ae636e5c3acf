"""A kind of bypass is added from outside: a row of the table, and a module. Nothing in the package is touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached, mixed
from regraft.bypass.bypass import Bypass
from regraft.bypass.directory import read_adapter, write_adapter
from regraft.bypass.kinds import MODULES, register_module
from regraft.bypass.lora import LoRA
from regraft.bypass.recovery import Recovery
from regraft.engine.engine import Engine
from regraft.errors import FormatError, IncompatibleAdapterError
from regraft.formats.adapter.kinds import KINDS, Kind, register_kind
from regraft.formats.adapter.read import read_factors
from regraft.formats.adapter.record import AdapterRecord
from regraft.models.load import Base, load_base
from regraft.models.slots import slot_paths, slot_shapes
from tests.tiny import make_base

SLOT = "layers.1.mlp.up_proj"
FINGERPRINT = "f" * 64


class Tanh(Bypass):
    """A bypass behind a tanh."""

    kind = "tanh"

    def activate(self, hidden: Tensor) -> Tensor:
        return torch.tanh(hidden)


@pytest.fixture
def _registered() -> Iterator[None]:
    register_kind(Kind("tanh", "Tanh", "tanh.safetensors"))
    register_module(Tanh)
    yield
    del KINDS["tanh"], MODULES["tanh"]


@pytest.fixture
def base(tmp_path: Path) -> Base:
    loaded = load_base(make_base(tmp_path / "base"))
    loaded.__dict__["fingerprint"] = FINGERPRINT  # only an adapter with a record asks for it
    return loaded


def make_adapter(kinds: list[type[Bypass]]) -> Adapter:
    torch.manual_seed(0)
    adapter = Adapter("made")
    for kind in kinds:
        adapter.add({SLOT: kind(torch.randn(6, 64) / 8, torch.randn(128, 6) / 2, 0.5)})
    adapter.record = AdapterRecord(
        regraft_version="0",
        base_name="base",
        base_fingerprint=FINGERPRINT,
        teacher_fingerprint=FINGERPRINT,
        recovery="none",
        seed=0,
    )
    return adapter


def write(adapter: Adapter, folder: Path, base: Base) -> Path:
    folder.mkdir()
    write_adapter(adapter, folder, base)
    return folder


# What holds for every row of the table


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("kind", ["lora", "gelu", "tanh"])
def test_forward_is_the_formula(kind: str) -> None:
    torch.manual_seed(1)
    one = MODULES[kind](torch.randn(6, 64), torch.randn(128, 6), 0.7)
    x, f = torch.randn(5, 64), {"lora": lambda h: h, "gelu": torch.nn.functional.gelu, "tanh": torch.tanh}[kind]
    torch.testing.assert_close(one(x), 0.7 * f(x @ one.down.T) @ one.up.T)
    rows, columns = np.array([3, 1, 100]), np.array([7, 0])
    cut = one.cut(rows, columns)
    assert torch.equal(cut.up, one.up[[3, 1, 100]])
    assert torch.equal(cut.down, one.down[:, [7, 0]])
    assert type(cut) is type(one.copy()) is type(one)


@pytest.mark.usefixtures("_registered")
@pytest.mark.parametrize("kinds", [[LoRA], [Recovery], [Tanh], [LoRA, Tanh], [LoRA, Recovery, Tanh]])
def test_every_kind_comes_back_from_disk(tmp_path: Path, base: Base, kinds: list[type[Bypass]]) -> None:
    adapter = make_adapter(kinds)
    folder = write(adapter, tmp_path / "made", base)
    again = read_adapter(folder, base)
    assert [type(one) for one in again.bypasses[SLOT]] == kinds
    stored = read_factors(
        folder, slot_paths(base.model), slot_shapes(base.model), base_name="base", base_fingerprint=FINGERPRINT
    )
    assert stored.digest() == again.digest()
    for written, read in zip(adapter.bypasses[SLOT], again.bypasses[SLOT], strict=True):
        halves = (written.down.half().float(), (written.scale * written.up / read.scale).half().float())
        assert torch.equal(read.down, halves[0])
        torch.testing.assert_close(read.up, halves[1], atol=1e-3, rtol=1e-3)
    ids = torch.arange(3, 20)[None]
    plain = base.model(ids).logits
    with attached(base.model, again.bypasses):
        linear = base.model.get_submodule(f"model.{SLOT}")
        x = torch.randn(3, 64)
        torch.testing.assert_close(linear(x), linear.linear(x) + sum(one(x) for one in again.bypasses[SLOT]))
        assert not torch.equal(base.model(ids).logits, plain)
    assert torch.equal(base.model(ids).logits, plain)


@pytest.mark.usefixtures("_registered")
def test_a_digest_tells_kinds_scales_and_factors_apart() -> None:
    plain = make_adapter([LoRA])
    others = [make_adapter([Recovery]), make_adapter([Tanh]), make_adapter([LoRA, Tanh])]
    scaled, changed = make_adapter([LoRA]), make_adapter([LoRA])
    scaled.bypasses[SLOT][0].scale *= 2
    changed.bypasses[SLOT][0].up.data[0, 0] += 1
    assert len({adapter.digest() for adapter in (plain, *others, scaled, changed)}) == 6
    assert replace(plain, name="another").digest() == plain.digest()


def test_a_mix_in_torch_is_what_the_engine_computes(base: Base, tmp_path: Path) -> None:
    """Two adapters of two kinds, weighted; the engine's exact answer is torch's greedy one."""
    one, other = make_adapter([LoRA, Recovery]), make_adapter([LoRA])
    other.bypasses[SLOT][0].up.data *= -60
    folders = {"one": write(one, tmp_path / "one", base), "other": write(other, tmp_path / "other", base)}
    read = {name: read_adapter(folder, base) for name, folder in folders.items()}
    weights = {"one": 0.7, "other": 0.4}
    prompt, tokens = list(range(3, 20)), []
    with attached(base.model, mixed((read[name], weight) for name, weight in weights.items())):
        linear, x = base.model.get_submodule(f"model.{SLOT}"), torch.randn(3, 64)
        added = sum(weight * one(x) for name, weight in weights.items() for one in read[name].bypasses[SLOT])
        torch.testing.assert_close(linear(x), linear.linear(x) + added)
        for _ in range(8):
            tokens.append(int(base.model(torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    with Engine(base.path, memory_bytes=4 << 20, exact=True) as engine:
        object.__setattr__(engine.base, "fingerprint", FINGERPRINT)
        for name, folder in folders.items():
            engine.add_adapter(name, folder)
        found = engine.generate(prompt, weights, max_tokens=8, stop_token_ids=())
        assert list(found.tokens) == tokens
        assert list(engine.generate(prompt, max_tokens=8, stop_token_ids=()).tokens) != tokens


# What is refused


def test_a_kind_that_nobody_registered_is_named(tmp_path: Path, base: Base) -> None:
    register_kind(Kind("tanh", "Tanh", "tanh.safetensors"))
    register_module(Tanh)
    try:
        folder = write(make_adapter([LoRA, Tanh]), tmp_path / "made", base)
    finally:
        del KINDS["tanh"], MODULES["tanh"]
    with pytest.raises(FormatError, match="bypasses of kind tanh: expected kinds lora, gelu"):
        read_adapter(folder, base)


@pytest.mark.usefixtures("_registered")
def test_the_engine_names_a_kind_that_it_does_not_run(tmp_path: Path, base: Base) -> None:
    folder = write(make_adapter([LoRA, Tanh]), tmp_path / "made", base)
    with Engine(base.path, memory_bytes=4 << 20) as engine:
        object.__setattr__(engine.base, "fingerprint", FINGERPRINT)
        with pytest.raises(IncompatibleAdapterError, match="a bypass of kind tanh: expected one that the engine runs"):
            engine.add_adapter("made", folder)


@pytest.mark.usefixtures("_registered")
def test_names_and_files_are_taken_once() -> None:
    for taken in (Kind("tanh", "Other", "other"), Kind("other", "Other", "tanh.safetensors")):
        with pytest.raises(ValueError, match="already"):
            register_kind(taken)
    with pytest.raises(ValueError, match="has a module already"):
        register_module(type("Other", (Tanh,), {}))
