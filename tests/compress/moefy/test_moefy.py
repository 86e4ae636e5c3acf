"""Experts against a few lines of slow truth: how neurons are dealt out, what is computed, how it is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.bypass.attach import attached
from regraft.compress.moefy.balanced_kmeans import balanced_kmeans, deal
from regraft.compress.moefy.moefication import captured, train_router
from regraft.compress.moefy.settings import Moefy
from regraft.compress.moefy.step import Moefied, moefy
from regraft.config import parse
from regraft.errors import ConfigError, FormatError
from regraft.formats.experts import CONFIG_KEY, read_experts
from regraft.models.expert_mlp import ExpertMLP, Router, Threshold
from regraft.models.load import Base
from regraft.models.slots import slot_shapes
from tests.compress.prune.made import logits, sequences, tiny
from tests.engine.networks import make_bypasses
from tests.tiny import FAMILIES

METHODS = ["moefication", "cats"]


def settings(**options: Any) -> Moefy:
    return parse(Moefy, {"active": 0.5, **options}, "test")


def make(base: Base, **options: Any) -> Moefied:
    return moefy(base, settings(**options), sequences(12))


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return tiny(tmp_path / "base", layers=2, intermediate=128)


def test_every_cluster_gets_as_many_and_nobody_would_swap() -> None:
    similarity = torch.rand(96, 8, generator=torch.Generator().manual_seed(3))
    assigned = deal(similarity)
    assert assigned.bincount(minlength=8).tolist() == [12] * 8
    for vector, own in enumerate(assigned.tolist()):
        for other in range(8):
            worst = similarity[assigned == other, other].min()
            assert similarity[vector, other] <= max(similarity[vector, own], worst)


def test_clusters_that_are_there_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    labels = torch.arange(4).repeat(32)[torch.randperm(128, generator=generator)]
    vectors = centres[labels] + 0.05 * torch.randn(128, 16, generator=generator)
    found = min(
        (balanced_kmeans(vectors, 4, seed=seed) for seed in range(8)),
        key=lambda clusters: sum(float(vectors[clusters == c].var(0).sum()) for c in range(4)),
    )
    assert all(len(set(labels[found == cluster].tolist())) == 1 for cluster in range(4))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_that_all_act_are_the_base_itself(family: str, method: str, tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", family, layers=2, intermediate=128)
    made = make(base, method=method)
    for layer in made.base.model.get_decoder().layers:
        if method == "moefication":
            layer.mlp.chooser.active = 4
        else:
            layer.mlp.chooser.threshold.data.zero_()
    torch.testing.assert_close(logits(made.base.model), logits(base.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("split", ["weights", "activations"])
def test_what_is_computed_is_the_dense_mlp_with_the_other_neurons_at_zero(method: str, split: str, base: Base) -> None:
    made = make(base, method=method, split=split)
    assert made.base.kept is not None
    x = torch.randn(7, 64, generator=torch.Generator().manual_seed(1))
    for number, layer in enumerate(made.base.model.get_decoder().layers):
        dense, neurons = base.model.get_decoder().layers[number].mlp, made.base.kept.layers[number].neurons
        assert sorted(neurons.tolist()) == list(range(128))
        gates = dense.act_fn(dense.gate_proj(x))
        for row in range(len(x)):
            chosen = layer.mlp.chooser(x[row], gates[row][torch.from_numpy(neurons)])
            taken = neurons.reshape(4, 32)[chosen.numpy()].reshape(-1)
            hidden = torch.zeros(128)
            hidden[taken] = (gates[row] * dense.up_proj(x[row]))[taken]
            torch.testing.assert_close(layer.mlp(x[row]), dense.down_proj(hidden), rtol=1e-4, atol=1e-5)


def test_the_base_is_left_as_it_was(base: Base) -> None:
    before = logits(base.model)
    make(base)
    assert torch.equal(logits(base.model), before)
    assert not hasattr(base.model.config, CONFIG_KEY)


def test_a_router_takes_the_experts_of_the_highest_scores() -> None:
    router = Router(torch.randn(6, 8), torch.randn(6, 6), active=2)
    x = torch.randn(3, 5, 8)
    scores = torch.tanh(x @ router.first.weight.T) @ router.second.weight.T
    chosen = router(x, torch.empty(0))
    assert (chosen.sum(-1) == 2).all()
    assert (scores[chosen].view(3, 5, 2).amin(-1) >= scores.masked_fill(chosen, -torch.inf).amax(-1)).all()


def test_cats_takes_the_share_of_experts_that_was_asked_for(base: Base) -> None:
    made = make(base, method="cats", active=0.3)
    assert made.experts.active == pytest.approx([1.2, 1.2], abs=0.02)


def test_a_trained_router_captures_more_than_chance_and_not_more_than_the_best() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 16, generator=generator)
    directions = torch.randn(8, 16, generator=generator)
    targets = (x @ directions.T).relu() + 0.01
    trained = train_router(x, targets, torch.randn(8, 16, generator=generator), 2, seed=0)
    chance = captured(torch.rand(2000, 8, generator=generator), targets, 2)
    assert 0.9 * trained.best < trained.captured <= trained.best
    assert chance < 0.6 * trained.captured


@pytest.mark.parametrize("method", METHODS)
def test_bypasses_on_gate_and_up_wake_no_neuron_that_is_not_taken(method: str, base: Base) -> None:
    made = make(base, method=method)
    bypasses = {
        slot: added for slot, added in make_bypasses(made.base.model, seed=4).items() if "gate" in slot or "up" in slot
    }
    x, seen = torch.randn(9, 64), []
    with attached(made.base.model, bypasses):
        mlp: ExpertMLP = made.base.model.get_decoder().layers[0].mlp
        gates = mlp.act_fn(mlp.gate_proj(x))
        if isinstance(mlp.chooser, Threshold):
            mlp.chooser.threshold.data = mlp.chooser.scores(gates).median().reshape(1)
        chosen = mlp.chooser(x, gates)
        handle = mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        mlp(x)
        handle.remove()
    awake = seen[0].view(9, 4, 32).ne(0).any(-1)
    assert torch.equal(awake, chosen)
    assert not chosen.all()


def test_a_router_and_a_threshold_are_no_slots(base: Base) -> None:
    for method in METHODS:
        assert slot_shapes(make(base, method=method).base.model) == slot_shapes(base.model)


def test_a_size_that_does_not_divide_the_neurons_is_refused(base: Base) -> None:
    for size in (96, 128):
        with pytest.raises(ConfigError, match=f"moefy.size {size}: expected a part of the 128 neurons"):
            make(base, size=size)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"active": [2.0]}, "active: expected 2, found 1"),
        ({"active": [2.0, 5.0]}, "layer 1: expected some of the experts that 128 neurons make, found 5 of 4"),
        ({"active": [2.0, 1.5]}, "layer 1: expected some"),
        ({"size": 96}, "layer 0: expected some"),
        ({"size": 33}, "size: expected Input should be a multiple of 32"),
        ({"top": 1}, "unknown key 'top'"),
    ],
)
def test_damaged_entries_are_refused(change: dict[str, Any], says: str) -> None:
    entry = {"method": "moefication", "size": 32, "active": [2.0, 2.0], **change}
    with pytest.raises(FormatError, match=says):
        read_experts({CONFIG_KEY: entry}, [128, 128])


def test_a_threshold_is_the_quantile_of_the_gates() -> None:
    chooser = Threshold(torch.tensor([3.0]), 2)
    gates = torch.tensor([[1.0, -2.5, 1.0, 1.0, 0.0, -3.0]])
    assert chooser(torch.empty(0), gates).tolist() == [[True, False, True]]
