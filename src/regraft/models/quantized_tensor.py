"""A quantised weight, and its layout on disk: ``pack-quantized`` of compressed-tensors.

The codes of a row are one stream of ``bits``-wide fields, least significant bit first, cut into little-endian int32
words; the last word of a row is padded with zero bits. Odd widths (3, 5, 6, 7) run across word boundaries, which
compressed-tensors does as well since 0.20.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from regraft.formats.quantized.codes import packed_length

_LANE = 8  # codes per int64 while packing: eight of at most 8 bits
_WORD = 32  # bits


@dataclass(frozen=True)
class QuantizedTensor:
    """``weight[o, i] = (codes[o, i] - zero[o, g]) * scale[o, g]`` with ``g = i // group_size``.

    Args:
        codes: uint8 ``[out, in]``, each in ``[0, 2**bits)``.
        scale: float16 ``[out, G]``.
        zero: uint8 ``[out, G]``, each in ``[0, 2**bits)``; ``2**(bits-1)`` throughout if ``symmetric``.
        bits: 2 to 8.
        symmetric: whether ``zero`` is left out on disk.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    bits: int
    symmetric: bool

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def group_size(self) -> int:
        """Input columns that share one scale."""
        return self.codes.shape[1] // self.scale.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes on disk: packed codes, scales, and packed zeros unless symmetric."""
        (out, width), groups = self.shape, self.scale.shape[1]
        zeros = 0 if self.symmetric else 4 * packed_length(out, self.bits) * groups
        return 4 * out * packed_length(width, self.bits) + 2 * out * groups + zeros

    def dequantize(self) -> Tensor:
        """The weight, float32 ``[out, in]``; exact, since ``codes - zero`` times a float16 fits in a float32."""
        grouped = self.codes.float().unflatten(1, (self.scale.shape[1], self.group_size))
        return ((grouped - self.zero.float().unsqueeze(-1)) * self.scale.float().unsqueeze(-1)).flatten(1)

    def to_tensors(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file, named ``prefix.weight_packed`` and so on."""
        tensors = {
            f"{prefix}.weight_packed": pack(self.codes, self.bits),
            f"{prefix}.weight_scale": self.scale.contiguous(),
            f"{prefix}.weight_shape": torch.tensor(self.shape),
        }
        if not self.symmetric:
            tensors[f"{prefix}.weight_zero_point"] = pack(self.zero.T, self.bits).T.contiguous()
        return tensors


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 ``[rows, n]`` into int32 ``[rows, packed_length(n, bits)]``.

    Eight codes are joined in one int64, of which the low ``bits`` bytes are the packed stream.
    """
    rows, count = codes.shape
    lanes = pad(codes, (0, -count % _WORD)).reshape(rows, -1, _LANE)
    joined = torch.zeros(lanes.shape[:2], dtype=torch.int64, device=codes.device)
    for i in range(_LANE):
        joined |= lanes[..., i].long() << (i * bits)
    stream = joined.unsqueeze(-1).view(torch.uint8)[..., :bits].flatten(1)
    return stream[:, : 4 * packed_length(count, bits)].contiguous().view(torch.int32)
