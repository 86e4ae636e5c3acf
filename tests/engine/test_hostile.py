"""What may come from anywhere: one clear line or an answer, and the engine goes on."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from regraft import Engine
from regraft.errors import CapacityError, FormatError, IncompatibleAdapterError, RegraftError, UsageError

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    adapters = {f"lora{number}": folder / f"lora{number}" for number in range(2)}
    with Engine(folder / "base", adapters, memory_bytes=1 << 20) as engine:
        yield engine


def config(**changed: Any) -> Damage:
    """Values of config.json; ``...`` takes one away."""

    def damage(base: Path) -> None:
        values = json.loads((base / "config.json").read_text()) | changed
        (base / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))

    return damage


def header(length: int | None = None, **entry: Any) -> Damage:
    """Entries of the first tensor in the header of the weights, or the header's length."""

    def damage(base: Path) -> None:
        path = base / "model.safetensors"
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        names = json.loads(data[8 : 8 + size])
        names[min(names.keys() - {"__metadata__"})] |= entry
        text = json.dumps(names).encode()
        path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data[8 + size :])

    return damage


def text(name: str, content: str) -> Damage:
    return lambda base: (base / name).write_text(content)


def tokenizer(change: Callable[[Any], object]) -> Damage:
    def damage(base: Path) -> None:
        values = json.loads((base / "tokenizer.json").read_text())
        change(values)
        (base / "tokenizer.json").write_text(json.dumps(values))

    return damage


SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
ABSURD: list[Any] = [0, -1, 2**31, 10**30, 1.5, "64", None, [64], True, math.nan]
BASES: dict[str, Damage] = {
    **{f"{size} {value}": config(**{size: value}) for size in (*SIZES, "intermediate_size") for value in ABSURD},
    **{f"no {size}": config(**{size: ...}) for size in SIZES if size != "head_dim"},
    **{f"positions {v}": config(max_position_embeddings=v) for v in (0, -1, "x", None, 1.5)},
    **{f"epsilon {v}": config(rms_norm_eps=v) for v in (-1.0, math.nan, math.inf, "x", None)},
    **{f"rope {v}": config(rope_parameters=v) for v in ({"rope_type": "yes"}, {"rope_theta": -1}, [], "x", 3)},
    "another family": config(model_type="mamba"),
    "family that is a list": config(model_type=["llama"]),
    "activation": config(hidden_act="sin"),
    "config is a list": text("config.json", "[]"),
    "config nested deeply": text("config.json", "[" * 100_000),
    "header of all memory": header(2**63),
    "header beyond the file": header(10**9),
    "header of nothing": header(0),
    "offsets beyond the file": header(data_offsets=[0, 2**50]),
    "offsets backwards": header(data_offsets=[64, 0]),
    "offsets below zero": header(data_offsets=[-64, 0]),
    "shape that overflows": header(shape=[2**40, 2**40]),
    "shape of texts": header(shape=["64", "64"]),
    "dtype unknown": header(dtype="F7"),
    "dtype of other size": header(dtype="F64"),
    "dtype integer": header(dtype="I32"),
    "tokenizer is no JSON": text("tokenizer.json", "{"),
    "tokenizer is a list": text("tokenizer.json", "[]"),
    "tokenizer without model": tokenizer(lambda t: t.pop("model")),
    "tokenizer of another kind": tokenizer(lambda t: t["model"].update(type="Nothing")),
    "tokenizer with merges of nothing": tokenizer(lambda t: t["model"].update(merges=[["no", "such"]])),
    "tokenizer with ids below zero": tokenizer(lambda t: t["model"]["vocab"].update(the=-5)),
    "tokenizer with ids beyond": tokenizer(lambda t: t["model"]["vocab"].update(the=10**12)),
    "tokenizer with a wrong pattern": tokenizer(
        lambda t: t.update(pre_tokenizer={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"})
    ),
}
HARMLESS = {"head_dim None", "num_key_value_heads None"}  # both may be left out, and then follow from the others


@pytest.mark.parametrize("name", BASES)
def test_bases_are_refused_in_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    base = Path(shutil.copytree(folder / "base", tmp_path / "base"))
    BASES[name](base)
    try:
        with Engine(base, memory_bytes=1 << 20) as engine:
            assert name in HARMLESS and engine.generate("hello", max_tokens=1).tokens
    except (FormatError, UsageError) as error:
        assert "\n" not in str(error) and len(str(error)) < 500


def factor(value: float, place: int = -1) -> Damage:
    def damage(adapter: Path) -> None:
        tensors = load_file(adapter / "adapter_model.safetensors")
        changed = {name: tensor.copy() for name, tensor in tensors.items()}
        changed[min(changed)].reshape(-1)[place] = value
        save_file(changed, adapter / "adapter_model.safetensors")

    return damage


def adapter_config(**changed: Any) -> Damage:
    def damage(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changed))

    return damage


ADAPTERS: dict[str, Damage] = {
    **{f"{value} at {place}": factor(value, place) for value in (math.nan, math.inf, -math.inf) for place in (0, -1)},
    **{f"alpha {v}": adapter_config(lora_alpha=v) for v in (math.nan, math.inf, "x", None, 10**400, [])},
    **{f"rank {v}": adapter_config(r=v) for v in (0, -1, 2**40, "x", None)},
    "targets of nothing": adapter_config(target_modules=[]),
    "targets that are no pattern": adapter_config(target_modules="("),
    "truncated": lambda path: (path / "adapter_model.safetensors").write_bytes(b"\xff" * 64),
    "config is a list": lambda path: (path / "adapter_config.json").write_text("[]"),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_refused_in_one_line(engine: Engine, folder: Path, tmp_path: Path, name: str) -> None:
    adapter = Path(shutil.copytree(folder / "lora0", tmp_path / "lora"))
    ADAPTERS[name](adapter)
    with pytest.raises((FormatError, IncompatibleAdapterError)) as error:
        engine.add_adapter("hostile", adapter)
    assert "\n" not in str(error.value) and "hostile" not in engine.adapters
    assert engine.generate("hello", "lora0", max_tokens=1).tokens


REQUESTS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "no text": ("", None, {}),
    "no tokens": ((), None, {}),
    "no messages": ([], None, {}),
    "nothing": (None, None, {}),
    "bytes": (b"hello", None, {}),
    "token below zero": ([-1], None, {}),
    "token beyond": ([10**9], None, {}),
    "token of a float": ([1.0], None, {}),
    "token true": ([True], None, {}),
    "half a surrogate": ("\ud800", None, {}),
    "beyond the context": ([5] * 10_000, None, {}),
    **{f"weight {v}": ("a", {"lora0": v}, {}) for v in (math.nan, math.inf, -math.inf, 10**400, "1", None)},
    "unknown in a mix": ("a", {"lora0": 1.0, "nobody": 1.0}, {}),
    "mix of a list": ("a", ["lora0"], {}),
    "adapter of a number": ("a", 3, {}),
    **{f"temperature {v}": ("a", None, {"temperature": v}) for v in (-1, math.nan, math.inf, "1", None)},
    **{f"top_k {v}": ("a", None, {"top_k": v}) for v in (0, -1, 1.5, 2**70)},
    **{f"top_p {v}": ("a", None, {"top_p": v}) for v in (0, -1, 1.1, math.nan)},
    **{f"min_p {v}": ("a", None, {"min_p": v}) for v in (-0.1, 1.1, math.nan)},
    **{f"repetition_penalty {v}": ("a", None, {"repetition_penalty": v}) for v in (0, -1, math.nan, math.inf)},
    **{f"seed {v}": ("a", None, {"seed": v}) for v in (-1, 1.5, 2**70)},
    **{f"logprobs {v}": ("a", None, {"logprobs": v}) for v in (-1, 10**6, True)},
    **{f"max_tokens {v}": ("a", None, {"max_tokens": v}) for v in (0, -1, 1.5, None, 2**70)},
    **{f"stop {v!r}": ("a", None, {"stop": v}) for v in ("", [""], [3], 3, None)},
    **{f"timeout {v}": ("a", None, {"timeout_s": v}) for v in (math.nan, math.inf, "1")},
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_refused_in_one_line(engine: Engine, name: str) -> None:
    prompt, adapter, options = REQUESTS[name]
    with pytest.raises(UsageError) as error:
        engine.stream(prompt, adapter, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


EXTREMES: list[dict[str, Any]] = [
    {"temperature": 1e-300, "seed": 1},
    {"temperature": 1e18, "seed": 1},
    {"temperature": 1.0, "top_k": 2**62, "seed": 1},
    {"temperature": 1.0, "top_p": 1e-300, "seed": 1},
    {"temperature": 1.0, "min_p": 1.0, "seed": 2**62},
    {"repetition_penalty": 1e-18},
    {"repetition_penalty": 1e18},
    {"temperature": 5e-324, "repetition_penalty": 1e18, "frequency_penalty": 2.0, "presence_penalty": -2.0, "seed": 0},
    {"max_tokens": 2**62, "timeout_s": 2.0},
    {"priority": -(2**62)},
    {"timeout_s": 1e18},
]


@pytest.mark.parametrize("options", EXTREMES, ids=str)
def test_extremes_are_answered(engine: Engine, options: dict[str, Any]) -> None:
    first, second = (engine.generate("the quick", **({"max_tokens": 3} | options)).tokens for _ in range(2))
    assert first[:1] == second[:1] and first


@pytest.mark.parametrize("weight", [0.0, -0.0, -1.0, 1e-300, 5e-324, 60.0])
def test_weights_of_any_size_are_answered(engine: Engine, weight: float) -> None:
    answer = engine.generate("the quick", {"lora0": weight, "lora1": 1.0}, max_tokens=6)
    if abs(weight) < 1e-30:
        assert answer.tokens == engine.generate("the quick", {"lora1": 1.0}, max_tokens=6).tokens
    assert answer.tokens


@pytest.mark.parametrize("weight", [1e9, -1e18, 9e18])
def test_weights_that_leave_no_numbers_fail_alone(engine: Engine, weight: float) -> None:
    alone = engine.generate("the lazy dog", "lora1", max_tokens=6).tokens
    beside = engine.stream("the lazy dog", "lora1", max_tokens=6)
    try:
        assert engine.generate("the quick", {"lora0": weight}, max_tokens=3).tokens
    except RegraftError as error:
        assert "\n" not in str(error)
    *_, last = beside
    assert last.completion is not None and last.completion.tokens == alone


def test_more_than_the_memory_says_how_much(folder: Path) -> None:
    with Engine(folder / "base", memory_bytes=1 << 15) as small:
        with pytest.raises(CapacityError, match=r"\d+ pages.*\d+"):
            small.generate([5] * 400, max_tokens=100)
        assert small.generate("hello", max_tokens=2).tokens
