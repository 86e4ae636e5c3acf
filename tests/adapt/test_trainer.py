"""The loop: it learns, keeps the best, leaves the base alone, and resumes to the very same end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.adapt.batches import Row, make_batches, training_batches
from regraft.adapt.config import AdaptConfig
from regraft.adapt.int8_gradients import int8_gradients
from regraft.adapt.student import Student, make_student
from regraft.adapt.teacher import Targets, Teacher, teach
from regraft.adapt.trainer import Trainer, schedule
from regraft.base.load import Base, load_base
from regraft.config import parse
from regraft.errors import IncompatibleAdapterError, RegraftError
from tests.tiny import make_base

ROWS = [Row([3 + n, 20 + n % 5, 9, 30 + n % 3, 2], 2) for n in range(24)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load_base(make_base(tmp_path_factory.mktemp("base") / "base"))


def make_config(**train: Any) -> AdaptConfig:
    settings = {"tokens": 1200, "learning_rate": 0.01, "batch_tokens": 40, "evaluations": 4} | train
    return parse(
        AdaptConfig,
        {
            "recover": {"start": "zero", "rank": 2},
            "distil": {"hidden": 0, "logits": 0, "answers": 1},
            "train": settings,
        },
        "test",
    )


def make_trainer(base: Base, folder: Path, config: AdaptConfig, **more: Any) -> Trainer:
    return Trainer(base, make_student(base, None, config), config, ROWS[4:], ROWS[:4], None, folder, **more)


def factors(student: Student) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in student.named_parameters()}


def test_training_learns_and_keeps_the_best_checkpoint(base: Base, tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    trainer = make_trainer(base, tmp_path, make_config())
    state = trainer.run()
    assert state.dev[0] > state.best_dev == min(state.dev)
    assert state.tokens >= 1200
    from regraft.bypass.attach import attached

    with attached(base.model, trainer.student.bypasses):
        assert trainer.dev_score() == pytest.approx(state.best_dev, rel=1e-5)
    assert base.model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())


class Killer:
    """A progress that fails after some steps, as a kill would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def track(self, total: int, label: str) -> Iterator[Any]:
        def advance(n: int = 1, **fields: object) -> None:
            self.steps -= bool(fields)
            if self.steps == 0:
                raise KeyboardInterrupt

        yield advance


def test_killed_training_resumes_to_the_same_factors(base: Base, tmp_path: Path) -> None:
    whole = make_trainer(base, tmp_path / "whole", make_config())
    (tmp_path / "whole").mkdir()
    whole.run()
    (tmp_path / "cut").mkdir()
    killed = make_trainer(base, tmp_path / "cut", make_config(), progress=Killer(20))
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    again = Killer(10_000)
    resumed = make_trainer(base, tmp_path / "cut", make_config(), progress=again)
    resumed.run()
    assert [note for note in again.notes if note.startswith("resuming at")]
    for name, tensor in factors(whole.student).items():
        torch.testing.assert_close(factors(resumed.student)[name], tensor, atol=1e-6, rtol=1e-5)


def test_checkpoint_of_another_job_is_left_alone(base: Base, tmp_path: Path) -> None:
    make_trainer(base, tmp_path, make_config(tokens=300)).run()
    progress = Killer(10_000)
    state = make_trainer(base, tmp_path, make_config(tokens=320), progress=progress).run()
    assert progress.notes == ["found a checkpoint of another job; starting afresh"]
    assert state.tokens >= 320


def test_training_stops_when_dev_stops_falling(base: Base, tmp_path: Path) -> None:
    config = make_config(learning_rate=1e-12, tokens=4000, evaluations=20, patience=2)
    assert make_trainer(base, tmp_path, config).run().tokens < 3000


def test_loss_that_is_not_finite_is_an_error(base: Base, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, make_config())
    next(iter(trainer.student.recovery.values())).up.data.fill_(float("inf"))
    with pytest.raises(RegraftError, match=r"the loss is not finite.*learning_rate"):
        trainer.run()


def test_teacher_is_asked_once_and_says_what_it_said(base: Base, tmp_path: Path) -> None:
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = base.model.get_decoder().register_forward_hook(count)
    first = teach(Teacher(base, None), ROWS, tmp_path)
    asked = calls
    second: Targets = teach(Teacher(base, None), ROWS, tmp_path)
    handle.remove()
    assert asked == calls > 0
    for number, row in enumerate(ROWS):
        live = base.model.get_decoder()(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
        for targets in (first, second):
            torch.testing.assert_close(targets.hidden(number), live, atol=5e-3, rtol=5e-3)


def test_teacher_must_be_the_base_that_was_compressed(base: Base, tmp_path: Path) -> None:
    other = load_base(make_base(tmp_path / "other", seed=3))
    with pytest.raises(IncompatibleAdapterError, match="is not the model that"):
        Teacher(base, None).check(other)
    Teacher(base, None).check(base)


def test_int8_gradients_leave_the_loss_and_nearly_the_gradient(base: Base) -> None:
    ids = torch.tensor([row.ids for row in ROWS])
    embedded = base.model.get_input_embeddings()(ids).detach().requires_grad_(True)
    modules, found = dict(base.model.named_modules()), {}
    for enabled in (False, True):
        with int8_gradients(base.model, enabled=enabled):
            loss = base.model(inputs_embeds=embedded).logits.square().mean()
            found[enabled] = loss.item(), torch.autograd.grad(loss, embedded)[0].flatten()
    assert found[True][0] == found[False][0]
    assert torch.cosine_similarity(found[True][1], found[False][1], dim=0) > 0.99
    assert not torch.equal(found[True][1], found[False][1])
    assert dict(base.model.named_modules()) == modules


def test_every_row_is_in_an_epoch_once_within_the_budget() -> None:
    rows = [Row(list(range(3, 5 + n % 7)), 1) for n in range(30)]
    for batches in (make_batches(rows, 20), one_epoch(rows)):
        seen: list[int] = []
        for batch in batches:
            assert batch.ids.numel() <= 20
            seen += batch.rows
            for place, number in enumerate(batch.rows):
                assert batch.ids[place][batch.mask[place]].tolist() == rows[number].ids
        assert sorted(seen) == list(range(30))


def one_epoch(rows: list[Row]) -> Iterator[Any]:
    count = 0
    for batch in training_batches(rows, 20, seed=1):
        yield batch
        count += len(batch.rows)
        if count >= len(rows):
            return


def test_same_seed_gives_the_same_batches() -> None:
    one, other = training_batches(ROWS, 40, 3), training_batches(ROWS, 40, 3)
    assert [next(one).rows for _ in range(9)] == [next(other).rows for _ in range(9)]


def test_schedule_rises_then_falls() -> None:
    assert schedule(0.05, 0.05) == pytest.approx(1)
    assert schedule(0.01, 0.05) == pytest.approx(0.2)
    assert schedule(1.0, 0.05) == pytest.approx(0.05)
