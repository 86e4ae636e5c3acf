"""Perplexity of a text: ``exp(-(1/N) Σ_t log p(x_t | x_<t in its window))`` over windows that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from regraft.errors import DataError
from regraft.progress import Progress, silent


@dataclass(frozen=True)
class Perplexity:
    """``value = exp(nll)``; ``nll`` is the mean negative log-likelihood in nats over ``num_tokens`` predictions."""

    value: float
    nll: float
    num_tokens: int


def default_text() -> str:
    """A held-out text that ships with regraft: 54 kB of an English novel, see ``texts/README``."""
    return resources.files("regraft.evaluate").joinpath("texts/botchan.txt").read_text(encoding="utf-8")


def read_text(path: Path) -> str:
    """A text file.

    Raises:
        DataError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02x} at {error.start}"
        raise DataError(f"{path}: text encoding", expected="UTF-8", found=found) from None
    if not text.strip():
        raise DataError(str(path), expected="some text", found="an empty file")
    return text


def perplexity(
    model: PreTrainedModel,
    tokenizer: Any,
    texts: str | Sequence[str],
    *,
    sequence_length: int = 256,
    max_tokens: int | None = None,
    progress: Progress = silent,
) -> Perplexity:
    """Perplexity of one text, or of several joined by empty lines.

    Args:
        model: a causal LM in eval mode.
        tokenizer: its tokenizer.
        texts: what to predict.
        sequence_length: tokens of a window; the last one may be shorter.
        max_tokens: stop after about so many; None takes the whole text.
        progress: counts windows.

    Raises:
        DataError: the text is too short to predict anything.
    """
    cut = windows(tokenizer, texts, sequence_length)
    most = None if max_tokens is None else max(1, max_tokens // sequence_length)
    return perplexity_of(model, cut[:most], progress=progress)


def windows(tokenizer: Any, texts: str | Sequence[str], sequence_length: int) -> list[list[int]]:
    """Cut texts into windows of token ids, each starting with what the tokenizer starts a text with (BOS, or nothing).

    Without it, models that were always trained with one (Gemma) predict badly.
    """
    text = texts if isinstance(texts, str) else "\n\n".join(texts)
    start = [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = sequence_length - len(start)
    return [[*start, *ids[begin : begin + step]] for begin in range(0, len(ids), step)]


@torch.no_grad()
def perplexity_of(
    model: PreTrainedModel, token_windows: Sequence[Sequence[int]], *, progress: Progress = silent
) -> Perplexity:
    """Perplexity over windows of token ids; the first token of each is given, not predicted.

    Cost: the logits of one window at a time, ``sequence_length · V`` floats twice over.

    Raises:
        DataError: no window has two tokens.
    """
    total, num_tokens = 0.0, 0
    with progress.track(len(token_windows), "perplexity") as advance:
        for window in token_windows:
            ids = torch.tensor(window, device=model.device)
            if len(ids) > 1:
                logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]  # [T - 1, V]
                total += functional.cross_entropy(logits.float(), ids[1:], reduction="sum").item()
                num_tokens += len(ids) - 1
            advance()
    if not num_tokens:
        raise DataError("perplexity", expected="a text of at least two tokens", found="a shorter one")
    nll = total / num_tokens
    return Perplexity(math.exp(nll), nll, num_tokens)
