"""The ``regraft`` command: one verb per file, one place that turns errors into exit codes."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from regraft import __version__
from regraft.cli.adapt import adapt
from regraft.cli.bench import bench
from regraft.cli.chat import chat
from regraft.cli.check import check
from regraft.cli.compress import compress
from regraft.cli.console import errors
from regraft.cli.evaluate import evaluate
from regraft.cli.export import export
from regraft.cli.info import info
from regraft.cli.run import run
from regraft.cli.serve import serve
from regraft.errors import DependencyMissingError, RegraftError

EXTRAS = {  # what an optional part needs, and its name
    **dict.fromkeys(("torch", "transformers", "gguf"), "adapt"),
    **dict.fromkeys(("starlette", "uvicorn", "prometheus_client", "llguidance"), "serve"),
    "ray": "ray",
}

app = typer.Typer(
    name="regraft",
    help="Carry existing LoRA adapters over to a compressed LLM, and recover what the compression cost them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
app.command()(compress)
app.command()(adapt)
app.command("eval")(evaluate)
app.command()(run)
app.command()(chat)
app.command(context_settings={"auto_envvar_prefix": "REGRAFT_SERVE"})(serve)
app.command()(info)
app.command()(bench)
app.command()(check)
app.command()(export)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    """Options before the verb."""


def main() -> None:
    """Run the command line; exits 0 done, 1 failed, 2 called wrongly, 3 a gate was not met."""
    try:
        app()
    except RegraftError as error:
        _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        hint = f"Run: pip install 'regraft[{EXTRAS[package]}]'"
        _fail(DependencyMissingError(f"{package} is not installed", hint=hint))
    except KeyboardInterrupt:
        errors.print("stopped; a training goes on where it was saved last when the same command is run again")
        sys.exit(130)


def _fail(error: RegraftError) -> None:
    errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
    sys.exit(error.exit_code)
