"""Recipes: what is done to a base, as a strict YAML file or one of the names that ship with regraft."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from regraft.compress.moefy.settings import Moefy
from regraft.compress.prune.settings import Prune
from regraft.config import Strict, load_yaml, suggest
from regraft.errors import ConfigError, UsageError
from regraft.train.settings import Training

Method = Literal["rtn", "hqq", "gptq"]
DENSE = 16  # "bits" of a slot that an override leaves as it is
_GROUP_SIZES = (128, 64, 32)  # tried in turn where the asked one does not divide a row


class Override(Strict):
    """What some slots do differently; what is not given stays. ``bits: 16`` leaves a slot as it is."""

    method: Method | None = None
    bits: int | None = None
    group_size: int | None = Field(None, ge=0)
    symmetric: bool | None = None
    act_order: bool | None = None

    @field_validator("bits")
    @classmethod
    def _stored_widths(cls, bits: int | None) -> int | None:
        if bits is not None and bits != DENSE and not 2 <= bits <= 8:
            raise ValueError("2 to 8 bits, or 16 to leave the slot as it is")
        return bits


class Quantize(Strict):
    """How weights are rounded.

    Attributes:
        method: ``rtn`` and ``hqq`` need no data; ``gptq`` looks at calibration activations.
        bits: of a weight, 2 to 8; with ``target_bytes`` the most that one gets.
        target_bytes: of all weights on disk: each slot gets 2, 3, 4 or 8 bits, as its rounding hurts the loss.
        group_size: input columns that share a scale; 0 is the whole row.
        symmetric: no zero points, which transformers cannot load in packed weights.
        act_order: ``gptq`` takes the most active columns first.
        embeddings: 16 leaves embedding and head as they are; 8 packs them too, which only regraft can load.
        overrides: regular expression, searched for in the slot's name → what differs there. Later ones win.
    """

    method: Method
    bits: int = Field(ge=2, le=8)
    target_bytes: int | None = Field(None, ge=1)
    group_size: int = Field(64, ge=0)
    symmetric: bool = True
    act_order: bool = False
    embeddings: Literal[16, 8] = 16
    overrides: dict[str, Override] = {}

    @field_validator("overrides")
    @classmethod
    def _patterns(cls, overrides: dict[str, Override]) -> dict[str, Override]:
        for pattern in overrides:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"regular expressions, but {pattern!r} is none ({error})") from None
        return overrides

    @model_validator(mode="after")
    def _act_order_is_gptq(self) -> Quantize:
        if self.act_order and self.method != "gptq":
            raise ValueError(f"act_order only with method gptq, not {self.method}")
        return self


class Text(Strict):
    """Text that is read without an adapter.

    Attributes:
        source: ``self`` (the base writes its own) or a file: plain text, or JSON lines of prompts and answers.
        num_sequences: how many.
        sequence_length: tokens of each.
        seed: of the sampling.
    """

    source: str = "self"
    num_sequences: int = Field(32, ge=1)
    sequence_length: int = Field(256, ge=8)
    seed: int = 0


class AdapterRows(Strict):
    """An adapter of the base, and rows of its task to read with it.

    Attributes:
        adapter: its directory.
        data: JSON lines of prompts and answers.
        num_sequences: how many of the rows, each a sequence by itself.
        max_tokens: of a row; longer ones are passed over.
    """

    adapter: Path
    data: Path
    num_sequences: int = Field(32, ge=1)
    max_tokens: int = Field(512, ge=8)


class Calibration(Text):
    """What calibrated methods see: general text, and tasks with their adapters attached.

    Attributes:
        num_sequences: of general text; 0 leaves it out.
        adapters: that the base is compressed for.
    """

    num_sequences: int = Field(32, ge=0)
    adapters: tuple[AdapterRows, ...] = ()

    @model_validator(mode="after")
    def _is_something(self) -> Calibration:
        if not (self.num_sequences or self.adapters):
            raise ValueError("num_sequences above 0, or adapters")
        return self


class Recover(Training):
    """How a LoRA wins back what pruning or experts took, before it is merged (LLM-Pruner).

    Attributes:
        rank: of the LoRA, on every slot.
        text: what it is trained on, a tenth of it to pick the checkpoint.
        distil, train, seed: as in ``regraft adapt``.
    """

    rank: int = Field(8, ge=1)
    text: Text = Text(num_sequences=480, sequence_length=128)

    @model_validator(mode="after")
    def _learns_from_enough(self) -> Recover:
        if self.text.source == "self" and self.text.num_sequences < 2:
            raise ValueError("text.num_sequences of at least 2: some to train on, some to pick the checkpoint")
        if not (self.distil.needs_teacher or self.distil.answers):
            raise ValueError("one of distil.hidden, distil.logits and distil.answers above 0")
        if self.train.tokens == 0:
            raise ValueError("train.tokens above 0, or no recover step")
        return self


class Step(Strict):
    """One step of a recipe: exactly one of these."""

    prune: Prune | None = None
    recover: Recover | None = None
    moefy: Moefy | None = None
    quantize: Quantize | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Step:
        if sum(getattr(self, name) is not None for name in Step.model_fields) != 1:
            raise ValueError(f"one of {', '.join(Step.model_fields)}")
        return self

    @property
    def name(self) -> str:
        """``prune``, ``recover``, ``moefy`` or ``quantize``."""
        return next(name for name in Step.model_fields if getattr(self, name) is not None)


class Recipe(Strict):
    """A whole recipe file: steps, in their order, and what calibrated ones see."""

    steps: tuple[Step, ...] = Field(min_length=1)
    calibration: Calibration = Calibration()

    @model_validator(mode="after")
    def _is_ordered(self) -> Recipe:
        names = [step.name for step in self.steps]
        if "quantize" in names[:-1]:
            raise ValueError("steps: nothing after quantize: rounded weights are not touched again")
        if names[0] == "recover" or names.count("recover") > 1 or "prune" in names[_first(names, "recover") :]:
            raise ValueError("steps: recover once, after all prune steps or after moefy, and before quantize")
        if names.count("moefy") > 1 or "prune" in names[_first(names, "moefy") :]:
            raise ValueError("steps: moefy once, after all prune steps and before quantize")
        return self

    @property
    def quantize(self) -> Quantize | None:
        """The settings of the last step, if it quantises."""
        return self.steps[-1].quantize


def _first(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names)


@dataclass(frozen=True)
class SlotPlan:
    """What a recipe comes to for one slot.

    ``group_size`` divides its row; ``asked`` is what the recipe said. ``is_fixed``: an override gave the bits.
    """

    method: Method
    bits: int
    group_size: int
    symmetric: bool
    act_order: bool
    asked: int
    is_fixed: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether the slot is left as it is."""
        return self.bits == DENSE

    @property
    def is_calibrated(self) -> bool:
        """Whether rounding the slot looks at calibration text."""
        return self.method == "gptq" and not self.is_dense


