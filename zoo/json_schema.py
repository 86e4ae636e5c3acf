"""The JSON schema of a task's answers, found from the answers themselves."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from graphlib import TopologicalSorter
from typing import Any

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


def find_schema(answers: Iterable[str], enumerated: tuple[str, ...] = ()) -> dict[str, Any]:
    """A schema of flat objects: each field's types, those that every answer has, and the order that all keep.

    Constrained decoding writes fields in the schema's order, so the answers have to agree on one.

    Args:
        answers: JSON objects whose values are texts, numbers or booleans.
        enumerated: fields whose values are listed.

    Raises:
        graphlib.CycleError: two answers have their fields in contrary orders.
    """
    objects = [json.loads(answer) for answer in answers]
    order: TopologicalSorter[str] = TopologicalSorter()
    for value in objects:
        for name in value:
            order.add(name)
        for before, after in itertools.pairwise(value):
            order.add(after, before)
    fields = list(order.static_order())
    return {
        "type": "object",
        "properties": {name: _field([v[name] for v in objects if name in v], name in enumerated) for name in fields},
        "required": [name for name in fields if all(name in value for value in objects)],
        "additionalProperties": False,
    }


def _field(values: list[Any], enumerated: bool) -> dict[str, Any]:
    if enumerated:
        return {"enum": sorted(set(values))}
    types = sorted({_TYPES[type(value)] for value in values})
    return {"type": types[0] if len(types) == 1 else types}
