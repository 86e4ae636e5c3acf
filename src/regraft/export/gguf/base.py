"""A base as one GGUF file, which llama.cpp and what is built on it load.

Quantised weights keep their codes where GGML has a type of the same form, in groups of 32:

    Q4_0   scale * (code - 8)          Q4_1   scale * code + minimum          Q8_0   scale * (code - 128)

all others, embeddings among them, are written as float16; norms and biases as float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from regraft.engine.weights.architecture import Architecture, read_architecture
from regraft.errors import ExportError, FormatError
from regraft.export.gguf.vocabulary import Vocabulary, write_vocabulary
from regraft.formats.base_record import Pruned
from regraft.formats.gguf.family import GgufFamily, family_for
from regraft.formats.weights import Affine, Weight, Weights
from regraft.progress import Progress, silent

GROUP = 32
_HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class GgufTarget:
    """What a base is in GGUF.

    Attributes:
        architecture: GGML's name of the family.
        heads: module (``attn_q``) → the heads whose rows stand in pairs there; empty where none do.
    """

    architecture: str
    family: GgufFamily
    heads: Mapping[str, int]

    def tensor(self, parameter: str) -> str:
        """The name of a parameter.

        Raises:
            ExportError: it has none.
        """
        name = self.family.tensor(parameter)
        if name is None:
            raise ExportError(f"{parameter} has no name in GGUF's {self.architecture}")
        return name

    def rows(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """The rows of a tensor in GGUF's order: ``0 1 … n/2 n/2+1 … → 0 n/2 1 n/2+1 …`` in each head of q and k."""
        heads = self.heads.get(name.split(".")[-2])
        if heads is None:
            return array
        halves = array.reshape(heads, 2, -1, *array.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def gguf_target(config: Mapping[str, Any], pruned: Pruned | None = None) -> tuple[GgufTarget, Architecture]:
    """What a base of this Hugging Face config is in GGUF.

    Raises:
        ExportError: GGUF's family cannot say what the base is.
        FormatError: the config is not understood.
    """
    base = read_architecture(config, pruned)
    name, family = family_for(config["model_type"])
    if base.experts is not None:
        raise ExportError("a base of experts cannot be written as GGUF", hint="Export one whose recipe has none.")
    if any(len(set(widths)) > 1 for widths in (base.heads, base.kv_heads, base.mlp)):
        raise ExportError(
            "a base whose layers differ in width cannot be written as GGUF",
            hint="Prune with `ranking: local`, or compress with --uniform.",
        )
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ExportError(f"rotary embeddings of type {kind!r} cannot be written as GGUF yet")
    heads = {"attn_q": base.heads[0], "attn_k": base.kv_heads[0]} if family.interleaved else {}
    return GgufTarget(name, family, heads), base


def write_gguf(
    weights: Weights, vocabulary: Vocabulary, path: Path, *, pruned: Pruned | None = None, progress: Progress = silent
) -> None:
    """Write a base as a GGUF file.

    Args:
        weights: of the base.
        vocabulary: its tokenizer.
        path: the file to write; there is none yet.
        pruned: of its record.
        progress: told of the tensors.

    Raises:
        ExportError, FormatError: see :func:`gguf_target`; also a weight beyond float16's range.
    """
    target, base = gguf_target(weights.config, pruned)
    writer = gguf.GGUFWriter(path, target.architecture, use_temp_file=True)  # tensors wait on disk, not in memory
    _write_sizes(writer, base, weights.config)
    write_vocabulary(writer, vocabulary, base.vocabulary)
    with progress.track(len(weights), "collecting tensors") as advance:
        for parameter in weights:
            _add(writer, target.tensor(parameter), weights[parameter], target)
            advance()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_sizes(writer: gguf.GGUFWriter, base: Architecture, config: Mapping[str, Any]) -> None:
    scaling = config.get("rope_parameters") or {}
    windows = [window for window in base.windows if window]
    writer.add_block_count(base.layers)
    # A window that no text is longer than is none: llama.cpp's families here have none.
    writer.add_context_length(min([base.max_positions, *windows]))
    writer.add_embedding_length(base.hidden)
    writer.add_feed_forward_length(base.mlp[0])
    writer.add_head_count(base.heads[0])
    writer.add_head_count_kv(base.kv_heads[0])
    writer.add_key_length(base.head_dim)
    writer.add_value_length(base.head_dim)
    writer.add_rope_dimension_count(base.head_dim)
    writer.add_rope_freq_base(float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(base.epsilon)
    writer.add_vocab_size(base.vocabulary)


def _add(writer: gguf.GGUFWriter, name: str, weight: Weight, target: GgufTarget) -> None:
    if isinstance(weight, Affine) and (blocks := _blocks(weight)) is not None:
        kind, data = blocks
        writer.add_tensor(name, target.rows(name, data), raw_dtype=kind)
        return
    values = target.rows(name, weight.dense())
    if values.ndim == 1:
        writer.add_tensor(name, values)
        return
    most = float(np.abs(values).max())
    if most > _HALF_MAX:
        raise FormatError(f"{name}", expected="weights in float16's range", found=f"{most:.3g}")
    writer.add_tensor(name, values.astype(np.float16))


def _blocks(weight: Affine) -> tuple[gguf.GGMLQuantizationType, NDArray[np.uint8]] | None:
    """A weight in GGML's blocks ``[out, bytes of a row]``; None where none are of its form."""
    out, width = weight.codes.shape
    if weight.group_size % GROUP or width % GROUP:
        return None
    centre = 1 << (weight.bits - 1)
    scale = _by_block(weight.scale, weight)
    if weight.bits <= 4 and weight.zero is None and weight.minimum is None:
        return gguf.GGMLQuantizationType.Q4_0, _nibbles(weight.codes + np.uint8(8 - centre), [scale])
    if weight.bits <= 4:
        minimum = weight.minimum
        if minimum is None:
            assert weight.zero is not None
            minimum = (-weight.scale.astype(np.float32) * weight.zero).astype(np.float16)
        return gguf.GGMLQuantizationType.Q4_1, _nibbles(weight.codes, [scale, _by_block(minimum, weight)])
    if weight.zero is not None or weight.minimum is not None:
        return None
    codes = (weight.codes.astype(np.int16) - centre).astype(np.int8).view(np.uint8).reshape(out, -1, GROUP)
    return gguf.GGMLQuantizationType.Q8_0, np.concatenate([_bytes(scale), codes], axis=-1).reshape(out, -1)


def _nibbles(codes: NDArray[np.uint8], halves: list[NDArray[np.float16]]) -> NDArray[np.uint8]:
    """Blocks of 4-bit codes, the first half of a block in the low bits, behind some float16 of each block."""
    out = len(codes)
    blocks = codes.reshape(out, -1, 2, GROUP // 2)
    packed = blocks[:, :, 0] | blocks[:, :, 1] << 4
    return np.concatenate([*map(_bytes, halves), packed], axis=-1).reshape(out, -1)


def _by_block(by_group: NDArray[np.float16], weight: Affine) -> NDArray[np.float16]:
    return np.repeat(by_group, weight.group_size // GROUP, axis=1)


def _bytes(halves: NDArray[np.float16]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(halves, "<f2")[..., None].view(np.uint8)
