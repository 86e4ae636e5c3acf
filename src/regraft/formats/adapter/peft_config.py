"""Read ``adapter_config.json`` of a PEFT LoRA: tolerant of what changes nothing, strict on what changes the result.

Scales and patterns are resolved per slot as PEFT 0.21 does it (``tuners/lora/layer.py``, ``tuners_utils.py``).
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regraft.errors import FormatError, IncompatibleAdapterError
from regraft.storage import read_json

CONFIG_NAME = "adapter_config.json"
MERGE_FIRST = "Merge it into its base in full precision and compress the result."
RETRAIN = "Train it again as a plain LoRA."
_MOST = sys.float_info.max

# A true value of one of these changes what the adapter computes, in a way that a plain low-rank bypass cannot.
_REFUSED = {
    "use_dora": ("DoRA (it rescales the columns of the base's own weight)", MERGE_FIRST),
    "modules_to_save": ("modules_to_save (whole layers trained beside the LoRA)", MERGE_FIRST),
    "trainable_token_indices": ("trained token embeddings", MERGE_FIRST),
    "layer_replication": ("layer replication", MERGE_FIRST),
    "target_parameters": ("bypasses on bare parameters", RETRAIN),
    "lora_bias": ("biases inside the LoRA", MERGE_FIRST),
    "megatron_config": ("Megatron layers", RETRAIN),
    "alora_invocation_tokens": ("activated LoRA (aLoRA)", RETRAIN),
    "use_qalora": ("QA-LoRA", RETRAIN),
    "use_bdlora": ("block-diagonal LoRA", RETRAIN),
    "kasa_config": ("KaSA", RETRAIN),
    "velora_config": ("VeLoRA", RETRAIN),
    "monteclora_config": ("MonteCLoRA", RETRAIN),
    "arrow_config": ("Arrow routing", RETRAIN),
}
# These starts subtract the adapter's first value from the base, which then is no longer the base at hand.
_MUTATED_BASE = ("pissa", "olora", "corda", "loftq", "mica")


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration as PEFT wrote it.

    Raises:
        FormatError: missing, not JSON, or without the fields of a LoRA.
        IncompatibleAdapterError: it asks for something a low-rank bypass cannot carry.
    """
    config = read_json(folder / CONFIG_NAME)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise IncompatibleAdapterError(f"{folder / CONFIG_NAME}", expected="peft_type LORA", found=repr(kind))
    for key, (name, hint) in _REFUSED.items():
        if config.get(key):
            raise IncompatibleAdapterError(f"{folder} uses {name}, which cannot be carried over", hint=hint)
    if config.get("bias", "none") != "none":
        raise IncompatibleAdapterError(f"{folder} trained biases (bias={config['bias']!r})", hint=MERGE_FIRST)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MUTATED_BASE):
        raise IncompatibleAdapterError(
            f"{folder} was started by {start}, which changes the base's own weights",
            hint="Convert it with PEFT's path_initial_model_for_weight_conversion first.",
        )
    _check_numbers(folder, config)
    return config


def _check_numbers(folder: Path, config: Mapping[str, Any]) -> None:
    checks = {
        "r": lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0,
        "lora_alpha": lambda v: isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= _MOST,
        "target_modules": lambda v: isinstance(v, str | list) and bool(v),
        "rank_pattern": lambda v: v is None or isinstance(v, dict),
        "alpha_pattern": lambda v: v is None or isinstance(v, dict),
    }
    defaults: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}}
    for key, is_right in checks.items():
        value = config.get(key, defaults.get(key))
        if not is_right(value):
            raise FormatError(
                f"{folder / CONFIG_NAME}: {key}",
                expected="a LoRA's",
                found=repr(value)[:60],
                hint="Was it saved by PEFT?",
            )


def expected_rank(config: Mapping[str, Any], module_path: str) -> int:
    """The rank that the configuration gives to a module: ``rank_pattern``'s, else ``r``."""
    return int(_by_pattern(config.get("rank_pattern"), module_path, config["r"]))


def effective_scale(config: Mapping[str, Any], module_path: str) -> float:
    """``alpha / r`` of a module, or ``alpha / sqrt(r)`` for rsLoRA, patterns resolved."""
    rank = expected_rank(config, module_path)
    alpha = float(_by_pattern(config.get("alpha_pattern"), module_path, config["lora_alpha"]))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(pattern: Mapping[str, Any] | None, module_path: str, default: Any) -> Any:
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module_path):
            return value
    return default


def is_target(config: Mapping[str, Any], module_path: str) -> bool:
    """Whether the configuration puts a LoRA on a linear inside the decoder layers."""
    if _excluded(config.get("exclude_modules"), module_path):
        return False
    targets = config["target_modules"]
    if isinstance(targets, str):
        return targets.lower() == "all-linear" or re.fullmatch(targets, module_path) is not None
    if module_path in targets:
        return True
    return _is_named(targets, module_path) and _layer_is_named(config, module_path)


def _excluded(excluded: Any, module_path: str) -> bool:
    if isinstance(excluded, str):
        return re.fullmatch(excluded, module_path) is not None
    return bool(excluded) and _is_named(excluded, module_path)


def _is_named(names: list[str], module_path: str) -> bool:
    return any(module_path == name or module_path.endswith(f".{name}") for name in names)


def _layer_is_named(config: Mapping[str, Any], module_path: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module_path)
        if match:
            return int(match.group(1)) in ([layers] if isinstance(layers, int) else layers)
    return False
