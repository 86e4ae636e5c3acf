"""The closed forms reach the optimum that linear algebra says they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from regraft.adapt.closed_form import DAMPING, eora, low_rank, svd
from regraft.base.load import Base, load_base
from regraft.base.slots import iter_slots
from regraft.bypass.attach import attached
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from tests.tiny import make_base

SHAPES = [(9, 5), (5, 9), (7, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 3])
def test_plain_form_is_the_truncated_svd(shape: tuple[int, int], rank: int) -> None:
    error = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left = torch.linalg.svdvals(error)[rank:].norm()
    assert (error - low_rank(error, rank).delta()).norm().item() == pytest.approx(left.item(), rel=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_weighted_form_is_eora_s_by_eigenvectors(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    error = torch.randn(shape, generator=generator)
    x = torch.randn(40, shape[1], generator=generator) * torch.logspace(-1, 1, shape[1])
    gram = (x.T @ x).double().numpy()
    gram = gram + DAMPING * np.diag(gram).mean() * np.eye(len(gram))
    values, vectors = np.linalg.eigh(gram)
    root = vectors * np.sqrt(values)
    u, s, vt = np.linalg.svd(error.double().numpy() @ root)
    wanted = (u[:, :2] * s[:2]) @ vt[:2] @ np.linalg.inv(root)
    found = low_rank(error, 2, x.T @ x).delta().detach().double().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_full_rank_gives_the_error_back() -> None:
    error = torch.randn(4, 6)
    torch.testing.assert_close(low_rank(error, 4).delta(), error, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Base]:
    root: Path = tmp_path_factory.mktemp("pair")
    recipe = parse(Recipe, {"quantize": {"method": "rtn", "bits": 3, "group_size": 64}}, "test")
    compress(make_base(root / "base"), root / "small", recipe)
    return load_base(root / "base"), load_base(root / "small")


def test_weighted_form_repairs_more_than_plain_svd_on_its_own_text(pair: tuple[Base, Base]) -> None:
    original, small = pair
    text = [torch.randint(3, 40, (8, 24), generator=torch.Generator().manual_seed(0))]
    before = {slot: linear for slot, linear in iter_slots(small.model)}
    repairs = {"svd": svd(small, original, 8), "eora": eora(small, original, 8, text, {})}
    assert dict(iter_slots(small.model)) == before
    distance = {"none": far(original, small, {}, text[0])}
    for name, repair in repairs.items():
        distance[name] = far(original, small, {slot: [lora] for slot, lora in repair.items()}, text[0])
    assert distance["eora"] < distance["svd"] < distance["none"]


@torch.no_grad()
def far(original: Base, small: Base, bypasses: dict, ids: torch.Tensor) -> float:  # type: ignore[type-arg]
    with attached(small.model, bypasses):
        found = small.model.get_decoder()(input_ids=ids).last_hidden_state
    return (found - original.model.get_decoder()(input_ids=ids).last_hidden_state).norm().item()
