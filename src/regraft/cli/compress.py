"""``regraft compress``: a base → a smaller base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli.console import TerminalProgress, human_bytes, make_table, out, print_json
from regraft.cli.options import (
    BaseArgument,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    parse_bytes,
)
from regraft.errors import UsageError

if TYPE_CHECKING:
    from regraft.compress.recipe import AdapterRows, Recipe
    from regraft.compress.run import CompressionReport

CONTEXT = 512  # tokens before the one whose bytes --plan counts

CalibrateOnOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ADAPTER=ROWS.jsonl",
        help="Calibrate on rows of a task too, with its adapter attached; once for each adapter.",
    ),
]


def compress(
    base: BaseArgument,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory to write; it appears whole or not at all.")
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", "-r", help="int8, int4, int3, int2, prune25, moe, mix, or a YAML file.")
    ] = "int4",
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would come of it: sizes, and what a token reads.")
    ] = False,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Text for calibrated methods: plain text or JSON lines; default: the base writes its own."),
    ] = None,
    calibrate_on: CalibrateOnOption = None,
    text: Annotated[
        Path | None, typer.Option(help="Held-out plain text for the perplexities; default: a packaged novel.")
    ] = None,
    perplexity: Annotated[bool, typer.Option(help="Measure perplexity before and after.")] = True,
    uniform: Annotated[
        bool, typer.Option("--uniform", help="Prune all layers to one width, which plain transformers loads.")
    ] = False,
    target_size: Annotated[
        str | None,
        typer.Option(help="Bytes of all weights, such as 60MB: each slot gets the bits that its rounding asks for."),
    ] = None,
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

    resolved = with_options(
        load_recipe(recipe),
        source=calibration,
        adapters=[_adapter_rows(given) for given in calibrate_on or ()],
        seed=seed,
        uniform=uniform,
        target_bytes=None if target_size is None else parse_bytes(target_size, "--target-size"),
    )
    if plan:
        _print_plan(base, resolved, json_output)
        return
    if output is None:
        raise UsageError("no directory to write", expected="--out DIR, or --plan")
    held_out = None if not perplexity else read_text(text) if text else default_text()
    progress = TerminalProgress(quiet=quiet)
    report = run(base, output, resolved, text=held_out, overwrite=overwrite, device=device, progress=progress)
    if json_output:
        print_json(report.model_dump())
        return
    _print_report(report)
    out.print(f"written to {output}")


def _adapter_rows(given: str) -> AdapterRows:
    from regraft.compress.recipe import AdapterRows

    adapter, _, rows = given.partition("=")
    if not (adapter and rows):
        raise UsageError("--calibrate-on", expected="ADAPTER=ROWS.jsonl", found=repr(given))
    return AdapterRows(adapter=Path(adapter), data=Path(rows))


def _print_report(report: CompressionReport) -> None:
    table = make_table("", "before", "after")
    sizes = report.sizes
    table.add_row("on disk", human_bytes(sizes.bytes_before), human_bytes(sizes.bytes_after))
    table.add_row("on disk, as float16", human_bytes(sizes.bytes_float16), "")
    if report.pruned and report.pruned.removed:
        table.add_row("parameters of the layers", "", f"{1 - report.pruned.removed:.1%}")
    if report.experts:
        captured = sum(report.experts.captured) / len(report.experts.captured)
        table.add_row("captured by a token's experts", "", f"{captured:.1%}")
    table.add_row("bits per weight, slots", "", f"{sizes.bits_per_weight:.2f}")
    table.add_row("bits per weight, model", "", f"{sizes.bits_per_weight_model:.2f}")
    if report.perplexity:
        table.add_row("perplexity, held out", f"{report.perplexity.before:.2f}", f"{report.perplexity.after:.2f}")
    out.print(table)
    worst = max(report.slots, key=lambda slot: report.slots[slot].error)
    out.print(f"largest error: {worst}, {report.slots[worst].error:.1%} of its weight's norm")


def _print_plan(base: str, recipe: Recipe, json_output: bool) -> None:
    from regraft.bench.traffic import read_bandwidth
    from regraft.compress.plan import plan, to_json
    from regraft.engine.engine import default_threads
    from regraft.native import _core

    before, after = plan(base, recipe)
    bandwidth = read_bandwidth(_core.Core(default_threads()), repeats=3)
    speeds = [bandwidth / one.bytes_per_token(CONTEXT) for one in (before, after)]
    if json_output:
        described = {
            name: {**to_json(one, CONTEXT), "tokens_per_s_at_most": speed}
            for name, one, speed in zip(("before", "after"), (before, after), speeds, strict=True)
        }
        print_json({"kind": "plan", "context": CONTEXT, "bytes_per_s": bandwidth, **described})
        return
    table = make_table("", "before, 16 bits", "after")
    table.add_row("parameters", f"{before.parameters / 1e6:,.1f} M", f"{after.parameters / 1e6:,.1f} M")
    for title, name in (("on disk", "disk"), ("weights in memory, engine", "memory")):
        table.add_row(title, *(human_bytes(getattr(one, name)) for one in (before, after)))
    table.add_row("read per token", *(human_bytes(one.bytes_per_token(CONTEXT)) for one in (before, after)))
    table.add_row("tokens per second, at most", *(f"{speed:,.0f}" for speed in speeds))
    out.print(table)
    out.print(
        f"per token: one sequence, {CONTEXT} tokens of context; speed: if memory, which gives "
        f"{bandwidth / 1e9:.1f} GB/s now, is all that it waits for"
    )
