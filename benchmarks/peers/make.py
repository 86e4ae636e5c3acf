"""What the peers' own tools make of a model: quantised GGUF files by llama.cpp, and graphs for ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import llama_cpp as llama

from benchmarks.peers.onnx_graph import build

FORMATS = {"q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0, "q4_1": llama.LLAMA_FTYPE_MOSTLY_Q4_1}
Q8_0 = 8  # ggml's number of the type


def quantize(source: Path, out: Path, kind: int) -> None:
    """All matrices of one type, but embeddings and head in 8 bits: types that regraft takes as they are."""
    settings = llama.llama_model_quantize_default_params()
    settings.ftype, settings.pure = kind, True
    settings.output_tensor_type = settings.token_embedding_type = Q8_0
    if llama.llama_model_quantize(str(source).encode(), str(out).encode(), settings) != 0:
        raise SystemExit(f"llama.cpp could not quantise {source}")


def main() -> None:
    """Fill a folder of benchmarks/models.py."""
    folder = Path(sys.argv[1])
    for name, kind in FORMATS.items():
        quantize(folder / "float16.gguf", folder / f"{name}.gguf", kind)
    (folder / "onnx").mkdir(exist_ok=True)
    build(folder / "hf", folder / "onnx" / "plain.onnx")
    build(folder / "hf", folder / "onnx" / "lora.onnx", sorted((folder / "adapters").iterdir()))


if __name__ == "__main__":
    main()
