from __future__ import annotations

from pathlib import Path

import pytest

from regraft.compress.recipe import (
    Quantize,
    Recipe,
    fit_group_size,
    load_recipe,
    plan_slots,
    recipe_names,
    with_options,
)
from regraft.config import parse
from regraft.errors import ConfigError, UsageError

WIDTHS = {
    "layers.0.self_attn.q_proj": 576,
    "layers.0.mlp.down_proj": 1536,
    "layers.1.self_attn.q_proj": 576,
    "layers.1.mlp.down_proj": 1536,
}


@pytest.mark.parametrize("name", ["int8", "int4", "int3", "int2"])
def test_recipes_that_ship_are_valid(name: str) -> None:
    assert (load_recipe(name).quantize or pytest.fail()).bits == int(name[-1])
    assert name in recipe_names()


def test_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "steps: [quantize: {method: hqq, bits: 5, overrides: {down_proj: {bits: 8}}}]\ncalibration: {seed: 3}\n"
    )
    recipe = load_recipe(path)
    assert recipe.quantize is not None
    assert (recipe.quantize.method, recipe.quantize.bits, recipe.calibration.seed) == ("hqq", 5, 3)
    assert recipe.quantize.overrides["down_proj"].bits == 8


def test_unknown_recipe_names_the_nearest_and_all() -> None:
    with pytest.raises(
        UsageError, match=r"no recipe 'int5'. Did you mean 'int\d'\? .* int2, int3, int4, int8, mix, moe, prune25\.$"
    ):
        load_recipe("int5")


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ({"method": "rtn", "bits": 4, "bitz": 4}, "unknown key 'steps.0.quantize.bitz'. Did you mean 'bits'?"),
        (
            {"method": "rtn", "bits": 4, "overrides": {"q": {"bit": 4}}},
            "'steps.0.quantize.overrides.q.bit'. Did you mean 'bits'",
        ),
        ({"method": "awq", "bits": 4}, "quantize.method: expected Input should be 'rtn', 'hqq' or 'gptq', found 'awq'"),
        ({"method": "rtn", "bits": 1}, "quantize.bits: expected Input should be greater than or equal to 2, found 1"),
        ({"method": "rtn", "bits": 9}, "quantize.bits: expected Input should be less than or equal to 8, found 9"),
        ({"method": "rtn", "bits": 4, "group_size": -1}, "quantize.group_size: expected"),
        (
            {"method": "rtn", "bits": 4, "embeddings": 4},
            "quantize.embeddings: expected Input should be 16 or 8, found 4",
        ),
        (
            {"method": "rtn", "bits": 4, "act_order": True},
            "quantize: expected act_order only with method gptq, not rtn",
        ),
        (
            {"method": "rtn", "bits": 4, "overrides": {"q": {"bits": 9}}},
            "overrides.q.bits: expected 2 to 8 bits, or 16",
        ),
        (
            {"method": "rtn", "bits": 4, "overrides": {"(": {"bits": 8}}},
            "expected regular expressions, but '(' is none",
        ),
    ],
)
def test_mistakes_are_explained(quantize: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, {"steps": [{"quantize": quantize}]}, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "width", "taken"),
    [
        (64, 576, 64),
        (128, 576, 64),
        (128, 1536, 128),
        (128, 96, 32),
        (256, 128, 128),
        (96, 128, 64),
        (48, 96, 48),
        (128, 100, 100),
        (32, 100, 100),
        (16, 24, 24),
        (0, 576, 576),
    ],
)
def test_group_size_falls_back_to_what_divides_the_row(asked: int, width: int, taken: int) -> None:
    assert fit_group_size(asked, width) == taken


def test_overrides_change_only_what_they_name_and_later_ones_win() -> None:
    quantize = parse(
        Quantize,
        {
            "method": "gptq",
            "bits": 4,
            "group_size": 128,
            "act_order": True,
            "overrides": {"down_proj": {"bits": 8, "symmetric": False}, r"layers\.1\.mlp": {"bits": 16}},
        },
        "test",
    )
    plans = plan_slots(quantize, WIDTHS)
    assert [plan.bits for plan in plans.values()] == [4, 8, 4, 16]
    assert [plan.group_size for plan in plans.values()] == [64, 128, 64, 128]
    assert [plan.symmetric for plan in plans.values()] == [True, False, True, False]
    assert all(plan.act_order and plan.asked == 128 for plan in plans.values())
    assert [plan.is_dense for plan in plans.values()] == [False, False, False, True]


def test_override_that_fits_no_slot_is_refused() -> None:
    quantize = parse(
        Quantize, {"method": "rtn", "bits": 4, "overrides": {"layers.0.mlp.down_prj": {"bits": 8}}}, "test"
    )
    with pytest.raises(
        ConfigError, match=r"'layers.0.mlp.down_prj' fits no slot. Did you mean 'layers.0.mlp.down_proj'"
    ):
        plan_slots(quantize, WIDTHS)


def test_calibration_can_be_replaced() -> None:
    recipe = load_recipe("int4")
    assert with_options(recipe) == recipe
    changed = with_options(recipe, source=Path("text.txt"), seed=7).calibration
    assert (changed.source, changed.seed) == ("text.txt", 7)
    assert changed.num_sequences == recipe.calibration.num_sequences
