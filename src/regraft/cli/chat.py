"""``regraft chat``: a conversation in the terminal, with a switch of adapters between any two turns."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from regraft.cli.console import TerminalProgress, errors
from regraft.cli.options import BaseArgument, KvBitsOption, MemoryOption, ThreadsOption, parse_bytes, parse_kv_bits

if TYPE_CHECKING:
    from regraft.engine.engine import Engine

HELP = "/adapter NAME · /adapter (the base alone) · /adapters · /reset · /exit"


def chat(
    base: BaseArgument,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", "-a", metavar="[NAME=]ADAPTER", help="An adapter; may be given several times."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message before the conversation.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 500,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    memory: MemoryOption = "1GiB",
    kv_bits: KvBitsOption = "16",
    threads: ThreadsOption = None,
) -> None:
    """Talk to a base, with the first adapter given; /adapter NAME switches to another."""
    from regraft.engine.engine import Engine

    adapters = dict(map(_named, adapter or []))
    with Engine(
        base,
        adapters,
        memory_bytes=parse_bytes(memory),
        kv_bits=parse_kv_bits(kv_bits),
        threads=threads,
        progress=TerminalProgress(),
    ) as engine:
        _talk(engine, system, {"max_tokens": max_tokens, "temperature": temperature})


def _named(argument: str) -> tuple[str, str]:
    name, equals, path = argument.partition("=")
    return (name, path) if equals else (Path(argument).resolve().name, argument)


def _talk(engine: Engine, system: str | None, options: dict[str, float]) -> None:
    acting = next(iter(engine.adapters), None)
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    errors.print(f"[dim]{escape(HELP)}[/]")
    while (line := _ask(acting)) is not None:
        word, _, rest = line.partition(" ")
        if word in ("/exit", "/quit"):
            return
        if word == "/reset":
            messages = list(start)
        elif word == "/adapters":
            errors.print(escape(", ".join(engine.adapters) or "none"))
        elif word == "/adapter":
            acting = _switched(engine, rest.strip(), acting)
        elif word.startswith("/"):
            errors.print(escape(HELP))
        elif line.strip():
            messages = _answered(engine, [*messages, {"role": "user", "content": line}], acting, options)


def _ask(acting: str | None) -> str | None:
    """A line of the user's, None at the end of them."""
    if sys.stdin.isatty():
        errors.print(f"[bold]{escape(acting or 'base')}[/] > ", end="")
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def _switched(engine: Engine, name: str, acting: str | None) -> str | None:
    if name and name not in engine.adapters:
        errors.print(f"there is no adapter {escape(name)}; known: {escape(', '.join(engine.adapters) or 'none')}")
        return acting
    return name or None


def _answered(
    engine: Engine, messages: list[dict[str, str]], acting: str | None, options: dict[str, float]
) -> list[dict[str, str]]:
    """The conversation with its answer; without its last turn where there was none."""
    from regraft.errors import RegraftError

    text = ""
    try:
        for piece in engine.stream(messages, acting, **options):
            typer.echo(piece.text, nl=False)
            text += piece.text
    except RegraftError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        return messages[:-1]
    except KeyboardInterrupt:
        errors.print("[dim](stopped)[/]")
    typer.echo()
    return [*messages, {"role": "assistant", "content": text}]
