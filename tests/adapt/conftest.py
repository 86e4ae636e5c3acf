"""One tiny base, compressed form, LoRA and data for all tests of adapting."""

from __future__ import annotations

import pytest

from regraft.models.load import Base, load_base
from tests.adapt.made import Made, make_all


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_all(tmp_path_factory.mktemp("made"))


@pytest.fixture
def base(made: Made) -> Base:
    return load_base(made.base)


@pytest.fixture
def small(made: Made) -> Base:
    return load_base(made.small)
