"""Open the weights of any base without torch: a compressed directory, a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from regraft.errors import FormatError
from regraft.formats.base_record import read_record
from regraft.formats.config_keys import check_keys
from regraft.formats.gguf.file import GgufFile
from regraft.formats.gguf.weights import open_gguf
from regraft.formats.quantized.compressed_tensors import is_packed
from regraft.formats.quantized.entries import dense_entry
from regraft.formats.quantized.methods import quantized_entries, take_quantization
from regraft.formats.records import RECORD_NAME
from regraft.formats.safetensors_file import Tensors, open_model_tensors
from regraft.formats.source import Kind, Source
from regraft.formats.weights import EMBEDDING, HEAD, Entry, Weights
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
    config, quantization = read_config(folder)
    tensors = open_model_tensors(folder)
    if quantization is None and any(is_packed(name) for name in tensors):
        raise FormatError(f"{folder / CONFIG_NAME} has no quantization_config, but there are packed weights")
    if quantization is not None:
        entries = quantized_entries(tensors, quantization)
    else:
        entries = {name: dense_entry(tensors, name) for name in tensors}
    # Older versions of transformers saved this table, and newer ones pass it over.
    entries = {name: entry for name, entry in entries.items() if not name.endswith("rotary_emb.inv_freq")}
    entries = _with_prefix(entries)
    if not (folder / RECORD_NAME).exists():  # compress writes no head that is tied
        _settle_head(config, tensors, entries)
    return Weights(tensors.path, config, entries, fingerprint)


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """A directory's ``config.json``, and apart from it how the directory is quantised, if it is.

    Raises:
        FormatError: the file is missing or damaged, says something that its family does not know, or the base is
            quantised in a way that is not read here.
    """
    config = read_json(folder / CONFIG_NAME)
    quantization = take_quantization(folder, config)
    check_keys(config, str(folder / CONFIG_NAME))
    return config, quantization


def _with_prefix(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The decoder alone, as ``AutoModel`` saves it, has no ``model.`` before its names."""
    if EMBEDDING in entries or EMBEDDING.removeprefix("model.") not in entries:
        return entries
    return {name if name == HEAD else f"model.{name}": entry for name, entry in entries.items()}


def _settle_head(config: dict[str, Any], tensors: Tensors, entries: dict[str, Entry]) -> None:
    """A head that is stored beside the embedding it is tied to: its copy is dropped, or it is another head after all.

    That is how ``transformers`` takes such files.
    """
    if config.get("tie_word_embeddings") is False or HEAD not in entries or EMBEDDING not in entries:
        return
    if HEAD not in tensors or EMBEDDING not in tensors:  # quantised apart: each as it is stored
        config["tie_word_embeddings"] = False
        return
    head, embedding = tensors.info(HEAD), tensors.info(EMBEDDING)
    same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
    same = same and bool((tensors.stored(HEAD) == tensors.stored(EMBEDDING)).all())
    config["tie_word_embeddings"] = same
    if same:
        del entries[HEAD]
