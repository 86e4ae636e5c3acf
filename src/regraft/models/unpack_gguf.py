"""A dense Hugging Face directory of a GGUF file's content, kept in the cache: torch-land reads nothing else.

Families of :mod:`regraft.formats.gguf.family` are read by the engine's own reader. Others are read by ``transformers``,
which passes over what it does not know: such files are refused where that could matter.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
)
from transformers.integrations import GGUF_CONFIG_MAPPING

from regraft.errors import FormatError
from regraft.formats.gguf.family import has_family
from regraft.formats.gguf.file import GgufFile
from regraft.formats.gguf.metadata import check_metadata
from regraft.formats.gguf.rope import FACTORS, rope_scaling
from regraft.formats.gguf.weights import open_gguf
from regraft.formats.safetensors_file import WEIGHTS_NAME
from regraft.formats.weights import Weights
from regraft.models.state import shapes_of
from regraft.models.whole import check_found, first_line
from regraft.progress import Progress
from regraft.storage import cache_home, file_sha256, output_directory

_VERSION = 2  # of how files are unpacked; 2: scaled RoPE, several ends of an answer, several files


def unpack_gguf(path: Path, progress: Progress) -> Path:
    """The directory, made on first use.

    Raises:
        FormatError: the file is damaged, lacks a tensor, or says something that is not read here.
    """
    file = GgufFile(path)
    digests = "".join(file_sha256(part) for part in file.paths)
    folder = cache_home() / "bases" / f"{hashlib.sha256(digests.encode()).hexdigest()[:20]}-v{_VERSION}"
    if (folder / "config.json").exists():
        return folder
    weights = _open(file) if has_family(file) else None
    progress.note(f"unpacking {path.name} to {folder} (once; takes 4 bytes a weight of disk)")
    with output_directory(folder, overwrite=True) as partial:
        if weights is not None:
            _write(weights, partial)
        else:
            _write_by_transformers(file, partial)
        _write_tokenizer(path, partial)
    return folder


def _open(file: GgufFile) -> Weights:
    """The weights of a file, held against the model that they are of."""
    weights = open_gguf(file)
    config = _config(file.path, weights.config)
    weights.check(shapes_of(config))
    return weights


def _config(path: Path, entries: dict[str, Any]) -> PretrainedConfig:
    try:
        return AutoConfig.for_model(**entries)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FormatError(f"{path}: its metadata describe no model: {first_line(error)}") from None


def _write(weights: Weights, folder: Path) -> None:
    config = _config(weights.path, weights.config)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    state = {name: torch.from_numpy(np.require(weights[name].dense(), requirements=["C", "W"])) for name in weights}
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})


def _write_by_transformers(file: GgufFile, folder: Path) -> None:
    architecture = str(file.metadata.get("general.architecture"))
    read = {key: name for key, name in GGUF_CONFIG_MAPPING.get(architecture, {}).items() if name}
    if FACTORS in file.tensors or rope_scaling(file, architecture):
        raise FormatError(f"{file.path}: scaled RoPE of a {architecture} is not read here")
    where = {"pretrained_model_name_or_path": str(file.path.parent), "gguf_file": file.path.name}
    try:
        config = AutoConfig.from_pretrained(**where)
        check_metadata(file, architecture, read, config.to_dict())
        model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise FormatError(f"{file.path} cannot be read as GGUF: {first_line(error)}") from None
    check_found(file.path, info, ())
    model.is_quantized = False  # the weights are dense now; the marks would have them decoded once more
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)


def _write_tokenizer(path: Path, folder: Path) -> None:
    try:
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    except Exception as error:  # the tokenizers library raises nothing more specific
        raise FormatError(f"{path}: its tokenizer cannot be built: {first_line(error)}") from None
