"""Who answers: the engine says what torch says, from the same tokens, up to the same end; and what each refuses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from regraft.errors import DataError, FormatError, IncompatibleAdapterError, UnsupportedBaseError, UsageError
from regraft.evaluate.answers import find_schema, usable_schema
from regraft.evaluate.dataset import Encoded, Example, encode
from regraft.evaluate.engine_answers import EngineAnswers, EngineTokenizer
from regraft.evaluate.metrics import parse_object
from regraft.evaluate.open_answers import open_answers
from regraft.evaluate.score import score_examples
from regraft.evaluate.torch_answers import TorchAnswers
from regraft.formats.source import locate
from regraft.formats.text.tokenizer import open_tokenizer
from regraft.models.load import load_base
from regraft.storage import write_json
from tests.adapt.made import Listener, Made, make_all, make_lora
from tests.tiny import make_base

SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_all(tmp_path_factory.mktemp("answers"))


def examples(count: int = 12) -> list[Example]:
    """Plain prompts and conversations in turn, of unlike lengths."""
    rng = random.Random(0)
    texts = [
        " ".join(rng.choices(["the", "quick", "brown", "fox", "12"], k=rng.randrange(1, 30))) for _ in range(count)
    ]
    return [
        Example(None, text, " fox 1", f"rows:{number}")
        if number % 2
        else Example(({"role": "system", "content": "be brief"}, {"role": "user", "content": text}), None, "lazy dog")
        for number, text in enumerate(texts)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
@pytest.mark.parametrize("acting", [False, True])
def test_the_engine_answers_as_torch_does(tmp_path: Path, family: str, acting: bool) -> None:
    folder = make_base(tmp_path / "base", family)
    lora = make_lora(tmp_path / "lora", folder) if acting else None
    base = load_base(folder)
    base.model.half().float()  # the engine keeps embeddings and head in float16
    torch, engine = TorchAnswers(base), EngineAnswers(folder, exact=True, batch_size=5)
    rows = [encode(example, torch.tokenizer) for example in examples()]
    assert [encode(example, engine.tokenizer) for example in examples()] == rows
    expected = torch.answer(rows, lora, max_new_tokens=10)
    assert engine.answer(rows, lora, max_new_tokens=10) == expected
    assert len(set(expected)) > 3
    assert torch.answer(rows, lora) == engine.answer(rows, lora)  # the same default length


def test_both_stop_at_any_of_the_model_s_stop_tokens(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    rows = [Encoded([5, 6, 7 + n], [4] * 12) for n in range(6)]
    free = TorchAnswers(load_base(folder)).answer(rows)
    often = max("".join(free), key="".join(free).count)
    stop = load_base(folder).tokenizer(often, add_special_tokens=False)["input_ids"][0]
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [2, stop]}))
    base = load_base(folder)
    base.model.half().float()
    stopped = TorchAnswers(base).answer(rows)
    assert stopped != free
    assert EngineAnswers(folder, exact=True).answer(rows) == stopped


def test_the_engine_s_tokenizer_encodes_as_that_of_transformers(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    ours, theirs = EngineTokenizer(open_tokenizer(locate(folder))), AutoTokenizer.from_pretrained(folder)
    for example in examples(20):
        assert encode(example, ours) == encode(example, theirs)
    assert (ours.eos_token_id, ours.bos_token_id) == (theirs.eos_token_id, theirs.bos_token_id)


def test_progress_counts_the_engine_s_answers(made: Made) -> None:
    seen: list[int] = []
    EngineAnswers(made.base).answer(
        [Encoded([5, 6], [4])] * 7, max_new_tokens=2, progress=Listener("answers", seen.append)
    )
    assert seen == list(range(1, 8))
    assert EngineAnswers(made.base).answer([]) == []


def test_answers_held_to_a_schema_keep_to_it(made: Made) -> None:
    rows = [encode(example, load_base(made.base).tokenizer) for example in examples(4)]
    answers = EngineAnswers(made.base)
    held = answers.answer(rows, made.lora, max_new_tokens=240, schema=SCHEMA)
    for text in held:
        found = parse_object(text)
        assert found is not None and set(found) == {"a", "b"} and found["a"] in ("x", "y")
    assert not any(parse_object(text) for text in answers.answer(rows, made.lora, max_new_tokens=240))


def test_free_and_held_answers_have_a_score_each(made: Made) -> None:
    rows = [Example(None, f"the {n}", '{"a": "x", "b": true}') for n in range(6)]
    found = score_examples(EngineAnswers(made.base), rows, metric="json-fields", max_new_tokens=240, schema=SCHEMA)
    assert found.score.value == 0
    assert found.constrained is not None and found.constrained.n == 6
    assert (found.to_json()["constrained"]["score"], found.to_json()["answers"]) == (found.constrained.value, "engine")
    assert score_examples(EngineAnswers(made.base), rows, metric="exact").to_json()["constrained"] is None


def test_memory_suffices_for_one_long_prompt_however_little_is_allowed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regraft.evaluate.engine_answers.MAX_MEMORY_BYTES", 1)
    rows = [Encoded(list(range(3, 300)), [4] * 4), *[Encoded([5, 6, 7], [4])] * 3]
    assert len(EngineAnswers(made.base).answer(rows, made.lora)) == 4


def test_a_prompt_that_fills_the_context_is_named(made: Made) -> None:
    rows = [encode(Example(None, "the quick " * 600, "fox", "rows.jsonl:3"), load_base(made.base).tokenizer)]
    with pytest.raises(DataError, match=r"^rows\.jsonl:3: a prompt that is too long: expected fewer tokens than"):
        EngineAnswers(made.base).answer(rows)


def test_an_adapter_without_effect_is_refused(made: Made, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    lora = make_lora(tmp_path / "lora", made.base)
    tensors = load_file(lora / "adapter_model.safetensors")
    save_file({key: 1e-12 * value for key, value in tensors.items()}, lora / "adapter_model.safetensors")
    with pytest.raises(IncompatibleAdapterError, match="has no effect on base"):
        EngineAnswers(made.base).answer([Encoded([5, 6], [4])], lora)


# Which of the two


def unsupported(folder: Path) -> Path:
    """A base that torch runs and the engine does not: another activation."""
    path = make_base(folder) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": "relu"}))
    return folder


def test_torch_answers_where_the_engine_does_not_run_the_base_and_says_so(tmp_path: Path) -> None:
    folder, progress = unsupported(tmp_path / "base"), Listener()
    answers = open_answers(str(folder), progress=progress)
    assert answers.runtime == "torch"
    assert [note for note in progress.notes if note.startswith("torch answers, as the engine does not run")]
    assert len(answers.answer([Encoded([5, 6], [4])])) == 1
    with pytest.raises(UnsupportedBaseError, match="hidden_act"):
        open_answers(str(folder), "engine")


def test_a_damaged_base_is_an_error_and_no_reason_for_torch(tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FormatError):
        open_answers(str(folder))


def test_the_runtime_is_the_engine_unless_asked_otherwise(made: Made) -> None:
    assert open_answers(str(made.small)).runtime == "engine"
    assert open_answers(str(made.small), "torch").runtime == "torch"
    with pytest.raises(UsageError, match=r"^the engine runs on the CPU, not on cuda"):
        open_answers(str(made.small), "engine", device="cuda")


# Schemas


def test_a_schema_beside_the_rows_is_found_for_json_only(tmp_path: Path) -> None:
    data = tmp_path / "test.jsonl"
    assert find_schema(None, data, "json-fields") is None
    write_json(tmp_path / "schema.json", SCHEMA)
    assert find_schema(None, data, "json-fields") == SCHEMA
    assert find_schema(None, data, "exact") is None
    write_json(tmp_path / "other.json", {"type": "object"})
    assert find_schema(tmp_path / "other.json", data, "json-fields") == {"type": "object"}


def test_schemas_that_cannot_be_used_are_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    write_json(path, [1])
    with pytest.raises(FormatError, match="expected a JSON object, found list"):
        find_schema(path, None, "json-fields")
    with pytest.raises(UsageError, match="--schema goes with --metric json-fields, not exact"):
        find_schema(path, None, "exact")
    with pytest.raises(UsageError, match="the schema is not understood"):
        EngineAnswers(made.base).answer([Encoded([5], [4])], schema={"type": "nothing"})


def test_torch_holds_nothing_to_a_schema_and_says_so(made: Made) -> None:
    torch: Any = TorchAnswers(load_base(made.base))
    progress = Listener()
    assert usable_schema(SCHEMA, torch, is_asked=False, progress=progress) is None
    assert progress.notes == ["torch answers, so there is no score of answers held to schema.json"]
    assert usable_schema(SCHEMA, EngineAnswers(made.base), is_asked=True) == SCHEMA
    with pytest.raises(UsageError, match="--schema holds the engine's answers"):
        usable_schema(SCHEMA, torch, is_asked=True)
    with pytest.raises(UsageError, match="need the engine"):
        torch.answer([Encoded([5], [4])], schema=SCHEMA)
