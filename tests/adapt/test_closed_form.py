"""The closed forms reach the optimum that linear algebra says they have, and leave the base alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from regraft.adapt.closed_form import DAMPING, eora, low_rank, svd
from regraft.adapt.config import AdaptConfig
from regraft.adapt.student import make_student
from regraft.bypass.attach import Bypasses, attached
from regraft.bypass.directory import read_adapter
from regraft.bypass.lora import LoRA
from regraft.config import parse
from regraft.models.load import Base
from regraft.models.slots import iter_slots
from tests.adapt.made import Listener, Made

SHAPES = [(9, 5), (5, 9), (7, 7), (40, 12), (12, 40)]
Array = npt.NDArray[np.float64]


def make_error(shape: tuple[int, int]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def make_gram(width: int, tokens: int = 60) -> torch.Tensor:
    """Of inputs whose directions differ in size and hang together."""
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(tokens, width, generator=generator) * torch.logspace(-1, 1, width)
    x = x @ torch.randn(width, width, generator=generator)
    return x.T @ x


def root_of(gram: torch.Tensor) -> Array:
    """EoRA's own square root of the damped C, by its eigenvectors: C = Q Λ Qᵀ, P = Q Λ^½."""
    c = gram.double().numpy()
    c = c + DAMPING * np.diag(c).mean() * np.eye(len(c))
    values, vectors = np.linalg.eigh(c)
    root: Array = vectors * np.sqrt(values)
    return root


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_plain_form_is_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    error = make_error(shape)
    u, s, vt = torch.linalg.svd(error, full_matrices=False)
    found = low_rank(error, rank)
    torch.testing.assert_close(found.delta(), (u[:, :rank] * s[:rank]) @ vt[:rank], atol=1e-4, rtol=1e-3)
    assert (error - found.delta()).norm().item() == pytest.approx(s[rank:].norm().item(), rel=1e-4)
    assert found.rank == rank
    torch.testing.assert_close(found.down.norm(dim=1), found.up.norm(dim=0))  # the scale is shared evenly


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4])
def test_weighted_form_is_eora_s_by_eigenvectors(shape: tuple[int, int], rank: int) -> None:
    error, gram = make_error(shape), make_gram(shape[1])
    root = root_of(gram)
    u, s, vt = np.linalg.svd(error.double().numpy() @ root, full_matrices=False)
    wanted = (u[:, :rank] * s[:rank]) @ vt[:rank] @ np.linalg.inv(root)
    found = low_rank(error, rank, gram).delta().detach().double().numpy()
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    reached = np.linalg.norm((error.double().numpy() - found) @ root)
    assert reached == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-4)
    plain = low_rank(error, rank).delta().detach().double().numpy()
    assert reached < np.linalg.norm((error.double().numpy() - plain) @ root)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("more", [0, 3])
def test_full_rank_gives_the_error_back(shape: tuple[int, int], weighted: bool, more: int) -> None:
    error = make_error(shape)
    found = low_rank(error, min(shape) + more, make_gram(shape[1]) if weighted else None)
    torch.testing.assert_close(found.delta(), error, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_lost_is_nothing_to_repair(weighted: bool) -> None:
    found = low_rank(torch.zeros(6, 4), 2, make_gram(4) if weighted else None)
    assert found.delta().abs().max() == 0
    assert found.down.isfinite().all()


def test_inputs_that_never_came_are_no_failure() -> None:
    gram = make_gram(8)
    gram[2], gram[:, 2] = 0, 0
    for weights in (gram, torch.zeros(8, 8)):
        assert low_rank(make_error((6, 8)), 2, weights).delta().isfinite().all()


def test_arguments_are_left_as_they_were() -> None:
    error, gram = make_error((6, 8)), make_gram(8).double()
    copies = error.clone(), gram.clone()
    low_rank(error, 2, gram)
    assert torch.equal(error, copies[0])
    assert torch.equal(gram, copies[1])


@torch.no_grad()
def far(original: Base, small: Base, bypasses: Bypasses, ids: torch.Tensor, lora: Bypasses | None = None) -> float:
    """How far the compressed base's final states are from the original's, the same LoRA on both."""
    with attached(small.model, bypasses):
        found = small.model.get_decoder()(input_ids=ids).last_hidden_state
    with attached(original.model, lora or {}):
        return (found - original.model.get_decoder()(input_ids=ids).last_hidden_state).norm().item()


def text(seed: int = 0) -> list[torch.Tensor]:
    """Few tokens again and again: inputs that hang together."""
    return [torch.randint(3, 40, (8, 24), generator=torch.Generator().manual_seed(seed))]


def single(repairs: dict[str, LoRA]) -> dict[str, list[LoRA]]:
    return {slot: [lora] for slot, lora in repairs.items()}


def test_weighted_form_repairs_more_than_plain_svd(base: Base, small: Base) -> None:
    distance = {"none": far(base, small, {}, text()[0])}
    for name, repairs in {"svd": svd(small, base, 8), "eora": eora(small, base, 8, text(), {})}.items():
        distance[name] = far(base, small, single(repairs), text()[0])
    assert distance["eora"] < distance["svd"] < distance["none"]


def test_weighted_form_repairs_beside_the_inherited_lora(made: Made, base: Base, small: Base) -> None:
    lora = read_adapter(made.lora, base).bypasses
    assert 0 < len(lora) < len(list(iter_slots(small.model)))
    repairs = eora(small, base, 8, text(), lora)
    both = {slot: [*lora.get(slot, ()), repair] for slot, repair in repairs.items()}
    assert far(base, small, both, text()[0], lora) < 0.8 * far(base, small, lora, text()[0], lora)


def test_both_forms_cover_every_slot_and_leave_both_bases_as_they_were(made: Made, base: Base, small: Base) -> None:
    models = (base.model, small.model)
    modules = [dict(model.named_modules()) for model in models]
    weights = [{name: tensor.clone() for name, tensor in model.state_dict().items()} for model in models]
    lora = read_adapter(made.lora, base).bypasses
    factors = [factor.clone() for added in lora.values() for bypass in added for factor in bypass.parameters()]
    listener = Listener()
    found = svd(small, base, 3), eora(small, base, 3, text(), lora, listener)
    assert listener.phases == ["closed form"]
    for repairs in found:
        assert list(repairs) == [slot for slot, _ in iter_slots(small.model)]
        assert all(lora.rank == 3 and not lora.down.isnan().any() for lora in repairs.values())
    for model, before, kept in zip(models, modules, weights, strict=True):
        assert dict(model.named_modules()) == before
        assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    after = [factor for added in lora.values() for bypass in added for factor in bypass.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, factors, strict=True))


@pytest.mark.parametrize("start", ["svd", "eora"])
def test_gelu_start_computes_what_the_linear_one_of_half_its_rank_does(small: Base, base: Base, start: str) -> None:
    repairs = svd(small, base, 3) if start == "svd" else eora(small, base, 3, text(), {})
    found = {}
    for kind, rank in (("linear", 3), ("gelu", 6)):
        config = parse(AdaptConfig, {"recover": {"kind": kind, "rank": rank, "start": start}}, "test")
        student = make_student(small, None, config, repairs)
        assert {bypass.rank for bypass in student.recovery.values()} == {rank}
        with attached(small.model, student.bypasses), torch.no_grad():
            found[kind] = small.model(input_ids=text()[0]).logits
    torch.testing.assert_close(found["gelu"], found["linear"], atol=1e-4, rtol=1e-4)
