"""``regraft run``: one prompt, one answer, streamed by the engine."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli.console import TerminalProgress, print_json
from regraft.cli.options import (
    BaseArgument,
    JsonOption,
    MemoryOption,
    QuietOption,
    ThreadsOption,
    WeightedAdapterOption,
    parse_bytes,
    parse_weights,
)


def run(
    base: BaseArgument,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")],
    adapter: WeightedAdapterOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.")] = 0,
    memory: MemoryOption = "1GiB",
    threads: ThreadsOption = None,
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer a prompt with a base and, if given, an adapter or a weighted mix of several."""
    from regraft.engine.engine import Engine
    from regraft.errors import UsageError

    text = typer.get_text_stream("stdin").read() if prompt == "-" else prompt
    text = text.replace("\\n", "\n") if raw else text
    if not text.strip():
        raise UsageError("the prompt is empty")
    if raw and system:
        raise UsageError("--system goes with the chat template", hint="Leave out --raw, or put it into the prompt.")
    roles = [("system", system), ("user", text)]
    messages = [{"role": role, "content": content} for role, content in roles if content]
    weights = parse_weights(adapter or [])
    adapters = {path: path for path in weights}
    progress = TerminalProgress(quiet=quiet)
    with Engine(base, adapters, memory_bytes=parse_bytes(memory), threads=threads, progress=progress) as engine:
        options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        pieces = engine.stream(text if raw else messages, weights, **options)
        if json_output:
            *_, last = pieces
            assert last.completion is not None
            answer = last.completion
            reason, count = str(answer.finish_reason), len(answer.tokens)
            print_json({"prompt": text, "answer": answer.text, "finish_reason": reason, "tokens": count})
            return
        for piece in pieces:
            typer.echo(piece.text, nl=False)
        typer.echo()
