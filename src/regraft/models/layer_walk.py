"""Walk a model layer by layer: only one decoder layer runs at a time, on hidden states kept from the one before.

Calibrated methods need what enters each linear *after* everything before it was compressed or repaired. Running the
whole model once per layer would cost L² layers; this costs 2 L.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn


class _Stop(Exception):
    """Ends a forward pass once all that was wanted from it is known."""


class LayerWalk:
    """Hidden states of some batches, on their way through a model's decoder layers.

    Args:
        model: a causal LM of transformers.
        batches: token ids ``[B, T]``, without padding.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor]) -> None:
        self.layers: list[nn.Module] = list(model.get_decoder().layers)  # type: ignore[operator]
        self.states: list[Tensor] = []
        # Masks and position embeddings differ between the layers of a model with local and global attention, so each
        # layer's own arguments are kept.
        self._arguments: list[list[dict[str, Any]]] = []
        for batch in batches:
            state, arguments = _record(model, self.layers, batch)
            self.states.append(state)
            self._arguments.append(arguments)

    @torch.no_grad()
    def advance(self, index: int) -> None:
        """Send every batch through layer ``index``, as it stands now."""
        self.states = [self._run(index, number) for number in range(len(self.states))]

    @torch.no_grad()
    def grams(self, index: int, linears: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """``Σ x xᵀ`` (float32 ``[in, in]``) over all tokens for the named modules of layer ``index``.

        Modules that are fed the very same tensor (q, k and v; gate and up) share one sum. The states do not move. Each
        pass ends once all the named modules have been fed.
        """
        sums: dict[str, Tensor] = {}
        leaders: dict[str, str] = {}
        last: list[tuple[Tensor, str]] = []
        fed: set[str] = set()

        def listen(name: str) -> Any:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                x = inputs[0]
                if name not in leaders:
                    leaders[name] = last[0][1] if last and last[0][0] is x else name
                last[:] = [(x, leaders[name])]
                if leaders[name] == name:
                    flat = x.flatten(0, -2).float()
                    sums[name] = sums[name].addmm_(flat.T, flat) if name in sums else flat.T @ flat
                fed.add(name)
                if len(fed) == len(linears):
                    raise _Stop

            return hook

        handles = [module.register_forward_pre_hook(listen(name)) for name, module in linears.items()]
        try:
            for number in range(len(self.states)):
                fed.clear()
                with suppress(_Stop):
                    self._run(index, number)
        finally:
            for handle in handles:
                handle.remove()
        return {name: sums[leaders[name]] for name in linears}

    @torch.no_grad()
    def inputs(self, index: int, module: nn.Module) -> Tensor:
        """What enters a module of layer ``index``, of all tokens, ``[N, in]``. The states do not move."""
        seen: list[Tensor] = []

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0].flatten(0, -2))
            raise _Stop

        handle = module.register_forward_pre_hook(hook)
        try:
            for number in range(len(self.states)):
                with suppress(_Stop):
                    self._run(index, number)
        finally:
            handle.remove()
        return torch.cat(seen)

    def _run(self, index: int, number: int) -> Tensor:
        output = self.layers[index](self.states[number], **self._arguments[number][index])
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def _record(model: nn.Module, layers: Sequence[nn.Module], batch: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
    """The state that enters the first layer, and the keyword arguments that each layer is called with."""
    arguments: list[dict[str, Any]] = [{} for _ in layers]
    entering: list[Tensor] = []

    def listen(index: int) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
            if index == 0:
                entering.append(args[0] if args else kwargs["hidden_states"])
            arguments[index] = {k: v for k, v in kwargs.items() if k not in ("hidden_states", "past_key_values")}
            if index == len(layers) - 1:
                raise _Stop
            return args, kwargs

        return hook

    handles = [layer.register_forward_pre_hook(listen(index), with_kwargs=True) for index, layer in enumerate(layers)]
    try:
        model(input_ids=batch, use_cache=False)
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return entering[0], arguments
