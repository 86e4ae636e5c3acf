"""RTN: round each weight to the nearest level of its group's range. Needs no data.

    q = clamp(round(w / s + z), 0, 2**bits - 1)

How ``s`` and ``z`` span the range is :meth:`Grid.fit`'s choice.
"""

from __future__ import annotations

from torch import Tensor

from regraft.compress.quantize.grid import Grid
from regraft.models.quantized_tensor import QuantizedTensor


def quantize(weight: Tensor, grid: Grid) -> QuantizedTensor:
    """Round ``weight`` (float32 ``[out, in]``) to the range of each of its groups."""
    groups = grid.split(weight)
    scale, zero = grid.fit(groups)
    return grid.store(grid.encode(groups, scale, zero), scale, zero)
