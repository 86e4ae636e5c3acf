"""Settings of a training: losses, optimiser, seed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from regraft.config import Strict


class Distil(Strict):
    """Weights of the loss terms. ``hidden`` and ``logits`` compare with the uncompressed base + LoRA."""

    hidden: float = Field(0.05, ge=0)
    logits: float = Field(1.0, ge=0)
    answers: float = Field(0.0, ge=0)

    @property
    def needs_teacher(self) -> bool:
        """Whether any term looks at the teacher."""
        return self.hidden > 0 or self.logits > 0


class Train(Strict):
    """The optimiser's run: AdamW, linear warm-up, cosine decay. ``tokens`` counts all that is trained on; 0 is none.

    The ``learning_rate`` suits a base that has lost little. Where next to nothing is left of an adapter, as on bases in
    experts, ten times as much has kept far more.

    ``gradients: int8`` rounds the gradients that pass through frozen linears: faster on a CPU, nearly as exact.
    """

    tokens: int = Field(60_000, ge=0)
    learning_rate: float = Field(3e-4, gt=0)
    batch_tokens: int = Field(768, ge=16)
    warmup: float = Field(0.05, ge=0, le=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    evaluations: int = Field(4, ge=1)
    patience: int = Field(3, ge=1)
    gradients: Literal["float", "int8"] = "float"


class Training(Strict):
    """One run of the trainer."""

    distil: Distil = Distil()
    train: Train = Train()
    seed: int = 0
