"""A Llama as an ONNX graph for ONNX Runtime: MatMulNBits and GroupQueryAttention, and adapters gathered by sequence.

Layers have 4 bits and the head 8, symmetric, by blocks of 32 with float32 scales, which is what the kernels take beside
float32 activations; ``accuracy_level=4`` lets them multiply in 8 bits. The factors of all adapters are one stacked
tensor for each linear map, of which a sequence takes its own by Gather.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file

BLOCK = 32
POSITIONS = 1024  # of the keys' and values' buffers
SCALE = 2  # alpha / rank of the adapters
MICROSOFT = "com.microsoft"

Array = NDArray[Any]


def build(folder: Path, out: Path, adapters: Sequence[Path] = ()) -> None:
    """Write the graph of a Hugging Face directory.

    Args:
        folder: ``config.json`` and ``model.safetensors`` of a Llama.
        out: the ``.onnx`` file; weights go to a file beside it.
        adapters: PEFT directories, all of one rank on every linear map.
    """
    graph = _Graph(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"), adapters)
    model = graph.model()
    data = out.with_suffix(".data")
    data.unlink(missing_ok=True)
    onnx.save(model, out, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)


class _Graph:
    def __init__(self, config: dict[str, Any], weights: dict[str, Array], adapters: Sequence[Path]) -> None:
        self.config, self.weights = config, weights
        self.adapters = [load_file(adapter / "adapter_model.safetensors") for adapter in adapters]
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def model(self) -> Any:
        c = self.config
        x = self.op("Gather", [self.constant("embedding", self.weight("model.embed_tokens")), "ids"])
        self._add_rotations()
        for layer in range(c["num_hidden_layers"]):
            x = self._layer(f"model.layers.{layer}.", layer, x)
        x = self.norm(x, "model.norm")
        ends = [self.constant(name, np.array([value])) for name, value in (("s", -1), ("e", 2**62), ("a", 1))]
        x = self.op("Slice", [x, *ends])
        head = "model.embed_tokens" if c["tie_word_embeddings"] else "lm_head"
        logits = self.linear(x, head, bits=8)
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"]))
        graph = helper.make_graph(self.nodes, "llama", self._inputs(), self._outputs(), self.constants)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _layer(self, prefix: str, layer: int, x: str) -> str:
        c, attention = self.config, f"{prefix}self_attn."
        normed = self.norm(x, f"{prefix}input_layernorm")
        q, k, v = (self.linear(normed, f"{attention}{name}_proj") for name in "qkv")
        past, now = [f"past_{part}{layer}" for part in "kv"], [f"now_{part}{layer}" for part in "kv"]
        seen = f"attention{layer}"
        inputs = [q, k, v, *past, "last", "total", "cos", "sin"]
        heads = {"num_heads": c["num_attention_heads"], "kv_num_heads": c["num_key_value_heads"], "do_rotary": 1}
        self.nodes.append(helper.make_node("GroupQueryAttention", inputs, [seen, *now], domain=MICROSOFT, **heads))
        x = self.op("Add", [x, self.linear(seen, f"{attention}o_proj")])
        normed = self.norm(x, f"{prefix}post_attention_layernorm")
        gate, up = (self.linear(normed, f"{prefix}mlp.{name}_proj") for name in ("gate", "up"))
        gated = self.op("Mul", [self.op("Mul", [gate, self.op("Sigmoid", [gate])]), up])
        return self.op("Add", [x, self.linear(gated, f"{prefix}mlp.down_proj")])

    def linear(self, x: str, path: str, *, bits: int = 4) -> str:
        weight = self.weight(path)
        codes, scales = quantize(weight, bits)
        tensors = [self.constant(f"{path}.codes", codes), self.constant(f"{path}.scales", scales)]
        out, width = weight.shape
        sizes = {"N": out, "K": width, "bits": bits, "block_size": BLOCK, "accuracy_level": 4}
        y = self.op("MatMulNBits", [x, *tensors], domain=MICROSOFT, **sizes)
        if not self.adapters or ".layers." not in path:
            return y
        down, up = (self._gathered(path, factor) for factor in "AB")
        return self.op("Add", [y, self.op("MatMul", [self.op("MatMul", [x, down]), up])])

    def _gathered(self, path: str, factor: str) -> str:
        """The factors of each sequence's adapter, transposed; the scale is in B."""
        name = f"base_model.model.{path}.lora_{factor}.weight"
        scale = SCALE if factor == "B" else 1
        stacked = np.stack([scale * adapter[name].astype(np.float32).T for adapter in self.adapters])
        return self.op("Gather", [self.constant(f"{path}.{factor}", stacked), "adapter"], axis=0)

    def norm(self, x: str, path: str) -> str:
        options = {"axis": -1, "epsilon": self.config["rms_norm_eps"], "stash_type": 1}
        return self.op("SimplifiedLayerNormalization", [x, self.constant(path, self.weight(path))], **options)

    def weight(self, path: str) -> Array:
        return self.weights[f"{path}.weight"].astype(np.float32)

    def constant(self, name: str, values: Array) -> str:
        if all(existing.name != name for existing in self.constants):
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def op(self, kind: str, inputs: Sequence[str], **options: Any) -> str:
        out = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [out], **options))
        return out

    def _add_rotations(self) -> None:
        width = self._head_dim()
        frequencies = 1 / self.config["rope_theta"] ** (np.arange(0, width, 2) / width)
        angles = np.outer(np.arange(POSITIONS), frequencies)
        self.constant("cos", np.cos(angles).astype(np.float32))
        self.constant("sin", np.sin(angles).astype(np.float32))

    def _head_dim(self) -> int:
        return int(self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"])

    def _inputs(self) -> list[Any]:
        info = helper.make_tensor_value_info
        inputs = [info("ids", TensorProto.INT64, ["B", "S"]), info("last", TensorProto.INT32, ["B"])]
        inputs.append(info("total", TensorProto.INT32, []))
        if self.adapters:
            inputs.append(info("adapter", TensorProto.INT64, ["B"]))
        return inputs + self._keys_and_values("past", "P")

    def _outputs(self) -> list[Any]:
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 1, self.config["vocab_size"]])
        return [logits, *self._keys_and_values("now", "T")]

    def _keys_and_values(self, when: str, length: str) -> list[Any]:
        shape = ["B", self.config["num_key_value_heads"], length, self._head_dim()]
        names = [f"{when}_{part}{layer}" for layer in range(self.config["num_hidden_layers"]) for part in "kv"]
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]


def quantize(weight: Array, bits: int) -> tuple[Array, Array]:
    """Symmetric codes ``[out, blocks, bytes]`` and float32 scales ``[out, blocks]``, as MatMulNBits has them."""
    out, width = weight.shape
    blocks = weight.reshape(out, width // BLOCK, BLOCK)
    half = 1 << (bits - 1)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    scales = -peak / half  # the largest value has the lowest code, as in ggml
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = (np.clip(np.rint(blocks * inverse), -half, half - 1) + half).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    return codes, scales[..., 0].astype(np.float32)
