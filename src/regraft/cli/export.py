"""``regraft export``: a base or an adapter in the form that another engine loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regraft.cli.console import TerminalProgress, human_bytes, out, print_json
from regraft.cli.options import AdapterOption, BaseArgument, JsonOption, OverwriteOption, QuietOption, at_most_one


def export(
    base: BaseArgument,
    path: Annotated[
        Path, typer.Option("--out", "-o", help="Directory or .gguf file to write; it appears whole or not at all.")
    ],
    adapter: AdapterOption = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="hf|peft|gguf", help="Default: gguf if --out ends so.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Load it with the engine that it is for, and compare logits.")
    ] = True,
    overwrite: OverwriteOption = False,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a base for transformers or llama.cpp; with --adapter, that adapter for PEFT or llama.cpp."""
    from regraft.export.run import Export, export_adapter, export_base, parse_format

    one = at_most_one(adapter)
    chosen = parse_format(form or ("gguf" if path.suffix == ".gguf" else "peft" if one else "hf"))
    progress = TerminalProgress(quiet=quiet or json_output)
    job = Export(base, path, chosen, check=check, overwrite=overwrite, progress=progress)
    done = export_adapter(job, Path(one)) if one else export_base(job)
    if json_output:
        print_json(done.as_dict())
        return
    out.print(f"{done.path}: {done.format}, {human_bytes(done.bytes)}", soft_wrap=True)
    if done.parity is None:
        out.print(f"not compared with another engine: {done.unchecked}", soft_wrap=True)
        return
    near = f"logits within {done.parity.error:.2%} of ours on {done.parity.tokens} tokens"
    out.print(f"{done.parity.engine}: {near}, the same first choice for {done.parity.same_top:.0%}", soft_wrap=True)
