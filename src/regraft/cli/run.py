"""``regraft run``: one prompt, one answer, streamed."""

from __future__ import annotations

from typing import Annotated

import typer

from regraft.cli.console import TerminalProgress, print_json
from regraft.cli.options import AdapterOption, BaseArgument, DeviceOption, JsonOption, QuietOption


def run(
    base: BaseArgument,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from stdin.")],
    adapter: AdapterOption = None,
    raw: Annotated[bool, typer.Option("--raw", help="Take the prompt as it is, without the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="A system message before the prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
    device: DeviceOption = "cpu",
    json_output: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer a prompt with a base and, if given, an adapter."""
    from contextlib import nullcontext

    from regraft.base.load import load_base
    from regraft.bypass.adapter_directory import read_adapter
    from regraft.bypass.attach import attached
    from regraft.errors import UsageError
    from regraft.evaluate.dataset import Example, encode
    from regraft.evaluate.generate import stream

    text = typer.get_text_stream("stdin").read() if prompt == "-" else prompt
    text = text.replace("\\n", "\n") if raw else text
    if not text.strip():
        raise UsageError("the prompt is empty")
    if raw and system:
        raise UsageError("--system goes with the chat template", hint="Leave out --raw, or put it into the prompt.")
    loaded = load_base(base, device=device, progress=TerminalProgress(quiet=quiet))
    acting = attached(loaded.model, read_adapter(adapter, loaded).bypasses) if adapter else nullcontext()
    roles = [("system", system), ("user", text)]
    messages = tuple({"role": role, "content": content} for role, content in roles if content)
    example = Example(None if raw else messages, text if raw else None, answer="")
    ids = encode(example, loaded.tokenizer).prompt_ids
    with acting:
        pieces = stream(
            loaded.model, loaded.tokenizer, ids, max_new_tokens=max_tokens, temperature=temperature, seed=seed
        )
        if json_output:
            print_json({"prompt": text, "answer": "".join(pieces)})
            return
        for piece in pieces:
            typer.echo(piece, nl=False)
        typer.echo()
