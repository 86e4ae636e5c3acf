"""Settings of the ``moefy`` step of a recipe, which cuts MLPs in experts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regraft.config import Strict
from regraft.errors import ConfigError


class Moefy(Strict):
    """How MLPs are cut in experts, and how each token takes its own.

    Attributes:
        method: ``moefication``: a router that is trained on calibration text; ``cats``: the gates themselves, which are
            computed whole, by a threshold.
        active: share of the experts that a token takes: of each layer exactly, or with ``cats`` on the average.
        size: neurons of an expert; the engine reads weights by 32.
        split: neurons stand together whose ``weights`` are alike, or whose ``activations`` are.
        seed: of the split and of the router's training.
    """

    method: Literal["moefication", "cats"] = "moefication"
    active: float = Field(0.25, gt=0, lt=1)
    size: int = Field(32, ge=32, multiple_of=32)
    split: Literal["weights", "activations"] = "weights"
    seed: int = 0


def check_size(neurons: int, settings: Moefy) -> None:
    """Nothing if a layer's neurons make several experts.

    Raises:
        ConfigError: they do not.
    """
    if neurons % settings.size or neurons <= settings.size:
        raise ConfigError(
            f"moefy.size {settings.size}",
            expected=f"a part of the {neurons} neurons of a layer",
            hint="Before it, prune to a multiple of the size.",
        )
