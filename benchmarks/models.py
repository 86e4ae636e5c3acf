"""The models of benchmarks/engine.py, in the format of each contender: ``python -m benchmarks.models``.

``data/engine/MODEL/`` has ``hf/`` (float16), ``q4_0.gguf`` and ``q4_1.gguf`` with an 8-bit head, ``onnx/``, eight LoRAs
in ``adapters/``, and the same as ``lora-N.gguf``. What the peers' own tools make is made in their environment, and
nothing is made twice.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from benchmarks.peers.protocol import RANK, SEQUENCES
from regraft.bench.adapters import write_lora
from regraft.formats.gguf.file import GgufFile
from regraft.formats.open_weights import open_weights
from regraft.formats.source import locate
from regraft.formats.weights import EMBEDDING, HEAD

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "engine"
PEERS = ROOT / ".venv-peers" / "bin" / "python"
PACKAGED = "smollm2-135m"
TINYLLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SLOTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
ENDS = {EMBEDDING: "token_embd.weight", "model.norm.weight": "output_norm.weight", HEAD: "output.weight"}

Array = NDArray[Any]
Tensors = Iterator[tuple[str, Array]]


def packaged() -> tuple[dict[str, Any], Tensors]:
    """Config and dequantised parameters of SmolLM2-135M-Instruct."""
    weights = open_weights(locate(PACKAGED))
    config = weights.config | {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"}
    return config, ((name, weights[name].dense()) for name in weights)


def random_tinyllama(sizes: dict[str, Any] | None = None) -> tuple[dict[str, Any], Tensors]:
    """Config and random parameters of TinyLlama-1.1B's shape: enough for speed."""
    config = TINYLLAMA | (sizes or {})
    return config, _random_parameters(config)


def _random_parameters(config: dict[str, Any]) -> Tensors:
    random = np.random.default_rng(0)
    for name, shape in parameter_shapes(config).items():
        if len(shape) == 1:
            yield name, np.ones(shape, np.float32)
        else:
            yield name, 0.02 * random.standard_normal(shape, np.float32)


def parameter_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every parameter of an untied Llama."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (vocabulary, hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}{slot}.weight": shape for slot, shape in slot_shapes(config).items()}
        shapes |= {f"{prefix}{norm}.weight": (hidden,) for norm in NORMS}
    return shapes | {"model.norm.weight": (hidden,), HEAD: (vocabulary, hidden)}


def slot_shapes(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Slot of a layer → (out, in)."""
    hidden, mlp, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    attention = [(queries, hidden), (keys, hidden), (keys, hidden), (hidden, queries)]
    return dict(zip(SLOTS, [*attention, (mlp, hidden), (mlp, hidden), (hidden, mlp)], strict=True))


TINY, REAL = "llama-tiny", [PACKAGED, "llama-1.1b"]
TINY_SIZES = {
    "hidden_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
}
MODELS: dict[str, Callable[[], tuple[dict[str, Any], Tensors]]] = {
    PACKAGED: packaged,
    "llama-1.1b": random_tinyllama,
    TINY: lambda: random_tinyllama(TINY_SIZES),  # for a look at whether all of it runs, in seconds
}


def make(name: str) -> Path:
    """Make what is missing of a model's folder, and return it."""
    folder = DATA / name
    if (folder / "done").exists():
        return folder
    if not PEERS.exists():
        raise SystemExit("the peers are not installed: run benchmarks/peers/install.sh")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "hf").mkdir(parents=True)
    config, tensors = MODELS[name]()
    write_hf(folder / "hf", config, tensors)
    write_adapters(folder, config)
    write_gguf(folder / "float16.gguf", config, load_file(folder / "hf" / "model.safetensors"))
    subprocess.run([PEERS, "-m", "benchmarks.peers.make", str(folder)], cwd=ROOT, check=True)
    (folder / "float16.gguf").unlink()
    if name == PACKAGED:
        shutil.copyfile(locate(PACKAGED).path, folder / "q4_1.gguf")  # as it is shipped
    (folder / "done").touch()
    return folder


def write_hf(folder: Path, config: dict[str, Any], tensors: Tensors) -> None:
    """A directory that transformers loads, in float16."""
    known = {key: value for key, value in config.items() if not key.startswith("_")}
    (folder / "config.json").write_text(json.dumps(known | {"dtype": "float16"}, indent=2))
    halves = {name: values.astype(np.float16) for name, values in tensors}
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})


def write_adapters(folder: Path, config: dict[str, Any]) -> None:
    """The LoRAs as PEFT and as llama.cpp have them."""
    layers, shapes = range(config["num_hidden_layers"]), slot_shapes(config)
    slots = {f"layers.{layer}.{slot}": shape for layer in layers for slot, shape in shapes.items()}
    for seed in range(SEQUENCES):
        adapter = write_lora(folder / "adapters" / f"lora-{seed}", slots, rank=RANK, seed=seed)
        _write_lora_gguf(folder / f"lora-{seed}.gguf", config, load_file(adapter / "adapter_model.safetensors"))


def _write_lora_gguf(path: Path, config: dict[str, Any], factors: dict[str, Array]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 2.0 * RANK)
    for name, values in factors.items():
        module, letter = name.removeprefix("base_model.model.").removesuffix(".weight").split(".lora_")
        values = _paired(module, values, config) if letter == "B" else values
        writer.add_tensor(f"{_gguf_module(module)}.weight.lora_{letter.lower()}", values)
    _finish(writer)


def write_gguf(path: Path, config: dict[str, Any], tensors: dict[str, Array]) -> None:
    """A float16 GGUF with SmolLM2's tokenizer, or as much of it as the vocabulary holds."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    _add_tokenizer(writer, config["vocab_size"])
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if values.ndim == 1:
            writer.add_tensor(ENDS.get(name) or f"{_gguf_module(module)}.weight", values.astype(np.float32))
        else:
            writer.add_tensor(ENDS.get(name) or f"{_gguf_module(module)}.weight", _paired(module, values, config))
    _finish(writer)


def _add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    metadata = GgufFile(locate(PACKAGED).path).metadata
    tokens = metadata["tokenizer.ggml.tokens"][:size]
    known = set(tokens)
    writer.add_tokenizer_model(metadata["tokenizer.ggml.model"])
    writer.add_tokenizer_pre(metadata["tokenizer.ggml.pre"])
    writer.add_token_list(tokens)
    writer.add_token_types(metadata["tokenizer.ggml.token_type"][:size])
    merges = metadata["tokenizer.ggml.merges"]
    writer.add_token_merges([merge for merge in merges if merge.replace(" ", "") in known])
    writer.add_bos_token_id(metadata["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_add_bos_token(False)


def _gguf_module(module: str) -> str:
    """``model.layers.3.mlp.up_proj`` → ``blk.3.ffn_up``."""
    layer, _, rest = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{(SLOTS | NORMS)[rest]}"


def _paired(module: str, values: Array, config: dict[str, Any]) -> Array:
    """Rows of q and k in the pairs that GGML's rotary embedding wants."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])
    if heads is None:
        return values
    halves = values.reshape(config[heads], 2, -1, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Make the named models, or those of the real run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help=f"of {', '.join(MODELS)}; default: all but {TINY}")
    names = parser.parse_args().models or REAL
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"unknown model {unknown[0]!r}; there are {', '.join(MODELS)}")
    for name in names:
        print(make(name))


if __name__ == "__main__":
    main()
