"""Statistics of text that is read with adapters, against copies of the model that have these merged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regraft.compress.calibrate import SlotInputs
from regraft.compress.moefy.settings import Moefy
from regraft.compress.moefy.step import moefy
from regraft.compress.prune import llm_pruner
from regraft.compress.prune.activations import measure_inputs
from regraft.compress.prune.groups import find_groups, widths_of
from regraft.compress.prune.shortgpt import block_influence
from regraft.compress.prune.step import prune
from regraft.compress.reading import Part, PartsWalk
from regraft.formats.slots import layer_index
from regraft.models.layer_walk import LayerWalk
from regraft.models.load import Base
from regraft.models.slots import iter_slots, slot_paths
from tests.compress.prune.made import sequences, settings, tiny
from tests.compress.reading import LENGTHS, inputs_slowly, merged, random_lora, read_slowly, rows, two_tasks
from tests.tiny import FAMILIES


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return tiny(tmp_path / "base", layers=2)


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected.double(), rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def grams(base: Base, text: list[Part] | Tensor) -> dict[str, Tensor]:
    """Of every slot, walked as rounding walks."""
    inputs, found = SlotInputs(base, text), {}
    for layer in range(2):
        linears = {slot: linear for slot, linear in iter_slots(base.model) if layer_index(slot) == layer}
        for stage in inputs.stages(layer, linears):
            found |= inputs.grams(layer, {slot: linears[slot] for slot in stage})
        inputs.advance(layer)
    return found


def test_every_token_of_every_row_is_read_once_and_nothing_else_is() -> None:
    part = Part(rows(1))
    batches = part.batches(torch.device("cpu"))
    assert sorted(ids for batch in batches for ids in batch.tolist()) == sorted(row.ids for row in part.rows)
    assert sorted(batch.shape[1] for batch in batches) == sorted(set(LENGTHS))
    assert part.num_tokens == sum(LENGTHS) == sum(batch.numel() for batch in batches)


def test_text_without_adapters_is_read_as_one_piece() -> None:
    text = sequences(19)
    for batch, piece in zip(Part.plain(text).batches(torch.device("cpu")), text.split(8), strict=True):
        assert torch.equal(batch, piece)


@pytest.mark.parametrize("family", FAMILIES)
def test_hessians_are_those_of_the_model_with_each_adapter_on_its_rows(family: str, tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", family, layers=2)
    parts = two_tasks(base.model)
    slow = inputs_slowly(base.model, parts)
    for slot, gram in grams(base, parts).items():
        assert_near(gram, slow[slot].T @ slow[slot])


def test_adapters_move_the_hessians(base: Base) -> None:
    parts = two_tasks(base.model)
    plain = grams(base, [Part(part.rows) for part in parts])
    last = "layers.1.mlp.down_proj"
    assert (grams(base, parts)[last] - plain[last]).norm() > 0.05 * plain[last].norm()


def test_without_adapters_nothing_changes_to_the_bit(base: Base) -> None:
    text = sequences(11)
    walk = LayerWalk(base.model, text.split(8))
    expected = {}
    for layer in range(2):
        linears = {slot: linear for slot, linear in iter_slots(base.model) if layer_index(slot) == layer}
        expected |= walk.grams(layer, linears)
        walk.advance(layer)
    for slot, gram in grams(base, text).items():
        assert torch.equal(gram, expected[slot])


def test_reading_leaves_the_base_as_it_was(base: Base) -> None:
    modules, before = dict(base.model.named_modules()), {n: p.clone() for n, p in base.model.named_parameters()}
    parts, groups = two_tasks(base.model), find_groups(base.model, ["neurons"], widths_of(base.model))
    grams(base, parts)
    measure_inputs(base.model, dict(iter_slots(base.model)), parts)
    block_influence(base.model, parts)
    llm_pruner.taylor(base.model, groups, parts, order="mixed", level="element")
    assert dict(base.model.named_modules()) == modules
    assert all(torch.equal(parameter, before[name]) for name, parameter in base.model.named_parameters())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_a_pruned_base_reads_with_what_is_left_of_the_adapters(base: Base) -> None:
    parts = two_tasks(base.model)
    small, _ = prune(base, settings(ratio=0.4))
    assert small.kept is not None
    left = [part.inherited(small.kept) for part in parts]
    for part, whole in zip(left[1:], parts[1:], strict=True):
        for slot, lora in part.lora.items():
            source = small.kept.source(slot)
            delta = whole.lora[source].delta()[small.kept.rows(slot)][:, small.kept.columns(slot)]
            torch.testing.assert_close(lora.delta(), delta)
    slow = inputs_slowly(small.model, left)
    for slot, gram in grams(small, left).items():
        assert_near(gram, slow[slot].T @ slow[slot])


@pytest.mark.parametrize("order", ["first", "second"])
def test_taylor_is_by_gradients_of_the_answers_with_the_adapters(order: str, base: Base) -> None:
    parts = two_tasks(base.model)
    each: list[dict[str, Tensor]] = []
    for reader, ids, num_answer in read_slowly(base.model, parts):
        reader.requires_grad_(True)
        logits = reader(input_ids=ids).logits[0]
        loss = sum(-logits[t - 1].log_softmax(0)[ids[0, t]] for t in range(ids.shape[1] - num_answer, ids.shape[1]))
        (loss / num_answer).backward()
        each.append({slot: linear.weight.grad.double() for slot, linear in iter_slots(reader)})
        reader.zero_grad()
    assert len(each) == 9 + 2 * len(LENGTHS)
    groups = find_groups(base.model, ["neurons"], widths_of(base.model))
    found = llm_pruner.taylor(base.model, groups, parts, order=order, level="element")
    for group, scores in zip(groups, found, strict=True):
        expected = torch.zeros(group.units, dtype=torch.float64)
        for name, axis in (("gate_proj", 1), ("up_proj", 1), ("down_proj", 0)):
            slot = f"layers.{group.layer}.mlp.{name}"
            weight = dict(iter_slots(base.model))[slot].weight.double()  # the base's own: the adapters do not go
            mean = sum(one[slot] for one in each) / len(each)
            squares = sum(one[slot].square() for one in each) / len(each)
            term = mean * weight if order == "first" else 0.5 * weight.square() * squares
            expected += term.abs().sum(axis)
        assert_near(scores, expected)


def test_activations_are_those_with_the_adapters(base: Base) -> None:
    parts = two_tasks(base.model)
    slow = inputs_slowly(base.model, parts)
    for slot, seen in measure_inputs(base.model, dict(iter_slots(base.model)), parts).items():
        assert_near(seen.mean, slow[slot].mean(0))
        assert_near(seen.variance, slow[slot].var(0, correction=0))
        assert_near(seen.norm, slow[slot].norm(dim=0))


@torch.no_grad()
def test_block_influence_is_that_with_the_adapters(base: Base) -> None:
    parts = two_tasks(base.model)
    entering: list[list[Tensor]] = [[] for _ in range(3)]
    for reader, ids, _ in read_slowly(base.model, parts):
        last: list[Tensor] = []
        handle = reader.model.layers[-1].register_forward_hook(lambda _, i, out, last=last: last.append(out))
        states = reader(input_ids=ids, output_hidden_states=True).hidden_states[:2]
        handle.remove()
        for number, state in enumerate([*states, *last]):
            entering[number].append(state[0].double())
    for number, score in enumerate(block_influence(base.model, parts)):
        cosines = functional.cosine_similarity(torch.cat(entering[number]), torch.cat(entering[number + 1]), dim=-1)
        assert float(score) == pytest.approx(float(1 - cosines.mean()), abs=1e-6)


@torch.no_grad()
def test_adapters_follow_neurons_that_are_moved(base: Base) -> None:
    parts = two_tasks(base.model)
    moved = moefy(base, Moefy(active=0.5), parts).local
    walk = PartsWalk(base.model, parts)
    for layer in range(2):
        order = torch.from_numpy(moved.layers[layer].neurons)
        mlp = base.model.model.layers[layer].mlp
        expected = [merged(base.model, part.lora).model.layers[layer].mlp.gate_proj.weight[order] for part in parts]
        for linear in (mlp.gate_proj, mlp.up_proj):
            linear.weight.data = linear.weight.data[order]
        mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
        walk.move(layer, moved)
        x = torch.eye(64)
        found = walk.apply(layer, lambda part, mlp=mlp: mlp.gate_proj(part), [x] * 3)
        torch.testing.assert_close(found, torch.cat([weight.T for weight in expected]))
        walk.advance(layer)


@torch.no_grad()
def test_thresholds_of_experts_are_quantiles_over_the_tokens_with_their_adapters(tmp_path: Path) -> None:
    base = tiny(tmp_path / "base", layers=2, intermediate=128)
    parts = two_tasks(base.model)
    made = moefy(base, Moefy(method="cats", active=0.4, split="activations"), parts)
    # Each layer was cut on what the layers before it give once they are cut, so the result itself is the truth.
    left = [part.inherited(made.base.kept) for part in parts]
    slow = inputs_slowly(made.base.model, left)
    counts = [part.num_tokens for part in left]
    for number, layer in enumerate(made.base.model.model.layers):
        slot = f"layers.{number}.mlp.gate_proj"
        gates = []
        for part, x in zip(left, slow[slot].float().split(counts), strict=True):
            weight = dict(iter_slots(merged(made.base.model, part.lora)))[slot].weight
            gates.append(layer.mlp.act_fn(x @ weight.T))
        scores = torch.cat(gates).abs().unflatten(1, (4, 32)).sum(2)
        assert float(layer.mlp.chooser.threshold) == pytest.approx(float(scores.flatten().quantile(0.6)), rel=1e-3)


def test_a_part_attaches_the_slots_of_its_adapter_and_no_other(base: Base) -> None:
    lora = random_lora(base.model, 3)
    part = Part(rows(3), {slot: one for slot, one in lora.items() if "v_proj" in slot})
    paths = slot_paths(base.model)
    with part.attached(base.model):
        wrapped = {slot for slot, path in paths.items() if hasattr(base.model.get_submodule(path), "bypasses")}
    assert wrapped == {"layers.0.self_attn.v_proj", "layers.1.self_attn.v_proj"}
    assert slot_paths(base.model) == paths
