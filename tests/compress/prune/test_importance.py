"""Each importance against the formula written out, unit by unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regraft.compress.prune import llm_pruner
from regraft.compress.prune.activations import measure_inputs
from regraft.compress.prune.endings import Ending
from regraft.compress.prune.flap import flap
from regraft.compress.prune.groups import Group, find_groups, widths_of
from regraft.compress.prune.shortgpt import block_influence
from regraft.compress.prune.wanda_sp import wanda_sp
from regraft.models.load import Base
from regraft.models.slots import iter_slots
from tests.compress.prune.made import HEAD_DIM, sequences, tiny
from tests.tiny import FAMILIES

KINDS = ["heads", "neurons", "channels", "layers"]


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    return tiny(tmp_path / "base", request.param, layers=2, intermediate=24)


def groups_of(base: Base, *kinds: str) -> list[Group]:
    return find_groups(base.model, kinds, widths_of(base.model))


def vectors(base: Base, group: Group, unit: int, tensors: dict[str, Tensor]) -> list[Tensor]:
    """The rows and columns that a unit is made of, picked by hand."""
    prefix, found = f"model.layers.{group.layer}.", []

    def add(name: str, rows: slice | None = None, columns: slice | None = None) -> None:
        matrix = tensors[f"{prefix}{name}.weight"]
        found.extend(matrix[rows] if rows is not None else matrix[:, columns].T)

    if group.kind == "neurons":
        one = slice(unit, unit + 1)
        add("mlp.gate_proj", one), add("mlp.up_proj", one), add("mlp.down_proj", columns=one)
    elif group.kind == "heads":
        queries, keys = (slice(unit * n * HEAD_DIM, (unit + 1) * n * HEAD_DIM) for n in (2, 1))
        add("self_attn.q_proj", queries), add("self_attn.o_proj", columns=queries)
        add("self_attn.k_proj", keys), add("self_attn.v_proj", keys)
    elif group.kind == "layers":
        for name, matrix in tensors.items():
            if name.startswith(prefix) and matrix.ndim == 2:
                found.extend(matrix)
    else:
        for name, matrix in tensors.items():
            if matrix.ndim == 2:
                found.append(matrix[unit] if name.endswith(("o_proj.weight", "down_proj.weight")) else matrix[:, unit])
    return found


def slowly(base: Base, groups: list[Group], tensors: dict[str, Tensor], of_vector: Any) -> list[Tensor]:
    return [
        torch.stack([sum(of_vector(v) for v in vectors(base, group, unit, tensors)) for unit in range(group.units)])
        for group in groups
    ]


def matrices(base: Base) -> dict[str, Tensor]:
    return {name: p.detach().double() for name, p in base.model.named_parameters() if p.ndim == 2}


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.double(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1, 2])
def test_magnitude(base: Base, kind: str, p: int) -> None:
    groups = groups_of(base, kind)
    expected = slowly(base, groups, matrices(base), lambda v: v.abs().pow(p).sum().pow(1 / p))
    assert_same(llm_pruner.magnitude(base.model, groups, p), expected)


def gradients_slowly(base: Base, text: Tensor) -> list[dict[str, Tensor]]:
    """Of each sequence, by autograd on a copy that is free to change."""
    model = base.model
    kept = []
    model.requires_grad_(True)
    for ids in text:
        model.zero_grad()
        logits = model(ids[None]).logits[0]
        functional.cross_entropy(logits[:-1], ids[1:]).backward()
        kept.append({name: p.grad.detach().double().clone() for name, p in model.named_parameters() if p.ndim == 2})
    model.zero_grad()
    model.requires_grad_(False)
    return kept


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_taylor(base: Base, kind: str) -> None:
    check_taylor(base, kind, "mixed", "element")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", ["element", "vector"])
@pytest.mark.parametrize("order", ["first", "second", "mixed"])
def test_every_taylor(kind: str, order: str, level: str, tmp_path: Path) -> None:
    check_taylor(tiny(tmp_path / "base", layers=2, intermediate=24), kind, order, level)


def check_taylor(base: Base, kind: str, order: str, level: str) -> None:
    text = sequences(3, 12)
    each, weights, groups = gradients_slowly(base, text), matrices(base), groups_of(base, kind)
    terms = {}
    for name, w in weights.items():
        g = sum(gradient[name] for gradient in each) / len(each)
        fisher = sum(gradient[name] ** 2 for gradient in each) / len(each)
        terms[name] = {"first": g * w, "second": 0.5 * w * w * fisher, "mixed": g * w - 0.5 * w * w * fisher}[order]
    reduce = (lambda v: v.abs().sum()) if level == "element" else (lambda v: v.sum().abs())
    found = llm_pruner.taylor(base.model, groups, text, order=order, level=level)
    for one, other in zip(found, slowly(base, groups, terms, reduce), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.max()))
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_first_order_is_what_the_loss_loses(tmp_path: Path) -> None:
    # A small unit that goes changes the loss by about Σ g w, the vector-wise term without its absolute value.
    base = tiny(tmp_path / "base", layers=2, intermediate=24)
    for linear in (base.model.model.layers[1].mlp.down_proj,):
        linear.weight.data[:, 5] *= 0.02
    text, name = sequences(3, 12), "model.layers.1.mlp.down_proj.weight"
    slope = sum(float((g[name] * matrices(base)[name])[:, 5].sum()) for g in gradients_slowly(base, text)) / 3

    def loss() -> float:
        with torch.no_grad():
            each = [functional.cross_entropy(base.model(ids[None]).logits[0, :-1], ids[1:]) for ids in text]
        return float(torch.stack(each).double().mean())

    before = loss()
    base.model.model.layers[1].mlp.down_proj.weight.data[:, 5] = 0
    assert loss() - before == pytest.approx(-slope, rel=0.2)


def columns_slowly(base: Base, slot: str, text: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of a slot, and all that enters it, ``[tokens, in]``."""
    linear, seen = dict(iter_slots(base.model))[slot], []
    handle = linear.register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, -2).double()))
    with torch.no_grad():
        for ids in text:
            base.model(ids[None])
    handle.remove()
    return linear.weight.detach().double(), torch.cat(seen)


