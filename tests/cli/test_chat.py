"""A conversation through the command line; stdin and stdout are a pipe's."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.run import Done, Kit, regraft


def talk(monkeypatch: pytest.MonkeyPatch, capsys: Any, text: str, *arguments: object) -> Done:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return regraft(capsys, "chat", *arguments, "--memory", "1MiB", "--max-tokens", 6)


def test_adapters_switch_between_turns(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(kit.lora, tmp_path / "second")
    turns = "the quick\n/reset\n/adapter\nthe quick\n/reset\n/adapter first\nthe quick\n/adapters\n/exit\nnot asked\n"
    adapters = ("-a", f"first={kit.lora}", "-a", tmp_path / "second")
    done = talk(monkeypatch, capsys, turns, kit.small, *adapters)
    assert done.code == 0
    with_adapter, alone, again = done.out.splitlines()
    assert with_adapter == again != alone
    assert "first, second" in done.err


def test_a_conversation_is_remembered_and_reset(kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    done = talk(monkeypatch, capsys, "the quick\nthe quick\n/reset\nthe quick\n", kit.small)
    first, second, third = done.out.splitlines()
    assert first == third != second


def test_mistakes_do_not_end_it(kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    done = talk(monkeypatch, capsys, f"/adapter nobody\n/what\n{'the ' * 600}\nthe quick\n", kit.small)
    assert done.code == 0
    assert "no adapter nobody" in done.err and "/reset" in done.err and "error:" in done.err
    assert len(done.out.splitlines()) == 1


def test_a_wrong_adapter_is_said_before_the_first_turn(kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    done = talk(monkeypatch, capsys, "the quick\n", kit.wide, "-a", kit.lora)
    assert (done.code, done.out) == (1, "")


@pytest.mark.parametrize("memory", ["much", "-1", "1TiBB", ""])
def test_a_wrong_memory_is_a_usage_error(kit: Kit, memory: str, capsys: Any) -> None:
    done = regraft(capsys, "run", kit.small, "hello", "--memory", memory)
    assert done.code == 2
    assert "--memory" in done.err
