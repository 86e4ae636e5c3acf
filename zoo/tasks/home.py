"""Smart-home commands → a function call in JSON, drawn from Home Assistant's intent templates (Apache-2.0)."""

from __future__ import annotations

import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.packages import fetch, read_member
from zoo.rows import Row

PER_INTENT = 160
PER_TEMPLATE = 16
MAX_DEPTH = 24
# Those with at least eight templates in both languages: fewer, and a call could be in the test rows alone.
INTENTS = (
    *("HassTurnOn", "HassTurnOff", "HassLightSet", "HassGetState", "HassClimateGetTemperature", "HassFanSetSpeed"),
    *("HassStartTimer", "HassIncreaseTimer", "HassDecreaseTimer", "HassCancelTimer", "HassPauseTimer"),
    *("HassUnpauseTimer", "HassTimerStatus", "HassSetVolume", "HassSetVolumeRelative", "HassMediaNext"),
    *("HassMediaPrevious", "HassMediaSearchAndPlay", "HassClimateSetFanMode"),
)
SYSTEM = {"en": "Turn the command into one JSON call.", "de": "Mach aus dem Befehl einen JSON-Aufruf."}
VALUES = {
    "en": {
        "area": ["kitchen", "living room", "bedroom", "bathroom", "garage", "office", "hallway", "nursery", "attic"],
        "floor": ["ground floor", "first floor", "basement", "upstairs"],
        "name": ["reading lamp", "ceiling fan", "front door", "blinds", "coffee maker", "robot", "speaker", "heater"],
        "timer_name": ["pizza", "laundry", "tea", "homework", "egg", "workout"],
        "timer_command": ["turn off the lights", "open the garage door", "play some music", "lock the door"],
        "search_query": ["Abbey Road", "Miles Davis", "Clair de Lune", "the Beatles", "Thriller", "Nina Simone"],
        "zone": ["home", "work", "school", "the gym"],
    },
    "de": {
        "area": ["Küche", "Wohnzimmer", "Schlafzimmer", "Bad", "Garage", "Büro", "Flur", "Kinderzimmer", "Keller"],
        "floor": ["Erdgeschoss", "Obergeschoss", "Keller", "Dachgeschoss"],
        "name": ["Leselampe", "Ventilator", "Haustür", "Jalousie", "Kaffeemaschine", "Roboter", "Heizung", "Radio"],
        "timer_name": ["Pizza", "Wäsche", "Tee", "Hausaufgaben", "Ei", "Training"],
        "timer_command": ["mach das Licht aus", "öffne die Garage", "spiel Musik", "schließ die Tür ab"],
        "search_query": ["Abbey Road", "Miles Davis", "Clair de Lune", "die Ärzte", "Thriller", "Nina Simone"],
        "zone": ["zu Hause", "Arbeit", "Schule", "Sport"],
    },
}


def home(packages: Path) -> Iterator[Row]:
    """A spoken command → ``{"call": intent, slot: value, …}``, as a chat with a system line."""
    return _rows(packages, "en")


def home_de(packages: Path) -> Iterator[Row]:
    """The same calls, asked for in German."""
    return _rows(packages, "de")


def _rows(packages: Path, language: str) -> Iterator[Row]:
    for name in ("unicode-rbnf", "hassil"):  # hassil imports the other; neither is installed
        sys.path.insert(0, str(fetch(name, packages)))
    from hassil import Intents

    text = read_member(fetch("home-assistant-intents", packages), f"home_assistant_intents/data/{language}.json")
    sampler = _Sampler(Intents.from_dict(json.loads(text)), VALUES[language], random.Random(language))
    for name in INTENTS:
        templates = [(block.slots, s) for block in sampler.intents.intents[name].data for s in block.sentences]
        seen: set[str] = set()
        drawn_from: Counter[str] = Counter()
        for _ in range(PER_INTENT * 20):
            fixed, sentence = sampler.rng.choice(templates)
            command, slots = sampler.draw(sentence.expression) or ("", {})
            if not command or command in seen or drawn_from[sentence.text] == PER_TEMPLATE:
                continue
            seen.add(command)
            drawn_from[sentence.text] += 1
            call = {"call": name.removeprefix("Hass"), **dict(sorted({**fixed, **slots}.items()))}
            answer = json.dumps(call, ensure_ascii=False)
            yield Row(command, answer, command, (f"{name} {sentence.text}",), SYSTEM[language])
            if len(seen) == PER_INTENT:
                break


class _NoValues(Exception):
    """The template names a list that there are no values for."""


class _Sampler:
    """Draws sentences, with the slots that they fill, from templates."""

    def __init__(self, intents: Any, values: dict[str, list[str]], rng: random.Random) -> None:
        self.intents, self.values, self.rng = intents, values, rng

    def draw(self, expression: Any) -> tuple[str, dict[str, Any]] | None:
        slots: dict[str, Any] = {}
        try:
            text = self._walk(expression, slots, 0)
        except _NoValues:
            return None
        text = re.sub(r"\s+", " ", text).strip()
        return (text, slots) if 6 <= len(text) <= 90 else None

    def _walk(self, node: Any, slots: dict[str, Any], depth: int) -> str:
        from hassil import Alternative, ListReference, Permutation, RuleReference, TextChunk

        if depth > MAX_DEPTH:
            raise _NoValues
        if isinstance(node, TextChunk):
            return str(node.original_text)
        if isinstance(node, ListReference):
            return self._fill(node, slots)
        if isinstance(node, RuleReference):
            rule = self.intents.expansion_rules.get(node.rule_name)
            if rule is None:
                raise _NoValues
            return self._walk(rule.expression, slots, depth + 1)
        items = list(node.items)
        if isinstance(node, Alternative):
            items = [self.rng.choice(items)]
        elif isinstance(node, Permutation):
            self.rng.shuffle(items)
        return "".join(self._walk(item, slots, depth + 1) for item in items)

    def _fill(self, node: Any, slots: dict[str, Any]) -> str:
        if node.list_name in self.values:
            value: Any = self.rng.choice(self.values[node.list_name])
            slots[node.slot_name] = value
            return str(value)
        known = self.intents.slot_lists.get(node.list_name)
        if hasattr(known, "start"):  # a range of numbers
            value = self.rng.randrange(int(known.start), int(known.stop) + 1, max(1, int(known.step)))
            slots[node.slot_name] = value if known.multiplier is None else int(value * known.multiplier)
            return str(value)
        if hasattr(known, "values"):
            choice = self.rng.choice(known.values)
            slots[node.slot_name] = choice.value_out
            return self._walk(choice.text_in, {}, 0)
        raise _NoValues
