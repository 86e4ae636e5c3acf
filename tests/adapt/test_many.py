"""A folder of adapters: each is adapted as if alone, one that fails stops no other, and what is there stays."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from regraft.adapt.config import AdaptConfig
from regraft.adapt.job import Job
from regraft.adapt.many import Outcome, jobs_of, run_all
from regraft.adapt.run import run
from regraft.config import load_yaml
from regraft.errors import UsageError
from tests.adapt.made import Made, make_lora, write_rows
from tests.cli.run import regraft
from tests.processes import words_of

CONFIG = """
recover: {rank: 4, calibration_tokens: 128}
train: {tokens: 300, batch_tokens: 64, evaluations: 1}
data: {max_examples: 12, dev_examples: 4, test_examples: 4, max_tokens: 64}
"""


@pytest.fixture
def folder(made: Made, tmp_path: Path) -> Path:
    """``adapters`` with three of them, one broken, and ``rows`` for each, one in parts."""
    for number, name in enumerate(("ants", "bees", "cats")):
        make_lora(tmp_path / "adapters" / name, made.base, seed=number)
    (tmp_path / "adapters" / "bees" / "adapter_model.safetensors").write_bytes(b"no tensors")
    (tmp_path / "adapters" / "notes").mkdir()
    (tmp_path / "rows" / "cats").mkdir(parents=True)
    for start, name in enumerate(("ants.jsonl", "bees.jsonl", "cats/train.jsonl", "cats/test.jsonl")):
        write_rows(tmp_path / "rows" / name, 30, 100 * start)
    return tmp_path


@pytest.fixture
def template(made: Made, tmp_path: Path) -> Job:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return Job(compressed=str(made.small), teacher=str(made.base), config=load_yaml(AdaptConfig, path))


def by_name(outcomes: Iterator[Outcome]) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in outcomes}


def sizes(folder: Path) -> dict[str, int]:
    """Of what is not about times."""
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.suffix == ".safetensors"}


def test_jobs_are_those_of_the_folders_adapters(folder: Path, template: Job) -> None:
    jobs = jobs_of(folder / "adapters", template, folder / "rows")
    assert sorted(jobs) == ["ants", "bees", "cats"]
    assert jobs["ants"].data == folder / "rows" / "ants.jsonl" and jobs["ants"].test is None
    parts = (jobs["cats"].data, jobs["cats"].dev, jobs["cats"].test)
    assert parts == (folder / "rows" / "cats" / "train.jsonl", None, folder / "rows" / "cats" / "test.jsonl")
    assert jobs_of(folder / "adapters", template, None)["ants"].data is None


def test_what_is_missing_is_said_before_anything_runs(folder: Path, template: Job) -> None:
    (folder / "rows" / "ants.jsonl").unlink()
    with pytest.raises(UsageError, match="no rows for ants"):
        jobs_of(folder / "adapters", template, folder / "rows")
    with pytest.raises(UsageError, match="has no adapters"):
        jobs_of(folder / "rows", template, None)
    with pytest.raises(UsageError, match="is no directory"):
        jobs_of(folder / "none", template, None)
    jobs = jobs_of(folder / "adapters", template, None)
    with pytest.raises(UsageError, match="holds an input"):
        list(run_all(jobs, folder / "adapters"))


@pytest.mark.parametrize("workers", [1, 2])
def test_each_is_as_it_would_be_alone(folder: Path, template: Job, workers: int) -> None:
    jobs = jobs_of(folder / "adapters", template, folder / "rows")
    found = by_name(run_all(jobs, folder / "out", workers=workers))
    assert found["bees"].error and "adapter_model.safetensors" in found["bees"].error
    for name in ("ants", "cats"):
        alone = run(jobs[name], folder / "alone" / name)
        card = found[name].card
        assert card is not None and card.adapted.score == alone.adapted.score
        assert sizes(folder / "out" / name) == sizes(folder / "alone" / name)
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["ants", "cats"]
    again = by_name(run_all({"ants": jobs["ants"]}, folder / "out", workers=workers))
    assert again["ants"] == Outcome("ants")


def test_a_task_that_is_killed_is_done_by_another(folder: Path, template: Job) -> None:
    jobs = jobs_of(folder / "adapters", template, folder / "rows")
    del jobs["bees"]
    killed: list[int] = []
    has_ended = threading.Event()

    def kill() -> None:
        while not killed and not has_ended.wait(0.05):
            for process in psutil.Process().children(recursive=True):  # of this Ray, and of no other
                if words_of(process).startswith("ray::_in_task") and not killed:
                    killed.append(process.pid)
                    process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = by_name(run_all(jobs, folder / "out", workers=2))
    finally:
        has_ended.set()
        thread.join()
    assert killed and all(outcome.card for outcome in found.values()), found


def test_the_command_line_says_what_failed(
    made: Made, folder: Path, template: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[object] = [
        "adapt",
        made.small,
        "--teacher",
        made.base,
        "--all",
        folder / "adapters",
        "--data",
        folder / "rows",
    ]
    words += ["-o", folder / "out", "--config", folder / "config.yaml", "--json"]
    done = regraft(capsys, *words)
    assert done.code == 1 and "1 of 3 adapters failed: bees" in done.err
    rows = {row["adapter"]: row for row in json.loads(done.out)}
    assert rows["bees"]["error"] and rows["ants"]["card"]["adapted"] and rows["cats"]["error"] is None
    done = regraft(capsys, *words, "--adapter", made.lora)
    assert done.code == 2 and "--all" in done.err
