"""GGUF metadata that change what a model computes, or where it stops, are read or refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from regraft.engine.weights.open_base import open_base
from regraft.engine.weights.rope import make_rope
from regraft.errors import FormatError
from regraft.formats.gguf.rope import llama3_scaling
from regraft.models.load import load_base
from tests.tiny import make_model
from tests.tiny_gguf import write_gguf

IDS = torch.randint(3, 310, (1, 200), generator=torch.Generator().manual_seed(0))
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))


def made(family: str) -> Any:
    """A tiny model; a Gemma of enough layers to have one without a window."""
    return make_model(family, layers=6 if family == "gemma3" else 2)


def scaled(family: str, scaling: dict[str, Any]) -> Any:
    """A tiny model with this RoPE, else that of ``make_model``."""
    plain = made(family)
    config = plain.config.to_dict()
    rope = config["rope_parameters"]
    config["rope_parameters"] = (
        rope | {"full_attention": rope["full_attention"] | scaling} if family == "gemma3" else rope | scaling
    )
    model = AutoModelForCausalLM.from_config(type(plain.config)(**config)).eval()
    model.load_state_dict(plain.state_dict())
    return model


def assert_is(path: Path, model: Any) -> None:
    """The file is this model, and unscaled it would be another."""
    base, opened = load_base(path), open_base(path)
    truth = model(IDS).logits
    torch.testing.assert_close(base.model(IDS).logits, truth, atol=1e-4, rtol=1e-4)
    family = next(name for name in ("llama", "qwen2", "qwen3", "gemma3") if model.config.model_type.startswith(name))
    assert (made(family)(IDS).logits - truth).norm() > 0.01 * truth.norm()
    rotary = model.model.rotary_emb
    kinds = sorted({"full_attention", *getattr(model.config, "layer_types", ["full_attention"])})
    tables = opened.architecture.ropes[-len(kinds) :]
    for kind, table in zip(kinds, tables, strict=True):
        own = getattr(rotary, f"{kind}_inv_freq", None)
        own = rotary.inv_freq if own is None else own
        np.testing.assert_allclose(table.frequencies, own, rtol=2e-6)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3"])
def test_linear_scaling(tmp_path: Path, family: str) -> None:
    name = made(family).config.model_type.removesuffix("_text")
    keys = {f"{name}__rope__scaling__type": "linear", f"{name}__rope__scaling__factor": 4.0}
    assert_is(
        write_gguf(tmp_path / "m.gguf", made(family), **keys),
        scaled(family, {"rope_type": "linear", "factor": 4.0}),
    )


def test_linear_scaling_in_its_older_key(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_model(), llama__rope__scale_linear=4.0)
    assert_is(path, scaled("llama", {"rope_type": "linear", "factor": 4.0}))


@pytest.mark.parametrize("more", [{}, {"beta_fast": 16.0, "beta_slow": 2.0}])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_yarn(tmp_path: Path, family: str, more: dict[str, float]) -> None:
    keys = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    keys |= {f"yarn_{key}": value for key, value in more.items()}
    path = write_gguf(
        tmp_path / "m.gguf",
        make_model(family),
        **{f"{family}__rope__scaling__{key}": value for key, value in keys.items()},
    )
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, **more}
    assert_is(path, scaled(family, scaling))


def rope_factors(model: Any) -> np.ndarray:
    """What llama.cpp's converter writes: plain frequencies over scaled ones."""
    plain = make_model().model.rotary_emb.inv_freq
    return (plain / model.model.rotary_emb.inv_freq).float().numpy()


