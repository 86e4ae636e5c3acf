"""Configuration of ``adapt``: every number that matters, in one strict, documented object."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from regraft.config import Strict, parse
from regraft.train.settings import Training


class Inherit(Strict):
    """The task LoRA to begin with: the existing one, or a ``new`` one, which CA-LoRA is held against.

    A new LoRA stands on every linear. ``rank`` is its rank there; slots that the existing LoRA covers get the
    existing rank on top, so that a new LoRA of rank r has the very parameters of CA-LoRA with a recovery of rank r.
    """

    start: Literal["existing", "new"] = "existing"
    rank: int = Field(8, ge=1)


class Recover(Strict):
    """The recovery bypasses, on every linear.

    ``start``: ``zero`` is the paper's (nothing is added at step 0); ``svd`` and ``eora`` are closed forms of the
    compression error, which serve by themselves when no steps are trained.
    """

    kind: Literal["gelu", "linear", "none"] = "linear"
    rank: int = Field(8, ge=1)
    start: Literal["zero", "svd", "eora"] = "eora"
    calibration_tokens: int = Field(4096, ge=64)


class Data(Strict):
    """What is trained on. Teacher outputs are kept on disk, so fewer distinct rows and more epochs cost less."""

    max_examples: int = Field(1000, ge=1)
    dev_examples: int = Field(64, ge=1)
    test_examples: int = Field(240, ge=1)
    max_tokens: int = Field(512, ge=8)


class AdaptConfig(Training):
    """Everything that ``regraft adapt`` can be told in YAML (``--config``)."""

    inherit: Inherit = Inherit()
    recover: Recover = Recover()
    data: Data = Data()


def idle_settings(config: AdaptConfig, *, shared: bool) -> dict[str, str]:
    """Settings of inheritance and recovery that were changed for nothing: dotted name → what keeps them idle.

    ``shared`` says whether a shared recovery is started from.
    """
    recover, reasons = config.recover, {}
    if config.inherit.start == "existing":
        reasons["inherit.rank"] = "inherit.start is existing"
    if recover.start != "eora":
        reasons["recover.calibration_tokens"] = f"recover.start is {recover.start}"
    for key in ("rank", "start", "calibration_tokens"):
        if shared:
            reasons[f"recover.{key}"] = "--shared brings its own recovery"
        elif recover.kind == "none":
            reasons[f"recover.{key}"] = "recover.kind is none"
    return {name: reason for name, reason in reasons.items() if _at(config, name) != _at(AdaptConfig(), name)}


def _at(config: AdaptConfig, name: str) -> Any:
    section, key = name.split(".")
    return getattr(getattr(config, section), key)


def override(config: AdaptConfig, values: dict[str, Any]) -> AdaptConfig:
    """The configuration with dotted keys replaced; a value of None leaves its key as it is.

    Raises:
        ConfigError: a value that its key does not take.
    """
    data = config.model_dump()
    for key, value in values.items():
        if value is not None:
            *parents, last = key.split(".")
            place = data
            for parent in parents:
                place = place[parent]
            place[last] = value
    return parse(AdaptConfig, data, "options")
