"""Parity of an export: the target engine's logits beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from regraft.bypass.adapter import Adapter
from regraft.bypass.attach import attached
from regraft.errors import ExportError
from regraft.evaluate.perplexity import default_text
from regraft.models.load import Base

NUM_TOKENS = 64
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Parity:
    """How near another engine's logits are to ours, on the beginning of a novel.

    Attributes:
        engine: which, and its version.
        tokens: rows of logits.
        error: ``||theirs - ours|| / ||ours||``, each row less its mean.
        same_top: share of the rows whose greatest logit is the same token's.
    """

    engine: str
    tokens: int
    error: float
    same_top: float


def probe(base: Base) -> list[int]:
    """The tokens on which engines are compared."""
    return list(base.tokenizer(default_text()[: 8 * NUM_TOKENS], add_special_tokens=False).input_ids[:NUM_TOKENS])


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: Sequence[int]) -> Array:
    """Of every token, float32 ``[tokens, vocabulary]``."""
    rows: Array = model(input_ids=torch.tensor([list(tokens)])).logits[0].float().numpy()
    return rows


def our_logits(base: Base, adapter: Adapter | None, tokens: Sequence[int]) -> Array:
    """Of a base, with an adapter if there is one."""
    with attached(base.model, adapter.bypasses if adapter else {}):
        return logits(base.model, tokens)


def compare(ours: Array, theirs: Array, engine: str, *, tolerance: float) -> Parity:
    """Hold another engine's logits against ours.

    Args:
        ours: ``[tokens, vocabulary]``.
        theirs: the same of what was written.
        engine: which, and its version.
        tolerance: the greatest relative error that rounding explains.

    Raises:
        ExportError: they are further apart, or of another shape.
    """
    if ours.shape != theirs.shape:
        raise ExportError(f"{engine} gives other logits", expected=str(list(ours.shape)), found=str(list(theirs.shape)))
    ours, theirs = (rows - rows.mean(-1, keepdims=True) for rows in (ours, theirs))
    error = float(np.linalg.norm(theirs - ours) / np.linalg.norm(ours))
    if not error <= tolerance:
        raise ExportError(
            f"{engine} computes something else from what was written, so nothing is kept of it",
            expected=f"logits within {tolerance:.0%} of ours",
            found=f"{error:.1%}",
            hint="Please report it, with the base and the adapter.",
        )
    return Parity(engine, len(ours), error, float((ours.argmax(-1) == theirs.argmax(-1)).mean()))


def transformers_logits(folder: Path, tokens: Sequence[int]) -> tuple[str, Array]:
    """Of a directory, as plain ``transformers`` loads it."""
    AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    with redirect_stderr(StringIO()):  # bars of compressed-tensors
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    return f"transformers {transformers.__version__}", logits(model.eval(), tokens)


def llama_cpp_logits(base: Path, text: str, tokens: Sequence[int], lora: Path | None = None) -> tuple[str, Array]:
    """Of a GGUF file, as llama.cpp runs it; its tokenizer has to cut ``text`` as ours does.

    Raises:
        ModuleNotFoundError: llama-cpp-python is not installed.
        ExportError: llama.cpp cannot load the file, or its tokens are others.
    """
    import llama_cpp

    engine = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
    adapter = None if lora is None else str(lora)
    size = {"n_ctx": 2 * NUM_TOKENS, "n_batch": 2 * NUM_TOKENS}
    try:
        model = llama_cpp.Llama(str(base), lora_path=adapter, logits_all=True, verbose=False, **size)
    except (ValueError, RuntimeError) as error:
        raise ExportError(f"{engine} cannot load what was written: {error}") from None
    theirs = model.tokenize(text.encode(), add_bos=False, special=False)
    if theirs[: len(tokens)] != list(tokens):
        raise ExportError(f"{engine} cuts text into other tokens than ours")
    model.eval(list(tokens))
    rows = np.array(model.scores[: len(tokens)], np.float32)
    model.close()
    return engine, rows
