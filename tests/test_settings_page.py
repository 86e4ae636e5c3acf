"""docs/settings.md says what the configuration really takes and defaults to."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from regraft.adapt.config import AdaptConfig
from regraft.compress.recipe import Recipe
from regraft.config import parse

DOCS = Path(__file__).resolve().parent.parent / "docs"


def yaml_block(page: str) -> object:
    match = re.search(r"```yaml\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert match
    return yaml.safe_load(match[1])


def test_settings_page_lists_every_setting_with_its_default() -> None:
    assert yaml_block("settings.md") == AdaptConfig().model_dump()


def test_recipes_page_shows_a_recipe_that_is_taken_and_names_every_key() -> None:
    shown = yaml_block("recipes.md")
    recipe = parse(Recipe, shown, "docs/recipes.md")
    assert isinstance(shown, dict)
    assert set(shown["quantize"]) == set(type(recipe.quantize).model_fields)
    assert set(shown["calibration"]) == set(type(recipe.calibration).model_fields)
