"""A ``transformers`` model of what no stock ``config.json`` can say: layers that differ in width, MLPs of experts."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from regraft.errors import FormatError
from regraft.formats.base_record import Pruned
from regraft.formats.experts import CONFIG_KEY, read_experts
from regraft.models.expert_mlp import place_experts
from regraft.models.slots import slot_paths


def model_class(config: PretrainedConfig, pruned: Pruned | None) -> type[PreTrainedModel]:
    """The class of the causal LM that ``config`` describes; for a pruned base, one that makes its own linears and MLPs.

    Raises:
        FormatError: the configuration is of no causal LM, or of experts of a base that says nothing of its widths.
    """
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise FormatError(f"config.json: {config.model_type} is no causal language model of transformers")
    cls: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    entry = {CONFIG_KEY: getattr(config, CONFIG_KEY, None)}
    experts = read_experts(entry, [layer.mlp for layer in pruned.layers] if pruned else [])
    if pruned is None:
        return cls

    # A subclass, so that from_pretrained makes the model itself, with all that it takes care of.
    def init(self: Any, config: PretrainedConfig, *args: Any, **options: Any) -> None:
        cls.__init__(self, config, *args, **options)
        _reshape(self, pruned)
        if experts is not None:
            place_experts(self, experts)

    return type(cls.__name__, (cls,), {"__init__": init, "__module__": cls.__module__, "__doc__": cls.__doc__})


def _reshape(model: nn.Module, pruned: Pruned) -> None:
    """Replace the linears whose shape or bias is not that of ``pruned``.

    Attention reads the number of its heads off the projections' widths; only the query heads per KV head are its own,
    and pruning keeps those.
    """
    paths, shapes = slot_paths(model), pruned.slot_shapes
    if paths.keys() != shapes.keys():
        raise FormatError(
            "regraft.json: pruned", expected=f"the {len(paths)} slots of config.json", found=f"{len(shapes)} slots"
        )
    biased = {f"layers.{number}.{name}" for number, layer in enumerate(pruned.layers) for name in layer.biases}
    for slot, (out, width) in shapes.items():
        linear = model.get_submodule(paths[slot])
        assert isinstance(linear, nn.Linear)
        bias = linear.bias is not None or slot in biased
        if (linear.out_features, linear.in_features, linear.bias is not None) != (out, width, bias):
            weight = linear.weight
            made = nn.Linear(width, out, bias=bias, device=weight.device, dtype=weight.dtype)
            model.set_submodule(paths[slot], made)
