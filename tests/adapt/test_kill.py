"""The real command line, killed with SIGKILL in the middle of its work: no output, and the next call makes it."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from regraft.bypass.directory import read_adapter
from regraft.models.load import load_base
from tests.adapt.made import Made
from tests.cli.run import regraft
from tests.processes import PATIENCE_S, regraft_process, until

# Some 90 steps; the first checkpoint comes with the third.
CONFIG = """
recover: {rank: 4, calibration_tokens: 256}
train: {tokens: 5000, batch_tokens: 64, evaluations: 40, patience: 1000, learning_rate: 0.001}
data: {max_tokens: 64}
"""


def kill_when(arguments: list[object], ready: Callable[[], bool]) -> None:
    """Run ``regraft`` in a process of its own, and kill it once ``ready``."""
    with regraft_process(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        until(lambda: ready() or process.poll() is not None, every_s=0.002)
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        process.kill()
        assert process.wait(PATIENCE_S) == -signal.SIGKILL


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_killed_compression_leaves_no_output_and_is_made_by_the_same_call(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments: list[object] = ["compress", made.base, "-o", out, "--recipe", "int4", "--no-perplexity"]
    kill_when(arguments, (tmp_path / ".out.partial").exists)
    assert files(tmp_path) == [".out.partial"]
    assert regraft(capsys, *arguments).code == 0
    assert files(tmp_path) == ["out"]
    assert load_base(out).is_compressed


def test_killed_training_leaves_no_output_and_is_taken_up_by_the_same_call(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    results = tmp_path / "results"
    out, whole = results / "out", tmp_path / "whole"

    def arguments(to: Path) -> list[object]:
        given = ["--adapter", made.lora, "--data", made.data, "--config", config]
        return ["adapt", made.small, "--teacher", made.base, "-o", to, *given]

    kill_when(arguments(out), (results / ".out.work" / "checkpoint.pt").exists)
    assert files(results) == [".out.work"]
    done = regraft(capsys, *arguments(out))
    assert done.code == 0
    assert "resuming at" in done.err
    assert files(results) == ["out"]

    uninterrupted = regraft(capsys, *arguments(whole))
    assert uninterrupted.code == 0
    assert "resuming" not in uninterrupted.err
    small = load_base(made.small)
    pairs = zip(read_adapter(out, small).parameters(), read_adapter(whole, small).parameters(), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
