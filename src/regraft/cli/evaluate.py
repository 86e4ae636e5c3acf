"""``regraft eval``: score generated answers on a test file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.choices import evaluate_choices, refuse_what_generates
from regraft.cli.console import TerminalProgress, out, print_json
from regraft.cli.options import (
    BaseArgument,
    DeviceOption,
    JsonOption,
    MetricOption,
    QuietOption,
    SchemaOption,
    WeightedAdapterOption,
    at_most_one,
    parse_runtime,
)


def evaluate(
    base: BaseArgument,
    data: Annotated[Path, typer.Option(help="Test rows, JSON lines.")],
    adapter: WeightedAdapterOption = None,
    choices: Annotated[
        bool, typer.Option("--choices", help="Multiple choice by log-likelihood: acc and acc_norm, nothing generated.")
    ] = False,
    metric: MetricOption = "exact",
    limit: Annotated[int | None, typer.Option(min=1, help="Score the first rows only.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts that are answered side by side.")] = 32,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer; default: the longest reference and a little.")
    ] = None,
    answers: Annotated[Path | None, typer.Option(help="Write prompts, references and answers here.")] = None,
    schema: SchemaOption = None,
    runtime: Annotated[
        str, typer.Option(metavar="auto|engine|torch", help="What answers; auto is the engine, if it runs the base.")
    ] = "auto",
    device: DeviceOption = "cpu",
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score what a base, with or without an adapter, answers to the prompts of a test file."""
    if choices:
        others = {"metric": metric != "exact", "max_tokens": max_tokens, "device": device != "cpu", "schema": schema}
        refuse_what_generates(**others, runtime=runtime != "auto")
        return evaluate_choices(base, data, adapter, limit, batch_size, answers, as_json=json_output, quiet=quiet)
    from regraft.evaluate.answers import find_schema, usable_schema
    from regraft.evaluate.dataset import read_examples
    from regraft.evaluate.metrics import make_metric
    from regraft.evaluate.open_answers import open_answers
    from regraft.evaluate.score import score_examples, write_answers

    one, progress = at_most_one(adapter), TerminalProgress(quiet=quiet)
    examples = read_examples(data)[:limit]
    make_metric(metric, [example.answer for example in examples])  # a wrong name should fail before a model is loaded
    found = find_schema(schema, data, metric)
    answering = open_answers(base, parse_runtime(runtime), device=device, batch_size=batch_size, progress=progress)
    result = score_examples(
        answering,
        examples,
        metric=metric,
        adapter=Path(one) if one else None,
        max_new_tokens=max_tokens,
        schema=usable_schema(found, answering, is_asked=schema is not None, progress=progress),
        progress=progress,
    )
    if answers:
        write_answers(answers, examples, result.answers)
    if json_output:
        print_json(result.to_json())
        return
    for score, how in ((result.score, ""), (result.constrained, " held to the schema")):
        if score is not None:
            low, high = score.ci95
            out.print(f"{metric}{how} {score.value:.3f}  (95 % CI {low:.3f} to {high:.3f}, n = {score.n})")
