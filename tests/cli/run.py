"""Call the command line as a user does, within this process."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from regraft.cli.main import main


@dataclass(frozen=True)
class Kit:
    """Where the shared inputs are."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def other(self) -> Path:
        return self.root / "other"

    @property
    def wide(self) -> Path:
        return self.root / "wide"

    @property
    def small(self) -> Path:
        return self.root / "small"

    @property
    def lora(self) -> Path:
        return self.root / "lora"

    @property
    def data(self) -> Path:
        return self.root / "data.jsonl"


@dataclass(frozen=True)
class Done:
    """What a call printed, and its exit code."""

    code: int
    out: str
    err: str


def regraft(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run ``regraft ARGUMENTS``."""
    capsys.readouterr()
    before, sys.argv = sys.argv, ["regraft", *map(str, arguments)]
    try:
        main()
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return Done(code, captured.out, captured.err)
