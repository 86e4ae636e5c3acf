"""The commands that the README and the other pages print exist, with the options they are printed with.

Nothing is run: each ``regraft …`` line of a shell block goes through the command line's own parser, and each ``make …``
line has to name a target.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from regraft.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```(?:bash|sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SEPARATORS = {"|", "||", "&", "&&", ";", "(", ")"}
_BEFORE_A_COMMAND = {"$", "do", "then", "time"}


def _commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each simple command in the page's shell blocks."""
    for block in _BLOCK.findall(page.read_text(encoding="utf-8") if page.exists() else ""):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word not in _SEPARATORS:
                    words.append(word)
                elif words:
                    yield words
                    words = []


def _call(words: list[str]) -> list[str] | None:
    """Program and arguments, up to a redirection; None where the program is not one of ours."""
    while words and (words[0] in _BEFORE_A_COMMAND or re.match(r"\w+=", words[0])):
        words = words[1:]
    program = words[0].rpartition("/")[2] if words else ""
    if program not in ("regraft", "make"):
        return None
    end = next((i for i, word in enumerate(words) if set(word) <= set("<>&")), len(words))
    return [program, *words[1:end]]


def _calls(pages: Iterable[Path]) -> list[list[str]]:
    return [call for page in pages for words in _commands(page) if (call := _call(words))]


def _check(call: list[str]) -> None:
    program, *words = call
    if program == "regraft":
        _parse(typer.main.get_command(app), words)
        return
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def _parse(command: Any, words: list[str], parent: Any = None) -> None:
    """Parse as the command line would, down to the verb, without converting a value or calling anything."""
    context = command.context_class(command, info_name=command.name, parent=parent)
    values, rest, _ = command.make_parser(context).parse_args(list(words))
    if values.get("help"):
        return
    if hasattr(command, "list_commands"):
        if rest:
            verb = command.get_command(context, rest[0])
            assert verb is not None, f"there is no {rest[0]!r}, but {command.list_commands(context)}"
            _parse(verb, rest[1:], context)
        return
    assert not rest, f"{command.name} takes no {rest}"
    missing = [p.name for p in command.params if p.required and values.get(p.name) in (None, ())]
    assert not missing, f"{command.name} needs {missing}"


def test_readme_shows_commands() -> None:
    assert "regraft" in [program for program, *_ in _calls([README])]


@pytest.mark.parametrize("call", _calls(PAGES), ids=" ".join)
def test_printed_command_exists_with_its_options(call: list[str]) -> None:
    _check(call)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("regraft compres smollm2-135m -o small", "there is no 'compres'"),
        ("regraft compress smollm2-135m -o small --recipee int4", "--recipee"),
        ("regraft compress smollm2-135m -o", "-o"),
        ("regraft eval smollm2-135m", "eval needs"),
        ("regraft compress -o small", "compress needs"),
        ("regraft compress smollm2-135m another -o small", "compress takes no"),
        ("make tests", "tests"),
    ],
)
def test_wrong_line_is_noticed(line: str, problem: str) -> None:
    with pytest.raises(Exception, match=problem):
        _check(line.split())
