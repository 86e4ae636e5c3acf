"""Put bypasses on a model's slots, and take them off again without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.bypass.adapter import Adapter
from regraft.bypass.bypass import Bypass
from regraft.errors import IncompatibleAdapterError
from regraft.models.slots import slot_paths

Bypasses = Mapping[str, Sequence[Bypass]]


class BypassedLinear(nn.Module):
    """A linear with bypasses beside it: ``y = W x + b + Σ bypass(x)``.

    The factors of all bypasses are stacked, so that each of the two small products is one call, and the second one
    adds into the linear's output without another pass over it.
    """

    def __init__(self, linear: nn.Module, bypasses: Sequence[Bypass]) -> None:
        super().__init__()
        self.linear = linear
        self.bypasses = nn.ModuleList(bypasses)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., in]`` → ``[..., out]``."""
        y = self.linear(x)
        bypasses: list[Bypass] = list(self.bypasses)  # type: ignore[arg-type]
        down = torch.cat([bypass.down for bypass in bypasses])  # [Σ r, in]
        up = torch.cat([bypass.scale * bypass.up for bypass in bypasses], dim=1)  # [out, Σ r]
        hidden = functional.linear(x, down).split([bypass.rank for bypass in bypasses], dim=-1)
        hidden = torch.cat([bypass.activate(h) for bypass, h in zip(bypasses, hidden, strict=True)], dim=-1)
        flat = torch.addmm(y.flatten(0, -2), hidden.flatten(0, -2), up.T)
        return flat.view_as(y)


def attach(model: nn.Module, bypasses: Bypasses) -> dict[str, nn.Module]:
    """Wrap the named slots; returns the modules that stood there, for :func:`detach`.

    Raises:
        IncompatibleAdapterError: a slot that the model does not have, or factors of other widths than the slot's.
    """
    paths = slot_paths(model)
    for slot, added in bypasses.items():
        if slot not in paths:
            raise IncompatibleAdapterError(f"the base has no slot {slot}")
        _check_shapes(slot, model.get_submodule(paths[slot]), added)
    originals = {}
    for slot, added in bypasses.items():
        linear = model.get_submodule(paths[slot])
        originals[paths[slot]] = linear
        model.set_submodule(paths[slot], BypassedLinear(linear, added))
    return originals


def mixed(members: Iterable[tuple[Adapter, float]]) -> dict[str, list[Bypass]]:
    """The bypasses of a mix that adds its members, each times its weight: what the engine computes, in torch.

    Args:
        members: (adapter, weight).
    """
    bypasses: dict[str, list[Bypass]] = {}
    for adapter, weight in members:
        for slot, added in adapter.bypasses.items():
            bypasses.setdefault(slot, []).extend(bypass.times(weight) for bypass in added)
    return bypasses


def detach(model: nn.Module, originals: Mapping[str, nn.Module]) -> None:
    """Put back what :func:`attach` took out: the very same modules, so the base is bit-equal to before."""
    for path, linear in originals.items():
        model.set_submodule(path, linear)


@contextmanager
def attached(model: nn.Module, bypasses: Bypasses) -> Iterator[None]:
    """Attach for the length of a ``with`` block."""
    originals = attach(model, bypasses)
    try:
        yield
    finally:
        detach(model, originals)


def _check_shapes(slot: str, linear: nn.Module, bypasses: Sequence[Bypass]) -> None:
    assert isinstance(linear, nn.Linear)
    for bypass in bypasses:
        found = (bypass.up.shape[0], bypass.down.shape[1])
        if found != (linear.out_features, linear.in_features):
            raise IncompatibleAdapterError(
                f"{slot}: the bypass maps {found[1]} to {found[0]}",
                expected=f"{linear.in_features} to {linear.out_features}, the slot's own shape",
            )
