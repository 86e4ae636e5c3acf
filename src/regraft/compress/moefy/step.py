"""The step of a recipe that cuts MLPs in experts: group neurons, put them side by side, learn who is taken when."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.compress.moefy.balanced_kmeans import balanced_kmeans
from regraft.compress.moefy.cats import threshold
from regraft.compress.moefy.moefication import captured, train_router
from regraft.compress.moefy.settings import Moefy, check_size
from regraft.compress.prune.groups import widths_of
from regraft.compress.prune.step import everything, sizes_of
from regraft.compress.reading import PartsWalk, Text
from regraft.formats.base_record import ExpertsRecord, Pruned
from regraft.formats.experts import CONFIG_KEY, Experts
from regraft.formats.kept import Kept, KeptLayer
from regraft.models.expert_mlp import ExpertMLP, Router, Threshold
from regraft.models.load import Base
from regraft.progress import Progress, silent

_PROFILE = 2048  # tokens by whose activations neurons are told to be alike

Factors = Mapping[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Moefied:
    """A base of experts, its sizes, whose hash is still to come, and what is known of the experts.

    Attributes:
        local: where in the base before each neuron stood.
    """

    base: Base
    pruned: Pruned
    experts: ExpertsRecord
    local: Kept


@dataclass(frozen=True)
class _Layer:
    """How a layer's experts are taken, how many of them, and how well they are chosen."""

    chooser: Router | Threshold
    active: float
    captured: float
    best: float


@torch.no_grad()
def moefy(
    base: Base,
    settings: Moefy,
    text: Text,
    *,
    before: Pruned | None = None,
    progress: Progress = silent,
) -> Moefied:
    """Cut every MLP of ``base`` in experts, each layer on what the layers before it give once they are cut.

    Args:
        base: perhaps pruned before; it is left as it was.
        settings: size, share, method.
        text: calibration text, its adapters those of ``base``.
        before: the sizes of ``base``, if it was pruned before.
        progress: told of the layers.

    Raises:
        ConfigError: a layer's neurons make no whole number of experts, or too few.
        FormatError: the model's slots are not those that pruning knows.
    """
    kept = base.kept or Kept.everything(widths_of(base.model))
    for layer in kept.layers:
        check_size(len(layer.neurons), settings)
    model = copy.deepcopy(base.model)
    walk = PartsWalk(model, text)
    made, local = [], everything(kept)
    with progress.track(len(walk.layers), "experts") as advance:
        for index, decoder_layer in enumerate(walk.layers):
            mlp: nn.Module = decoder_layer.mlp  # type: ignore[assignment]
            x = walk.inputs(index, mlp)
            order = _group(walk, index, x, settings)
            local = _reordered(local, index, order)
            walk.move(index, local)
            made.append(_learn(walk, index, x, settings))
            decoder_layer.mlp = ExpertMLP(mlp, made[-1].chooser, settings.size)
            walk.advance(index)
            advance(captured=f"{made[-1].captured:.0%}")
    experts = Experts(method=settings.method, size=settings.size, active=[layer.active for layer in made])
    setattr(model.config, CONFIG_KEY, experts.model_dump())
    record = ExpertsRecord(
        **experts.model_dump(), captured=[layer.captured for layer in made], best=[layer.best for layer in made]
    )
    moved = kept.then(local)
    return Moefied(replace(base, model=model, kept=moved), sizes_of(moved, local, {}, before), record, local)


def moved_factors(factors: Factors, local: Kept) -> dict[str, tuple[Tensor, Tensor]]:
    """B ``[out, r]`` and A ``[r, in]`` by slot, their rows and columns where the neurons stand now."""
    rows = {slot: torch.from_numpy(local.rows(slot)) for slot in factors}
    columns = {slot: torch.from_numpy(local.columns(slot)) for slot in factors}
    return {slot: (up[rows[slot]], down[:, columns[slot]]) for slot, (up, down) in factors.items()}