def plan_slots(quantize: Quantize | None, widths: Mapping[str, int]) -> dict[str, SlotPlan]:
    """Resolve a recipe for slots of the given row widths (in features); None leaves all of them as they are.

    Raises:
        ConfigError: an override fits no slot.
    """
    if quantize is None:
        return {slot: SlotPlan("rtn", DENSE, 0, symmetric=True, act_order=False, asked=0) for slot in widths}
    for pattern in quantize.overrides:
        if not any(re.search(pattern, slot) for slot in widths):
            raise ConfigError(f"recipe: override {pattern!r} fits no slot", hint=suggest(pattern, widths))
    common = quantize.model_dump(include={"method", "bits", "group_size", "symmetric", "act_order"})
    plans = {}
    for slot, width in widths.items():
        settings, is_fixed = dict(common), False
        for pattern, override in quantize.overrides.items():
            if re.search(pattern, slot):
                settings |= override.model_dump(exclude_none=True)
                is_fixed |= override.bits is not None
        asked = settings.pop("group_size")
        plans[slot] = SlotPlan(**settings, group_size=fit_group_size(asked, width), asked=asked, is_fixed=is_fixed)
    return plans


def fit_group_size(asked: int, width: int) -> int:
    """``asked`` if it divides ``width``, else the largest smaller one of 128, 64 and 32 that does, else ``width``."""
    candidates = [asked, *(size for size in _GROUP_SIZES if size < asked)]
    return next((size for size in candidates if size and width % size == 0), width)


def recipe_names() -> list[str]:
    """The recipes that ship with regraft."""
    folder = resources.files("regraft.compress").joinpath("recipes")
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A recipe by name, or from a YAML file.

    Raises:
        UsageError: neither a known name nor a file.
        ConfigError: the file does not hold a recipe.
    """
    names = recipe_names()
    if str(name_or_path) in names:
        packaged = resources.files("regraft.compress").joinpath("recipes", f"{name_or_path}.yaml")
        with resources.as_file(packaged) as path:
            return load_yaml(Recipe, path)
    path = Path(name_or_path)
    if not path.is_file():
        hint = f"{suggest(path.name, names)} Or give a YAML file; recipes that ship: {', '.join(names)}."
        raise UsageError(f"there is no recipe {str(name_or_path)!r}", hint=hint)
    return load_yaml(Recipe, path)


def with_options(
    recipe: Recipe,
    *,
    source: Path | None = None,
    adapters: Sequence[AdapterRows] = (),
    seed: int | None = None,
    uniform: bool = False,
    target_bytes: int | None = None,
) -> Recipe:
    """The recipe with another calibration text or adapters, another seed, layers pruned alike, or a budget of bytes.

    None and () change nothing.

    Raises:
        UsageError: layers are to be alike, but none are pruned; there is a budget, but no quantize step.
    """
    changes = {"source": None if source is None else str(source), "adapters": tuple(adapters) or None, "seed": seed}
    given = {key: value for key, value in changes.items() if value is not None}
    if uniform and not any(step.prune for step in recipe.steps):
        raise UsageError("--uniform is about pruning, and the recipe has no prune step")
    if target_bytes is not None and recipe.quantize is None:
        raise UsageError("--target-size is about rounding, and the recipe has no quantize step")
    steps = tuple(_changed(step, seed, uniform, target_bytes) for step in recipe.steps)
    calibration = recipe.calibration.model_copy(update=given)
    return recipe.model_copy(update={"steps": steps, "calibration": calibration})


def _changed(step: Step, seed: int | None, uniform: bool, target_bytes: int | None) -> Step:
    if step.quantize is not None and target_bytes is not None:
        return Step(quantize=step.quantize.model_copy(update={"target_bytes": target_bytes}))
    if step.recover is not None and seed is not None:
        text = step.recover.text.model_copy(update={"seed": seed})
        return Step(recover=step.recover.model_copy(update={"seed": seed, "text": text}))
    if step.moefy is not None and seed is not None:
        return Step(moefy=step.moefy.model_copy(update={"seed": seed}))
    prune = step.prune
    if prune is None:
        return step
    if uniform:
        prune = prune.made_uniform()
    if seed is not None and prune.importance == "random":
        prune = prune.model_copy(update={"seed": seed})
    return Step(prune=prune)
