"""Settings of the ``prune`` step of a recipe."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from regraft.config import Strict

Importance = Literal["random", "l1", "l2", "taylor", "wanda-sp", "flap", "block-influence"]
Kind = Literal["heads", "neurons", "channels", "layers"]

# Of each importance, what it can judge.
_JUDGES: dict[str, set[str]] = {
    "random": {"heads", "neurons", "channels", "layers"},
    "l1": {"heads", "neurons", "channels", "layers"},
    "l2": {"heads", "neurons", "channels", "layers"},
    "taylor": {"heads", "neurons", "channels", "layers"},
    "wanda-sp": {"heads", "neurons"},
    "flap": {"heads", "neurons"},
    "block-influence": {"layers"},
}
CALIBRATED = {"taylor", "wanda-sp", "flap", "block-influence"}
# What belongs to one importance only, and which.
_OWN = {"order": "taylor", "level": "taylor", "compensate": "flap", "seed": "random"}


class Prune(Strict):
    """Which parts of the layers go.

    Attributes:
        importance: what judges them: ``random``; ``l1`` and ``l2`` by magnitude, ``taylor`` by loss (LLM-Pruner);
            ``wanda-sp``, ``flap`` and, for whole layers, ``block-influence`` (ShortGPT) by activations.
        ratio: share of the parameters of all layers that is to go; rounding may miss it a little.
        groups: ``heads`` (a KV head with its query heads) and ``neurons`` (of the MLP), or ``channels`` alone, or whole
            ``layers`` alone.
        order: ``taylor``: ``first``, ``second``, or both of them, ``mixed``.
        level: ``taylor``: whether ``element`` or ``vector`` losses are added up as absolute values.
        compensate: ``flap``: put the mean of what is removed into biases, which only regraft can load.
        seed: ``random``: of the draw.
        ranking: ``local`` takes the same share of each layer, ``global`` the least important of all layers.
        protect_first, protect_last: layers that are left whole.
        multiple: MLP neurons and channels are left in multiples of this.
        uniform: one width for all layers, so that plain transformers loads the result.
    """

    importance: Importance
    ratio: float = Field(gt=0, lt=1)
    groups: tuple[Kind, ...] = Field(("heads", "neurons"), min_length=1)
    order: Literal["first", "second", "mixed"] = "first"
    level: Literal["element", "vector"] = "element"
    compensate: bool = True
    seed: int = 0
    ranking: Literal["local", "global"] = "local"
    protect_first: int = Field(0, ge=0)
    protect_last: int = Field(0, ge=0)
    multiple: int = Field(32, ge=8, multiple_of=8)
    uniform: bool = False

    @property
    def is_blockwise(self) -> bool:
        """Whether heads and neurons go, layer by layer."""
        return set(self.groups) <= {"heads", "neurons"}

    @property
    def compensates(self) -> bool:
        """Whether biases stand in for what is removed."""
        return self.importance == "flap" and self.compensate

    @model_validator(mode="after")
    def _is_consistent(self) -> Prune:
        if len(set(self.groups)) < len(self.groups) or not (self.is_blockwise or len(self.groups) == 1):
            raise ValueError("groups: heads, neurons or both, or channels alone, or layers alone")
        if others := set(self.groups) - _JUDGES[self.importance]:
            judged = " and ".join(sorted(_JUDGES[self.importance]))
            raise ValueError(f"importance {self.importance} with groups {judged}, not {sorted(others)[0]}")
        for key, owner in _OWN.items():
            if key in self.model_fields_set and self.importance != owner:
                raise ValueError(f"{key} only with importance {owner}, not {self.importance}")
        self._check_layers()
        return self

    def _check_layers(self) -> None:
        protects = self.protect_first + self.protect_last > 0
        if not self.is_blockwise and self.ranking == "global":
            raise ValueError(f"ranking global only with heads and neurons, not {self.groups[0]}")
        if self.groups == ("channels",) and protects:
            raise ValueError("no protected layers with groups channels: a channel runs through all layers")
        if self.uniform and self.is_blockwise and (protects or self.ranking == "global"):
            raise ValueError("uniform with ranking local and no protected layers: all layers get one width")
        if self.uniform and self.compensates:
            raise ValueError("uniform with compensate: false, as plain transformers has no place for the biases")

    def made_uniform(self) -> Prune:
        """The same with all that keeps layers from having one width put aside."""
        changes: dict[str, Any] = {"uniform": True}
        if self.is_blockwise:
            changes |= {"ranking": "local", "protect_first": 0, "protect_last": 0}
        if self.importance == "flap":
            changes["compensate"] = False
        return Prune.model_validate(self.model_dump(include=self.model_fields_set) | changes)
