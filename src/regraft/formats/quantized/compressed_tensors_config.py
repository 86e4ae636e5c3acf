"""``quantization_config`` of a ``config.json``: which weights are packed, and on what grid.

This is the part of compressed-tensors' configuration that stock loaders read: config groups with targets, in the
format ``pack-quantized``. It is also all that regraft itself needs to read a compressed directory back.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from regraft.errors import FormatError

_IN_LAYER = re.compile(r"^(?P<before>.*layers)\.(?P<layer>\d+)\.(?P<after>.+)$")


@dataclass(frozen=True, order=True)
class Scheme:
    """A grid without its weight; ``group_size`` 0 is one group per row ("channel")."""

    bits: int
    group_size: int
    symmetric: bool

    def to_config(self, targets: list[str]) -> dict[str, Any]:
        """One config group."""
        grouped = self.group_size > 0
        weights = {
            "num_bits": self.bits,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "group" if grouped else "channel",
            "group_size": self.group_size if grouped else None,
            "dynamic": False,
        }
        return {"targets": targets, "weights": weights, "input_activations": None, "output_activations": None}


def to_config(schemes: Mapping[str, Scheme], linears: Collection[str]) -> dict[str, Any]:
    """The ``quantization_config`` of a model.

    Args:
        schemes: module path → scheme of each packed module.
        linears: paths of all that multiplies like an ``nn.Linear``, packed or not.
    """
    members: dict[Scheme, list[str]] = defaultdict(list)
    for path, scheme in schemes.items():
        members[scheme].append(path)
    one_for_linears = len({scheme for path, scheme in schemes.items() if path in linears}) == 1
    groups = {}
    for number, (scheme, paths) in enumerate(sorted(members.items())):
        named = [path for path in paths if not (one_for_linears and path in linears)]
        targets = (["Linear"] if len(named) < len(paths) else []) + _targets(named, schemes)
        groups[f"group_{number}"] = scheme.to_config(targets)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": sorted(path for path in linears if path not in schemes),
        "kv_cache_scheme": None,
    }


def _targets(paths: list[str], schemes: Mapping[str, Scheme]) -> list[str]:
    """Patterns for exactly these of all packed paths: one per kind of slot, with the layers if not all take part."""
    layers: dict[tuple[str, str], list[int]] = defaultdict(list)
    everywhere: dict[tuple[str, str], int] = defaultdict(int)
    targets = []
    for path in paths:
        if match := _IN_LAYER.match(path):
            layers[match["before"], match["after"]].append(int(match["layer"]))
        else:
            targets.append(path)
    for path in schemes:
        if match := _IN_LAYER.match(path):
            everywhere[match["before"], match["after"]] += 1
    for (before, after), numbers in layers.items():
        whole = len(numbers) == everywhere[before, after]
        which = r"\d+" if whole else "(" + "|".join(map(str, sorted(numbers))) + ")"
        targets.append(rf"re:{re.escape(before)}\.{which}\.{re.escape(after)}$")
    return sorted(targets)


def scheme_of(config: Mapping[str, Any], path: str, class_name: str) -> Scheme | None:
    """The scheme of one module, or None if its weight is stored as it is.

    Raises:
        FormatError: the configuration is of another method or format, or not understood.
    """
    method, stored = config.get("quant_method"), config.get("format")
    if (method, stored) != ("compressed-tensors", "pack-quantized"):
        raise FormatError(
            "quantization_config",
            expected="compressed-tensors in the format pack-quantized",
            found=f"{method} in the format {stored}",
        )
    group = group_of(config, path, class_name)
    return None if group is None else group_scheme(group)


def group_of(config: Mapping[str, Any], path: str, class_name: str) -> dict[str, Any] | None:
    """The config group of one module, or None if its weight is stored as it is.

    Exact names go before patterns, patterns before class names, as in compressed-tensors.

    Raises:
        FormatError: the configuration is not understood.
    """
    try:
        if _rank(config.get("ignore") or [], path, class_name) is not None:
            return None
        ranked = [(_rank(group["targets"], path, class_name), group) for group in config["config_groups"].values()]
        fitting = sorted(((rank, group) for rank, group in ranked if rank is not None), key=lambda pair: pair[0])
        return dict(fitting[0][1]) if fitting else None
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise FormatError(f"quantization_config is not understood: {type(error).__name__} {error}") from None


def group_scheme(group: Mapping[str, Any]) -> Scheme:
    """The grid that a config group states.

    Raises:
        FormatError: it is not understood.
    """
    try:
        weights = group["weights"]
        return Scheme(int(weights["num_bits"]), int(weights["group_size"] or 0), bool(weights["symmetric"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"quantization_config is not understood: {type(error).__name__} {error}") from None


def _rank(targets: Collection[str], path: str, class_name: str) -> int | None:
    if path in targets:
        return 0
    if any(target.startswith("re:") and re.match(target[3:], path) for target in targets):
        return 1
    return 2 if class_name in targets else None
