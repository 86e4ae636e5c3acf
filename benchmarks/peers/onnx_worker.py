"""ONNX Runtime on the graphs of :mod:`benchmarks.peers.onnx_graph`, keys and values bound to buffers that stay."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.peers.onnx_graph import POSITIONS
from benchmarks.peers.protocol import (
    PREFILL,
    PROMPT,
    RANK,
    SEQUENCES,
    Answer,
    arguments,
    decode_bytes,
    prompts,
    serve,
    take_stdout,
)

LAYER_BITS, HEAD_BITS = 5.0, 9.0  # 4 and 8, and a float32 scale per 32 weights


class Onnx:
    """A graph without adapters, and one with all of them."""

    def __init__(self, folder: Path, *, threads: int, steps: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        self._plain, self._lora = (
            onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
            for name in ("plain", "lora")
        )
        self._config = json.loads((folder / "hf" / "config.json").read_text())
        self._steps, self._prompts = steps, np.array(prompts(self._config["vocab_size"], PREFILL))
        self._caches: dict[int, dict[str, Any]] = {}  # by number of sequences, their prompts computed

    def facts(self) -> dict[str, Any]:
        """See the protocol."""
        return {
            "version": f"onnxruntime {onnxruntime.__version__}",
            "workloads": ["decode-1", "decode-8", "decode-8-lora", "prefill-512"],
            "bits": {"layers": LAYER_BITS, "head": HEAD_BITS},
            "kv": "float32",
        }

    def run(self, workload: str) -> Answer:
        """See the protocol."""
        if workload == "prefill-512":
            cache = self._empty(1)
            start = perf_counter()
            self._step(self._plain, self._prompts[:1], cache, 0)
            return Answer(perf_counter() - start, PREFILL, self._weight_bytes() / PREFILL)
        sequences = 1 if workload == "decode-1" else SEQUENCES
        session = self._lora if workload == "decode-8-lora" else self._plain
        cache = self._computed(sequences)
        tokens = np.arange(50, 50 + sequences)[:, None]
        start = perf_counter()
        for step in range(self._steps):
            tokens = self._step(session, tokens, cache, PROMPT + step)
        seconds = perf_counter() - start
        adapters = [self._adapter_bytes()] * SEQUENCES if session is self._lora else []
        weights, kv = self._weight_bytes(), self._kv_bytes()
        size = decode_bytes(weights, adapters, kv, tokens_per_pass=sequences, steps=self._steps)
        return Answer(seconds, self._steps * sequences, size)

    def _computed(self, sequences: int) -> dict[str, Any]:
        """Keys and values of the prompts; what is decoded after them is written over."""
        if sequences not in self._caches:
            self._caches[sequences] = self._empty(sequences)
            self._step(self._plain, self._prompts[:sequences, :PROMPT], self._caches[sequences], 0)
        return self._caches[sequences]

    def _empty(self, sequences: int) -> dict[str, Any]:
        c = self._config
        shape = (sequences, c["num_key_value_heads"], POSITIONS, self._head_dim())
        names = [f"{part}{layer}" for layer in range(c["num_hidden_layers"]) for part in "kv"]
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        return {name: make(np.zeros(shape, np.float32)) for name in names}

    def _step(self, session: Any, tokens: Any, cache: dict[str, Any], past: int) -> Any:
        """The likeliest token after each sequence ``[sequences, 1]``."""
        sequences, count = tokens.shape
        binding = session.io_binding()
        binding.bind_cpu_input("ids", np.ascontiguousarray(tokens))
        binding.bind_cpu_input("last", np.full(sequences, past + count - 1, np.int32))
        binding.bind_cpu_input("total", np.array(past + count, np.int32))
        if session is self._lora:
            binding.bind_cpu_input("adapter", np.arange(sequences))
        for name, value in cache.items():
            binding.bind_ortvalue_input(f"past_{name}", value)
            binding.bind_ortvalue_output(f"now_{name}", value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy().argmax(-1)  # bound last

    def _head_dim(self) -> int:
        return int(self._config.get("head_dim") or self._config["hidden_size"] // self._config["num_attention_heads"])

    def _shapes(self) -> list[tuple[int, int]]:
        c = self._config
        hidden, mlp = c["hidden_size"], c["intermediate_size"]
        queries, keys = (c[key] * self._head_dim() for key in ("num_attention_heads", "num_key_value_heads"))
        attention = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
        return [*attention, (mlp, hidden), (mlp, hidden), (hidden, mlp)]

    def _weight_bytes(self) -> float:
        c = self._config
        layers = c["num_hidden_layers"] * sum(out * width for out, width in self._shapes())
        return (layers * LAYER_BITS + c["vocab_size"] * c["hidden_size"] * HEAD_BITS) / 8

    def _adapter_bytes(self) -> int:
        layers = int(self._config["num_hidden_layers"])
        return layers * sum(4 * RANK * (out + width) for out, width in self._shapes())

    def _kv_bytes(self) -> int:
        c = self._config
        return int(4 * 2 * c["num_hidden_layers"] * c["num_key_value_heads"] * self._head_dim())


if __name__ == "__main__":
    pipe, args = take_stdout(), arguments()
    serve(Onnx(args.folder, threads=args.threads, steps=args.steps), pipe)
