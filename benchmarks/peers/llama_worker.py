"""llama.cpp, by libllama's own calls: a context has one set of adapters, so each adapter is a pass of its own."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import gguf
import llama_cpp as llama
import numpy as np

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

ROOM = 256  # tokens of a sequence beside the longest prompt
BATCH = 1024
ERROR = 3  # ggml's log level


@llama.llama_log_callback  # type: ignore[untyped-decorator]
def log_errors(level: int, text: bytes, _: Any) -> None:
    """Errors alone: by default each change of adapters logs dozens of lines, which takes time."""
    if level == ERROR:
        print(text.decode(errors="replace"), end="", file=sys.stderr, flush=True)


class Llama:
    """A GGUF file and the LoRAs beside it."""

    def __init__(self, folder: Path, variant: str, *, threads: int, steps: int) -> None:
        llama.llama_log_set(log_errors, None)
        llama.llama_backend_init()
        path = folder / f"{variant}.gguf"
        self._model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = SEQUENCES * (PREFILL + ROOM), SEQUENCES
        settings.n_batch, settings.n_threads, settings.n_threads_batch = BATCH, threads, threads
        self._context = llama.llama_init_from_model(self._model, settings)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = llama.llama_batch_init(BATCH, 0, 1)
        files = sorted(folder.glob("lora-*.gguf"))
        self._adapters = [llama.llama_adapter_lora_init(self._model, str(file).encode()) for file in files]
        self._vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self._model))
        self._steps, self._prompts = steps, prompts(self._vocabulary, PREFILL)
        self._sizes = _Sizes(path, files)
        self._computed = 0  # sequences whose prompt is in the cache

    def facts(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "version": f"llama-cpp-python {llama.__version__}",
            "system": llama.llama_print_system_info().decode().strip(),
            "workloads": ["decode-1", "decode-8", "decode-8-lora", "prefill-512"],
            "bits": self._sizes.bits,
            "kv": "float16",
        }

    def run(self, workload: str) -> Answer:
        """See the protocol."""
        if workload == "prefill-512":
            return self._prefill()
        sequences = 1 if workload == "decode-1" else SEQUENCES
        apart = workload == "decode-8-lora"
        self._compute_prompts(sequences)
        tokens = [50 + sequence for sequence in range(sequences)]
        start = perf_counter()
        for step in range(self._steps):
            if apart:
                tokens = [self._one(sequence, token, PROMPT + step) for sequence, token in enumerate(tokens)]
            else:
                tokens = self._decode([(s, [token], PROMPT + step) for s, token in enumerate(tokens)])
        seconds = perf_counter() - start
        self._set_adapter(None)
        for sequence in range(sequences):
            llama.llama_memory_seq_rm(self._memory, sequence, PROMPT, -1)
        adapters = [self._sizes.adapter] if apart else []
        size = decode_bytes(
            self._sizes.weights,
            adapters,
            self._sizes.kv,
            tokens_per_pass=1 if apart else sequences,
            steps=self._steps,
        )
        return Answer(seconds, self._steps * sequences, size)

    def _prefill(self) -> Answer:
        llama.llama_memory_clear(self._memory, True)
        self._computed = 0
        start = perf_counter()
        self._decode([(0, self._prompts[0], 0)])
        seconds = perf_counter() - start
        llama.llama_memory_clear(self._memory, True)
        return Answer(seconds, PREFILL, self._sizes.weights / PREFILL)

    def _compute_prompts(self, sequences: int) -> None:
        for sequence in range(self._computed, sequences):
            self._decode([(sequence, self._prompts[sequence][:PROMPT], 0)])
        self._computed = max(self._computed, sequences)

    def _one(self, sequence: int, token: int, position: int) -> int:
        self._set_adapter(sequence)
        return self._decode([(sequence, [token], position)])[0]

    def _set_adapter(self, number: int | None) -> None:
        if number is None:
            llama.llama_set_adapters_lora(self._context, None, 0, None)
            return
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(self._adapters[number])
        llama.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(1.0))

    def _decode(self, chunks: list[tuple[int, list[int], int]]) -> list[int]:
        """One pass over chunks of (sequence, tokens, first position); the likeliest token after each."""
        batch, last = self._batch, []
        batch.n_tokens = 0
        for sequence, tokens, first in chunks:
            for offset, token in enumerate(tokens):
                row = batch.n_tokens
                batch.token[row], batch.pos[row], batch.n_seq_id[row] = token, first + offset, 1
                batch.seq_id[row][0], batch.logits[row] = sequence, offset == len(tokens) - 1
                batch.n_tokens += 1
            last.append(batch.n_tokens - 1)
        if llama.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return [int(self._logits(row).argmax()) for row in last]

    def _logits(self, row: int) -> Any:
        pointer = llama.llama_get_logits_ith(self._context, row)
        return np.ctypeslib.as_array(pointer, (self._vocabulary,))


class _Sizes:
    """Bytes and bits, as the file has them."""

    def __init__(self, path: Path, adapters: list[Path]) -> None:
        reader = gguf.GGUFReader(path)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        head = tensors.get("output.weight", tensors["token_embd.weight"])
        layers = [t for name, t in tensors.items() if name.startswith("blk.") and len(t.shape) == 2]
        self.weights = int(head.n_bytes) + sum(int(t.n_bytes) for t in layers)
        self.bits = {
            "layers": 8 * sum(int(t.n_bytes) for t in layers) / sum(int(t.n_elements) for t in layers),
            "head": 8 * int(head.n_bytes) / int(head.n_elements),
        }
        rows = [int(t.shape[1]) for t in layers if t.name.endswith(("attn_k.weight", "attn_v.weight"))]
        self.kv = 2 * sum(rows)  # float16
        self.adapter = sum(int(t.n_bytes) for t in gguf.GGUFReader(adapters[0]).tensors) if adapters else 0


if __name__ == "__main__":
    pipe, args = take_stdout(), arguments()
    serve(Llama(args.folder, args.variant, threads=args.threads, steps=args.steps), pipe)
