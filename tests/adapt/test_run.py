"""From an adapter and a compressed base to a directory that is whole, true and loadable; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

import regraft
from regraft.adapt import run as module
from regraft.adapt.config import AdaptConfig
from regraft.adapt.job import Job
from regraft.adapt.run import run
from regraft.bypass.attach import attached
from regraft.bypass.directory import read_adapter
from regraft.compress.recipe import Recipe
from regraft.compress.run import compress
from regraft.config import parse
from regraft.errors import DataError, FormatError, RegraftError, UsageError
from regraft.evaluate.dataset import data_hash, read_examples
from regraft.evaluate.engine_answers import EngineAnswers
from regraft.evaluate.report_card import read_report_card
from regraft.models.load import Base, load_base
from regraft.storage import file_sha256
from regraft.train.teacher import Teacher
from tests.adapt.made import Listener, Made, make_lora, stop_at, write_rows
from tests.tiny import make_base

IDS = torch.arange(3, 43).view(2, 20)
REPORTS = ["regraft.json", "report_card.html", "report_card.json"]
PEFT_FILES = ["adapter_config.json", "adapter_model.safetensors"]


def make_config(**sections: Any) -> AdaptConfig:
    data: dict[str, Any] = {
        "recover": {"rank": 4, "calibration_tokens": 200},
        "train": {"tokens": 600, "batch_tokens": 64, "evaluations": 2, "learning_rate": 0.003},
        "data": {"max_examples": 20, "dev_examples": 4, "test_examples": 4, "max_tokens": 64},
    }
    for section, values in sections.items():
        data[section] = values if not isinstance(values, dict) else data.get(section, {}) | values
    return parse(AdaptConfig, data, "test")


def make_job(made: Made, *, lora: bool = True, config: AdaptConfig | None = None, **more: Any) -> Job:
    where = {"compressed": str(made.small), "teacher": str(made.base), "adapter": str(made.lora) if lora else None}
    return Job(**{**where, "data": made.data, "config": config or make_config(), **more})


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@torch.no_grad()
def logits(base: Base, folder: Path | None) -> torch.Tensor:
    with attached(base.model, read_adapter(folder, base).bypasses if folder else {}):
        found: torch.Tensor = base.model(input_ids=IDS).logits
    return found


def record_of(folder: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    data: dict[str, Any] = json.loads((folder / "regraft.json").read_text(), parse_constant=refuse)
    json.loads((folder / "report_card.json").read_text(), parse_constant=refuse)
    return data


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results" / "out"


@pytest.mark.parametrize("kind", ["linear", "gelu", "none"])
def test_adapter_comes_out_whole_and_on_record(made: Made, base: Base, small: Base, out: Path, kind: str) -> None:
    config = make_config(
        recover={"kind": kind} if kind != "none" else {"kind": "none", "rank": 8, "calibration_tokens": 4096}
    )
    progress = Listener()
    card = run(make_job(made, config=config), out, progress=progress)
    assert files(out.parent) == ["out"]
    assert files(out) == sorted([*REPORTS, *PEFT_FILES, *(["recovery.safetensors"] if kind == "gelu" else [])])
    assert ("closed form" in progress.phases) == (kind != "none")

    original, adapted, record = read_adapter(made.lora, base), read_adapter(out, small), record_of(out)
    assert record["parent"] == {"name": "lora", "sha256": original.sha256}
    assert record["shared"] is None
    assert record["recovery"] == kind
    assert record["base_fingerprint"] == small.fingerprint
    assert record["teacher_fingerprint"] == base.fingerprint
    assert (record["base_name"], record["regraft_version"], record["seed"]) == ("small", regraft.__version__, 0)
    assert record["settings"] == config.model_dump()
    assert record["data"]["source"] == "data.jsonl"
    assert record["data"]["dev"]["rows"] == record["data"]["test"]["rows"] == 4
    assert 600 <= record["training"]["tokens"] < 664
    assert len(record["training"]["dev"]) == 3
    assert len(record["recovery_scales"]) == (14 if kind == "gelu" else 0)
    ranks = {slot: lora.rank for slot, lora in adapted.of("lora").items()}
    covered = dict.fromkeys(original.of("lora"), 2)
    assert ranks == (dict.fromkeys([s for s in ranks], 4) | dict.fromkeys(covered, 6) if kind == "linear" else covered)
    assert len(ranks) == (14 if kind == "linear" else 2)

    assert read_report_card(out) == card
    assert card.answers == "engine"
    assert card.baseline is not None and set(card.baseline.scores) == {"zero_shot", "five_shot", "majority"}
    assert (card.n, card.metric, card.adapter, card.base) == (4, "exact", "out", "small")
    assert card.teacher.kl == 0
    assert card.plugged_in.kl and card.adapted.kl
    assert card.teacher.bytes == card.plugged_in.bytes == (made.lora / PEFT_FILES[1]).stat().st_size
    assert card.adapted.bytes == sum(path.stat().st_size for path in out.glob("*.safetensors"))
    assert card.settings["training"] == record["training"]
    assert "<html" in (out / "report_card.html").read_text()


def test_adapted_arm_comes_nearer_to_the_teacher(made: Made, out: Path) -> None:
    card = run(make_job(made, config=make_config(recover={"rank": 16}, train={"tokens": 0})), out)
    assert card.plugged_in.kl and card.adapted.kl
    assert card.adapted.kl < 0.7 * card.plugged_in.kl


def test_peft_loads_the_linear_result_and_computes_the_same(made: Made, small: Base, out: Path) -> None:
    run(make_job(made), out)
    ours = logits(small, out)
    model = PeftModel.from_pretrained(load_base(made.small).model, out).eval()
    with torch.no_grad():
        theirs = model(input_ids=IDS).logits
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)
    assert (ours - logits(small, None)).abs().max() > 0.1


def test_peft_loads_what_is_linear_of_a_gelu_result(made: Made, small: Base, out: Path) -> None:
    run(make_job(made, config=make_config(recover={"kind": "gelu"})), out)
    adapted = read_adapter(out, small)
    model = PeftModel.from_pretrained(load_base(made.small).model, out).eval()
    with attached(small.model, {slot: [lora] for slot, lora in adapted.of("lora").items()}), torch.no_grad():
        ours = small.model(input_ids=IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits, ours, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "gelu"])
@pytest.mark.parametrize("start", ["svd", "eora"])
def test_closed_form_alone_is_a_result(made: Made, small: Base, out: Path, kind: str, start: str) -> None:
    recover = {"kind": kind, "start": start} | ({"calibration_tokens": 4096} if start == "svd" else {})
    progress = Listener()
    run(make_job(made, config=make_config(recover=recover, train={"tokens": 0})), out, progress=progress)
    assert "adapt" not in progress.phases
    assert "train.tokens is 0: the other settings of train and distil are not looked at" in progress.notes
    training = record_of(out)["training"]
    assert (training["tokens"], training["steps"], training["best_dev"], training["loss"]) == (0, 0, None, None)
    assert not torch.equal(logits(small, out), logits(small, made.lora))


def test_two_runs_of_the_same_seed_give_the_same_adapter(made: Made, small: Base, tmp_path: Path) -> None:
    outs = [tmp_path / name for name in ("one", "same", "other")]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        run(make_job(made, config=make_config(seed=seed)), out)
    one, same, other = (read_adapter(out, small).digest() for out in outs)
    assert one == same != other


@pytest.mark.parametrize("kind", ["linear", "gelu"])
def test_shared_recovery_is_trained_once_and_used_by_an_adapter(
    made: Made, small: Base, tmp_path: Path, kind: str
) -> None:
    shared, out = tmp_path / "shared", tmp_path / "out"
    run(make_job(made, lora=False, config=make_config(recover={"kind": kind})), shared)
    record = record_of(shared)
    assert (record["parent"], record["shared"], record["recovery"]) == (None, None, kind)
    assert read_report_card(shared).no_lift == "there is no adapter, so the teacher is the baseline"
    assert files(shared) == sorted([*REPORTS, *(["recovery.safetensors"] if kind == "gelu" else PEFT_FILES)])

    plain = make_config(recover={"rank": 8, "calibration_tokens": 4096})  # as if not given
    progress = Listener()
    run(make_job(made, config=plain, shared=shared), out, progress=progress)
    record = record_of(out)
    weights = "recovery.safetensors" if kind == "gelu" else "adapter_model.safetensors"
    assert record["shared"]["name"] == "shared"
    assert record["shared"]["sha256"] == read_adapter(shared, small).sha256 != ""
    assert read_adapter(shared, small).sha256 == file_sha256(shared / weights)
    assert record["parent"]["name"] == "lora"
    assert record["recovery"] == record["settings"]["recover"]["kind"] == kind
    assert "closed form" not in progress.phases
    assert (f"the shared recovery is {kind}, so this adapter's is" in progress.notes) == (kind == "gelu")

    # Without training it is the existing adapter beside the shared recovery.
    untrained = tmp_path / "untrained"
    config = make_config(recover={"rank": 8, "calibration_tokens": 4096}, train={"tokens": 0})
    run(make_job(made, config=config, shared=shared), untrained)
    lora, recovery = read_adapter(made.lora, small).bypasses, read_adapter(shared, small).bypasses
    both = {slot: [*lora.get(slot, ()), *added] for slot, added in recovery.items()}
    with attached(small.model, both), torch.no_grad():
        expected = small.model(input_ids=IDS).logits
    torch.testing.assert_close(logits(small, untrained), expected, atol=5e-3, rtol=0)


def test_shared_recovery_can_be_trained_on(made: Made, small: Base, tmp_path: Path) -> None:
    shared, out = tmp_path / "shared", tmp_path / "out"
    run(make_job(made, lora=False, config=make_config(train={"tokens": 0})), shared)
    plain = make_config(recover={"rank": 8, "calibration_tokens": 4096})
    run(make_job(made, lora=False, config=plain, shared=shared), out)
    assert record_of(out)["shared"]["name"] == "shared"
    assert not torch.equal(logits(small, out), logits(small, shared))


def test_prompts_without_answers_will_do(
    made: Made, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.adapt.material.ANSWER_TOKENS", 6)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"jumps over {n}\n" for n in range(12)))
    card = run(make_job(made, data=None, prompts=prompts, metric="rougeL"), out)
    assert card.teacher.score == 1
    assert card.baseline is not None and len(card.baseline.scores) == 3  # the teacher's answers are train rows
    assert record_of(out)["data"]["answers"] == "written by the teacher"
    assert files(out.parent) == ["out"]


def test_nothing_at_all_will_do(made: Made, out: Path) -> None:
    card = run(make_job(made, data=None), out)
    assert (card.metric, card.teacher.score) == ("rougeL", 1)
    assert card.baseline is not None and list(card.baseline.scores) == ["zero_shot"]
    assert card.baseline.notes["five_shot"] == "not known: there are no train rows of prompt and answer"
    assert record_of(out)["data"] == {"source": "texts written by the teacher", "rows": 28, "tokens_each": 64}


def test_the_engine_answers_for_each_arm_and_the_base(made: Made, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, own = [], EngineAnswers.answer

    def listen(self: EngineAnswers, encoded: Any, adapter: Path | None = None, **options: Any) -> list[str]:
        asked.append((self.name, adapter and adapter.name, len(encoded), options["max_new_tokens"]))
        return own(self, encoded, adapter, **options)

    monkeypatch.setattr(EngineAnswers, "answer", listen)
    card = run(make_job(made, config=make_config(train={"tokens": 0})), out)
    assert [who[:2] for who in asked[:4]] == [("base", "lora"), ("base", None), ("base", None), ("small", "lora")]
    assert asked[4][0] == "small" and asked[4][1] not in (None, "lora")
    assert {who[2] for who in asked} == {card.n} == {4}


def test_torch_answers_for_a_base_that_the_engine_does_not_run(made: Made, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "relu"}))
    recipe = parse(Recipe, {"steps": [{"quantize": {"method": "rtn", "bits": 3, "group_size": 32}}]}, "test")
    compress(base, tmp_path / "small", recipe)
    lora, progress = make_lora(tmp_path / "lora", base), Listener()
    job = make_job(made, compressed=str(tmp_path / "small"), teacher=str(base), adapter=str(lora))
    card = run(replace(job, config=make_config(train={"tokens": 0})), tmp_path / "out", progress=progress)
    assert card.answers == "torch"
    assert [note for note in progress.notes if note.startswith("torch answers the test rows, as the engine does not")]


def test_json_answers_are_scored_free_and_held_to_the_schema(made: Made, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [{"prompt": f"the {n}", "completion": json.dumps({"a": n % 2 == 0})} for n in range(20)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    (folder / "schema.json").write_text(json.dumps(schema | {"additionalProperties": False}))
    job = make_job(made, data=folder / "train.jsonl", metric="json-fields", config=make_config(train={"tokens": 0}))
    card = run(job, out)
    assert card.constrained is not None and card.constrained.baseline is not None
    assert card.teacher.score == 0
    assert "five_shot" in card.constrained.baseline.scores
    assert read_report_card(out) == card


def test_own_files_are_taken_for_dev_and_test(made: Made, out: Path, tmp_path: Path) -> None:
    dev, test = write_rows(tmp_path / "dev.jsonl", 3, 100), write_rows(tmp_path / "test.jsonl", 4, 200)
    card = run(make_job(made, dev=dev, test=test), out)
    assert record_of(out)["data"]["dev"] == {"rows": 3, "sha256": data_hash(read_examples(dev))}
    assert {example.prompt for example in card.examples} <= {f"the quick {n}" for n in range(200, 204)}


def test_teacher_s_weights_are_let_go_before_the_training(
    made: Made, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[Teacher] = []
    load, train = module.load_teacher, module.train_student

    def loaded(*arguments: Any) -> Teacher:
        teachers.append(load(*arguments))
        return teachers[0]

    def trained(*arguments: Any) -> Any:
        assert {parameter.device.type for parameter in teachers[0].base.model.parameters()} == {"meta"}
        return train(*arguments)

    monkeypatch.setattr(module, "load_teacher", loaded)
    monkeypatch.setattr(module, "train_student", trained)
    run(make_job(made), out)
    assert len(teachers) == 1


def test_interrupted_run_leaves_no_output_and_is_taken_up(made: Made, small: Base, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "results" / "out"
    run(make_job(made), whole)
    with pytest.raises(KeyboardInterrupt):
        run(make_job(made), out, progress=Listener("adapt", stop_at(9)))
    assert files(out.parent) == [".out.work"]
    again = Listener()
    run(make_job(made), out, progress=again)
    assert [note for note in again.notes if note.startswith("resuming at")]
    assert "teacher" not in again.phases
    assert files(out.parent) == ["out"]
    for one, other in zip(read_adapter(out, small).parameters(), read_adapter(whole, small).parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_interrupted_overwrite_keeps_the_old_output_and_is_taken_up(made: Made, out: Path) -> None:
    run(make_job(made, config=make_config(train={"tokens": 0})), out)
    before = record_of(out)
    with pytest.raises(UsageError, match="exists"):
        run(make_job(made), out)
    with pytest.raises(KeyboardInterrupt):
        run(make_job(made), out, overwrite=True, progress=Listener("adapt", stop_at(9)))
    assert record_of(out) == before
    again = Listener()
    run(make_job(made), out, overwrite=True, progress=again)
    assert [note for note in again.notes if note.startswith("resuming at")]
    assert record_of(out)["training"]["tokens"] >= 600
    assert files(out.parent) == ["out"]


def test_interrupted_run_of_one_adapter_is_not_taken_up_by_another(made: Made, tmp_path: Path) -> None:
    other = make_lora(tmp_path / "other", made.base, seed=1)
    outs = tmp_path / "results" / "out", tmp_path / "fresh"
    with pytest.raises(KeyboardInterrupt):
        run(make_job(made), outs[0], progress=Listener("adapt", stop_at(9)))
    small = load_base(made.small)
    digests = []
    for out in outs:
        run(make_job(made, adapter=str(other)), out)
        digests.append(read_adapter(out, small).digest())
    assert digests[0] == digests[1]


PLAIN = {"rank": 8, "calibration_tokens": 4096}
Make = Callable[[Made], Job]


def job_with(**sections: Any) -> Make:
    return lambda made: make_job(made, config=make_config(**sections))


REFUSED: list[tuple[Make, str]] = [
    (lambda made: make_job(made, prompts=made.data), "--data and --prompts are both given. Leave one out."),
    (lambda made: make_job(made, data=None, test=made.data), "--dev and --test go with --data"),
    (lambda made: make_job(made, metric="exat"), "unknown metric 'exat'. Did you mean 'exact'?"),
    (
        lambda made: make_job(made, lora=False, config=make_config(inherit={"start": "new"})),
        "inherit.start: new needs an --adapter to take its ranks from",
    ),
    (
        lambda made: make_job(made, lora=False, config=make_config(recover={"kind": "none"} | PLAIN)),
        "there is nothing to train. Give --adapter, or a recover.kind other than none.",
    ),
    (
        lambda made: make_job(made, shared=made.lora, config=make_config(recover={"kind": "none"} | PLAIN)),
        "--shared is a recovery, but recover.kind is none",
    ),
    (
        lambda made: make_job(made, shared=made.lora, config=make_config(recover=PLAIN | {"rank": 4})),
        "recover.rank has no effect: --shared brings its own recovery. Leave it out.",
    ),
    (
        lambda made: make_job(made, shared=made.lora, config=make_config(recover=PLAIN | {"start": "svd"})),
        "recover.start has no effect: --shared brings its own recovery. Leave it out.",
    ),
    (
        job_with(recover=PLAIN | {"kind": "none", "start": "zero"}),
        "recover.start has no effect: recover.kind is none. Leave it out.",
    ),
    (
        job_with(recover={"start": "svd"}),
        "recover.calibration_tokens has no effect: recover.start is svd. Leave it out.",
    ),
    (job_with(inherit={"rank": 4}), "inherit.rank has no effect: inherit.start is existing. Leave it out."),
    (
        job_with(recover={"kind": "gelu", "rank": 5}),
        "recover.rank 5 is odd, but a GELU recovery needs a pair of neurons for each linear one. "
        "Give an even rank, or recover.start: zero.",
    ),
    (job_with(inherit={"start": "new"}, train={"tokens": 0}), "a new LoRA needs training, but train.tokens is 0"),
    (
        job_with(recover=PLAIN | {"start": "zero"}, train={"tokens": 0}),
        "there is nothing to do: train.tokens is 0, and no closed form is asked for",
    ),
    (
        job_with(recover=PLAIN | {"kind": "none"}, train={"tokens": 0}),
        "there is nothing to do: train.tokens is 0, and no closed form is asked for",
    ),
    (
        lambda made: make_job(
            made, lora=False, shared=made.lora, config=make_config(recover=PLAIN, train={"tokens": 0})
        ),
        "there is nothing to do: train.tokens is 0, and no closed form is asked for",
    ),
    (
        job_with(distil={"hidden": 0, "logits": 0}),
        "there is nothing to learn: distil.hidden, distil.logits and distil.answers are all 0",
    ),
    (
        lambda made: make_job(made, device="cuda", config=make_config(train={"gradients": "int8"})),
        "train.gradients: int8 runs on the CPU only, not on cuda",
    ),
    (lambda made: make_job(made, device="warp"), "device 'warp' cannot be used here. cpu always can."),
]


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_settings_at_odds_are_refused(made: Made, out: Path, make: Make, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        run(make(made), out)
    assert str(caught.value) == message
    assert not out.parent.exists() or files(out.parent) == []


def test_odd_rank_is_fine_where_no_pair_is_needed(made: Made) -> None:
    make_job(
        made, config=make_config(recover={"kind": "gelu", "rank": 5, "start": "zero", "calibration_tokens": 4096})
    ).check()
    make_job(made, config=make_config(recover={"rank": 5})).check()


def test_task_adapter_is_no_shared_recovery(made: Made, out: Path, tmp_path: Path) -> None:
    job = make_job(made, config=make_config(recover=PLAIN), shared=made.lora)
    hint = "Make one: regraft adapt, without --adapter, on any text."
    with pytest.raises(UsageError) as caught:
        run(job, out)
    assert str(caught.value) == f"{made.lora} is no shared recovery. {hint}"
    adapted = tmp_path / "adapted"
    run(make_job(made, config=make_config(recover={"kind": "gelu"}, train={"tokens": 0})), adapted)
    with pytest.raises(UsageError, match="is no shared recovery"):
        run(make_job(made, config=make_config(recover=PLAIN), shared=adapted), out)
    assert files(out.parent) == []


def test_shared_recovery_of_another_kind_is_refused(made: Made, out: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    run(make_job(made, lora=False, config=make_config(train={"tokens": 0})), shared)
    with pytest.raises(UsageError, match=r"shared is a linear recovery, but recover\.kind is gelu$"):
        run(make_job(made, config=make_config(recover=PLAIN | {"kind": "gelu"}), shared=shared), out)


@pytest.mark.parametrize("inside", [False, True])
def test_output_does_not_replace_its_own_inputs(made: Made, tmp_path: Path, inside: bool) -> None:
    adapter = Path(shutil.copytree(made.lora, tmp_path / "adapters" / "lora"))
    out = adapter.parent if inside else adapter
    with pytest.raises(UsageError) as caught:
        run(make_job(made, adapter=str(adapter)), out, overwrite=True)
    assert str(caught.value) == f"output {out} holds an input, lora. Choose another directory."
    assert files(adapter) == files(made.lora)


def test_references_that_do_not_suit_the_metric_are_refused_before_the_teacher_speaks(made: Made, out: Path) -> None:
    progress = Listener()
    with pytest.raises(DataError):
        run(make_job(made, metric="json-fields"), out, progress=progress)
    assert progress.phases == []
    assert files(out.parent) == []


def test_training_that_gains_nothing_over_nothing_is_an_error(made: Made, out: Path) -> None:
    config = make_config(recover=PLAIN | {"start": "zero"}, train={"learning_rate": 50.0})
    with pytest.raises(RegraftError) as caught:
        run(make_job(made, lora=False, data=None, config=config), out)
    assert str(caught.value) == (
        "the training gained nothing on the dev rows, so the adapter would do nothing. "
        "Try more train.tokens, another train.learning_rate, or recover.start: eora."
    )
    assert files(out.parent) == [".out.work"]


def test_compressed_base_is_needed(made: Made, out: Path) -> None:
    with pytest.raises(UsageError, match=r"base is not compressed\. Make one: regraft compress BASE -o DIR\.$"):
        run(make_job(made, compressed=str(made.base)), out)


def test_damaged_adapter_is_refused_before_anything_is_written(made: Made, out: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(made.lora, tmp_path / "lora"))
    weights = adapter / PEFT_FILES[1]
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(FormatError):
        run(make_job(made, adapter=str(adapter)), out)
    assert files(out.parent) == []
