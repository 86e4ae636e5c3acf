"""Open the weights of any base without torch: a compressed directory, a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.base.gguf_file import GgufFile
from regraft.base.gguf_weights import open_gguf
from regraft.base.packed import dense_entry, is_packed, packed_entries
from regraft.base.record import read_record
from regraft.base.source import Kind, Source
from regraft.base.tensors import Tensors, open_model_tensors
from regraft.base.weights import EMBEDDING, HEAD, Entry, Weights
from regraft.errors import FormatError
from regraft.storage import read_json

CONFIG_NAME = "config.json"


def open_weights(source: Source) -> Weights:
    """Open a base's weights; each is read when it is asked for.

    Raises:
        FormatError: a file is missing, damaged, of a format that the engine does not read, or not what another says.
    """
    if source.kind is Kind.GGUF:
        return open_gguf(GgufFile(source.path))
    record = read_record(source.path) if source.kind is Kind.COMPRESSED else None
    return open_directory(source.path, record.fingerprint if record else None)


def open_directory(folder: Path, fingerprint: str | None = None) -> Weights:
    """Open the weights of a directory with a ``config.json`` and safetensors.

    Args:
        folder: the directory.
        fingerprint: of its record.

    Raises:
        FormatError: see :func:`open_weights`.
    """
    config, packing = read_config(folder)
    tensors = open_model_tensors(folder)
    if packing is None and any(is_packed(name) for name in tensors):
        raise FormatError(f"{folder / CONFIG_NAME} has no quantization_config, but there are packed weights")
    if packing is not None:
        entries = packed_entries(tensors, packing)
    else:
        # Older versions of transformers saved this table, and newer ones pass it over.
        entries = {name: dense_entry(tensors, name) for name in tensors if not name.endswith("rotary_emb.inv_freq")}
        _settle_head(config, tensors, entries)
    return Weights(tensors.path, config, entries, fingerprint)


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A directory's ``config.json``, and apart from it its ``quantization_config``, if it has one.

    Raises:
        FormatError: the file is missing or damaged.
    """
    config = read_json(folder / CONFIG_NAME)
    packing = config.pop("quantization_config", None)
    if packing is not None and not isinstance(packing, dict):
        raise FormatError(
            f"{folder / CONFIG_NAME}: quantization_config", expected="an object", found=repr(packing)[:40]
        )
    return config, packing


def _settle_head(config: dict[str, Any], tensors: Tensors, entries: dict[str, Entry]) -> None:
    """A head that is stored beside the embedding it is tied to: its copy is dropped, or it is another head after all.

    That is how ``transformers`` takes such files.
    """
    if config.get("tie_word_embeddings") is False or HEAD not in entries or EMBEDDING not in entries:
        return
    head, embedding = tensors.info(HEAD), tensors.info(EMBEDDING)
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    same = same and bool((tensors.stored(HEAD) == tensors.stored(EMBEDDING)).all())
    config["tie_word_embeddings"] = same
    if same:
        del entries[HEAD]
