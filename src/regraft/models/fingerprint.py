"""Fingerprints: one content hash over a base's configuration, weights and tokenizer.

Values are hashed as float32 under their parameter names, so the same model has the same fingerprint however it is
stored: as GGUF or safetensors, sharded or not, in any dtype that holds the values exactly.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

# Keys of config.json that say how a model is stored or was made, not what it computes.
_STORAGE_KEYS = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "quantization_config",
    "transformers_version",
    "use_cache",
}


def fingerprint(model: nn.Module, tokenizer: Any) -> str:
    """Hex sha256 of the model's configuration and parameters and of the tokenizer's vocabulary and chat template."""
    digest = hashlib.sha256()
    config = {k: v for k, v in model.config.to_dict().items() if k not in _STORAGE_KEYS}  # type: ignore[union-attr, operator]
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    seen: set[int] = set()
    for name, parameter in sorted(model.named_parameters(), key=lambda item: item[0]):
        if parameter.data_ptr() in seen:  # a tied head is the embedding under a second name
            continue
        seen.add(parameter.data_ptr())
        digest.update(name.encode())
        digest.update(_bytes(parameter))
    digest.update(json.dumps(sorted(tokenizer.get_vocab().items())).encode())
    digest.update(str(tokenizer.chat_template).encode())
    return digest.hexdigest()


def _bytes(parameter: torch.Tensor) -> memoryview:
    return parameter.detach().to("cpu", torch.float32).contiguous().numpy().data.cast("B")
