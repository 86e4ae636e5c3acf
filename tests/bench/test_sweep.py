"""The recovery sweep: what it runs in which order, what counts as done, what it costs, and what may be cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import bases, price
from benchmarks.bases import make_base, recipe_of, recovery_bytes, weight_bytes, with_bytes
from benchmarks.price import BASELINE_ROUNDS, OPENING_S, Price, Speeds, told
from benchmarks.sweep import Run, Sweep
from regraft.compress.recipe import load_recipe
from regraft.errors import UsageError
from tests.adapt.made import make_all

PLAN = {
    "tokens": 1000,
    "tokens_of": {"mix": 500},
    **{"max_examples": 60, "dev_examples": 20, "test_examples": 100, "rank": 8},
    "select": {"recipe": "int3", "task": "home", "tokens": 200, "recipes": {"original": "original"}},
    "learning_rates": [0.001, 0.003],
    "starts": ["new_lora"],
    "rows": [
        {"recipe": "int3", "tasks": ["home", "movies"], "arms": ["plugged_in", "closed_form", "ca_lora_linear"]},
        {"recipe": "original", "tasks": ["home"], "arms": ["continued"]},
        {"recipe": "mix", "tasks": ["movies"], "arms": ["new_lora"]},
    ],
    "spread": [{"recipe": "int3", "tasks": ["home"], "arms": ["ca_lora_linear"], "seeds": [1, 2]}],
    "arms": {
        "closed_form": {"recover": {"kind": "linear", "start": "eora"}, "train": {"tokens": 0}},
        "ca_lora_linear": {"recover": {"kind": "linear", "start": "eora"}, "learning_rates": [0.0001]},
        "continued": {"recover": {"kind": "none"}, "distil": {"hidden": 0, "logits": 0, "answers": 1}},
        "new_lora": {"inherit": {"start": "new"}, "recover": {"kind": "none"}, "distil": {"answers": 1}},
    },
}


def make_sweep(folder: Path, *lines: dict[str, Any], **changes: Any) -> Sweep:
    path = folder / "recovery.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Sweep(PLAN | changes, path)


def line(phase: str, recipe: str, arm: str, rate: float | None = None, **more: Any) -> dict[str, Any]:
    known = {"phase": phase, "recipe": recipe, "task": "home", "arm": arm, "seed": 0, "data": {}}
    return known | ({} if rate is None else {"learning_rate": rate}) | more


def test_runs_come_in_the_plan_s_order_with_their_rates_before_them(tmp_path: Path) -> None:
    runs = [str(run) for run in dict.fromkeys(make_sweep(tmp_path).runs())]
    assert runs == [
        *("test-int3-home-plugged_in-0", "test-int3-home-closed_form-0"),
        *("select-int3-home-ca_lora_linear-0-0.0001", "test-int3-home-ca_lora_linear-0"),
        *(f"test-int3-movies-{arm}-0" for arm in ("plugged_in", "closed_form", "ca_lora_linear")),
        *("select-original-home-continued-0-0.001", "select-original-home-continued-0-0.003"),
        "test-original-home-continued-0",
        *("select-int3-home-new_lora-0-0.001", "select-int3-home-new_lora-0-0.003", "test-mix-movies-new_lora-0"),
        *("test-int3-home-ca_lora_linear-1", "test-int3-home-ca_lora_linear-2"),
    ]


def test_lines_of_the_yardstick_before_are_not_done(tmp_path: Path) -> None:
    new, old = line("test", "int3", "plugged_in"), line("test", "int3", "closed_form")
    del old["data"]
    sweep = make_sweep(tmp_path, new, old)
    assert Run("test", "int3", "home", "plugged_in") not in sweep.open
    assert Run("test", "int3", "home", "closed_form") in sweep.open


def test_the_rate_is_the_best_on_dev_once_all_are_there(tmp_path: Path) -> None:
    found = [line("select", "original", "continued", rate, best_dev=dev) for rate, dev in ((0.001, 0.2), (0.003, 0.1))]
    assert make_sweep(tmp_path, found[0]).rate("original", "continued") is None
    sweep = make_sweep(tmp_path, *found)
    assert sweep.rate("original", "continued") == 0.003
    assert sweep.is_ready(Run("test", "original", "home", "continued"))
    assert not sweep.is_ready(Run("test", "mix", "movies", "new_lora"))
    assert sweep.is_ready(Run("test", "int3", "home", "closed_form"))


def test_a_recorded_run_is_done(tmp_path: Path) -> None:
    sweep, run = make_sweep(tmp_path), Run("test", "int3", "home", "plugged_in")
    sweep.record(run, {"score": 0.5, "data": {}})
    assert run in sweep.done and run not in sweep.open
    assert {"version", "torch", "machine"} <= sweep.lines[0].keys()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"recipe": "int3", "tasks": ["hom"], "arms": ["plugged_in"]}, "names task 'hom'. Did you mean 'home'?"),
        ({"recipe": "int3", "tasks": ["home"], "arms": ["closed"]}, "names arm 'closed'. Did you mean 'closed_form'?"),
    ],
)
def test_a_plan_of_nothing_known_is_refused(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match="the sweep") as caught:
        make_sweep(tmp_path, rows=[row])
    assert says in str(caught.value)


def test_the_committed_sweep_has_the_controls_on_six_tasks() -> None:
    plan = yaml.safe_load((Path(bases.__file__).parent / "recovery.yaml").read_text())
    sweep = Sweep(plan, Path("nowhere"))
    runs = set(sweep.runs())
    assert len(sweep.tasks_of("int3")) >= 6
    for task in sweep.tasks_of("int3"):
        for recipe, arm in (
            *(("int3", arm) for arm in ("plugged_in", "closed_form", "ca_lora_linear")),
            *(("original", "continued"), ("int3+bytes", "plugged_in"), ("int3+calibrated", "plugged_in")),
        ):
            assert Run("test", recipe, task, arm) in runs
    assert set(plan["starts"]) <= set(plan["arms"])
    assert plan["test_examples"] >= 240


# What it costs


def measured(**more: Any) -> Speeds:
    lines = [
        line("test", "int3", "ca_lora_linear", tokens=1000, train_seconds=36.0, n=100, answer_seconds=10.0),
        line("test", "int3", "closed_form", tokens=0, train_seconds=72.0),
        line("test", "int4", "ca_lora_linear", tokens=1000, train_seconds=72.0),
    ]
    return Speeds.of([*lines, *more.get("lines", [])])


def test_speeds_are_medians_of_what_was_measured_or_of_the_nearest() -> None:
    speeds = measured(lines=[line("select", "int3", "ca_lora_linear", 0.1, tokens=100, train_seconds=3.8)])
    assert speeds.token("int3", "ca_lora_linear") == pytest.approx(0.037)
    assert speeds.token("mix", "ca_lora_linear") == pytest.approx((0.037 + 0.072) / 2)
    assert speeds.token("mix", "new_lora") == pytest.approx((0.037 + 0.072) / 2)
    assert (speeds.row("home"), speeds.row("movies")) == (0.1, 0.1)
    assert (speeds.closed_form("int3"), speeds.closed_form("mix")) == (72.0, 72.0)
    assert measured().is_known and not Speeds.of([]).is_known
    assert Speeds({}, {}, {}, (0.01, 0.2)).token("int3", "new_lora") == 0.01


def test_hours_are_those_of_the_runs_their_cells_and_each_task_s_baselines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(price, "base_seconds", lambda recipe: 0.0)
    asked = Price(make_sweep(tmp_path), measured())
    answers = 2 * 100 * 0.1  # JSON: free, and held to the schema
    assert asked.seconds(Run("test", "int3", "home", "plugged_in")) == pytest.approx(answers)
    assert asked.seconds(Run("test", "int3", "movies", "plugged_in")) == pytest.approx(answers / 2)
    assert asked.seconds(Run("test", "int3", "home", "ca_lora_linear")) == pytest.approx(36 + 72 + answers)
    assert asked.seconds(Run("select", "int3", "home", "ca_lora_linear", 0, 0.1)) == pytest.approx(7.2 + 72)
    one = [Run("test", "int3", "home", "plugged_in")]
    assert 3600 * asked.hours(one) == pytest.approx(answers + OPENING_S + BASELINE_ROUNDS * answers)
    known = Price(make_sweep(tmp_path, line("test", "int3", "closed_form")), measured())
    assert 3600 * known.hours(one) == pytest.approx(answers + OPENING_S)


def test_the_price_is_told_by_cell_and_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(price, "base_seconds", lambda recipe: 0.0)
    lines = told(make_sweep(tmp_path), measured())
    assert [part.split(":")[0] for part in lines] == [
        *("int3, home", "int3, movies", "original, home", "mix, movies"),
        "in all",
    ]
    assert lines[0].startswith("int3, home: 8 runs, ")
    assert len(set(lines)) == 5
    assert lines[-1].startswith("in all: 15 runs, ")


def test_over_the_limit_seeds_go_first_then_starts_and_never_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(price, "base_seconds", lambda recipe: 0.0)
    sweep = make_sweep(tmp_path)
    lines = told(sweep, measured(), limit=0.0)
    cuts = [part.strip().split(":")[0] for part in lines[6:-1]]
    assert cuts == ["seed 2", "seed 1", "start new_lora"]
    assert "tasks and test rows stay" in lines[5]
    assert lines[-1].strip().startswith("and it is still more")
    hours = [float(part.split(": ")[1].split(" h")[0]) for part in lines[6:-1]]
    assert hours == sorted(hours, reverse=True)
    total = Price(sweep, measured()).hours(sweep.open)
    assert len(told(sweep, measured(), limit=total - 0.001)) == 7  # the last seed is enough


# Bases


def test_the_control_of_equal_bytes_has_the_bytes_of_base_and_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_all(tmp_path / "made")
    recovery = recovery_bytes(made.small, 8)
    assert recovery == 2 * 8 * 2 * ((64 + 64) + 2 * (64 + 32) + (64 + 64) + 3 * (64 + 128))
    monkeypatch.setattr(bases, "make_base", lambda name, **_: str(made.small))
    recipe = recipe_of("int3+bytes", tasks=[], rank=8)
    assert recipe.quantize is not None and load_recipe("int3").quantize is not None
    assert recipe.quantize.target_bytes == weight_bytes(made.small) + recovery
    assert recipe.quantize.bits == 8
    assert recipe.quantize.method == load_recipe("int3").quantize.method
    assert with_bytes(load_recipe("mix"), 10**6).steps[:-1] == load_recipe("mix").steps[:-1]


def test_the_original_is_no_recipe_and_a_calibrated_base_names_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "prepare", lambda task: tmp_path / task)
    assert make_base("original", tasks=[], rank=8) == bases.BASE
    recipe = recipe_of("int3+calibrated", tasks=["home", "names"], rank=8)
    assert [rows.adapter.name for rows in recipe.calibration.adapters] == ["home", "names"]
    assert [rows.data for rows in recipe.calibration.adapters] == [
        tmp_path / task / "train.jsonl" for task in ("home", "names")
    ]
    assert recipe.steps == load_recipe("int3").steps
