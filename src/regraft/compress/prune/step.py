"""The pruning step of a recipe: judge, choose, slice."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from regraft.compress.prune import llm_pruner
from regraft.compress.prune.activations import Inputs, measure_inputs
from regraft.compress.prune.endings import Ending
from regraft.compress.prune.flap import compensation, flap
from regraft.compress.prune.groups import Group, find_groups, widths_of
from regraft.compress.prune.rank import keep_channels, keep_layers, keep_units
from regraft.compress.prune.settings import Prune
from regraft.compress.prune.shortgpt import block_influence
from regraft.compress.prune.slice import is_uniform, sliced
from regraft.compress.prune.wanda_sp import wanda_sp
from regraft.compress.reading import Text
from regraft.errors import ConfigError
from regraft.formats.base_record import Pruned
from regraft.formats.kept import Indices, Kept, KeptLayer
from regraft.formats.slots import layer_index, within_layer
from regraft.models.load import Base
from regraft.models.slots import iter_slots, slot_shapes
from regraft.progress import Progress, silent


def prune(
    base: Base,
    settings: Prune,
    text: Text | None = None,
    *,
    before: Pruned | None = None,
    progress: Progress = silent,
) -> tuple[Base, Pruned]:
    """The base without what ``settings`` takes from it, and the sizes of the result, whose hash is still to come.

    Args:
        base: perhaps pruned before; it is left as it was.
        settings: which parts go.
        text: calibration text, for importances that look at it; its adapters are those of ``base``.
        before: the sizes of ``base``, if it was pruned before.
        progress: told of the gradients.

    Raises:
        ConfigError: so much cannot be removed, or not from this kind of model.
        FormatError: the model's slots are not those that pruning knows.
    """
    kept = base.kept or Kept.everything(widths_of(base.model))
    groups = find_groups(base.model, settings.groups, kept.original)
    endings, inputs = _look(base, groups, settings, text)
    scores = _judge(base, groups, settings, text, endings, inputs, progress)
    local = _choose(base, groups, scores, settings, kept)
    added = _compensate(endings, inputs, local) if settings.compensates else {}
    pruned = sizes_of(kept.then(local), local, added, before)
    if settings.uniform and not is_uniform(pruned):
        raise ConfigError("prune.uniform", expected="layers of one width before this step", found="several")
    model = sliced(base.model, local, added, pruned)
    return replace(base, model=model, kept=kept.then(local)), pruned


def _look(base: Base, groups: Sequence[Group], settings: Prune, text: Text | None) -> tuple[list[Ending], list[Inputs]]:
    """The groups' ends and what enters them, where the importance looks at that."""
    if settings.importance not in ("wanda-sp", "flap"):
        return [], []
    assert text is not None
    linears = dict(iter_slots(base.model))
    endings = [Ending.of(group, linears) for group in groups]
    seen = measure_inputs(base.model, {ending.slot: ending.linear for ending in endings}, text)
    return endings, [seen[ending.slot] for ending in endings]


def _judge(
    base: Base,
    groups: Sequence[Group],
    settings: Prune,
    text: Text | None,
    endings: Sequence[Ending],
    inputs: Sequence[Inputs],
    progress: Progress,
) -> list[Tensor]:
    """The importance of each group's units."""
    match settings.importance:
        case "random":
            generator = torch.Generator().manual_seed(settings.seed)
            return [torch.rand(group.units, generator=generator, dtype=torch.float64) * group.cost for group in groups]
        case "l1" | "l2":
            return llm_pruner.magnitude(base.model, groups, p=int(settings.importance[1]))
        case "wanda-sp":
            return wanda_sp(endings, inputs)
        case "flap":
            return flap(endings, inputs)
    assert text is not None
    if settings.importance == "block-influence":
        return block_influence(base.model, text)
    return llm_pruner.taylor(base.model, groups, text, order=settings.order, level=settings.level, progress=progress)


def _choose(base: Base, groups: Sequence[Group], scores: Sequence[Tensor], settings: Prune, kept: Kept) -> Kept:
    """What stays, counted in the base's own layers, heads, neurons and channels."""
    whole = everything(kept)
    if settings.groups == ("layers",):
        return replace(whole, layers=tuple(whole.layers[layer] for layer in keep_layers(scores, settings)))
    if settings.groups == ("channels",):
        step = math.lcm(settings.multiple, base.model.config.num_attention_heads)  # what transformers asks of Llama
        return replace(whole, channels=keep_channels(scores[0], settings, step))
    total = sum(out * width for out, width in slot_shapes(base.model).values())
    chosen: dict[tuple[str, int | None], Indices] = {
        (group.kind, group.layer): indices
        for group, indices in keep_units(groups, scores, settings, layers=len(whole.layers), total=total).items()
    }
    layers = tuple(
        KeptLayer(
            layer.source,
            chosen.get(("heads", layer.source), layer.heads),
            chosen.get(("neurons", layer.source), layer.neurons),
        )
        for layer in whole.layers
    )
    return replace(whole, layers=layers)


def everything(kept: Kept) -> Kept:
    """All of a base that has ``kept`` so much, counted in its own parts."""
    layers = tuple(
        KeptLayer(number, np.arange(len(layer.heads)), np.arange(len(layer.neurons)))
        for number, layer in enumerate(kept.layers)
    )
    return Kept(kept.original, layers, np.arange(len(kept.channels)))


def _compensate(endings: Sequence[Ending], inputs: Sequence[Inputs], local: Kept) -> dict[str, Tensor]:
    """Slot → bias for what its columns lose; heads and neurons go, so layers keep their numbers."""
    biases = {}
    for ending, seen in zip(endings, inputs, strict=True):
        columns = torch.from_numpy(local.columns(ending.slot))
        if len(columns) < ending.linear.in_features:
            biases[ending.slot] = compensation(ending, seen, columns)
    return biases


def sizes_of(kept: Kept, local: Kept, added: Mapping[str, Tensor], before: Pruned | None) -> Pruned:
    """The sizes of what is left.

    Args:
        kept: of the original.
        local: the same, counted in the parts of the base before this step.
        added: slots that this step gives a bias.
        before: the sizes before this step, if there was one before.
    """
    biases = [set(before.layers[layer.source].biases) if before else set() for layer in local.layers]
    for slot in added:
        biases[layer_index(slot)].add(within_layer(slot))
    layers = [kept.widths(layer, sorted(biases[number])) for number, layer in enumerate(kept.layers)]
    draft = Pruned(original=kept.original, hidden=len(kept.channels), layers=layers, removed=0.0, kept_sha256="")
    left, whole = (
        sum(out * width for out, width in shapes.values()) for shapes in (draft.slot_shapes, kept.original_slot_shapes)
    )
    return draft.model_copy(update={"removed": 1 - left / whole})
