"""The loop: it learns, keeps the best, leaves the base alone, and resumes to the very same end."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from regraft.adapt.config import AdaptConfig
from regraft.adapt.student import make_student
from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.config import parse
from regraft.errors import RegraftError
from regraft.evaluate.self_text import write_text
from regraft.models.load import Base
from regraft.models.slots import iter_slots
from regraft.train.batches import Row
from regraft.train.int8_gradients import Int8GradientLinear, int8_gradients
from regraft.train.student import Student
from regraft.train.teacher import Targets, Teacher, teach
from regraft.train.trainer import CHECKPOINT, State, Trainer, schedule
from tests.adapt.made import Listener, Made, make_lora, stop_at

ROWS = [Row([3 + n, 60 + n % 5, 9, 70 + n % 5, 2], 2) for n in range(24)]  # the second token says the answer
TRAIN, DEV = ROWS[4:], ROWS[:4]
AFRESH = "found a checkpoint of another job; starting afresh"


def make_config(**train: Any) -> AdaptConfig:
    """By default: 20 rows of 5 tokens, 8 rows a step, an evaluation after every 300 of 1200 tokens."""
    settings = {"tokens": 1200, "learning_rate": 0.01, "batch_tokens": 40, "evaluations": 4} | train
    data = {
        "recover": {"start": "zero", "rank": 2},
        "distil": {"hidden": 0, "logits": 0, "answers": 1},
        "train": settings,
    }
    return parse(AdaptConfig, data, "test")


def make_trainer(base: Base, folder: Path, config: AdaptConfig, adapter: Adapter | None = None, **more: Any) -> Trainer:
    folder.mkdir(exist_ok=True)
    settings = {"train": TRAIN, "dev": DEV, "targets": None} | more
    return Trainer(base, make_student(base, adapter, config), config, folder=folder, **settings)


def factors(student: Student) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in student.named_parameters()}


def score(trainer: Trainer) -> float:
    with attached(trainer.base.model, trainer.student.bypasses):
        return trainer.dev_score()


@torch.no_grad()
def slow_dev_score(base: Base, student: Student) -> float:
    nlls = []
    with attached(base.model, student.bypasses):
        for row in DEV:
            log_p = base.model(input_ids=torch.tensor([row.ids])).logits[0].log_softmax(-1)
            nlls += [-log_p[t - 1, row.ids[t]].item() for t in range(len(row.ids) - row.num_answer, len(row.ids))]
    return sum(nlls) / len(nlls)


def test_training_learns_and_leaves_the_base_as_it_was(base: Base, tmp_path: Path) -> None:
    modules, weights = dict(base.model.named_modules()), {k: v.clone() for k, v in base.model.state_dict().items()}
    trainer = make_trainer(base, tmp_path, make_config())
    before = score(trainer)
    state = trainer.run()
    assert state.dev[0] == pytest.approx(before, rel=1e-5)
    assert state.best_dev < 0.75 * before
    assert 1200 <= state.tokens < 1200 + 40
    assert state.evaluations == len(state.dev) - 1 == 4
    assert state.seconds > 0
    assert dict(base.model.named_modules()) == modules
    assert all(torch.equal(tensor, weights[name]) for name, tensor in base.model.state_dict().items())
    assert not any(parameter.requires_grad for _, parameter in trainer.student.named_parameters())


def test_distilled_student_comes_nearer_to_its_teacher(made: Made, base: Base, small: Base, tmp_path: Path) -> None:
    adapter = read_adapter(made.lora, base)
    settings = make_config(tokens=4000, batch_tokens=200, learning_rate=0.003).model_dump()
    config = parse(AdaptConfig, settings | {"distil": {"hidden": 0.05, "logits": 1}}, "test")
    with attached(base.model, adapter.bypasses):
        texts = write_text(base.model, base.tokenizer, num_sequences=120, sequence_length=12, seed=0)
    rows = [Row(text, 11) for text in random.Random(0).sample(texts, len(texts))]
    targets = teach(Teacher(base, adapter), rows[40:], tmp_path)
    trainer = make_trainer(small, tmp_path, config, adapter, train=rows[40:], dev=rows[:40], targets=targets)
    before = far(small, trainer.student, rows[40:], targets)
    trainer.run()
    assert far(small, trainer.student, rows[40:], targets) < 0.7 * before


@torch.no_grad()
def far(base: Base, student: Student, rows: list[Row], targets: Targets) -> float:
    distances = []
    with attached(base.model, student.bypasses):
        for number, row in enumerate(rows):
            found = base.model.get_decoder()(input_ids=torch.tensor([row.ids])).last_hidden_state[0]
            distances.append((found - targets.hidden(number)).square().mean().item())
    return sum(distances)


def test_dev_score_is_that_of_the_slow_loop(base: Base, tmp_path: Path) -> None:
    trainer = make_trainer(base, tmp_path, make_config(tokens=300))
    trainer.run()
    assert score(trainer) == pytest.approx(slow_dev_score(base, trainer.student), rel=1e-5)


@pytest.mark.parametrize("learning_rate", [0.01, 0.3])
def test_student_holds_the_best_checkpoint_at_the_end(base: Base, tmp_path: Path, learning_rate: float) -> None:
    config = make_config(learning_rate=learning_rate, tokens=2000, evaluations=10, patience=99)
    trainer = make_trainer(base, tmp_path, config)
    state = trainer.run()
    assert state.best_dev == min(state.dev) < state.dev[-1] + 1e-9
    assert score(trainer) == pytest.approx(state.best_dev, rel=1e-5)
    assert state.best_tokens == pytest.approx(2000 * state.dev.index(min(state.dev)) / 10, abs=40)


def test_training_that_only_harms_gives_back_what_it_began_with(
    made: Made, base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(base, tmp_path, make_config(), read_adapter(made.lora, base))
    rising = iter(range(9))
    monkeypatch.setattr(trainer, "dev_score", lambda: float(next(rising)))
    began = factors(trainer.student)
    state = trainer.run()
    assert (state.dev, state.best_tokens) == ([0, 1, 2, 3], 0)  # stopped by train.patience
    assert all(torch.equal(tensor, began[name]) for name, tensor in factors(trainer.student).items())


def test_training_stops_when_dev_stops_falling(base: Base, tmp_path: Path) -> None:
    config = make_config(learning_rate=1e-12, tokens=4000, evaluations=20, patience=2)
    state = make_trainer(base, tmp_path, config).run()
    assert state.tokens < 3000
    last = state.dev.index(min(state.dev))
    assert len(state.dev) == last + 1 + 2


def test_budget_below_one_batch_is_one_step(base: Base, tmp_path: Path) -> None:
    state = make_trainer(base, tmp_path, make_config(tokens=1)).run()
    assert (state.steps, state.evaluations) == (1, 1)


@pytest.mark.parametrize("step", [1, 20, 29])
def test_killed_training_resumes_to_the_same_factors(base: Base, tmp_path: Path, step: int) -> None:
    whole = make_trainer(base, tmp_path / "whole", make_config())
    began = factors(whole.student)
    expected = whole.run()
    modules = dict(base.model.named_modules())
    with pytest.raises(KeyboardInterrupt):
        make_trainer(base, tmp_path / "cut", make_config(), progress=Listener(at_step=stop_at(step + 1))).run()
    assert dict(base.model.named_modules()) == modules
    again = Listener()
    resumed = make_trainer(base, tmp_path / "cut", make_config(), progress=again)
    state = resumed.run()
    assert [note for note in again.notes if note.startswith("resuming at")] == again.notes
    assert bool(again.notes) == (step > 8)
    assert (state.dev, state.tokens, state.steps) == (pytest.approx(expected.dev), expected.tokens, expected.steps)
    assert any(not torch.equal(tensor, began[name]) for name, tensor in factors(whole.student).items())
    for name, tensor in factors(whole.student).items():
        torch.testing.assert_close(factors(resumed.student)[name], tensor, atol=1e-6, rtol=0)


def test_finished_training_is_not_done_again(base: Base, tmp_path: Path) -> None:
    first = make_trainer(base, tmp_path, make_config())
    first.run()
    steps: list[int] = []
    second = make_trainer(base, tmp_path, make_config(), progress=Listener(at_step=steps.append))
    second.run()
    assert steps == [1]  # says how far it is, and that is all
    assert all(torch.equal(tensor, factors(first.student)[name]) for name, tensor in factors(second.student).items())


def test_checkpoint_of_another_job_is_left_alone(made: Made, base: Base, tmp_path: Path) -> None:
    adapter = read_adapter(made.lora, base)
    other = read_adapter(make_lora(tmp_path / "other", made.base, seed=1), base)  # of the very same shapes
    config = make_config(tokens=300)
    folder = tmp_path / "work"
    make_trainer(base, folder, config, adapter).run()
    kept = (folder / CHECKPOINT).read_bytes()
    jobs: list[tuple[AdaptConfig, Adapter | None, dict[str, Any]]] = [
        (make_config(tokens=320), adapter, {}),
        (config, other, {}),
        (config, None, {}),
        (config, adapter, {"train": TRAIN[1:]}),
        (config, adapter, {"dev": DEV[1:]}),
        (config, adapter, {"train": [Row(row.ids, 1) for row in TRAIN]}),
    ]
    for changed, acting, more in jobs:
        (folder / CHECKPOINT).write_bytes(kept)
        progress = Listener()
        state = make_trainer(base, folder, changed, acting, progress=progress, **more).run()
        assert progress.notes == [AFRESH]
        assert state.tokens >= 300
    (folder / CHECKPOINT).write_bytes(kept)
    progress = Listener()
    make_trainer(base, folder, config, adapter, progress=progress).run()
    assert progress.notes[0].startswith("resuming at")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_loss_that_is_not_finite_is_an_error(base: Base, tmp_path: Path, value: float) -> None:
    trainer = make_trainer(base, tmp_path, make_config())
    modules = dict(base.model.named_modules())
    trainer.student.recovery["layers.1.mlp.down_proj"].up.data.fill_(value)
    with pytest.raises(RegraftError) as caught:
        trainer.run()
    assert str(caught.value) == "the loss is not finite after 0% of the training. Try a smaller train.learning_rate."
    assert dict(base.model.named_modules()) == modules


def test_record_is_json_also_where_nothing_was_trained(base: Base, tmp_path: Path) -> None:
    for state in (State(), make_trainer(base, tmp_path, make_config(tokens=300)).run()):
        assert json.loads(json.dumps(state.record, allow_nan=False)) == state.record
    assert State().record["best_dev"] is None


def test_schedule_rises_then_falls() -> None:
    assert schedule(0.0, 0.05) == pytest.approx(0.05)
    assert schedule(0.01, 0.05) == pytest.approx(0.2)
    assert schedule(0.05, 0.05) == pytest.approx(1)
    assert schedule(0.525, 0.05) == pytest.approx(0.525)
    assert schedule(1.0, 0.05) == schedule(1.2, 0.05) == pytest.approx(0.05)
    assert schedule(0.0, 0.0) == pytest.approx(1)
    assert schedule(0.5, 1.0) == pytest.approx(0.5)
    shares = [schedule(n / 100, 0.05) for n in range(5, 101)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16)])
@pytest.mark.parametrize("bias", [True, False])
def test_int8_gradient_of_a_linear_is_close_and_its_product_exact(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=bias).requires_grad_(False)
    x = torch.randn(2, 7, shape[0], requires_grad=True)
    slope = torch.randn(2, 7, shape[1]) * torch.logspace(-6, 3, 7)[:, None]  # each token has its own scale
    found, wanted = Int8GradientLinear(linear)(x), linear(x)
    assert torch.equal(found, wanted)
    quick, exact = (torch.autograd.grad(y, x, slope)[0] for y in (found, wanted))
    relative = (quick - exact).norm(dim=-1) / exact.norm(dim=-1)
    assert relative.max() < 0.02
    assert not torch.equal(quick, exact)


def test_int8_gradient_of_nothing_is_nothing() -> None:
    linear = nn.Linear(8, 8, bias=False).requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    assert not torch.autograd.grad(Int8GradientLinear(linear)(x), x, torch.zeros(3, 8))[0].any()


def test_int8_gradients_leave_the_loss_and_nearly_the_gradient(base: Base) -> None:
    ids = torch.tensor([row.ids for row in ROWS])
    embedded = base.model.get_input_embeddings()(ids).detach().requires_grad_(True)
    found = {}
    for enabled in (False, True):
        with int8_gradients(base.model, enabled=enabled):
            loss = base.model(inputs_embeds=embedded).logits.square().mean()
            found[enabled] = loss.item(), torch.autograd.grad(loss, embedded)[0].flatten()
    assert found[True][0] == found[False][0]
    assert torch.cosine_similarity(found[True][1], found[False][1], dim=0) > 0.99
    assert not torch.equal(found[True][1], found[False][1])


def test_int8_linears_go_as_they_came_also_within_bypasses_and_after_an_error(made: Made, base: Base) -> None:
    with attached(base.model, read_adapter(made.lora, base).bypasses):
        modules = dict(base.model.named_modules())
        with pytest.raises(KeyboardInterrupt), int8_gradients(base.model):
            swapped = [module for module in base.model.modules() if isinstance(module, Int8GradientLinear)]
            assert len(swapped) == 14
            raise KeyboardInterrupt
        assert dict(base.model.named_modules()) == modules
        with int8_gradients(base.model, enabled=False):
            assert dict(base.model.named_modules()) == modules
    assert len(list(iter_slots(base.model))) == 14


def test_training_with_int8_gradients_learns_as_well(base: Base, tmp_path: Path) -> None:
    best = {}
    for gradients in ("float", "int8"):
        trainer = make_trainer(base, tmp_path / gradients, make_config(gradients=gradients))
        best[gradients] = trainer.run().best_dev
    assert best["int8"] == pytest.approx(best["float"], rel=0.02)
    assert best["int8"] != best["float"]
