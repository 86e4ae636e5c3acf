"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BaseArgument = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="A model directory, a .gguf file, a compressed directory, or the name smollm2-135m."
    ),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Directory to write; it appears whole or not at all.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace the output directory if it exists.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
DeviceOption = Annotated[str, typer.Option(help="A torch device: cpu, cuda, mps.")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of everything random; overrides the config's.")]
AdapterOption = Annotated[
    str | None, typer.Option("--adapter", "-a", metavar="ADAPTER", help="A PEFT or regraft adapter directory.")
]
MetricOption = Annotated[
    str, typer.Option("--metric", "-m", help="How answers are scored: exact, f1, rougeL, json-fields or choice.")
]
