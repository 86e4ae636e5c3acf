"""``regraft compress``: a base → a smaller base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.console import TerminalProgress, human_bytes, make_table, out, print_json
from regraft.cli.options import (
    BaseArgument,
    DeviceOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
)


def compress(
    base: BaseArgument,
    output: OutOption,
    recipe: Annotated[str, typer.Option("--recipe", "-r", help="int8, int4, int3, int2, or a YAML file.")] = "int4",
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text for calibrated methods: plain text or JSON lines; default: the base writes its own."),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Held-out plain text for the perplexities; default: a packaged novel.")
    ] = None,
    perplexity: Annotated[bool, typer.Option(help="Measure perplexity before and after.")] = True,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Prune all layers to one width, which plain transformers loads.")
    ] = False,
    seed: SeedOption = None,
    device: DeviceOption = "cpu",
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compress a base once, for all adapters."""
    from regraft.compress.recipe import load_recipe, with_options
    from regraft.compress.run import compress as run
    from regraft.evaluate.perplexity import default_text, read_text

    resolved = with_options(load_recipe(recipe), source=calibration, seed=seed, uniform=uniform)
    held_out = None if not perplexity else read_text(text) if text else default_text()
    report = run(
        base,
        output,
        resolved,
        text=held_out,
        overwrite=overwrite,
        device=device,
        progress=TerminalProgress(quiet=quiet),
    )
    if json_output:
        print_json(report.model_dump())
        return
    table = make_table("", "before", "after")
    sizes = report.sizes
    table.add_row("on disk", human_bytes(sizes.bytes_before), human_bytes(sizes.bytes_after))
    table.add_row("on disk, as float16", human_bytes(sizes.bytes_float16), "")
    if report.pruned:
        table.add_row("parameters of the layers", "", f"{1 - report.pruned.removed:.1%}")
    table.add_row("bits per weight, slots", "", f"{sizes.bits_per_weight:.2f}")
    table.add_row("bits per weight, model", "", f"{sizes.bits_per_weight_model:.2f}")
    if report.perplexity:
        table.add_row("perplexity, held out", f"{report.perplexity.before:.2f}", f"{report.perplexity.after:.2f}")
    out.print(table)
    worst = max(report.slots, key=lambda slot: report.slots[slot].error)
    out.print(f"largest error: {worst}, {report.slots[worst].error:.1%} of its weight's norm")
    out.print(f"written to {output}")
