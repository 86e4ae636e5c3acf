"""Load a base into torch: whatever it is stored as, the result is a plain ``transformers`` model.

A compressed base becomes the same model whose slots hold the *dequantised* weights, so that everything in torch-land
(evaluation, adapting, PEFT) works on it unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from regraft.base.fingerprint import fingerprint
from regraft.base.kept import Kept, read_kept
from regraft.base.record import BaseRecord, Pruned, read_record
from regraft.base.shaped import model_class
from regraft.base.slots import iter_slots
from regraft.base.source import Kind, Source, locate
from regraft.base.stored import read_compressed_state
from regraft.errors import FormatError, UsageError
from regraft.progress import Progress, silent
from regraft.storage import cache_home, file_sha256, output_directory


@dataclass
class Base:
    """A decoder LM, frozen and in eval mode, with its tokenizer.

    ``record`` is the ``regraft.json`` of a compressed base, None for an uncompressed one; ``kept`` says which parts of
    the original a pruned one has.
    """

    name: str
    path: Path
    model: PreTrainedModel
    tokenizer: Any
    record: BaseRecord | None = None
    kept: Kept | None = None

    @cached_property
    def fingerprint(self) -> str:
        """Content hash over configuration, weights and tokenizer."""
        return self.record.fingerprint if self.record else fingerprint(self.model, self.tokenizer)

    @property
    def original_fingerprint(self) -> str:
        """Fingerprint of the uncompressed base that this one is, or was made from."""
        return self.record.original.fingerprint if self.record else self.fingerprint

    @property
    def is_compressed(self) -> bool:
        """Whether this base was made by ``regraft compress``."""
        return self.record is not None


def load_base(argument: str | Path, *, device: str = "cpu", progress: Progress = silent) -> Base:
    """Load a BASE argument: a directory, a ``.gguf`` file, or a packaged name.

    Weights are held as float32, whatever they are stored as: fingerprints and compression errors are exact then.

    Raises:
        UsageError: there is no such base, or no such device.
        FormatError: files missing, truncated, changed since they were written, or of a model without linear slots.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    _check_device(device)
    source = locate(argument)
    folder = _unpacked(source, progress) if source.kind is Kind.GGUF else source.path
    record = read_record(folder) if source.kind is Kind.COMPRESSED else None
    model, tokenizer = _load(folder, record)
    if next(iter_slots(model), None) is None:
        raise FormatError(
            f"{source.path}: {type(model).__name__} has no linear layers under 'layers.N'",
            expected="a decoder whose linears are torch.nn.Linear (Llama, Mistral, Qwen2, Qwen3, Gemma 3, …)",
        )
    if record is not None and fingerprint(model, tokenizer) != record.fingerprint:
        raise FormatError(
            f"{folder} has changed since it was written: its content is not that of its regraft.json",
            hint="Compress the base again.",
        )
    model.requires_grad_(False)
    kept = read_kept(folder, record.pruned) if record is not None and record.pruned is not None else None
    return Base(source.name, source.path, model.eval().to(device), tokenizer, record, kept)


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # no such word; a torch built without it
        raise UsageError(f"device {device!r} cannot be used here", hint="cpu always can.") from None


def _load(folder: Path, record: BaseRecord | None) -> tuple[PreTrainedModel, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if record is None:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
            )
        else:
            model = load_compressed(folder, record.pruned)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"{folder} cannot be loaded: {_first_line(error)}") from None
    return model, tokenizer


def load_compressed(folder: Path, pruned: Pruned | None = None) -> PreTrainedModel:
    """The model of a compressed directory, dense; of its record only ``pruned`` counts.

    Raises:
        FormatError: see :func:`regraft.base.stored.read_compressed_state`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights below are dense already
    state = read_compressed_state(folder, pruned)
    model = model_class(config, pruned).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _unpacked(source: Source, progress: Progress) -> Path:
    """A dense directory of a GGUF file's content, made on first use: transformers takes long to unpack one."""
    folder = cache_home() / "bases" / file_sha256(source.path)[:20]
    if (folder / "config.json").exists():
        return folder
    progress.note(f"unpacking {source.path.name} to {folder} (once; takes 4 bytes a weight of disk)")
    where = {"pretrained_model_name_or_path": str(source.path.parent), "gguf_file": source.path.name}
    try:
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise FormatError(f"{source.path} cannot be read as GGUF: {_first_line(error)}") from None
    model.is_quantized = False  # the weights are dense now; the marks would have them decoded once more
    model.hf_quantizer = None
    del model.config.quantization_config
    with output_directory(folder, overwrite=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return folder
