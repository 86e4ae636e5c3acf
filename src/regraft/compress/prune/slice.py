"""The smaller model that is left of a decoder: rows and columns of its weights, entries of its norms and biases.

Where hidden channels go, the mean square in an RMS norm is over M' of them in place of M. So that the smaller model
computes what the larger one would with the others at zero, each norm's weight takes the factor √(M/M'); where
embeddings are multiplied by √M (Gemma) they take it too. (Only the norms' epsilon counts for a little more then.)
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from regraft.engine.weights.architecture import FAMILIES, Family
from regraft.errors import ConfigError
from regraft.formats.base_record import Pruned
from regraft.formats.kept import Kept
from regraft.formats.slots import AXES
from regraft.models.uneven import model_class

_IN_LAYER = re.compile(r"^(?P<before>.*layers)\.(?P<layer>\d+)\.(?P<within>.+)\.(?P<leaf>weight|bias)$")


def sliced(model: PreTrainedModel, local: Kept, biases: Mapping[str, Tensor], pruned: Pruned) -> PreTrainedModel:
    """A model of what ``local`` keeps of ``model``, which is left as it was.

    Args:
        model: perhaps pruned before.
        local: counted in the layers, heads, neurons and channels of ``model``.
        biases: slot of the *result* → a bias to add there, ``[out]``.
        pruned: the sizes of the result.

    Raises:
        ConfigError: channels of a family whose norms are not known.
    """
    config = smaller_config(model.config, local, pruned)
    state = sliced_state(model, local)
    prefix = next(match["before"] for name in state if (match := _IN_LAYER.match(name))).removesuffix("layers")
    for slot, bias in biases.items():
        name = f"{prefix}{slot}.bias"
        state[name] = state[name] + bias if name in state else bias
    made = model_class(config, pruned).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    made.generation_config = model.generation_config
    return made.eval().requires_grad_(False).to(model.device)


def sliced_state(model: PreTrainedModel, local: Kept) -> dict[str, Tensor]:
    """Parameter name → what is left of it, tied ones once."""
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    numbers = {layer.source: number for number, layer in enumerate(local.layers)}
    scale = _Scale.of(model, len(local.channels))
    left: dict[str, Tensor] = {}
    for name, tensor in state.items():
        match = _IN_LAYER.match(name)
        if match is None:
            left[name] = scale.outside(name, tensor, local)
        elif int(match["layer"]) in numbers:
            number = numbers[int(match["layer"])]
            new = f"{match['before']}.{number}.{match['within']}.{match['leaf']}"
            left[new] = _within(f"layers.{number}.{match['within']}", match, tensor, local, scale)
    return {name: tensor.clone() for name, tensor in left.items()}


def _within(slot: str, match: re.Match[str], tensor: Tensor, local: Kept, scale: _Scale) -> Tensor:
    if match["within"] in AXES:
        part = tensor[torch.from_numpy(local.rows(slot))]
        return part if match["leaf"] == "bias" else part[:, torch.from_numpy(local.columns(slot))]
    if match["within"].startswith("self_attn."):
        return tensor  # a norm over each head, which stays as it is
    return scale.norm(tensor, local)


class _Scale:
    """What losing channels does to norms and to the model's ends."""

    def __init__(self, family: Family, factor: float, tied: bool) -> None:
        self._family, self._factor, self._tied = family, factor, tied

    @classmethod
    def of(cls, model: PreTrainedModel, channels: int) -> _Scale:
        config = model.config
        if channels == config.hidden_size:
            return cls(Family(), 1.0, False)
        if config.model_type not in FAMILIES:
            raise ConfigError(
                f"channels of {config.model_type} cannot be pruned", expected=f"one of {', '.join(FAMILIES)}"
            )
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        return cls(FAMILIES[config.model_type], math.sqrt(config.hidden_size / channels), tied)

    def norm(self, weight: Tensor, local: Kept, factor: float | None = None) -> Tensor:
        """A norm over channels."""
        left = weight[torch.from_numpy(local.channels)]
        factor = self._factor if factor is None else factor
        if factor == 1.0:
            return left
        return (1 + left) * factor - 1 if self._family.unit_norms else left * factor

    def outside(self, name: str, tensor: Tensor, local: Kept) -> Tensor:
        """Embedding, head and last norm."""
        if tensor.ndim == 1:
            # A tied head takes the embedding's factor, so the last norm must not.
            return self.norm(tensor, local, 1.0 if self._family.scaled_embeddings and self._tied else None)
        left = tensor[:, torch.from_numpy(local.channels)]
        return left * self._factor if self._family.scaled_embeddings and "embed" in name else left


def smaller_config(config: PretrainedConfig, local: Kept, pruned: Pruned) -> PretrainedConfig:
    """The configuration of what is left; where layers differ, it keeps the original's heads and MLP width.

    Raises:
        ConfigError: transformers takes no configuration of these sizes.
    """
    data: dict[str, Any] = copy.deepcopy(config.to_dict())
    data |= {
        "hidden_size": pruned.hidden,
        "head_dim": pruned.original.head_dim,
        "num_hidden_layers": len(pruned.layers),
    }
    if data.get("layer_types"):
        data["layer_types"] = [data["layer_types"][layer.source] for layer in local.layers]
    if is_uniform(pruned):
        first = pruned.layers[0]
        data |= {
            "num_attention_heads": first.heads,
            "num_key_value_heads": first.kv_heads,
            "intermediate_size": first.mlp,
        }
    try:
        return type(config).from_dict(data)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"transformers takes no {config.model_type} of these sizes: {error}") from None


def is_uniform(pruned: Pruned) -> bool:
    """Whether all layers are alike and have no biases of their own, so that a ``config.json`` says it all."""
    return len(
        {(layer.heads, layer.kv_heads, layer.mlp, tuple(layer.biases)) for layer in pruned.layers}
    ) == 1 and not (pruned.layers[0].biases)
