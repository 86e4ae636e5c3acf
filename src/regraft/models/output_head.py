"""From final hidden states to logits, without running the model again.

What a family does to its logits after the head is a setting in its ``config.json``: a soft cap (Gemma 2), a factor
(Cohere), a divisor (Granite).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Head:
    """The output embedding ``[V, d]`` and what follows it."""

    weight: Tensor
    bias: Tensor | None = None
    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head:
        """The head of a model; the weight is shared, not copied."""
        config = model.config
        linear = model.get_output_embeddings()
        factor = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        return cls(linear.weight.detach(), getattr(linear, "bias", None), factor, cap)

    def logits(self, hidden: Tensor) -> Tensor:
        """``hidden [N, d]`` → ``[N, V]``."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def pull_back(self, slope: Tensor, logits: Tensor) -> Tensor:
        """The gradient at the hidden states ``[N, d]``, from that at the logits ``[N, V]`` that they gave."""
        if self.cap is not None:
            slope = slope * (1 - (logits / self.cap).square())
        return (slope * self.factor if self.factor != 1.0 else slope) @ self.weight
