"""The cost of adapting, estimated before it starts."""

from __future__ import annotations

import time

import torch

from regraft.adapt.config import AdaptConfig
from regraft.adapt.material import Material
from regraft.models.load import Base
from regraft.models.output_head import Head
from regraft.models.slots import slot_shapes

PROBE_TOKENS = 256
TRAIN_FACTOR = 2.6  # a training step against a forward pass: forward, gradients of activations, bypasses
FACTOR_COPIES = 6  # value, gradient, two AdamW moments, best checkpoint, and one being saved


@torch.no_grad()
def seconds_per_token(base: Base) -> float:
    """Time one short forward pass, without the head."""
    ids = torch.arange(PROBE_TOKENS, device=base.model.device).remainder(500).view(4, -1)
    decoder = base.model.get_decoder()
    decoder(input_ids=ids[:1], use_cache=False)
    start = time.monotonic()
    decoder(input_ids=ids, use_cache=False)
    return (time.monotonic() - start) / PROBE_TOKENS


def estimate(base: Base, teacher: Base, config: AdaptConfig, material: Material) -> str:
    """One line: minutes of training and teaching, memory, and disk for what the teacher says."""
    each = seconds_per_token(base)
    teach = material.num_tokens if config.train.tokens and config.distil.needs_teacher else 0
    minutes = each * (teach + TRAIN_FACTOR * config.train.tokens) / 60
    span = "a minute" if minutes < 1.5 else f"{minutes:.0f} minutes"
    weights = sum(p.numel() * p.element_size() for model in (base.model, teacher.model) for p in model.parameters())
    factors = sum(sum(shape) for shape in slot_shapes(base.model).values()) * config.recover.rank
    gigabytes = (weights + 4 * FACTOR_COPIES * factors) / 1e9
    kept = 2 * teach * Head.of(teacher.model).weight.shape[1] / 1e6  # float16 hidden states
    return (
        f"{len(material.train)} rows, {config.train.tokens:,} tokens to train on: about {span}, "
        f"{gigabytes:.1f} GB of memory, {kept:.0f} MB of disk; then answers to {len(material.test)} test rows"
    )
