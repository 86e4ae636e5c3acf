"""Smart-home commands → a function call in JSON, drawn from Home Assistant's intent templates (Apache-2.0)."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.packages import fetch, read_member

SEED = 0
PER_INTENT = 170
SYSTEM = "Turn the command into one JSON call."
INTENTS = [
    "HassTurnOn",
    "HassTurnOff",
    "HassLightSet",
    "HassClimateSetTemperature",
    "HassClimateGetTemperature",
    "HassFanSetSpeed",
    "HassSetPosition",
    "HassSetVolume",
    "HassStartTimer",
    "HassIncreaseTimer",
    "HassCancelTimer",
    "HassShoppingListAddItem",
    "HassVacuumStart",
    "HassGetWeather",
    "HassMediaPause",
    "HassGetCurrentTime",
]
VALUES = {
    "area": ["kitchen", "living room", "bedroom", "bathroom", "garage", "office", "hallway", "nursery", "attic"],
    "floor": ["ground floor", "first floor", "basement", "upstairs"],
    "name": ["reading lamp", "ceiling fan", "front door", "blinds", "coffee maker", "robot", "speaker", "heater"],
    "shopping_list_item": ["milk", "eggs", "brown bread", "apples", "rice", "soap", "coffee", "olive oil"],
    "timer_name": ["pizza", "laundry", "tea", "homework"],
}
MAX_DEPTH = 24


def home(packages: Path) -> Iterator[dict[str, Any]]:
    """A spoken command → ``{"call": intent, slot: value, …}``, as a chat with a system line."""
    for name in ("unicode-rbnf", "hassil"):  # hassil imports the other; neither is installed
        sys.path.insert(0, str(fetch(name, packages)))
    from hassil import Intents

    text = read_member(fetch("home-assistant-intents", packages), "home_assistant_intents/data/en.json")
    intents = Intents.from_dict(json.loads(text))
    rng = random.Random(SEED)
    for name in INTENTS:
        templates = [s for block in intents.intents[name].data for s in block.sentences]
        seen: set[str] = set()
        for _ in range(PER_INTENT * 20):
            drawn = _draw(rng.choice(templates).expression, intents, rng)
            if drawn is None or drawn[0] in seen:
                continue
            command, slots = drawn
            seen.add(command)
            call = json.dumps({"call": name.removeprefix("Hass"), **slots})
            yield {
                "messages": [
                    {"role": "system", "content": SYSTEM},
                    {"role": "user", "content": command},
                    {"role": "assistant", "content": call},
                ]
            }
            if len(seen) == PER_INTENT:
                break


class _NoValues(Exception):
    """The template names a list that VALUES does not fill."""


def _draw(expression: Any, intents: Any, rng: random.Random) -> tuple[str, dict[str, Any]] | None:
    slots: dict[str, Any] = {}
    try:
        text = _walk(expression, intents, rng, slots, 0)
    except _NoValues:
        return None
    text = re.sub(r"\s+", " ", text).strip()
    return (text, slots) if 6 <= len(text) <= 90 else None


def _walk(node: Any, intents: Any, rng: random.Random, slots: dict[str, Any], depth: int) -> str:
    from hassil import Alternative, ListReference, Permutation, RuleReference, TextChunk

    if depth > MAX_DEPTH:
        raise _NoValues
    if isinstance(node, TextChunk):
        return node.original_text
    if isinstance(node, ListReference):
        return _fill(node, intents, rng, slots)
    if isinstance(node, RuleReference):
        rule = intents.expansion_rules.get(node.rule_name)
        if rule is None:
            raise _NoValues
        return _walk(rule.expression, intents, rng, slots, depth + 1)
    items = list(node.items)
    if isinstance(node, Alternative):
        items = [rng.choice(items)]
    elif isinstance(node, Permutation):
        rng.shuffle(items)
    return "".join(_walk(item, intents, rng, slots, depth + 1) for item in items)


def _fill(node: Any, intents: Any, rng: random.Random, slots: dict[str, Any]) -> str:
    if node.list_name in VALUES:
        value: Any = rng.choice(VALUES[node.list_name])
        slots[node.slot_name] = value
        return value
    known = intents.slot_lists.get(node.list_name)
    if hasattr(known, "start"):  # a range of numbers
        value = rng.randrange(int(known.start), int(known.stop) + 1, max(1, int(known.step)))
        slots[node.slot_name] = value
        return str(value)
    if hasattr(known, "values"):
        choice = rng.choice(known.values)
        slots[node.slot_name] = choice.value_out
        return _walk(choice.text_in, intents, rng, {}, 0)
    raise _NoValues
