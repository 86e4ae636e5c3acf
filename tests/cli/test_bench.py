"""``regraft bench`` and ``regraft info --engine`` on a tiny base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regraft.bench.workloads import WORKLOADS
from regraft.native import _core
from tests.cli.run import Kit, regraft
from tests.tiny import make_base

KEYS = {"workload", "engine", "tokens_per_s", "bytes_per_token", "roofline_share", "seconds"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("bench") / "base", positions=1024)


def test_json_has_a_row_for_each_workload(base: Path, capsys: Any) -> None:
    done = regraft(capsys, "bench", base, "--json", "--rounds", 1, "--threads", 1, "--memory", "32MiB")
    assert done.code == 0, done.err
    rows = json.loads(done.out)
    assert [row["workload"] for row in rows] == list(WORKLOADS)
    for row in rows:
        assert row.keys() == KEYS and row["engine"] == "regraft"
        makes_tokens = WORKLOADS[row["workload"]].kind in ("decode", "prefill")
        values = [row[key] for key in ("tokens_per_s", "bytes_per_token", "roofline_share")]
        assert all(value > 0 for value in values) if makes_tokens else values == [None] * 3


def test_the_table_names_kernels_threads_and_bandwidth(base: Path, capsys: Any) -> None:
    done = regraft(capsys, "bench", base, "--rounds", 1, "--threads", 2, "--memory", "32MiB", "--quiet")
    assert done.code == 0, done.err
    head, *lines = done.out.splitlines()
    assert f"{_core.kernels()[0]} kernels, 2 threads" in head and "GB/s" in head
    assert all(any(workload.title in line for line in lines) for workload in WORKLOADS.values())


def test_a_base_whose_context_is_too_short_is_one_clean_line(kit: Kit, capsys: Any) -> None:
    done = regraft(capsys, "bench", kit.base, "--rounds", 1, "--memory", "32MiB", "--quiet")
    assert done.code != 0 and "context" in done.err and "Traceback" not in done.err


def test_info_of_the_engine(kit: Kit, capsys: Any) -> None:
    alone = json.loads(regraft(capsys, "info", "--engine", "--json").out)
    assert alone["kernels"] == _core.kernels()[0] == alone["kernels_runnable"][0] == _core.Core(1).kernels
    assert set(alone["kernels_runnable"]) <= set(alone["kernels_built"]) and "portable" in alone["kernels_runnable"]
    assert (alone["threads"], alone["tokens_per_page"]) != (0, 0)
    with_base = json.loads(regraft(capsys, "info", kit.small, "--engine", "--json").out)
    assert alone.items() <= with_base.items()
    assert with_base["bytes_per_page"] == with_base["bytes_kv_per_token"] * with_base["tokens_per_page"]


def test_info_of_nothing_is_refused(capsys: Any) -> None:
    done = regraft(capsys, "info")
    assert done.code == 2 and "--engine" in done.err
