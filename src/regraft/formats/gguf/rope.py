"""Scaled RoPE in a GGUF file, as the ``rope_scaling`` of a Hugging Face config.

    rope.scaling.type   linear, yarn                        numbers beside it say how far
    rope_freqs.weight   Llama 3.1 and later: the factor that each frequency is divided by

The factors are what llama.cpp's converter makes of Llama 3's four numbers (``convert_hf_to_gguf.py``, ``LlamaModel``).
:func:`llama3_scaling` finds the numbers again. Any other factors have no name in a config, and are refused.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError
from regraft.formats.gguf.file import GgufFile

FACTORS = "rope_freqs.weight"
_YARN = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_READ = {"type", "factor", "original_context_length", "attn_factor", "finetuned", "yarn_ext_factor", *_YARN}
_NEARLY = 1e-5  # relative; factors are stored as float32
_HIGH = (4.0, 2.0, 8.0, 16.0, 1.5, 1.1)  # where factors leave it open, Llama 3's own before others
_END = 1e-5  # a share this near to 0 or 1 is that, but for rounding

Values = NDArray[np.float64]


def rope_scaling(file: GgufFile, architecture: str) -> dict[str, Any] | None:
    """The ``rope_scaling`` of a file; None where its RoPE is plain.

    Raises:
        FormatError: a kind that is not read here, numbers that are missing, or two kinds at once.
    """
    stated = _stated(file, architecture)
    factors = _factors(file)
    if factors is None or np.all(factors == 1):
        return stated
    if stated is not None:
        raise FormatError(f"{file.path}: RoPE", expected="one scaling", found=f"{FACTORS} and rope.scaling.type")
    theta = float(file.metadata.get(f"{architecture}.rope.freq_base", 10000.0))
    plain = theta ** -(np.arange(len(factors)) / len(factors))
    found = llama3_scaling(factors, plain)
    if found is None:
        raise FormatError(
            f"{file.path}: tensor {FACTORS}",
            expected="factors as Llama 3 has them",
            found="others, which no config.json can say",
        )
    return found


def _stated(file: GgufFile, architecture: str) -> dict[str, Any] | None:
    prefix = f"{architecture}.rope.scaling."
    entries = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    older = file.metadata.get(f"{architecture}.rope.scale_linear")
    kind = entries.get("type", "none" if older in (None, 0) else "linear")
    if unknown := sorted(key for key in entries.keys() - _READ if entries[key]):
        raise FormatError(f"{file.path}: {prefix}{unknown[0]} is not read here", found=repr(entries[unknown[0]]))
    if kind == "none":
        return None
    factor = _number(file, f"{prefix}factor", entries.get("factor", older))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1 else None
    if kind != "yarn":
        raise FormatError(f"{file.path}: {prefix}type", expected="none, linear or yarn", found=repr(kind))
    return _yarn(file, prefix, entries, factor, file.metadata.get(f"{architecture}.context_length"))


def _yarn(file: GgufFile, prefix: str, entries: dict[str, Any], factor: float, context: Any) -> dict[str, Any]:
    if entries.get("yarn_ext_factor", 1.0) != 1.0:
        raise FormatError(f"{file.path}: {prefix}yarn_ext_factor", expected="1", found=str(entries["yarn_ext_factor"]))
    original = entries.get("original_context_length", context)
    found: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": int(_number(file, f"{prefix}original_context_length", original)),
    }
    found |= {ours: float(entries[theirs]) for theirs, ours in _YARN.items() if entries.get(theirs)}
    if (warmer := entries.get("attn_factor", 1.0)) != 1.0:  # llama.cpp multiplies it with YaRN's own
        found["attention_factor"] = float(warmer) * (0.1 * math.log(factor) + 1)
    return found


def _number(file: GgufFile, key: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise FormatError(f"{file.path}: {key}", expected="a number above 0", found=repr(value)[:60])
    return float(value)


def _factors(file: GgufFile) -> Values | None:
    tensor = file.tensors.get(FACTORS)
    if tensor is None:
        return None
    if len(tensor.shape) != 1 or tensor.nbytes != 4 * tensor.shape[0]:
        raise FormatError(f"{file.path}: tensor {FACTORS}", expected="one row of float32", found=str(tensor.shape))
    factors = file.bytes_of(tensor).reshape(-1).view("<f4").astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise FormatError(f"{file.path}: tensor {FACTORS}", expected="numbers above 0", found="others")
    return factors


def llama3_scaling(factors: Values, plain: Values) -> dict[str, Any] | None:
    """Llama 3's numbers, from the factors that they make of frequencies; None if no such numbers make them.

        1 / factors[i] = share / 1 + (1 - share) / F      with  share = clip((context f_i / 2π - low) / (high - low))

    ``low``, ``high`` and the context have one degree of freedom too many: ``low`` is taken as 1, as every Llama has it.

    Args:
        factors: what frequencies are divided by, ``[head_dim / 2]``.
        plain: the frequencies f, falling.
    """
    most = float(factors.max())
    share = np.clip((1 / factors - 1 / most) / (1 - 1 / most), 0, 1)
    for low, high, context in _candidates(share, plain / (2 * math.pi)):
        again = np.clip((context * plain / (2 * math.pi) - low) / (high - low), 0, 1)
        if np.allclose(1 / (again + (1 - again) / most), factors, rtol=_NEARLY):
            return {
                "rope_type": "llama3",
                "factor": _rounded(most),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
    return None


def _candidates(share: Values, turns: Values) -> list[tuple[float, float, int]]:
    """(low, high, context): through the two ends of the ramp, through its one point, or between its neighbours."""
    low, high = share < _END, share > 1 - _END
    ramp = np.flatnonzero(~low & ~high)
    if len(ramp) > 1:
        first, last = ramp[0], ramp[-1]
        slope = (share[first] - share[last]) / (turns[first] - turns[last])
        start = turns[first] - share[first] / slope  # where the ramp leaves zero
        return [(1.0, _rounded(1 + 1 / (slope * start)), round(1 / start))] if slope > 0 < start else []
    if len(ramp) == 1:
        point = ramp[0]
        return [(1.0, end, round((1 + (end - 1) * share[point]) / turns[point])) for end in _HIGH]
    above, below = turns[high], turns[low]
    if not len(above) or not len(below):
        return []
    contexts = [1 << power for power in range(1, 24)]
    fitting = [context for context in contexts if context * below[0] <= 1]
    return [(1.0, end, context) for end in _HIGH for context in fitting if context * above[-1] >= end]


def _rounded(value: float) -> float:
    """A number that came out of float32 arithmetic, as whoever wrote it down will have written it."""
    near = round(value, 3)
    return float(near) if math.isclose(near, value, rel_tol=1e-4) else value
