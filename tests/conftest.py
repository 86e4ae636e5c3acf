"""What holds for every test: nothing is left in the user's own cache, and no process is left."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from regraft.storage import cache_home


def pytest_configure() -> None:
    """Told to end, a run ends as by Ctrl+C: fixtures end the processes that they have started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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
