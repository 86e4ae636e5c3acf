"""Bad input of every kind: exit code 1 or 2, one clean line that names the cause, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.run import Kit, regraft

Make = Callable[[Kit, Path], list[object]]


@dataclass(frozen=True)
class Case:
    """A name, what the line must say, and the arguments; ``OUT`` stands for the output directory."""

    name: str
    says: str
    make: Make


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def copied(source: Path, tmp: Path) -> Path:
    return Path(shutil.copytree(source, tmp / f"copy-{source.name}"))


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    return folder


def retensored(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(folder / name)
    change(tensors)
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name, metadata={"format": "pt"})
    return folder


def with_choices(text: str) -> Make:
    return lambda kit, tmp: ["eval", kit.base, "--data", write(tmp / "rows.jsonl", text), "--choices"]


def cut(folder: Path, name: str) -> Path:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) * 2 // 3])
    return folder


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder


OUT = "OUT"
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
A_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B_KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def compress(base: object, *more: object) -> list[object]:
    return ["compress", base, "-o", OUT, "--no-perplexity", *more]


def adapt(kit: Kit, *more: object, small: object = None, teacher: object = None, lora: object = None) -> list[object]:
    start: list[object] = ["adapt", small or kit.small, "--teacher", teacher or kit.base, "-o", OUT]
    return [*start, "--adapter", lora or kit.lora, "--tokens", 0, *more]


def evaluate(kit: Kit, lora: object) -> list[object]:
    return ["eval", kit.base, "--adapter", lora, "--data", kit.data]


def with_config(key: str, value: object) -> Make:
    return lambda kit, tmp: evaluate(kit, edited(copied(kit.lora, tmp), CONFIG, lambda c: c.update({key: value})))


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    return lambda kit, tmp: evaluate(kit, retensored(copied(kit.lora, tmp), WEIGHTS, change))


def with_data(text: str | bytes) -> Make:
    return lambda kit, tmp: adapt(kit, "--data", write(tmp / "d.jsonl", text))


def with_recipe(text: str) -> Make:
    return lambda kit, tmp: compress(kit.base, "--recipe", write(tmp / "r.yaml", text))


CASES = [
    # bases
    Case("unknown base", "there is no base 'nowhere'", lambda kit, tmp: compress("nowhere")),
    Case("misspelt name", "Did you mean 'smollm2-135m'?", lambda kit, tmp: compress("smolm2-135m")),
    Case("base is a text file", "found a .txt file", lambda kit, tmp: compress(write(tmp / "a.txt", "x"))),
    Case("gguf that is none", "cannot be read as GGUF", lambda kit, tmp: compress(write(tmp / "a.gguf", "x" * 99))),
    Case("adapter as base", "is an adapter", lambda kit, tmp: compress(kit.lora)),
    Case("empty directory as base", "no model directory", lambda kit, tmp: compress((tmp / "e").mkdir() or tmp / "e")),
    Case(
        "base without weights",
        "model.safetensors is missing",
        lambda kit, tmp: compress(without(copied(kit.base, tmp), "model.safetensors")),
    ),
    Case(
        "base cut short", "is truncated or damaged", lambda kit, tmp: compress(cut(copied(kit.base, tmp), "model.safetensors"))
    ),
    Case(
        "base config that is no JSON",
        "config.json",
        lambda kit, tmp: compress(write(copied(kit.base, tmp) / "config.json", "{").parent),
    ),
    Case("compressed twice", "compressed already", lambda kit, tmp: compress(kit.small)),
    Case(
        "compressed base with a changed weight",
        "has changed since it was written",
        lambda kit, tmp: compress(
            retensored(copied(kit.small, tmp), "model.safetensors", lambda t: t["model.norm.weight"].add_(1))
        ),
    ),
    Case(
        "compressed base cut short",
        "truncated or damaged",
        lambda kit, tmp: compress(cut(copied(kit.small, tmp), "model.safetensors")),
    ),
    # recipes
    Case("unknown recipe", "Did you mean 'int4'?", lambda kit, tmp: compress(kit.base, "--recipe", "int44")),
    Case("misspelt key", "Did you mean 'bits'?", with_recipe("steps: [quantize: {method: rtn, bitz: 4}]")),
    Case("wrong value", "quantize.bits", with_recipe("steps: [quantize: {method: rtn, bits: 9}]")),
    Case("unknown method", "quantize.method", with_recipe("steps: [quantize: {method: awq, bits: 4}]")),
    Case("recipe that is no YAML", "is not YAML", with_recipe("quantize: [")),
    Case("recipe that is a list", "expected a mapping", with_recipe("- 1")),
    Case(
        "override that fits nothing",
        "fits no slot",
        with_recipe("steps: [quantize: {method: rtn, bits: 4, overrides: {nothing: {bits: 8}}}]"),
    ),
    Case("the form of recipes before steps", "unknown key 'quantize'", with_recipe("quantize: {method: rtn, bits: 4}")),
    Case("no steps", "r.yaml: steps", with_recipe("steps: []")),
    Case("misspelt step", "unknown key 'steps.0.purne'. Did you mean 'prune'?", with_recipe("steps: [purne: {ratio: 0.5}]")),
    Case("two steps in one", "expected one of prune, recover, moefy, quantize", with_recipe("steps: [{prune: {importance: l1, ratio: 0.2}, quantize: {method: rtn, bits: 4}}]")),
    Case("an empty step", "expected one of prune, recover, moefy, quantize", with_recipe("steps: [{}]")),
    Case("pruning what is rounded", "nothing after quantize", with_recipe("steps: [quantize: {method: rtn, bits: 4}, prune: {importance: l1, ratio: 0.2}]")),
    Case("recovery before pruning", "recover once, after all prune steps", with_recipe("steps: [recover: {}, prune: {importance: l1, ratio: 0.2}]")),
    Case("recovery without losses", "above 0", with_recipe("steps: [prune: {importance: l1, ratio: 0.2}, recover: {distil: {hidden: 0, logits: 0}}]")),
    Case("misspelt key of pruning", "Did you mean 'importance'?", with_recipe("steps: [prune: {importence: l1, ratio: 0.2}]")),
    Case("unknown importance", "steps.0.prune.importance: expected Input should be 'random'", with_recipe("steps: [prune: {importance: sparsegpt, ratio: 0.2}]")),
    Case("a ratio of all", "steps.0.prune.ratio: expected", with_recipe("steps: [prune: {importance: l1, ratio: 1}]")),
    Case("groups that do not go together", "or channels alone", with_recipe("steps: [prune: {importance: l1, ratio: 0.2, groups: [heads, channels]}]")),
    Case("an importance that judges other groups", "importance flap with groups heads and neurons, not channels", with_recipe("steps: [prune: {importance: flap, ratio: 0.2, groups: [channels]}]")),
    Case("an option of another importance", "order only with importance taylor, not l1", with_recipe("steps: [prune: {importance: l1, ratio: 0.2, order: second}]")),
    Case("protected channels", "a channel runs through all layers", with_recipe("steps: [prune: {importance: l1, ratio: 0.2, groups: [channels], protect_first: 1}]")),
    Case("a global ranking of layers", "ranking global only with heads and neurons", with_recipe("steps: [prune: {importance: l1, ratio: 0.2, groups: [layers], ranking: global}]")),
    Case("uniform and protected", "all layers get one width", with_recipe("steps: [prune: {importance: l1, ratio: 0.2, uniform: true, protect_last: 1}]")),
    Case("uniform with biases", "no place for the biases", with_recipe("steps: [prune: {importance: flap, ratio: 0.2, uniform: true}]")),
    Case("more than can go", "expected at most 0.", with_recipe("steps: [prune: {importance: l1, ratio: 0.95}]")),
    Case("uniform without pruning", "the recipe has no prune step", lambda kit, tmp: compress(kit.base, "--uniform")),
    Case(
        "calibration file that is missing",
        "cannot be read",
        lambda kit, tmp: compress(kit.base, "--calibration", tmp / "none.txt"),
    ),
    Case("calibrate on no rows", "--calibrate-on: expected ADAPTER=ROWS.jsonl", lambda kit, tmp: compress(kit.base, "--calibrate-on", kit.lora)),
    Case("calibrate on no adapter", "there is no adapter directory", lambda kit, tmp: compress(kit.base, "--calibrate-on", f"{tmp / 'none'}={kit.data}")),
    Case("calibrate on an adapter of a wider model", "expected shape", lambda kit, tmp: compress(kit.wide, "--calibrate-on", f"{kit.lora}={kit.data}")),
    Case("calibrate on empty rows", "an empty file", lambda kit, tmp: compress(kit.base, "--calibrate-on", f"{kit.lora}={write(tmp / 'e.jsonl', '')}")),
    Case("calibrate on nothing", "num_sequences above 0, or adapters", with_recipe("steps: [quantize: {method: gptq, bits: 4}]\ncalibration: {num_sequences: 0}")),
    # outputs
    Case("output is a file", "found a file", lambda kit, tmp: ["compress", kit.base, "-o", write(tmp / "f", "x")]),
    Case("output exists", "--overwrite", lambda kit, tmp: ["compress", kit.base, "-o", kit.small]),
    # adapters
    Case("missing adapter", "no adapter directory", lambda kit, tmp: evaluate(kit, tmp / "none")),
    Case("model as adapter", "It is a model directory", lambda kit, tmp: evaluate(kit, kit.base)),
    Case("adapter without weights", "is missing", lambda kit, tmp: evaluate(kit, without(copied(kit.lora, tmp), WEIGHTS))),
    Case(
        "pickled adapter",
        "is a pickle",
        lambda kit, tmp: evaluate(
            kit, write(without(copied(kit.lora, tmp), WEIGHTS) / "adapter_model.bin", b"\x80").parent
        ),
    ),
    Case("adapter cut short", "may be cut short", lambda kit, tmp: evaluate(kit, cut(copied(kit.lora, tmp), WEIGHTS))),
    Case("DoRA", "uses DoRA", with_config("use_dora", True)),
    Case("modules_to_save", "uses modules_to_save", with_config("modules_to_save", ["lm_head"])),
    Case("trained biases", "trained biases", with_config("bias", "all")),
    Case("PiSSA", "started by pissa", with_config("init_lora_weights", "pissa")),
    Case("another method", "expected peft_type LORA, found 'LOHA'", with_config("peft_type", "LOHA")),
    Case("unknown target", "target module 'c_attn' is not in this base", with_config("target_modules", ["c_attn"])),
    Case("rank at odds", "expected rank 3", with_config("r", 3)),
    Case("rank that is no number", "expected a LoRA's", with_config("r", "four")),
    Case("values that are not finite", f"{A_KEY} holds values that are not finite", with_tensors(lambda t: t[A_KEY].fill_(float("nan")))),
    Case("a factor missing", "has no lora_B tensor", with_tensors(lambda t: t.pop(B_KEY))),
    Case("a slot missing", "have no tensors", with_tensors(lambda t: [t.pop(A_KEY), t.pop(B_KEY)])),
    Case("another shape", "expected shape [r, 64]", with_tensors(lambda t: t.update({A_KEY: torch.ones(2, 65)}))),
    Case(
        "a tensor too many",
        "model.embed_tokens.weight",
        with_tensors(lambda t: t.update({"base_model.model.model.embed_tokens.weight": torch.ones(4, 4)})),
    ),
    Case("no effect", "has no effect", with_tensors(lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k])),
    Case("adapter of a wider model", "expected shape", lambda kit, tmp: ["eval", kit.wide, "-a", kit.lora, "--data", kit.data]),
    Case("two adapters where one acts", "expected one adapter", lambda kit, tmp: ["eval", kit.base, "-a", kit.lora, "-a", kit.lora, "--data", kit.data]),
    Case("two adapters to adapt", "expected one adapter", lambda kit, tmp: adapt(kit, "--adapter", kit.lora)),
    # adapt
    Case("uncompressed base", "is not compressed", lambda kit, tmp: adapt(kit, small=kit.base)),
    Case("another teacher", "is not the model that", lambda kit, tmp: adapt(kit, teacher=kit.other)),
    Case("compressed teacher", "is compressed itself", lambda kit, tmp: adapt(kit, teacher=kit.small)),
    Case("data that are missing", "cannot be read", lambda kit, tmp: adapt(kit, "--data", tmp / "none.jsonl")),
    Case("empty data", "an empty file", with_data("")),
    Case("a line that is no JSON", "d.jsonl:2: not JSON", with_data('{"prompt": "a", "completion": "b"}\n{oops\n')),
    Case("other keys", "wrong keys", with_data('{"text": "a"}\n')),
    Case("no answer at the end", "found role 'user'", with_data('{"messages": [{"role": "user", "content": "a"}]}\n')),
    Case("no UTF-8", "expected UTF-8", with_data(b'{"prompt": "\xff", "completion": "b"}\n')),
    Case("one row", "rows are left", with_data('{"prompt": "a", "completion": "b"}\n')),
    Case("a row too long", "the limit is 512", with_data("".join(json.dumps({"prompt": f"{n} " * 900, "completion": "b"}) + "\n" for n in range(9)))),
    Case(
        "train row in test",
        "this prompt is in the train rows too",
        lambda kit, tmp: adapt(kit, "--data", kit.data, "--test", kit.data),
    ),
    Case("unknown metric", "Did you mean 'rougeL'?", lambda kit, tmp: adapt(kit, "--data", kit.data, "-m", "rougel")),
    Case(
        "data and prompts",
        "--data and --prompts",
        lambda kit, tmp: adapt(kit, "--data", kit.data, "--prompts", kit.data),
    ),
    Case("dev without data", "--dev and --test go with --data", lambda kit, tmp: adapt(kit, "--dev", kit.data)),
    Case(
        "misspelt setting",
        "Did you mean 'rank'?",
        lambda kit, tmp: adapt(kit, "--config", write(tmp / "c.yaml", "recover: {rnak: 4}")),
    ),
    Case("unknown recovery", "recover.kind", lambda kit, tmp: adapt(kit, "--recover", "magic")),
    Case("learning rate below zero", "train.learning_rate", lambda kit, tmp: adapt(kit, "--learning-rate", -1)),
    # the rest
    Case("empty prompt", "the prompt is empty", lambda kit, tmp: ["run", kit.base, " "]),
    Case("system without template", "--system goes with", lambda kit, tmp: ["run", kit.base, "a", "--raw", "--system", "b"]),
    Case("check without a card", "report_card.json is missing", lambda kit, tmp: ["check", kit.lora]),
    Case("check of nothing", "no adapter directory", lambda kit, tmp: ["check", tmp / "none"]),
    Case("serve no folder", "is no directory", lambda kit, tmp: ["serve", kit.base, "-a", tmp / "none"]),
    Case("replicas with a root", "is for one replica", lambda kit, tmp: ["serve", kit.base, "--replicas", 2, "--load-root", kit.root, "--admin-token-file", kit.data]),
    Case("all of nothing", "has no adapters", lambda kit, tmp: ["adapt", kit.small, "--teacher", kit.base, "--all", tmp, "-o", tmp / "out"]),
    Case("root without token", "go together", lambda kit, tmp: ["serve", kit.base, "--load-root", kit.root]),
    Case("short key", "at least 16", lambda kit, tmp: ["serve", kit.base, "--api-key-file", write(tmp / "keys", "sk-1")]),
    Case("no such address", "cannot listen on", lambda kit, tmp: ["serve", kit.base, "--host", "192.0.2.1"]),
    Case("info on nothing", "there is no base", lambda kit, tmp: ["info", tmp / "none"]),
    Case("unknown runtime", "--runtime: expected auto, engine or torch, found 'fast'", lambda kit, tmp: [*evaluate(kit, kit.lora), "--runtime", "fast"]),
    Case("engine on another device", "runs on the CPU, not on cuda", lambda kit, tmp: [*evaluate(kit, kit.lora), "--runtime", "engine", "--device", "cuda"]),
    Case("schema for another metric", "--schema goes with --metric json-fields", lambda kit, tmp: [*evaluate(kit, kit.lora), "--schema", kit.data]),
    Case("schema that is missing", "is missing", lambda kit, tmp: ["eval", kit.base, "--data", write(tmp / "d.jsonl", '{"prompt": "a", "completion": "{}"}\n'), "-m", "json-fields", "--schema", tmp / "none.json"]),
    Case("schema without data", "--schema goes with --data", lambda kit, tmp: adapt(kit, "--schema", kit.data)),
    Case("choices without an answer", "answer: expected one of the choices", with_choices('{"prompt": "a", "choices": ["b", "c"]}')),
    Case("one choice", "at least two different texts", with_choices('{"prompt": "a", "choices": ["b"], "answer": 0}')),
    Case("choices of one answer", "answers of at least two kinds", with_choices('{"prompt": "a", "completion": "b"}')),
    Case("choices beyond the context", "rows.jsonl:1: prompt and choice: expected at most 512 tokens", with_choices(json.dumps({"prompt": "zz " * 600, "choices": ["b", "c"], "answer": 0}))),
    Case("choices that generate", "--max-tokens is about answers that are generated", lambda kit, tmp: ["eval", kit.base, "--data", kit.data, "--choices", "--max-tokens", 3]),
    Case("choices with a metric", "--metric is about answers that are generated", lambda kit, tmp: ["eval", kit.base, "--data", kit.data, "--choices", "-m", "f1"]),
    Case("choices by torch", "--runtime is about answers that are generated", lambda kit, tmp: ["eval", kit.base, "--data", kit.data, "--choices", "--runtime", "torch"]),
    Case("choices with a wrong weight", "the weight is 'x', not a number", lambda kit, tmp: ["eval", kit.base, "--data", kit.data, "--choices", "-a", f"{kit.lora}*x"]),
    Case("choices with an adapter of a wider model", "expected shape", lambda kit, tmp: ["eval", kit.wide, "--data", kit.data, "--choices", "-a", kit.lora]),
    Case("unknown metric in eval", "unknown metric", lambda kit, tmp: ["eval", kit.base, "--data", kit.data, "-m", "bleu"]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "_"))
def test_bad_input_gives_one_line_and_no_output(
    case: Case, kit: Kit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "out"
    out.parent.mkdir()
    arguments = [out if argument == OUT else argument for argument in case.make(kit, tmp_path)]
    done = regraft(capsys, *arguments)
    lines = [line for line in done.err.splitlines() if not line.startswith("·")]
    assert done.code in (1, 2)
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert case.says in lines[0]
    assert done.out == ""
    assert list(out.parent.iterdir()) == []


def test_there_are_at_least_thirty() -> None:
    assert len(CASES) >= 30
