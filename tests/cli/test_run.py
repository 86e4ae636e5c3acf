"""``regraft run``: several adapters act together, each with its weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from regraft import Engine
from tests.cli.run import Kit, regraft

ASKED = ("the quick", "--raw", "--max-tokens", 12, "--memory", "4MiB", "--json")


def test_several_adapters_are_a_mix(kit: Kit, tmp_path: Path, capsys: Any) -> None:
    other = shutil.copytree(kit.lora, tmp_path / "other")
    done = regraft(capsys, "run", kit.small, *ASKED, "-a", f"{kit.lora}*40", "-a", other)
    answer = json.loads(done.out)["answer"]
    with Engine(kit.small, {"one": kit.lora, "other": other}, memory_bytes=4 << 20) as engine:
        one, both = (
            engine.generate("the quick", mix, max_tokens=12).text for mix in ("one", {"one": 40.0, "other": 1.0})
        )
    assert answer == both != one


@pytest.mark.parametrize(
    ("adapters", "message"), [(["a", "a*2"], "given twice"), (["a*much"], "not a number"), (["a*"], "not a number")]
)
def test_a_wrong_mix_is_a_usage_error(kit: Kit, adapters: list[str], message: str, capsys: Any) -> None:
    options = [part for adapter in adapters for part in ("-a", adapter.replace("a", str(kit.lora), 1))]
    done = regraft(capsys, "run", kit.small, *ASKED, *options)
    assert done.code == 2
    assert message in done.err
