"""``regraft info``: what a base or an adapter is, and what the engine runs on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from regraft.cli.console import TerminalProgress, human_bytes, make_table, out, print_json
from regraft.cli.options import JsonOption
from regraft.errors import UsageError


def info(
    path: Annotated[
        str | None, typer.Argument(metavar="BASE|ADAPTER", help="A base or an adapter; with --engine not needed.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Check an adapter against this base: shapes, scales, effect, fingerprint.")
    ] = None,
    slots: Annotated[bool, typer.Option("--slots", help="List every slot.")] = False,
    engine: Annotated[
        bool, typer.Option("--engine", help="The engine on this machine: kernels, threads, pages; those of a BASE too.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Describe a base or an adapter: sizes, bits per weight, slots, scales, provenance; or the engine."""
    if engine:
        data = _describe_engine(path)
    elif path is None:
        raise UsageError("nothing to describe", expected="a BASE or an ADAPTER, or --engine")
    elif _is_adapter(Path(path)):
        data = _describe_adapter(path, base)
    else:
        data = _describe_base(path)
    slots = slots and not engine
    if not slots:
        data.pop("slots", None)
    if json_output:
        print_json(data)
        return
    for key, value in data.items():
        if key != "slots":
            out.print(f"[bold]{key.replace('_', ' '):>22}[/]  {_shown(key, value)}", soft_wrap=True)
    if slots:
        columns = list(next(iter(data["slots"].values()), {}))
        table = make_table("slot", *(column.replace("_", " ") for column in columns))
        for slot, row in data["slots"].items():
            table.add_row(slot, *(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
        out.print(table)


def _is_adapter(folder: Path) -> bool:
    from regraft.formats.records import record_kind

    return (folder / "adapter_config.json").exists() or record_kind(folder) == "adapter"


def _describe_base(path: str) -> dict[str, Any]:
    from regraft.models.describe import describe_base
    from regraft.models.load import load_base

    return describe_base(load_base(path, progress=TerminalProgress()))


def _describe_adapter(path: str, base: str | None) -> dict[str, Any]:
    from regraft.bypass.describe import describe_adapter, describe_files
    from regraft.bypass.directory import read_adapter
    from regraft.models.load import load_base

    if base is None:
        return describe_files(Path(path))
    loaded = load_base(base, progress=TerminalProgress())
    return describe_adapter(read_adapter(path, loaded), loaded)


def _describe_engine(base: str | None) -> dict[str, Any]:
    from regraft.engine.describe import describe_engine
    from regraft.engine.weights.open_base import open_base

    return describe_engine(open_base(base, head_bits=8, progress=TerminalProgress()) if base else None)


def _shown(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_shown(k, v)}" for k, v in value.items() if v not in (None, {}, []))
    if key.startswith("bytes") and isinstance(value, int | float):
        return human_bytes(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
