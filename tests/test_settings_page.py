"""docs/settings.md says what the configuration really takes and defaults to."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from regraft.adapt.config import AdaptConfig
from regraft.compress.moefy.settings import Moefy
from regraft.compress.prune.settings import Prune
from regraft.compress.recipe import Quantize, Recipe, Recover
from regraft.config import Strict, parse

# What belongs to another importance than the one that the page shows, and is named in its text.
OF_OTHER_IMPORTANCES = {"seed", "compensate"}
STEPS: dict[str, type[Strict]] = {"prune": Prune, "recover": Recover, "moefy": Moefy, "quantize": Quantize}
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
    for step in shown["steps"]:
        ((name, settings),) = step.items()
        assert set(settings) == set(STEPS[name].model_fields) - (OF_OTHER_IMPORTANCES if name == "prune" else set())
    assert set(shown["calibration"]) == set(type(recipe.calibration).model_fields)
    page = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert all(f"`{key}" in page for key in OF_OTHER_IMPORTANCES)
