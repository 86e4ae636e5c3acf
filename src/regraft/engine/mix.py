"""A mix: adapters that act together on one sequence, each with a weight, and the rule that says how."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from regraft.engine.checks import check, check_number

Member = TypeVar("Member")  # an adapter: its name, one version of it, or its factors in memory
Other = TypeVar("Other")
Rule = Literal["sum"]
Adapters = str | Mapping[str, float] | None  # what callers give: one, a weighted mix, or the base alone


@dataclass(frozen=True)
class Mix(Generic[Member]):
    """Adapters and weights. Without members it is the base alone.

    Attributes:
        members: (adapter, weight) in the order in which they are added.
        rule: how they act: ``sum`` adds their contributions, each times its weight.
    """

    members: tuple[tuple[Member, float], ...] = ()
    rule: Rule = "sum"

    def __iter__(self) -> Iterator[tuple[Member, float]]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    @property
    def adapters(self) -> tuple[Member, ...]:
        """The members without their weights."""
        return tuple(member for member, _ in self.members)

    def bound(self, find: Callable[[Member], Other]) -> Mix[Other]:
        """The same mix of what ``find`` gives for each member."""
        return Mix(tuple((find(member), weight) for member, weight in self.members), self.rule)

    def digest(self, fingerprint: str, digest_of: Callable[[Member], str]) -> bytes:
        """What a sequence's keys and values depend on besides its tokens.

        Args:
            fingerprint: of the base.
            digest_of: the content digest of a member.
        """
        members = [(digest_of(member), float(weight)) for member, weight in self.members]
        return hashlib.sha256(repr((fingerprint, self.rule, members)).encode()).digest()


def to_mix(adapter: Adapters) -> Mix[str]:
    """The mix that a caller means.

    Raises:
        UsageError: it means none.
    """
    if adapter is None:
        return Mix()
    is_mix = isinstance(adapter, str | Mapping)
    check(is_mix, "adapter", expected="a name, a mix of names with weights, or None", found=adapter)
    return Mix(((adapter, 1.0),) if isinstance(adapter, str) else tuple(adapter.items()))


def check_mix(mix: Mix[str], what: str) -> None:
    """Raise UsageError for a member without a name, one that is named twice, or a weight that is not finite."""
    names = list(mix.adapters)
    check(all(names), f"{what}: mix", expected="adapters by name", found=names)
    check(len(set(names)) == len(names), f"{what}: mix", expected="each adapter once", found=names)
    for name, weight in mix:
        check_number(f"{what}: weight of adapter {name}", weight, "a finite number")
