"""Options that several verbs share, so that they read the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from regraft.errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def parse_kv_bits(text: str) -> Literal[8, 16]:
    """What ``--kv-bits`` says.

    Raises:
        UsageError: another number.
    """
    if text not in ("8", "16"):
        raise UsageError("--kv-bits", expected="8 or 16", found=repr(text))
    return 8 if text == "8" else 16


def parse_runtime(text: str) -> Literal["auto", "engine", "torch"]:
    """What ``--runtime`` says.

    Raises:
        UsageError: another word.
    """
    if text not in ("auto", "engine", "torch"):
        raise UsageError("--runtime", expected="auto, engine or torch", found=repr(text))
    return cast('Literal["auto", "engine", "torch"]', text)


def parse_bytes(text: str, option: str = "--memory") -> int:
    """``1.5GiB``, ``800MB`` or ``4096`` as a number of bytes; errors name the option.

    Raises:
        UsageError: anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if match is None:
        raise UsageError(option, expected="a size such as 1GiB or 800MB", found=repr(text))
    return int(float(match[1]) * _UNITS[match[2] or ""])


def parse_weights(adapters: list[str]) -> dict[str, float]:
    """Directory → weight, from ``ADAPTER[*WEIGHT]``.

    Raises:
        UsageError: a weight is no number, or an adapter is given twice.
    """
    weights = {}
    for text in adapters:
        path, _, weight = text.rpartition("*") if "*" in text else (text, "", "1")
        try:
            value = float(weight)
        except ValueError as error:
            problem = f"--adapter {text}: the weight is {weight!r}, not a number"
            raise UsageError(problem, hint="Give a directory, or directory*0.7.") from error
        if path in weights:
            raise UsageError(f"--adapter {path} is given twice", hint="Give it once, with its weight.")
        weights[path] = value
    return weights


def at_most_one(adapters: list[str] | None) -> str | None:
    """The adapter of a verb that takes one; a list, since of several single ones click keeps the last in silence.

    Raises:
        UsageError: there are several.
    """
    if adapters and len(adapters) > 1:
        raise UsageError("--adapter", expected="one adapter", found=", ".join(adapters))
    return adapters[0] if adapters else None


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
    list[str] | None, typer.Option("--adapter", "-a", metavar="ADAPTER", help="A PEFT or regraft adapter directory.")
]
WeightedAdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", "-a", metavar="ADAPTER[*WEIGHT]", help="An adapter; several act together."),
]
MetricOption = Annotated[
    str, typer.Option("--metric", "-m", help="How answers are scored: exact, f1, rougeL, json-fields or choice.")
]
SchemaOption = Annotated[
    Path | None,
    typer.Option(
        help="A JSON schema: answers are scored once more, held to it. Default: schema.json beside the rows, if metric "
        "is json-fields."
    ),
]
MemoryOption = Annotated[
    str, typer.Option(help="For the KV cache and adapters, such as 512MiB; the weights come on top.")
]
KvBitsOption = Annotated[
    str, typer.Option(metavar="8|16", help="Bits of cached keys and values; 8 keeps nearly twice as many tokens.")
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Threads; default: one per core.")]
