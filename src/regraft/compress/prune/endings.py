"""The slot whose columns a group's units feed: o_proj for heads, down_proj for neurons."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from regraft.compress.prune.groups import Group

_ENDS = {"heads": "self_attn.o_proj", "neurons": "mlp.down_proj"}


@dataclass(frozen=True)
class Ending:
    """A group of heads or neurons, and the linear whose columns are theirs."""

    group: Group
    slot: str
    linear: nn.Linear

    @classmethod
    def of(cls, group: Group, linears: dict[str, nn.Linear]) -> Ending:
        """The ending of a group, among the linears by slot."""
        slot = f"layers.{group.layer}.{_ENDS[group.kind]}"
        return cls(group, slot, linears[slot])

    @property
    def weight(self) -> Tensor:
        """``[out, in]``; the columns of a unit are consecutive."""
        return self.linear.weight

    def per_unit(self, per_column: Tensor) -> Tensor:
        """Sum over each unit's columns, ``[units]``."""
        return per_column.view(self.group.units, -1).sum(1)
