"""What each way of making a base smaller costs and saves: ``python -m benchmarks.compression PHASE``.

    importances   perplexity by what judges the parts that go, random ones being the baseline
    quality       perplexity and bytes of whole recipes
    adapters      what the zoo's adapters keep on them, plugged in; with --adapt, also carried over by CA-LoRA
    speed         the engine's decode speed, in rounds interleaved with the recipe's dense companion

Reads ``compression.yaml``, appends a JSON line per finished setting to ``results/compression.jsonl``, and skips what is
there: a stopped run is taken up by the same command. The calibration text is written once, by the base.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import PreTrainedModel

import regraft
from benchmarks.beside import beside
from regraft.adapt.config import AdaptConfig
from regraft.adapt.job import Job
from regraft.adapt.run import run as adapt
from regraft.compress.prune.settings import Prune
from regraft.compress.prune.step import prune
from regraft.compress.recipe import AdapterRows, Recipe, load_recipe, with_options
from regraft.compress.run import compress
from regraft.config import parse
from regraft.evaluate.dataset import read_examples
from regraft.evaluate.engine_answers import EngineAnswers
from regraft.evaluate.perplexity import default_text, perplexity
from regraft.evaluate.score import score_examples
from regraft.evaluate.self_text import write_text
from regraft.models.load import Base, load_base
from zoo.prepare import ROOT, TASKS, prepare
from zoo.train import ADAPTERS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "compression.jsonl"
WORK = ROOT / "data" / "compression"
Line = dict[str, Any]
Work = Iterator[tuple[str, Callable[[], Line]]]  # the name of a setting, and how its line is found


class Plan:
    """The plan, the lines so far, and what several settings share."""

    def __init__(self, plan: dict[str, Any], results: Path) -> None:
        self.plan, self.results = plan, results
        self._original: Base | None = None

    def run(self, phase: str, work: Work, only: str | None) -> None:
        """Find the lines that are missing."""
        settings = list(work)
        is_name = only in [name for name, _ in settings]
        for name, find in settings:
            is_wanted = only is None or (only == name if is_name else only in name)
            if (phase, name) in self.done or not is_wanted:
                continue
            line = {"phase": phase, "name": name, **find()}
            print(json.dumps(line), flush=True)
            machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
            line |= {"version": regraft.__version__, "torch": torch.__version__, "machine": machine}
            self.results.parent.mkdir(parents=True, exist_ok=True)
            with self.results.open("a") as file:
                file.write(json.dumps(line) + "\n")

    @property
    def done(self) -> set[tuple[str, str]]:
        """Phase and name of the lines there are by now."""
        lines = self.results.read_text().splitlines() if self.results.exists() else []
        return {(line["phase"], line["name"]) for line in map(json.loads, lines)}

    @property
    def original(self) -> Base:
        """The uncompressed base."""
        self._original = self._original or load_base(self.plan["base"])
        return self._original

    def text(self) -> list[list[int]]:
        """The calibration text, written on first use."""
        settings = self.plan["calibration"]
        path = WORK / f"calibration-{settings['num_sequences']}x{settings['sequence_length']}.json"
        if not path.exists():
            base = self.original
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(write_text(base.model, base.tokenizer, **settings, seed=0)))
        found: list[list[int]] = json.loads(path.read_text())
        return found

    def perplexity(self, model: PreTrainedModel, tokens: int) -> float:
        """On the beginning of the packaged novel."""
        return perplexity(model, self.original.tokenizer, default_text(), max_tokens=tokens).value

    def base(self, method: str) -> Path:
        """The base that a method makes, on first use."""
        folder = WORK / "bases" / method
        if not folder.exists():
            compress(self.plan["base"], folder, self._recipe(self.plan["methods"][method]))
        return folder

    def _recipe(self, method: dict[str, Any]) -> Recipe:
        """A packaged recipe, perhaps calibrated on adapters of the zoo, or with other settings in its steps."""
        if "recipe" in method:
            calibrate_on = [_train_rows(task) for task in method.get("calibrate_on", ())]
            return with_options(load_recipe(method["recipe"]), adapters=calibrate_on)
        ((name, changes),) = method["replace"].items()
        data = load_recipe(name).model_dump(exclude_unset=True)
        for step in data["steps"]:
            for key in changes.keys() & step.keys():
                step[key] |= changes[key]
        return parse(Recipe, data, name)


def _train_rows(task: str) -> AdapterRows:
    """A task's adapter and rows that are never scored; by paths that say nothing of the machine, as lines keep them."""
    adapter, data = (Path(os.path.relpath(path)) for path in (ADAPTERS / task, prepare(task) / "train.jsonl"))
    return AdapterRows(adapter=adapter, data=data)


