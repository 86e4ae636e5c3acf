"""Ray that does not start; Ray that does is tested with the replicas, and with the adapters of a folder."""

from __future__ import annotations

import signal
import subprocess

import psutil
import pytest
import ray
from ray._private import services

from regraft.errors import RegraftError
from regraft.local_ray import started
from tests.processes import words_of


def test_a_start_that_fails_is_one_line_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**options: object) -> None:
        subprocess.Popen(["sleep", "600"])  # as the processes of a node that did not come up
        raise TimeoutError("too late\nfor many reasons")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RegraftError, match=r"Ray does not start: too late\. Its logs"), started(1):
        pass
    assert not any(words_of(each).startswith("sleep") for each in psutil.Process().children(recursive=True))


def test_a_node_that_registers_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [RuntimeError("not yet"), RuntimeError("not yet"), {"node_id": "n"}]

    def find(_: str) -> dict[str, str]:
        answer = answers.pop(0)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    monkeypatch.setattr(services, "get_node", find)
    monkeypatch.setattr(ray, "init", lambda **_: found.append(services.get_node("an address")))
    found: list[object] = []
    with started(1):
        assert found == [{"node_id": "n"}]
    assert services.get_node is find


def test_sigterm_means_afterwards_what_it_did_before(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(ray, "init", lambda **_: signal.signal(signal.SIGTERM, signal.SIG_IGN))  # Ray sets its own
    with started(1):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_cluster_that_cannot_be_joined_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "no-address")
    with pytest.raises(RegraftError, match=r"Ray does not start: .*no-address") as refused, started(1):
        pass
    assert "\n" not in str(refused.value)
