"""The engine reads the very weights that transformers and compressed-tensors read, from every kind of base."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import FormatError
from regraft.formats.gguf.file import GgufFile
from regraft.formats.open_weights import open_weights
from regraft.formats.source import Kind, Source, locate
from regraft.formats.weights import Affine, Dense, Weights
from regraft.models.load import load_base
from regraft.models.slots import slot_paths, slot_shapes
from tests.models.test_quantized_tensor import random_quantized
from tests.tiny import FAMILIES, make_base, make_model
from tests.tiny_gguf import ARCHITECTURES, write_gguf

GGUF_FAMILIES = [family for family in FAMILIES if make_model(family).config.model_type in ARCHITECTURES]


def assert_holds(weights: Weights, state: dict[str, torch.Tensor]) -> None:
    assert set(weights) == set(state)
    assert len(weights) == len(state)
    for name, tensor in state.items():
        assert weights.shape(name) == tuple(tensor.shape)
        assert np.array_equal(weights[name].dense(), tensor.float().numpy()), name


def state_of(model: Any) -> dict[str, torch.Tensor]:
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


# Hugging Face directories


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard", ["1GB", "100KB"])
def test_directory_of_any_type_and_shards(tmp_path: Path, dtype: torch.dtype, shard: str) -> None:
    model = make_model().to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    weights = open_weights(locate(tmp_path))
    assert_holds(weights, state_of(model))
    types = {weights[name].array.dtype for name in weights}
    assert types == {np.dtype(np.float16 if dtype == torch.float16 else np.float32)}
    assert weights.config == json.loads((tmp_path / "config.json").read_text())
    assert weights.fingerprint is None


@pytest.mark.parametrize("family", FAMILIES)
def test_slots_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    weights = open_weights(locate(make_base(tmp_path / "base", family, tie=False)))
    model = make_model(family, tie=False)
    assert weights.slot_paths == slot_paths(model)
    assert weights.slot_shapes == slot_shapes(model)
    weights.check({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()})
    assert "lm_head.weight" in weights


@pytest.mark.parametrize("stated", [True, None])
@pytest.mark.parametrize("differs", [False, True])
def test_head_beside_the_embedding_is_taken_as_transformers_takes_it(
    tmp_path: Path, stated: bool | None, differs: bool
) -> None:
    folder = make_base(tmp_path / "base")
    change(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + differs}))
    change_config(folder, lambda config: config.update({"tie_word_embeddings": stated}))
    weights = open_weights(locate(folder))
    assert weights.config["tie_word_embeddings"] is not differs
    assert ("lm_head.weight" in weights) is differs
    if stated:
        theirs = AutoModelForCausalLM.from_pretrained(folder).lm_head.weight
        assert np.array_equal(
            weights["lm_head.weight" if differs else "model.embed_tokens.weight"].dense(), theirs.detach()
        )


def test_table_of_old_checkpoints_is_passed_over(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    change(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
    assert_holds(open_weights(locate(folder)), state_of(make_model()))


def change(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, edit: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors: tensors.pop(UP), f"tensor {UP} is missing"),
        (
            lambda tensors: tensors.update({UP: torch.ones(3, 4)}),
            rf"tensor {UP}: expected shape \[128, 64\], found \[3",
        ),
        (lambda tensors: tensors.update(extra=torch.ones(3)), "tensor extra belongs to nothing in the model"),
        (lambda tensors: tensors[UP].fill_(torch.nan), f"tensor {UP}: expected finite values, found inf or nan"),
        (lambda tensors: tensors.update({UP: tensors[UP].int()}), f"tensor {UP}: expected floating point"),
    ],
)
def test_weights_that_are_not_the_model_s_are_named(tmp_path: Path, edit: Any, message: str) -> None:
    folder = make_base(tmp_path / "base")
    change(folder, edit)
    with pytest.raises(FormatError, match=f"model.safetensors: {message}"):
        weights = open_weights(locate(folder))
        weights.check({name: tuple(tensor.shape) for name, tensor in state_of(make_model()).items()})
        for name in weights:
            weights[name]


def test_one_weight_is_in_memory_at_a_time(tmp_path: Path) -> None:
    make_model(hidden=128, intermediate=512, layers=12).bfloat16().save_pretrained(tmp_path)
    largest = 4 * 128 * 512
    tracemalloc.start()
    weights = open_weights(locate(tmp_path))
    total = sum(weights[name].dense().nbytes for name in weights)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total > 20 * largest
    assert peak < 3 * largest


# Compressed directories


def write_packed(folder: Path, bits: int, group_size: int, symmetric: bool, tensors: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    weights = {"num_bits": bits, "group_size": group_size, "symmetric": symmetric}
    group = {"targets": ["Linear"], "weights": weights}
    packing = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": packing}))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@given(
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    out=st.integers(1, 40),
    groups=st.integers(1, 4),
    size=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_packed_weights_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, bits: int, symmetric: bool, out: int, groups: int, size: int, seed: int
) -> None:
    written = random_quantized(bits, symmetric, out, groups, size, seed)
    tensors = written.to_tensors("m.up_proj") | {"m.up_proj.bias": torch.ones(out), "m.norm.weight": torch.ones(3)}
    folder = write_packed(tmp_path_factory.mktemp("packed"), bits, size if groups > 1 else 0, symmetric, tensors)
    weights = open_weights(Source("packed", folder, Kind.DENSE))
    assert set(weights) == {"m.up_proj.weight", "m.up_proj.bias", "m.norm.weight"}
    found = weights["m.up_proj.weight"]
    assert isinstance(found, Affine)
    assert (found.bits, found.group_size, found.minimum) == (bits, size, None)
    assert np.array_equal(found.codes, written.codes)
    assert np.array_equal(found.scale, written.scale)
    assert found.zero is None if symmetric else np.array_equal(found.zero, written.zero)
    assert np.array_equal(found.dense(), written.dequantize())  # which tests/compress hold against compressed-tensors


@pytest.mark.parametrize(
    ("bits", "symmetric", "embeddings"), [(4, True, False), (3, False, True)], ids=["int4", "int3 with embeddings"]
)
def test_compressed_base_is_that_of_torch(tmp_path: Path, bits: int, symmetric: bool, embeddings: bool) -> None:
    quantize = {"method": "rtn", "bits": bits, "group_size": 32, "symmetric": symmetric}
    recipe = parse(Recipe, {"steps": [{"quantize": quantize | {"embeddings": 8 if embeddings else 16}}]}, "test")
    compress(make_base(tmp_path / "base"), tmp_path / "small", recipe)
    weights, base = open_weights(locate(tmp_path / "small")), load_base(tmp_path / "small")
    assert weights.fingerprint == base.fingerprint
    assert "quantization_config" not in weights.config
    packed = {name for name in weights if isinstance(weights[name], Affine)}
    assert packed == {f"{path}.weight" for path in slot_paths(base.model).values()} | (
        {"model.embed_tokens.weight"} if embeddings else set()
    )
    assert_holds(weights, state_of(base.model))


def packed_tensors() -> dict[str, torch.Tensor]:
    return random_quantized(4, False, out=9, groups=3, size=5).to_tensors("m.up_proj")


@pytest.mark.parametrize(
    ("part", "tensor", "message"),
    [
        ("packed", None, "weight_packed is missing"),
        ("scale", None, "weight_scale is missing"),
        ("shape", None, "weight_shape is missing"),
        ("zero_point", None, "weight_zero_point is missing"),
        ("packed", torch.zeros(9, 2), r"weight_packed: expected I32 \[9, 2\], found F32 \[9, 2\]"),
        ("scale", torch.ones(9, 2).half(), r"weight_scale: expected F16 \[9, 3\], found F16 \[9, 2\]"),
        ("scale", torch.full((9, 3), torch.inf).half(), "weight_scale: expected finite values, found inf or nan"),
        ("zero_point", torch.zeros(9, 3).int(), r"weight_zero_point: expected I32 \[2, 3\], found I32 \[9, 3\]"),
        ("shape", torch.tensor([9, 14]), "module m.up_proj: expected a group size that divides 14, found 5"),
        ("shape", torch.tensor([-9, 15]), r"weight_packed: expected I32 \[-9, 2\]"),
        ("shape", torch.tensor([9, 5 * 2**60]), "weight_packed: expected I32"),
        ("shape", torch.tensor([9.0, 15.0]), r"weight_shape: expected I64 \[2\], found F32 \[2\]"),
    ],
)
def test_damaged_packing_is_named(tmp_path: Path, part: str, tensor: torch.Tensor | None, message: str) -> None:
    tensors = packed_tensors()
    name = f"m.up_proj.weight_{part}"
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    folder = write_packed(tmp_path, 4, 5, False, tensors)
    with pytest.raises(FormatError, match=f"model.safetensors: .*{message}"):
        open_weights(locate(folder))["m.up_proj.weight"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda packing: packing.update(quant_method="hqq"), "the base is quantised by hqq: expected one of awq, "),
        (lambda packing: packing.update(quant_method="gptq"), "tensor m.up_proj.weight_.*: expected floating point"),
        (lambda packing: packing.update(format="marlin-24"), "found the format marlin-24"),
        (lambda packing: packing.update(ignore=["m.up_proj"]), "found a module that is not packed by config.json"),
        (lambda packing: packing["config_groups"]["group_0"]["weights"].update(num_bits=9), "expected 2 to 8 bits"),
        (lambda packing: packing["config_groups"]["group_0"]["weights"].update(group_size=-5), "a group size that"),
        (lambda packing: packing.update(config_groups=[]), "is not understood"),
    ],
)
def test_configuration_at_odds_with_the_tensors_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    folder = write_packed(tmp_path, 4, 5, False, packed_tensors())
    change_config(folder, lambda config: edit(config["quantization_config"]))
    with pytest.raises(FormatError, match=message):
        weights = open_weights(locate(folder))
        for name in weights:
            weights[name]


# GGUF files


@pytest.mark.parametrize("family", GGUF_FAMILIES)
@pytest.mark.parametrize("tie", [True, False])
def test_gguf_is_that_of_transformers(tmp_path: Path, family: str, tie: bool) -> None:
    model = make_model(family, hidden=128, intermediate=256, tie=tie)
    kinds = {
        "q_proj": Type.Q4_0,
        "k_proj": Type.Q4_1,
        "v_proj": Type.Q8_0,
        "o_proj": Type.F16,
        "gate_proj": Type.BF16,
        "up_proj": Type.Q5_1,
        "down_proj": Type.Q6_K,
        "embed": Type.Q8_0,
    }
    path = write_gguf(tmp_path / "tiny.gguf", model, kinds=kinds)
    where = {"pretrained_model_name_or_path": tmp_path, "gguf_file": path.name, "config": model.config}
    theirs = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    weights = open_weights(locate(path))
    assert_holds(weights, state_of(theirs))
    # The head size of a Qwen 3 is always 128 to transformers, whatever the file says.
    own = {"head_dim": 32} if family == "qwen3" else {}
    assert weights.config == load_gguf_checkpoint(str(path))["config"] | own
    affine = {name.split(".")[-2] for name in weights if isinstance(weights[name], Affine)}
    assert affine == {"q_proj", "k_proj", "v_proj", "embed_tokens"}
    assert weights.slot_shapes == slot_shapes(model)


def test_gguf_biases_are_in_the_order_of_their_rows(tmp_path: Path) -> None:
    model = make_model("llama")
    state = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    state["model.layers.0.self_attn.q_proj.bias"] = torch.randn(64)
    model.state_dict = lambda: state  # type: ignore[method-assign]
    weights = open_weights(locate(write_gguf(tmp_path / "tiny.gguf", model)))
    name = "model.layers.0.self_attn.q_proj.bias"
    assert np.array_equal(weights[name].dense(), state[name])


@pytest.mark.parametrize(("kind", "bits"), [(Type.Q4_0, 4), (Type.Q4_1, 4), (Type.Q8_0, 8)])
def test_gguf_codes_are_taken_as_they_are(tmp_path: Path, kind: Type, bits: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_model("qwen2"), kinds={"up_proj": kind})
    found = open_weights(locate(path))[UP]
    assert isinstance(found, Affine)
    assert (found.bits, found.group_size, found.zero) == (bits, 32, None)
    assert (found.minimum is None) is (kind is not Type.Q4_1)
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "blk.0.ffn_up.weight")
    assert np.array_equal(found.dense(), gguf.dequantize(tensor.data, kind))
    assert found.codes.shape == (128, 64)
    assert found.codes.max() < 2**bits


def test_metadata_are_those_of_the_gguf_package(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_model())
    ours, theirs = GgufFile(path), gguf.GGUFReader(path)
    fields = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == fields
    assert [(t.name, list(t.shape), t.begin) for t in ours.tensors.values()] == [
        (t.name, t.shape.tolist()[::-1], t.data_offset) for t in theirs.tensors
    ]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"general__architecture": "gpt2"}, r"architecture: expected one of llama.*found 'gpt2'. Convert it"),
        ({"llama__attention__head_count": 7}, r"tensor blk.0.attn_q.weight: expected rows of 7 heads, found 64 rows"),
        ({"llama__attention__head_count": "four"}, "tensor blk.0.attn_q.weight: expected rows of four heads"),
        ({"general__alignment": 48}, "general.alignment 48"),
    ],
)
def test_strange_metadata_are_refused(tmp_path: Path, metadata: dict[str, Any], message: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", make_model(), **metadata)
    with pytest.raises(FormatError, match=message):
        open_weights(locate(path))


def test_tensors_without_a_place_are_refused_but_for_rope_factors(tmp_path: Path) -> None:
    def written(name: str) -> Source:
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        writer.add_tensor(f"{name}.weight", np.ones(3, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Source(name, tmp_path / name, Kind.GGUF)

    with pytest.raises(FormatError, match=r"llama\.context_length is missing"):
        open_weights(written("rope_freqs"))
    with pytest.raises(FormatError, match=r"tensor blk\.0\.ssm_a\.weight belongs to nothing in a llama"):
        open_weights(written("blk.0.ssm_a"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "found an empty file"),
        (b"PK\x03\x04" + bytes(99), "cannot be read as GGUF: expected GGUF of version 2 or 3, little-endian"),
        (b"GGUF\x00\x00\x00\x03" + bytes(99), "cannot be read as GGUF"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "truncated or damaged"),
        (b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\x01" + bytes(7) + b"\xff" * 8, "truncated or damaged"),
    ],
)
def test_files_that_are_no_gguf_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        open_weights(locate(tmp_path / "x.gguf"))


def test_gguf_cut_short_or_damaged_is_refused_or_harmless(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "tiny.gguf", make_model(), kinds={"proj": Type.Q4_1}).read_bytes()
    path, rng = tmp_path / "damaged.gguf", np.random.default_rng(0)
    for keep in rng.integers(0, len(whole), 60).tolist():
        path.write_bytes(whole[:keep])
        with pytest.raises(FormatError):
            open_weights(locate(path))
    for place in rng.integers(0, len(whole) // 6, 200).tolist():
        data = bytearray(whole)
        data[place : place + 8] = rng.bytes(8)
        path.write_bytes(data)
        try:
            weights = open_weights(locate(path))
            for name in weights:
                weights[name]
        except FormatError:
            pass


@pytest.mark.slow
def test_packaged_base_is_that_of_transformers() -> None:
    source = locate("smollm2-135m")
    theirs = load_base("smollm2-135m").model
    weights = open_weights(source)
    assert_holds(weights, state_of(theirs))
    kinds = [type(weights[name]) for name in weights]
    assert (kinds.count(Affine), kinds.count(Dense)) == (211, 61)
    config = theirs.config.to_dict()
    theta = weights.config.pop("rope_theta")
    assert theta == config["rope_parameters"]["rope_theta"]
    assert {key: config[key] for key in weights.config} == weights.config
