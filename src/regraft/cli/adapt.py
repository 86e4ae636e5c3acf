"""``regraft adapt``: an adapter + a compressed base → the adapter, recovered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.console import TerminalProgress, out, print_json
from regraft.cli.options import (
    AdapterOption,
    DeviceOption,
    JsonOption,
    MetricOption,
    OutOption,
    OverwriteOption,
    QuietOption,
    SchemaOption,
    SeedOption,
    at_most_one,
)


def adapt(
    compressed: Annotated[str, typer.Argument(metavar="COMPRESSED", help="A directory that regraft compress wrote.")],
    teacher: Annotated[str, typer.Option(metavar="BASE", help="The uncompressed base that it was made from.")],
    output: OutOption,
    adapter: AdapterOption = None,
    data: Annotated[
        Path | None, typer.Option(help="Training rows, JSON lines; without any, the teacher writes its own.")
    ] = None,
    dev: Annotated[Path | None, typer.Option(help="Rows that pick the checkpoint; default: a part of --data.")] = None,
    test: Annotated[Path | None, typer.Option(help="Rows of the report card; default: a part of --data.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Prompts without answers, JSON lines or one a line; the teacher answers them.")
    ] = None,
    metric: MetricOption = "exact",
    schema: SchemaOption = None,
    shared: Annotated[
        Path | None, typer.Option(help="Start from this shared recovery: one that was adapted without --adapter.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML with any of the settings.")] = None,
    recover: Annotated[str | None, typer.Option(help="Recovery bypass: linear, gelu or none.")] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of the recovery bypasses.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=0, help="Tokens to train on; 0 stops at the closed form, within a minute or two.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    seed: SeedOption = None,
    all_of: Annotated[
        Path | None,
        typer.Option("--all", metavar="DIR", help="Each adapter in this folder, to OUT/NAME; --data is a folder too."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="With --all: adapters at once, as Ray tasks.")] = 1,
    device: DeviceOption = "cpu",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Carry an adapter over to a compressed base (CA-LoRA): inherit, recover, distil; writes a report card."""
    from regraft.adapt.config import AdaptConfig, override
    from regraft.adapt.job import Job
    from regraft.adapt.run import run
    from regraft.cli.adapt_all import adapt_all
    from regraft.cli.card import print_card
    from regraft.config import load_yaml

    settings = override(
        load_yaml(AdaptConfig, config) if config else AdaptConfig(),
        {
            "recover.kind": recover,
            "recover.rank": rank,
            "train.tokens": tokens,
            "train.learning_rate": learning_rate,
            "seed": seed,
        },
    )
    job = Job(
        compressed=compressed,
        teacher=teacher,
        adapter=at_most_one(adapter),
        data=None if all_of else data,
        dev=dev,
        test=test,
        prompts=prompts,
        metric=metric,
        schema=schema,
        shared=shared,
        config=settings,
        device=device,
    )
    if all_of is not None:
        adapt_all(job, all_of, data, output, workers=workers, overwrite=overwrite, is_json=json_output, quiet=quiet)
        return
    card = run(job, output, overwrite=overwrite, progress=TerminalProgress(quiet=quiet))
    if json_output:
        print_json(card.to_json())
        return
    print_card(card)
    out.print(f"written to {output}; report: {output / 'report_card.html'}")
