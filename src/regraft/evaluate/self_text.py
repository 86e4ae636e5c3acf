"""Text that a model writes itself: calibration and distillation data for who has none.

The tokens are drawn from the model's own distribution, as in LLM-QAT (Liu et al. 2023, arXiv 2305.17888); that work
takes the likeliest tokens first and starts from random words, ours starts where the model's documents and
conversations start.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from regraft.errors import UsageError
from regraft.progress import Progress, silent

TOP_K = 50
_BATCH = 32  # sequences
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for the user's words while the template's start is cut off


def write_text(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    num_sequences: int,
    sequence_length: int,
    seed: int,
    progress: Progress = silent,
) -> list[list[int]]:
    """Sample token ids at temperature 1 from the 50 likeliest tokens.

    Half of the sequences start a document (BOS, or else the end-of-sequence token alone), half a conversation (what
    the chat template puts before the user's first words), if there is a template. A sequence goes on after an
    end-of-sequence token, so all have ``sequence_length`` tokens, start included.

    Raises:
        UsageError: the tokenizer has neither BOS nor end of sequence, or no room is left after a start.
    """
    starts = _starts(model, tokenizer, sequence_length)
    sequences: list[list[int]] = []
    devices = [model.device] if model.device.type == "cuda" else []
    with progress.track(num_sequences, "self-written text") as advance, torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        for number, start in enumerate(starts):
            remaining = len(range(number, num_sequences, len(starts)))
            while remaining:
                count = min(remaining, _BATCH)
                sequences += _sample(model, start, count, sequence_length)
                remaining -= count
                advance(count)
    return sequences


def _starts(model: PreTrainedModel, tokenizer: Any, sequence_length: int) -> list[list[int]]:
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise UsageError("text written by the base", expected="a tokenizer with a BOS or an end-of-sequence token")
    starts = [[first]]
    if tokenizer.chat_template:
        turn = tokenizer.apply_chat_template([{"role": "user", "content": _MARK}], tokenize=False)
        starts.append(tokenizer(turn.split(_MARK)[0], add_special_tokens=False)["input_ids"] or [first])
    fitting = [start for start in starts if len(start) < sequence_length]
    if not fitting:
        raise UsageError("sequence_length", expected="at least 2 tokens", found=str(sequence_length))
    return fitting


@torch.no_grad()
def _sample(model: PreTrainedModel, start: list[int], count: int, sequence_length: int) -> list[list[int]]:
    ids = torch.tensor([start] * count, device=model.device)
    config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=TOP_K,
        top_p=1.0,
        max_new_tokens=sequence_length - len(start),
        eos_token_id=[],  # None would be taken from the model's own configuration
        pad_token_id=0,
        repetition_penalty=1.0,
    )
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return output.tolist()
