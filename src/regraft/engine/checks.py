"""Checks of single values that a caller gave; each failure is one line with what was expected and what was found."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

from regraft.errors import UsageError

MAX_INTEGER = 2**63 - 1


def check(is_right: bool, what: str, *, expected: str, found: object, hint: str | None = None) -> None:
    """Nothing if ``is_right``.

    Raises:
        UsageError: it is not.
    """
    if not is_right:
        raise UsageError(what, expected=expected, found=repr(found)[:80], hint=hint)


def check_integer(what: str, value: object, least: int, most: int = MAX_INTEGER) -> None:
    """Check for an integer between two bounds, both included; True and False are none.

    Raises:
        UsageError: it is something else.
    """
    bounds = f"between {least} and {most}" if most < MAX_INTEGER else f"of at least {least}"
    is_right = type(value) is int and least <= value <= most
    check(is_right, what, expected=f"an integer {bounds}", found=value)


def check_items(what: str, values: Any) -> tuple[Any, ...]:
    """The items of a collection.

    Raises:
        UsageError: it is none.
    """
    check(isinstance(values, Collection), what, expected="several, in a list", found=values)
    return tuple(values)


def check_number(
    what: str, value: object, expected: str, is_right: Callable[[float], bool] = lambda value: True
) -> None:
    """Check for a finite number of which ``is_right`` holds; ``expected`` says so in words.

    Raises:
        UsageError: it is something else.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # An integer beyond the range of floats is neither finite nor infinite: math.isfinite fails on it.
    is_finite = is_number and abs(value) <= MAX_INTEGER and math.isfinite(value)  # type: ignore[arg-type]
    check(is_finite and is_right(value), what, expected=expected, found=value)  # type: ignore[arg-type]
