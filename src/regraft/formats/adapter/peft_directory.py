"""Read a PEFT LoRA directory strictly: every tensor accounted for, every scale resolved, a zero effect refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.errors import FormatError, IncompatibleAdapterError, UsageError
from regraft.formats.adapter.content import Array, Factors, StoredAdapter
from regraft.formats.adapter.kinds import LORA, PEFT_WEIGHTS
from regraft.formats.adapter.peft_config import (
    CONFIG_NAME,
    MERGE_FIRST,
    effective_scale,
    expected_rank,
    is_target,
    read_config,
)
from regraft.formats.safetensors_file import open_tensors
from regraft.formats.slots import slot_of
from regraft.native import _core

WEIGHTS_NAME = PEFT_WEIGHTS
_KEY = re.compile(r"^base_model\.model\.(?P<path>.+)\.lora_(?P<factor>[AB])\.weight$")
Shape = tuple[int, int]


def read_peft(folder: Path, paths: Mapping[str, str], shapes: Mapping[str, Shape]) -> StoredAdapter:
    """Read a PEFT LoRA for a base.

    Args:
        folder: the directory that PEFT saved.
        paths: slot → module path of the base (:func:`regraft.models.slots.slot_paths`).
        shapes: slot → (out, in) of the base.

    Raises:
        UsageError: there is no such directory.
        FormatError: a file is missing, truncated, or holds values that are not finite.
        IncompatibleAdapterError: a tensor that belongs to no slot or has another shape than it, a targeted slot
            without tensors, a kind of adapter that cannot be carried, or an adapter without any effect.
    """
    _check_files(folder)
    config = read_config(folder)
    tensors = read_factor_file(folder / WEIGHTS_NAME)
    factors = _by_slot(folder, tensors, paths, shapes)
    try:
        _check_targets(folder, config, paths, factors)
        lora = {slot: _factors(folder, config, paths[slot], slot, factors[slot]) for slot in paths if slot in factors}
    except (re.error, TypeError, ValueError, ArithmeticError) as error:  # patterns and their values are anyone's
        raise FormatError(f"{folder / CONFIG_NAME} is not understood: {type(error).__name__} {error}") from None
    if not any(pair.has_effect() for pair in lora.values()):
        raise IncompatibleAdapterError(
            f"{folder} has no effect: B A is zero at every slot",
            hint="It was saved before training, or by a broken export.",
        )
    stored = StoredAdapter(folder.resolve().name, peft_config=config, path=folder)
    stored.add(lora)
    return stored


def _check_files(folder: Path) -> None:
    if not folder.is_dir():
        found = "a file" if folder.exists() else None
        raise UsageError(f"there is no adapter directory {folder}", expected="a PEFT directory", found=found)
    if not (folder / CONFIG_NAME).exists():
        nested = sorted(child.parent.name for child in folder.glob(f"*/{CONFIG_NAME}"))
        hint = f"PEFT saved it in a sub-directory: try {folder / nested[0]}." if nested else None
        if (folder / "config.json").exists():
            hint = "It is a model directory: pass it as the base."
        raise FormatError(f"{folder} is no PEFT directory: it has no {CONFIG_NAME}", hint=hint)
    if not (folder / WEIGHTS_NAME).exists():
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        if pickles:
            raise FormatError(
                f"{folder / pickles[0]} is a pickle, which can run code when it is read",
                expected=WEIGHTS_NAME,
                hint="Load and save it again with PEFT: model.save_pretrained(folder, safe_serialization=True).",
            )
        raise FormatError(f"{folder / WEIGHTS_NAME} is missing")


def read_factor_file(path: Path) -> dict[str, Array]:
    """All tensors of an adapter's file, float16 or float32.

    Raises:
        FormatError: the file is missing, cut short, empty, or holds a tensor that is not floating point or not finite.
    """
    try:
        tensors = open_tensors(path, mapped=False)  # a server's adapters may be replaced at any time
    except FormatError as error:
        if error.found is None:  # the file is missing, or may not be read
            raise
        hint = "It may be cut short; copy it again."
        raise FormatError(f"{path} cannot be read", expected=error.expected, found=error.found, hint=hint) from None
    if not len(tensors):
        raise FormatError(f"{path} holds no tensors")
    values = {name: tensors.floats(name) for name in tensors}
    number = _core.first_not_finite(list(values.values()))
    if number < len(values):
        name = list(values)[number]
        raise FormatError(f"{path}: {name} holds values that are not finite", hint="Its training diverged.")
    return values


def _by_slot(
    folder: Path, tensors: Mapping[str, Array], paths: Mapping[str, str], shapes: Mapping[str, Shape]
) -> dict[str, dict[str, Array]]:
    factors: dict[str, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        match = _KEY.match(name)
        if match is None:
            raise IncompatibleAdapterError(
                f"{folder}: tensor {name} ({list(tensor.shape)}) cannot be carried over: it is {_kind_of(name)}",
                hint=MERGE_FIRST,
            )
        slot = slot_of(match["path"])
        if slot is None or slot not in paths:
            raise IncompatibleAdapterError(
                f"{folder}: tensor {name} belongs to module {match['path']!r}",
                expected="a linear inside the base's decoder layers",
                hint="Was the adapter trained on another model?",
            )
        _check_shape(folder, name, tensor, shapes[slot], match["factor"])
        factors.setdefault(slot, {})[match["factor"]] = tensor
    for slot, pair in factors.items():
        if len(pair) < 2:
            missing = "B" if "A" in pair else "A"
            raise FormatError(f"{folder}: slot {slot} has no lora_{missing} tensor", hint="The file is incomplete.")
    return factors


def _kind_of(name: str) -> str:
    if "magnitude_vector" in name:
        return "a DoRA magnitude"
    if "lora_embedding" in name:
        return "an embedding LoRA"
    if "modules_to_save" in name or name.endswith(".weight"):
        return "a whole trained weight"
    return "no LoRA factor of a linear"


def _check_shape(folder: Path, name: str, tensor: Array, shape: Shape, factor: str) -> None:
    out_features, in_features = shape
    expected = f"[r, {in_features}]" if factor == "A" else f"[{out_features}, r]"
    width, axis = (in_features, 1) if factor == "A" else (out_features, 0)
    if tensor.ndim != 2 or tensor.shape[axis] != width:
        raise IncompatibleAdapterError(
            f"{folder}: tensor {name}",
            expected=f"shape {expected} for this base",
            found=str(list(tensor.shape)),
            hint="Was the adapter trained on another model?",
        )


def _check_targets(
    folder: Path, config: Mapping[str, Any], paths: Mapping[str, str], factors: Mapping[str, Any]
) -> None:
    targets = config["target_modules"]
    for name in targets if isinstance(targets, list) else []:
        if not any(path == name or path.endswith(f".{name}") for path in paths.values()):
            known = sorted({path.rsplit(".", 1)[-1] for path in paths.values()})
            raise IncompatibleAdapterError(
                f"{folder}: target module {name!r} is not in this base", expected=f"of {', '.join(known)}"
            )
    wanted = {slot for slot, path in paths.items() if is_target(config, path)}
    if missing := sorted(wanted - factors.keys()):
        raise FormatError(
            f"{folder}: {len(missing)} slots that the config targets have no tensors, first {missing[0]}",
            hint="The weights file is incomplete, or the adapter was trained on a smaller model.",
        )
    if extra := sorted(factors.keys() - wanted):
        raise IncompatibleAdapterError(
            f"{folder}: slot {extra[0]} has tensors, but the config does not target it",
            hint="PEFT would ignore it; the config and the weights are not of one adapter.",
        )


def _factors(folder: Path, config: Mapping[str, Any], path: str, slot: str, factors: Mapping[str, Array]) -> Factors:
    down, up = factors["A"], factors["B"]
    rank = expected_rank(config, path)
    if not down.shape[0] == up.shape[1] == rank:
        raise IncompatibleAdapterError(
            f"{folder}: slot {slot}",
            expected=f"rank {rank}, as the config says",
            found=f"A {list(down.shape)} and B {list(up.shape)}",
        )
    scale = effective_scale(config, path)
    if not math.isfinite(scale):
        raise FormatError(f"{folder / CONFIG_NAME}: scale of {slot}", expected="a number", found=str(scale))
    return Factors(LORA, down, up, scale)
