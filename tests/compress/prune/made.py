"""Tiny bases to prune, and what pruning them must come to: the same base with the removed parts at zero."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.compress.prune.settings import Prune
from regraft.config import parse
from regraft.formats.kept import Kept
from regraft.models.load import Base, load_base
from tests.tiny import make_base

HEAD_DIM = 16  # of 4 query heads over 2 KV heads


def tiny(folder: Path, family: str = "llama", **options: Any) -> Base:
    """A base of four layers whose norms and biases matter too."""
    make_base(folder, family, **{"layers": 4, "intermediate": 96, **options})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"rms_norm_eps": 1e-12})
    )  # it counts for more in few channels
    base = load_base(folder)
    generator = torch.Generator().manual_seed(1)
    for parameter in base.model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return base


def settings(**options: Any) -> Prune:
    return parse(Prune, {"importance": "random", "ratio": 0.3, "multiple": 8, **options}, "test")


def sequences(count: int = 5, length: int = 24, seed: int = 0) -> Tensor:
    return torch.randint(3, 300, (count, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, ids: Tensor | None = None) -> Tensor:
    return model(input_ids=sequences() if ids is None else ids, use_cache=False).logits


@torch.no_grad()
def mask(base: Base, kept: Kept) -> None:
    """Set to zero, by name and index, all that ``kept`` has not, in place; whole layers cannot be masked so."""
    model = base.model
    for layer in kept.layers:
        parts = model.model.layers[layer.source]
        attention, mlp = parts.self_attn, parts.mlp
        for head in set(range(2)) - set(layer.heads.tolist()):
            attention.o_proj.weight[:, 2 * head * HEAD_DIM : 2 * (head + 1) * HEAD_DIM] = 0
        for neuron in set(range(mlp.down_proj.in_features)) - set(layer.neurons.tolist()):
            mlp.down_proj.weight[:, neuron] = 0
        gone = sorted(set(range(model.config.hidden_size)) - set(kept.channels.tolist()))
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight[gone] = 0
            if linear.bias is not None:
                linear.bias[gone] = 0
    if gone:
        model.get_input_embeddings().weight[:, gone] = 0
        assert math.isfinite(float(model.get_input_embeddings().weight.sum()))