@pytest.mark.parametrize("method", ["wanda-sp", "flap"])
def test_activations(base: Base, method: str) -> None:
    text, groups = sequences(11, 12), groups_of(base, "heads", "neurons")
    linears = dict(iter_slots(base.model))
    endings = [Ending.of(group, linears) for group in groups]
    seen = measure_inputs(base.model, {ending.slot: ending.linear for ending in endings}, text)
    inputs = [seen[ending.slot] for ending in endings]
    found = wanda_sp(endings, inputs) if method == "wanda-sp" else flap(endings, inputs)
    for group, scores in zip(groups, found, strict=True):
        name, width = ("self_attn.o_proj", 2 * HEAD_DIM) if group.kind == "heads" else ("mlp.down_proj", 1)
        weight, x = columns_slowly(base, f"layers.{group.layer}.{name}", text)
        if method == "wanda-sp":
            per_column = [float(sum(abs(w) for w in weight[:, j]) * x[:, j].norm()) for j in range(weight.shape[1])]
        else:
            per_column = [
                float(x[:, j].var(correction=0) * weight[:, j].square().sum()) for j in range(weight.shape[1])
            ]
        expected = torch.tensor(per_column, dtype=torch.float64).view(-1, width).sum(1)
        if method == "flap":
            expected = (expected - expected.mean()) / expected.std()
        torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-3)


def test_block_influence(base: Base) -> None:
    text = sequences(11, 12)
    states: list[list[Tensor]] = [[] for _ in range(3)]
    layers = base.model.model.layers
    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, n=n: states[n].append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for n, layer in enumerate(layers)
    ]
    handles.append(layers[-1].register_forward_hook(lambda _, i, out: states[2].append(out)))
    with torch.no_grad():
        base.model(text)
    for handle in handles:
        handle.remove()
    for number, score in enumerate(block_influence(base.model, text)):
        x, y = (torch.cat(states[n]).flatten(0, 1).double() for n in (number, number + 1))
        cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True)]
        assert float(score) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)
