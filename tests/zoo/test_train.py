"""Training on a tiny model: what a kill leaves is gone on from, and ends where an unbroken run ends."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from regraft.bypass.directory import read_adapter
from regraft.evaluate.dataset import encode, read_examples
from regraft.models.load import load_base
from tests.tiny import make_base, make_model, make_tokenizer
from zoo.catalogue import TASKS, Lora
from zoo.prepare import prepare
from zoo.train import Run, make_run, parse, seed_of, train
from zoo.training import AnswerCollator, LengthSampler, find_checkpoint, num_flat, reason_to_stop

LORA = Lora(r=4, alpha=8, lr=1e-2)
NUM_TRAIN = 48  # so few that dev loss is soon flat


def make_tiny() -> tuple[Any, Any]:
    return make_model(), make_tokenizer()


def tiny_run(folder: Path, **changes: Any) -> Run:
    """One of few rows; the data are prepared once for all that share ``folder``'s parent."""
    TASKS["dates"] = dataclasses.replace(TASKS["dates"], max_train=NUM_TRAIN)
    run = Run("dates", LORA, 1, 2, folder.parent / "data", folder / "adapter", folder / "work", 3600)
    return dataclasses.replace(run, **changes)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zoo")


@pytest.fixture(scope="module")
def whole(shared: Path) -> tuple[Path, dict[str, Any]]:
    """An adapter trained without a break."""
    run = tiny_run(shared / "whole")
    return run.out, train(run, make_tiny)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.zoo.test_train import make_tiny
from tests.zoo.test_train import tiny_run
from zoo.train import train
from zoo.training import StopWhenFlat

def die(self, args, state, control, **_):
    if state.global_step == 30:
        os.kill(os.getpid(), signal.SIGKILL)

StopWhenFlat.on_evaluate = die
train(tiny_run(Path(sys.argv[1])), make_tiny)
"""


def test_a_killed_run_ends_where_an_unbroken_one_ends(shared: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    run = tiny_run(shared / "killed")
    done = subprocess.run([sys.executable, "-c", KILLED, str(shared / "killed")], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Path(find_checkpoint(run.work) or "").name == "checkpoint-20"
    (run.work / "checkpoint-30").mkdir()  # as a kill in the midst of writing leaves it
    (run.work / "checkpoint-30" / "trainer_state.json").write_text('{"global_step": 30, "log_hi')
    record = train(run, make_tiny)
    assert not run.work.exists()
    assert record["dev_losses"] == whole[1]["dev_losses"]
    first, second = weights(whole[0]), weights(run.out)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_record_says_how_it_went(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, record = whole
    assert json.loads((folder / "training.json").read_text()) == record
    assert record["stopped"] == "flat"
    assert record["dev_loss_after"] < 0.8 * record["dev_loss_before"]
    best = min(record["dev_losses"], key=lambda entry: entry["loss"])
    assert (record["best_step"], round(record["dev_loss_after"], 4)) == (best["step"], best["loss"])
    assert record["rows"] == {"train": NUM_TRAIN, "dev": 200, "test": 240}
    assert record["tokens"] > 0 and record["seconds"] >= 0


def test_the_best_checkpoint_is_what_is_saved_in_half_precision(
    shared: Path, whole: tuple[Path, dict[str, Any]]
) -> None:
    base = load_base(make_base(shared / "base"))
    adapter = read_adapter(whole[0], base)
    assert {bypass.rank for bypass in adapter} == {LORA.r}
    assert all(tensor.dtype == torch.float16 for tensor in weights(whole[0]).values())
    assert json.loads((whole[0] / "adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2-135m"


def test_checkpoints_of_other_settings_are_not_gone_on_from(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = shared / "other" / "work"
    (work / "checkpoint-20").mkdir(parents=True)
    (work / "settings.json").write_text("{}")
    train(tiny_run(shared / "other", max_seconds=0.0), make_tiny)
    assert "begins anew" in capsys.readouterr().out


def test_no_time_stops_at_the_first_evaluation_and_says_so(shared: Path) -> None:
    record = train(tiny_run(shared / "short", max_seconds=0.0), make_tiny)
    assert (record["stopped"], record["steps"]) == ("time", 1)


def test_each_task_has_its_own_seeds_and_the_family_one_for_its_beginning() -> None:
    args = parse([])
    own = [make_run(task, args, shared=False) for task in TASKS]
    seeds = [seed for run in own for seed in (run.init_seed, run.order_seed)]
    assert len(set(seeds)) == len(seeds)
    family = [make_run(task, args, shared=True) for task in ("home", "names")]
    assert family[0].init_seed == family[1].init_seed == seed_of("family")
    assert family[0].order_seed != family[1].order_seed and family[0].lora == family[1].lora


def test_an_unknown_task_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["nosuch"])
    assert "unknown task 'nosuch'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(["spam", "--shared"])


@pytest.mark.parametrize(
    ("losses", "flat"),
    [
        ([], 0),
        ([2.0], 0),
        ([2.0, 1.0, 0.5], 0),
        ([2.0, 1.0, 1.1, 0.999], 2),  # a tenth of a percent is flat
        ([2.0, 1.0, 1.1, 0.5], 0),
        ([2.0, 1.0, 0.995, 0.991, 0.986], 3),
    ],
)
def test_flat_evaluations_are_counted(losses: list[float], flat: int) -> None:
    assert num_flat(losses) == flat


def test_a_flat_dev_loss_comes_before_the_time() -> None:
    history = [{"eval_loss": 1.0, "seconds": 10.0 * n} for n in range(1, 5)]
    assert reason_to_stop(history, 30.0) == "flat"
    assert reason_to_stop(history[:3], 30.0) == "time"
    assert reason_to_stop(history[:3], 31.0) is None


def test_the_collated_loss_is_that_of_each_answer_alone(shared: Path) -> None:
    model, tokenizer = make_tiny()
    folder = prepare("dates", shared / "data")
    encoded = [encode(example, tokenizer) for example in read_examples(folder / "dev.jsonl")[:5]]
    rows = [{"input_ids": e.prompt_ids + e.answer_ids, "num_answer": len(e.answer_ids)} for e in encoded]
    with torch.no_grad():
        together = model(**AnswerCollator(tokenizer.eos_token_id)(rows)).loss
        total = torch.tensor(0.0)
        for one in encoded:
            logits = model(torch.tensor([one.prompt_ids + one.answer_ids])).logits[0, len(one.prompt_ids) - 1 : -1]
            total += torch.nn.functional.cross_entropy(logits, torch.tensor(one.answer_ids), reduction="sum")
    assert together == pytest.approx(total.item() / sum(len(one.answer_ids) for one in encoded), rel=1e-5)


def test_each_epoch_has_every_row_once_in_batches_of_like_length() -> None:
    lengths = [(number * 37) % 100 for number in range(1001)]
    sampler = LengthSampler(lengths, 16, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(1001)) and first == list(sampler)
    spread = [
        max(batch) - min(batch) for n in range(0, 992, 16) if (batch := [lengths[row] for row in first[n : n + 16]])
    ]
    assert sum(spread) / len(spread) < 10  # of 100, where rows come as they are
    sampler.set_epoch(1)
    assert list(sampler) != first
