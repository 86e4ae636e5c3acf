"""Rotary position embeddings (Su et al. 2021, arXiv 2104.09864): an angle per position for each pair of a head.

The scaled variants are those that the families in :mod:`regraft.engine.weights.architecture` are published with, as
``transformers`` computes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regraft.errors import FormatError, UnsupportedBaseError

Frequencies = NDArray[np.float32]


@dataclass(frozen=True)
class Rope:
    """``factor * cos(p f)`` and ``factor * sin(p f)`` at position p, for each f of ``[head_dim / 2]`` frequencies."""

    frequencies: Frequencies
    factor: float = 1.0


def make_rope(parameters: Mapping[str, Any], head_dim: int, max_positions: int) -> Rope:
    """The table of one ``rope_parameters`` entry of a config.

    Raises:
        FormatError: a kind of scaling that is not known, or one of its parameters is missing.
    """
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in _KINDS or parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedBaseError(
            "config.json: rope_parameters",
            expected=f"one of {', '.join(_KINDS)}, for whole heads",
            found=str(dict(parameters)),
        )
    try:
        theta = float(parameters["rope_theta"])
        if not 0 < theta < math.inf:
            raise ValueError(f"rope_theta is {theta}")
        plain = (1.0 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))).astype(np.float32)
        rope = _KINDS[kind](parameters, plain, max_positions)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise FormatError(f"config.json: rope_parameters: {type(error).__name__} {error}") from None
    if not (np.isfinite(rope.frequencies).all() and math.isfinite(rope.factor)):
        raise FormatError("config.json: rope_parameters leave angles that are no numbers", found=repr(parameters)[:200])
    return rope


def _default(_: Mapping[str, Any], plain: Frequencies, __: int) -> Rope:
    return Rope(plain)


def _linear(parameters: Mapping[str, Any], plain: Frequencies, _: int) -> Rope:
    """Positions divided by a factor (Chen et al. 2023, arXiv 2306.15595)."""
    return Rope(plain / np.float32(parameters["factor"]))


def _llama3(parameters: Mapping[str, Any], plain: Frequencies, _: int) -> Rope:
    """Llama 3.1: low frequencies divided by a factor, high ones as they are, a ramp between."""
    factor, context = float(parameters["factor"]), float(parameters["original_max_position_embeddings"])
    low, high = float(parameters["low_freq_factor"]), float(parameters["high_freq_factor"])
    turns = context * plain / (2 * math.pi)  # within the original context
    share = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return Rope(((1 - share) * plain / factor + share * plain).astype(np.float32))


def _yarn(parameters: Mapping[str, Any], plain: Frequencies, max_positions: int) -> Rope:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp over dimensions, and warmer attention."""
    context = float(parameters["original_max_position_embeddings"])
    factor = float(parameters.get("factor") or max_positions / context)
    theta, head_dim = float(parameters["rope_theta"]), 2 * len(plain)

    def dimension(turns: float) -> float:
        return head_dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = dimension(parameters.get("beta_fast") or 32), dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = np.clip((np.arange(len(plain)) - first) / max(last - first, 0.001), 0.0, 1.0)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    return Rope(frequencies.astype(np.float32), _yarn_factor(parameters, factor))


def _yarn_factor(parameters: Mapping[str, Any], factor: float) -> float:
    def warmth(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if (given := parameters.get("attention_factor")) is not None:
        return float(given)
    if (one := parameters.get("mscale")) and (all_dims := parameters.get("mscale_all_dim")):
        return warmth(one) / warmth(all_dims)
    return warmth(1.0)


_KINDS = {"default": _default, "linear": _linear, "llama3": _llama3, "yarn": _yarn}
