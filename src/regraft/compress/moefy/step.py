"""The step of a recipe that cuts MLPs in experts: group neurons, put them side by side, learn who is taken when."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from regraft.base.expert_mlp import ExpertMLP, Router, Threshold
from regraft.base.experts import CONFIG_KEY, Experts
from regraft.base.kept import Kept, KeptLayer
from regraft.base.load import Base
from regraft.base.record import ExpertsRecord, Pruned
from regraft.base.walk import LayerWalk
from regraft.compress.moefy.balanced_kmeans import balanced_kmeans
from regraft.compress.moefy.cats import threshold
from regraft.compress.moefy.moefication import captured, train_router
from regraft.compress.moefy.settings import Moefy, check_size
from regraft.compress.prune.groups import widths_of
from regraft.compress.prune.step import everything, sizes_of
from regraft.progress import Progress, silent

_BATCH = 8  # sequences that go through a layer together
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
    """What was made of one layer: its neurons' ``order``, its chooser, and how well that chooses."""

    order: Tensor
    chooser: Router | Threshold
    active: float
    captured: float
    best: float


@torch.no_grad()
def moefy(
    base: Base,
    settings: Moefy,
    sequences: Tensor,
    *,
    before: Pruned | None = None,
    progress: Progress = silent,
) -> Moefied:
    """Cut every MLP of ``base`` in experts, each layer on what the layers before it give once they are cut.

    Args:
        base: perhaps pruned before; it is left as it was.
        settings: size, share, method.
        sequences: calibration text ``[N, T]``.
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
    walk = LayerWalk(model, sequences.to(model.device).split(_BATCH))
    made = []
    with progress.track(len(walk.layers), "experts") as advance:
        for index, decoder_layer in enumerate(walk.layers):
            mlp: nn.Module = decoder_layer.mlp  # type: ignore[assignment]
            made.append(_cut(mlp, walk.inputs(index, mlp), settings))
            decoder_layer.mlp = ExpertMLP(mlp, made[-1].chooser, settings.size)
            walk.advance(index)
            advance(captured=f"{made[-1].captured:.0%}")
    experts = Experts(method=settings.method, size=settings.size, active=[layer.active for layer in made])
    setattr(model.config, CONFIG_KEY, experts.model_dump())
    local = replace(
        everything(kept),
        layers=tuple(
            KeptLayer(layer.source, layer.heads, one.order.cpu().numpy())
            for layer, one in zip(everything(kept).layers, made, strict=True)
        ),
    )
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


def _cut(mlp: nn.Module, x: Tensor, settings: Moefy) -> _Layer:
    """Reorder the neurons of ``mlp`` in place, and learn how experts are taken of tokens ``x [N, M]``."""
    gate, up, down = (getattr(mlp, name) for name in ("gate_proj", "up_proj", "down_proj"))
    count = gate.out_features // settings.size
    clusters = balanced_kmeans(_profiles(mlp, x, settings), count, seed=settings.seed)
    order = clusters.argsort(stable=True)
    for linear in (gate, up):
        linear.weight.data = linear.weight.data[order]
        if linear.bias is not None:
            linear.bias.data = linear.bias.data[order]
    down.weight.data = down.weight.data[:, order].contiguous()
    gates = mlp.act_fn(gate(x))  # type: ignore[operator]
    mass = (gates * up(x)).abs().mul_(down.weight.norm(dim=0)).unflatten(1, (count, settings.size)).sum(2)
    active = max(1, round(settings.active * count))
    if settings.method == "moefication":
        rows = gate.weight.unflatten(0, (count, settings.size)).mean(1)
        trained = train_router(x, mass, rows, active, seed=settings.seed)
        return _Layer(order, trained.router, float(active), trained.captured, trained.best)
    chooser = Threshold(torch.zeros(1, device=x.device), settings.size).requires_grad_(False)
    scores = chooser.scores(gates)
    chooser.threshold.data = threshold(scores, settings.active)
    chosen = scores >= chooser.threshold
    mean = float(chosen.sum() / len(x))
    return _Layer(order, chooser, mean, float((mass * chosen).sum() / mass.sum()), captured(mass, mass, active))


def _profiles(mlp: nn.Module, x: Tensor, settings: Moefy) -> Tensor:
    """By what neurons are told to be alike, ``[F, D]``: their rows of gate and up, or what they do for some tokens."""
    gate, up = (getattr(mlp, name) for name in ("gate_proj", "up_proj"))
    if settings.split == "weights":
        rows = [functional.normalize(linear.weight, dim=1) for linear in (gate, up)]
        return torch.cat(rows, dim=1)
    some = x[:: -(-len(x) // _PROFILE)]
    gates = mlp.act_fn(gate(some))  # type: ignore[operator]
    hidden = gates if settings.method == "cats" else gates * up(some)
    profile: Tensor = hidden.abs().T
    return profile - profile.mean(1, keepdim=True)
