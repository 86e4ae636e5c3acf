"""What holds for every test: nothing is left in the user's own cache."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from regraft.storage import cache_home


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own for the session; but unpacking the real model takes long, so those are shared."""
    unpacked, own = cache_home() / "bases", tmp_path_factory.mktemp("cache")
    unpacked.mkdir(parents=True, exist_ok=True)
    (own / "bases").symlink_to(unpacked.resolve())
    before = os.environ.get("REGRAFT_CACHE")
    os.environ["REGRAFT_CACHE"] = str(own)
    yield
    if before is None:
        del os.environ["REGRAFT_CACHE"]
    else:
        os.environ["REGRAFT_CACHE"] = before
