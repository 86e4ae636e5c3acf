"""``regraft serve``: one base and all its adapters behind OpenAI's API."""

from __future__ import annotations

from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated

import typer

from regraft.cli.console import TerminalProgress, errors
from regraft.cli.options import (
    BaseArgument,
    KvBitsOption,
    MemoryOption,
    QuietOption,
    ThreadsOption,
    parse_bytes,
    parse_kv_bits,
)

if TYPE_CHECKING:
    from regraft.server.cluster.plan import Plan


def serve(
    base: BaseArgument,
    adapters: Annotated[
        Path | None,
        typer.Option("--adapters", "-a", metavar="DIR", help="A folder of adapter directories; it is watched."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network of the machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
    memory: MemoryOption = "1GiB",
    kv_bits: KvBitsOption = "16",
    threads: ThreadsOption = None,
    huge_pages: Annotated[
        bool | None,
        typer.Option(
            "--huge-pages/--map-weights",
            help="Read the weights into huge pages, or map their file; by default what is faster and fits.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the base.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One key a line, and after it the adapters private to it.")
    ] = None,
    load_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where /v1/load_lora_adapter may load from; off without.")
    ] = None,
    admin_token_file: Annotated[Path | None, typer.Option(metavar="FILE", help="The token that it wants.")] = None,
    max_answers: Annotated[int, typer.Option(min=1, help="Answers that run or wait; more are told 429.")] = 256,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take, waiting included.")] = 600,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for streams to end after SIGTERM.")] = 30,
    replicas: Annotated[
        int, typer.Option(min=1, help="Engines, each in a process of its own with its own --memory; by Ray Serve.")
    ] = 1,
    quiet: QuietOption = False,
) -> None:
    """Serve a base and the adapters of a folder: chat, completions, models, metrics. Ctrl+C stops it.

    Every option may also be given by its variable, such as REGRAFT_SERVE_PORT.
    """
    from regraft.errors import UsageError
    from regraft.server.cluster.plan import Plan
    from regraft.server.keys import Keys, read_keys, read_token
    from regraft.server.run import is_loopback, listen
    from regraft.server.settings import Settings

    for folder in (adapters, load_root):
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{folder} is no directory")
    if (load_root is None) != (admin_token_file is None):
        raise UsageError("--load-root and --admin-token-file go together")
    if replicas > 1 and load_root is not None:
        hint = "Put adapters in the folder of --adapters: each replica watches it."
        raise UsageError("--load-root is for one replica", found=f"--replicas {replicas}", hint=hint)
    keys = read_keys(api_key_file) if api_key_file else None
    listener = listen(host, port)
    if keys is None and not is_loopback(host):
        errors.print(f"[bold yellow]warning:[/] whoever reaches {host} may use this server; see --api-key-file")
    plan = Plan(
        base,
        adapters,
        name,
        keys or Keys(),
        memory_bytes=parse_bytes(memory),
        kv_bits=parse_kv_bits(kv_bits),
        threads=threads,
        huge_pages=huge_pages,
        settings=Settings(max_answers=max_answers, request_timeout_s=timeout, drain_s=drain),
    )
    token = read_token(admin_token_file) if admin_token_file else None
    _start_log(quiet=quiet)
    progress = TerminalProgress(quiet=quiet)
    if replicas > 1:
        from regraft.server.cluster.run import serve_replicas

        serve_replicas(plan, replicas, listener, progress)
    else:
        _serve_one(plan, listener, progress, load_root=load_root, admin_token=token)


def _serve_one(
    plan: Plan, listener: socket, progress: TerminalProgress, *, load_root: Path | None, admin_token: str | None
) -> None:
    from regraft.server.run import serve_one
    from regraft.server.service import Service

    with plan.engine(progress) as engine:
        service = Service(
            engine,
            plan.adapters,
            base_name=plan.base_name,
            keys=plan.keys,
            load_root=load_root,
            admin_token=admin_token,
            settings=plan.settings,
        )
        serve_one(service, listener).run()


def _start_log(*, quiet: bool) -> None:
    import logging

    level = logging.WARNING if quiet else logging.INFO
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a client that has just gone
