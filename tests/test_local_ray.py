"""Ray that does not start; Ray that does is tested with the replicas, and with the adapters of a folder."""

from __future__ import annotations

import pytest

from regraft.errors import RegraftError
from regraft.local_ray import started


def test_a_cluster_that_cannot_be_joined_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-address")
    with pytest.raises(RegraftError, match=r"Ray does not start: .*no-address") as refused, started(1):
        pass
    assert "\n" not in str(refused.value)