def _reordered(local: Kept, index: int, order: Tensor) -> Kept:
    layers = list(local.layers)
    layers[index] = KeptLayer(layers[index].source, layers[index].heads, order.cpu().numpy())
    return replace(local, layers=tuple(layers))


def _group(walk: PartsWalk, index: int, x: Sequence[Tensor], settings: Moefy) -> Tensor:
    """Put the neurons of an expert side by side, in place; returns the order that they have now.

    ``x`` is what enters the MLP, ``[N, M]`` for each part of the text.
    """
    mlp: Any = walk.layers[index].mlp
    gate, up, down = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    clusters = balanced_kmeans(
        _profiles(walk, index, x, settings), gate.out_features // settings.size, seed=settings.seed
    )
    order = clusters.argsort(stable=True)
    for linear in (gate, up):
        linear.weight.data = linear.weight.data[order]
        if linear.bias is not None:
            linear.bias.data = linear.bias.data[order]
    down.weight.data = down.weight.data[:, order].contiguous()
    return order


def _learn(walk: PartsWalk, index: int, x: Sequence[Tensor], settings: Moefy) -> _Layer:
    """How the experts of a layer, whose neurons are in place, are taken of tokens ``x``."""
    mlp: Any = walk.layers[index].mlp
    count = mlp.gate_proj.out_features // settings.size
    hidden = _hidden(walk, index, x)
    # By the base's own columns, beside which those that a LoRA adds to them are small.
    mass = hidden.abs().mul_(mlp.down_proj.weight.norm(dim=0)).unflatten(1, (count, settings.size)).sum(2)
    active = max(1, round(settings.active * count))
    if settings.method == "moefication":
        rows = mlp.gate_proj.weight.unflatten(0, (count, settings.size)).mean(1)
        trained = train_router(torch.cat(list(x)), mass, rows, active, seed=settings.seed)
        return _Layer(trained.router, float(active), trained.captured, trained.best)
    chooser = Threshold(torch.zeros(1, device=mass.device), settings.size).requires_grad_(False)
    scores = chooser.scores(_gates(walk, index, x))
    chooser.threshold.data = threshold(scores, settings.active)
    chosen = scores >= chooser.threshold
    mean = float(chosen.sum() / len(scores))
    return _Layer(chooser, mean, float((mass * chosen).sum() / mass.sum()), captured(mass, mass, active))


def _profiles(walk: PartsWalk, index: int, x: Sequence[Tensor], settings: Moefy) -> Tensor:
    """By what neurons are told to be alike, ``[F, D]``: their rows of gate and up, or what they do for some tokens."""
    mlp: Any = walk.layers[index].mlp
    if settings.split == "weights":
        rows = [functional.normalize(linear.weight, dim=1) for linear in (mlp.gate_proj, mlp.up_proj)]
        return torch.cat(rows, dim=1)
    step = -(-sum(map(len, x)) // _PROFILE)
    some = [part[::step] for part in x]
    seen = _gates(walk, index, some) if settings.method == "cats" else _hidden(walk, index, some)
    profile: Tensor = seen.abs().T
    return profile - profile.mean(1, keepdim=True)


def _gates(walk: PartsWalk, index: int, x: Sequence[Tensor]) -> Tensor:
    """``act(W_gate x)`` with the adapters of the parts attached, ``[N, F]``."""
    mlp: Any = walk.layers[index].mlp
    return walk.apply(index, lambda part: mlp.act_fn(mlp.gate_proj(part)), x)


def _hidden(walk: PartsWalk, index: int, x: Sequence[Tensor]) -> Tensor:
    """``act(W_gate x) ∘ W_up x``, likewise."""
    mlp: Any = walk.layers[index].mlp
    return walk.apply(index, lambda part: mlp.act_fn(mlp.gate_proj(part)) * mlp.up_proj(part), x)
