"""Experts in a compressed base's ``config.json``: groups of MLP neurons, of which each token takes some."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from regraft.config import Strict, parse
from regraft.errors import ConfigError, FormatError

CONFIG_KEY = "regraft_experts"  # in config.json, because it says what the model computes; fingerprints cover it


class Experts(Strict):
    """How the MLPs of a base are cut in experts, each of ``size`` neurons that stand side by side.

    Attributes:
        method: ``moefication`` takes those that a router scores highest, ``cats`` those whose gates are large.
        size: neurons of an expert.
        active: of each layer, how many experts a token takes: exactly, or with ``cats`` on the average.
    """

    method: Literal["moefication", "cats"]
    size: int = Field(ge=32, multiple_of=32)
    active: list[float] = Field(min_length=1)


def read_experts(config: Mapping[str, Any], widths: list[int]) -> Experts | None:
    """The experts of a base whose MLPs are so wide, or None if it has none.

    Raises:
        FormatError: the entry is damaged, or does not fit the layers.
    """
    entry = config.get(CONFIG_KEY)
    if entry is None:
        return None
    try:
        experts = parse(Experts, entry, f"config.json: {CONFIG_KEY}")
    except ConfigError as error:
        raise FormatError(str(error)) from None
    if len(experts.active) != len(widths):
        raise FormatError(
            f"config.json: {CONFIG_KEY}.active", expected=str(len(widths)), found=str(len(experts.active))
        )
    for layer, (width, active) in enumerate(zip(widths, experts.active, strict=True)):
        count = width / experts.size
        whole = experts.method == "cats" or active == int(active) > 0
        if count != int(count) or not 0 <= active <= count or not whole:
            raise FormatError(
                f"config.json: {CONFIG_KEY}, layer {layer}",
                expected=f"some of the experts that {width} neurons make",
                found=f"{active:g} of {count:g}",
            )
    return experts
