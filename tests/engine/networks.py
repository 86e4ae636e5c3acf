"""Tiny models twice: in torch, the oracle, and in the native core."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from regraft.bypass.attach import attached
from regraft.bypass.lora import LoRA
from regraft.bypass.recovery import Recovery
from regraft.engine.run.batch import Chunk, run_step
from regraft.engine.weights.adapter_packing import Bits, build_adapter
from regraft.engine.weights.architecture import read_architecture
from regraft.engine.weights.native_model import KvBits, Parameters, build
from regraft.formats.adapter.content import Factors
from regraft.models.slots import slot_shapes
from regraft.native import _core, layout
from tests.tiny import make_model

NUM_PAGES = 64


@dataclass
class Twin:
    """A transformers model, and the same one in the core with an arena."""

    model: Any
    native: _core.Model
    core: _core.Core
    layers: int
    arena: Any = field(init=False)

    def __post_init__(self) -> None:
        self.arena = np.full((NUM_PAGES, self.native.kv_page_bytes), 255, np.uint8)  # NaN, where nothing was written

    def step(self, *chunks: Chunk, float_activations: bool = True) -> Any:
        """Logits of the native core."""
        states = self.states(*chunks, float_activations=float_activations)
        return self.core.head(self.native, states, float_activations)

    def states(self, *chunks: Chunk, float_activations: bool = True) -> Any:
        """Last hidden states of the native core."""
        return run_step(self.core, self.native, self.arena, chunks, float_activations=float_activations)

    @torch.no_grad()
    def oracle(self, ids: Any, bypasses: Any = None) -> Any:
        """Logits of torch, ``[len(ids), vocabulary]``."""
        with attached(self.model, bypasses or {}):
            return self.model(torch.as_tensor(ids)[None]).logits[0].numpy()


def make_twin(
    family: str = "llama",
    *,
    kernels: str = "",
    threads: int = 2,
    window: int | None = None,
    kv_bits: KvBits = 16,
    **options: Any,
) -> Twin:
    """A tiny random model whose norms and biases matter too; ``window`` is Mistral's and Gemma's."""
    model = make_model(family, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    if window is not None:
        model.config.sliding_window = window
        for layer in model.model.layers:
            if getattr(layer.self_attn, "sliding_window", None) is not None:
                layer.self_attn.sliding_window = window
    architecture = read_architecture(model.config.to_dict())
    native = build(architecture, parameters_of(model), kv_bits=kv_bits)
    return Twin(model, native, _core.Core(threads, kernels), architecture.layers)


def parameters_of(model: Any) -> Parameters:
    """A torch model's parameters in the core's layout, as they are."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del state["lm_head.weight"]
    linears = {
        name.removesuffix(".weight"): layout.pack_dense(value, bias=state.get(name.removesuffix("weight") + "bias"))
        for name, value in state.items()
        if value.ndim == 2
    }
    return Parameters(linears, {name: value for name, value in state.items() if value.ndim == 1 and "bias" not in name})


def make_bypasses(model: Any, *, seed: int, rank: int = 4, gelu: bool = True) -> dict[str, list[LoRA | Recovery]]:
    """A LoRA, and beside it a recovery, on every slot: large enough to change every token."""
    generator = torch.Generator().manual_seed(seed)

    def factor(*shape: int) -> torch.Tensor:
        return (0.3 * torch.randn(shape, generator=generator)).half().float()

    bypasses: dict[str, list[LoRA | Recovery]] = {}
    for slot, (out, width) in slot_shapes(model).items():
        bypasses[slot] = [LoRA(factor(rank, width), factor(out, rank), 0.5)]
        if gelu:
            bypasses[slot].append(Recovery(factor(rank + 1, width), factor(out, rank + 1), 0.7))
    return bypasses


def factors_of(bypasses: dict[str, list[LoRA | Recovery]]) -> dict[str, list[Factors]]:
    """The same bypasses in numpy."""
    return {
        slot: [Factors(b.kind, b.down.detach().numpy(), b.up.detach().numpy(), b.scale) for b in parts]
        for slot, parts in bypasses.items()
    }


def native_adapter(twin: Twin, bypasses: dict[str, list[LoRA | Recovery]], *, bits: Bits = 16) -> _core.Adapter:
    """The same bypasses for the core."""
    return build_adapter(twin.layers, factors_of(bypasses), bits=bits)


def random_ids(count: int, seed: int = 0) -> list[int]:
    """Token ids of the tiny vocabulary."""
    return np.random.default_rng(seed).integers(3, 300, count).tolist()
