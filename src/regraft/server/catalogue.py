"""The catalogue: adapters by name, and the meaning of a request's ``model``.

model  = base | adapter | mix | ""          "" is the base
mix    = term ("+" term)*                    addresses*0.7+names*0.3
term   = adapter ["*" weight]                the weight is 1 if it is left out
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from regraft.engine.engine import Engine
from regraft.errors import UsageError
from regraft.server.errors import bad_request, no_such_model
from regraft.server.keys import Caller

ADAPTER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MAX_WEIGHT = 100.0


@dataclass(frozen=True)
class Listed:
    """An adapter that requests may name.

    Attributes:
        name: what they call it.
        root: where it lies, below the folder that it was found in.
        path: its directory.
        created_s: when this version came, in seconds since the epoch.
    """

    name: str
    root: str
    path: Path
    created_s: int = field(default_factory=lambda: int(time.time()))


class Catalogue:
    """The names of an engine's adapters. Changes may come from any thread, and take effect for the next request.

    Args:
        engine: it knows the adapters themselves.
        base_name: what requests call the base.
        max_mix: adapters of one mix.
    """

    def __init__(self, engine: Engine, base_name: str, *, max_mix: int) -> None:
        self._engine, self.base_name, self._max_mix = engine, base_name, max_mix
        self._listed: dict[str, Listed] = {}
        self._changing = threading.Lock()
        self.created_s = int(time.time())

    def __contains__(self, name: str) -> bool:
        return name in self._listed

    def __len__(self) -> int:
        return len(self._listed)

    def put(self, name: str, path: Path, root: str) -> None:
        """Add an adapter, or replace the one of that name; requests under way keep what they have.

        Raises:
            UsageError: the name is the base's, or no name for an adapter.
            UsageError, FormatError, IncompatibleAdapterError: it cannot be read, or is not for the base.
        """
        if not ADAPTER_NAME.fullmatch(name) or name == self.base_name:
            expected = "1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', a letter or digit first, and not the base's name"
            raise UsageError("an adapter's name", expected=expected, found=repr(name)[:80])
        with self._changing:
            self._engine.add_adapter(name, path)
            self._listed[name] = Listed(name, root, path)

    def drop(self, name: str) -> None:
        """Remove an adapter; nothing if there is none of that name."""
        with self._changing:
            if self._listed.pop(name, None) is not None:
                self._engine.remove_adapter(name)

    def gone(self, mix: Iterable[str]) -> str | None:
        """The first adapter of a mix that has been removed, in the catalogue or on disk, where it is seen later."""
        return next((name for name in mix if (at := self._listed.get(name)) is None or not at.path.is_dir()), None)

    def visible(self, caller: Caller) -> list[Listed]:
        """The adapters that a caller may use, by name."""
        return [self._listed[name] for name in sorted(self._listed) if caller.may_use(name)]

    def resolve(self, model: str, adapters: Mapping[str, float] | None, caller: Caller) -> dict[str, float]:
        """The mix that a request asks for, adapter to weight; empty for the base alone.

        Raises:
            ApiError: 404: an adapter that there is not, or not for this caller; 400: a mix that means nothing.
        """
        is_base = model in ("", self.base_name)
        if adapters is not None and not is_base:
            message = f"With adapters, model has to be {self.base_name!r} or empty, not {model!r}."
            raise bad_request(message, "model")
        mix = dict(adapters) if adapters is not None else {} if is_base else _parse(model)
        if len(mix) > self._max_mix:
            raise bad_request(f"A mix has at most {self._max_mix} adapters, not {len(mix)}.", "model")
        for name, weight in mix.items():
            if name not in self._listed or not caller.may_use(name):
                raise no_such_model(name[:200])
            if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
                message = f"The weight of {name} has to be a number between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}."
                raise bad_request(message, "model" if adapters is None else "adapters")
        return mix


def _parse(model: str) -> dict[str, float]:
    if "+" not in model and "*" not in model:
        return {model: 1.0}
    mix: dict[str, float] = {}
    for term in model.split("+"):
        name, star, weight = (part.strip() for part in term.partition("*"))
        if not name or name in mix:
            raise bad_request(f"A mix names each of its adapters once, as in a*0.7+b*0.3, unlike {model!r}.", "model")
        mix[name] = _weight(weight, model) if star else 1.0
    return mix


def _weight(text: str, model: str) -> float:
    # Narrower than float(), which takes "nan", "1_0" and digits of any script; "1e+2" would be cut at its plus.
    if not re.fullmatch(r"-?(\d{1,9}(\.\d{0,9})?|\.\d{1,9})", text, re.ASCII):
        raise bad_request(f"The weight {text!r} in {model!r} is not a number such as 0.7.", "model")
    return float(text)