def with_factors(path: Path, factors: np.ndarray) -> Path:
    whole = gguf.GGUFWriter.write_tensors_to_file

    def write(self: Any, **options: Any) -> None:
        whole(self, **options)

    added = gguf.GGUFWriter.write_header_to_file

    def header(self: Any, **options: Any) -> None:
        self.add_tensor("rope_freqs.weight", factors)
        added(self, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(gguf.GGUFWriter, "write_header_to_file", header)
    try:
        return write_gguf(path, make_model())
    finally:
        patch.undo()


@pytest.mark.parametrize("context", [32, 64, 128])
def test_factors_of_llama_3(tmp_path: Path, context: int) -> None:
    model = scaled("llama", LLAMA3 | {"original_max_position_embeddings": context})
    assert_is(with_factors(tmp_path / "m.gguf", rope_factors(model)), model)


def test_factors_of_one_are_no_scaling(tmp_path: Path) -> None:
    path = with_factors(tmp_path / "m.gguf", np.ones(8, np.float32))
    torch.testing.assert_close(load_base(path).model(IDS).logits, make_model()(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (np.linspace(1, 3, 8, dtype=np.float32), "expected factors as Llama 3 has them"),
        (np.full(8, np.nan, np.float32), "expected numbers above 0"),
        (np.zeros(8, np.float32), "expected numbers above 0"),
    ],
)
def test_other_factors_are_refused(tmp_path: Path, factors: np.ndarray, message: str) -> None:
    path = with_factors(tmp_path / "m.gguf", factors)
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=f"tensor rope_freqs.weight: {message}"):
            load(path)


@given(
    half=st.sampled_from([32, 48, 64]),
    theta=st.sampled_from([10000.0, 500000.0, 1000000.0]),
    factor=st.sampled_from([2.0, 8.0, 16.0, 32.0]),
    high=st.sampled_from([2.0, 4.0, 8.0]),
    context=st.sampled_from([2048, 8192, 32768]),
)
def test_llama_3_s_numbers_are_found_again(half: int, theta: float, factor: float, high: float, context: int) -> None:
    plain = (theta ** -(np.arange(half) / half)).astype(np.float32).astype(np.float64)
    numbers = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high}
    numbers |= {"original_max_position_embeddings": context, "rope_theta": theta, "rope_type": "llama3"}
    there = make_rope(numbers, 2 * half, 131072).frequencies
    found = llama3_scaling((plain / there).astype(np.float32).astype(np.float64), plain)
    assert found is not None
    again = make_rope(found | {"rope_theta": theta}, 2 * half, 131072).frequencies
    np.testing.assert_allclose(again, there, rtol=1e-5)
    assert found["factor"] == factor
    assert "llama3" in ROPE_INIT_FUNCTIONS


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.rope.scaling.type", "longrope", "expected a number above 0, found None|expected none, linear or yarn"),
        ("llama.rope.dimension_count", 8, "expected"),
        ("llama.attention.value_length", 8, "expected the size of a head, 16, found 8"),
        ("llama.attention.sliding_window", 128, "llama.attention.sliding_window = 128 is not read here"),
        ("llama.logit_scale", 0.5, "llama.logit_scale = 0.5 is not read here"),
        ("llama.expert_count", 8, "llama.expert_count = 8 is not read here"),
        ("llama.residual_scale", 0.25, "llama.residual_scale = 0.25 is not read here"),
        ("llama.final_logit_softcapping", 30.0, "llama.final_logit_softcapping = 30.0 is not read here"),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1, "rope.scaling.yarn_log_multiplier is not read here"),
        ("llama.attention.causal", False, "llama.attention.causal = False is not read here"),
    ],
)
def test_a_key_that_is_not_read_is_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", make_model(), **{key.replace(".", "__"): value})
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=message):
            load(path)


