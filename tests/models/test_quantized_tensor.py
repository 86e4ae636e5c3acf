from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st

from regraft.formats.quantized.codes import packed_length, unpack
from regraft.formats.quantized.compressed_tensors_config import Scheme
from regraft.models.quantized_tensor import QuantizedTensor, pack

BITS = range(2, 9)


def random_quantized(bits: int, symmetric: bool, out: int, groups: int, size: int, seed: int = 0) -> QuantizedTensor:
    generator = torch.Generator().manual_seed(seed)
    top = 1 << bits
    zero = torch.full((out, groups), top // 2, dtype=torch.uint8)
    if not symmetric:
        zero = torch.randint(top, (out, groups), generator=generator, dtype=torch.uint8)
    return QuantizedTensor(
        codes=torch.randint(top, (out, groups * size), generator=generator, dtype=torch.uint8),
        scale=(torch.rand(out, groups, generator=generator) + 0.01).half(),
        zero=zero,
        bits=bits,
        symmetric=symmetric,
    )


@given(st.data(), st.integers(2, 8), st.integers(1, 5), st.integers(1, 100))
def test_packing_is_that_of_compressed_tensors(data: st.DataObject, bits: int, rows: int, count: int) -> None:
    seed = data.draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (rows, count), generator=generator, dtype=torch.uint8)
    signed = (codes.int() - (1 << (bits - 1))).to(torch.int8)

    packed = pack(codes, bits)

    assert torch.equal(packed, pack_to_int32(signed, bits))
    assert packed.shape == (rows, packed_length(count, bits))
    assert np.array_equal(unpack(packed.numpy(), bits, count), codes)
    assert torch.equal(unpack_from_int32(packed, bits, signed.shape), signed)


@given(st.integers(2, 8), st.integers(1, 70), st.integers(1, 4), st.integers(0, 2**31))
def test_zero_points_are_packed_down_the_columns(bits: int, out: int, groups: int, seed: int) -> None:
    quantized = random_quantized(bits, False, out, groups, 4, seed)
    signed = (quantized.zero.int() - (1 << (bits - 1))).to(torch.int8)
    written = quantized.to_tensors("m")["m.weight_zero_point"]
    assert torch.equal(written, pack_to_int32(signed, bits, packed_dim=0))


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_dequantised_weight_is_that_of_compressed_tensors(bits: int, symmetric: bool, groups: int) -> None:
    quantized = random_quantized(bits, symmetric, out=5, groups=groups, size=7)
    tensors = {name.removeprefix("m."): tensor for name, tensor in quantized.to_tensors("m").items()}
    tensors["weight_scale"] = tensors["weight_scale"].float()  # the type a model loaded in float32 gives it
    config = Scheme(bits, 7 if groups > 1 else 0, symmetric).to_config(["Linear"])

    dense = PackedQuantizationCompressor.decompress(tensors, QuantizationScheme(**config))["weight"]

    assert torch.equal(quantized.dequantize(), dense)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_the_tensors(bits: int, symmetric: bool) -> None:
    quantized = random_quantized(bits, symmetric, out=9, groups=3, size=5)
    tensors = quantized.to_tensors("m")
    assert quantized.group_size == 5
    assert quantized.nbytes == sum(t.nbytes for name, t in tensors.items() if not name.endswith("_shape"))
