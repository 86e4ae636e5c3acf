"""From importances to what is kept: the least important units go, until the asked share of the layers' parameters has.

local    each layer loses the same share; heads are rounded, and the neurons take what rounding left
global   units of all layers in one order, of importance per parameter (FLAP's are standardised, and compare as is)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from regraft.compress.prune.groups import Group
from regraft.compress.prune.settings import Prune
from regraft.errors import ConfigError
from regraft.formats.kept import Indices

Keep = dict[Group, Indices]


def keep_units(groups: Sequence[Group], scores: Sequence[Tensor], settings: Prune, *, layers: int, total: int) -> Keep:
    """Which units of each group stay, ascending.

    Args:
        groups: heads and neurons.
        scores: of the units of each, low ones go.
        settings: ratio, ranking, protection, multiple.
        layers: of the model.
        total: parameters of all layers' slots.

    Raises:
        ConfigError: so much cannot go.
    """
    by_group = dict(zip(groups, scores, strict=True))
    free, budget = _free(groups, settings, layers, total)
    counts = _local(free, budget) if settings.ranking == "local" else _global(free, by_group, settings, budget)
    return {group: _largest(by_group[group], _count(group, counts, settings)) for group in groups}


def count_kept(groups: Sequence[Group], settings: Prune, layers: int, total: int) -> dict[Group, int]:
    """How many units of each group stay, as far as that can be said without scores: the same share of each layer.

    Args and raises: as :func:`keep_units`.
    """
    counts = _local(*_free(groups, settings, layers, total))
    return {group: _count(group, counts, settings) for group in groups}


def _free(groups: Sequence[Group], settings: Prune, layers: int, total: int) -> tuple[list[Group], float]:
    """The groups that may lose units, and how many parameters are to go."""
    free = [group for group in groups if _is_free(group.layer, settings, layers)]
    most = sum(group.cost * (group.units - _least(group, settings)) for group in free)
    budget = settings.ratio * total
    if budget > most:
        raise ConfigError(
            f"prune.ratio {settings.ratio:g}",
            expected=f"at most {math.floor(100 * most / total) / 100:g}, all that these groups can give",
        )
    return free, budget


def keep_layers(scores: Sequence[Tensor], settings: Prune) -> Indices:
    """Which layers stay.

    Raises:
        ConfigError: so many cannot go, or none would.
    """
    layers = len(scores)
    free = [layer for layer in range(layers) if _is_free(layer, settings, layers)]
    count = round(settings.ratio * layers)
    if not 1 <= count <= len(free) - (len(free) == layers):
        raise ConfigError(
            f"prune.ratio {settings.ratio:g} of {layers} layers",
            expected=f"1 to {len(free) - (len(free) == layers)} layers to remove",
            found=str(count),
        )
    order = sorted(free, key=lambda layer: float(scores[layer]))
    return np.array([layer for layer in range(layers) if layer not in order[:count]])


def keep_channels(scores: Tensor, settings: Prune, step: int) -> Indices:
    """Which channels stay: a multiple of ``step`` of them.

    Raises:
        ConfigError: rounding leaves all of them.
    """
    count = max(step, step * round((1 - settings.ratio) * len(scores) / step))
    if count >= len(scores):
        raise ConfigError(
            f"prune.ratio {settings.ratio:g} of {len(scores)} channels",
            expected=f"enough for a multiple of {step} that is smaller",
        )
    return _largest(scores, count)


def _is_free(layer: int | None, settings: Prune, layers: int) -> bool:
    assert layer is not None
    return settings.protect_first <= layer < layers - settings.protect_last


def _least(group: Group, settings: Prune) -> int:
    """Units that every layer keeps: nothing runs a layer without heads or neurons."""
    return 1 if group.kind == "heads" else min(settings.multiple, group.units)


def _local(free: Sequence[Group], budget: float) -> dict[Group, float]:
    """How many units of each group go; of neurons a fraction, which is rounded later."""
    share = budget / sum(group.cost * group.units for group in free)
    removed: dict[Group, float] = {}
    for layer in {group.layer for group in free}:
        here = {group.kind: group for group in free if group.layer == layer}
        rest = share * sum(group.cost * group.units for group in here.values())
        if heads := here.get("heads"):
            removed[heads] = min(round(share * heads.units), heads.units - 1)
            rest -= removed[heads] * heads.cost
        if neurons := here.get("neurons"):
            removed[neurons] = max(rest / neurons.cost, 0.0)
    return removed


def _global(
    free: Sequence[Group], scores: Mapping[Group, Tensor], settings: Prune, budget: float
) -> dict[Group, float]:
    values, costs, owners = [], [], []
    for number, group in enumerate(free):
        # The best of each group are never in question.
        least = _least(group, settings)
        low = scores[group].sort().values[: group.units - least]
        values.append(low if settings.importance == "flap" else low / group.cost)
        costs.append(torch.full((len(low),), float(group.cost), dtype=torch.float64))
        owners.append(torch.full((len(low),), number))
    order = torch.cat(values).argsort(stable=True)
    spent = torch.cat(costs)[order].cumsum(0)
    # The unit that crosses the line goes too if that is nearer to it.
    gone = order[: int((spent - torch.cat(costs)[order] / 2 < budget).sum())]
    counts = torch.cat(owners)[gone].bincount(minlength=len(free))
    return {group: float(count) for group, count in zip(free, counts, strict=True)}


def _count(group: Group, removed: Mapping[Group, float], settings: Prune) -> int:
    """How many units of a group stay, rounded to what kernels like."""
    left = group.units - removed.get(group, 0.0)
    if group.kind == "heads" or left == group.units:
        return round(left)
    rounded = settings.multiple * round(left / settings.multiple)
    return min(max(rounded, _least(group, settings)), group.units)


def _largest(scores: Tensor, count: int) -> Indices:
    """The ``count`` largest, ascending by place; of equals the first stay."""
    chosen = scores.argsort(descending=True, stable=True)[:count]
    kept: Indices = chosen.sort().values.numpy()
    return kept
