"""``--json`` of every verb: one document on stdout and nothing else, with the keys that the pages promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regraft import __version__
from tests.cli.run import Kit, regraft

VERBS = ["compress", "adapt", "eval", "run", "chat", "info", "bench", "check", "export"]


def asked(capsys: Any, *arguments: object, code: int = 0) -> dict[str, Any]:
    done = regraft(capsys, *arguments, "--json")
    assert done.code == code, done.err
    found = json.loads(done.out)
    assert isinstance(found, dict)
    return found


def test_info_of_a_base(kit: Kit, capsys: Any) -> None:
    plain, small = asked(capsys, "info", kit.base), asked(capsys, "info", kit.small, "--slots")
    assert {"name", "fingerprint"} <= plain.keys() & small.keys()
    assert "slots" not in plain and "layers.0.mlp.up_proj" in small["slots"]


def test_info_of_an_adapter(kit: Kit, capsys: Any) -> None:
    assert asked(capsys, "info", kit.lora)
    checked = asked(capsys, "info", kit.lora, "--base", kit.base, "--slots")
    assert set(checked["slots"]) == {f"layers.{n}.self_attn.{name}" for n in (0, 1) for name in ("q_proj", "v_proj")}


def test_compress(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [quantize: {method: rtn, bits: 4, group_size: 32}]\n")
    report = asked(capsys, "compress", kit.base, "-o", tmp_path / "out", "--recipe", recipe)
    assert report["sizes"]["bytes_after"] < report["sizes"]["bytes_before"]
    assert (tmp_path / "out" / "regraft.json").exists()


def test_every_verb_takes_a_pruned_base(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    recipe, small = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text("steps: [prune: {importance: l2, ratio: 0.3, multiple: 8, ranking: global, protect_first: 1}]\n")
    report = asked(capsys, "compress", kit.base, "-o", small, "--recipe", recipe)
    assert report["pruned"]["layers"][0]["mlp"] == 128 and not report["stock_loadable"]
    info = asked(capsys, "info", small, "--slots")
    assert info["pruned"]["mlp"] == [layer["mlp"] for layer in report["pruned"]["layers"]]
    assert info["slots"]["layers.1.mlp.up_proj"]["shape"] == [info["pruned"]["mlp"][1], 64]
    asked(capsys, "info", kit.lora, "--base", small)
    asked(capsys, "eval", small, "--adapter", kit.lora, "--data", kit.data, "--limit", 3)
    asked(capsys, "run", small, "the quick", "--adapter", kit.lora, "--max-tokens", 3, "--memory", "1MiB")


def test_uniform_is_told_on_the_command_line(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: [prune: {importance: flap, ratio: 0.3, multiple: 8, ranking: global, protect_last: 1}]\n")
    report = asked(capsys, "compress", kit.base, "-o", tmp_path / "out", "--recipe", recipe, "--uniform")
    assert report["stock_loadable"]
    assert len({(layer["heads"], layer["mlp"]) for layer in report["pruned"]["layers"]}) == 1
    assert report["recipe"]["steps"][0]["prune"]["uniform"]


def test_eval(kit: Kit, capsys: Any) -> None:
    result = asked(capsys, "eval", kit.base, "--adapter", kit.lora, "--data", kit.data, "--limit", 5)
    assert {"metric", "score", "ci95", "n"} <= result.keys()
    assert (result["metric"], result["n"], result["answers"], result["constrained"]) == ("exact", 5, "engine", None)
    torch = asked(capsys, "eval", kit.base, "-a", kit.lora, "--data", kit.data, "--limit", 5, "--runtime", "torch")
    assert (torch["answers"], torch["n"]) == ("torch", 5)


def test_eval_held_to_a_schema(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    data, schema = tmp_path / "test.jsonl", tmp_path / "schema.json"
    data.write_text(json.dumps({"prompt": "the quick", "completion": '{"a": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}'}) + "\n")
    schema.write_text(json.dumps({"const": {"a": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"}}))
    ask = ("eval", kit.base, "--data", data, "-m", "json-fields", "--max-tokens", 120)
    result = asked(capsys, *ask)
    assert (result["score"], result["constrained"]["score"]) == (0, 1)
    said = regraft(capsys, *ask).out.splitlines()
    assert [line.split("  ")[0] for line in said] == ["json-fields 0.000", "json-fields held to the schema 1.000"]
    free = asked(capsys, *ask, "--runtime", "torch")
    assert free["constrained"] is None
    assert regraft(capsys, *ask, "--runtime", "torch", "--schema", schema).code == 2


def test_eval_of_choices(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    arguments = ["eval", kit.base, "--data", kit.data, "--choices", "--limit", 5]
    plain = asked(capsys, *arguments, "--answers", tmp_path / "out.jsonl")
    assert {"acc", "acc_ci95", "acc_norm", "acc_norm_ci95", "n", "chance", "majority", "base"} <= plain.keys()
    assert (plain["metric"], plain["n"], plain["chance"], plain["adapters"]) == ("choices", 5, pytest.approx(1 / 3), {})
    assert plain["acc"] <= 1.0 and "right" not in plain
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {tuple(line["choices"]) for line in lines} == {(" fox 0", " fox 1", " fox 2")}
    mixed = asked(capsys, *arguments, "--adapter", f"{kit.lora}*0.5", "--answers", tmp_path / "mixed.jsonl")
    assert mixed["adapters"] == {str(kit.lora): 0.5}
    assert (tmp_path / "mixed.jsonl").read_text() != (tmp_path / "out.jsonl").read_text()


def test_run(kit: Kit, capsys: Any) -> None:
    result = asked(capsys, "run", kit.small, "the quick", "--adapter", kit.lora, "--max-tokens", 5, "--memory", "1MiB")
    assert result.keys() == {"prompt", "answer", "finish_reason", "tokens"}
    assert 1 <= result["tokens"] <= 5


def test_export(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    result = asked(capsys, "export", kit.small, "-o", tmp_path / "out.gguf", "--no-check")
    assert result == {
        "path": str(tmp_path / "out.gguf"),
        "format": "gguf",
        "bytes": (tmp_path / "out.gguf").stat().st_size,
        "parity": None,
        "unchecked": "not asked for",
    }


def test_adapt_and_check(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("train: {tokens: 600}\ndata: {dev_examples: 6, test_examples: 8}\n")
    arguments = ("--teacher", kit.base, "--adapter", kit.lora, "--data", kit.data, "--config", config)
    card = asked(capsys, "adapt", kit.small, *arguments, "-o", tmp_path / "out")
    assert {"metric", "teacher", "plugged_in", "adapted", "lift_kept", "no_lift", "retention"} <= card.keys()
    assert "score" in card["teacher"]
    kept = tmp_path / "out" / "report_card.json"
    assert json.loads(kept.read_text())["teacher"] == card["teacher"]
    found: dict[str, Any]
    for found, gates, code in (
        ({"retention": 0.98}, {"min_retention": 0.97}, 0),
        ({"retention": 0.96}, {"min_retention": 0.97}, 3),
        ({"retention": None}, {"min_retention": 0.97}, 3),
        ({"lift_kept": 0.91, "retention": 0.5}, {}, 0),
        ({"lift_kept": 0.89, "retention": 1.0}, {}, 3),
        ({"lift_kept": 0.89}, {"min_lift_kept": 0.8}, 0),
        ({"lift_kept": 0.89, "retention": 0.9}, {"min_lift_kept": 0.8, "min_retention": 0.95}, 3),
        ({"no_lift": "it guesses", "retention": 1.0}, {}, 3),
        ({"no_lift": "it guesses", "retention": 1.0}, {"min_retention": 0.97}, 0),
    ):
        found = {"lift_kept": None, "no_lift": None, "retention": None} | found
        kept.write_text(json.dumps(json.loads(kept.read_text()) | found))
        options = [part for name, least in gates.items() for part in (f"--{name.replace('_', '-')}", least)]
        verdict = asked(capsys, "check", tmp_path / "out", *options, code=code)
        asked_for = {"min_lift_kept": None if gates else 0.9, "min_retention": None} | gates
        assert verdict == found | asked_for | {"met": code == 0}


@pytest.mark.parametrize(
    ("found", "options", "lines"),
    [
        (
            {"lift_kept": 0.95, "retention": 0.98},
            (),
            ["lift kept 95.0%, at least 90.0% asked: met", "retention 98.0%"],
        ),
        (
            {"lift_kept": 0.85, "retention": 0.98},
            ("--min-retention", 0.9),
            ["lift kept 85.0%", "retention 98.0%, at least 90.0% asked: met"],
        ),
        (
            {"no_lift": "it guesses", "retention": 0.98},
            (),
            ["lift kept cannot be judged: there is no lift: it guesses", "retention 98.0%"],
        ),
        (
            {"retention": 0.98},
            (),
            [
                "lift kept cannot be judged: the card was written before lift was measured; adapt again, "
                "or ask for --min-retention",
                "retention 98.0%",
            ],
        ),
        (
            {"no_lift": "it guesses"},
            ("--min-retention", 0.9),
            ["lift kept unknown, as there is no lift: it guesses", "retention cannot be judged: the teacher scores 0"],
        ),
    ],
)
def test_check_says_what_it_judged(
    found: dict[str, Any], options: tuple[Any, ...], lines: list[str], tmp_path: Path, capsys: Any
) -> None:
    arm = {"score": 0.5, "ci95": [0.4, 0.6], "agreement": 1.0}
    card = {"metric": "exact", "n": 9, "teacher": arm, "plugged_in": arm, "adapted": arm, "won_back": None}
    record = {"examples": [], "adapter": "a", "base": "b", "settings": {}, "created": "today"}
    kept = {"retention": None, "retention_ci95": None}
    (tmp_path / "report_card.json").write_text(json.dumps(card | record | kept | found))
    assert regraft(capsys, "check", tmp_path, *options).out.splitlines() == lines


def test_version(capsys: Any) -> None:
    assert regraft(capsys, "--version").out.strip() == __version__


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb(verb: str, capsys: Any) -> None:
    done = regraft(capsys, verb, "--help")
    assert done.code == 0
    assert "Usage:" in done.out and f" {verb} " in done.out


def test_compress_plan(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    found = asked(capsys, "compress", kit.base, "--plan", "--recipe", "int8")
    assert found["kind"] == "plan"
    for name in ("bytes_on_disk", "bytes_in_memory", "bytes_per_token"):
        assert 0 < found["after"][name] < found["before"][name]
    assert found["after"]["tokens_per_s_at_most"] > found["before"]["tokens_per_s_at_most"]
    done = regraft(capsys, "compress", kit.base, "--recipe", "int8")
    assert done.code == 2
    assert "no directory to write: expected --out DIR, or --plan" in " ".join(done.err.split())