def test_keys_that_change_nothing_pass(tmp_path: Path) -> None:
    silent = {"vocab_size": 320, "expert_count": 0, "logit_scale": 1.0, "attention.causal": True}
    silent |= {"attention.sliding_window": 512, "attention.value_length": 16, "rope.scaling.type": "none"}
    keys = {f"llama__{key.replace('.', '__')}": value for key, value in silent.items()}
    base = load_base(write_gguf(tmp_path / "m.gguf", make_model(), **keys))
    torch.testing.assert_close(base.model(IDS).logits, make_model()(IDS).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [({"eot": 7}, [2, 7]), ({"eot": 7, "eom": 9}, [2, 7, 9]), ({"eot": 2}, [2]), ({}, [2])],
)
def test_answers_end_where_the_file_says(tmp_path: Path, ends: dict[str, int], expected: list[int]) -> None:
    keys = {f"tokenizer__ggml__{name}_token_id": token for name, token in ends.items()}
    path = write_gguf(tmp_path / "m.gguf", make_model(), **keys)
    assert list(open_base(path).tokenizer.eos_ids) == expected
    config = load_base(path).model.generation_config
    assert config is not None
    assert config.eos_token_id == (expected if len(expected) > 1 else expected[0])


# Several files


def split(folder: Path, model: Any) -> list[Path]:
    patch = pytest.MonkeyPatch()
    made = gguf.GGUFWriter.__init__

    def init(self: Any, path: Any, arch: str, **options: Any) -> None:
        made(self, path, arch, split_max_tensors=4, **options)

    patch.setattr(gguf.GGUFWriter, "__init__", init)
    try:
        write_gguf(folder / "m.gguf", model)
    finally:
        patch.undo()
    return sorted(folder.glob("m-*.gguf"))


def test_several_files_are_one_model(tmp_path: Path) -> None:
    parts = split(tmp_path, make_model())
    assert len(parts) > 2
    base = load_base(parts[0])
    torch.testing.assert_close(base.model(IDS).logits, make_model()(IDS).logits, atol=1e-4, rtol=1e-4)
    assert open_base(parts[0]).architecture.layers == 2


@pytest.mark.parametrize("load", [load_base, open_base])
def test_parts_that_are_not_whole_are_refused(tmp_path: Path, load: Any) -> None:
    parts = split(tmp_path, make_model())
    with pytest.raises(FormatError, match=f"is one of {len(parts)} files of a model, not the first. Give .*00001-of"):
        load(parts[1])
    renamed = parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(FormatError, match="expected a name that ends in -00001-of-0000"):
        load(renamed)
    renamed.rename(parts[0])
    (tmp_path / "kept").mkdir()
    parts[1].rename(tmp_path / "kept" / "second")
    with pytest.raises(FormatError, match=f"{parts[1].name} is missing"):
        load(parts[0])
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(FormatError, match=r"split\.no: expected 1 of"):
        load(parts[0])


def test_a_matrix_left_out_is_named(tmp_path: Path) -> None:
    model = make_model()
    state = {name: tensor for name, tensor in model.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    model.state_dict = lambda: state  # type: ignore[method-assign]
    path = write_gguf(tmp_path / "m.gguf", model)
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=f"{path}: tensor model.layers.1.mlp.up_proj.weight is missing"):
            load(path)
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_the_engine_packs_again_when_a_later_part_changes(tmp_path: Path) -> None:
    parts = split(tmp_path, make_model())
    before = open_base(parts[0]).state
    assert open_base(parts[0]).state == before
    os.utime(parts[-1], ns=(1, 1))
    assert open_base(parts[0]).state != before


def test_torch_unpacks_again_when_any_part_changes(tmp_path: Path) -> None:
    parts = split(tmp_path, make_model())
    before = load_base(parts[0]).model(IDS).logits
    for part in parts:
        part.unlink()
    again = split(tmp_path, make_model(seed=1))
    assert [part.name for part in again] == [part.name for part in parts]
    assert not torch.equal(load_base(parts[0]).model(IDS).logits, before)
    last = again[-1].read_bytes()
    changed = bytearray(last)
    changed[-4:] = np.float32(1.5).tobytes()
    again[-1].write_bytes(changed)
    kept = load_base(parts[0]).model(IDS).logits
    again[-1].write_bytes(last)
    assert not torch.equal(load_base(parts[0]).model(IDS).logits, kept)
