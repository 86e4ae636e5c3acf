"""The weights of a quantised directory, packed or not, read as one dense state dict of torch.

Nothing is let pass: every tensor that the model has must be there, whole and finite, and no other.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from regraft.errors import FormatError
from regraft.formats.base_record import Pruned
from regraft.formats.open_weights import CONFIG_NAME, open_directory
from regraft.models.uneven import model_class
from regraft.storage import read_json

_NEARLY = 1e-3  # relative error up to which float16 will do: twice its rounding, so only range can exceed it


def as_stored(tensor: Tensor) -> Tensor:
    """A tensor that is not packed, in the type that it is stored in.

    That is float16; where its range does not do, bfloat16 if that is exact, and else float32.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if (half.float() - tensor.float()).norm() <= _NEARLY * tensor.float().norm():
        return half
    brain = tensor.bfloat16()
    return brain if torch.equal(brain.float(), tensor.float()) else tensor.float()


def read_compressed_state(folder: Path, pruned: Pruned | None = None) -> dict[str, Tensor]:
    """Parameter name → dense float32 tensor, for every parameter of the model; tied ones once.

    Args:
        folder: a directory that ``compress`` or another tool wrote.
        pruned: what its record says of pruning.

    Raises:
        FormatError: ``config.json`` or ``model.safetensors`` is missing, damaged, or not what the other says; names
            the file and the tensor.
    """
    config = _config(folder)
    weights = open_directory(folder)
    if weights.config.get("tie_word_embeddings") is False:  # stated, or there is a head of its own after all
        config.tie_word_embeddings = False
    shapes = shapes_of(config, pruned)
    weights.check(shapes)
    return {name: torch.from_numpy(np.require(weights[name].dense(), requirements="W")) for name in shapes}


def shapes_of(config: PretrainedConfig, pruned: Pruned | None = None) -> dict[str, tuple[int, ...]]:
    """Name and shape of each parameter of the causal LM that ``config`` describes, tied ones once.

    Raises:
        FormatError: it describes none.
    """
    try:
        with torch.device("meta"):
            skeleton = model_class(config, pruned)(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{CONFIG_NAME} describes no model: {error}") from None
    tied = set(getattr(skeleton, "all_tied_weights_keys", {}))
    return {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if name not in tied}


def _config(folder: Path) -> PretrainedConfig:
    read_json(folder / CONFIG_NAME)  # says better what a damaged file is
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{folder / CONFIG_NAME} describes no model: {error}") from None
