"""Load what ``transformers`` reads by itself, and let no weight be made up or passed over."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from regraft.errors import FormatError
from regraft.formats.safetensors_file import FLOATS, open_model_tensors
from regraft.formats.weights import missing
from regraft.progress import Progress

_OLD_TABLE = "rotary_emb.inv_freq"  # saved by older versions of transformers, computed by newer ones


def load_whole(folder: Path, origin: Path, progress: Progress) -> PreTrainedModel:
    """The model of a directory that is not quantised.

    Args:
        folder: the directory.
        origin: what errors name: the same, or the file that it was unpacked from.
        progress: told which tensors are no part of a causal LM.

    Raises:
        FormatError: a parameter has no tensor, a tensor no parameter, or one is of another shape or of whole numbers.
        OSError, ValueError, KeyError, RuntimeError: what ``transformers`` raises of files that it cannot read.
    """
    tensors = open_model_tensors(folder)
    origin = tensors.path if origin == folder else origin
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, by name
    )
    check_found(origin, info, list(tensors))
    parameters = dict(model.named_parameters())
    for name in tensors:
        if name in parameters and tensors.info(name).dtype not in FLOATS:
            raise FormatError(f"{origin}: tensor {name}", expected="floating point", found=str(tensors.info(name)))
    if left := _passed_over(model, tensors):
        progress.note(f"{origin}: {len(left)} tensors are no part of the decoder and are left out, such as {left[0]}")
    return model


def check_found(origin: Path, info: dict[str, Any], names: Collection[str]) -> None:
    """Raise FormatError unless ``transformers`` found each parameter, and has a place for each tensor.

    Args:
        origin: what the error names.
        info: what ``from_pretrained(output_loading_info=True)`` reports.
        names: those of the file's tensors.
    """
    if mismatched := sorted(info["mismatched_keys"]):
        name, found, expected = mismatched[0]
        raise FormatError(f"{origin}: tensor {name}", expected=f"shape {list(expected)}", found=str(list(found)))
    if info["missing_keys"]:
        raise missing(origin, list(info["missing_keys"]), names)
    if extra := sorted(info["unexpected_keys"]):
        raise FormatError(f"{origin}: tensor {extra[0]} belongs to nothing in the model")
    if info["error_msgs"]:
        raise FormatError(f"{origin} cannot be loaded: {info['error_msgs'][0].splitlines()[0]}")


def _passed_over(model: PreTrainedModel, names: Iterable[str]) -> list[str]:
    """Tensors that the model's class says to ignore: heads for other tasks, mostly."""
    patterns = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    own = model.state_dict().keys()
    return sorted(
        name
        for name in names
        if name not in own and _OLD_TABLE not in name and any(re.search(pattern, name) for pattern in patterns)
    )


def first_line(error: Exception) -> str:
    """The first line of an error's message that says anything."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
