"""Strict configuration: unknown keys are errors that name the nearest known one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from regraft.errors import ConfigError


class Strict(BaseModel):
    """A frozen pydantic model that takes no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Model = TypeVar("Model", bound=Strict)


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence for an error's hint: the nearest known name, or the list of all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(names)}."


def parse(cls: type[Model], data: Any, source: str) -> Model:
    """Validate ``data`` as ``cls``.

    Raises:
        ConfigError: an unknown key (with the nearest known one) or a value of the wrong kind; names ``source``.
    """
    if not isinstance(data, dict):
        raise ConfigError(source, expected="a mapping of keys to values", found=type(data).__name__)
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        # A misspelt key makes the right one missing too; the misspelling is what the user wants to hear of.
        problem = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _keys_at(cls, problem["loc"][:-1])
            raise ConfigError(f"{source}: unknown key {where!r}", hint=suggest(where.split(".")[-1], known)) from None
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{source}: {where or 'it'}", expected=message, found=repr(problem["input"])[:80]) from None


def _keys_at(cls: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    for part in location:
        field = cls.model_fields.get(str(part))
        inner = getattr(field, "annotation", None)
        candidates = [inner, *getattr(inner, "__args__", ())]
        found = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if found:
            cls = found[0]
    return list(cls.model_fields)


def load_yaml(cls: type[Model], path: Path) -> Model:
    """Read a YAML file as ``cls``.

    Raises:
        ConfigError: the file cannot be read, is no YAML, or does not fit ``cls``.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        raise ConfigError(f"{path}:{line} is not YAML: {getattr(error, 'problem', error)}") from None
    return parse(cls, {} if data is None else data, str(path))
