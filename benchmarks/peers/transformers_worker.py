"""transformers and PEFT: eager torch, each row of a batch with its own adapter by ``adapter_names``."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Any

import peft
import torch
import transformers
from peft import PeftModel
from transformers import AutoModelForCausalLM

from benchmarks.peers.protocol import (
    PREFILL,
    PROMPT,
    SEQUENCES,
    Answer,
    arguments,
    decode_bytes,
    prompts,
    serve,
    take_stdout,
)


class Transformers:
    """A model in float32 or bfloat16, and the LoRAs beside it.

    Where the processor has no instructions for bfloat16, it is slow on anything but single rows: then batch 1 alone is
    measured in it.
    """

    def __init__(self, folder: Path, variant: str, *, threads: int, steps: int) -> None:
        torch.set_num_threads(threads)
        self._variant, self._steps = variant, steps
        model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=getattr(torch, variant))
        self._config = model.config
        names = [f"lora-{number}" for number in range(SEQUENCES if self._is_whole else 1)]
        self._model = PeftModel.from_pretrained(model, str(folder / "adapters" / names[0]), adapter_name=names[0])
        for name in names[1:]:
            self._model.load_adapter(str(folder / "adapters" / name), adapter_name=name)
        self._model.eval()
        self._names = names
        self._prompts = torch.tensor(prompts(self._config.vocab_size, PREFILL))
        self._caches: dict[int, Any] = {}

    @property
    def _is_whole(self) -> bool:
        return self._variant == "float32" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

    def facts(self) -> dict[str, Any]:
        """See the protocol."""
        bits = 8.0 * getattr(torch, self._variant).itemsize
        return {
            "version": f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}",
            "workloads": ["decode-1", *(["decode-8", "decode-8-lora", "prefill-512"] if self._is_whole else [])],
            "bits": {"layers": bits, "head": bits},
            "kv": self._variant,
        }

    @torch.inference_mode()
    def run(self, workload: str) -> Answer:
        """See the protocol."""
        if workload == "prefill-512":
            start = perf_counter()
            self._step(self._prompts[:1], transformers.DynamicCache(config=self._config), None)
            return Answer(perf_counter() - start, PREFILL, self._bytes("layers") / PREFILL)
        sequences = 1 if workload == "decode-1" else SEQUENCES
        names = self._names if workload == "decode-8-lora" else None
        cache = self._computed(sequences)
        tokens = torch.arange(50, 50 + sequences)[:, None]
        start = perf_counter()
        for _ in range(self._steps):
            tokens = self._step(tokens, cache, names)
        seconds = perf_counter() - start
        cache.crop(-self._steps)
        adapters = [self._bytes("adapter")] * SEQUENCES if names else []
        weights, kv = self._bytes("layers"), self._bytes("kv")
        size = decode_bytes(weights, adapters, kv, tokens_per_pass=sequences, steps=self._steps)
        return Answer(seconds, self._steps * sequences, size)

    def _computed(self, sequences: int) -> Any:
        if sequences not in self._caches:
            self._caches[sequences] = transformers.DynamicCache(config=self._config)
            self._step(self._prompts[:sequences, :PROMPT], self._caches[sequences], None)
        return self._caches[sequences]

    def _step(self, tokens: Any, cache: Any, names: list[str] | None) -> Any:
        """The likeliest token after each row ``[rows, 1]``."""
        options = {"input_ids": tokens, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
        if names:
            return self._model(**options, adapter_names=names).logits[:, -1:].argmax(-1)
        with self._model.disable_adapter():
            return self._model(**options).logits[:, -1:].argmax(-1)

    def _bytes(self, part: str) -> float:
        """Of a pass over all weights and the head; of an adapter; of a token's keys and values."""
        size = getattr(torch, self._variant).itemsize
        if part == "kv":
            c = self._config
            return 2.0 * size * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        parameters = dict(self._model.named_parameters())
        lora = {name: tensor for name, tensor in parameters.items() if ".lora_" in name}
        if part == "adapter":
            return float(sum(tensor.nbytes for tensor in lora.values())) / len(self._names)
        tied = self._config.tie_word_embeddings
        weights = [t for name, t in parameters.items() if name not in lora and (tied or "embed_tokens" not in name)]
        return float(sum(tensor.nbytes for tensor in weights))


if __name__ == "__main__":
    pipe, args = take_stdout(), arguments()
    serve(Transformers(args.folder, args.variant, threads=args.threads, steps=args.steps), pipe)
