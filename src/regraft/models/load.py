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
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from regraft.errors import FormatError, UsageError
from regraft.formats.base_record import BaseRecord, Pruned, read_record
from regraft.formats.kept import Kept, read_kept
from regraft.formats.open_weights import read_config
from regraft.formats.quantized.methods import KEYS
from regraft.formats.source import Kind, Source, locate
from regraft.formats.weights import HEAD
from regraft.models.fingerprint import fingerprint
from regraft.models.slots import iter_slots
from regraft.models.state import read_compressed_state
from regraft.models.uneven import model_class
from regraft.models.unpack_gguf import unpack_gguf
from regraft.models.whole import first_line, load_whole
from regraft.progress import Progress, silent


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
    folder = unpack_gguf(source.path, progress) if source.kind is Kind.GGUF else source.path
    record = read_record(folder) if source.kind is Kind.COMPRESSED else None
    model, tokenizer = _load(source, folder, record, progress)
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


def _load(source: Source, folder: Path, record: BaseRecord | None, progress: Progress) -> tuple[PreTrainedModel, Any]:
    _, quantization = read_config(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if record is None and quantization is None:
            model = load_whole(folder, source.path, progress)
        else:
            model = load_compressed(folder, record.pruned if record else None)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise FormatError(f"{folder} cannot be loaded: {first_line(error)}") from None
    if record is None and quantization is not None:
        method = quantization["quant_method"]
        progress.note(f"{source.name} is quantised by {method}: what its weights stand for is taken as the original")
    return model, tokenizer


def load_compressed(folder: Path, pruned: Pruned | None = None) -> PreTrainedModel:
    """The model of a quantised directory, dense; of a compressed base's record only ``pruned`` counts.

    Raises:
        FormatError: see :func:`regraft.models.state.read_compressed_state`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    for key in KEYS:  # the weights below are dense already
        if hasattr(config, key):
            delattr(config, key)
    state = read_compressed_state(folder, pruned)
    if HEAD in state:
        config.tie_word_embeddings = False
    model = model_class(config, pruned).from_pretrained(None, config=config, state_dict=state, dtype=torch.float32)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model