def importances(plan: Plan) -> Work:
    """Prune in memory, by every importance that there is."""
    settings = plan.plan["importances"]
    yield "dense", lambda: _judged(plan, plan.original, 0.0)
    for ratio in settings["ratios"]:
        for units, how in settings["units"].items():
            for judge, by in settings["judged_by"].items():
                chosen = parse(Prune, {"ratio": ratio, **how, **by}, judge)
                yield f"{judge}; {units}; {ratio}", lambda chosen=chosen: _pruned(plan, chosen)  # type: ignore[misc]


def _pruned(plan: Plan, settings: Prune) -> Line:
    sequences = torch.tensor(plan.text())
    some = sequences[:: len(sequences) // plan.plan["importances"]["sequences"]]  # of all kinds of text
    base, pruned = prune(plan.original, settings, some)
    return _judged(plan, base, pruned.removed)


def _judged(plan: Plan, base: Base, removed: float) -> Line:
    tokens = plan.plan["importances"]["perplexity_tokens"]
    return {"removed": removed, "perplexity": plan.perplexity(base.model, tokens), "tokens": tokens}


def quality(plan: Plan) -> Work:
    """Perplexity and sizes of what the recipes make."""
    for method in plan.plan["methods"]:
        yield method, lambda method=method: _quality(plan, method)  # type: ignore[misc]


def _quality(plan: Plan, method: str) -> Line:
    base = load_base(plan.base(method))
    assert base.record is not None
    record, tokens = base.record, plan.plan["perplexity_tokens"]
    found = {"perplexity": plan.perplexity(base.model, tokens), **record.sizes.model_dump(), "seconds": record.seconds}
    if record.experts is not None:
        found["captured"] = sum(record.experts.captured) / len(record.experts.captured)
    return found | {"removed": record.pruned.removed if record.pruned else 0.0, "recipe": record.recipe}


def adapters(plan: Plan, *, is_adapted: bool) -> Work:
    """Scores of the zoo's adapters on test rows: on the uncompressed base, then on each method's."""
    for task in plan.plan["tasks"]:
        yield f"teacher; {task}", lambda task=task: {"score": _score(plan.plan["base"], task)}  # type: ignore[misc]
        for method in plan.plan["methods"]:
            yield (
                f"{method}; {task}",
                lambda method=method, task=task: {"score": _score(plan.base(method), task)},  # type: ignore[misc]
            )
            if is_adapted:
                yield f"{method}, adapted; {task}", lambda method=method, task=task: _adapted(plan, method, task)  # type: ignore[misc]


def _score(base: str | Path, task: str) -> float:
    examples = read_examples(prepare(task) / "test.jsonl")
    answers = EngineAnswers(base)
    return score_examples(answers, examples, metric=TASKS[task].metric, adapter=ADAPTERS / task).score.value


def _adapted(plan: Plan, method: str, task: str) -> Line:
    data = prepare(task)
    job = Job(
        compressed=str(plan.base(method)),
        teacher=plan.plan["base"],
        adapter=str(ADAPTERS / task),
        data=data / "train.jsonl",
        dev=data / "dev.jsonl",
        test=data / "test.jsonl",
        metric=TASKS[task].metric,
        config=AdaptConfig(),
    )
    with tempfile.TemporaryDirectory() as folder:
        card = adapt(job, Path(folder) / "adapted")
    kept = {"lift_kept": card.lift_kept, "retention": card.retention, "won_back": card.won_back}
    return {"score": card.adapted.score} | kept


def speed(plan: Plan) -> Work:
    """Tokens per second of a method and of its companion, round by round."""
    for method, how in plan.plan["methods"].items():
        if "beside" in how:
            yield (
                method,
                lambda method=method, other=how["beside"]: _interleaved(plan, method, other),  # type: ignore[misc]
            )


def _interleaved(plan: Plan, method: str, other: str) -> Line:
    return beside(method, plan.base(method), other, plan.base(other), rounds=plan.plan["rounds"])


def main() -> None:
    """Measure what is missing of a phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=["importances", "quality", "adapters", "speed"])
    parser.add_argument("--only", help="the setting of this name, or else those with this in their name")
    parser.add_argument("--adapt", action="store_true", help="adapters: train each for each base too")
    parser.add_argument("--plan", type=Path, default=HERE / "compression.yaml")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    plan = Plan(yaml.safe_load(args.plan.read_text()), args.results)
    phases: dict[str, Callable[[], Work]] = {
        "importances": lambda: importances(plan),
        "quality": lambda: quality(plan),
        "adapters": lambda: adapters(plan, is_adapted=args.adapt),
        "speed": lambda: speed(plan),
    }
    plan.run(args.phase, phases[args.phase](), args.only)


if __name__ == "__main__":
    main()
