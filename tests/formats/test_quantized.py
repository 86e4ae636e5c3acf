"""Bases that other tools quantised are read as what they stand for, or refused by the name of the method."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file

from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.engine.weights.open_base import open_base
from regraft.errors import FormatError
from regraft.formats.quantized.methods import FORMATS, quantized_entries
from regraft.formats.safetensors_file import open_tensors
from regraft.formats.weights import Affine, Dense
from regraft.models.load import load_base
from tests.tiny import make_base, make_model

IDS = torch.arange(3, 40)[None]
Tensors = dict[str, torch.Tensor]


def read(tmp_path: Path, tensors: Tensors, settings: dict[str, Any]) -> dict[str, Any]:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    entries = quantized_entries(open_tensors(tmp_path / "model.safetensors", mapped=False), settings)
    return {name: entry.read() for name, entry in entries.items()}


def random(*shape: int, top: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, top, shape)


def words(fields: list[int], bits: int) -> list[int]:
    """Whole numbers as a stream of 32-bit words, least significant bits first: the slow truth of all packings."""
    stream = sum(field << (bits * place) for place, field in enumerate(fields))
    return [(stream >> (32 * n)) & 0xFFFFFFFF for n in range(-(-bits * len(fields) // 32))]


def int32(rows: list[list[int]]) -> torch.Tensor:
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


# GPTQ


def gptq(out: int, width: int, groups: int, bits: int, *, version: int, order: bool) -> tuple[Tensors, Any]:
    """A checkpoint as ``QuantLinear.pack`` of AutoGPTQ writes it, and the weight that it stands for."""
    codes, zero = random(out, width, top=1 << bits), random(out, groups, top=1 << bits, seed=1)
    scale = torch.rand(out, groups, generator=torch.Generator().manual_seed(0)).half()
    group_of = np.arange(width) // (width // groups)
    if order:
        group_of = np.random.default_rng(2).permutation(group_of)
    stored = (zero - (1 if version == 1 else 0)) % (1 << bits)
    tensors = {
        "m.up_proj.qweight": int32([words(row.tolist(), bits) for row in codes]).T,
        "m.up_proj.qzeros": int32([words(row.tolist(), bits) for row in stored.T]),
        "m.up_proj.scales": scale.T,
        "m.up_proj.g_idx": torch.tensor(group_of, dtype=torch.int32),
    }
    truth = scale.float().numpy()[:, group_of] * (codes - zero[:, group_of]).astype(np.float32)
    return tensors, truth


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", [False, True])
def test_gptq(tmp_path: Path, bits: int, version: int, order: bool) -> None:
    tensors, truth = gptq(64, 96, 3, bits, version=version, order=order)
    bias = {"m.up_proj.bias": torch.ones(64), "m.norm.weight": torch.ones(3)}
    settings = {"quant_method": "gptq", "bits": bits, "checkpoint_format": "gptq" if version == 1 else "gptq_v2"}
    found = read(tmp_path, tensors | bias, settings)
    assert set(found) == {"m.up_proj.weight", "m.up_proj.bias", "m.norm.weight"}
    assert isinstance(found["m.up_proj.weight"], Dense if order else Affine)
    assert np.array_equal(found["m.up_proj.weight"].dense(), truth)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("m.up_proj.qzeros"), "tensor m.up_proj.qzeros is missing"),
        (lambda t: t.pop("m.up_proj.scales"), "tensor m.up_proj.scales is missing"),
        (lambda t: t.update({"m.up_proj.g_idx": t["m.up_proj.g_idx"] + 2}), "g_idx: expected groups below 3"),
        (lambda t: t.update({"m.up_proj.qzeros": t["m.up_proj.qzeros"][:, 1:]}), r"qzeros: expected I32 \[3, 8\]"),
        (lambda t: t.update({"m.up_proj.qweight": t["m.up_proj.qweight"][1:]}), "qweight: expected 96 codes of 2 to 8"),
    ],
)
def test_damaged_gptq_is_named(tmp_path: Path, change: Any, message: str) -> None:
    tensors, _ = gptq(64, 96, 3, 4, version=1, order=False)
    change(tensors)
    with pytest.raises(FormatError, match=message):
        read(tmp_path, tensors, {"quant_method": "gptq"})


# AWQ


def test_awq(tmp_path: Path) -> None:
    """Packed as ``WQLinear_GEMM.from_linear`` of AutoAWQ does it: word by word, shifted by the place in its order."""
    out, width, groups = 32, 96, 3
    codes, zero = random(out, width, top=16), random(out, groups, top=16, seed=1)
    scale = torch.rand(out, groups, generator=torch.Generator().manual_seed(0)).half()

    def packed(columns: Any) -> torch.Tensor:  # [rows, out] → [rows, out / 8]
        rows = []
        for row in columns:
            made = []
            for start in range(0, out, 8):
                word = 0
                for place, other in enumerate([0, 2, 4, 6, 1, 3, 5, 7]):
                    word |= int(row[start + other]) << (4 * place)
                made.append(word)
            rows.append(made)
        return int32(rows)

    tensors = {"m.qweight": packed(codes.T), "m.qzeros": packed(zero.T), "m.scales": scale.T}
    found = read(tmp_path, tensors, {"quant_method": "awq", "bits": 4, "version": "gemm"})["m.weight"]
    group_of = np.arange(width) // (width // groups)
    assert isinstance(found, Affine)
    assert np.array_equal(found.dense(), scale.float().numpy()[:, group_of] * (codes - zero[:, group_of]))
    for other in ({"version": "gemv"}, {"bits": 8}):
        with pytest.raises(FormatError, match="quantised by awq: expected version gemm of 4 bits"):
            read(tmp_path, tensors, {"quant_method": "awq", **other})


# MLX


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_mlx(tmp_path: Path, bits: int, dtype: torch.dtype) -> None:
    out, width, size = 6, 128, 64
    codes = random(out, width, top=1 << bits)
    scale, bias = (
        torch.randn(out, width // size, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (0, 1)
    )
    tensors = {
        "m.weight": int32([words(row.tolist(), bits) for row in codes]).view(torch.uint32),
        "m.scales": scale,
        "m.biases": bias,
        "n.weight": torch.ones(3),
    }
    settings = {"group_size": size, "bits": 4, "m": {"group_size": size, "bits": bits}}
    found = read(tmp_path, tensors, {"quant_method": "mlx", **settings})
    group_of = np.arange(width) // size
    truth = codes * scale.float().numpy()[:, group_of] + bias.float().numpy()[:, group_of]
    np.testing.assert_allclose(found["m.weight"].dense(), truth, rtol=1e-6, atol=1e-6)
    assert set(found) == {"m.weight", "n.weight"}
    with pytest.raises(FormatError, match="quantised by mlx: expected mode affine, found mxfp4"):
        read(tmp_path, tensors, {"quant_method": "mlx", "group_size": 32, "bits": 4, "mode": "mxfp4"})


# bitsandbytes


@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes(tmp_path: Path, nested: bool) -> None:
    out, width, block = 30, 64, 64
    codes, table = random(out * width, top=16), torch.linspace(-1, 1, 16)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": [out, width]}
    blocks = out * width // block
    tensors = {
        "m.weight": torch.tensor((codes[0::2] << 4) | codes[1::2], dtype=torch.uint8)[:, None],
        "m.weight.quant_map": table,
    }
    if nested:
        state |= {"nested_blocksize": 8, "nested_offset": 0.25}
        inner, outer = random(blocks, top=256, seed=3), torch.rand(-(-blocks // 8))
        values = torch.linspace(-1, 1, 256)
        tensors |= {
            "m.weight.absmax": torch.tensor(inner, dtype=torch.uint8),
            "m.weight.nested_absmax": outer,
            "m.weight.nested_quant_map": values,
        }
        largest = np.array([float(values[inner[b]]) * float(outer[b // 8]) + 0.25 for b in range(blocks)])
    else:
        tensors["m.weight.absmax"] = torch.rand(blocks)
        largest = tensors["m.weight.absmax"].numpy()
    tensors["m.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(
        list(json.dumps(state).encode()), dtype=torch.uint8
    )
    found = read(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    truth = (table.numpy()[codes] * np.repeat(largest, block)).reshape(out, width)
    assert list(found) == ["m.weight"]
    np.testing.assert_allclose(found["m.weight"].dense(), truth, rtol=1e-6, atol=1e-7)
    with pytest.raises(FormatError, match="quantised by bitsandbytes: expected load_in_4bit"):
        read(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    del tensors["m.weight.quant_state.bitsandbytes__nf4"]
    with pytest.raises(FormatError, match=r"but tensor m\.weight\.quant_state\.bitsandbytes__… is missing"):
        read(tmp_path, tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True})


# 8-bit floats


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_8_bit_float_is_that_of_torch(tmp_path: Path, dtype: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    save_file({"x": every}, tmp_path / "x.safetensors")
    found = open_tensors(tmp_path / "x.safetensors", mapped=False).floats("x")
    assert np.array_equal(found, every.float(), equal_nan=True)


@pytest.mark.parametrize("shape", [(256, 128), (200, 300), (64, 576)])
def test_fp8_in_blocks(tmp_path: Path, shape: tuple[int, int]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128))
    settings = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    found = read(tmp_path, {"m.weight": value, "m.weight_scale_inv": scale, "m.input_scale": torch.ones(1)}, settings)
    truth = torch.stack(
        [
            torch.stack([value[o, i].float() * scale[o // 128, i // 128] for i in (0, 127, shape[1] - 1)])
            for o in range(shape[0])
        ]
    )
    assert list(found) == ["m.weight"]
    assert np.array_equal(found["m.weight"].dense()[:, [0, 127, shape[1] - 1]], truth)
    with pytest.raises(FormatError, match=r"tensor m\.weight_scale_inv is missing"):
        read(tmp_path, {"m.weight": value}, settings)
    with pytest.raises(FormatError, match=r"tensor m.weight_scale_inv: expected shape"):
        read(tmp_path, {"m.weight": value, "m.weight_scale_inv": torch.ones(9, 9)}, settings)


# compressed-tensors, against its own compressors

CT = {
    "W8A16 channel": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "W8A16 tensor": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "tensor"}),
    "W8A16 asymmetric": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": False}),
    "W8A16 group": ("int-quantized", {"num_bits": 8, "type": "int", "strategy": "group", "group_size": 32}),
    "FP8 channel": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "FP8 tensor": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
    "FP8 block": (
        "float-quantized",
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 64]},
    ),
    "FP8 naive": ("naive-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    "W4A16 group": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}),
    "W4A16 channel": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "channel"}),
    "W4A16 asymmetric": (
        "pack-quantized",
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": False},
    ),
}


def quantised_by_ct(case: str, scale_dtype: torch.dtype) -> tuple[Tensors, torch.Tensor, dict[str, Any]]:
    stored, weights = CT[case]
    arguments = {"symmetric": True, "dynamic": False, **weights}
    shape, generator = (128, 192), torch.Generator().manual_seed(0)
    groups = {"tensor": (1,), "channel": (128, 1), "group": (128, 6), "block": (2, 3)}[weights["strategy"]]
    state = {
        "weight": torch.randn(shape, generator=generator) / 30,
        "weight_scale": (torch.rand(groups, generator=generator) / 500 + 1e-3).to(scale_dtype).float(),
    }
    if not arguments["symmetric"]:
        state["weight_zero_point"] = torch.randint(-7, 7, groups, generator=generator, dtype=torch.int8)
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments), format=stored)
    compressor = BaseCompressor.get_value_from_registry(stored)
    packed = compressor.compress(dict(state), scheme)
    truth = compressor.decompress(dict(packed), scheme)["weight"]
    tensors = {f"m.up_proj.{name}": tensor for name, tensor in packed.items()}
    tensors["m.up_proj.weight_scale"] = tensors["m.up_proj.weight_scale"].to(scale_dtype)
    config = {
        "quant_method": "compressed-tensors",
        "format": stored,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"group_size": None, **arguments}}},
    }
    return tensors, truth, config


@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("case", CT)
def test_compressed_tensors(tmp_path: Path, case: str, scale_dtype: torch.dtype) -> None:
    tensors, truth, config = quantised_by_ct(case, scale_dtype)
    found = read(tmp_path, tensors | {"m.up_proj.input_scale": torch.ones(1), "m.norm.weight": torch.ones(3)}, config)
    assert set(found) == {"m.up_proj.weight", "m.norm.weight"}
    np.testing.assert_allclose(found["m.up_proj.weight"].dense(), truth.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_groups_in_the_order_of_activations(tmp_path: Path, symmetric: bool) -> None:
    tensors, _, config = quantised_by_ct("W4A16 group" if symmetric else "W4A16 asymmetric", torch.float16)
    plain = read(tmp_path, tensors, config)["m.up_proj.weight"]
    assert isinstance(plain, Affine)
    index = np.random.default_rng(0).permutation(np.arange(192) // 32)
    ordered = read(tmp_path, tensors | {"m.up_proj.weight_g_idx": torch.tensor(index, dtype=torch.int32)}, config)
    zero = np.full((128, 6), 8) if plain.zero is None else plain.zero.astype(np.int64)
    truth = (plain.codes.astype(np.int64) - zero[:, index]) * plain.scale.astype(np.float32)[:, index]
    np.testing.assert_allclose(ordered["m.up_proj.weight"].dense(), truth, rtol=1e-6)
    none = read(tmp_path, tensors | {"m.up_proj.weight_g_idx": torch.full((192,), -1, dtype=torch.int32)}, config)
    assert np.array_equal(none["m.up_proj.weight"].dense(), plain.dense())


# Whole bases


def quantise(folder: Path, method: str) -> Any:
    """Quantise a tiny base's MLPs in place by one of the formats; returns the model that it stands for."""
    model = make_model(hidden=128, intermediate=256)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if ".mlp." in name]:
        path, weight = name.removesuffix(".weight"), tensors.pop(name)
        scale = (weight.abs().amax(1, keepdim=True) / 7).half()
        codes = (weight / scale.float()).round().clamp(-8, 7) + 8
        fields = codes.int().tolist()
        if method == "gptq":
            tensors[f"{path}.qweight"] = int32([words(row, 4) for row in fields]).T.contiguous()
            tensors[f"{path}.qzeros"] = int32([words([7] * len(fields), 4)])
            tensors[f"{path}.scales"] = scale.T.contiguous()
            tensors[f"{path}.g_idx"] = torch.zeros(weight.shape[1], dtype=torch.int32)
        else:
            tensors[name] = int32([words(row, 4) for row in fields]).view(torch.uint32)
            tensors[f"{path}.scales"] = scale.repeat(1, weight.shape[1] // 64)
            tensors[f"{path}.biases"] = -8 * tensors[f"{path}.scales"]
        model.get_submodule(path).weight.data = (codes - 8) * scale.float()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config |= (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": -1}}
        if method == "gptq"
        else {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 4, "group_size": 64}}
    )
    (folder / "config.json").write_text(json.dumps(config))
    return model


