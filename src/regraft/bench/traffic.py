"""Memory traffic of a token: the bytes that a step has to read, and the speed that memory then allows.

    bytes per token = (weights + factors of the step's adapters) / tokens of the step + keys and values before the token

Weights and factors are counted as they lie in memory, scales and padding included; of experts, those that are taken,
as if each row took its own by chance. Activations, embeddings (a row for each token) and what is written are left out:
they are small, and stay in the caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter

import numpy as np

from regraft.engine.weights.architecture import Architecture
from regraft.native import _core

READ_BYTES = 256 << 20  # far more than any cache of a personal machine


def kv_bytes(architecture: Architecture, position: float) -> float:
    """Bytes of the keys and values in float16 that the token at ``position`` sees, its own included."""
    layers = zip(architecture.windows, architecture.kv_heads, strict=True)
    seen = sum(min(position + 1, window or position + 1) * kv_heads for window, kv_heads in layers)
    return seen * 2 * architecture.head_dim * 2


def weight_bytes(model: _core.Model, architecture: Architecture, rows: int) -> float:
    """Bytes of weights that a step of so many rows reads."""
    if architecture.experts is None:
        return model.step_bytes
    size, layers = architecture.experts.size, zip(architecture.experts.active, architecture.mlp, strict=True)
    unread = [(1 - active * size / mlp) ** rows for active, mlp in layers]
    return model.step_bytes - sum(share * count for share, count in zip(unread, model.expert_bytes, strict=True))


def decode_bytes(
    model: _core.Model, architecture: Architecture, *, adapters: Sequence[int], sequences: int, prompt: int, steps: int
) -> float:
    """Bytes per token while ``sequences`` sequences decode together.

    Args:
        model: its weights are read once a step.
        architecture: of the model.
        adapters: bytes of each distinct adapter in the batch.
        sequences: how many decode.
        prompt: tokens before the first that is decoded.
        steps: tokens that each decodes; keys and values are counted at their middle.
    """
    middle = prompt - 1 + (steps - 1) / 2
    weights = weight_bytes(model, architecture, sequences)
    return (weights + sum(adapters)) / sequences + kv_bytes(architecture, middle)


def prefill_bytes(model: _core.Model, architecture: Architecture, *, tokens: int, step_tokens: int) -> float:
    """Bytes of weights per token of a prompt that is computed in steps of at most ``step_tokens``."""
    steps = [min(step_tokens, tokens - first) for first in range(0, tokens, step_tokens)]
    return sum(weight_bytes(model, architecture, rows) for rows in steps) / tokens


def read_bandwidth(core: _core.Core, *, repeats: int = 9, num_bytes: int = READ_BYTES) -> float:
    """Bytes per second at which the core's own threads read memory one after the other; the median of some passes."""
    memory = np.ones(num_bytes, np.uint8)
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        core.read(memory)
        seconds.append(perf_counter() - start)
    return num_bytes / median(seconds)