@pytest.mark.parametrize("method", ["gptq", "mlx"])
def test_a_quantised_base_is_compressed_as_what_it_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path / "cache"))
    folder = make_base(tmp_path / "base", hidden=128, intermediate=256)
    truth = quantise(folder, method)(IDS).logits
    base = load_base(folder)
    torch.testing.assert_close(base.model(IDS).logits, truth, atol=1e-5, rtol=1e-5)
    assert not base.is_compressed
    assert open_base(folder).architecture.hidden == 128
    recipe = parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 8, "group_size": 32}}]}, "test")
    compress(folder, tmp_path / "small", recipe)
    small = load_base(tmp_path / "small")
    assert (small.model(IDS).logits - truth).norm() < 0.05 * truth.norm()
    assert small.original_fingerprint == base.fingerprint
    written = json.loads((tmp_path / "small" / "config.json").read_text())
    assert "quantization" not in written
    assert written["quantization_config"]["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize(
    "method", ["hqq", "aqlm", "quanto", "eetq", "bitnet", "mxfp4", "auto-round", "torchao", 3, None]
)
def test_other_methods_are_refused_by_name_first(tmp_path: Path, method: Any) -> None:
    folder = make_base(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": method}}))
    (folder / "model.safetensors").write_bytes(b"not looked at")
    name = method or "a method without a name"
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=rf"is quantised by {name}: expected one of .*Give the model") as raised:
            load(folder)
        assert all(known in str(raised.value) for known in FORMATS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "is quantised by modelopt"),
        ("quantize_config.json", {"bits": 4, "checkpoint_format": "marlin"}, "checkpoint_format: expected one of gptq"),
        ("quant_config.json", {"w_bit": 4, "version": "GEMV"}, "quantised by awq: expected version gemm"),
    ],
)
def test_what_stands_beside_the_config_counts(tmp_path: Path, name: str, content: Any, message: str) -> None:
    folder = make_base(tmp_path / "base")
    (folder / name).write_text(json.dumps(content))
    for load in (load_base, open_base):
        with pytest.raises(FormatError, match=message):
            load(folder)


def test_sparse_and_rotated_weights_are_refused(tmp_path: Path) -> None:
    tensors, _, config = quantised_by_ct("W4A16 group", torch.float16)
    for key, value in (
        ("sparsity_config", {"format": "sparse-24-bitmask"}),
        ("transform_config", {"config_groups": 1}),
    ):
        with pytest.raises(FormatError, match=key):
            read(tmp_path, tensors, config | {key: value})
